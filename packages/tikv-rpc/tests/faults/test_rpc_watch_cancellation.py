"""The watch over stores may be cancelled wherever it waits: nothing of it is left, and it works when run again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from tikv_pd import Backoffer, Deadline, PdClient
from tikv_pd.lowlevel import Waiter
from tikv_pd.testing import MemoryConnection, MemoryTransport, virtual_time
from tikv_proto.healthpb import HealthCheckResponse
from tikv_proto.services import PD, Health, Tikv
from tikv_region import RegionCache, StoreEntry
from tikv_region.health import Liveness
from tikv_rpc import RpcConfig
from tikv_rpc._stores.watch import StoreWatch
from tikv_rpc.testing import FakeCluster, FakeStore

SOON = 0.02


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_time() if request.param == "trio" else request.param


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes half a minute comes soon, on real clocks too."""
    for name in (
        "tikv_rpc._stores.watch.RESOLVE_INTERVAL",
        "tikv_rpc._stores.watch.TICK",
        "tikv_rpc._stores.slowness.TICK",
        "tikv_region.health.TICK",
    ):
        monkeypatch.setattr(name, SOON)


class GatedConnection(MemoryConnection):
    """Gets ready only while the gate is open, and takes a moment to close."""

    def __init__(self, network: MemoryTransport, address: str, gates: GatedTransport) -> None:
        super().__init__(network, address)
        self._gates = gates

    async def ready(self, *, timeout: float) -> None:
        await self._gates.ready.wait()
        await super().ready(timeout=timeout)

    async def aclose(self) -> None:
        # As gRPC does for a moment when it closes a channel.
        await anyio.lowlevel.checkpoint()
        await super().aclose()


class GatedTransport:
    """The network of a cluster, as the watch sees it."""

    def __init__(self, network: MemoryTransport) -> None:
        self._network = network
        self.now = network.now
        self.ready = anyio.Event()
        self.ready.set()
        self.made: list[GatedConnection] = []

    def waiters(self) -> Callable[[], Waiter[Any]]:
        return self._network.waiters()

    def connect(self, address: str, *, channel: int = 0) -> GatedConnection:
        del channel
        connection = GatedConnection(self._network, address, self)
        self.made.append(connection)
        return connection


class Bench:
    """A cluster and a watch over its first store."""

    def __init__(self, cluster: FakeCluster, cache: RegionCache, store: StoreEntry) -> None:
        self.cluster = cluster
        self.gates = GatedTransport(cluster.transport)
        self.store = store
        # A look that hangs does so until it is cancelled.
        config = RpcConfig(liveness_timeout=1000, liveness_interval=SOON)
        self.watch = StoreWatch(cache, self.gates, config, lambda: None)
        self.found: list[Liveness] = []

    @property
    def fake(self) -> FakeStore:
        return self.cluster.store(self.store.id)

    async def probe(self) -> None:
        deadline = Deadline("get", 5, self.gates.now)
        self.found.append(await self.watch.probe(self.store, deadline))

    def repair(self) -> None:
        self.gates.ready.set()
        self.gates.ready = anyio.Event()
        self.gates.ready.set()
        self.cluster.pd.heal()
        self.fake.heal()
        self.fake.serving_status = HealthCheckResponse.SERVING


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    async with FakeCluster() as cluster, PdClient(cluster.url, transport=cluster.transport) as pd:
        cache = RegionCache(pd, cluster.map.codec, now=cluster.transport.now)
        backoffer = Backoffer(Deadline("test", 5, cluster.transport.now))
        store = (await cache.locate(b"a", backoffer)).leader_store
        await cache.resolve(store, backoffer)
        yield Bench(cluster, cache, store)


def nothing_is_wrong(place: Bench) -> None:
    del place


def look_connects(place: Bench) -> None:
    place.gates.ready = anyio.Event()


def look_is_not_answered(place: Bench) -> None:
    place.fake.hang_next(Health.Check)


def recovery_waits(place: Bench) -> None:
    place.fake.serving_status = HealthCheckResponse.NOT_SERVING


def recovery_looks(place: Bench) -> None:
    place.fake.fail_next(Health.Check, "UNAVAILABLE")
    place.fake.hang_next(Health.Check)


def recovery_asks_pd(place: Bench) -> None:
    place.fake.serving_status = HealthCheckResponse.NOT_SERVING
    place.cluster.pd.hang(PD.GetStore)


def health_is_asked(place: Bench) -> None:
    place.watch.slowness.record(place.store, 0.001)
    place.watch.slowness.on_feedback(place.store.id, 0, 100)
    place.fake.hang_next(Tikv.GetHealthFeedback, times=math.inf)


PLACES = [
    nothing_is_wrong,
    look_connects,
    look_is_not_answered,
    recovery_waits,
    recovery_looks,
    recovery_asks_pd,
    health_is_asked,
]


async def cancel_scope(place: Bench, act: Callable[[], Awaitable[None]]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(place.watch.run)
        await act()
        tasks.cancel_scope.cancel()


async def cancel_task(place: Bench, act: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.get_running_loop().create_task(place.watch.run())
    await act()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("anyio_backend", "cancel"),
    [("trio", cancel_scope), ("asyncio", cancel_scope), ("asyncio", cancel_task)],
    indirect=["anyio_backend"],
)
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("at", PLACES)
async def test_a_watch_cancelled_anywhere_leaves_nothing_and_runs_again(
    at: Callable[[Bench], None],
    times: int,
    cancel: Callable[[Bench, Callable[[], Awaitable[None]]], Awaitable[None]],
) -> None:
    async with bench() as place, anyio.create_task_group() as callers:

        async def hang() -> None:
            callers.start_soon(place.probe)
            # Until each of its periods has passed a few times.
            await anyio.sleep(5 * SOON)

        for _ in range(times):
            at(place)
            await cancel(place, hang)
            assert [connection for connection in place.gates.made if not connection.closed] == []
            place.repair()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(place.watch.run)
            await anyio.wait_all_tasks_blocked()
            await place.probe()
            await anyio.sleep(3 * SOON)
            tasks.cancel_scope.cancel()

    assert place.found[-1] is Liveness.REACHABLE
    assert len(place.found) == times + 1
    assert place.store.health.liveness is Liveness.REACHABLE


async def test_those_who_wait_learn_at_once_that_the_watch_has_ended() -> None:
    async with bench() as place, anyio.create_task_group() as callers:
        place.fake.hang_next(Health.Check)

        async def hang() -> None:
            callers.start_soon(place.probe)
            await anyio.sleep(SOON)

        await cancel_scope(place, hang)
        await anyio.wait_all_tasks_blocked()

    assert place.found == [Liveness.UNKNOWN]
    assert place.store.health.liveness is Liveness.REACHABLE


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_caller_cancelled_natively_leaves_the_look_to_others() -> None:
    async with bench() as place, anyio.create_task_group() as tasks:
        tasks.start_soon(place.watch.run)
        place.fake.delay_next(Health.Check, 2 * SOON)
        gone = asyncio.get_running_loop().create_task(place.probe())
        await anyio.sleep(SOON)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await place.probe()
        tasks.cancel_scope.cancel()

    assert place.found == [Liveness.REACHABLE]
    assert len(place.cluster.requests(Health.Check)) == 1
