from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from tikv_pd import (
    ClosedError,
    ConfigError,
    Consumption,
    DeadlineExceeded,
    PdClient,
    PdError,
    ResourceGroup,
    TikvError,
    TokenGrant,
    TokenRequest,
)
from tikv_pd.testing import FakePd
from tikv_proto.services import ResourceManager

ACQUIRE = ResourceManager.AcquireTokenBuckets


@pytest.fixture
async def client(pd: FakePd) -> AsyncIterator[PdClient]:
    pd.resource_groups["reports"] = ResourceGroup("reports", 500)
    async with PdClient("pd1:2379", transport=pd.transport) as client:
        yield client


async def acquire(client: PdClient, tokens: float = 10, timeout: float | None = None) -> list[TokenGrant]:
    request = TokenRequest("reports", tokens)
    return await client.resource_groups.acquire_token_buckets([request], client_id=1, timeout=timeout)


async def test_what_was_used_is_reported_and_tokens_are_granted(client: PdClient, pd: FakePd) -> None:
    pd.resources.grants["reports"] = TokenGrant("reports", 7.5, 2.5, 1000, 20)

    granted = await client.resource_groups.acquire_token_buckets(
        [TokenRequest("reports", 10, Consumption(read_ru=3, cpu_time=0.5)), TokenRequest("default", 2)],
        client_id=2**64 - 1,
        period=2.5,
    )

    assert granted == [TokenGrant("reports", 7.5, 2.5, 1000, 20), TokenGrant("default", 2)]
    (request,) = pd.resources.token_requests
    assert (request.client_unique_id, request.target_request_period_ms) == (2**64 - 1, 2500)
    assert request.requests[0].consumption_since_last_request.r_r_u == 3
    assert request.requests[0].consumption_since_last_request.total_cpu_time_ms == 500
    assert request.requests[0].ru_items.request_r_u[0].value == 10


async def test_unknown_groups_and_work_in_the_background_get_no_answer(client: PdClient, pd: FakePd) -> None:
    requests = [TokenRequest("gone", 1), TokenRequest("reports", is_background=True), TokenRequest("default", 1)]

    granted = await client.resource_groups.acquire_token_buckets(requests, client_id=1)

    assert granted == [TokenGrant("default", 1)]
    (request,) = pd.resources.token_requests
    assert request.requests[1].is_background
    assert not request.requests[1].HasField("ru_items")


async def test_no_group_is_no_request(client: PdClient, pd: FakePd) -> None:
    assert await client.resource_groups.acquire_token_buckets([], client_id=1) == []
    assert pd.calls(ACQUIRE) == 0


async def test_all_callers_share_a_stream_with_one_request_under_way(client: PdClient, pd: FakePd) -> None:
    pd.hang(ACQUIRE, times=1)
    granted: list[float] = []

    async def ask(tokens: float) -> None:
        granted.extend(grant.tokens for grant in await acquire(client, tokens))

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(ask, number)
            await anyio.wait_all_tasks_blocked()
        assert pd.resources.token_requests == []
        pd.heal()

    assert granted == [0, 1, 2, 3, 4]
    assert pd.calls(ACQUIRE) == 1


async def test_the_leader_is_followed(client: PdClient, pd: FakePd) -> None:
    await acquire(client)
    pd.leader = "pd2:2379"

    assert await acquire(client) == [TokenGrant("reports", 10)]
    assert pd.calls(ACQUIRE, at="pd2:2379") == 1


async def test_a_leader_that_others_found_is_asked_at_once(client: PdClient, pd: FakePd) -> None:
    await acquire(client)
    pd.leader = "pd2:2379"
    await client.get_stores()
    pd.hang(ACQUIRE, at="pd1:2379")

    assert await acquire(client, timeout=0.1) == [TokenGrant("reports", 10)]


async def test_a_member_that_says_nothing_is_given_up(client: PdClient, pd: FakePd) -> None:
    pd.hang(ACQUIRE, times=1)
    started = anyio.current_time()

    assert await acquire(client) == [TokenGrant("reports", 10)]
    assert 3 <= anyio.current_time() - started < 4
    assert pd.calls(ACQUIRE) == 2


async def test_every_waiter_is_answered_when_pd_refuses(client: PdClient, pd: FakePd) -> None:
    pd.answer_error(ACQUIRE, "UNKNOWN", "no manager", times=2)
    outcomes: list[object] = []

    async def ask() -> None:
        try:
            outcomes.append(await acquire(client))
        except TikvError as error:
            outcomes.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask)

    assert [type(outcome) for outcome in outcomes] == [PdError, PdError, list]
    assert "no manager" in str(outcomes[0])
    assert pd.calls(ACQUIRE) == 1


async def test_every_waiter_is_answered_when_its_time_is_up(client: PdClient, pd: FakePd) -> None:
    pd.hang(ACQUIRE)
    ends: dict[float, float] = {}

    async def ask(timeout: float) -> None:
        with pytest.raises(DeadlineExceeded):
            await acquire(client, timeout=timeout)
        ends[timeout] = anyio.current_time() - started

    started = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for timeout in (0.5, 1, 8, 20):
            tasks.start_soon(ask, timeout)

    assert all(end == pytest.approx(timeout) for timeout, end in ends.items())
    assert len(ends) == 4


async def test_every_waiter_is_answered_when_the_client_closes(pd: FakePd) -> None:
    pd.hang(ACQUIRE)
    ends: list[BaseException] = []

    async def ask(closing: PdClient) -> None:
        with pytest.raises(ClosedError) as caught:
            await acquire(closing)
        ends.append(caught.value)

    with anyio.fail_after(1):
        async with anyio.create_task_group() as tasks, PdClient("pd1:2379", transport=pd.transport) as closing:
            for _ in range(3):
                tasks.start_soon(ask, closing)
            await anyio.wait_all_tasks_blocked()

    assert len(ends) == 3


async def test_the_cause_of_the_last_failure_is_told(client: PdClient, pd: FakePd) -> None:
    pd.refuse(ACQUIRE, "UNAVAILABLE", "etcd is away")

    with pytest.raises(DeadlineExceeded, match="etcd is away"):
        await acquire(client)


async def test_what_pd_does_not_have_is_an_error(client: PdClient, pd: FakePd) -> None:
    pd.refuse(ACQUIRE, "UNIMPLEMENTED")

    with pytest.raises(PdError, match="UNIMPLEMENTED"):
        await acquire(client)


async def test_tokens_of_another_keyspace_are_an_error(client: PdClient, pd: FakePd) -> None:
    groups = client.resource_groups.of_keyspace(7)
    await groups.acquire_token_buckets([TokenRequest("reports", 1)], client_id=1)
    pd.resources.token_keyspace = 8

    with pytest.raises(PdError, match="are of keyspace 8, not 7"):
        await groups.acquire_token_buckets([TokenRequest("reports", 1)], client_id=1)
    assert pd.resources.token_requests[0].requests[0].keyspace_id.value == 7


async def test_what_cannot_be_asked_is_refused(client: PdClient) -> None:
    with pytest.raises(ConfigError, match="client_id"):
        await client.resource_groups.acquire_token_buckets([], client_id=2**64)
    with pytest.raises(ConfigError, match="period"):
        await client.resource_groups.acquire_token_buckets([], client_id=1, period=0)
