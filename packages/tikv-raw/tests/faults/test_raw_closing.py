"""A client is opened, used and closed by whichever task; what is under way then fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from tikv_pd.testing import virtual_time
from tikv_proto.services import PD, Tikv
from tikv_raw import ClosedError, PdConfig, PdUnavailable, RawClient, RawConfig, UndeterminedError
from tikv_rpc.testing import FakeCluster


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_time() if request.param == "trio" else "asyncio"


@pytest.fixture
async def client(cluster: FakeCluster) -> AsyncIterator[RawClient]:
    """One that is not open yet, and leaves nothing in the end."""
    yield RawClient(cluster.url, api_version="v1ttl", transport=cluster.transport)
    assert cluster.transport.open_connections() == []


async def in_a_task(function: Callable[[], Awaitable[object]]) -> None:
    async def run() -> None:
        await function()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)


async def test_opened_used_and_closed_in_three_tasks(client: RawClient) -> None:
    await in_a_task(client.open)
    await in_a_task(lambda: client.put(b"k", b"v"))
    assert await client.get(b"k") == b"v"

    await in_a_task(client.aclose)

    with pytest.raises(ClosedError):
        await client.get(b"k")


async def test_closed_by_another_task_inside_its_block(client: RawClient) -> None:
    async with client:
        await client.put(b"k", b"v")

        await in_a_task(client.aclose)

        with pytest.raises(ClosedError):
            await client.get(b"k")
        await anyio.sleep(0.001)


async def test_a_view_closes_it_from_another_task(client: RawClient) -> None:
    async with client:
        await in_a_task(client.with_options(timeout=1).aclose)

        with pytest.raises(ClosedError):
            await client.get(b"k")


async def test_it_goes_on_after_the_time_that_opening_was_given(client: RawClient) -> None:
    with anyio.fail_after(5):
        await client.open()

    await client.put(b"k", b"v")

    assert await client.get(b"k") == b"v"
    await client.aclose()


async def test_calls_under_way_fail_when_another_task_closes_it(cluster: FakeCluster, client: RawClient) -> None:
    await client.open()
    await client.put(b"a", b"1")
    cluster.store(1).hang_next(Tikv.RawGet)
    cluster.store(1).hang_next(Tikv.RawPut)
    outcomes: list[str] = []

    async def observe(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises((ClosedError, UndeterminedError)) as raised:
            await call()
        outcomes.append(raised.type.__name__)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(observe, lambda: client.get(b"a"))
        tasks.start_soon(observe, lambda: client.put(b"a", b"2"))
        await wait_all_tasks_blocked()
        await in_a_task(client.aclose)

    assert sorted(outcomes) == ["ClosedError", "UndeterminedError"]


async def test_closed_while_it_opens_it_is_not_open(cluster: FakeCluster, client: RawClient) -> None:
    cluster.pd.hang(PD.GetMembers)

    async def open_it() -> None:
        with pytest.raises(ClosedError, match="RawClient was closed while it was opened"):
            await client.open()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_it)
        await wait_all_tasks_blocked()
        await client.aclose()

    cluster.pd.heal()
    async with client:
        await client.put(b"k", b"v")


async def test_a_client_that_cannot_be_opened_says_why_as_ever(cluster: FakeCluster) -> None:
    config = RawConfig(pd=PdConfig(open_timeout=0.05))
    client = RawClient("nobody:2379", config=config, transport=cluster.transport)

    with pytest.raises(PdUnavailable) as raised:
        await client.open()

    assert not isinstance(raised.value.__context__, BaseExceptionGroup)
    await client.aclose()


async def test_a_bug_in_a_task_of_the_client_closes_it_and_is_raised_by_closing_it(client: RawClient) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async def use() -> None:
        async with client:
            opened = client._session.opened
            assert opened is not None
            opened.rpc.tasks.start_soon(fail)
            await anyio.sleep(0.05)

            with pytest.raises(ClosedError) as raised:
                await client.get(b"k")
            assert isinstance(raised.value.__cause__, ZeroDivisionError)

    with pytest.raises(ZeroDivisionError):
        await use()

    async with client:
        await client.put(b"k", b"v")
