"""Whether a store answers: what its health service says, and what it means when it does not say anything.

The connections that carry requests may be what is broken, or not be open at all. So a store is asked on a connection
that is made for the question and closed after it; it comes from the client's own transport, with its TLS and its
mapping of addresses.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import anyio
from google.protobuf.message import DecodeError, Message
from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import Req, Resp, Transport
from tikv_proto.healthpb import HealthCheckRequest, HealthCheckResponse
from tikv_proto.services import Health, Rpc
from tikv_region.health import Liveness

_BY_STATUS: Final[dict[int, Liveness]] = {
    HealthCheckResponse.ServingStatus.SERVING: Liveness.REACHABLE,
    # TiKV is starting, stopping or paused.
    HealthCheckResponse.ServingStatus.NOT_SERVING: Liveness.UNREACHABLE,
    # One of TiKV's modules is unhealthy, such as a disk that is slow. Source: TiKV components/health_controller.
    HealthCheckResponse.ServingStatus.SERVICE_UNKNOWN: Liveness.UNKNOWN,
    HealthCheckResponse.ServingStatus.UNKNOWN: Liveness.UNKNOWN,
}
_BY_CODE: Final[dict[str, Liveness]] = {
    # A server without a health service. TiKV always has one; TiFlash and some proxies do not, and nothing they could
    # answer would end the search for life. client-go takes them for unreachable and never searches at TiFlash.
    "UNIMPLEMENTED": Liveness.REACHABLE,
    # gRPC's word for SERVICE_UNKNOWN in a Check. Source: grpc.health.v1.
    "NOT_FOUND": Liveness.UNKNOWN,
}


def decide(outcome: int | RpcError) -> Liveness:
    """Return what the outcome of a health check tells of a store.

    Args:
        outcome: `HealthCheckResponse.status`, or why there is none. What is in no table means UNREACHABLE.
    """
    if isinstance(outcome, RpcError):
        return _BY_CODE.get(outcome.code, Liveness.UNREACHABLE)
    return _BY_STATUS.get(outcome, Liveness.UNREACHABLE)


async def check(transport: Transport, address: str, *, channel: int, timeout: float) -> Liveness:
    """Ask the server at an address whether it serves, within `timeout` seconds. See `ask_once` for `channel`.

    Cancellation: safe.
    """
    try:
        response = await ask_once(transport, address, Health.Check, HealthCheckRequest(), channel, timeout)
    except RpcError as error:
        return decide(error)
    return decide(response.status)


async def ask_once(
    transport: Transport, address: str, rpc: Rpc[Req, Resp], request: Req, channel: int, timeout: float
) -> Resp:
    """Send one request on a connection of its own and return the response.

    Args:
        transport: Makes the connection.
        address: Where to.
        rpc: What to call.
        request: What to send.
        channel: Number of the connection. One that no open connection has, or they may share a socket.
        timeout: Seconds for connecting and answering together.

    Raises:
        RpcError: there was no answer in time, or none that can be read.

    Cancellation: safe; the connection is closed.
    """
    connection = transport.connect(address, channel=channel)
    response: Message | None = None
    try:
        until = transport.now() + timeout
        await connection.ready(timeout=timeout)
        with suppress(DecodeError):
            response = await connection.unary(rpc, request, timeout=max(until - transport.now(), 0.0))
    finally:
        with anyio.CancelScope(shield=True):
            await connection.aclose()
    # grpc.aio returns None for what it cannot parse.
    if not isinstance(response, rpc.response):
        raise RpcError(address, rpc.name, "INTERNAL", "the answer cannot be read")
    return response
