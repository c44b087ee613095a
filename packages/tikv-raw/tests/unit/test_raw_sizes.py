"""Guesses at the size of pairs, windows of batches."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, strategies as st
from tikv_raw._arguments import Limits, as_key
from tikv_raw._batches import Span, key_windows, pair_windows
from tikv_raw._sizes import PairSizes

LIMITS = Limits(max_key=8, key_prefix=0, max_value=100, has_ttl=True)


def test_a_guess_rises_at_once() -> None:
    sizes = PairSizes()

    sizes.learn(1, 5_000_000)

    assert sizes.guess == 5_000_000
    assert sizes.fit(1024, 20 << 20) == 4


@pytest.mark.parametrize(("pairs", "share"), [(1, 1 / 128), (32, 1 / 4), (64, 1 / 2), (10_000, 1 / 2)])
def test_a_guess_falls_by_as_much_as_an_answer_says(pairs: int, share: float) -> None:
    sizes = PairSizes()
    before = sizes.guess

    sizes.learn(pairs, 0)

    assert sizes.guess == pytest.approx(before * (1 - share))


def test_an_answer_without_pairs_says_nothing() -> None:
    sizes = PairSizes()
    before = sizes.guess

    sizes.learn(0, 10)

    assert sizes.guess == before


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 1 << 30))), st.integers(1, 1 << 30))
def test_at_least_one_pair_is_asked_for_and_no_more_than_allowed(answers: list[tuple[int, int]], room: int) -> None:
    sizes = PairSizes()

    for pairs, size in answers:
        sizes.learn(pairs, size)

        assert 1 <= sizes.fit(100, room) <= 100
        assert sizes.guess >= size / pairs if pairs else True


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
        assert len(set(window.keys)) == len(window.keys) <= span.keys
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
        assert len(window.keys) <= span.keys
        assert sum(len(key) + each for key in window.keys[:-1]) < span.bytes
