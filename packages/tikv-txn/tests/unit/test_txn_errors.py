from __future__ import annotations

import pickle
from copy import copy

import pytest
from tikv_pd import TikvError
from tikv_proto import kvrpcpb
from tikv_region import KeyCodec, KeyspaceCodec, TxnV1Codec, redact
from tikv_txn.errors import (
    AlreadyExists,
    AssertionFailed,
    CommitTsExpired,
    CommitTsLag,
    CommitTsTooLarge,
    KeyLocked,
    KeyTooLarge,
    PrimaryMismatch,
    SnapshotTooOld,
    TransactionAborted,
    TransactionEnded,
    TransactionExpired,
    TransactionNotFound,
    TransactionRefused,
    TransactionTooLarge,
    ValueTooLarge,
    WriteConflict,
    key_error,
)

ERRORS: list[TikvError] = [
    WriteConflict(b"secret", b"primary", 10, 11, 12, "Optimistic"),
    WriteConflict(b"secret", b"", 10, 11, 0, "Optimistic"),
    WriteConflict(b"secret", b"", 10, 10, 0, "SelfRolledBack"),
    AlreadyExists(b"secret"),
    KeyLocked(b"secret", b"primary", 10, 3.0),
    AssertionFailed(b"secret", 10, True, 0, 0),
    AssertionFailed(b"secret", 10, False, 5, 6),
    TransactionAborted("commit", b"secret", "lock not found"),
    TransactionAborted("commit", b"", "try again"),
    TransactionRefused("prewrite", "no"),
    TransactionNotFound(10, b"secret"),
    PrimaryMismatch(b"secret", b"primary", 10),
    CommitTsExpired(b"secret", 10, 11, 12),
    CommitTsTooLarge(12),
    CommitTsLag(10, 11, 1.0),
    TransactionExpired(10, 90000.0, 86400.0),
    TransactionEnded(10, "committed"),
    SnapshotTooOld(10, 11),
    KeyTooLarge(b"secret", 10, 9),
    ValueTooLarge(b"secret", 10, 9),
    TransactionTooLarge(10, 9),
]


def fields_of(error: TikvError) -> tuple[object, ...]:
    return (type(error), *error.args)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_and_says_what_happened_without_values_or_bare_keys(error: TikvError) -> None:
    again = pickle.loads(pickle.dumps(error))

    assert fields_of(again) == fields_of(error)
    assert str(again) == str(error) != ""
    assert "secret" not in str(error)
    assert not error.undetermined


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_keys_of_an_error_can_be_redacted(error: TikvError) -> None:
    redacted = copy(error)

    redact(redacted, "on")

    assert b"secret".hex() not in str(redacted)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            kvrpcpb.KeyError(
                conflict=kvrpcpb.WriteConflict(
                    start_ts=10,
                    conflict_ts=11,
                    conflict_commit_ts=12,
                    key=b"k",
                    primary=b"p",
                    reason=kvrpcpb.WriteConflict.Optimistic,
                ),
                retryable="for people",
            ),
            WriteConflict(b"k", b"p", 10, 11, 12, "Optimistic"),
        ),
        (kvrpcpb.KeyError(already_exist=kvrpcpb.AlreadyExist(key=b"k")), AlreadyExists(b"k")),
        (
            kvrpcpb.KeyError(
                locked=kvrpcpb.LockInfo(key=b"k", primary_lock=b"p", lock_version=10, lock_ttl=3000),
            ),
            KeyLocked(b"k", b"p", 10, 3.0),
        ),
        (
            kvrpcpb.KeyError(
                assertion_failed=kvrpcpb.AssertionFailed(
                    key=b"k",
                    start_ts=10,
                    assertion=kvrpcpb.NotExist,
                    existing_start_ts=5,
                    existing_commit_ts=6,
                )
            ),
            AssertionFailed(b"k", 10, False, 5, 6),
        ),
        (
            kvrpcpb.KeyError(
                commit_ts_expired=kvrpcpb.CommitTsExpired(
                    key=b"k", start_ts=10, attempted_commit_ts=11, min_commit_ts=12
                )
            ),
            CommitTsExpired(b"k", 10, 11, 12),
        ),
        (
            kvrpcpb.KeyError(commit_ts_too_large=kvrpcpb.CommitTsTooLarge(commit_ts=12)),
            CommitTsTooLarge(12),
        ),
        (
            kvrpcpb.KeyError(txn_not_found=kvrpcpb.TxnNotFound(start_ts=10, primary_key=b"p")),
            TransactionNotFound(10, b"p"),
        ),
        (
            kvrpcpb.KeyError(
                primary_mismatch=kvrpcpb.PrimaryMismatch(
                    lock_info=kvrpcpb.LockInfo(key=b"k", primary_lock=b"p", lock_version=10)
                )
            ),
            PrimaryMismatch(b"k", b"p", 10),
        ),
        (
            kvrpcpb.KeyError(txn_lock_not_found=kvrpcpb.TxnLockNotFound(key=b"k"), retryable="gone"),
            TransactionAborted("commit", b"k", "gone"),
        ),
        (kvrpcpb.KeyError(retryable="again"), TransactionAborted("commit", b"", "again")),
        (kvrpcpb.KeyError(abort="never"), TransactionRefused("commit", "never")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, TikvError) else "",
)
@pytest.mark.parametrize("codec", [TxnV1Codec(), KeyspaceCodec(b"x", 7, "ks")], ids=["v1", "v2"])
def test_each_key_error_becomes_an_error_of_its_own(
    message: kvrpcpb.KeyError, expected: TikvError, codec: KeyCodec
) -> None:
    travelled = kvrpcpb.KeyError()
    travelled.CopyFrom(message)
    encode_keys_of(travelled, codec)

    error = key_error(travelled, codec, operation="commit")

    assert fields_of(error) == fields_of(expected)


def encode_keys_of(message: kvrpcpb.KeyError, codec: KeyCodec) -> None:
    for _, part in message.ListFields():
        if isinstance(part, str):
            continue
        inner = part.lock_info if "lock_info" in part.DESCRIPTOR.fields_by_name else part
        for field, value in inner.ListFields():
            if isinstance(value, bytes):
                setattr(inner, field.name, codec.encode_key(value))


def test_an_error_this_client_has_no_name_for_is_told_in_full() -> None:
    error = key_error(kvrpcpb.KeyError(deadlock=kvrpcpb.Deadlock(lock_ts=5)), TxnV1Codec(), operation="prewrite")

    assert isinstance(error, TransactionRefused)
    assert "lock_ts: 5" in error.message


def test_a_reason_this_client_does_not_know_is_told_by_number() -> None:
    message = kvrpcpb.KeyError.FromString(b"\x22\x02\x30\x63")

    error = key_error(message, TxnV1Codec(), operation="prewrite")

    assert isinstance(error, WriteConflict)
    assert error.reason == "99"


def test_a_key_of_another_keyspace_is_told_as_it_is() -> None:
    message = kvrpcpb.KeyError(already_exist=kvrpcpb.AlreadyExist(key=b"elsewhere"))

    error = key_error(message, KeyspaceCodec(b"x", 7, "ks"), operation="prewrite")

    assert isinstance(error, AlreadyExists)
    assert error.key == b"elsewhere"
