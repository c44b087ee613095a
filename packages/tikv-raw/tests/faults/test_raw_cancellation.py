"""Each operation is cancelled at each of its steps; the client stays usable and nothing is left under way."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked
from tikv_pd.testing import virtual_time
from tikv_proto.services import PD, Rpc, Tikv
from tikv_raw import RawClient, RawConfig
from tikv_rpc.testing import FakeCluster

PAIRS = {b"a": b"1", b"b": b"2", b"h": b"3", b"q": b"4"}
Call = Callable[[RawClient], Coroutine[Any, Any, object]]


async def scan(client: RawClient) -> object:
    return [pair async for pair in client.scan()]


OPERATIONS: dict[str, tuple[Rpc[Any, Any], Call]] = {
    "get": (Tikv.RawGet, lambda c: c.get(b"h")),
    "batch_get": (Tikv.RawBatchGet, lambda c: c.batch_get(PAIRS)),
    "put": (Tikv.RawPut, lambda c: c.put(b"h", b"3")),
    "batch_put": (Tikv.RawBatchPut, lambda c: c.batch_put(PAIRS)),
    "delete": (Tikv.RawDelete, lambda c: c.delete(b"missing")),
    "batch_delete": (Tikv.RawBatchDelete, lambda c: c.batch_delete([b"aa", b"hh", b"qq"])),
    "delete_range": (Tikv.RawDeleteRange, lambda c: c.delete_range(b"c", b"h")),
    "batch_get_each": (Tikv.RawBatchGet, lambda c: c.batch_get(iter(PAIRS), on_error="return")),
    "batch_put_each": (Tikv.RawBatchPut, lambda c: c.batch_put(iter(PAIRS.items()), on_error="return")),
    "scan": (Tikv.RawScan, scan),
    "batch_scan": (Tikv.RawBatchScan, lambda c: c.batch_scan([(b"a", b"b"), (b"b", b"c"), (b"", b"")], each_limit=1)),
    "count": (Tikv.RawChecksum, lambda c: c.count()),
    "count_lock": (Tikv.RawScan, lambda c: c.count(cf="lock")),
    "ttl": (Tikv.RawGetKeyTTL, lambda c: c.ttl(b"h")),
    "compare_and_swap": (Tikv.RawCompareAndSwap, lambda c: c.compare_and_swap(b"h", b"3", b"3")),
    "checksum": (Tikv.RawChecksum, lambda c: c.checksum()),
}
every_operation = pytest.mark.parametrize(("rpc", "call"), OPERATIONS.values(), ids=list(OPERATIONS))


# Both ways in which anyio cancels, and the clock of one of them jumps.
@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_time() if request.param == "trio" else "asyncio"


async def prepare(cluster: FakeCluster) -> None:
    for key, value in PAIRS.items():
        cluster.raw.put(key, value)


async def in_flight(client: RawClient) -> int:
    """Return how many requests wait for an answer, once the page that a scan left behind has come."""
    await wait_all_tasks_blocked()
    return client.stats().in_flight


async def cancelled_after(steps: int, call: Callable[[], Coroutine[Any, Any, object]]) -> bool:
    """Run the call for so many steps of the scheduler, then cancel it; tell whether it was still running."""
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await call()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        scope.cancel()
    return scope.cancelled_caught


@pytest.mark.parametrize("call", [call for _, call in OPERATIONS.values()], ids=list(OPERATIONS))
async def test_an_operation_cancelled_at_any_step_leaves_nothing_behind(
    cluster: FakeCluster, client: RawClient, call: Call
) -> None:
    await prepare(cluster)
    await call(client)
    cancelled = 0

    for steps in range(60):
        cancelled += await cancelled_after(steps, lambda: call(client))
        assert await in_flight(client) == 0

    assert cancelled
    assert await client.batch_get(PAIRS) == PAIRS
    assert cluster.data == PAIRS


@pytest.mark.parametrize("call", [call for _, call in OPERATIONS.values()], ids=list(OPERATIONS))
async def test_a_first_operation_cancelled_at_any_step_leaves_nothing_behind(cluster: FakeCluster, call: Call) -> None:
    await prepare(cluster)

    for steps in range(0, 60, 3):
        async with RawClient(cluster.url, api_version="v1ttl", transport=cluster.transport) as client:
            await cancelled_after(steps, functools.partial(call, client))
            assert await in_flight(client) == 0
            await call(client)

    assert cluster.data == PAIRS
    assert cluster.transport.open_connections() == []


@pytest.mark.parametrize("obstacle", ["hanging stores", "no stores", "hanging PD"])
@every_operation
async def test_an_operation_cancelled_while_it_waits_leaves_nothing_behind(
    cluster: FakeCluster, client: RawClient, rpc: Rpc[Any, Any], call: Call, obstacle: str
) -> None:
    await prepare(cluster)
    if obstacle == "hanging PD":
        cluster.pd.hang(PD.QueryRegion)
        cluster.pd.hang(PD.GetRegion)
        cluster.pd.hang(PD.BatchScanRegions)
    else:
        await client.batch_get(PAIRS)
        for store in cluster.stores.values():
            if obstacle == "no stores":
                store.stop()
            store.hang_next(rpc, times=math.inf)

    cancelled = await cancelled_when_blocked(lambda: call(client))
    left = await in_flight(client)
    cluster.pd.heal()
    for store in cluster.stores.values():
        store.heal()
        store.start()
    await call(client)

    assert cancelled
    assert left == 0
    assert await client.batch_get(PAIRS) == PAIRS


async def cancelled_when_blocked(call: Callable[[], Coroutine[Any, Any, object]]) -> bool:
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await call()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await wait_all_tasks_blocked()
        scope.cancel()
    return scope.cancelled_caught


@pytest.mark.parametrize("steps", range(0, 40, 2))
async def test_opening_cancelled_at_any_step_leaves_nothing_behind(cluster: FakeCluster, steps: int) -> None:
    await prepare(cluster)
    client = RawClient(cluster.url, api_version="v1ttl", config=RawConfig(), transport=cluster.transport)

    async def use() -> None:
        async with client:
            await client.get(b"h")

    await cancelled_after(steps, use)

    assert cluster.transport.open_connections() == []
    async with client:
        assert await client.batch_get(PAIRS) == PAIRS
    assert cluster.transport.open_connections() == []
