"""RegionCache against a scripted PD: what errors and failures teach it."""

from __future__ import annotations

import anyio
import pytest
from tikv_pd import Backoffer, Region
from tikv_pd.backoff import REGION_MISS
from tikv_proto import errorpb
from tikv_region import (
    CacheAction,
    InvalidReason,
    KeyspaceCodec,
    Next,
    PlainCodec,
    RegionCache,
    RegionEntry,
    TxnV1Codec,
)
from tikv_region.testing import MapSource, RegionMap


@pytest.fixture
async def entry(cache: RegionCache, backoffer: Backoffer) -> RegionEntry:
    """The Region that holds b"h"."""
    return await cache.locate(b"h", backoffer)


def not_leader(region: Region | None = None) -> errorpb.Error:
    leader = region.leader if region is not None else None
    return errorpb.Error(not_leader=errorpb.NotLeader(region_id=1, leader=leader.to_pb() if leader else None))


async def test_a_hint_switches_the_leader_without_pd(cache: RegionCache, pd: MapSource, entry: RegionEntry) -> None:
    entry.attachment = "for store 1"

    decision = cache.on_region_error(entry, not_leader(pd.map.move_leader(b"h", 3)))

    assert decision.next is Next.RESEND
    assert entry.leader_store.id == 3
    assert not entry.attachment
    assert cache.find(b"h") is entry
    assert pd.calls == ["get_region"]


async def test_a_hint_at_an_unknown_peer_has_the_region_loaded_again(
    cache: RegionCache, pd: MapSource, entry: RegionEntry
) -> None:
    decision = cache.on_region_error(entry, not_leader(pd.map.move_peer(b"h", 1, 9)))

    assert decision.next is Next.RELOCATE
    assert entry.invalid_reason is InvalidReason.STORE_NOT_FOUND
    assert cache.find(b"h") is None


async def test_without_a_hint_the_leader_stays_and_whoever_asks_chooses(cache: RegionCache, entry: RegionEntry) -> None:
    decision = cache.on_region_error(entry, not_leader(), entry.leader_store)

    assert (decision.action, decision.next) == (CacheAction.NEXT_PEER, Next.RESEND)
    assert entry.leader == 0
    assert cache.find(b"h") is entry


async def test_a_split_told_by_the_store_needs_no_pd(cache: RegionCache, pd: MapSource, entry: RegionEntry) -> None:
    pd.map.split(b"k")
    pd.calls.clear()

    decision = cache.on_region_error(entry, pd.map.epoch_not_match(pd.map.region(b"k")))

    assert (decision.action, decision.next, decision.backoff) == (CacheAction.REPLACE, Next.RELOCATE, None)
    left, right = cache.find(b"h"), cache.find(b"k")
    assert left is not None
    assert right is not None
    assert (left.start, left.end, right.start, right.end) == (b"g", b"k", b"k", b"p")
    assert left.leader_store.id == right.leader_store.id == 1
    assert entry.invalid_reason is InvalidReason.EPOCH_NOT_MATCH
    assert pd.calls == []


async def test_pieces_are_led_from_the_store_that_told_of_them(
    cache: RegionCache, pd: MapSource, entry: RegionEntry
) -> None:
    pd.map.split(b"k")

    cache.on_region_error(entry, pd.map.epoch_not_match(pd.map.region(b"k")), entry.stores[2])

    left = cache.find(b"h")
    assert left is not None
    assert left.leader_store.id == 3


async def test_a_merge_told_by_the_store_needs_no_pd(cache: RegionCache, pd: MapSource, entry: RegionEntry) -> None:
    pd.map.merge(b"a")

    cache.on_region_error(entry, pd.map.epoch_not_match(pd.map.region(b"h")))

    merged = cache.find(b"a")
    assert merged is not None
    assert merged is cache.find(b"h")


async def test_a_store_that_lags_behind_changes_nothing(cache: RegionCache, pd: MapSource, entry: RegionEntry) -> None:
    behind = pd.map.epoch_not_match(pd.map.region(b"h"))
    pd.map.split(b"k")
    ahead = cache.insert(pd.map.region(b"k"))
    assert ahead is not None

    decision = cache.on_region_error(ahead, behind)

    assert (decision.next, decision.backoff) == (Next.RESEND, REGION_MISS)
    assert cache.find(b"k") is ahead
    assert not entry.is_valid()


