"""What users pass, checked before anything is sent: what transactions take beyond what all clients do."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from tikv_pd import LATEST, ConfigError, Timestamp

from tikv_txn.options import TransactionOptions

AnyTimestamp: TypeAlias = Timestamp | int
"""A timestamp, or its composed form."""


def as_ts(value: Any, what: str) -> int:
    """Return a composed timestamp."""
    if isinstance(value, Timestamp):
        return value.ts
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be a Timestamp or its composed form, an int, not {type(value).__name__}")
    return Timestamp.from_ts(value).ts


def check_options(options: Any) -> TransactionOptions:
    """Return options of a transaction."""
    if not isinstance(options, TransactionOptions):
        raise TypeError(f"options must be TransactionOptions, not {type(options).__name__}")
    return options


def as_start_ts(value: Any) -> int:
    """Return a composed timestamp that a transaction can start at."""
    ts = as_ts(value, "start_ts")
    if ts in {0, LATEST}:
        raise ConfigError(f"no transaction starts at timestamp {ts}; leave it out, or pass one that PD granted")
    return ts


def check_staleness(seconds: Any) -> float:
    """Return how far in the past to read."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"staleness must be seconds as a number, not {type(seconds).__name__}")
    if not 0 < seconds < math.inf:
        raise ConfigError(f"staleness must be above 0 seconds and finite, got {seconds}")
    return float(seconds)
