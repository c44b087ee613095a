"""The keys inside of what stores answer about transactions: errors, locks and versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from tikv_proto import kvrpcpb

from tikv_region.codec import NULL_KEYSPACE_ID, KeyCodec

M = TypeVar("M", kvrpcpb.KeyError, kvrpcpb.LockInfo, kvrpcpb.MvccInfo)

# Fields of bytes that are keys; any other field of bytes is a value or a tag.
_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "LockInfo": ("primary_lock", "key", "secondaries"),
    "WriteConflict": ("key", "primary"),
    "AlreadyExist": ("key",),
    "Deadlock": ("lock_key", "deadlock_key"),
    "WaitForEntry": ("key",),
    "CommitTsExpired": ("key",),
    "TxnNotFound": ("primary_key",),
    "AssertionFailed": ("key",),
    "TxnLockNotFound": ("key",),
    "LockUpgradeConflict": ("key",),
    "SharedLockLost": ("key",),
    "MvccDebugInfo": ("key",),
    "MvccLock": ("primary", "secondaries"),
}


def decode_keys(message: M, codec: KeyCodec) -> M:
    """Return a copy of a `kvrpcpb.KeyError`, `LockInfo` or `MvccInfo` whose keys are the user's, however deep they lie.

    Such as those of the locks of a shared set, of a deadlock's wait chain and of versions told for debugging. Empty
    keys stay empty. Outside API V2 keys travel as they are and the message itself is returned.

    Raises:
        CodecError: a key lies outside the keyspace.

    Source: client-go internal/apicodec/codec_v2.go.
    """
    if codec.keyspace_id == NULL_KEYSPACE_ID:
        return message
    copy = type(message)()
    copy.CopyFrom(message)
    _decode(copy, codec.decode_key)
    return copy


def _decode(message: Any, decode: Callable[[bytes], bytes]) -> None:
    keys = _KEYS.get(message.DESCRIPTOR.name, ())
    for field, value in message.ListFields():
        if field.name in keys:
            if isinstance(value, bytes):
                setattr(message, field.name, decode(value))
            else:
                value[:] = [decode(key) for key in value]
        elif field.message_type is not None:
            for inner in [value] if hasattr(value, "DESCRIPTOR") else value:
                _decode(inner, decode)
