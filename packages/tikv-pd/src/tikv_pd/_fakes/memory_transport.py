"""An in-memory transport for tests: the same seam as gRPC, on any anyio backend, also under trio's virtual clock.

A server is a mapping of RPCs to handlers. Whatever crosses the seam is serialized and parsed, as on a wire.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias

import anyio
import anyio.abc
import anyio.lowlevel
import attrs
from google.protobuf.message import Message
from tikv_proto.services import Rpc

from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import BackgroundTasks, Metadata, Req, Resp, T, Waiter

UnaryHandler: TypeAlias = Callable[[Any], Awaitable[Message]]
"""Takes a request, returns a response; raises `RpcError` through `fail` to answer with a gRPC status."""
StreamHandler: TypeAlias = Callable[["ServerStream"], Awaitable[None]]
"""Serves one stream; the stream ends when it returns."""
Handlers: TypeAlias = Mapping[Rpc[Any, Any], UnaryHandler | StreamHandler]
"""What a server offers; everything else answers UNIMPLEMENTED."""

_METADATA: ContextVar[Metadata] = ContextVar("metadata", default=())


def request_metadata() -> dict[str, str]:
    """Return the metadata of the call or stream that the handler asking for it serves."""
    return dict(_METADATA.get())


def fail(code: str, details: str = "") -> RpcError:
    """Return the error a handler raises to answer with a gRPC status."""
    return RpcError("", "", code, details)


class MemoryTransport:
    """A network in memory. Use inside `async with`: its servers' tasks live in it."""

    def __init__(self) -> None:
        self._servers: dict[str, Handlers] = {}
        self._connections: list[MemoryConnection] = []
        self._tasks = BackgroundTasks()
        self.log: list[tuple[str, str]] = []
        """(address, RPC name) of every call and stream, in order."""

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        for connection in self._connections:
            await connection.aclose()
        return await self._tasks.__aexit__(kind, error, traceback)

    def serve(self, address: str, handlers: Handlers) -> None:
        """Offer a server at `address`, in place of any before it."""
        self._servers[address] = handlers

    def stop(self, address: str) -> None:
        """Take a server away: what is under way to it breaks, new calls are refused."""
        self._servers.pop(address, None)
        for connection in self._connections:
            if connection.address == address:
                connection.break_all("the server stopped")

    def connect(self, address: str, *, channel: int = 0) -> MemoryConnection:
        """Return a connection to `address`, served or not."""
        del channel
        connection = MemoryConnection(self, address)
        self._connections.append(connection)
        return connection

    def open_connections(self) -> list[MemoryConnection]:
        """Return the connections that were made and not closed."""
        return [connection for connection in self._connections if not connection.closed]

    def now(self) -> float:
        """Return the backend's clock, virtual or not."""
        return anyio.current_time()

    def waiters(self) -> Callable[[], Waiter[Any]]:
        """Return what makes new waiters."""
        return EventWaiter

    def is_served(self, address: str) -> bool:
        """Tell whether a server is at `address`."""
        return address in self._servers

    def handler(self, address: str, rpc: Rpc[Any, Any]) -> Any:
        """Return the handler of an RPC, logged as called; raises as gRPC would when there is none."""
        self.log.append((address, rpc.name))
        if address not in self._servers:
            raise RpcError(address, rpc.name, "UNAVAILABLE", "connection refused")
        handler = self._servers[address].get(rpc)
        if handler is None:
            raise RpcError(address, rpc.name, "UNIMPLEMENTED", "")
        return handler

    def start_task(self, serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a server's task."""
        self._tasks.start_soon(serve)


class MemoryConnection:
    """One connection of a `MemoryTransport`."""

    def __init__(self, transport: MemoryTransport, address: str) -> None:
        self._transport = transport
        self._address = address
        self._scopes: dict[anyio.CancelScope, str] = {}
        self._streams: list[MemoryStream[Any, Any]] = []
        self.closed = False
        """Whether `aclose` was called."""

    @property
    def address(self) -> str:
        """Where it leads."""
        return self._address

    async def ready(self, *, timeout: float) -> None:
        """Return at once when the address is served."""
        del timeout
        await anyio.lowlevel.checkpoint()
        if self.closed or not self._transport.is_served(self._address):
            raise RpcError(self._address, "connect", "UNAVAILABLE", "connection refused", sent=False)

    async def unary(
        self, rpc: Rpc[Req, Resp], request: Req | bytes, *, timeout: float, metadata: Metadata = ()
    ) -> Resp:
        """Call the handler."""
        if self.closed:
            raise RpcError(self._address, rpc.name, "CANCELLED", "the connection was closed")
        handler: UnaryHandler = self._transport.handler(self._address, rpc)
        broken = anyio.CancelScope()
        self._scopes[broken] = ""
        token = _METADATA.set(metadata)
        try:
            with anyio.move_on_after(timeout), broken:
                try:
                    response = await handler(rpc.request.FromString(_serialize(request)))
                except RpcError as error:
                    raise RpcError(self._address, rpc.name, error.code, error.details) from None
                return rpc.response.FromString(response.SerializeToString())
            if broken.cancel_called:
                raise RpcError(self._address, rpc.name, "UNAVAILABLE", self._scopes[broken])
            raise RpcError(self._address, rpc.name, "DEADLINE_EXCEEDED", "Deadline Exceeded")
        finally:
            _METADATA.reset(token)
            del self._scopes[broken]

    def stream(self, rpc: Rpc[Req, Resp], *, metadata: Metadata = ()) -> MemoryStream[Req, Resp]:
        """Open a stream; without a server it is broken from the start."""
        stream: MemoryStream[Req, Resp] = MemoryStream(self._address, rpc, metadata)
        self._streams.append(stream)
        try:
            handler: StreamHandler = self._transport.handler(self._address, rpc)
        except RpcError as error:
            stream.break_off(error)
        else:
            self._transport.start_task(lambda: stream.run(handler))
        return stream

    def break_all(self, why: str) -> None:
        """Break everything under way."""
        for scope in self._scopes:
            self._scopes[scope] = why
            scope.cancel()
        for stream in self._streams:
            stream.break_off(RpcError(self._address, stream.rpc.name, "UNAVAILABLE", why))

    async def aclose(self) -> None:
        """Close it; what is under way breaks."""
        self.closed = True
        self.break_all("the connection was closed")
        for stream in self._streams:
            stream.cancel()
        self._streams.clear()


class MemoryStream(Generic[Req, Resp]):
    """The client's end of a stream."""

    def __init__(self, address: str, rpc: Rpc[Req, Resp], metadata: Metadata = ()) -> None:
        self.rpc = rpc
        """Which RPC it is."""
        self._metadata = metadata
        self._address = address
        self._error: RpcError | None = None
        self._scope = anyio.CancelScope()
        self._to_server, self._requests = anyio.create_memory_object_stream[bytes](math.inf)
        self._to_client, self._responses = anyio.create_memory_object_stream[bytes](math.inf)

    async def run(self, handler: StreamHandler) -> None:
        """Serve the stream until the handler returns, fails or the stream is broken."""
        error = RpcError(self._address, self.rpc.name, "UNAVAILABLE", "the server ended the stream")
        _METADATA.set(self._metadata)
        with self._scope:
            try:
                await handler(ServerStream(self.rpc, self._requests, self._to_client))
            except RpcError as raised:
                error = RpcError(self._address, self.rpc.name, raised.code, raised.details)
            except (anyio.EndOfStream, anyio.ClosedResourceError, anyio.BrokenResourceError):
                pass
        self.break_off(error)

    def break_off(self, error: RpcError) -> None:
        """End the stream for both sides; the first reason counts."""
        self._error = self._error or error
        self._scope.cancel()
        for end in (self._to_server, self._requests, self._to_client):
            end.close()

    async def send(self, request: Req | bytes) -> None:
        """Write one message."""
        try:
            await self._to_server.send(_serialize(request))
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            raise self._reason() from None

    async def receive(self) -> Resp:
        """Read one message; those sent before a break are still read."""
        try:
            return self.rpc.response.FromString(await self._responses.receive())
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self._responses.close()
            raise self._reason() from None

    def cancel(self) -> None:
        """End the stream."""
        self.break_off(RpcError(self._address, self.rpc.name, "CANCELLED", "the stream was cancelled"))
        self._responses.close()

    def _reason(self) -> RpcError:
        return self._error or RpcError(self._address, self.rpc.name, "UNAVAILABLE", "the stream is broken")


@attrs.define(eq=False)
class ServerStream:
    """The server's end of a stream, for handlers."""

    _rpc: Rpc[Any, Any]
    _requests: anyio.abc.ObjectReceiveStream[bytes]
    _responses: anyio.abc.ObjectSendStream[bytes]

    async def receive(self) -> Any:
        """Read one request; raises anyio.EndOfStream when the client is gone."""
        return self._rpc.request.FromString(await self._requests.receive())

    async def send(self, response: Message) -> None:
        """Write one response."""
        await self._responses.send(response.SerializeToString())


def _serialize(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


class EventWaiter(Generic[T]):
    """A `Waiter` on anyio's event, for backends without futures."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._result: T | None = None
        self._exception: BaseException | None = None
        self._abandoned = False

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        try:
            await self._event.wait()
        except BaseException:
            self._abandoned = True
            raise
        if self._exception is not None:
            raise self._exception
        return self._result  # type: ignore[return-value]  # set together with the event

    def done(self) -> bool:
        """Tell whether it is set, or nobody waits any more."""
        return self._abandoned or self._event.is_set()

    def set_result(self, result: T, /) -> None:
        """Wake the waiting task with a result."""
        self._result = result
        self._event.set()

    def set_exception(self, exception: BaseException, /) -> None:
        """Wake the waiting task with an exception."""
        self._exception = exception
        self._event.set()
