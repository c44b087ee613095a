"""Each await of a request for tokens: cancelled there, the others get theirs, and the next request its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from tikv_pd import PdClient, PdConfig, TokenGrant, TokenRequest
from tikv_pd.testing import FakePd, virtual_time
from tikv_proto.services import PD, ResourceManager

PATIENT = PdConfig(timeout=1000, operation_timeout=1000)
ACQUIRE = ResourceManager.AcquireTokenBuckets


def no_answer(pd: FakePd) -> None:
    pd.hang(ACQUIRE)


def looking_for_the_leader(pd: FakePd) -> None:
    pd.refuse(ACQUIRE)
    pd.hang(PD.GetMembers)


def waiting_for_the_next_attempt(pd: FakePd) -> None:
    pd.refuse(ACQUIRE)


@pytest.fixture(params=[no_answer, looking_for_the_leader, waiting_for_the_next_attempt])
def fault(request: pytest.FixtureRequest) -> Callable[[FakePd], None]:
    return request.param  # type: ignore[no-any-return]  # one of the above


async def acquire(client: PdClient, tokens: float) -> list[TokenGrant]:
    request = TokenRequest("default", tokens)
    return await client.resource_groups.acquire_token_buckets([request], client_id=1)


class TestByScope:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str | tuple[str, dict[str, Any]]:
        return virtual_time() if request.param == "trio" else "asyncio"

    async def test_a_cancelled_request_does_not_pass_its_answer_on(
        self, pd: FakePd, fault: Callable[[FakePd], None]
    ) -> None:
        granted: list[TokenGrant] = []

        async def wait_in_line() -> None:
            granted.extend(await acquire(client, 2))

        async with PdClient("pd1:2379", config=PATIENT, transport=pd.transport) as client:
            fault(pd)
            with anyio.fail_after(10):
                async with anyio.create_task_group() as tasks:
                    with anyio.move_on_after(0.05) as scope:
                        tasks.start_soon(wait_in_line)
                        await acquire(client, 1)
                    with anyio.move_on_after(0.05):
                        await acquire(client, 3)  # In line behind the other.
                    pd.heal()

            assert scope.cancelled_caught
            assert granted == [TokenGrant("default", 2)]
            assert await acquire(client, 4) == [TokenGrant("default", 4)]

        assert pd.transport.open_connections() == []


class TestByTheEventLoop:
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_a_cancelled_request_does_not_pass_its_answer_on(
        self, pd: FakePd, fault: Callable[[FakePd], None]
    ) -> None:
        async with PdClient("pd1:2379", config=PATIENT, transport=pd.transport) as client:
            fault(pd)
            first = asyncio.ensure_future(acquire(client, 1))
            second = asyncio.ensure_future(acquire(client, 2))
            third = asyncio.ensure_future(acquire(client, 3))
            await asyncio.sleep(0.02)
            first.cancel()
            third.cancel()
            pd.heal()

            assert await second == [TokenGrant("default", 2)]
            for cancelled in (first, third):
                with pytest.raises(asyncio.CancelledError):
                    await cancelled
