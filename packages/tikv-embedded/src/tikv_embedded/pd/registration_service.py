"""The part of the PD service that stores and old clients call: none of it changes anything here.

The cluster is bootstrapped before the first port opens, and knows its stores and Regions without being told.
Source: tikv/pd server/grpc_service.go.
"""

from __future__ import annotations

from tikv_proto import pdpb
from tikv_proto.services import PD

from tikv_embedded.pd.members import PdMember
from tikv_embedded.pd.state import PdState, guarded
from tikv_embedded.rpc_handlers import Handler


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
            guarded(self._state, self._member, PD.StoreHeartbeat, self._store_heartbeat),
            guarded(self._state, self._member, PD.IsSnapshotRecovering, self._is_snapshot_recovering),
            guarded(self._state, self._member, PD.SyncMaxTS, self._sync_max_ts),
            guarded(self._state, self._member, PD.GetDCLocationInfo, self._get_dc_location_info),
        ]

    def _bootstrap(self, _request: pdpb.BootstrapRequest, _follower: bool) -> pdpb.BootstrapResponse:
        message = "cluster is already bootstrapped"
        return pdpb.BootstrapResponse(header=self._state.error(pdpb.ErrorType.ALREADY_BOOTSTRAPPED, message))

    def _store_heartbeat(self, request: pdpb.StoreHeartbeatRequest, _follower: bool) -> pdpb.StoreHeartbeatResponse:
        store_id = request.stats.store_id
        if store_id not in self._state.topology.stores:
            refusal = self._state.error(pdpb.ErrorType.UNKNOWN, f"store {store_id} not found")
            return pdpb.StoreHeartbeatResponse(header=refusal)
        return pdpb.StoreHeartbeatResponse(header=self._state.header)

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
