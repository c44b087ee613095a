"""Keys, locks and write records, byte for byte as TiKV writes them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from tikv_embedded.mvcc.keys import MAX_TS, append_ts, decode_key, encode_key, split_ts
from tikv_embedded.mvcc.lock import Lock, LockType
from tikv_embedded.mvcc.numbers import RecordReader, encode_compact_bytes, encode_var_u64
from tikv_embedded.mvcc.write import NO_CHANGE, LastChange, Write, WriteType

timestamps = st.integers(0, MAX_TS)
short_values = st.none() | st.binary(max_size=255)
last_changes = st.builds(LastChange, timestamps, timestamps)


def test_the_newest_version_of_a_key_comes_first() -> None:
    key = encode_key(b"k")

    stored = sorted(append_ts(key, ts) for ts in (1, MAX_TS, 7))

    assert [split_ts(each) for each in stored] == [(key, MAX_TS), (key, 7), (key, 1)]
    assert append_ts(b"", 1) == b"\xff\xff\xff\xff\xff\xff\xff\xfe"


def test_a_key_with_a_version_is_not_a_key() -> None:
    assert decode_key(encode_key(b"k")) == b"k"
    with pytest.raises(ValueError, match="version"):
        decode_key(append_ts(encode_key(b"k"), 1))


@pytest.mark.parametrize(
    ("number", "encoded"),
    [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02"), (MAX_TS, b"\xff" * 9 + b"\x01")],
)
def test_varying_numbers_are_groups_of_seven_bits(number: int, encoded: bytes) -> None:
    assert encode_var_u64(number) == encoded
    assert RecordReader(encoded).var_u64() == number


def test_the_length_in_front_of_a_string_is_a_signed_number() -> None:
    assert encode_compact_bytes(b"abc") == b"\x06abc"
    assert encode_compact_bytes(bytes(64))[:2] == b"\x80\x01"
    assert RecordReader(b"\x06abc").compact_bytes() == b"abc"


@pytest.mark.parametrize("data", [b"", b"P", b"?\x01", b"P\x01v\x02x", b"P" + b"\x80" * 11])
def test_what_is_no_write_record_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"record ends early|64 bits|not a valid"):
        Write.parse(data)


@pytest.mark.parametrize(
    ("write", "encoded"),
    [
        (Write(WriteType.PUT, 1, b"v"), b"P\x01v\x01v"),
        (Write(WriteType.PUT, 1, b""), b"P\x01v\x00"),
        (Write(WriteType.DELETE, 300), b"D\xac\x02"),
        (Write.rollback(1, protected=True), b"R\x01v\x01p"),
        (Write.rollback(1, protected=False), b"R\x01"),
        (
            Write(WriteType.PUT, 1, b"v", has_overlapped_rollback=True, gc_fence=2),
            b"P\x01v\x01vRF\0\0\0\0\0\0\0\x02",
        ),
        (Write(WriteType.LOCK, 1, last_change=LastChange(5, 3)), b"L\x01l\0\0\0\0\0\0\0\x05\x03"),
        (Write(WriteType.LOCK, 1, last_change=NO_CHANGE, txn_source=9), b"L\x01l\0\0\0\0\0\0\0\0\x01S\x09"),
    ],
)
def test_write_records_have_the_bytes_of_tikv(write: Write, encoded: bytes) -> None:
    assert write.to_bytes() == encoded
    assert Write.parse(encoded) == write


def test_a_record_is_read_up_to_the_first_unknown_field() -> None:
    assert Write.parse(b"P\x01v\x01v?rest") == Write(WriteType.PUT, 1, b"v")
    assert Lock.parse(b"P\x02p\x01\x02?rest") == Lock(LockType.PUT, b"p", 1, 2)


@pytest.mark.parametrize(
    ("lock", "encoded"),
    [
        (Lock(LockType.PUT, b"pk", 1, 3000, b"v"), b"P\x04pk\x01\xb8\x17v\x01v"),
        (
            Lock(LockType.DELETE, b"pk", 1, 0, for_update_ts=2, txn_size=3, min_commit_ts=4),
            b"D\x04pk\x01\x00f\0\0\0\0\0\0\0\x02t\0\0\0\0\0\0\0\x03c\0\0\0\0\0\0\0\x04",
        ),
        (
            Lock(LockType.LOCK, b"", 1, 0, use_async_commit=True, secondaries=(b"a", b""), rollback_ts=(7,)),
            b"L\x00\x01\x00a\x02\x02a\x00r\x01\0\0\0\0\0\0\0\x07",
        ),
        (
            Lock(LockType.PESSIMISTIC, b"p", 1, 0, txn_source=1, is_locked_with_conflict=True, generation=2),
            b"S\x02p\x01\x00s\x01Fg\0\0\0\0\0\0\0\x02",
        ),
    ],
)
def test_locks_have_the_bytes_of_tikv(lock: Lock, encoded: bytes) -> None:
    assert lock.to_bytes() == encoded
    assert Lock.parse(encoded) == lock


@pytest.mark.parametrize("data", [b"", b"H\x00", b"P\x02", b"P\x02p"])
def test_what_is_no_lock_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"record ends early|64 bits|not a valid"):
        Lock.parse(data)


def test_old_locks_have_no_time_to_live() -> None:
    assert Lock.parse(b"P\x02p\x01") == Lock(LockType.PUT, b"p", 1, 0)


@given(
    st.builds(
        Write,
        type=st.sampled_from(WriteType),
        start_ts=timestamps,
        short_value=short_values,
        has_overlapped_rollback=st.booleans(),
        gc_fence=st.none() | timestamps,
        last_change=last_changes,
        txn_source=timestamps,
    )
)
def test_every_write_record_is_read_back(write: Write) -> None:
    assert Write.parse(write.to_bytes()) == write


@given(
    st.builds(
        Lock,
        type=st.sampled_from(LockType),
        primary=st.binary(max_size=100),
        start_ts=timestamps,
        ttl=timestamps,
        short_value=short_values,
        for_update_ts=timestamps,
        txn_size=timestamps,
        min_commit_ts=timestamps,
        use_async_commit=st.just(True),
        secondaries=st.lists(st.binary(max_size=70), max_size=3).map(tuple),
        rollback_ts=st.lists(timestamps, max_size=3).map(tuple),
        last_change=last_changes,
        txn_source=timestamps,
        is_locked_with_conflict=st.booleans(),
        generation=timestamps,
    )
)
def test_every_lock_is_read_back(lock: Lock) -> None:
    assert Lock.parse(lock.to_bytes()) == lock


@pytest.mark.parametrize(
    ("fence", "read_ts", "expected"), [(None, 9, False), (0, 9, False), (5, 4, False), (5, 5, True)]
)
def test_a_record_is_outdated_from_its_fence_on(fence: int | None, read_ts: int, expected: bool) -> None:
    assert Write(WriteType.PUT, 1, gc_fence=fence).is_outdated(read_ts) is expected
