"""KvBatchRollback and KvCleanup. Source: TiKV storage/txn/commands/rollback.rs, cleanup.rs."""

from __future__ import annotations

from tikv_proto import kvrpcpb

from tikv_embedded.engine import WriteBatch
from tikv_embedded.mvcc.context import TxnContext
from tikv_embedded.mvcc.errors import CommittedError
from tikv_embedded.mvcc.modifications import Modifications
from tikv_embedded.mvcc.rollback import clean_up


def batch_rollback(
    ctx: TxnContext, request: kvrpcpb.BatchRollbackRequest
) -> tuple[kvrpcpb.BatchRollbackResponse, WriteBatch | None]:
    """Roll back the keys of a transaction, all or none, however old its locks are."""
    reader, written = ctx.reader, Modifications()
    for key in request.keys:
        clean_up(reader, written, key, request.start_version)
    return kvrpcpb.BatchRollbackResponse(), written.batch


def cleanup(ctx: TxnContext, request: kvrpcpb.CleanupRequest) -> tuple[kvrpcpb.CleanupResponse, WriteBatch | None]:
    """Roll back a transaction at its primary key, if its lock is expired at `current_ts` or that is 0."""
    ctx.max_ts.observe(request.start_version)
    written = Modifications()
    try:
        clean_up(
            ctx.reader,
            written,
            request.key,
            request.start_version,
            current_ts=request.current_ts,
            is_protected=True,
        )
    except CommittedError as error:
        return kvrpcpb.CleanupResponse(commit_version=error.commit_ts), None
    return kvrpcpb.CleanupResponse(), written.batch
