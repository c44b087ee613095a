from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from tikv_pd import ClusterMismatch, DeadlineExceeded, PdClient, PdConfig, PdError, PdUnavailable, RpcError
from tikv_pd.testing import FakePd
from tikv_proto.services import PD


@pytest.fixture
async def client(pd: FakePd) -> AsyncIterator[PdClient]:
    async with PdClient("pd1:2379", config=PdConfig(member_interval=60), transport=pd.transport) as client:
        yield client


async def test_a_moved_leader_is_followed_without_waiting(client: PdClient, pd: FakePd) -> None:
    pd.leader = "pd2:2379"

    stores = await client.get_stores()

    assert len(stores) == 2
    assert client.leader == "pd2:2379"
    assert anyio.current_time() == 0


async def test_a_leader_that_died_is_replaced_by_its_successor(client: PdClient, pd: FakePd) -> None:
    pd.leader = "pd3:2379"
    pd.stop("pd1:2379")

    await client.get_stores()

    assert client.leader == "pd3:2379"
    assert anyio.current_time() == 0
    assert pd.calls(PD.GetMembers, at="pd1:2379") == 1


async def test_a_leader_that_hangs_is_given_up_after_the_time_of_one_attempt(client: PdClient, pd: FakePd) -> None:
    pd.hang(PD.GetAllStores, at="pd1:2379")
    pd.leader = "pd2:2379"

    await client.get_stores()

    assert anyio.current_time() == 3


async def test_an_election_is_waited_for(client: PdClient, pd: FakePd) -> None:
    pd.stop("pd1:2379")

    async def elect() -> None:
        await anyio.sleep(2)
        pd.leader = "pd2:2379"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(elect)
        await client.get_stores()

    assert 2 <= anyio.current_time() <= 5


async def test_a_pd_that_was_down_as_a_whole_is_found_again(client: PdClient, pd: FakePd) -> None:
    await client.get_ts()
    pd.stop()
    with pytest.raises(DeadlineExceeded) as raised:
        await client.get_stores(timeout=5)
    with pytest.raises(DeadlineExceeded):
        await client.get_ts(timeout=5)
    pd.leader = "pd2:2379"
    for address in pd.members:
        pd.start(address)

    await client.get_stores(timeout=3)
    await client.get_ts(timeout=3)

    assert isinstance(raised.value.__cause__, PdUnavailable)
    assert [address for address, _ in raised.value.__cause__.failures] == ["pd2:2379", "pd3:2379", "pd1:2379"]
    assert client.leader == "pd2:2379"


async def test_a_pd_that_came_back_with_other_members_is_found_through_the_seed(client: PdClient, pd: FakePd) -> None:
    pd.members[:] = ["pd2:2379", "pd3:2379"]
    pd.leader = "pd2:2379"
    await client.get_stores()
    pd.stop("pd2:2379")
    pd.stop("pd3:2379")
    pd.members[:] = [pd.leader] = ["pd1:2379"]

    await client.get_stores()

    assert client.leader == "pd1:2379"


async def test_the_cause_of_a_timeout_is_the_last_failure(client: PdClient, pd: FakePd) -> None:
    pd.refuse(PD.GetStore, "RESOURCE_EXHAUSTED", "slow down")

    with pytest.raises(DeadlineExceeded, match=r"get_store did not finish within 4 s: .*slow down") as raised:
        await client.get_store(1, timeout=4)

    assert isinstance(raised.value.__cause__, RpcError)
    assert anyio.current_time() == 4


async def test_without_timeout_the_configured_one_ends_the_operation(client: PdClient, pd: FakePd) -> None:
    pd.hang(PD.GetStore)

    with pytest.raises(DeadlineExceeded):
        await client.get_store(1)

    assert anyio.current_time() == 10


async def test_a_timeout_too_short_for_a_refresh_still_makes_the_next_call_find_the_leader(
    client: PdClient, pd: FakePd
) -> None:
    pd.hang(PD.GetStore, at="pd1:2379")
    with pytest.raises(DeadlineExceeded):
        await client.get_store(1, timeout=0.5)
    pd.leader = "pd2:2379"
    await anyio.wait_all_tasks_blocked()

    await client.get_store(1, timeout=0.5)

    assert client.leader == "pd2:2379"


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL", "UNKNOWN"])
async def test_a_failure_of_one_attempt_is_not_seen(client: PdClient, pd: FakePd, code: str) -> None:
    pd.refuse(PD.GetRegion, code, times=2)

    region = await client.get_region(b"k")

    assert region is not None
    assert pd.calls(PD.QueryRegion) == 3


