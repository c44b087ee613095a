"""Cancelling RegionCache wherever it waits: nothing leaks, nobody else suffers, the next call works."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

import anyio
import pytest
from tikv_pd import Backoffer, ClosedError, Deadline, Region, RpcError, Store
from tikv_region import KeyRange, RegionCache, RegionConfig, RegionEntry
from tikv_region.testing import MapSource, RegionMap

REGION_ID = RegionMap([b"g", b"p"]).region(b"h").id
Operation: TypeAlias = Callable[[RegionCache, Backoffer], Coroutine[Any, Any, Any]]


async def resolve(cache: RegionCache, backoffer: Backoffer) -> str:
    entry = await cache.locate(b"h", backoffer)
    return await cache.resolve(entry.leader_store, backoffer)


async def reload(cache: RegionCache, backoffer: Backoffer) -> RegionEntry:
    entry = await cache.locate(b"h", backoffer)
    entry.needs_reload = True
    entry.grow_old()
    return await cache.locate(b"h", backoffer)


async def update_buckets(cache: RegionCache, backoffer: Backoffer) -> RegionEntry:
    entry = await cache.locate(b"h", backoffer)
    await cache.update_buckets(entry, 5, backoffer)
    return entry


async def preload(cache: RegionCache, backoffer: Backoffer) -> int:
    await cache.preload(backoffer)
    return len(cache)


# Name, operation, and how many calls of PD it takes.
OPERATIONS: list[tuple[str, Operation, int]] = [
    ("locate", lambda cache, backoffer: cache.locate(b"h", backoffer), 1),
    ("locate_end", lambda cache, backoffer: cache.locate_end(b"p", backoffer), 2),
    ("locate_range", lambda cache, backoffer: cache.locate_range(KeyRange(b"a", b"q"), backoffer), 1),
    ("locate_end-last", lambda cache, backoffer: cache.locate_end(b"", backoffer), 1),
    ("locate_ranges", lambda cache, backoffer: cache.locate_ranges([KeyRange(b"a", b"q")], backoffer), 1),
    ("locate_id", lambda cache, backoffer: cache.locate_id(REGION_ID, backoffer), 1),
    ("group_keys", lambda cache, backoffer: cache.group_keys([b"a", b"h", b"q"], backoffer), 1),
    ("group_keys-one", lambda cache, backoffer: cache.group_keys([b"h"], backoffer), 1),
    ("preload", preload, 1),
    ("update_buckets", update_buckets, 2),
    ("resolve", resolve, 2),
]
every_operation = pytest.mark.parametrize("operation", [case[1] for case in OPERATIONS], ids=[c[0] for c in OPERATIONS])
every_call = pytest.mark.parametrize(
    ("operation", "call"),
    [(operation, call) for _, operation, calls in OPERATIONS for call in range(calls)],
    ids=[f"{name}-{call}" for name, _, calls in OPERATIONS for call in range(calls)],
)


class FaultySource(MapSource):
    """Never answers the call whose number is `hang_at`; was closed when that of number `fail_at` is made."""

    hang_at = -1
    fail_at = -1

    async def get_region(
        self, key: bytes, *, need_buckets: bool = False, allow_follower: bool = False, timeout: float
    ) -> Region | None:
        await self._maybe_hang()
        return await super().get_region(key, need_buckets=need_buckets, allow_follower=allow_follower, timeout=timeout)

    async def get_prev_region(
        self, key: bytes, *, need_buckets: bool = False, allow_follower: bool = False, timeout: float
    ) -> Region | None:
        await self._maybe_hang()
        return await super().get_prev_region(
            key, need_buckets=need_buckets, allow_follower=allow_follower, timeout=timeout
        )

    async def batch_scan_regions(
        self,
        ranges: Sequence[tuple[bytes, bytes]],
        *,
        limit: int,
        need_buckets: bool = False,
        allow_follower: bool = False,
        timeout: float,
    ) -> list[Region]:
        await self._maybe_hang()
        return await super().batch_scan_regions(
            ranges, limit=limit, need_buckets=need_buckets, allow_follower=allow_follower, timeout=timeout
        )

    async def get_region_by_id(self, region_id: int, *, need_buckets: bool = False, timeout: float) -> Region | None:
        await self._maybe_hang()
        return await super().get_region_by_id(region_id, need_buckets=need_buckets, timeout=timeout)

    async def get_stores(self, *, timeout: float) -> list[Store]:
        await self._maybe_hang()
        return await super().get_stores(timeout=timeout)

    async def get_store(self, store_id: int, *, timeout: float) -> Store | None:
        await self._maybe_hang()
        return await super().get_store(store_id, timeout=timeout)

    async def _maybe_hang(self) -> None:
        if len(self.calls) == self.fail_at:
            self.fail_at = -1
            raise ClosedError("PdClient")
        if len(self.calls) == self.hang_at:
            self.hang_at = -1
            await anyio.sleep_forever()


@pytest.fixture
def pd(region_map: RegionMap) -> FaultySource:
    return FaultySource(region_map)


@pytest.fixture(params=[False, True], ids=["leader", "follower"])
def cache(pd: FaultySource, request: pytest.FixtureRequest) -> RegionCache:
    config = RegionConfig(allow_follower=request.param)
    return RegionCache(pd, pd.map.codec, config=config, now=anyio.current_time, rng=random.Random(1))


def patient() -> Backoffer:
    return Backoffer(Deadline("test", 60, anyio.current_time))


def assert_nothing_left(cache: RegionCache) -> None:
    for flights in (cache._loader._inquiry._flights, cache._loader._by_id, cache._stores._flights):
        assert not flights._flights


@every_call
async def test_a_cancelled_call_leaves_nothing_and_the_next_one_works(
    cache: RegionCache, pd: FaultySource, operation: Operation, call: int
) -> None:
    pd.hang_at = call

    with anyio.move_on_after(1) as scope:
        await operation(cache, patient())

    assert scope.cancelled_caught
    assert_nothing_left(cache)
    assert await operation(cache, patient())


@every_call
async def test_those_who_wait_for_a_cancelled_call_go_on_by_themselves(
    cache: RegionCache, pd: FaultySource, operation: Operation, call: int
) -> None:
    pd.hang_at = call
    results: list[Any] = []

    async def run() -> None:
        results.append(await operation(cache, patient()))

    async with anyio.create_task_group() as others:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as first:
                first.start_soon(operation, cache, patient())
                await anyio.wait_all_tasks_blocked()
                for _ in range(3):
                    others.start_soon(run)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()

    assert len(results) == 3
    assert_nothing_left(cache)


@every_call
async def test_cancelling_one_who_waits_changes_nothing_for_the_one_who_asks(
    cache: RegionCache, pd: FaultySource, operation: Operation, call: int
) -> None:
    pd.delay = 2.0
    results: list[Any] = []

    async def run() -> None:
        results.append(await operation(cache, patient()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.5 + 2.0 * call):
            await operation(cache, patient())

    assert len(results) == 1
    assert_nothing_left(cache)


@every_operation
async def test_a_wait_between_attempts_can_be_cancelled(
    cache: RegionCache, pd: FaultySource, operation: Operation
) -> None:
    pd.failures.extend([RpcError("pd1", "GetRegion", "UNAVAILABLE", "gone")] * 2)

    with anyio.move_on_after(0.1) as scope:
        await operation(cache, patient())

    assert scope.cancelled_caught
    assert_nothing_left(cache)
    pd.failures.clear()
    assert await operation(cache, patient())


@every_call
async def test_a_call_that_pd_refuses_for_good_fails_at_once_and_the_next_one_works(
    cache: RegionCache, pd: FaultySource, operation: Operation, call: int
) -> None:
    pd.fail_at = call

    with pytest.raises(ClosedError):
        await operation(cache, patient())

    assert_nothing_left(cache)
    assert anyio.current_time() == 0
    assert await operation(cache, patient())


def pd_knows_no_region(_cache: RegionCache, pd: FaultySource) -> None:
    pd.view = []


def pd_knows_only_an_earlier_one(cache: RegionCache, pd: FaultySource) -> None:
    pd.view = pd.map.regions
    pd.map.split(b"k")
    cache.insert(pd.map.region(b"k"))


def pd_knows_no_address(_cache: RegionCache, pd: FaultySource) -> None:
    pd.map.stores[1] = Store(1, "")


WAITS: list[tuple[Callable[[RegionCache, FaultySource], None], Operation]] = [
    (pd_knows_no_region, lambda cache, backoffer: cache.locate(b"h", backoffer)),
    (pd_knows_no_region, lambda cache, backoffer: cache.locate_end(b"h", backoffer)),
    (pd_knows_no_region, lambda cache, backoffer: cache.locate_range(KeyRange(b"a", b"q"), backoffer)),
    (pd_knows_no_region, lambda cache, backoffer: cache.locate_ranges([KeyRange(b"a", b"q")], backoffer)),
    (pd_knows_no_region, lambda cache, backoffer: cache.group_keys([b"a", b"h"], backoffer)),
    (pd_knows_only_an_earlier_one, lambda cache, backoffer: cache.locate(b"h", backoffer)),
    (pd_knows_no_address, resolve),
]
every_wait = pytest.mark.parametrize(("cause", "operation"), WAITS)
# On a clock that cannot be stopped, the one for a newer answer is too short to be met.
every_long_wait = pytest.mark.parametrize(
    ("cause", "operation"), [wait for wait in WAITS if wait[0] is not pd_knows_only_an_earlier_one]
)


def set_right(pd: FaultySource) -> None:
    pd.view = None
    pd.map.stores[1] = Store(1, "tikv1:20160")


@every_wait
async def test_a_wait_for_pd_to_know_better_can_be_cancelled(
    cache: RegionCache, pd: FaultySource, cause: Callable[[RegionCache, FaultySource], None], operation: Operation
) -> None:
    cause(cache, pd)

    with anyio.move_on_after(0.001) as scope:
        await operation(cache, patient())

    assert scope.cancelled_caught
    assert_nothing_left(cache)
    set_right(pd)
    assert await operation(cache, patient())


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@every_long_wait
async def test_a_wait_for_pd_to_know_better_can_be_cancelled_natively(
    cache: RegionCache,
    pd: FaultySource,
    cause: Callable[[RegionCache, FaultySource], None],
    operation: Operation,
    anyio_backend: str,
) -> None:
    del anyio_backend
    cause(cache, pd)
    task = asyncio.create_task(operation(cache, patient()))
    await anyio.wait_all_tasks_blocked()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert_nothing_left(cache)
    set_right(pd)
    assert await operation(cache, patient())


@pytest.mark.parametrize("call", [0, 1])
async def test_the_walk_to_the_last_region_can_be_cancelled_at_each_step(call: int) -> None:
    pd = FaultySource(RegionMap([b"\xff" * 70]))
    cache = RegionCache(pd, pd.map.codec, now=anyio.current_time)
    pd.hang_at = call

    with anyio.move_on_after(1) as scope:
        await cache.locate_end(b"", patient())

    assert scope.cancelled_caught
    assert_nothing_left(cache)
    assert (await cache.locate_end(b"", patient())).end == b""


@pytest.mark.parametrize("call", [0, 1])
async def test_a_reload_that_hangs_or_is_cancelled_leaves_the_region_in_use(
    cache: RegionCache, pd: FaultySource, call: int
) -> None:
    pd.hang_at = call

    with anyio.move_on_after(0.5) as scope:
        await reload(cache, patient())

    assert scope.cancelled_caught
    assert_nothing_left(cache)
    assert (cache.find(b"h") is not None) == (call == 1)
    assert (await reload(cache, patient())).is_valid()


@pytest.mark.parametrize("call", range(3))
async def test_upkeep_can_be_cancelled_wherever_it_waits(region_map: RegionMap, call: int) -> None:
    pd = FaultySource(region_map)
    config = RegionConfig(sweep_interval=1, stores_interval=1, refresh_interval=1)
    cache = RegionCache(pd, pd.map.codec, config=config, now=anyio.current_time)
    # A store that PD's list does not have is asked for by itself.
    await cache.locate(b"h", patient())
    del pd.map.stores[3]
    pd.calls.clear()
    pd.hang_at = call

    with anyio.move_on_after(1.5) as scope:
        await cache.run()

    assert scope.cancelled_caught
    assert_nothing_left(cache)
    assert pd.hang_at == -1
    with anyio.move_on_after(3):
        await cache.run()
    assert {"get_stores", "get_store", "batch_scan_regions"} <= set(pd.calls)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@every_call
async def test_a_natively_cancelled_task_leaves_nothing_and_nobody_else_suffers(
    cache: RegionCache, pd: FaultySource, operation: Operation, call: int, anyio_backend: str
) -> None:
    del anyio_backend
    pd.hang_at = call

    async def run() -> Any:
        return await operation(cache, patient())

    first = asyncio.create_task(run())
    await anyio.wait_all_tasks_blocked()
    second = asyncio.create_task(run())
    await anyio.wait_all_tasks_blocked()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first

    assert await second
    assert_nothing_left(cache)
