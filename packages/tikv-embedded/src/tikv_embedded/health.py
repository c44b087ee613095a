"""The standard gRPC health service, for a server as a whole.

Its two messages are a string and an enum. grpcio-health-checking would bring their classes in protobuf's default pool,
so they are read and written as bytes here.
Source: grpc.health.v1; TiKV and PD register the empty service name alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from tikv_embedded.rpc_handlers import Handler, ServicerContext

# HealthCheckRequest{string service = 1}: absent, or present and empty.
_WHOLE_SERVER = (b"", b"\x0a\x00")
# HealthCheckResponse{ServingStatus status = 1}.
_SERVING = b"\x08\x01"
_SERVICE_UNKNOWN = b"\x08\x03"


def health_handlers() -> list[Handler]:
    """Return handlers that say SERVING as long as the server runs; other service names are NOT_FOUND."""
    return [
        ("/grpc.health.v1.Health/Check", grpc.unary_unary_rpc_method_handler(_check)),
        ("/grpc.health.v1.Health/Watch", grpc.unary_stream_rpc_method_handler(_watch)),
    ]


async def _check(request: bytes, context: ServicerContext) -> bytes:
    if request not in _WHOLE_SERVER:
        await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
    return _SERVING


async def _watch(request: bytes, _context: ServicerContext) -> AsyncIterator[bytes]:
    yield _SERVING if request in _WHOLE_SERVER else _SERVICE_UNKNOWN
    # The status never changes; the stream ends with the caller or the server.
    await asyncio.Event().wait()
