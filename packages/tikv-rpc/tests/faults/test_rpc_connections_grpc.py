"""The connections to a store over real sockets: how many there are, which requests they carry, and how they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest
from tikv_pd import ChannelConfig
from tikv_pd.errors import RpcError
from tikv_pd.grpc_transport import GrpcTransport
from tikv_pd.lowlevel import BackgroundTasks
from tikv_proto import kvrpcpb, tikvpb
from tikv_proto.services import Tikv
from tikv_rpc import Effect, Request, RpcConfig
from tikv_rpc._stores.store import StoreClient


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Store:
    """A store that answers gets with the key, unless it is `b"never"`, and remembers where requests came from."""

    def __init__(self) -> None:
        self.reads = True
        self.batched: list[tuple[str, dict[str, str]]] = []
        self.unary: list[tuple[str, dict[str, str]]] = []
        self.asked = anyio.Event()
        self._server: Any = None
        self._calls: set[asyncio.Task[Any]] = set()

    async def start(self, *, with_batches: bool = True) -> int:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.http2.max_ping_strikes", 0)])
        get: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self._get, kvrpcpb.RawGetRequest.FromString, _serialized
        )
        batches: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            self._serve, tikvpb.BatchCommandsRequest.FromString, _serialized
        )
        ttl: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self._ttl, kvrpcpb.RawGetKeyTTLRequest.FromString, _serialized
        )
        methods = {"RawGet": get, "RawGetKeyTTL": ttl} | ({"BatchCommands": batches} if with_batches else {})
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("tikvpb.Tikv", methods)])
        port: int = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return port

    async def stop(self) -> None:
        await self._server.stop(None)
        if self._calls:
            await asyncio.wait(self._calls)
        await asyncio.sleep(0.02)

    def _begin(self, seen: list[tuple[str, dict[str, str]]], context: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        sent = {key: value for key, value in context.invocation_metadata() or () if key.startswith("tikv-")}
        seen.append((context.peer(), sent))

    async def _get(self, request: kvrpcpb.RawGetRequest, context: Any) -> kvrpcpb.RawGetResponse:
        self._begin(self.unary, context)
        return kvrpcpb.RawGetResponse(value=request.key)

    async def _ttl(self, _request: Any, context: Any) -> kvrpcpb.RawGetKeyTTLResponse:
        self._begin(self.unary, context)
        return kvrpcpb.RawGetKeyTTLResponse(ttl=5)

    async def _serve(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[tikvpb.BatchCommandsResponse]:
        self._begin(self.batched, context)
        if not self.reads:
            await asyncio.sleep(3600)
        async for message in requests:
            for number, request in zip(message.request_ids, message.requests, strict=True):
                if request.RawGet.key == b"never":
                    self.asked.set()
                    continue
                answer = tikvpb.BatchCommandsResponse.Response(RawGet=kvrpcpb.RawGetResponse(value=request.RawGet.key))
                yield tikvpb.BatchCommandsResponse(request_ids=[number], responses=[answer])


def _serialized(message: Any) -> bytes:
    return bytes(message.SerializeToString())


class Road:
    """What lies between a client and a store: bytes pass, until nothing does any more, and nobody is told."""

    def __init__(self, port: int) -> None:
        self.is_blocked = False
        self.opened = 0
        self.open = 0
        self._port = port
        self._left = anyio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.open += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, far_writer]
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._pass, reader, far_writer, tasks.cancel_scope)
                tasks.start_soon(self._pass, far_reader, writer, tasks.cancel_scope)
        finally:
            self.open -= 1
            self._left.set()
            writer.close()
            far_writer.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.close()

    async def empty(self) -> None:
        """Wait until no connection is open."""
        with anyio.fail_after(5):
            while self.open:
                self._left = anyio.Event()
                await self._left.wait()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, scope: anyio.CancelScope) -> None:
        try:
            while data := await reader.read(65536):
                if not self.is_blocked:
                    writer.write(data)
                    await writer.drain()
        except ConnectionError:
            pass
        scope.cancel()


@asynccontextmanager
async def road_to(port: int) -> AsyncIterator[tuple[Road, int]]:
    road = Road(port)
    server = await asyncio.start_server(road.carry, "127.0.0.1")
    try:
        yield road, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        road.cut()
        await server.wait_closed()
        await road.empty()


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    store = Store()
    yield store
    await store.stop()


@asynccontextmanager
async def client_of(port: int, config: RpcConfig) -> AsyncIterator[StoreClient]:
    async with BackgroundTasks() as tasks:
        yield StoreClient(GrpcTransport(config=config.channel), f"127.0.0.1:{port}", config, tasks)


async def get(client: StoreClient, key: bytes = b"k", timeout: float = 5, **how: Any) -> bytes:
    request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=key), Effect.READ)
    response = await client.call(request, b"", time.monotonic() + timeout, timeout, **how)
    return bytes(response.value)


async def ttl(client: StoreClient, timeout: float = 5, **how: Any) -> int:
    request = Request(Tikv.RawGetKeyTTL, kvrpcpb.RawGetKeyTTLRequest(key=b"k"), Effect.READ)
    return int((await client.call(request, b"", time.monotonic() + timeout, timeout, **how)).ttl)


async def failure(call: Awaitable[object]) -> RpcError:
    with pytest.raises(RpcError) as raised:
        await call
    return raised.value


async def test_each_connection_is_a_socket_of_its_own(store: Store) -> None:
    port = await store.start()

    async with client_of(port, RpcConfig(connections=3)) as client:
        for _ in range(6):
            await get(client)
            await ttl(client)

    assert len({peer for peer, _ in store.batched}) == 3
    assert {peer for peer, _ in store.unary} == {peer for peer, _ in store.batched}
    assert [sent for _, sent in store.batched] == [{"tikv-batch-conn-index": str(number)} for number in range(3)]


async def test_forwarded_requests_share_the_socket_and_not_the_stream(store: Store) -> None:
    port = await store.start()

    async with client_of(port, RpcConfig()) as client:
        await get(client)
        await get(client, forward="tikv2:20160")
        await ttl(client, forward="tikv2:20160")

    assert len({peer for peer, _ in store.batched + store.unary}) == 1
    assert [sent for _, sent in store.batched + store.unary] == [
        {"tikv-batch-conn-index": "0"},
        {"tikv-batch-conn-index": "0", "tikv-forwarded-host": "tikv2:20160"},
        {"tikv-forwarded-host": "tikv2:20160"},
    ]


async def test_a_peer_that_vanished_fails_what_is_in_flight_by_keepalive(store: Store) -> None:
    config = RpcConfig(channel=ChannelConfig(keepalive_time=0.3, keepalive_timeout=0.3))
    async with road_to(await store.start()) as (road, port), client_of(port, config) as client:
        await get(client)
        errors: list[RpcError] = []

        async def ask() -> None:
            errors.append(await failure(get(client, b"never", 30)))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
            await store.asked.wait()
            road.is_blocked = True
            began = time.monotonic()
        seconds = time.monotonic() - began
        road.is_blocked = False
        after = b""
        while not after:
            # A connection made while the road was blocked may be found out only now.
            with suppress(RpcError):
                after = await get(client, b"a")

    assert seconds < 5
    assert {(error.code, error.sent) for error in errors} == {("UNAVAILABLE", True)}
    assert after == b"a"


async def test_an_idle_connection_is_closed_and_the_next_call_opens_another(store: Store) -> None:
    async with road_to(await store.start()) as (road, port), client_of(port, RpcConfig(idle_timeout=0.1)) as client:
        for _ in range(3):
            assert await get(client, b"a") == b"a"
            await road.empty()
            assert await ttl(client) == 5
            await road.empty()

        assert road.opened == 6
        assert client.stats().reconnects == 0


async def test_a_store_without_batches_is_asked_one_by_one(store: Store) -> None:
    port = await store.start(with_batches=False)
    values: list[bytes] = []

    async with client_of(port, RpcConfig()) as client, anyio.create_task_group() as tasks:

        async def ask(key: bytes) -> None:
            values.append(await get(client, key))

        for number in range(20):
            tasks.start_soon(ask, b"%d" % number)

    assert sorted(values) == sorted(b"%d" % number for number in range(20))
    assert len(store.unary) == client.stats().unary == 20


async def test_a_store_that_reads_nothing_leaves_requests_with_their_callers(store: Store) -> None:
    store.reads = False
    port = await store.start()
    errors: list[RpcError] = []

    async with client_of(port, RpcConfig(max_batch_bytes=1 << 20)) as client:

        async def ask() -> None:
            errors.append(await failure(get(client, bytes(1 << 20), 1)))

        async with anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(ask)
        stats = client.stats()

    # What gRPC and the sockets take, and no more.
    assert stats.messages < 20
    assert sum(not error.sent for error in errors) == 40 - stats.requests
    assert {error.code for error in errors} == {"DEADLINE_EXCEEDED"}
    assert stats.in_flight == stats.queued == 0


async def test_a_closed_client_leaves_no_socket(store: Store) -> None:
    async with road_to(await store.start()) as (road, port):
        async with client_of(port, RpcConfig(connections=2)) as client:
            await get(client)
            await get(client)
            await get(client, forward="tikv2:20160")
            was_open = road.open

        await road.empty()

    assert was_open == 2
