"""Decisions about locks: each row of each table."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, strategies as st
from tikv_pd import Timestamp
from tikv_proto import kvrpcpb
from tikv_region import KeyspaceCodec, TxnV1Codec
from tikv_txn._locks.locks import (
    MISPLACED,
    EndedTransactions,
    Fate,
    Lock,
    NotFound,
    Passage,
    Remedy,
    SecondariesAnswer,
    TxnStatus,
    needs_recovery,
    passage,
    recover,
    remedy,
    seconds_blocked,
    when_not_found,
)
from tikv_txn.errors import InconsistentLocks

CODEC = TxnV1Codec()
Action, Op = kvrpcpb.Action, kvrpcpb.Op


def ts(seconds: float) -> int:
    return Timestamp(int(seconds * 1000), 0).ts


START = ts(100)
ALIVE = TxnStatus(Fate.ALIVE, ttl_ms=3000)
PUSHED = TxnStatus(Fate.ALIVE, ttl_ms=3000, is_pushed=True)
COMMITTED = TxnStatus(Fate.COMMITTED, ts(101), is_primary_clear=True)
ROLLED_BACK = TxnStatus(Fate.ROLLED_BACK, is_primary_clear=True)
UNKNOWN = TxnStatus(Fate.UNKNOWN, is_primary_clear=True)


def lock(key: bytes = b"k", **fields: Any) -> Lock:
    return Lock(key, b"p", START, **{"ttl_ms": 3000, **fields})


def async_lock(key: bytes = b"p", min_commit_ts: int = START + 1, **fields: Any) -> Lock:
    return lock(key, use_async_commit=True, min_commit_ts=min_commit_ts, **fields)


def response(**fields: Any) -> kvrpcpb.CheckTxnStatusResponse:
    return kvrpcpb.CheckTxnStatusResponse(**fields)


# --- what stores tell -------------------------------------------------------------------------------------------------


def test_a_lock_has_the_keys_that_users_know() -> None:
    codec = KeyspaceCodec(b"x", 7, "seven")
    info = kvrpcpb.LockInfo(
        key=codec.encode_key(b"k"),
        primary_lock=codec.encode_key(b"p"),
        lock_version=START,
        lock_ttl=3000,
        txn_size=5,
        use_async_commit=True,
        min_commit_ts=START + 1,
        secondaries=[codec.encode_key(b"k")],
    )

    assert Lock.of(info, codec) == [
        Lock(b"k", b"p", START, 3000, 5, use_async_commit=True, min_commit_ts=START + 1, secondaries=(b"k",))
    ]


@pytest.mark.parametrize(
    ("kind", "is_pessimistic"),
    [
        (Op.Put, False),
        (Op.Del, False),
        (Op.Lock, False),
        (Op.PessimisticLock, True),
        (Op.SharedPessimisticLock, True),
    ],
)
def test_some_kinds_of_locks_are_pessimistic(kind: Any, is_pessimistic: bool) -> None:
    [found] = Lock.of(kvrpcpb.LockInfo(key=b"k", lock_type=kind, lock_for_update_ts=9), CODEC)

    assert (found.is_pessimistic, found.for_update_ts) == (is_pessimistic, 9)


def test_those_that_share_a_key_are_locks_each() -> None:
    inner = [
        kvrpcpb.LockInfo(primary_lock=b"p1", lock_version=1, lock_type=Op.Lock),
        kvrpcpb.LockInfo(primary_lock=b"p2", lock_version=2, lock_type=Op.PessimisticLock),
    ]

    found = Lock.of(kvrpcpb.LockInfo(key=b"k", lock_type=Op.SharedLock, shared_lock_infos=inner), CODEC)

    assert found == [Lock(b"k", b"p1", 1), Lock(b"k", b"p2", 2, is_pessimistic=True)]


PRIMARY = kvrpcpb.LockInfo(key=b"p", primary_lock=b"p", lock_version=START, lock_ttl=3000)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (response(lock_ttl=3000), ALIVE),
        (response(lock_ttl=3000, action=Action.MinCommitTSPushed), PUSHED),
        (response(lock_ttl=3000, lock_info=PRIMARY), TxnStatus(Fate.ALIVE, ttl_ms=3000, primary=lock(b"p"))),
        (
            response(lock_info=kvrpcpb.LockInfo(key=b"p", primary_lock=b"p", lock_version=START)),
            TxnStatus(Fate.ALIVE, primary=lock(b"p", ttl_ms=0)),
        ),
        (response(commit_version=ts(101)), COMMITTED),
        (response(), ROLLED_BACK),
        (response(action=Action.TTLExpireRollback), ROLLED_BACK),
        (response(action=Action.LockNotExistRollback), ROLLED_BACK),
        (response(action=Action.TTLExpirePessimisticRollback), UNKNOWN),
        (response(action=Action.LockNotExistDoNothing), UNKNOWN),
        (response(action=Action.MinCommitTSPushed), UNKNOWN),
    ],
)
def test_the_primary_key_says_what_became_of_a_transaction(
    answer: kvrpcpb.CheckTxnStatusResponse, status: TxnStatus
) -> None:
    assert TxnStatus.of(answer, CODEC) == status
    assert status.is_ended == (status.fate in {Fate.COMMITTED, Fate.ROLLED_BACK})


@pytest.mark.parametrize(
    ("met", "now", "decision"),
    [
        (lock(), 102.9, NotFound.WAIT),
        (lock(), 103.0, NotFound.ROLL_BACK),
        (lock(ttl_ms=0), 100.0, NotFound.ROLL_BACK),
        (lock(is_pessimistic=True), 102.9, NotFound.IS_ALIVE),
        (lock(is_pessimistic=True), 103.0, NotFound.ROLL_BACK),
    ],
)
def test_a_primary_key_that_knows_nothing(met: Lock, now: float, decision: NotFound) -> None:
    assert when_not_found(met, ts(now)) is decision


# --- what is done about a lock ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("met", "status", "expected"),
    [
        (lock(), ALIVE, Remedy.NOTHING),
        (lock(), PUSHED, Remedy.NOTHING),
        (lock(txn_size=512), ALIVE, Remedy.NOTHING),
        (lock(is_pessimistic=True), ALIVE, Remedy.NOTHING),
        (lock(), COMMITTED, Remedy.RESOLVE_KEY),
        (lock(), ROLLED_BACK, Remedy.RESOLVE_KEY),
        (lock(txn_size=511), COMMITTED, Remedy.RESOLVE_KEY),
        (lock(txn_size=512), COMMITTED, Remedy.RESOLVE_REGION),
        (lock(b"p"), COMMITTED, Remedy.NOTHING),
        (lock(b"p"), ROLLED_BACK, Remedy.NOTHING),
        (lock(b"p", txn_size=512), COMMITTED, Remedy.RESOLVE_REGION),
        (lock(b"p"), TxnStatus(Fate.COMMITTED, ts(101)), Remedy.RESOLVE_KEY),
        (lock(), UNKNOWN, Remedy.NOTHING),
        (lock(), MISPLACED, Remedy.NOTHING),
        (lock(is_pessimistic=True), UNKNOWN, Remedy.ROLL_BACK_PESSIMISTIC),
        (lock(is_pessimistic=True), MISPLACED, Remedy.ROLL_BACK_PESSIMISTIC),
        (lock(is_pessimistic=True), COMMITTED, Remedy.ROLL_BACK_PESSIMISTIC),
        (lock(is_pessimistic=True), ROLLED_BACK, Remedy.ROLL_BACK_PESSIMISTIC),
        (lock(is_pessimistic=True, txn_size=512), ROLLED_BACK, Remedy.ROLL_BACK_PESSIMISTIC),
        (lock(b"p", is_pessimistic=True), UNKNOWN, Remedy.NOTHING),
        (lock(b"p", is_pessimistic=True), MISPLACED, Remedy.ROLL_BACK_PESSIMISTIC),
    ],
)
def test_remedies(met: Lock, status: TxnStatus, expected: Remedy) -> None:
    assert remedy(met, status, lite_below=512) is expected


def test_a_key_may_always_be_resolved_alone() -> None:
    assert remedy(lock(txn_size=2**64 - 1), COMMITTED, lite_below=math.inf) is Remedy.RESOLVE_KEY


@pytest.mark.parametrize(
    ("status", "read_at", "expected", "seconds"),
    [
        (COMMITTED, 101, Passage.ACCESS, None),
        (COMMITTED, 100.999, Passage.IGNORE, None),
        (ROLLED_BACK, 101, Passage.IGNORE, None),
        (PUSHED, 101, Passage.IGNORE, 2.0),
        (ALIVE, 101, Passage.WAIT, 2.0),
        (TxnStatus(Fate.ALIVE, ttl_ms=500), 101, Passage.WAIT, 0.0),
        (UNKNOWN, 101, Passage.WAIT, 0.0),
        (MISPLACED, 101, Passage.WAIT, 0.0),
    ],
)
def test_passages(status: TxnStatus, read_at: float, expected: Passage, seconds: float | None) -> None:
    assert passage(status, ts(read_at)) is expected
    assert seconds_blocked(lock(), status, ts(101)) == seconds


# --- async commit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "now", "expected"),
    [
        (TxnStatus(Fate.ALIVE, ttl_ms=3000, primary=async_lock()), 102.9, False),
        (TxnStatus(Fate.ALIVE, ttl_ms=3000, primary=async_lock()), 103.0, True),
        (TxnStatus(Fate.ALIVE, ttl_ms=3000, primary=lock(b"p")), 200, False),
        (ALIVE, 200, False),
        (COMMITTED, 200, False),
        (UNKNOWN, 200, False),
    ],
)
def test_an_async_commit_whose_time_is_over_is_recovered(status: TxnStatus, now: float, expected: bool) -> None:
    assert needs_recovery(lock(), status, ts(now)) is expected


def answer(asked: int, *min_commit: int, commit_ts: int = 0, is_async: bool = True) -> SecondariesAnswer:
    locks = tuple(async_lock(b"s", START + at) for at in min_commit)
    if not is_async:
        locks = tuple(lock(b"s") for _ in min_commit)
    return SecondariesAnswer(asked, locks, START + commit_ts if commit_ts else 0)


@pytest.mark.parametrize(
    ("answers", "commit_at"),
    [
        ([], 5),
        ([answer(1, 3)], 5),
        ([answer(1, 6)], 6),
        ([answer(2, 6, 9), answer(1, 8)], 9),
        ([answer(2, 6, commit_ts=9)], 9),
        ([answer(2, 6), answer(1, 3)], None),
        ([answer(1), answer(2, 6)], None),
        ([answer(1), answer(2, 3, 4)], None),
        ([answer(1, commit_ts=5)], 5),
        ([answer(1, commit_ts=9), answer(1, commit_ts=9), answer(1, 9)], 9),
    ],
)
def test_the_keys_of_an_async_commit_say_together_what_became_of_it(
    answers: list[SecondariesAnswer], commit_at: int | None
) -> None:
    status = recover(async_lock(min_commit_ts=START + 5), answers)

    expected = TxnStatus(Fate.ROLLED_BACK) if commit_at is None else TxnStatus(Fate.COMMITTED, START + commit_at)
    assert status == expected


@pytest.mark.parametrize(
    "answers",
    [
        [answer(1, 6, is_async=False)],
        [answer(1, 6), answer(1, 6, is_async=False)],
        [answer(1), answer(1, 6, is_async=False)],
        [answer(1, commit_ts=9), answer(1, 6, is_async=False)],
    ],
)
def test_a_key_that_was_locked_otherwise_leaves_it_to_the_primary_one(answers: list[SecondariesAnswer]) -> None:
    assert recover(async_lock(), answers) is None


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([answer(1, commit_ts=4)], "below a lock's"),
        ([answer(1, commit_ts=8), answer(1, 9)], "below a lock's"),
        ([answer(1, commit_ts=8), answer(1, commit_ts=9)], "ended differently"),
        ([answer(1, commit_ts=8), answer(1)], "ended differently"),
        ([SecondariesAnswer(1, (Lock(b"s", b"p", START + 1, use_async_commit=True),))], "another transaction"),
    ],
)
def test_keys_that_contradict_each_other_decide_nothing(answers: list[SecondariesAnswer], words: str) -> None:
    with pytest.raises(InconsistentLocks, match=words):
        recover(async_lock(min_commit_ts=START + 5), answers)


def test_an_answer_of_a_store_about_secondaries() -> None:
    message = kvrpcpb.CheckSecondaryLocksResponse(locks=[kvrpcpb.LockInfo(key=b"k", lock_version=3)], commit_ts=4)

    assert SecondariesAnswer.of(2, message, CODEC) == SecondariesAnswer(2, (Lock(b"k", b"", 3),), 4)


@given(
    regions=st.lists(
        st.lists(st.tuples(st.sampled_from(["locked", "ended", "absent"]), st.integers(1, 50)), min_size=1)
    ),
    primary=st.integers(1, 50),
    order=st.randoms(use_true_random=False),
)
def test_an_async_commit_has_one_fate_whoever_asks(
    regions: list[list[tuple[str, int]]], primary: int, order: Any
) -> None:
    """Keys that are locked, no longer, or never were: stores answer by their rules, and the fate is what it must be."""
    keys = [key for region in regions for key in region]
    # Nobody can have ended it as committed while a key was never locked.
    has_absent = any(state == "absent" for state, _ in keys)
    commit_at = max([primary, *(at for _, at in keys)])
    answers = []
    for region in regions:
        locked = []
        for state, at in region:
            if state == "locked":
                locked.append(async_lock(b"s", START + at))
                continue
            # The first key without its lock ends the store's look at the Region.
            answers.append(SecondariesAnswer(len(region), (), 0 if has_absent else START + commit_at))
            break
        else:
            answers.append(SecondariesAnswer(len(region), tuple(locked)))
    order.shuffle(answers)

    status = recover(async_lock(min_commit_ts=START + primary), answers)

    assert status == (TxnStatus(Fate.ROLLED_BACK) if has_absent else TxnStatus(Fate.COMMITTED, START + commit_at))


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_what_has_ended_is_remembered_and_the_first_forgotten() -> None:
    ended = EndedTransactions(2)
    for start in (1, 2, 1, 3):
        ended.add(Lock(b"k", b"p", start), COMMITTED)

    assert len(ended) == 2
    assert [ended.get(start) for start in (1, 2, 3)] == [None, COMMITTED, COMMITTED]


@pytest.mark.parametrize("status", [ALIVE, PUSHED, UNKNOWN, MISPLACED])
def test_what_may_change_is_not_remembered(status: TxnStatus) -> None:
    ended = EndedTransactions(2)
    ended.add(lock(), status)

    assert ended.get(START) is None


def test_a_transaction_does_not_end_twice() -> None:
    ended = EndedTransactions(2)
    ended.add(lock(), COMMITTED)
    ended.add(lock(), TxnStatus(Fate.COMMITTED, COMMITTED.commit_ts))

    with pytest.raises(InconsistentLocks, match="ended twice") as caught:
        ended.add(lock(), ROLLED_BACK)

    assert str(caught.value).startswith(f"the transaction of {START} with primary key 0x70: ")
