"""What users do with transactions, on the embedded cluster over real gRPC."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_pd.grpc_transport import GrpcTransport
from tikv_pd.observer import ObservedTransport
from tikv_proto import kvrpcpb
from tikv_region import KeyCodec, KeyspaceCodec, TxnV1Codec
from tikv_txn import (
    AlreadyExists,
    AssertionFailed,
    AssertionLevel,
    ClosedError,
    ConfigError,
    DeadlineExceeded,
    FutureTimestamp,
    KeyTooLarge,
    Timestamp,
    Transaction,
    TransactionClient,
    TransactionEnded,
    TransactionOptions,
    TransactionState,
    TxnConfig,
    UndeterminedError,
    WriteConflict,
    transactional,
)

TWO_PC = TransactionOptions(async_commit=False, one_pc=False)
ASYNC_COMMIT = TransactionOptions(async_commit=True, one_pc=False)
ONE_PC = TransactionOptions(async_commit=False, one_pc=True)
FASTEST = TransactionOptions()
MODES = [
    pytest.param(TWO_PC, id="2pc"),
    pytest.param(ASYNC_COMMIT, id="async-commit"),
    pytest.param(ONE_PC, id="1pc"),
    pytest.param(FASTEST, id="fastest"),
]
every_mode = pytest.mark.parametrize("options", MODES)


def split(cluster: EmbeddedCluster, *keys: bytes, codec: KeyCodec | None = None) -> None:
    codec = codec if codec is not None else TxnV1Codec()
    cluster.split(*[codec.encode_region_key(key) for key in keys])


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    """Three stores; Regions split at b"g" and b"p"."""
    async with EmbeddedCluster(stores=3) as running:
        split(running, b"g", b"p")
        yield running


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[TransactionClient]:
    async with TransactionClient(cluster.url, config=TxnConfig(scan_page=3, lock_ttl=0.3)) as opened:
        yield opened


async def stored(client: TransactionClient) -> dict[bytes, bytes]:
    """Everything there is now."""
    async with client.begin() as txn:
        return dict([pair async for pair in txn.scan()])


async def attempt(
    client: TransactionClient, options: TransactionOptions, *steps: Callable[[Transaction], None]
) -> Transaction:
    """Take steps in a transaction."""
    async with client.begin(options) as txn:
        for step in steps:
            step(txn)
    return txn


def fail(_txn: Transaction) -> None:
    raise LookupError


async def test_a_transaction_reads_what_it_wrote_before_others_do(client: TransactionClient) -> None:
    async with client.begin() as txn:
        txn.put(b"a", b"1")
        txn.put(b"k", b"2")
        txn.delete(b"z")

        assert await txn.get(b"a") == b"1"
        assert await txn.batch_get([b"a", b"k", b"z", b"none"]) == {b"a": b"1", b"k": b"2"}
        assert not await txn.exists(b"z")
        assert await stored(client) == {}

    assert await stored(client) == {b"a": b"1", b"k": b"2"}


@every_mode
async def test_what_is_committed_is_read_from_its_commit_timestamp_on(
    client: TransactionClient, options: TransactionOptions
) -> None:
    before = await client.get_ts()
    txn = await client.begin(options)
    txn.put_many({b"a": b"1", b"b": b"2"})
    txn.put(b"empty", b"")

    commit_ts = await txn.commit()

    assert before < txn.start_ts < commit_ts == txn.commit_ts
    assert txn.state is TransactionState.COMMITTED
    at_commit, just_before = client.snapshot(commit_ts), client.snapshot(Timestamp.from_ts(commit_ts.ts - 1))
    assert await at_commit.batch_get([b"a", b"b", b"empty"]) == {b"a": b"1", b"b": b"2", b"empty": b""}
    assert await just_before.batch_get([b"a", b"b", b"empty"]) == {}
    assert commit_ts < await client.get_ts()


@every_mode
async def test_writes_over_many_regions_happen_all_at_once(
    client: TransactionClient, options: TransactionOptions
) -> None:
    pairs = {b"%c%02d" % (letter, number): b"x" * 1000 for letter in b"agp" for number in range(50)}

    async with client.begin(options) as txn:
        txn.put_many(pairs)

    assert await stored(client) == pairs


@every_mode
async def test_the_first_of_two_writers_wins(client: TransactionClient, options: TransactionOptions) -> None:
    first, second = await client.begin(options), await client.begin(options)
    first.put(b"a", b"first")
    second.put(b"a", b"second")
    second.put(b"z", b"second")
    await first.commit()

    with pytest.raises(WriteConflict) as caught:
        await second.commit()

    assert caught.value.key == b"a"
    assert caught.value.start_ts == second.start_ts.ts
    assert caught.value.retryable
    assert second.state is TransactionState.ROLLED_BACK
    assert await stored(client) == {b"a": b"first"}


async def test_reads_repeat_whatever_others_commit(client: TransactionClient) -> None:
    async with client.begin() as txn:
        txn.put(b"k", b"old")
    reader = await client.begin()
    assert await reader.get(b"k") == b"old"
    async with client.begin() as txn:
        txn.put(b"k", b"new")
        txn.put(b"l", b"new")

    assert await reader.get(b"k") == b"old"
    assert [pair async for pair in reader.scan()] == [(b"k", b"old")]
    await reader.rollback()


async def test_what_was_only_read_may_be_written_by_others_unless_it_is_locked(client: TransactionClient) -> None:
    async def write_after_reading(key: bytes, *, locking: bool) -> None:
        async with client.begin() as txn:
            await txn.get(b"read")
            if locking:
                txn.lock_keys(b"read")
            txn.put(key, b"1")
            async with client.begin() as other:
                other.put(b"read", key)

    await write_after_reading(b"a", locking=False)
    with pytest.raises(WriteConflict) as caught:
        await write_after_reading(b"b", locking=True)

    assert caught.value.key == b"read"
    assert await stored(client) == {b"a": b"1", b"read": b"b"}


@every_mode
async def test_an_insert_of_an_existing_key_fails_and_nothing_else_is_written(
    client: TransactionClient, options: TransactionOptions
) -> None:
    async with client.begin(options) as txn:
        txn.insert(b"k", b"1")

    with pytest.raises(AlreadyExists) as caught:
        await attempt(client, options, lambda txn: txn.put(b"a", b"2"), lambda txn: txn.insert(b"k", b"2"))

    assert caught.value.key == b"k"
    assert not caught.value.retryable
    assert await stored(client) == {b"k": b"1"}


@every_mode
async def test_an_inserted_key_that_is_deleted_again_must_still_be_missing(
    client: TransactionClient, options: TransactionOptions
) -> None:
    async with client.begin(options) as txn:
        txn.put(b"k", b"1")

    with pytest.raises(AlreadyExists):
        await attempt(client, options, lambda txn: txn.insert(b"k", b"2"), lambda txn: txn.delete(b"k"))
    await attempt(client, options, lambda txn: txn.insert(b"l", b"2"), lambda txn: txn.delete(b"l"))

    assert await stored(client) == {b"k": b"1"}


@every_mode
async def test_what_is_asserted_of_keys_is_checked_when_they_are_committed(
    client: TransactionClient, options: TransactionOptions
) -> None:
    async with client.begin(options) as txn:
        txn.put(b"there", b"1")
        txn.assert_not_exists(b"there")
        txn.assert_not_exists(b"nowhere")
    async with client.begin(options) as txn:
        txn.put(b"there", b"2")
        txn.assert_exists(b"there")

    with pytest.raises(AssertionFailed) as caught:
        await attempt(client, options, lambda txn: txn.put(b"a", b"3"), lambda txn: txn.assert_exists(b"nowhere"))

    assert (caught.value.key, caught.value.should_exist) == (b"nowhere", True)
    with pytest.raises(AssertionFailed):
        await attempt(client, options, lambda txn: txn.delete(b"there"), lambda txn: txn.assert_not_exists(b"there"))
    assert await stored(client) == {b"there": b"2"}


async def test_assertions_may_be_turned_off(client: TransactionClient) -> None:
    async with client.begin(TransactionOptions(assertion_level=AssertionLevel.OFF)) as txn:
        txn.put(b"k", b"1")
        txn.assert_exists(b"k")

    assert await stored(client) == {b"k": b"1"}


async def test_a_savepoint_takes_back_what_a_block_wrote_before_it_raised(client: TransactionClient) -> None:
    async with client.begin() as txn:
        txn.put(b"a", b"1")
        with contextlib.suppress(LookupError), txn.savepoint():
            txn.put(b"a", b"2")
            txn.insert(b"b", b"2")
            raise LookupError
        async with txn.savepoint():
            txn.put(b"c", b"3")
        savepoint = txn.savepoint()
        txn.delete(b"a")
        savepoint.rollback()

        assert await txn.get(b"a") == b"1"
        assert not await txn.exists(b"b")

    assert await stored(client) == {b"a": b"1", b"c": b"3"}


async def test_a_savepoint_ends_once(client: TransactionClient) -> None:
    async with client.begin() as txn:
        outer, inner = txn.savepoint(), txn.savepoint()
        outer.release()

        with pytest.raises(ConfigError, match="has ended"):
            inner.rollback()


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_scan_merges_own_writes_with_the_snapshot(client: TransactionClient, *, reverse: bool) -> None:
    async with client.begin() as txn:
        txn.put_many((b"%c%d" % (letter, number), b"old") for letter in b"agz" for number in range(5))

    async with client.begin() as txn:
        for key in [b"a0", b"a1", b"a2", b"a3", b"g4", b"z0"]:
            txn.delete(key)
        txn.put(b"g0", b"new")
        txn.put(b"h", b"new")
        expected = {b"a4": b"old", b"g0": b"new", b"g1": b"old", b"g2": b"old", b"g3": b"old", b"h": b"new"}
        expected |= {b"z1": b"old", b"z2": b"old", b"z3": b"old", b"z4": b"old"}
        pairs = sorted(expected.items(), reverse=reverse)

        assert [pair async for pair in txn.scan(reverse=reverse)] == pairs
        for limit in range(12):
            assert [pair async for pair in txn.scan(limit=limit, reverse=reverse)] == pairs[:limit]
        assert [pair async for pair in txn.scan(prefix=b"g", reverse=reverse)] == [
            pair for pair in pairs if pair[0].startswith(b"g")
        ]
        assert [pair async for pair in txn.scan(b"g1", b"z2", reverse=reverse, key_only=True)] == [
            (key, b"") for key, _ in pairs if b"g1" <= key < b"z2"
        ]


async def test_the_body_of_a_scan_may_write(client: TransactionClient) -> None:
    async with client.begin() as txn:
        txn.put_many((b"%02d" % number, b"old") for number in range(20))

    seen = []
    async with client.begin() as txn:
        async for key, _ in txn.scan(limit=8):
            seen.append(key)
            txn.put(key, b"seen")
            txn.delete(b"%02d" % (int(key) + 1))

    assert seen == [b"%02d" % number for number in range(0, 16, 2)]
    assert len(await stored(client)) == 12


async def test_a_scan_that_is_left_early_leaves_nothing_behind(client: TransactionClient) -> None:
    async with client.begin() as txn:
        txn.put_many((b"%02d" % number, b"") for number in range(20))

    async with client.begin() as txn, txn.scan() as scan:
        async for _ in scan:
            break
    left = [pair async for pair in scan]

    assert left == []


async def test_a_block_that_raises_rolls_back(client: TransactionClient) -> None:
    begun: list[Transaction] = []

    with pytest.raises(LookupError):
        await attempt(client, FASTEST, begun.append, lambda txn: txn.put(b"k", b"1"), fail)

    assert begun[0].state is TransactionState.ROLLED_BACK
    assert await stored(client) == {}


async def test_a_block_that_is_cancelled_rolls_back(client: TransactionClient) -> None:
    with anyio.CancelScope() as scope:
        async with client.begin() as txn:
            txn.put(b"k", b"1")
            scope.cancel()
            await anyio.sleep_forever()

    assert txn.state is TransactionState.ROLLED_BACK
    assert await stored(client) == {}


@every_mode
async def test_a_commit_that_is_cancelled_has_happened_as_a_whole_or_not_at_all(
    cluster: EmbeddedCluster, client: TransactionClient, options: TransactionOptions
) -> None:
    pairs = {b"a": b"1", b"h": b"1", b"z": b"1"}
    for after in range(4):
        with cluster.faults.on("KvPrewrite", "KvCommit", after=after, times=1).hold_answer() as fault:
            async with anyio.create_task_group() as tasks:

                async def commit() -> None:
                    async with client.begin(options) as txn:
                        txn.put_many(pairs)

                tasks.start_soon(commit)
                with anyio.move_on_after(0.2):
                    await fault.struck()
                tasks.cancel_scope.cancel()

        assert await stored(client) in ({}, pairs)
        async with client.begin() as txn:
            for key in pairs:
                txn.delete(key)


async def test_what_a_commit_leaves_to_the_background_is_not_cancelled_with_its_caller(
    cluster: EmbeddedCluster, client: TransactionClient
) -> None:
    with cluster.faults.on("KvCommit", after=1).hold() as fault:
        with anyio.CancelScope() as scope:
            txn = await attempt(client, TWO_PC, lambda txn: txn.put_many({b"a": b"1", b"h": b"1", b"z": b"1"}))
            scope.cancel()
            await fault.struck(2)

        await fault.struck(2)

    with cluster.faults.record() as recording:
        assert len(await stored(client)) == 3
    assert txn.state is TransactionState.COMMITTED
    assert recording.of("KvCheckTxnStatus", "KvResolveLock") == []


async def test_an_ended_transaction_cannot_be_used(client: TransactionClient) -> None:
    async with client.begin() as txn:
        scan = txn.scan()
        txn.put(b"k", b"1")
        await txn.commit()
    uses: list[Callable[[], object]] = [
        lambda: txn.put(b"k", b"2"),
        lambda: txn.insert(b"k", b"2"),
        lambda: txn.delete(b"k"),
        lambda: txn.lock_keys(b"k"),
        lambda: txn.put_many({}),
        lambda: txn.assert_exists(b"k"),
        txn.savepoint,
        txn.scan,
    ]

    for use in uses:
        with pytest.raises(TransactionEnded, match="committed"):
            use()
    awaited: list[Callable[[], Awaitable[object]]] = [
        txn.commit,
        txn.rollback,
        lambda: txn.get(b"k"),
        lambda: txn.batch_get([b"k"]),
        scan.__anext__,
    ]
    for wait in awaited:
        with pytest.raises(TransactionEnded):
            await wait()
    assert await txn.snapshot.get(b"k") is None


async def test_a_transaction_must_begin_and_begins_once(client: TransactionClient) -> None:
    txn = client.begin()
    with pytest.raises(ConfigError, match="not begun"):
        txn.put(b"k", b"1")
    with pytest.raises(ConfigError, match="not begun"):
        _ = txn.start_ts

    async with txn:
        with pytest.raises(ConfigError, match="begun already"):
            await txn


async def test_while_it_commits_a_transaction_cannot_be_used(
    cluster: EmbeddedCluster, client: TransactionClient
) -> None:
    txn = await client.begin()
    txn.put(b"k", b"1")
    with cluster.faults.on("KvPrewrite").hold() as fault:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(txn.commit)
            await fault.struck()

            with pytest.raises(TransactionEnded, match="committing"):
                txn.put(b"l", b"1")
            with pytest.raises(TransactionEnded, match="committing"):
                await txn.commit()
            fault.lift()

    assert await stored(client) == {b"k": b"1"}


async def test_the_tasks_of_a_group_may_read_and_write_in_one_transaction(client: TransactionClient) -> None:
    async with client.begin() as txn:
        txn.put_many((b"%02d" % number, b"%d" % number) for number in range(50))

    async with client.begin() as txn:

        async def double(key: bytes) -> None:
            txn.put(key, b"%d" % (2 * int(await txn.get(key) or 0)))

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(double, b"%02d" % number)

    assert await stored(client) == {b"%02d" % number: b"%d" % (2 * number) for number in range(50)}


async def test_a_transaction_that_was_dropped_warns_and_writes_nothing(client: TransactionClient) -> None:
    kept = [await client.begin()]
    kept[0].put(b"k", b"1")

    with pytest.warns(ResourceWarning, match="neither committed nor rolled back"):
        kept.clear()

    assert await stored(client) == {}


@pytest.mark.filterwarnings("error")
async def test_one_that_never_began_or_has_ended_is_dropped_in_silence(client: TransactionClient) -> None:
    client.begin()
    txn = await client.begin()
    await txn.rollback()

    del txn
    gc.collect()


FORGETFUL = """
import asyncio, sys
from tikv_txn import TransactionClient

