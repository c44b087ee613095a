"""TLS over real sockets: who is trusted, and what happens when files are rotated."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import grpc
import grpc.aio
import pytest
import trustme
from tikv_pd import ConfigError, PdClient, PdConfig, PdUnavailable, SecurityConfig
from tikv_pd.grpc_transport import GrpcConnection, GrpcTransport
from tikv_proto import pdpb
from tikv_proto.services import PD

QUICK = PdConfig(open_timeout=0.5, operation_timeout=5)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def security(tmp_path: Path) -> SecurityConfig:
    """Where the client's material is; not written yet."""
    return SecurityConfig(
        ca_path=tmp_path / "ca.pem", cert_path=tmp_path / "client.pem", key_path=tmp_path / "client.key"
    )


def put(path: Path | None, content: trustme.Blob) -> None:
    """Replace a file as tools that rotate certificates do."""
    assert path is not None
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content.bytes())
    fresh.rename(path)


def give(security: SecurityConfig, trusts: trustme.CA, issued_by: trustme.CA) -> None:
    """Write the client's material."""
    leaf = issued_by.issue_cert("client@pd.example")
    put(security.ca_path, trusts.cert_pem)
    put(security.cert_path, leaf.cert_chain_pems[0])
    put(security.key_path, leaf.private_key_pem)


@asynccontextmanager
async def listening(port: int, authority: trustme.CA, host: str = "127.0.0.1") -> AsyncIterator[None]:
    """Serve a PD that proves itself by a certificate for `host` and wants one of the client."""

    async def get_members(_request: object, _context: object) -> pdpb.GetMembersResponse:
        me = pdpb.Member(name="pd", member_id=1, client_urls=[f"https://127.0.0.1:{port}"])
        return pdpb.GetMembersResponse(header=pdpb.ResponseHeader(cluster_id=7), members=[me], leader=me)

    async def get_stores(_request: object, _context: object) -> pdpb.GetAllStoresResponse:
        return pdpb.GetAllStoresResponse(header=pdpb.ResponseHeader(cluster_id=7))

    def method(rpc: object, handle: object) -> grpc.RpcMethodHandler[object, object]:
        return grpc.unary_unary_rpc_method_handler(
            handle,  # type: ignore[arg-type]  # the stubs know synchronous handlers only
            rpc.request.FromString,  # type: ignore[attr-defined]  # any row of the table
            rpc.response.SerializeToString,  # type: ignore[attr-defined]
        )

    leaf = authority.issue_cert(host)
    pair = (leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    methods = {"GetMembers": method(PD.GetMembers, get_members), "GetAllStores": method(PD.GetAllStores, get_stores)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("pdpb.PD", methods),))
    credentials = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), require_client_auth=True)
    server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


async def members(connection: GrpcConnection) -> int:
    return len((await connection.unary(PD.GetMembers, pdpb.GetMembersRequest(), timeout=2)).members)


async def test_both_sides_prove_who_they_are(port: int, authority: trustme.CA, security: SecurityConfig) -> None:
    give(security, trusts=authority, issued_by=authority)

    async with listening(port, authority), PdClient(f"127.0.0.1:{port}", security=security, config=QUICK) as client:
        assert await client.get_stores() == []


async def test_a_server_of_an_unknown_authority_is_not_trusted_and_the_error_says_where_to_look(
    port: int, authority: trustme.CA, stranger: trustme.CA, security: SecurityConfig
) -> None:
    give(security, trusts=stranger, issued_by=authority)

    async with listening(port, authority):
        with pytest.raises(PdUnavailable, match=rf"127.0.0.1:{port}: UNAVAILABLE .*does ca_path hold the authority"):
            await PdClient(f"127.0.0.1:{port}", security=security, config=QUICK).__aenter__()


async def test_a_client_of_an_unknown_authority_is_not_let_in(
    port: int, authority: trustme.CA, stranger: trustme.CA, security: SecurityConfig
) -> None:
    give(security, trusts=authority, issued_by=stranger)

    async with listening(port, authority):
        with pytest.raises(PdUnavailable, match="does PD trust that of the client"):
            await PdClient(f"127.0.0.1:{port}", security=security, config=QUICK).__aenter__()


