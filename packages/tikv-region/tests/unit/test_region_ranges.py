from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st
from tikv_region import KeyRange, prefix_range
from tikv_region.ranges import gaps

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


@pytest.mark.parametrize(
    ("wanted", "held", "expected"),
    [
        ([], [], []),
        ([("a", "c")], [], [("a", "c")]),
        ([("a", "c")], [("a", "c")], []),
        ([("b", "c")], [("", "")], []),
        ([("a", "g")], [("b", "c"), ("d", "e")], [("a", "b"), ("c", "d"), ("e", "g")]),
        ([("", "")], [("", "c"), ("d", "")], [("c", "d")]),
        ([("", "")], [("b", "c")], [("", "b"), ("c", "")]),
        ([("a", "b"), ("c", "d"), ("e", "f")], [("", "g")], []),
        ([("a", "b"), ("c", "d"), ("e", "f")], [("", "c"), ("e", "")], [("c", "d")]),
        ([("a", "b"), ("f", "")], [("c", "d")], [("a", "b"), ("f", "")]),
        ([("a", "c"), ("c", "e")], [("b", "d")], [("a", "b"), ("d", "e")]),
        ([("c", "c")], [], []),
    ],
)
def test_gaps_are_what_nothing_holds(
    wanted: list[tuple[str, str]], held: list[tuple[str, str]], expected: list[tuple[str, str]]
) -> None:
    assert gaps(of(wanted), of(held)) == of(expected)


@given(st.lists(keys, unique=True).map(sorted), st.lists(keys, unique=True).map(sorted), keys)
def test_a_key_is_in_a_gap_exactly_when_it_is_wanted_and_not_held(
    wanted: list[bytes], held: list[bytes], key: bytes
) -> None:
    asked = [KeyRange(start, end) for start, end in pairwise(wanted)][::2]
    there = [KeyRange(start, end) for start, end in pairwise(held)][::2]

    found = gaps(asked, there)

    is_gap = any(part.contains(key) for part in asked) and not any(part.contains(key) for part in there)
    assert any(part.contains(key) for part in found) == is_gap


def of(bounds: list[tuple[str, str]]) -> list[KeyRange]:
    return [KeyRange(start.encode(), end.encode()) for start, end in bounds]
