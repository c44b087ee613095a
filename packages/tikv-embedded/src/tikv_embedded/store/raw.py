"""The raw requests as pure functions: what a store answers and what it writes, decided on a snapshot.

`RAW_ACTIONS[type(request)](ctx, request)` returns `(response, batch)`. The caller has checked store, peer, leader,
term, epoch and that the keys lie in the Region; it closes the snapshot, writes `batch` (None = nothing to write) in the
same step of its loop in which the snapshot was taken, and answers with `response` after that. A response may carry a
`region_error` of its own (`raft_entry_too_large`, an inverted range to delete); then there is no batch.

The order of the checks within an action is TiKV's (src/storage/mod.rs), as are the texts in `error`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from fastcrc import crc64
from tikv_proto import errorpb, kvrpcpb

from tikv_embedded.engine.write_batch import CF_DEFAULT, WriteBatch
from tikv_embedded.store.api_mode import ApiMode as ApiMode
from tikv_embedded.store.entry_size import entry_error
from tikv_embedded.store.raw_checks import (
    TTL_COUNT_MISMATCH,
    TTL_NOT_STORED,
    check_cf,
    check_key_sizes,
    check_keys,
    check_order,
    check_ranges,
    check_ttls,
)
from tikv_embedded.store.raw_format import RAW_FORMATS, RawContext as RawContext

RawAction: TypeAlias = Callable[[RawContext, Any], tuple[Any, WriteBatch | None]]
"""`(ctx, kvrpcpb request) -> (kvrpcpb response, what to write)`."""


def raw_get(ctx: RawContext, request: kvrpcpb.RawGetRequest) -> tuple[kvrpcpb.RawGetResponse, None]:
    """Answer with the value of one key, or `not_found`."""
    mode, key, cf = ctx.mode, request.key, request.cf
    refusal = check_keys(mode, request.context, "raw_get", (key,)) or check_cf(mode, cf)
    if refusal:
        return kvrpcpb.RawGetResponse(error=refusal), None
    found = RAW_FORMATS[mode].find(ctx, cf or CF_DEFAULT, key)
    if found is None:
        return kvrpcpb.RawGetResponse(not_found=True), None
    return kvrpcpb.RawGetResponse(value=found[0]), None


def raw_batch_get(ctx: RawContext, request: kvrpcpb.RawBatchGetRequest) -> tuple[kvrpcpb.RawBatchGetResponse, None]:
    """Answer with the pairs that exist, in the order of the request."""
    mode, cf, keys = ctx.mode, request.cf, request.keys
    refusal = check_keys(mode, request.context, "raw_batch_get", keys) or check_cf(mode, cf)
    if refusal:
        return kvrpcpb.RawBatchGetResponse(pairs=_error_pairs(refusal)), None
    find, cf = RAW_FORMATS[mode].find, cf or CF_DEFAULT
    response = kvrpcpb.RawBatchGetResponse()
    for key in keys:
        found = find(ctx, cf, key)
        if found is not None:
            response.pairs.add(key=key, value=found[0])
    return response, None


def raw_put(ctx: RawContext, request: kvrpcpb.RawPutRequest) -> tuple[kvrpcpb.RawPutResponse, WriteBatch | None]:
    """Write one pair."""
    mode, key, cf, ttl = ctx.mode, request.key, request.cf, request.ttl
    raw_format = RAW_FORMATS[mode]
    command = "raw_atomic_store" if request.for_cas else "raw_put"
    refusal = (
        check_keys(mode, request.context, command, (key,))
        or check_key_sizes((key,))
        or check_ttls(has_ttl=raw_format.has_ttl, ttls=(ttl,))
        or check_cf(mode, cf)
    )
    if refusal:
        return kvrpcpb.RawPutResponse(error=refusal), None
    batch = raw_format.put(ctx, cf or CF_DEFAULT, ((key, request.value, ttl),))
    if error := entry_error(ctx.region_id, batch):
        return kvrpcpb.RawPutResponse(region_error=error), None
    return kvrpcpb.RawPutResponse(), batch


def raw_batch_put(
    ctx: RawContext, request: kvrpcpb.RawBatchPutRequest
) -> tuple[kvrpcpb.RawBatchPutResponse, WriteBatch | None]:
    """Write all pairs at once; one TTL goes for all of them, none means that they never expire."""
    mode, cf, ttls = ctx.mode, request.cf, list(request.ttls)
    raw_format = RAW_FORMATS[mode]
    pairs = [(pair.key, pair.value) for pair in request.pairs]
    if len(ttls) < 2:
        ttls = (ttls or [0]) * len(pairs)
    command = "raw_atomic_store" if request.for_cas else "raw_batch_put"
    refusal = (
        check_keys(mode, request.context, command, (key for key, _ in pairs))
        or check_cf(mode, cf)
        or check_key_sizes(key for key, _ in pairs)
        or check_ttls(has_ttl=raw_format.has_ttl, ttls=ttls)
        or (TTL_COUNT_MISMATCH if len(ttls) != len(pairs) else None)
    )
    if refusal:
        return kvrpcpb.RawBatchPutResponse(error=refusal), None
    entries = ((key, value, ttl) for (key, value), ttl in zip(pairs, ttls, strict=True))
    batch = raw_format.put(ctx, cf or CF_DEFAULT, entries)
    if error := entry_error(ctx.region_id, batch):
        return kvrpcpb.RawBatchPutResponse(region_error=error), None
    return kvrpcpb.RawBatchPutResponse(), batch


def raw_delete(
    ctx: RawContext, request: kvrpcpb.RawDeleteRequest
) -> tuple[kvrpcpb.RawDeleteResponse, WriteBatch | None]:
    """Remove one key, present or not."""
    mode, key, cf = ctx.mode, request.key, request.cf
    command = "raw_atomic_store" if request.for_cas else "raw_delete"
    refusal = check_keys(mode, request.context, command, (key,)) or check_key_sizes((key,)) or check_cf(mode, cf)
    if refusal:
        return kvrpcpb.RawDeleteResponse(error=refusal), None
    return kvrpcpb.RawDeleteResponse(), RAW_FORMATS[mode].delete(ctx, cf or CF_DEFAULT, (key,))


def raw_batch_delete(
    ctx: RawContext, request: kvrpcpb.RawBatchDeleteRequest
) -> tuple[kvrpcpb.RawBatchDeleteResponse, WriteBatch | None]:
    """Remove all keys at once, present or not."""
    mode, cf, keys = ctx.mode, request.cf, request.keys
    command = "raw_atomic_store" if request.for_cas else "raw_batch_delete"
    refusal = check_keys(mode, request.context, command, keys) or check_cf(mode, cf) or check_key_sizes(keys)
    if refusal:
        return kvrpcpb.RawBatchDeleteResponse(error=refusal), None
    batch = RAW_FORMATS[mode].delete(ctx, cf or CF_DEFAULT, keys)
    if error := entry_error(ctx.region_id, batch):
        return kvrpcpb.RawBatchDeleteResponse(region_error=error), None
    return kvrpcpb.RawBatchDeleteResponse(), batch


def raw_delete_range(
    ctx: RawContext, request: kvrpcpb.RawDeleteRangeRequest
) -> tuple[kvrpcpb.RawDeleteRangeResponse, WriteBatch | None]:
    """Remove every key of `[start_key, end_key)`, versions and all; an empty end is unbounded."""
    mode, cf, start, end = ctx.mode, request.cf, request.start_key, request.end_key
    refusal = (
        check_key_sizes((start, end))
        or check_ranges(mode, request.context, "raw_delete_range", ((start, end),))
        or check_cf(mode, cf)
    )
    if refusal:
        return kvrpcpb.RawDeleteRangeResponse(error=refusal), None
    bound = RAW_FORMATS[mode].bound
    lower, upper = bound(start), bound(end) if end else b""
    if end and lower >= upper:
        text = f"invalid delete range command, start_key: {list(lower)}, end_key: {list(upper)}"
        return kvrpcpb.RawDeleteRangeResponse(region_error=errorpb.Error(message=text)), None
    batch = WriteBatch()
    batch.delete_range(cf or CF_DEFAULT, lower, upper)
    return kvrpcpb.RawDeleteRangeResponse(), batch


def raw_scan(ctx: RawContext, request: kvrpcpb.RawScanRequest) -> tuple[kvrpcpb.RawScanResponse, None]:
    """Answer with up to `limit` live pairs of the range that lie in the Region; limit 0 asks for none.

    With `reverse`, `start_key` is the upper and exclusive bound and the keys descend; empty = the Region's end.
    """
    mode, cf, start, end = ctx.mode, request.cf, request.start_key, request.end_key
    refusal = check_ranges(mode, request.context, "raw_scan", ((start, end or None),)) or check_cf(mode, cf)
    if refusal:
        return kvrpcpb.RawScanResponse(kvs=_error_pairs(refusal)), None
    pairs = _live_pairs(ctx, cf or CF_DEFAULT, start, end, reverse=request.reverse)
    response = kvrpcpb.RawScanResponse()
    _add_pairs(response, itertools.islice(pairs, request.limit), key_only=request.key_only)
    return response, None


def raw_batch_scan(ctx: RawContext, request: kvrpcpb.RawBatchScanRequest) -> tuple[kvrpcpb.RawBatchScanResponse, None]:
    """Answer with up to `each_limit` live pairs of each range, one range after the other.

    A range without an end ends where the next one starts.
    """
    mode, cf, reverse = ctx.mode, request.cf, request.reverse
    sent = [(each.start_key, each.end_key) for each in request.ranges]
    following = [start for start, _ in sent[1:]] + [b""]
    ranges = (
        [(start, end or next_start) for (start, end), next_start in zip(sent, following, strict=True)] if sent else []
    )
    refusal = (
        check_ranges(mode, request.context, "raw_batch_scan", sent)
        or check_cf(mode, cf)
        or check_order(ranges, reverse=reverse)
    )
    if refusal:
        return kvrpcpb.RawBatchScanResponse(kvs=_error_pairs(refusal)), None
    response = kvrpcpb.RawBatchScanResponse()
    for start, end in ranges:
        pairs = _live_pairs(ctx, cf or CF_DEFAULT, start, end, reverse=reverse)
        _add_pairs(response, itertools.islice(pairs, request.each_limit), key_only=request.key_only)
    return response, None


def raw_get_key_ttl(ctx: RawContext, request: kvrpcpb.RawGetKeyTTLRequest) -> tuple[kvrpcpb.RawGetKeyTTLResponse, None]:
    """Answer with the seconds one key has left (0 = it never expires), or `not_found`."""
    mode, key, cf = ctx.mode, request.key, request.cf
    raw_format = RAW_FORMATS[mode]
    refusal = (
        check_keys(mode, request.context, "raw_get_key_ttl", (key,))
        or check_cf(mode, cf)
        or (None if raw_format.has_ttl else TTL_NOT_STORED)
    )
    if refusal:
        return kvrpcpb.RawGetKeyTTLResponse(error=refusal), None
    found = raw_format.find(ctx, cf or CF_DEFAULT, key)
    if found is None:
        return kvrpcpb.RawGetKeyTTLResponse(not_found=True), None
    expire_ts = found[1]
    return kvrpcpb.RawGetKeyTTLResponse(ttl=expire_ts - int(ctx.now) if expire_ts else 0), None


def raw_compare_and_swap(
    ctx: RawContext, request: kvrpcpb.RawCASRequest
) -> tuple[kvrpcpb.RawCASResponse, WriteBatch | None]:
    """Write or delete one key if it is as expected; the answer always says how it was before."""
    mode, key, cf, ttl = ctx.mode, request.key, request.cf, request.ttl
    raw_format = RAW_FORMATS[mode]
    refusal = (
        check_keys(mode, request.context, "raw_compare_and_swap", (key,))
        or check_cf(mode, cf)
        or check_key_sizes((key,))
        or check_ttls(has_ttl=raw_format.has_ttl, ttls=(ttl,))
    )
    if refusal:
        return kvrpcpb.RawCASResponse(error=refusal), None
    cf = cf or CF_DEFAULT
    found = raw_format.find(ctx, cf, key)
    previous = None if found is None else found[0]
    expected = None if request.previous_not_exist else request.previous_value
    batch: WriteBatch | None = None
    if previous == expected:
        if not request.delete:
            batch = raw_format.put(ctx, cf, ((key, request.value, ttl),))
        elif previous is not None:
            batch = raw_format.delete(ctx, cf, (key,))
    if batch is not None and (error := entry_error(ctx.region_id, batch)):
        return kvrpcpb.RawCASResponse(region_error=error), None
    response = kvrpcpb.RawCASResponse(
        succeed=previous == expected, previous_not_exist=previous is None, previous_value=previous or b""
    )
    return response, batch


def raw_checksum(ctx: RawContext, request: kvrpcpb.RawChecksumRequest) -> tuple[kvrpcpb.RawChecksumResponse, None]:
    """Answer with the CRC-64/XZ of each live pair's key and value, xored together, their number and their bytes."""
    mode, algorithm = ctx.mode, request.algorithm
    ranges = [(each.start_key, each.end_key) for each in request.ranges]
    refusal = (
        None if algorithm == kvrpcpb.ChecksumAlgorithm.Crc64_Xor else f"unknown checksum algorithm {algorithm}"
    ) or check_ranges(mode, request.context, "raw_checksum", ranges)
    if refusal:
        return kvrpcpb.RawChecksumResponse(error=refusal), None
    checksum = count = size = 0
    for start, end in ranges:
        for key, value in _live_pairs(ctx, CF_DEFAULT, start, end, reverse=False):
            checksum ^= crc64.xz(key + value)
            count += 1
            size += len(key) + len(value)
    return kvrpcpb.RawChecksumResponse(checksum=checksum, total_kvs=count, total_bytes=size), None


