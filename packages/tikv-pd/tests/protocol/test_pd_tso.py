from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from hypothesis import given, strategies as st
from tikv_pd import DeadlineExceeded, PdClient, PdConfig, PdError, RpcError, Timestamp, TimestampFallback
from tikv_pd._streams.tso import IN_FLIGHT, first_of
from tikv_pd.testing import FakePd, ServerStream, virtual_time
from tikv_proto import pdpb
from tikv_proto.services import PD


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str | tuple[str, dict[str, Any]]:
    return virtual_time() if request.param == "trio" else "asyncio"


@pytest.fixture
async def client(pd: FakePd) -> AsyncIterator[PdClient]:
    async with PdClient("pd1:2379", config=PdConfig(max_tso_batch=100), transport=pd.transport) as client:
        yield client


async def burst(client: PdClient, count: int, *, timeout: float = 10) -> list[Timestamp]:
    """Return what `count` callers of the same moment get."""
    granted: list[Timestamp] = []

    async def get() -> None:
        granted.append(await client.get_ts(timeout=timeout))

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(get)
    return granted


def script(pd: FakePd, serve: Callable[[ServerStream], Awaitable[None]]) -> None:
    """Let the leader serve its timestamps in another way."""
    assert pd.leader is not None
    pd.transport.serve(pd.leader, {**pd.handlers(pd.leader), PD.Tso: serve})


def grant(count: int, physical: int, logical: int) -> pdpb.TsoResponse:
    return pdpb.TsoResponse(count=count, timestamp=pdpb.Timestamp(physical=physical, logical=logical))


async def test_a_burst_costs_one_message(client: PdClient, pd: FakePd) -> None:
    await client.get_ts()

    granted = await burst(client, 80)

    assert pd.tso_counts == [1, 80]
    assert sorted(granted) == [Timestamp(1_000_000, logical) for logical in range(2, 82)]


async def test_a_burst_above_the_limit_costs_as_few_messages_as_it_can(client: PdClient, pd: FakePd) -> None:
    granted = await burst(client, 250)

    assert pd.tso_counts == [100, 100, 50]
    assert len(set(granted)) == 250


async def test_all_callers_share_one_stream(client: PdClient, pd: FakePd) -> None:
    for _ in range(3):
        await burst(client, 10)

    assert pd.calls(PD.Tso) == 1


async def test_no_stream_is_opened_before_it_is_needed(client: PdClient, pd: FakePd) -> None:
    await client.get_stores()

    assert pd.calls(PD.Tso) == 0


async def test_timestamps_grow_over_the_end_of_the_logical_part(client: PdClient, pd: FakePd) -> None:
    pd.timestamp = Timestamp(1_000_000, 2**18 - 2)

    granted = [await client.get_ts() for _ in range(2)]

    assert granted == [Timestamp(1_000_000, 2**18 - 1), Timestamp(1_000_001, 1)]


async def test_timestamps_grow_from_call_to_call(client: PdClient) -> None:
    granted = [await client.get_ts() for _ in range(20)]

    assert granted == sorted(set(granted))


async def test_messages_in_flight_are_bounded_and_the_next_one_gathers_everybody(client: PdClient, pd: FakePd) -> None:
    pd.hang(PD.Tso, times=1)

    async with anyio.create_task_group() as tasks:
        for newcomers in [1] * IN_FLIGHT + [20]:
            for _ in range(newcomers):
                tasks.start_soon(client.get_ts)
            await anyio.wait_all_tasks_blocked()
        pd.heal()

    assert pd.tso_counts == [1] * IN_FLIGHT + [20]


async def test_answers_belong_to_requests_in_their_order(client: PdClient, pd: FakePd) -> None:
    async def serve(stream: ServerStream) -> None:
        first, second = await stream.receive(), await stream.receive()
        await stream.send(grant(first.count, 2_000_000, first.count))
        await stream.send(grant(second.count, 3_000_000, second.count))
        await anyio.sleep_forever()

    script(pd, serve)
    granted: dict[str, list[Timestamp]] = {}

    async def get(name: str, count: int) -> None:
        granted[name] = await burst(client, count)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get, "first", 3)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(get, "second", 2)

    assert {ts.physical for ts in granted["first"]} == {2_000_000}
    assert {ts.physical for ts in granted["second"]} == {3_000_000}


