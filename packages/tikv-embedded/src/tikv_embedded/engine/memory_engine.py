"""The engine that lives in memory: one sorted map per column family.

A snapshot costs nothing until somebody writes. Then the write first saves the old value of each key it is about to
change into every open snapshot that has none for it yet; the snapshot reads those before the live map. The server
takes a snapshot per request and closes it in the same step of its loop, so as a rule none is open when a write happens.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self, TypeAlias

from sortedcontainers import SortedDict

from tikv_embedded.engine.write_batch import COLUMN_FAMILIES, DELETE_RANGE, PUT, WriteBatch

_Table: TypeAlias = "SortedDict[bytes, bytes]"
_Saved: TypeAlias = "SortedDict[bytes, bytes | None]"


class _Closed(dict[str, Any]):
    """Stands in for the tables of a closed object, so that open ones pay for no check."""

    def __missing__(self, cf: str) -> NoReturn:
        raise RuntimeError("the snapshot or its engine is closed")


_CLOSED = _Closed()


class MemoryEngine:
    """An `Engine` without durability; see the protocol for what its methods promise."""

    def __init__(self) -> None:
        self._tables: dict[str, _Table] = {cf: SortedDict() for cf in COLUMN_FAMILIES}
        self._open: set[MemorySnapshot] = set()
        self._writes = 0

    def snapshot(self) -> MemorySnapshot:
        """Return a view of this moment over all column families; O(1)."""
        snapshot = MemorySnapshot(self, self._tables)
        self._open.add(snapshot)
        return snapshot

    def get(self, cf: str, key: bytes) -> bytes | None:
        """Return the newest value of `key`, or None if it is not there."""
        return self._tables[cf].get(key)

    def write(self, batch: WriteBatch) -> None:
        """Apply `batch` at once: no reader runs in between."""
        tables = self._tables
        for _, cf, _, _ in batch:
            tables[cf]  # An unknown column family must fail before anything is changed.
        self._writes += 1
        snapshots = self._open
        for kind, cf, key, value in batch:
            table = tables[cf]
            changed = list(table.irange(key, value or None, (True, False))) if kind == DELETE_RANGE else (key,)
            for snapshot in snapshots:
                snapshot._save(cf, changed)
            if kind == PUT:
                table[key] = value
            else:
                for each in changed:
                    table.pop(each, None)

    def close(self) -> None:
        """Forget everything, and close every snapshot."""
        for snapshot in list(self._open):
            snapshot.close()
        self._tables = _CLOSED


class MemorySnapshot:
    """A `Snapshot` of a `MemoryEngine`."""

    __slots__ = ("_engine", "_saved", "_tables")

    def __init__(self, engine: MemoryEngine, tables: dict[str, _Table]) -> None:
        self._engine = engine
        self._tables = tables
        self._saved: dict[str, _Saved] | None = None  # None, not {}: reads test it on their hot path.

    def get(self, cf: str, key: bytes) -> bytes | None:
        """Return the value of `key` at the time of the snapshot, or None."""
        if self._saved is not None:
            saved = self._saved.get(cf)
            if saved is not None and key in saved:
                return saved[key]
        return self._tables[cf].get(key)

    def multi_get(self, cf: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return one value or None per key, in the order of `keys`."""
        if self._saved is not None:
            return [self.get(cf, key) for key in keys]
        get = self._tables[cf].get
        return [get(key) for key in keys]

    def scan(self, cf: str, lower: bytes, upper: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs of `[lower, upper)`, ascending or, with `reverse`, descending."""
        low: bytes = lower
        high: bytes | None = upper or None
        inclusive = (True, False)
        while high is None or low < high:
            writes = self._engine._writes
            restart = False
            for key in self._keys(cf, low, high, inclusive, reverse=reverse):
                value = self.get(cf, key)
                if value is None:
                    continue
                yield key, value
                if self._engine._writes != writes or self._tables is _CLOSED:
                    # A sorted map must not change under its iterator: begin again behind the last key.
                    if reverse:
                        high = key
                    else:
                        low, inclusive = key, (False, False)
                    restart = True
                    break
            if not restart:
                return

    def close(self) -> None:
        """Let go of the view."""
        self._engine._open.discard(self)
        self._tables = _CLOSED
        self._saved = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _save(self, cf: str, keys: Sequence[bytes]) -> None:
        """Keep the present values of `keys`, which are about to change, unless older ones are kept already."""
        if self._saved is None:
            self._saved = {}
        saved = self._saved.get(cf)
        if saved is None:
            saved = self._saved[cf] = SortedDict()
        get = self._tables[cf].get
        for key in keys:
            if key not in saved:
                saved[key] = get(key)

    def _keys(
        self, cf: str, low: bytes, high: bytes | None, inclusive: tuple[bool, bool], *, reverse: bool
    ) -> Iterator[bytes]:
        """Merge the live keys with those only the snapshot still has."""
        live = self._tables[cf].irange(low, high, inclusive, reverse)
        if self._saved is None or cf not in self._saved:
            return live
        saved = self._saved[cf].irange(low, high, inclusive, reverse)
        merged = heapq.merge(live, saved, reverse=reverse)
        return (key for key, _ in itertools.groupby(merged))
