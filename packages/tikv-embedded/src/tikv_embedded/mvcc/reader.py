"""Finding the records of a key in a snapshot; all keys are user keys.

Source: TiKV storage/mvcc/reader/reader.rs.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from tikv_embedded.engine import CF_DEFAULT, CF_LOCK, CF_WRITE, Snapshot
from tikv_embedded.mvcc.errors import default_not_found
from tikv_embedded.mvcc.keys import BEHIND_VERSIONS, MAX_TS, append_ts, decode_key, encode_key, split_ts
from tikv_embedded.mvcc.lock import Lock
from tikv_embedded.mvcc.write import NO_CHANGE, Write, WriteType

SEEK_BOUND = 8
"""From so many versions on a reader jumps to the last change; before, stepping is as good."""


@attrs.frozen
class CommitRecord:
    """What the records of a key say about one transaction."""

    write: Write | None = None
    """Its own record: of a commit or a rollback."""
    commit_ts: int = 0
    """Where that lies."""
    is_overlapped_rollback: bool = False
    """It was rolled back, as a flag on the commit of another transaction says."""
    overlapped: tuple[Write, int] | None = None
    """It has no record, and this one of another transaction lies where its rollback belongs; and its gc fence."""

    @property
    def is_rolled_back(self) -> bool:
        """Whether the transaction was rolled back."""
        return self.is_overlapped_rollback or (self.write is not None and self.write.type is WriteType.ROLLBACK)

    @property
    def is_committed(self) -> bool:
        """Whether the transaction was committed, at `commit_ts`."""
        return self.write is not None and self.write.type is not WriteType.ROLLBACK


class MvccReader:
    """Reads records.

    Args:
        snapshot: Where from.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def lock(self, key: bytes) -> Lock | None:
        """Return the lock on `key`, None if there is none."""
        data = self.snapshot.get(CF_LOCK, encode_key(key))
        return None if data is None else Lock.parse(data)

    def writes(self, key: bytes, ts: int = MAX_TS) -> Iterator[tuple[int, Write]]:
        """Yield the records of `key` with their commit timestamps, newest first, those after `ts` left out."""
        encoded = encode_key(key)
        for stored, data in self.snapshot.scan(CF_WRITE, append_ts(encoded, ts), encoded + BEHIND_VERSIONS):
            yield split_ts(stored)[1], Write.parse(data)

    def newest_write(self, key: bytes, ts: int = MAX_TS) -> tuple[int, Write] | None:
        """Return the newest record up to `ts` and its commit timestamp, whatever its type."""
        return next(self.writes(key, ts), None)

    def newest_put(self, key: bytes, ts: int, gc_fence_limit: int) -> tuple[int, Write] | None:
        """Return the PUT that is seen at `ts` and its commit timestamp, None if the key is not there then.

        Args:
            key: Which key.
            ts: When.
            gc_fence_limit: The time to judge gc fences by; that of the reader.
        """
        for commit_ts, write in self.writes(key, ts):
            if write.is_outdated(gc_fence_limit):
                return None
            if write.type.is_change:
                return (commit_ts, write) if write.type is WriteType.PUT else None
            if write.last_change == NO_CHANGE:
                return None
            if write.last_change.versions >= SEEK_BOUND:
                return self._change_at(key, write.last_change.ts, gc_fence_limit)
        return None

    def commit_record(self, key: bytes, start_ts: int) -> CommitRecord:
        """Return what `key` tells about the transaction that started at `start_ts`."""
        gc_fence = 0
        for commit_ts, write in self.writes(key):
            if write.start_ts == start_ts:
                return CommitRecord(write, commit_ts)
            if commit_ts == start_ts:
                if write.has_overlapped_rollback:
                    return CommitRecord(is_overlapped_rollback=True, commit_ts=commit_ts)
                return CommitRecord(overlapped=(write, gc_fence))
            if commit_ts < start_ts:
                break
            if write.type.is_change:
                gc_fence = commit_ts
        return CommitRecord()

    def value(self, key: bytes, record: Write | Lock) -> bytes:
        """Return the value that a PUT, committed or not, carries.

        Raises:
            MvccError: it should be in `default` and is not.
        """
        if record.short_value is not None:
            return record.short_value
        found = self.snapshot.get(CF_DEFAULT, append_ts(encode_key(key), record.start_ts))
        if found is None:
            raise default_not_found(key, record.start_ts)
        return found

    def values(self, key: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the long values of `key` with their start timestamps, newest first."""
        encoded = encode_key(key)
        for stored, value in self.snapshot.scan(CF_DEFAULT, append_ts(encoded, MAX_TS), encoded + BEHIND_VERSIONS):
            yield split_ts(stored)[1], value

    def locks(self, lower: bytes, upper: bytes) -> Iterator[tuple[bytes, Lock]]:
        """Yield the locks of `[lower, upper)`, both encoded, with their user keys, ascending.

        Pairs that raw requests put into the column family are left out.
        """
        for encoded, data in self.snapshot.scan(CF_LOCK, lower, upper):
            try:
                yield decode_key(encoded), Lock.parse(data)
            except ValueError:
                continue

    def _change_at(self, key: bytes, commit_ts: int, gc_fence_limit: int) -> tuple[int, Write] | None:
        data = self.snapshot.get(CF_WRITE, append_ts(encode_key(key), commit_ts))
        write = None if data is None else Write.parse(data)
        if write is None or write.type is not WriteType.PUT or write.is_outdated(gc_fence_limit):
            return None
        return commit_ts, write
