"""Beginning, timeouts and ends of transactions, and running them again, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from tikv_proto import kvrpcpb
from tikv_proto.services import PD, Tikv
from tikv_rpc.testing import FakeCluster
from tikv_txn import (
    ConfigError,
    DeadlineExceeded,
    KeyLocked,
    RequestOptions,
    SnapshotTooOld,
    Timestamp,
    Transaction,
    TransactionClient,
    TransactionEnded,
    TransactionOptions,
    TransactionState,
    TxnConfig,
    UndeterminedError,
    WriteConflict,
)
from tikv_txn.testing import FakeMvcc

TWO_PC = TransactionOptions(one_pc=False, async_commit=False)


@pytest.fixture
async def client(cluster: FakeCluster, mvcc: FakeMvcc) -> AsyncIterator[TransactionClient]:  # noqa: ARG001  # serves it
    async with TransactionClient(cluster.url, transport=cluster.transport) as opened:
        yield opened


class Stopwatch:
    """Virtual seconds since it was made."""

    def __init__(self) -> None:
        self._began = anyio.current_time()

    @property
    def seconds(self) -> float:
        return round(anyio.current_time() - self._began, 3)


async def test_a_transaction_that_could_not_begin_may_begin_again(
    cluster: FakeCluster, client: TransactionClient
) -> None:
    watch = Stopwatch()
    txn = client.begin(timeout=2)
    cluster.pd.hang(PD.Tso)

    with pytest.raises(DeadlineExceeded, match="begin did not finish within 2 s"):
        await txn
    assert watch.seconds == 2
    assert txn.state is TransactionState.NEW
    cluster.pd.heal()
    async with txn:
        assert txn.start_ts.ts > 0


async def test_two_tasks_do_not_begin_one_transaction(cluster: FakeCluster, client: TransactionClient) -> None:
    txn = client.begin()
    cluster.pd.hang(PD.Tso)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(txn.__aenter__)
        await wait_all_tasks_blocked()

        with pytest.raises(ConfigError, match="begun already"):
            await txn
        cluster.pd.heal()

    await txn.rollback()


async def test_a_begin_that_is_cancelled_leaves_a_transaction_that_may_begin(
    cluster: FakeCluster, client: TransactionClient
) -> None:
    txn = client.begin()
    cluster.pd.hang(PD.Tso)
    with anyio.move_on_after(1):
        await txn
    cluster.pd.heal()

    async with txn:
        assert txn.state is TransactionState.ACTIVE


@pytest.mark.parametrize(
    ("config", "options", "begin", "call", "expected"),
    [
        (3.0, None, None, None, 3),
        (3.0, 4.0, None, None, 4),
        (3.0, 4.0, 5.0, None, 5),
        (3.0, 4.0, 5.0, 6.0, 6),
    ],
)
async def test_of_timeouts_the_nearest_counts(
    cluster: FakeCluster,
    mvcc: FakeMvcc,
    config: float,
    options: float | None,
    begin: float | None,
    call: float | None,
    expected: float,
) -> None:
    transaction = TransactionOptions(timeout=options)
    async with (
        TransactionClient(
            cluster.url, config=TxnConfig(timeout=config, transaction=transaction), transport=cluster.transport
        ) as client,
        client.begin(timeout=begin) as txn,
    ):
        cluster.store(1).hang_next(Tikv.KvGet, times=10)
        watch = Stopwatch()

        with pytest.raises(DeadlineExceeded, match=f"get did not finish within {expected} s"):
            await txn.get(b"a", timeout=call)

        assert watch.seconds == expected
        assert mvcc.locks == {}


async def test_a_page_of_a_scan_that_did_not_come_is_asked_for_again(
    cluster: FakeCluster, client: TransactionClient
) -> None:
    async def serve(request: kvrpcpb.ScanRequest) -> kvrpcpb.ScanResponse:
        start = max(int(request.start_key or b"0"), 0)
        keys = [b"%d" % number for number in range(start, 6)][: request.limit]
        return kvrpcpb.ScanResponse(pairs=[kvrpcpb.KvPair(key=key, value=b"old") for key in keys])

    cluster.handlers[Tikv.KvScan] = serve
    cluster.store(1).hang_next(Tikv.KvScan)
    async with client.begin() as txn:
        txn.put(b"3", b"new")
        scan = txn.scan(b"0", b"9", timeout=2)
        with pytest.raises(DeadlineExceeded):
            await anext(scan)

        assert [pair[1] async for pair in scan] == [b"old", b"old", b"old", b"new", b"old", b"old"]
        await txn.rollback()


async def test_own_writes_cost_no_read(cluster: FakeCluster, client: TransactionClient) -> None:
    async with client.begin() as txn:
        txn.put(b"a", b"1")
        txn.delete(b"h")

        assert await txn.batch_get([b"a", b"h"]) == {b"a": b"1"}
        assert await txn.get(b"h") is None

    assert cluster.requests(Tikv.KvGet) == cluster.requests(Tikv.KvBatchGet) == []


async def test_a_locked_key_is_read_for_what_was_there(
    cluster: FakeCluster, mvcc: FakeMvcc, client: TransactionClient
) -> None:
    mvcc.write(b"a", b"1", 10)

    async with client.begin() as txn:
        txn.lock_keys(b"a")
        assert await txn.get(b"a") == b"1"
        assert await txn.batch_get([b"a"]) == {b"a": b"1"}

    (prewrite,) = cluster.requests(Tikv.KvPrewrite)
    assert [(mutation.op, mutation.key) for mutation in prewrite.mutations] == [(kvrpcpb.Op.Lock, b"a")]


async def test_a_commit_of_unknown_outcome_leaves_the_transaction_so(
    cluster: FakeCluster, client: TransactionClient
) -> None:
    txn = await client.begin(TWO_PC)
    txn.put(b"a", b"1")
    cluster.store(1).drop_reply_next(Tikv.KvCommit, hang=True, times=10)

    with pytest.raises(UndeterminedError):
        await txn.commit(timeout=5)

    assert txn.state is TransactionState.UNDETERMINED
    assert txn.commit_ts is None
    with pytest.raises(TransactionEnded, match="of unknown outcome"):
        await txn.rollback()


async def test_a_commit_that_was_cancelled_leaves_the_transaction_of_unknown_outcome(
    cluster: FakeCluster, client: TransactionClient
) -> None:
    txn = await client.begin()
    txn.put(b"a", b"1")
    cluster.store(1).hang_next(Tikv.KvPrewrite)
    with anyio.move_on_after(1):
        await txn.commit()

    assert txn.state is TransactionState.UNDETERMINED


async def test_running_again_waits_a_little_longer_each_time(client: TransactionClient) -> None:
    moments: list[float] = []

    async def fail(_txn: Transaction) -> None:
        moments.append(anyio.current_time())
        raise WriteConflict(b"k", b"", 1, 2, 3, "Optimistic")

    watch = Stopwatch()
    with pytest.raises(DeadlineExceeded, match="run did not finish within 20 s") as caught:
        await client.run(fail, timeout=20)

    waits = [after - before for before, after in pairwise(moments)]
    assert watch.seconds == 20
    assert isinstance(caught.value.__cause__, WriteConflict)
    assert all(0.005 * 2**n <= wait <= 0.01 * 2**n for n, wait in enumerate(waits[:7]))
    assert all(0.5 <= wait <= 1 for wait in waits[8:-1])


async def test_no_call_goes_on_when_the_time_to_run_is_over(cluster: FakeCluster, client: TransactionClient) -> None:
    cluster.store(1).hang_next(Tikv.KvGet, times=100)
    watch = Stopwatch()

    async def read(txn: Transaction) -> None:
        await txn.get(b"a", timeout=1000)

    with pytest.raises(DeadlineExceeded):
        await client.run(read, timeout=3)

    assert watch.seconds == 3


async def test_a_function_that_takes_all_the_time_is_not_committed(mvcc: FakeMvcc, client: TransactionClient) -> None:
    begun: list[Transaction] = []

    async def dawdle(txn: Transaction) -> None:
        begun.append(txn)
        txn.put(b"a", b"1")
        await anyio.sleep(5)

    with pytest.raises(DeadlineExceeded):
        await client.run(dawdle, timeout=3)

    assert [txn.state for txn in begun] == [TransactionState.ROLLED_BACK]
    assert mvcc.at(b"a") is None


async def test_each_run_sees_what_was_committed_meanwhile(mvcc: FakeMvcc, client: TransactionClient) -> None:
    starts: list[Timestamp] = []

    async def increment(txn: Transaction) -> int:
        starts.append(txn.start_ts)
        number = int(await txn.get(b"a") or 0) + 1
        if len(starts) < 3:
            other = await client.begin()
            other.put(b"a", b"%d" % number)
            await other.commit()
        txn.put(b"a", b"%d" % number)
        return number

    assert await client.run(increment) == 3
    assert mvcc.at(b"a") == b"3"
    assert starts == sorted(set(starts))


async def test_errors_of_a_task_group_within_a_function_count_as_its_own(client: TransactionClient) -> None:
    attempts: list[int] = []

    async def fail_at_first() -> None:
        if len(attempts) == 1:
            raise SnapshotTooOld(1, 2)

    async def work(_txn: Transaction) -> int:
        attempts.append(1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail_at_first)
        return len(attempts)

    assert await client.run(work) == 2


async def test_a_function_that_failed_after_its_own_commit_does_not_run_again(client: TransactionClient) -> None:
    calls: list[TransactionState] = []

    async def commit_and_fail(txn: Transaction) -> None:
        txn.put(b"a", b"1")
        await txn.commit()
        calls.append(txn.state)
        raise KeyLocked(b"b", b"", 1, 3.0)

    with pytest.raises(KeyLocked):
        await client.run(commit_and_fail)

    assert calls == [TransactionState.COMMITTED]


async def test_a_run_that_is_cancelled_commits_nothing(mvcc: FakeMvcc, client: TransactionClient) -> None:
    async def wait(txn: Transaction) -> None:
        txn.put(b"a", b"1")
        await anyio.sleep_forever()

    with anyio.move_on_after(1):
        await client.run(wait)

    assert mvcc.versions == {}


async def test_a_snapshot_takes_the_options_it_is_given(cluster: FakeCluster, client: TransactionClient) -> None:
    await client.snapshot(requests=RequestOptions(request_source="report")).get(b"a")
    await client.snapshot(staleness=5, requests=RequestOptions()).get(b"a")

    first, second, *_ = cluster.requests(Tikv.KvGet)
    assert first.context.request_source.endswith("report")
    assert second.context.stale_read
    assert second.version < first.version
    with pytest.raises(ConfigError, match="not both"):
        client.snapshot(1, staleness=5)
    with pytest.raises(ConfigError, match="staleness"):
        client.snapshot(staleness=0)
    with pytest.raises(TypeError, match="requests must be RequestOptions"):
        client.snapshot(requests=TransactionOptions())  # type: ignore[arg-type]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_native_cancellation_is_one_too(cluster: FakeCluster, client: TransactionClient) -> None:
    cluster.store(1).hang_next(Tikv.KvPrewrite)
    begun: list[Transaction] = []

    async def work() -> None:
        async with client.begin() as txn:
            begun.append(txn)
            txn.put(b"a", b"1")

    task = asyncio.create_task(work())
    await wait_all_tasks_blocked()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert begun[0].state is TransactionState.UNDETERMINED
    async with client.begin() as txn:
        txn.put(b"b", b"2")


@pytest.mark.parametrize(
    ("pair", "shape"), [(b"secret", "not bytes"), ((b"secret",), "not 1 items"), (["secret", 1, 2], "not 3 items")]
)
async def test_what_is_no_pair_is_refused_without_telling_what_it_holds(
    client: TransactionClient, pair: Any, shape: str
) -> None:
    async with client.begin() as txn:
        with pytest.raises(TypeError, match=shape) as caught:
            txn.put_many([pair])

    assert "secret" not in str(caught.value)
