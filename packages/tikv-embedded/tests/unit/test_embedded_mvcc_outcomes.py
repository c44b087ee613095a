"""Commit, rollback, cleanup, heartbeat, transaction status, secondary locks, resolving and scanning locks."""

from __future__ import annotations

from typing import Any

import pytest
from tikv_embedded.mvcc.keys import MAX_TS
from tikv_embedded.mvcc.lock import Lock, LockType
from tikv_embedded.mvcc.modifications import Modifications
from tikv_embedded.mvcc.reader import MvccReader
from tikv_embedded.mvcc.write import Write, WriteType
from tikv_embedded.testing import DirectStore
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv

Action = kvrpcpb.Action
MS = 1 << 18
"""One millisecond in a timestamp."""
START = 10 * MS
TTL = 5


@pytest.fixture
def store() -> DirectStore:
    return DirectStore(next_ts=lambda: 1)


def prewrite(store: DirectStore, start_ts: int, *keys: bytes, **fields: Any) -> kvrpcpb.PrewriteResponse:
    """Put the start timestamp as the value of each key."""
    mutations = [kvrpcpb.Mutation(op=kvrpcpb.Op.Put, key=key, value=b"%d" % start_ts) for key in keys]
    fields = {"primary_lock": keys[0], "lock_ttl": TTL, **fields}
    answer = store.ask(Tikv.KvPrewrite, mutations=mutations, start_version=start_ts, **fields)
    assert not answer.errors, answer.errors
    return answer


def commit(store: DirectStore, start_ts: int, commit_ts: int, *keys: bytes, **fields: Any) -> kvrpcpb.CommitResponse:
    return store.ask(Tikv.KvCommit, start_version=start_ts, commit_version=commit_ts, keys=keys, **fields)


def rollback(store: DirectStore, start_ts: int, *keys: bytes) -> kvrpcpb.KeyError:
    return store.ask(Tikv.KvBatchRollback, start_version=start_ts, keys=keys).error


def cleanup(store: DirectStore, start_ts: int, key: bytes, current_ts: int = 0) -> kvrpcpb.CleanupResponse:
    return store.ask(Tikv.KvCleanup, start_version=start_ts, key=key, current_ts=current_ts)


def status(
    store: DirectStore, key: bytes, lock_ts: int, caller: int = 0, current: int = 0, **fields: Any
) -> kvrpcpb.CheckTxnStatusResponse:
    return store.ask(
        Tikv.KvCheckTxnStatus, primary_key=key, lock_ts=lock_ts, caller_start_ts=caller, current_ts=current, **fields
    )


def secondaries(store: DirectStore, start_ts: int, *keys: bytes) -> kvrpcpb.CheckSecondaryLocksResponse:
    return store.ask(Tikv.KvCheckSecondaryLocks, start_version=start_ts, keys=keys)


def put_write(store: DirectStore, key: bytes, commit_ts: int, write: Write) -> None:
    written = Modifications()
    written.put_write(key, commit_ts, write)
    store.engine.write(written.batch)


def put_lock(store: DirectStore, key: bytes, lock: Lock) -> None:
    written = Modifications()
    written.put_lock(key, lock)
    store.engine.write(written.batch)


def lock_on(store: DirectStore, key: bytes) -> Lock | None:
    with store.engine.snapshot() as snapshot:
        return MvccReader(snapshot).lock(key)


def writes_of(store: DirectStore, key: bytes) -> list[tuple[int, Write]]:
    with store.engine.snapshot() as snapshot:
        return list(MvccReader(snapshot).writes(key))


def rolled_back(start_ts: int, *, protected: bool) -> tuple[int, Write]:
    return start_ts, Write.rollback(start_ts, protected=protected)


# Commit.


def test_a_commit_turns_locks_into_records(store: DirectStore) -> None:
    prewrite(store, 5, b"a", b"b", context={"txn_source": 3})

    answer = commit(store, 5, 8, b"a", b"b")

    assert answer.commit_version == 8
    assert lock_on(store, b"a") is None
    assert writes_of(store, b"b") == [(8, Write(WriteType.PUT, 5, b"5", txn_source=3))]
    assert commit(store, 5, 8, b"a", b"b").commit_version == 8