async def test_regions_of_another_keyspace_in_an_error_are_dropped(backoffer: Backoffer) -> None:
    codec = KeyspaceCodec(b"r", 5, "shop")
    pd = MapSource(RegionMap([b"g"], codec=codec))
    cache = RegionCache(pd, codec, now=anyio.current_time)
    entry = await cache.locate(b"h", backoffer)

    outside = cache.on_region_error(entry, pd.map.epoch_not_match(pd.map.regions[0]))

    assert (outside.next, outside.backoff) == (Next.RELOCATE, REGION_MISS)
    assert entry.invalid_reason is InvalidReason.EPOCH_NOT_MATCH
    assert len(cache) == 1
    again = await cache.locate(b"h", backoffer)
    pd.map.split(b"k")
    inside = cache.on_region_error(again, pd.map.epoch_not_match(pd.map.region(b"h")))
    assert inside.backoff is None
    left = cache.find(b"h")
    assert left is not None
    assert (left.start, left.end) == (b"g", b"k")


async def test_a_wrong_store_is_checked_and_its_region_loaded_again(cache: RegionCache, entry: RegionEntry) -> None:
    error = errorpb.Error(store_not_match=errorpb.StoreNotMatch(request_store_id=1, actual_store_id=2))

    decision = cache.on_region_error(entry, error)

    assert decision.next is Next.RELOCATE
    assert entry.leader_store.needs_check
    assert cache.find(b"h") is None


async def test_a_busy_store_changes_nothing(cache: RegionCache, entry: RegionEntry) -> None:
    decision = cache.on_region_error(entry, errorpb.Error(server_is_busy=errorpb.ServerIsBusy(reason="load")))

    assert decision.next is Next.RESEND
    assert cache.find(b"h") is entry


async def test_a_failure_to_send_makes_all_regions_led_from_the_store_stale(
    cache: RegionCache, pd: MapSource, entry: RegionEntry
) -> None:
    other = cache.insert(pd.map.region(b"q"))
    assert other is not None
    failed = entry.leader_store

    cache.on_send_failure(entry, failed)

    assert cache.find(b"h") is cache.find(b"q") is None
    assert failed.needs_check


async def test_one_failure_of_a_store_counts_once_however_many_requests_meet_it(
    cache: RegionCache, pd: MapSource, entry: RegionEntry
) -> None:
    other = cache.insert(pd.map.region(b"q"))
    assert other is not None
    failed = entry.leader_store

    for _ in range(5):
        cache.on_send_failure(entry, failed)
        cache.on_send_failure(other, failed)

    assert failed.epoch == 1


async def test_a_failure_of_a_followers_store_leaves_the_leader_alone(cache: RegionCache, entry: RegionEntry) -> None:
    cache.on_send_failure(entry, entry.stores[2])

    assert entry.leader == 0
    assert entry.stores[2].epoch == 1
    assert not entry.is_fresh(2)
    assert cache.find(b"h") is entry


async def test_a_region_loaded_after_a_failure_is_valid_again(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    other = cache.insert(pd.map.region(b"q"))
    assert other is not None
    cache.on_send_failure(entry, entry.leader_store)
    pd.calls.clear()

    again = await cache.locate(b"q", backoffer)

    assert again is not other
    assert again.leader_store.id == 1
    assert cache.find(b"q") is again
    assert pd.calls == ["get_region"]


async def test_a_region_with_one_replica_is_loaded_again_when_its_store_fails(backoffer: Backoffer) -> None:
    pd = MapSource(RegionMap(stores=1))
    cache = RegionCache(pd, PlainCodec(), now=anyio.current_time)
    entry = await cache.locate(b"h", backoffer)

    cache.on_send_failure(entry, entry.leader_store)

    assert not entry.is_valid()
    assert (await cache.locate(b"h", backoffer)).is_valid()


async def test_a_leader_named_again_after_its_store_failed_is_trusted(
    cache: RegionCache, pd: MapSource, entry: RegionEntry
) -> None:
    cache.on_send_failure(entry, entry.leader_store)

    cache.on_region_error(entry, not_leader(pd.map.region(b"h")))

    assert entry.leader_store.id == 1
    assert cache.find(b"h") is entry


async def test_stores_that_come_with_a_region_need_not_be_asked_for(cache: RegionCache, pd: MapSource) -> None:
    entry = cache.insert(pd.map.region(b"h"), pd.map.stores.values())

    assert entry is not None
    assert [store.address for store in entry.stores] == ["tikv1:20160", "tikv2:20160", "tikv3:20160"]


async def test_bounds_in_an_error_are_decoded(backoffer: Backoffer) -> None:
    pd = MapSource(RegionMap([b"g"], codec=TxnV1Codec()))
    cache = RegionCache(pd, TxnV1Codec(), now=anyio.current_time)
    entry = await cache.locate(b"h", backoffer)
    pd.map.split(b"k")

    cache.on_region_error(entry, pd.map.epoch_not_match(pd.map.region(b"k")))

    assert [known.start for known in map(cache.find, (b"h", b"k")) if known is not None] == [b"g", b"k"]