async def test_a_moved_leader_costs_no_caller_anything(client: PdClient, pd: FakePd) -> None:
    before = await client.get_ts()
    pd.leader = "pd2:2379"

    granted = await burst(client, 10)

    assert min(granted) > before
    assert client.leader == "pd2:2379"


async def test_a_leader_learned_by_another_call_serves_timestamps_too(client: PdClient, pd: FakePd) -> None:
    await client.get_ts()
    pd.leader = "pd2:2379"
    await client.get_stores()

    await client.get_ts()

    assert pd.tso_counts == [1, 1]
    assert (pd.calls(PD.Tso, at="pd1:2379"), pd.calls(PD.Tso, at="pd2:2379")) == (1, 1)


async def test_a_stream_that_breaks_costs_no_caller_anything(client: PdClient, pd: FakePd) -> None:
    await client.get_ts()
    pd.refuse(PD.Tso, "UNKNOWN", "generate timestamp failed", times=1)

    granted = await burst(client, 10)

    assert len(set(granted)) == 10
    assert pd.calls(PD.Tso) == 2


async def test_a_leader_that_stops_is_replaced(client: PdClient, pd: FakePd) -> None:
    await client.get_ts()
    pd.hang(PD.Tso, at="pd1:2379")
    granted: list[Timestamp] = []

    async def get() -> None:
        granted.extend(await burst(client, 10))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get)
        await anyio.wait_all_tasks_blocked()
        pd.leader = "pd3:2379"
        pd.stop("pd1:2379")

    assert len(set(granted)) == 10
    assert client.leader == "pd3:2379"


async def test_a_stream_without_answer_is_given_up_in_time(pd: FakePd) -> None:
    pd.hang(PD.Tso, at="pd1:2379")

    async with PdClient("pd1:2379", config=PdConfig(timeout=0.2), transport=pd.transport) as client:
        with anyio.move_on_after(0.1):
            await client.get_ts()
        pd.leader = "pd2:2379"

        assert len(await burst(client, 5)) == 5


async def test_the_cause_of_a_timeout_is_the_last_failure(client: PdClient, pd: FakePd) -> None:
    pd.refuse(PD.Tso, "UNKNOWN", "generate timestamp failed")

    with pytest.raises(DeadlineExceeded, match="get_ts did not finish") as raised:
        await client.get_ts(timeout=0.3)

    assert isinstance(raised.value.__cause__, RpcError)


async def test_an_error_in_the_header_reaches_every_caller_as_its_own(client: PdClient, pd: FakePd) -> None:
    pd.answer_error(PD.Tso, "INVALID_VALUE", "no such location", times=1)
    raised: list[PdError] = []

    async def get() -> None:
        with pytest.raises(PdError, match="no such location") as info:
            await client.get_ts()
        raised.append(info.value)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(get)

    assert len({id(error) for error in raised}) == 3
    assert (await client.get_ts()).logical == 1


async def test_a_timestamp_that_does_not_grow_is_fatal_for_its_callers(client: PdClient, pd: FakePd) -> None:
    before = await client.get_ts()
    pd.timestamp = Timestamp(before.physical - 1, 5)

    with pytest.raises(TimestampFallback) as raised:
        await client.get_ts()

    assert raised.value.previous == before.ts
    assert raised.value.granted == Timestamp(before.physical - 1, 6).ts
    assert not raised.value.retryable


async def test_a_pd_that_goes_forward_again_is_usable_again(client: PdClient, pd: FakePd) -> None:
    before = await client.get_ts()
    pd.timestamp = Timestamp(before.physical - 1, 5)
    with pytest.raises(TimestampFallback):
        await client.get_ts()
    pd.timestamp = Timestamp(before.physical + 1, 0)

    assert await client.get_ts() > before


