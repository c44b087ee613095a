"""The PD service of one member: members, timestamps, ids, Regions, stores and their scheduling.

All members share one state, so a member differs from the next only in its name and in whether it leads. The cluster is
bootstrapped before the first port opens; nothing ever answers NOT_BOOTSTRAPPED.
Source: tikv/pd server/grpc_service.go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from tikv_proto import metapb, pdpb
from tikv_proto.services import PD, Rpc

from tikv_embedded.pd import regions as pd_regions
from tikv_embedded.pd.members import PdMember, Refusal
from tikv_embedded.pd.state import PdState, guarded
from tikv_embedded.region import Region
from tikv_embedded.rpc_handlers import Handler, ServicerContext, stream, unary

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


class PdService:
    """Handlers of one PD member.

    Args:
        state: Shared with the other members.
        member: Which of them this is.
    """

    def __init__(self, state: PdState, member: PdMember) -> None:
        self._state = state
        self._member = member
        self._topology = state.topology

    def handlers(self) -> list[Handler]:
        """Return what this member answers; other RPCs of PD are UNIMPLEMENTED."""
        return [
            unary(PD.GetMembers, self._get_members),
            unary(PD.GetClusterInfo, self._get_cluster_info),
            stream(PD.Tso, self._tso),
            stream(PD.QueryRegion, self._query_region),
            self._guarded(PD.IsBootstrapped, self._is_bootstrapped),
            self._guarded(PD.AllocID, self._alloc_id),
            self._guarded(PD.GetMinTS, self._get_min_ts),
            self._guarded(PD.GetStore, self._get_store),
            self._guarded(PD.GetAllStores, self._get_all_stores),
            self._guarded(PD.GetClusterConfig, self._get_cluster_config),
            self._guarded(PD.PutClusterConfig, self._put_cluster_config),
            self._guarded(PD.SplitRegions, self._split_regions),
            self._guarded(PD.SplitAndScatterRegions, self._split_and_scatter_regions),
            self._guarded(PD.ScatterRegion, self._scatter_region),
            self._guarded(PD.GetOperator, self._get_operator),
            self._guarded(PD.GetRegion, self._get_region, follower_may=True),
            self._guarded(PD.GetPrevRegion, self._get_prev_region, follower_may=True),
            self._guarded(PD.GetRegionByID, self._get_region_by_id, follower_may=True),
            self._guarded(PD.ScanRegions, self._scan_regions, follower_may=True),
            self._guarded(PD.BatchScanRegions, self._batch_scan_regions, follower_may=True),
        ]

    def _guarded(
        self, rpc: Rpc[Req, Resp], answer: Callable[[Req, bool], Resp], *, follower_may: bool = False
    ) -> Handler:
        return guarded(self._state, self._member, rpc, answer, follower_may=follower_may)

    async def _get_members(
        self, _request: pdpb.GetMembersRequest, _context: ServicerContext
    ) -> pdpb.GetMembersResponse:
        """Answered by every member, to callers that do not know the cluster id yet."""
        members = self._state.members
        leader = members.leader.to_pb()
        return pdpb.GetMembersResponse(
            header=self._state.header,
            members=[member.to_pb() for member in members.members],
            leader=leader,
            etcd_leader=leader,
        )

    async def _get_cluster_info(
        self, _request: pdpb.GetClusterInfoRequest, _context: ServicerContext
    ) -> pdpb.GetClusterInfoResponse:
        urls, modes = self._state.tso_urls, pdpb.ServiceMode
        return pdpb.GetClusterInfoResponse(
            header=self._state.header,
            serviceModes=[modes.API_SVC_MODE if urls else modes.PD_SVC_MODE],
            tso_urls=urls,
        )

    async def _tso(
        self, requests: AsyncIterator[pdpb.TsoRequest], context: ServicerContext
    ) -> AsyncIterator[pdpb.TsoResponse]:
        async for request in requests:
            role = self._state.admit(self._member, request, context)
            if isinstance(role, Refusal):
                # PD reports the loss of leadership on this stream as UNKNOWN, unlike everywhere else.
                await context.abort(*_tso_refusal(role))
            try:
                physical, logical = self._state.oracle.allocate(request.count)
            except ValueError as error:
                await context.abort(grpc.StatusCode.UNKNOWN, f"generate timestamp failed, {error}")
            yield pdpb.TsoResponse(
                header=self._state.header,
                count=request.count,
                timestamp=pdpb.Timestamp(physical=physical, logical=logical),
            )

    async def _query_region(
        self, requests: AsyncIterator[pdpb.QueryRegionRequest], context: ServicerContext
    ) -> AsyncIterator[pdpb.QueryRegionResponse]:
        """Every member answers this one, whatever the metadata say."""
        async for request in requests:
            role = self._state.admit(self._state.members.leader, request, context)
            if isinstance(role, Refusal):
                await context.abort(role.code, role.details)
            yield pd_regions.query_region(self._state.view, request, self._state.buckets)

    def _is_bootstrapped(self, _request: pdpb.IsBootstrappedRequest, _follower: bool) -> pdpb.IsBootstrappedResponse:
        return pdpb.IsBootstrappedResponse(header=self._state.header, bootstrapped=True)

    def _alloc_id(self, request: pdpb.AllocIDRequest, _follower: bool) -> pdpb.AllocIDResponse:
        count = request.count or 1
        ids = self._topology.allocate_ids(count)
        return pdpb.AllocIDResponse(header=self._state.header, id=ids[-1], count=count if count > 1 else 0)

    def _get_min_ts(self, _request: pdpb.GetMinTSRequest, _follower: bool) -> pdpb.GetMinTSResponse:
        physical, logical = self._state.oracle.allocate(1)
        timestamp = pdpb.Timestamp(physical=physical, logical=logical)
        return pdpb.GetMinTSResponse(header=self._state.header, timestamp=timestamp)

    def _get_store(self, request: pdpb.GetStoreRequest, _follower: bool) -> pdpb.GetStoreResponse:
        return pd_regions.get_store(self._topology, request.store_id)

    def _get_all_stores(self, request: pdpb.GetAllStoresRequest, _follower: bool) -> pdpb.GetAllStoresResponse:
        return pd_regions.get_all_stores(self._topology, request)

    def _get_cluster_config(
        self, _request: pdpb.GetClusterConfigRequest, _follower: bool
    ) -> pdpb.GetClusterConfigResponse:
        cluster = metapb.Cluster(id=self._topology.cluster_id, max_peer_count=self._topology.max_peer_count)
        return pdpb.GetClusterConfigResponse(header=self._state.header, cluster=cluster)

    def _put_cluster_config(
        self, request: pdpb.PutClusterConfigRequest, _follower: bool
    ) -> pdpb.PutClusterConfigResponse:
        if request.cluster.id != self._topology.cluster_id:
            message = f"invalid cluster {request.cluster.id}, mismatch cluster id {self._topology.cluster_id}"
            return pdpb.PutClusterConfigResponse(header=self._state.error(pdpb.ErrorType.UNKNOWN, message))
        self._topology.set_max_peer_count(request.cluster.max_peer_count)
        return pdpb.PutClusterConfigResponse(header=self._state.header)

    def _split_regions(self, request: pdpb.SplitRegionsRequest, _follower: bool) -> pdpb.SplitRegionsResponse:
        percentage, ids = pd_regions.split_regions(self._topology, request.split_keys)
        return pdpb.SplitRegionsResponse(header=self._state.header, finished_percentage=percentage, regions_id=ids)

    def _split_and_scatter_regions(
        self, request: pdpb.SplitAndScatterRegionsRequest, _follower: bool
    ) -> pdpb.SplitAndScatterRegionsResponse:
        percentage, ids = pd_regions.split_regions(self._topology, request.split_keys)
        self._state.scattering.scatter(ids)
        return pdpb.SplitAndScatterRegionsResponse(
            header=self._state.header,
            split_finished_percentage=percentage,
            scatter_finished_percentage=100,
            regions_id=ids,
        )

    def _scatter_region(self, request: pdpb.ScatterRegionRequest, _follower: bool) -> pdpb.ScatterRegionResponse:
        known = self._topology.regions
        if not request.regions_id:
            if request.region_id not in known:
                message = f"region {request.region_id} not found"
                return pdpb.ScatterRegionResponse(header=self._state.error(pdpb.ErrorType.REGION_NOT_FOUND, message))
            self._state.scattering.scatter([request.region_id])
            return pdpb.ScatterRegionResponse(header=self._state.header, finished_percentage=100)
        self._state.scattering.scatter(request.regions_id)
        failed = [region_id for region_id in request.regions_id if region_id not in known]
        percentage = 100 - 100 * len(failed) // len(request.regions_id)
        return pdpb.ScatterRegionResponse(
            header=self._state.header, finished_percentage=percentage, failed_regions_id=failed
        )

    def _get_operator(self, request: pdpb.GetOperatorRequest, _follower: bool) -> pdpb.GetOperatorResponse:
        """Scattering is all there ever is; the caller polls until it does not run any more."""
        status = self._state.scattering.status(request.region_id)
        if status is None:
            return pdpb.GetOperatorResponse(header=self._state.error(pdpb.ErrorType.REGION_NOT_FOUND, "Not Found"))
        return pdpb.GetOperatorResponse(
            header=self._state.header,
            region_id=request.region_id,
            desc=b"scatter-region",
            status=status,
            kind=b"leader,region",
        )

    def _get_region(self, request: pdpb.GetRegionRequest, follower: bool) -> pdpb.GetRegionResponse:
        return self._region(self._state.view.find(request.region_key), request, follower)

    def _get_prev_region(self, request: pdpb.GetRegionRequest, follower: bool) -> pdpb.GetRegionResponse:
        return self._region(self._state.view.previous(request.region_key), request, follower)

    def _get_region_by_id(self, request: pdpb.GetRegionByIDRequest, follower: bool) -> pdpb.GetRegionResponse:
        return self._region(self._state.view.by_id(request.region_id), request, follower)

    def _region(
        self, region: Region | None, request: pdpb.GetRegionRequest | pdpb.GetRegionByIDRequest, follower: bool
    ) -> pdpb.GetRegionResponse:
        """Followers know no buckets."""
        buckets = self._state.buckets if request.need_buckets and not follower else None
        return pd_regions.region_response(self._state.view, region, is_follower=follower, buckets=buckets)

    def _scan_regions(self, request: pdpb.ScanRegionsRequest, _follower: bool) -> pdpb.ScanRegionsResponse:
        return pd_regions.scan_regions(self._state.view, request)

    def _batch_scan_regions(
        self, request: pdpb.BatchScanRegionsRequest, _follower: bool
    ) -> pdpb.BatchScanRegionsResponse:
        return pd_regions.batch_scan_regions(self._state.view, request, self._state.buckets)


def _tso_refusal(refusal: Refusal) -> tuple[grpc.StatusCode, str]:
    if refusal.code is grpc.StatusCode.UNAVAILABLE:
        return grpc.StatusCode.UNKNOWN, "generate timestamp failed, requested pd is not leader of cluster"
    return refusal.code, refusal.details
