"""KvTxnHeartBeat. Source: TiKV storage/txn/commands/txn_heart_beat.rs."""

from __future__ import annotations

import attrs
from tikv_proto import kvrpcpb

from tikv_embedded.engine import WriteBatch
from tikv_embedded.mvcc.context import TxnContext
from tikv_embedded.mvcc.errors import txn_not_found
from tikv_embedded.mvcc.modifications import Modifications


def txn_heart_beat(
    ctx: TxnContext, request: kvrpcpb.TxnHeartBeatRequest
) -> tuple[kvrpcpb.TxnHeartBeatResponse, WriteBatch | None]:
    """Let the lock of a transaction live longer, never shorter, and answer with its time to live."""
    key = request.primary_lock
    lock = ctx.reader.lock(key)
    if lock is None or lock.start_ts != request.start_version:
        raise txn_not_found(key, request.start_version)
    if lock.ttl >= request.advise_lock_ttl:
        return kvrpcpb.TxnHeartBeatResponse(lock_ttl=lock.ttl), None
    written = Modifications()
    written.put_lock(key, attrs.evolve(lock, ttl=request.advise_lock_ttl))
    return kvrpcpb.TxnHeartBeatResponse(lock_ttl=request.advise_lock_ttl), written.batch
