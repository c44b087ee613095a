"""What a snapshot has read already."""

from __future__ import annotations

from typing import Final

from tikv_txn.versioned import Versioned

_ENTRY_BYTES: Final = 200
"""Bytes an entry takes besides its key and value, about."""


class ReadCache:
    """Values by key, as they are at one timestamp, and keys that have none. The first are forgotten first.

    Args:
        max_bytes: What they may take in all, about.
    """

    def __init__(self, max_bytes: int) -> None:
        self.size = 0
        """Bytes they take, about."""
        self._max_bytes = max_bytes
        self._entries: dict[bytes, Versioned | None] = {}

    def get(self, key: bytes, *, need_commit_ts: bool = False) -> tuple[Versioned | None] | None:
        """Return what is known of a key, in a tuple; None when nothing is.

        Args:
            key: The key.
            need_commit_ts: Whether a value is of no use without its commit timestamp.
        """
        if key not in self._entries:
            return None
        entry = self._entries[key]
        if need_commit_ts and entry is not None and not entry.commit_ts:
            return None
        return (entry,)

    def put(self, key: bytes, entry: Versioned | None) -> None:
        """Remember what was read; a commit timestamp of 0 is one that is not known."""
        known = self._entries.get(key)
        if key in self._entries:
            if known is None or known.commit_ts or entry is None or not entry.commit_ts:
                return
            self._forget(key)
        self._entries[key] = entry
        self.size += _cost(key, entry)
        while self.size > self._max_bytes:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: bytes) -> None:
        self.size -= _cost(key, self._entries.pop(key))


def _cost(key: bytes, entry: Versioned | None) -> int:
    return _ENTRY_BYTES + len(key) + (0 if entry is None else len(entry.value))
