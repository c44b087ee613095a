"""KvCommit, and committing one key. Source: TiKV storage/txn/commands/commit.rs, actions/commit.rs."""

from __future__ import annotations

from tikv_proto import kvrpcpb

from tikv_embedded.engine import WriteBatch
from tikv_embedded.mvcc.actions.inspect import mvcc_info
from tikv_embedded.mvcc.context import TxnContext
from tikv_embedded.mvcc.errors import commit_ts_expired, invalid_txn_tso, txn_lock_not_found
from tikv_embedded.mvcc.modifications import Modifications
from tikv_embedded.mvcc.reader import MvccReader
from tikv_embedded.mvcc.write import Write


def commit(ctx: TxnContext, request: kvrpcpb.CommitRequest) -> tuple[kvrpcpb.CommitResponse, WriteBatch | None]:
    """Commit the keys of a transaction, all or none; committed ones stay as they are."""
    start_ts, commit_ts = request.start_version, request.commit_version
    if commit_ts <= start_ts:
        raise invalid_txn_tso(start_ts, commit_ts)
    reader, written = ctx.reader, Modifications()
    is_secondary = request.commit_role == kvrpcpb.CommitRole.Secondary
    for key in request.keys:
        commit_key(reader, written, key, start_ts, commit_ts, is_secondary=is_secondary)
    return kvrpcpb.CommitResponse(commit_version=commit_ts), written.batch


def commit_key(
    reader: MvccReader,
    written: Modifications,
    key: bytes,
    start_ts: int,
    commit_ts: int,
    *,
    is_secondary: bool = False,
) -> None:
    """Turn the transaction's lock on `key` into a record.

    Args:
        reader: The data.
        written: Is added to.
        key: A user key.
        start_ts: Of the transaction.
        commit_ts: After that.
        is_secondary: The caller knows that the transaction is committed, so that a missing lock is worth a report.

    Raises:
        MvccError: there is neither a lock nor a record of a commit, or the lock forbids so early a commit.
    """
    lock = reader.lock(key)
    if lock is None or lock.start_ts != start_ts:
        if not reader.commit_record(key, start_ts).is_committed:
            info = mvcc_info(reader, key) if is_secondary else None
            raise txn_lock_not_found(key, start_ts, commit_ts, info)
        return
    if commit_ts < lock.min_commit_ts:
        info = mvcc_info(reader, key) if key != lock.primary else None
        raise commit_ts_expired(key, start_ts, commit_ts, lock.min_commit_ts, info)
    written.unlock(key)
    if lock.is_pessimistic:
        return
    record = Write(
        lock.write_type,
        start_ts,
        lock.short_value,
        has_overlapped_rollback=commit_ts in lock.rollback_ts,
        last_change=lock.last_change,
        txn_source=lock.txn_source,
    )
    written.put_write(key, commit_ts, record)
