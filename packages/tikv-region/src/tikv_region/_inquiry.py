"""Asking PD which Region lies at a point of the key space."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import attrs
from tikv_pd import Backoffer, Region, TikvError

from tikv_region.codec import KeyCodec
from tikv_region.flight import SingleFlight
from tikv_region.region import RegionEntry
from tikv_region.source import RegionSource

_HIGH_KEY: Final = b"\xff" * 64


class _Get(Protocol):
    def __call__(self, key: bytes, *, timeout: float) -> Awaitable[Region | None]: ...


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
        self._pd = pd
        self._codec = codec
        self._need_buckets = need_buckets
        self._flights: SingleFlight[Answer] = SingleFlight()

    async def ask(
        self, point: Point, backoffer: Backoffer, known: RegionEntry | None = None, *, allow_follower: bool = False
    ) -> Answer:
        """Ask for the Region at `point`.

        When a Region goes stale, requests for many of its keys miss at once. They name it as `known`, and only one of
        them asks; the answer to the others is about another point then, and they look again at what it taught.

        Args:
            point: The place.
            backoffer: Its deadline.
            known: The stale Region.
            allow_follower: Whether a follower of PD may answer.
        """
        ask = functools.partial(self._ask, point, backoffer, allow_follower)
        question = (point if known is None else known, allow_follower)
        return await self._flights.ask(question, backoffer.deadline, ask)

    async def _ask(self, point: Point, backoffer: Backoffer, allow_follower: bool) -> Answer:
        backoffer.deadline.check()
        need_buckets = self._need_buckets
        get = functools.partial(self._pd.get_region, need_buckets=need_buckets, allow_follower=allow_follower)
        get_prev = functools.partial(self._pd.get_prev_region, need_buckets=need_buckets, allow_follower=allow_follower)
        try:
            return Answer(point, await self._fetch(point, get, get_prev, backoffer.deadline.remaining))
        except TikvError as error:
            if not error.retryable:
                raise
            return Answer(point, None, error)

    async def _fetch(self, point: Point, get: _Get, get_prev: _Get, left: Callable[[], float]) -> Region | None:
        if not point.is_end:
            return await get(self._codec.encode_region_key(point.key), timeout=left())
        _, end = self._codec.encode_region_range(b"", point.key)
        if not end:
            # PD has no question for its last Region. Hardly any Region starts above this key, and all that do follow.
            region = await get(_HIGH_KEY, timeout=left())
            while region is not None and region.end_key:
                region = await get(region.end_key, timeout=left())
            return region
        region = await get(end, timeout=left())
        if region is not None and region.start_key == end:
            return await get_prev(end, timeout=left())
        return region
