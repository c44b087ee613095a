"""KvCheckSecondaryLocks: whether all secondary locks of an async commit are there.

Source: TiKV storage/txn/commands/check_secondary_locks.rs.
"""

from __future__ import annotations

from tikv_proto import kvrpcpb

from tikv_embedded.engine import WriteBatch
from tikv_embedded.mvcc.context import TxnContext
from tikv_embedded.mvcc.modifications import Modifications
from tikv_embedded.mvcc.rollback import collapse_rollback, mark_rollback, put_rollback

_Response = kvrpcpb.CheckSecondaryLocksResponse


def check_secondary_locks(
    ctx: TxnContext, request: kvrpcpb.CheckSecondaryLocksRequest
) -> tuple[_Response, WriteBatch | None]:
    """Answer with all locks, or the commit timestamp, or nothing: rolled back, as one that misses a lock is."""
    start_ts = request.start_version
    ctx.max_ts.observe(start_ts)
    reader, written, response = ctx.reader, Modifications(), _Response()
    for key in request.keys:
        lock = reader.lock(key)
        is_own = lock is not None and lock.start_ts == start_ts
        if lock is not None and is_own:
            if not lock.is_pessimistic:
                response.locks.append(lock.to_info(key))
                continue
            written.unlock(key)
        record = reader.commit_record(key, start_ts)
        if record.is_committed:
            return _Response(commit_ts=record.commit_ts), written.batch
        if not record.is_rolled_back:
            if lock is not None and not is_own:
                mark_rollback(written, key, start_ts, lock)
            put_rollback(written, key, start_ts, record, is_protected=True)
            collapse_rollback(reader, written, key, start_ts)
        return _Response(), written.batch
    return response, written.batch
