"""KvDeleteRange and UnsafeDestroyRange: removing keys with their whole history.

Source: TiKV storage/mod.rs delete_range, server/service/kv.rs unsafe_destroy_range.
"""

from __future__ import annotations

from tikv_proto import errorpb, kvrpcpb

from tikv_embedded.engine import CF_DEFAULT, CF_LOCK, CF_WRITE, WriteBatch
from tikv_embedded.mvcc.context import TxnContext
from tikv_embedded.mvcc.errors import RegionRefusedError
from tikv_embedded.mvcc.keys import encode_key
from tikv_embedded.store.region_checks import check_range


def delete_range(
    ctx: TxnContext, request: kvrpcpb.DeleteRangeRequest
) -> tuple[kvrpcpb.DeleteRangeResponse, WriteBatch | None]:
    """Remove the keys of `[start_key, end_key)`, which must lie in the Region; an empty end is the least key of all."""
    start, end = encode_key(request.start_key), encode_key(request.end_key)
    if start >= end:
        text = f"invalid delete range command, start_key: {start.hex()}, end_key: {end.hex()}"
        raise RegionRefusedError(errorpb.Error(message=text))
    if error := check_range(ctx.region, start, end):
        raise RegionRefusedError(error)
    return kvrpcpb.DeleteRangeResponse(), None if request.notify_only else _removal(start, end)


def unsafe_destroy_range(
    request: kvrpcpb.UnsafeDestroyRangeRequest,
) -> tuple[kvrpcpb.UnsafeDestroyRangeResponse, WriteBatch | None]:
    """Remove the keys of `[start_key, end_key)` whatever Regions they are in; neither end may be empty."""
    if not request.start_key or not request.end_key:
        return kvrpcpb.UnsafeDestroyRangeResponse(error="both ends of a range to destroy must be given"), None
    batch = _removal(encode_key(request.start_key), encode_key(request.end_key))
    return kvrpcpb.UnsafeDestroyRangeResponse(), batch


def _removal(start: bytes, end: bytes) -> WriteBatch:
    batch = WriteBatch()
    for cf in (CF_DEFAULT, CF_LOCK, CF_WRITE):
        batch.delete_range(cf, start, end)
    return batch
