"""The Regions a client knows, and how it comes to know them.

A lookup that hits does no I/O. One that misses asks PD, and goes on asking, with waits, until it has a Region that
holds the key. PD may lag behind the stores (it learns of splits from heartbeats), so what it answers is let in only if
nothing newer is known; what stores say of themselves comes in through `RegionCache.on_region_error`.
"""

from __future__ import annotations

import functools
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Protocol, TypeVar

import anyio
import attrs
from tikv_pd import Backoffer, Buckets, Deadline, Region, Store, TikvError
from tikv_pd.backoff import PD_RPC, REGION_MISS
from tikv_proto import errorpb

from tikv_region._index import RegionIndex
from tikv_region._inquiry import Inquiry, Point
from tikv_region._stores import StoreTable, learn
from tikv_region._upkeep import every
from tikv_region.codec import KeyCodec
from tikv_region.config import RegionConfig
from tikv_region.errors import CacheAction, Decision, Next, RegionUnavailable, decide, leader_index, set_field
from tikv_region.ranges import KeyRange, ranges_from
from tikv_region.region import InvalidReason, RegionEntry, StoreEntry
from tikv_region.source import RegionSource

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_MAX_RANGES = 2048
"""Ranges in one request to PD at most. Source: client-go region_cache.go, 16 for each Region of a page."""

_REASONS = {
    "not_leader": InvalidReason.STORE_NOT_FOUND,
    "region_not_found": InvalidReason.REGION_NOT_FOUND,
    "epoch_not_match": InvalidReason.EPOCH_NOT_MATCH,
}


