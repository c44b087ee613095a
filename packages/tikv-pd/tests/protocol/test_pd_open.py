from __future__ import annotations

import math

import anyio
import pytest
from tikv_pd import ClosedError, ClusterMismatch, PdClient, PdConfig, PdError, PdUnavailable
from tikv_pd.testing import FakePd, MemoryTransport
from tikv_proto.services import PD


async def test_a_follower_given_as_address_leads_to_the_leader(pd: FakePd) -> None:
    async with PdClient("pd3:2379", transport=pd.transport) as client:
        assert (client.cluster_id, client.leader) == (7, "pd1:2379")

    assert pd.transport.log == [("pd3:2379", "GetMembers"), ("pd1:2379", "GetClusterInfo")]


async def test_a_dead_seed_is_passed_over(pd: FakePd) -> None:
    pd.stop("pd1:2379")
    pd.hang(PD.GetMembers, at="pd2:2379")
    pd.leader = "pd3:2379"

    async with PdClient("pd1:2379,pd2:2379,pd3:2379", transport=pd.transport) as client:
        assert client.leader == "pd3:2379"

    assert anyio.current_time() == 1


async def test_opening_waits_for_a_pd_that_is_starting(pd: FakePd) -> None:
    pd.stop()

    async def start_late() -> None:
        await anyio.sleep(5)
        pd.start("pd1:2379")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start_late)
        async with PdClient("pd1:2379", transport=pd.transport) as client:
            assert client.leader == "pd1:2379"

    assert 5 <= anyio.current_time() <= 8


async def test_opening_waits_for_an_election(pd: FakePd) -> None:
    pd.leader = None

    async def elect() -> None:
        await anyio.sleep(2)
        pd.leader = "pd2:2379"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(elect)
        async with PdClient("pd1:2379", transport=pd.transport) as client:
            assert client.leader == "pd2:2379"


async def test_an_unreachable_pd_is_reported_address_by_address_when_the_time_to_open_is_over(
    network: MemoryTransport,
) -> None:
    client = PdClient("pd1:2379,pd2:2379", config=PdConfig(open_timeout=4), transport=network)

    with pytest.raises(PdUnavailable) as raised:
        await client.__aenter__()

    refused = "UNAVAILABLE (connection refused)"
    assert raised.value.failures == (("pd1:2379", refused), ("pd2:2379", refused))
    assert anyio.current_time() == 4


async def test_a_hanging_pd_does_not_hold_up_opening_beyond_its_time(pd: FakePd) -> None:
    pd.hang(PD.GetMembers)
    client = PdClient(pd.members, config=PdConfig(open_timeout=1.5), transport=pd.transport)

    with pytest.raises(PdUnavailable) as raised:
        await client.__aenter__()

    assert [address for address, _ in raised.value.failures] == pd.members
    assert raised.value.failures[2][1] == "not asked before the time ran out"
    assert anyio.current_time() == 1.5


async def test_a_server_that_is_no_pd_is_reported_at_once(network: MemoryTransport) -> None:
    network.serve("tikv1:20160", {})

    with pytest.raises(PdUnavailable, match="tikv1:20160: UNIMPLEMENTED"):
        await PdClient("tikv1:20160", transport=network).__aenter__()

    assert anyio.current_time() == 0


async def test_addresses_of_two_clusters_are_refused(pd: FakePd) -> None:
    FakePd(pd.transport, members=("other:2379",), cluster_id=8)

    with pytest.raises(ClusterMismatch, match="other:2379 belongs to cluster 8, not 7"):
        await PdClient("pd1:2379,other:2379", transport=pd.transport).__aenter__()


async def test_a_client_is_used_inside_its_block_alone(pd: FakePd) -> None:
    client = PdClient("pd1:2379", transport=pd.transport)

    with pytest.raises(ClosedError):
        await client.get_ts()
    with pytest.raises(ClosedError):
        _ = client.cluster_id
    async with client:
        with pytest.raises(ClosedError, match="opened before"):
            await client.__aenter__()
        await client.get_ts()
    with pytest.raises(ClosedError):
        await client.get_stores()
    with pytest.raises(ClosedError):
        await client.get_ts()
    with pytest.raises(ClosedError):
        _ = client.leader
    with pytest.raises(ClosedError):
        await client.__aenter__()


async def test_closing_ends_the_calls_of_other_tasks(pd: FakePd) -> None:
    pd.hang(PD.GetRegion)
    pd.hang(PD.Tso)
    ended: list[str] = []

    async def use(name: str) -> None:
        with pytest.raises(ClosedError):
            await (client.get_ts(timeout=math.inf) if name == "ts" else client.get_region(b"k", timeout=math.inf))
        ended.append(name)

    async with (
        anyio.create_task_group() as tasks,
        PdClient("pd1:2379", config=PdConfig(timeout=1000), transport=pd.transport) as client,
    ):
        tasks.start_soon(use, "ts")
        tasks.start_soon(use, "region")
        await anyio.wait_all_tasks_blocked()

    assert sorted(ended) == ["region", "ts"]
    assert anyio.current_time() == 0


async def test_the_error_of_the_block_leaves_it_unwrapped(pd: FakePd) -> None:
    client = PdClient("pd1:2379", transport=pd.transport)

    with pytest.raises(PdError, match="on purpose"):
        async with client:
            raise PdError("GetStore", "UNKNOWN", "on purpose")


async def test_closing_closes_every_connection(pd: FakePd) -> None:
    opened = []
    connect = pd.transport.connect

    class Recording(MemoryTransport):
        def connect(self, address: str, *, channel: int = 0):  # type: ignore[no-untyped-def]
            opened.append(connect(address, channel=channel))
            return opened[-1]

    async with PdClient("pd3:2379", transport=Recording()) as client:
        await client.get_ts()

    assert len(opened) == 2
    assert all(connection.closed for connection in opened)
