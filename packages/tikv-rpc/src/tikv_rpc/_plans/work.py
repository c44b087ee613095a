"""Work over many keys or a range, split by Region: lists of keys keep their order, duplicates and aligned lists."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Generic

import attrs
from tikv_pd.lowlevel import Resp
from tikv_region import KeyRange, RegionCache, RegionEntry

from tikv_rpc._plans.over_regions import Part, Splittable
from tikv_rpc.call import Call
from tikv_rpc.request import Request


@attrs.frozen(eq=False)
class KeyWork(Generic[Resp]):
    """Requests over many keys. A piece is a list of positions in `keys`: values and TTLs stay with their keys."""

    keys: Sequence[bytes]
    """The keys, any order, duplicates allowed."""
    build: Callable[[Sequence[int]], Request[Resp]]
    """Returns the request for the keys at some positions."""
    max_keys: int
    """Keys in one request at most."""
    max_bytes: int
    """Bytes, by `sizes`, after which a request is closed; one larger key still travels, alone."""
    sizes: Sequence[int]
    """What each of the keys adds to a request, in bytes."""

    @property
    def whole(self) -> Sequence[int]:
        """Every position."""
        return range(len(self.keys))

    @property
    def subject(self) -> tuple[bytes | None, int]:
        """What observers hear it is about: the first key, and how many there are."""
        return (self.keys[0] if self.keys else None), len(self.keys)

    async def begin(self, cache: RegionCache, call: Call) -> list[tuple[RegionEntry, Sequence[int]]]:
        """Group all keys by Region."""
        return await self.split(self.whole, cache, call)

    async def split(
        self, part: Sequence[int], cache: RegionCache, call: Call
    ) -> list[tuple[RegionEntry, Sequence[int]]]:
        """Group the keys at some positions by Region, and cut what is too large for one request."""
        keys = self.keys if len(part) == len(self.keys) else [self.keys[position] for position in part]
        groups = await cache.group_keys(keys, call.backoffer)
        return [
            (entry, piece)
            for entry, local in groups
            for piece in self._cut(local if keys is self.keys else [part[index] for index in local])
        ]

    def request(self, part: Sequence[int]) -> Request[Resp]:
        """Return the request for one piece."""
        return self.build(part)

    def _cut(self, positions: Sequence[int]) -> Iterator[Sequence[int]]:
        # Element n is what the first n keys take together: where a request ends is found by bisection.
        totals = list(accumulate(map(self.sizes.__getitem__, positions), initial=0))
        start = 0
        while start < len(positions):
            by_bytes = bisect_right(totals, totals[start] + self.max_bytes) - 1
            end = max(min(start + self.max_keys, by_bytes), start + 1)
            yield positions[start:end]
            start = end


@attrs.frozen(eq=False)
class RangeWork(Generic[Resp]):
    """One request for each Region of a range."""

    whole: KeyRange
    """The range."""
    build: Callable[[KeyRange], Request[Resp]]
    """Returns the request for a part that lies in one Region."""

    @property
    def subject(self) -> tuple[bytes, None]:
        """What observers hear it is about: the lower end of the range."""
        return self.whole.start, None

    async def begin(self, cache: RegionCache, call: Call) -> list[tuple[RegionEntry, KeyRange]]:
        """Cut the range at the borders of Regions."""
        return await self.split(self.whole, cache, call)

    async def split(self, part: KeyRange, cache: RegionCache, call: Call) -> list[tuple[RegionEntry, KeyRange]]:
        """Cut a range at the borders of Regions."""
        entries = await cache.locate_range(part, call.backoffer)
        return [(entry, part.intersect(entry.range)) for entry in entries]

    def request(self, part: KeyRange) -> Request[Resp]:
        """Return the request for one piece."""
        return self.build(part)


@attrs.frozen(eq=False)
class GroupedWork(Generic[Part, Resp]):
    """Work whose pieces somebody made already; those that moved since are split again as the work itself is."""

    work: Splittable[Part, Resp]
    """How it is split, and what is sent."""
    pieces: Sequence[tuple[RegionEntry, Part]]
    """The pieces, each within one Region when they were made; together the whole, each part once."""

    @property
    def whole(self) -> Part:
        """All of it."""
        return self.work.whole

    async def begin(self, _cache: RegionCache, _call: Call) -> Sequence[tuple[RegionEntry, Part]]:
        """Return the pieces."""
        return self.pieces

    async def split(self, part: Part, cache: RegionCache, call: Call) -> Sequence[tuple[RegionEntry, Part]]:
        """Split a piece that moved."""
        return await self.work.split(part, cache, call)

    def request(self, part: Part) -> Request[Resp]:
        """Return the request for one piece."""
        return self.work.request(part)
