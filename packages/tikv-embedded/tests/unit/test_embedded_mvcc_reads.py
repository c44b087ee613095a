"""KvGet, KvBatchGet and KvScan: what is seen at a timestamp, and which locks are in the way."""

from __future__ import annotations

from typing import Any

import pytest
from tikv_embedded.mvcc.keys import MAX_TS, append_ts, encode_key
from tikv_embedded.mvcc.lock import Lock, LockType
from tikv_embedded.mvcc.modifications import Modifications
from tikv_embedded.mvcc.write import LastChange, Write, WriteType
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.testing import DirectStore
from tikv_proto import kvrpcpb
from tikv_proto.services import Rpc, Tikv

LONG = bytes(256)


@pytest.fixture
def store() -> DirectStore:
    return DirectStore()


def commit(store: DirectStore, key: bytes, start_ts: int, commit_ts: int, value: bytes | None = None) -> None:
    """Write a committed value, or its deletion."""
    written = Modifications()
    if value is not None and len(value) > 255:
        written.put_value(key, start_ts, value)
    kind = WriteType.DELETE if value is None else WriteType.PUT
    short = None if value is None or len(value) > 255 else value
    written.put_write(key, commit_ts, Write(kind, start_ts, short))
    store.engine.write(written.batch)


def put_write(store: DirectStore, key: bytes, commit_ts: int, write: Write) -> None:
    written = Modifications()
    written.put_write(key, commit_ts, write)
    store.engine.write(written.batch)


def put_lock(store: DirectStore, key: bytes, lock: Lock) -> None:
    written = Modifications()
    written.put_lock(key, lock)
    store.engine.write(written.batch)


def get(store: DirectStore, key: bytes, version: int, **context: Any) -> kvrpcpb.GetResponse:
    return store.ask(Tikv.KvGet, key=key, version=version, context=context)


def seen(response: kvrpcpb.GetResponse) -> bytes | None:
    assert not response.HasField("error"), response.error
    assert not response.HasField("region_error"), response.region_error
    return None if response.not_found else response.value


# Versions.


def test_a_read_sees_what_was_committed_up_to_its_timestamp(store: DirectStore) -> None:
    commit(store, b"k", 1, 2, b"one")
    commit(store, b"k", 3, 4, b"")
    commit(store, b"k", 5, 6)
    commit(store, b"k", 7, 8, LONG)

    values = [seen(get(store, b"k", version)) for version in (0, 1, 2, 3, 4, 5, 6, 7, 8, MAX_TS)]

    assert values == [None, None, b"one", b"one", b"", b"", None, None, LONG, LONG]


def test_locks_and_rollbacks_among_the_records_are_passed_over(store: DirectStore) -> None:
    commit(store, b"k", 1, 2, b"v")
    put_write(store, b"k", 5, Write(WriteType.LOCK, 4))
    put_write(store, b"k", 6, Write.rollback(6, protected=True))

    assert seen(get(store, b"k", 9)) == b"v"


def test_a_record_that_knows_the_last_change_is_believed(store: DirectStore) -> None:
    commit(store, b"k", 1, 2, b"v")
    commit(store, b"k", 3, 4)
    put_write(store, b"k", 6, Write(WriteType.LOCK, 5, last_change=LastChange(2, 8)))
    put_write(store, b"k", 8, Write(WriteType.LOCK, 7, last_change=LastChange(0, 1)))

    assert seen(get(store, b"k", 6)) == b"v"
    assert seen(get(store, b"k", 8)) is None


def test_a_record_is_not_seen_from_its_gc_fence_on(store: DirectStore) -> None:
    put_write(store, b"k", 5, Write(WriteType.PUT, 1, b"v", has_overlapped_rollback=True, gc_fence=8))

    assert seen(get(store, b"k", 7)) == b"v"
    assert seen(get(store, b"k", 8)) is None


