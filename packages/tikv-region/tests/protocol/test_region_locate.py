"""RegionCache against a scripted PD: finding the Region of a key."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import anyio
import attrs
import pytest
from tikv_pd import Backoffer, BackoffExceeded, Deadline, DeadlineExceeded, PdError, RpcError
from tikv_region import (
    CodecError,
    InvalidReason,
    KeyCodec,
    KeyRange,
    KeyspaceCodec,
    PlainCodec,
    RegionCache,
    RegionConfig,
    RegionEntry,
    RegionUnavailable,
    TxnV1Codec,
)
from tikv_region.testing import MapSource, RegionMap


def backoffer_for(seconds: float) -> Backoffer:
    return Backoffer(Deadline("test", seconds, anyio.current_time))


async def test_a_key_is_asked_for_once_and_then_found_without_pd(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    assert cache.find(b"h") is None

    entry = await cache.locate(b"h", backoffer)

    assert (entry.start, entry.end) == (b"g", b"p")
    assert cache.find(b"g") is cache.find(b"oz") is entry
    assert await cache.locate(b"k", backoffer) is entry
    assert cache.find(b"f") is cache.find(b"p") is None
    assert pd.calls == ["get_region"]
    assert len(cache) == 1


async def test_tasks_that_miss_the_same_key_share_one_answer(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    pd.delay = 1.0
    found: list[RegionEntry] = []

    async def locate() -> None:
        found.append(await cache.locate(b"h", backoffer.fork()))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(locate)

    assert found == [cache.find(b"h")] * 20
    assert pd.calls == ["get_region"]
    assert anyio.current_time() == 1.0


async def test_tasks_that_miss_different_keys_of_a_stale_region_share_one_answer(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    cache.invalidate(await cache.locate(b"h", backoffer), InvalidReason.OTHER)
    pd.calls.clear()
    pd.delay = 1.0

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(cache.locate, b"h%d" % number, backoffer.fork())

    assert pd.calls == ["get_region"]


async def test_tasks_whose_stale_region_was_split_each_get_their_own_piece(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    cache.invalidate(await cache.locate(b"h", backoffer), InvalidReason.OTHER)
    pd.map.split(b"k")
    pd.calls.clear()
    pd.delay = 1.0
    found: dict[bytes, RegionEntry] = {}

    async def locate(key: bytes) -> None:
        found[key] = await cache.locate(key, backoffer.fork())

    async with anyio.create_task_group() as tasks:
        for key in (b"h", b"i", b"k", b"l"):
            tasks.start_soon(locate, key)

    assert {key: entry.start for key, entry in found.items()} == {b"h": b"g", b"i": b"g", b"k": b"k", b"l": b"k"}
    assert len(pd.calls) <= 3


async def test_the_deadline_of_the_task_that_asks_does_not_hurt_those_that_wait(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    pd.delay = 2.0
    failures: list[Exception] = []

    async def hurried() -> None:
        try:
            await cache.locate(b"h", backoffer_for(1.0))
        except DeadlineExceeded as error:
            failures.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hurried)
        await anyio.wait_all_tasks_blocked()
        entry = await cache.locate(b"h", backoffer)

    assert entry.contains(b"h")
    assert len(failures) == 1
    # One second lost to the hurried task, two for the answer; no wait between.
    assert anyio.current_time() == 3.0


async def test_a_task_that_waits_for_anothers_answer_keeps_its_own_deadline(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    pd.delay = 5.0

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cache.locate, b"h", backoffer)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(DeadlineExceeded):
            await cache.locate(b"h", backoffer_for(1.0))
        assert anyio.current_time() == 1.0


async def test_a_failure_of_pd_is_met_by_all_who_wait_and_each_waits_before_the_next_attempt(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    pd.failures.append(RpcError("pd1", "GetRegion", "UNAVAILABLE", "gone"))

    entry = await cache.locate(b"h", backoffer)

    assert entry.contains(b"h")
    assert backoffer.attempts == 1
    assert 0.25 <= backoffer.waited <= 0.5


async def test_what_pd_refuses_for_good_is_raised_at_once(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    pd.failures.append(PdError("GetRegion", "UNKNOWN", "no"))

    with pytest.raises(PdError):
        await cache.locate(b"h", backoffer)

    assert backoffer.attempts == 0
    assert (await cache.locate(b"h", backoffer)).contains(b"h")


async def test_a_gap_is_waited_out(cache: RegionCache, pd: MapSource, backoffer: Backoffer) -> None:
    pd.view = [region for region in pd.map.regions if region.start_key != b"g"]

    async def fill() -> None:
        await anyio.sleep(3)
        pd.view = None

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fill)
        entry = await cache.locate(b"h", backoffer)

    assert entry.start == b"g"
    assert backoffer.attempts > 1


async def test_a_gap_that_stays_ends_with_the_deadline_and_says_why(cache: RegionCache, pd: MapSource) -> None:
    pd.view = []

    with pytest.raises(DeadlineExceeded) as raised:
        await cache.locate(b"h", backoffer_for(5.0))

    assert isinstance(raised.value.__cause__, RegionUnavailable)
    assert raised.value.__cause__.key == b"h"
    assert anyio.current_time() == 5.0
    assert len(pd.calls) < 10


async def test_the_budget_of_waiting_ends_it_too(cache: RegionCache, pd: MapSource) -> None:
    pd.view = []

    with pytest.raises(BackoffExceeded) as raised:
        await cache.locate(b"h", Backoffer(Deadline("test", 60, anyio.current_time), budget=2.0))

    assert isinstance(raised.value.__cause__, RegionUnavailable)


@pytest.mark.parametrize(
    "operation",
    [
        lambda cache, backoffer: cache.locate(b"h", backoffer),
        lambda cache, backoffer: cache.locate_end(b"h", backoffer),
        lambda cache, backoffer: cache.locate_end(b"", backoffer),
        lambda cache, backoffer: cache.locate_range(KeyRange(), backoffer),
        lambda cache, backoffer: cache.locate_ranges([KeyRange(b"a", b"h")], backoffer),
        lambda cache, backoffer: cache.locate_id(cache._loader._pd.regions[1].id, backoffer),
        lambda cache, backoffer: cache.group_keys([b"a", b"h"], backoffer),
        lambda cache, backoffer: cache.preload(backoffer),
    ],
)
@pytest.mark.parametrize("allow_follower", [False, True])
async def test_bounds_that_are_not_encoded_as_expected_are_fatal(
    pd: MapSource,
    backoffer: Backoffer,
    allow_follower: bool,
    operation: Callable[[RegionCache, Backoffer], Awaitable[object]],
) -> None:
    config = RegionConfig(allow_follower=allow_follower)
    cache = RegionCache(pd, TxnV1Codec(), config=config, now=anyio.current_time)

    with pytest.raises(CodecError):
        await operation(cache, backoffer)

    assert backoffer.attempts == 0
    assert len(pd.calls) == 1


async def test_a_region_is_kept_as_long_as_it_is_used(pd: MapSource, backoffer: Backoffer) -> None:
    cache = RegionCache(pd, PlainCodec(), config=RegionConfig(ttl=10, ttl_jitter=2), now=anyio.current_time)
    entry = await cache.locate(b"h", backoffer)

    for _ in range(10):
        await anyio.sleep(9)
        assert cache.find(b"h") is entry
    await anyio.sleep(13)

    assert cache.find(b"h") is None
    assert await cache.locate(b"h", backoffer_for(1.0)) is not entry
    assert pd.calls == ["get_region"] * 2


async def test_a_region_that_lacks_a_peer_is_loaded_again_however_much_it_is_used(
    pd: MapSource, backoffer: Backoffer
) -> None:
    cache = RegionCache(pd, PlainCodec(), config=RegionConfig(ttl=10, ttl_jitter=0), now=anyio.current_time)
    region = pd.map.region(b"h")
    pd.view = [attrs.evolve(region, down_peers=(region.peers[1].id,))]
    entry = await cache.locate(b"h", backoffer)

    for _ in range(9):
        assert cache.find(b"h") is entry
        await anyio.sleep(1)
    await anyio.sleep(1)

    assert cache.find(b"h") is None
    assert [peer.store_id for peer in entry.peers] == [1, 3]


async def test_peers_that_hold_no_data_or_lie_on_tombstones_are_left_out(cache: RegionCache, pd: MapSource) -> None:
    gone = attrs.evolve(pd.map.stores[3], is_tombstone=True)
    region = pd.map.region(b"h")
    witness = attrs.evolve(region.peers[1], is_witness=True)
    region = attrs.evolve(region, peers=(region.peers[0], witness, region.peers[2]))

    entry = cache.insert(region, [gone])

    assert entry is not None
    assert [peer.store_id for peer in entry.peers] == [1]


async def test_a_region_without_a_usable_peer_is_waited_for(cache: RegionCache, pd: MapSource) -> None:
    region = pd.map.region(b"h")
    pd.view = [attrs.evolve(region, down_peers=tuple(peer.id for peer in region.peers))]

    assert cache.insert(pd.view[0]) is None
    with pytest.raises(DeadlineExceeded, match="usable peer"):
        await cache.locate(b"h", backoffer_for(1.0))


async def test_an_outdated_answer_is_asked_for_again(cache: RegionCache, pd: MapSource, backoffer: Backoffer) -> None:
    pd.view = pd.map.regions
    pd.map.split(b"k")
    cache.insert(pd.map.region(b"k"))

    async def catch_up() -> None:
        await anyio.sleep(0.003)
        pd.view = None

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(catch_up)
        entry = await cache.locate(b"h", backoffer)

    assert (entry.start, entry.end, entry.epoch.version) == (b"g", b"k", 2)
    assert 0 < backoffer.waited < 0.1


async def test_an_outdated_answer_is_used_between_valid_neighbors_when_pd_has_no_other(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    pd.view = pd.map.regions
    pd.map.split(b"m")
    pd.map.split(b"i")
    pd.map.split(b"k")
    below, above = cache.insert(pd.map.region(b"h")), cache.insert(pd.map.region(b"m"))
    assert below is not None
    assert above is not None

    entry = await cache.locate(b"j", backoffer)

    assert (entry.start, entry.end) == (b"i", b"m")
    assert pd.calls == ["get_region"] * 4
    assert cache.find(b"j") is None
    assert below.is_valid()
    assert above.is_valid()


async def test_an_outdated_answer_is_not_cut_at_neighbors_that_are_outdated_too(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    pd.view = pd.map.regions
    below = cache.insert(pd.map.split(b"i"))
    assert below is not None
    above = pd.map.region(b"i")
    cache.insert(attrs.evolve(above, start_key=b"m", epoch=attrs.evolve(above.epoch, version=9)))
    below.expires_at = 0.0

    entry = await cache.locate(b"j", backoffer)

    assert (entry.start, entry.end) == (b"g", b"m")
    assert cache.find(b"j") is None


async def test_what_was_found_wrong_does_not_stand_against_pd_for_ever(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    region = pd.map.region(b"h")
    ahead = cache.insert(attrs.evolve(region, epoch=attrs.evolve(region.epoch, version=9)))
    assert ahead is not None
    cache.invalidate(ahead, InvalidReason.REGION_NOT_FOUND)

    entry = await cache.locate(b"h", backoffer)

    assert entry.epoch.version == 1
    assert cache.find(b"h") is entry
    assert backoffer.attempts == 3


@pytest.mark.parametrize(
    "codec", [PlainCodec(), TxnV1Codec(), KeyspaceCodec(b"r", 5, "shop"), KeyspaceCodec(b"x", 0, "")]
)
async def test_an_end_key_is_located_in_the_region_below_it(codec: KeyCodec, backoffer: Backoffer) -> None:
    pd = MapSource(RegionMap([b"g", b"p", b"\xff" * 70], codec=codec))
    cache = RegionCache(pd, codec, now=anyio.current_time)

    starts = {key: (await cache.locate_end(key, backoffer)).start for key in (b"h", b"g", b"g\0", b"p", b"q", b"")}

    assert starts == {b"h": b"g", b"g": b"", b"g\0": b"g", b"p": b"g", b"q": b"p", b"": b"\xff" * 70}
    calls = len(pd.calls)
    assert (await cache.locate_end(b"", backoffer)).end == b""
    assert (await cache.locate_end(b"p", backoffer)).end == b"p"
    assert len(pd.calls) == calls


async def test_an_end_key_below_the_first_region_that_pd_knows_is_waited_for(cache: RegionCache, pd: MapSource) -> None:
    pd.view = pd.map.regions[1:]

    with pytest.raises(DeadlineExceeded):
        await cache.locate_end(b"g", backoffer_for(1.0))
    with pytest.raises(DeadlineExceeded):
        await cache.locate_end(b"c", backoffer_for(1.0))


async def test_an_end_key_makes_do_with_an_outdated_answer(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    pd.view = pd.map.regions
    pd.map.split(b"k")
    cache.insert(pd.map.region(b"k"))

    entry = await cache.locate_end(b"k", backoffer)

    assert (entry.start, entry.end) == (b"g", b"k")


async def test_clearing_forgets_regions_but_not_stores(cache: RegionCache, backoffer: Backoffer) -> None:
    before = await cache.locate(b"h", backoffer)

    cache.clear()
    after = await cache.locate(b"h", backoffer)

    assert len(cache) == 1
    assert after is not before
    assert after.leader_store is before.leader_store


def test_moments_of_expiry_do_not_pile_up(region_map: RegionMap) -> None:
    clock = iter(range(20_000))
    cache = RegionCache(MapSource(region_map), PlainCodec(), now=lambda: float(next(clock)))

    for number in range(10_000):
        cache.insert(region_map.move_leader(b"h", 1 + number % 3))

    assert len(cache._known._moments) < 5_000


async def test_expiry_is_spread_by_chance_over_the_jitter() -> None:
    config = RegionConfig(ttl=100, ttl_jitter=50)
    pd = MapSource(RegionMap([b"%03d" % number for number in range(200)]))
    cache = RegionCache(pd, PlainCodec(), config=config, now=anyio.current_time, rng=random.Random(7))

    expiries = {entry.expires_at for entry in map(cache.insert, pd.map.regions) if entry is not None}

    assert min(expiries) >= 100
    assert max(expiries) <= 150
    assert len(expiries) > 30
