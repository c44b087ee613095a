"""Rolling back one key, and what a key without the transaction's lock says about it.

A rollback leaves a record at the start timestamp, so that a prewrite that comes late fails. Unprotected ones are
collapsed: the next rollback of the key removes the one below it. Where another transaction committed at the very same
timestamp its record gets a flag instead, if the rollback is a protected one.
Source: TiKV storage/txn/actions/check_txn_status.rs, cleanup.rs.
"""

from __future__ import annotations

import enum

import attrs

from tikv_embedded.mvcc.errors import CommittedError, key_is_locked, txn_not_found
from tikv_embedded.mvcc.keys import physical_ms
from tikv_embedded.mvcc.lock import Lock, LockType
from tikv_embedded.mvcc.modifications import Modifications
from tikv_embedded.mvcc.reader import CommitRecord, MvccReader
from tikv_embedded.mvcc.write import Write, WriteType


class MissingLock(enum.Enum):
    """What to do about a transaction of which a key knows nothing."""

    ROLL_BACK = enum.auto()
    ROLL_BACK_PROTECTED = enum.auto()
    REFUSE = enum.auto()
    DO_NOTHING = enum.auto()


def clean_up(
    reader: MvccReader,
    written: Modifications,
    key: bytes,
    start_ts: int,
    *,
    current_ts: int = 0,
    is_protected: bool = False,
) -> None:
    """Roll `key` back, with or without a lock on it.

    Args:
        reader: The data.
        written: Is added to.
        key: A user key.
        start_ts: Of the transaction.
        current_ts: If not 0, a lock must be expired by then.
        is_protected: Whether a record without a lock stays, and rollbacks below are left alone.

    Raises:
        MvccError: the lock is alive; as `CommittedError`, the transaction is committed.
    """
    lock = reader.lock(key)
    if lock is not None and lock.start_ts == start_ts:
        if current_ts and physical_ms(start_ts) + lock.ttl >= physical_ms(current_ts):
            raise key_is_locked(lock.to_info(key))
        roll_back_lock(reader, written, key, lock, collapses=not is_protected)
        return
    action = MissingLock.ROLL_BACK_PROTECTED if is_protected else MissingLock.ROLL_BACK
    record = settle_missing_lock(reader, written, key, start_ts, lock, action)
    if record.is_committed:
        raise CommittedError(key, start_ts, record.commit_ts)


def roll_back_lock(
    reader: MvccReader, written: Modifications, key: bytes, lock: Lock, *, collapses: bool = True
) -> None:
    """Remove the transaction's lock and leave a record, protected on the primary key."""
    record = reader.commit_record(key, lock.start_ts)
    written.unlock(key)
    if record.is_rolled_back:
        return
    if lock.type is LockType.PUT and lock.short_value is None:
        written.delete_value(key, lock.start_ts)
    is_protected = key == lock.primary or lock.generation > 0
    put_rollback(written, key, lock.start_ts, record, is_protected=is_protected)
    if collapses:
        collapse_rollback(reader, written, key, lock.start_ts)


def settle_missing_lock(
    reader: MvccReader,
    written: Modifications,
    key: bytes,
    start_ts: int,
    other_lock: Lock | None,
    action: MissingLock,
) -> CommitRecord:
    """Return what became of the transaction; if nothing did, do `action`.

    Args:
        reader: The data.
        written: Is added to.
        key: A user key without a lock of the transaction.
        start_ts: Of the transaction.
        other_lock: Another transaction's lock on `key`.
        action: What to do when the key knows nothing.

    Raises:
        MvccError: it knows nothing, and `action` is REFUSE.
    """
    record = reader.commit_record(key, start_ts)
    if record.is_committed or record.is_rolled_back:
        return record
    if action is MissingLock.REFUSE:
        raise txn_not_found(key, start_ts)
    if action is MissingLock.DO_NOTHING:
        return record
    is_protected = action is MissingLock.ROLL_BACK_PROTECTED
    if not is_protected:
        collapse_rollback(reader, written, key, start_ts)
    elif other_lock is not None and record.overlapped is None:
        mark_rollback(written, key, start_ts, other_lock)
    put_rollback(written, key, start_ts, record, is_protected=is_protected)
    return record


def put_rollback(
    written: Modifications, key: bytes, start_ts: int, record: CommitRecord, *, is_protected: bool
) -> None:
    """Leave the record of a rollback.

    Args:
        written: Is added to.
        key: A user key.
        start_ts: Of the transaction that is rolled back.
        record: What the key says about it: nothing.
        is_protected: Whether the record must stay.
    """
    if record.overlapped is None:
        written.put_write(key, start_ts, Write.rollback(start_ts, protected=is_protected))
    elif is_protected:
        write, gc_fence = record.overlapped
        written.put_write(key, start_ts, attrs.evolve(write, has_overlapped_rollback=True, gc_fence=gc_fence))


def mark_rollback(written: Modifications, key: bytes, start_ts: int, other_lock: Lock) -> None:
    """Let a lock remember a rollback that its own commit, at a timestamp of its own making, could overwrite."""
    if other_lock.use_async_commit and start_ts >= other_lock.min_commit_ts:
        written.put_lock(key, attrs.evolve(other_lock, rollback_ts=(*other_lock.rollback_ts, start_ts)))


def collapse_rollback(reader: MvccReader, written: Modifications, key: bytes, start_ts: int) -> None:
    """Remove the newest record up to `start_ts` if it is an unprotected rollback."""
    newest = reader.newest_write(key, start_ts)
    if newest is not None and newest[1].type is WriteType.ROLLBACK and not newest[1].is_protected:
        written.delete_write(key, newest[0])
