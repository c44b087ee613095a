"""The cluster as a whole: starting, stopping, its stores, and what it leaves behind."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import grpc
import pytest
from tikv_embedded import (
    ClusterNotRunningError,
    DataDirectoryError,
    EmbeddedCluster,
    OptionError,
    PortInUseError,
    TopologyError,
)
from tikv_embedded.testing import BareClient, context_for
from tikv_proto import kvrpcpb, pdpb, tikvpb
from tikv_proto.services import PD, Tikv

SERVING = b"\x08\x01"
SERVICE_UNKNOWN = b"\x08\x03"

EMPTY = tikvpb.BatchCommandsRequest.Request()
WAITING = tikvpb.BatchCommandsRequest.Request(Empty=tikvpb.BatchCommandsEmptyRequest(test_id=1, delay_time=60_000))


async def put(cluster: EmbeddedCluster, client: BareClient, key: bytes, value: bytes) -> kvrpcpb.RawPutResponse:
    region = cluster.region_of(key)
    assert region.leader is not None
    request = kvrpcpb.RawPutRequest(context=context_for(region), key=key, value=value)
    return await client.call(cluster.store_addresses[region.leader.store_id], Tikv.RawPut, request)


async def get(cluster: EmbeddedCluster, client: BareClient, key: bytes) -> bytes | None:
    region = cluster.region_of(key)
    assert region.leader is not None
    request = kvrpcpb.RawGetRequest(context=context_for(region), key=key)
    answer = await client.call(cluster.store_addresses[region.leader.store_id], Tikv.RawGet, request)
    assert not answer.HasField("region_error")
    return None if answer.not_found else answer.value


def is_refused(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port of this machine on which something listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


# Starting and closing.


async def test_every_port_answers_when_the_start_returns(client: BareClient) -> None:
    async with EmbeddedCluster(stores=4, pd_members=3) as cluster:
        addresses = [*cluster.pd_addresses, *cluster.store_addresses.values()]

        answers = [await client.health(address) for address in addresses]

    assert answers == [SERVING] * 7
    assert len(set(addresses)) == 7


async def test_the_health_of_anything_but_the_whole_server_is_unknown(
    cluster: EmbeddedCluster, client: BareClient
) -> None:
    address = cluster.pd_addresses[0]

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.health(address, b"\x0a\x03foo")
    watched = [await client.watch_health(address, request) for request in (b"", b"\x0a\x03foo")]

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert watched == [SERVING, SERVICE_UNKNOWN]


async def test_a_start_takes_less_than_half_a_second() -> None:
    took = []

    for _ in range(5):
        began = time.perf_counter()
        async with EmbeddedCluster(stores=3):
            took.append(time.perf_counter() - began)

    # What others do on the machine makes single starts longer.
    assert min(took) < 0.5


async def test_a_cluster_that_does_not_run_says_so() -> None:
    cluster = EmbeddedCluster()

    with pytest.raises(ClusterNotRunningError):
        cluster.url  # noqa: B018
    await cluster.aclose()
    async with cluster:
        with pytest.raises(RuntimeError, match="runs already"):
            await cluster.start()
    with pytest.raises(ClusterNotRunningError):
        cluster.regions()


async def test_a_closed_cluster_leaves_no_port_task_thread_or_file(tmp_path: Path) -> None:
    def remains() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())

    async def round_trip(path: Path) -> list[str]:
        async with EmbeddedCluster(path=path, pd_members=3) as cluster, BareClient() as client:
            await put(cluster, client, b"a", b"1")
            stream = client.stream(cluster.store_addresses[1], Tikv.BatchCommands)
            await stream.write(tikvpb.BatchCommandsRequest(request_ids=[1], requests=[WAITING]))
            tso = client.stream(cluster.pd_addresses[0], PD.Tso)
            await tso.write(pdpb.TsoRequest(header=pdpb.RequestHeader(cluster_id=cluster.cluster_id), count=1))
            await tso.read()
            return [*cluster.pd_addresses, *cluster.store_addresses.values()]

    await round_trip(tmp_path / "warm")  # gRPC keeps a few descriptors and threads of its own from here on.
    before, threads = remains(), threading.active_count()
    addresses = await round_trip(tmp_path / "data")
    with anyio.move_on_after(5):
        while remains() > before:  # noqa: ASYNC110  # gRPC closes connections in threads of its own.
            await asyncio.sleep(0.01)

    assert remains() <= before
    assert threading.active_count() == threads
    assert all(map(is_refused, addresses))


async def test_two_clusters_live_beside_each_other(cluster: EmbeddedCluster, client: BareClient) -> None:
    async with EmbeddedCluster() as other:
        await put(cluster, client, b"a", b"1")

        assert await get(other, client, b"a") is None
        assert other.cluster_id != cluster.cluster_id


async def test_pd_takes_the_ports_that_were_asked_for(client: BareClient) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async with EmbeddedCluster(pd_port=port) as cluster:
        assert cluster.url == f"tikv://127.0.0.1:{port}"
        assert await client.health(f"127.0.0.1:{port}") == SERVING


async def test_a_taken_port_is_refused_and_nothing_is_left(taken_port: int, tmp_path: Path) -> None:
    with pytest.raises(PortInUseError, match=str(taken_port)):
        await EmbeddedCluster(pd_port=taken_port, path=tmp_path / "data").start()

    async with EmbeddedCluster(path=tmp_path / "data") as cluster:
        with pytest.raises(PortInUseError):
            await EmbeddedCluster(pd_port=int(cluster.pd_addresses[0].rsplit(":", 1)[1])).start()


async def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(PortInUseError):
        await EmbeddedCluster(host="192.0.2.1").start()


# PD members.


async def test_the_next_pd_member_leads_when_the_leader_stops(client: BareClient) -> None:
    async with EmbeddedCluster(pd_members=3) as cluster:
        first, second, _ = cluster.pd_addresses

        await cluster.stop_pd_member(0)
        members = await client.call(second, PD.GetMembers, pdpb.GetMembersRequest())
        await cluster.start_pd_member(0)
        back = await client.call(first, PD.GetMembers, pdpb.GetMembersRequest())

        assert members.leader.client_urls == [f"http://{second}"]
        assert back.leader == members.leader


async def test_a_stopped_pd_member_refuses_connections_and_cannot_lead() -> None:
    async with EmbeddedCluster(pd_members=3) as cluster:
        await cluster.stop_pd_member(2)
        await cluster.stop_pd_member(2)

        assert is_refused(cluster.pd_addresses[2])
        with pytest.raises(TopologyError, match="does not run"):
            cluster.transfer_pd_leader(2)
        with pytest.raises(TopologyError, match="no PD member"):
            await cluster.stop_pd_member(3)
        with pytest.raises(TopologyError, match="no PD member"):
            cluster.transfer_pd_leader("pd-4")


# Durability.


async def test_data_and_topology_survive_a_restart(tmp_path: Path, client: BareClient) -> None:
    async with EmbeddedCluster(path=tmp_path / "data", split_keys=[b"g"]) as first:
        await put(first, client, b"a", b"1")
        await put(first, client, b"z", b"2")
        first.split(b"p")
        regions, cluster_id = first.regions(), first.cluster_id

    async with EmbeddedCluster(path=tmp_path / "data") as second:
        assert second.cluster_id == cluster_id
        assert second.regions() == regions
        assert await get(second, client, b"a") == b"1"
        assert await get(second, client, b"z") == b"2"


async def test_a_directory_is_used_by_one_cluster_at_a_time(tmp_path: Path) -> None:
    async with EmbeddedCluster(path=tmp_path / "data"):
        with pytest.raises(DataDirectoryError):
            await EmbeddedCluster(path=tmp_path / "data").start()


async def test_a_directory_keeps_its_storage_mode(tmp_path: Path) -> None:
    async with EmbeddedCluster(path=tmp_path / "data", api_version="v1ttl"):
        pass

    with pytest.raises(OptionError, match="v1ttl"):
        await EmbeddedCluster(path=tmp_path / "data", api_version="v2").start()
    async with EmbeddedCluster(path=tmp_path / "data", api_version="v1ttl"):
        pass


async def test_leaders_lost_with_their_stores_are_back_after_a_restart(tmp_path: Path, client: BareClient) -> None:
    async with EmbeddedCluster(path=tmp_path / "data") as first:
        await first.stop_store(1)
        await first.stop_store(2)
        assert first.region_of(b"").leader is None

    async with EmbeddedCluster(path=tmp_path / "data") as second:
        await put(second, client, b"a", b"1")


# Stores.


async def test_a_stopped_store_refuses_connections_and_another_leads(
    cluster: EmbeddedCluster, client: BareClient
) -> None:
    address = cluster.store_addresses[1]
    await put(cluster, client, b"a", b"1")

    await cluster.stop_store(1)
    await cluster.stop_store(1)

    leader = cluster.region_of(b"a").leader
    assert is_refused(address)
    assert leader is not None
    assert leader.store_id == 2
    assert await get(cluster, client, b"a") == b"1"


async def test_a_store_comes_back_on_the_same_port(cluster: EmbeddedCluster, client: BareClient) -> None:
    before = cluster.store_addresses
    await cluster.stop_store(1)

    await cluster.start_store(1)
    await cluster.start_store(1)
    cluster.transfer_leader(cluster.region_of(b"a").id, 1)

    assert cluster.store_addresses == before
    assert await get(cluster, client, b"a") is None


async def test_a_store_that_stops_without_an_election_still_leads(cluster: EmbeddedCluster) -> None:
    await cluster.stop_store(1, elect=False)

    leader = cluster.region_of(b"a").leader
    assert leader is not None
    assert leader.store_id == 1


async def test_a_stopped_store_cuts_its_calls_off(cluster: EmbeddedCluster, client: BareClient) -> None:
    stream = client.stream(cluster.store_addresses[1], Tikv.BatchCommands)
    await stream.write(tikvpb.BatchCommandsRequest(request_ids=[1, 2], requests=[WAITING, EMPTY]))
    await stream.read()

    await cluster.stop_store(1)

    code, _ = await stream.status()
    assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_a_new_store_takes_peers_and_leads(cluster: EmbeddedCluster, client: BareClient) -> None:
    region = cluster.region_of(b"a")

    store = await cluster.add_store()
    grown = cluster.add_peer(region.id, store.id)
    moved = cluster.transfer_leader(region.id, store.id)
    shrunk = cluster.remove_peer(region.id, 1)
    written = await put(cluster, client, b"a", b"1")

    assert store in cluster.stores()
    assert grown.epoch.conf_ver == region.epoch.conf_ver + 1
    assert moved.leader == grown.peers[-1]
    assert [peer.store_id for peer in shrunk.peers] == [2, 3, store.id]
    assert not written.HasField("region_error")


async def test_a_removed_peer_is_not_found_on_its_store(cluster: EmbeddedCluster, client: BareClient) -> None:
    before = cluster.region_of(b"a")
    cluster.remove_peer(before.id, 3)

    request = kvrpcpb.RawGetRequest(context=context_for(before, 3, replica_read=True), key=b"a")
    answer = await client.call(cluster.store_addresses[3], Tikv.RawGet, request)

    assert answer.region_error.region_not_found.region_id == before.id


async def test_an_unknown_store_is_an_error_of_the_topology(cluster: EmbeddedCluster) -> None:
    with pytest.raises(TopologyError, match="no store 99"):
        await cluster.stop_store(99)
    with pytest.raises(TopologyError):
        await cluster.start_store(99)
    with pytest.raises(TopologyError):
        cluster.transfer_leader(cluster.region_of(b"").id, 99)
    with pytest.raises(TopologyError):
        cluster.add_peer(12345, 1)
