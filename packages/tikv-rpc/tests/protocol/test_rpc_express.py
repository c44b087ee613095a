"""Requests for one key without the engine, and what becomes of those that are not as usual: the same as with it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from hypothesis import given, settings, strategies as st
from tikv_pd import ClosedError, DeadlineExceeded, PdClient, TikvError, UndeterminedError, backoff
from tikv_pd.testing import virtual_time
from tikv_proto import errorpb, kvrpcpb, metapb
from tikv_proto.services import Rpc, Tikv
from tikv_region import RegionCache
from tikv_rpc import (
    AtKey,
    Attempt,
    Effect,
    Express,
    Priority,
    Proceed,
    ReplicaRead,
    Request,
    RequestOptions,
    RetryRegion,
    RpcClient,
    RpcConfig,
    Settle,
    dispatch,
    operation,
)
from tikv_rpc.testing import FakeCluster

PLAIN = RequestOptions()
VALUE = b"v"
Ways = dict[str, Express[Any]]


def ways_of(rpc: RpcClient) -> Ways:
    at_key: AtKey[Any] = AtKey(RetryRegion(dispatch(rpc), rpc), rpc.cache)
    return {
        "get": Express(rpc, Tikv.RawGet, Effect.READ, "get", operation(rpc, at_key)),
        "put": Express(rpc, Tikv.RawPut, Effect.WRITE, "put", operation(rpc, Settle(at_key))),
    }


@asynccontextmanager
async def connected(cluster: FakeCluster, config: RpcConfig | None = None) -> AsyncIterator[RpcClient]:
    async with PdClient(cluster.url, transport=cluster.transport) as pd:
        cache = RegionCache(pd, cluster.map.codec, now=cluster.transport.now)
        async with RpcClient(
            cache, cluster.map.codec, cluster.pd.cluster_id, cluster.transport, config, choose=min
        ) as rpc:
            yield rpc


async def get(express: Ways, key: bytes = b"a", timeout: float = 30.0, options: RequestOptions = PLAIN) -> bytes:
    payload = kvrpcpb.RawGetRequest(key=key).SerializeToString()
    response = await express["get"].execute(key, payload, timeout, options)
    return bytes(response.value)


async def put(express: Ways, key: bytes = b"a", timeout: float = 30.0) -> None:
    payload = kvrpcpb.RawPutRequest(key=key, value=VALUE).SerializeToString()
    await express["put"].execute(key, payload, timeout, PLAIN)


@pytest.fixture
async def rpc(cluster: FakeCluster) -> AsyncIterator[RpcClient]:
    """A client that knows the way to all keys."""
    async with connected(cluster) as rpc:
        await put(ways_of(rpc))
        cluster.log.clear()
        yield rpc


class Seen(Exception):
    """The plans were asked."""


@attrs.frozen
class Refuse:
    """A plan that says that it was asked."""

    async def execute(self, _work: tuple[bytes, Request[Any]], _call: Any) -> Any:
        raise Seen


class PassOn:
    name = "pass on"

    async def __call__(self, _attempt: Attempt, proceed: Proceed) -> Any:
        return await proceed()


def without_plans(rpc: RpcClient, method: Rpc[Any, Any] = Tikv.RawGet) -> Ways:
    return {"get": Express(rpc, method, Effect.READ, "get", Refuse())}


async def test_what_is_as_usual_needs_no_plan(cluster: FakeCluster, rpc: RpcClient) -> None:
    assert await get(without_plans(rpc)) == VALUE
    assert len(cluster.requests(Tikv.RawGet)) == 1


@pytest.mark.parametrize(
    "options",
    [
        RequestOptions(replica_read=ReplicaRead.FOLLOWER),
        RequestOptions(read_timeout=1.0),
        RequestOptions(request_source="test"),
        RequestOptions(busy_threshold=1.0),
    ],
)
async def test_options_that_choose_a_replica_or_look_at_attempts_are_a_matter_of_the_plans(
    rpc: RpcClient, options: RequestOptions
) -> None:
    with pytest.raises(Seen):
        await get(without_plans(rpc), options=options)


async def test_other_options_reach_the_store(cluster: FakeCluster, rpc: RpcClient) -> None:
    await get(without_plans(rpc), options=RequestOptions(priority=Priority.HIGH))

    (request,) = cluster.requests(Tikv.RawGet)
    assert request.context.priority == Priority.HIGH.value


async def test_a_key_whose_region_is_not_known_is_a_matter_of_the_plans(cluster: FakeCluster) -> None:
    async with connected(cluster) as rpc:
        with pytest.raises(Seen):
            await get(without_plans(rpc))


async def test_what_cannot_be_batched_is_a_matter_of_the_plans(rpc: RpcClient) -> None:
    assert Tikv.RawCompareAndSwap.batch_field is None
    with pytest.raises(Seen):
        await get(without_plans(rpc, Tikv.RawCompareAndSwap))


async def test_a_client_with_interceptors_has_the_plans_do_all(cluster: FakeCluster) -> None:
    async with cluster.connect(interceptors=[PassOn()]) as rpc:
        assert not ways_of(rpc)["get"].is_direct


@pytest.mark.parametrize("config", [RpcConfig(redact="on"), RpcConfig(exec_details=True), RpcConfig(slow_threshold=1)])
async def test_a_client_that_redacts_or_observes_has_the_plans_do_all(cluster: FakeCluster, config: RpcConfig) -> None:
    async with connected(cluster, config) as rpc:
        assert not ways_of(rpc)["get"].is_direct


async def test_a_leader_that_moved_costs_one_more_request_which_says_that_it_is_one(
    cluster: FakeCluster, rpc: RpcClient
) -> None:
    cluster.move_leader(b"a", 2)

    assert await get(ways_of(rpc)) == VALUE

    first, second = cluster.requests(Tikv.RawGet)
    assert (first.context.is_retry_request, second.context.is_retry_request) == (False, True)


async def test_the_deadline_covers_the_first_attempt_too(cluster: FakeCluster, rpc: RpcClient) -> None:
    cluster.store(1).hang_next(None, times=100)
    began = anyio.current_time()

    with pytest.raises(DeadlineExceeded):
        await get(ways_of(rpc), timeout=2.0)

    assert anyio.current_time() - began == pytest.approx(2.0, abs=0.05)


async def test_an_attempt_takes_no_longer_than_attempts_may(cluster: FakeCluster) -> None:
    async with connected(cluster, RpcConfig(attempt_timeout=0.5)) as rpc:
        await put(ways_of(rpc))
        cluster.store(1).hang_next(Tikv.RawGet)
        began = anyio.current_time()

        assert await get(ways_of(rpc), timeout=30.0) == VALUE

        assert 0.5 <= anyio.current_time() - began < 1.5


async def test_a_write_whose_answer_was_lost_for_good_is_undetermined(cluster: FakeCluster, rpc: RpcClient) -> None:
    cluster.store(1).drop_reply_next(Tikv.RawPut, hang=True)

    with pytest.raises(UndeterminedError):
        await put(ways_of(rpc), timeout=1.0)


async def test_a_write_that_is_under_way_when_the_client_closes_is_undetermined(cluster: FakeCluster) -> None:
    outcomes: list[type[Exception]] = []

    async def attempt(do: Callable[[], Any]) -> None:
        try:
            await do()
        except TikvError as error:
            outcomes.append(type(error))

    async with anyio.create_task_group() as tasks, connected(cluster) as rpc:
        ways = ways_of(rpc)
        await put(ways)
        cluster.store(1).hang_next(None, times=100)
        tasks.start_soon(attempt, lambda: put(ways))
        tasks.start_soon(attempt, lambda: get(ways))
        await anyio.wait_all_tasks_blocked()

    assert sorted(each.__name__ for each in outcomes) == [ClosedError.__name__, UndeterminedError.__name__]


@pytest.mark.parametrize("turns", range(12))
async def test_a_request_cancelled_at_any_moment_leaves_nothing_behind(rpc: RpcClient, turns: int) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get, ways_of(rpc))
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    await anyio.wait_all_tasks_blocked()

    assert rpc.stats().in_flight == 0
    assert await get(ways_of(rpc)) == VALUE


# --- the same as the plans alone --------------------------------------------------------------------------------------

Mischief = Callable[[FakeCluster], None]


def region_error(error: errorpb.Error) -> Mischief:
    def plan(cluster: FakeCluster) -> None:
        for method in (Tikv.RawGet, Tikv.RawPut):
            cluster.store(1).answer_next(method, method.response(region_error=error))

    return plan


def failure(code: str) -> Mischief:
    return lambda cluster: cluster.store(1).fail_next(None, code)


def split(cluster: FakeCluster) -> None:
    """Split the Region of the key, each time at another one."""
    cluster.split(b"a" + bytes([200 - len(cluster.map.regions)]))


MISCHIEF: dict[str, Mischief] = {
    "not leader, another named": region_error(
        errorpb.Error(not_leader=errorpb.NotLeader(leader=metapb.Peer(id=1002, store_id=2)))
    ),
    "not leader, none named": region_error(errorpb.Error(not_leader=errorpb.NotLeader())),
    "epoch not match": region_error(errorpb.Error(epoch_not_match=errorpb.EpochNotMatch())),
    "region not found": region_error(errorpb.Error(region_not_found=errorpb.RegionNotFound())),
    "server is busy": region_error(errorpb.Error(server_is_busy=errorpb.ServerIsBusy(reason="busy"))),
    "stale command": region_error(errorpb.Error(stale_command=errorpb.StaleCommand())),
    "undetermined": region_error(errorpb.Error(undetermined_result=errorpb.UndeterminedResult())),
    "raft entry too large": region_error(errorpb.Error(raft_entry_too_large=errorpb.RaftEntryTooLarge(entry_size=9))),
    "flashback": region_error(errorpb.Error(FlashbackInProgress=errorpb.FlashbackInProgress(region_id=1))),
    "unknown": region_error(errorpb.Error(message="something new")),
    "unavailable": failure("UNAVAILABLE"),
    "internal": failure("INTERNAL"),
    "permission denied": failure("PERMISSION_DENIED"),
    "wrong cluster": failure("INVALID_ARGUMENT"),
    "answer lost": lambda cluster: cluster.store(1).drop_reply_next(None),
    "no answer": lambda cluster: cluster.store(1).hang_next(None),
    "split": split,
    "leader moved": lambda cluster: cluster.move_leader(b"a", 3),
    "store stopped": lambda cluster: cluster.store(1).stop(),
    "split under way": lambda cluster: cluster.store(1).before_next(None, lambda: split(cluster)),
    "leader moves under way": lambda cluster: cluster.store(1).before_next(None, lambda: cluster.move_leader(b"a", 2)),
}


async def seen_of(name: str, mischief: list[str], timeout: float, *, directly: bool) -> tuple[object, ...]:
    """Return how an operation ends, what the stores are asked, and how long it takes."""
    backoff._RNG.seed(1)
    random.seed(1)
    async with FakeCluster([b"g", b"p"]) as cluster, connected(cluster) as rpc:
        ways = ways_of(rpc)
        await put(ways)
        await get(ways)
        cluster.log.clear()
        for each in mischief:
            MISCHIEF[each](cluster)
        way = ways[name]
        if not directly:
            object.__setattr__(way, "is_direct", False)
        began, outcome = anyio.current_time(), "ok"
        try:
            await (get(ways, timeout=timeout) if name == "get" else put(ways, timeout=timeout))
        except TikvError as error:
            outcome = f"{type(error).__name__}, because of {type(error.__cause__).__name__}"
        asked = [
            (received.store_id, received.message.context.region_id, received.message.context.is_retry_request)
            for received in cluster.log
            if received.rpc in {Tikv.RawGet, Tikv.RawPut}
        ]
        return outcome, asked, round(anyio.current_time() - began, 6)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["get", "put"]),
    st.lists(st.sampled_from(sorted(MISCHIEF)), max_size=3),
    st.sampled_from([0.3, 45.0]),
)
def test_whatever_happens_is_dealt_with_as_by_the_plans_alone(name: str, mischief: list[str], timeout: float) -> None:
    backend, options = virtual_time()

    async def both() -> None:
        direct = await seen_of(name, mischief, timeout, directly=True)

        assert direct == await seen_of(name, mischief, timeout, directly=False)

    anyio.run(both, backend=backend, backend_options=options)