@pytest.mark.parametrize("commit_ts", [4, 5])
def test_a_commit_must_come_after_its_start(store: DirectStore, commit_ts: int) -> None:
    prewrite(store, 5, b"a")

    assert commit(store, 5, commit_ts, b"a").error.abort.startswith("InvalidTxnTso")


@pytest.mark.parametrize("role", [kvrpcpb.CommitRole.Unknown, kvrpcpb.CommitRole.Primary, kvrpcpb.CommitRole.Secondary])
def test_a_commit_without_its_lock_fails_for_all_keys(store: DirectStore, role: kvrpcpb.CommitRole.ValueType) -> None:
    prewrite(store, 5, b"a")
    put_write(store, b"b", 6, Write(WriteType.PUT, 6, b"other"))

    error = commit(store, 5, 8, b"a", b"b", commit_role=role).error

    assert error.txn_lock_not_found.key == b"b"
    assert "TxnLockNotFound" in error.retryable
    assert lock_on(store, b"a") is not None
    if role == kvrpcpb.CommitRole.Secondary:
        (info,) = error.debug_info.mvcc_info
        assert (info.key, info.mvcc.writes[0].commit_ts) == (b"b", 6)
    else:
        assert not error.HasField("debug_info")


def test_a_commit_after_the_rollback_fails(store: DirectStore) -> None:
    prewrite(store, 5, b"a")
    rollback(store, 5, b"a")
    prewrite(store, 6, b"a")

    assert commit(store, 5, 8, b"a").error.HasField("txn_lock_not_found")


def test_a_commit_must_not_be_before_what_readers_were_promised(store: DirectStore) -> None:
    prewrite(store, 5, b"p", b"s", min_commit_ts=9)

    primary, secondary = commit(store, 5, 8, b"p").error, commit(store, 5, 8, b"s").error

    assert primary.commit_ts_expired == kvrpcpb.CommitTsExpired(
        start_ts=5, attempted_commit_ts=8, key=b"p", min_commit_ts=9
    )
    assert not primary.HasField("debug_info")
    assert secondary.debug_info.mvcc_info[0].mvcc.lock.start_ts == 5
    assert commit(store, 5, 9, b"p", b"s").commit_version == 9


def test_a_commit_removes_a_pessimistic_lock_that_was_never_prewritten(store: DirectStore) -> None:
    put_lock(store, b"a", Lock(LockType.PESSIMISTIC, b"p", 5, 0, for_update_ts=5))

    assert commit(store, 5, 8, b"a").commit_version == 8
    assert lock_on(store, b"a") is None
    assert writes_of(store, b"a") == []


# Rollback.


def test_a_rollback_is_protected_on_the_primary_key_alone(store: DirectStore) -> None:
    prewrite(store, 5, b"p", b"s")

    assert rollback(store, 5, b"p", b"s", b"never") == kvrpcpb.KeyError()

    assert [lock_on(store, key) for key in (b"p", b"s")] == [None, None]
    assert writes_of(store, b"p") == [rolled_back(5, protected=True)]
    assert writes_of(store, b"s") == [rolled_back(5, protected=False)]
    assert writes_of(store, b"never") == [rolled_back(5, protected=False)]
    assert rollback(store, 5, b"p", b"s", b"never") == kvrpcpb.KeyError()


def test_what_is_committed_cannot_be_rolled_back(store: DirectStore) -> None:
    prewrite(store, 5, b"a", b"b")
    commit(store, 5, 8, b"a")

    assert rollback(store, 5, b"b", b"a").abort.startswith("Committed")
    assert lock_on(store, b"b") is not None
    assert cleanup(store, 5, b"a").commit_version == 8


