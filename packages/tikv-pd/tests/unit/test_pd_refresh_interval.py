"""How often timestamps of low resolution are fetched, on a clock of its own: a configured interval of 2 s."""

from __future__ import annotations

import pytest
from tikv_pd._streams.oracle import RefreshInterval


@pytest.fixture
def interval() -> RefreshInterval:
    interval = RefreshInterval(2.0)
    interval.tick(1000)
    return interval


def test_a_read_further_back_than_the_interval_changes_nothing(interval: RefreshInterval) -> None:
    assert not interval.demand(5.0, 1000)
    assert interval.current == 2.0


def test_a_demanding_read_makes_the_interval_a_bit_shorter_than_it_needs(interval: RefreshInterval) -> None:
    assert interval.demand(1.0, 1000)
    assert interval.current == pytest.approx(0.9)


@pytest.mark.parametrize("staleness", [0.55, 0.1, 0.0, -3.0])
def test_no_read_makes_the_interval_shorter_than_half_a_second(interval: RefreshInterval, staleness: float) -> None:
    assert interval.demand(staleness, 1000)
    assert not interval.demand(staleness, 1000)
    assert interval.current == 0.5


def test_an_interval_configured_that_short_is_left_alone() -> None:
    interval = RefreshInterval(0.4)

    assert not interval.demand(0.1, 1000)
    assert interval.current == 0.4


def test_the_interval_is_kept_for_five_minutes_and_then_grows_back(interval: RefreshInterval) -> None:
    interval.demand(1.0, 1000)
    interval.tick(1300)
    assert interval.current == pytest.approx(0.9)

    interval.tick(1301)
    assert interval.current == pytest.approx(0.92)
    interval.tick(1311)
    assert interval.current == pytest.approx(1.12)
    interval.tick(1500)
    assert interval.current == 2.0


def test_a_read_nearly_as_demanding_keeps_the_interval_from_growing(interval: RefreshInterval) -> None:
    interval.demand(1.0, 1000)
    interval.demand(1.05, 1250)
    interval.tick(1301)
    assert interval.current == pytest.approx(0.9)

    interval.demand(1.2, 1302)
    interval.tick(1552)
    assert interval.current > 0.9


@pytest.mark.parametrize("configured", [0.3, 1.0, 5.0])
def test_another_interval_counts_at_once(interval: RefreshInterval, configured: float) -> None:
    interval.change(configured)

    assert (interval.configured, interval.current) == (configured, configured)


def test_another_interval_leaves_one_alone_that_reads_made_shorter(interval: RefreshInterval) -> None:
    interval.demand(1.0, 1000)

    interval.change(5.0)
    assert interval.current == pytest.approx(0.9)

    interval.change(0.6)
    assert interval.current == 0.6