async def test_a_header_error_that_no_retry_cures_is_raised_at_once(client: PdClient, pd: FakePd) -> None:
    pd.answer_error(PD.GetAllStores, "INCOMPATIBLE_VERSION", "too old")

    with pytest.raises(PdError) as raised:
        await client.get_stores()

    assert (raised.value.method, raised.value.kind, raised.value.message) == (
        "GetAllStores",
        "INCOMPATIBLE_VERSION",
        "too old",
    )
    assert pd.calls(PD.GetAllStores) == 1


@pytest.mark.parametrize("kind", ["REGION_NOT_FOUND", "NOT_BOOTSTRAPPED"])
async def test_a_member_that_has_not_loaded_its_regions_is_asked_again(client: PdClient, pd: FakePd, kind: str) -> None:
    pd.answer_error(PD.GetRegion, kind, times=1)

    assert await client.get_region(b"k") is not None


async def test_an_unknown_rpc_is_refused_without_a_bare_grpc_error(client: PdClient, pd: FakePd) -> None:
    pd.refuse(PD.ScatterRegion, "UNIMPLEMENTED", "unknown method")

    with pytest.raises(PdError, match="UNIMPLEMENTED") as raised:
        await client.scatter_regions([2])

    assert isinstance(raised.value.__cause__, RpcError)


async def test_a_pd_that_became_another_cluster_is_a_mismatch_for_every_call(client: PdClient, pd: FakePd) -> None:
    pd.cluster_id = 8

    with pytest.raises(ClusterMismatch) as raised:
        await client.get_stores()
    with pytest.raises(ClusterMismatch):
        await client.get_ts()

    assert (raised.value.expected, raised.value.found) == (7, 8)
    assert anyio.current_time() == 0


async def test_a_leader_that_refuses_our_cluster_id_and_claims_it_is_an_error(client: PdClient, pd: FakePd) -> None:
    pd.refuse(PD.GetAllStores, "FAILED_PRECONDITION", "mismatch")

    with pytest.raises(PdError, match="FAILED_PRECONDITION"):
        await client.get_stores()

    assert anyio.current_time() == 0


async def test_concurrent_failures_share_one_round_of_questions(client: PdClient, pd: FakePd) -> None:
    pd.leader = "pd2:2379"
    asked_before = pd.calls(PD.GetMembers)

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(client.get_stores)

    assert pd.calls(PD.GetMembers) == asked_before + 1


async def test_news_that_came_while_an_attempt_ran_are_not_asked_for_again(client: PdClient, pd: FakePd) -> None:
    pd.hang(PD.GetStore, at="pd1:2379")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.get_store, 1)
        await anyio.wait_all_tasks_blocked()
        pd.leader = "pd2:2379"
        await client.get_stores()
        asked_before = pd.calls(PD.GetMembers)

    assert pd.calls(PD.GetStore, at="pd2:2379") == 1
    assert pd.calls(PD.GetMembers) == asked_before


async def test_the_members_are_looked_at_at_intervals(client: PdClient, pd: FakePd) -> None:
    pd.leader = "pd2:2379"

    await anyio.sleep(61)

    assert client.leader == "pd2:2379"


async def test_a_member_that_left_is_disconnected(client: PdClient, pd: FakePd) -> None:
    await client.get_stores()
    pd.leader = "pd2:2379"
    pd.members.remove("pd1:2379")
    await client.get_stores()
    asked_before = len(pd.transport.log)

    await anyio.sleep(61)

    asked = pd.transport.log[asked_before:]
    assert asked.count(("pd2:2379", "GetMembers")) == 1
    assert {address for address, _ in asked} == {"pd2:2379"}
    assert [each.address for each in pd.transport.open_connections()] == ["pd2:2379"]


async def test_requests_carry_the_cluster_id_and_the_name_of_the_caller(pd: FakePd) -> None:
    async with PdClient("pd1:2379", config=PdConfig(caller_component="tests"), transport=pd.transport) as client:
        await client.get_stores()

    [header] = pd.headers
    assert (header.cluster_id, header.caller_component) == (7, "tests")
    assert header.caller_id
    assert "/" not in header.caller_id


async def test_timestamps_come_again_soon_after_an_election(client: PdClient, pd: FakePd) -> None:
    granted = [await client.get_ts()]
    pd.leader = None

    async def elect() -> None:
        await anyio.sleep(5)
        pd.leader = "pd3:2379"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(elect)
        granted.append(await client.get_ts())

    assert granted == sorted(set(granted))
    assert 5 <= anyio.current_time() < 6
