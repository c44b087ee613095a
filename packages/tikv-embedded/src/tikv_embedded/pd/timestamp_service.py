"""The part of the PD service that is about timestamps which others set: the external one and the resolved ones.

Source: tikv/pd server/grpc_service.go.
"""

from __future__ import annotations

import grpc
from tikv_proto import pdpb
from tikv_proto.services import PD

from tikv_embedded.pd.members import PdMember, Refusal
from tikv_embedded.pd.state import PdState, guarded
from tikv_embedded.pd.ts_marks import TimestampRefusedError
from tikv_embedded.rpc_handlers import Handler, ServicerContext, unary


class PdTimestampService:
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
            guarded(self._state, self._member, PD.GetExternalTimestamp, self._get_external),
            guarded(self._state, self._member, PD.SetExternalTimestamp, self._set_external),
            unary(PD.ReportMinResolvedTS, self._report_min_resolved_ts),
        ]

    def _get_external(
        self, _request: pdpb.GetExternalTimestampRequest, _follower: bool
    ) -> pdpb.GetExternalTimestampResponse:
        return pdpb.GetExternalTimestampResponse(header=self._state.header, timestamp=self._state.marks.external)

    def _set_external(
        self, request: pdpb.SetExternalTimestampRequest, _follower: bool
    ) -> pdpb.SetExternalTimestampResponse:
        try:
            self._state.marks.set_external(request.timestamp, self._state.oracle.next_ts())
        except TimestampRefusedError as error:
            refusal = self._state.error(pdpb.ErrorType.INVALID_VALUE, str(error))
            return pdpb.SetExternalTimestampResponse(header=refusal)
        return pdpb.SetExternalTimestampResponse(header=self._state.header)

    async def _report_min_resolved_ts(
        self, request: pdpb.ReportMinResolvedTsRequest, context: ServicerContext
    ) -> pdpb.ReportMinResolvedTsResponse:
        state = self._state
        role = state.admit(self._member, request, context)
        if isinstance(role, Refusal):
            await context.abort(role.code, role.details)
        if request.store_id not in state.topology.stores:
            await context.abort(grpc.StatusCode.UNKNOWN, f"store {request.store_id} not found")
        state.marks.report_resolved(request.store_id, request.min_resolved_ts, state.topology.leading_stores())
        return pdpb.ReportMinResolvedTsResponse(header=state.header)
