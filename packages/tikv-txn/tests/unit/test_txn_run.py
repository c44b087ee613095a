import pytest
from tikv_pd import ClosedError, DeadlineExceeded, TikvError, UndeterminedError
from tikv_txn._run import may_run_again
from tikv_txn.errors import (
    AlreadyExists,
    KeyLocked,
    SnapshotTooOld,
    TransactionAborted,
    TransactionTooLarge,
    WriteConflict,
)
from tikv_txn.transaction import TransactionState

CONFLICT = WriteConflict(b"k", b"p", 1, 2, 3, "Optimistic")


@pytest.mark.parametrize(
    "error",
    [
        CONFLICT,
        KeyLocked(b"k", b"p", 1, 3.0),
        TransactionAborted("commit", b"k", "gone"),
        SnapshotTooOld(1, 2),
        DeadlineExceeded("get", 1.0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_another_transaction_may_not_meet_is_tried_again(error: TikvError) -> None:
    assert may_run_again(error, TransactionState.ROLLED_BACK)


@pytest.mark.parametrize(
    "error",
    [
        AlreadyExists(b"k"),
        TransactionTooLarge(2, 1),
        ClosedError("TransactionClient"),
        UndeterminedError("commit"),
        LookupError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_any_transaction_would_meet_is_not(error: Exception) -> None:
    assert not may_run_again(error, TransactionState.ROLLED_BACK)


@pytest.mark.parametrize(
    "state", [TransactionState.COMMITTED, TransactionState.COMMITTING, TransactionState.UNDETERMINED]
)
def test_what_has_committed_or_may_have_never_runs_again(state: TransactionState) -> None:
    assert not may_run_again(CONFLICT, state)


def test_a_group_of_errors_is_tried_again_when_each_of_them_is() -> None:
    nested = ExceptionGroup("", [CONFLICT, ExceptionGroup("", [SnapshotTooOld(1, 2)])])

    assert may_run_again(nested, TransactionState.ROLLED_BACK)
    assert not may_run_again(ExceptionGroup("", [CONFLICT, LookupError()]), TransactionState.ROLLED_BACK)
