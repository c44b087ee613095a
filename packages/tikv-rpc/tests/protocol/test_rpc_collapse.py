"""Equal requests of several callers: one travels, and nobody suffers from another's deadline or cancellation."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from google.protobuf.message import Message
from tikv_pd import DeadlineExceeded, TikvError, UndeterminedError
from tikv_pd.errors import RpcError
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import InvalidReason
from tikv_rpc import (
    AtKey,
    Attempt,
    Collapse,
    Effect,
    Proceed,
    Request,
    RequestOptions,
    ResourceGroupThrottled,
    RetryRegion,
    Settle,
    dispatch,
)
from tikv_rpc.testing import FakeCluster

if TYPE_CHECKING:
    from tests.conftest import Kv

RESOLVE = Tikv.KvResolveLock


def resolve(start: int = 5, commit: int = 9, effect: Effect = Effect.WRITE) -> Request[Any]:
    return Request(RESOLVE, kvrpcpb.ResolveLockRequest(start_version=start, commit_version=commit), effect)


class Poor:
    """An interceptor that lets a group without tokens wait in vain."""

    name = "poor"

    async def __call__(self, attempt: Attempt, proceed: Proceed) -> Message:
        if attempt.options.resource_group:
            await anyio.sleep(0.5)
            raise ResourceGroupThrottled(attempt.options.resource_group, 9.0, 1.0, -9.0)
        return await proceed()


class Resolver:
    """Many that resolve locks, over one plan."""

    def __init__(self, cluster: FakeCluster, kv: Kv) -> None:
        self.cluster = cluster
        self.rpc = kv.rpc
        self.collapse = Collapse(kv.retry)
        self.at_key: AtKey[Any] = AtKey(self.collapse, kv.cache)
        self.outcomes: list[Any] = []

    @property
    def sent(self) -> int:
        """How many requests reached a store."""
        return len(self.cluster.requests(RESOLVE))

    async def run(
        self, key: bytes = b"a", *, timeout: float = 60, request: Request[Any] | None = None, settle: bool = False
    ) -> Any:
        plan: Any = Settle(self.at_key) if settle else self.at_key
        return await plan.execute((key, request or resolve()), self.rpc.call("resolve", timeout))

    async def note(self, **arguments: Any) -> None:
        """Run and keep the outcome."""
        try:
            self.outcomes.append(type(await self.run(**arguments)).__name__)
        except TikvError as error:
            self.outcomes.append(type(error).__name__)

    def is_empty(self) -> bool:
        return not self.collapse._flights._flights


@pytest.fixture
def resolver(cluster: FakeCluster, kv: Kv) -> Resolver:
    async def serve(_request: Any) -> kvrpcpb.ResolveLockResponse:
        await anyio.sleep(1)
        return kvrpcpb.ResolveLockResponse()

    cluster.handlers[RESOLVE] = serve
    return Resolver(cluster, kv)


async def test_a_hundred_that_resolve_the_same_locks_send_one_request(resolver: Resolver) -> None:
    began = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(resolver.note)

    assert resolver.outcomes == ["ResolveLockResponse"] * 100
    assert resolver.sent == 1
    assert anyio.current_time() - began == pytest.approx(1)


async def test_nothing_is_remembered_after_the_flight(resolver: Resolver) -> None:
    await resolver.run()
    assert resolver.is_empty()

    await resolver.run()

    assert resolver.sent == 2


@pytest.mark.parametrize(
    "other",
    [
        {"request": resolve(start=6)},
        {"request": resolve(commit=0)},
        {"key": b"h"},
        {"request": resolve(effect=Effect.READ)},
        {"request": resolve(effect=Effect.ONCE)},
    ],
    ids=["another transaction", "another outcome", "another Region", "a read", "one not to be applied twice"],
)
async def test_what_is_not_the_same_is_sent_by_itself(resolver: Resolver, other: dict[str, Any]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(resolver.note)
        await anyio.wait_all_tasks_blocked()
        await resolver.run(**other)

    assert resolver.sent == 2


async def test_a_region_of_another_version_is_another_region(resolver: Resolver, cluster: FakeCluster, kv: Kv) -> None:
    old = await kv.cache.locate(b"a", kv.rpc.call("locate", 9).backoffer)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(resolver.collapse.execute, old, resolve(), kv.rpc.call("resolve", 60))
        await anyio.wait_all_tasks_blocked()
        cluster.split(b"c")
        old.invalidate(InvalidReason.EPOCH_NOT_MATCH)
        await resolver.run()

    assert resolver.sent == 2


async def test_each_gets_an_answer_of_its_own(resolver: Resolver, cluster: FakeCluster) -> None:
    refused = kvrpcpb.ResolveLockResponse(error=kvrpcpb.KeyError(abort="no"))
    cluster.store(1).answer_next(RESOLVE, refused)
    answers: list[Any] = []

    async def run() -> None:
        answer = await resolver.run()
        assert answer.error.abort == "no"
        answer.Clear()
        answers.append(answer)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(run)

    assert len(answers) == 3
    assert resolver.sent == 1


async def test_when_the_one_that_sends_is_cancelled_another_takes_over(resolver: Resolver) -> None:
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as first:
            async with anyio.create_task_group() as inner:
                inner.start_soon(resolver.note)
                await anyio.wait_all_tasks_blocked()
                for _ in range(3):
                    tasks.start_soon(resolver.note)
                await anyio.wait_all_tasks_blocked()
                first.cancel()

    assert resolver.outcomes == ["ResolveLockResponse"] * 3
    assert resolver.sent == 2
    assert resolver.is_empty()


@pytest.mark.parametrize("victim", range(4))
@pytest.mark.parametrize("moment", [0.0, 0.25, 0.5, 0.999, 1.0, 1.001])
async def test_whoever_is_cancelled_and_whenever_the_others_get_their_answer(
    resolver: Resolver, victim: int, moment: float
) -> None:
    scopes = [anyio.CancelScope() for _ in range(4)]
    began = anyio.current_time()

    async def run(scope: anyio.CancelScope) -> None:
        with scope:
            await resolver.note()

    async with anyio.create_task_group() as tasks:
        for scope in scopes:
            tasks.start_soon(run, scope)
        await anyio.sleep(moment)
        scopes[victim].cancel()

    assert resolver.outcomes.count("ResolveLockResponse") >= 3
    assert resolver.sent <= 2
    assert anyio.current_time() - began <= 1 + moment + 1e-6
    assert resolver.is_empty()


async def test_all_cancelled_leave_nothing(resolver: Resolver) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(resolver.note)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert resolver.outcomes == []
    assert resolver.is_empty()
    await resolver.run()


async def test_one_after_another_is_cancelled_until_the_last_gets_through(resolver: Resolver) -> None:
    scopes = [anyio.CancelScope() for _ in range(5)]

    async def run(scope: anyio.CancelScope) -> None:
        with scope:
            await resolver.note()

    async with anyio.create_task_group() as tasks:
        for scope in scopes:
            tasks.start_soon(run, scope)
            await anyio.wait_all_tasks_blocked()
        for scope in scopes[:-1]:
            scope.cancel()
            await anyio.wait_all_tasks_blocked()

    assert resolver.outcomes == ["ResolveLockResponse"]
    assert 2 <= resolver.sent <= 5


async def test_the_one_that_sends_runs_out_of_time_and_another_takes_over(
    resolver: Resolver, cluster: FakeCluster
) -> None:
    cluster.store(1).hang_next(RESOLVE)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(resolver.note, timeout=2))
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(resolver.note)

    assert resolver.outcomes == ["DeadlineExceeded", "ResolveLockResponse"]
    assert resolver.sent == 2


async def test_one_that_waits_gives_up_at_its_own_deadline(resolver: Resolver, cluster: FakeCluster) -> None:
    cluster.store(1).delay_next(RESOLVE, 4)
    began = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(resolver.note)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(DeadlineExceeded):
            await resolver.run(timeout=0.5)
        assert anyio.current_time() - began == pytest.approx(0.5)

    assert resolver.outcomes == ["ResolveLockResponse"]
    assert resolver.sent == 1


async def test_one_that_gives_up_does_not_know_what_became_of_it(resolver: Resolver) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(resolver.note)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(UndeterminedError) as raised:
            await resolver.run(timeout=0.5, settle=True)

    assert isinstance(raised.value.__cause__, DeadlineExceeded)


async def test_a_failure_reaches_all_who_waited_each_as_an_error_of_its_own(
    resolver: Resolver, cluster: FakeCluster
) -> None:
    cluster.store(1).fail_next(RESOLVE, "PERMISSION_DENIED")
    errors: list[Exception] = []

    async def run() -> None:
        try:
            await resolver.run()
        except RpcError as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(run)

    assert [str(error) for error in errors] == [str(errors[0])] * 3
    assert len({id(error) for error in errors}) == 3
    assert resolver.sent == 1
    assert resolver.is_empty()


async def test_all_who_waited_find_the_region_anew_and_share_again(resolver: Resolver, cluster: FakeCluster) -> None:
    async def moved(_message: Any, _serve: Any) -> kvrpcpb.ResolveLockResponse:
        await anyio.sleep(1)
        return kvrpcpb.ResolveLockResponse(region_error=errorpb.Error(region_not_found=errorpb.RegionNotFound()))

    cluster.store(1).script(RESOLVE, moved)

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(resolver.note)

    assert resolver.outcomes == ["ResolveLockResponse"] * 5
    assert resolver.sent == 2


async def test_a_lost_answer_of_the_flight_is_one_for_all_who_waited(resolver: Resolver, cluster: FakeCluster) -> None:
    cluster.store(1).drop_reply_next(RESOLVE)
    cluster.store(1).fail_next(RESOLVE, "PERMISSION_DENIED")

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(partial(resolver.note, settle=True))

    assert resolver.outcomes == ["UndeterminedError"] * 3


async def test_one_that_takes_over_and_fails_does_not_know_what_the_first_did(
    resolver: Resolver, cluster: FakeCluster
) -> None:
    cluster.store(1).hang_next(RESOLVE)
    cluster.store(1).fail_next(RESOLVE, "PERMISSION_DENIED")

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as first:
            async with anyio.create_task_group() as inner:
                inner.start_soon(resolver.note)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(partial(resolver.note, settle=True))
                await anyio.wait_all_tasks_blocked()
                first.cancel()

    assert resolver.outcomes == ["UndeterminedError"]


async def test_a_group_without_tokens_is_no_matter_of_the_others(cluster: FakeCluster, resolver: Resolver) -> None:
    async with cluster.connect(interceptors=[Poor()]) as rpc:
        plan: AtKey[Any] = AtKey(Collapse(RetryRegion(dispatch(rpc), rpc)), rpc.cache)

        async def poor() -> None:
            call = rpc.call("resolve", 60, RequestOptions(resource_group="poor"))
            with pytest.raises(ResourceGroupThrottled):
                await plan.execute((b"a", resolve()), call)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(poor)
            await anyio.wait_all_tasks_blocked()
            await plan.execute((b"a", resolve()), rpc.call("resolve", 60))

    assert resolver.sent == 1
