"""Buckets: which part of a Region is one, whatever PD says of its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from tikv_pd import Buckets, Peer, Region, RegionEpoch
from tikv_region import KeyRange, KeyspaceCodec, PlainCodec, RegionEntry, StoreEntry, TxnV1Codec, memcomparable_encode


def entry(start: bytes, end: bytes, *bounds: bytes) -> RegionEntry:
    peer = Peer(1, 1)
    region = Region(1, start, end, RegionEpoch(1, 1), (peer,), peer)
    buckets = Buckets(1, bounds) if bounds else None
    return RegionEntry(region, (start, end), [(peer, StoreEntry(1))], 1.0, lambda: 0.0, buckets)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (b"a", None),
        (b"b", (b"b", b"d")),
        (b"d", (b"d", b"g")),
        (b"fz", (b"d", b"g")),
        (b"g", (b"g", b"k")),
        (b"k", None),
    ],
)
def test_a_key_lies_in_the_bucket_around_it(key: bytes, expected: tuple[bytes, bytes] | None) -> None:
    known = entry(b"b", b"k", b"b", b"d", b"g", b"k")

    assert known.bucket(key) == (KeyRange(*expected) if expected else None)


@pytest.mark.parametrize(
    ("bounds", "key", "expected"),
    [
        ((), b"c", (b"b", b"k")),
        ((b"d",), b"c", (b"b", b"d")),
        ((b"d",), b"d", (b"d", b"k")),
        ((b"d", b"g"), b"c", (b"b", b"d")),
        ((b"d", b"g"), b"h", (b"g", b"k")),
        ((b"a", b"z"), b"c", (b"b", b"k")),
        ((b"a", b"d", b"z"), b"c", (b"b", b"d")),
        ((b"a", b"d", b"z"), b"e", (b"d", b"k")),
        ((b"", b"d", b""), b"c", (b"b", b"d")),
        ((b"", b"d", b""), b"e", (b"d", b"k")),
        ((b"",), b"e", (b"b", b"k")),
        ((b"x", b"z"), b"c", (b"b", b"k")),
        ((b"d", b"g", b"c"), b"h", (b"c", b"k")),
    ],
    ids=[
        "none known",
        "before a single bound",
        "after a single bound",
        "before the first",
        "after the last",
        "one larger than the Region",
        "the first reaches beyond the Region",
        "the last reaches beyond the Region",
        "unbounded at the start",
        "unbounded at the end",
        "one empty bound",
        "all outside the Region",
        "in no order",
    ],
)
def test_a_bucket_never_reaches_beyond_the_region(
    bounds: tuple[bytes, ...], key: bytes, expected: tuple[bytes, bytes]
) -> None:
    assert entry(b"b", b"k", *bounds).bucket(key) == KeyRange(*expected)


@given(
    bounds=st.lists(st.binary(max_size=2), max_size=6),
    start=st.binary(max_size=2),
    end=st.binary(max_size=2),
    key=st.binary(max_size=2),
)
def test_a_bucket_holds_the_key_and_lies_in_the_region(
    bounds: list[bytes], start: bytes, end: bytes, key: bytes
) -> None:
    known = entry(start, end, *bounds)

    part = known.bucket(key)

    assert (part is not None) == known.contains(key)
    if part is not None:
        assert part.contains(key)
        assert part.clip(known.range) == part


@given(bounds=st.lists(st.binary(max_size=2), min_size=2, unique=True).map(sorted), key=st.binary(max_size=2))
def test_buckets_divide_a_region_without_gaps(bounds: list[bytes], key: bytes) -> None:
    known = entry(b"", b"", *bounds)

    part = known.bucket(key)

    assert part is not None
    if part.end:
        beyond = known.bucket(part.end)
        assert beyond is not None
        assert beyond.start == part.end


def test_older_buckets_are_not_learned() -> None:
    known = entry(b"b", b"k", b"d")

    for buckets in (None, Buckets(1, (b"e",)), Buckets(0, (b"f",))):
        known.learn_buckets(buckets)
    assert known.buckets == Buckets(1, (b"d",))
    known.learn_buckets(Buckets(2, (b"g",)))

    assert known.buckets == Buckets(2, (b"g",))


def test_bounds_are_decoded_as_those_of_regions_are() -> None:
    bounds = [b"", memcomparable_encode(b"d"), b""]

    assert PlainCodec().decode_bucket_keys([b"", b"d"]) == (b"", b"d")
    assert TxnV1Codec().decode_bucket_keys(bounds) == (b"", b"d", b"")


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ([], ()),
        ([b"r\0\0\x07", b"r\0\0\x07d", b"r\0\0\x08"], (b"", b"d", b"")),
        ([b"", b"r\0\0\x06k", b"r\0\0\x07", b"r\0\0\x07d", b""], (b"", b"d", b"")),
        ([b"r\0\0\x07b", b"r\0\0\x07d"], (b"b", b"d")),
        ([b"r\0\0\x07b", b"r\0\0\x08k", b"r\0\0\x09"], (b"b", b"")),
        ([b"r\0\0\x07"], (b"",)),
    ],
)
def test_bounds_outside_the_keyspace_are_its_ends(bounds: list[bytes], expected: tuple[bytes, ...]) -> None:
    encoded = [memcomparable_encode(bound) if bound else b"" for bound in bounds]

    assert KeyspaceCodec(b"r", 7, "shop").decode_bucket_keys(encoded) == expected
