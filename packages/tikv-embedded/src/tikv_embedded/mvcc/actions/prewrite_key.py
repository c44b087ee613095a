"""What KvPrewrite does to one key. Source: TiKV storage/txn/actions/prewrite.rs."""

from __future__ import annotations

import enum

import attrs
from tikv_proto import kvrpcpb

from tikv_embedded.mvcc.errors import (
    MvccError,
    already_exist,
    assertion_failed,
    key_is_locked,
    lock_type_not_match,
    write_conflict,
)
from tikv_embedded.mvcc.keys import MAX_TS
from tikv_embedded.mvcc.lock import Lock, LockType
from tikv_embedded.mvcc.max_ts import MaxTs
from tikv_embedded.mvcc.reader import MvccReader
from tikv_embedded.mvcc.write import (
    NO_CHANGE,
    SHORT_VALUE_MAX_SIZE,
    UNKNOWN_CHANGE,
    LastChange,
    Write,
    WriteType,
)

_LOCK_TYPES = {
    kvrpcpb.Op.Put: LockType.PUT,
    kvrpcpb.Op.Insert: LockType.PUT,
    kvrpcpb.Op.Del: LockType.DELETE,
    kvrpcpb.Op.Lock: LockType.LOCK,
}


class CommitKind(enum.Enum):
    """How a transaction means to commit."""

    TWO_PC = enum.auto()
    ASYNC = enum.auto()
    ONE_PC = enum.auto()


@attrs.frozen(kw_only=True)
class TxnProperties:
    """What all keys of a request have in common."""

    start_ts: int
    primary: bytes
    lock_ttl: int
    txn_size: int
    min_commit_ts: int
    max_commit_ts: int
    """0 = any."""
    kind: CommitKind
    secondaries: tuple[bytes, ...] | None
    """None unless locks shall be those of an async commit, which 1PC asks for as well in case that it fails."""
    is_checked: bool
    """Whether to look for newer records."""
    assertion_level: kvrpcpb.AssertionLevel.ValueType
    txn_source: int


@attrs.frozen
class Prewritten:
    """What one key needs."""

    min_commit_ts: int = 0
    """The earliest commit if the transaction times itself; 0 is none, and the transaction cannot."""
    lock: Lock | None = None
    """To be written; None for a key that is only checked, or locked already."""
    long_value: bytes | None = None
    """To be written to `default`."""


class CommitTsTooLargeError(Exception):
    """The transaction cannot time its own commit.

    Attributes:
        prewritten: What the key needs for plain two-phase commit.
    """

    def __init__(self, prewritten: Prewritten) -> None:
        super().__init__()
        self.prewritten = prewritten


