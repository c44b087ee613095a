from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given, strategies as st
from tikv_pd import ConfigError
from tikv_region import (
    CodecError,
    KeyCodec,
    KeyspaceCodec,
    PlainCodec,
    TxnV1Codec,
    memcomparable_decode,
    memcomparable_encode,
    split_keyspace,
)

keys = st.binary(max_size=20)
raw = KeyspaceCodec(b"r", 7, "shop")
every_codec = pytest.mark.parametrize("codec", [PlainCodec(), TxnV1Codec(), raw, KeyspaceCodec(b"x", 0xFFFFFF, "last")])


@pytest.mark.parametrize(
    ("data", "encoded"),
    [
        (b"", "0000000000000000f7"),
        (b"\x01\x02\x03", "0102030000000000fa"),
        (b"\x01\x02\x03\x00", "0102030000000000fb"),
        (b"\x01\x02\x03\x04\x05\x06\x07", "01020304050607 00fe"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08", "0102030405060708ff0000000000000000f7"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09", "0102030405060708ff0900000000000000f8"),
        (b"\xff" * 8, "ffffffffffffffffff0000000000000000f7"),
    ],
)
def test_memcomparable_follows_tikv(data: bytes, encoded: str) -> None:
    assert memcomparable_encode(data) == bytes.fromhex(encoded)
    assert memcomparable_decode(bytes.fromhex(encoded)) == data


@given(keys, keys)
def test_memcomparable_keeps_the_order_and_tells_every_end(one: bytes, other: bytes) -> None:
    a, b = memcomparable_encode(one), memcomparable_encode(other)

    assert (a < b) == (one < other)
    assert one == other or not a.startswith(b)
    assert memcomparable_decode(a) == one
    assert len(a) == (len(one) // 8 + 1) * 9


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "00",
        "0102030405060708",
        "0102030405060708ff",
        "0102030405060708ff00",
        "0102030405060708f6",
        "0102030405060701fe",
        "0102030000000001fa",
        "0102030000000000fa0000000000000000f7",
        "0102030405060708fe0000000000000000f7",
    ],
)
def test_memcomparable_refuses_what_it_never_makes(encoded: str) -> None:
    with pytest.raises(CodecError, match="memcomparable"):
        memcomparable_decode(bytes.fromhex(encoded))


@given(st.binary(max_size=30))
def test_memcomparable_decodes_only_what_it_makes(data: bytes) -> None:
    try:
        decoded = memcomparable_decode(data)
    except CodecError:
        return

    assert memcomparable_encode(decoded) == data


def test_keys_of_api_v1_travel_as_they_are() -> None:
    for codec in (PlainCodec(), TxnV1Codec()):
        assert (codec.api_version, codec.keyspace_id, codec.keyspace_name) == (0, 0xFFFFFFFF, "")
        assert codec.encode_key(b"k") == codec.decode_key(b"k") == b"k"
        assert codec.encode_range(b"a", b"") == (b"a", b"")


def test_bounds_of_regions_are_plain_for_raw_v1_and_memcomparable_for_txn_v1() -> None:
    assert PlainCodec().encode_region_key(b"k") == b"k"
    assert PlainCodec().encode_region_range(b"", b"k") == (b"", b"k")
    assert PlainCodec().decode_region_range(b"a", b"") == (b"a", b"")

    assert TxnV1Codec().encode_region_key(b"k") == memcomparable_encode(b"k")
    assert TxnV1Codec().encode_region_range(b"", b"") == (memcomparable_encode(b""), b"")
    assert TxnV1Codec().decode_region_range(b"", memcomparable_encode(b"k")) == (b"", b"k")


def test_a_region_below_the_first_key_holds_nothing() -> None:
    assert TxnV1Codec().decode_region_range(b"", memcomparable_encode(b"")) is None


def test_a_keyspace_puts_mode_and_id_before_every_key() -> None:
    assert (raw.api_version, raw.keyspace_id, raw.keyspace_name) == (2, 7, "shop")
    assert raw.encode_key(b"k") == b"r\0\0\x07k"
    assert raw.decode_key(b"r\0\0\x07k") == b"k"
    assert KeyspaceCodec(b"x", 0x010203, "").encode_key(b"") == b"x\x01\x02\x03"


