"""The standard gRPC health service, for a server as a whole.

Its two messages are a string and an enum. grpcio-health-checking would bring their classes in protobuf's default pool,
so they are read and written as bytes here.
Source: grpc.health.v1; TiKV and PD register the empty service name alone.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator

import grpc

from tikv_embedded.rpc_handlers import Handler, ServicerContext

# HealthCheckRequest{string service = 1}: absent, or present and empty.
_WHOLE_SERVER = (b"", b"\x0a\x00")
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"


class HealthStatus(enum.Enum):
    """What the health service says; the values are those of HealthCheckResponse.ServingStatus."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3

    def to_bytes(self) -> bytes:
        """Return HealthCheckResponse{ServingStatus status = 1}, which leaves a zero out."""
        return bytes((0x08, self.value)) if self.value else b""


class ServerHealth:
    """The health service of one server, SERVING unless told otherwise; other service names are NOT_FOUND."""

    def __init__(self) -> None:
        self._status = HealthStatus.SERVING
        self._changed = asyncio.Event()

    @property
    def status(self) -> HealthStatus:
        """What it says; whoever watches hears of a change at once."""
        return self._status

    @status.setter
    def status(self, status: HealthStatus) -> None:
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()

    def handlers(self) -> list[Handler]:
        """Return the handlers of the service."""
        return [
            (CHECK, grpc.unary_unary_rpc_method_handler(self.check)),
            (WATCH, grpc.unary_stream_rpc_method_handler(self.watch)),
        ]

    async def check(self, request: bytes, context: ServicerContext) -> bytes:
        """Answer Check."""
        if request not in _WHOLE_SERVER:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return self._status.to_bytes()

    async def watch(self, request: bytes, _context: ServicerContext) -> AsyncIterator[bytes]:
        """Answer Watch; the stream ends with the caller or the server."""
        known = request in _WHOLE_SERVER
        while True:
            changed = self._changed
            yield (self._status if known else HealthStatus.SERVICE_UNKNOWN).to_bytes()
            await changed.wait()
