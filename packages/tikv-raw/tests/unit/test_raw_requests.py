"""Arguments to requests, answers to results."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import attrs
import pytest
from hypothesis import given, strategies as st
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_raw import CasResult, Checksum, CodecError, RawError
from tikv_raw._requests import RawRequests, accept, merge_checksums
from tikv_region import KeyCodec, KeyRange, KeyspaceCodec, PlainCodec
from tikv_rpc import Effect, Request
from tikv_rpc.frontend.paging import Page

PLAIN = RawRequests(PlainCodec(), atomic=False)
SPACE = RawRequests(KeyspaceCodec(b"r", 5, "users"), atomic=False)
PREFIX, BOUND = b"r\0\0\5", b"r\0\0\6"


def sent(request: Request[Any]) -> Any:
    """Return the message a request stands for, without Context."""
    return request.rpc.request.FromString(request.payload)


@given(st.lists(st.tuples(st.binary(max_size=200), st.binary(max_size=200)), max_size=5))
def test_a_batch_of_pairs_is_what_protobuf_builds(pairs: list[tuple[bytes, bytes]]) -> None:
    keys, values = [key for key, _ in pairs], [value for _, value in pairs]

    work = SPACE.batch_put(keys, values, 7, "", 1024, 1 << 20)

    expected = [kvrpcpb.KvPair(key=PREFIX + key, value=value) for key, value in pairs]
    ttls = [7] if pairs else []
    assert sent(work.request(range(len(pairs)))) == kvrpcpb.RawBatchPutRequest(pairs=expected, ttls=ttls or [7])


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 2**63), st.sampled_from(["", "lock"]))
def test_requests_for_one_key_are_what_protobuf_builds(key: bytes, value: bytes, ttl: int, cf: str) -> None:
    for requests in (PLAIN, RawRequests(PlainCodec(), atomic=True)):
        put = kvrpcpb.RawPutRequest(key=key, value=value, ttl=ttl, cf=cf, for_cas=requests.atomic)

        assert kvrpcpb.RawGetRequest.FromString(requests.get(key, cf)) == kvrpcpb.RawGetRequest(key=key, cf=cf)
        assert kvrpcpb.RawPutRequest.FromString(requests.put(key, value, ttl, cf)) == put


def test_a_get_carries_key_and_column_family() -> None:
    payload = PLAIN.get(b"k", "lock")

    assert kvrpcpb.RawGetRequest.FromString(payload) == kvrpcpb.RawGetRequest(key=b"k", cf="lock")


def test_a_ttl_read_carries_key_and_column_family() -> None:
    payload = PLAIN.ttl(b"k", "")

    assert kvrpcpb.RawGetKeyTTLRequest.FromString(payload) == kvrpcpb.RawGetKeyTTLRequest(key=b"k")


def test_a_put_carries_a_ttl() -> None:
    payload = PLAIN.put(b"k", b"v", 60, "write")

    expected = kvrpcpb.RawPutRequest(key=b"k", value=b"v", ttl=60, cf="write")
    assert kvrpcpb.RawPutRequest.FromString(payload) == expected


def test_a_delete_carries_key_and_column_family() -> None:
    payload = PLAIN.delete(b"k", "")

    assert kvrpcpb.RawDeleteRequest.FromString(payload) == kvrpcpb.RawDeleteRequest(key=b"k")


def test_a_swap_must_not_be_made_twice() -> None:
    request = PLAIN.compare_and_swap(b"k", b"old", b"new", 60, "")

    assert request.rpc is Tikv.RawCompareAndSwap
    assert request.effect is Effect.ONCE
    assert sent(request) == kvrpcpb.RawCASRequest(key=b"k", value=b"new", previous_value=b"old", ttl=60)


def test_a_swap_tells_a_missing_value_from_an_empty_one() -> None:
    missing = sent(PLAIN.compare_and_swap(b"k", None, b"v", 0, ""))
    empty = sent(PLAIN.compare_and_swap(b"k", b"", b"v", 0, ""))

    assert missing == kvrpcpb.RawCASRequest(key=b"k", value=b"v", previous_not_exist=True)
    assert empty == kvrpcpb.RawCASRequest(key=b"k", value=b"v")


def test_an_atomic_client_says_so_in_every_plain_write() -> None:
    atomic = attrs.evolve(PLAIN, atomic=True)

    put, delete = atomic.put(b"k", b"v", 0, ""), atomic.delete(b"k", "")
    requests: list[Request[Any]] = [
        atomic.batch_put([b"k"], [b"v"], 0, "", 9, 99).build([0]),
        atomic.batch_delete([b"k"], "", 9, 99).build([0]),
    ]

    assert kvrpcpb.RawPutRequest.FromString(put).for_cas
    assert kvrpcpb.RawDeleteRequest.FromString(delete).for_cas
    for request in requests:
        assert sent(request).for_cas


def test_keys_of_a_keyspace_have_its_prefix() -> None:
    assert kvrpcpb.RawGetRequest.FromString(SPACE.get(b"k", "")).key == PREFIX + b"k"
    assert kvrpcpb.RawGetKeyTTLRequest.FromString(SPACE.ttl(b"k", "")).key == PREFIX + b"k"
    assert kvrpcpb.RawPutRequest.FromString(SPACE.put(b"k", b"v", 0, "")).key == PREFIX + b"k"
    assert kvrpcpb.RawDeleteRequest.FromString(SPACE.delete(b"k", "")).key == PREFIX + b"k"
    assert sent(SPACE.compare_and_swap(b"k", None, b"v", 0, "")).key == PREFIX + b"k"


@pytest.mark.parametrize(("requests", "prefix"), [(PLAIN, b""), (SPACE, PREFIX)])
def test_a_batch_get_asks_for_the_keys_at_the_positions(requests: RawRequests, prefix: bytes) -> None:
    work = requests.batch_get([b"a", b"b", b"c"], "lock", 10, 1000)

    request = work.build([2, 0])

    assert request.rpc is Tikv.RawBatchGet
    assert request.effect is Effect.READ
    assert sent(request) == kvrpcpb.RawBatchGetRequest(keys=[prefix + b"c", prefix + b"a"], cf="lock")


@pytest.mark.parametrize(("requests", "prefix"), [(PLAIN, b""), (SPACE, PREFIX)])
def test_a_batch_put_keeps_values_with_their_keys(requests: RawRequests, prefix: bytes) -> None:
    work = requests.batch_put([b"a", b"b", b"c"], [b"1", b"2", b"3"], 0, "", 10, 1000)

    request = work.build([2, 0])

    pairs = [kvrpcpb.KvPair(key=prefix + b"c", value=b"3"), kvrpcpb.KvPair(key=prefix + b"a", value=b"1")]
    assert request.rpc is Tikv.RawBatchPut
    assert request.effect is Effect.WRITE
    assert sent(request) == kvrpcpb.RawBatchPutRequest(pairs=pairs)


def test_one_ttl_goes_for_all_pairs_of_a_batch() -> None:
    work = PLAIN.batch_put([b"a", b"b"], [b"1", b"2"], 60, "", 10, 1000)

    message = sent(work.build([0, 1]))

    pairs = [kvrpcpb.KvPair(key=b"a", value=b"1"), kvrpcpb.KvPair(key=b"b", value=b"2")]
    assert message == kvrpcpb.RawBatchPutRequest(pairs=pairs, ttls=[60])


@pytest.mark.parametrize(("requests", "prefix"), [(PLAIN, b""), (SPACE, PREFIX)])
def test_a_batch_delete_names_the_keys_at_the_positions(requests: RawRequests, prefix: bytes) -> None:
    request = requests.batch_delete([b"a", b"b"], "write", 10, 1000).build([1])

    assert request.rpc is Tikv.RawBatchDelete
    assert request.effect is Effect.WRITE
    assert sent(request) == kvrpcpb.RawBatchDeleteRequest(keys=[prefix + b"b"], cf="write")


def test_the_size_of_a_pair_counts_key_value_and_what_surrounds_them() -> None:
    put = PLAIN.batch_put([b"key", b""], [b"value", bytes(1000)], 0, "", 10, 1000)
    get = PLAIN.batch_get([b"key"], "", 10, 1000)

    assert 8 < put.sizes[0] < 40
    assert 1000 < put.sizes[1] < 1040
    assert 3 < get.sizes[0] < 40


def test_the_size_of_a_key_that_is_read_is_that_of_its_answer_or_its_own() -> None:
    work = PLAIN.batch_get([b"key", bytes(500)], "", 10, 1000, expected=100)
    short = PLAIN.batch_get([b"key", b""], "", 10, 1000, expected=100)

    assert work.sizes[0] == 100
    assert 500 < work.sizes[1] < 540
    assert short.sizes == [100, 100]
    assert list(PLAIN.batch_get([], "", 10, 1000).sizes) == []


@pytest.mark.parametrize(
    ("requests", "part", "bounds"),
    [
        (PLAIN, KeyRange(b"a", b"b"), (b"a", b"b")),
        (PLAIN, KeyRange(), (b"", b"")),
        (SPACE, KeyRange(b"a", b"b"), (PREFIX + b"a", PREFIX + b"b")),
        (SPACE, KeyRange(), (PREFIX, BOUND)),
    ],
)
def test_a_range_is_encoded_with_its_bounds(requests: RawRequests, part: KeyRange, bounds: tuple[bytes, bytes]) -> None:
    start, end = bounds

    deleted = requests.delete_range(KeyRange(), "lock").build(part)
    summed = requests.checksum(KeyRange()).build(part)
    forward = requests.scan(KeyRange(), 7, reverse=False, key_only=True, cf="lock").request(part)
    backward = requests.scan(KeyRange(), 7, reverse=True, key_only=False, cf="").request(part)

    assert (deleted.rpc, deleted.effect) == (Tikv.RawDeleteRange, Effect.WRITE)
    assert sent(deleted) == kvrpcpb.RawDeleteRangeRequest(start_key=start, end_key=end, cf="lock")
    assert (summed.rpc, summed.effect) == (Tikv.RawChecksum, Effect.READ)
    assert sent(summed) == kvrpcpb.RawChecksumRequest(
        algorithm=kvrpcpb.ChecksumAlgorithm.Crc64_Xor, ranges=[kvrpcpb.KeyRange(start_key=start, end_key=end)]
    )
    assert (forward.rpc, forward.effect) == (Tikv.RawScan, Effect.READ)
    assert sent(forward) == kvrpcpb.RawScanRequest(start_key=start, end_key=end, limit=7, key_only=True, cf="lock")
    assert sent(backward) == kvrpcpb.RawScanRequest(start_key=end, end_key=start, limit=7, reverse=True)


def test_a_range_of_the_last_keyspace_ends_where_raw_keys_end() -> None:
    last = RawRequests(KeyspaceCodec(b"r", 0xFFFFFF, "last"), atomic=False)

    message = sent(last.delete_range(KeyRange(), "").build(KeyRange(b"k", b"")))

    # TiKV wants both bounds to begin with the same byte, or the end to be the next one alone.
    assert message == kvrpcpb.RawDeleteRangeRequest(start_key=b"r\xff\xff\xffk", end_key=b"s")


def test_a_scan_begins_at_the_edge_of_its_range() -> None:
    forward = PLAIN.scan(KeyRange(b"a", b"z"), 1, reverse=False, key_only=False, cf="")
    backward = PLAIN.scan(KeyRange(b"a", b"z"), 1, reverse=True, key_only=False, cf="")

    assert (forward.key_range, forward.at_end) == (KeyRange(b"a", b"z"), False)
    assert (backward.key_range, backward.at_end) == (KeyRange(b"a", b"z"), True)


# --- answers ----------------------------------------------------------------------------------------------------------


def scanned(*keys: bytes, codec: KeyCodec | None = None) -> kvrpcpb.RawScanResponse:
    encode = (codec or PlainCodec()).encode_key
    return kvrpcpb.RawScanResponse(kvs=[kvrpcpb.KvPair(key=encode(key), value=b"v" + key) for key in keys])


def read(page: Page) -> tuple[list[tuple[bytes, bytes]], KeyRange | None]:
    """Return what a page has, and what it leaves."""
    found = page.pairs()
    assert page.count == len(found)
    return found, page.rest


def pairs(*keys: bytes) -> list[tuple[bytes, bytes]]:
    return [(key, b"v" + key) for key in keys]


@pytest.mark.parametrize(
    ("covered", "keys", "rest"),
    [
        # The Region holds fewer: go on behind it.
        (KeyRange(b"a", b"m"), [b"b"], KeyRange(b"m", b"z")),
        (KeyRange(b"a", b"m"), [], KeyRange(b"m", b"z")),
        # It may hold more: go on behind the last pair.
        (KeyRange(b"a", b"m"), [b"b", b"c"], KeyRange(b"c\0", b"z")),
        # It reaches to the end of the range, or of all keys.
        (KeyRange(b"a", b"z"), [b"b"], None),
        (KeyRange(b"a", b""), [b"b"], None),
        # The last pair is the last key of the range.
        (KeyRange(b"a", b"z"), [b"b", b"y\xff"], KeyRange(b"y\xff\0", b"z")),
    ],
)
def test_what_is_left_of_a_forward_scan(covered: KeyRange, keys: list[bytes], rest: KeyRange | None) -> None:
    page = PLAIN.page(covered, scanned(*keys), KeyRange(b"a", b"z"), 2, reverse=False)

    assert read(page) == (pairs(*keys), rest)


@pytest.mark.parametrize(
    ("covered", "keys", "rest"),
    [
        (KeyRange(b"m", b"z"), [b"n"], KeyRange(b"a", b"m")),
        (KeyRange(b"m", b"z"), [], KeyRange(b"a", b"m")),
        (KeyRange(b"m", b"z"), [b"y", b"n"], KeyRange(b"a", b"n")),
        (KeyRange(b"a", b"z"), [b"n"], None),
        (KeyRange(b"", b"z"), [b"n"], None),
        (KeyRange(b"a", b"z"), [b"y", b"a"], None),
    ],
)
def test_what_is_left_of_a_reverse_scan(covered: KeyRange, keys: list[bytes], rest: KeyRange | None) -> None:
    page = PLAIN.page(covered, scanned(*keys), KeyRange(b"a", b"z"), 2, reverse=True)

    assert read(page) == (pairs(*keys), rest)


def test_a_reverse_scan_ends_with_the_empty_key() -> None:
    page = PLAIN.page(KeyRange(), scanned(b"a", b""), KeyRange(), 2, reverse=True)

    assert read(page) == (pairs(b"a", b""), None)


def test_the_last_key_of_an_unbounded_scan_leaves_what_may_follow() -> None:
    page = PLAIN.page(KeyRange(b"", b"\xff"), scanned(b"\xff"), KeyRange(), 1, reverse=False)

    assert page.rest == KeyRange(b"\xff\0", b"")


@given(st.lists(st.binary(max_size=3), unique=True), st.integers(1, 4), st.booleans(), st.sets(st.binary(max_size=2)))
def test_pages_one_after_the_other_make_up_the_range(
    keys: list[bytes], limit: int, reverse: bool, borders: set[bytes]
) -> None:
    regions = [KeyRange(start, end) for start, end in pairwise([b"", *sorted(borders - {b""}), b""])]
    rest: KeyRange | None = KeyRange()
    found: list[tuple[bytes, bytes]] = []

    while rest is not None:
        inside = [part for part in (rest.clip(region) for region in regions) if part is not None]
        covered = inside[-1] if reverse else inside[0]
        held = sorted((key for key in keys if covered.contains(key)), reverse=reverse)
        page = PLAIN.page(covered, scanned(*held[:limit]), rest, limit, reverse=reverse)
        found += page.pairs()
        rest = page.rest

    assert found == pairs(*sorted(keys, reverse=reverse))


def test_keys_of_a_page_lose_the_prefix_of_the_keyspace() -> None:
    page = SPACE.page(KeyRange(), scanned(b"", b"k", codec=SPACE.codec), KeyRange(), 2, reverse=False)

    assert read(page) == (pairs(b"", b"k"), KeyRange(b"k\0"))


def test_a_key_of_another_keyspace_is_refused() -> None:
    with pytest.raises(CodecError, match="outside keyspace 'users'"):
        SPACE.pairs("scan", scanned(b"k").kvs)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (kvrpcpb.KeyError(abort="it is broken"), "it is broken"),
        (kvrpcpb.KeyError(retryable="later"), 'retryable: "later"'),
    ],
)
def test_an_error_in_place_of_a_pair_is_raised(error: kvrpcpb.KeyError, message: str) -> None:
    answer = kvrpcpb.RawScanResponse(kvs=[kvrpcpb.KvPair(key=PREFIX, value=b"1"), kvrpcpb.KvPair(error=error)])
    page = SPACE.page(KeyRange(), answer, KeyRange(), 2, reverse=False)

    with pytest.raises(RawError) as caught:
        page.pairs()

    assert (caught.value.operation, caught.value.message) == ("scan", message)
    assert str(caught.value) == f"the store refused scan: {message}"
    assert not caught.value.retryable
    assert not caught.value.undetermined


def test_an_answer_without_error_is_accepted() -> None:
    accept("put", kvrpcpb.RawPutResponse())

    with pytest.raises(RawError, match="the store refused put: no"):
        accept("put", kvrpcpb.RawPutResponse(error="no"))


def test_checksums_are_merged_by_xor_and_sum() -> None:
    part = KeyRange()
    answers = [
        (part, kvrpcpb.RawChecksumResponse(checksum=0b1100, total_kvs=1, total_bytes=10)),
        (part, kvrpcpb.RawChecksumResponse(checksum=0b1010, total_kvs=2, total_bytes=20)),
    ]

    assert merge_checksums(answers) == Checksum(0b0110, 3, 30)
    assert merge_checksums([]) == Checksum(0, 0, 0)


def test_a_refused_part_refuses_the_checksum() -> None:
    answers = [
        (KeyRange(), kvrpcpb.RawChecksumResponse(checksum=1)),
        (KeyRange(), kvrpcpb.RawChecksumResponse(error="no")),
    ]

    with pytest.raises(RawError, match="the store refused checksum: no"):
        merge_checksums(answers)


def test_results_are_values() -> None:
    assert CasResult(swapped=True, previous=b"v") == CasResult(True, b"v")
    assert len({Checksum(1, 2, 3), Checksum(1, 2, 3)}) == 1
