"""What a store answers to each raw request, in each storage mode."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from fastcrc import crc64
from hypothesis import given, strategies as st
from tikv_embedded import memcomparable
from tikv_embedded.engine import CF_DEFAULT, CF_LOCK, CF_WRITE, MemoryEngine, WriteBatch
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.store.entry_size import MAX_ENTRY_SIZE
from tikv_embedded.store.raw import RAW_ACTIONS, RawContext
from tikv_embedded.store.raw_checks import MAX_KEY_SIZE
from tikv_proto import kvrpcpb, services

NOW = 1_000_000
PREFIX = b"r\x00\x00\x01"
"""What V2's keys begin with; the other modes do not mind."""


class Store:
    """A Region in memory, asked the way the service asks it."""

    def __init__(self, mode: ApiMode, start: bytes = b"", end: bytes = b"") -> None:
        self.mode = mode
        self.engine = MemoryEngine()
        self.now: float = NOW
        self.api_version = kvrpcpb.APIVersion.V2 if mode is ApiMode.V2 else kvrpcpb.APIVersion.V1
        self.next_ts = itertools.count(1).__next__
        self.bounds = (start, end)

    def ask(self, request: Any) -> Any:
        if not request.HasField("context"):
            request.context.api_version = self.api_version
        with self.engine.snapshot() as snapshot:
            ctx = RawContext(snapshot, self.mode, self.now, 7, *self.bounds, self.next_ts)
            response, batch = RAW_ACTIONS[type(request)](ctx, request)
        if batch is not None:
            self.engine.write(batch)
        return response

    def put(self, key: bytes, value: bytes, ttl: int = 0, cf: str = "") -> None:
        request = kvrpcpb.RawPutRequest(key=PREFIX + key, value=value, ttl=ttl, cf=cf)
        assert self.ask(request) == kvrpcpb.RawPutResponse()

    def get(self, key: bytes, cf: str = "") -> bytes | None:
        response = self.ask(kvrpcpb.RawGetRequest(key=PREFIX + key, cf=cf))
        assert not response.error
        return None if response.not_found else response.value

    def delete(self, key: bytes) -> None:
        assert self.ask(kvrpcpb.RawDeleteRequest(key=PREFIX + key)) == kvrpcpb.RawDeleteResponse()

    def scan(self, start: bytes = b"", end: bytes | None = None, **options: Any) -> list[tuple[bytes, bytes]]:
        low, high = PREFIX + start, b"s" if end is None else PREFIX + end
        if options.get("reverse"):
            low, high = (PREFIX + b"\xff" * 8 if not start else low), PREFIX + (end or b"")
        options.setdefault("limit", 100)
        return rows(self.ask(kvrpcpb.RawScanRequest(start_key=low, end_key=high, **options)).kvs)

    def ttl(self, key: bytes) -> int | None:
        response = self.ask(kvrpcpb.RawGetKeyTTLRequest(key=PREFIX + key))
        assert not response.error
        return None if response.not_found else response.ttl

    def stored(self, cf: str = CF_DEFAULT) -> dict[bytes, bytes]:
        with self.engine.snapshot() as snapshot:
            return dict(snapshot.scan(cf, b"", b""))


def rows(pairs: Any) -> list[tuple[bytes, bytes]]:
    """The pairs of a response, without the prefix of V2."""
    assert not any(pair.HasField("error") for pair in pairs)
    return [(pair.key.removeprefix(PREFIX), pair.value) for pair in pairs]


def only_error(pairs: Any) -> str:
    (pair,) = pairs
    text: str = pair.error.abort
    return text


@pytest.fixture(params=list(ApiMode), ids=lambda mode: mode.value)
def store(request: pytest.FixtureRequest) -> Store:
    return Store(request.param)


@pytest.fixture(params=[ApiMode.V1TTL, ApiMode.V2], ids=lambda mode: mode.value)
def ttl_store(request: pytest.FixtureRequest) -> Store:
    return Store(request.param)


@pytest.fixture
def v1() -> Store:
    return Store(ApiMode.V1)


@pytest.fixture
def v2() -> Store:
    return Store(ApiMode.V2)


