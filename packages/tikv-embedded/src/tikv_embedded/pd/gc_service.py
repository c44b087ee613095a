"""The part of the PD service that is about garbage collection: safe points and barriers.

The RPCs that these replaced (GetGCSafePoint, UpdateServiceGCSafePoint and their relatives) are not served.
Source: tikv/pd server/gc_service.go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import Message
from tikv_proto import pdpb
from tikv_proto.services import PD, Rpc

from tikv_embedded.pd.gc_states import Barrier, GcRefusedError, GcState
from tikv_embedded.pd.gc_store import NULL_KEYSPACE
from tikv_embedded.pd.members import PdMember
from tikv_embedded.pd.state import PdState, guarded
from tikv_embedded.rpc_handlers import Handler

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


class PdGcService:
    """Handlers of one PD member.

    Args:
        state: Shared with the other members.
        member: Which of them this is.
    """

    def __init__(self, state: PdState, member: PdMember) -> None:
        self._state = state
        self._member = member
        self._gc = state.gc

    def handlers(self) -> list[Handler]:
        """Return what this member answers."""
        return [
            self._handler(PD.GetGCState, self._get_state),
            self._handler(PD.GetAllKeyspacesGCStates, self._get_all_states),
            self._handler(PD.AdvanceTxnSafePoint, self._advance_txn_safe_point),
            self._handler(PD.AdvanceGCSafePoint, self._advance_gc_safe_point),
            self._handler(PD.SetGCBarrier, self._set_barrier),
            self._handler(PD.DeleteGCBarrier, self._delete_barrier),
            self._handler(PD.SetGlobalGCBarrier, self._set_global_barrier),
            self._handler(PD.DeleteGlobalGCBarrier, self._delete_global_barrier),
        ]

    def _handler(self, rpc: Rpc[Req, Resp], answer: Callable[[Req], Resp]) -> Handler:
        """Answer with an error in the header when a rule would be broken."""

        def checked(request: Req, _follower: bool) -> Resp:
            try:
                return answer(request)
            except GcRefusedError as error:
                return rpc.response(header=self._state.error(pdpb.ErrorType.UNKNOWN, str(error)))

        return guarded(self._state, self._member, rpc, checked)

    def _get_state(self, request: pdpb.GetGCStateRequest) -> pdpb.GetGCStateResponse:
        scope = self._gc.user_scope(_keyspace_id(request.keyspace_scope))
        state = self._gc.load(scope)
        response = pdpb.GetGCStateResponse(
            header=self._state.header,
            gc_state=self._state_to_pb(
                scope, state, is_own=scope != NULL_KEYSPACE, with_barriers=not request.exclude_gc_barriers
            ),
        )
        if request.include_global_gc_barriers:
            barriers = [self._global_to_pb(each) for each in self._gc.global_barriers()]
            response.global_gc_barriers.CopyFrom(pdpb.GlobalGCBarriersInfo(barriers=barriers))
        return response

    def _get_all_states(self, request: pdpb.GetAllKeyspacesGCStatesRequest) -> pdpb.GetAllKeyspacesGCStatesResponse:
        barriers = () if request.exclude_global_gc_barriers else self._gc.global_barriers()
        return pdpb.GetAllKeyspacesGCStatesResponse(
            header=self._state.header,
            gc_states=[
                self._state_to_pb(scope, state, is_own=is_own, with_barriers=not request.exclude_gc_barriers)
                for scope, is_own, state in self._gc.load_all()
            ],
            global_gc_barriers=map(self._global_to_pb, barriers),
        )

    def _advance_txn_safe_point(self, request: pdpb.AdvanceTxnSafePointRequest) -> pdpb.AdvanceTxnSafePointResponse:
        scope = self._gc.driver_scope(_keyspace_id(request.keyspace_scope))
        before, after, blocker = self._gc.advance_txn_safe_point(scope, request.target)
        return pdpb.AdvanceTxnSafePointResponse(
            header=self._state.header,
            old_txn_safe_point=before.txn_safe_point,
            new_txn_safe_point=after.txn_safe_point,
            blocker_description=blocker,
        )

    def _advance_gc_safe_point(self, request: pdpb.AdvanceGCSafePointRequest) -> pdpb.AdvanceGCSafePointResponse:
        scope = self._gc.driver_scope(_keyspace_id(request.keyspace_scope))
        before, after = self._gc.advance_gc_safe_point(scope, request.target)
        return pdpb.AdvanceGCSafePointResponse(
            header=self._state.header,
            old_gc_safe_point=before.gc_safe_point,
            new_gc_safe_point=after.gc_safe_point,
        )

    def _set_barrier(self, request: pdpb.SetGCBarrierRequest) -> pdpb.SetGCBarrierResponse:
        scope = self._gc.user_scope(_keyspace_id(request.keyspace_scope))
        barrier = self._gc.set_barrier(scope, request.barrier_id, request.barrier_ts, request.ttl_seconds)
        return pdpb.SetGCBarrierResponse(header=self._state.header, new_barrier_info=self._to_pb(barrier))

    def _delete_barrier(self, request: pdpb.DeleteGCBarrierRequest) -> pdpb.DeleteGCBarrierResponse:
        scope = self._gc.user_scope(_keyspace_id(request.keyspace_scope))
        barrier = self._gc.delete_barrier(scope, request.barrier_id)
        deleted = None if barrier is None else self._to_pb(barrier)
        return pdpb.DeleteGCBarrierResponse(header=self._state.header, deleted_barrier_info=deleted)

    def _set_global_barrier(self, request: pdpb.SetGlobalGCBarrierRequest) -> pdpb.SetGlobalGCBarrierResponse:
        barrier = self._gc.set_global_barrier(request.barrier_id, request.barrier_ts, request.ttl_seconds)
        return pdpb.SetGlobalGCBarrierResponse(header=self._state.header, new_barrier_info=self._global_to_pb(barrier))

    def _delete_global_barrier(self, request: pdpb.DeleteGlobalGCBarrierRequest) -> pdpb.DeleteGlobalGCBarrierResponse:
        barrier = self._gc.delete_global_barrier(request.barrier_id)
        deleted = None if barrier is None else self._global_to_pb(barrier)
        return pdpb.DeleteGlobalGCBarrierResponse(header=self._state.header, deleted_barrier_info=deleted)

    def _state_to_pb(self, scope: int, state: GcState, *, is_own: bool, with_barriers: bool) -> pdpb.GCState:
        return pdpb.GCState(
            keyspace_scope=pdpb.KeyspaceScope(keyspace_id=scope),
            is_keyspace_level_gc=is_own,
            txn_safe_point=state.txn_safe_point,
            gc_safe_point=state.gc_safe_point,
            gc_barriers=map(self._to_pb, state.barriers) if with_barriers else (),
        )

    def _to_pb(self, barrier: Barrier) -> pdpb.GCBarrierInfo:
        ttl = barrier.ttl_left(self._gc.now)
        return pdpb.GCBarrierInfo(barrier_id=barrier.id, barrier_ts=barrier.ts, ttl_seconds=ttl)

    def _global_to_pb(self, barrier: Barrier) -> pdpb.GlobalGCBarrierInfo:
        ttl = barrier.ttl_left(self._gc.now)
        return pdpb.GlobalGCBarrierInfo(barrier_id=barrier.id, barrier_ts=barrier.ts, ttl_seconds=ttl)


def _keyspace_id(scope: pdpb.KeyspaceScope) -> int:
    """Return the id that was asked for; no id, as opposed to 0, is the shared scope."""
    return scope.keyspace_id if scope.HasField("keyspace_id") else NULL_KEYSPACE
