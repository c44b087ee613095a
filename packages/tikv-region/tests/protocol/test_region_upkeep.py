"""RegionCache.run against a scripted PD: what happens while nobody asks."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import anyio
import attrs
import pytest
from tikv_pd import Backoffer, Deadline, PdUnavailable, Store
from tikv_region import InvalidReason, KeyRange, Liveness, RegionCache, RegionConfig, RegionEntry
from tikv_region.testing import MapSource, RegionMap

AWAY = PdUnavailable((("pd1:2379", "refused"),))


@pytest.fixture
async def cache(pd: MapSource) -> AsyncIterator[RegionCache]:
    """A cache that is kept tidy: one Region a second, expiring after 100 s without use."""
    config = RegionConfig(ttl=100, ttl_jitter=0, sweep_regions=1)
    cache = RegionCache(pd, pd.map.codec, config=config, now=anyio.current_time, rng=random.Random(1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cache.run)
        yield cache
        tasks.cancel_scope.cancel()


@pytest.fixture
async def entry(cache: RegionCache, pd: MapSource, backoffer: Backoffer) -> RegionEntry:
    """The Region that holds b"h"."""
    located = await cache.locate(b"h", backoffer)
    await cache.resolve(located.leader_store, backoffer)
    pd.calls.clear()
    return located


def region_calls(pd: MapSource) -> int:
    return pd.calls.count("get_region")


async def test_regions_that_nobody_uses_are_forgotten_one_at_a_time(
    cache: RegionCache, entry: RegionEntry, backoffer: Backoffer
) -> None:
    await cache.locate_range(KeyRange(), backoffer)
    assert len(cache) == 3

    await anyio.sleep(99)
    assert cache.find(b"h") is entry
    await anyio.sleep(2.5)
    assert 0 < len(cache) < 3
    await anyio.sleep(3)

    assert len(cache) == 1
    assert cache.find(b"h") is entry


async def test_an_invalid_region_is_forgotten(cache: RegionCache, entry: RegionEntry) -> None:
    cache.invalidate(entry, InvalidReason.REGION_NOT_FOUND)

    await anyio.sleep(2)

    assert len(cache) == 0


async def test_a_region_due_for_a_reload_is_loaded_when_next_located(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    entry.needs_reload = True
    assert cache.find(b"h") is entry

    await anyio.sleep(2)
    assert region_calls(pd) == 0
    assert cache.find(b"h") is None
    loaded = await cache.locate(b"h", backoffer)

    assert loaded is not entry
    assert loaded.epoch == entry.epoch
    assert cache.find(b"h") is loaded
    assert region_calls(pd) == 1


async def test_a_region_is_used_while_another_task_loads_it_again(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    entry.needs_reload = True
    await anyio.sleep(2)
    pd.delay = 0.5

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cache.locate, b"h", backoffer)
        await anyio.sleep(0.1)
        assert cache.find(b"i") is entry

    assert cache.find(b"i") is not entry


@pytest.mark.parametrize("failure", ["hangs", "fails", "knows no Region"])
async def test_a_region_is_used_as_it_is_while_pd_cannot_load_it(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer, failure: str
) -> None:
    entry.needs_reload = True
    await anyio.sleep(2)
    match failure:
        case "hangs":
            pd.delay = 50.0
        case "fails":
            pd.failures.append(AWAY)
        case _:
            pd.view = []
    started = anyio.current_time()

    assert await cache.locate(b"h", backoffer) is entry

    assert anyio.current_time() - started <= 1
    assert cache.find(b"h") is entry
    pd.delay, pd.view = 0.0, None
    await anyio.sleep(2.5)
    assert await cache.locate(b"h", backoffer) is not entry


async def test_a_reload_keeps_the_leader_that_requests_learned_of(
    cache: RegionCache, entry: RegionEntry, backoffer: Backoffer
) -> None:
    entry.switch_leader(2)
    entry.needs_reload = True
    await anyio.sleep(2)

    loaded = await cache.locate(b"h", backoffer)

    assert loaded is not entry
    assert loaded.leader_store.id == 3


async def test_a_reload_finds_that_the_region_split(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    pd.map.split(b"k")
    entry.needs_reload = True
    await anyio.sleep(2)

    left = await cache.locate(b"h", backoffer)

    assert left.range == KeyRange(b"g", b"k")


async def test_a_region_with_a_replica_that_failed_is_loaded_again_after_its_time_though_in_use(
    cache: RegionCache, pd: MapSource, entry: RegionEntry
) -> None:
    backoffer = Backoffer(Deadline("test", 200, anyio.current_time))
    cache.on_send_failure(entry, entry.stores[2])
    assert entry.is_valid()

    for _ in range(150):
        await anyio.sleep(1)
        assert (await cache.locate(b"h", backoffer)).id == entry.id

    assert region_calls(pd) == 1


async def test_a_healthy_region_in_use_is_never_loaded_again(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    for _ in range(500):
        await anyio.sleep(1)
        assert await cache.locate(b"h", backoffer) is entry

    assert region_calls(pd) == 0


async def test_a_store_that_moved_makes_what_it_leads_stale(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    pd.map.stores[1] = Store(1, "moved:20160", (("zone", "b"),))

    await anyio.sleep(11)

    store = entry.leader_store
    assert (store.address, store.labels) == ("moved:20160", (("zone", "b"),))
    assert not entry.is_valid()
    assert await cache.resolve((await cache.locate(b"h", backoffer)).leader_store, backoffer) == "moved:20160"


async def test_new_labels_of_a_store_leave_its_regions_valid(pd: MapSource, entry: RegionEntry) -> None:
    pd.map.stores[1] = attrs.evolve(pd.map.stores[1], labels=(("zone", "c"),))

    await anyio.sleep(11)

    assert entry.leader_store.labels == (("zone", "c"),)
    assert entry.is_valid()


@pytest.mark.parametrize("listed", [True, False])
async def test_a_store_that_left_is_noticed(pd: MapSource, entry: RegionEntry, listed: bool) -> None:
    if listed:
        pd.map.stores[1] = attrs.evolve(pd.map.stores[1], is_tombstone=True)
    else:
        del pd.map.stores[1]

    await anyio.sleep(11)

    assert entry.leader_store.is_tombstone
    assert not entry.is_valid()


async def test_pd_being_away_stops_nothing(pd: MapSource, entry: RegionEntry) -> None:
    pd.map.stores[1] = Store(1, "moved:20160")
    pd.failures.append(AWAY)

    await anyio.sleep(11)
    assert entry.leader_store.address == "tikv1:20160"
    await anyio.sleep(10)

    assert entry.leader_store.address == "moved:20160"


async def test_upkeep_that_is_turned_off_ends_at_once(region_map: RegionMap) -> None:
    config = RegionConfig(sweep_interval=None, stores_interval=None)
    cache = RegionCache(MapSource(region_map), region_map.codec, config=config, now=anyio.current_time)

    await cache.run()


async def test_a_region_with_a_replica_out_of_reach_is_not_renewed(entry: RegionEntry) -> None:
    entry.stores[1].health.liveness = Liveness.UNREACHABLE

    await anyio.sleep(2)

    assert not entry.is_renewable
    assert entry.is_valid()


async def test_regions_are_loaded_again_a_page_at_a_time_before_requests_meet_a_split(backoffer: Backoffer) -> None:
    pd = MapSource(RegionMap([b"b", b"c", b"d"]))
    config = RegionConfig(scan_page=2, refresh_interval=10, sweep_interval=None, stores_interval=None)
    cache = RegionCache(pd, pd.map.codec, config=config, now=anyio.current_time)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cache.run)
        entry = await cache.locate(b"d", backoffer)
        pd.map.split(b"e")
        pd.calls.clear()

        await anyio.sleep(11)
        assert [known.start for known in map(cache.find, (b"a", b"b")) if known is not None] == [b"", b"b"]
        pd.failures.append(AWAY)
        await anyio.sleep(20)
        assert not entry.is_valid()
        await anyio.sleep(20)
        tasks.cancel_scope.cancel()

    # Three pages of five Regions, one of them asked for twice, and the first two again.
    assert pd.calls == ["batch_scan_regions"] * 6
    assert len(cache) == 5
