from __future__ import annotations

import math

import pytest
from tikv_pd import ConfigError
from tikv_rpc import RpcConfig


@pytest.mark.parametrize(
    "field",
    [
        "attempt_timeout",
        "connect_timeout",
        "connections",
        "idle_timeout",
        "max_in_flight",
        "max_batch_size",
        "max_batch_bytes",
        "concurrency",
        "backoff_budget",
        "liveness_timeout",
        "liveness_interval",
    ],
)
def test_every_limit_is_above_zero(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be above 0, got 0"):
        RpcConfig(**{field: 0})  # type: ignore[arg-type]  # mypy cannot see which field it is


@pytest.mark.parametrize("field", ["attempt_timeout", "connect_timeout", "max_batch_size"])
def test_a_limit_is_a_number(field: str) -> None:
    with pytest.raises(TypeError):
        RpcConfig(**{field: "1"})  # type: ignore[arg-type]  # wrong on purpose


def test_an_attempt_cannot_take_forever() -> None:
    with pytest.raises(ConfigError, match="attempt_timeout must be finite"):
        RpcConfig(attempt_timeout=math.inf)


def test_not_a_number_is_no_limit() -> None:
    with pytest.raises(ConfigError):
        RpcConfig(attempt_timeout=math.nan)
