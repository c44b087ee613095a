"""RegionCache against the Regions themselves, while they split, merge and move and PD lags behind them."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import TypeVar

import anyio
import attrs
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tikv_pd import Backoffer, Deadline, RegionEpoch, RpcError
from tikv_pd.backoff import TIKV_RPC
from tikv_pd.testing import virtual_time
from tikv_region import (
    KeyCodec,
    KeyRange,
    KeyspaceCodec,
    Next,
    PlainCodec,
    RegionCache,
    RegionConfig,
    RegionEntry,
    RegionError,
    TxnV1Codec,
)
from tikv_region.testing import MapSource, RegionMap

T = TypeVar("T")

keys = st.binary(min_size=0, max_size=2) | st.sampled_from([bytes([letter]) for letter in range(97, 123)])
stores = st.integers(1, 4)
CATCH_UP = 5.0


class RegionCacheModel(RuleBasedStateMachine):
    """The truth is a RegionMap. A read must always end at the Region that holds the key now."""

    @initialize(
        codec=st.sampled_from([PlainCodec(), TxnV1Codec(), KeyspaceCodec(b"x", 9, "shop")]),
        allow_follower=st.booleans(),
        need_buckets=st.booleans(),
    )
    def start(self, codec: KeyCodec, allow_follower: bool, need_buckets: bool) -> None:
        self.time = 0.0
        self.elapsed: Callable[[], float] = float
        self.map = RegionMap([b"d", b"h", b"p", b"t"], codec=codec)
        self.pd = MapSource(self.map)
        config = RegionConfig(
            ttl=100,
            ttl_jitter=10,
            scan_page=3,
            sweep_regions=2,
            allow_follower=allow_follower,
            need_buckets=need_buckets,
        )
        self.cache = RegionCache(self.pd, codec, config=config, now=self.now, rng=random.Random(0))
        self.unreachable: dict[int, int] = {}
        self.bucket_version = 0

    @rule(key=keys)
    def split(self, key: bytes) -> None:
        if self.map.region(key).start_key != self.map.codec.encode_region_key(key):
            self.map.split(key)

    @rule(key=keys, into_left=st.booleans())
    def merge(self, key: bytes, into_left: bool) -> None:
        region = self.map.region(key)
        held = self.map.codec.decode_region_range(region.start_key, region.end_key)
        assert held is not None
        if held[0] if into_left else held[1]:
            self.map.merge(key, into_left=into_left)

    @rule()
    def the_cluster_is_set_back(self) -> None:
        # PD is restored from the same backup.
        self.map.regions = [attrs.evolve(region, epoch=RegionEpoch(1, 1)) for region in self.map.regions]
        self.pd.view = self.pd.follower_view = None

    @rule(key=keys, peer=st.integers(0, 2))
    def move_leader(self, key: bytes, peer: int) -> None:
        self.map.move_leader(key, self.map.region(key).peers[peer].store_id)

    @rule(key=keys, peer=st.integers(0, 2), to=stores)
    def move_peer(self, key: bytes, peer: int, to: int) -> None:
        on = [known.store_id for known in self.map.region(key).peers]
        if to not in on:
            self.map.move_peer(key, on[peer], to)

    @rule()
    def pd_stops_listening(self) -> None:
        self.pd.view = self.map.regions

    @rule()
    def the_followers_of_pd_stop_listening(self) -> None:
        self.pd.follower_view = self.pd.regions

    @rule()
    def the_followers_of_pd_know_no_leaders(self) -> None:
        self.pd.follower_view = [attrs.evolve(region, leader=None) for region in self.pd.follower_regions]

    @rule(key=keys, bounds=st.lists(keys, max_size=4, unique=True).map(sorted))
    def divide(self, key: bytes, bounds: list[bytes]) -> None:
        region = self.map.region(key)
        held = self.map.codec.decode_region_range(region.start_key, region.end_key)
        assert held is not None
        self.bucket_version += 1
        inner = [bound for bound in bounds if held[0] < bound and (not held[1] or bound < held[1])]
        self.map.set_buckets(key, inner, self.bucket_version)

    @precondition(lambda self: self.pd.view is None)
    @rule(key=keys)
    def pd_loses_a_region(self, key: bytes) -> None:
        lost = self.map.region(key)
        self.pd.view = [region for region in self.map.regions if region is not lost]

    @rule()
    def pd_catches_up(self) -> None:
        self.pd.view = self.pd.follower_view = None

    @rule(store=stores, times=st.integers(1, 4))
    def store_becomes_unreachable(self, store: int, times: int) -> None:
        self.unreachable[store] = times

    @rule(seconds=st.floats(1, 200))
    def time_passes(self, seconds: float) -> None:
        self.time += seconds

    @rule()
    def sweep(self) -> None:
        anyio.run(self.cache._sweep)

    @rule(key=keys)
    def a_region_needs_to_be_loaded_again(self, key: bytes) -> None:
        entry = self.cache.find(key)
        if entry is not None:
            entry.needs_reload = True

    @rule()
    def refresh(self) -> None:
        self.run(lambda _: self.cache._loader.refresh(1.0))

    @rule(key=keys)
    def a_store_tells_of_newer_buckets(self, key: bytes) -> None:
        before = self.cache.find(key)
        if before is None:
            return

        self.run(lambda backoffer: self.cache.update_buckets(before, self.bucket_version, backoffer))

        entry, truth = self.cache.find(key), self.map.region(key)
        if entry is None:
            return
        part = entry.bucket(key)
        assert part is not None
        assert part.contains(key)
        assert part.intersect(entry.range) == part
        if (entry.id, entry.epoch) == (truth.id, truth.epoch) and self.pd.view is None and truth.buckets is not None:
            assert entry.buckets is not None
            assert entry.buckets.version >= truth.buckets.version

    @rule(key=keys)
    def read(self, key: bytes) -> None:
        entry = self.run(lambda backoffer: self.send(key, backoffer))

        truth = self.map.region(key)
        assert (entry.id, entry.epoch) == (truth.id, truth.epoch)
        assert entry.leader_peer == truth.leader

    @rule(key=keys)
    def locate_end(self, key: bytes) -> None:
        entry = self.run(lambda backoffer: self.cache.locate_end(key, backoffer)) if key else None

        assert entry is None or (entry.start < key and (not entry.end or key <= entry.end))

    @rule()
    def locate_the_last_region(self) -> None:
        entry = self.run(lambda backoffer: self.cache.locate_end(b"", backoffer))

        assert entry.end == b""

    @rule(start=keys, end=keys)
    def locate_range(self, start: bytes, end: bytes) -> None:
        wanted = KeyRange(start, end)

        entries = self.run(lambda backoffer: self.cache.locate_range(wanted, backoffer))

        assert bool(entries) != wanted.is_empty
        for left, right in pairwise(entries):
            assert left.end == right.start
        if entries:
            assert entries[0].contains(start)
            assert entries[-1].range.intersect(wanted).end == end
            assert entries[-1].range.overlaps(wanted)

    @rule(bounds=st.lists(keys, max_size=8, unique=True).map(sorted))
    def locate_ranges(self, bounds: list[bytes]) -> None:
        ranges = [KeyRange(start, end) for start, end in pairwise(bounds)][::2]

        entries = self.run(lambda backoffer: self.cache.locate_ranges(ranges, backoffer))

        assert all(left.end and left.end <= right.start for left, right in pairwise(entries))
        assert all(any(entry.range.overlaps(wanted) for wanted in ranges) for entry in entries)
        assert all(any(entry.contains(wanted.start) for entry in entries) for wanted in ranges)

    @rule(key=keys)
    def locate_by_id(self, key: bytes) -> None:
        wanted = self.map.region(key).id

        entry = self.run(lambda backoffer: self.cache.locate_id(wanted, backoffer))

        assert entry is None or entry.id == wanted

    @rule(many=st.lists(keys, max_size=30))
    def group_keys(self, many: list[bytes]) -> None:
        groups = self.run(lambda backoffer: self.cache.group_keys(many, backoffer))

        assert sorted(index for _, indices in groups for index in indices) == list(range(len(many)))
        assert all(entry.contains(many[index]) for entry, indices in groups for index in indices)
        assert all(list(indices) == sorted(indices) for _, indices in groups)

    @invariant()
    def regions_known_never_overlap(self) -> None:
        index = self.cache._index
        assert [entry.start for entry in index.entries] == index.starts == sorted(set(index.starts))
        assert all(left.end and left.end <= right.start for left, right in pairwise(index.entries))
        assert {entry.id: entry for entry in index.entries} == index._by_id
        assert len(index.entries) == len(index._by_id)

    @invariant()
    def a_lookup_finds_what_a_search_through_all_finds(self) -> None:
        for letter in range(96, 124):
            key = bytes([letter])
            held = [entry for entry in self.cache._entries if entry.contains(key) and entry.is_valid()]
            assert len(held) <= 1
            assert self.cache.find(key) is (held[0] if held else None)

    def now(self) -> float:
        """The cache's clock, which goes on while an operation waits."""
        return self.time + self.elapsed()

    def run(self, operation: Callable[[Backoffer], Awaitable[T]]) -> T:
        """Run an operation on virtual time; PD catches up meanwhile, should the operation take long."""

        async def main() -> T:
            calls = len(self.pd.calls)
            self.elapsed = anyio.current_time
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.catch_up)
                backoffer = Backoffer(Deadline("model", 60, anyio.current_time), rng=random.Random(0))
                result = await operation(backoffer)
                tasks.cancel_scope.cancel()
            self.time, self.elapsed = self.now(), float
            assert anyio.current_time() < 4 * CATCH_UP
            assert len(self.pd.calls) - calls < 200
            return result

        backend, options = virtual_time()
        return anyio.run(main, backend=backend, backend_options=options)

    async def catch_up(self) -> None:
        await anyio.sleep(CATCH_UP)
        self.pd.view = self.pd.follower_view = None

    async def send(self, key: bytes, backoffer: Backoffer) -> RegionEntry:
        """Send a request as a client does: until the store that leads the Region accepts it."""
        while True:
            entry = await self.cache.locate(key, backoffer)
            assert entry.contains(key)
            store = entry.leader_store
            if self.unreachable.get(store.id, 0) > 0:
                self.unreachable[store.id] -= 1
                self.cache.on_send_failure(entry, store)
                failure = RpcError(f"store {store.id}", "RawGet", "UNAVAILABLE", "refused")
                await backoffer.backoff(TIKV_RPC, failure)
                continue
            refusal = self.map.refusal(entry.id, entry.epoch, entry.leader_peer, key)
            if refusal is None:
                return entry
            decision = self.cache.on_region_error(entry, refusal, store)
            assert decision.next is not Next.FAIL
            if decision.backoff is not None:
                await backoffer.backoff(decision.backoff, RegionError.from_pb(refusal, entry.id, store.id))


TestRegionCacheModel = pytest.mark.timeout(120)(RegionCacheModel.TestCase)
TestRegionCacheModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
