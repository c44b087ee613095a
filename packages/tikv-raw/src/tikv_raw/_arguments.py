"""What users pass, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from tikv_pd import ConfigError

BytesLike: TypeAlias = bytes | bytearray | memoryview
"""What keys and values may be."""

COLUMN_FAMILIES: Final = frozenset({"default", "lock", "write"})
"""Column families of a raw V1 store. Source: TiKV storage, rawkv cf check."""


def as_bytes(what: str, value: Any) -> bytes:
    """Return a key or value as bytes."""
    if type(value) is bytes:
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    hint = "; encode it, for example with .encode()" if isinstance(value, str) else ""
    raise TypeError(f"{what} must be bytes, not {type(value).__name__}{hint}")


def as_keys(keys: Iterable[Any]) -> list[bytes]:
    """Return keys without duplicates, in order."""
    if isinstance(keys, bytes | bytearray | memoryview | str):
        raise TypeError("keys must be an iterable of keys, not one key; pass [key]")
    return list(dict.fromkeys(as_bytes("a key", key) for key in keys))


def as_pairs(pairs: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> dict[bytes, bytes]:
    """Return pairs by key; of several for one key the last counts."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return {as_bytes("a key", key): as_bytes("a value", value) for key, value in items}


def check_ttl(ttl: int | None, *, enabled: bool) -> int:
    """Return a TTL as it is on the wire, where 0 stands for none."""
    if ttl is None:
        return 0
    if isinstance(ttl, bool) or not isinstance(ttl, int):
        raise TypeError(f"ttl must be whole seconds as an int, not {type(ttl).__name__}")
    if ttl < 1:
        raise ConfigError(f"ttl must be at least 1 second, got {ttl}; leave it out for a key that never expires")
    if not enabled:
        raise ConfigError("this client speaks API v1, which has no TTL; open it with api_version='v1ttl' or 'v2'")
    return ttl


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
    return timeout


def check_cf(cf: str, *, several: bool) -> str:
    """Return a column family as it is on the wire, where the default one has no name."""
    if cf == "default":
        return ""
    if cf not in COLUMN_FAMILIES:
        raise ConfigError(f"unknown column family {cf!r}; known are {', '.join(sorted(COLUMN_FAMILIES))}")
    if not several:
        raise ConfigError(f"API v2 has no column family {cf!r}, only 'default'")
    return cf
