"""What users pass, checked before anything is sent: what all clients take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from tikv_pd import Address, ConfigError, parse_address
from tikv_pd.lowlevel import as_bytes
from tikv_region import KeyRange, prefix_range

BytesLike: TypeAlias = bytes | bytearray | memoryview
"""What keys and values may be."""


def as_addresses(address: Address, keyspace: str | None) -> tuple[tuple[str, ...], str | None]:
    """Return PD's addresses, and the keyspace that the address or the argument names."""
    parsed = parse_address(address)
    if keyspace is not None and not isinstance(keyspace, str):
        raise TypeError(f"keyspace must be a str, not {type(keyspace).__name__}")
    if keyspace == "":
        raise ConfigError("keyspace must be a name; leave it out for API v1, or for DEFAULT of API v2")
    if keyspace is not None and parsed.keyspace is not None and keyspace != parsed.keyspace:
        raise ConfigError(f"the address names keyspace {parsed.keyspace!r}, the argument {keyspace!r}")
    return parsed.endpoints, keyspace if keyspace is not None else parsed.keyspace


def as_key(key: Any) -> bytes:
    """Return a key."""
    return as_bytes(key, "key")


def as_items(keys: Iterable[Any]) -> Iterable[Any]:
    """Return keys that are to be iterated over; refuse a single key."""
    if isinstance(keys, bytes | bytearray | memoryview | str):
        raise TypeError("keys must be an iterable of keys, not one key; pass [key]")
    if not isinstance(keys, Iterable):
        raise TypeError(f"keys must be an iterable of keys, not {type(keys).__name__}")
    return keys


def as_pair_items(pairs: Any) -> Iterable[Any]:
    """Return pairs that are to be iterated over; refuse what holds none."""
    if isinstance(pairs, Mapping):
        return pairs.items()
    if isinstance(pairs, bytes | bytearray | memoryview | str) or not isinstance(pairs, Iterable):
        raise TypeError(f"pairs must be a mapping or an iterable of (key, value) tuples, not {type(pairs).__name__}")
    return pairs


def as_range(start: Any, end: Any, prefix: Any = None) -> KeyRange:
    """Return a range that is given by its bounds or by a prefix."""
    start, end = as_bytes(start, "start"), as_bytes(end, "end")
    if prefix is None:
        return KeyRange(start, end)
    if start or end:
        raise ConfigError("pass either a prefix or start and end, not both")
    return prefix_range(as_bytes(prefix, "prefix"))


def check_flag(value: bool, name: str) -> bool:
    """Refuse what is not True or False: a truthy word such as "no" would be taken for the contrary."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {type(value).__name__}")
    return value


def check_kind(value: Any, kind: type[Any], name: str) -> None:
    """Refuse what is something else, unless it is None."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {type(value).__name__}")


def check_limit(limit: int | None) -> int | None:
    """Return a limit on a number of pairs."""
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be an int, not {type(limit).__name__}")
    if limit < 0:
        raise ConfigError(f"limit must not be negative, got {limit}; leave it out for no limit")
    return limit


def check_timeout(timeout: float) -> float:
    """Return how long a call may take."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be seconds as a number, not {type(timeout).__name__}")
    if not timeout > 0:
        raise ConfigError(f"timeout must be above 0 seconds, got {timeout}")
    try:
        return float(timeout)
    except OverflowError as error:
        raise ConfigError("timeout must be seconds that a float can hold; pass math.inf for no limit") from error
