"""BatchCommands over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest
from tikv_pd.errors import RpcError
from tikv_pd.grpc_transport import GrpcTransport
from tikv_pd.lowlevel import BackgroundTasks
from tikv_proto import kvrpcpb, tikvpb
from tikv_proto.services import Tikv
from tikv_rpc import Effect, Request, RpcConfig
from tikv_rpc._stores.batch import BatchClient
from tikv_rpc._stores.store import StoreClient


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Server:
    """A store that answers RawGet with the key, the last request of a message first."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.garbled = False
        self.asked = anyio.Event()
        self._grpc: Any = None
        self._calls: set[asyncio.Task[Any]] = set()

    async def start(self, port: int = 0) -> int:
        self._grpc = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        batched: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            self._serve, tikvpb.BatchCommandsRequest.FromString, self._serialized
        )
        unary: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self._answer, kvrpcpb.RawGetKeyTTLRequest.FromString, self._serialized
        )
        methods = {Tikv.BatchCommands.name: batched, Tikv.RawGetKeyTTL.name: unary}
        self._grpc.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("tikvpb.Tikv", methods)])
        port = self._grpc.add_insecure_port(f"127.0.0.1:{port}")
        await self._grpc.start()
        return port

    async def stop(self) -> None:
        await self._grpc.stop(None)
        # What gRPC reports of a call after the event loop is closed, it reports to the next one, and may hang there.
        if self._calls:
            await asyncio.wait(self._calls)
        await asyncio.sleep(0.02)

    def _begin(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def _serialized(self, message: Any) -> bytes:
        return b"\xff\xff\xff" if self.garbled else bytes(message.SerializeToString())

    async def _answer(self, _request: Any, _context: Any) -> kvrpcpb.RawGetKeyTTLResponse:
        self._begin()
        return kvrpcpb.RawGetKeyTTLResponse(ttl=5)

    async def _serve(
        self, requests: AsyncIterator[tikvpb.BatchCommandsRequest], _context: Any
    ) -> AsyncIterator[tikvpb.BatchCommandsResponse]:
        self._begin()
        async for message in requests:
            self.sizes.append(len(message.requests))
            for number, request in reversed(list(zip(message.request_ids, message.requests, strict=True))):
                if request.RawGet.key == b"never":
                    self.asked.set()
                    continue
                answer = tikvpb.BatchCommandsResponse.Response(RawGet=kvrpcpb.RawGetResponse(value=request.RawGet.key))
                yield tikvpb.BatchCommandsResponse(request_ids=[number], responses=[answer])


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    yield server
    await server.stop()


@asynccontextmanager
async def client_of(port: int) -> AsyncIterator[BatchClient]:
    transport = GrpcTransport()
    connection = transport.connect(f"127.0.0.1:{port}")
    client = BatchClient(transport, connection, RpcConfig(connect_timeout=2))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.run)
        yield client
        tasks.cancel_scope.cancel()
    await connection.aclose()


async def get(client: BatchClient, key: bytes, timeout: float = 5) -> bytes:
    payload = kvrpcpb.RawGetRequest(key=key).SerializeToString()
    response = await client.call("RawGet", b"", payload, GrpcTransport().now() + timeout, timeout)
    return bytes(response.value)


async def get_until_it_works(client: BatchClient, key: bytes) -> bytes:
    with anyio.fail_after(10):
        while True:
            try:
                return await get(client, key)
            except RpcError:
                await anyio.sleep(0.05)


async def test_many_requests_share_messages_and_each_gets_its_own_answer(server: Server) -> None:
    port = await server.start()
    answers: dict[int, bytes] = {}

    async def ask(client: BatchClient, number: int) -> None:
        answers[number] = await get(client, b"%d" % number)

    async with client_of(port) as client, anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(ask, client, number)

    assert answers == {number: b"%d" % number for number in range(300)}
    assert len(server.sizes) <= 10


async def test_calls_fail_when_the_server_goes_and_work_when_it_is_back(server: Server) -> None:
    port = await server.start()
    errors: list[RpcError] = []

    async def ask(client: BatchClient) -> None:
        try:
            await get(client, b"never")
        except RpcError as error:
            errors.append(error)

    async with client_of(port) as client:
        assert await get(client, b"a") == b"a"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, client)
            await server.asked.wait()
            await server.stop()
        gone = errors.pop()
        await ask(client)
        await server.start(port)
        value = await get_until_it_works(client, b"b")

    assert gone.sent
    assert not errors[0].sent
    assert value == b"b"


async def test_a_deadline_and_a_cancellation_leave_the_stream_alone(server: Server) -> None:
    port = await server.start()

    async with client_of(port) as client:
        with pytest.raises(RpcError, match="no answer within"):
            await get(client, b"never", timeout=0.05)
        with anyio.move_on_after(0.05) as scope:
            await get(client, b"never")
        value = await get(client, b"a")
        stats = client.stats()

    assert scope.cancelled_caught
    assert value == b"a"
    assert stats.in_flight == 0


async def test_an_answer_that_cannot_be_read_fails_the_calls_and_not_the_client(server: Server) -> None:
    port = await server.start()

    async with client_of(port) as client:
        server.garbled = True
        with pytest.raises(RpcError) as raised:
            await get(client, b"a")
        server.garbled = False
        value = await get_until_it_works(client, b"b")

    assert raised.value.code == "INTERNAL"
    assert value == b"b"


async def test_the_same_holds_for_what_is_not_batched(server: Server) -> None:
    port = await server.start()
    request = Request(Tikv.RawGetKeyTTL, kvrpcpb.RawGetKeyTTLRequest(key=b"a"), Effect.READ)

    async with BackgroundTasks() as tasks:
        transport = GrpcTransport()
        store = StoreClient(transport, f"127.0.0.1:{port}", RpcConfig(), tasks)
        server.garbled = True
        with pytest.raises(RpcError) as raised:
            await store.call(request, b"", transport.now() + 5, 5)
        server.garbled = False
        response = await store.call(request, b"", transport.now() + 5, 5)
        store.close()

    assert raised.value.code == "INTERNAL"
    assert response.ttl == 5


async def test_a_store_that_is_not_there_is_told_from_one_that_was_lost(server: Server) -> None:
    port = await server.start()
    await server.stop()
    request = Request(Tikv.RawGetKeyTTL, kvrpcpb.RawGetKeyTTLRequest(key=b"a"), Effect.ONCE)

    async with BackgroundTasks() as tasks:
        transport = GrpcTransport()
        store = StoreClient(transport, f"127.0.0.1:{port}", RpcConfig(), tasks)
        with pytest.raises(RpcError) as raised:
            await store.call(request, b"", transport.now() + 5, 5)
        store.close()

    assert raised.value.code == "UNAVAILABLE"
    assert not raised.value.sent
