"""A cluster behind Docker or NAT: the addresses it advertises are not those at which it is reached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tikv_embedded import EmbeddedCluster
from tikv_pd import PdClient
from tikv_raw import PdConfig, RawClient, RawConfig

KEYS = [b"%02d" % number for number in range(20)]


class Gateway:
    """Ports of the host, each of which leads to a port inside."""

    def __init__(self) -> None:
        self.ports: dict[str, str] = {}
        """host:port inside → host:port outside."""
        self.used: set[str] = set()
        """host:port inside of whom somebody reached through it."""
        self._servers: list[asyncio.Server] = []

    async def open(self, inside: str) -> None:
        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.used.add(inside)
            host, port = inside.split(":")
            try:
                back, on = await asyncio.open_connection(host, int(port))
            except OSError:
                writer.close()
                return
            await asyncio.gather(pump(reader, on), pump(back, writer))

        server = await asyncio.start_server(forward, "127.0.0.1", 0)
        self._servers.append(server)
        self.ports[inside] = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def aclose(self) -> None:
        for server in self._servers:
            server.close()
            await server.wait_closed()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def gateway_to(cluster: EmbeddedCluster) -> AsyncIterator[Gateway]:
    gateway = Gateway()
    try:
        for address in (*cluster.pd_addresses, *cluster.store_addresses.values()):
            await gateway.open(address)
        yield gateway
    finally:
        await gateway.aclose()


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(pd_members=3, split_keys=[b"05", b"10", b"15"]) as running:
        yield running


async def test_the_raw_client_reaches_pd_and_stores_through_a_mapping(cluster: EmbeddedCluster) -> None:
    async with gateway_to(cluster) as gateway:
        config = RawConfig(pd=PdConfig(host_mapping=gateway.ports))
        async with RawClient(cluster.url, config=config) as client:
            await client.batch_put({key: key for key in KEYS})
            cluster.split(b"07")

            assert await client.batch_get(KEYS) == {key: key for key in KEYS}

        leading = {region.leader.store_id for region in cluster.regions() if region.leader is not None}
        assert gateway.used >= {cluster.store_addresses[store_id] for store_id in leading}
        assert gateway.used >= {cluster.pd_addresses[0]}


async def test_the_client_of_pd_reaches_the_leader_through_a_function(cluster: EmbeddedCluster) -> None:
    async with gateway_to(cluster) as gateway:
        config = PdConfig(host_mapping=lambda address: gateway.ports[address])
        async with PdClient(cluster.pd_addresses[2], config=config) as pd:
            await pd.get_ts()

            assert pd.leader == cluster.pd_addresses[0]

        assert gateway.used >= {cluster.pd_addresses[0], cluster.pd_addresses[2]}
