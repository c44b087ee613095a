"""An operation may be cancelled wherever it waits: nothing of it is left, and the next one works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from tikv_pd import PdClient, RpcError
from tikv_pd.lowlevel import Metadata, Req, Resp, Waiter
from tikv_pd.testing import MemoryConnection, MemoryStream, MemoryTransport, virtual_time
from tikv_proto.services import PD, Rpc
from tikv_region import KeyRange, RegionCache
from tikv_rpc import RpcClient
from tikv_rpc.testing import FakeCluster

if TYPE_CHECKING:
    from tests.conftest import Kv


class GatedConnection(MemoryConnection):
    """Gets ready, and takes messages, only while the gates are open."""

    def __init__(self, network: MemoryTransport, address: str, gates: GatedTransport) -> None:
        super().__init__(network, address)
        self._gates = gates

    async def ready(self, *, timeout: float) -> None:
        with anyio.move_on_after(timeout):
            await self._gates.ready.wait()
            return await super().ready(timeout=timeout)
        raise RpcError(self.address, "connect", "UNAVAILABLE", "not connected", sent=False)

    def stream(self, rpc: Rpc[Req, Resp], *, metadata: Metadata = ()) -> MemoryStream[Req, Resp]:
        gates, stream = self._gates, super().stream(rpc, metadata=metadata)
        send = stream.send

        async def gated(request: Any) -> None:
            await gates.send.wait()
            await send(request)

        stream.send = gated  # type: ignore[method-assign]  # what a full pipe does to a writer
        return stream


class GatedTransport:
    """The network of a cluster, with gates on the connections to its stores."""

    def __init__(self, network: MemoryTransport) -> None:
        self.network = network
        self.now = network.now
        self.open()

    def waiters(self) -> Callable[[], Waiter[Any]]:
        try:
            # What they are over gRPC, done as soon as their task is cancelled.
            return asyncio.get_running_loop().create_future
        except RuntimeError:
            return self.network.waiters()

    def open(self) -> None:
        self.ready, self.send = anyio.Event(), anyio.Event()
        self.ready.set()
        self.send.set()

    def connect(self, address: str, *, channel: int = 0) -> GatedConnection:
        del channel
        connection = GatedConnection(self.network, address, self)
        self.network._connections.append(connection)
        return connection


class Bench:
    """A cluster and a client of it, with every place to hang at within reach."""

    def __init__(self, cluster: FakeCluster, gates: GatedTransport, kv: Kv) -> None:
        self.cluster = cluster
        self.gates = gates
        self.kv = kv

    def repair(self) -> None:
        waiting = self.gates.ready, self.gates.send
        self.gates.open()
        for gate in waiting:
            gate.set()
        self.cluster.pd.heal()
        for store in self.cluster.stores.values():
            store.heal()
            store.start()


@asynccontextmanager
async def bench(make_kv: type[Kv]) -> AsyncIterator[Bench]:
    async with FakeCluster([b"g", b"p"]) as cluster, PdClient(cluster.url, transport=cluster.transport) as pd:
        gates = GatedTransport(cluster.transport)
        cache = RegionCache(pd, cluster.map.codec, now=gates.now)
        async with RpcClient(cache, cluster.map.codec, cluster.pd.cluster_id, gates) as rpc:
            yield Bench(cluster, gates, make_kv(rpc))


def region_is_looked_up(place: Bench) -> None:
    for rpc in (PD.GetRegion, PD.BatchScanRegions):
        place.cluster.pd.hang(rpc)


def address_is_looked_up(place: Bench) -> None:
    place.cluster.pd.hang(PD.GetAllStores)


def connection_is_made(place: Bench) -> None:
    place.gates.ready = anyio.Event()


def message_is_written(place: Bench) -> None:
    place.gates.send = anyio.Event()


def answer_is_awaited(place: Bench) -> None:
    for store in place.cluster.stores.values():
        store.hang_next(None, times=100)


def next_attempt_is_awaited(place: Bench) -> None:
    for store in place.cluster.stores.values():
        store.stop()


def pd_is_away(place: Bench) -> None:
    for rpc in (PD.GetRegion, PD.BatchScanRegions):
        place.cluster.pd.refuse(rpc)


PLACES = [
    region_is_looked_up,
    address_is_looked_up,
    connection_is_made,
    message_is_written,
    answer_is_awaited,
    next_attempt_is_awaited,
    pd_is_away,
]
OPERATIONS: dict[str, Callable[[Kv], Awaitable[object]]] = {
    "get": lambda kv: kv.get(b"a", 100),
    "put": lambda kv: kv.put(b"a", b"1", 100),
    "ttl": lambda kv: kv.ttl(b"a", 100),
    "swap": lambda kv: kv.swap(b"a", b"", b"2", 100),
    "batch_put": lambda kv: kv.batch_put({b"a": b"1", b"h": b"2", b"q": b"3"}, timeout=100),
    "delete_range": lambda kv: kv.delete_range(KeyRange(b"b", b"x"), 100),
    "page": lambda kv: kv.page(KeyRange(b"b", b"x"), at_end=True, timeout=100),
}


async def settle() -> None:
    """Let all tasks run until they wait for something."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        await anyio.wait_all_tasks_blocked()
    else:
        for _ in range(40):
            await anyio.lowlevel.checkpoint()


