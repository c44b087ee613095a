"""KvPrewrite: conflicts, assertions, async commit, one-phase commit, retries; the tables of TiKV's own tests."""

from __future__ import annotations

from typing import Any

import pytest
from tikv_embedded.mvcc.keys import MAX_TS
from tikv_embedded.mvcc.lock import Lock, LockType
from tikv_embedded.mvcc.modifications import Modifications
from tikv_embedded.mvcc.reader import MvccReader
from tikv_embedded.mvcc.write import NO_CHANGE, UNKNOWN_CHANGE, LastChange, Write, WriteType
from tikv_embedded.testing import DirectStore
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv

Op = kvrpcpb.Op
Reason = kvrpcpb.WriteConflict.Reason
Assertion = kvrpcpb.Assertion
Level = kvrpcpb.AssertionLevel
LONG = bytes(256)


@pytest.fixture
def store() -> DirectStore:
    return DirectStore()


def mutation(key: bytes, value: bytes = b"", op: Op.ValueType = Op.Put, **fields: Any) -> kvrpcpb.Mutation:
    return kvrpcpb.Mutation(op=op, key=key, value=value, **fields)


def prewrite(
    store: DirectStore, start_ts: int, *mutations: kvrpcpb.Mutation, **fields: Any
) -> kvrpcpb.PrewriteResponse:
    fields = {"primary_lock": mutations[0].key, "lock_ttl": 3000, **fields}
    answer = store.ask(Tikv.KvPrewrite, mutations=mutations, start_version=start_ts, **fields)
    assert not answer.HasField("region_error"), answer.region_error
    return answer


def must_prewrite(store: DirectStore, start_ts: int, *mutations: kvrpcpb.Mutation, **fields: Any) -> None:
    answer = prewrite(store, start_ts, *mutations, **fields)
    assert not answer.errors, answer.errors


def commit(store: DirectStore, start_ts: int, commit_ts: int, *keys: bytes) -> None:
    answer = store.ask(Tikv.KvCommit, start_version=start_ts, commit_version=commit_ts, keys=keys)
    assert not answer.HasField("error"), answer.error


def put(store: DirectStore, key: bytes, value: bytes, start_ts: int, commit_ts: int) -> None:
    must_prewrite(store, start_ts, mutation(key, value))
    commit(store, start_ts, commit_ts, key)


def delete(store: DirectStore, key: bytes, start_ts: int, commit_ts: int) -> None:
    must_prewrite(store, start_ts, mutation(key, op=Op.Del))
    commit(store, start_ts, commit_ts, key)


def rollback(store: DirectStore, start_ts: int, *keys: bytes) -> None:
    assert not store.ask(Tikv.KvBatchRollback, start_version=start_ts, keys=keys).HasField("error")


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


def get(store: DirectStore, key: bytes, version: int = MAX_TS) -> bytes | None:
    answer = store.ask(Tikv.KvGet, key=key, version=version)
    assert not answer.HasField("error"), answer.error
    return None if answer.not_found else answer.value


# Locks.


def test_a_prewrite_locks_every_key_and_shows_nothing(store: DirectStore) -> None:
    mutations = (
        mutation(b"a", b"1"),
        mutation(b"b", op=Op.Del),
        mutation(b"c", op=Op.Lock),
        mutation(b"d", b"4", Op.Insert),
    )

    must_prewrite(store, 5, *mutations, txn_size=4, min_commit_ts=7, context={"txn_source": 2})

    expected = Lock(LockType.PUT, b"a", 5, 3000, b"1", txn_size=4, min_commit_ts=7, txn_source=2)
    assert lock_on(store, b"a") == expected
    locks = [lock_on(store, key) for key in (b"b", b"c", b"d")]
    assert [lock and lock.type for lock in locks] == [LockType.DELETE, LockType.LOCK, LockType.PUT]
    assert get(store, b"a") is None


def test_a_long_value_lies_apart_until_it_is_committed_or_rolled_back(store: DirectStore) -> None:
    must_prewrite(store, 5, mutation(b"a", LONG), mutation(b"b", LONG))

    commit(store, 5, 6, b"a")
    rollback(store, 5, b"b")

    assert get(store, b"a") == LONG
    info = store.ask(Tikv.MvccGetByKey, key=b"b").info
    assert list(info.values) == []


