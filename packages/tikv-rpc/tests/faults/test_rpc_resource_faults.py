"""Resource control at each point where it waits: hang there, cancel, fail, close."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from tikv_pd import ClosedError, Deadline, Peer, Region, RegionEpoch, ResourceGroup, TokenGrant
from tikv_pd.errors import RpcError
from tikv_pd.testing import virtual_time
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import RegionEntry, StoreEntry
from tikv_rpc import Attempt, Effect, Request, RequestOptions
from tikv_rpc.resource_control import ResourceControl, RuDetails
from tikv_rpc.testing import FakeTokens


def attempt_of() -> Attempt:
    store, peer = StoreEntry(1), Peer(1, 1)
    region = Region(1, b"", b"", RegionEpoch(1, 1), (peer,), peer)
    entry = RegionEntry(region, (b"", b""), [(peer, store)], math.inf, anyio.current_time)
    request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=b"k"), Effect.READ)
    options = RequestOptions(resource_group="g")
    return Attempt("get", request, entry, store, options, Deadline("get", 60.0, anyio.current_time))


async def settle() -> None:
    """Let the tasks that can run do so, while no time passes."""
    for _ in range(50):
        await checkpoint()


async def get(control: ResourceControl, ru: float = 0.0) -> None:
    """Read; with `ru` so much that the group has that many tokens less."""

    async def proceed() -> Any:
        await checkpoint()
        return kvrpcpb.RawGetResponse(value=b"v" * int(ru * 65536))

    await control(attempt_of(), proceed)


async def load_hangs(control: ResourceControl, tokens: FakeTokens) -> None:
    """The next request waits for the settings of its group."""
    del control
    tokens.is_silent = True


async def no_tokens_come(control: ResourceControl, tokens: FakeTokens) -> None:
    """The next request waits for tokens, which PD does not grant."""
    tokens.delay = 1000
    await get(control, 50)


async def tokens_trickle(control: ResourceControl, tokens: FakeTokens) -> None:
    """The next request has taken tokens, and waits until they are there."""
    tokens.grants["g"] = TokenGrant("g", 10, trickle=5)
    await get(control, 25)
    await settle()


Situation = Callable[[ResourceControl, FakeTokens], Awaitable[None]]
SITUATIONS: list[Situation] = [load_hangs, no_tokens_come, tokens_trickle]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return "asyncio" if request.param == "asyncio" else virtual_time()


@pytest.fixture
def tokens() -> FakeTokens:
    return FakeTokens(ResourceGroup("g", 10))


def nothing_is_left(control: ResourceControl) -> bool:
    controller = control._controller
    return not controller._changed and not controller._loads and controller._tasks is None


async def test_requests_of_groups_need_it_open(tokens: FakeTokens) -> None:
    control = ResourceControl(tokens)
    with pytest.raises(ClosedError):
        await get(control)

    async with control:
        await get(control)

    with pytest.raises(ClosedError):
        await get(control)


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_closing_wakes_everyone_who_waits(tokens: FakeTokens, situation: Situation) -> None:
    control = ResourceControl(tokens)
    ends: list[type[BaseException]] = []

    async def read() -> None:
        try:
            await get(control)
        except ClosedError as error:
            ends.append(type(error))

    async with anyio.create_task_group() as tasks, control:
        await situation(control, tokens)
        for _ in range(5):
            tasks.start_soon(read)
        await settle()

    assert ends == [ClosedError] * 5
    assert nothing_is_left(control)
    assert tokens.under_way == 0


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_a_request_that_is_cancelled_costs_nothing(tokens: FakeTokens, situation: Situation) -> None:
    async with ResourceControl(tokens) as control:
        await situation(control, tokens)
        before = control.stats()

        with anyio.move_on_after(0.02) as scope:
            await get(control)

        assert scope.cancelled_caught
        after = control.stats()
        assert {name: each.details for name, each in after.items()} == {
            name: each.details for name, each in before.items()
        }
        if after:
            # At 2 a second, less than this came in meanwhile.
            assert before["g"].tokens <= after["g"].tokens < before["g"].tokens + 0.4
            assert control._controller.groups["g"].used.ru == pytest.approx(before["g"].details.read_ru)
        tokens.is_silent, tokens.delay = False, 0.0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("situation", SITUATIONS)
async def test_a_native_cancellation_costs_nothing_either(tokens: FakeTokens, situation: Situation) -> None:
    async with ResourceControl(tokens) as control:
        await situation(control, tokens)
        before = {name: each.details for name, each in control.stats().items()}
        task = asyncio.ensure_future(get(control))
        await settle()

        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert {name: each.details for name, each in control.stats().items()} == before


async def test_others_that_wait_are_not_disturbed_by_one_that_is_cancelled(tokens: FakeTokens) -> None:
    tokens.delay = 0.1
    tokens.grants["g"] = TokenGrant("g", 1000)
    done: list[int] = []

    async def read(number: int) -> None:
        await get(control)
        done.append(number)

    async with ResourceControl(tokens) as control:
        await get(control, 50)
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(read, number)
            with anyio.move_on_after(0.02):
                await get(control)

    assert sorted(done) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("way", ["silent", "failing"])
async def test_requests_within_the_tokens_do_not_notice_that_pd_is_away(tokens: FakeTokens, way: str) -> None:
    tokens.put(ResourceGroup("g", 1000))
    async with ResourceControl(tokens) as control:
        await get(control)
        if way == "silent":
            tokens.is_silent = True
        else:
            tokens.failure = RpcError("pd", "", "UNAVAILABLE", "away")
            tokens.break_watches()

        for _ in range(100):
            with anyio.fail_after(1):
                await get(control)

        details = control.stats()["g"].details
        assert details == RuDetails(details.read_ru)
        assert details.read_ru == pytest.approx(101 * 0.475)


async def test_it_can_be_opened_while_pd_is_away(tokens: FakeTokens) -> None:
    tokens.failure = RpcError("pd", "", "UNAVAILABLE", "away")
    async with ResourceControl(tokens) as control:
        await settle()
        tokens.failure = None

        await get(control)


async def test_what_proceeding_raises_passes_through(tokens: FakeTokens) -> None:
    error = RpcError("store", "RawGet", "UNAVAILABLE", "")

    async def fail() -> Any:
        await checkpoint()
        raise error

    async with ResourceControl(tokens) as control:
        with pytest.raises(RpcError) as caught:
            await control(attempt_of(), fail)

        assert caught.value is error
        # It was sent, so its base is paid.
        assert control.stats()["g"].details.read_ru == pytest.approx(0.475)


async def test_what_the_block_raises_is_raised(tokens: FakeTokens) -> None:
    with pytest.raises(KeyError):
        async with ResourceControl(tokens):
            raise KeyError


async def test_it_can_be_opened_again(tokens: FakeTokens) -> None:
    control = ResourceControl(tokens)
    for _ in range(3):
        async with control:
            await get(control)

    assert nothing_is_left(control)
    assert control.stats()["g"].details.read_ru == pytest.approx(3 * 0.475)