def test_every_raw_request_of_the_wire_but_the_coprocessor_has_an_action() -> None:
    raw = {rpc.request for rpc in services.all_rpcs() if rpc.path.startswith("/tikvpb.Tikv/Raw")}

    assert raw - {kvrpcpb.RawCoprocessorRequest} == set(RAW_ACTIONS)


# Single keys.


def test_a_value_is_read_back_and_a_missing_key_is_not_found(store: Store) -> None:
    store.put(b"k", b"v")

    assert store.get(b"k") == b"v"
    assert store.get(b"other") is None


def test_an_empty_value_is_not_a_missing_one(store: Store) -> None:
    store.put(b"k", b"")

    response = store.ask(kvrpcpb.RawGetRequest(key=PREFIX + b"k"))

    assert response.value == b""
    assert not response.not_found


def test_a_put_replaces_and_a_delete_removes(store: Store) -> None:
    store.put(b"k", b"1")
    store.put(b"k", b"2")
    assert store.get(b"k") == b"2"

    store.delete(b"k")
    store.delete(b"k")
    assert store.get(b"k") is None

    store.put(b"k", b"3")
    assert store.get(b"k") == b"3"


def test_puts_for_cas_do_the_same(store: Store) -> None:
    store.ask(kvrpcpb.RawPutRequest(key=PREFIX + b"k", value=b"1", for_cas=True))
    assert store.get(b"k") == b"1"

    store.ask(kvrpcpb.RawDeleteRequest(key=PREFIX + b"k", for_cas=True))
    assert store.get(b"k") is None


def test_column_families_keep_their_own_pairs() -> None:
    for store in (Store(ApiMode.V1), Store(ApiMode.V1TTL)):
        for cf in (CF_DEFAULT, CF_LOCK, CF_WRITE):
            store.put(b"k", cf.encode(), cf=cf)

        assert store.get(b"k") == b"default"
        assert [store.get(b"k", cf=cf) for cf in (CF_DEFAULT, CF_LOCK, CF_WRITE)] == [b"default", b"lock", b"write"]


# Time to live.


def test_a_pair_expires_in_the_second_its_ttl_has_passed(ttl_store: Store) -> None:
    ttl_store.put(b"k", b"v", ttl=10)
    assert ttl_store.ttl(b"k") == 10

    ttl_store.now = NOW + 9.999
    assert ttl_store.get(b"k") == b"v"
    assert ttl_store.ttl(b"k") == 1
    assert ttl_store.scan() == [(b"k", b"v")]

    ttl_store.now = NOW + 10
    assert ttl_store.get(b"k") is None
    assert ttl_store.ttl(b"k") is None
    assert ttl_store.scan() == []


def test_a_ttl_of_zero_means_never(ttl_store: Store) -> None:
    ttl_store.put(b"k", b"v", ttl=10)
    ttl_store.put(b"k", b"v")

    ttl_store.now = NOW * 1000

    assert ttl_store.get(b"k") == b"v"
    assert ttl_store.ttl(b"k") == 0


def test_the_greatest_ttl_does_not_overflow(ttl_store: Store) -> None:
    ttl_store.put(b"k", b"v", ttl=(1 << 64) - 1)

    assert ttl_store.get(b"k") == b"v"


def test_the_ttl_of_a_missing_key_is_not_found(ttl_store: Store) -> None:
    assert ttl_store.ttl(b"k") is None


def test_v1_knows_no_ttl(v1: Store) -> None:
    key = PREFIX + b"k"
    refused = "ttl is not enabled, but get put request with ttl"

    assert v1.ask(kvrpcpb.RawPutRequest(key=key, ttl=1)).error == refused
    assert v1.ask(kvrpcpb.RawBatchPutRequest(pairs=[kvrpcpb.KvPair(key=key)], ttls=[1])).error == refused
    assert v1.ask(kvrpcpb.RawCASRequest(key=key, ttl=1, previous_not_exist=True)).error == refused
    assert v1.ask(kvrpcpb.RawGetKeyTTLRequest(key=key)).error == "get ttl on non-ttl store"
    assert v1.stored() == {}


# Batches.


def test_a_batch_get_keeps_the_order_of_the_request_and_leaves_out_what_is_missing(store: Store) -> None:
    store.put(b"a", b"1")
    store.put(b"b", b"")

    response = store.ask(kvrpcpb.RawBatchGetRequest(keys=[PREFIX + key for key in (b"b", b"x", b"a", b"b")]))

    assert rows(response.pairs) == [(b"b", b""), (b"a", b"1"), (b"b", b"")]


