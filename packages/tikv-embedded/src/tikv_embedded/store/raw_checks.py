"""What TiKV refuses in a raw request before it looks at any data, as the texts of its errors.

Each check returns the text of the refusal or None. The command names are TiKV's own, which it prints in the texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tikv_proto import kvrpcpb

from tikv_embedded.engine.write_batch import CF_DEFAULT, CF_LOCK, CF_WRITE
from tikv_embedded.store.api_mode import ApiMode

MAX_KEY_SIZE = 8 * 1024
"""Longest user key a write may carry, in bytes; TiKV's `storage.max-key-size`."""

TTL_NOT_ENABLED = "ttl is not enabled, but get put request with ttl"
"""A TTL in storage mode V1."""
TTL_COUNT_MISMATCH = "The length of ttls does not equal to the length of pairs"
"""A batch put with neither none, one nor as many TTLs as pairs."""
TTL_NOT_STORED = "get ttl on non-ttl store"
"""A TTL was asked for in storage mode V1."""
INVALID_RANGES = "Invalid KeyRanges"
"""A batch scan with an empty or inverted range."""

_V1_COLUMN_FAMILIES = frozenset(("", CF_DEFAULT, CF_LOCK, CF_WRITE))
_RAW_PREFIX = ord("r")
_STORAGE_NAMES = {ApiMode.V1: "V1", ApiMode.V1TTL: "V1ttl", ApiMode.V2: "V2"}
_REQUEST_NAMES = {0: "V1", 1: "V1ttl", 2: "V2", 3: "V3"}


def check_keys(mode: ApiMode, context: kvrpcpb.Context, command: str, keys: Iterable[bytes]) -> str | None:
    """Refuse a request of another API version, and in V2 keys that are not raw ones."""
    version = context.api_version
    if mode is not ApiMode.V2:
        return version_mismatch(mode, version, command) if version else None
    if version != kvrpcpb.APIVersion.V2:
        return version_mismatch(mode, version, command)
    for key in keys:
        if not key or key[0] != _RAW_PREFIX:
            return f"{wrong_mode(mode, command)}, key: {key.hex().upper()}"
    return None


def check_ranges(
    mode: ApiMode, context: kvrpcpb.Context, command: str, ranges: Iterable[tuple[bytes, bytes | None]]
) -> str | None:
    """Refuse a request of another API version, and in V2 ranges that leave the raw keys.

    `ranges` are starts and ends as sent; None stands for an end that was not sent.
    """
    version = context.api_version
    if mode is not ApiMode.V2:
        return version_mismatch(mode, version, command) if version else None
    if version != kvrpcpb.APIVersion.V2:
        return version_mismatch(mode, version, command)
    for start, end in ranges:
        if not _is_raw_range(start, end):
            shown = "None" if end is None else f'Some("{end.hex().upper()}")'
            return f'{wrong_mode(mode, command)}, range: (Some("{start.hex().upper()}"), {shown})'
    return None


def check_cf(mode: ApiMode, cf: str) -> str | None:
    """Refuse a column family that raw requests may not name."""
    if mode is ApiMode.V2:
        return f"cf is deprecated in API V2, cf name: {cf}" if cf else None
    return None if cf in _V1_COLUMN_FAMILIES else f"invalid cf name: {cf}"


def check_key_sizes(keys: Iterable[bytes]) -> str | None:
    """Refuse a key longer than `MAX_KEY_SIZE`."""
    for key in keys:
        if len(key) > MAX_KEY_SIZE:
            return f"max key size exceeded, size: {len(key)}, limit: {MAX_KEY_SIZE}"
    return None


def check_ttls(*, has_ttl: bool, ttls: Iterable[int]) -> str | None:
    """Refuse a TTL where pairs cannot expire."""
    return None if has_ttl or not any(ttls) else TTL_NOT_ENABLED


def check_order(ranges: Sequence[tuple[bytes, bytes]], *, reverse: bool) -> str | None:
    """Refuse a range that holds nothing; `ranges` are starts and ends, an empty end being unbounded.

    With `reverse` the start is the upper bound.
    """
    for start, end in ranges:
        if end and (start <= end if reverse else start >= end):
            return INVALID_RANGES
    return None


def _is_raw_range(start: bytes, end: bytes | None) -> bool:
    """Whether `[start, end)` lies in V2's raw keys, by TiKV's rule on the first bytes."""
    if not start or not end or start[0] != _RAW_PREFIX:
        return False
    return end[0] == _RAW_PREFIX or end == bytes((_RAW_PREFIX + 1,))


def version_mismatch(mode: ApiMode, version: int, command: str) -> str:
    """Return the text for a request of an API version that the storage mode does not serve."""
    storage, request = _STORAGE_NAMES[mode], _REQUEST_NAMES.get(version, str(version))
    return (
        "Api version in request does not match with TiKV storage, "
        f"cmd: {command}, storage: {storage}, request: {request}"
    )


def wrong_mode(mode: ApiMode, command: str) -> str:
    """Return the beginning of the text for keys that belong to other requests."""
    return f"Key mode mismatched with the request mode, cmd: {command}, storage: {_STORAGE_NAMES[mode]}"
