"""Ports with TLS, with and without certificates of clients."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

import grpc
import pytest
import trustme
from tikv_embedded import EmbeddedCluster, OptionError, ServerSecurity
from tikv_embedded.testing import BareClient
from tikv_proto import pdpb, tsopb
from tikv_proto.services import PD, TSO

SERVING = b"\x08\x01"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def security(authority: trustme.CA, tmp_path: Path) -> ServerSecurity:
    return write(authority.issue_cert("127.0.0.1"), tmp_path)


def write(issued: trustme.LeafCert, directory: Path) -> ServerSecurity:
    cert, key = directory / "server.pem", directory / "server.key"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    return ServerSecurity(cert_path=cert, key_path=key)


def with_client_ca(security: ServerSecurity, authority: trustme.CA, directory: Path) -> ServerSecurity:
    authority.cert_pem.write_to_path(directory / "ca.pem")
    return ServerSecurity(cert_path=security.cert_path, key_path=security.key_path, client_ca_path=directory / "ca.pem")


def trusting(authority: trustme.CA, own: trustme.LeafCert | None = None) -> BareClient:
    root = authority.cert_pem.bytes()
    if own is None:
        return BareClient(grpc.ssl_channel_credentials(root))
    chain = own.cert_chain_pems[0].bytes()
    return BareClient(grpc.ssl_channel_credentials(root, own.private_key_pem.bytes(), chain))


@pytest.mark.parametrize("network_faults", [False, True])
@pytest.mark.parametrize("http", [False, True])
async def test_every_port_is_encrypted(
    authority: trustme.CA, security: ServerSecurity, network_faults: bool, http: bool
) -> None:
    async with (
        EmbeddedCluster(
            security=security, pd_members=3, tso_servers=1, http=http, network_faults=network_faults
        ) as cluster,
        trusting(authority) as client,
        BareClient() as plain,
    ):
        ports = [*cluster.pd_addresses, *cluster.store_addresses.values(), *cluster.tso.addresses]

        answers = [await client.health(port) for port in ports]

        assert answers == [SERVING] * 7
        for port in ports:
            with pytest.raises(grpc.aio.AioRpcError):
                await plain.health(port)


async def test_pd_tells_addresses_that_begin_with_https(authority: trustme.CA, security: ServerSecurity) -> None:
    async with EmbeddedCluster(security=security, tso_servers=1) as cluster, trusting(authority) as client:
        members = await client.call(cluster.pd_addresses[0], PD.GetMembers, pdpb.GetMembersRequest())
        info = await client.call(cluster.pd_addresses[0], PD.GetClusterInfo, pdpb.GetClusterInfoRequest())
        group = await client.call(
            cluster.tso.addresses[0],
            TSO.FindGroupByKeyspaceID,
            tsopb.FindGroupByKeyspaceIDRequest(header=tsopb.RequestHeader(cluster_id=cluster.cluster_id)),
        )
        stores = await client.ask_pd(cluster, PD.GetAllStores)

        assert list(members.leader.client_urls) == [f"https://{cluster.pd_addresses[0]}"]
        assert list(info.tso_urls) == [f"https://{cluster.tso.addresses[0]}"]
        assert group.keyspace_group.members[0].address == info.tso_urls[0]
        # Stores have addresses, not URLs.
        assert [store.address for store in stores.stores] == list(cluster.store_addresses.values())


async def test_pd_speaks_https_on_the_same_port(authority: trustme.CA, security: ServerSecurity) -> None:
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    async with EmbeddedCluster(security=security, http=True) as cluster:
        host, port = cluster.pd_addresses[0].rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port), ssl=trusted)
        writer.write(b"GET /pd/api/v1/members HTTP/1.1\r\n\r\n")

        _head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()

        assert json.loads(body)["leader"]["client_urls"] == [f"https://{host}:{port}"]


@pytest.mark.parametrize("http", [False, True])
async def test_clients_must_show_a_certificate_if_asked_to(
    authority: trustme.CA, security: ServerSecurity, tmp_path: Path, http: bool
) -> None:
    mutual = with_client_ca(security, authority, tmp_path)
    async with (
        EmbeddedCluster(security=mutual, http=http) as cluster,
        trusting(authority, authority.issue_cert("client")) as known,
        trusting(authority, trustme.CA().issue_cert("client")) as unknown,
        trusting(authority) as silent,
    ):
        for port in (cluster.pd_addresses[0], cluster.store_addresses[1]):
            assert await known.health(port) == SERVING
            for refused in (unknown, silent):
                with pytest.raises(grpc.aio.AioRpcError):
                    await refused.health(port)


async def test_a_store_that_is_started_again_has_the_files_of_then(
    authority: trustme.CA, security: ServerSecurity
) -> None:
    async with EmbeddedCluster(security=security) as cluster:
        replacement = trustme.CA()
        await cluster.stop_store(1)
        write(replacement.issue_cert("127.0.0.1"), security.cert_path.parent)
        await cluster.start_store(1)

        async with trusting(replacement) as newcomer, trusting(authority) as client:
            assert await newcomer.health(cluster.store_addresses[1]) == SERVING
            assert await client.health(cluster.store_addresses[2]) == SERVING
            with pytest.raises(grpc.aio.AioRpcError):
                await client.health(cluster.store_addresses[1])


@pytest.mark.parametrize("broken", ["cert_path", "key_path", "client_ca_path"])
def test_files_that_cannot_be_used_are_refused_at_once(security: ServerSecurity, tmp_path: Path, broken: str) -> None:
    (tmp_path / "nonsense").write_text("nonsense")
    paths = {"cert_path": security.cert_path, "key_path": security.key_path, broken: tmp_path / "nonsense"}

    with pytest.raises(OptionError, match="nonsense"):
        EmbeddedCluster(security=ServerSecurity(**paths))
    with pytest.raises(OptionError, match="missing"):
        EmbeddedCluster(security=ServerSecurity(**{**paths, broken: tmp_path / "missing"}))
