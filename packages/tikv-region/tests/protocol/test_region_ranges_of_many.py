"""RegionCache against a scripted PD: many ranges at once, Regions by id, preloading, and clusters set back in time."""

from __future__ import annotations

import anyio
import attrs
import pytest
from tikv_pd import Backoffer, PdUnavailable, RegionEpoch
from tikv_pd.backoff import REGION_MISS
from tikv_region import (
    InvalidReason,
    KeyRange,
    KeyspaceCodec,
    Next,
    PlainCodec,
    RegionCache,
    RegionConfig,
    RegionEntry,
    TxnV1Codec,
)
from tikv_region.testing import MapSource, RegionMap

CODECS = [PlainCodec(), TxnV1Codec(), KeyspaceCodec(b"x", 5, "shop")]
RANGES = [KeyRange(b"050", b"053"), KeyRange(b"100", b"100"), KeyRange(b"2", b"21"), KeyRange(b"9995", b"")]


@pytest.fixture(params=CODECS, ids=["plain", "txn", "keyspace"])
def pd(request: pytest.FixtureRequest) -> MapSource:
    """1,000 Regions: [∅, 001), [001, 002) and so on."""
    return MapSource(RegionMap([b"%03d" % number for number in range(1, 1000)], codec=request.param))


@pytest.fixture
def cache(pd: MapSource) -> RegionCache:
    return RegionCache(pd, pd.map.codec, config=RegionConfig(scan_page=7), now=anyio.current_time)


def numbers(entries: list[RegionEntry]) -> list[int]:
    return [int(entry.start or b"0") for entry in entries]


async def test_many_ranges_are_loaded_together(cache: RegionCache, pd: MapSource, backoffer: Backoffer) -> None:
    entries = await cache.locate_ranges(RANGES, backoffer)

    assert numbers(entries) == [50, 51, 52, 199, *range(200, 210), 999]
    # 15 Regions in pages of 7.
    assert pd.calls == ["batch_scan_regions"] * 3
    assert await cache.locate_ranges(RANGES, backoffer) == entries
    assert len(pd.calls) == 3


async def test_no_ranges_lie_in_no_regions(cache: RegionCache, pd: MapSource, backoffer: Backoffer) -> None:
    assert await cache.locate_ranges([], backoffer) == []
    assert await cache.locate_ranges([KeyRange(b"b", b"a")], backoffer) == []
    assert pd.calls == []


async def test_a_region_that_holds_several_ranges_comes_once(cache: RegionCache, backoffer: Backoffer) -> None:
    ranges = [KeyRange(b"050a", b"050b"), KeyRange(b"050c", b"050d"), KeyRange(b"050e", b"051a")]

    assert numbers(await cache.locate_ranges(ranges, backoffer)) == [50, 51]


async def test_only_what_is_missing_of_many_ranges_is_loaded(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    known = await cache.locate_ranges([KeyRange(b"010", b"020")], backoffer)
    cache.invalidate(known[3], InvalidReason.OTHER)
    cache.invalidate(known[7], InvalidReason.OTHER)
    pd.calls.clear()

    entries = await cache.locate_ranges([KeyRange(b"010", b"020")], backoffer)

    assert numbers(entries) == list(range(10, 20))
    assert pd.calls == ["batch_scan_regions"]
    assert [one is other for one, other in zip(known, entries, strict=True)].count(False) == 2


async def test_a_region_pd_does_not_know_yet_is_waited_for(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    lost = pd.map.region(b"051")
    pd.view = [region for region in pd.map.regions if region is not lost]

    async def find() -> None:
        await anyio.sleep(1)
        pd.view = None

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(find)
        entries = await cache.locate_ranges(RANGES, backoffer)

    assert numbers(entries) == [50, 51, 52, 199, *range(200, 210), 999]


async def test_a_region_is_located_by_its_id(cache: RegionCache, pd: MapSource, backoffer: Backoffer) -> None:
    wanted = pd.map.region(b"051")
    pd.failures.append(PdUnavailable((("pd1:2379", "refused"),)))

    entry = await cache.locate_id(wanted.id, backoffer)

    assert entry is not None
    assert (entry.id, entry.start) == (wanted.id, b"051")
    assert cache.find(b"051") is entry
    assert await cache.locate_id(wanted.id, backoffer) is entry
    assert pd.calls == ["get_region_by_id"] * 2


async def test_an_id_that_pd_does_not_know_is_no_region(cache: RegionCache, backoffer: Backoffer) -> None:
    assert await cache.locate_id(99_999, backoffer) is None


async def test_an_outdated_region_is_not_located_by_its_id(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    pd.view = pd.map.regions
    gone = pd.map.region(b"051")
    pd.map.merge(b"051")
    cache.insert(pd.map.region(b"051"))

    assert await cache.locate_id(gone.id, backoffer) is None


async def test_regions_are_loaded_before_they_are_used(cache: RegionCache, pd: MapSource, backoffer: Backoffer) -> None:
    await cache.preload(backoffer, KeyRange(b"100", b"150"))
    assert len(cache) == 50
    await cache.preload(backoffer)

    assert len(cache) == 1000
    pd.calls.clear()
    await cache.locate_ranges([KeyRange()], backoffer)
    assert pd.calls == []


def set_back(region_map: RegionMap) -> None:
    """Restore a cluster from a backup: the same Regions, all of an earlier epoch."""
    region_map.regions = [attrs.evolve(region, epoch=RegionEpoch(1, 1)) for region in region_map.regions]


async def test_a_cluster_that_was_set_back_is_followed(backoffer: Backoffer) -> None:
    regions = RegionMap([b"g", b"p"])
    for key in (b"c", b"k", b"t"):
        regions.split(key)
    cache = RegionCache(MapSource(regions), PlainCodec(), now=anyio.current_time)
    before = await cache.locate_range(KeyRange(), backoffer)
    set_back(regions)

    for key in (b"a", b"d", b"h", b"l", b"q", b"u"):
        waits = backoffer.fork()
        while True:
            entry = await cache.locate(key, waits)
            refusal = regions.refusal(entry.id, entry.epoch, entry.leader_peer, key)
            if refusal is None:
                break
            decision = cache.on_region_error(entry, refusal)
            assert decision.backoff is REGION_MISS
            await waits.backoff(decision.backoff, AssertionError("never raised"))

    after = await cache.locate_range(KeyRange(), backoffer)
    assert [entry.range for entry in after] == [entry.range for entry in before]
    assert all(entry.epoch == RegionEpoch(1, 1) for entry in after)
    # Three seconds for each Region in use: one of patience, the rest waits between questions.
    assert anyio.current_time() < 6 * 3.5


async def test_a_store_that_lags_behind_for_long_has_pd_asked(backoffer: Backoffer) -> None:
    regions = RegionMap([b"g"])
    pd = MapSource(regions)
    cache = RegionCache(pd, PlainCodec(), now=anyio.current_time)
    behind = regions.epoch_not_match(regions.region(b"h"))
    regions.split(b"k")
    entry = await cache.locate(b"l", backoffer)

    assert cache.on_region_error(entry, behind).next is Next.RESEND
    await anyio.sleep(0.9)
    assert cache.on_region_error(entry, behind).next is Next.RESEND
    await anyio.sleep(0.2)
    assert cache.on_region_error(entry, behind).next is Next.RELOCATE

    again = await cache.locate(b"l", backoffer)
    assert again is not entry
    assert again.epoch == entry.epoch
