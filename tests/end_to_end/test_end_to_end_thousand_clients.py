"""A thousand clients, opened, used, and closed with calls in flight: nothing is left of them."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import attrs
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_pd import ConfigError, PdClient, PdUnavailable, TikvError
from tikv_raw import PdConfig, RawClient, RawConfig

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Engine

EngineOn = Callable[..., AbstractAsyncContextManager["Engine"]]
Use = Callable[[EmbeddedCluster, EngineOn], Coroutine[Any, Any, None]]

HELD = b"held"
"""Requests for this key are never answered."""
CLIENTS = 1000
AT_ONCE = 8

pytestmark = pytest.mark.usefixtures("nothing_is_logged")


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(split_keys=[b"i", b"p"]) as running:
        running.faults.on("RawGet", "RawPut", "RawCompareAndSwap", when=lambda call: call.request.key == HELD).hold()
        running.faults.on("RawBatchPut").hold()
        running.pd.lose_requests("GetOperator", times=None)
        yield running


@attrs.frozen
class Left:
    """What a process holds."""

    files: int
    """Sockets included."""
    tasks: int
    threads: int

    @classmethod
    def now(cls) -> Left:
        # What a cancelled call refers to in a circle, gRPC's channel among it, goes when Python gets to it.
        gc.collect()
        return cls(sum(1 for _ in Path("/proc/self/fd").iterdir()), len(asyncio.all_tasks()), threading.active_count())

    @classmethod
    async def at_rest(cls) -> Left:
        """Return what has not changed for a while: gRPC's own threads close sockets when they get to it."""
        seen: list[Left] = []
        while len(seen) < 10 or len(set(seen[-10:])) > 1:
            seen.append(cls.now())
            await anyio.sleep(0.01)
        return seen[-1]


async def fails(call: Awaitable[object]) -> None:
    """Wait for a call whose client is closed under it."""
    with pytest.raises(TikvError):
        await call


async def close_under(calls: anyio.abc.TaskGroup, *under_way: Awaitable[object]) -> None:
    """Let calls get under way; they end when the client is closed."""
    for call in under_way:
        calls.start_soon(fails, call)
    await anyio.sleep(0.003)


async def raw(cluster: EmbeddedCluster, _: EngineOn) -> None:
    async with anyio.create_task_group() as calls, RawClient(cluster.url) as client:
        await client.put(b"a", b"v")
        assert await client.get(b"a") == b"v"
        await close_under(calls, client.get(HELD), client.put(HELD, b"v"), client.batch_put({b"b": b"v", b"z": b"v"}))


async def raw_unary(cluster: EmbeddedCluster, _: EngineOn) -> None:
    async with anyio.create_task_group() as calls, RawClient(cluster.url) as client:
        await close_under(calls, client.compare_and_swap(HELD, None, b"v"), client.get(HELD))


async def raw_scan(cluster: EmbeddedCluster, _: EngineOn) -> None:
    async with RawClient(cluster.url) as client:
        async for _pair in client.scan():
            break


async def pd(cluster: EmbeddedCluster, _: EngineOn) -> None:
    async with anyio.create_task_group() as calls, PdClient(cluster.url) as client:
        await client.get_ts()
        await close_under(calls, client.get_operator(1), client.get_operator(2))


async def engine(cluster: EmbeddedCluster, engine_on: EngineOn) -> None:
    async with anyio.create_task_group() as calls, engine_on(cluster) as opened:
        await opened.put(b"z", b"v")
        await close_under(calls, opened.get(HELD), opened.put(HELD, b"v"))


async def cancelled(cluster: EmbeddedCluster, engine_on: EngineOn) -> None:
    """While it is opened, most of them."""
    with anyio.move_on_after(random.random() * 0.02):
        await random.choice([raw, pd, engine])(cluster, engine_on)


async def refused(cluster: EmbeddedCluster, _: EngineOn) -> None:
    with pytest.raises(ConfigError):
        async with RawClient(cluster.url, keyspace="nobody", api_version="v1"):
            pass
    with pytest.raises(TikvError):
        async with RawClient(cluster.url, keyspace="nobody"):
            pass


async def nobody_is_there(cluster: EmbeddedCluster, _: EngineOn) -> None:
    del cluster
    config = RawConfig(pd=PdConfig(open_timeout=0.01))
    with pytest.raises(PdUnavailable):
        async with RawClient("127.0.0.1:1", config=config):
            pass


USES: list[Use] = [raw, raw_unary, raw_scan, pd, engine, cancelled, refused, nobody_is_there]


async def test_a_thousand_clients_leave_nothing(cluster: EmbeddedCluster, engine_on: EngineOn) -> None:
    async def use_some(uses: Iterator[Use]) -> None:
        for use in uses:
            await use(cluster, engine_on)

    # What gRPC makes once and keeps, and what the cluster needs to serve so many at once.
    for _ in range(2):
        await use_some(iter(USES))
    before = await Left.at_rest()
    objects = len(gc.get_objects())
    uses = iter(USES * (CLIENTS // len(USES)))
    began = time.monotonic()

    async with anyio.create_task_group() as tasks:
        for _ in range(AT_ONCE):
            tasks.start_soon(use_some, uses)

    elapsed = time.monotonic() - began
    after = await Left.at_rest()
    assert after.tasks <= before.tasks
    assert after.files <= before.files
    assert after.threads <= before.threads
    # Not one object for each client.
    assert len(gc.get_objects()) - objects < CLIENTS
    print(f"{CLIENTS} clients took {elapsed:.1f} s")
    # Wanted is 30 s; the rest is for a busy machine.
    assert elapsed < 45
