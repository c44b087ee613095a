"""Health checks over real sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from tikv_pd import SecurityConfig
from tikv_pd.errors import RpcError
from tikv_pd.grpc_transport import GrpcTransport
from tikv_proto import kvrpcpb
from tikv_proto.healthpb import HealthCheckRequest, HealthCheckResponse
from tikv_proto.services import Health, Tikv
from tikv_region.health import Liveness
from tikv_rpc._stores.liveness import ask_once, check


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Server:
    """A store of which only its health is served."""

    def __init__(self) -> None:
        self.answer = HealthCheckResponse(status=HealthCheckResponse.SERVING).SerializeToString()
        self.asked: list[HealthCheckRequest] = []
        self.port = 0

    async def _check(self, request: HealthCheckRequest, context: Any) -> bytes:
        self.asked.append(request)
        if request.service:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return self.answer

    @asynccontextmanager
    async def listening(self, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[Server]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self._check,
            HealthCheckRequest.FromString,
        )
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})]
        )
        if credentials is None:
            self.port = server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)
            # What gRPC reports of a call after the event loop is closed, it reports to the next one.
            await asyncio.sleep(0.02)

    async def check(self, transport: GrpcTransport | None = None, timeout: float = 5) -> Liveness:
        return await check(transport or GrpcTransport(), f"127.0.0.1:{self.port}", channel=-1, timeout=timeout)


@pytest.mark.parametrize(
    ("status", "liveness"),
    [
        (HealthCheckResponse.SERVING, Liveness.REACHABLE),
        (HealthCheckResponse.NOT_SERVING, Liveness.UNREACHABLE),
        (HealthCheckResponse.SERVICE_UNKNOWN, Liveness.UNKNOWN),
    ],
)
async def test_a_store_is_asked_for_its_whole_server(
    status: HealthCheckResponse.ServingStatus.ValueType, liveness: Liveness
) -> None:
    async with Server().listening() as server:
        server.answer = HealthCheckResponse(status=status).SerializeToString()

        assert await server.check() is liveness
        assert [request.service for request in server.asked] == [""]


async def test_an_answer_that_cannot_be_read_is_none() -> None:
    async with Server().listening() as server:
        server.answer = b"\xff\xff\xff"

        assert await server.check() is Liveness.UNREACHABLE


async def test_a_server_that_lacks_the_service_fails_with_its_status() -> None:
    async with Server().listening() as server:
        with pytest.raises(RpcError) as raised:
            await ask_once(
                GrpcTransport(),
                f"127.0.0.1:{server.port}",
                Tikv.GetHealthFeedback,
                kvrpcpb.GetHealthFeedbackRequest(),
                -1,
                5,
            )
        unknown = HealthCheckRequest(service="tikv")
        with pytest.raises(RpcError) as not_found:
            await ask_once(GrpcTransport(), f"127.0.0.1:{server.port}", Health.Check, unknown, -1, 5)

    assert (raised.value.code, not_found.value.code) == ("UNIMPLEMENTED", "NOT_FOUND")


async def test_where_nobody_listens_a_store_is_unreachable_at_once() -> None:
    async with Server().listening() as server:
        assert await server.check() is Liveness.REACHABLE
    began = time.monotonic()

    assert await server.check() is Liveness.UNREACHABLE
    assert time.monotonic() - began < 2


async def test_a_store_that_accepts_and_never_answers_is_unreachable_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hung:
        began = time.monotonic()
        address = f"127.0.0.1:{hung.getsockname()[1]}"

        assert await check(GrpcTransport(), address, channel=-1, timeout=0.3) is Liveness.UNREACHABLE
        assert 0.25 < time.monotonic() - began < 2


async def test_a_store_is_checked_with_the_security_of_the_client_that_asks(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    pair = (leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())

    def client_of(ca: trustme.CA, name: str) -> GrpcTransport:
        path = tmp_path / name
        ca.cert_pem.write_to_path(str(path))
        return GrpcTransport(SecurityConfig(ca_path=path))

    async with Server().listening(grpc.ssl_server_credentials([pair])) as server:
        trusting, wary, plain = client_of(authority, "a.pem"), client_of(stranger, "b.pem"), GrpcTransport()

        assert await server.check(trusting) is Liveness.REACHABLE
        assert await server.check(wary, timeout=1) is Liveness.UNREACHABLE
        assert await server.check(plain, timeout=1) is Liveness.UNREACHABLE
