"""KvCheckTxnStatus: what became of a transaction, asked at its primary key.

Source: TiKV storage/txn/commands/check_txn_status.rs, actions/check_txn_status.rs.
"""

from __future__ import annotations

import attrs
from tikv_proto import kvrpcpb

from tikv_embedded.engine import WriteBatch
from tikv_embedded.mvcc.context import TxnContext
from tikv_embedded.mvcc.errors import primary_mismatch
from tikv_embedded.mvcc.keys import MAX_TS
from tikv_embedded.mvcc.lock import Lock
from tikv_embedded.mvcc.modifications import Modifications
from tikv_embedded.mvcc.reader import CommitRecord, MvccReader
from tikv_embedded.mvcc.rollback import MissingLock, roll_back_lock, settle_missing_lock

_Response = kvrpcpb.CheckTxnStatusResponse


def check_txn_status(ctx: TxnContext, request: kvrpcpb.CheckTxnStatusRequest) -> tuple[_Response, WriteBatch | None]:
    """Answer whether a transaction is committed, rolled back or under way; roll it back if its time is over."""
    for ts in (request.lock_ts, request.current_ts, request.caller_start_ts):
        ctx.max_ts.observe(ts)
    reader, written = ctx.reader, Modifications()
    lock = reader.lock(request.primary_key)
    if lock is not None and lock.start_ts == request.lock_ts:
        response = _check_lock(reader, written, request, lock)
    else:
        response = _check_missing(reader, written, request, lock)
    return response, written.batch


def _check_lock(
    reader: MvccReader, written: Modifications, request: kvrpcpb.CheckTxnStatusRequest, lock: Lock
) -> _Response:
    key = request.primary_key
    if request.verify_is_primary and lock.primary != key:
        if request.resolving_pessimistic_lock or not lock.is_pessimistic:
            raise primary_mismatch(lock.to_info(key))
        response = _check_missing(reader, written, request, None)
        written.unlock(key)
        return response
    if lock.use_async_commit and not request.force_sync_commit:
        return _under_way(lock)
    if lock.is_pessimistic and lock.is_locked_with_conflict:
        record = reader.commit_record(key, lock.start_ts)
        if record.is_committed or record.is_rolled_back:
            written.unlock(key)
            return _ended(record)
    if lock.is_expired(request.current_ts):
        if lock.is_pessimistic and request.resolving_pessimistic_lock:
            written.unlock(key)
            return _Response(action=kvrpcpb.Action.TTLExpirePessimisticRollback)
        roll_back_lock(reader, written, key, lock)
        return _Response(action=kvrpcpb.Action.TTLExpireRollback)
    caller = request.caller_start_ts
    if lock.min_commit_ts and caller != MAX_TS and caller >= lock.min_commit_ts:
        lock = attrs.evolve(lock, min_commit_ts=max(caller + 1, request.current_ts))
        written.put_lock(key, lock)
    is_pushed = caller == MAX_TS or 0 < caller < lock.min_commit_ts
    return _under_way(lock, kvrpcpb.Action.MinCommitTSPushed if is_pushed else kvrpcpb.Action.NoAction)


def _check_missing(
    reader: MvccReader, written: Modifications, request: kvrpcpb.CheckTxnStatusRequest, other_lock: Lock | None
) -> _Response:
    if not request.rollback_if_not_exist:
        action = MissingLock.REFUSE
    elif request.resolving_pessimistic_lock:
        action = MissingLock.DO_NOTHING
    else:
        action = MissingLock.ROLL_BACK_PROTECTED
    record = settle_missing_lock(reader, written, request.primary_key, request.lock_ts, other_lock, action)
    if record.is_committed or record.is_rolled_back:
        return _ended(record)
    if action is MissingLock.DO_NOTHING:
        return _Response(action=kvrpcpb.Action.LockNotExistDoNothing)
    return _Response(action=kvrpcpb.Action.LockNotExistRollback)


def _ended(record: CommitRecord) -> _Response:
    return _Response(commit_version=record.commit_ts if record.is_committed else 0)


def _under_way(lock: Lock, action: kvrpcpb.Action.ValueType = kvrpcpb.Action.NoAction) -> _Response:
    # TiKV names the primary that the lock knows, not the key it was asked about.
    return _Response(lock_ttl=lock.ttl, lock_info=lock.to_info(lock.primary), action=action)
