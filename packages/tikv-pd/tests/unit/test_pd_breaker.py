"""The breaker on a clock of its own: windows of 10 s, 1 call a second at least, 50 percent, 5 s of rest, 2 trials."""

from __future__ import annotations

import attrs
import pytest
from tikv_pd import BreakerConfig, CircuitOpen, ConfigError, DeadlineExceeded, PdError, RpcError
from tikv_pd.breaker import BreakerState, CircuitBreaker

CONFIG = BreakerConfig(threshold=50, window=10, min_rate=1, cooldown=5, trials=2)


@pytest.fixture
def breaker() -> CircuitBreaker:
    return CircuitBreaker(CONFIG)


def call(breaker: CircuitBreaker, now: float, outcome: bool | None) -> bool:
    """Make a call; tell whether it was let through."""
    period = breaker.admit(now)
    if period is None:
        return False
    breaker.settle(period, outcome)
    return True


def open_it(breaker: CircuitBreaker) -> None:
    """Open it at second 110."""
    for _ in range(10):
        call(breaker, 100, False)
    assert not call(breaker, 110, True)


def test_it_opens_with_the_first_call_after_a_window_of_failures(breaker: CircuitBreaker) -> None:
    for number in range(10):
        assert call(breaker, 100, number % 2 == 0)
    assert call(breaker, 109.9, False)

    assert not call(breaker, 110, True)
    assert breaker.state is BreakerState.OPEN


def test_few_calls_say_nothing(breaker: CircuitBreaker) -> None:
    for _ in range(9):
        call(breaker, 100, False)

    assert call(breaker, 110, True)


def test_few_failures_are_borne(breaker: CircuitBreaker) -> None:
    for number in range(100):
        call(breaker, 100, number >= 49)

    assert call(breaker, 110, True)


def test_each_window_is_counted_anew(breaker: CircuitBreaker) -> None:
    for now in (100, 110):
        for _ in range(6):
            assert call(breaker, now, False)

    assert call(breaker, 120, True)


def test_calls_of_an_earlier_window_do_not_count(breaker: CircuitBreaker) -> None:
    late = [breaker.admit(100) for _ in range(20)]
    call(breaker, 110, True)
    for period in late:
        assert period is not None
        breaker.settle(period, False)

    assert call(breaker, 120, True)


def test_it_lets_trials_through_after_a_rest_and_no_more(breaker: CircuitBreaker) -> None:
    open_it(breaker)
    assert not call(breaker, 114.9, True)

    assert [breaker.admit(115) is not None for _ in range(4)] == [True, True, False, False]
    assert breaker.state is BreakerState.HALF_OPEN


def test_trials_that_succeed_close_it(breaker: CircuitBreaker) -> None:
    open_it(breaker)

    assert call(breaker, 115, True)
    assert call(breaker, 115, True)

    assert call(breaker, 115, True)
    assert breaker.state is BreakerState.CLOSED


def test_a_trial_that_fails_opens_it_again(breaker: CircuitBreaker) -> None:
    open_it(breaker)
    call(breaker, 115, False)

    assert not call(breaker, 116, True)
    assert not call(breaker, 120.9, True)
    assert call(breaker, 121, True)


def test_a_trial_that_was_cancelled_makes_room_for_another(breaker: CircuitBreaker) -> None:
    open_it(breaker)
    call(breaker, 115, None)
    call(breaker, 115, None)

    assert call(breaker, 115, True)


def test_a_call_that_ran_out_of_time_counts_against_pd_and_a_refusal_does_not(breaker: CircuitBreaker) -> None:
    for _ in range(10):
        with pytest.raises(PdError), breaker.guard("get_region", lambda: 100):
            raise PdError("GetRegion", "UNKNOWN", "no")
    for _ in range(10):
        with pytest.raises(DeadlineExceeded), breaker.guard("get_region", lambda: 101):
            raise DeadlineExceeded("get_region", 1)

    with pytest.raises(CircuitOpen, match="get_region was not tried"), breaker.guard("get_region", lambda: 110):
        pass


@pytest.mark.parametrize(
    ("code", "counts"),
    [("DEADLINE_EXCEEDED", True), ("UNAVAILABLE", True), ("RESOURCE_EXHAUSTED", True), ("INTERNAL", False)],
)
def test_some_statuses_say_that_a_server_has_no_time(breaker: CircuitBreaker, code: str, counts: bool) -> None:
    for _ in range(10):
        with pytest.raises(RpcError), breaker.guard("get_region", lambda: 100):
            raise RpcError("pd1:2379", "GetRegion", code, "words")

    assert (breaker.admit(110) is None) == counts


def test_another_setting_counts_from_the_end_of_the_window_under_way(breaker: CircuitBreaker) -> None:
    for _ in range(10):
        call(breaker, 100, False)
    breaker.config = attrs.evolve(CONFIG, min_rate=2, window=20)
    assert call(breaker, 110, True)
    for _ in range(39):
        assert call(breaker, 110, False)

    assert call(breaker, 129.9, False)
    assert not call(breaker, 130, True)


def test_another_rest_counts_from_the_next_one_on(breaker: CircuitBreaker) -> None:
    open_it(breaker)
    breaker.config = attrs.evolve(CONFIG, cooldown=1)
    assert not call(breaker, 114.9, True)

    assert call(breaker, 115, False)
    assert not call(breaker, 115, True)
    assert call(breaker, 116, True)


def test_options_must_make_sense() -> None:
    with pytest.raises(ConfigError, match="threshold must be above 0"):
        BreakerConfig(threshold=0)