async def test_a_client_without_tls_is_not_let_in(port: int, authority: trustme.CA) -> None:
    async with listening(port, authority):
        with pytest.raises(PdUnavailable, match="Is the address a PD client URL"):
            await PdClient(f"127.0.0.1:{port}", config=QUICK).__aenter__()


async def test_a_certificate_for_another_name_needs_that_name(
    port: int, authority: trustme.CA, security: SecurityConfig
) -> None:
    give(security, trusts=authority, issued_by=authority)
    named = SecurityConfig(
        ca_path=security.ca_path,
        cert_path=security.cert_path,
        key_path=security.key_path,
        server_name="pd.internal",
    )

    async with listening(port, authority, host="pd.internal"):
        with pytest.raises(PdUnavailable):
            await PdClient(f"127.0.0.1:{port}", security=security, config=QUICK).__aenter__()
        async with PdClient(f"127.0.0.1:{port}", security=named, config=QUICK) as client:
            assert await client.get_stores() == []


async def test_files_that_were_rotated_are_used_when_the_old_ones_are_refused(
    port: int, authority: trustme.CA, stranger: trustme.CA, security: SecurityConfig
) -> None:
    give(security, trusts=authority, issued_by=authority)
    connection = GrpcTransport(security).connect(f"127.0.0.1:{port}")
    async with listening(port, authority):
        assert await members(connection) == 1
    give(security, trusts=stranger, issued_by=stranger)

    async with listening(port, stranger):
        with anyio.fail_after(5):
            await connection.ready(timeout=5)
        assert await members(connection) == 1

    await connection.aclose()


async def test_a_client_goes_on_after_pd_came_back_with_another_authority(
    port: int, authority: trustme.CA, stranger: trustme.CA, security: SecurityConfig
) -> None:
    give(security, trusts=authority, issued_by=authority)
    async with listening(port, authority):
        client = await PdClient(f"127.0.0.1:{port}", security=security, config=QUICK).__aenter__()
    give(security, trusts=stranger, issued_by=stranger)

    try:
        async with listening(port, stranger):
            assert await client.get_stores() == []
    finally:
        await client.__aexit__(None, None, None)


async def test_files_rotated_by_half_are_not_used(
    port: int, authority: trustme.CA, security: SecurityConfig, caplog: pytest.LogCaptureFixture
) -> None:
    give(security, trusts=authority, issued_by=authority)
    transport = GrpcTransport(security)
    put(security.cert_path, authority.issue_cert("other@pd.example").cert_chain_pems[0])
    connection = transport.connect(f"127.0.0.1:{port}")

    async with listening(port, authority):
        assert await members(connection) == 1

    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    await connection.aclose()


async def test_a_connected_channel_does_not_look_at_the_files(
    port: int, authority: trustme.CA, stranger: trustme.CA, security: SecurityConfig
) -> None:
    give(security, trusts=authority, issued_by=authority)
    connection = GrpcTransport(security).connect(f"127.0.0.1:{port}")

    async with listening(port, authority):
        await members(connection)
        give(security, trusts=stranger, issued_by=stranger)

        assert await members(connection) == 1

    await connection.aclose()


def test_a_certificate_and_another_ones_key_are_refused(authority: trustme.CA, security: SecurityConfig) -> None:
    give(security, trusts=authority, issued_by=authority)
    put(security.key_path, authority.issue_cert("other@pd.example").private_key_pem)

    with pytest.raises(ConfigError, match=r"client\.pem and .*client\.key are no certificate with its unencrypted key"):
        GrpcTransport(security)


def test_an_authority_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"\xffnonsense")

    with pytest.raises(ConfigError, match=r"ca\.pem holds no certificate in PEM form"):
        GrpcTransport(SecurityConfig(ca_path=tmp_path / "ca.pem"))
