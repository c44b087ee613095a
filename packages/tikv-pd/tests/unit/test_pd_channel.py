from __future__ import annotations

import math

import pytest
from tikv_pd import ChannelConfig, ConfigError


@pytest.mark.parametrize(
    "option",
    [
        "keepalive_time",
        "keepalive_timeout",
        "reconnect_backoff",
        "max_reconnect_backoff",
        "connect_attempt_timeout",
    ],
)
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_a_time_grpc_could_not_follow_is_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{option} must be at least"):
        ChannelConfig(**{option: value})  # type: ignore[arg-type]  # mypy cannot see which option it is


def test_the_answer_to_a_ping_is_given_some_time() -> None:
    with pytest.raises(ConfigError, match=r"keepalive_timeout must be at least 0\.05"):
        ChannelConfig(keepalive_timeout=0.04)


def test_a_window_is_no_smaller_than_that_of_http2() -> None:
    with pytest.raises(ConfigError, match="window_bytes must be at least 65535"):
        ChannelConfig(window_bytes=65_534)


def test_there_are_two_ways_of_compression() -> None:
    with pytest.raises(ConfigError, match="compression must be 'none' or 'gzip', got 'zstd'"):
        ChannelConfig(compression="zstd")  # type: ignore[arg-type]  # on purpose
