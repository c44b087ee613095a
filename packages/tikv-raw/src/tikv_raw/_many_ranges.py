"""Work over many ranges: scans of each with a limit of its own, and requests for the parts that lie in one Region.

A scan of many ranges goes in rounds. In each, what is left of every range is asked for at its edge, where the scan is;
ranges whose edges lie in one Region share a request. An answer tells by its keys which range a pair is of, so ranges
that overlap never share one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeAlias

import attrs
from tikv_pd.lowlevel import Resp
from tikv_proto import kvrpcpb
from tikv_region import KeyRange, RegionCache, RegionEntry
from tikv_rpc import Call, Plan, Request
from tikv_rpc.frontend.paging import rest_of_scan
from tikv_rpc.frontend.sizes import PairSizes

from tikv_raw._requests import RawRequests

_SMALL: Final = 16
"""Pairs of each of many ranges that are asked for at once."""

Pairs: TypeAlias = list[tuple[bytes, bytes]]
Stretches: TypeAlias = Sequence[tuple[int, KeyRange]]
"""Ranges, each with the number of the one it is a part of."""


@attrs.frozen(eq=False)
class EdgeWork(Generic[Resp]):
    """Requests for the edges of many ranges: for each the part that lies in the Region at its start, or its end."""

    whole: Stretches
    """The ranges, none empty."""
    reverse: bool
    """Whether the ends are meant; then the parts of a request descend."""
    max_ranges: int
    """Ranges in one request at most."""
    build: Callable[[Sequence[KeyRange]], Request[Resp]]
    """Returns the request for parts that lie in one Region."""

    async def begin(self, cache: RegionCache, call: Call) -> list[tuple[RegionEntry, Stretches]]:
        """Group the edges by Region."""
        return await self.split(self.whole, cache, call)

    async def split(self, part: Stretches, cache: RegionCache, call: Call) -> list[tuple[RegionEntry, Stretches]]:
        """Group the edges of some ranges by Region."""
        pieces: list[tuple[RegionEntry, Stretches]] = []
        for entry, group in await self._group(part, cache, call):
            clipped = ((number, key_range.intersect(entry.range)) for number, key_range in group)
            ordered = sorted(clipped, key=lambda stretch: stretch[1].start, reverse=self.reverse)
            pieces.extend((entry, piece) for piece in self._cut(ordered))
        return pieces

    def request(self, part: Stretches) -> Request[Resp]:
        """Return the request for one piece."""
        return self.build([key_range for _, key_range in part])

    async def _group(
        self, part: Stretches, cache: RegionCache, call: Call
    ) -> list[tuple[RegionEntry, list[tuple[int, KeyRange]]]]:
        if not self.reverse:
            groups = await cache.group_keys([key_range.start for _, key_range in part], call.backoffer)
            return [(entry, [part[position] for position in positions]) for entry, positions in groups]
        by_entry: dict[RegionEntry, list[tuple[int, KeyRange]]] = {}
        for number, key_range in part:
            entry = await cache.locate_end(key_range.end, call.backoffer)
            by_entry.setdefault(entry, []).append((number, key_range))
        return list(by_entry.items())

    def _cut(self, ordered: list[tuple[int, KeyRange]]) -> Iterator[Stretches]:
        piece: list[tuple[int, KeyRange]] = []
        for stretch in ordered:
            if piece and (len(piece) >= self.max_ranges or not self._may_follow(piece[-1][1], stretch[1])):
                yield piece
                piece = []
            piece.append(stretch)
        yield piece

    def _may_follow(self, before: KeyRange, after: KeyRange) -> bool:
        if self.reverse:
            # An unbounded range is asked for alone: TiKV takes it for inverted among others.
            return bool(before.end) and bool(after.end) and after.end <= before.start
        return bool(before.end) and before.end <= after.start


@attrs.frozen
class ScanOrder:
    """A scan of many ranges, as its caller wants it."""

    ranges: Sequence[KeyRange]
    """The ranges, any order, also overlapping."""
    limit: int | None
    """Pairs of each range at most."""
    reverse: bool
    """Whether each is to be scanned from its end."""
    key_only: bool
    """Whether values are left out."""
    cf: str
    """Column family as on the wire."""

    @property
    def subject(self) -> tuple[bytes | None, int]:
        """What observers hear it is about: the start of the first range, and how many there are."""
        return (self.ranges[0].start if self.ranges else None), len(self.ranges)


@attrs.frozen
class ScanRanges:
    """Scan many ranges, round by round."""

    inner: Plan[EdgeWork[kvrpcpb.RawBatchScanResponse], list[tuple[Stretches, kvrpcpb.RawBatchScanResponse]]]
    requests: RawRequests
    sizes: PairSizes
    page_pairs: int
    page_bytes: int

    async def execute(self, work: ScanOrder, call: Call) -> list[Pairs]:
        """Return the pairs of each range."""
        found: list[Pairs] = [[] for _ in work.ranges]
        rests = {number: key_range for number, key_range in enumerate(work.ranges) if not key_range.is_empty}
        while rests and work.limit != 0:
            each, edges = self._round(work, rests, found)
            for part, response in await self.inner.execute(edges, call):
                if not work.key_only:
                    self.sizes.learn(len(response.kvs), response.ByteSize())
                pairs = self.requests.pairs("batch_scan", response.kvs)
                for (number, covered), own in zip(part, _by_stretch(part, pairs), strict=True):
                    last = own[-1][0] if len(own) >= each else None
                    rest = rest_of_scan(rests.pop(number), covered, last, reverse=work.reverse)
                    found[number].extend(own)
                    if rest is not None and (work.limit is None or len(found[number]) < work.limit):
                        rests[number] = rest
        return [pairs[: work.limit] for pairs in found]

    def _round(
        self, work: ScanOrder, rests: dict[int, KeyRange], found: list[Pairs]
    ) -> tuple[int, EdgeWork[kvrpcpb.RawBatchScanResponse]]:
        """Return how many pairs of each range are asked for in this round, and the work."""
        page = self.sizes.fit(self.page_pairs, self.page_bytes, key_only=work.key_only)
        if work.limit is None:
            # Many ranges are taken for small ones; those that are not get larger shares in the rounds that follow.
            each = min(max(page // len(rests), _SMALL), page)
        else:
            each = min(page, max(work.limit - len(found[number]) for number in rests))

        def build(parts: Sequence[KeyRange]) -> Request[kvrpcpb.RawBatchScanResponse]:
            return self.requests.scan_all(parts, each, reverse=work.reverse, key_only=work.key_only, cf=work.cf)

        return each, EdgeWork(list(rests.items()), work.reverse, max(page // each, 1), build)


def _by_stretch(part: Stretches, pairs: Pairs) -> Iterator[Pairs]:
    """Yield the pairs of each stretch; both are in the order of the scan."""
    at = 0
    for _, key_range in part:
        begin = at
        while at < len(pairs) and key_range.contains(pairs[at][0]):
            at += 1
        yield pairs[begin:at]


@attrs.frozen
class CoprocessorAnswer:
    """What a plugin answered for the ranges of one request."""

    ranges: tuple[tuple[bytes, bytes], ...]
    """The (start, end) of the ranges it worked on, parts of those asked for that lie in one Region."""
    data: bytes
    """Its answer."""


@attrs.frozen(eq=False)
class RegionsWork(Generic[Resp]):
    """One request for each Region, about the parts of many ranges that lie in it."""

    whole: Sequence[KeyRange]
    """The ranges."""
    build: Callable[[Sequence[KeyRange]], Request[Resp]]
    """Returns the request for parts that lie in one Region."""

    @property
    def subject(self) -> tuple[bytes | None, None]:
        """What observers hear it is about: the start of the first range."""
        return (self.whole[0].start if self.whole else None), None

    async def begin(self, cache: RegionCache, call: Call) -> list[tuple[RegionEntry, Sequence[KeyRange]]]:
        """Cut the ranges at the borders of Regions."""
        return await self.split(self.whole, cache, call)

    async def split(
        self, part: Sequence[KeyRange], cache: RegionCache, call: Call
    ) -> list[tuple[RegionEntry, Sequence[KeyRange]]]:
        """Cut some ranges at the borders of Regions."""
        by_entry: dict[RegionEntry, list[KeyRange]] = {}
        for key_range in part:
            for entry in await cache.locate_range(key_range, call.backoffer):
                by_entry.setdefault(entry, []).append(key_range.intersect(entry.range))
        return list(by_entry.items())

    def request(self, part: Sequence[KeyRange]) -> Request[Resp]:
        """Return the request for one piece."""
        return self.build(part)
