"""The transport over real sockets: what grpc.aio does to cancellation is healed, and every failure is an RpcError."""

from __future__ import annotations

import asyncio
import gc
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest
from tikv_pd import ConfigError, PdClient, PdConfig, PdUnavailable, RpcError, Store
from tikv_pd.grpc_transport import GrpcConnection, GrpcTransport
from tikv_pd.testing import FakePd, Handlers, MemoryTransport
from tikv_proto import pdpb
from tikv_proto.services import PD, Rpc


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class SocketStream:
    """The server's end of a real stream, as handlers for the memory transport expect it."""

    def __init__(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._requests = requests
        self.send: Callable[[Any], Awaitable[None]] = context.write

    async def receive(self) -> Any:
        try:
            return await anext(self._requests)
        except StopAsyncIteration:
            raise anyio.EndOfStream from None


def serve_unary(handle: Any) -> Any:
    async def serve(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await handle(request)
        except RpcError as error:
            await context.abort(grpc.StatusCode[error.code], error.details)

    return serve


def serve_stream(handle: Any) -> Any:
    async def serve(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            await handle(SocketStream(requests, context))
        except anyio.EndOfStream:
            pass
        except RpcError as error:
            await context.abort(grpc.StatusCode[error.code], error.details)

    return serve


def method_handler(rpc: Rpc[Any, Any], handle: Any) -> grpc.RpcMethodHandler[Any, Any]:
    if rpc.client_streaming:
        return grpc.stream_stream_rpc_method_handler(
            serve_stream(handle), rpc.request.FromString, rpc.response.SerializeToString
        )
    return grpc.unary_unary_rpc_method_handler(
        serve_unary(handle), rpc.request.FromString, rpc.response.SerializeToString
    )


@asynccontextmanager
async def listening(port: int, handlers: Handlers) -> AsyncIterator[None]:
    """Serve handlers for the memory transport on a real port of the loopback interface."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    for service in {rpc.path.split("/")[1] for rpc in handlers}:
        methods = {
            rpc.name: method_handler(rpc, handle)
            for rpc, handle in handlers.items()
            if rpc.path.startswith(f"/{service}/")
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


@asynccontextmanager
async def silent_server(port: int) -> AsyncIterator[None]:
    """Accept connections and never say a word."""

    writers: list[asyncio.StreamWriter] = []

    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(keep_silent, "127.0.0.1", port)
    yield
    server.close()
    # A client that is gone may have left before this server took notice.
    for writer in writers:
        writer.close()
    await asyncio.sleep(0)
    await server.wait_closed()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
async def pd(port: int) -> AsyncIterator[FakePd]:
    """A PD of one member; not listening yet."""
    async with MemoryTransport() as network:
        fake = FakePd(network, members=[f"127.0.0.1:{port}"])
        fake.stores[1] = Store(1, "tikv1:20160")
        yield fake
        fake.heal()


@pytest.fixture
async def server(port: int, pd: FakePd) -> AsyncIterator[FakePd]:
    """That PD, listening."""
    async with listening(port, pd.handlers(pd.members[0])):
        yield pd


@pytest.fixture
async def connection(port: int) -> AsyncIterator[GrpcConnection]:
    connection = GrpcTransport().connect(f"127.0.0.1:{port}")
    yield connection
    await connection.aclose()


HEADER = pdpb.RequestHeader(cluster_id=7)
GET_STORE = pdpb.GetStoreRequest(header=HEADER, store_id=1)


async def get_store(connection: GrpcConnection, *, timeout: float = 5) -> pdpb.GetStoreResponse:
    return await connection.unary(PD.GetStore, GET_STORE, timeout=timeout)


async def receive_timestamps(connection: GrpcConnection) -> pdpb.TsoResponse:
    stream = connection.stream(PD.Tso)
    try:
        await stream.send(pdpb.TsoRequest(header=HEADER, count=1))
        return await stream.receive()
    finally:
        stream.cancel()


Call = Callable[[GrpcConnection], Awaitable[object]]


@pytest.fixture(params=[get_store, receive_timestamps])
def call(request: pytest.FixtureRequest) -> Call:
    return request.param  # type: ignore[no-any-return]  # one of the above


@pytest.fixture
def hanging(server: FakePd) -> FakePd:
    server.hang(PD.GetStore)
    server.hang(PD.Tso)
    return server


async def test_a_call_has_its_answer(connection: GrpcConnection, server: FakePd, call: Call) -> None:
    assert await call(connection) is not None
    assert server.headers == [HEADER]


async def test_a_request_may_be_serialized_already(connection: GrpcConnection, server: FakePd) -> None:
    answer = await connection.unary(PD.GetStore, GET_STORE.SerializeToString(), timeout=5)

    assert answer.store.id == 1
    assert server.headers == [HEADER]


@pytest.mark.usefixtures("server")
async def test_a_call_may_have_no_limit(connection: GrpcConnection) -> None:
    assert (await get_store(connection, timeout=math.inf)).store.id == 1


async def test_a_scope_cancels_a_call_without_leaking_its_cancellation(
    connection: GrpcConnection, hanging: FakePd, call: Call
) -> None:
    with anyio.move_on_after(0.05) as scope:
        await call(connection)
    hanging.heal()

    assert scope.cancelled_caught
    assert await call(connection) is not None


async def test_an_outer_scope_is_not_caught_by_an_inner_one(
    connection: GrpcConnection, hanging: FakePd, call: Call
) -> None:
    with anyio.move_on_after(0.05) as outer, anyio.move_on_after(5) as inner:
        await call(connection)
    hanging.heal()

    assert outer.cancelled_caught
    assert not inner.cancelled_caught


@pytest.mark.usefixtures("hanging")
async def test_a_failing_scope_is_a_timeout(connection: GrpcConnection, call: Call) -> None:
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.05):
            await call(connection)


@pytest.mark.usefixtures("hanging")
async def test_a_timeout_of_asyncio_is_a_timeout(connection: GrpcConnection, call: Call) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call(connection), 0.05)


@pytest.mark.usefixtures("hanging")
async def test_a_task_cancelled_natively_ends_as_cancelled(connection: GrpcConnection, call: Call) -> None:
    task = asyncio.ensure_future(call(connection))
    await asyncio.sleep(0.05)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.usefixtures("hanging")
async def test_closing_the_connection_under_a_call_is_a_failure_of_the_call(
    connection: GrpcConnection, call: Call
) -> None:
    async def close_soon() -> None:
        await asyncio.sleep(0.05)
        await connection.aclose()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(close_soon)
        with pytest.raises(RpcError, match="CANCELLED"):
            await call(connection)


@pytest.mark.usefixtures("server")
async def test_a_closed_connection_refuses_calls(connection: GrpcConnection, call: Call) -> None:
    await call(connection)
    await connection.aclose()

    with pytest.raises(RpcError, match="CANCELLED"):
        await call(connection)
    with pytest.raises(RpcError, match="closed"):
        await connection.ready(timeout=5)


@pytest.mark.usefixtures("hanging")
async def test_a_call_without_answer_fails_when_its_time_is_over(connection: GrpcConnection) -> None:
    with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
        await get_store(connection, timeout=0.05)


async def test_a_closed_port_refuses_calls(connection: GrpcConnection, call: Call) -> None:
    with pytest.raises(RpcError, match="UNAVAILABLE"):
        await call(connection)
    with pytest.raises(RpcError, match="UNAVAILABLE"):
        await connection.ready(timeout=5)


async def test_the_status_of_the_server_is_kept(connection: GrpcConnection, server: FakePd, call: Call) -> None:
    server.refuse(PD.GetStore, "RESOURCE_EXHAUSTED", "slow down")
    server.refuse(PD.Tso, "RESOURCE_EXHAUSTED", "slow down")

    with pytest.raises(RpcError) as raised:
        await call(connection)

    assert (raised.value.address, raised.value.code, raised.value.details) == (
        connection.address,
        "RESOURCE_EXHAUSTED",
        "slow down",
    )


async def test_a_stream_that_the_server_ends_well_has_failed(connection: GrpcConnection, port: int, pd: FakePd) -> None:
    async def leave(_stream: object) -> None:
        return

    async with listening(port, {**pd.handlers(pd.members[0]), PD.Tso: leave}):
        stream = connection.stream(PD.Tso)

        with pytest.raises(RpcError, match="the server ended the stream"):
            await stream.receive()
        with pytest.raises(RpcError, match="UNAVAILABLE"):
            await stream.send(pdpb.TsoRequest(header=HEADER, count=1))
        with pytest.raises(RpcError, match="UNAVAILABLE"):
            await stream.receive()


@pytest.mark.usefixtures("hanging")
async def test_a_scope_cancels_a_send_that_waits_for_room(connection: GrpcConnection) -> None:
    stream = connection.stream(PD.Tso)
    large = pdpb.TsoRequest(header=HEADER, count=1, dc_location="x" * 2**20)

    with anyio.move_on_after(0.5) as scope:
        while True:
            await stream.send(large)

    stream.cancel()
    assert scope.cancelled_caught


@pytest.mark.usefixtures("server")
async def test_a_connection_is_ready_when_the_server_listens(connection: GrpcConnection) -> None:
    await connection.ready(timeout=5)

    assert (await get_store(connection)).store.id == 1


async def test_a_server_that_never_answers_is_not_ready(connection: GrpcConnection, port: int) -> None:
    async with silent_server(port):
        with pytest.raises(RpcError, match=r"not connected within 0\.2 s") as raised:
            await connection.ready(timeout=0.2)

        with anyio.move_on_after(0.05) as scope:
            await connection.ready(timeout=5)

    assert scope.cancelled_caught
    assert not raised.value.sent


@pytest.mark.usefixtures("hanging")
async def test_a_stream_cancelled_by_its_user_has_failed(connection: GrpcConnection) -> None:
    stream = connection.stream(PD.Tso)
    await stream.send(pdpb.TsoRequest(header=HEADER, count=1))

    stream.cancel()

    with pytest.raises(RpcError, match="CANCELLED"):
        await stream.receive()
    with pytest.raises(RpcError, match="CANCELLED"):
        await stream.send(pdpb.TsoRequest(header=HEADER, count=1))


async def test_a_client_works_over_sockets_and_survives_a_restart_of_pd(port: int, pd: FakePd) -> None:
    address = f"127.0.0.1:{port}"
    async with listening(port, pd.handlers(address)):
        client = await PdClient(f"tikv://{address}").__aenter__()
        before = await client.get_ts()
    try:
        async with listening(port, pd.handlers(address)):
            assert await client.get_store(1) == Store(1, "tikv1:20160")
            assert await client.get_ts() > before
    finally:
        await client.__aexit__(None, None, None)


async def test_a_client_at_a_closed_port_reports_the_address(port: int) -> None:
    client = PdClient(f"127.0.0.1:{port}", config=PdConfig(open_timeout=0.5))

    with pytest.raises(PdUnavailable, match=f"127.0.0.1:{port}: UNAVAILABLE"):
        await client.__aenter__()


async def test_a_client_at_a_port_that_speaks_http_reports_the_address(port: int) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        client = PdClient(f"127.0.0.1:{port}", config=PdConfig(open_timeout=0.5))

        with pytest.raises(PdUnavailable, match=f"127.0.0.1:{port}: "):
            await client.__aenter__()


async def test_a_client_at_a_port_that_never_answers_reports_the_address(port: int) -> None:
    async with silent_server(port):
        client = PdClient(f"127.0.0.1:{port}", config=PdConfig(open_timeout=0.5))

        with pytest.raises(PdUnavailable, match=f"127.0.0.1:{port}: "):
            await client.__aenter__()


async def test_a_host_that_does_not_exist_is_reported() -> None:
    client = PdClient("pd.invalid:2379", config=PdConfig(open_timeout=0.5))

    with pytest.raises(PdUnavailable, match=r"pd\.invalid:2379: "):
        await client.__aenter__()


@pytest.mark.usefixtures("server")
async def test_a_cancelled_stream_lets_go_of_what_holds_its_socket(connection: GrpcConnection) -> None:
    def calls() -> int:
        return sum(isinstance(each, grpc.aio.Call) for each in gc.get_objects())

    async def hold_stream() -> None:
        stream = connection.stream(PD.Tso)
        try:
            await stream.send(pdpb.TsoRequest(header=HEADER, count=1))
            await stream.receive()
            await anyio.sleep_forever()
        finally:
            stream.cancel()

    gc.collect()
    before = calls()
    gc.disable()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold_stream)
            await anyio.sleep(0.1)
            under_way = calls()
            tasks.cancel_scope.cancel()
        await connection.aclose()

        assert under_way == before + 1
        assert calls() == before
    finally:
        gc.enable()


@pytest.mark.usefixtures("server")
async def test_closing_a_connection_does_not_wait_for_the_streams_of_others(port: int) -> None:
    transport = GrpcTransport()
    kept, closed = (transport.connect(f"127.0.0.1:{port}", channel=number) for number in range(2))
    stream, other = kept.stream(PD.Tso), closed.stream(PD.Tso)
    for each in (stream, other):
        await each.send(pdpb.TsoRequest(header=HEADER, count=1))
        await each.receive()
    other.cancel()
    started = anyio.current_time()

    await closed.aclose()

    assert anyio.current_time() < started + 0.05
    stream.cancel()
    await kept.aclose()


def test_trio_is_told_that_grpc_knows_asyncio_only() -> None:
    async def main() -> None:
        async with PdClient("127.0.0.1:2379"):
            pass

    # A loop of asyncio runs in the thread of the test.
    with (
        ThreadPoolExecutor(1) as other_thread,
        pytest.raises(ConfigError, match="gRPC knows no event loop but asyncio's"),
    ):
        other_thread.submit(partial(anyio.run, main, backend="trio")).result()