@pytest.mark.parametrize(
    ("mode", "keyspace_id", "bound"),
    [
        (b"x", 0, b"x\0\0\x01"),
        (b"x", 0xFF, b"x\0\x01\0"),
        (b"r", 0xFFFF, b"r\x01\0\0"),
        # TiKV takes a range for one of raw keys when it ends with them, or at the next mode alone.
        (b"r", 0xFFFFFF, b"s"),
        (b"x", 0xFFFFFF, b"y"),
    ],
)
def test_a_keyspace_ends_where_the_next_id_or_mode_begins(
    mode: Literal[b"r", b"x"], keyspace_id: int, bound: bytes
) -> None:
    codec = KeyspaceCodec(mode, keyspace_id, "")

    assert codec.encode_range(b"", b"") == (codec.encode_key(b""), bound)
    assert codec.encode_region_range(b"a", b"") == (
        memcomparable_encode(codec.encode_key(b"a")),
        memcomparable_encode(bound),
    )


def test_a_key_of_another_keyspace_is_refused() -> None:
    for key in (b"r\0\0\x08k", b"x\0\0\x07k", b"r\0", b""):
        with pytest.raises(CodecError, match="outside keyspace 'shop'"):
            raw.decode_key(key)


@pytest.mark.parametrize("keyspace_id", [-1, 0x1000000, 0xFFFFFFFF])
def test_a_keyspace_id_has_three_bytes(keyspace_id: int) -> None:
    with pytest.raises(ConfigError, match="16777215"):
        KeyspaceCodec(b"r", keyspace_id, "")


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (b"", b"", (b"", b"")),
        (b"r\0\0\x06z", b"r\0\0\x08a", (b"", b"")),
        (b"r\0\0\x07", b"r\0\0\x07k", (b"", b"k")),
        (b"r\0\0\x07b", b"r\0\0\x08", (b"b", b"")),
        (b"r\0\0\x07b", b"", (b"b", b"")),
        (b"", b"r\0\0\x07", None),
        (b"r\0\0\x08", b"", None),
        (b"r\0\0\x09", b"r\0\0\x0a", None),
        (b"", b"a", None),
    ],
)
def test_a_region_is_cut_to_the_keyspace(start: bytes, end: bytes, expected: tuple[bytes, bytes] | None) -> None:
    encoded = [memcomparable_encode(bound) if bound else b"" for bound in (start, end)]

    assert raw.decode_region_range(encoded[0], encoded[1]) == expected


def test_bounds_that_are_not_memcomparable_are_refused() -> None:
    for codec in (TxnV1Codec(), raw):
        with pytest.raises(CodecError):
            codec.decode_region_range(b"plain", b"")
        with pytest.raises(CodecError):
            codec.decode_region_range(b"", b"plain")


@every_codec
@given(key=keys, start=keys, end=keys)
def test_a_key_is_in_a_region_exactly_when_its_encoding_is(
    codec: KeyCodec, key: bytes, start: bytes, end: bytes
) -> None:
    first, last = codec.encode_region_range(start, end)
    at = codec.encode_region_key(key)

    assert codec.decode_region_range(first, last) == (start, end)
    assert (first <= at and (not last or at < last)) == (start <= key and (not end or key < end))
    assert codec.decode_key(codec.encode_key(key)) == key


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((b"r\0\0\x07a", b"r\0\0\x07b"), (b"a", b"b")),
        ((b"", b""), (b"", b"")),
        ((b"r\0\0\x06z", b"r\0\0\x07b"), (b"", b"b")),
        ((b"r\0\0\x07a", b"r\0\0\x08"), (b"a", b"")),
    ],
)
def test_a_range_of_a_response_is_cut_to_the_keyspace(
    bounds: tuple[bytes, bytes], expected: tuple[bytes, bytes]
) -> None:
    assert raw.decode_range(*bounds) == expected
    assert PlainCodec().decode_range(*bounds) == bounds


@pytest.mark.parametrize("bounds", [(b"r\0\0\x08", b""), (b"", b"r\0\0\x07"), (b"x", b"y")])
def test_a_range_outside_the_keyspace_is_refused(bounds: tuple[bytes, bytes]) -> None:
    with pytest.raises(CodecError, match="outside keyspace"):
        raw.decode_range(*bounds)


def test_a_key_of_api_v2_tells_its_keyspace() -> None:
    assert split_keyspace(raw.encode_key(b"k")) == (b"r", 7, b"k")
    assert split_keyspace(b"x\xff\xff\xff") == (b"x", 0xFFFFFF, b"")


@pytest.mark.parametrize("key", [b"", b"r\0\0", b"t\0\0\0k"])
def test_a_key_of_no_keyspace_is_refused(key: bytes) -> None:
    with pytest.raises(CodecError, match="no key of API V2"):
        split_keyspace(key)