def batch_put(store: Store, keys: str, ttls: list[int]) -> str:
    pairs = [kvrpcpb.KvPair(key=PREFIX + key.encode(), value=b"v") for key in keys]
    error: str = store.ask(kvrpcpb.RawBatchPutRequest(pairs=pairs, ttls=ttls)).error
    return error


@pytest.mark.parametrize(
    ("ttls", "expected"), [([], [0, 0, 0]), ([5], [5, 5, 5]), ([0], [0, 0, 0]), ([1, 0, 9], [1, 0, 9])]
)
def test_a_batch_put_takes_no_one_or_as_many_ttls_as_pairs(
    ttl_store: Store, ttls: list[int], expected: list[int]
) -> None:
    assert batch_put(ttl_store, "abc", ttls) == ""

    assert [ttl_store.ttl(key) for key in (b"a", b"b", b"c")] == expected


def test_a_batch_put_with_another_number_of_ttls_writes_nothing(store: Store) -> None:
    assert batch_put(store, "abc", [0, 0]) == "The length of ttls does not equal to the length of pairs"

    assert store.stored() == {}


def test_the_old_ttl_field_of_a_batch_put_is_ignored(ttl_store: Store) -> None:
    request = kvrpcpb.RawBatchPutRequest(pairs=[kvrpcpb.KvPair(key=PREFIX + b"k", value=b"v")])
    request.MergeFromString(b"\x20\x05")  # Field 4, `ttl` = 5.
    assert request.ttl == 5

    ttl_store.ask(request)

    assert ttl_store.ttl(b"k") == 0


def test_an_empty_batch_is_fine(store: Store) -> None:
    assert store.ask(kvrpcpb.RawBatchPutRequest()) == kvrpcpb.RawBatchPutResponse()
    assert store.ask(kvrpcpb.RawBatchDeleteRequest()) == kvrpcpb.RawBatchDeleteResponse()
    assert store.ask(kvrpcpb.RawBatchGetRequest()) == kvrpcpb.RawBatchGetResponse()
    assert store.ask(kvrpcpb.RawBatchScanRequest()) == kvrpcpb.RawBatchScanResponse()


def test_the_last_of_equal_keys_in_a_batch_put_wins(store: Store) -> None:
    pairs = [kvrpcpb.KvPair(key=PREFIX + b"k", value=value) for value in (b"1", b"2")]

    store.ask(kvrpcpb.RawBatchPutRequest(pairs=pairs))

    assert store.scan() == [(b"k", b"2")]


def test_a_batch_delete_removes_what_is_there(store: Store) -> None:
    batch_put(store, "abc", [])

    response = store.ask(kvrpcpb.RawBatchDeleteRequest(keys=[PREFIX + key for key in (b"a", b"x", b"c")]))

    assert response == kvrpcpb.RawBatchDeleteResponse()
    assert store.scan() == [(b"b", b"v")]


# Ranges.


@pytest.fixture
def filled(store: Store) -> Store:
    for key in (b"a", b"b", b"c", b"d"):
        store.put(key, key * 2)
    return store


def test_a_scan_goes_up_to_the_exclusive_end(filled: Store) -> None:
    assert filled.scan(b"b", b"d") == [(b"b", b"bb"), (b"c", b"cc")]


def test_a_reverse_scan_goes_down_from_the_exclusive_start_to_the_inclusive_end(filled: Store) -> None:
    assert filled.scan(b"d", b"b", reverse=True) == [(b"c", b"cc"), (b"b", b"bb")]


def test_a_scan_returns_limit_pairs_and_none_for_zero(filled: Store) -> None:
    assert [key for key, _ in filled.scan(limit=2)] == [b"a", b"b"]
    assert [key for key, _ in filled.scan(limit=2, reverse=True)] == [b"d", b"c"]
    assert filled.scan(limit=0) == []


def test_a_key_only_scan_leaves_the_values_empty(filled: Store) -> None:
    assert filled.scan(b"c", key_only=True) == [(b"c", b""), (b"d", b"")]
    assert filled.scan(key_only=True, reverse=True, limit=1) == [(b"d", b"")]


