"""Garbage collection as PD coordinates it: safe points, and barriers that hold them back.

The txn safe point says from when on transactions may still read; the GC safe point follows it and says what TiKV may
remove. Neither ever goes back. Source: pdpb GCState; pd client gc_client.go.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

import attrs
from tikv_proto import pdpb, services

from tikv_pd._routing.calls import Calls
from tikv_pd.deadline import Deadline
from tikv_pd.errors import ConfigError, GcBarrierTooOld, PdError

NULL_KEYSPACE: Final = 0xFFFFFFFF
"""Stands on the wire for what belongs to no keyspace. Source: pd constants NullKeyspaceID."""
_FOREVER: Final = (1 << 63) - 1
"""Seconds that stand on the wire for no end."""


@attrs.frozen
class GcBarrier:
    """Something that keeps the txn safe point from going beyond a timestamp, such as a backup."""

    id: str
    """Unique name."""
    ts: int
    """The txn safe point cannot go beyond."""
    ttl: float
    """Seconds it had left when PD was asked; infinite for no end."""


@attrs.frozen
class GcState:
    """How far garbage collection has come."""

    keyspace_id: int | None
    """Of which keyspace; None for all of those that do not collect by themselves."""
    is_keyspace_level: bool
    """Whether the keyspace collects by itself."""
    txn_safe_point: int
    """Transactions cannot read below."""
    gc_safe_point: int
    """TiKV may remove what is not visible from here on."""
    barriers: tuple[GcBarrier, ...] | None = None
    """The barriers; None when they were not asked for."""
    global_barriers: tuple[GcBarrier, ...] | None = None
    """The barriers of all keyspaces; None when they were not asked for."""


@attrs.frozen
class SafePointAdvance:
    """What became of a safe point."""

    old: int
    """Where it was."""
    new: int
    """Where it is."""
    blocker: str = ""
    """What held it back from the target, in PD's words; empty when it got there."""


