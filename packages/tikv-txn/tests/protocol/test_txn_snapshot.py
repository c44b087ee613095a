"""Snapshots: what they read, how they get past locks, and when they refuse."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from tikv_pd import LATEST, ClosedError, ConfigError, DeadlineExceeded, FutureTimestamp, TikvError, Timestamp
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import PD, Tikv
from tikv_rpc import Isolation, Priority, ReplicaRead, RequestOptions
from tikv_rpc.testing import FakeCluster
from tikv_txn._locks.resolver import LockResolver
from tikv_txn._store import TxnStore
from tikv_txn.errors import KeyLocked, SnapshotTooOld, TransactionRefused, WriteConflict
from tikv_txn.snapshot import Reads, Snapshot, Start, fresh, granted, stale
from tikv_txn.testing import FakeMvcc
from tikv_txn.versioned import Versioned

NOW_MS = 1_000_000
NOW = Timestamp(NOW_MS, 0).ts
READ = NOW
OLD = Timestamp(NOW_MS - 10_000, 0).ts
"""Start of a transaction whose locks have expired."""
LONG_AGO = OLD - 100
RECENT = Timestamp(NOW_MS - 100, 0).ts
"""Start of one whose locks have not."""

KEYS = [b"a", b"b", b"c", b"h", b"x", b"y"]


@pytest.fixture
def reads(store: TxnStore) -> Reads:
    return Reads(store, LockResolver(store))


@pytest.fixture
def begin(reads: Reads, mvcc: FakeMvcc) -> Callable[..., Snapshot]:
    """Returns a snapshot; there is a value under each of `KEYS`, and another one behind `READ`."""
    for key in KEYS:
        mvcc.write(key, b"old " + key, LONG_AGO, LONG_AGO - 1)
        mvcc.write(key, b"new " + key, READ + 100, READ + 99)

    def begin(start: int | Start = READ, timeout: float = 10.0, **options: Any) -> Snapshot:
        return Snapshot(reads, start, RequestOptions(**options), timeout)

    return begin


@pytest.fixture
def snapshot(begin: Callable[..., Snapshot]) -> Snapshot:
    """At `READ`."""
    return begin()


def lists(request: Any) -> tuple[list[int], list[int]]:
    """The transactions whose locks a request may pass by, and those whose it may read through."""
    return list(request.context.resolved_locks), list(request.context.committed_locks)


async def outcome(read: Awaitable[Any]) -> Any:
    try:
        return await read
    except TikvError as error:
        return type(error)


# --- values -----------------------------------------------------------------------------------------------------------


async def test_a_snapshot_sees_what_was_committed_by_then(snapshot: Snapshot, mvcc: FakeMvcc) -> None:
    mvcc.write(b"gone", b"1", READ - 5)
    mvcc.write(b"gone", None, READ - 4)
    mvcc.write(b"empty", b"", READ)

    assert await snapshot.get(b"a") == b"old a"
    assert await snapshot.get(bytearray(b"b")) == b"old b"
    assert await snapshot.get(b"gone") is None
    assert await snapshot.get(b"empty") == b""
    assert [await snapshot.exists(key) for key in (b"a", b"empty", b"gone", b"")] == [True, True, False, False]


async def test_many_keys(cluster: FakeCluster, snapshot: Snapshot, mvcc: FakeMvcc) -> None:
    mvcc.write(b"empty", b"", READ)

    found = await snapshot.batch_get([*KEYS, b"missing", b"empty", b"a"])

    assert found == {key: b"old " + key for key in KEYS} | {b"empty": b""}
    requests = cluster.requests(Tikv.KvBatchGet)
    assert sorted(sorted(request.keys) for request in requests) == [
        [b"a", b"b", b"c", b"empty"],
        [b"h", b"missing"],
        [b"x", b"y"],
    ]
    assert {request.version for request in requests} == {READ}


async def test_commit_timestamps(snapshot: Snapshot) -> None:
    assert await snapshot.get_versioned(b"a") == Versioned(b"old a", LONG_AGO)
    assert await snapshot.get_versioned(b"missing") is None
    assert await snapshot.batch_get_versioned([b"a", b"b", b"no"]) == {
        b"a": Versioned(b"old a", LONG_AGO),
        b"b": Versioned(b"old b", LONG_AGO),
    }


async def test_a_commit_timestamp_that_does_not_come_is_an_error(cluster: FakeCluster, snapshot: Snapshot) -> None:
    cluster.store(1).answer_next(Tikv.KvGet, kvrpcpb.GetResponse(value=b"1"))
    cluster.store(1).answer_next(
        Tikv.KvBatchGet, kvrpcpb.BatchGetResponse(pairs=[kvrpcpb.KvPair(key=b"a", value=b"1")])
    )

    with pytest.raises(TransactionRefused, match="without the commit timestamp"):
        await snapshot.get_versioned(b"a")
    with pytest.raises(TransactionRefused, match="without the commit timestamp"):
        await snapshot.batch_get_versioned([b"a"])


@pytest.mark.parametrize("reverse", [False, True])
async def test_a_scan(snapshot: Snapshot, mvcc: FakeMvcc, reverse: bool) -> None:
    mvcc.write(b"bb", b"1", READ - 5)
    mvcc.write(b"bb", None, READ)

    found = [pair async for pair in snapshot.scan(reverse=reverse)]

    assert found == sorted(((key, b"old " + key) for key in KEYS), reverse=reverse)


async def test_only_keys(snapshot: Snapshot) -> None:
    assert [pair async for pair in snapshot.scan(b"b", b"y", key_only=True)] == [
        (key, b"") for key in (b"b", b"c", b"h", b"x")
    ]


async def test_a_sample(snapshot: Snapshot) -> None:
    assert [key async for key, _ in snapshot.scan(sample_step=2)] == [b"a", b"c", b"h", b"x"]


@pytest.mark.parametrize(("step", "error"), [(-1, ConfigError), (1 << 32, ConfigError), ("1", TypeError)])
async def test_a_sample_of_nonsense(snapshot: Snapshot, step: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="sample_step"):
        snapshot.scan(sample_step=step)


async def test_keys_that_are_none(snapshot: Snapshot) -> None:
    wrong: Any = "a"
    with pytest.raises(TypeError, match=r"key\.encode"):
        await snapshot.get(wrong)
    with pytest.raises(TypeError, match="not one key"):
        await snapshot.batch_get(wrong)
    with pytest.raises(ConfigError, match="prefix"):
        snapshot.scan(b"a", prefix=b"b")


async def test_options_travel(cluster: FakeCluster, begin: Callable[..., Snapshot]) -> None:
    snapshot = begin(request_source="test", not_fill_cache=True, priority=Priority.HIGH)

    await snapshot.get(b"a")
    await snapshot.batch_get([b"b", b"c"])
    assert [pair async for pair in snapshot.scan(b"", b"b")] == [(b"a", b"old a")]

    for rpc in (Tikv.KvGet, Tikv.KvBatchGet, Tikv.KvScan):
        [request] = cluster.requests(rpc)
        assert request.context.request_source == "leader_test"
        assert (request.context.not_fill_cache, request.context.priority) == (True, kvrpcpb.CommandPri.High)


# --- what was read already --------------------------------------------------------------------------------------------


async def test_what_was_read_is_not_asked_for_again(cluster: FakeCluster, snapshot: Snapshot) -> None:
    first = [await snapshot.get(b"a"), await snapshot.get(b"missing"), await snapshot.batch_get([b"b", b"none"])]
    cluster.log.clear()

    again = [await snapshot.get(b"a"), await snapshot.get(b"missing"), await snapshot.batch_get([b"b", b"none"])]

    assert again == first
    assert await snapshot.batch_get(iter([b"a", b"missing", b"c"])) == {b"a": b"old a", b"c": b"old c"}
    assert [list(request.keys) for request in cluster.requests(Tikv.KvBatchGet)] == [[b"c"]]
    assert cluster.requests(Tikv.KvGet) == []


async def test_a_value_whose_commit_timestamp_is_not_known_is_read_again_for_it(
    cluster: FakeCluster, snapshot: Snapshot
) -> None:
    await snapshot.batch_get([b"a", b"missing"])

    for _ in range(2):
        assert await snapshot.get_versioned(b"a") == Versioned(b"old a", LONG_AGO)
        assert await snapshot.get_versioned(b"missing") is None

    assert [request.key for request in cluster.requests(Tikv.KvGet)] == [b"a"]


@pytest.mark.parametrize(("start", "isolation"), [(LATEST, Isolation.SI), (READ, Isolation.RC)])
async def test_what_is_not_repeatable_is_not_remembered(
    begin: Callable[..., Snapshot], mvcc: FakeMvcc, start: int, isolation: Isolation
) -> None:
    snapshot = begin(start, isolation=isolation)
    seen = []

    for number in range(2):
        mvcc.write(b"d", b"%d" % number, number + 1)
        seen += [await snapshot.get(b"d"), (await snapshot.batch_get([b"d"]))[b"d"]]

    assert seen == [b"0", b"0", b"1", b"1"]


# --- where it reads ---------------------------------------------------------------------------------------------------


async def test_a_timestamp_is_fetched_when_it_is_first_needed(
    cluster: FakeCluster, begin: Callable[..., Snapshot]
) -> None:
    snapshot = begin(fresh)
    cluster.pd.timestamp = Timestamp(NOW_MS + 5000, 0)

    async with anyio.create_task_group() as tasks:
        for key in KEYS:
            tasks.start_soon(snapshot.get, key)
    ts = await snapshot.get_ts()

    assert ts == Timestamp(NOW_MS + 5000, 1)
    assert {request.version for request in cluster.requests(Tikv.KvGet)} == {ts.ts}


async def test_a_timestamp_of_the_future_is_refused(begin: Callable[..., Snapshot]) -> None:
    future, past = begin(granted(NOW + (1 << 40))), begin(granted(NOW - 1))

    with pytest.raises(FutureTimestamp):
        await future.get(b"a")

    assert await past.get(b"a") == b"old a"
    assert (await past.get_ts()).ts == NOW - 1


async def test_the_past(cluster: FakeCluster, begin: Callable[..., Snapshot]) -> None:
    snapshot = begin(stale(5.0))

    await snapshot.get(b"a")

    [request] = cluster.requests(Tikv.KvGet)
    assert Timestamp.from_ts(request.version).physical == pytest.approx(NOW_MS - 5000, abs=10)


@pytest.mark.parametrize("start", [fresh, granted(NOW), stale(1.0)])
async def test_a_timestamp_that_does_not_come_is_the_reads_trouble(
    cluster: FakeCluster, begin: Callable[..., Snapshot], start: Start
) -> None:
    cluster.pd.hang(PD.Tso)

    with pytest.raises(DeadlineExceeded, match="get did not finish within 3 s"):
        await begin(start).get(b"a", timeout=3.0)


# --- locks ------------------------------------------------------------------------------------------------------------


def committed(mvcc: FakeMvcc, key: bytes = b"a", commit_ts: int = OLD + 5) -> None:
    """A key whose transaction is committed at its primary key `c`, but not there yet."""
    mvcc.lock(key, OLD, b"value", primary=b"c")
    mvcc.write(b"c", b"value", commit_ts, OLD)


def dead(mvcc: FakeMvcc, key: bytes = b"a", start_ts: int = OLD) -> None:
    """A key whose transaction is over: its client is gone."""
    mvcc.lock(key, start_ts, b"value", primary=b"z%d" % start_ts)
    mvcc.lock(b"z%d" % start_ts, start_ts, b"value")


def alive(mvcc: FakeMvcc, key: bytes = b"a") -> None:
    """A key of a transaction under way, which will commit later than who reads now."""
    mvcc.lock(key, RECENT, b"value", primary=b"z")
    mvcc.lock(b"z", RECENT, b"value", min_commit_ts=RECENT + 1)


def finished(mvcc: FakeMvcc, key: bytes = b"a") -> None:
    """A key of an async commit whose keys are all locked."""
    mvcc.lock(key, OLD, b"value", primary=b"z", use_async_commit=True, min_commit_ts=OLD + 9)
    mvcc.lock(b"z", OLD, b"value", use_async_commit=True, min_commit_ts=OLD + 2, secondaries=[key])


def unfinished(mvcc: FakeMvcc, key: bytes = b"a") -> None:
    """A key of an async commit that lacks a lock."""
    mvcc.lock(key, OLD, b"value", primary=b"z", use_async_commit=True, min_commit_ts=OLD + 9)
    mvcc.lock(b"z", OLD, b"value", use_async_commit=True, min_commit_ts=OLD + 2, secondaries=[key, b"yy"])


LOCKS = {
    "committed": (committed, b"value"),
    "committed later": (lambda mvcc: committed(mvcc, commit_ts=READ + 1), b"old a"),
    "dead": (dead, b"old a"),
    "alive": (alive, b"old a"),
    "finished": (finished, b"value"),
    "unfinished": (unfinished, b"old a"),
}
every_lock = pytest.mark.parametrize(("lock", "value"), LOCKS.values(), ids=list(LOCKS))


@every_lock
async def test_reads_get_past_locks(begin: Callable[..., Snapshot], mvcc: FakeMvcc, lock: Any, value: bytes) -> None:
    lock(mvcc)

    found = [
        await begin().get(b"a"),
        (await begin().batch_get([b"a", b"b"]))[b"a"],
        dict([pair async for pair in begin().scan()])[b"a"],
        dict([pair async for pair in begin().scan(reverse=True)])[b"a"],
    ]
    await wait_all_tasks_blocked()

    assert found == [value] * 4
    assert (b"a" in mvcc.locks) == (lock is alive)


@every_lock
async def test_commit_timestamps_under_locks(
    begin: Callable[..., Snapshot], mvcc: FakeMvcc, lock: Any, value: bytes
) -> None:
    lock(mvcc)

    one = await begin().get_versioned(b"a")
    many = await begin().batch_get_versioned([b"a", b"b"])

    assert one == many[b"a"]
    assert one is not None
    assert (one.value, one.commit_ts < READ) == (value, True)


async def test_a_read_is_not_held_up_by_putting_locks_away(
    cluster: FakeCluster, snapshot: Snapshot, mvcc: FakeMvcc
) -> None:
    committed(mvcc)
    cluster.store(1).delay_next(Tikv.KvResolveLock, 5.0)
    began = cluster.transport.now()

    assert await snapshot.get(b"a") == b"value"

    assert cluster.transport.now() == began
    assert b"a" in mvcc.locks
    await anyio.sleep(6)
    assert b"a" not in mvcc.locks


async def test_all_requests_of_a_snapshot_name_what_it_may_pass(
    cluster: FakeCluster, begin: Callable[..., Snapshot], snapshot: Snapshot, mvcc: FakeMvcc
) -> None:
    committed(mvcc)
    dead(mvcc, b"b", OLD + 1)
    await snapshot.get(b"a")
    await snapshot.get(b"b")
    cluster.log.clear()

    await snapshot.get(b"x")
    await snapshot.batch_get([b"c", b"h"])
    assert [key async for key, _ in snapshot.scan(b"x", b"y")] == [b"x"]
    await begin().get(b"x")

    *own, other = [received.message for received in cluster.log if received.rpc is not Tikv.KvResolveLock]
    assert [lists(request) for request in own] == [([OLD + 1], [OLD])] * 4
    assert lists(other) == ([], [])


async def test_only_what_was_locked_is_asked_for_again(
    cluster: FakeCluster, snapshot: Snapshot, mvcc: FakeMvcc
) -> None:
    committed(mvcc, b"a")
    dead(mvcc, b"b", OLD + 1)

    found = await snapshot.batch_get(KEYS)

    assert found == {key: b"old " + key for key in KEYS} | {b"a": b"value", b"c": b"value"}
    first_region = [sorted(request.keys) for request in cluster.requests(Tikv.KvBatchGet) if b"a" in request.keys]
    assert first_region == [[b"a", b"b", b"c"], [b"a", b"b"]]


async def test_only_what_was_locked_of_a_page_is_asked_for(
    cluster: FakeCluster, snapshot: Snapshot, mvcc: FakeMvcc
) -> None:
    committed(mvcc, b"a")
    dead(mvcc, b"aa", OLD + 1)

    found = [pair async for pair in snapshot.scan(b"", b"b")]

    assert found == [(b"a", b"value")]
    assert [list(request.keys) for request in cluster.requests(Tikv.KvBatchGet)] == [[b"a", b"aa"]]
    assert len(cluster.requests(Tikv.KvScan)) == 1


async def test_a_scan_of_keys_has_no_value_of_a_locked_one(snapshot: Snapshot, mvcc: FakeMvcc) -> None:
    committed(mvcc, b"a")

    assert [pair async for pair in snapshot.scan(b"", b"c", key_only=True)] == [(b"a", b""), (b"b", b"")]


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_a_limit_counts_what_is_there_behind_locks(snapshot: Snapshot, mvcc: FakeMvcc, limit: int) -> None:
    for number in range(4):
        dead(mvcc, b"0%d" % number, OLD + number)

    assert [key async for key, _ in snapshot.scan(limit=limit)] == KEYS[:limit]


async def test_a_lock_that_keeps_a_store_from_answering_at_all(
    cluster: FakeCluster, snapshot: Snapshot, mvcc: FakeMvcc
) -> None:
    committed(mvcc, b"a")
    locked = kvrpcpb.KeyError(locked=mvcc.locks[b"a"])
    cluster.store(1).answer_next(
        Tikv.KvBatchGet, kvrpcpb.BatchGetResponse(error=locked, pairs=[kvrpcpb.KvPair(error=locked)])
    )
    cluster.store(1).answer_next(Tikv.KvScan, kvrpcpb.ScanResponse(error=locked))

    assert [key async for key, _ in snapshot.scan(b"", b"c")] == [b"a", b"b"]
    assert await snapshot.batch_get([b"a", b"b"]) == {b"a": b"value", b"b": b"old b"}

    assert [sorted(request.keys) for request in cluster.requests(Tikv.KvBatchGet)] == [[b"a", b"b"]] * 2
    assert len(cluster.requests(Tikv.KvScan)) == 2


async def test_a_transaction_under_way_that_cannot_be_pushed_is_waited_for(
    cluster: FakeCluster, snapshot: Snapshot, mvcc: FakeMvcc
) -> None:
    mvcc.lock(b"a", RECENT, b"value", primary=b"z")
    mvcc.lock(b"z", RECENT, b"value")
    tries = 0

    def commit_after_a_while() -> None:
        nonlocal tries
        tries += 1
        if tries == 4:
            mvcc.commit(b"z", RECENT, RECENT + 7)

    cluster.store(1).before_next(Tikv.KvCheckTxnStatus, commit_after_a_while, times=math.inf)
    began = cluster.transport.now()

    assert await snapshot.get(b"a") == b"value"

    assert 0.02 < cluster.transport.now() - began < 0.2


@pytest.mark.parametrize(
    "read",
    [
        lambda snapshot: snapshot.get(b"a", timeout=2.0),
        lambda snapshot: snapshot.batch_get([b"a", b"b"], timeout=2.0),
        lambda snapshot: anext(snapshot.scan(timeout=2.0)),
    ],
)
async def test_a_lock_that_outlives_the_read(
    snapshot: Snapshot, mvcc: FakeMvcc, read: Callable[[Snapshot], Awaitable[Any]]
) -> None:
    mvcc.lock(b"a", RECENT, b"value", primary=b"z")
    mvcc.lock(b"z", RECENT, b"value", ttl_ms=100_000)

    with pytest.raises(DeadlineExceeded, match="did not finish within 2 s") as caught:
        await read(snapshot)

    assert isinstance(caught.value.__cause__, KeyLocked)
    assert (caught.value.__cause__.key, caught.value.__cause__.lock_ts) == (b"a", RECENT)


async def test_read_committed_ignores_locks(begin: Callable[..., Snapshot], mvcc: FakeMvcc) -> None:
    committed(mvcc, b"a")

    assert await begin(isolation=Isolation.RC).get(b"a") == b"old a"


async def test_newer_versions_conflict_where_that_is_asked_for(
    cluster: FakeCluster, begin: Callable[..., Snapshot]
) -> None:
    conflict = kvrpcpb.WriteConflict(key=b"a", reason=kvrpcpb.WriteConflict.RcCheckTs)
    cluster.store(1).answer_next(Tikv.KvGet, kvrpcpb.GetResponse(error=kvrpcpb.KeyError(conflict=conflict)))

    with pytest.raises(WriteConflict):
        await begin(isolation=Isolation.RC_CHECK_TS).get(b"a")


@pytest.mark.parametrize("rpc", [Tikv.KvGet, Tikv.KvBatchGet, Tikv.KvScan])
async def test_what_a_store_refuses(cluster: FakeCluster, snapshot: Snapshot, rpc: Any) -> None:
    cluster.store(1).answer_next(rpc, rpc.response(error=kvrpcpb.KeyError(abort="no")), times=math.inf)
    read: dict[Any, Callable[[], Awaitable[Any]]] = {
        Tikv.KvGet: lambda: snapshot.get(b"a"),
        Tikv.KvBatchGet: lambda: snapshot.batch_get([b"a"]),
        Tikv.KvScan: lambda: anext(snapshot.scan()),
    }

    with pytest.raises(TransactionRefused, match=r"the store refused (get|batch_get|scan): no"):
        await read[rpc]()


async def test_a_pair_that_a_store_refuses(cluster: FakeCluster, snapshot: Snapshot) -> None:
    pair = kvrpcpb.KvPair(error=kvrpcpb.KeyError(abort="no"))
    cluster.store(1).answer_next(Tikv.KvBatchGet, kvrpcpb.BatchGetResponse(pairs=[pair]))
    cluster.store(1).answer_next(Tikv.KvScan, kvrpcpb.ScanResponse(pairs=[pair]))

    with pytest.raises(TransactionRefused):
        await snapshot.batch_get([b"a"])
    with pytest.raises(TransactionRefused):
        await anext(snapshot.scan())


async def test_a_stale_read_that_meets_a_lock_asks_the_leader(
    cluster: FakeCluster, begin: Callable[..., Snapshot], mvcc: FakeMvcc
) -> None:
    committed(mvcc, b"a")
    options = {"stale_read": True, "replica_read": ReplicaRead.MIXED, "busy_threshold": 0.1}

    assert await begin(**options).get(b"a") == b"value"

    requests = cluster.requests(Tikv.KvGet)
    assert [request.context.stale_read for request in (requests[0], requests[-1])] == [True, False]
    assert not requests[-1].context.replica_read
    assert [received.store_id for received in cluster.log if received.rpc is Tikv.KvGet][-1] == 1


async def test_a_snapshot_forgets_what_it_may_pass_at_last(
    cluster: FakeCluster, snapshot: Snapshot, mvcc: FakeMvcc
) -> None:
    for number in range(1500):
        dead(mvcc, b"d%04d" % number, OLD + number)
        del mvcc.locks[b"z%d" % (OLD + number)]
        mvcc.rolled_back.add((b"z%d" % (OLD + number), OLD + number))

    await snapshot.batch_get([b"d%04d" % number for number in range(1500)])
    await snapshot.get(b"a")

    passed, _ = lists(cluster.requests(Tikv.KvGet)[-1])
    assert len(passed) == 1024


# --- the latest version -----------------------------------------------------------------------------------------------


async def test_the_latest_version_needs_no_timestamp(cluster: FakeCluster, begin: Callable[..., Snapshot]) -> None:
    snapshot = begin(LATEST)
    cluster.store(1).answer_next(Tikv.KvGet, kvrpcpb.GetResponse(value=b"1"))

    assert await snapshot.get(b"a") == b"1"

    assert [request.version for request in cluster.requests(Tikv.KvGet)] == [LATEST]


async def test_a_read_of_the_latest_version_takes_place_before_locks_made_since(
    cluster: FakeCluster, begin: Callable[..., Snapshot], mvcc: FakeMvcc
) -> None:
    def relock() -> None:
        mvcc.locks.clear()
        mvcc.lock(b"a", RECENT, b"other", primary=b"z")

    dead(mvcc)
    cluster.store(1).before_next(Tikv.KvCheckTxnStatus, relock)
    mvcc.rolled_back.add((b"z%d" % OLD, OLD))

    assert await begin(LATEST).get(b"a") == b"new a"

    assert [lists(request) for request in cluster.requests(Tikv.KvGet)] == [
        ([], []),
        ([OLD], []),
        ([OLD, RECENT], []),
    ]
    assert len(cluster.requests(Tikv.KvCheckTxnStatus)) == 1


async def test_another_read_of_the_latest_version_asks_anew(
    cluster: FakeCluster, begin: Callable[..., Snapshot], mvcc: FakeMvcc
) -> None:
    alive(mvcc)
    cluster.store(1).hang_next(Tikv.KvResolveLock)
    latest = begin(LATEST)
    before = await latest.get(b"a")
    mvcc.commit(b"z", RECENT, READ + 500)

    after = await latest.get(b"a")

    assert (before, after) == (b"new a", b"value")


# --- garbage ----------------------------------------------------------------------------------------------------------


async def test_what_may_be_collected_is_not_read(cluster: FakeCluster, begin: Callable[..., Snapshot]) -> None:
    cluster.pd.gc.txn_safe_point = READ

    at_safe_point = [await begin().get(b"a"), await begin().batch_get([b"a"]), await anext(begin().scan())]
    below = [
        await outcome(begin(READ - 1).get(b"a")),
        await outcome(begin(READ - 1).batch_get([b"a"])),
        await outcome(anext(begin(READ - 1).scan())),
    ]

    assert at_safe_point == [b"old a", {b"a": b"old a"}, (b"a", b"old a")]
    assert below == [SnapshotTooOld] * 3
    assert await begin(LATEST).get(b"a") == b"new a"


async def test_the_safe_point_is_asked_for_while_there_are_reads(
    cluster: FakeCluster, begin: Callable[..., Snapshot]
) -> None:
    asked = []
    for wait in (0, 1, 8, 2, 5, 6, 1000):
        await anyio.sleep(wait)
        await begin().get(b"a")
        await wait_all_tasks_blocked()
        asked.append(len(cluster.pd.gc.scopes))

    assert asked == [1, 1, 1, 2, 2, 3, 4]


async def test_reads_fail_when_nobody_tells_what_is_still_there(
    cluster: FakeCluster, begin: Callable[..., Snapshot]
) -> None:
    await begin().get(b"a")
    cluster.pd.hang(PD.GetGCState)
    await anyio.sleep(85)
    while_known = await outcome(begin().get(b"a"))
    await anyio.sleep(6)

    with pytest.raises(DeadlineExceeded, match="get did not finish within 10 s"):
        await begin().get(b"a")

    assert while_known == b"old a"
    cluster.pd.heal()
    assert await begin().get(b"a") == b"old a"


async def test_a_safe_point_never_goes_back(cluster: FakeCluster, begin: Callable[..., Snapshot]) -> None:
    cluster.pd.gc.txn_safe_point = READ
    await begin().get(b"a")
    cluster.pd.gc.txn_safe_point = 0
    await anyio.sleep(100)

    with pytest.raises(SnapshotTooOld, match="below the txn safe point"):
        await begin(READ - 1).get(b"a")


# --- Regions that move, clients that close ----------------------------------------------------------------------------


async def test_reads_follow_regions(cluster: FakeCluster, snapshot: Snapshot, mvcc: FakeMvcc) -> None:
    committed(mvcc, b"a")
    store = cluster.store(1)
    store.before_next(Tikv.KvGet, lambda: cluster.split(b"0"))
    store.before_next(Tikv.KvBatchGet, lambda: cluster.split(b"b"))
    store.before_next(Tikv.KvScan, lambda: cluster.merge(b"0"))

    assert await snapshot.get(b"b") == b"old b"
    assert await snapshot.batch_get([b"a", b"c"]) == {b"a": b"value", b"c": b"value"}
    assert [key async for key, _ in snapshot.scan()] == KEYS


async def test_a_region_that_moves_between_a_lock_and_the_retry(
    cluster: FakeCluster, snapshot: Snapshot, mvcc: FakeMvcc
) -> None:
    committed(mvcc, b"a")
    committed(mvcc, b"b")
    cluster.store(1).before_next(Tikv.KvCheckTxnStatus, lambda: cluster.split(b"b"))

    found = await snapshot.batch_get(KEYS)

    assert found == {key: b"old " + key for key in KEYS} | dict.fromkeys((b"a", b"b", b"c"), b"value")


async def test_a_busy_leader(cluster: FakeCluster, snapshot: Snapshot) -> None:
    busy = errorpb.Error(server_is_busy=errorpb.ServerIsBusy())
    cluster.store(1).answer_next(Tikv.KvGet, region_error=busy)

    assert await snapshot.get(b"a") == b"old a"


async def test_a_closed_client(store: TxnStore, snapshot: Snapshot) -> None:
    scan = snapshot.scan(limit=3)
    await anext(scan)
    await store.rpc.__aexit__(None, None, None)

    with pytest.raises(ClosedError):
        await snapshot.get(b"a")
    with pytest.raises(ClosedError):
        await snapshot.batch_get([b"a"])
    with pytest.raises(ClosedError):
        snapshot.scan()

    await store.rpc.__aenter__()
