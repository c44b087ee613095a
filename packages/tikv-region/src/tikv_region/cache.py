"""The Regions and stores a client knows, and how it comes to know them.

A lookup that hits does no I/O. One that misses asks PD, and goes on asking, with waits, until it has a Region that
holds the key. PD may lag behind the stores (its members learn of splits from heartbeats), so what it answers is let
in only if nothing newer is known; what stores say of themselves comes in through `on_region_error`.
"""

from __future__ import annotations

import functools
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import attrs
from tikv_pd.backoff import PD_RPC, REGION_MISS, Backoffer
from tikv_pd.errors import PdError, TikvError
from tikv_pd.topology import Region, Store
from tikv_proto import errorpb

from tikv_region._flight import SingleFlight
from tikv_region._index import RegionIndex
from tikv_region.codec import KeyCodec
from tikv_region.config import RegionConfig
from tikv_region.errors import CacheAction, Decision, Next, RegionUnavailable, decide, leader_index, set_field
from tikv_region.ranges import KeyRange
from tikv_region.region import InvalidReason, RegionEntry, StoreEntry


class RegionSource(Protocol):
    """What the cache asks of PD; a `tikv_pd.PdClient` is one. Keys are encoded, timeouts in seconds."""

    async def get_region(self, key: bytes, *, timeout: float) -> Region | None:
        """Return the Region that holds `key`, None if PD knows none."""
        ...

    async def get_prev_region(self, key: bytes, *, timeout: float) -> Region | None:
        """Return the Region before the one that holds `key`."""
        ...

    async def scan_regions(self, start: bytes, end: bytes, *, limit: int, timeout: float) -> list[Region]:
        """Return the Regions that overlap a range, ascending, at most `limit`."""
        ...

    async def get_store(self, store_id: int, *, timeout: float) -> Store | None:
        """Return a store, None if it was removed or never existed."""
        ...


