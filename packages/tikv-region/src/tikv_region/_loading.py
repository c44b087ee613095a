"""How Regions come from PD: one at a point of the key space, one of an id, pages of many.

PD's followers and, right after it changed, its leader lag behind what stores and this client know. An answer of a
follower stands only if nothing is missing from it and nothing newer is known; else the leader is asked at once. One of
the leader is waited for, and in the end made do with.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from tikv_pd import Backoffer, Deadline, Region, TikvError
from tikv_pd.backoff import PD_RPC, REGION_MISS

from tikv_region._inquiry import Inquiry, Point
from tikv_region._known import KnownRegions
from tikv_region.codec import KeyCodec
from tikv_region.config import RegionConfig
from tikv_region.errors import RegionUnavailable
from tikv_region.flight import SingleFlight
from tikv_region.ranges import KeyRange, gaps, ranges_from
from tikv_region.region import RegionEntry
from tikv_region.source import RegionSource

T = TypeVar("T")

_MAX_RANGES: Final = 2048
"""Ranges in one request to PD at most. Source: client-go region_cache.go, 16 for each Region of a page."""
_RANGES_PER_REGION: Final = 4
"""Ranges in the first request for each Region of a page; how many the next ones have depends on its answer."""


class Loader:
    """Brings what PD knows to what is known."""

    def __init__(self, pd: RegionSource, codec: KeyCodec, known: KnownRegions, config: RegionConfig) -> None:
        self._pd = pd
        self._codec = codec
        self._known = known
        self._config = config
        # PD's followers know no buckets.
        self._asks_followers = config.allow_follower and not config.need_buckets
        self._inquiry = Inquiry(pd, codec, need_buckets=config.need_buckets)
        self._by_id: SingleFlight[Region | TikvError | None] = SingleFlight()
        self._refreshed_to = b""

    async def load(self, point: Point, backoffer: Backoffer) -> RegionEntry:
        """Return the Region at a point that no valid entry holds; asks PD until there is one."""
        outdated = self._known.at(point)
        if outdated is not None and outdated.is_due():
            await self._reload(outdated, point, backoffer)
            entry = self._known.use_at(point)
            if entry is not None:
                return entry
            outdated = self._known.at(point)
        if self._asks_followers:
            entry = await self._ask_follower(point, backoffer, outdated)
            if entry is not None:
                return entry
        stale_answers = 0
        while True:
            answer = await self._inquiry.ask(point, backoffer, outdated)
            outdated = None
            entry = self._known.use_at(point)
            if entry is not None:
                return entry
            if answer.failure is not None:
                await backoffer.backoff(PD_RPC, answer.failure)
                continue
            if answer.point != point:
                continue
            entry = self._known.build(answer.region) if answer.region is not None else None
            if entry is None or not point.is_in(entry):
                await backoffer.backoff(PD_RPC, RegionUnavailable(point.key, "PD knows none with a usable peer"))
                continue
            placed = self._known.index.put(entry)
            if placed is not None:
                return placed
            if stale_answers == self._config.stale_answers:
                return self._make_do(entry, point)
            stale_answers += 1
            await backoffer.backoff(
                REGION_MISS, RegionUnavailable(point.key, "PD's answer is older than what is known")
            )

    async def load_id(self, region_id: int, backoffer: Backoffer, *, need_buckets: bool = False) -> RegionEntry | None:
        """Return the Region of an id as PD's leader knows it; None when that is none, or not let in.

        Asked once for all who ask for the same Region at the same time.
        """
        need_buckets = need_buckets or self._config.need_buckets
        ask = functools.partial(self._ask_id, region_id, need_buckets, backoffer.deadline)
        while True:
            answer = await self._by_id.ask((region_id, need_buckets), backoffer.deadline, ask)
            if not isinstance(answer, TikvError):
                return self._known.insert(answer) if answer is not None else None
            await backoffer.backoff(PD_RPC, answer)

    async def load_ranges(self, ranges: list[KeyRange], backoffer: Backoffer) -> None:
        """Load the Regions of ascending ranges, in pages. Gaps are left to those who use them."""
        page = self._config.scan_page
        window = _RANGES_PER_REGION * page
        while ranges:
            asked, rest = ranges[:window], ranges[window:]
            beyond = await self.load_page(asked, page, backoffer)
            left = ranges_from(asked, beyond) if beyond else []
            # Many ranges may lie in one Region, or many Regions in one range: few are to be sent twice.
            window = min(max(2 * (len(asked) - len(left)), page), _MAX_RANGES)
            ranges = left + rest

    async def load_page(self, ranges: Sequence[KeyRange], limit: int, backoffer: Backoffer) -> bytes:
        """Load up to `limit` Regions and return where the next page begins, empty if there can be none."""
        encoded = [self._codec.encode_region_range(known.start, known.end) for known in ranges]
        regions = await self._scan(encoded, limit, backoffer)
        for region in regions:
            self._known.insert(region)
        if len(regions) < limit:
            return b""
        keys = self._codec.decode_region_range(regions[-1].start_key, regions[-1].end_key)
        return keys[1] if keys is not None else b""

    async def refresh(self, timeout: float) -> None:
        """Load the next page of all Regions, going round."""
        backoffer = Backoffer(Deadline("refresh", timeout, self._known.now))
        page = [KeyRange(self._refreshed_to)]
        self._refreshed_to = await self.load_page(page, self._config.scan_page, backoffer)

    async def _ask_follower(
        self, point: Point, backoffer: Backoffer, outdated: RegionEntry | None
    ) -> RegionEntry | None:
        """Return the Region at a point as a follower of PD knows it; None when the leader must be asked."""
        answer = await self._inquiry.ask(point, backoffer, outdated, allow_follower=True)
        known, region = self._known.use_at(point), answer.region
        if known is not None or answer.point != point or region is None or region.leader is None:
            return known
        entry = self._known.build(region)
        return self._known.index.put(entry) if entry is not None and point.is_in(entry) else None

    async def _reload(self, entry: RegionEntry, point: Point, backoffer: Backoffer) -> None:
        """Ask PD once for a Region that others go on using meanwhile; it stays as it is when nothing comes of it."""
        entry.resume()
        timeout = min(self._config.reload_timeout, backoffer.deadline.check())
        with suppress(TikvError):
            answer = await self._inquiry.ask(point, Backoffer(Deadline("reload", timeout, self._known.now)), entry)
            loaded = self._known.build(answer.region) if answer.region is not None else None
            if loaded is not None and self._known.index.put(loaded, renew=True) is not None:
                return
        entry.needs_reload = True

    def _make_do(self, entry: RegionEntry, point: Point) -> RegionEntry:
        """Use an outdated answer: the store it leads to knows better and will say so.

        What was known but found wrong no longer stands against it. What is still valid does: then the entry is not
        kept, and covers only what lies between its neighbors.
        """
        index = self._known.index
        for old in index.obstacles(entry):
            if not old.is_valid():
                index.remove(old)
        placed = index.put(entry)
        if placed is not None:
            return placed
        neighbors = [known for known in index.overlapping(entry.start, entry.end) if known.is_valid()]
        below = [known.end for known in neighbors if point.is_after(known)]
        above = [known.start for known in neighbors if not point.is_after(known)]
        entry.start = below[-1] if below else entry.start
        entry.end = above[0] if above else entry.end
        return entry

    async def _scan(self, encoded: list[tuple[bytes, bytes]], limit: int, backoffer: Backoffer) -> list[Region]:
        scan = functools.partial(
            self._pd.batch_scan_regions, encoded, limit=limit, need_buckets=self._config.need_buckets
        )
        if self._asks_followers:
            regions = await _until_answered(functools.partial(scan, allow_follower=True), backoffer)
            if _is_complete(encoded, regions, limit):
                return regions
        return await _until_answered(functools.partial(scan, allow_follower=False), backoffer)

    async def _ask_id(self, region_id: int, need_buckets: bool, deadline: Deadline) -> Region | TikvError | None:
        try:
            return await self._pd.get_region_by_id(region_id, need_buckets=need_buckets, timeout=deadline.check())
        except TikvError as error:
            if not error.retryable:
                raise
            return error


async def _until_answered(question: Callable[..., Awaitable[T]], backoffer: Backoffer) -> T:
    while True:
        timeout = backoffer.deadline.check()
        try:
            return await question(timeout=timeout)
        except TikvError as error:
            if not error.retryable:
                raise
            await backoffer.backoff(PD_RPC, error)


def _is_complete(encoded: list[tuple[bytes, bytes]], regions: list[Region], limit: int) -> bool:
    """Tell whether an answer leaves no key of the ranges out, up to its last Region if it is full, and no leader."""
    held = [KeyRange(region.start_key, region.end_key) for region in regions if region.leader is not None]
    if len(held) < len(regions):
        return False
    wanted = [KeyRange(start, end) for start, end in encoded]
    if len(regions) >= limit:
        reached = KeyRange(b"", regions[-1].end_key)
        wanted = [part for part in (known.clip(reached) for known in wanted) if part is not None]
    return not gaps(wanted, held)