RAW_ACTIONS: dict[type[Any], RawAction] = {
    kvrpcpb.RawGetRequest: raw_get,
    kvrpcpb.RawBatchGetRequest: raw_batch_get,
    kvrpcpb.RawPutRequest: raw_put,
    kvrpcpb.RawBatchPutRequest: raw_batch_put,
    kvrpcpb.RawDeleteRequest: raw_delete,
    kvrpcpb.RawBatchDeleteRequest: raw_batch_delete,
    kvrpcpb.RawDeleteRangeRequest: raw_delete_range,
    kvrpcpb.RawScanRequest: raw_scan,
    kvrpcpb.RawBatchScanRequest: raw_batch_scan,
    kvrpcpb.RawGetKeyTTLRequest: raw_get_key_ttl,
    kvrpcpb.RawCASRequest: raw_compare_and_swap,
    kvrpcpb.RawChecksumRequest: raw_checksum,
}
"""The action of each raw request type of kvrpcpb."""


def _live_pairs(ctx: RawContext, cf: str, start: bytes, end: bytes, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
    """Yield the live pairs between two user keys, cut to the Region; with `reverse` `start` is the upper bound."""
    raw_format = RAW_FORMATS[ctx.mode]
    low, high = (end, start) if reverse else (start, end)
    lower = max(raw_format.bound(low), ctx.region_start) if low else ctx.region_start
    upper = raw_format.bound(high) if high else ctx.region_end
    if ctx.region_end:
        upper = min(upper, ctx.region_end)
    return raw_format.scan(ctx, cf, lower, upper, reverse=reverse)


def _add_pairs(
    response: kvrpcpb.RawScanResponse | kvrpcpb.RawBatchScanResponse,
    pairs: Iterable[tuple[bytes, bytes]],
    *,
    key_only: bool,
) -> None:
    """Append `pairs` to the response, without their values if those were not asked for."""
    add = response.kvs.add
    for key, value in pairs:
        if key_only:
            add(key=key)
        else:
            add(key=key, value=value)


def _error_pairs(text: str) -> list[kvrpcpb.KvPair]:
    """Wrap a refusal for the responses that have no `error` of their own."""
    return [kvrpcpb.KvPair(error=kvrpcpb.KeyError(abort=text))]
