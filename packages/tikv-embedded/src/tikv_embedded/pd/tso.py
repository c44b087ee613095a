"""The timestamp oracle: unique, growing timestamps for the whole cluster, over restarts too.

A timestamp is a physical time in milliseconds and a logical counter of 18 bits. Every 50 ms the physical part catches
up with the wall clock and the counter starts again; in between only the counter grows. The physical part stays below a
bound that was persisted beforehand, and a restart begins at that bound if the wall clock is not past it yet, so a
timestamp never comes twice nor goes back, whatever the clock does.

Source: tikv/pd pkg/tso/tso.go.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tikv_embedded import meta
from tikv_embedded.engine import Engine, WriteBatch

LOGICAL_BITS = 18
MAX_LOGICAL = 1 << LOGICAL_BITS
"""The logical part stays below this."""
UPDATE_INTERVAL_MS = 50
"""How long the physical part stands still (PD: tso-update-physical-interval)."""
WINDOW_MS = 5000
"""How far ahead the bound is persisted (PD: tso-save-interval)."""
GUARD_MS = 1
"""The clock must be this much ahead to count, and the physical part keeps this distance from the bound."""


def compose(physical: int, logical: int) -> int:
    """Return the 64-bit timestamp of a physical time in ms and a logical counter."""
    return physical << LOGICAL_BITS | logical


def wall_clock_ms() -> int:
    """Return the wall clock in whole milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class TimestampOracle:
    """Gives out timestamps; every one is greater than all before it.

    Args:
        engine: Where the bound lies.
        clock: Milliseconds since the epoch; may stand still or go back.
    """

    def __init__(self, engine: Engine, clock: Callable[[], int] = wall_clock_ms) -> None:
        self._engine = engine
        self._clock = clock
        self._bound = meta.load_tso_bound(engine)
        self._updated = now = clock()
        self._physical = 0
        self._logical = 0
        self._advance(max(now, self._bound + GUARD_MS))

    def allocate(self, count: int) -> tuple[int, int]:
        """Return (physical ms, logical) of the last of `count` timestamps in a row that share the physical part.

        Raises:
            ValueError: `count` is not positive, or more than one physical time can hold.
        """
        if not 0 < count < MAX_LOGICAL:
            raise ValueError(f"cannot give {count} timestamps at once")
        now = self._clock()
        if not 0 <= now - self._updated < UPDATE_INTERVAL_MS:
            self._updated = now
            if now - self._physical > GUARD_MS:
                self._advance(now)
            elif self._logical > MAX_LOGICAL // 2:
                self._advance(self._physical + 1)
        if self._logical + count >= MAX_LOGICAL:
            self._advance(max(now, self._physical + 1))
        self._logical += count
        return self._physical, self._logical

    def next_ts(self) -> int:
        """Return one fresh timestamp, composed."""
        return compose(*self.allocate(1))

    def _advance(self, physical: int) -> None:
        """Move the physical part up, the persisted bound first."""
        if self._bound - physical <= GUARD_MS:
            bound = physical + WINDOW_MS
            batch = WriteBatch()
            meta.put_tso_bound(batch, bound)
            self._engine.write(batch)
            self._bound = bound
        self._physical, self._logical = physical, 0
