"""A port that speaks gRPC and HTTP/1.1, as PD's does.

gRPC cannot share a port, so this one looks at the first bytes of a connection and hands it on: what begins like HTTP/2
goes, byte by byte, to a gRPC server on a port of its own; the rest is answered here, one request a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from typing import TypeAlias

import attrs

from tikv_embedded.endpoint import Endpoint
from tikv_embedded.errors import PortInUseError
from tikv_embedded.rpc_handlers import Handler

_HTTP2 = b"PRI"
"""How a gRPC connection begins; no method of HTTP/1.1 does."""
_MAX_BODY = 1 << 20
_CHUNK = 1 << 16
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error"}


@attrs.frozen
class HttpRequest:
    """What was asked for."""

    method: str
    target: str
    """Path and query, as they came."""
    body: bytes = b""


HttpAnswer: TypeAlias = "Callable[[HttpRequest], tuple[int, object]]"
"""Returns the status, and the value that becomes JSON."""


class HttpEndpoint(Endpoint):
    """An `Endpoint` that answers HTTP too.

    Args:
        host: Address to listen on.
        port: 0 takes a free one when first bound; later it is the same one again.
    """

    def __init__(self, host: str, port: int = 0) -> None:
        super().__init__(host, port)
        self._grpc = Endpoint(host)
        self._socket: socket.socket | None = None
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.answer: HttpAnswer = lambda _request: (404, "404 page not found")
        """What answers HTTP requests."""

    def bind(self) -> None:
        """Take the port.

        Raises:
            PortInUseError: something else listens there, or the address is not of this machine.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            self._socket = socket.create_server((self._host, self.port), family=family)
        except OSError as error:
            raise PortInUseError(f"cannot listen on {self.address}: {error.strerror}") from error
        self.port = self._socket.getsockname()[1]
        self._grpc.bind()

    async def start(self, handlers: list[Handler]) -> None:
        """Answer calls with `handlers` and the health service, and HTTP requests; the port is bound already."""
        await self._grpc.start(handlers)
        self._listener = await asyncio.start_server(self._accept, sock=self._socket)
        self.is_running = True

    async def stop(self, *, grace: float | None = None) -> None:
        """Refuse connections and cut those that are open, calls after `grace` seconds; harmless when stopped."""
        self.is_running = False
        if self._listener is not None:
            self._listener.close()
        elif self._socket is not None:
            self._socket.close()
        self._listener = self._socket = None
        await self._grpc.stop(grace=grace)
        for connection in self._connections:
            connection.cancel()
        while self._connections:
            await asyncio.wait(self._connections)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            # Whoever goes away, or sends what is neither, is not told why.
            with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError, ValueError):
                first = await reader.readexactly(len(_HTTP2))
                if first == _HTTP2:
                    await self._pass_on(first, reader, writer)
                else:
                    await self._answer_http(first, reader, writer)
        finally:
            await _close(writer)

    async def _pass_on(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(self._host, self._grpc.port)
        try:
            inner_writer.write(first)
            copies = [
                asyncio.ensure_future(_copy(reader, inner_writer)),
                asyncio.ensure_future(_copy(inner_reader, writer)),
            ]
            try:
                # HTTP/2 has no half-closed connections: one end gone is both.
                await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for copy in copies:
                    copy.cancel()
                await asyncio.gather(*copies, return_exceptions=True)
        finally:
            await _close(inner_writer)

    async def _answer_http(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *lines = head.split("\r\n")
        method, target, _version = request_line.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if not 0 <= length <= _MAX_BODY:
            raise ValueError(f"a body of {length} bytes")
        status, value = self.answer(HttpRequest(method, target, await reader.readexactly(length)))
        body = json.dumps(value).encode()
        writer.write(
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json; charset=UTF-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        )
        if method != "HEAD":
            writer.write(body)
        await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
