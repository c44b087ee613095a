"""The durable engine: RocksDB's column families through rocksdict.

rocksdict 0.3.29 answers wrongly in two places, so this module is the only one that touches it: an iterator of its
`Snapshot` reads live data, and `ReadOptions.set_iterate_lower_bound` sets the upper bound. Here a view is an iterator,
which RocksDB pins to the moment it was created, and bounds are compared by hand.

A snapshot costs nothing until somebody writes. Only then, before the write, each open snapshot creates its iterators,
one per column family; as nothing was written since the snapshot was taken they show its moment, and the same one in all
of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import rocksdict

from tikv_embedded.engine.data_directory import DataDirectory
from tikv_embedded.engine.write_batch import COLUMN_FAMILIES, DELETE, PUT, WriteBatch
from tikv_embedded.errors import DataDirectoryError


class RocksEngine:
    """An `Engine` that keeps its data in a directory; see the protocol for what its methods promise.

    Raises `DataDirectoryError` if the directory is in use, foreign, of a newer version or unusable.
    """

    def __init__(self, path: str | Path, *, sync: bool = True) -> None:
        """Open the directory `path`, which is created if missing.

        Args:
            path: The data directory; one engine at a time may hold it.
            sync: Whether `write` waits for the disk. Without it a killed process still loses nothing, but a machine
                that loses power may lose the last writes.
        """
        directory = DataDirectory(Path(path))
        try:
            self._db = rocksdict.Rdict(
                str(directory.database), _options(), {cf: rocksdict.Options(raw_mode=True) for cf in COLUMN_FAMILIES}
            )
        except Exception as error:  # rocksdict raises no narrower type.
            directory.close()
            raise DataDirectoryError(f"data directory {directory.path} cannot be opened: {error}") from error
        self._directory = directory
        self._tables = {cf: self._db.get_column_family(cf) for cf in COLUMN_FAMILIES}
        self._handles = {cf: self._db.get_column_family_handle(cf) for cf in COLUMN_FAMILIES}
        self._write_options = rocksdict.WriteOptions()
        self._write_options.sync = sync
        self._open: set[RocksSnapshot] = set()
        self._closed = False

    def snapshot(self) -> RocksSnapshot:
        """Return a view of this moment over all column families; O(1)."""
        self._check_open()
        snapshot = RocksSnapshot(self)
        self._open.add(snapshot)
        return snapshot

    def get(self, cf: str, key: bytes) -> bytes | None:
        """Return the newest value of `key`, or None if it is not there."""
        self._check_open()
        value: bytes | None = self._tables[cf].get(key)
        return value

    def write(self, batch: WriteBatch) -> None:
        """Apply `batch` atomically; with `sync` it is on the disk when this returns."""
        self._check_open()
        native = rocksdict.WriteBatch(raw_mode=True)
        largest: dict[str, bytes] = {}
        for kind, cf, key, value in batch:
            handle = self._handles[cf]
            if kind == PUT:
                native.put(key, value, handle)
                largest[cf] = max(largest.get(cf, b""), key)
            elif kind == DELETE:
                native.delete(key, handle)
            else:
                # RocksDB has no unbounded range deletion: end behind the last key, of the table or of this batch.
                upper = value or max(self._last_key(cf), largest.get(cf, b"")) + b"\0"
                if key < upper:
                    native.delete_range(key, upper, handle)
        for snapshot in self._open:
            snapshot._pin()
        self._db.write(native, self._write_options)

    def close(self) -> None:
        """Close every snapshot and the database; another engine may then open the directory."""
        if self._closed:
            return
        self._closed = True
        for snapshot in list(self._open):
            snapshot.close()
        # RocksDB releases its lock only when the last reference to any part of the database is gone.
        self._handles.clear()
        for table in self._tables.values():
            table.close()
        self._tables.clear()
        self._db.close()
        self._directory.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the engine is closed")

    def _last_key(self, cf: str) -> bytes:
        """Return the greatest key of the column family, b"" if it has none."""
        pair = _Cursor(self._tables[cf].iter()).seek_below(None, b"")
        return b"" if pair is None else pair[0]


class _Cursor:
    """One RocksDB iterator, pinned to the moment of its creation and shared by all reads of a snapshot.

    No reader keeps the iterator itself: a scan that is never finished must not hold the database open.
    """

    __slots__ = ("_iterator", "_user")

    def __init__(self, iterator: rocksdict.RdictIter) -> None:
        self._iterator: rocksdict.RdictIter | None = iterator
        self._user: object = None
        """Who moved the iterator last; anybody else must seek before reading on."""

    def seek(self, user: object, lower: bytes) -> tuple[bytes, bytes] | None:
        """Return the first pair at or behind `lower`."""
        iterator = self._take(user)
        iterator.seek(lower)
        return _pair(iterator)

    def seek_below(self, user: object, upper: bytes) -> tuple[bytes, bytes] | None:
        """Return the last pair below `upper`, empty = the last of all."""
        iterator = self._take(user)
        if not upper:
            iterator.seek_to_last()
            return _pair(iterator)
        iterator.seek_for_prev(upper)
        pair = _pair(iterator)
        if pair is not None and pair[0] == upper:
            iterator.prev()
            pair = _pair(iterator)
        return pair

    def step(self, user: object, key: bytes, *, reverse: bool) -> tuple[bytes, bytes] | None:
        """Return the pair after `key`, which `user` got from this cursor before."""
        moved = self._user is not user
        iterator = self._take(user)
        if moved:
            iterator.seek(key)
        if reverse:
            iterator.prev()
        else:
            iterator.next()
        return _pair(iterator)

    def close(self) -> None:
        """Drop the iterator; reading on raises `RuntimeError`."""
        self._iterator = None

    def _take(self, user: object) -> rocksdict.RdictIter:
        if self._iterator is None:
            raise RuntimeError("the snapshot or its engine is closed")
        self._user = user
        return self._iterator


class RocksSnapshot:
    """A `Snapshot` of a `RocksEngine`."""

    __slots__ = ("_closed", "_cursors", "_engine", "_pinned")

    def __init__(self, engine: RocksEngine) -> None:
        self._engine = engine
        self._cursors: dict[str, _Cursor] = {}
        self._pinned = False
        self._closed = False

    def get(self, cf: str, key: bytes) -> bytes | None:
        """Return the value of `key` at the time of the snapshot, or None."""
        if not self._pinned:
            self._check_open()
            value: bytes | None = self._engine._tables[cf].get(key)
            return value
        pair = self._cursor(cf).seek(None, key)
        return pair[1] if pair is not None and pair[0] == key else None

    def multi_get(self, cf: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return one value or None per key, in the order of `keys`."""
        if self._pinned:
            return [self.get(cf, key) for key in keys]
        self._check_open()
        return cast("list[bytes | None]", self._engine._tables[cf].get(list(keys)))

    def scan(self, cf: str, lower: bytes, upper: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs of `[lower, upper)`, ascending or, with `reverse`, descending."""
        cursor = self._cursor(cf)
        me = object()
        pair = cursor.seek_below(me, upper) if reverse else cursor.seek(me, lower)
        while pair is not None:
            key = pair[0]
            if key < lower if reverse else upper and key >= upper:
                return
            yield pair
            pair = cursor.step(me, key, reverse=reverse)

    def close(self) -> None:
        """Let go of the view, and of the files RocksDB keeps for it."""
        self._closed = True
        self._engine._open.discard(self)
        for cursor in self._cursors.values():
            cursor.close()
        self._cursors.clear()
        self._pinned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the snapshot or its engine is closed")

    def _pin(self) -> None:
        """Create the iterators that are missing, before the first write after the snapshot was taken."""
        if not self._pinned:
            for cf in COLUMN_FAMILIES:
                self._cursor(cf)
            self._pinned = True

    def _cursor(self, cf: str) -> _Cursor:
        """Return the snapshot's cursor of `cf`; while nothing was written, a new one shows the snapshot's moment."""
        self._check_open()
        cursor = self._cursors.get(cf)
        if cursor is None:
            cursor = self._cursors[cf] = _Cursor(self._engine._tables[cf].iter())
        return cursor


def _options() -> rocksdict.Options:
    """RocksDB's defaults, creating what is missing and keeping few log files."""
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_keep_log_file_num(2)
    return options


def _pair(iterator: rocksdict.RdictIter) -> tuple[bytes, bytes] | None:
    """Return the pair the iterator stands on, None at the end; raise what stopped it if that was no end."""
    if not iterator.valid():
        iterator.status()
        return None
    return iterator.key(), iterator.value()
