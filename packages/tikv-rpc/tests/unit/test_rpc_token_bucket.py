from __future__ import annotations

import math

import pytest
from hypothesis import given, settings, strategies as st
from tikv_rpc.resource_control.bucket import TokenBucket


def bucket(rate: float = 1, burst: int = 0, tokens: float = 2, at: float = 0) -> TokenBucket:
    return TokenBucket(rate=rate, burst=burst, tokens=tokens, updated_at=at)


def reconfigure(
    it: TokenBucket, now: float, tokens: float = 0, rate: float = 0, burst: int = 0, threshold: float = 0
) -> None:
    it.reconfigure(now, tokens=tokens, rate=rate, burst=burst, threshold=threshold)


def test_reservations_queue_up_behind_each_other() -> None:
    it = bucket()

    assert it.reserve(0, 3, math.inf).wait == 1
    assert it.reserve(0, 3, math.inf).wait == 4
    assert it.reserve(3, 2, math.inf).wait == 3
    refused = it.reserve(3, 2, 4)
    assert (refused.granted, refused.wait) == (False, 5)
    assert not it.reserve(5, 2000, 100).granted
    assert it.reserve(3, 2, 8).granted


def test_an_unlimited_bucket_counts_nothing() -> None:
    it = bucket()
    reconfigure(it, 1, burst=-1)

    assert it.reserve(5, 2000, 0).wait == 0
    it.remove(5, 100)
    it.give_back(5, 50)

    assert it.available(100) == 0
    assert it.is_unlimited
    assert not it.is_low


def test_a_grant_adds_to_what_there_is() -> None:
    it = bucket()
    it.reserve(0, 4, math.inf)

    reconfigure(it, 1, tokens=6, rate=2)

    assert it.available(1) == 5
    assert it.available(2) == 7


def test_a_grant_without_limit_sets_what_there_is() -> None:
    it = bucket()
    it.reserve(0, 4, math.inf)

    reconfigure(it, 1, tokens=6, rate=2, burst=-1)

    assert it.available(1) == it.available(2) == 6


@pytest.mark.parametrize(
    ("change", "held_later"),
    [
        (lambda it: it.remove(9, 0), 1090),
        (lambda it: it.give_back(9, 0), 1090),
        (lambda it: it.reserve(9, 0, 0), 1090),
        (lambda it: reconfigure(it, 9, tokens=10, rate=100), 1100),
    ],
    ids=["remove", "give back", "reserve", "reconfigure"],
)
def test_a_moment_that_is_over_does_not_turn_the_clock_back(change, held_later) -> None:  # type: ignore[no-untyped-def]
    it = bucket(rate=100, tokens=0)
    it.reserve(10, 10, math.inf)

    change(it)

    assert it.updated_at == 10
    assert it.available(11) == held_later


def test_what_is_given_back_is_held_up_to_the_burst_limit() -> None:
    free, capped = bucket(rate=0, tokens=100), bucket(rate=0, burst=100, tokens=50)
    free.remove(0, 30)
    capped.remove(0, 30)

    free.give_back(0, 70)
    capped.give_back(0, 130)

    assert free.available(0) == 140
    assert capped.available(0) == 100


def test_a_bucket_fills_up_to_its_burst_limit() -> None:
    it = bucket(rate=10, burst=25, tokens=0)

    assert [it.available(moment) for moment in (1, 2, 3, 100)] == [10, 20, 25, 25]


def test_it_asks_once_when_it_runs_low() -> None:
    it = bucket(tokens=0)
    reconfigure(it, 1, tokens=1000, rate=2, threshold=400)

    it.reserve(2, 100, math.inf)
    assert not it.take_notice()

    it.reserve(2, 600, math.inf)
    assert it.take_notice()
    it.remove(2, 100)
    assert not it.take_notice()
    assert it.is_low


def test_a_grant_that_is_too_small_asks_again() -> None:
    it = bucket(tokens=0)
    it.remove(0, 10)

    reconfigure(it, 1, tokens=5, rate=0, threshold=1)

    assert it.take_notice()


def test_a_refusal_asks_for_more_as_long_as_nothing_comes_in() -> None:
    it = bucket(rate=0, tokens=0)

    refused = it.reserve(0, 1, math.inf)

    assert (refused.granted, refused.wait) == (False, math.inf)
    assert it.take_notice()


def test_a_refusal_at_a_rate_asks_for_more_three_times_only() -> None:
    it = bucket(rate=1, tokens=0)
    it.restore_notices()
    asked = []
    for moment in range(5):
        it.reserve(moment, 1000, 1)
        asked.append(it.take_notice())
        reconfigure(it, moment, rate=1)

    assert asked == [True, True, True, False, False]
    it.restore_notices()
    it.reserve(9, 1000, 1)
    assert it.take_notice()


def test_a_refused_request_takes_nothing_and_tells_what_it_lacks() -> None:
    it = bucket(tokens=0)

    refused = it.reserve(1, 5, 1)

    assert (refused.granted, refused.wait, refused.rate, refused.remaining) == (False, 4, 1, -4)
    assert it.available(1) == 1


def test_tokens_of_a_request_that_was_cancelled_come_back() -> None:
    it = bucket(tokens=10)
    it.reserve(0, 5, math.inf)

    it.give_back(1, 5)

    assert it.available(1) == 11


def test_a_refused_request_tells_the_time_as_well() -> None:
    it = bucket(rate=0, tokens=8)
    refused = it.reserve(1.0, 9.0, 0.0)

    reconfigure(it, 0.0, tokens=0.0, rate=1.0, burst=0, threshold=1)

    assert not refused.granted
    assert it.available(1.0) == 8


def test_many_small_requests_pass_at_the_rate() -> None:
    """A thousand tasks of 10 tokens each, over and over, at 400,000 a second."""
    it = bucket(rate=400_000, tokens=0)
    moments = [0.0] * 1000
    for _ in range(20):
        moments = [now + it.reserve(now, 10, math.inf).wait for now in moments]

    assert 20 * 1000 * 10 / max(moments) == pytest.approx(400_000, rel=0.01)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.floats(0, 2), st.floats(0, 50), st.floats(0, 3)),
        st.tuples(st.just("remove"), st.floats(0, 2), st.floats(0, 50), st.just(0.0)),
        st.tuples(st.just("grant"), st.floats(0, 2), st.floats(0, 100), st.floats(0, 20)),
        st.tuples(st.just("back in time"), st.floats(-2, 0), st.floats(0, 50), st.floats(0, 3)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(steps, st.floats(0, 100), st.sampled_from([0, 10, 100]))
def test_no_more_is_taken_than_came_in(
    actions: list[tuple[str, float, float, float]], start: float, burst: int
) -> None:
    """What requests may use by a moment is at most what was there, was granted, and flowed in by then."""
    it = bucket(rate=0, burst=burst, tokens=start)
    now = latest = 0.0
    came_in = start
    taken = []
    for kind, passed, amount, more in actions:
        now += passed
        if now > latest:
            came_in += it.rate * (now - latest)
            latest = now
        if kind == "grant":
            came_in += amount
            reconfigure(it, now, tokens=amount, rate=more, burst=burst, threshold=1)
        elif kind == "remove":
            it.remove(now, amount)
            came_in -= amount
        else:
            reservation = it.reserve(now, amount, more)
            if reservation.granted:
                # It will be used only after its wait, when that much more has come in.
                taken.append(amount)
                assert sum(taken) <= came_in + it.rate * reservation.wait + 1e-6
            else:
                assert it.available(now) < amount