def test_what_is_deleted_or_expired_is_not_scanned_and_does_not_count(ttl_store: Store) -> None:
    for key in (b"a", b"b", b"c", b"d", b"e"):
        ttl_store.put(key, b"v", ttl=5 if key in b"bd" else 0)
    ttl_store.delete(b"a")
    ttl_store.now = NOW + 5

    assert [key for key, _ in ttl_store.scan(limit=2)] == [b"c", b"e"]
    assert [key for key, _ in ttl_store.scan(limit=2, reverse=True)] == [b"e", b"c"]


def test_a_scan_without_bounds_covers_the_whole_of_v1(v1: Store) -> None:
    for key in (b"", b"a", b"\xff\xff"):
        v1.ask(kvrpcpb.RawPutRequest(key=key, value=b"v"))

    forward = v1.ask(kvrpcpb.RawScanRequest(limit=9))
    backward = v1.ask(kvrpcpb.RawScanRequest(limit=9, reverse=True))

    assert [pair.key for pair in forward.kvs] == [b"", b"a", b"\xff\xff"]
    assert [pair.key for pair in backward.kvs] == [b"\xff\xff", b"a", b""]


@pytest.mark.parametrize("mode", list(ApiMode))
def test_a_scan_never_leaves_the_region(mode: ApiMode) -> None:
    def bound(key: bytes) -> bytes:
        return memcomparable.encode(PREFIX + key) if mode is ApiMode.V2 else PREFIX + key

    store = Store(mode)
    for key in (b"a", b"b", b"c", b"d"):
        store.put(key, b"v")
    store.bounds = (bound(b"b"), bound(b"d"))

    assert [key for key, _ in store.scan()] == [b"b", b"c"]
    assert [key for key, _ in store.scan(reverse=True)] == [b"c", b"b"]
    assert [key for key, _ in store.scan(b"c", b"z")] == [b"c"]
    assert [key for key, _ in store.scan(b"c", b"a", reverse=True)] == [b"b"]


def batch_scan(store: Store, *ranges: tuple[bytes, bytes], reverse: bool = False, each_limit: int = 10) -> Any:
    spans = [kvrpcpb.KeyRange(start_key=PREFIX + start, end_key=PREFIX + end if end else b"") for start, end in ranges]
    return store.ask(kvrpcpb.RawBatchScanRequest(ranges=spans, each_limit=each_limit, reverse=reverse)).kvs


def test_a_batch_scan_limits_each_range_and_appends_them(filled: Store) -> None:
    pairs = rows(batch_scan(filled, (b"a", b"c"), (b"b", b"z"), each_limit=2))

    assert [key for key, _ in pairs] == [b"a", b"b", b"b", b"c"]


def test_a_reverse_batch_scan_starts_at_the_upper_bounds(filled: Store) -> None:
    pairs = rows(batch_scan(filled, (b"d", b"b"), (b"b", b"a"), reverse=True))

    assert [key for key, _ in pairs] == [b"c", b"b", b"a"]


def test_a_range_without_end_goes_to_the_start_of_the_next(v1: Store) -> None:
    for key in (b"a", b"b", b"c", b"d"):
        v1.put(key, b"v")

    pairs = rows(batch_scan(v1, (b"a", b""), (b"c", b"")))

    assert [key for key, _ in pairs] == [b"a", b"b", b"c", b"d"]


@pytest.mark.parametrize(
    ("ranges", "reverse"),
    [
        ([(b"b", b"a")], False),
        ([(b"a", b"a")], False),
        ([(b"a", b"b")], True),
        ([(b"c", b""), (b"a", b"")], False),
        ([(b"a", b""), (b"c", b"")], True),
    ],
)
def test_a_batch_scan_of_an_inverted_range_is_refused_as_a_whole(
    v1: Store, ranges: list[tuple[bytes, bytes]], reverse: bool
) -> None:
    assert only_error(batch_scan(v1, *ranges, reverse=reverse)) == "Invalid KeyRanges"


def delete_range(store: Store, start: bytes, end: bytes) -> kvrpcpb.RawDeleteRangeResponse:
    response = store.ask(kvrpcpb.RawDeleteRangeRequest(start_key=PREFIX + start, end_key=PREFIX + end))
    assert isinstance(response, kvrpcpb.RawDeleteRangeResponse)
    return response


