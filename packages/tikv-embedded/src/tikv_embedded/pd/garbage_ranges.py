"""Which safe point holds for which keys."""

from __future__ import annotations

from typing import NamedTuple

from tikv_embedded.pd.gc_store import GcStates
from tikv_embedded.pd.keyspaces import txn_bounds


class SafeRange(NamedTuple):
    """A range of encoded transactional keys that share a safe point."""

    lower: bytes
    upper: bytes
    """Exclusive; empty is unbounded."""
    gc_safe_point: int


def safe_ranges(states: GcStates) -> list[SafeRange]:
    """Return the ranges, ascending: keyspaces with GC of their own, and what lies between them."""
    (_, _, shared), *keyspaces = states.load_all()
    ranges: list[SafeRange] = []
    position = b""
    for keyspace_id, has_own_gc, state in keyspaces:
        if has_own_gc:
            lower, upper = txn_bounds(keyspace_id)
            ranges += SafeRange(position, lower, shared.gc_safe_point), SafeRange(lower, upper, state.gc_safe_point)
            position = upper
    return [*ranges, SafeRange(position, b"", shared.gc_safe_point)]