def test_the_commit_timestamp_is_told_on_demand(store: DirectStore) -> None:
    commit(store, b"k", 1, 2, b"v")

    answer = store.ask(Tikv.KvGet, key=b"k", version=9, need_commit_ts=True)
    pairs = store.ask(Tikv.KvBatchGet, keys=[b"k"], version=9, need_commit_ts=True).pairs

    assert (answer.value, answer.commit_ts) == (b"v", 2)
    assert [pair.commit_ts for pair in pairs] == [2]
    assert get(store, b"k", 9).commit_ts == 0


def test_a_long_value_that_is_missing_is_an_error(store: DirectStore) -> None:
    put_write(store, b"k", 5, Write(WriteType.PUT, 1))

    assert get(store, b"k", 9).error.abort.startswith("DefaultNotFound")


def test_the_details_that_clients_look_into_are_there(store: DirectStore) -> None:
    details = get(store, b"k", 9).exec_details_v2

    assert all(details.HasField(field) for field in ("time_detail", "time_detail_v2", "scan_detail_v2"))


# Locks.


@pytest.mark.parametrize(
    ("lock", "version", "is_in_the_way"),
    [
        (Lock(LockType.PUT, b"p", 5, 0), 5, True),
        (Lock(LockType.DELETE, b"p", 5, 0), 9, True),
        (Lock(LockType.PUT, b"p", 5, 0), 4, False),
        (Lock(LockType.LOCK, b"p", 5, 0), 9, False),
        (Lock(LockType.PESSIMISTIC, b"p", 5, 0), 9, False),
        (Lock(LockType.PUT, b"p", 5, 0, min_commit_ts=10), 9, False),
        (Lock(LockType.PUT, b"p", 5, 0, min_commit_ts=9), 9, True),
        (Lock(LockType.PUT, b"p", 5, 0), MAX_TS, True),
        (Lock(LockType.PUT, b"k", 5, 0), MAX_TS, False),
        (Lock(LockType.PUT, b"k", 5, 0, use_async_commit=True), MAX_TS, True),
        (Lock(LockType.PUT, b"k", 5, 0), 9, True),
    ],
)
def test_a_lock_is_in_the_way_of_those_who_cannot_know_its_outcome(
    store: DirectStore, lock: Lock, version: int, is_in_the_way: bool
) -> None:
    commit(store, b"k", 1, 2, b"v")
    put_lock(store, b"k", lock)

    answer = get(store, b"k", version)

    assert answer.error.HasField("locked") is is_in_the_way
    if not is_in_the_way:
        assert seen(answer) == b"v"


def test_the_lock_in_the_way_is_described(store: DirectStore) -> None:
    lock = Lock(
        LockType.PUT, b"p", 5, 3000, b"v", txn_size=7, min_commit_ts=6, use_async_commit=True, secondaries=(b"s",)
    )
    put_lock(store, b"k", lock)

    assert get(store, b"k", 9).error.locked == kvrpcpb.LockInfo(
        primary_lock=b"p",
        lock_version=5,
        key=b"k",
        lock_ttl=3000,
        txn_size=7,
        lock_type=kvrpcpb.Op.Put,
        use_async_commit=True,
        min_commit_ts=6,
        secondaries=[b"s"],
    )


def test_resolved_locks_are_passed_and_committed_ones_are_read(store: DirectStore) -> None:
    commit(store, b"k", 1, 2, b"old")
    put_lock(store, b"k", Lock(LockType.PUT, b"p", 5, 0, b"new"))
    commit(store, b"d", 1, 2, b"old")
    put_lock(store, b"d", Lock(LockType.DELETE, b"p", 5, 0))

    assert seen(get(store, b"k", 9, resolved_locks=[5])) == b"old"
    assert seen(get(store, b"k", 9, committed_locks=[5])) == b"new"
    assert seen(get(store, b"d", 9, committed_locks=[5])) is None
    wants_ts = store.ask(Tikv.KvGet, key=b"k", version=9, need_commit_ts=True, context={"committed_locks": [5]})
    assert wants_ts.error.locked.lock_version == 5


def test_a_long_value_is_read_from_a_committed_lock(store: DirectStore) -> None:
    put_lock(store, b"k", Lock(LockType.PUT, b"p", 5, 0))
    written = Modifications()
    written.put_value(b"k", 5, LONG)
    store.engine.write(written.batch)

    assert seen(get(store, b"k", 9, committed_locks=[5])) == LONG