def test_a_range_is_deleted_physically(filled: Store) -> None:
    filled.delete(b"c")

    assert delete_range(filled, b"b", b"d") == kvrpcpb.RawDeleteRangeResponse()

    assert [key for key, _ in filled.scan()] == [b"a", b"d"]
    assert len(filled.stored()) == 2


def test_a_range_without_end_is_deleted_to_the_end_of_v1(v1: Store) -> None:
    for key in (b"a", b"b", b"\xff"):
        v1.put(key, b"v")

    v1.ask(kvrpcpb.RawDeleteRangeRequest(start_key=PREFIX + b"b"))

    assert [key for key, _ in v1.scan()] == [b"a"]


@pytest.mark.parametrize(("start", "end"), [(b"c", b"b"), (b"b", b"b")])
def test_deleting_an_inverted_range_is_a_region_error_with_a_message_alone(
    filled: Store, start: bytes, end: bytes
) -> None:
    response = delete_range(filled, start, end)

    assert response.region_error.message.startswith("invalid delete range command")
    assert [field.name for field, _ in response.region_error.ListFields()] == ["message"]
    assert len(filled.scan()) == 4


# Compare and swap.


def swap(store: Store, previous: bytes | None, value: bytes = b"", **options: Any) -> tuple[bool, bytes | None]:
    """Swap key "k"; return whether it happened and what was there before."""
    response = store.ask(
        kvrpcpb.RawCASRequest(
            key=PREFIX + b"k",
            previous_not_exist=previous is None,
            previous_value=previous or b"",
            value=value,
            **options,
        )
    )
    assert not response.error
    return response.succeed, None if response.previous_not_exist else response.previous_value


def test_a_swap_happens_only_if_the_key_is_as_expected(store: Store) -> None:
    assert swap(store, b"x", b"1") == (False, None)
    assert swap(store, None, b"1") == (True, None)
    assert swap(store, None, b"2") == (False, b"1")
    assert swap(store, b"x", b"2") == (False, b"1")
    assert store.get(b"k") == b"1"

    assert swap(store, b"1", b"2") == (True, b"1")
    assert store.get(b"k") == b"2"


def test_a_swap_tells_an_empty_value_from_a_missing_key(store: Store) -> None:
    assert swap(store, b"", b"1") == (False, None)
    assert swap(store, None, b"") == (True, None)
    assert swap(store, None, b"1") == (False, b"")
    assert swap(store, b"", b"1") == (True, b"")


def test_a_swap_deletes_if_asked_to(store: Store) -> None:
    store.put(b"k", b"1")

    assert swap(store, b"2", delete=True) == (False, b"1")
    assert swap(store, b"1", delete=True) == (True, b"1")
    assert store.get(b"k") is None


def test_deleting_a_missing_key_by_swap_succeeds_and_writes_nothing(store: Store) -> None:
    assert swap(store, None, delete=True) == (True, None)

    assert store.stored() == {}


def test_a_swap_sets_a_ttl_and_takes_an_expired_pair_for_missing(ttl_store: Store) -> None:
    assert swap(ttl_store, None, b"1", ttl=10) == (True, None)
    assert ttl_store.ttl(b"k") == 10

    ttl_store.now = NOW + 10

    assert swap(ttl_store, b"1", b"2") == (False, None)
    assert swap(ttl_store, None, b"2") == (True, None)
    assert ttl_store.ttl(b"k") == 0


# Checksums.


def checksum(store: Store, *ranges: tuple[bytes, bytes], algorithm: int = 0) -> kvrpcpb.RawChecksumResponse:
    spans = [kvrpcpb.KeyRange(start_key=start, end_key=end) for start, end in ranges]
    response = store.ask(kvrpcpb.RawChecksumRequest(algorithm=algorithm, ranges=spans))  # type: ignore[arg-type]  # also unknown ones
    assert isinstance(response, kvrpcpb.RawChecksumResponse)
    return response


def test_the_checksum_is_crc64_xz_over_key_and_value(v1: Store) -> None:
    v1.ask(kvrpcpb.RawPutRequest(key=b"1234", value=b"56789"))

    response = checksum(v1, (b"", b""))

    assert response.checksum == 0x995DC9BBDF1939FA
    assert (response.total_kvs, response.total_bytes) == (1, 9)


