"""The keys inside of requests and responses.

One table says which fields are keys, a walk through the message finds them however deep they lie. Whoever builds and
reads few kinds of messages, often, does better with `KeyCodec` itself.

Source: client-go internal/apicodec/codec_v2.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from tikv_proto import kvrpcpb

from tikv_region.codec import NULL_KEYSPACE_ID, KeyCodec

M = TypeVar("M", bound=Message)

_REQUEST_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "kvrpcpb.GetRequest": ("key",),
    "kvrpcpb.BatchGetRequest": ("keys",),
    "kvrpcpb.BufferBatchGetRequest": ("keys",),
    "kvrpcpb.Mutation": ("key",),
    "kvrpcpb.PrewriteRequest": ("primary_lock", "secondaries"),
    "kvrpcpb.PessimisticLockRequest": ("primary_lock",),
    "kvrpcpb.PessimisticRollbackRequest": ("keys",),
    "kvrpcpb.TxnHeartBeatRequest": ("primary_lock",),
    "kvrpcpb.CheckTxnStatusRequest": ("primary_key",),
    "kvrpcpb.CheckSecondaryLocksRequest": ("keys",),
    "kvrpcpb.CommitRequest": ("keys",),
    "kvrpcpb.CleanupRequest": ("key",),
    "kvrpcpb.BatchRollbackRequest": ("keys",),
    "kvrpcpb.ResolveLockRequest": ("keys",),
    "kvrpcpb.PhysicalScanLockRequest": ("start_key",),
    "kvrpcpb.MvccGetByKeyRequest": ("key",),
    "kvrpcpb.SplitRegionRequest": ("split_keys",),
    "kvrpcpb.RawGetRequest": ("key",),
    "kvrpcpb.RawBatchGetRequest": ("keys",),
    "kvrpcpb.RawPutRequest": ("key",),
    "kvrpcpb.KvPair": ("key",),
    "kvrpcpb.RawDeleteRequest": ("key",),
    "kvrpcpb.RawBatchDeleteRequest": ("keys",),
    "kvrpcpb.RawGetKeyTTLRequest": ("key",),
    "kvrpcpb.RawCASRequest": ("key",),
}
_OPTIONAL_REQUEST_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "kvrpcpb.CommitRequest": ("primary_key",),
    "kvrpcpb.FlushRequest": ("primary_key",),
    "kvrpcpb.SplitRegionRequest": ("split_key",),
}
_REQUEST_RANGES: Final[Mapping[str, tuple[str, str]]] = {
    **dict.fromkeys(
        (
            "kvrpcpb.ScanRequest",
            "kvrpcpb.ScanLockRequest",
            "kvrpcpb.DeleteRangeRequest",
            "kvrpcpb.PrepareFlashbackToVersionRequest",
            "kvrpcpb.FlashbackToVersionRequest",
            "kvrpcpb.UnsafeDestroyRangeRequest",
            "kvrpcpb.RawScanRequest",
            "kvrpcpb.RawDeleteRangeRequest",
            "kvrpcpb.KeyRange",
        ),
        ("start_key", "end_key"),
    ),
    "coprocessor.KeyRange": ("start", "end"),
}
_RESPONSE_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "kvrpcpb.KvPair": ("key",),
    "kvrpcpb.LockInfo": ("primary_lock", "key", "secondaries"),
    "kvrpcpb.WriteConflict": ("key", "primary"),
    "kvrpcpb.AlreadyExist": ("key",),
    "kvrpcpb.Deadlock": ("lock_key", "deadlock_key"),
    "deadlock.WaitForEntry": ("key",),
    "kvrpcpb.CommitTsExpired": ("key",),
    "kvrpcpb.TxnNotFound": ("primary_key",),
    "kvrpcpb.AssertionFailed": ("key",),
    "kvrpcpb.TxnLockNotFound": ("key",),
    "kvrpcpb.LockUpgradeConflict": ("key",),
    "kvrpcpb.SharedLockLost": ("key",),
    "kvrpcpb.MvccDebugInfo": ("key",),
    "kvrpcpb.MvccLock": ("primary", "secondaries"),
    "kvrpcpb.MvccGetByStartTsResponse": ("key",),
}


def encode_keys(request: M, codec: KeyCodec) -> M:
    """Return a copy of a request to a store whose keys, ranges and mutations are encoded.

    The request itself stays as it is: it may be sent again to a Region found anew. A range without an end is bounded by
    the keyspace; in a scan with `reverse` that is the one that starts there. Outside API V2 keys travel as they are and
    the message itself is returned.
    """
    if codec.keyspace_id == NULL_KEYSPACE_ID:
        return request
    copy = _copy(request)
    _encode(copy, codec, is_reverse=False)
    return copy


def decode_keys(message: M, codec: KeyCodec) -> M:
    """Return a copy of a response of a store, or of any part of one, whose keys are the user's, however deep they lie.

    Such as those of pairs, of the locks of a shared set, of a deadlock's wait chain, of versions told for debugging,
    and of the Regions of a split, less those outside the keyspace. Empty keys stay empty. An `errorpb.Error` is left
    alone: `RegionCache.on_region_error` decodes it. Outside API V2 keys travel as they are and the message itself is
    returned, except for Regions, which `TxnV1Codec` decodes.

    Raises:
        CodecError: a key lies outside the keyspace.
    """
    if codec.keyspace_id == NULL_KEYSPACE_ID and not isinstance(message, kvrpcpb.SplitRegionResponse):
        return message
    copy = _copy(message)
    _decode(copy, codec)
    return copy


def _encode(message: Any, codec: KeyCodec, *, is_reverse: bool) -> None:
    name = message.DESCRIPTOR.full_name
    is_reverse = is_reverse or getattr(message, "reverse", False)
    _change(message, _REQUEST_KEYS.get(name, ()), codec.encode_key)
    optional = _OPTIONAL_REQUEST_KEYS.get(name, ())
    _change(message, [field for field in optional if getattr(message, field)], codec.encode_key)
    if name in _REQUEST_RANGES:
        first, last = _REQUEST_RANGES[name]
        low, high = (last, first) if is_reverse else (first, last)
        start, end = codec.encode_range(getattr(message, low), getattr(message, high))
        setattr(message, low, start)
        setattr(message, high, end)
    for inner in _inside(message):
        _encode(inner, codec, is_reverse=is_reverse)


def _decode(message: Any, codec: KeyCodec) -> None:
    name = message.DESCRIPTOR.full_name
    if name == "errorpb.Error":
        return
    if name == "kvrpcpb.SplitRegionResponse":
        _decode_regions(message, codec)
        return
    if name == "coprocessor.KeyRange":
        message.start, message.end = codec.decode_range(message.start, message.end)
    keys = _RESPONSE_KEYS.get(name, ())
    _change(message, [field for field in keys if getattr(message, field)], codec.decode_key)
    for inner in _inside(message):
        _decode(inner, codec)


def _decode_regions(response: kvrpcpb.SplitRegionResponse, codec: KeyCodec) -> None:
    for side in ("left", "right"):
        if response.HasField(side) and not _decode_region(getattr(response, side), codec):
            response.ClearField(side)
    inside = [region for region in response.regions if _decode_region(region, codec)]
    kept = [_copy(region) for region in inside]
    del response.regions[:]
    response.regions.extend(kept)


def _decode_region(region: Any, codec: KeyCodec) -> bool:
    keys = codec.decode_region_range(region.start_key, region.end_key)
    if keys is not None:
        region.start_key, region.end_key = keys
    return keys is not None


def _change(message: Any, fields: Any, change: Callable[[bytes], bytes]) -> None:
    for field in fields:
        value = getattr(message, field)
        if isinstance(value, bytes):
            setattr(message, field, change(value))
        else:
            value[:] = [change(key) for key in value]


def _inside(message: Message) -> Iterator[Message]:
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        if isinstance(value, Message):
            yield value
        else:
            yield from value


def _copy(message: M) -> M:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
