"""The part of the PD service that stores and old clients call: little of it changes anything here.

The cluster is bootstrapped before the first port opens, and knows its stores and Regions without being told: what
stores report is taken note of by nobody.
Source: tikv/pd server/grpc_service.go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import attrs
from tikv_proto import pdpb
from tikv_proto.services import PD

from tikv_embedded.pd.members import PdMember, Refusal
from tikv_embedded.pd.state import PdState, guarded
from tikv_embedded.region import StoreState
from tikv_embedded.rpc_handlers import Handler, ServicerContext, client_stream, stream


class PdRegistrationService:
    """Handlers of one PD member.

    Args:
        state: Shared with the other members.
        member: Which of them this is.
    """

    def __init__(self, state: PdState, member: PdMember) -> None:
        self._state = state
        self._member = member

    def handlers(self) -> list[Handler]:
        """Return what this member answers."""
        return [
            guarded(self._state, self._member, PD.Bootstrap, self._bootstrap),
            guarded(self._state, self._member, PD.PutStore, self._put_store),
            guarded(self._state, self._member, PD.StoreHeartbeat, self._store_heartbeat),
            stream(PD.RegionHeartbeat, self._region_heartbeat),
            client_stream(PD.ReportBuckets, self._report_buckets),
            guarded(self._state, self._member, PD.AskBatchSplit, self._ask_batch_split),
            guarded(self._state, self._member, PD.ReportBatchSplit, self._report_batch_split),
            guarded(self._state, self._member, PD.IsSnapshotRecovering, self._is_snapshot_recovering),
            guarded(self._state, self._member, PD.SyncMaxTS, self._sync_max_ts),
            guarded(self._state, self._member, PD.GetDCLocationInfo, self._get_dc_location_info),
        ]

    def _bootstrap(self, _request: pdpb.BootstrapRequest, _follower: bool) -> pdpb.BootstrapResponse:
        message = "cluster is already bootstrapped"
        return pdpb.BootstrapResponse(header=self._state.error(pdpb.ErrorType.ALREADY_BOOTSTRAPPED, message))

    def _store_heartbeat(self, request: pdpb.StoreHeartbeatRequest, _follower: bool) -> pdpb.StoreHeartbeatResponse:
        return pdpb.StoreHeartbeatResponse(header=self._refusal(request.stats.store_id) or self._state.header)

    def _put_store(self, request: pdpb.PutStoreRequest, _follower: bool) -> pdpb.PutStoreResponse:
        """A store tells its labels when it starts; where it listens is known here."""
        sent, topology = request.store, self._state.topology
        refusal = self._refusal(sent.id)
        if refusal is None and sent.labels:
            labels = dict(topology.stores[sent.id].labels) | {label.key: label.value for label in sent.labels}
            topology.put_store(attrs.evolve(topology.stores[sent.id], labels=tuple(labels.items())))
        return pdpb.PutStoreResponse(header=refusal or self._state.header)

    def _refusal(self, store_id: int) -> pdpb.ResponseHeader | None:
        """Return the header for a store that may not speak any more, or never might."""
        store = self._state.topology.stores.get(store_id)
        if store is None:
            return self._state.error(pdpb.ErrorType.UNKNOWN, f"store {store_id} not found")
        if store.state is StoreState.TOMBSTONE:
            return self._state.error(pdpb.ErrorType.STORE_TOMBSTONE, "store is tombstone")
        return None

    async def _region_heartbeat(
        self, requests: AsyncIterator[pdpb.RegionHeartbeatRequest], context: ServicerContext
    ) -> AsyncIterator[pdpb.RegionHeartbeatResponse]:
        """Nothing is ever scheduled, so nothing is ever answered."""
        await self._swallow(requests, context)
        nothing: tuple[pdpb.RegionHeartbeatResponse, ...] = ()
        for response in nothing:
            yield response

    async def _report_buckets(
        self, requests: AsyncIterator[pdpb.ReportBucketsRequest], context: ServicerContext
    ) -> pdpb.ReportBucketsResponse:
        await self._swallow(requests, context)
        return pdpb.ReportBucketsResponse(header=self._state.header)

    async def _swallow(self, requests: AsyncIterator[Any], context: ServicerContext) -> None:
        async for request in requests:
            role = self._state.admit(self._member, request, context)
            if isinstance(role, Refusal):
                await context.abort(role.code, role.details)

    def _ask_batch_split(self, request: pdpb.AskBatchSplitRequest, _follower: bool) -> pdpb.AskBatchSplitResponse:
        peers, topology = len(request.region.peers), self._state.topology
        ids = iter(topology.allocate_ids(request.split_count * (1 + peers)))
        pieces = [
            pdpb.SplitID(new_region_id=next(ids), new_peer_ids=[next(ids) for _ in range(peers)])
            for _ in range(request.split_count)
        ]
        return pdpb.AskBatchSplitResponse(header=self._state.header, ids=pieces)

    def _report_batch_split(
        self, _request: pdpb.ReportBatchSplitRequest, _follower: bool
    ) -> pdpb.ReportBatchSplitResponse:
        return pdpb.ReportBatchSplitResponse(header=self._state.header)

    def _is_snapshot_recovering(
        self, _request: pdpb.IsSnapshotRecoveringRequest, _follower: bool
    ) -> pdpb.IsSnapshotRecoveringResponse:
        return pdpb.IsSnapshotRecoveringResponse(header=self._state.header)

    def _sync_max_ts(self, _request: pdpb.SyncMaxTSRequest, _follower: bool) -> pdpb.SyncMaxTSResponse:
        return pdpb.SyncMaxTSResponse(header=self._state.header)

    def _get_dc_location_info(
        self, _request: pdpb.GetDCLocationInfoRequest, _follower: bool
    ) -> pdpb.GetDCLocationInfoResponse:
        return pdpb.GetDCLocationInfoResponse(header=self._state.header)