def test_unprotected_rollbacks_collapse_and_protected_ones_stay(store: DirectStore) -> None:
    put_write(store, b"a", 3, Write.rollback(3, protected=False))
    put_write(store, b"b", 3, Write.rollback(3, protected=True))
    put_write(store, b"c", 3, Write(WriteType.PUT, 2, b"v"))
    prewrite(store, 5, b"p", b"a")

    rollback(store, 5, b"a", b"b", b"c")
    rollback(store, 7, b"a")

    assert writes_of(store, b"a") == [rolled_back(7, protected=False)]
    assert writes_of(store, b"b") == [rolled_back(5, protected=False), rolled_back(3, protected=True)]
    assert [ts for ts, _ in writes_of(store, b"c")] == [5, 3]


def test_a_rollback_leaves_another_transaction_alone(store: DirectStore) -> None:
    prewrite(store, 9, b"a")

    rollback(store, 5, b"a")

    lock = lock_on(store, b"a")
    assert lock is not None
    assert (lock.start_ts, lock.rollback_ts) == (9, ())
    assert commit(store, 9, 12, b"a").commit_version == 12


# Cleanup.


@pytest.mark.parametrize(
    ("current_ts", "is_alive"), [(0, False), (START + 4 * MS, True), (START + 5 * MS, True), (START + 6 * MS, False)]
)
def test_cleanup_waits_for_the_end_of_the_lock(store: DirectStore, current_ts: int, is_alive: bool) -> None:
    prewrite(store, START, b"p")

    answer = cleanup(store, START, b"p", current_ts)

    assert answer.error.HasField("locked") is is_alive
    assert (lock_on(store, b"p") is not None) is is_alive
    assert store.max_ts.value == START


def test_cleanup_protects_what_it_writes_and_collapses_nothing(store: DirectStore) -> None:
    put_write(store, b"a", 3, Write.rollback(3, protected=False))
    put_write(store, b"s", 3, Write.rollback(3, protected=False))
    prewrite(store, 5, b"p", b"s")

    cleanup(store, 5, b"a")
    cleanup(store, 5, b"s")

    assert writes_of(store, b"a") == [rolled_back(5, protected=True), rolled_back(3, protected=False)]
    assert writes_of(store, b"s") == [rolled_back(5, protected=False), rolled_back(3, protected=False)]
    assert cleanup(store, 5, b"a") == kvrpcpb.CleanupResponse()


# Rollbacks where another transaction committed at the very same timestamp.


def test_a_protected_rollback_marks_the_record_in_its_place(store: DirectStore) -> None:
    put_write(store, b"a", 12, Write(WriteType.DELETE, 11))
    put_write(store, b"a", 10, Write(WriteType.LOCK, 9))
    put_write(store, b"a", 5, Write(WriteType.PUT, 3, b"v"))

    cleanup(store, 5, b"a")

    marked = Write(WriteType.PUT, 3, b"v", has_overlapped_rollback=True, gc_fence=12)
    assert writes_of(store, b"a")[-1] == (5, marked)
    assert cleanup(store, 5, b"a") == kvrpcpb.CleanupResponse()
    assert commit(store, 5, 6, b"a").error.HasField("txn_lock_not_found")
    told = status(store, b"a", 5)
    assert (told.commit_version, told.lock_ttl, told.action) == (0, 0, Action.NoAction)


def test_the_fence_is_zero_where_nothing_newer_is(store: DirectStore) -> None:
    put_write(store, b"a", 5, Write(WriteType.PUT, 3, b"v"))

    cleanup(store, 5, b"a")

    assert writes_of(store, b"a") == [(5, Write(WriteType.PUT, 3, b"v", has_overlapped_rollback=True, gc_fence=0))]
    assert store.ask(Tikv.KvGet, key=b"a", version=9).value == b"v"


def test_an_unprotected_rollback_leaves_the_record_in_its_place_alone(store: DirectStore) -> None:
    put_write(store, b"a", 5, Write(WriteType.PUT, 3, b"v"))

    rollback(store, 5, b"a")

    assert writes_of(store, b"a") == [(5, Write(WriteType.PUT, 3, b"v"))]


