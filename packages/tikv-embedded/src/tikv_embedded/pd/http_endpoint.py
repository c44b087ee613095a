"""A port that speaks gRPC and HTTP/1.1, as PD's does.

gRPC cannot share a port, so this one looks at the first bytes of a connection and hands it on: what begins like HTTP/2
goes, byte by byte, to a gRPC server on a port of its own; the rest is answered here, one request a connection.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from typing import TypeAlias

import attrs

from tikv_embedded.endpoint import Endpoint
from tikv_embedded.relay import RelayEndpoint
from tikv_embedded.security import ServerSecurity

_HTTP2 = b"PRI"
"""How a gRPC connection begins; no method of HTTP/1.1 does."""
_MAX_BODY = 1 << 20
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


class HttpEndpoint(RelayEndpoint):
    """An `Endpoint` that answers HTTP too.

    Args:
        host: Address to listen on.
        port: 0 takes a free one when first bound; later it is the same one again.
        security: TLS, which ends here; None is none.
    """

    def __init__(self, host: str, port: int = 0, security: ServerSecurity | None = None) -> None:
        super().__init__(host, port, security)
        # What is encrypted cannot be told apart.
        self._grpc = Endpoint(host)
        self.answer: HttpAnswer = lambda _request: (404, "404 page not found")
        """What answers HTTP requests."""

    def _tls(self) -> ssl.SSLContext | None:
        return None if self._security is None else self._security.context()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(len(_HTTP2))
        if first == _HTTP2:
            await self._pass_on(first, reader, writer)
        else:
            await self._answer_http(first, reader, writer)

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