def test_read_committed_overlooks_locks(store: DirectStore) -> None:
    commit(store, b"k", 1, 2, b"v")
    put_lock(store, b"k", Lock(LockType.PUT, b"p", 5, 0))

    assert seen(get(store, b"k", 9, isolation_level=kvrpcpb.IsolationLevel.RC)) == b"v"


def test_rc_check_ts_refuses_any_lock_that_could_change_the_key(store: DirectStore) -> None:
    level = kvrpcpb.IsolationLevel.RCCheckTS
    put_lock(store, b"k", Lock(LockType.PUT, b"p", 50, 0, min_commit_ts=60))
    put_lock(store, b"l", Lock(LockType.LOCK, b"p", 5, 0))

    refused = get(store, b"k", 9, isolation_level=level).error

    assert refused.conflict == kvrpcpb.WriteConflict(
        start_ts=9, conflict_ts=50, key=b"k", primary=b"p", reason=kvrpcpb.WriteConflict.Reason.RcCheckTs
    )
    assert refused.retryable
    assert seen(get(store, b"k", 9, isolation_level=level, resolved_locks=[50])) is None
    assert seen(get(store, b"l", 9, isolation_level=level)) is None


def test_rc_check_ts_refuses_newer_records(store: DirectStore) -> None:
    level = kvrpcpb.IsolationLevel.RCCheckTS
    commit(store, b"k", 1, 10, b"v")

    refused = get(store, b"k", 9, isolation_level=level).error

    assert refused.conflict == kvrpcpb.WriteConflict(
        start_ts=9,
        conflict_commit_ts=10,
        key=append_ts(encode_key(b"k"), 10),
        reason=kvrpcpb.WriteConflict.Reason.RcCheckTs,
    )
    assert seen(get(store, b"k", 10, isolation_level=level)) == b"v"


# Batches.


def test_a_batch_answers_in_order_and_locks_come_without_their_keys(store: DirectStore) -> None:
    commit(store, b"a", 1, 2, b"1")
    commit(store, b"c", 1, 2, b"3")
    put_lock(store, b"b", Lock(LockType.PUT, b"p", 5, 0))

    pairs = store.ask(Tikv.KvBatchGet, keys=[b"c", b"b", b"x", b"a", b"c"], version=9).pairs

    assert [(pair.key, pair.value) for pair in pairs] == [(b"c", b"3"), (b"", b""), (b"a", b"1"), (b"c", b"3")]
    assert pairs[1].error.locked.key == b"b"


def test_a_key_outside_the_region_aborts_point_reads() -> None:
    store = DirectStore(start_key=b"b", end_key=b"y")

    one = store.ask(Tikv.KvGet, key=b"a", version=9)
    some = store.ask(Tikv.KvBatchGet, keys=[b"c", b"z"], version=9)

    assert "not in region" in one.error.abort
    assert "not in region" in some.error.abort
    assert [pair.error for pair in some.pairs] == [some.error]


# Scans.


def scan(store: DirectStore, start: bytes, end: bytes, *, limit: int = 100, **fields: Any) -> list[bytes]:
    """Return the keys found; locks as `!` and the key."""
    answer = store.ask(Tikv.KvScan, start_key=start, end_key=end, limit=limit, version=9, **fields)
    assert not answer.HasField("error"), answer.error
    assert not answer.HasField("region_error"), answer.region_error
    return [b"!" + pair.error.locked.key if pair.HasField("error") else pair.key for pair in answer.pairs]


@pytest.fixture
def filled(store: DirectStore) -> DirectStore:
    """Keys a to g; b is locked, d deleted, e locked with no older value, f too new."""
    for key in (b"a", b"b", b"c", b"d", b"g"):
        commit(store, key, 1, 2, key * 2)
    commit(store, b"d", 3, 4)
    commit(store, b"f", 10, 11, b"f")
    for key in (b"b", b"e"):
        put_lock(store, key, Lock(LockType.PUT, b"b", 5, 0, b"new"))
    return store


