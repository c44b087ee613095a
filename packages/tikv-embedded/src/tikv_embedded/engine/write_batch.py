"""What a storage engine is asked to write: the column families and the atomic batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

CF_DEFAULT: Final = "default"
"""Raw pairs and the long values of transactions."""
CF_LOCK: Final = "lock"
"""Locks of transactions that are under way; raw requests may name it too."""
CF_WRITE: Final = "write"
"""Commit records of transactions; raw requests may name it too."""
CF_META: Final = "meta"
"""The cluster's own metadata: stores, Regions, TSO, keyspaces. No request reaches it."""
COLUMN_FAMILIES: Final = (CF_DEFAULT, CF_LOCK, CF_WRITE, CF_META)
"""Every column family an engine has, from its first open on."""

PUT: Final = 0
"""Operation kind: set a key to a value."""
DELETE: Final = 1
"""Operation kind: remove a key, present or not."""
DELETE_RANGE: Final = 2
"""Operation kind: remove every key of `[lower, upper)`."""

Operation: TypeAlias = tuple[int, str, bytes, bytes]
"""`(PUT, cf, key, value)`, `(DELETE, cf, key, b"")` or `(DELETE_RANGE, cf, lower, upper)`."""


class WriteBatch:
    """Writes that become visible and durable together or not at all, in the order they were added.

    A later operation wins over an earlier one on the same key. False when it holds nothing; iterating gives its
    `Operation` tuples. `Engine.write` does not change the batch: it may be written again.
    """

    __slots__ = ("_operations",)

    def __init__(self) -> None:
        self._operations: list[Operation] = []

    def put(self, cf: str, key: bytes, value: bytes) -> None:
        """Set `key` to `value`; both may be empty and of any length."""
        self._operations.append((PUT, cf, key, value))

    def delete(self, cf: str, key: bytes) -> None:
        """Remove `key`; one that is not there is fine."""
        self._operations.append((DELETE, cf, key, b""))

    def delete_range(self, cf: str, lower: bytes, upper: bytes) -> None:
        """Remove every key of `[lower, upper)`; an empty `upper` is unbounded, an inverted range removes nothing."""
        self._operations.append((DELETE_RANGE, cf, lower, upper))

    def extend(self, other: WriteBatch) -> None:
        """Append the operations of `other`, so that one durable write carries both."""
        self._operations.extend(other._operations)

    def __bool__(self) -> bool:
        return bool(self._operations)

    def __len__(self) -> int:
        return len(self._operations)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._operations)
