"""The memcomparable codec keeps order, loses nothing and refuses what it did not make."""

from __future__ import annotations

import pytest
from hypothesis import example, given, strategies as st
from tikv_embedded.memcomparable import decode, encode

# Few distinct bytes, so that common prefixes and paddings are frequent.
TRICKY = st.lists(st.sampled_from([b"\x00", b"\x01", b"r", b"\xfe", b"\xff"]), max_size=20).map(b"".join)
KEYS = st.binary(max_size=40) | TRICKY


@pytest.mark.parametrize(
    ("data", "encoded"),
    [
        (b"", bytes(8) + b"\xf7"),
        (b"\x00", bytes(8) + b"\xf8"),
        (b"\x01\x02\x03", b"\x01\x02\x03" + bytes(5) + b"\xfa"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08", b"\x01\x02\x03\x04\x05\x06\x07\x08\xff" + bytes(8) + b"\xf7"),
    ],
)
def test_known_encodings(data: bytes, encoded: bytes) -> None:
    assert encode(data) == encoded


@given(KEYS, st.binary(max_size=12))
def test_what_was_encoded_is_decoded_and_the_rest_is_returned(data: bytes, rest: bytes) -> None:
    assert decode(encode(data) + rest) == (data, rest)


@given(KEYS, KEYS)
@example(b"", b"\x00")
@example(b"1234567", b"12345678")
@example(b"12345678", b"12345678\x00")
def test_encodings_sort_as_what_they_encode_and_none_begins_another(a: bytes, b: bytes) -> None:
    assert (encode(a) < encode(b)) == (a < b)
    assert encode(b).startswith(encode(a)) == (a == b)


@pytest.mark.parametrize(
    "data",
    [b"", b"12345678", bytes(8) + b"\xf6", b"r\x02\x03\x04\x00\x00\x01\x00\xfb", b"12345678\xff", b"12345678\xff1234"],
)
def test_what_is_no_encoding_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="memcomparable"):
        decode(data)


@given(st.binary(max_size=30))
def test_only_one_byte_string_decodes_to_each_key(data: bytes) -> None:
    try:
        decoded, rest = decode(data)
    except ValueError:
        return
    assert encode(decoded) + rest == data