@pytest.mark.parametrize(("start_ts", "is_marked"), [(19, False), (20, True), (25, True)])
def test_an_async_lock_remembers_rollbacks_that_its_commit_could_overwrite(
    store: DirectStore, start_ts: int, is_marked: bool
) -> None:
    prewrite(store, 5, b"a", use_async_commit=True, min_commit_ts=20)

    cleanup(store, start_ts, b"a")
    commit(store, 5, 25, b"a")

    newest = writes_of(store, b"a")[0]
    overlaps = is_marked and start_ts == 25
    assert newest == (25, Write(WriteType.PUT, 5, b"5", has_overlapped_rollback=overlaps))


# Heartbeat.


def test_a_heartbeat_makes_a_lock_live_longer_and_never_shorter(store: DirectStore) -> None:
    prewrite(store, 5, b"p")

    def beat(ttl: int, start_ts: int = 5) -> kvrpcpb.TxnHeartBeatResponse:
        return store.ask(Tikv.KvTxnHeartBeat, primary_lock=b"p", start_version=start_ts, advise_lock_ttl=ttl)

    assert [beat(ttl).lock_ttl for ttl in (TTL - 1, TTL + 9, TTL)] == [TTL, TTL + 9, TTL + 9]
    assert beat(9, start_ts=6).error.txn_not_found == kvrpcpb.TxnNotFound(start_ts=6, primary_key=b"p")


# Transaction status.


def test_the_status_of_an_ended_transaction_is_told(store: DirectStore) -> None:
    prewrite(store, 5, b"a")
    commit(store, 5, 8, b"a")
    rollback(store, 9, b"b")

    committed, gone = status(store, b"a", 5), status(store, b"b", 9)

    assert (committed.commit_version, committed.action) == (8, Action.NoAction)
    assert (gone.commit_version, gone.lock_ttl, gone.action) == (0, 0, Action.NoAction)


def test_a_transaction_without_a_trace_is_rolled_back_if_asked_to(store: DirectStore) -> None:
    missing = status(store, b"a", 5)
    pessimistic = status(store, b"a", 5, rollback_if_not_exist=True, resolving_pessimistic_lock=True)
    untouched = writes_of(store, b"a")
    settled = status(store, b"a", 5, rollback_if_not_exist=True)

    assert missing.error.txn_not_found == kvrpcpb.TxnNotFound(start_ts=5, primary_key=b"a")
    assert (pessimistic.action, untouched) == (Action.LockNotExistDoNothing, [])
    assert settled.action == Action.LockNotExistRollback
    assert writes_of(store, b"a") == [rolled_back(5, protected=True)]
    assert status(store, b"a", 5, rollback_if_not_exist=True).action == Action.NoAction


def test_a_status_check_marks_an_async_lock_of_another_transaction(store: DirectStore) -> None:
    prewrite(store, 5, b"a", use_async_commit=True)

    status(store, b"a", 20, rollback_if_not_exist=True)

    lock = lock_on(store, b"a")
    assert lock is not None
    assert lock.rollback_ts == (20,)


@pytest.mark.parametrize(
    ("current", "action"),
    [
        (START + TTL * MS, Action.NoAction),
        (START + TTL * MS + MS - 1, Action.NoAction),
        (START + (TTL + 1) * MS, Action.TTLExpireRollback),
        (MAX_TS, Action.TTLExpireRollback),
    ],
)
def test_a_lock_is_rolled_back_when_its_time_is_over(
    store: DirectStore, current: int, action: Action.ValueType
) -> None:
    prewrite(store, START, b"p")

    answer = status(store, b"p", START, current=current)

    assert answer.action == action
    if action:
        assert (answer.lock_ttl, answer.HasField("lock_info"), lock_on(store, b"p")) == (0, False, None)
        assert writes_of(store, b"p") == [rolled_back(START, protected=True)]
    else:
        assert (answer.lock_ttl, answer.lock_info.key, answer.lock_info.lock_version) == (TTL, b"p", START)


