"""What a snapshot remembers of what it read."""

from __future__ import annotations

from hypothesis import given, strategies as st
from tikv_txn._reads.cache import ReadCache
from tikv_txn.versioned import Versioned


def test_what_was_read_is_known() -> None:
    cache = ReadCache(10_000)
    cache.put(b"a", Versioned(b"1", 0))
    cache.put(b"b", None)

    assert cache.get(b"a") == (Versioned(b"1", 0),)
    assert cache.get(b"b") == (None,)
    assert cache.get(b"c") is None


def test_a_value_without_its_commit_timestamp_does_not_do_where_that_is_needed() -> None:
    cache = ReadCache(10_000)
    cache.put(b"a", Versioned(b"1", 0))
    cache.put(b"b", None)
    before = [cache.get(key, need_commit_ts=True) for key in (b"a", b"b")]

    cache.put(b"a", Versioned(b"1", 7))
    cache.put(b"a", Versioned(b"1", 0))

    assert before == [None, (None,)]
    assert cache.get(b"a", need_commit_ts=True) == cache.get(b"a") == (Versioned(b"1", 7),)


def test_the_first_are_forgotten_first() -> None:
    cache = ReadCache(1000)
    for number in range(10):
        cache.put(b"%d" % number, Versioned(b"1" * 100, 0))

    assert [number for number in range(10) if cache.get(b"%d" % number) is not None] == [7, 8, 9]


def test_what_is_too_large_is_not_kept() -> None:
    cache = ReadCache(1000)
    cache.put(b"a", Versioned(b"1" * 1001, 0))

    assert (cache.get(b"a"), cache.size) == (None, 0)


@given(
    reads=st.lists(st.tuples(st.sampled_from([b"a", b"b", b"cc"]), st.integers(0, 1))),
    values=st.dictionaries(st.sampled_from([b"a", b"b", b"cc"]), st.binary(max_size=300)),
    limit=st.integers(1, 1500),
)
def test_it_never_tells_anything_else_and_keeps_its_limit(
    reads: list[tuple[bytes, int]], values: dict[bytes, bytes], limit: int
) -> None:
    cache = ReadCache(limit)

    for key, commit_ts in reads:
        cache.put(key, Versioned(values[key], commit_ts) if key in values else None)

        assert 0 <= cache.size <= limit
        known = cache.get(key)
        assert known is None or (None if known[0] is None else known[0].value) == values.get(key)