def test_a_scan_goes_both_ways_and_on_behind_locks(filled: DirectStore) -> None:
    assert scan(filled, b"", b"") == [b"a", b"!b", b"c", b"!e", b"g"]
    assert scan(filled, b"b", b"g") == [b"!b", b"c", b"!e"]
    assert scan(filled, b"", b"", reverse=True) == [b"g", b"!e", b"c", b"!b", b"a"]
    assert scan(filled, b"g", b"b", reverse=True) == [b"!e", b"c", b"!b"]


def test_the_limit_of_a_scan_counts_locks(filled: DirectStore) -> None:
    assert scan(filled, b"", b"", limit=2) == [b"a", b"!b"]
    assert scan(filled, b"", b"", limit=0) == []


def test_a_scan_can_leave_values_and_rows_out(filled: DirectStore) -> None:
    pairs = filled.ask(Tikv.KvScan, limit=9, version=9, key_only=True).pairs

    assert [pair.value for pair in pairs] == [b""] * 5
    assert scan(filled, b"", b"", sample_step=2) == [b"a", b"!b", b"!e", b"g"]
    assert scan(filled, b"", b"", sample_step=9) == [b"a", b"!b", b"!e"]


def test_a_scan_reads_as_its_context_says(filled: DirectStore) -> None:
    everything = [b"a", b"b", b"c", b"g"]

    assert scan(filled, b"", b"", context={"isolation_level": kvrpcpb.IsolationLevel.RC}) == everything
    assert scan(filled, b"", b"", context={"resolved_locks": [5]}) == everything
    assert scan(filled, b"", b"", context={"committed_locks": [5]}) == [b"a", b"b", b"c", b"e", b"g"]


def test_a_conflict_ends_a_scan(filled: DirectStore) -> None:
    context = {"isolation_level": kvrpcpb.IsolationLevel.RCCheckTS}

    answer = filled.ask(Tikv.KvScan, limit=9, version=9, context=context)

    assert answer.error.conflict.key == b"b"
    assert [pair.error for pair in answer.pairs] == [answer.error]


def test_a_scan_is_cut_at_open_ends_and_refused_beyond_the_region() -> None:
    store = DirectStore(start_key=b"c", end_key=b"f")
    for key in (b"a", b"c", b"e", b"g"):
        commit(store, key, 1, 2, b"v")

    def refusal(start: bytes, end: bytes, *, reverse: bool = False) -> kvrpcpb.ScanResponse:
        return store.ask(Tikv.KvScan, start_key=start, end_key=end, limit=9, version=9, reverse=reverse)

    assert scan(store, b"c", b"") == [b"c", b"e"]
    assert scan(store, b"", b"", reverse=True) == [b"e", b"c"]
    assert scan(store, b"f", b"c", reverse=True) == [b"e", b"c"]
    for outside in (refusal(b"b", b""), refusal(b"c", b"g"), refusal(b"g", b"c", reverse=True)):
        assert outside.error.abort.startswith("InvalidReqRange")
    assert refusal(b"e", b"b", reverse=True).error.abort.startswith("InvalidReqRange")
    assert refusal(b"g", b"").region_error.HasField("key_not_in_region")
    assert refusal(b"b", b"", reverse=True).region_error.HasField("key_not_in_region")


# What reads leave behind.


def test_every_read_raises_max_ts_but_stale_ones_and_those_of_the_newest(store: DirectStore) -> None:
    reached = []
    rpcs: tuple[Rpc[Any, Any], ...] = (Tikv.KvGet, Tikv.KvBatchGet, Tikv.KvScan)

    for rpc in rpcs:
        store.ask(rpc, version=(before := store.max_ts.value) + 5)
        reached.append(store.max_ts.value - before)
    get(store, b"k", MAX_TS)

    assert reached == [5, 5, 5]
    assert store.max_ts.value < MAX_TS