@pytest.mark.parametrize(
    ("min_commit_ts", "caller", "current", "expected", "action"),
    [
        (0, START + 5, START + 9, 0, Action.NoAction),
        (START + 1, 0, START + 9, START + 1, Action.NoAction),
        (START + 1, START + 5, 0, START + 6, Action.MinCommitTSPushed),
        (START + 1, START + 5, START + 9, START + 9, Action.MinCommitTSPushed),
        (START + 5, START + 5, 0, START + 6, Action.MinCommitTSPushed),
        (START + 6, START + 5, START + 9, START + 6, Action.MinCommitTSPushed),
        (START + 1, MAX_TS, START + 9, START + 1, Action.MinCommitTSPushed),
    ],
)
def test_a_reader_pushes_the_commit_of_a_living_transaction(
    store: DirectStore, min_commit_ts: int, caller: int, current: int, expected: int, action: Action.ValueType
) -> None:
    prewrite(store, START, b"p", min_commit_ts=min_commit_ts)

    answer = status(store, b"p", START, caller=caller, current=current)

    lock = lock_on(store, b"p")
    assert lock is not None
    assert (lock.min_commit_ts, answer.lock_info.min_commit_ts, answer.action) == (expected, expected, action)
    assert store.max_ts.value == max(ts for ts in (START, caller, current) if ts != MAX_TS)


def test_an_async_commit_is_neither_pushed_nor_rolled_back_unless_forced(store: DirectStore) -> None:
    prewrite(store, START, b"p", use_async_commit=True, secondaries=[b"s"])
    before = lock_on(store, b"p")

    answer = status(store, b"p", START, caller=START + 5 * MS, current=MAX_TS)

    assert (answer.action, lock_on(store, b"p")) == (Action.NoAction, before)
    assert (answer.lock_info.use_async_commit, list(answer.lock_info.secondaries)) == (True, [b"s"])
    assert status(store, b"p", START, current=MAX_TS, force_sync_commit=True).action == Action.TTLExpireRollback


def test_a_secondary_lock_can_be_told_from_the_primary(store: DirectStore) -> None:
    prewrite(store, START, b"p", b"s")

    refused = status(store, b"s", START, verify_is_primary=True).error.primary_mismatch.lock_info
    unasked = status(store, b"s", START)

    assert (refused.key, refused.primary_lock) == (b"s", b"p")
    assert unasked.lock_info.key == b"p"
    assert status(store, b"p", START, verify_is_primary=True).lock_ttl == TTL


def test_pessimistic_locks_are_removed_or_rolled_back(store: DirectStore) -> None:
    def pessimistic(key: bytes, primary: bytes, *, has_conflict: bool = False) -> None:
        lock = Lock(
            LockType.PESSIMISTIC, primary, START, TTL, for_update_ts=START, is_locked_with_conflict=has_conflict
        )
        put_lock(store, key, lock)

    pessimistic(b"resolved", b"resolved")
    pessimistic(b"expired", b"expired")
    pessimistic(b"stray", b"other")
    pessimistic(b"committed", b"committed", has_conflict=True)
    put_write(store, b"committed", START + 8, Write(WriteType.PUT, START, b"v"))

    answers = [
        status(store, b"resolved", START, current=MAX_TS, resolving_pessimistic_lock=True).action,
        status(store, b"expired", START, current=MAX_TS).action,
        status(store, b"stray", START, rollback_if_not_exist=True, verify_is_primary=True).action,
    ]

    assert answers == [Action.TTLExpirePessimisticRollback, Action.TTLExpireRollback, Action.LockNotExistRollback]
    assert status(store, b"committed", START).commit_version == START + 8
    keys = (b"resolved", b"expired", b"stray", b"committed")
    assert [lock_on(store, key) for key in keys] == [None] * 4
    assert [len(writes_of(store, key)) for key in keys] == [0, 1, 1, 1]


# Secondary locks.


def test_the_secondary_locks_are_told_while_all_are_there(store: DirectStore) -> None:
    prewrite(store, 5, b"a", b"b", use_async_commit=True)

    answer = secondaries(store, 5, b"a", b"b")

    assert [lock.key for lock in answer.locks] == [b"a", b"b"]
    assert store.max_ts.value == 5