def test_checksums_of_pairs_are_xored_and_leave_out_ttl_flags_and_dead_pairs(ttl_store: Store) -> None:
    ttl_store.put(b"a", b"11", ttl=5)
    ttl_store.put(b"b", b"22", ttl=50)
    ttl_store.put(b"c", b"33")
    ttl_store.put(b"d", b"44")
    ttl_store.delete(b"d")
    ttl_store.now = NOW + 5

    response = checksum(ttl_store, (PREFIX, PREFIX + b"c"), (PREFIX + b"c", PREFIX + b"z"))

    assert response.checksum == crc64.xz(PREFIX + b"b22") ^ crc64.xz(PREFIX + b"c33")
    assert (response.total_kvs, response.total_bytes) == (2, 2 * (len(PREFIX) + 3))


def test_an_unknown_checksum_algorithm_is_refused(store: Store) -> None:
    assert checksum(store, (PREFIX, b"s"), algorithm=9).error == "unknown checksum algorithm 9"


# How V2 stores its pairs.


def test_v2_stores_versions_under_memcomparable_keys_with_descending_timestamps(v2: Store) -> None:
    v2.put(b"k", b"v")
    v2.put(b"t", b"v", ttl=3)
    v2.delete(b"x")

    def key(user_key: bytes, ts: int) -> bytes:
        return memcomparable.encode(PREFIX + user_key) + ((1 << 64) - 1 - ts).to_bytes(8, "big")

    assert v2.stored() == {
        key(b"k", 1): b"v\x00",
        key(b"t", 2): b"v" + (NOW + 3).to_bytes(8, "big") + b"\x01",
        key(b"x", 3): b"\x02",
    }


def test_v2_reads_the_newest_of_several_versions_in_both_directions(v2: Store) -> None:
    batch = WriteBatch()
    for user_key, versions in {
        b"a": [b"1\x00", b"2\x00"],
        b"b": [b"1\x00", b"\x02"],
        b"c": [b"\x02", b"3\x00"],
    }.items():
        for ts, stored in enumerate(versions, start=10):
            suffix = ((1 << 64) - 1 - ts).to_bytes(8, "big")
            batch.put(CF_DEFAULT, memcomparable.encode(PREFIX + user_key) + suffix, stored)

    v2.engine.write(batch)

    assert [v2.get(key) for key in (b"a", b"b", b"c")] == [b"2", None, b"3"]
    assert v2.scan() == [(b"a", b"2"), (b"c", b"3")]
    assert v2.scan(reverse=True) == [(b"c", b"3"), (b"a", b"2")]
    assert checksum(v2, (PREFIX, b"s")).total_kvs == 2


def test_v2_keeps_one_version_of_each_key(v2: Store) -> None:
    for i in range(5):
        v2.put(b"k", b"%d" % i)
    v2.delete(b"k")
    assert list(v2.stored().values()) == [b"\x02"]

    v2.put(b"k", b"new")
    assert list(v2.stored().values()) == [b"new\x00"]


def test_v2_tells_keys_apart_of_which_one_begins_the_other(v2: Store) -> None:
    for key in (b"k", b"k\x00", b"k\x00\x00\x00\x00", b"k\xff"):
        v2.put(key, key)
    v2.delete(b"k\x00")

    assert [key for key, _ in v2.scan()] == [b"k", b"k\x00\x00\x00\x00", b"k\xff"]
    assert [v2.get(key) for key in (b"k", b"k\x00")] == [b"k", None]


def test_v1ttl_appends_the_expiry_to_each_value() -> None:
    store = Store(ApiMode.V1TTL)

    store.put(b"a", b"v")
    store.put(b"b", b"v", ttl=3)

    assert store.stored() == {
        PREFIX + b"a": b"v" + bytes(8),
        PREFIX + b"b": b"v" + (NOW + 3).to_bytes(8, "big"),
    }


# Refusals.

