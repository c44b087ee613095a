"""Cancelling and closing where servers that take work over from PD's leader are waited for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from tikv_pd import ClosedError, PdClient, PdConfig
from tikv_pd.testing import FakePd, virtual_time
from tikv_proto import resource_manager as rmpb
from tikv_proto.services import MetaStorage, ResourceManager

PATIENT = PdConfig(timeout=1000, operation_timeout=1000)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str | tuple[str, dict[str, Any]]:
    return virtual_time() if request.param == "trio" else "asyncio"


def storage_without_answer(pd: FakePd) -> None:
    pd.hang(MetaStorage.Get)


def manager_without_answer(pd: FakePd) -> None:
    pd.hang(ResourceManager.ListResourceGroups)


def manager_gone_and_pd_without_answer(pd: FakePd) -> None:
    pd.transport.stop("rm1:3379")
    pd.hang(ResourceManager.ListResourceGroups, at="pd1:2379")


@pytest.fixture(params=[storage_without_answer, manager_without_answer, manager_gone_and_pd_without_answer])
def fault(request: pytest.FixtureRequest) -> Callable[[FakePd], None]:
    return request.param  # type: ignore[no-any-return]  # one of the above


@pytest.fixture
def managed(pd: FakePd) -> FakePd:
    """Return a PD whose resource manager runs apart."""
    participant = rmpb.Participant(listen_urls=["http://rm1:3379"])
    pd.meta.put(b"/ms/7/resource_manager/primary", participant.SerializeToString())
    handlers = pd.handlers("pd1:2379")
    groups = {rpc: handlers[rpc] for rpc in (ResourceManager.ListResourceGroups, ResourceManager.GetResourceGroup)}
    pd.transport.serve("rm1:3379", groups)
    return pd


async def test_a_cancelled_call_ends_at_once_and_the_next_one_works(
    managed: FakePd, fault: Callable[[FakePd], None]
) -> None:
    async with PdClient("pd1:2379", config=PATIENT, transport=managed.transport) as client:
        fault(managed)
        with anyio.move_on_after(0.05) as scope:
            await client.resource_groups.get_all()
        managed.heal()

        assert scope.cancelled_caught
        assert await client.resource_groups.get_all()

    assert managed.transport.open_connections() == []


async def test_closing_ends_the_calls_of_other_tasks(managed: FakePd, fault: Callable[[FakePd], None]) -> None:
    ended: list[str] = []

    async def use() -> None:
        with pytest.raises(ClosedError):
            await client.resource_groups.get_all(timeout=math.inf)
        ended.append("closed")

    async with (
        anyio.create_task_group() as tasks,
        PdClient("pd1:2379", config=PATIENT, transport=managed.transport) as client,
    ):
        fault(managed)
        tasks.start_soon(use)
        await anyio.wait_all_tasks_blocked()

    assert ended == ["closed"]
    assert managed.transport.open_connections() == []
