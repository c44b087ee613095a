"""Did it happen, and may it be tried again: what callers learn when answers are late, lost or refusals."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import Rpc, Tikv
from tikv_raw import (
    BackoffExceeded,
    BatchOutcome,
    CasResult,
    ClosedError,
    DeadlineExceeded,
    EntryTooLarge,
    RawClient,
    RawConfig,
    RawError,
    RpcConfig,
    RpcError,
    TikvError,
    UndeterminedError,
)
from tikv_rpc.testing import FakeCluster

Call = Callable[[RawClient, float | None], Coroutine[Any, Any, object]]
NEW = {b"a": b"new"}


def each_by(timeout: float | None) -> dict[str, Any]:
    return {"on_error": "return", "timeout": timeout}


async def first_failure(batch: Coroutine[Any, Any, BatchOutcome]) -> None:
    """Raise what failed by key."""
    outcome = await batch
    for error in outcome.failures.values():
        raise error


READS: dict[str, tuple[Rpc[Any, Any], Call]] = {
    "get": (Tikv.RawGet, lambda c, timeout: c.get(b"a", timeout=timeout)),
    "batch_get": (Tikv.RawBatchGet, lambda c, timeout: c.batch_get([b"a", b"q"], timeout=timeout)),
    "scan": (Tikv.RawScan, lambda c, timeout: c.scan(timeout=timeout).__anext__()),
    "ttl": (Tikv.RawGetKeyTTL, lambda c, timeout: c.ttl(b"a", timeout=timeout)),
    "batch_get_each": (Tikv.RawBatchGet, lambda c, timeout: first_failure(c.batch_get([b"a"], **each_by(timeout)))),
    "batch_scan": (Tikv.RawScan, lambda c, timeout: c.batch_scan([(b"a", b"b")], timeout=timeout)),
    "count": (Tikv.RawChecksum, lambda c, timeout: c.count(b"a", b"b", timeout=timeout)),
    "count_lock": (Tikv.RawScan, lambda c, timeout: c.count(b"a", b"b", cf="lock", timeout=timeout)),
    "checksum": (Tikv.RawChecksum, lambda c, timeout: c.checksum(b"a", b"b", timeout=timeout)),
}
REPEATABLE: dict[str, tuple[Rpc[Any, Any], Call]] = {
    "put": (Tikv.RawPut, lambda c, timeout: c.put(b"a", b"new", timeout=timeout)),
    "batch_put": (Tikv.RawBatchPut, lambda c, timeout: c.batch_put({b"a": b"new"}, timeout=timeout)),
    "delete": (Tikv.RawDelete, lambda c, timeout: c.delete(b"a", timeout=timeout)),
    "batch_delete": (Tikv.RawBatchDelete, lambda c, timeout: c.batch_delete([b"a"], timeout=timeout)),
    "batch_put_each": (Tikv.RawBatchPut, lambda c, timeout: first_failure(c.batch_put(NEW, **each_by(timeout)))),
    "batch_delete_each": (
        Tikv.RawBatchDelete,
        lambda c, timeout: first_failure(c.batch_delete(NEW, **each_by(timeout))),
    ),
    "delete_range": (Tikv.RawDeleteRange, lambda c, timeout: c.delete_range(b"a", b"b", timeout=timeout)),
    "delete_prefix": (Tikv.RawDeleteRange, lambda c, timeout: c.delete_prefix(b"a", timeout=timeout)),
}
SWAP: dict[str, tuple[Rpc[Any, Any], Call]] = {
    "compare_and_swap": (
        Tikv.RawCompareAndSwap,
        lambda c, timeout: c.compare_and_swap(b"a", b"old", b"new", timeout=timeout),
    ),
    "remove": (
        Tikv.RawCompareAndSwap,
        lambda c, timeout: c.compare_and_swap(b"a", b"old", None, timeout=timeout),
    ),
}
WRITES = REPEATABLE | SWAP


def each(operations: dict[str, tuple[Rpc[Any, Any], Call]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("rpc", "call"), operations.values(), ids=list(operations))


@pytest.fixture
async def client(cluster: FakeCluster) -> AsyncIterator[RawClient]:
    cluster.raw.put(b"a", b"old")
    async with RawClient(cluster.url, api_version="v1ttl", transport=cluster.transport) as opened:
        yield opened


def stop(cluster: FakeCluster) -> None:
    for store in cluster.stores.values():
        store.stop()


@each(READS | WRITES)
@pytest.mark.parametrize("timeout", [0.5, 3.0, 25.0])
async def test_a_call_without_an_answer_ends_when_its_time_is_up(
    cluster: FakeCluster, client: RawClient, rpc: Rpc[Any, Any], call: Call, timeout: float
) -> None:
    for store in cluster.stores.values():
        store.hang_next(rpc, times=math.inf)
    started = anyio.current_time()

    with pytest.raises(DeadlineExceeded if (rpc, call) in READS.values() else UndeterminedError) as caught:
        await call(client, timeout)

    elapsed = anyio.current_time() - started
    # A swap is not tried again, so it ends with its only attempt.
    assert elapsed == pytest.approx(min(timeout, 10.0) if rpc is Tikv.RawCompareAndSwap else timeout, abs=0.01)
    assert isinstance(caught.value.__cause__, TikvError)
    assert cluster.data == {b"a": b"old"}


@each(READS | WRITES)
async def test_a_call_that_reaches_nobody_ends_in_time_and_did_nothing(
    cluster: FakeCluster, client: RawClient, rpc: Rpc[Any, Any], call: Call
) -> None:
    await client.get(b"a")
    cluster.log.clear()
    stop(cluster)
    await wait_all_tasks_blocked()  # The client sees its connections break.
    started = anyio.current_time()

    with pytest.raises(DeadlineExceeded) as caught:
        await call(client, 4.0)

    assert anyio.current_time() == pytest.approx(started + 4.0, abs=0.01)
    assert caught.value.retryable
    assert not caught.value.undetermined
    assert cluster.requests(rpc) == []


@pytest.mark.parametrize("call", [call for _, call in (READS | WRITES).values()], ids=[*READS, *WRITES])
async def test_the_time_of_a_call_that_names_none_is_that_of_the_options(cluster: FakeCluster, call: Call) -> None:
    config = RawConfig(timeout=2.5)
    stop(cluster)
    async with RawClient(cluster.url, api_version="v1ttl", config=config, transport=cluster.transport) as client:
        started = anyio.current_time()

        with pytest.raises(DeadlineExceeded, match=r"did not finish within 2\.5 s"):
            await call(client, None)

        assert anyio.current_time() == pytest.approx(started + 2.5, abs=0.01)


@each(READS | REPEATABLE)
async def test_a_lost_answer_has_the_request_sent_again(
    cluster: FakeCluster, client: RawClient, rpc: Rpc[Any, Any], call: Call
) -> None:
    cluster.store(1).drop_reply_next(rpc)
    for other in (2, 3):
        cluster.store(other).before_next(None, lambda: None)

    await call(client, 10.0)

    assert len(cluster.requests(rpc)) >= 2
    expected = {} if "Delete" in rpc.name else {b"a": b"new" if "Put" in rpc.name else b"old"}
    assert cluster.data == expected


@each(REPEATABLE)
@pytest.mark.parametrize("hang", [False, True])
async def test_a_write_whose_answers_are_all_lost_is_undetermined(
    cluster: FakeCluster, client: RawClient, rpc: Rpc[Any, Any], call: Call, hang: bool
) -> None:
    for store in cluster.stores.values():
        store.drop_reply_next(rpc, hang=hang, times=math.inf)
    started = anyio.current_time()

    with pytest.raises(UndeterminedError) as caught:
        await call(client, 15.0)

    assert anyio.current_time() == pytest.approx(started + 15.0, abs=0.01)
    assert caught.value.undetermined
    assert not caught.value.retryable
    assert cluster.data == ({} if "Delete" in rpc.name else {b"a": b"new"})


@each(REPEATABLE)
async def test_a_write_that_was_lost_once_is_undetermined_even_if_later_attempts_were_not_sent(
    cluster: FakeCluster, client: RawClient, rpc: Rpc[Any, Any], call: Call
) -> None:
    await client.get(b"a")

    async def lose_and_stop(_request: Any, serve: Callable[[], Any]) -> Any:
        await serve()
        stop(cluster)
        return await anyio.sleep_forever()

    cluster.store(1).script(rpc, lose_and_stop)

    with pytest.raises(UndeterminedError):
        await call(client, 5.0)


@each(SWAP)
@pytest.mark.parametrize("hang", [False, True])
async def test_a_swap_whose_answer_is_lost_is_made_once_and_undetermined(
    cluster: FakeCluster, client: RawClient, rpc: Rpc[Any, Any], call: Call, hang: bool
) -> None:
    cluster.store(1).drop_reply_next(rpc, hang=hang)

    with pytest.raises(UndeterminedError, match="compare_and_swap is unknown") as caught:
        await call(client, 5.0)

    assert isinstance(caught.value.__cause__, RpcError | DeadlineExceeded)
    (request,) = cluster.requests(rpc)
    assert cluster.data == ({} if request.delete else {b"a": b"new"})


async def test_a_swap_that_could_not_be_sent_is_tried_again(cluster: FakeCluster, client: RawClient) -> None:
    await client.get(b"a")
    cluster.store(1).stop()
    cluster.move_leader(b"a", 2)

    result = await client.compare_and_swap(b"a", b"old", b"new")

    assert result == CasResult(swapped=True, previous=b"old")


@pytest.mark.parametrize(
    "write",
    [
        lambda client: client.batch_put({b"a": b"new", b"q": b"new"}, timeout=3.0),
        lambda client: client.batch_delete([b"a", b"q"], timeout=3.0),
        lambda client: client.delete_range(b"a", b"z", timeout=3.0),
    ],
    ids=["batch_put", "batch_delete", "delete_range"],
)
async def test_a_write_of_which_only_a_part_was_made_is_undetermined(
    cluster: FakeCluster, client: RawClient, write: Callable[[RawClient], Coroutine[Any, Any, None]]
) -> None:
    await client.batch_get([b"a", b"q"])
    cluster.move_leader(b"q", 2)
    await client.batch_get([b"a", b"q"])
    cluster.store(2).stop()

    with pytest.raises(UndeterminedError) as caught:
        await write(client)

    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    assert cluster.data != {b"a": b"old"}


async def test_a_batch_of_which_a_part_is_too_large_says_so(cluster: FakeCluster, client: RawClient) -> None:
    error = errorpb.Error(raft_entry_too_large=errorpb.RaftEntryTooLarge(entry_size=99))
    cluster.store(1).answer_next(Tikv.RawBatchPut, region_error=error)

    with pytest.raises(EntryTooLarge, match="refused an entry of 99 bytes; write less at once"):
        await client.batch_put({b"a": b"new", b"h": b"new", b"q": b"new"})


@each(READS | WRITES)
async def test_what_a_store_refuses_is_raised_in_its_own_words(
    cluster: FakeCluster, client: RawClient, rpc: Rpc[Any, Any], call: Call
) -> None:
    if "error" in rpc.response.DESCRIPTOR.fields_by_name:
        response = rpc.response(error="not today")
    else:
        error = kvrpcpb.KvPair(error=kvrpcpb.KeyError(abort="not today"))
        response = rpc.response(**{"kvs" if rpc is Tikv.RawScan else "pairs": [error]})
    cluster.store(1).answer_next(rpc, response)

    with pytest.raises(RawError, match="not today") as caught:
        await call(client, 5.0)

    assert not caught.value.retryable
    assert not caught.value.undetermined
    assert cluster.data == {b"a": b"old"}


@each(READS | WRITES)
@pytest.mark.parametrize("code", ["UNIMPLEMENTED", "UNAUTHENTICATED"])
async def test_a_status_that_no_retry_cures_is_raised_at_once(
    cluster: FakeCluster, client: RawClient, rpc: Rpc[Any, Any], call: Call, code: str
) -> None:
    for store in cluster.stores.values():
        store.fail_next(rpc, code, times=math.inf)
    started = anyio.current_time()

    with pytest.raises((RpcError, UndeterminedError)):
        await call(client, 5.0)

    assert anyio.current_time() == pytest.approx(started, abs=0.01)


async def test_a_budget_of_waiting_ends_a_call_before_its_time(cluster: FakeCluster) -> None:
    config = RawConfig(rpc=RpcConfig(backoff_budget=1.0))
    stop(cluster)
    async with RawClient(cluster.url, config=config, transport=cluster.transport) as client:
        started = anyio.current_time()

        with pytest.raises(BackoffExceeded) as caught:
            await client.get(b"a", timeout=100.0)

        assert caught.value.retryable
        assert anyio.current_time() < started + 10.0


async def test_no_limit_in_time_waits_for_ever(cluster: FakeCluster, client: RawClient) -> None:
    stop(cluster)

    async def come_back() -> None:
        await anyio.sleep(10_000)
        for store in cluster.stores.values():
            store.start()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(come_back)

        assert await client.get(b"a", timeout=math.inf) == b"old"


@each(READS | WRITES)
async def test_closing_the_client_ends_what_is_under_way(cluster: FakeCluster, rpc: Rpc[Any, Any], call: Call) -> None:
    for store in cluster.stores.values():
        store.hang_next(rpc, times=math.inf)
    outcomes: list[BaseException] = []

    async def observe(client: RawClient) -> None:
        try:
            await call(client, 100.0)
        except TikvError as error:
            outcomes.append(error)

    async with anyio.create_task_group() as tasks:
        async with RawClient(cluster.url, api_version="v1ttl", transport=cluster.transport) as client:
            tasks.start_soon(observe, client)
            await anyio.sleep(1.0)
        closed = anyio.current_time()

    (outcome,) = outcomes
    assert isinstance(outcome, ClosedError if (rpc, call) in READS.values() else UndeterminedError)
    assert anyio.current_time() == closed