KEYED = [
    kvrpcpb.RawGetRequest(key=b"k"),
    kvrpcpb.RawPutRequest(key=b"k"),
    kvrpcpb.RawBatchPutRequest(pairs=[kvrpcpb.KvPair(key=b"k")]),
    kvrpcpb.RawDeleteRequest(key=b"k"),
    kvrpcpb.RawBatchDeleteRequest(keys=[b"k"]),
    kvrpcpb.RawGetKeyTTLRequest(key=b"k"),
    kvrpcpb.RawCASRequest(key=b"k"),
    kvrpcpb.RawDeleteRangeRequest(start_key=b"k", end_key=b"l"),
    kvrpcpb.RawChecksumRequest(ranges=[kvrpcpb.KeyRange(start_key=b"k", end_key=b"l")]),
]
PAIRED = [
    kvrpcpb.RawBatchGetRequest(keys=[b"k"]),
    kvrpcpb.RawScanRequest(start_key=b"k", end_key=b"l", limit=1),
    kvrpcpb.RawBatchScanRequest(ranges=[kvrpcpb.KeyRange(start_key=b"k", end_key=b"l")], each_limit=1),
]


def refusal(store: Store, request: Any, *, api_version: int | None = None, cf: str = "") -> str:
    asked = type(request)()
    asked.CopyFrom(request)
    asked.context.api_version = store.api_version if api_version is None else api_version
    if cf:
        asked.cf = cf
    response = store.ask(asked)
    if hasattr(response, "error"):
        return str(response.error)
    return only_error(response.pairs if hasattr(response, "pairs") else response.kvs)


def name(request: Any) -> str:
    return str(type(request).__name__)


@pytest.mark.parametrize("request_", KEYED + PAIRED, ids=name)
def test_a_request_of_another_api_version_is_refused(request_: Any) -> None:
    pairs = [(ApiMode.V1, 1), (ApiMode.V1, 2), (ApiMode.V1TTL, 1), (ApiMode.V1TTL, 2), (ApiMode.V2, 0), (ApiMode.V2, 1)]
    for mode, version in [*pairs, (ApiMode.V2, 3)]:
        text = refusal(Store(mode), request_, api_version=version)

        assert text.startswith("Api version in request does not match with TiKV storage, cmd: raw_")


def test_the_refusal_of_an_api_version_names_command_storage_and_request(v2: Store) -> None:
    assert refusal(v2, KEYED[0], api_version=0) == (
        "Api version in request does not match with TiKV storage, cmd: raw_get, storage: V2, request: V1"
    )
    assert refusal(Store(ApiMode.V1TTL), KEYED[1], api_version=7).endswith("cmd: raw_put, storage: V1ttl, request: 7")


@pytest.mark.parametrize("request_", KEYED + PAIRED, ids=name)
def test_v2_refuses_keys_that_are_not_raw_ones(v2: Store, request_: Any) -> None:
    assert refusal(v2, request_).startswith("Key mode mismatched with the request mode, cmd: raw_")


def test_the_refusal_of_a_key_or_range_shows_it_in_hex(v2: Store) -> None:
    assert refusal(v2, KEYED[0]) == "Key mode mismatched with the request mode, cmd: raw_get, storage: V2, key: 6B"
    assert refusal(v2, PAIRED[1]) == (
        'Key mode mismatched with the request mode, cmd: raw_scan, storage: V2, range: (Some("6B"), Some("6C"))'
    )
    assert refusal(v2, kvrpcpb.RawScanRequest(start_key=b"r")) == (
        'Key mode mismatched with the request mode, cmd: raw_scan, storage: V2, range: (Some("72"), None)'
    )


@pytest.mark.parametrize(
    ("start", "end", "legal"),
    [
        (b"r", b"s", True),
        (b"ra", b"rb", True),
        (b"ra", b"s", True),
        (b"ra", b"s\x00", False),
        (b"ra", b"x", False),
        (b"", b"s", False),
        (b"ra", b"", False),
        (b"x", b"y", False),
    ],
)
def test_v2_takes_ranges_within_the_raw_prefix_alone(v2: Store, start: bytes, end: bytes, legal: bool) -> None:
    response = v2.ask(kvrpcpb.RawDeleteRangeRequest(start_key=start, end_key=end))

    assert (response.error == "") is legal


@pytest.mark.parametrize(
    "request_", [request for request in KEYED + PAIRED if "cf" in request.DESCRIPTOR.fields_by_name], ids=name
)
def test_unknown_column_families_are_refused(request_: Any) -> None:
    for mode in (ApiMode.V1, ApiMode.V1TTL):
        for cf in ("meta", "Default", "raft"):
            assert refusal(Store(mode), request_, cf=cf) == f"invalid cf name: {cf}"