async def main():
    client = TransactionClient(sys.argv[1])
    await client.open()
    global kept
    kept = await client.begin()
    kept.put(b"k", b"1")
    await client.aclose()

asyncio.run(main())
"""


async def test_a_program_may_end_with_a_transaction_that_was_forgotten(
    cluster: EmbeddedCluster, client: TransactionClient
) -> None:
    ended = await anyio.run_process([sys.executable, "-W", "error", "-c", FORGETFUL, cluster.url])

    assert ended.stderr == b""
    assert await stored(client) == {}


async def test_a_transaction_that_wrote_nothing_commits_where_it_read(client: TransactionClient) -> None:
    txn = await client.begin()

    assert await txn.commit() == txn.start_ts


async def test_a_transaction_may_start_in_the_past_and_not_in_the_future(client: TransactionClient) -> None:
    async with client.begin() as txn:
        txn.put(b"k", b"1")
    assert txn.commit_ts is not None
    async with client.begin() as txn:
        txn.put(b"k", b"2")

    async with client.begin(start_ts=txn.start_ts) as past:
        assert await past.get(b"k") == b"1"
    ahead = Timestamp(txn.start_ts.physical + 3_600_000, 0)
    with pytest.raises(FutureTimestamp):
        await client.begin(start_ts=ahead.ts)


async def test_a_function_runs_until_nobody_is_in_its_way(client: TransactionClient) -> None:
    calls = Counter[str]()

    async def increment(txn: Transaction) -> int:
        calls["increment"] += 1
        value = int(await txn.get(b"counter") or 0) + 1
        txn.put(b"counter", b"%d" % value)
        return value

    results: list[int] = []

    async def work() -> None:
        for _ in range(5):
            results.append(await client.run(increment))  # noqa: PERF401  # all are there also when one fails

    async with anyio.create_task_group() as tasks:
        for _ in range(16):
            tasks.start_soon(work)

    assert await stored(client) == {b"counter": b"80"}
    assert sorted(results) == list(range(1, 81))
    assert calls["increment"] > 80


async def test_what_a_function_raises_rolls_back_and_is_raised(client: TransactionClient) -> None:
    async def fail(txn: Transaction) -> None:
        txn.put(b"k", b"1")
        raise LookupError

    with pytest.raises(LookupError):
        await client.run(fail)

    assert await stored(client) == {}


async def test_a_function_does_not_run_again_after_a_commit_of_unknown_outcome(
    cluster: EmbeddedCluster, client: TransactionClient
) -> None:
    calls = Counter[str]()

    async def write(txn: Transaction) -> None:
        calls["write"] += 1
        txn.put(b"k", b"1")

    with (
        cluster.faults.on("KvPrewrite", "KvCommit").lose_answer(),
        pytest.raises(UndeterminedError) as caught,
    ):
        await client.run(write, timeout=1)

    assert not caught.value.retryable
    assert calls["write"] == 1


async def test_a_function_runs_no_more_when_its_time_is_over(client: TransactionClient) -> None:
    async def clash(txn: Transaction) -> None:
        await txn.get(b"k")
        txn.put(b"k", b"1")
        async with client.begin() as other:
            other.put(b"k", b"other")

    with pytest.raises(DeadlineExceeded) as caught:
        await client.run(clash, timeout=0.3)

    assert isinstance(caught.value.__cause__, WriteConflict)


async def test_a_function_may_end_its_transaction_itself(client: TransactionClient) -> None:
    async def give_up(txn: Transaction) -> str:
        txn.put(b"k", b"1")
        await txn.rollback()
        return "gave up"

    assert await client.run(give_up) == "gave up"
    assert await stored(client) == {}


async def test_decorated_functions_run_in_transactions(client: TransactionClient) -> None:
    @client.transactional
    async def put(txn: Transaction, key: bytes, *, value: bytes) -> int:
        txn.put(key, value)
        return len(value)

    @client.transactional(options=TWO_PC, timeout=10)
    async def get(txn: Transaction, key: bytes) -> bytes | None:
        return await txn.get(key)

    assert await put(b"k", value=b"123") == 3
    assert await get(b"k") == b"123"
    assert put.__name__ == "put"


async def test_functions_of_libraries_run_alone_or_as_a_part_of_a_transaction(client: TransactionClient) -> None:
    @transactional
    async def add(txn: Transaction, key: bytes, amount: int) -> None:
        txn.put(key, b"%d" % (int(await txn.get(key) or 0) + amount))

    @transactional(options=ASYNC_COMMIT)
    async def transfer(txn: Transaction, amount: int) -> None:
        await add(txn, b"from", -amount)
        await add(txn, b"to", amount)

    await add(client, b"from", 10)
    await transfer(client, 3)
    with contextlib.suppress(LookupError):
        async with client.begin() as txn:
            await transfer(txn, 5)
            raise LookupError

    assert await stored(client) == {b"from": b"7", b"to": b"3"}
    with pytest.raises(TypeError, match="TransactionClient or a Transaction"):
        await add(b"k", b"from", 1)  # type: ignore[arg-type]


async def test_arguments_that_can_never_work_are_refused_at_once(client: TransactionClient) -> None:
    async with client.begin() as txn:
        with pytest.raises(TypeError, match=r"key\.encode"):
            txn.put("k", b"1")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"value\.encode"):
            txn.put(b"k", "1")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="pair"):
            txn.put_many([(b"k", b"1"), b"kv"])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="keys"):
            await txn.batch_get(b"k")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="timeout"):
            await txn.get(b"k", timeout=0)
        with pytest.raises(ConfigError, match="limit"):
            txn.scan(limit=-1)
        with pytest.raises(KeyTooLarge):
            txn.put(b"k" * 7280, b"")

        assert txn.size == 0
    with pytest.raises(TypeError, match="options"):
        client.begin(TxnConfig())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="async"):
        await client.run(lambda _txn: None)  # type: ignore[arg-type, return-value]


@every_mode
async def test_the_longest_key_and_the_empty_one_are_stored(
    client: TransactionClient, options: TransactionOptions
) -> None:
    pairs = {b"": b"first", b"k" * 7279: b"last"}

    async with client.begin(options) as txn:
        txn.put_many(pairs)

    assert await stored(client) == pairs


async def test_a_client_that_is_not_open_says_so(cluster: EmbeddedCluster) -> None:
    client = TransactionClient(cluster.url)
    with pytest.raises(ClosedError, match="TransactionClient"):
        client.begin()
    async with client:
        txn = await client.begin()
        txn.put(b"k", b"1")

    with pytest.raises(ClosedError, match="TransactionClient"):
        await txn.commit()
    await txn.rollback()
    async with client:
        assert await stored(client) == {}


async def test_two_clients_work_at_once(cluster: EmbeddedCluster, client: TransactionClient) -> None:
    async def increment(txn: Transaction) -> None:
        txn.put(b"counter", b"%d" % (int(await txn.get(b"counter") or 0) + 1))

    async with TransactionClient(cluster.url) as other, anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon((client, other)[number % 2].run, increment)

    assert await stored(client) == {b"counter": b"20"}


async def test_keyspaces_see_nothing_of_each_other() -> None:
    async with (
        EmbeddedCluster(api_version="v2", keyspaces=["one", "two"]) as cluster,
        TransactionClient(cluster.url, keyspace="one") as one,
        TransactionClient(f"{cluster.url}?keyspaceName=two") as two,
        TransactionClient(cluster.url, api_version="v2") as default,
    ):
        split(cluster, b"g", codec=KeyspaceCodec(b"x", 1, "one"))
        for number, client in enumerate([one, two, default]):
            async with client.begin() as txn:
                txn.put_many({b"a": b"%d" % number, b"z": b"%d" % number})

        for number, client in enumerate([one, two, default]):
            assert await stored(client) == {b"a": b"%d" % number, b"z": b"%d" % number}
            async with client.begin() as txn:
                backwards = [key async for key, _ in txn.scan(reverse=True)]
            assert backwards == [b"z", b"a"]


def started(request: kvrpcpb.GetRequest | kvrpcpb.PrewriteRequest | kvrpcpb.CommitRequest) -> int:
    return request.version if isinstance(request, kvrpcpb.GetRequest) else request.start_version


class Tso:
    """Counts the timestamps that are asked of PD."""

    def __init__(self) -> None:
        self.count = 0

    def observe(self, rpc: str, address: str, seconds: float, outcome: str) -> None:  # noqa: ARG002  # its interface
        self.count += rpc == "Tso"


async def test_transactions_keep_to_their_budget_of_rpcs(cluster: EmbeddedCluster) -> None:
    tso = Tso()
    async with TransactionClient(cluster.url, transport=ObservedTransport(GrpcTransport(), tso)) as client:
        await stored(client)

        async def cost(options: TransactionOptions, reads: list[bytes], writes: list[bytes]) -> tuple[int, list[str]]:
            """Count what the caller waits for: a commit may go on in the background."""
            before = tso.count
            with cluster.faults.record() as recording:
                async with client.begin(options) as txn:
                    for key in reads:
                        await txn.get(key)
                    for key in writes:
                        txn.put(key, b"1")
                calls = recording.of("KvGet", "KvPrewrite", "KvCommit")
            own = [call.rpc for call in calls if started(call.request) == txn.start_ts.ts]
            return tso.count - before, sorted(own)

        assert await cost(FASTEST, [b"a", b"b"], []) == (1, ["KvGet", "KvGet"])
        assert await cost(ONE_PC, [b"a"], [b"a"]) == (2, ["KvGet", "KvPrewrite"])
        assert await cost(FASTEST, [b"a"], [b"a"]) == (2, ["KvGet", "KvPrewrite"])
        relaxed = TransactionOptions(causal_consistency=True)
        assert await cost(relaxed, [b"a"], [b"a"]) == (1, ["KvGet", "KvPrewrite"])
        with cluster.faults.on("KvCommit").hold():
            assert await cost(ASYNC_COMMIT, [], [b"a", b"b", b"c"]) == (2, ["KvPrewrite"])
        assert await cost(TWO_PC, [], [b"d", b"e", b"f"]) == (2, ["KvCommit", "KvPrewrite"])
