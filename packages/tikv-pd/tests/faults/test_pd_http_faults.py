"""Each await of a request over HTTP: cancelled there by a scope and natively; then the next one works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from tikv_pd import HttpAnswer, PdClient, PdConfig
from tikv_pd.testing import FakeHttp, FakePd, virtual_time
from tikv_proto.services import PD

PATIENT = PdConfig(timeout=1000, operation_timeout=1000)
VERSION = "/pd/api/v1/version"
UNAVAILABLE = HttpAnswer(503, b"no leader")

Fault = Callable[[FakePd, FakeHttp], None]


def no_answer(pd: FakePd, http: FakeHttp) -> None:
    http.silent = set(pd.members)


def looking_for_the_leader(pd: FakePd, http: FakeHttp) -> None:
    http.refusals = dict.fromkeys(pd.members, UNAVAILABLE)
    pd.hang(PD.GetMembers)


def waiting_for_the_next_attempt(pd: FakePd, http: FakeHttp) -> None:
    http.refusals = dict.fromkeys(pd.members, UNAVAILABLE)


@pytest.fixture(params=[no_answer, looking_for_the_leader, waiting_for_the_next_attempt])
def fault(request: pytest.FixtureRequest) -> Fault:
    return request.param  # type: ignore[no-any-return]  # one of the above


@pytest.fixture
def http(pd: FakePd) -> FakeHttp:
    http = FakeHttp(pd)
    http.pages[VERSION] = {"version": "v9.0.0"}
    return http


def undo(pd: FakePd, http: FakeHttp) -> None:
    http.silent, http.refusals = set(), {}
    pd.heal()


class TestByScope:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str | tuple[str, dict[str, Any]]:
        return virtual_time() if request.param == "trio" else "asyncio"

    async def test_a_cancelled_request_ends_at_once_and_the_next_one_works(
        self, pd: FakePd, http: FakeHttp, fault: Fault
    ) -> None:
        async with PdClient("pd1:2379", config=PATIENT, transport=pd.transport, http_transport=http) as client:
            fault(pd, http)
            with anyio.move_on_after(0.05) as scope:
                await client.http.get_version(timeout=1000)
            undo(pd, http)

            assert scope.cancelled_caught
            assert await client.http.get_version() == "v9.0.0"

        assert pd.transport.open_connections() == []


class TestByTheEventLoop:
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_a_cancelled_request_ends_at_once_and_the_next_one_works(
        self, pd: FakePd, http: FakeHttp, fault: Fault
    ) -> None:
        async with PdClient("pd1:2379", config=PATIENT, transport=pd.transport, http_transport=http) as client:
            fault(pd, http)
            task = asyncio.ensure_future(client.http.get_version(timeout=1000))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            undo(pd, http)

            assert await client.http.get_version() == "v9.0.0"
