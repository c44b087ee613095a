"""KvResolveLock and KvScanLock: ending the transactions of others.

Source: TiKV storage/txn/commands/resolve_lock.rs, resolve_lock_lite.rs, storage/mod.rs scan_lock.
"""

from __future__ import annotations

import itertools

from tikv_proto import kvrpcpb

from tikv_embedded.engine import WriteBatch
from tikv_embedded.mvcc.actions.commit import commit_key
from tikv_embedded.mvcc.context import TxnContext
from tikv_embedded.mvcc.errors import invalid_txn_tso
from tikv_embedded.mvcc.keys import encode_key
from tikv_embedded.mvcc.modifications import Modifications
from tikv_embedded.mvcc.rollback import clean_up


def resolve_lock(
    ctx: TxnContext, request: kvrpcpb.ResolveLockRequest
) -> tuple[kvrpcpb.ResolveLockResponse, WriteBatch | None]:
    """Commit or roll back the given keys of a transaction, or all locks in the Region of the given transactions.

    TiKV goes through a Region in batches; here it is one, as nobody has to wait for it.
    """
    reader, written = ctx.reader, Modifications()
    if request.keys:
        for key in request.keys:
            if request.commit_version:
                commit_key(reader, written, key, request.start_version, request.commit_version)
            else:
                clean_up(reader, written, key, request.start_version)
        return kvrpcpb.ResolveLockResponse(), written.batch
    outcomes = {info.txn: info.status for info in request.txn_infos}
    if request.start_version:
        outcomes = {request.start_version: request.commit_version}
    for key, lock in reader.locks(*ctx.clamp(b"", b"")):
        commit_ts = outcomes.get(lock.start_ts)
        if commit_ts is None:
            continue
        if not commit_ts:
            clean_up(reader, written, key, lock.start_ts)
        elif commit_ts > lock.start_ts:
            commit_key(reader, written, key, lock.start_ts, commit_ts)
        else:
            raise invalid_txn_tso(lock.start_ts, commit_ts)
    return kvrpcpb.ResolveLockResponse(), written.batch


def scan_lock(ctx: TxnContext, request: kvrpcpb.ScanLockRequest) -> tuple[kvrpcpb.ScanLockResponse, None]:
    """Answer with the locks of transactions from `max_version` and before, in key order, at most `limit` if not 0."""
    ctx.max_ts.observe(request.max_version)
    start, end = request.start_key, request.end_key
    bounds = ctx.clamp(encode_key(start) if start else b"", encode_key(end) if end else b"")
    locks = (lock.to_info(key) for key, lock in ctx.reader.locks(*bounds) if lock.start_ts <= request.max_version)
    return kvrpcpb.ScanLockResponse(locks=itertools.islice(locks, request.limit or None)), None
