"""Timestamps: unique and growing, whatever the clock does and however often PD starts."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, strategies as st
from tikv_embedded import meta
from tikv_embedded.engine import MemoryEngine
from tikv_embedded.pd.tso import MAX_LOGICAL, UPDATE_INTERVAL_MS, WINDOW_MS, TimestampOracle, compose

START = 1_000_000


@attrs.define
class Clock:
    now: int = START

    def __call__(self) -> int:
        return self.now


def test_the_last_timestamp_of_a_batch_is_returned() -> None:
    oracle = TimestampOracle(MemoryEngine(), Clock())

    assert oracle.allocate(1) == (START, 1)
    assert oracle.allocate(10) == (START, 11)


def test_the_physical_part_follows_the_clock_in_steps() -> None:
    clock = Clock()
    oracle = TimestampOracle(MemoryEngine(), clock)
    oracle.allocate(7)

    clock.now += UPDATE_INTERVAL_MS - 1
    within = oracle.allocate(1)
    clock.now += 1
    after = oracle.allocate(1)

    assert within == (START, 8)
    assert after == (START + UPDATE_INTERVAL_MS, 1)


def test_a_clock_that_goes_back_changes_nothing() -> None:
    clock = Clock()
    oracle = TimestampOracle(MemoryEngine(), clock)
    oracle.allocate(1)

    clock.now -= 3_600_000
    later = oracle.allocate(1)

    assert later == (START, 2)


def test_a_full_counter_moves_the_physical_part_up() -> None:
    clock = Clock()
    oracle = TimestampOracle(MemoryEngine(), clock)
    oracle.allocate(MAX_LOGICAL - 1)

    assert oracle.allocate(1) == (START + 1, 1)


def test_a_counter_past_its_half_starts_again_with_the_next_step_even_if_the_clock_stands() -> None:
    clock = Clock()
    oracle = TimestampOracle(MemoryEngine(), clock)
    clock.now += UPDATE_INTERVAL_MS
    oracle.allocate(MAX_LOGICAL // 2 + 1)

    clock.now -= 2 * UPDATE_INTERVAL_MS
    later = oracle.allocate(1)

    assert later == (START + UPDATE_INTERVAL_MS + 1, 1)


@pytest.mark.parametrize("count", [-1, 0, MAX_LOGICAL])
def test_a_batch_is_neither_empty_nor_larger_than_one_physical_time_holds(count: int) -> None:
    oracle = TimestampOracle(MemoryEngine(), Clock())

    with pytest.raises(ValueError, match="cannot give"):
        oracle.allocate(count)


def test_a_bound_is_persisted_before_timestamps_reach_it() -> None:
    engine, clock = MemoryEngine(), Clock()
    oracle = TimestampOracle(engine, clock)

    for _ in range(200):
        clock.now += UPDATE_INTERVAL_MS
        physical, _ = oracle.allocate(1)

        assert physical < meta.load_tso_bound(engine) <= physical + WINDOW_MS


def test_a_restart_begins_behind_the_bound_if_the_clock_is_not_there_yet() -> None:
    engine, clock = MemoryEngine(), Clock()
    before = TimestampOracle(engine, clock).next_ts()

    clock.now -= 500
    after = TimestampOracle(engine, clock).allocate(1)

    assert after == (START + WINDOW_MS + 1, 1)
    assert compose(*after) > before


def test_a_late_restart_follows_the_clock() -> None:
    engine, clock = MemoryEngine(), Clock()
    TimestampOracle(engine, clock)

    clock.now += 60_000
    after = TimestampOracle(engine, clock).allocate(1)

    assert after == (START + 60_000, 1)


@given(st.lists(st.tuples(st.integers(-100_000, 100_000), st.integers(1, MAX_LOGICAL - 1), st.booleans()), max_size=60))
def test_timestamps_never_overlap_nor_go_back(steps: list[tuple[int, int, bool]]) -> None:
    engine, clock = MemoryEngine(), Clock()
    oracle, last = TimestampOracle(engine, clock), 0

    for move, count, restarts in steps:
        clock.now = max(0, clock.now + move)
        if restarts:
            oracle = TimestampOracle(engine, clock)
        physical, logical = oracle.allocate(count)

        assert logical < MAX_LOGICAL
        assert compose(physical, logical - count + 1) > last
        last = compose(physical, logical)
