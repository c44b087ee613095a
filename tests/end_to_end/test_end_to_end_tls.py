"""The raw client over TLS, in which both sides prove who they are, and files that are rotated meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from tikv_embedded import EmbeddedCluster, ServerSecurity
from tikv_pd import PdClient, SecurityConfig
from tikv_raw import PdConfig, PdUnavailable, RawClient, RawConfig

KEYS = [b"%02d" % number for number in range(20)]
QUICK = RawConfig(pd=PdConfig(open_timeout=1))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def successor() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(tmp_path: Path) -> ServerSecurity:
    return ServerSecurity(
        cert_path=tmp_path / "server.pem",
        key_path=tmp_path / "server.key",
        client_ca_path=tmp_path / "authorities of clients.pem",
    )


@pytest.fixture
def client_security(tmp_path: Path) -> SecurityConfig:
    return SecurityConfig(
        ca_path=tmp_path / "authorities of servers.pem",
        cert_path=tmp_path / "client.pem",
        key_path=tmp_path / "client.key",
    )


def replace(path: Path | None, *content: trustme.Blob) -> None:
    """Replace a file as tools that rotate certificates do."""
    assert path is not None
    fresh = path.with_suffix(".new")
    fresh.write_bytes(b"".join(blob.bytes() for blob in content))
    fresh.rename(path)


def certify_server(server: ServerSecurity, issued_by: trustme.CA, *trusts: trustme.CA) -> None:
    leaf = issued_by.issue_cert("127.0.0.1")
    replace(server.cert_path, *leaf.cert_chain_pems)
    replace(server.key_path, leaf.private_key_pem)
    replace(server.client_ca_path, *(authority.cert_pem for authority in trusts))


def certify_client(client: SecurityConfig, issued_by: trustme.CA, *trusts: trustme.CA) -> None:
    leaf = issued_by.issue_cert("client@tikv.example")
    replace(client.cert_path, *leaf.cert_chain_pems)
    replace(client.key_path, leaf.private_key_pem)
    replace(client.ca_path, *(authority.cert_pem for authority in trusts))


@pytest.fixture
async def cluster(
    server: ServerSecurity, client_security: SecurityConfig, authority: trustme.CA
) -> AsyncIterator[EmbeddedCluster]:
    certify_server(server, authority, authority)
    certify_client(client_security, authority, authority)
    async with EmbeddedCluster(pd_members=3, split_keys=[b"05", b"10", b"15"], security=server) as running:
        yield running


async def test_every_operation_works_over_tls(cluster: EmbeddedCluster, client_security: SecurityConfig) -> None:
    async with RawClient(cluster.url, security=client_security) as client:
        await client.batch_put({key: key for key in KEYS})
        cluster.transfer_pd_leader(1)
        cluster.split(b"07")
        await client.delete(b"19")

        assert await client.batch_get(KEYS) == {key: key for key in KEYS[:-1]}
        assert [pair async for pair in client.scan()] == [(key, key) for key in KEYS[:-1]]


async def test_a_client_without_certificate_is_not_let_in(
    cluster: EmbeddedCluster, client_security: SecurityConfig
) -> None:
    unknown = SecurityConfig(ca_path=client_security.ca_path)

    with pytest.raises(PdUnavailable, match="does PD trust that of the client"):
        await RawClient(cluster.url, security=unknown, config=QUICK).open()
    with pytest.raises(PdUnavailable):
        await RawClient(cluster.url, config=QUICK).open()


async def test_a_client_works_on_while_every_certificate_is_replaced(
    cluster: EmbeddedCluster,
    server: ServerSecurity,
    client_security: SecurityConfig,
    authority: trustme.CA,
    successor: trustme.CA,
) -> None:
    async with RawClient(cluster.url, security=client_security) as client:
        await client.put(b"k", b"before")

        # First everybody trusts both authorities, then each certificate is replaced, last the old authority is dropped.
        certify_client(client_security, authority, authority, successor)
        certify_server(server, authority, authority, successor)
        await restart(cluster, client)
        certify_client(client_security, successor, authority, successor)
        certify_server(server, successor, authority, successor)
        await restart(cluster, client)
        certify_client(client_security, successor, successor)
        certify_server(server, successor, successor)
        await restart(cluster, client)

        assert await client.get(b"k") == b"before"


async def restart(cluster: EmbeddedCluster, client: RawClient) -> None:
    """Restart every server, one by one, with work in between."""
    for index in range(3):
        await cluster.stop_pd_member(index)
        await cluster.start_pd_member(index)
    for store_id in cluster.store_addresses:
        await cluster.stop_store(store_id)
        await cluster.start_store(store_id)
        await client.batch_put(dict.fromkeys(KEYS, b"%d" % store_id))
    assert set((await client.batch_get(KEYS)).values()) == {b"%d" % max(cluster.store_addresses)}


async def test_the_client_of_pd_works_over_tls(cluster: EmbeddedCluster, client_security: SecurityConfig) -> None:
    async with PdClient(cluster.url, security=client_security) as pd:
        first = await pd.get_ts()

        assert await pd.get_ts() > first
        assert len(await pd.get_members()) == 3
        assert len(await pd.scan_regions(b"")) == 4