class RegionCache:
    """Finds the Region of a key, and learns from what goes wrong.

    For one event loop; nothing here is thread-safe, and nothing between two awaits can be interrupted.

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
        self._stores: dict[int, StoreEntry] = {}
        self._region_flights: SingleFlight[_Answer] = SingleFlight()
        self._store_flights: SingleFlight[TikvError | None] = SingleFlight()

    def __len__(self) -> int:
        """Count the Regions known, valid or not."""
        return len(self._entries)

    def find(self, key: bytes) -> RegionEntry | None:
        """Return the valid Region that holds `key`, None when none is known. No I/O; use prolongs its life."""
        index = bisect_right(self._starts, key) - 1
        if index < 0:
            return None
        entry = self._entries[index]
        if entry.end and key >= entry.end:
            return None
        return entry if self._use(entry) else None

    async def locate(self, key: bytes, backoffer: Backoffer) -> RegionEntry:
        """Return the Region that holds `key`, from PD if need be.

        Raises:
            DeadlineExceeded: no Region was found in time; `__cause__` says why.
            BackoffExceeded: the budget of waiting is used up; `__cause__` says why.
            CodecError: PD's Regions are not encoded as the codec expects.

        Cancellation: safe; tasks that wait for the same answer of PD ask on their own.
        """
        entry = self.find(key)
        return entry if entry is not None else await self._load(_Point(key), backoffer)

    async def locate_end(self, key: bytes, backoffer: Backoffer) -> RegionEntry:
        """Return the Region that holds the keys just below `key`: start < key <= end. Empty means the last Region.

        Raises and cancellation: as `locate`.
        """
        point = _Point(key, is_end=True)
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
                await self._load_page(at, key_range.end, self._config.scan_page, backoffer)
                entry = await self.locate(at, backoffer)
            if found and entry.start < at:
                # A merge came in between: what was found before it is part of this one.
                found, at = [], key_range.start
                continue
            found.append(entry)
            at = entry.end
            if not at or (key_range.end and at >= key_range.end):
                break
        return found

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
                await self._load_page(ascending[at], ascending[-1] + b"\0", limit, backoffer)
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
            _update_store(self._store(store.id), store)
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
            store: The store that answered; by default that of the leader. Many requests in flight to a Region meet the
                same error: only those answered by the store that is still taken for the leader's move it on.

        Raises:
            CodecError: the Regions in the error are not encoded as the codec expects.
        """
        store = store if store is not None else entry.leader_store
        decision = decide(error, entry, store.id)
        match decision.action:
            case CacheAction.NONE:
                pass
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
                    # All lie outside the keyspace, so PD must be asked, and PD may not know yet either.
                    return Decision(CacheAction.INVALIDATE, REGION_MISS, Next.RELOCATE)
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
        """Return the address of a store, from PD when it is not known or may be outdated.

        Returns:
            `host:port`; empty when the store has left the cluster. All Regions led from it are stale then: locate the
            keys again.

        Raises:
            DeadlineExceeded: PD did not answer in time. While an earlier address is known, that is returned instead.
            BackoffExceeded: the budget of waiting is used up.

        Cancellation: safe.
        """
        while not store.is_tombstone and (store.needs_check or not store.address):
            ask = functools.partial(self._ask_store, store, backoffer)
            failure = await self._store_flights.ask(store.id, backoffer.deadline, ask)
            if failure is None:
                continue
            if store.address:
                # PD being down must not stop what still works; the next failure to send asks again.
                store.needs_check = False
            else:
                await backoffer.backoff(PD_RPC, failure)
        return store.address

    def clear(self) -> None:
        """Forget all Regions. Stores are kept: requests under way hold on to them."""
        self._index.clear()

    def _use(self, entry: RegionEntry) -> bool:
        now = self._now()
        if entry.expires_at <= now or entry.leader_store.epoch != entry.leader_store_epoch:
            return False
        if entry.expires_at - now <= self._ttl and entry.is_renewable:
            entry.expires_at = self._expiry(now)
        return True

    def _expiry(self, now: float) -> float:
        return now + self._ttl + self._rng.random() * self._config.ttl_jitter

    def _known(self, point: _Point) -> RegionEntry | None:
        return self._index.at_end(point.key) if point.is_end else self._index.at(point.key)

    def _look(self, point: _Point) -> RegionEntry | None:
        entry = self._known(point)
        return entry if entry is not None and self._use(entry) else None

    async def _load(self, point: _Point, backoffer: Backoffer) -> RegionEntry:
        known = self._known(point)
        # When a Region goes stale, requests for many of its keys miss at once; one of them asks for all.
        question = point if known is None else known
        ask = functools.partial(self._ask_region, point, backoffer)
        stale_answers = 0
        while True:
            answer = await self._region_flights.ask(question, backoffer.deadline, ask)
            question = point
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

    def _make_do(self, entry: RegionEntry, point: _Point) -> RegionEntry:
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
        for neighbor in self._index.overlapping(entry.start, entry.end):
            if not neighbor.is_valid():
                continue
            if point.is_after(neighbor):
                entry.start = neighbor.end
            else:
                entry.end = neighbor.start
                break
        return entry

    async def _ask_region(self, point: _Point, backoffer: Backoffer) -> _Answer:
        try:
            return _Answer(point, await self._fetch(point, backoffer))
        except TikvError as error:
            return _Answer(point, None, _passing(error))

    async def _fetch(self, point: _Point, backoffer: Backoffer) -> Region | None:
        check = backoffer.deadline.check
        if not point.is_end:
            return await self._pd.get_region(self._codec.encode_region_key(point.key), timeout=check())
        _, end = self._codec.encode_region_range(b"", point.key)
        if not end:
            # PD has no question for its last Region; hardly any begins above this key, and those follow one another.
            region = await self._pd.get_region(_HIGH_KEY, timeout=check())
            while region is not None and region.end_key:
                region = await self._pd.get_region(region.end_key, timeout=check())
            return region
        region = await self._pd.get_region(end, timeout=check())
        if region is not None and region.start_key == end:
            return await self._pd.get_prev_region(end, timeout=check())
        return region

    async def _load_page(self, start: bytes, end: bytes, limit: int, backoffer: Backoffer) -> None:
        first, last = self._codec.encode_region_range(start, end)
        while True:
            try:
                regions = await self._pd.scan_regions(first, last, limit=limit, timeout=backoffer.deadline.check())
            except TikvError as error:
                await backoffer.backoff(PD_RPC, _passing(error))
            else:
                break
        for region in regions:
            self.insert(region)

    def _build(self, region: Region) -> RegionEntry | None:
        keys = self._codec.decode_region_range(region.start_key, region.end_key)
        leader = region.leader.id if region.leader is not None else 0
        replicas = [
            (peer, store)
            for peer, store in ((peer, self._store(peer.store_id)) for peer in region.peers)
            if peer.id not in region.down_peers
            and not store.is_tombstone
            and (not peer.is_witness or peer.id == leader)
        ]
        if keys is None or not replicas:
            return None
        return RegionEntry(region, keys, replicas, self._expiry(self._now()), self._now)

    def _replace(self, error: errorpb.EpochNotMatch, store: StoreEntry) -> bool:
        inserted = False
        for pb in error.current_regions:
            region = Region.from_pb(pb)
            # The error names no leader. The store that answered led the Region before, and so leads its pieces.
            leader = next((peer for peer in region.peers if peer.store_id == store.id), None)
            inserted |= self.insert(attrs.evolve(region, leader=leader)) is not None
        return inserted

    def _store(self, store_id: int) -> StoreEntry:
        store = self._stores.get(store_id)
        if store is None:
            store = self._stores[store_id] = StoreEntry(store_id)
        return store

    async def _ask_store(self, store: StoreEntry, backoffer: Backoffer) -> TikvError | None:
        try:
            found = await self._pd.get_store(store.id, timeout=backoffer.deadline.check())
        except TikvError as error:
            return _passing(error)
        _update_store(store, found)
        return (
            None if store.address or store.is_tombstone else RegionUnavailable(b"", f"store {store.id} has no address")
        )


@attrs.frozen
class _Point:
    """A place in the key space: a key, or the keys just below it."""

    key: bytes
    is_end: bool = False

    def is_in(self, entry: RegionEntry) -> bool:
        if not self.is_end:
            return entry.contains(self.key)
        return (not self.key or entry.start < self.key) and (not entry.end or b"" < self.key <= entry.end)

    def is_after(self, entry: RegionEntry) -> bool:
        """Tell on which side it lies of an entry it is not in."""
        return entry.start < self.key or (not self.is_end and entry.start == self.key) or (self.is_end and not self.key)


@attrs.frozen
class _Answer:
    """What PD said, and to which question."""

    point: _Point
    region: Region | None
    failure: TikvError | None = None


_HIGH_KEY = b"\xff" * 64
_REASONS = {
    "not_leader": InvalidReason.STORE_NOT_FOUND,
    "region_not_found": InvalidReason.REGION_NOT_FOUND,
    "epoch_not_match": InvalidReason.EPOCH_NOT_MATCH,
}


def _passing(error: TikvError) -> TikvError:
    """Return a failure that another attempt may not meet; raise any other."""
    if error.retryable or isinstance(error, PdError):
        return error
    raise error


def _update_store(entry: StoreEntry, store: Store | None) -> None:
    if entry.is_tombstone:
        return
    entry.needs_check = False
    if store is None or store.is_tombstone:
        entry.is_tombstone = True
        entry.address = ""
        entry.epoch += 1
    else:
        entry.address = store.address
        entry.labels = store.labels