def test_a_read_far_in_the_future_is_refused_before_it_spoils_commits(store: DirectStore) -> None:
    answer = get(store, b"k", 1 << 62)

    assert answer.region_error.message.startswith("invalid max_ts update")
    assert store.max_ts.value == 1


def test_followers_answer_when_asked_to_and_the_leader_notes_it(store: DirectStore) -> None:
    commit(store, b"k", 1, 2, b"v")

    refused = store.ask(Tikv.KvGet, key=b"k", version=9, store_id=2)
    answered = store.ask(Tikv.KvGet, key=b"k", version=9, store_id=2, context={"replica_read": True})

    assert refused.region_error.HasField("not_leader")
    assert answered.value == b"v"
    assert store.max_ts.value == 9


def test_stale_reads_end_at_the_clock_and_at_the_oldest_lock() -> None:
    store = DirectStore(next_ts=lambda: 100)
    commit(store, b"k", 1, 2, b"v")

    def stale(version: int) -> kvrpcpb.GetResponse:
        return store.ask(Tikv.KvGet, key=b"k", version=version, store_id=2, context={"stale_read": True})

    assert stale(100).value == b"v"
    late = stale(101).region_error.data_is_not_ready
    assert (late.region_id, late.peer_id, late.safe_ts) == (1, 12, 100)
    put_lock(store, b"other", Lock(LockType.PUT, b"p", 50, 0))
    assert stale(50).value == b"v"
    assert stale(51).region_error.data_is_not_ready.safe_ts == 50


# API versions.


@pytest.mark.parametrize(
    ("mode", "version", "key", "refusal"),
    [
        (ApiMode.V1, 0, b"any", ""),
        (ApiMode.V1, 2, b"x", "ApiVersionNotMatched"),
        (ApiMode.V1TTL, 0, b"any", "ApiVersionNotMatched"),
        (ApiMode.V2, 2, b"x\0\0\1k", ""),
        (ApiMode.V2, 2, b"r\0\0\1k", "InvalidKeyMode"),
        (ApiMode.V2, 2, b"", "InvalidKeyMode"),
        (ApiMode.V2, 0, b"t1", ""),
        (ApiMode.V2, 0, b"x\0\0\1k", "InvalidKeyMode"),
    ],
)
def test_keys_must_fit_the_api_version(mode: ApiMode, version: int, key: bytes, refusal: str) -> None:
    store, context = DirectStore(mode=mode), {"api_version": version}

    answers = [
        store.ask(Tikv.KvGet, key=key, version=9, context=context).error.abort,
        store.ask(Tikv.KvBatchGet, keys=[key], version=9, context=context).error.abort,
    ]
    prewritten = store.ask(
        Tikv.KvPrewrite, mutations=[kvrpcpb.Mutation(key=key)], start_version=5, context=context
    ).errors

    assert [answer.partition(":")[0] for answer in answers] == [refusal] * 2
    assert [error.abort.partition(":")[0] for error in prewritten] == ([refusal] if refusal else [])


@pytest.mark.parametrize(
    ("start", "end", "is_fine"),
    [
        (b"x\0\0\1", b"x\0\0\2", True),
        (b"x\0\0\1", b"y", True),
        (b"x\0\0\1", b"ya", False),
        (b"x\0\0\1", b"", False),
        (b"", b"x", False),
        (b"r\0\0\1", b"r\0\0\2", False),
    ],
)
def test_ranges_must_fit_the_keyspaces(start: bytes, end: bytes, is_fine: bool) -> None:
    store, context = DirectStore(mode=ApiMode.V2), {"api_version": 2}

    forward = store.ask(Tikv.KvScan, start_key=start, end_key=end, limit=1, version=9, context=context)
    backward = store.ask(Tikv.KvScan, start_key=end, end_key=start, reverse=True, limit=1, version=9, context=context)
    deleted = store.ask(Tikv.KvDeleteRange, start_key=start, end_key=end, context=context)

    expected = "" if is_fine else "InvalidKeyRangeMode"
    answers = (forward.error.abort, backward.error.abort, deleted.error)
    assert [answer.partition(":")[0] for answer in answers] == [expected] * 3
