"""Every option of a connection shows on the wire, or in how long something takes."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from tikv_pd import ChannelConfig, RpcError
from tikv_pd.grpc_transport import GrpcConnection, GrpcTransport
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv

_SETTINGS, _PING, _DATA = 4, 6, 0
_ACK = 1
_INITIAL_WINDOW_SIZE = 4


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Wire:
    """A server that speaks as much HTTP/2 as it takes to see what a client does, and answers no call."""

    def __init__(self) -> None:
        self.address = ""
        self.answers_pings = True
        self.greets = True
        self.hangs_up = False
        self.accepted: list[float] = []
        self.pings: list[float] = []
        self.settings: dict[int, int] = {}
        self.data_bytes = 0
        self.seen_data = anyio.Event()
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted.append(time.monotonic())
        self.writers.append(writer)
        try:
            if not self.hangs_up:
                await self._frames(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _frames(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(24)
        if self.greets:
            writer.write(_frame(_SETTINGS, 0, b""))
        while True:
            head = await reader.readexactly(9)
            kind, flags = head[3], head[4]
            body = await reader.readexactly(int.from_bytes(head[:3], "big"))
            if kind == _SETTINGS and not flags & _ACK:
                self.settings = dict(struct.iter_unpack(">HI", body))
                if self.greets:
                    writer.write(_frame(_SETTINGS, _ACK, b""))
            elif kind == _PING and not flags & _ACK:
                self.pings.append(time.monotonic())
                if self.answers_pings:
                    writer.write(_frame(_PING, _ACK, body))
            elif kind == _DATA:
                self.data_bytes += len(body)
                self.seen_data.set()


def _frame(kind: int, flags: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + bytes(4) + body


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    wire = Wire()
    server = await asyncio.start_server(wire.serve, "127.0.0.1")
    wire.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield wire
    server.close()
    # From Python 3.12 on, waiting for a server means waiting for its connections, and gRPC takes its time with one that
    # has sent more than was acknowledged.
    for writer in wire.writers:
        writer.close()
    await server.wait_closed()
    await asyncio.sleep(0.02)


@asynccontextmanager
async def connected(wire: Wire, config: ChannelConfig | None = None) -> AsyncIterator[GrpcConnection]:
    connection = GrpcTransport(config=config).connect(wire.address)
    try:
        yield connection
    finally:
        await connection.aclose()


async def call_for(wire: Wire, seconds: float, config: ChannelConfig | None = None) -> float:
    """Make a call that is never answered, for a while, and return how long it stayed under way."""
    async with connected(wire, config) as connection:
        stream = connection.stream(Tikv.BatchCommands)
        began = time.monotonic()
        with anyio.move_on_after(seconds), pytest.raises(RpcError, match="UNAVAILABLE"):
            await stream.receive()
        stream.cancel()
        return time.monotonic() - began


async def test_a_quiet_connection_is_pinged_after_the_keepalive_time(wire: Wire) -> None:
    began = time.monotonic()

    await call_for(wire, 0.9, ChannelConfig(keepalive_time=0.4))

    assert 0.35 <= wire.pings[0] - began < 0.9


async def test_a_connection_is_not_pinged_earlier(wire: Wire) -> None:
    await call_for(wire, 0.9)

    assert wire.pings == []


async def test_pings_do_not_end_while_a_call_waits(wire: Wire) -> None:
    # gRPC sends no more than one in a second.
    await call_for(wire, 2.8, ChannelConfig(keepalive_time=0.1))

    assert len(wire.pings) >= 3


async def test_a_peer_that_vanished_is_found_after_keepalive_time_and_timeout(wire: Wire) -> None:
    wire.answers_pings = False

    seconds = await call_for(wire, 10, ChannelConfig(keepalive_time=0.2, keepalive_timeout=0.5))

    assert 0.65 <= seconds < 1.5


async def test_a_shorter_keepalive_timeout_finds_it_earlier(wire: Wire) -> None:
    wire.answers_pings = False

    seconds = await call_for(wire, 10, ChannelConfig(keepalive_time=0.2, keepalive_timeout=0.05))

    assert seconds < 0.6


async def test_the_window_is_what_the_server_may_send_ahead(wire: Wire) -> None:
    await call_for(wire, 0.3, ChannelConfig(window_bytes=1_234_567))

    assert wire.settings[_INITIAL_WINDOW_SIZE] == 1_234_567


async def test_without_a_window_grpc_measures(wire: Wire) -> None:
    await call_for(wire, 0.3)

    assert wire.settings[_INITIAL_WINDOW_SIZE] == 4 << 20


async def attempts(wire: Wire, count: int, config: ChannelConfig) -> list[float]:
    """Let a client try to connect in vain, and return the times from each attempt to the next."""
    wire.hangs_up = True
    async with connected(wire, config) as connection:
        with anyio.fail_after(10):
            while len(wire.accepted) < count:
                with pytest.raises(RpcError):
                    await connection.ready(timeout=5)
                await anyio.sleep(0.005)
    return [later - earlier for earlier, later in zip(wire.accepted, wire.accepted[1:], strict=False)][: count - 1]


async def test_the_second_attempt_to_connect_comes_after_the_backoff(wire: Wire) -> None:
    (wait,) = await attempts(wire, 2, ChannelConfig(reconnect_backoff=0.5))

    assert 0.35 <= wait < 1


async def test_waits_between_attempts_grow_up_to_a_limit(wire: Wire) -> None:
    waits = await attempts(wire, 5, ChannelConfig(reconnect_backoff=0.2, max_reconnect_backoff=0.2))

    # Without the limit they would be 1.5 s in all, or more.
    assert sum(waits) < 1.3


async def test_an_attempt_to_connect_is_given_up_in_time(wire: Wire) -> None:
    wire.greets = False
    began = time.monotonic()

    async with connected(wire, ChannelConfig(connect_attempt_timeout=0.3)) as connection:
        with pytest.raises(RpcError, match="cannot connect"):
            await connection.ready(timeout=10)

    assert 0.25 <= time.monotonic() - began < 2


@pytest.mark.parametrize(("compression", "compressed"), [("none", False), ("gzip", True)])
async def test_requests_are_compressed_when_asked_for(wire: Wire, compression: str, compressed: bool) -> None:
    config = ChannelConfig(compression=compression)  # type: ignore[arg-type]  # one of the two
    async with connected(wire, config) as connection:
        request = kvrpcpb.RawPutRequest(key=b"k", value=bytes(20_000))
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
            await connection.unary(Tikv.RawPut, request, timeout=0.5)

    assert wire.seen_data.is_set()
    assert (wire.data_bytes < 1000) is compressed


async def test_no_two_connections_share_a_socket(wire: Wire) -> None:
    transport = GrpcTransport()
    connections = [transport.connect(wire.address, channel=number) for number in (0, 1, 1)]

    for connection in connections:
        await connection.ready(timeout=5)
    for connection in connections:
        await connection.aclose()

    assert len(wire.accepted) == 3