def test_a_missing_secondary_lock_rolls_the_transaction_back(store: DirectStore) -> None:
    prewrite(store, 5, b"a", use_async_commit=True)
    put_write(store, b"b", 3, Write.rollback(3, protected=False))

    answer = secondaries(store, 5, b"a", b"b", b"c")

    assert (list(answer.locks), answer.commit_ts) == ([], 0)
    assert writes_of(store, b"b") == [rolled_back(5, protected=True)]
    assert writes_of(store, b"c") == []
    again = secondaries(store, 5, b"b", b"c")
    assert (list(again.locks), again.commit_ts, writes_of(store, b"c")) == ([], 0, [])


def test_a_committed_secondary_tells_when(store: DirectStore) -> None:
    prewrite(store, 5, b"a", b"b", use_async_commit=True)
    commit(store, 5, 8, b"b")

    answer = secondaries(store, 5, b"a", b"b")

    assert (list(answer.locks), answer.commit_ts) == ([], 8)


def test_a_missing_secondary_marks_the_async_lock_in_its_place(store: DirectStore) -> None:
    prewrite(store, 5, b"a", use_async_commit=True)
    put_lock(store, b"b", Lock(LockType.PESSIMISTIC, b"p", 9, 0, for_update_ts=9))

    secondaries(store, 8, b"a")
    secondaries(store, 9, b"b")

    lock = lock_on(store, b"a")
    assert lock is not None
    assert lock.rollback_ts == (8,)
    assert (lock_on(store, b"b"), writes_of(store, b"b")) == (None, [rolled_back(9, protected=True)])


def test_a_rollback_in_the_place_of_a_commit_settles_secondaries_too(store: DirectStore) -> None:
    put_write(store, b"a", 5, Write(WriteType.PUT, 3, b"v"))

    first, second = secondaries(store, 5, b"a"), secondaries(store, 5, b"a")

    assert [(list(answer.locks), answer.commit_ts) for answer in (first, second)] == [([], 0)] * 2
    assert writes_of(store, b"a") == [(5, Write(WriteType.PUT, 3, b"v", has_overlapped_rollback=True, gc_fence=0))]


# Resolving and scanning.


def resolve(store: DirectStore, **fields: Any) -> kvrpcpb.KeyError:
    return store.ask(Tikv.KvResolveLock, **fields).error


def locked_keys(store: DirectStore, **fields: Any) -> list[bytes]:
    fields = {"max_version": START * 9, **fields}
    return [lock.key for lock in store.ask(Tikv.KvScanLock, **fields).locks]


def test_given_keys_are_resolved(store: DirectStore) -> None:
    prewrite(store, 5, b"a", b"b", b"c")

    assert resolve(store, start_version=5, commit_version=8, keys=[b"a"]) == kvrpcpb.KeyError()
    assert resolve(store, start_version=5, keys=[b"b", b"x"]) == kvrpcpb.KeyError()

    assert locked_keys(store) == [b"c"]
    assert writes_of(store, b"a")[0][0] == 8
    assert writes_of(store, b"x") == [rolled_back(5, protected=False)]
    missing = resolve(store, start_version=5, commit_version=8, keys=[b"c", b"y"])
    assert missing.txn_lock_not_found.key == b"y"
    assert locked_keys(store) == [b"c"]


def test_a_whole_region_is_resolved_for_one_transaction() -> None:
    store = DirectStore(start_key=b"b", end_key=b"y")
    keys = [b"k%03d" % n for n in range(300)]
    prewrite(store, 5, *keys)
    prewrite(store, 6, b"other")
    put_lock(store, b"a", Lock(LockType.PUT, b"k000", 5, 0))

    assert resolve(store, start_version=5, commit_version=8) == kvrpcpb.KeyError()

    assert locked_keys(store) == [b"other"]
    assert lock_on(store, b"a") is not None
    assert [writes_of(store, key)[0][0] for key in keys] == [8] * 300


