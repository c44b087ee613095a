from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from tikv_pd import (
    ClosedError,
    ConfigError,
    DeadlineExceeded,
    Keyspace,
    KeyspaceNotFound,
    Member,
    Operator,
    PdClient,
    PdError,
)
from tikv_pd.testing import FakePd

ORDERS = Keyspace(4, "orders", "DISABLED", (("gc_management_type", "keyspace_level"),))
BILLS = Keyspace(2, "bills", "ENABLED")


@pytest.fixture
async def client(pd: FakePd) -> AsyncIterator[PdClient]:
    pd.keyspaces = {"orders": ORDERS, "bills": BILLS}
    async with PdClient("pd1:2379", transport=pd.transport) as client:
        yield client


async def test_a_keyspace_is_found_whatever_its_state(client: PdClient) -> None:
    assert await client.keyspaces.get("orders") == ORDERS
    assert await client.keyspaces.get_by_id(4) == ORDERS


async def test_keyspaces_are_listed_in_order_of_their_ids(client: PdClient) -> None:
    assert await client.keyspaces.get_all() == [BILLS, ORDERS]
    assert await client.keyspaces.get_all(3) == [ORDERS]
    assert await client.keyspaces.get_all(limit=1) == [BILLS]


async def test_a_keyspace_that_is_not_there_is_not_found(client: PdClient) -> None:
    with pytest.raises(KeyspaceNotFound, match="'no'"):
        await client.keyspaces.get("no")
    with pytest.raises(KeyspaceNotFound, match="'9'"):
        await client.keyspaces.get_by_id(9)
    with pytest.raises(KeyspaceNotFound, match="'9'"):
        await client.keyspaces.update_state(9, "ENABLED")


async def test_a_keyspace_changes_its_state_step_by_step(client: PdClient) -> None:
    assert (await client.keyspaces.update_state(4, "ARCHIVED")).state == "ARCHIVED"
    assert (await client.keyspaces.update_state(4, "ARCHIVED")).state == "ARCHIVED"
    with pytest.raises(PdError, match="cannot change keyspace state"):
        await client.keyspaces.update_state(4, "ENABLED")


async def test_arguments_that_cannot_be_are_refused(client: PdClient) -> None:
    with pytest.raises(ConfigError, match="state must be one of ENABLED"):
        await client.keyspaces.update_state(4, "GONE")
    with pytest.raises(ConfigError, match="a keyspace id must be between"):
        await client.keyspaces.get_by_id(2**24)
    with pytest.raises(ConfigError, match="limit must be between"):
        await client.keyspaces.get_all(limit=0)


async def test_members_are_told_and_who_leads(client: PdClient) -> None:
    members = await client.get_members()

    assert members[0] == Member(1, "pd1:2379", ("http://pd1:2379",), is_leader=True)
    assert [member.is_leader for member in members] == [True, False, False]


async def test_what_the_scheduler_does_with_a_region_is_told(client: PdClient, pd: FakePd) -> None:
    pd.operators[3] = Operator(3, "scatter-region", "RUNNING", "region,leader")

    assert await client.get_operator(3) == pd.operators[3]
    assert await client.get_operator(2) is None


async def test_splitting_and_scattering_returns_the_new_regions(client: PdClient) -> None:
    made = await client.split_and_scatter_regions([b"c", b"t"], group="orders")

    assert len(made) == 2
    assert len(await client.scan_regions(b"")) == 5


async def test_the_parts_of_a_client_are_closed_with_it(pd: FakePd) -> None:
    async with PdClient("pd1:2379", transport=pd.transport) as client:
        gc, keyspaces = client.gc, client.keyspaces

    with pytest.raises(ClosedError):
        await gc.get_state()
    with pytest.raises(ClosedError):
        await keyspaces.get("orders")
    with pytest.raises(ClosedError):
        _ = client.gc


async def test_the_end_of_scattering_is_waited_for(client: PdClient, pd: FakePd) -> None:
    pd.operators[3] = Operator(3, "scatter-region", "RUNNING", "region,leader")

    async def finish() -> None:
        await anyio.sleep(5)
        pd.operators[3] = Operator(3, "scatter-region", "SUCCESS", "region,leader")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(finish)
        ended = await client.wait_for_scatter(3)

    assert ended == pd.operators[3]
    assert 5 <= anyio.current_time() <= 5.5


@pytest.mark.parametrize("description", ["balance-region", "scatter-region"])
async def test_what_is_not_scattered_is_not_waited_for(client: PdClient, pd: FakePd, description: str) -> None:
    pd.operators[3] = Operator(3, description, "RUNNING" if description == "balance-region" else "TIMEOUT", "region")

    assert await client.wait_for_scatter(3) == pd.operators[3]
    assert await client.wait_for_scatter(4) is None
    assert anyio.current_time() == 0


async def test_scattering_that_takes_too_long_is_not_waited_for(client: PdClient, pd: FakePd) -> None:
    pd.operators[3] = Operator(3, "scatter-region", "RUNNING", "region,leader")

    with pytest.raises(DeadlineExceeded):
        await client.wait_for_scatter(3, timeout=7)

    assert anyio.current_time() == 7
