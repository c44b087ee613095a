"""What users pass, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import attrs
from tikv_pd import ConfigError
from tikv_pd.lowlevel import as_bytes
from tikv_region import KeyRange
from tikv_rpc.frontend.arguments import BytesLike, as_range

from tikv_raw.errors import KeyTooLarge, ValueTooLarge

COLUMN_FAMILIES: Final = frozenset({"default", "lock", "write"})
"""Column families of a raw V1 store. Source: TiKV storage, rawkv cf check."""
MAX_TTL: Final = 2**63 - 1
"""Seconds. The field has 64 bits; half of its range leaves the store room to add the time of day."""


@attrs.frozen
class Limits:
    """What stores take, for a client's API version."""

    max_key: int
    """Bytes of a key at most, without what the codec puts before it."""
    key_prefix: int
    """Bytes the codec puts before each key."""
    max_value: int
    """Bytes of a value at most."""
    has_ttl: bool
    """Whether pairs may have a TTL."""

    def key(self, key: BytesLike) -> bytes:
        """Return a key that is to be written."""
        key = as_bytes(key, "key")
        if len(key) > self.max_key:
            raise KeyTooLarge(key, len(key) + self.key_prefix, self.max_key + self.key_prefix)
        return key

    def value(self, key: bytes, value: BytesLike) -> bytes:
        """Return a value that is to be written."""
        value = as_bytes(value, "value")
        if len(value) > self.max_value:
            raise ValueTooLarge(key, len(value), self.max_value)
        return value

    def ttl(self, ttl: int | None) -> int:
        """Return a TTL as it is on the wire, where 0 stands for none."""
        return check_ttl(ttl, enabled=self.has_ttl)


def as_pair(pair: Any, ttl: int | None) -> tuple[Any, Any, int | None]:
    """Return key, value and TTL of a pair; of one without a TTL of its own, `ttl`."""
    # Anything but these might unpack into two by chance: two bytes, a str of two letters, a set in any order.
    if not isinstance(pair, tuple | list):
        raise TypeError(f"a pair must be a (key, value) or (key, value, ttl) tuple, not {type(pair).__name__}")
    match pair:
        case [key, value]:
            return key, value, ttl
        case [key, value, own]:
            return key, value, own
    raise TypeError(f"a pair must be a (key, value) or (key, value, ttl) tuple, not {len(pair)} items")


def as_ranges(ranges: Iterable[Any]) -> list[KeyRange]:
    """Return ranges that are given as such or as (start, end) tuples."""
    if isinstance(ranges, bytes | bytearray | memoryview | str | KeyRange) or not isinstance(ranges, Iterable):
        raise TypeError(f"ranges must be an iterable of (start, end) tuples, not {type(ranges).__name__}")
    found = []
    for key_range in ranges:
        if isinstance(key_range, KeyRange):
            key_range = (key_range.start, key_range.end)  # noqa: PLW2901  # as the others
        if not isinstance(key_range, tuple | list):
            raise TypeError(f"a range must be a (start, end) tuple, not {type(key_range).__name__}")
        if len(key_range) != 2:
            raise TypeError(f"a range must be a (start, end) tuple, not {len(key_range)} items")
        found.append(as_range(*key_range))
    return found


def check_on_error(on_error: str) -> bool:
    """Return whether errors are to be returned."""
    if on_error not in {"raise", "return"}:
        raise ConfigError(f"on_error must be 'raise' or 'return', not {on_error!r}")
    return on_error == "return"


def check_progress(progress: Any) -> None:
    """Refuse what cannot be called."""
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be a function, not {type(progress).__name__}")


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
