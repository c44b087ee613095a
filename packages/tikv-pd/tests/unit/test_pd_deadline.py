from __future__ import annotations

import math

import pytest
from tikv_pd import Deadline, DeadlineExceeded


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_a_deadline_counts_down() -> None:
    clock = Clock()
    deadline = Deadline("get", 3, clock)

    clock.time += 2

    assert deadline.remaining() == deadline.check() == 1
    assert repr(deadline) == "<Deadline of get, 1.000 s left>"


@pytest.mark.parametrize("passed", [3, 4])
def test_a_passed_deadline_says_what_had_how_long_and_why_it_failed(passed: float) -> None:
    clock = Clock()
    deadline = Deadline("get", 3, clock)
    cause = RuntimeError("no leader")
    clock.time += passed

    with pytest.raises(DeadlineExceeded, match="get did not finish within 3 s: no leader") as raised:
        deadline.check(cause)

    assert raised.value.__cause__ is cause
    assert isinstance(raised.value, TimeoutError)


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_a_timeout_that_leaves_no_time_has_passed_at_once(timeout: float) -> None:
    with pytest.raises(DeadlineExceeded):
        Deadline("get", timeout, Clock()).check()


def test_an_infinite_timeout_never_passes() -> None:
    assert Deadline("get", math.inf, Clock()).check() == math.inf
