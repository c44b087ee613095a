"""PD members that are stopped and started again."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest
from tikv_embedded import EmbeddedCluster, TopologyError
from tikv_embedded.testing import BareClient
from tikv_proto import pdpb
from tikv_proto.services import PD


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(pd_members=3) as running:
        yield running


async def leader_seen_by(cluster: EmbeddedCluster, client: BareClient, member: int) -> str:
    answer = await client.call(cluster.pd_addresses[member], PD.GetMembers, pdpb.GetMembersRequest())
    return answer.leader.client_urls[0].removeprefix("http://")


def is_refused(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


async def test_a_stopped_member_refuses_connections_until_it_is_started(
    cluster: EmbeddedCluster, client: BareClient
) -> None:
    await cluster.stop_pd_member(2)
    await cluster.stop_pd_member(2)

    refused = [is_refused(address) for address in cluster.pd_addresses]
    await cluster.start_pd_member(2)
    await cluster.start_pd_member(2)

    assert refused == [False, False, True]
    assert await leader_seen_by(cluster, client, 2) == cluster.pd_addresses[0]


async def test_another_member_leads_when_the_leader_stops_and_goes_on_when_it_is_back(
    cluster: EmbeddedCluster, client: BareClient
) -> None:
    await cluster.stop_pd_member(0)

    assert await leader_seen_by(cluster, client, 2) == cluster.pd_addresses[1]
    await cluster.start_pd_member(0)
    assert await leader_seen_by(cluster, client, 2) == cluster.pd_addresses[1]


async def test_the_first_member_to_come_back_leads(cluster: EmbeddedCluster, client: BareClient) -> None:
    for member in range(3):
        await cluster.stop_pd_member(member)

    await cluster.start_pd_member(1)

    assert await leader_seen_by(cluster, client, 1) == cluster.pd_addresses[1]


@pytest.mark.parametrize("member", [-1, 3])
async def test_an_unknown_member_is_refused(cluster: EmbeddedCluster, member: int) -> None:
    with pytest.raises(TopologyError, match=f"no PD member {member}"):
        await cluster.stop_pd_member(member)
    with pytest.raises(TopologyError):
        await cluster.start_pd_member(member)