def test_a_lock_of_another_transaction_is_reported_for_every_key_and_nothing_is_written(store: DirectStore) -> None:
    must_prewrite(store, 5, mutation(b"a"), mutation(b"c"))

    answer = prewrite(store, 6, mutation(b"a"), mutation(b"b"), mutation(b"c"))

    assert [error.locked.key for error in answer.errors] == [b"a", b"c"]
    assert [error.locked.lock_ttl for error in answer.errors] == [3000, 3000]
    assert lock_on(store, b"b") is None


def test_the_same_prewrite_again_is_fine_and_changes_nothing(store: DirectStore) -> None:
    must_prewrite(store, 5, mutation(b"a", b"1"))
    before = lock_on(store, b"a")

    must_prewrite(store, 5, mutation(b"a", b"2"))

    assert lock_on(store, b"a") == before


def test_an_optimistic_prewrite_never_takes_a_pessimistic_lock_over(store: DirectStore) -> None:
    put_lock(store, b"a", Lock(LockType.PESSIMISTIC, b"a", 5, 0, for_update_ts=5))

    assert prewrite(store, 5, mutation(b"a")).errors[0].abort.startswith("LockTypeNotMatch")
    assert prewrite(store, 6, mutation(b"a")).errors[0].locked.lock_type == Op.PessimisticLock


@pytest.mark.parametrize("op", [Op.Rollback, Op.PessimisticLock, Op.SharedLock, Op.SharedPessimisticLock])
def test_what_cannot_be_prewritten_is_refused(store: DirectStore, op: Op.ValueType) -> None:
    assert "cannot be prewritten" in prewrite(store, 5, mutation(b"a", op=op)).errors[0].abort


def test_pessimistic_transactions_are_refused(store: DirectStore) -> None:
    assert "pessimistic" in prewrite(store, 5, mutation(b"a"), for_update_ts=5).errors[0].abort