class _Question(Protocol[T_co]):
    def __call__(self, *, timeout: float) -> Awaitable[T_co]: ...


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
        self._pd = pd
        self._codec = codec
        self._config = config if config is not None else RegionConfig()
        self._ttl = self._config.ttl
        self._now = now
        self._rng = rng if rng is not None else random.Random()
        self._index = RegionIndex()
        self._starts = self._index.starts
        self._entries = self._index.entries
        self._stores = StoreTable(pd, self._config.store_check_timeout)
        self._inquiry = Inquiry(pd, codec, need_buckets=self._config.need_buckets)
        self._moments: dict[int, float] = {}
        self._cursor = b""

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
        return entry if entry is not None else await self._load(Point(key), backoffer)

    async def locate_end(self, key: bytes, backoffer: Backoffer) -> RegionEntry:
        """Return the Region that holds the keys just below `key`: start < key <= end. Empty means the last Region.

        Raises and cancellation: as `locate`.
        """
        point = Point(key, is_end=True)
        entry = self._look(point)
        return entry if entry is not None else await self._load(point, backoffer)

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
                await self._load_page([KeyRange(at, key_range.end)], self._config.scan_page, backoffer)
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
        await self._load_pages([part for known in ranges for part in self._index.unknown(known)], backoffer)
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
        get = functools.partial(self._pd.get_region_by_id, region_id, need_buckets=self._config.need_buckets)
        region = await self._ask(get, backoffer)
        return self.insert(region) if region is not None else None

    async def preload(self, backoffer: Backoffer, key_range: KeyRange | None = None) -> None:
        """Load all Regions of a range, by default of all keys, also those known. Gaps are left to those who use them.

        Raises and cancellation: as `locate`; what was loaded until then is kept.
        """
        await self._load_pages([key_range if key_range is not None else KeyRange()], backoffer)

    async def group_keys(self, keys: Sequence[bytes], backoffer: Backoffer) -> list[tuple[RegionEntry, list[int]]]:
        """Return the Regions of many keys, each with the positions of its keys in `keys`, ascending.

        Every position is in exactly one group; duplicates of a key are in the same one. Groups ascend by key. Those
        not known are loaded in pages.

        Raises and cancellation: as `locate`.
        """
        order = sorted(range(len(keys)), key=keys.__getitem__)
        ascending = [keys[index] for index in order]
        groups: list[tuple[RegionEntry, list[int]]] = []
        at = 0
        while at < len(order):
            entry = self.find(ascending[at])
            if entry is None:
                limit = min(self._config.scan_page, len(order) - at)
                await self._load_page([KeyRange(ascending[at], ascending[-1] + b"\0")], limit, backoffer)
                entry = await self.locate(ascending[at], backoffer)
            until = bisect_left(ascending, entry.end, at) if entry.end else len(order)
            groups.append((entry, sorted(order[at:until])))
            at = until
        return groups

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
        entry = self._build(region)
        return None if entry is None else self._index.put(entry)

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
        decision = self._lose_patience(decide(error, entry, store.id), entry, error)
        match decision.action:
            case CacheAction.SWITCH_LEADER:
                leader = leader_index(entry.peers, error.not_leader.leader)
                assert leader is not None
                entry.switch_leader(leader)
            case CacheAction.NEXT_PEER:
                if entry.leader_store is store:
                    entry.next_leader()
            case CacheAction.INVALIDATE:
                entry.invalidate(_REASONS.get(set_field(error), InvalidReason.OTHER))
            case CacheAction.REPLACE:
                entry.invalidate(InvalidReason.EPOCH_NOT_MATCH)
                if not self._replace(error.epoch_not_match, store):
                    # All lie outside the keyspace, or are outdated: PD must be asked, and may not know yet either.
                    return attrs.evolve(decision, action=CacheAction.INVALIDATE, backoff=REGION_MISS)
            case CacheAction.REPLACE_BUCKETS:
                entry.learn_buckets(self._decode(error.bucket_version_not_match))
            case CacheAction.CHECK_STORE:
                store.needs_check = True
                entry.invalidate(InvalidReason.STORE_NOT_FOUND)
        return decision

    def on_send_failure(self, entry: RegionEntry, store: StoreEntry) -> None:
        """Learn that `store` could not be reached for `entry`.

        All Regions led from that store become stale, once for each time it fails, and its address is asked for again.
        The entry itself stays valid if another peer may lead it: a request sent again tries that one.
        """
        for index, known in enumerate(entry.stores):
            if known is store and entry.is_fresh(index):
                store.epoch += 1
                store.needs_check = True
        if entry.leader_store is store:
            entry.next_leader()

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
        and follows stores that join, leave, move or change their labels. `RegionConfig` says how often.

        Cancellation: safe.
        """
        config = self._config
        async with anyio.create_task_group() as tasks:
            if config.sweep_interval is not None:
                tasks.start_soon(every, config.sweep_interval, self._sweep)
            if config.stores_interval is not None:
                refresh = functools.partial(self._stores.refresh, config.stores_interval)
                tasks.start_soon(every, config.stores_interval, refresh)

    def clear(self) -> None:
        """Forget all Regions. Stores are kept: requests under way hold on to them."""
        self._index.clear()

    def _use(self, entry: RegionEntry) -> bool:
        now = self._now()
        expires_at = entry.expires_at
        if expires_at <= now or entry.leader_store.epoch != entry.leader_store_epoch:
            return False
        if expires_at - now <= self._ttl and entry.is_renewable:
            entry.expires_at = self._expiry(now)
        return True

    def _expiry(self, now: float) -> float:
        second = math.ceil(now + self._ttl + self._rng.random() * self._config.ttl_jitter)
        # One float for all entries of a second, not one for each: a lookup among 100,000 Regions would find its own
        # outside the processor's cache, which costs a fifth of the lookup.
        if len(self._moments) > 4096:
            self._moments.clear()
        return self._moments.setdefault(second, float(second))

    def _known(self, point: Point) -> RegionEntry | None:
        return self._index.at_end(point.key) if point.is_end else self._index.at(point.key)

    def _look(self, point: Point) -> RegionEntry | None:
        entry = self._known(point)
        return entry if entry is not None and self._use(entry) else None

    async def _load(self, point: Point, backoffer: Backoffer) -> RegionEntry:
        outdated = self._known(point)
        if outdated is not None and outdated.is_due():
            await self._reload(outdated, point, backoffer)
            entry = self._look(point)
            if entry is not None:
                return entry
            outdated = self._known(point)
        stale_answers = 0
        while True:
            answer = await self._inquiry.ask(point, backoffer, outdated)
            outdated = None
            entry = self._look(point)
            if entry is not None:
                return entry
            if answer.failure is not None:
                await backoffer.backoff(PD_RPC, answer.failure)
                continue
            if answer.point != point:
                continue
            entry = self._build(answer.region) if answer.region is not None else None
            if entry is None or not point.is_in(entry):
                await backoffer.backoff(PD_RPC, RegionUnavailable(point.key, "PD knows none with a usable peer"))
                continue
            placed = self._index.put(entry)
            if placed is not None:
                return placed
            if stale_answers == self._config.stale_answers:
                return self._make_do(entry, point)
            stale_answers += 1
            await backoffer.backoff(
                REGION_MISS, RegionUnavailable(point.key, "PD's answer is older than what is known")
            )

    async def _reload(self, entry: RegionEntry, point: Point, backoffer: Backoffer) -> None:
        """Ask PD once for a Region that others go on using meanwhile; it stays as it is when nothing comes of it."""
        entry.resume()
        timeout = min(self._config.reload_timeout, backoffer.deadline.check())
        with suppress(TikvError):
            answer = await self._inquiry.ask(point, Backoffer(Deadline("reload", timeout, self._now)), entry)
            loaded = self._build(answer.region) if answer.region is not None else None
            if loaded is not None and self._index.put(loaded, renew=True) is not None:
                return
        entry.needs_reload = True

    async def _sweep(self) -> None:
        self._cursor = self._index.sweep(self._cursor, self._config.sweep_regions)

    def _make_do(self, entry: RegionEntry, point: Point) -> RegionEntry:
        """Use an outdated answer: the store it leads to knows better and will say so.

        What was known but found wrong no longer stands against it. What is still valid does: then the entry is not
        kept, and covers only what lies between its neighbors.
        """
        for old in self._index.obstacles(entry):
            if not old.is_valid():
                self._index.remove(old)
        placed = self._index.put(entry)
        if placed is not None:
            return placed
        neighbors = [known for known in self._index.overlapping(entry.start, entry.end) if known.is_valid()]
        below = [known.end for known in neighbors if point.is_after(known)]
        above = [known.start for known in neighbors if not point.is_after(known)]
        entry.start = below[-1] if below else entry.start
        entry.end = above[0] if above else entry.end
        return entry

    async def _load_pages(self, ranges: list[KeyRange], backoffer: Backoffer) -> None:
        while ranges:
            page, ranges = ranges[:_MAX_RANGES], ranges[_MAX_RANGES:]
            beyond = await self._load_page(page, self._config.scan_page, backoffer)
            ranges = ranges_from(page, beyond) + ranges if beyond else ranges

    async def _load_page(self, ranges: Sequence[KeyRange], limit: int, backoffer: Backoffer) -> bytes:
        """Load up to `limit` Regions and return where the next page begins, empty if there can be none."""
        encoded = [self._codec.encode_region_range(known.start, known.end) for known in ranges]
        scan = functools.partial(
            self._pd.batch_scan_regions, encoded, limit=limit, need_buckets=self._config.need_buckets
        )
        regions = await self._ask(scan, backoffer)
        for region in regions:
            self.insert(region)
        if len(regions) < limit:
            return b""
        keys = self._codec.decode_region_range(regions[-1].start_key, regions[-1].end_key)
        return keys[1] if keys is not None else b""

    async def _ask(self, question: _Question[T], backoffer: Backoffer) -> T:
        while True:
            timeout = backoffer.deadline.check()
            try:
                return await question(timeout=timeout)
            except TikvError as error:
                if not error.retryable:
                    raise
                await backoffer.backoff(PD_RPC, error)

    def _build(self, region: Region) -> RegionEntry | None:
        keys = self._codec.decode_region_range(region.start_key, region.end_key)
        leader = region.leader.id if region.leader is not None else 0
        replicas = [
            (peer, store)
            for peer, store in ((peer, self._stores.entry(peer.store_id)) for peer in region.peers)
            if peer.id not in region.down_peers
            and not store.is_tombstone
            and (not peer.is_witness or peer.id == leader)
        ]
        if keys is None or not replicas:
            return None
        buckets = self._decode(region.buckets) if region.buckets is not None else None
        return RegionEntry(region, keys, replicas, self._expiry(self._now()), self._now, buckets)

    def _decode(self, buckets: Buckets | errorpb.BucketVersionNotMatch) -> Buckets:
        return Buckets(buckets.version, self._codec.decode_bucket_keys(buckets.keys))

    def _lose_patience(self, decision: Decision, entry: RegionEntry, error: errorpb.Error) -> Decision:
        # A store that lags behind catches up within milliseconds; one of a cluster restored from a backup never does.
        if decision.action is not CacheAction.NONE or set_field(error) != "epoch_not_match":
            return decision
        now = self._now()
        if entry.behind_since is None:
            entry.behind_since = now
        if now - entry.behind_since < self._config.epoch_patience:
            return decision
        return attrs.evolve(decision, action=CacheAction.INVALIDATE, next=Next.RELOCATE)

    def _replace(self, error: errorpb.EpochNotMatch, store: StoreEntry) -> bool:
        inserted = False
        for pb in error.current_regions:
            region = Region.from_pb(pb)
            # The error names no leader. The store that answered led the Region before, and so leads its pieces.
            leader = next((peer for peer in region.peers if peer.store_id == store.id), None)
            inserted |= self.insert(attrs.evolve(region, leader=leader)) is not None
        return inserted
