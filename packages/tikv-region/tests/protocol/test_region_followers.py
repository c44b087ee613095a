"""RegionCache against a scripted PD whose followers are asked first, and lag behind."""

from __future__ import annotations

import anyio
import attrs
import pytest
from tikv_pd import Backoffer, PdError, Region, RpcError
from tikv_region import KeyRange, PlainCodec, RegionCache, RegionConfig
from tikv_region.testing import MapSource, RegionMap

FOLLOWER, LEADER = "get_region@follower", "get_region"
GONE = RpcError("pd2", "GetRegion", "UNAVAILABLE", "gone")


@pytest.fixture
def cache(pd: MapSource) -> RegionCache:
    config = RegionConfig(allow_follower=True, scan_page=2)
    return RegionCache(pd, pd.map.codec, config=config, now=anyio.current_time)


def leaderless(regions: list[Region]) -> list[Region]:
    return [attrs.evolve(region, leader=None) for region in regions]


async def test_a_follower_answers_for_the_leader(cache: RegionCache, pd: MapSource, backoffer: Backoffer) -> None:
    assert (await cache.locate(b"h", backoffer)).start == b"g"
    assert (await cache.locate_end(b"g", backoffer)).end == b"g"

    assert pd.calls == [FOLLOWER, FOLLOWER, "get_prev_region@follower"]


async def test_tasks_share_the_answer_of_a_follower(cache: RegionCache, pd: MapSource, backoffer: Backoffer) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(cache.locate, b"h", backoffer)

    assert pd.calls == [FOLLOWER]


@pytest.mark.parametrize("known", ["nothing", "no leader", "something outdated"])
async def test_the_leader_is_asked_at_once_when_a_follower_lags(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer, known: str
) -> None:
    pd.follower_view = {"nothing": [], "no leader": leaderless(pd.regions)}.get(known, pd.regions)
    pd.map.split(b"k")
    if known == "something outdated":
        cache.insert(pd.map.region(b"k"))

    entry = await cache.locate(b"h", backoffer)

    assert (entry.start, entry.end) == (b"g", b"k")
    assert pd.calls == [FOLLOWER, LEADER]
    assert backoffer.attempts == 0


async def test_a_follower_that_fails_costs_no_wait(cache: RegionCache, pd: MapSource, backoffer: Backoffer) -> None:
    pd.failures.append(GONE)

    await cache.locate(b"h", backoffer)

    assert pd.calls == [FOLLOWER, LEADER]
    assert backoffer.attempts == 0


async def test_followers_are_not_asked_again_for_the_same_region(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    pd.failures.extend([GONE, GONE, GONE])

    await cache.locate(b"h", backoffer)

    assert pd.calls == [FOLLOWER, LEADER, LEADER, LEADER]


async def test_what_a_follower_refuses_for_good_is_raised(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    pd.failures.append(PdError("GetRegion", "UNKNOWN", "no"))

    with pytest.raises(PdError):
        await cache.locate(b"h", backoffer)


async def test_pages_come_from_followers(cache: RegionCache, pd: MapSource, backoffer: Backoffer) -> None:
    entries = await cache.locate_range(KeyRange(), backoffer)

    assert [entry.start for entry in entries] == [b"", b"g", b"p"]
    assert pd.calls == ["batch_scan_regions@follower"] * 2


@pytest.mark.parametrize("missing", [0, 1, 2])
async def test_a_page_with_a_gap_is_asked_of_the_leader(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer, missing: int
) -> None:
    pd.follower_view = [region for number, region in enumerate(pd.regions) if number != missing]

    await cache.group_keys([b"a", b"h"] if missing < 2 else [b"h", b"q"], backoffer)

    assert pd.calls == ["batch_scan_regions@follower", "batch_scan_regions"]
    assert backoffer.attempts == 0


async def test_a_page_without_leaders_is_asked_of_the_leader(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    pd.follower_view = leaderless(pd.regions)
    moved = pd.map.move_leader(b"h", 3)

    entries = await cache.locate_ranges([KeyRange(b"h", b"i")], backoffer)

    assert pd.calls == ["batch_scan_regions@follower", "batch_scan_regions"]
    assert entries[0].leader_peer == moved.leader


async def test_a_region_of_an_id_is_asked_of_the_leader(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    await cache.locate_id(pd.regions[1].id, backoffer)

    assert pd.calls == ["get_region_by_id"]


async def test_followers_are_not_asked_where_buckets_are_needed(region_map: RegionMap, backoffer: Backoffer) -> None:
    pd = MapSource(region_map)
    region_map.set_buckets(b"h", [b"i"], 1)
    config = RegionConfig(allow_follower=True, need_buckets=True)
    cache = RegionCache(pd, PlainCodec(), config=config, now=anyio.current_time)

    entry = await cache.locate(b"h", backoffer)

    assert pd.calls == [LEADER]
    assert entry.bucket(b"h") == KeyRange(b"g", b"i")


async def test_followers_are_left_alone_by_default(pd: MapSource, backoffer: Backoffer) -> None:
    cache = RegionCache(pd, PlainCodec(), now=anyio.current_time)

    await cache.locate(b"h", backoffer)
    await cache.locate_range(KeyRange(), backoffer)

    assert pd.calls == [LEADER, "batch_scan_regions"]
