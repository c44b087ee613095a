"""Every field of the configuration shows in what PD is asked, when, and what is known after it: a field without a check
here fails, as does a check whose field is ignored, since its values then come out alike.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import attrs
import pytest
from tikv_pd import Backoffer, Deadline, TikvError
from tikv_region import CacheAction, InvalidReason, RegionCache, RegionConfig
from tikv_region.testing import MapSource, RegionMap


@attrs.define
class Bench:
    """A cache with some options over three Regions."""

    cache: RegionCache
    pd: MapSource

    def backoffer(self, timeout: float = 1000.0) -> Backoffer:
        return Backoffer(Deadline("test", timeout, anyio.current_time))

    async def locate(self) -> Any:
        return await self.cache.locate(b"h", self.backoffer())

    async def upkeep(self, seconds: float) -> None:
        """Let the cache keep itself tidy for a while."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.cache.run)
            await anyio.sleep(seconds)
            tasks.cancel_scope.cancel()


Outcome = Callable[[Bench], Awaitable[Any]]


async def is_known_later(bench: Bench) -> bool:
    await bench.locate()
    await anyio.sleep(30)
    return bench.cache.find(b"h") is not None


async def has_buckets(bench: Bench) -> bool:
    bench.pd.map.set_buckets(b"h", [b"i"], 1)
    return (await bench.locate()).buckets is not None


async def asked_first(bench: Bench) -> str:
    await bench.locate()
    return bench.pd.calls[0]


async def pages(bench: Bench) -> int:
    await bench.cache.preload(bench.backoffer())
    return bench.pd.calls.count("batch_scan_regions")


async def questions_until_made_do(bench: Bench) -> int:
    bench.pd.view = bench.pd.map.regions
    bench.pd.map.split(b"k")
    newer = bench.cache.insert(bench.pd.map.region(b"h"))
    assert newer is not None
    newer.invalidate(InvalidReason.OTHER)
    await bench.locate()
    return bench.pd.calls.count("get_region")


async def what_an_old_epoch_means(bench: Bench) -> CacheAction:
    """What is learned of a store that is still behind after two seconds."""
    old = bench.pd.map.epoch_not_match(bench.pd.map.region(b"h"))
    bench.pd.map.move_peer(b"h", 3, 3)
    entry = await bench.locate()
    bench.cache.on_region_error(entry, old)
    await anyio.sleep(2)
    return bench.cache.on_region_error(entry, old).action


async def seconds_until_an_address_in_doubt_is_used(bench: Bench) -> float:
    store = (await bench.locate()).leader_store
    await bench.cache.resolve(store, bench.backoffer())
    store.needs_check = True
    bench.pd.delay = 100.0
    began = anyio.current_time()
    await bench.cache.resolve(store, bench.backoffer())
    return anyio.current_time() - began


async def seconds_until_an_old_region_is_used(bench: Bench) -> float:
    entry = await bench.locate()
    entry.needs_reload = True
    entry.grow_old()
    bench.pd.delay = 100.0
    began = anyio.current_time()
    await bench.locate()
    return anyio.current_time() - began


async def regions_left(bench: Bench) -> int:
    """How many Regions that are out of use are still kept after one sweep every ten seconds, or after none."""
    await bench.cache.preload(bench.backoffer())
    await anyio.sleep(20)
    await bench.upkeep(10.5)
    return len(bench.cache)


async def calls_of_upkeep(bench: Bench) -> tuple[int, int]:
    """How often stores and Regions are asked for in a while."""
    await bench.locate()
    bench.pd.calls.clear()
    with suppress(TikvError):
        await bench.upkeep(24.5)
    return bench.pd.calls.count("get_stores"), bench.pd.calls.count("batch_scan_regions")


@attrs.frozen
class Check:
    """What some values of a field come to."""

    outcome: Outcome
    expected: dict[Any, Any]
    with_others: dict[str, Any] = attrs.field(factory=dict)
    """Options that make it show."""


CHECKS: dict[str, Check] = {
    "ttl": Check(is_known_later, {10.0: False, 100.0: True}, {"ttl_jitter": 0.0}),
    "ttl_jitter": Check(is_known_later, {0.0: False, 1000.0: True}, {"ttl": 10.0}),
    "need_buckets": Check(has_buckets, {True: True, False: False}),
    "allow_follower": Check(asked_first, {True: "get_region@follower", False: "get_region"}),
    "scan_page": Check(pages, {1: 3, 2: 2, 128: 1}),
    "stale_answers": Check(questions_until_made_do, {0: 1, 3: 4}),
    "epoch_patience": Check(what_an_old_epoch_means, {1.0: CacheAction.INVALIDATE, 10.0: CacheAction.NONE}),
    "store_check_timeout": Check(seconds_until_an_address_in_doubt_is_used, {1.0: 1.0, 7.0: 7.0}),
    "reload_timeout": Check(seconds_until_an_old_region_is_used, {1.0: 1.0, 7.0: 7.0}),
    "sweep_interval": Check(regions_left, {10.0: 0, None: 3}, {"ttl": 5.0, "ttl_jitter": 0.0}),
    "sweep_regions": Check(regions_left, {1: 2, 50: 0}, {"ttl": 5.0, "ttl_jitter": 0.0, "sweep_interval": 10.0}),
    "stores_interval": Check(calls_of_upkeep, {10.0: (2, 0), 4.0: (6, 0), None: (0, 0)}),
    "refresh_interval": Check(calls_of_upkeep, {10.0: (0, 2), 4.0: (0, 6), None: (0, 0)}, {"stores_interval": None}),
}


def test_every_field_is_checked() -> None:
    assert CHECKS.keys() == attrs.fields_dict(RegionConfig).keys()


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, check in CHECKS.items() for value in check.expected]
)
async def test_the_configuration_shows(region_map: RegionMap, field: str, value: Any) -> None:
    check = CHECKS[field]
    source = MapSource(region_map)
    config = RegionConfig(**{field: value, **check.with_others})
    cache = RegionCache(source, region_map.codec, config=config, now=anyio.current_time, rng=random.Random(1))

    assert await check.outcome(Bench(cache, source)) == check.expected[value]
