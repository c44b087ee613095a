"""KvGet, KvBatchGet and KvScan. Source: TiKV storage/mod.rs get_entry, batch_get, scan."""

from __future__ import annotations

from tikv_proto import kvrpcpb

from tikv_embedded.mvcc.context import TxnContext
from tikv_embedded.mvcc.errors import MvccError, RegionRefusedError, invalid_req_range
from tikv_embedded.mvcc.keys import encode_key
from tikv_embedded.mvcc.snapshot_read import ReadView, read_key, scan_keys
from tikv_embedded.store.region_checks import key_not_in_region


def get(ctx: TxnContext, request: kvrpcpb.GetRequest) -> tuple[kvrpcpb.GetResponse, None]:
    """Answer with the value of one key, or `not_found`."""
    ctx.check_keys((request.key,))
    view = _observed_view(ctx, request.context, request.version)
    found = read_key(ctx.reader, view, request.key, needs_commit_ts=request.need_commit_ts)
    if found is None:
        return kvrpcpb.GetResponse(not_found=True), None
    response = kvrpcpb.GetResponse(value=found.value)
    if request.need_commit_ts:
        response.commit_ts = found.commit_ts
    return response, None


def batch_get(ctx: TxnContext, request: kvrpcpb.BatchGetRequest) -> tuple[kvrpcpb.BatchGetResponse, None]:
    """Answer with the pairs that exist, in the order of the request; a lock makes a pair with nothing but its error."""
    ctx.check_keys(request.keys)
    view = _observed_view(ctx, request.context, request.version)
    reader, response = ctx.reader, kvrpcpb.BatchGetResponse()
    for key in request.keys:
        try:
            found = read_key(reader, view, key, needs_commit_ts=request.need_commit_ts)
        except MvccError as error:
            response.pairs.add().error.CopyFrom(error.key_error)
            continue
        if found is not None:
            commit_ts = found.commit_ts if request.need_commit_ts else 0
            response.pairs.add(key=key, value=found.value, commit_ts=commit_ts)
    return response, None


def scan(ctx: TxnContext, request: kvrpcpb.ScanRequest) -> tuple[kvrpcpb.ScanResponse, None]:
    """Answer with up to `limit` pairs of the Region; with `reverse` `start_key` is the upper bound."""
    lower, upper = _scan_bounds(ctx, request)
    view = _observed_view(ctx, request.context, request.version)
    response = kvrpcpb.ScanResponse()
    step, row = max(request.sample_step, 1), 0
    if not request.limit:
        return response, None
    for key, found in scan_keys(ctx.reader, view, lower, upper, reverse=request.reverse, key_only=request.key_only):
        if isinstance(found, MvccError):
            response.pairs.add().error.CopyFrom(found.key_error)
        else:
            row += 1
            if (row - 1) % step:
                continue
            response.pairs.add(key=key, value=found.value)
        if len(response.pairs) == request.limit:
            break
    return response, None


def _observed_view(ctx: TxnContext, context: kvrpcpb.Context, version: int) -> ReadView:
    """Return the view of a request, whose timestamp counts from now on."""
    if not context.stale_read:
        ctx.max_ts.observe(version)
    return ReadView.of(context, version)


def _scan_bounds(ctx: TxnContext, request: kvrpcpb.ScanRequest) -> tuple[bytes, bytes]:
    """Return the encoded range of a scan, which must not stick out of the Region."""
    region = ctx.region
    start = encode_key(request.start_key)
    end = encode_key(request.end_key) if request.end_key else None
    if request.reverse:
        low, high = end, start if request.start_key else None
    else:
        low, high = start, end
    if (low is not None and low < region.start_key) or (high is not None and region.end_key and high > region.end_key):
        raise invalid_req_range(low, high, (region.start_key, region.end_key))
    if low is not None and region.end_key and low > region.end_key:
        raise RegionRefusedError(key_not_in_region(low, region))
    if high is not None and high < region.start_key:
        raise RegionRefusedError(key_not_in_region(high, region))
    return ctx.clamp(low or b"", high or b"")