def test_a_region_is_resolved_for_many_transactions(store: DirectStore) -> None:
    prewrite(store, 5, b"a")
    prewrite(store, 6, b"b")
    prewrite(store, 7, b"c")
    put_lock(store, b"d", Lock(LockType.PESSIMISTIC, b"a", 5, 0, for_update_ts=5))
    outcomes = [kvrpcpb.TxnInfo(txn=5, status=9), kvrpcpb.TxnInfo(txn=6, status=0)]

    assert resolve(store, txn_infos=outcomes) == kvrpcpb.KeyError()

    assert locked_keys(store) == [b"c"]
    assert [writes_of(store, key) for key in (b"a", b"b", b"d")] == [
        [(9, Write(WriteType.PUT, 5, b"5"))],
        [rolled_back(6, protected=True)],
        [],
    ]
    assert resolve(store, start_version=7, commit_version=7).abort.startswith("InvalidTxnTso")


def test_locks_are_listed_in_order_with_their_limits() -> None:
    store = DirectStore(start_key=b"b", end_key=b"y")
    for ts, key in enumerate((b"f", b"e", b"d", b"c"), START):
        prewrite(store, ts, key)
    put_lock(store, b"a", Lock(LockType.PUT, b"a", 1, 0))
    put_lock(store, b"g", Lock(LockType.PESSIMISTIC, b"g", START, 0, for_update_ts=START))

    assert locked_keys(store) == [b"c", b"d", b"e", b"f", b"g"]
    assert locked_keys(store, limit=2) == [b"c", b"d"]
    assert locked_keys(store, start_key=b"d", end_key=b"f") == [b"d", b"e"]
    assert locked_keys(store, max_version=START + 1) == [b"e", b"f", b"g"]
    assert store.max_ts.value == START * 9


# Removing ranges, and looking inside.


def test_a_range_is_removed_with_its_history() -> None:
    store = DirectStore(start_key=b"b", end_key=b"y")
    prewrite(store, 5, b"c", b"d", b"e")
    commit(store, 5, 8, b"c", b"d")

    def remove(start: bytes, end: bytes, **fields: Any) -> kvrpcpb.DeleteRangeResponse:
        return store.ask(Tikv.KvDeleteRange, start_key=start, end_key=end, **fields)

    assert remove(b"c", b"f", notify_only=True) == kvrpcpb.DeleteRangeResponse()
    assert len(writes_of(store, b"c")) == 1
    assert remove(b"d", b"f") == kvrpcpb.DeleteRangeResponse()
    assert [len(writes_of(store, key)) for key in (b"c", b"d")] == [1, 0]
    assert lock_on(store, b"e") is None
    for start, end in ((b"d", b"d"), (b"d", b"")):
        assert remove(start, end).region_error.message.startswith("invalid delete range command")
    assert remove(b"a", b"c").region_error.key_not_in_region.region_id == 1
    assert remove(b"c", b"z").region_error.HasField("key_not_in_region")


def test_everything_a_key_holds_can_be_looked_at(store: DirectStore) -> None:
    prewrite(store, 5, b"a")
    commit(store, 5, 8, b"a")
    rollback(store, 9, b"a")
    mutation = kvrpcpb.Mutation(op=kvrpcpb.Op.Put, key=b"a", value=bytes(300))
    store.ask(Tikv.KvPrewrite, mutations=[mutation], primary_lock=b"p", start_version=11, lock_ttl=3)

    info = store.ask(Tikv.MvccGetByKey, key=b"a").info
    by_lock = store.ask(Tikv.MvccGetByStartTs, start_ts=11)
    by_record = store.ask(Tikv.MvccGetByStartTs, start_ts=5)
    nothing = store.ask(Tikv.MvccGetByStartTs, start_ts=6)

    assert info.lock == kvrpcpb.MvccLock(type=kvrpcpb.Op.Put, start_ts=11, primary=b"p")
    assert [(write.type, write.start_ts, write.commit_ts, write.short_value) for write in info.writes] == [
        (kvrpcpb.Op.Rollback, 9, 9, b""),
        (kvrpcpb.Op.Put, 5, 8, b"5"),
    ]
    assert [(value.start_ts, value.value) for value in info.values] == [(11, bytes(300))]
    assert [(found.key, found.info) for found in (by_lock, by_record)] == [(b"a", info)] * 2
    assert (nothing.key, nothing.info) == (b"", kvrpcpb.MvccInfo())
