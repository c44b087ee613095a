"""How far stale reads can go on a store."""

from __future__ import annotations

from collections.abc import Callable

from tikv_embedded.pd.tso import LOGICAL_BITS


class SafeTs:
    """The safe timestamp of one store, which never goes back.

    Replicas never lag here, so all that was written up to now can be read everywhere, unless `lag` says otherwise or a
    lock may still become a commit.

    Args:
        next_ts: Gives a timestamp greater than every one before.

    Attributes:
        lag: Seconds that it stays behind.
    """

    def __init__(self, next_ts: Callable[[], int]) -> None:
        self._next_ts = next_ts
        self._last = 0
        self.lag = 0.0

    def advance(self) -> int:
        """Return what it is now."""
        self._last = max(self._last, self._next_ts() - (int(self.lag * 1000) << LOGICAL_BITS))
        return self._last
