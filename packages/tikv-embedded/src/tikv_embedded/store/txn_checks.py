"""What TiKV refuses in a transactional request before it looks at any data: API versions and key modes.

Each check returns the text of the refusal or None. Source: TiKV storage/mod.rs check_api_version.
"""

from __future__ import annotations

from collections.abc import Iterable

from tikv_proto import kvrpcpb

from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.store.raw_checks import version_mismatch, wrong_mode

_TXN_PREFIX = b"x"
_TIDB_PREFIXES = (b"m", b"t")


def check_txn_keys(mode: ApiMode, context: kvrpcpb.Context, command: str, keys: Iterable[bytes]) -> str | None:
    """Refuse a request of another API version, and in V2 keys that are not transactional ones.

    A V2 store keeps the data of TiDB for V1 requests: keys that begin with `m` or `t`.
    """
    prefixes, refusal = _allowed(mode, context.api_version, command)
    if refusal or not prefixes:
        return refusal
    for key in keys:
        if key[:1] not in prefixes:
            return f"InvalidKeyMode: {wrong_mode(mode, command)}, key: {key.hex().upper()}"
    return None


def check_txn_range(mode: ApiMode, context: kvrpcpb.Context, command: str, start: bytes, end: bytes) -> str | None:
    """Refuse a request of another API version, and in V2 a range that leaves the transactional keys."""
    prefixes, refusal = _allowed(mode, context.api_version, command)
    if refusal or not prefixes:
        return refusal
    first = start[:1]
    if first in prefixes and (end[:1] == first or end == bytes((first[0] + 1,))):
        return None
    return f"InvalidKeyRangeMode: {wrong_mode(mode, command)}, range: ({start.hex().upper()}, {end.hex().upper()})"


def _allowed(mode: ApiMode, version: int, command: str) -> tuple[tuple[bytes, ...], str | None]:
    """Return the first bytes that keys may have, empty for any; or the refusal of every key."""
    if mode is ApiMode.V1 and not version:
        return (), None
    if mode is ApiMode.V2 and version == kvrpcpb.APIVersion.V2:
        return (_TXN_PREFIX,), None
    if mode is ApiMode.V2 and not version:
        return _TIDB_PREFIXES, None
    return (), f"ApiVersionNotMatched: {version_mismatch(mode, version, command)}"
