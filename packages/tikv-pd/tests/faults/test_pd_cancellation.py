from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from tikv_pd import PdClient, PdConfig
from tikv_pd.testing import FakePd, virtual_time
from tikv_proto.services import PD

PATIENT = PdConfig(timeout=1000, operation_timeout=1000)


def unary_without_answer(pd: FakePd) -> None:
    pd.hang(PD.GetStore)
    pd.hang(PD.Tso)
    pd.hang(PD.QueryRegion)


def leader_refuses_and_members_do_not_answer(pd: FakePd) -> None:
    pd.refuse(PD.GetStore)
    pd.refuse(PD.Tso)
    pd.refuse(PD.QueryRegion)
    pd.hang(PD.GetMembers)


def nobody_is_there(pd: FakePd) -> None:
    pd.stop()


@pytest.fixture(params=[unary_without_answer, leader_refuses_and_members_do_not_answer, nobody_is_there])
def fault(request: pytest.FixtureRequest) -> Callable[[FakePd], None]:
    return request.param  # type: ignore[no-any-return]  # one of the above


def undo(pd: FakePd) -> None:
    pd.heal()
    for address in pd.members:
        pd.start(address)


async def get_store(client: PdClient) -> object:
    return await client.get_store(1)


async def get_ts(client: PdClient) -> object:
    return await client.get_ts()


async def get_region(client: PdClient) -> object:
    return await client.get_region(b"k")


async def wait_for(client: PdClient) -> object:
    return await client.wait_for(1)


@pytest.fixture(params=[get_store, get_ts, get_region, wait_for])
def call(request: pytest.FixtureRequest) -> Callable[[PdClient], Awaitable[object]]:
    return request.param  # type: ignore[no-any-return]  # one of the above


class TestByScope:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str | tuple[str, dict[str, Any]]:
        return virtual_time() if request.param == "trio" else "asyncio"

    async def test_a_cancelled_call_ends_at_once_and_the_next_one_works(
        self, pd: FakePd, fault: Callable[[FakePd], None], call: Callable[[PdClient], Awaitable[object]]
    ) -> None:
        async with PdClient("pd1:2379", config=PATIENT, transport=pd.transport) as client:
            fault(pd)
            with anyio.move_on_after(0.05) as scope:
                await call(client)
            undo(pd)

            assert scope.cancelled_caught
            assert await call(client) is not None

        assert pd.transport.open_connections() == []

    async def test_a_cancelled_opening_leaves_no_connection(self, pd: FakePd) -> None:
        pd.hang(PD.GetMembers)

        with anyio.move_on_after(0.05) as scope:
            await PdClient("pd1:2379", transport=pd.transport).__aenter__()

        assert scope.cancelled_caught
        assert pd.transport.open_connections() == []

    async def test_a_cancelled_block_closes_the_client(self, pd: FakePd) -> None:
        with anyio.move_on_after(0.05) as scope:
            async with PdClient("pd1:2379", transport=pd.transport) as client:
                await client.get_ts()
                await anyio.sleep_forever()

        assert scope.cancelled_caught
        assert pd.transport.open_connections() == []

    async def test_cancelled_callers_leave_no_trace_in_the_queue_for_timestamps(self, pd: FakePd) -> None:
        async with PdClient("pd1:2379", transport=pd.transport) as client:
            pd.stop()
            with anyio.move_on_after(0.05):
                async with anyio.create_task_group() as tasks:
                    for _ in range(100):
                        tasks.start_soon(client.get_ts)
            undo(pd)

            timestamp = await client.get_ts()

        assert pd.tso_counts == [1]
        assert timestamp.logical == 1

    async def test_cancelled_callers_do_not_take_the_timestamps_of_others(self, pd: FakePd) -> None:
        granted = []

        async def get() -> None:
            granted.append(await client.get_ts())

        async with PdClient("pd1:2379", transport=pd.transport) as client:
            pd.hang(PD.Tso, times=1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(get)
                with anyio.move_on_after(0.05):
                    await client.get_ts()
                tasks.start_soon(get)
                pd.heal()

        assert len(set(granted)) == 2


class TestByTheEventLoop:
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_a_cancelled_call_ends_at_once_and_the_next_one_works(
        self, pd: FakePd, fault: Callable[[FakePd], None], call: Callable[[PdClient], Awaitable[object]]
    ) -> None:
        async with PdClient("pd1:2379", config=PATIENT, transport=pd.transport) as client:
            fault(pd)
            task = asyncio.ensure_future(call(client))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            undo(pd)

            assert await call(client) is not None

    async def test_a_cancelled_block_closes_the_client(self, pd: FakePd) -> None:
        async def use() -> None:
            async with PdClient("pd1:2379", transport=pd.transport) as client:
                await client.get_store(1)
                await asyncio.sleep(math.inf)

        task = asyncio.ensure_future(use())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert pd.transport.open_connections() == []

    async def test_a_timeout_of_asyncio_works_as_one_of_ours(self, pd: FakePd) -> None:
        pd.hang(PD.GetStore)
        pd.hang(PD.Tso)
        async with PdClient("pd1:2379", transport=pd.transport) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.get_store(1), 0.02)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await client.get_ts()
            pd.heal()

            assert await client.get_store(1) is not None
