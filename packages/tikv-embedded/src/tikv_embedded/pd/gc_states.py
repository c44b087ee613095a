"""How far garbage collection may go, as values, and the changes of it.

A scope (one keyspace, or all those that share theirs) has two safe points. Transactions that started below the
transaction safe point can no longer read; versions below the GC safe point may be gone. Neither ever goes back, and
the second never passes the first. Barriers hold the transaction safe point at their timestamp until they are deleted
or expire.

Every function returns new values and touches nothing; the texts of refusals are PD's.
Source: tikv/pd pkg/gc/gc_state_manager.go.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs

NEVER = (1 << 63) - 1
"""Seconds to live of a barrier that never expires."""
RESERVED_BARRIER = "gc_worker"
"""The id that PD's older interface gives to the transaction safe point itself."""


class GcRefusedError(Exception):
    """The change would break a rule; the text is what PD says."""


@attrs.frozen
class Barrier:
    """Holds the transaction safe point at or below `ts`."""

    id: str
    ts: int
    expires_at: int | None = None
    """Unix seconds; None is never."""

    def is_expired(self, now: float) -> bool:
        """Whether it is over at `now`, in Unix seconds."""
        return self.expires_at is not None and now > self.expires_at

    def ttl_left(self, now: float) -> int:
        """Return the whole seconds left, `NEVER` if it does not expire."""
        return NEVER if self.expires_at is None else max(0, math.floor(self.expires_at - now))


@attrs.frozen
class GcState:
    """One scope."""

    txn_safe_point: int = 0
    gc_safe_point: int = 0
    barriers: tuple[Barrier, ...] = ()
    """By id; expired ones stay until the transaction safe point is advanced."""


def new_barrier(barrier_id: str, ts: int, ttl: int, now: float) -> Barrier:
    """Return a barrier that expires `ttl` seconds after `now`, the moment rounded up to a second.

    Raises:
        GcRefusedError: `ttl` is not positive, or there is no id.
    """
    if ttl <= 0:
        raise GcRefusedError(f"invalid argument for ttl: {ttl}s")
    check_barrier_id(barrier_id)
    return Barrier(barrier_id, ts, None if ttl >= NEVER else math.ceil(now + ttl))


def check_barrier_id(barrier_id: str) -> None:
    """Raise GcRefusedError when there is no id."""
    if not barrier_id:
        raise GcRefusedError("invalid argument for barrierID: ")


def set_barrier(state: GcState, barrier: Barrier) -> GcState:
    """Return `state` with the barrier, in place of one of the same id.

    Raises:
        GcRefusedError: it is below the transaction safe point, or its id is reserved.
    """
    check_not_reserved(barrier.id)
    if barrier.ts < state.txn_safe_point:
        raise GcRefusedError(
            f"trying to set a GC barrier on ts {barrier.ts} which is already behind"
            f" the txn safe point {state.txn_safe_point}"
        )
    return attrs.evolve(state, barriers=with_barrier(state.barriers, barrier))


def delete_barrier(state: GcState, barrier_id: str) -> GcState:
    """Return `state` without the barrier, if it was there.

    Raises:
        GcRefusedError: the id is reserved or empty.
    """
    check_not_reserved(barrier_id)
    check_barrier_id(barrier_id)
    return attrs.evolve(state, barriers=tuple(each for each in state.barriers if each.id != barrier_id))


def advance_txn_safe_point(
    state: GcState, target: int, global_barriers: Sequence[Barrier], now: float
) -> tuple[GcState, Barrier | None]:
    """Return the state with its transaction safe point as near to `target` as barriers allow, and what held it back.

    Expired barriers of the state are gone afterwards. The lowest barrier holds, a global one only if it is lower than
    the scope's own.

    Raises:
        GcRefusedError: `target` is below the present transaction safe point.
    """
    if target < state.txn_safe_point:
        raise GcRefusedError(
            "trying to update txn safe point to a smaller value,"
            f" current value: {state.txn_safe_point}, given: {target}"
        )
    own, others = alive(state.barriers, now), alive(global_barriers, now)
    blocker = min((each for each in (*own, *others) if each.ts < target), key=lambda each: each.ts, default=None)
    reached = target if blocker is None else max(state.txn_safe_point, blocker.ts)
    return attrs.evolve(state, txn_safe_point=reached, barriers=own), blocker


def advance_gc_safe_point(state: GcState, target: int) -> GcState:
    """Return the state with `target` as its GC safe point.

    Raises:
        GcRefusedError: `target` is below the present one, or above the transaction safe point.
    """
    if target < state.gc_safe_point:
        raise GcRefusedError(
            f"trying to update GC safe point to a smaller value, current value: {state.gc_safe_point}, given: {target}"
        )
    if target > state.txn_safe_point:
        raise GcRefusedError(
            "trying to update GC safe point to a too large value that exceeds the txn safe point,"
            f" current value: {state.gc_safe_point}, given: {target},"
            f" current txn safe point: {state.txn_safe_point}"
        )
    return attrs.evolve(state, gc_safe_point=target)


def alive(barriers: Iterable[Barrier], now: float) -> tuple[Barrier, ...]:
    """Return the barriers that are not over."""
    return tuple(barrier for barrier in barriers if not barrier.is_expired(now))


def with_barrier(barriers: Iterable[Barrier], barrier: Barrier) -> tuple[Barrier, ...]:
    """Return `barriers` with one more, in place of one of the same id, by id."""
    return tuple(sorted([barrier, *(each for each in barriers if each.id != barrier.id)], key=lambda each: each.id))


def check_not_reserved(barrier_id: str) -> None:
    """Raise GcRefusedError for the id that no caller may use."""
    if barrier_id == RESERVED_BARRIER:
        raise GcRefusedError(f"trying to set a GC barrier with a barrier ID that is reserved: {barrier_id}")
