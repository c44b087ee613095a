"""Each await of a watch: cancelled there by a scope and natively, failing, closed; then it goes on where it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from tikv_pd import ClosedError, MetaEvent, PdClient, PdConfig, Watch
from tikv_pd.testing import FakePd, virtual_time
from tikv_proto.services import PD, MetaStorage

PATIENT = PdConfig(timeout=1000, operation_timeout=1000)


def beginning(pd: FakePd) -> None:
    pd.hang(MetaStorage.Get)


def no_message(pd: FakePd) -> None:
    pd.hang(MetaStorage.Watch)


def looking_for_the_leader(pd: FakePd) -> None:
    pd.refuse(MetaStorage.Watch)
    pd.hang(PD.GetMembers)


def waiting_for_the_next_attempt(pd: FakePd) -> None:
    pd.refuse(MetaStorage.Watch)


@pytest.fixture(params=[beginning, no_message, looking_for_the_leader, waiting_for_the_next_attempt])
def fault(request: pytest.FixtureRequest) -> Callable[[FakePd], None]:
    return request.param  # type: ignore[no-any-return]  # one of the above


async def follow(watch: Watch[MetaEvent], told: list[bytes | None]) -> None:
    told.extend([event.value async for event in watch])


class TestByScope:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str | tuple[str, dict[str, Any]]:
        return virtual_time() if request.param == "trio" else "asyncio"

    async def test_a_cancelled_step_is_taken_again(self, pd: FakePd, fault: Callable[[FakePd], None]) -> None:
        async with PdClient("pd1:2379", config=PATIENT, transport=pd.transport) as client:
            fault(pd)
            watch = client.meta.watch(b"k", revision=0 if fault is beginning else 2)
            for _ in range(2):
                with anyio.move_on_after(0.05) as scope:
                    await anext(watch)
                assert scope.cancelled_caught
            if fault is not beginning:
                pd.meta.put(b"k", b"1")
            pd.heal()
            await watch.__aenter__()
            pd.meta.put(b"k", b"2")

            assert (await anext(watch)).value == (b"2" if fault is beginning else b"1")
            await watch.aclose()

        assert pd.transport.open_connections() == []

    async def test_closing_ends_a_step_under_way(self, pd: FakePd, fault: Callable[[FakePd], None]) -> None:
        told: list[bytes | None] = []
        async with PdClient("pd1:2379", config=PATIENT, transport=pd.transport) as client:
            fault(pd)
            watch = client.meta.watch(b"k")
            with anyio.fail_after(5):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(follow, watch, told)
                    tasks.start_soon(follow, watch, told)
                    await anyio.sleep(0.05)
                    await watch.aclose()
            pd.heal()

            assert told == []
            assert await client.meta.get(b"k") is None

    async def test_closing_the_client_ends_a_step_under_way(self, pd: FakePd, fault: Callable[[FakePd], None]) -> None:
        ends: list[BaseException] = []

        async def follow_to_the_end() -> None:
            try:
                await anext(watch)
            except ClosedError as error:
                ends.append(error)

        with anyio.fail_after(5):
            async with (
                anyio.create_task_group() as tasks,
                PdClient("pd1:2379", config=PATIENT, transport=pd.transport) as client,
            ):
                fault(pd)
                watch = client.meta.watch(b"k")
                tasks.start_soon(follow_to_the_end)
                await anyio.sleep(0.05)

        assert len(ends) == 1
        assert pd.transport.open_connections() == []


class TestByTheEventLoop:
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_a_cancelled_step_is_taken_again(self, pd: FakePd, fault: Callable[[FakePd], None]) -> None:
        async with PdClient("pd1:2379", config=PATIENT, transport=pd.transport) as client:
            fault(pd)
            watch = client.meta.watch(b"k")
            task = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            pd.heal()
            await watch.__aenter__()
            pd.meta.put(b"k", b"1")

            assert (await anext(watch)).value == b"1"
            await watch.aclose()