def test_keys_and_requests_can_be_too_large(store: DirectStore) -> None:
    fits = bytes(8 * 1024 // 9 * 8 - 8)

    must_prewrite(store, 5, mutation(fits))
    too_long = prewrite(store, 5, mutation(fits + bytes(8)))
    too_much = store.ask(Tikv.KvPrewrite, mutations=[mutation(b"k", bytes(8 << 20))], start_version=5)

    assert too_long.errors[0].abort.startswith("KeyTooLarge")
    assert too_much.region_error.raft_entry_too_large.entry_size > 8 << 20
    assert lock_on(store, b"k") is None


def test_keys_must_be_in_the_region() -> None:
    store = DirectStore(start_key=b"b", end_key=b"y")

    answer = store.ask(Tikv.KvPrewrite, mutations=[mutation(b"c"), mutation(b"z")], start_version=5)

    assert answer.region_error.HasField("key_not_in_region")
    assert lock_on(store, b"c") is None


# Conflicts.


@pytest.mark.parametrize("kind", list(WriteType))
def test_any_newer_record_is_a_conflict(store: DirectStore, kind: WriteType) -> None:
    put_write(store, b"a", 8, Write(kind, 8 if kind is WriteType.ROLLBACK else 7))

    error = prewrite(store, 5, mutation(b"a"), mutation(b"b"), primary_lock=b"p").errors[0]

    assert error.conflict == kvrpcpb.WriteConflict(
        start_ts=5,
        conflict_ts=8 if kind is WriteType.ROLLBACK else 7,
        conflict_commit_ts=8,
        key=b"a",
        primary=b"p",
        reason=Reason.Optimistic,
    )
    assert error.retryable
    assert lock_on(store, b"b") is None


def test_a_record_from_the_start_on_is_no_conflict(store: DirectStore) -> None:
    put(store, b"a", b"1", 3, 5)

    must_prewrite(store, 5, mutation(b"a"))


@pytest.mark.parametrize(
    "record",
    [Write.rollback(5, protected=False), Write(WriteType.PUT, 3, b"v", has_overlapped_rollback=True, gc_fence=0)],
)
def test_a_transaction_that_was_rolled_back_cannot_come_late(store: DirectStore, record: Write) -> None:
    put_write(store, b"a", 5, record)

    error = prewrite(store, 5, mutation(b"a")).errors[0]

    assert error.conflict.reason == Reason.SelfRolledBack
    assert error.conflict.conflict_commit_ts == 5


def test_a_prewrite_after_the_commit_is_a_success(store: DirectStore) -> None:
    put(store, b"a", b"1", 5, 8)

    must_prewrite(store, 5, mutation(b"a", b"1"))
    again = prewrite(store, 5, mutation(b"a", b"1"), use_async_commit=True)
    one_pc = prewrite(store, 5, mutation(b"a", b"1"), try_one_pc=True)
    must_prewrite(store, 9, mutation(b"a", b"2"))
    locked = prewrite(store, 5, mutation(b"a", b"1"), use_async_commit=True)

    assert (again.min_commit_ts, one_pc.one_pc_commit_ts) == (8, 8)
    assert (locked.min_commit_ts, list(locked.errors)) == (8, [])
    lock = lock_on(store, b"a")
    assert lock is not None
    assert lock.start_ts == 9


def test_checks_can_be_left_out(store: DirectStore) -> None:
    put(store, b"a", b"1", 7, 8)

    must_prewrite(store, 5, mutation(b"a"), skip_constraint_check=True)


def test_many_mutations_in_an_empty_range_are_not_checked_but_locks_are(store: DirectStore) -> None:
    must_prewrite(store, 4, mutation(b"k05"))
    put(store, b"z", b"1", 7, 8)

    many = [mutation(b"k%02d" % n) for n in reversed(range(13))]

    assert [error.locked.key for error in prewrite(store, 5, *many).errors] == [b"k05"]
    assert prewrite(store, 5, *many, mutation(b"z")).errors[-1].HasField("conflict")


# Insert and CheckNotExists.


@pytest.mark.parametrize("op", [Op.Insert, Op.CheckNotExists])
def test_what_exists_cannot_be_inserted(store: DirectStore, op: Op.ValueType) -> None:
    put(store, b"here", b"1", 1, 2)
    put(store, b"locked", b"1", 1, 2)
    must_prewrite(store, 3, mutation(b"locked", op=Op.Lock))
    commit(store, 3, 4, b"locked")
    put(store, b"gone", b"1", 1, 2)
    delete(store, b"gone", 3, 4)
    put_write(store, b"fenced", 4, Write(WriteType.PUT, 1, b"1", has_overlapped_rollback=True, gc_fence=6))
    put_write(store, b"rolled back", 4, Write.rollback(4, protected=True))

    refused = [prewrite(store, 9, mutation(key, op=op)).errors[0].already_exist.key for key in (b"here", b"locked")]

    assert refused == [b"here", b"locked"]
    must_prewrite(store, 9, *(mutation(key, op=op) for key in (b"gone", b"fenced", b"rolled back", b"new")))
    assert store.max_ts.value == 9
    assert (lock_on(store, b"new") is None) is (op == Op.CheckNotExists)


def test_an_update_takes_no_note_in_max_ts(store: DirectStore) -> None:
    must_prewrite(store, 9, mutation(b"a"))

    assert store.max_ts.value == 1


# Assertions.


@pytest.mark.parametrize(
    ("assertion", "history", "existing"),
    [
        (Assertion.Exist, "none", (0, 0)),
        (Assertion.Exist, "deleted", (3, 4)),
        (Assertion.Exist, "lock on deleted", (0, 0)),
        (Assertion.NotExist, "put", (1, 2)),
        (Assertion.NotExist, "lock on put", (1, 2)),
        (Assertion.Exist, "put", None),
        (Assertion.Exist, "lock on put", None),
        (Assertion.NotExist, "none", None),
        (Assertion.NotExist, "deleted", None),
        (Assertion.NotExist, "lock on deleted", None),
        (Assertion.NotExist, "fenced", None),
        (Assertion.Exist, "fenced", (0, 0)),
    ],
)
@pytest.mark.parametrize("level", [Level.Fast, Level.Strict])
def test_assertions_are_checked_against_the_newest_change(
    store: DirectStore,
    assertion: Assertion.ValueType,
    history: str,
    existing: tuple[int, int] | None,
    level: Level.ValueType,
) -> None:
    if history == "fenced":
        put_write(store, b"a", 4, Write(WriteType.PUT, 1, b"v", has_overlapped_rollback=True, gc_fence=6))
    elif history != "none":
        put(store, b"a", b"v", 1, 2)
    if "deleted" in history:
        delete(store, b"a", 3, 4)
    if "lock" in history:
        put_write(store, b"a", 6, Write(WriteType.LOCK, 5))

    errors = prewrite(store, 9, mutation(b"a", assertion=assertion), assertion_level=level).errors

    if existing is None:
        assert not errors
    else:
        assert errors[0].assertion_failed == kvrpcpb.AssertionFailed(
            start_ts=9, key=b"a", assertion=assertion, existing_start_ts=existing[0], existing_commit_ts=existing[1]
        )
        assert lock_on(store, b"a") is None


def test_a_level_decides_which_assertions_are_looked_at(store: DirectStore) -> None:
    def failures(level: Level.ValueType, **fields: Any) -> int:
        asserted = mutation(b"a", assertion=Assertion.Exist)
        return len(prewrite(store, 9, asserted, assertion_level=level, **fields).errors)

    assert failures(Level.Strict, skip_constraint_check=True) == 1
    assert failures(Level.Fast) == 1
    assert failures(Level.Fast, skip_constraint_check=True) == 0
    rollback(store, 9, b"a")
    assert failures(Level.Off, skip_constraint_check=True) == 0


def test_every_other_error_goes_before_a_failed_assertion(store: DirectStore) -> None:
    put(store, b"b", b"1", 10, 11)
    asserted = mutation(b"a", assertion=Assertion.Exist)
    outdated = mutation(b"b", assertion=Assertion.NotExist)

    conflict = prewrite(store, 9, asserted, mutation(b"b"), assertion_level=Level.Strict)
    unchecked = prewrite(store, 9, outdated, assertion_level=Level.Strict, skip_constraint_check=True)
    alone = prewrite(store, 9, asserted, mutation(b"c"), assertion_level=Level.Strict)

    assert conflict.errors[0].HasField("conflict")
    assert unchecked.errors[0].HasField("conflict")
    assert [error.HasField("assertion_failed") for error in alone.errors] == [True]
    assert lock_on(store, b"c") is None


# Last changes.


def test_a_lock_record_knows_where_the_last_change_is(store: DirectStore) -> None:
    def after(start_ts: int) -> LastChange:
        must_prewrite(store, start_ts, mutation(b"a", op=Op.Lock))
        lock = lock_on(store, b"a")
        assert lock is not None
        commit(store, start_ts, start_ts + 1, b"a")
        return lock.last_change

    assert after(1) == NO_CHANGE
    assert after(3) == NO_CHANGE
    put(store, b"a", b"1", 5, 6)
    assert [after(ts) for ts in (7, 9, 11)] == [LastChange(6, 1), LastChange(6, 2), LastChange(6, 3)]
    rollback(store, 13, b"a")
    assert after(15) == LastChange(6, 5)
    assert writes_of(store, b"a")[0] == (16, Write(WriteType.LOCK, 15, last_change=LastChange(6, 5)))
    assert get(store, b"a") == b"1"
    must_prewrite(store, 17, mutation(b"a", b"2"))
    changed = lock_on(store, b"a")
    assert changed is not None
    assert changed.last_change == UNKNOWN_CHANGE


# Async commit.


def test_an_async_commit_comes_after_every_read(store: DirectStore) -> None:
    get(store, b"other", 20)

    answer = prewrite(store, 5, mutation(b"p"), mutation(b"s"), use_async_commit=True, secondaries=[b"s", b"t"])

    assert (answer.min_commit_ts, answer.one_pc_commit_ts) == (21, 0)
    primary, secondary = lock_on(store, b"p"), lock_on(store, b"s")
    assert primary is not None
    assert secondary is not None
    assert (primary.use_async_commit, primary.min_commit_ts, primary.secondaries) == (True, 21, (b"s", b"t"))
    assert (secondary.use_async_commit, secondary.min_commit_ts, secondary.secondaries) == (True, 21, ())


@pytest.mark.parametrize(("start_ts", "asked", "expected"), [(30, 0, 31), (5, 50, 50), (5, 7, 21)])
def test_an_async_commit_comes_after_its_start_and_what_was_asked_for(
    store: DirectStore, start_ts: int, asked: int, expected: int
) -> None:
    get(store, b"other", 20)

    answer = prewrite(store, start_ts, mutation(b"p"), use_async_commit=True, min_commit_ts=asked)

    assert answer.min_commit_ts == expected


def test_the_same_async_prewrite_again_tells_the_same_timestamp(store: DirectStore) -> None:
    first = prewrite(store, 5, mutation(b"p"), use_async_commit=True)
    get(store, b"other", 20)

    again = prewrite(store, 5, mutation(b"p"), use_async_commit=True)

    assert again.min_commit_ts == first.min_commit_ts == 6


def test_an_async_prewrite_on_a_plain_lock_of_its_own_falls_back(store: DirectStore) -> None:
    must_prewrite(store, 5, mutation(b"b"))

    mixed = prewrite(store, 5, mutation(b"a"), mutation(b"b"), mutation(b"c"), use_async_commit=True)
    one_pc = prewrite(store, 5, mutation(b"b"), mutation(b"d"), try_one_pc=True, use_async_commit=True)

    assert (mixed.min_commit_ts, one_pc.min_commit_ts, one_pc.one_pc_commit_ts) == (0, 0, 0)
    locks = [lock_on(store, key) for key in (b"a", b"c", b"d")]
    assert [lock and lock.use_async_commit for lock in locks] == [True, False, False]


@pytest.mark.parametrize(
    "fields", [{"use_async_commit": True}, {"try_one_pc": True}, {"use_async_commit": True, "try_one_pc": True}]
)
def test_a_commit_that_would_be_too_late_falls_back(store: DirectStore, fields: dict[str, Any]) -> None:
    get(store, b"other", 20)

    answer = prewrite(store, 5, mutation(b"p", LONG), mutation(b"s"), secondaries=[b"s"], max_commit_ts=20, **fields)

    assert (answer.min_commit_ts, answer.one_pc_commit_ts, list(answer.errors)) == (0, 0, [])
    locks = [lock_on(store, key) for key in (b"p", b"s")]
    assert [lock and (lock.use_async_commit, lock.min_commit_ts, lock.secondaries) for lock in locks] == [
        (False, 0, ())
    ] * 2
    commit(store, 5, 21, b"p", b"s")
    assert get(store, b"p") == LONG


def test_a_too_late_commit_that_was_done_before_is_a_success(store: DirectStore) -> None:
    put(store, b"p", b"v", 5, 8)
    get(store, b"other", 20)

    answer = prewrite(store, 5, mutation(b"p"), use_async_commit=True, max_commit_ts=20, skip_constraint_check=True)

    assert answer.min_commit_ts == 8
    assert lock_on(store, b"p") is None


def test_a_check_alone_has_a_timestamp_too(store: DirectStore) -> None:
    check = mutation(b"p", op=Op.CheckNotExists)

    assert prewrite(store, 5, check, use_async_commit=True).min_commit_ts == 6
    assert prewrite(store, 5, check, try_one_pc=True, min_commit_ts=9).one_pc_commit_ts == 9
    assert prewrite(store, 5, check).min_commit_ts == 0


def test_a_new_leader_times_no_commit_before_the_reads_of_the_old_one() -> None:
    store = DirectStore(next_ts=lambda: 100)

    answer = prewrite(store, 5, mutation(b"p"), use_async_commit=True)

    assert answer.min_commit_ts == 101


# One-phase commit.


def test_one_phase_commit_leaves_records_and_no_locks(store: DirectStore) -> None:
    get(store, b"other", 20)

    answer = prewrite(store, 5, mutation(b"a", b"1"), mutation(b"b", LONG), mutation(b"c", op=Op.Del), try_one_pc=True)

    assert (answer.one_pc_commit_ts, answer.min_commit_ts) == (21, 0)
    assert [lock_on(store, key) for key in (b"a", b"b", b"c")] == [None] * 3
    assert writes_of(store, b"a") == [(21, Write(WriteType.PUT, 5, b"1"))]
    assert [get(store, key, 21) for key in (b"a", b"b", b"c")] == [b"1", LONG, None]
    assert get(store, b"a", 20) is None


def test_one_phase_commit_and_async_commit_can_both_be_asked_for(store: DirectStore) -> None:
    answer = prewrite(store, 5, mutation(b"a", b"1"), try_one_pc=True, use_async_commit=True)

    assert (answer.one_pc_commit_ts, answer.min_commit_ts) == (6, 6)
    assert lock_on(store, b"a") is None


def test_a_lock_in_the_way_keeps_one_phase_commit_from_writing(store: DirectStore) -> None:
    must_prewrite(store, 4, mutation(b"b"))

    answer = prewrite(store, 5, mutation(b"a"), mutation(b"b"), try_one_pc=True)

    assert [error.locked.lock_version for error in answer.errors] == [4]
    assert answer.one_pc_commit_ts == 0
    assert writes_of(store, b"a") == []
