"""What a client leaves behind: nothing after it is closed, and nothing after a call that was cancelled."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_raw import ClosedError, RawClient, RawConfig, TikvError, UndeterminedError

Operation = Callable[[RawClient], Coroutine[Any, Any, None]]

KEYS = [b"%02d" % number for number in range(20)]
SPLITS = [b"05", b"10", b"15"]
PAIRS = {key: b"value of " + key for key in KEYS}
ROUNDS = 100
"""Cancellations of each operation, of each of the two kinds."""

pytestmark = pytest.mark.usefixtures("nothing_is_logged")


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(api_version="v1ttl", split_keys=SPLITS) as running:
        yield running


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[RawClient]:
    config = RawConfig(scan_page=3, batch_keys=4)
    async with RawClient(cluster.url, api_version="v1ttl", config=config) as opened:
        await opened.batch_put(PAIRS)
        yield opened


@pytest.fixture(scope="module")
def other_process() -> Iterator[str]:
    """The address of a cluster in another process, so that all sockets of this one are the client's."""
    command = [sys.executable, "-m", "tikv_embedded", "serve", "--api-version", "v1ttl", "--split-keys", "05,10,15"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[1]
        finally:
            server.terminate()


async def get(client: RawClient) -> None:
    assert await client.get(b"07") == PAIRS[b"07"]


async def batch_get(client: RawClient) -> None:
    assert await client.batch_get(KEYS) == PAIRS


async def put(client: RawClient) -> None:
    await client.put(b"07", PAIRS[b"07"])


async def batch_put(client: RawClient) -> None:
    await client.batch_put(PAIRS)


async def delete(client: RawClient) -> None:
    await client.delete(b"missing")


async def batch_delete(client: RawClient) -> None:
    await client.batch_delete([key + b"?" for key in KEYS])


async def delete_range(client: RawClient) -> None:
    await client.delete_range(b"2", everything=True)


async def scan(client: RawClient) -> None:
    assert [pair async for pair in client.scan()] == list(PAIRS.items())


async def scan_reversed(client: RawClient) -> None:
    assert [pair async for pair in client.scan(reverse=True, limit=11)] == list(PAIRS.items())[:-12:-1]


async def ttl(client: RawClient) -> None:
    assert await client.ttl(b"07") == 0


async def compare_and_swap(client: RawClient) -> None:
    assert (await client.compare_and_swap(b"07", PAIRS[b"07"], PAIRS[b"07"])).swapped


async def checksum(client: RawClient) -> None:
    assert (await client.checksum()).total_kvs == len(KEYS)


OPERATIONS: list[Operation] = [
    get, batch_get, put, batch_put, delete, batch_delete, delete_range, scan, scan_reversed, ttl, compare_and_swap,
    checksum,
]  # fmt: skip


def named(function: Callable[..., object]) -> str:
    return function.__name__


def sockets() -> int:
    # What a cancelled call refers to in a circle, gRPC's channel among it, goes when Python gets to it.
    gc.collect()
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # The one that lists the directory is gone.
            found += str(entry.readlink()).startswith("socket:")
    return found


async def duration(use: Callable[[], Awaitable[None]]) -> float:
    """Return how long a call takes when nothing else keeps the machine busy: the shortest of some."""
    shortest = math.inf
    for _ in range(10):
        started = time.perf_counter()
        await use()
        shortest = min(shortest, time.perf_counter() - started)
    return shortest


def count_tasks() -> int:
    return len(asyncio.all_tasks())


async def at_rest(count: Callable[[], int]) -> int:
    """Return a count that has not changed for a while: gRPC's own threads close sockets when they get to it."""
    seen: list[int] = []
    while len(seen) < 20 or len(set(seen[-20:])) > 1:
        seen.append(count())
        await anyio.sleep(0.005)
    return seen[-1]


def in_flight(client: RawClient) -> int:
    return client.stats().in_flight


async def cancel_in_scope(call: Awaitable[None], after: float) -> bool:
    with anyio.move_on_after(after) as scope:
        await call
    return scope.cancelled_caught


async def cancel_natively(call: Awaitable[None], after: float) -> bool:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(after)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


@pytest.mark.parametrize("cancel", [cancel_in_scope, cancel_natively], ids=named)
@pytest.mark.parametrize("operation", OPERATIONS, ids=named)
async def test_a_call_cancelled_at_any_moment_leaves_the_client_usable(
    client: RawClient,
    operation: Operation,
    cancel: Callable[[Awaitable[None], float], Awaitable[bool]],
) -> None:
    chance = random.Random(4)
    typical = await duration(lambda: operation(client))
    tasks = count_tasks()
    cancelled = 0

    for _ in range(ROUNDS):
        cancelled += await cancel(operation(client), chance.random() * typical * 1.2)

    assert cancelled > ROUNDS / 10
    await operation(client)
    assert await client.batch_get(KEYS) == PAIRS
    assert await at_rest(count_tasks) <= tasks
    assert in_flight(client) == 0


async def test_calls_cancelled_by_the_hundred_leave_the_others_alone(client: RawClient) -> None:
    chance = random.Random(5)
    finished = 0

    async def call() -> None:
        nonlocal finished
        operation = chance.choice(OPERATIONS)
        if chance.random() < 0.5:
            await cancel_in_scope(operation(client), chance.random() * 0.02)
        else:
            await operation(client)
            finished += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(400):
            tasks.start_soon(call)

    assert finished > 100
    assert in_flight(client) == 0


async def test_a_scan_cancelled_at_any_moment_goes_on_where_it_was(client: RawClient) -> None:
    chance = random.Random(6)
    cancelled = 0
    for _ in range(ROUNDS // 4):
        scan, found = client.scan(), []
        for _ in range(len(KEYS)):
            with anyio.move_on_after(chance.random() * 0.0005) as scope:
                found.append(await anext(scan))
            cancelled += scope.cancelled_caught
        found += [pair async for pair in scan]

        assert found == list(PAIRS.items())

    assert cancelled


async def test_a_closed_client_leaves_no_task_thread_or_socket(other_process: str) -> None:
    async def use() -> None:
        config = RawConfig(scan_page=3, batch_keys=4)
        async with RawClient(other_process, api_version="v1ttl", config=config) as client:
            await client.batch_put(PAIRS)
            async with anyio.create_task_group() as tasks:
                for operation in OPERATIONS:
                    tasks.start_soon(operation, client)
            left_open = client.scan()
            await anext(left_open)
            async for _ in client.scan(reverse=True):
                break

    await use()  # What gRPC makes once and keeps.
    open_sockets, tasks, threads = await at_rest(sockets), await at_rest(count_tasks), threading.active_count()

    for _ in range(5):
        await use()

    assert await at_rest(count_tasks) <= tasks
    assert await at_rest(sockets) == open_sockets
    assert threading.active_count() == threads


@pytest.mark.parametrize("cancel", [cancel_in_scope, cancel_natively], ids=named)
async def test_opening_using_and_closing_cancelled_at_any_moment_leaves_nothing(
    other_process: str, cancel: Callable[[Awaitable[None], float], Awaitable[bool]]
) -> None:
    async def use() -> None:
        async with RawClient(other_process, api_version="v1ttl") as client:
            await client.batch_put(PAIRS)

    chance = random.Random(7)
    typical = await duration(use)
    open_sockets, tasks = await at_rest(sockets), await at_rest(count_tasks)

    cancelled = 0
    for _ in range(ROUNDS // 2):
        cancelled += await cancel(use(), chance.random() * typical)

    assert cancelled > ROUNDS / 10
    assert await at_rest(count_tasks) <= tasks
    assert await at_rest(sockets) == open_sockets
    await use()


async def test_a_client_whose_opening_failed_leaves_nothing(other_process: str) -> None:
    open_sockets, tasks = await at_rest(sockets), await at_rest(count_tasks)

    for _ in range(5):
        with pytest.raises(TikvError):
            async with RawClient(other_process, keyspace="nobody"):
                pass

    assert await at_rest(count_tasks) <= tasks
    assert await at_rest(sockets) == open_sockets


async def test_what_the_body_raises_is_raised_as_it_is(cluster: EmbeddedCluster) -> None:
    async def fail() -> None:
        async with RawClient(cluster.url, api_version="v1ttl") as client:
            await client.put(b"k", b"v")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        await fail()

    assert caught.value.__cause__ is None


async def test_calls_under_way_fail_when_the_client_is_closed(cluster: EmbeddedCluster) -> None:
    outcomes: dict[str, type[BaseException] | None] = {}

    async def observe(operation: Operation, client: RawClient) -> None:
        try:
            await operation(client)
            outcomes[operation.__name__] = None
        except Exception as error:
            outcomes[operation.__name__] = type(error)

    for store in cluster.stores():
        await cluster.stop_store(store.id, elect=False)
    async with anyio.create_task_group() as tasks:
        async with RawClient(cluster.url, api_version="v1ttl") as client:
            for operation in OPERATIONS:
                tasks.start_soon(observe, operation, client)
            await anyio.sleep(0.2)
            assert outcomes == {}
        closed = anyio.current_time()

    assert anyio.current_time() < closed + 1.0
    assert len(outcomes) == len(OPERATIONS)
    assert set(outcomes.values()) <= {ClosedError, UndeterminedError}


async def test_a_scan_of_a_closed_client_ends_with_an_error_after_what_was_fetched(cluster: EmbeddedCluster) -> None:
    config = RawConfig(scan_page=3)
    async with RawClient(cluster.url, api_version="v1ttl", config=config) as client:
        await client.batch_put(PAIRS)
        scan = client.scan()
        first = await anext(scan)
        await anyio.sleep(0.05)

    rest = [await anext(scan) for _ in range(2)]
    for _ in range(2):
        with pytest.raises(ClosedError):
            await anext(scan)

    assert [first, *rest] == list(PAIRS.items())[:3]
    await scan.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(scan)


async def test_a_scan_closed_by_another_task_ends_for_the_one_that_waits(cluster: EmbeddedCluster) -> None:
    async with RawClient(cluster.url, api_version="v1ttl", config=RawConfig(scan_page=1)) as client:
        await client.batch_put(PAIRS)
        scan = client.scan()
        await anext(scan)
        for store in cluster.stores():
            await cluster.stop_store(store.id, elect=False)

        async def close() -> None:
            await anyio.sleep(0.05)
            await scan.aclose()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(close)
            with anyio.fail_after(5.0):
                rest = [pair async for pair in scan]

    assert len(rest) <= 2


async def test_several_tasks_share_a_scan(client: RawClient) -> None:
    found = []
    scan = client.scan()

    async def take() -> None:
        async for pair in scan:
            found.append(pair)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(take)

    assert sorted(found) == list(PAIRS.items())
