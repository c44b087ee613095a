"""Removing versions that nobody may read anymore: those below PD's safe point that a newer one replaces.

Of each key the newest PUT up to the safe point stays, and everything newer. Records of locks and rollbacks up to there
go, and a DELETE goes with all that is older. Who reads below the safe point sees nothing reliable afterwards.
Source: TiKV storage/txn/actions/gc.rs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from tikv_embedded.engine import CF_WRITE, Snapshot, WriteBatch
from tikv_embedded.mvcc.keys import decode_key, split_ts
from tikv_embedded.mvcc.modifications import Modifications
from tikv_embedded.mvcc.write import Write, WriteType

BATCH_SIZE = 1000
"""How many versions are removed with one write, or a few more."""


def outdated(writes: Iterable[tuple[int, Write]], safe_point: int) -> list[tuple[int, Write]]:
    """Return which of a key's records, given newest first with their commit timestamps, are garbage."""
    garbage: list[tuple[int, Write]] = []
    is_replaced = False
    for commit_ts, write in writes:
        if commit_ts > safe_point:
            continue
        if is_replaced or write.type is not WriteType.PUT:
            garbage.append((commit_ts, write))
        is_replaced = is_replaced or write.type.is_change
    return garbage


def collect(snapshot: Snapshot, lower: bytes, upper: bytes, safe_point: int) -> Iterator[WriteBatch]:
    """Yield writes that remove the garbage of `[lower, upper)`, both encoded; an empty `upper` is unbounded.

    All versions of one key go with the same write, so that no value comes back without the DELETE above it.
    """
    removed = Modifications()
    records = _records(snapshot, lower, upper)
    for key, versions in itertools.groupby(records, lambda record: record[0]):
        for commit_ts, write in outdated(((ts, write) for _, ts, write in versions), safe_point):
            removed.delete_write(key, commit_ts)
            if write.type is WriteType.PUT and write.short_value is None:
                removed.delete_value(key, write.start_ts)
        if len(removed.batch) >= BATCH_SIZE:
            yield removed.batch
            removed = Modifications()
    if removed.batch:
        yield removed.batch


def _records(snapshot: Snapshot, lower: bytes, upper: bytes) -> Iterator[tuple[bytes, int, Write]]:
    """Yield user key, commit timestamp and record of all versions; what raw requests put between them is left out."""
    for stored, data in snapshot.scan(CF_WRITE, lower, upper):
        encoded, commit_ts = split_ts(stored)
        try:
            yield decode_key(encoded), commit_ts, Write.parse(data)
        except ValueError:
            continue
