"""Timestamps from servers apart from PD."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tikv_embedded import EmbeddedCluster, TopologyError
from tikv_embedded.testing import BareClient
from tikv_proto import pdpb, tsopb
from tikv_proto.services import PD, TSO, MetaStorage


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(tso_servers=3) as running:
        yield running


def header(cluster: EmbeddedCluster, **fields: Any) -> tsopb.RequestHeader:
    return tsopb.RequestHeader(cluster_id=cluster.cluster_id, **fields)


async def timestamp(
    cluster: EmbeddedCluster, client: BareClient, server: int, count: int = 1, **fields: Any
) -> tsopb.TsoResponse:
    stream = client.stream(cluster.tso.addresses[server], TSO.Tso)
    await stream.write(tsopb.TsoRequest(header=header(cluster, **fields), count=count))
    return await stream.read()


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def find(
    cluster: EmbeddedCluster, client: BareClient, server: int = 0, keyspace_id: int = 0, mod_revision: int = 0
) -> tsopb.FindGroupByKeyspaceIDResponse:
    request = tsopb.FindGroupByKeyspaceIDRequest(
        header=header(cluster), keyspace_id=keyspace_id, mod_revision=mod_revision
    )
    return await client.call(cluster.tso.addresses[server], TSO.FindGroupByKeyspaceID, request)


def primary(answer: tsopb.FindGroupByKeyspaceIDResponse) -> list[bool]:
    return [member.is_primary for member in answer.keyspace_group.members]


async def test_pd_points_at_the_servers(cluster: EmbeddedCluster, client: BareClient) -> None:
    info = await client.call(cluster.pd_addresses[0], PD.GetClusterInfo, pdpb.GetClusterInfoRequest())

    assert list(info.serviceModes) == [pdpb.ServiceMode.API_SVC_MODE]
    assert list(info.tso_urls) == [f"http://{address}" for address in cluster.tso.addresses]


async def test_pd_says_that_it_gives_out_timestamps_itself_while_servers_are_withdrawn(
    cluster: EmbeddedCluster, client: BareClient
) -> None:
    cluster.tso.withdraw()
    without = await client.call(cluster.pd_addresses[0], PD.GetClusterInfo, pdpb.GetClusterInfoRequest())
    cluster.tso.announce()
    again = await client.call(cluster.pd_addresses[0], PD.GetClusterInfo, pdpb.GetClusterInfoRequest())

    assert (list(without.serviceModes), list(without.tso_urls)) == ([pdpb.ServiceMode.PD_SVC_MODE], [])
    assert list(again.tso_urls) == [f"http://{address}" for address in cluster.tso.addresses]


async def test_the_primary_gives_out_timestamps_in_line_with_pd(cluster: EmbeddedCluster, client: BareClient) -> None:
    first = await timestamp(cluster, client, 0, count=5, callee_id=cluster.tso.addresses[0])
    later = (await client.ask_pd(cluster, PD.GetMinTS)).timestamp

    assert (first.count, first.header.cluster_id) == (5, cluster.cluster_id)
    assert (first.timestamp.physical, first.timestamp.logical) < (later.physical, later.logical)


async def test_bad_requests_for_timestamps_end_the_stream(cluster: EmbeddedCluster, client: BareClient) -> None:
    secondary = await failure(timestamp(cluster, client, 1))
    empty = await failure(timestamp(cluster, client, 0, count=0))
    misled = await failure(timestamp(cluster, client, 0, callee_id="10.0.0.1:1"))
    cluster.tso.move_keyspace(7, 2)
    stream = client.stream(cluster.tso.addresses[0], TSO.Tso)
    await stream.write(tsopb.TsoRequest(header=tsopb.RequestHeader(cluster_id=1), count=1))
    stranger = await failure(stream.read())

    address = cluster.tso.addresses[0]
    assert secondary[0] is grpc.StatusCode.UNKNOWN
    assert "is not leader of keyspace group 0" in secondary[1]
    assert empty[0] is grpc.StatusCode.UNKNOWN
    assert misled == (
        grpc.StatusCode.FAILED_PRECONDITION,
        f"mismatch callee id, need {address} but got 10.0.0.1:1",
    )
    assert stranger[1] == f"mismatch cluster id, need {cluster.cluster_id} but got 1"


async def test_every_server_knows_the_primary_of_every_group(cluster: EmbeddedCluster, client: BareClient) -> None:
    before = await find(cluster, client, 2)
    cluster.tso.move_keyspace(7, 2)
    cluster.tso.transfer_primary(1, group=2)
    default, moved = await find(cluster, client, 2), await find(cluster, client, 2, keyspace_id=7)
    served = await timestamp(cluster, client, 1, keyspace_id=7, keyspace_group_id=0)

    assert (before.keyspace_group.id, moved.keyspace_group.id) == (0, 2)
    assert [member.address for member in before.keyspace_group.members] == [
        f"http://{address}" for address in cluster.tso.addresses
    ]
    assert primary(before) == primary(default) == [True, False, False]
    assert primary(moved) == [False, True, False]
    assert moved.mod_revision == default.mod_revision == before.mod_revision + 1
    assert served.header.keyspace_group_id == 2
    assert cluster.tso.keyspace_groups == {0: 0, 2: 1}


async def test_bad_questions_are_errors_in_the_header(cluster: EmbeddedCluster, client: BareClient) -> None:
    ahead = await find(cluster, client, mod_revision=99)
    address, stranger = cluster.tso.addresses[0], tsopb.RequestHeader(cluster_id=1)
    lost = await client.call(address, TSO.FindGroupByKeyspaceID, tsopb.FindGroupByKeyspaceIDRequest(header=stranger))
    least = await client.call(address, TSO.GetMinTS, tsopb.GetMinTSRequest(header=stranger))

    assert ahead.header.error.message == "keyspace group mod revision is stale"
    assert {each.header.error.type for each in (lost, least)} == {tsopb.ErrorType.CLUSTER_MISMATCHED}


async def test_the_least_timestamp_comes_from_any_server(cluster: EmbeddedCluster, client: BareClient) -> None:
    answers = [
        await client.call(address, TSO.GetMinTS, tsopb.GetMinTSRequest(header=header(cluster)))
        for address in cluster.tso.addresses
    ]

    assert [(each.keyspace_groups_serving, each.keyspace_groups_total) for each in answers] == [(1, 1), (0, 1), (0, 1)]
    assert all(each.timestamp.physical for each in answers)


async def test_the_next_server_is_primary_when_the_primary_stops(cluster: EmbeddedCluster, client: BareClient) -> None:
    before = await timestamp(cluster, client, 0)

    await cluster.tso.stop(0)
    await cluster.tso.stop(0)
    after = await timestamp(cluster, client, 1)
    stopped = cluster.tso.addresses[0]
    with socket.socket() as probe:
        is_refused = probe.connect_ex(("127.0.0.1", int(stopped.rsplit(":", 1)[1]))) != 0
    await cluster.tso.start(0)
    await cluster.tso.start(0)

    assert is_refused
    assert primary(await find(cluster, client, 0)) == [False, True, False]
    assert (before.timestamp.physical, before.timestamp.logical) < (after.timestamp.physical, after.timestamp.logical)


async def test_a_server_that_does_not_run_cannot_be_primary(cluster: EmbeddedCluster) -> None:
    await cluster.tso.stop(2)

    with pytest.raises(TopologyError, match="TSO server 2 does not run"):
        cluster.tso.transfer_primary(2)
    with pytest.raises(TopologyError, match="no keyspace group 5"):
        cluster.tso.transfer_primary(1, group=5)
    with pytest.raises(TopologyError, match="no TSO server 3"):
        await cluster.tso.start(3)


async def test_faults_strike_tso_servers_too(cluster: EmbeddedCluster, client: BareClient) -> None:
    cluster.pd.tso_falls_back(60)
    cluster.pd.answer_error("FindGroupByKeyspaceID", "UNKNOWN", "busy")

    back, present = await timestamp(cluster, client, 0), await timestamp(cluster, client, 0)
    refused = await find(cluster, client)

    assert back.timestamp.physical < present.timestamp.physical - 59_000
    assert (refused.header.error.message, refused.header.cluster_id) == ("busy", cluster.cluster_id)


async def test_primaries_are_written_where_older_clients_look(client: BareClient, tmp_path: Path) -> None:
    async with EmbeddedCluster(path=tmp_path / "data", tso_servers=2) as cluster:
        key = f"/ms/{cluster.cluster_id}/tso/00000/primary".encode()
        cluster.tso.transfer_primary(1)
        told = await client.ask_pd(cluster, MetaStorage.Get, key=key)
        participant = tsopb.Participant.FromString(told.kvs[0].value)
        assert list(participant.listen_urls) == [f"http://{cluster.tso.addresses[1]}"]
    async with EmbeddedCluster(path=tmp_path / "data") as cluster:
        assert not (await client.ask_pd(cluster, MetaStorage.Get, key=key)).kvs
        assert cluster.tso.addresses == []
        with pytest.raises(TopologyError, match="no TSO server 0"):
            cluster.tso.move_keyspace(7, 2)
