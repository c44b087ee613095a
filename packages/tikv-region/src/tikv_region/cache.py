"""The Regions a client knows, and how it comes to know them.

A lookup that hits does no I/O. One that misses asks PD, and goes on asking, with waits, until it has a Region that
holds the key. PD may lag behind the stores (it learns of splits from heartbeats), so what it answers is let in only if
nothing newer is known; what stores say of themselves comes in through `RegionCache.on_region_error`.
"""

from __future__ import annotations

import functools
import random
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import pairwise

import anyio
from tikv_pd import Backoffer, Region, Store, TikvError
from tikv_proto import errorpb

from tikv_region._inquiry import Point
from tikv_region._known import KnownRegions
from tikv_region._learning import learn_from_error, learn_from_failure
from tikv_region._loading import Loader
from tikv_region._stores import StoreTable, learn
from tikv_region.codec import KeyCodec
from tikv_region.config import RegionConfig
from tikv_region.errors import Decision
from tikv_region.ranges import KeyRange
from tikv_region.region import InvalidReason, RegionEntry, StoreEntry
from tikv_region.source import RegionSource


class RegionCache:
    """Finds the Region of a key, and learns from what goes wrong.

    For one event loop and not thread-safe; its state only changes between awaits.

    Args:
        pd: Whom to ask.
        codec: How keys are encoded towards PD and stores. The cache's own methods take and return the user's keys.
        config: How long to trust what is known.
        now: The clock, in seconds, monotonic.
        rng: Source of jitter.
    """

    def __init__(
        self,
        pd: RegionSource,
        codec: KeyCodec,
        *,
        config: RegionConfig | None = None,
        now: Callable[[], float],
        rng: random.Random | None = None,
    ) -> None:
        self._config = config if config is not None else RegionConfig()
        self._stores = StoreTable(pd, self._config.store_check_timeout)
        self._known = KnownRegions(codec, self._stores, self._config, now, rng if rng is not None else random.Random())
        self._loader = Loader(pd, codec, self._known, self._config)
        self._index = self._known.index
        # Held here as well, since every request comes by.
        self._starts, self._entries, self._use = self._index.starts, self._index.entries, self._known.use
        self._swept_to = b""

    def __len__(self) -> int:
        """Count the Regions known, valid or not."""
        return len(self._entries)

    def find(self, key: bytes) -> RegionEntry | None:
        """Return the valid Region that holds `key`, None when none is known. No I/O; use prolongs its life."""
        index = bisect_right(self._starts, key)
        if not index:
            return None
        entry = self._entries[index - 1]
        end = entry.end
        if end and key >= end:
            return None
        return entry if self._use(entry) else None

    async def locate(self, key: bytes, backoffer: Backoffer) -> RegionEntry:
        """Return the Region that holds `key`, from PD if need be.

        Raises:
            DeadlineExceeded: no Region was found in time; `__cause__` says why.
            BackoffExceeded: the budget of waiting is used up; `__cause__` says why.
            CodecError: PD's Regions are not encoded as the codec expects.
            TikvError: PD refuses to answer, now and later.

        Cancellation: safe; tasks that wait for the same answer of PD ask on their own.
        """
        entry = self.find(key)
        return entry if entry is not None else await self._loader.load(Point(key), backoffer)

    async def locate_end(self, key: bytes, backoffer: Backoffer) -> RegionEntry:
        """Return the Region that holds the keys just below `key`: start < key <= end. Empty means the last Region.

        Raises and cancellation: as `locate`.
        """
        point = Point(key, is_end=True)
        entry = self._known.use_at(point)
        return entry if entry is not None else await self._loader.load(point, backoffer)

    async def locate_range(self, key_range: KeyRange, backoffer: Backoffer) -> list[RegionEntry]:
        """Return all Regions that overlap a range, ascending, without gaps or overlaps; none for an empty range.

        Those not known are loaded in pages of `RegionConfig.scan_page`.

        Raises and cancellation: as `locate`.
        """
        found: list[RegionEntry] = []
        at = key_range.start
        while not key_range.is_empty:
            entry = self.find(at)
            if entry is None:
                await self._loader.load_page([KeyRange(at, key_range.end)], self._config.scan_page, backoffer)
                entry = await self.locate(at, backoffer)
            if found and entry.start < at:
                # A merge came in between: the Regions found so far are part of this one.
                found, at = [], key_range.start
                continue
            found.append(entry)
            at = entry.end
            if not at or (key_range.end and at >= key_range.end):
                break
        return found

    async def locate_ranges(self, ranges: Sequence[KeyRange], backoffer: Backoffer) -> list[RegionEntry]:
        """Return all Regions that overlap any of the ranges, ascending, each once, without gaps in any range.

        Those not known are loaded together, in pages of `RegionConfig.scan_page`.

        Args:
            ranges: In ascending order, not overlapping; empty ones are left out.
            backoffer: Its deadline and budget.

        Raises and cancellation: as `locate`.
        """
        missing = [part for known in ranges for part in self._index.unknown(known)]
        await self._loader.load_ranges(missing, backoffer)
        while True:
            found: list[RegionEntry] = []
            for key_range in ranges:
                located = await self.locate_range(key_range, backoffer)
                found += located[1:] if found and located and located[0] is found[-1] else located
            # Regions may have merged while those of a later range were waited for.
            if all(left.end and left.end <= right.start for left, right in pairwise(found)):
                return found

    async def locate_id(self, region_id: int, backoffer: Backoffer) -> RegionEntry | None:
        """Return the Region of an id, from PD if need be.

        Returns:
            The Region; None when PD knows none of this id, or only one that is outdated or outside the keyspace.

        Raises and cancellation: as `locate`.
        """
        entry = self._index.by_id(region_id)
        if entry is not None and self._use(entry):
            return entry
        return await self._loader.load_id(region_id, backoffer)

    async def preload(self, backoffer: Backoffer, key_range: KeyRange | None = None) -> None:
        """Load all Regions of a range, by default of all keys, also those known. Gaps are left to those who use them.

        Raises and cancellation: as `locate`; what was loaded until then is kept.
        """
        await self._loader.load_ranges([key_range if key_range is not None else KeyRange()], backoffer)

    async def group_keys(self, keys: Sequence[bytes], backoffer: Backoffer) -> list[tuple[RegionEntry, Sequence[int]]]:
        """Return the Regions of many keys, each with the positions of its keys in `keys`, ascending.

        Every position is in exactly one group; duplicates of a key are in the same one. Groups ascend by key. Those
        not known are loaded together, in pages of `RegionConfig.scan_page`, without those that lie between them.

        Raises and cancellation: as `locate`.
        """
        if len(keys) > 1:
            only = self.find(min(keys))
            if only is not None and only.contains(max(keys)):
                return [(only, range(len(keys)))]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        ascending = [keys[index] for index in order]
        groups: list[tuple[RegionEntry, Sequence[int]]] = []
        at = 0
        is_loaded = False
        while at < len(order):
            entry = self.find(ascending[at])
            if entry is None:
                if not is_loaded:
                    await self._load_missing(ascending, at, backoffer)
                    is_loaded = True
                entry = await self.locate(ascending[at], backoffer)
            until = _first_beyond(entry, ascending, at)
            groups.append((entry, sorted(order[at:until])))
            at = until
        return groups

    async def update_buckets(self, entry: RegionEntry, version: int, backoffer: Backoffer) -> None:
        """Learn the buckets of a Region from PD if a store says that there are newer ones, whatever the configuration.

        Buckets are a hint that requests can do without: run it in a task beside them. PD may not know of them yet, so
        they may be old afterwards, and the Region may have been replaced by a newer one.

        Args:
            entry: The Region.
            version: The version of its buckets that the store told.
            backoffer: Its deadline and budget.

        Raises and cancellation: as `locate`. Asked once for all tasks that ask for the same Region at the same time.

        Source: client-go region_cache.go, UpdateBucketsIfNeeded.
        """
        if entry.buckets is None or entry.buckets.version < version:
            await self._loader.load_id(entry.id, backoffer, need_buckets=True)

    def insert(self, region: Region, stores: Iterable[Store] = ()) -> RegionEntry | None:
        """Let a Region in that somebody learned of, with encoded keys, unless something newer is known.

        Args:
            region: The Region.
            stores: Stores it lives on, if they are known too; the others are asked for when first used.

        Returns:
            The entry that stands for the Region now; None when something newer is known, when it lies outside the
            keyspace, or when none of its peers can be used.

        Raises:
            CodecError: its bounds are not encoded as the codec expects.
        """
        for store in stores:
            learn(self._stores.entry(store.id), store)
        return self._known.insert(region)

    def invalidate(self, entry: RegionEntry, reason: InvalidReason) -> None:
        """Have a Region loaded again when it is next used; only the first reason is kept."""
        entry.invalidate(reason)

    def on_region_error(self, entry: RegionEntry, error: errorpb.Error, store: StoreEntry | None = None) -> Decision:
        """Learn from the error a store answered, and say what to do with the request.

        Args:
            entry: The Region the request was sent to.
            error: The error, its keys still encoded.
            store: The store that answered, by default the leader's. Many requests in flight may meet the same error:
                the leader moves on only because of those that the store still taken for the leader's has answered.

        Raises:
            CodecError: the Regions in the error are not encoded as the codec expects.
        """
        store = store if store is not None else entry.leader_store
        return learn_from_error(self._known, entry, error, store, self._config.epoch_patience)

    def on_send_failure(self, entry: RegionEntry, store: StoreEntry) -> None:
        """Learn that `store` could not be reached for `entry`.

        All Regions led from that store become stale, once for each time it fails, and its address is asked for again.
        Whoever holds on to the entry may ask its other peers meanwhile.
        """
        learn_from_failure(entry, store)

    async def resolve(self, store: StoreEntry, backoffer: Backoffer) -> str:
        """Return the address of a store, from PD when it is not known or in doubt.

        Returns:
            `host:port`; empty when the store has left the cluster. All Regions led from it are stale then: locate the
            keys again. An address in doubt is returned as it is when PD does not answer within
            `RegionConfig.store_check_timeout`.

        Raises:
            DeadlineExceeded: no address was found in time; `__cause__` says why.
            BackoffExceeded: the budget of waiting is used up; `__cause__` says why.

        Cancellation: safe.
        """
        return await self._stores.resolve(store, backoffer)

    async def run(self) -> None:
        """Keep what is known tidy until cancelled; run it in a task of its own. Everything else works without it.

        Forgets Regions out of use, a few at a time; has those loaded again that need it, when they are next located;
        follows stores that join, leave, move or change their labels; and loads Regions again before anything goes
        wrong, if asked to. `RegionConfig` says how often.

        Cancellation: safe.
        """
        config = self._config
        async with anyio.create_task_group() as tasks:
            if config.sweep_interval is not None:
                tasks.start_soon(_every, config.sweep_interval, self._sweep)
            if config.stores_interval is not None:
                refresh = functools.partial(self._stores.refresh, config.stores_interval)
                tasks.start_soon(_every, config.stores_interval, refresh)
            if config.refresh_interval is not None:
                load_again = functools.partial(self._loader.refresh, config.refresh_interval)
                tasks.start_soon(_every, config.refresh_interval, load_again)

    def clear(self) -> None:
        """Forget all Regions. Stores are kept: requests under way hold on to them."""
        self._index.clear()

    async def _load_missing(self, keys: Sequence[bytes], at: int, backoffer: Backoffer) -> None:
        """Load the Regions of ascending keys, from position `at` on, that are not known."""
        missing: list[KeyRange] = []
        while at < len(keys):
            entry = self.find(keys[at])
            if entry is not None:
                at = _first_beyond(entry, keys, at)
                continue
            missing.append(KeyRange(keys[at], keys[at] + b"\0"))
            at = bisect_right(keys, keys[at], at)
        # A single one is shared with other tasks that locate it.
        if len(missing) > 1:
            await self._loader.load_ranges(missing, backoffer)

    async def _sweep(self) -> None:
        self._swept_to = self._index.sweep(self._swept_to, self._config.sweep_regions)


def _first_beyond(entry: RegionEntry, keys: Sequence[bytes], at: int) -> int:
    return bisect_left(keys, entry.end, at) if entry.end else len(keys)


async def _every(interval: float, step: Callable[[], Awaitable[None]]) -> None:
    while True:
        await anyio.sleep(interval)
        # PD does not answer: the next turn is soon enough.
        with suppress(TikvError):
            await step()
