from __future__ import annotations

import pytest
from tikv_region import StoreEntry
from tikv_region.health import SLOW_SCORE, TICK, Liveness
from tikv_rpc._stores.slowness import Slowness


class Bench:
    """A store that requests go to, and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slowness = Slowness(lambda: self.now)
        self.store = StoreEntry(1)
        self.store.address = "tikv1:20160"
        self.slowness.record(self.store, 0.001)

    @property
    def reported(self) -> float:
        return self.store.health.reported_score(self.now)

    def tick(self) -> list[StoreEntry]:
        self.now += TICK
        return self.slowness.tick()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_store_whose_requests_grow_fewer_and_slower_becomes_slow(bench: Bench) -> None:
    for _ in range(5):
        for _ in range(100):
            bench.slowness.record(bench.store, 0.001)
        bench.tick()

    for count in (80, 60, 40, 20, 10):
        for _ in range(count):
            bench.slowness.record(bench.store, 0.5)
        bench.tick()

    assert bench.store.health.is_slow(bench.now)


def test_a_single_request_of_half_a_minute_makes_a_store_slow(bench: Bench) -> None:
    bench.slowness.record(bench.store, 30.0)

    assert bench.store.health.is_slow(bench.now)


def test_a_store_marked_slow_recovers_in_minutes_and_not_at_the_next_tick(bench: Bench) -> None:
    bench.slowness.mark_slow(bench.store)
    ticks = 0
    while bench.store.health.is_slow(bench.now):
        bench.tick()
        ticks += 1

    assert 60 <= ticks * TICK <= 180


def test_a_store_that_only_failed_recovers_as_well() -> None:
    bench = Bench()
    other = StoreEntry(2)

    bench.slowness.mark_slow(other)
    for _ in range(12):
        bench.tick()

    assert not other.health.is_slow(bench.now)


def test_a_store_is_slow_when_it_says_so(bench: Bench) -> None:
    bench.slowness.on_feedback(1, 10, 85)

    assert bench.store.health.is_slow(bench.now)
    assert bench.reported == 85 >= SLOW_SCORE


def test_a_report_of_a_store_that_no_request_went_to_is_left_out(bench: Bench) -> None:
    bench.slowness.on_feedback(2, 10, 85)

    assert not bench.store.health.is_slow(bench.now)
    assert bench.tick() == []


def test_a_report_that_was_overtaken_is_left_out(bench: Bench) -> None:
    bench.slowness.on_feedback(1, 10, 1)
    bench.now += 1
    bench.slowness.on_feedback(1, 9, 85)

    assert bench.reported == 1


def test_a_store_whose_clock_was_set_back_is_believed_again_after_a_while(bench: Bench) -> None:
    bench.slowness.on_feedback(1, 10_000, 1)
    bench.now += TICK
    bench.slowness.on_feedback(1, 5, 85)
    bench.now += 1
    bench.slowness.on_feedback(1, 6, 20)

    assert bench.reported == 20


def test_a_bad_report_grown_old_is_to_be_renewed(bench: Bench) -> None:
    bench.slowness.on_feedback(1, 10, 85)

    bench.now += TICK - 1
    early = bench.slowness.tick()
    bench.now += 1
    late = bench.slowness.tick()

    assert early == []
    assert late == [bench.store]


def test_a_good_report_grown_old_is_not_asked_for(bench: Bench) -> None:
    bench.slowness.on_feedback(1, 10, 1)

    assert bench.tick() == []


def test_without_another_report_a_score_falls_by_twenty_a_minute_and_asking_ends(bench: Bench) -> None:
    bench.slowness.on_feedback(1, 10, 41)
    asked = [len(bench.tick()) for _ in range(12)]

    assert asked == [1] * 7 + [0] * 5  # 41 - 8 * 15 * 20 / 60 is 1, the best.
    assert bench.reported == 1


def test_a_store_that_cannot_be_reached_is_not_asked(bench: Bench) -> None:
    bench.slowness.on_feedback(1, 10, 85)
    bench.store.health.liveness = Liveness.UNREACHABLE

    assert bench.tick() == []


def test_a_store_that_left_is_forgotten(bench: Bench) -> None:
    bench.slowness.on_feedback(1, 10, 85)
    bench.store.is_tombstone, bench.store.address = True, ""

    asked = bench.tick()
    bench.slowness.on_feedback(1, 11, 50)

    assert asked == []
    assert bench.store.health.timed.score == 1
    assert bench.reported == 85 - TICK * 20 / 60
