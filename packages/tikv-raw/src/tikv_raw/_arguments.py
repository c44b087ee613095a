"""What users pass, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from tikv_pd import ConfigError
from tikv_pd.lowlevel import as_bytes as as_bytes

BytesLike: TypeAlias = bytes | bytearray | memoryview
"""What keys and values may be."""

COLUMN_FAMILIES: Final = frozenset({"default", "lock", "write"})
"""Column families of a raw V1 store. Source: TiKV storage, rawkv cf check."""
MAX_TTL: Final = 2**63 - 1
"""Seconds. The field has 64 bits; half of its range leaves the store room to add the time of day."""


def as_keys(keys: Iterable[Any]) -> list[bytes]:
    """Return keys without duplicates, in order."""
    if isinstance(keys, bytes | bytearray | memoryview | str):
        raise TypeError("keys must be an iterable of keys, not one key; pass [key]")
    if not isinstance(keys, Iterable):
        raise TypeError(f"keys must be an iterable of keys, not {type(keys).__name__}")
    return list(dict.fromkeys(as_bytes(key, "key") for key in keys))


def as_pairs(pairs: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> dict[bytes, bytes]:
    """Return pairs by key; of several for one key the last counts."""
    if isinstance(pairs, Mapping):
        pairs = pairs.items()
    elif isinstance(pairs, bytes | bytearray | memoryview | str) or not isinstance(pairs, Iterable):
        raise TypeError(f"pairs must be a mapping or an iterable of (key, value) tuples, not {type(pairs).__name__}")
    by_key = {}
    for pair in pairs:
        key, value = _as_pair(pair)
        by_key[as_bytes(key, "key")] = as_bytes(value, "value")
    return by_key


def _as_pair(pair: Any) -> tuple[Any, Any]:
    # Anything but these might unpack into two by chance: two bytes, a str of two letters, a set in any order.
    if not isinstance(pair, tuple | list):
        raise TypeError(f"a pair must be a (key, value) tuple, not {type(pair).__name__}")
    if len(pair) != 2:
        raise TypeError(f"a pair must be a (key, value) tuple, not {len(pair)} items")
    return pair[0], pair[1]


def check_ttl(ttl: int | None, *, enabled: bool) -> int:
    """Return a TTL as it is on the wire, where 0 stands for none."""
    if ttl is None:
        return 0
    if isinstance(ttl, bool) or not isinstance(ttl, int):
        raise TypeError(f"ttl must be whole seconds as an int, not {type(ttl).__name__}")
    if ttl < 1:
        raise ConfigError(f"ttl must be at least 1 second, got {ttl}; leave it out for a key that never expires")
    if ttl > MAX_TTL:
        raise ConfigError("ttl must be below 2**63 seconds; leave it out for a key that never expires")
    check_has_ttl(enabled=enabled)
    return ttl


def check_has_ttl(*, enabled: bool) -> None:
    """Refuse a TTL where there is none."""
    if not enabled:
        raise ConfigError("this client speaks API v1, which has no TTL; open it with api_version='v1ttl' or 'v2'")


def check_limit(limit: int | None) -> int | None:
    """Return a limit on a number of pairs."""
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be an int, not {type(limit).__name__}")
    if limit < 0:
        raise ConfigError(f"limit must not be negative, got {limit}; leave it out for no limit")
    return limit


def check_timeout(timeout: float | None, default: float) -> float:
    """Return how long a call may take."""
    if timeout is None:
        return default
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be seconds as a number, not {type(timeout).__name__}")
    if not timeout > 0:
        raise ConfigError(f"timeout must be above 0 seconds, got {timeout}")
    try:
        return float(timeout)
    except OverflowError as error:
        raise ConfigError("timeout must be seconds that a float can hold; pass math.inf for no limit") from error


def check_cf(cf: str, *, several: bool) -> str:
    """Return a column family as it is on the wire, where the default one has no name."""
    if not isinstance(cf, str):
        raise TypeError(f"cf must be a str, not {type(cf).__name__}")
    if cf == "default":
        return ""
    if cf not in COLUMN_FAMILIES:
        raise ConfigError(f"unknown column family {cf!r}; known are {', '.join(sorted(COLUMN_FAMILIES))}")
    if not several:
        raise ConfigError(f"API v2 has no column family {cf!r}, only 'default'")
    return cf
