"""Guesses at the size of pairs."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from tikv_rpc.frontend.sizes import PairSizes


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
