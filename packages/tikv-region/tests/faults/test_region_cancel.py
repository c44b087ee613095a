"""Cancelling RegionCache wherever it waits: nothing leaks, nobody else suffers, the next call works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias

import anyio
import pytest
from tikv_pd import Backoffer, Deadline, Region, RpcError, Store
from tikv_region import KeyRange, RegionCache
from tikv_region.testing import MapSource, RegionMap

Operation: TypeAlias = Callable[[RegionCache, Backoffer], Coroutine[Any, Any, Any]]


async def resolve(cache: RegionCache, backoffer: Backoffer) -> str:
    entry = await cache.locate(b"h", backoffer)
    return await cache.resolve(entry.leader_store, backoffer)


# Name, operation, and how many calls of PD it takes.
OPERATIONS: list[tuple[str, Operation, int]] = [
    ("locate", lambda cache, backoffer: cache.locate(b"h", backoffer), 1),
    ("locate_end", lambda cache, backoffer: cache.locate_end(b"p", backoffer), 2),
    ("locate_range", lambda cache, backoffer: cache.locate_range(KeyRange(b"a", b"q"), backoffer), 1),
    ("group_keys", lambda cache, backoffer: cache.group_keys([b"a", b"h", b"q"], backoffer), 1),
    ("resolve", resolve, 2),
]
every_operation = pytest.mark.parametrize("operation", [case[1] for case in OPERATIONS], ids=[c[0] for c in OPERATIONS])
every_call = pytest.mark.parametrize(
    ("operation", "call"),
    [(operation, call) for _, operation, calls in OPERATIONS for call in range(calls)],
    ids=[f"{name}-{call}" for name, _, calls in OPERATIONS for call in range(calls)],
)


class HangingSource(MapSource):
    """Never answers the call whose number is `hang_at`."""

    hang_at = -1

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

    async def get_store(self, store_id: int, *, timeout: float) -> Store | None:
        await self._maybe_hang()
        return await super().get_store(store_id, timeout=timeout)

    async def _maybe_hang(self) -> None:
        if len(self.calls) == self.hang_at:
            self.hang_at = -1
            await anyio.sleep_forever()


@pytest.fixture
def pd(region_map: RegionMap) -> HangingSource:
    return HangingSource(region_map)


def patient() -> Backoffer:
    return Backoffer(Deadline("test", 60, anyio.current_time))


def assert_nothing_left(cache: RegionCache) -> None:
    for flights in (cache._loader._inquiry._flights, cache._loader._by_id, cache._stores._flights):
        assert not flights._flights


@every_call
async def test_a_cancelled_call_leaves_nothing_and_the_next_one_works(
    cache: RegionCache, pd: HangingSource, operation: Operation, call: int
) -> None:
    pd.hang_at = call

    with anyio.move_on_after(1) as scope:
        await operation(cache, patient())

    assert scope.cancelled_caught
    assert_nothing_left(cache)
    assert await operation(cache, patient())


@every_call
async def test_those_who_wait_for_a_cancelled_call_go_on_by_themselves(
    cache: RegionCache, pd: HangingSource, operation: Operation, call: int
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
    cache: RegionCache, pd: HangingSource, operation: Operation, call: int
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
    cache: RegionCache, pd: HangingSource, operation: Operation
) -> None:
    pd.failures.append(RpcError("pd1", "GetRegion", "UNAVAILABLE", "gone"))

    with anyio.move_on_after(0.1) as scope:
        await operation(cache, patient())

    assert scope.cancelled_caught
    assert_nothing_left(cache)
    assert await operation(cache, patient())


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@every_call
async def test_a_natively_cancelled_task_leaves_nothing_and_nobody_else_suffers(
    cache: RegionCache, pd: HangingSource, operation: Operation, call: int, anyio_backend: str
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
