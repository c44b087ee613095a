"""Connections that are frozen and cut between clients and the ports of a cluster."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import grpc
import pytest
from tikv_embedded import EmbeddedCluster, TopologyError
from tikv_embedded.testing import BareClient, context_for
from tikv_proto import kvrpcpb, pdpb
from tikv_proto.services import PD, Tikv

SERVING = b"\x08\x01"


@pytest.fixture
async def breakable() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(network_faults=True, tso_servers=1) as running:
        yield running


async def put(cluster: EmbeddedCluster, client: BareClient, address: str, *metadata: tuple[str, str]) -> None:
    request = kvrpcpb.RawPutRequest(context=context_for(cluster.regions()[0]), key=b"a", value=b"1")
    answer = await client.call(address, Tikv.RawPut, request, metadata)
    assert not answer.HasField("region_error")


async def read_to_end(connection: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(connection, 100):
        pass


async def test_all_ports_answer_behind_their_relays(breakable: EmbeddedCluster, client: BareClient) -> None:
    ports = [*breakable.pd_addresses, *breakable.store_addresses.values(), *breakable.tso.addresses]

    assert [await client.health(port) for port in ports] == [SERVING] * 5
    assert [breakable.network.connections(port) for port in ports] == [1] * 5


async def test_a_partitioned_store_hangs_old_and_new_connections_and_resets_none(
    breakable: EmbeddedCluster, client: BareClient
) -> None:
    address = breakable.store_addresses[1]
    await put(breakable, client, address)

    breakable.network.partition(address)
    async with BareClient() as newcomer:
        waiting = [asyncio.ensure_future(put(breakable, each, address)) for each in (client, newcomer)]
        done, _ = await asyncio.wait(waiting, timeout=0.2)
        breakable.network.heal(address)
        await asyncio.gather(*waiting)

    assert not done


async def test_a_call_that_is_sent_into_a_partition_ends_by_its_own_deadline(
    breakable: EmbeddedCluster, client: BareClient
) -> None:
    address = breakable.store_addresses[1]
    breakable.network.partition(address)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.health(address)


async def test_stores_reach_a_store_that_clients_do_not(breakable: EmbeddedCluster, client: BareClient) -> None:
    leader, other = breakable.store_addresses[1], breakable.store_addresses[2]
    breakable.network.partition(leader)

    await put(breakable, client, other, ("tikv-forwarded-host", leader))

    assert await client.health(other) == SERVING


async def test_a_partitioned_pd_member_hangs(breakable: EmbeddedCluster, client: BareClient) -> None:
    address = breakable.pd_addresses[0]
    breakable.network.partition(address)

    asked = asyncio.ensure_future(client.call(address, PD.GetMembers, pdpb.GetMembersRequest()))
    done, _ = await asyncio.wait([asked], timeout=0.1)
    breakable.network.heal(address)

    assert not done
    assert (await asked).leader.name == "pd-1"


async def test_connections_are_reset_and_can_be_made_anew(breakable: EmbeddedCluster, client: BareClient) -> None:
    address = breakable.store_addresses[1]
    await put(breakable, client, address)
    held = breakable.faults.on("RawPut", times=1).hold()
    written = asyncio.ensure_future(put(breakable, client, address))
    await held.struck()

    cut = breakable.network.reset(address)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await written
    async with BareClient() as newcomer:
        await put(breakable, newcomer, address)

    assert cut == 1
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_reset_is_a_reset_for_the_socket(breakable: EmbeddedCluster) -> None:
    host, port = breakable.store_addresses[1].rsplit(":", 1)
    with socket.create_connection((host, int(port))) as connection:
        connection.setblocking(False)
        # The server speaks first.
        await asyncio.get_running_loop().sock_recv(connection, 1)

        breakable.network.reset(f"{host}:{port}")

        with pytest.raises(ConnectionResetError):
            await read_to_end(connection)


async def test_a_store_that_is_added_or_restarted_can_be_partitioned_too(
    breakable: EmbeddedCluster, client: BareClient
) -> None:
    added = (await breakable.add_store()).address
    restarted = breakable.store_addresses[2]
    await breakable.stop_store(2)
    await breakable.start_store(2)

    for address in (added, restarted):
        breakable.network.partition(address)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.health(address)


async def test_a_cluster_closes_while_it_is_partitioned(client: BareClient, caplog: pytest.LogCaptureFixture) -> None:
    async with EmbeddedCluster(network_faults=True) as cluster:
        address = cluster.store_addresses[1]
        await client.health(address)
        cluster.network.partition(address)
        asked = asyncio.ensure_future(client.health(address))
        await asyncio.wait([asked], timeout=0.05)

    with pytest.raises(grpc.aio.AioRpcError):
        await asked
    assert not caplog.records


async def test_connections_are_out_of_reach_unless_asked_for(cluster: EmbeddedCluster) -> None:
    with pytest.raises(TopologyError, match="network_faults"):
        cluster.network.partition(cluster.store_addresses[1])
    with pytest.raises(TopologyError, match="no port"):
        cluster.network.reset("127.0.0.1:1")
