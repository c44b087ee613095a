"""MvccGetByKey and MvccGetByStartTs: everything a key holds, for people.

Source: TiKV storage/txn/actions/mvcc.rs, storage/types.rs MvccInfo.
"""

from __future__ import annotations

from tikv_proto import kvrpcpb

from tikv_embedded.engine import CF_WRITE
from tikv_embedded.mvcc.context import TxnContext
from tikv_embedded.mvcc.keys import decode_key, split_ts
from tikv_embedded.mvcc.lock import Lock
from tikv_embedded.mvcc.reader import MvccReader
from tikv_embedded.mvcc.write import Write, WriteType

_OPS = {
    WriteType.PUT: kvrpcpb.Op.Put,
    WriteType.DELETE: kvrpcpb.Op.Del,
    WriteType.LOCK: kvrpcpb.Op.Lock,
    WriteType.ROLLBACK: kvrpcpb.Op.Rollback,
}


def mvcc_get_by_key(ctx: TxnContext, request: kvrpcpb.MvccGetByKeyRequest) -> tuple[kvrpcpb.MvccGetByKeyResponse, None]:
    """Answer with the lock, the records and the long values of a key, newest first."""
    return kvrpcpb.MvccGetByKeyResponse(info=mvcc_info(ctx.reader, request.key)), None


def mvcc_get_by_start_ts(
    ctx: TxnContext, request: kvrpcpb.MvccGetByStartTsRequest
) -> tuple[kvrpcpb.MvccGetByStartTsResponse, None]:
    """Answer with the first key of the Region that a transaction locked, or else wrote, and what that key holds."""
    reader = ctx.reader
    key = _first_key_of(ctx, reader, request.start_ts)
    if key is None:
        return kvrpcpb.MvccGetByStartTsResponse(info=kvrpcpb.MvccInfo()), None
    return kvrpcpb.MvccGetByStartTsResponse(key=key, info=mvcc_info(reader, key)), None


def mvcc_info(reader: MvccReader, key: bytes) -> kvrpcpb.MvccInfo:
    """Return everything that `key` holds."""
    lock = reader.lock(key)
    return kvrpcpb.MvccInfo(
        lock=None if lock is None else _lock_to_pb(lock),
        writes=(_write_to_pb(commit_ts, write) for commit_ts, write in reader.writes(key)),
        values=(kvrpcpb.MvccValue(start_ts=start_ts, value=value) for start_ts, value in reader.values(key)),
    )


def _first_key_of(ctx: TxnContext, reader: MvccReader, start_ts: int) -> bytes | None:
    lower, upper = ctx.clamp(b"", b"")
    for key, lock in reader.locks(lower, upper):
        if lock.start_ts == start_ts:
            return key
    for stored, data in ctx.snapshot.scan(CF_WRITE, lower, upper):
        if Write.parse(data).start_ts == start_ts:
            return decode_key(split_ts(stored)[0])
    return None


def _lock_to_pb(lock: Lock) -> kvrpcpb.MvccLock:
    """TiKV tells neither the time to live nor what belongs to pessimistic and async commits."""
    ts, versions = lock.last_change
    return kvrpcpb.MvccLock(
        type=lock.op,
        start_ts=lock.start_ts,
        primary=lock.primary,
        short_value=lock.short_value or b"",
        last_change_ts=ts,
        versions_to_last_change=versions,
    )


def _write_to_pb(commit_ts: int, write: Write) -> kvrpcpb.MvccWrite:
    """TiKV never tells the last change of a record."""
    return kvrpcpb.MvccWrite(
        type=_OPS[write.type],
        start_ts=write.start_ts,
        commit_ts=commit_ts,
        short_value=write.short_value or b"",
        has_overlapped_rollback=write.has_overlapped_rollback,
        has_gc_fence=write.gc_fence is not None,
        gc_fence=write.gc_fence or 0,
    )
