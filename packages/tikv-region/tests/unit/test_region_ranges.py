from __future__ import annotations

from hypothesis import given, strategies as st
from tikv_region import KeyRange, prefix_range

keys = st.binary(max_size=3)
ranges = st.builds(KeyRange, keys, keys)


def test_a_range_holds_its_start_and_not_its_end() -> None:
    assert KeyRange(b"b", b"d").contains(b"b")
    assert KeyRange(b"b", b"d").contains(b"c\xff")
    assert not KeyRange(b"b", b"d").contains(b"d")
    assert not KeyRange(b"b", b"d").contains(b"a")


def test_an_empty_end_is_unbounded() -> None:
    assert KeyRange(b"b").contains(b"\xff" * 100)
    assert KeyRange().contains(b"")


def test_a_range_that_ends_where_it_starts_is_empty() -> None:
    assert KeyRange(b"b", b"b").is_empty
    assert KeyRange(b"c", b"b").is_empty
    assert not KeyRange(b"b", b"b\0").is_empty
    assert not KeyRange(b"b").is_empty


def test_clip_returns_none_when_nothing_is_left() -> None:
    assert KeyRange(b"a", b"c").clip(KeyRange(b"c", b"e")) is None
    assert KeyRange(b"a", b"c").clip(KeyRange(b"b")) == KeyRange(b"b", b"c")
    assert KeyRange(b"a").clip(KeyRange(b"b")) == KeyRange(b"b")


@given(ranges, ranges, keys)
def test_the_intersection_holds_what_both_hold(one: KeyRange, other: KeyRange, key: bytes) -> None:
    both = one.contains(key) and other.contains(key)

    assert one.intersect(other).contains(key) == both
    assert not both or one.overlaps(other)


@given(ranges, ranges)
def test_ranges_overlap_when_their_intersection_holds_its_own_start(one: KeyRange, other: KeyRange) -> None:
    common = one.intersect(other)

    assert one.overlaps(other) == common.contains(common.start) == other.overlaps(one)


def test_the_range_of_a_prefix_ends_at_the_next_prefix() -> None:
    assert prefix_range(b"user:") == KeyRange(b"user:", b"user;")
    assert prefix_range(b"a\xff\xff") == KeyRange(b"a\xff\xff", b"b")
    assert prefix_range(b"\xff\xff") == KeyRange(b"\xff\xff")
    assert prefix_range(b"") == KeyRange()


@given(st.binary(max_size=4), st.binary(max_size=5))
def test_the_range_of_a_prefix_holds_what_begins_with_it(prefix: bytes, key: bytes) -> None:
    assert prefix_range(prefix).contains(key) == key.startswith(prefix)