async def test_overlapping_answers_are_compared_with_what_was_known_when_they_were_asked_for(
    client: PdClient, pd: FakePd
) -> None:
    async def serve(stream: ServerStream) -> None:
        await stream.receive()
        await stream.receive()
        await stream.send(grant(1, 2_000_000, 9))
        await stream.send(grant(1, 2_000_000, 5))
        await anyio.sleep_forever()

    script(pd, serve)
    granted: list[Timestamp] = []

    async def get() -> None:
        granted.append(await client.get_ts())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(get)

    assert sorted(granted) == [Timestamp(2_000_000, 5), Timestamp(2_000_000, 9)]


async def test_an_answer_of_another_count_kills_the_stream_and_the_callers_get_theirs_from_the_next(
    client: PdClient, pd: FakePd
) -> None:
    async def serve(stream: ServerStream) -> None:
        request = await stream.receive()
        pd.start("pd1:2379")
        await stream.send(grant(request.count - 1, 2_000_000, 100))
        await anyio.sleep_forever()

    script(pd, serve)

    granted = await burst(client, 3)

    assert {ts.physical for ts in granted} == {1_000_000}
    assert pd.calls(PD.Tso) == 2


async def test_an_answer_nobody_asked_for_kills_the_stream(client: PdClient, pd: FakePd) -> None:
    async def serve(stream: ServerStream) -> None:
        request = await stream.receive()
        await stream.send(grant(request.count, 2_000_000, request.count))
        await stream.send(grant(1, 1_999_999, 1))
        await anyio.sleep_forever()

    script(pd, serve)
    await client.get_ts()
    await anyio.wait_all_tasks_blocked()
    pd.timestamp = Timestamp(3_000_000, 0)
    pd.start("pd1:2379")

    assert await client.get_ts() == Timestamp(3_000_000, 1)


@pytest.mark.parametrize("timeout", [0, -1])
async def test_no_time_is_no_timestamp(client: PdClient, timeout: float) -> None:
    with pytest.raises(DeadlineExceeded):
        await client.get_ts(timeout=timeout)


@given(st.integers(1, 20_000), st.integers(1, 2**40), st.integers(0, 2**18 - 1))
def test_the_first_timestamp_is_derived_from_the_last(count: int, physical: int, logical: int) -> None:
    answer = grant(count, physical, logical)

    if count <= logical + 1:
        assert first_of(answer, count, 0).ts + count - 1 == Timestamp(physical, logical).ts
    else:
        with pytest.raises(ValueError, match="cannot have logical part"):
            first_of(answer, count, 0)


@pytest.mark.parametrize(("floor", "falls_back"), [(Timestamp(5, 2), False), (Timestamp(5, 3), True)])
def test_equal_counts_as_fallback(floor: Timestamp, falls_back: bool) -> None:
    answer = grant(2, 5, 4)

    if falls_back:
        with pytest.raises(TimestampFallback):
            first_of(answer, 2, floor.ts)
    else:
        assert first_of(answer, 2, floor.ts) == Timestamp(5, 3)


async def test_each_caller_is_told_on_time(client: PdClient, pd: FakePd, anyio_backend_name: str) -> None:
    pd.hang(PD.Tso)
    ended: list[tuple[float, float]] = []
    started = anyio.current_time()

    async def get(timeout: float) -> None:
        with pytest.raises(DeadlineExceeded):
            await client.get_ts(timeout=timeout)
        ended.append((timeout, anyio.current_time() - started))

    async with anyio.create_task_group() as tasks:
        for timeout in (0.3, 0.1, 0.2, 0.1):
            tasks.start_soon(get, timeout)

    assert sorted(timeout for timeout, _ in ended) == [0.1, 0.1, 0.2, 0.3]
    assert all(took >= timeout for timeout, took in ended)
    if anyio_backend_name == "trio":
        # On a clock that is not virtual, whatever else runs on the machine comes on top.
        assert all(took - timeout < 0.09 for timeout, took in ended)


async def test_an_endless_timeout_is_none(client: PdClient, pd: FakePd) -> None:
    pd.refuse(PD.Tso, times=1)

    assert (await client.get_ts(timeout=math.inf)).logical == 1


async def test_callers_that_went_away_do_not_pile_up_while_pd_is_down(client: PdClient, pd: FakePd) -> None:
    pd.stop()

    for _ in range(20):
        with anyio.move_on_after(0.01):
            await burst(client, 50)

    assert client._session is not None
    assert len(client._session.tso._waiting) < 200
