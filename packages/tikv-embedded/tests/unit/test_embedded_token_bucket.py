"""Token buckets: what a client gets, at once or over time."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from tikv_embedded.pd.token_bucket import (
    CLIENT_EXPIRY,
    DEFAULT_RATE,
    INITIAL_TOKENS,
    MODERATED,
    UNLIMITED,
    Grant,
    TokenBucket,
    borrow,
)
from tikv_proto import resource_manager as rm

PERIOD = 5.0


def bucket(rate: int, limit: int, tokens: float = 0.0) -> TokenBucket:
    return TokenBucket(rm.TokenLimitSettings(fill_rate=rate, burst_limit=limit), tokens)


def test_an_unlimited_group_gets_what_it_asks_for() -> None:
    limitless = bucket(10, UNLIMITED)

    assert limitless.request(1, 1e9, PERIOD, 0.0) == Grant(1e9, 0.0, UNLIMITED)
    assert limitless.request(1, -5.0, PERIOD, 0.0).tokens == 0


def test_a_new_bucket_has_something_to_begin_with() -> None:
    fresh = bucket(10, 500_000)

    grant = fresh.request(1, INITIAL_TOKENS - 1, PERIOD, 0.0)

    assert grant == Grant(INITIAL_TOKENS - 1, 0.0, 500_000)
    assert fresh.tokens == 1


def test_a_bucket_fills_up_to_its_burst_limit() -> None:
    filling = bucket(1000, 5000)
    filling.request(1, INITIAL_TOKENS, PERIOD, 0.0)

    at_once = filling.request(1, 2000, PERIOD, 2.0)
    filling.request(1, 1, PERIOD, 100.0)

    assert at_once == Grant(2000, 0.0, 5000)
    assert filling.tokens == 4999


def test_who_wants_more_than_there_is_borrows_at_twice_the_rate_and_spends_it_over_the_period() -> None:
    empty = bucket(1000, 5000)
    empty.request(1, INITIAL_TOKENS, PERIOD, 0.0)

    grants = [empty.request(1, 100_000, PERIOD, 0.0).tokens for _ in range(3)]
    last = empty.request(1, 100_000, PERIOD, 0.0)

    assert grants == [10_000, 5_000, 2_500]
    assert last == Grant(2_500, PERIOD, 5000)
    assert empty.tokens == -20_000


def test_a_low_burst_limit_leaves_less_to_borrow() -> None:
    empty = bucket(1000, 1000)
    empty.request(1, INITIAL_TOKENS, PERIOD, 0.0)

    assert [empty.request(1, 100_000, PERIOD, 0.0).tokens for _ in range(2)] == [5_000, 2_500]


def test_what_is_there_is_added_to_what_is_borrowed() -> None:
    half_full = bucket(1000, 5000)
    half_full.request(1, INITIAL_TOKENS, PERIOD, 0.0)

    grant = half_full.request(1, 2000, PERIOD, 1.0)

    assert grant == Grant(2000, 0.5, 5000)
    assert half_full.tokens == -1000


def test_without_a_burst_limit_nothing_is_saved_up_and_the_rate_is_kept() -> None:
    steady = bucket(1000, 0)
    steady.request(1, 1, PERIOD, 0.0)

    granted = sum(steady.request(1, 1e6, PERIOD, 1000.0 + second * PERIOD).tokens for second in range(200))

    assert granted == pytest.approx(200 * PERIOD * 1000, rel=0.02)


def test_a_moderated_group_may_exceed_its_rate() -> None:
    moderated = bucket(1000, MODERATED)
    moderated.request(1, INITIAL_TOKENS, PERIOD, 0.0)

    grant = moderated.request(1, 1e9, PERIOD, 0.0)

    assert grant.tokens == (1000 + DEFAULT_RATE) * PERIOD
    assert grant.burst_limit == 1000 + DEFAULT_RATE


def test_a_group_without_a_rate_gets_the_usual_one() -> None:
    usual = bucket(0, 1)
    usual.request(1, INITIAL_TOKENS, PERIOD, 0.0)

    assert usual.request(1, 1e9, 1.0, 0.0).tokens == DEFAULT_RATE


def test_clients_share_until_they_want_nothing_or_are_gone() -> None:
    shared = bucket(1000, 4000)
    shared.request(1, INITIAL_TOKENS, PERIOD, 0.0)
    shared.request(2, 1, PERIOD, 0.0)

    both = shared.request(1, 1, PERIOD, 10.0).burst_limit
    shared.request(2, 0, PERIOD, 10.0)
    alone = shared.request(1, 1, PERIOD, 10.0).burst_limit
    shared.request(2, 1, PERIOD, 10.0)
    later = shared.request(1, 1, PERIOD, 10.0 + CLIENT_EXPIRY).burst_limit

    assert (both, alone, later) == (2000, 4000, 4000)


def test_new_settings_forgive_what_is_borrowed() -> None:
    indebted = bucket(1000, 5000)
    indebted.request(1, INITIAL_TOKENS, PERIOD, 0.0)
    indebted.request(1, 1e6, PERIOD, 0.0)

    indebted.reconfigure(rm.TokenLimitSettings(fill_rate=7, burst_limit=100), 5.0)

    assert indebted.tokens == 0
    assert indebted.request(1, 10, PERIOD, 2.0) == Grant(10, 0.0, 100)


@given(
    st.integers(1, 10_000),
    st.integers(1, 2),
    st.floats(0, 1e6),
    st.floats(0.001, 1e6),
    st.floats(0.001, 100),
)
def test_borrowing_is_within_the_wish_the_period_and_the_speed(
    rate: int, steps: int, loan: float, wanted: float, period: float
) -> None:
    granted, seconds = borrow(rate, steps, loan, wanted, period)

    assert 0 <= granted <= wanted * 1.000001
    assert 0 <= seconds <= period * 1.000001
    assert granted <= steps * rate * period * 1.000001
