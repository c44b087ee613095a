"""What a transaction sees: values as of its timestamp, and the locks that keep it from knowing.

Source: TiKV storage/mvcc/reader/point_getter.rs, scanner/; txn_types lock.rs check_ts_conflict.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import attrs
from tikv_proto import kvrpcpb

from tikv_embedded.engine import CF_LOCK, CF_WRITE
from tikv_embedded.mvcc.errors import MvccError, key_is_locked, write_conflict
from tikv_embedded.mvcc.keys import MAX_TS, TS_SIZE, append_ts, decode_key, encode_key
from tikv_embedded.mvcc.lock import Lock, LockType
from tikv_embedded.mvcc.reader import MvccReader

_SI = kvrpcpb.IsolationLevel.SI
_RC = kvrpcpb.IsolationLevel.RC
_RC_CHECK_TS = kvrpcpb.IsolationLevel.RCCheckTS


@attrs.frozen
class ReadView:
    """As which transaction to read."""

    ts: int
    """What was committed up to here is seen."""
    isolation: kvrpcpb.IsolationLevel.ValueType = _SI
    """SI waits for locks, RC overlooks them, RCCheckTS refuses to be older than anything it meets."""
    bypassed: frozenset[int] = frozenset()
    """Starts of transactions that are known to be rolled back or to commit later."""
    accessed: frozenset[int] = frozenset()
    """Starts of transactions that are known to be committed before; what they locked is read."""

    @classmethod
    def of(cls, context: kvrpcpb.Context, ts: int) -> ReadView:
        """Return the view that a request asks for."""
        return cls(ts, context.isolation_level, frozenset(context.resolved_locks), frozenset(context.committed_locks))


class SeenValue(NamedTuple):
    """A value, and when it was committed; 0 when that is not known."""

    value: bytes
    commit_ts: int


def read_key(
    reader: MvccReader, view: ReadView, key: bytes, *, needs_commit_ts: bool = False, key_only: bool = False
) -> SeenValue | None:
    """Return what `view` sees of `key`, None if it is not there.

    Args:
        reader: Where from.
        view: As which transaction.
        key: A user key.
        needs_commit_ts: A value that is only locked yet does not do.
        key_only: Whether it is there is all that matters; the value is empty.

    Raises:
        MvccError: a lock is in the way, or RCCheckTS met something newer.
    """
    lock = None if view.isolation == _RC else reader.lock(key)
    error = None if lock is None else lock_conflict(lock, key, view)
    if lock is not None and error is not None:
        if needs_commit_ts or lock.start_ts not in view.accessed:
            raise error
        if lock.type is LockType.DELETE:
            return None
        return SeenValue(b"" if key_only else reader.value(key, lock), 0)
    if view.isolation == _RC_CHECK_TS:
        _refuse_newer(reader, view, key)
    found = reader.newest_put(key, view.ts, view.ts)
    if found is None:
        return None
    commit_ts, write = found
    return SeenValue(b"" if key_only else reader.value(key, write), commit_ts)


def scan_keys(
    reader: MvccReader, view: ReadView, lower: bytes, upper: bytes, *, reverse: bool, key_only: bool
) -> Iterator[tuple[bytes, SeenValue | MvccError]]:
    """Yield the user keys of `[lower, upper)`, both encoded, that are there, with what `view` sees of them.

    A lock in the way takes the place of the value, and the scan goes on.

    Raises:
        MvccError: RCCheckTS met something newer.
    """
    for encoded in _touched_keys(reader, view, lower, upper, reverse=reverse):
        key = decode_key(encoded)
        try:
            found = read_key(reader, view, key, key_only=key_only)
        except MvccError as error:
            if not error.is_locked:
                raise
            yield key, error
            continue
        if found is not None:
            yield key, found


def lock_conflict(lock: Lock, key: bytes, view: ReadView) -> MvccError | None:
    """Return why `view` cannot pass the lock on `key`, None if it can."""
    if lock.type in (LockType.LOCK, LockType.PESSIMISTIC) or lock.start_ts in view.bypassed:
        return None
    if view.isolation == _RC_CHECK_TS:
        return write_conflict(
            kvrpcpb.WriteConflict(
                start_ts=view.ts,
                conflict_ts=lock.start_ts,
                key=key,
                primary=lock.primary,
                reason=kvrpcpb.WriteConflict.Reason.RcCheckTs,
            )
        )
    if lock.start_ts > view.ts or lock.min_commit_ts > view.ts:
        return None
    # Whether the transaction is committed is decided on its primary key alone: as long as there is a lock on it, the
    # newest committed value is the one before. With async commit the lock may be as good as a commit.
    if view.ts == MAX_TS and key == lock.primary and not lock.use_async_commit:
        return None
    return key_is_locked(lock.to_info(key))


def _refuse_newer(reader: MvccReader, view: ReadView, key: bytes) -> None:
    newest = reader.newest_write(key)
    if newest is not None and newest[0] > view.ts:
        raise write_conflict(
            kvrpcpb.WriteConflict(
                start_ts=view.ts,
                conflict_commit_ts=newest[0],
                # TiKV gives the engine's key here, with its version.
                key=append_ts(encode_key(key), newest[0]),
                reason=kvrpcpb.WriteConflict.Reason.RcCheckTs,
            )
        )


def _touched_keys(reader: MvccReader, view: ReadView, lower: bytes, upper: bytes, *, reverse: bool) -> Iterator[bytes]:
    """Yield every encoded key that has records or a lock, once."""
    scan = reader.snapshot.scan
    keys: Iterator[bytes] = (stored[:-TS_SIZE] for stored, _ in scan(CF_WRITE, lower, upper, reverse=reverse))
    if view.isolation != _RC:
        locked = (encoded for encoded, _ in scan(CF_LOCK, lower, upper, reverse=reverse))
        keys = heapq.merge(keys, locked, reverse=reverse)
    return (encoded for encoded, _ in itertools.groupby(keys))