class KeyPrewrite:
    """Decides on one mutation.

    Args:
        reader: The data.
        max_ts: Of the store.
        properties: Of the transaction.
        mutation: Put, Del, Lock, Insert or CheckNotExists.
    """

    def __init__(
        self, reader: MvccReader, max_ts: MaxTs, properties: TxnProperties, mutation: kvrpcpb.Mutation
    ) -> None:
        self._reader = reader
        self._max_ts = max_ts
        self._properties = properties
        self._op = mutation.op
        self._key = mutation.key
        self._value = mutation.value
        self._assertion = mutation.assertion
        self._last_change = UNKNOWN_CHANGE

    def run(self) -> Prewritten:
        """Return what the key needs.

        Raises:
            MvccError: the key cannot be locked.
            CommitTsTooLargeError: the transaction must fall back.
        """
        properties = self._properties
        if self._must_not_exist:
            self._max_ts.observe(properties.start_ts)
        lock = self._reader.lock(self._key)
        if lock is not None:
            return self._own_lock(lock)
        is_loaded, newest = properties.is_checked, None
        if is_loaded:
            newest = self._newest_checked()
        self._check_assertion(newest, is_loaded=is_loaded)
        if self._op == kvrpcpb.Op.CheckNotExists:
            is_timed = properties.kind is not CommitKind.TWO_PC
            return Prewritten(max(properties.min_commit_ts, properties.start_ts + 1) if is_timed else 0)
        return self._new_lock()

    @property
    def _must_not_exist(self) -> bool:
        return self._op in (kvrpcpb.Op.Insert, kvrpcpb.Op.CheckNotExists)

    def _own_lock(self, lock: Lock) -> Prewritten:
        """Accept a lock of the same transaction that was written by the same request before."""
        if lock.start_ts != self._properties.start_ts:
            raise key_is_locked(lock.to_info(self._key))
        if lock.is_pessimistic:
            raise lock_type_not_match(self._key, lock.start_ts)
        return Prewritten(lock.min_commit_ts if lock.use_async_commit else 0)

    def _newest_checked(self) -> tuple[int, Write] | None:
        """Return the newest record and its commit timestamp, unless it forbids to lock the key."""
        start_ts = self._properties.start_ts
        newest = self._reader.newest_write(self._key)
        if newest is None:
            self._last_change = NO_CHANGE
            return None
        commit_ts, write = newest
        if commit_ts == start_ts and (write.type is WriteType.ROLLBACK or write.has_overlapped_rollback):
            raise self._conflict(newest, kvrpcpb.WriteConflict.Reason.SelfRolledBack)
        self._last_change = self._change_before(commit_ts, write)
        if commit_ts > start_ts:
            raise self._conflict(newest, kvrpcpb.WriteConflict.Reason.Optimistic)
        if self._must_not_exist and self._exists(commit_ts, write):
            raise already_exist(self._key)
        return newest

    def _exists(self, commit_ts: int, newest: Write) -> bool:
        if newest.type is WriteType.DELETE or newest.gc_fence:
            return False
        return newest.type is WriteType.PUT or (
            self._reader.newest_put(self._key, commit_ts - 1, self._properties.start_ts) is not None
        )

    def _change_before(self, commit_ts: int, newest: Write) -> LastChange:
        """Return where the last change of the key is, as seen from a record in front of `newest`."""
        if newest.type.is_change:
            return LastChange(commit_ts, 1)
        if newest.last_change == NO_CHANGE:
            return NO_CHANGE
        if newest.last_change != UNKNOWN_CHANGE:
            return LastChange(newest.last_change.ts, newest.last_change.versions + 1)
        found = self._reader.newest_put(self._key, commit_ts, self._properties.start_ts)
        if found is None:
            return NO_CHANGE
        skipped = sum(1 for ts, _ in self._reader.writes(self._key, commit_ts) if ts > found[0])
        return LastChange(found[0], skipped + 1)

    def _check_assertion(self, newest: tuple[int, Write] | None, *, is_loaded: bool) -> None:
        level = self._properties.assertion_level
        if not self._assertion or level == kvrpcpb.AssertionLevel.Off:
            return
        if level != kvrpcpb.AssertionLevel.Strict and not is_loaded:
            return
        if is_loaded and newest is not None and newest[1].gc_fence:
            newest = None
        if not is_loaded or (newest is not None and not newest[1].type.is_change):
            reload_ts = MAX_TS if newest is None else newest[0]
            newest = self._reader.newest_put(self._key, reload_ts, self._properties.start_ts)
        error = self._failed_assertion(newest)
        if error is not None:
            if not self._properties.is_checked:
                self._newest_checked()
            raise error

    def _failed_assertion(self, newest: tuple[int, Write] | None) -> MvccError | None:
        is_there = newest is not None and newest[1].type is WriteType.PUT
        if is_there is (self._assertion == kvrpcpb.Assertion.Exist):
            return None
        existing = (0, 0) if newest is None else (newest[1].start_ts, newest[0])
        return assertion_failed(self._key, self._properties.start_ts, self._assertion, existing)

    def _new_lock(self) -> Prewritten:
        properties, is_long = self._properties, len(self._value) > SHORT_VALUE_MAX_SIZE
        lock_type = _LOCK_TYPES[self._op]
        is_put = lock_type is LockType.PUT
        lock = Lock(
            lock_type,
            properties.primary,
            properties.start_ts,
            properties.lock_ttl,
            short_value=self._value if is_put and not is_long else None,
            txn_size=properties.txn_size,
            min_commit_ts=properties.min_commit_ts,
            last_change=self._last_change if lock_type is LockType.LOCK else UNKNOWN_CHANGE,
            txn_source=properties.txn_source,
        )
        long_value = self._value if is_put and is_long else None
        if properties.secondaries is None and properties.kind is CommitKind.TWO_PC:
            return Prewritten(0, lock, long_value)
        min_commit_ts = max(max(self._max_ts.value, properties.start_ts) + 1, properties.min_commit_ts)
        if properties.max_commit_ts and min_commit_ts > properties.max_commit_ts:
            raise CommitTsTooLargeError(Prewritten(0, lock, long_value))
        lock = attrs.evolve(lock, min_commit_ts=min_commit_ts)
        if properties.secondaries is not None:
            secondaries = properties.secondaries if self._key == properties.primary else ()
            lock = attrs.evolve(lock, use_async_commit=True, secondaries=secondaries)
        return Prewritten(min_commit_ts, lock, long_value)

    def _conflict(self, newest: tuple[int, Write], reason: kvrpcpb.WriteConflict.Reason.ValueType) -> MvccError:
        commit_ts, write = newest
        return write_conflict(
            kvrpcpb.WriteConflict(
                start_ts=self._properties.start_ts,
                conflict_ts=write.start_ts,
                conflict_commit_ts=commit_ts,
                key=self._key,
                primary=self._properties.primary,
                reason=reason,
            )
        )
