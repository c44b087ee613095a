"""Cancelling and closing at each place where timestamps from TSO servers are waited for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from tikv_pd import ClosedError, Keyspace, PdClient, PdConfig, Timestamp
from tikv_pd.testing import FakePd, FakeTso, virtual_time
from tikv_proto.services import PD, TSO, Keyspace as KeyspaceService

PATIENT = PdConfig(timeout=1000, operation_timeout=1000, open_timeout=1000)


def primary_without_answer(tso: FakeTso) -> None:
    tso.pd.hang(TSO.Tso)


def primary_moved_and_servers_without_answer(tso: FakeTso) -> None:
    tso.primary = "tso2:3379"
    tso.pd.hang(TSO.FindGroupByKeyspaceID)


def servers_gone_and_pd_without_answer(tso: FakeTso) -> None:
    for address in tso.servers:
        tso.stop(address)
    tso.pd.hang(PD.GetClusterInfo)


def no_primary(tso: FakeTso) -> None:
    tso.primary = None


def nobody_is_there(tso: FakeTso) -> None:
    for address in tso.servers:
        tso.stop(address)
    tso.pd.stop()


FAULTS = [
    primary_without_answer,
    primary_moved_and_servers_without_answer,
    servers_gone_and_pd_without_answer,
    no_primary,
    nobody_is_there,
]


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest) -> Callable[[FakeTso], None]:
    return request.param  # type: ignore[no-any-return]  # one of the above


def undo(tso: FakeTso) -> None:
    tso.pd.heal()
    for address in tso.pd.members:
        tso.pd.start(address)
    for address in tso.servers:
        tso.start(address)
    tso.primary = "tso1:3379"


@pytest.fixture
def tso(pd: FakePd) -> FakeTso:
    return FakeTso(pd)


class TestByScope:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str | tuple[str, dict[str, Any]]:
        return virtual_time() if request.param == "trio" else "asyncio"

    async def test_a_cancelled_call_ends_at_once_and_the_next_one_works(
        self, tso: FakeTso, fault: Callable[[FakeTso], None]
    ) -> None:
        async with PdClient("pd1:2379", config=PATIENT, transport=tso.pd.transport) as client:
            before = await client.get_ts()
            fault(tso)
            with anyio.move_on_after(0.05) as scope:
                await client.get_ts()
            undo(tso)

            assert scope.cancelled_caught
            assert await client.get_ts() > before

        assert tso.pd.transport.open_connections() == []

    async def test_closing_ends_the_calls_of_other_tasks(self, tso: FakeTso, fault: Callable[[FakeTso], None]) -> None:
        ended: list[str] = []

        async def use() -> None:
            with pytest.raises(ClosedError):
                await client.get_ts(timeout=math.inf)
            ended.append("closed")

        async with (
            anyio.create_task_group() as tasks,
            PdClient("pd1:2379", config=PATIENT, transport=tso.pd.transport) as client,
        ):
            await client.get_ts()
            fault(tso)
            tasks.start_soon(use)
            await anyio.wait_all_tasks_blocked()

        assert ended == ["closed"]
        assert tso.pd.transport.open_connections() == []

    async def test_a_fault_that_passes_costs_no_caller_anything(
        self, tso: FakeTso, fault: Callable[[FakeTso], None]
    ) -> None:
        granted: list[Timestamp] = []

        async def get() -> None:
            granted.append(await client.get_ts())

        async with PdClient("pd1:2379", config=PdConfig(timeout=0.2), transport=tso.pd.transport) as client:
            await client.get_ts()
            fault(tso)
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(get)
                await anyio.sleep(0.1)
                undo(tso)

        assert len(set(granted)) == 5

    @pytest.mark.parametrize(
        "rpc", [PD.GetMembers, KeyspaceService.LoadKeyspace, PD.GetClusterInfo, TSO.FindGroupByKeyspaceID]
    )
    async def test_an_opening_cancelled_at_any_step_leaves_nothing_behind(self, tso: FakeTso, rpc: Any) -> None:
        tso.pd.keyspaces["users"] = Keyspace(5, "users", "ENABLED")
        tso.pd.hang(rpc)
        client = PdClient("pd1:2379", keyspace="users", config=PATIENT, transport=tso.pd.transport)

        with anyio.move_on_after(0.05) as scope:
            await client.__aenter__()

        assert scope.cancelled_caught
        assert tso.pd.transport.open_connections() == []

    async def test_a_look_under_way_is_ended_by_closing(self, tso: FakeTso) -> None:
        config = PdConfig(service_interval=0.01)
        async with PdClient("pd1:2379", config=config, transport=tso.pd.transport) as client:
            await client.get_ts()
            tso.pd.hang(PD.GetClusterInfo)
            await anyio.sleep(0.05)

        assert tso.pd.transport.open_connections() == []


class TestByTheEventLoop:
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_a_cancelled_call_ends_at_once_and_the_next_one_works(
        self, tso: FakeTso, fault: Callable[[FakeTso], None]
    ) -> None:
        async with PdClient("pd1:2379", config=PATIENT, transport=tso.pd.transport) as client:
            before = await client.get_ts()
            fault(tso)
            task = asyncio.ensure_future(client.get_ts())
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            undo(tso)

            assert await client.get_ts() > before