class Gc:
    """Garbage collection, as `PdClient.gc`. Errors and cancellation as there.

    Where a `keyspace_id` may be given, None stands for what belongs to no keyspace. A keyspace that does not collect by
    itself is answered for in the same way.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def get_state(
        self,
        keyspace_id: int | None = None,
        *,
        barriers: bool = False,
        global_barriers: bool = False,
        timeout: float | None = None,
    ) -> GcState:
        """Return how far garbage collection has come, with the barriers that are asked for. Source: GetGCState."""
        request = pdpb.GetGCStateRequest(
            keyspace_scope=_scope(keyspace_id),
            exclude_gc_barriers=not barriers,
            include_global_gc_barriers=global_barriers,
        )
        answer = await self._calls.call("get_state", services.PD.GetGCState, request, timeout)
        state = _state(answer.gc_state, has_barriers=barriers)
        if global_barriers:
            state = attrs.evolve(state, global_barriers=tuple(map(_barrier, answer.global_gc_barriers.barriers)))
        return state

    async def get_all_states(self, *, barriers: bool = False, timeout: float | None = None) -> list[GcState]:
        """Return the state of every keyspace, and the one that belongs to none. Source: GetAllKeyspacesGCStates."""
        request = pdpb.GetAllKeyspacesGCStatesRequest(exclude_gc_barriers=not barriers, exclude_global_gc_barriers=True)
        answer = await self._calls.call("get_all_states", services.PD.GetAllKeyspacesGCStates, request, timeout)
        return [_state(state, has_barriers=barriers) for state in answer.gc_states]

    async def set_barrier(
        self,
        barrier_id: str,
        ts: int,
        *,
        ttl: float = math.inf,
        keyspace_id: int | None = None,
        timeout: float | None = None,
    ) -> GcBarrier:
        """Keep the txn safe point from going beyond `ts`, in place of any barrier of this id, and return the barrier.

        Args:
            barrier_id: Its name; `gc_worker` is PD's own.
            ts: Where to hold.
            ttl: Seconds until it ends by itself, rounded up to whole ones.
            keyspace_id: Of which keyspace.
            timeout: Seconds.

        Raises:
            GcBarrierTooOld: the txn safe point is beyond already; the old barrier, if any, stays.

        Source: SetGCBarrier.
        """
        request = pdpb.SetGCBarrierRequest(
            keyspace_scope=_scope(keyspace_id), barrier_id=barrier_id, barrier_ts=ts, ttl_seconds=_seconds(ttl)
        )
        deadline = self._calls.deadline("set_barrier", timeout)
        try:
            answer = await self._calls.attempt(services.PD.SetGCBarrier, request, deadline)
        except PdError as error:
            await self._explain(error, ts, keyspace_id, deadline)
            raise
        return _barrier(answer.new_barrier_info)

    async def delete_barrier(
        self, barrier_id: str, *, keyspace_id: int | None = None, timeout: float | None = None
    ) -> GcBarrier | None:
        """Take a barrier away and return it; None when there was none. Source: DeleteGCBarrier."""
        request = pdpb.DeleteGCBarrierRequest(keyspace_scope=_scope(keyspace_id), barrier_id=barrier_id)
        answer = await self._calls.call("delete_barrier", services.PD.DeleteGCBarrier, request, timeout)
        return _barrier(answer.deleted_barrier_info) if answer.HasField("deleted_barrier_info") else None

    async def set_global_barrier(
        self, barrier_id: str, ts: int, *, ttl: float = math.inf, timeout: float | None = None
    ) -> GcBarrier:
        """Keep the txn safe points of all keyspaces from going beyond `ts`. Otherwise as `set_barrier`.

        Source: SetGlobalGCBarrier.
        """
        request = pdpb.SetGlobalGCBarrierRequest(barrier_id=barrier_id, barrier_ts=ts, ttl_seconds=_seconds(ttl))
        deadline = self._calls.deadline("set_global_barrier", timeout)
        try:
            answer = await self._calls.attempt(services.PD.SetGlobalGCBarrier, request, deadline)
        except PdError as error:
            await self._explain(error, ts, None, deadline)
            raise
        return _barrier(answer.new_barrier_info)

    async def delete_global_barrier(self, barrier_id: str, *, timeout: float | None = None) -> GcBarrier | None:
        """Take a barrier of all keyspaces away and return it; None when there was none.

        Source: DeleteGlobalGCBarrier.
        """
        request = pdpb.DeleteGlobalGCBarrierRequest(barrier_id=barrier_id)
        answer = await self._calls.call("delete_global_barrier", services.PD.DeleteGlobalGCBarrier, request, timeout)
        return _barrier(answer.deleted_barrier_info) if answer.HasField("deleted_barrier_info") else None

    async def advance_txn_safe_point(
        self, target: int, *, keyspace_id: int | None = None, timeout: float | None = None
    ) -> SafePointAdvance:
        """Move the txn safe point towards `target`, as far as barriers let it.

        Raises:
            PdError: the target is below where it is, or the keyspace does not collect by itself.

        Source: AdvanceTxnSafePoint.
        """
        request = pdpb.AdvanceTxnSafePointRequest(keyspace_scope=_scope(keyspace_id), target=target)
        answer = await self._calls.call("advance_txn_safe_point", services.PD.AdvanceTxnSafePoint, request, timeout)
        return SafePointAdvance(answer.old_txn_safe_point, answer.new_txn_safe_point, answer.blocker_description)

    async def advance_gc_safe_point(
        self, target: int, *, keyspace_id: int | None = None, timeout: float | None = None
    ) -> SafePointAdvance:
        """Move the GC safe point to `target`.

        Raises:
            PdError: the target is below where it is or beyond the txn safe point, or the keyspace does not collect by
                itself.

        Source: AdvanceGCSafePoint.
        """
        request = pdpb.AdvanceGCSafePointRequest(keyspace_scope=_scope(keyspace_id), target=target)
        answer = await self._calls.call("advance_gc_safe_point", services.PD.AdvanceGCSafePoint, request, timeout)
        return SafePointAdvance(answer.old_gc_safe_point, answer.new_gc_safe_point)

    async def _explain(self, error: PdError, ts: int, keyspace_id: int | None, deadline: Deadline) -> None:
        """Raise a better error if there is one: PD has no kind of error for a barrier that is too old, only words."""
        if error.kind != "UNKNOWN":
            return
        request = pdpb.GetGCStateRequest(keyspace_scope=_scope(keyspace_id), exclude_gc_barriers=True)
        answer = await self._calls.attempt(services.PD.GetGCState, request, deadline)
        if ts < answer.gc_state.txn_safe_point:
            raise GcBarrierTooOld(ts, answer.gc_state.txn_safe_point) from error


class _BarrierInfo(Protocol):
    """Both kinds of barriers on the wire."""

    barrier_id: str
    barrier_ts: int
    ttl_seconds: int


def _barrier(info: _BarrierInfo) -> GcBarrier:
    ttl = math.inf if info.ttl_seconds == _FOREVER else float(max(info.ttl_seconds, 0))
    return GcBarrier(info.barrier_id, info.barrier_ts, ttl)


def _state(state: pdpb.GCState, *, has_barriers: bool) -> GcState:
    keyspace_id = state.keyspace_scope.keyspace_id if state.HasField("keyspace_scope") else NULL_KEYSPACE
    return GcState(
        keyspace_id if keyspace_id != NULL_KEYSPACE else None,
        state.is_keyspace_level_gc,
        state.txn_safe_point,
        state.gc_safe_point,
        tuple(map(_barrier, state.gc_barriers)) if has_barriers else None,
    )


def _scope(keyspace_id: int | None) -> pdpb.KeyspaceScope:
    if keyspace_id is not None and not 0 <= keyspace_id < 1 << 24:
        raise ConfigError(f"keyspace_id must be between 0 and 2**24 - 1, got {keyspace_id}")
    return pdpb.KeyspaceScope(keyspace_id=keyspace_id if keyspace_id is not None else NULL_KEYSPACE)


def _seconds(ttl: float) -> int:
    """Return whole seconds for the wire, rounded up."""
    if not ttl > 0:
        raise ConfigError(f"ttl must be above 0 s, got {ttl!r}")
    return _FOREVER if ttl >= _FOREVER else math.ceil(ttl)
