"""Keys inside of requests are encoded and those inside of responses become the user's, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tikv_proto import coprocessor, deadlock, errorpb, kvrpcpb, metapb, tikvpb
from tikv_proto.services import all_rpcs
from tikv_region import (
    CodecError,
    KeyCodec,
    KeyspaceCodec,
    PlainCodec,
    TxnV1Codec,
    decode_keys,
    encode_keys,
    memcomparable_encode,
)
from tikv_region.keys import _OPTIONAL_REQUEST_KEYS, _REQUEST_KEYS, _REQUEST_RANGES, _RESPONSE_KEYS

CODEC = KeyspaceCodec(b"x", 7, "shop")
P = CODEC.encode_key(b"")
END = b"x\0\0\x08"

# Fields of bytes that hold no key, or one that nobody encodes.
NO_KEYS = {
    "value",
    "values",
    "previous_value",
    "short_value",
    "data",
    "resource_group_tag",
    "trace_id",
    "fts_query_info",
    "mem_table_data",
    "snapshot",
    "iv",
    # Pages of a compaction of TiFlash, in the form that it knows.
    "kvrpcpb.CompactRequest.start_key",
    "kvrpcpb.CompactResponse.compacted_start_key",
    "kvrpcpb.CompactResponse.compacted_end_key",
}
# Left to `RegionCache.on_region_error`, and what is never inside of a request.
ELSEWHERE = {"errorpb.BucketVersionNotMatch", "errorpb.KeyNotInRegion", "metapb.Region"}


def key_error(p: bytes) -> kvrpcpb.KeyError:
    """An error with all its fields set and `p` before each key."""
    shared = kvrpcpb.LockInfo(key=p + b"s", primary_lock=p + b"sp")
    lock = kvrpcpb.LockInfo(
        key=p + b"k", primary_lock=p + b"p", secondaries=[p + b"1", p + b"2"], shared_lock_infos=[shared]
    )
    waits = [deadlock.WaitForEntry(key=p + b"w", resource_group_tag=b"tag")]
    mvcc = kvrpcpb.MvccInfo(
        lock=kvrpcpb.MvccLock(primary=p + b"mp", secondaries=[p + b"ms"], short_value=b"short"),
        values=[kvrpcpb.MvccValue(value=b"value")],
    )
    versions = kvrpcpb.MvccDebugInfo(key=p + b"d", mvcc=mvcc)
    return kvrpcpb.KeyError(
        locked=lock,
        conflict=kvrpcpb.WriteConflict(key=p + b"c", primary=p + b"cp"),
        already_exist=kvrpcpb.AlreadyExist(key=p + b"e"),
        deadlock=kvrpcpb.Deadlock(lock_key=p + b"l", deadlock_key=p + b"dk", wait_chain=waits),
        commit_ts_expired=kvrpcpb.CommitTsExpired(key=p + b"x"),
        txn_not_found=kvrpcpb.TxnNotFound(primary_key=p + b"n"),
        assertion_failed=kvrpcpb.AssertionFailed(key=p + b"a"),
        primary_mismatch=kvrpcpb.PrimaryMismatch(lock_info=lock),
        txn_lock_not_found=kvrpcpb.TxnLockNotFound(key=p + b"t"),
        lock_upgrade_conflict=kvrpcpb.LockUpgradeConflict(key=p + b"u"),
        shared_lock_lost=kvrpcpb.SharedLockLost(key=p + b"q"),
        debug_info=kvrpcpb.DebugInfo(mvcc_info=[versions]),
        retryable="again",
    )


def test_every_key_of_an_error_is_decoded_on_a_copy() -> None:
    error = key_error(P)

    assert decode_keys(error, CODEC) == key_error(b"")
    assert error == key_error(P)


def test_a_set_of_shared_locks_has_no_primary() -> None:
    lock = kvrpcpb.LockInfo(key=P + b"k", shared_lock_infos=[kvrpcpb.LockInfo(key=P + b"k", primary_lock=P + b"p")])

    decoded = decode_keys(lock, CODEC)

    assert decoded.primary_lock == b""
    assert decoded.shared_lock_infos[0].primary_lock == b"p"


def test_keys_outside_api_v2_travel_as_they_are() -> None:
    error = key_error(b"")

    assert decode_keys(error, TxnV1Codec()) is error


def test_a_key_of_another_keyspace_is_an_error() -> None:
    with pytest.raises(CodecError, match="outside keyspace"):
        decode_keys(kvrpcpb.LockInfo(key=b"x\0\0\x08k"), CODEC)


def fields_of_bytes(kind: str) -> Iterator[tuple[str, str]]:
    """All fields of bytes in requests to stores, or in responses of theirs, as (message, field)."""
    waiting = [getattr(rpc, kind).DESCRIPTOR for rpc in all_rpcs() if rpc.path.startswith("/tikvpb.Tikv/")]
    seen = set()
    while waiting:
        message = waiting.pop()
        if message.full_name in seen:
            continue
        seen.add(message.full_name)
        for field in message.fields:
            if field.type == field.TYPE_BYTES:
                yield message.full_name, field.name
            elif field.message_type is not None:
                waiting.append(field.message_type)


def is_listed(table: Any, message: str, field: str) -> bool:
    return field in table.get(message, ()) or field in NO_KEYS or f"{message}.{field}" in NO_KEYS


def test_every_key_of_a_response_is_in_the_table() -> None:
    # Where the table has no row for a range, it is decoded as a whole.
    missing = [
        f"{message}.{field}"
        for message, field in fields_of_bytes("response")
        if not is_listed(_RESPONSE_KEYS, message, field) and message not in {*ELSEWHERE, "coprocessor.KeyRange"}
    ]

    assert missing == []


def test_every_key_of_a_request_is_in_the_table() -> None:
    tables = (_REQUEST_KEYS, _OPTIONAL_REQUEST_KEYS, _REQUEST_RANGES)
    # Locks, errors and versions are what responses tell; a few requests pass them on as they came.
    missing = [
        f"{message}.{field}"
        for message, field in fields_of_bytes("request")
        if not any(is_listed(table, message, field) for table in (*tables, _RESPONSE_KEYS))
    ]

    assert missing == []


@pytest.mark.parametrize(
    ("request_", "encoded"),
    [
        (kvrpcpb.RawPutRequest(key=b"k", value=b"v"), kvrpcpb.RawPutRequest(key=P + b"k", value=b"v")),
        (kvrpcpb.RawGetRequest(), kvrpcpb.RawGetRequest(key=P)),
        (
            kvrpcpb.RawBatchPutRequest(pairs=[kvrpcpb.KvPair(key=b"k", value=b"v")]),
            kvrpcpb.RawBatchPutRequest(pairs=[kvrpcpb.KvPair(key=P + b"k", value=b"v")]),
        ),
        (
            kvrpcpb.PrewriteRequest(
                mutations=[kvrpcpb.Mutation(key=b"k", value=b"v")], primary_lock=b"p", secondaries=[b"1", b"2"]
            ),
            kvrpcpb.PrewriteRequest(
                mutations=[kvrpcpb.Mutation(key=P + b"k", value=b"v")],
                primary_lock=P + b"p",
                secondaries=[P + b"1", P + b"2"],
            ),
        ),
        (kvrpcpb.CommitRequest(keys=[b"k"]), kvrpcpb.CommitRequest(keys=[P + b"k"])),
        (kvrpcpb.CommitRequest(primary_key=b"p"), kvrpcpb.CommitRequest(primary_key=P + b"p")),
        (kvrpcpb.ScanRequest(), kvrpcpb.ScanRequest(start_key=P, end_key=END)),
        (
            kvrpcpb.ScanRequest(start_key=b"a", end_key=b"b"),
            kvrpcpb.ScanRequest(start_key=P + b"a", end_key=P + b"b"),
        ),
        (
            kvrpcpb.RawScanRequest(start_key=b"b", end_key=b"a", reverse=True),
            kvrpcpb.RawScanRequest(start_key=P + b"b", end_key=P + b"a", reverse=True),
        ),
        (
            kvrpcpb.RawScanRequest(reverse=True),
            kvrpcpb.RawScanRequest(start_key=END, end_key=P, reverse=True),
        ),
        (
            kvrpcpb.RawBatchScanRequest(ranges=[kvrpcpb.KeyRange(end_key=b"a")], reverse=True),
            kvrpcpb.RawBatchScanRequest(ranges=[kvrpcpb.KeyRange(start_key=END, end_key=P + b"a")], reverse=True),
        ),
        (
            coprocessor.Request(data=b"plan", ranges=[coprocessor.KeyRange(start=b"a")]),
            coprocessor.Request(data=b"plan", ranges=[coprocessor.KeyRange(start=P + b"a", end=END)]),
        ),
        (
            tikvpb.BatchCommandsRequest(
                request_ids=[1], requests=[tikvpb.BatchCommandsRequest.Request(Get=kvrpcpb.GetRequest(key=b"k"))]
            ),
            tikvpb.BatchCommandsRequest(
                request_ids=[1], requests=[tikvpb.BatchCommandsRequest.Request(Get=kvrpcpb.GetRequest(key=P + b"k"))]
            ),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_keys_of_a_request_are_encoded_on_a_copy(request_: Any, encoded: Any) -> None:
    before = type(request_).FromString(request_.SerializeToString())

    assert encode_keys(request_, CODEC) == encoded
    assert encode_keys(request_, CODEC) == encoded
    assert request_ == before


@pytest.mark.parametrize("codec", [PlainCodec(), TxnV1Codec()])
def test_requests_outside_api_v2_are_left_as_they_are(codec: KeyCodec) -> None:
    request = kvrpcpb.ScanRequest(start_key=b"a")

    assert encode_keys(request, codec) is request


def test_keys_of_a_scan_are_decoded_and_its_values_are_not() -> None:
    locked = kvrpcpb.KeyError(locked=kvrpcpb.LockInfo(key=P + b"l", primary_lock=P + b"p"))
    pairs = [kvrpcpb.KvPair(key=P + b"k", value=P + b"v"), kvrpcpb.KvPair(error=locked)]

    decoded = decode_keys(kvrpcpb.ScanResponse(pairs=pairs), CODEC)

    assert (decoded.pairs[0].key, decoded.pairs[0].value) == (b"k", P + b"v")
    assert (decoded.pairs[1].error.locked.key, decoded.pairs[1].error.locked.primary_lock) == (b"l", b"p")


def test_an_error_of_a_region_is_left_to_the_cache() -> None:
    error = errorpb.Error(epoch_not_match=errorpb.EpochNotMatch(current_regions=[metapb.Region(start_key=b"odd")]))

    assert decode_keys(kvrpcpb.GetResponse(region_error=error), CODEC).region_error == error


def test_what_a_coprocessor_read_is_cut_to_the_keyspace() -> None:
    response = coprocessor.Response(range=coprocessor.KeyRange(start=P + b"a", end=END), data=b"rows")

    decoded = decode_keys(response, CODEC)

    assert (decoded.range.start, decoded.range.end, decoded.data) == (b"a", b"", b"rows")


@pytest.mark.parametrize("codec", [CODEC, TxnV1Codec()])
def test_the_regions_of_a_split_are_decoded(codec: KeyCodec) -> None:
    left = metapb.Region(id=1, end_key=codec.encode_region_key(b"k"))
    right = metapb.Region(id=2, start_key=codec.encode_region_key(b"k"))

    decoded = decode_keys(kvrpcpb.SplitRegionResponse(left=left, regions=[left, right]), codec)

    assert decoded.left == metapb.Region(id=1, end_key=b"k")
    assert list(decoded.regions) == [decoded.left, metapb.Region(id=2, start_key=b"k")]


def test_a_region_split_off_below_the_keyspace_is_left_out() -> None:
    bound = CODEC.encode_region_key(b"")
    below, above = metapb.Region(id=1, end_key=bound), metapb.Region(id=2, start_key=bound)

    decoded = decode_keys(kvrpcpb.SplitRegionResponse(left=below, right=above, regions=[below, above]), CODEC)

    assert not decoded.HasField("left")
    assert decoded.right.id == 2
    assert [region.id for region in decoded.regions] == [2]


def test_a_region_that_is_not_memcomparable_is_refused() -> None:
    regions = [metapb.Region(start_key=memcomparable_encode(b"a")[:-1])]

    with pytest.raises(CodecError):
        decode_keys(kvrpcpb.SplitRegionResponse(regions=regions), TxnV1Codec())
