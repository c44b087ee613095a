"""How far a store was read: what keeps async commits behind every read that could have seen them.

A read first raises `max_ts` to its timestamp, and an async commit takes a timestamp above it. TiKV has a table of locks
in memory for the moment in between, where a lock is decided and not readable yet. Here there is no such moment: a
request reads, decides and writes in one step of the loop, and no reader comes between two of those.
Source: TiKV components/concurrency_manager.
"""

from __future__ import annotations

from collections.abc import Callable

from tikv_proto import errorpb

from tikv_embedded.mvcc.errors import RegionRefusedError
from tikv_embedded.mvcc.keys import MAX_TS
from tikv_embedded.region import Region

MAX_DRIFT_MS = 60_000
"""How far ahead of PD's clock a read may be."""

_MAX_DRIFT = MAX_DRIFT_MS << 18


class MaxTs:
    """The greatest timestamp one store served a read at.

    Args:
        next_ts: Gives a timestamp greater than every one before.
    """

    def __init__(self, next_ts: Callable[[], int]) -> None:
        self._next_ts = next_ts
        self._known = self._value = next_ts()
        self._led: dict[int, tuple[int, int]] = {}

    @property
    def value(self) -> int:
        """Commits that the store times itself come after this."""
        return self._value

    def observe(self, ts: int) -> None:
        """Raise it to the timestamp of a read; `MAX_TS` is no point in time and changes nothing.

        Raises:
            RegionRefusedError: PD is far from giving out that timestamp; it would spoil all commits.
        """
        if ts <= self._value or ts == MAX_TS:
            return
        if ts > self._known + _MAX_DRIFT:
            self._known = self._next_ts()
            if ts > self._known + _MAX_DRIFT:
                text = f"invalid max_ts update: {ts} exceeds the limit {self._known + _MAX_DRIFT}"
                raise RegionRefusedError(errorpb.Error(message=text))
        self._value = ts

    def sync(self, region: Region) -> None:
        """Raise it above all reads that other leaders of `region` served, if it is new on this store."""
        known = region.term, region.epoch.version
        if self._led.get(region.id) != known:
            self._value = max(self._value, self._next_ts())
            self._led[region.id] = known
