"""Garbage collection of a `FakePd`: one state for everything that belongs to no keyspace."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import Message
from tikv_proto import pdpb
from tikv_proto.services import PD, Rpc

from tikv_pd._services.gc import NULL_KEYSPACE, GcBarrier


class FakeGc:
    """Safe points and barriers, to be changed at any time. Barriers do not end by themselves."""

    def __init__(self) -> None:
        self.txn_safe_point = 0
        """Where it is."""
        self.gc_safe_point = 0
        """Where it is."""
        self.barriers: dict[str, GcBarrier] = {}
        """Those of no keyspace, by id."""
        self.global_barriers: dict[str, GcBarrier] = {}
        """Those of all keyspaces, by id."""
        self.scopes: list[int] = []
        """The keyspace id that each request named."""

    def answers(self) -> Mapping[Rpc[Any, Any], Callable[[Any], Message]]:
        """Return what answers each RPC."""
        return {
            PD.GetGCState: self._get_state,
            PD.GetAllKeyspacesGCStates: self._get_states,
            PD.SetGCBarrier: self._set_barrier,
            PD.DeleteGCBarrier: self._delete_barrier,
            PD.SetGlobalGCBarrier: self._set_global_barrier,
            PD.DeleteGlobalGCBarrier: self._delete_global_barrier,
            PD.AdvanceTxnSafePoint: self._advance_txn,
            PD.AdvanceGCSafePoint: self._advance_gc,
        }

    def _state(self, *, has_barriers: bool) -> pdpb.GCState:
        return pdpb.GCState(
            keyspace_scope=pdpb.KeyspaceScope(keyspace_id=NULL_KEYSPACE),
            txn_safe_point=self.txn_safe_point,
            gc_safe_point=self.gc_safe_point,
            gc_barriers=[pdpb.GCBarrierInfo(**_info(each)) for each in self.barriers.values() if has_barriers],
        )

    def _get_state(self, request: pdpb.GetGCStateRequest) -> pdpb.GetGCStateResponse:
        self.scopes.append(request.keyspace_scope.keyspace_id)
        answer = pdpb.GetGCStateResponse(gc_state=self._state(has_barriers=not request.exclude_gc_barriers))
        if request.include_global_gc_barriers:
            infos = [pdpb.GlobalGCBarrierInfo(**_info(each)) for each in self.global_barriers.values()]
            answer.global_gc_barriers.barriers.extend(infos)
        return answer

    def _get_states(self, request: pdpb.GetAllKeyspacesGCStatesRequest) -> pdpb.GetAllKeyspacesGCStatesResponse:
        state = self._state(has_barriers=not request.exclude_gc_barriers)
        own = pdpb.GCState(keyspace_scope=pdpb.KeyspaceScope(keyspace_id=4), is_keyspace_level_gc=True)
        return pdpb.GetAllKeyspacesGCStatesResponse(gc_states=[state, own])

    def _set_barrier(self, request: pdpb.SetGCBarrierRequest) -> pdpb.SetGCBarrierResponse:
        self.scopes.append(request.keyspace_scope.keyspace_id)
        if request.barrier_ts < self.txn_safe_point or request.barrier_id in {"", "gc_worker"}:
            return pdpb.SetGCBarrierResponse(header=_refusal())
        barrier = self.barriers[request.barrier_id] = _barrier(request)
        return pdpb.SetGCBarrierResponse(new_barrier_info=pdpb.GCBarrierInfo(**_info(barrier)))

    def _delete_barrier(self, request: pdpb.DeleteGCBarrierRequest) -> pdpb.DeleteGCBarrierResponse:
        barrier = self.barriers.pop(request.barrier_id, None)
        if barrier is None:
            return pdpb.DeleteGCBarrierResponse()
        return pdpb.DeleteGCBarrierResponse(deleted_barrier_info=pdpb.GCBarrierInfo(**_info(barrier)))

    def _set_global_barrier(self, request: pdpb.SetGlobalGCBarrierRequest) -> pdpb.SetGlobalGCBarrierResponse:
        if request.barrier_ts < self.txn_safe_point:
            return pdpb.SetGlobalGCBarrierResponse(header=_refusal())
        barrier = self.global_barriers[request.barrier_id] = _barrier(request)
        return pdpb.SetGlobalGCBarrierResponse(new_barrier_info=pdpb.GlobalGCBarrierInfo(**_info(barrier)))

    def _delete_global_barrier(self, request: pdpb.DeleteGlobalGCBarrierRequest) -> pdpb.DeleteGlobalGCBarrierResponse:
        barrier = self.global_barriers.pop(request.barrier_id, None)
        if barrier is None:
            return pdpb.DeleteGlobalGCBarrierResponse()
        return pdpb.DeleteGlobalGCBarrierResponse(deleted_barrier_info=pdpb.GlobalGCBarrierInfo(**_info(barrier)))

    def _advance_txn(self, request: pdpb.AdvanceTxnSafePointRequest) -> pdpb.AdvanceTxnSafePointResponse:
        old = self.txn_safe_point
        if request.target < old:
            return pdpb.AdvanceTxnSafePointResponse(header=_refusal())
        barriers = [*self.barriers.values(), *self.global_barriers.values()]
        first = min(barriers, key=lambda each: each.ts, default=None)
        blocker = first.id if first is not None and first.ts < request.target else ""
        self.txn_safe_point = min([request.target, *(each.ts for each in barriers)])
        return pdpb.AdvanceTxnSafePointResponse(
            old_txn_safe_point=old, new_txn_safe_point=self.txn_safe_point, blocker_description=blocker
        )

    def _advance_gc(self, request: pdpb.AdvanceGCSafePointRequest) -> pdpb.AdvanceGCSafePointResponse:
        old = self.gc_safe_point
        if not old <= request.target <= self.txn_safe_point:
            return pdpb.AdvanceGCSafePointResponse(header=_refusal())
        self.gc_safe_point = request.target
        return pdpb.AdvanceGCSafePointResponse(old_gc_safe_point=old, new_gc_safe_point=request.target)


def _barrier(request: pdpb.SetGCBarrierRequest | pdpb.SetGlobalGCBarrierRequest) -> GcBarrier:
    ttl = math.inf if request.ttl_seconds == (1 << 63) - 1 else float(request.ttl_seconds)
    return GcBarrier(request.barrier_id, request.barrier_ts, ttl)


def _info(barrier: GcBarrier) -> dict[str, Any]:
    ttl = (1 << 63) - 1 if barrier.ttl == math.inf else int(barrier.ttl)
    return {"barrier_id": barrier.id, "barrier_ts": barrier.ts, "ttl_seconds": ttl}


def _refusal() -> pdpb.ResponseHeader:
    return pdpb.ResponseHeader(error=pdpb.Error(type=pdpb.ErrorType.UNKNOWN, message="refused"))
