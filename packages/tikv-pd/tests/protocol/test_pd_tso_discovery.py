"""Timestamps where PD runs as microservices."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from tikv_pd import DeadlineExceeded, Keyspace, PdClient, PdConfig, RpcError, Timestamp
from tikv_pd._fakes.memory_transport import MemoryConnection
from tikv_pd._routing.tso_source import NO_KEYSPACE
from tikv_pd.testing import FakePd, FakeTso, MemoryTransport
from tikv_proto.services import PD, TSO


@pytest.fixture
def tso(pd: FakePd) -> FakeTso:
    return FakeTso(pd, ("tso1:3379", "tso2:3379", "tso3:3379"))


@pytest.fixture
async def client(tso: FakeTso) -> AsyncIterator[PdClient]:
    async with PdClient("pd1:2379", transport=tso.pd.transport) as client:
        yield client


def streams(pd: FakePd) -> list[str]:
    """Return who was asked for a stream of timestamps, in order."""
    return [address for address, name in pd.transport.log if name == "Tso"]


def connections(pd: FakePd, address: str) -> list[MemoryConnection]:
    return [each for each in pd.transport.open_connections() if each.address == address]


async def test_timestamps_come_from_the_primary_of_the_group(client: PdClient, pd: FakePd, tso: FakeTso) -> None:
    granted = await client.get_ts()

    assert granted == Timestamp(1_000_000, 1)
    assert streams(pd) == ["tso1:3379"]
    header = tso.headers[0]
    assert (header.cluster_id, header.keyspace_id, header.keyspace_group_id) == (7, NO_KEYSPACE, 0)
    assert header.callee_id == "tso1:3379"


async def test_a_burst_costs_one_message_to_the_primary_too(client: PdClient, tso: FakeTso) -> None:
    await client.get_ts()

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(client.get_ts)

    assert len(tso.headers) == 2


async def test_everything_but_timestamps_goes_to_pd(client: PdClient, pd: FakePd) -> None:
    assert await client.get_store(1) is not None
    assert await client.get_region(b"k") is not None
    assert pd.calls(PD.GetStore, at="pd1:2379") == pd.calls(PD.QueryRegion, at="pd1:2379") == 1


async def test_a_primary_that_moves_costs_no_caller_anything(client: PdClient, pd: FakePd, tso: FakeTso) -> None:
    before = await client.get_ts()
    tso.primary = "tso2:3379"

    granted = await client.get_ts()

    assert granted > before
    assert streams(pd) == ["tso1:3379", "tso2:3379"]
    assert anyio.current_time() == 0


async def test_a_primary_that_dies_costs_no_caller_anything(client: PdClient, pd: FakePd, tso: FakeTso) -> None:
    await client.get_ts()
    pd.hang(TSO.Tso, at="tso1:3379")
    granted: list[Timestamp] = []

    async def get() -> None:
        granted.append(await client.get_ts())

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(get)
        await anyio.wait_all_tasks_blocked()
        tso.stop("tso1:3379")
        tso.primary = "tso3:3379"

    assert len(set(granted)) == 10
    assert streams(pd)[-1] == "tso3:3379"


async def test_callers_wait_while_there_is_no_primary(client: PdClient, tso: FakeTso) -> None:
    await client.get_ts()
    tso.primary = None

    async def elect() -> None:
        await anyio.sleep(4)
        tso.primary = "tso2:3379"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(elect)
        await client.get_ts()

    assert 4 <= anyio.current_time() <= 4.5


async def test_a_server_that_still_names_the_dead_primary_is_not_believed(
    client: PdClient, pd: FakePd, tso: FakeTso
) -> None:
    await client.get_ts()
    tso.stop("tso1:3379")
    tso.primary = "tso3:3379"
    tso.believed["tso2:3379"] = "tso1:3379"

    await client.get_ts()

    assert streams(pd)[-1] == "tso3:3379"
    assert anyio.current_time() == 0


async def test_a_server_that_is_behind_is_not_believed(client: PdClient, pd: FakePd, tso: FakeTso) -> None:
    await client.get_ts()
    tso.revision = 5
    tso.primary = "tso2:3379"
    await client.get_ts()
    tso.primary = "tso3:3379"
    for stale in ("tso1:3379", "tso2:3379"):
        tso.revisions[stale] = 4
        tso.believed[stale] = "tso1:3379"

    await client.get_ts()

    assert streams(pd) == ["tso1:3379", "tso2:3379", "tso3:3379"]
    assert tso.questions[-1].mod_revision == 5


async def test_another_server_at_the_address_is_met_over_a_new_connection(
    client: PdClient, pd: FakePd, tso: FakeTso
) -> None:
    await client.get_ts()
    (old,) = connections(pd, "tso1:3379")
    tso.identities["tso1:3379"] = "tso1-of-old:3379"
    pd.transport.stop("tso1:3379")
    tso.start("tso1:3379")

    with pytest.raises(DeadlineExceeded) as raised:
        await client.get_ts(timeout=1)
    tso.identities.clear()
    await client.get_ts()

    assert "mismatch callee id" in str(raised.value.__cause__)
    assert old.closed
    assert len(connections(pd, "tso1:3379")) == 1


async def test_a_server_of_another_kind_at_the_address_of_the_primary_fails_nobody(
    client: PdClient, pd: FakePd, tso: FakeTso
) -> None:
    await client.get_ts()
    pd.transport.stop("tso1:3379")
    pd.transport.serve("tso1:3379", {})

    async def elect() -> None:
        await anyio.sleep(1)
        tso.primary = "tso2:3379"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(elect)
        await client.get_ts()

    assert streams(pd)[:2] == ["tso1:3379", "tso1:3379"]
    assert streams(pd)[-1] == "tso2:3379"


async def test_the_primary_is_followed_while_pd_is_away(client: PdClient, pd: FakePd, tso: FakeTso) -> None:
    await client.get_ts()
    pd.stop()
    await anyio.sleep(10)
    tso.primary = "tso2:3379"

    await client.get_ts()

    assert streams(pd) == ["tso1:3379", "tso2:3379"]
    assert anyio.current_time() == 10


async def test_servers_that_pd_lists_anew_are_asked(client: PdClient, pd: FakePd, tso: FakeTso) -> None:
    await client.get_ts()
    for address in tso.servers:
        tso.stop(address)
    FakeTso(pd, ("tso8:3379", "tso9:3379")).revision = 2

    await client.get_ts()

    assert streams(pd)[-1] == "tso8:3379"
    assert {each.address for each in pd.transport.open_connections()} <= {"pd1:2379", "tso8:3379", "tso9:3379"}


async def test_the_cause_of_a_timeout_is_what_was_wrong_with_the_servers(client: PdClient, tso: FakeTso) -> None:
    await client.get_ts()
    tso.primary = None

    with pytest.raises(DeadlineExceeded, match="no primary") as raised:
        await client.get_ts(timeout=2)

    assert not isinstance(raised.value.__cause__, RpcError)


@pytest.mark.usefixtures("client")
async def test_the_group_is_looked_at_again_in_due_time(tso: FakeTso) -> None:
    assert len(tso.questions) == 1

    await anyio.sleep(59)
    before = len(tso.questions)
    await anyio.sleep(4)

    assert (before, len(tso.questions)) == (1, 2)


@pytest.mark.usefixtures("client")
async def test_servers_take_turns_in_being_asked(pd: FakePd) -> None:
    await anyio.sleep(300)

    asked = [address for address, name in pd.transport.log if name == "FindGroupByKeyspaceID"]
    assert asked[:4] == ["tso2:3379", "tso3:3379", "tso1:3379", "tso2:3379"]


class TestKeyspaces:
    @pytest.mark.parametrize("keyspace", ["users", 5])
    async def test_timestamps_are_those_of_the_group_of_the_keyspace(
        self, pd: FakePd, tso: FakeTso, keyspace: str | int
    ) -> None:
        pd.keyspaces["users"] = Keyspace(5, "users", "ENABLED")
        tso.groups[5] = 3

        async with PdClient("pd1:2379", keyspace=keyspace, transport=pd.transport) as client:
            await client.get_ts()

        assert tso.questions[0].keyspace_id == 5
        assert (tso.headers[0].keyspace_id, tso.headers[0].keyspace_group_id) == (5, 3)

    async def test_a_keyspace_that_moves_to_another_group_is_followed(self, pd: FakePd, tso: FakeTso) -> None:
        pd.keyspaces["users"] = Keyspace(5, "users", "ENABLED")
        async with PdClient("pd1:2379?keyspaceName=users", transport=pd.transport) as client:
            await client.get_ts()
            tso.groups[5], tso.revision, tso.primary = 4, 2, "tso2:3379"
            await client.get_ts()

        assert [header.keyspace_group_id for header in tso.headers] == [0, 0, 4]


class TestModes:
    async def test_pd_grants_timestamps_where_there_are_no_servers(self, pd: FakePd) -> None:
        async with PdClient("pd1:2379", transport=pd.transport) as client:
            await client.get_ts()

        assert streams(pd) == ["pd1:2379"]

    async def test_a_pd_that_does_not_know_the_question_grants_timestamps(self, pd: FakePd) -> None:
        pd.refuse(PD.GetClusterInfo, "UNIMPLEMENTED")

        async with PdClient("pd1:2379", transport=pd.transport) as client:
            await client.get_ts()
            await anyio.sleep(4)

        assert streams(pd) == ["pd1:2379"]
        assert pd.calls(PD.GetMembers) == 1

    async def test_a_pd_that_lists_no_server_grants_timestamps(self, pd: FakePd) -> None:
        pd.tso_urls = []

        async with PdClient("pd1:2379", transport=pd.transport) as client:
            await client.get_ts()

        assert streams(pd) == ["pd1:2379"]

    async def test_pd_is_asked_for_timestamps_where_that_is_wanted(self, pd: FakePd, tso: FakeTso) -> None:
        async with PdClient("pd1:2379", config=PdConfig(tso_from_pd=True), transport=pd.transport) as client:
            await client.get_ts()
            await anyio.sleep(100)
            pd.leader = "pd2:2379"
            await client.get_ts()

        assert set(streams(pd)) == {"pd1:2379", "pd2:2379"}
        assert pd.calls(PD.GetClusterInfo) == 0
        assert tso.questions == []

    async def test_a_mode_without_a_primary_does_not_count_yet(self, pd: FakePd, tso: FakeTso) -> None:
        tso.primary = None
        async with PdClient("pd1:2379", transport=pd.transport) as client:
            first = await client.get_ts()
            tso.primary = "tso1:3379"
            await anyio.sleep(1.5)

            assert await client.get_ts() > first

        assert streams(pd) == ["pd1:2379", "tso1:3379"]

    async def test_servers_that_come_up_take_over_without_a_caller_noticing(self, pd: FakePd) -> None:
        async with PdClient("pd1:2379", transport=pd.transport) as client:
            first = await client.get_ts()
            FakeTso(pd)
            await anyio.sleep(3.5)

            assert await client.get_ts() > first

        assert streams(pd) == ["pd1:2379", "tso1:3379"]

    async def test_pd_takes_over_again_without_a_caller_noticing(
        self, client: PdClient, pd: FakePd, tso: FakeTso
    ) -> None:
        first = await client.get_ts()
        pd.hang(TSO.Tso)
        granted: list[Timestamp] = []

        async def get() -> None:
            granted.append(await client.get_ts())

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(get)
            await anyio.wait_all_tasks_blocked()
            tso.withdraw()

        assert len(set(granted)) == 5
        assert min(granted) > first
        assert streams(pd) == ["tso1:3379", "pd1:2379"]
        assert {each.address for each in pd.transport.open_connections()} == {"pd1:2379"}

    async def test_servers_that_all_die_are_replaced_by_pd_at_once_when_it_says_so(
        self, client: PdClient, pd: FakePd, tso: FakeTso
    ) -> None:
        await client.get_ts()
        for address in tso.servers:
            tso.stop(address)
        tso.withdraw()

        await client.get_ts()

        assert streams(pd)[-1] == "pd1:2379"
        assert anyio.current_time() == 0

    async def test_a_pd_that_fails_may_have_handed_over_to_servers(self, pd: FakePd) -> None:
        async with PdClient("pd1:2379", config=PdConfig(service_interval=1000), transport=pd.transport) as client:
            await client.get_ts()
            FakeTso(pd)
            pd.refuse(PD.Tso, "UNKNOWN", "not here any more")

            await client.get_ts()

        assert streams(pd)[-1] == "tso1:3379"
        assert anyio.current_time() < 1

    async def test_a_look_that_fails_changes_nothing_and_has_the_members_asked(
        self, client: PdClient, pd: FakePd
    ) -> None:
        await client.get_ts()
        asked = pd.calls(PD.GetMembers)
        pd.refuse(PD.GetClusterInfo)

        await anyio.sleep(4)
        await client.get_ts()

        assert pd.calls(PD.GetMembers) > asked
        assert streams(pd) == ["tso1:3379"]

    @pytest.mark.usefixtures("tso")
    async def test_opening_does_not_depend_on_the_servers(self, pd: FakePd) -> None:
        pd.hang(PD.GetClusterInfo)

        async with PdClient("pd1:2379", transport=pd.transport) as client:
            opened_at = anyio.current_time()
            await client.get_ts()
            pd.heal()
            await anyio.sleep(4)
            await client.get_ts()

        assert opened_at == 1
        assert streams(pd) == ["pd1:2379", "tso1:3379"]

    @pytest.mark.usefixtures("tso")
    async def test_opening_that_has_no_time_left_for_the_servers_is_fine(self, pd: FakePd) -> None:
        pd.hang(TSO.FindGroupByKeyspaceID)

        async with PdClient("pd1:2379", config=PdConfig(open_timeout=0.5), transport=pd.transport) as client:
            assert anyio.current_time() == 0.5
            await client.get_ts()

        assert streams(pd) == ["pd1:2379"]

    async def test_closing_closes_the_connections_to_servers(self, network: MemoryTransport, pd: FakePd) -> None:
        FakeTso(pd)

        async with PdClient("pd1:2379", transport=network) as client:
            await client.get_ts()

        assert network.open_connections() == []
