from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from tikv_region import EngineKind, Liveness, SlowScore, StoreEntry, StoreHealth


def test_a_store_is_healthy_until_something_else_is_heard() -> None:
    health = StoreHealth()

    assert health.liveness is Liveness.REACHABLE
    assert not health.is_slow(0.0)
    assert health.estimated_wait(0.0) == 0
    assert not health.needs_report(1000.0)


def test_fewer_and_slower_requests_raise_the_score() -> None:
    score = SlowScore()
    for count, seconds in ((100, 0.01), (50, 0.1), (10, 1.0)):
        for _ in range(count):
            score.record(seconds)
        score.tick()

    # (1 x 5.43 + 1) is 7 whole, (7 x 5.43 + 1) is 40.
    assert score.score == 40


def test_slower_requests_alone_do_not_raise_the_score() -> None:
    score = SlowScore()
    for seconds in (0.01, 0.1, 1.0):
        for _ in range(10):
            score.record(seconds)
        score.tick()

    assert score.score == 1


def test_a_single_endless_request_makes_a_store_slow() -> None:
    score = SlowScore()

    score.record(29.9)
    assert score.score == 1
    score.record(30.0)

    assert score.score == 100


def test_a_store_marked_slow_recovers_in_eleven_ticks_without_requests() -> None:
    health = StoreHealth()
    health.timed.mark_slow()

    ticks = 0
    while health.is_slow(0.0):
        health.timed.tick()
        ticks += 1

    assert ticks == 11


@given(st.lists(st.lists(st.floats(0, 40), max_size=20), max_size=30))
def test_a_score_stays_between_1_and_100(ticks: list[list[float]]) -> None:
    score = SlowScore()
    for requests in ticks:
        for seconds in requests:
            score.record(seconds)
        score.tick()

        assert 1 <= score.score <= 100


@pytest.mark.parametrize(("minutes", "expected"), [(0.2, 100), (2, 60), (5, 1), (50, 1)])
def test_a_reported_score_falls_without_another(minutes: float, expected: float) -> None:
    health = StoreHealth()
    health.report(100, 0.0)

    assert health.reported_score(minutes * 60) == pytest.approx(expected)
    assert health.needs_report(minutes * 60) == (minutes > 0.25)
    assert health.is_slow(minutes * 60) == (expected >= 80)


def test_a_report_right_after_another_is_left_out() -> None:
    health = StoreHealth()
    health.report(90, 10.0)

    health.report(20, 10.05)
    assert health.reported_score(10.05) == 90
    health.report(90, 10.08)
    health.report(20, 10.15)
    assert health.reported_score(10.15) == 90
    health.report(20, 10.2)

    assert health.reported_score(10.2) == 20


def test_the_wait_at_a_busy_store_passes() -> None:
    health = StoreHealth()

    health.expect_wait(2.0, 10.0)

    assert [health.estimated_wait(now) for now in (10.0, 11.5, 12.0, 20.0)] == [2.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("labels", "engine", "zone"),
    [
        ((), EngineKind.TIKV, ""),
        ((("zone", "b"), ("engine", "tiflash")), EngineKind.TIFLASH, "b"),
        ((("engine", "tiflash_compute"),), EngineKind.TIFLASH_COMPUTE, ""),
        ((("engine", "rocks"),), EngineKind.TIKV, ""),
    ],
)
def test_labels_tell_the_kind_and_the_zone_of_a_store(
    labels: tuple[tuple[str, str], ...], engine: EngineKind, zone: str
) -> None:
    store = StoreEntry(1)

    store.labels = labels

    assert (store.engine, store.zone) == (engine, zone)
