"""Keys inside of what stores answer about transactions become the user's, wherever they lie."""

from __future__ import annotations

import pytest
from tikv_proto import deadlock, kvrpcpb
from tikv_region import CodecError, KeyspaceCodec, TxnV1Codec, decode_keys

CODEC = KeyspaceCodec(b"x", 7, "shop")
P = CODEC.encode_key(b"")


def key_error(p: bytes) -> kvrpcpb.KeyError:
    """An error with all its fields set and `p` before each key."""
    shared = kvrpcpb.LockInfo(key=p + b"s", primary_lock=p + b"sp")
    lock = kvrpcpb.LockInfo(
        key=p + b"k", primary_lock=p + b"p", secondaries=[p + b"1", p + b"2"], shared_lock_infos=[shared]
    )
    waits = [deadlock.WaitForEntry(key=p + b"w", resource_group_tag=b"tag")]
    mvcc = kvrpcpb.MvccInfo(
        lock=kvrpcpb.MvccLock(primary=p + b"mp", secondaries=[p + b"ms"], short_value=b"short"),
        values=[kvrpcpb.MvccValue(value=b"value")],
    )
    versions = kvrpcpb.MvccDebugInfo(key=p + b"d", mvcc=mvcc)
    return kvrpcpb.KeyError(
        locked=lock,
        conflict=kvrpcpb.WriteConflict(key=p + b"c", primary=p + b"cp"),
        already_exist=kvrpcpb.AlreadyExist(key=p + b"e"),
        deadlock=kvrpcpb.Deadlock(lock_key=p + b"l", deadlock_key=p + b"dk", wait_chain=waits),
        commit_ts_expired=kvrpcpb.CommitTsExpired(key=p + b"x"),
        txn_not_found=kvrpcpb.TxnNotFound(primary_key=p + b"n"),
        assertion_failed=kvrpcpb.AssertionFailed(key=p + b"a"),
        primary_mismatch=kvrpcpb.PrimaryMismatch(lock_info=lock),
        txn_lock_not_found=kvrpcpb.TxnLockNotFound(key=p + b"t"),
        lock_upgrade_conflict=kvrpcpb.LockUpgradeConflict(key=p + b"u"),
        shared_lock_lost=kvrpcpb.SharedLockLost(key=p + b"q"),
        debug_info=kvrpcpb.DebugInfo(mvcc_info=[versions]),
        retryable="again",
    )


def test_every_key_of_an_error_is_decoded_on_a_copy() -> None:
    error = key_error(P)

    assert decode_keys(error, CODEC) == key_error(b"")
    assert error == key_error(P)


def test_a_set_of_shared_locks_has_no_primary() -> None:
    lock = kvrpcpb.LockInfo(key=P + b"k", shared_lock_infos=[kvrpcpb.LockInfo(key=P + b"k", primary_lock=P + b"p")])

    decoded = decode_keys(lock, CODEC)

    assert decoded.primary_lock == b""
    assert decoded.shared_lock_infos[0].primary_lock == b"p"


def test_keys_outside_api_v2_travel_as_they_are() -> None:
    error = key_error(b"")

    assert decode_keys(error, TxnV1Codec()) is error


def test_a_key_of_another_keyspace_is_an_error() -> None:
    with pytest.raises(CodecError, match="outside keyspace"):
        decode_keys(kvrpcpb.LockInfo(key=b"x\0\0\x08k"), CODEC)
