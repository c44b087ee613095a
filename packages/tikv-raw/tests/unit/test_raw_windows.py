"""Windows of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, repeat

import pytest
from hypothesis import given, strategies as st
from tikv_raw._arguments import Limits
from tikv_raw._windows import Span, key_windows, pair_windows
from tikv_rpc.frontend.arguments import as_key

LIMITS = Limits(max_key=8, key_prefix=0, max_value=100, has_ttl=True)

pairs = st.lists(
    st.tuples(st.binary(max_size=2), st.binary(max_size=20))
    | st.tuples(st.binary(max_size=2), st.binary(max_size=20), st.none() | st.integers(1, 9))
)


@given(pairs, st.integers(1, 5), st.integers(1, 50), st.booleans())
def test_windows_hold_all_pairs_in_order(
    given_pairs: list[tuple[bytes, bytes] | tuple[bytes, bytes, int | None]], keys: int, size: int, is_iterator: bool
) -> None:
    span = Span(request_keys=keys, request_bytes=size, concurrency=1)
    expected = {pair[0]: (pair[1], pair[2] or 0 if len(pair) == 3 else 7) for pair in given_pairs}

    windows = list(pair_windows(iter(given_pairs) if is_iterator else given_pairs, 7, span, LIMITS))

    found: dict[bytes, tuple[bytes, int]] = {}
    for window in windows:
        ttls = [window.ttls] * len(window.keys) if isinstance(window.ttls, int) else window.ttls
        assert len(set(window.keys)) == len(window.keys) <= keys
        found.update(zip(window.keys, zip(window.values, ttls, strict=True), strict=True))
    assert found == expected
    assert sum(window.taken for window in windows) == len(given_pairs)


@given(st.lists(st.binary(max_size=2)), st.integers(1, 5), st.integers(1, 50), st.integers(0, 30))
def test_windows_hold_all_keys_and_no_more_than_fits(wanted: list[bytes], keys: int, size: int, each: int) -> None:
    span = Span(request_keys=keys, request_bytes=size, concurrency=1)

    windows = list(key_windows(iter(wanted), span, as_key, lambda: each))

    assert set(chain.from_iterable(window.keys for window in windows)) == set(wanted)
    assert sum(window.taken for window in windows) == len(wanted)
    for window in windows:
        assert len(window.keys) <= keys
        assert sum(len(key) + each for key in window.keys[:-1]) < size


@pytest.mark.parametrize("kind", [list, iter])
def test_the_first_of_several_windows_is_small(kind: Callable[[list[bytes]], Iterable[bytes]]) -> None:
    span = Span(request_keys=10, request_bytes=1 << 20, concurrency=8)

    windows = key_windows(kind([b"%d" % number for number in range(200)]), span, as_key, int)

    assert [window.taken for window in windows] == [20, 80, 80, 20]


def test_pairs_of_no_size_and_of_one_key_fill_a_window_too() -> None:
    span = Span(request_keys=10, request_bytes=1 << 20, concurrency=8)

    keys = key_windows(repeat(b""), span, as_key, int)
    pairs = pair_windows(repeat((b"", b"")), 0, span, LIMITS)

    assert [next(keys).taken, next(keys).taken] == [20, 80]
    assert [next(pairs).taken, next(pairs).taken] == [20, 80]


def test_what_fits_one_window_is_one() -> None:
    span = Span(request_keys=10, request_bytes=1 << 20, concurrency=8)

    windows = key_windows([b"%d" % number for number in range(80)], span, as_key, int)

    assert [window.taken for window in windows] == [80]