async def by_scope(operation: Awaitable[object]) -> bool:
    """Cancel an operation by the scope around it, and tell whether it was under way."""
    scopes: list[anyio.CancelScope] = []
    ended = False

    async def run() -> None:
        nonlocal ended
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await operation
            ended = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await settle()
        scopes[0].cancel()
    return not ended


async def by_task(operation: Awaitable[object]) -> bool:
    """Cancel an operation as asyncio does, and tell whether it was under way."""
    task = asyncio.ensure_future(operation)
    await settle()
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


@pytest.fixture(params=["trio, scope", "asyncio, scope", "asyncio, task"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def anyio_backend(way: str) -> Any:
    return virtual_time() if way.startswith("trio") else "asyncio"


@pytest.fixture
def cancel(way: str) -> Callable[[Awaitable[object]], Awaitable[bool]]:
    return by_task if way.endswith("task") else by_scope


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("hang", PLACES, ids=lambda hang: hang.__name__)
async def test_nothing_is_left_of_an_operation_cancelled_while(
    make_kv: type[Kv],
    hang: Callable[[Bench], None],
    operation: Callable[[Kv], Awaitable[object]],
    cancel: Callable[[Awaitable[object]], Awaitable[bool]],
) -> None:
    async with bench(make_kv) as place:
        hang(place)

        was_under_way = await cancel(operation(place.kv))

        assert was_under_way or hang is message_is_written
        await settle()
        assert place.kv.rpc.stats().in_flight == 0
        place.repair()
        with anyio.fail_after(10):
            await place.kv.put(b"b", b"works")
            assert await place.kv.get(b"b") == b"works"


async def test_one_cancelled_caller_takes_nothing_from_the_others(
    make_kv: type[Kv], cancel: Callable[[Awaitable[object]], Awaitable[bool]]
) -> None:
    async with bench(make_kv) as place:
        await place.kv.put(b"a", b"1")
        answers = []

        async def get() -> None:
            answers.append(await place.kv.get(b"a"))

        place.gates.send = anyio.Event()
        blocked = place.gates.send
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await cancel(place.kv.get(b"a"))
            tasks.start_soon(get)
            await settle()
            blocked.set()

        assert answers == [b"1", b"1"]


@pytest.mark.parametrize("way", ["trio", "asyncio"])
@pytest.mark.parametrize("hang", PLACES, ids=lambda hang: hang.__name__)
async def test_the_client_closes_while_operations_hang(make_kv: type[Kv], hang: Callable[[Bench], None]) -> None:
    failures: list[str] = []

    async def run(operation: Callable[[Kv], Awaitable[object]], kv: Kv, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                await operation(kv)
            except Exception as error:
                failures.append(type(error).__name__)

    scopes = [anyio.CancelScope() for _ in OPERATIONS]
    async with anyio.create_task_group() as tasks:
        async with bench(make_kv) as place:
            hang(place)
            for operation, scope in zip(OPERATIONS.values(), scopes, strict=True):
                tasks.start_soon(run, operation, place.kv, scope)
            await settle()
        rpc = place.kv.rpc
        await settle()
        for scope in scopes:
            scope.cancel()

    assert set(failures) <= {"ClosedError", "UndeterminedError"}
    assert rpc.stats().stores == {}


@pytest.mark.parametrize("way", ["asyncio"])
async def test_a_program_cancelled_inside_the_block_closes_the_client(make_kv: type[Kv]) -> None:
    async def program() -> None:
        async with bench(make_kv) as place:
            await place.kv.put(b"a", b"1")
            answer_is_awaited(place)
            await place.kv.batch_put({b"a": b"1", b"h": b"2", b"q": b"3"})

    task = asyncio.create_task(program())
    await settle()

    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
