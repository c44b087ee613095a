"""Asking PD which Region lies at a point of the key space."""

from __future__ import annotations

import functools
from collections.abc import Callable

import attrs
from tikv_pd import Backoffer, Region, TikvError

from tikv_region._flight import SingleFlight
from tikv_region.codec import KeyCodec
from tikv_region.region import RegionEntry
from tikv_region.source import RegionSource

_HIGH_KEY = b"\xff" * 64


@attrs.frozen
class Point:
    """A place in the key space: a key, or the keys just below one."""

    key: bytes
    """A user's key."""
    is_end: bool = False
    """Whether the keys just below it are meant, those at the end of the key space when it is empty."""

    def is_in(self, entry: RegionEntry) -> bool:
        """Tell whether an entry holds it."""
        if not self.is_end:
            return entry.contains(self.key)
        if not self.key:
            return not entry.end
        return entry.start < self.key and (not entry.end or self.key <= entry.end)

    def is_after(self, entry: RegionEntry) -> bool:
        """Tell on which side it lies of an entry that does not hold it."""
        if self.is_end:
            return not self.key or entry.start < self.key
        return entry.start <= self.key


@attrs.frozen
class Answer:
    """What PD said, and of which point."""

    point: Point
    """What it was asked."""
    region: Region | None
    """The Region, None when it knows none."""
    failure: TikvError | None = None
    """Why it did not answer; another attempt may help."""


class Inquiry:
    """Asks PD, once for all who ask the same at the same time."""

    def __init__(self, pd: RegionSource, codec: KeyCodec, *, need_buckets: bool) -> None:
        self._get = functools.partial(pd.get_region, need_buckets=need_buckets)
        self._get_prev = functools.partial(pd.get_prev_region, need_buckets=need_buckets)
        self._codec = codec
        self._flights: SingleFlight[Answer] = SingleFlight()

    async def ask(self, point: Point, backoffer: Backoffer, known: RegionEntry | None = None) -> Answer:
        """Ask for the Region at `point`.

        When a Region goes stale, requests for many of its keys miss at once. They name it as `known`, and only one of
        them asks; the answer to the others is about another point then, and they look again at what it taught.
        """
        ask = functools.partial(self._ask, point, backoffer)
        return await self._flights.ask(point if known is None else known, backoffer.deadline, ask)

    async def _ask(self, point: Point, backoffer: Backoffer) -> Answer:
        backoffer.deadline.check()
        try:
            return Answer(point, await self._fetch(point, backoffer.deadline.remaining))
        except TikvError as error:
            if not error.retryable:
                raise
            return Answer(point, None, error)

    async def _fetch(self, point: Point, left: Callable[[], float]) -> Region | None:
        if not point.is_end:
            return await self._get(self._codec.encode_region_key(point.key), timeout=left())
        _, end = self._codec.encode_region_range(b"", point.key)
        if not end:
            # PD has no question for its last Region. Hardly any Region starts above this key, and all that do follow.
            region = await self._get(_HIGH_KEY, timeout=left())
            while region is not None and region.end_key:
                region = await self._get(region.end_key, timeout=left())
            return region
        region = await self._get(end, timeout=left())
        if region is not None and region.start_key == end:
            return await self._get_prev(end, timeout=left())
        return region
