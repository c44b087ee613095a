from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, strategies as st
from tikv_pd import LATEST, ConfigError, Timestamp

timestamps = st.builds(Timestamp, st.integers(0, 2**46 - 1), st.integers(0, 2**18 - 1))


@given(timestamps)
def test_a_timestamp_survives_being_composed(timestamp: Timestamp) -> None:
    assert Timestamp.from_ts(timestamp.ts) == timestamp


@given(timestamps, timestamps)
def test_timestamps_are_ordered_as_their_composed_values(one: Timestamp, other: Timestamp) -> None:
    assert (one < other) == (one.ts < other.ts)


def test_the_logical_part_has_18_bits() -> None:
    assert Timestamp(1, 0).ts == 262144


def test_a_timestamp_becomes_a_datetime_in_utc() -> None:
    assert Timestamp(1_700_000_000_123, 5).to_datetime() == datetime(2023, 11, 14, 22, 13, 20, 123000, UTC)


@given(
    st.datetimes(
        min_value=datetime(1970, 1, 2),  # noqa: DTZ001  # naive by its rules
        timezones=st.just(timezone(timedelta(hours=9))),
    )
)
def test_a_datetime_becomes_the_first_timestamp_of_its_millisecond(moment: datetime) -> None:
    timestamp = Timestamp.from_datetime(moment)

    assert timestamp.logical == 0
    assert timedelta(0) <= moment - timestamp.to_datetime() < timedelta(milliseconds=1)


def test_a_datetime_without_time_zone_is_refused() -> None:
    with pytest.raises(ConfigError, match="time zone"):
        Timestamp.from_datetime(datetime(2023, 1, 1))  # noqa: DTZ001  # on purpose


def test_a_datetime_before_all_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="1970"):
        Timestamp.from_datetime(datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC))


def test_the_largest_timestamp_is_a_datetime() -> None:
    assert Timestamp.from_ts(LATEST).to_datetime().year == 4199


@pytest.mark.parametrize("ts", [-1, 2**64])
def test_what_does_not_fit_into_64_bits_is_no_timestamp(ts: int) -> None:
    with pytest.raises(ConfigError, match="64"):
        Timestamp.from_ts(ts)


@pytest.mark.parametrize(
    ("ttl_ms", "seconds"),
    [(0, -0.1), (99, -0.001), (100, 0), (3000, 2.9)],
)
def test_a_lock_ends_its_time_to_live_after_it_began(ttl_ms: int, seconds: float) -> None:
    began = Timestamp(1_000, 7)

    assert Timestamp(1_100, 3).until_expired(began, ttl_ms) == pytest.approx(seconds)