def test_v2_refuses_every_named_column_family(v2: Store) -> None:
    request = kvrpcpb.RawGetRequest(key=PREFIX)

    assert refusal(v2, request, cf="default") == "cf is deprecated in API V2, cf name: default"


def test_a_key_of_eight_kibibytes_is_written_and_a_longer_one_refused(store: Store) -> None:
    longest = b"r" * MAX_KEY_SIZE
    too_long = longest + b"r"
    text = f"max key size exceeded, size: {MAX_KEY_SIZE + 1}, limit: {MAX_KEY_SIZE}"

    assert store.ask(kvrpcpb.RawPutRequest(key=longest, value=b"v")).error == ""
    assert store.ask(kvrpcpb.RawPutRequest(key=too_long)).error == text
    assert store.ask(kvrpcpb.RawBatchPutRequest(pairs=[kvrpcpb.KvPair(key=too_long)])).error == text
    assert store.ask(kvrpcpb.RawDeleteRequest(key=too_long)).error == text
    assert store.ask(kvrpcpb.RawBatchDeleteRequest(keys=[too_long])).error == text
    assert store.ask(kvrpcpb.RawDeleteRangeRequest(start_key=b"r", end_key=too_long)).error == text
    assert store.ask(kvrpcpb.RawCASRequest(key=too_long, previous_not_exist=True)).error == text
    assert store.ask(kvrpcpb.RawGetRequest(key=too_long)).not_found


def test_a_write_that_does_not_fit_a_raft_entry_is_a_region_error(store: Store) -> None:
    value = bytes(MAX_ENTRY_SIZE)
    pair = kvrpcpb.KvPair(key=PREFIX, value=value[: MAX_ENTRY_SIZE // 2])
    requests: list[Any] = [
        kvrpcpb.RawPutRequest(key=PREFIX, value=value),
        kvrpcpb.RawBatchPutRequest(pairs=[pair, kvrpcpb.KvPair(key=PREFIX + b"2", value=pair.value)]),
        kvrpcpb.RawCASRequest(key=PREFIX, value=value, previous_not_exist=True),
        kvrpcpb.RawBatchDeleteRequest(keys=[b"r%08191d" % i for i in range(1100)]),
    ]

    for request in requests:
        error = store.ask(request).region_error

        assert error.raft_entry_too_large.region_id == 7
        assert error.raft_entry_too_large.entry_size > MAX_ENTRY_SIZE
        assert error.message
    assert store.stored() == {}


def test_a_write_that_just_fits_a_raft_entry_is_done(v1: Store) -> None:
    response = v1.ask(kvrpcpb.RawPutRequest(key=b"k", value=bytes(MAX_ENTRY_SIZE - 1)))

    assert response == kvrpcpb.RawPutResponse()


# All modes tell the same story.


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.binary(max_size=2), st.binary(max_size=2)),
            st.tuples(st.just("delete"), st.binary(max_size=2)),
            st.tuples(st.just("delete_range"), st.binary(max_size=2), st.binary(max_size=2)),
            st.tuples(st.just("swap"), st.sampled_from([None, b"", b"1"]), st.sampled_from([b"", b"1"])),
        ),
        max_size=12,
    ),
    st.sampled_from(list(ApiMode)),
)
def test_any_sequence_of_writes_leaves_what_a_dict_would_hold(steps: list[tuple[Any, ...]], mode: ApiMode) -> None:
    store = Store(mode)
    model: dict[bytes, bytes] = {}

    for step, *arguments in steps:
        if step == "put":
            store.put(*arguments)
            model[arguments[0]] = arguments[1]
        elif step == "delete":
            store.delete(*arguments)
            model.pop(arguments[0], None)
        elif step == "swap":
            expected, value = arguments
            assert swap(store, expected, value) == (model.get(b"k") == expected, model.get(b"k"))
            if model.get(b"k") == expected:
                model[b"k"] = value
        else:
            start, end = arguments
            delete_range(store, start, end)
            model = {key: value for key, value in model.items() if not start <= key < end}

    assert store.scan() == sorted(model.items())
    assert [key for key, _ in store.scan(reverse=True)] == sorted(model, reverse=True)
    assert {key: store.get(key) for key in model} == model
