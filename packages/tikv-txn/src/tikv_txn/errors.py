"""Errors of transactions; everything else comes from the layers below.

`UndeterminedError` of tikv_pd inherits from none of them: nobody knows whether that transaction committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Final

import attrs
from tikv_pd import ConfigError, TikvError
from tikv_proto import kvrpcpb
from tikv_region import CodecError, KeyCodec
from tikv_region.redaction import shorten


@attrs.define(eq=False)
class WriteConflict(TikvError):
    """Another transaction wrote a key after this one had started. Nothing was committed; run it again from the start.

    Source: kvrpcpb.WriteConflict.
    """

    retryable: ClassVar[bool] = True

    key: bytes
    """The key."""
    primary: bytes
    """Primary key of the other transaction; empty when the store does not say."""
    start_ts: int
    """When this transaction started."""
    conflict_ts: int
    """When the other one started."""
    conflict_commit_ts: int
    """When it committed; 0 when it has not, or rolled back."""
    reason: str
    """kvrpcpb.WriteConflict.Reason by name: `Optimistic`, or `SelfRolledBack` when others rolled this one back."""

    def __str__(self) -> str:
        if self.reason == "SelfRolledBack":
            return f"the transaction of {self.start_ts} was rolled back by others at key {shorten(self.key)}"
        committed = f"committed at {self.conflict_commit_ts}" if self.conflict_commit_ts else "has not committed"
        return (
            f"key {shorten(self.key)} was written since {self.start_ts} by the transaction of {self.conflict_ts},"
            f" which {committed} ({self.reason})"
        )


@attrs.define(eq=False)
class AlreadyExists(TikvError):
    """A key that was inserted exists already. Nothing was committed. Source: kvrpcpb.AlreadyExist."""

    key: bytes
    """The key."""

    def __str__(self) -> str:
        return f"key {shorten(self.key)} exists already"


@attrs.define(eq=False)
class KeyLocked(TikvError):
    """A lock of another transaction outlived the call. Nothing was committed by it. Source: kvrpcpb.LockInfo."""

    retryable: ClassVar[bool] = True

    key: bytes
    """The locked key."""
    primary: bytes
    """Primary key of the lock's transaction."""
    lock_ts: int
    """When that transaction started."""
    lock_ttl: float
    """Seconds after `lock_ts` for which the lock protects it, unless it is kept alive."""

    def __str__(self) -> str:
        return f"key {shorten(self.key)} is locked by the transaction of {self.lock_ts} for {self.lock_ttl:g} s"


@attrs.define(eq=False)
class AssertionFailed(TikvError):
    """What the transaction asserted about a key is not so. Nothing was committed. Source: kvrpcpb.AssertionFailed."""

    key: bytes
    """The key."""
    start_ts: int
    """When the transaction started."""
    should_exist: bool
    """Whether the key was said to exist."""
    existing_start_ts: int
    """When the transaction started that wrote what was found; 0 when nothing was."""
    existing_commit_ts: int
    """When it committed; 0 when nothing was found."""

    def __str__(self) -> str:
        said = "exists" if self.should_exist else "does not exist"
        found = f"it was written at {self.existing_commit_ts}" if self.existing_commit_ts else "there is nothing"
        return f"the transaction of {self.start_ts} asserts that key {shorten(self.key)} {said}; {found}"


@attrs.define(eq=False)
class TransactionAborted(TikvError):
    """The transaction was rolled back by others, or a store asks to run it again. Nothing was committed.

    Others roll a transaction back when its locks were not kept alive, as after a pause of the process.
    Source: kvrpcpb.KeyError.txn_lock_not_found and .retryable.
    """

    retryable: ClassVar[bool] = True

    operation: str
    """What was refused, such as `commit`."""
    key: bytes
    """The key whose lock is gone; empty when the store names none."""
    message: str
    """The store's own words."""

    def __str__(self) -> str:
        at = f" at key {shorten(self.key)}" if self.key else ""
        return f"{self.operation} came too late{at}: the transaction must run again ({self.message})"


@attrs.define(eq=False)
class TransactionRefused(TikvError):
    """A store refused a request of a transaction for good, in words of its own. What it was to do was not done.

    When they speak of API versions or key modes, the client was opened for another kind of cluster.
    Source: kvrpcpb.KeyError.abort, and whatever this client knows no better name for.
    """

    operation: str
    """What was refused, such as `prewrite`."""
    message: str
    """The store's own words."""

    def __str__(self) -> str:
        return f"the store refused {self.operation}: {self.message}"


@attrs.define(eq=False)
class TransactionNotFound(TikvError):
    """A store knows nothing of a transaction at its primary key. Source: kvrpcpb.TxnNotFound."""

    retryable: ClassVar[bool] = True

    start_ts: int
    """When the transaction started."""
    primary: bytes
    """Its primary key."""

    def __str__(self) -> str:
        return f"there is no trace of the transaction of {self.start_ts} at its primary key {shorten(self.primary)}"


@attrs.define(eq=False)
class PrimaryMismatch(TikvError):
    """A lock that was taken for the primary one of its transaction names another key.

    Source: kvrpcpb.PrimaryMismatch.
    """

    retryable: ClassVar[bool] = True

    key: bytes
    """The locked key."""
    primary: bytes
    """The primary key that the lock names."""
    lock_ts: int
    """When its transaction started."""

    def __str__(self) -> str:
        return (
            f"key {shorten(self.key)} is not the primary key of the transaction of {self.lock_ts};"
            f" {shorten(self.primary)} is"
        )


@attrs.define(eq=False)
class InconsistentLocks(TikvError):
    """What stores say of a transaction contradicts itself. Nothing was done about its locks."""

    key: bytes
    """Its primary key."""
    start_ts: int
    """When it started."""
    message: str
    """What does not fit."""

    def __str__(self) -> str:
        return f"the transaction of {self.start_ts} with primary key {shorten(self.key)}: {self.message}"


@attrs.define(eq=False)
class CommitTsExpired(TikvError):
    """A commit timestamp was below what readers had pushed the lock to. Committing at a newer one is right.

    Source: kvrpcpb.CommitTsExpired. Seen by users only when a store says so of a key that is not the primary one.
    """

    retryable: ClassVar[bool] = True

    key: bytes
    """The locked key."""
    start_ts: int
    """When the transaction started."""
    attempted_commit_ts: int
    """Where it was to commit."""
    min_commit_ts: int
    """Where it may commit at the earliest."""

    def __str__(self) -> str:
        return (
            f"the transaction of {self.start_ts} cannot commit at {self.attempted_commit_ts}:"
            f" key {shorten(self.key)} asks for {self.min_commit_ts} at least"
        )


@attrs.define(eq=False)
class CommitTsTooLarge(TikvError):
    """A transaction would have to commit far in the future: some reader's clock or timestamp is wrong.

    Nothing was committed. Source: kvrpcpb.CommitTsTooLarge, and the limit of one hour that client-go sets.
    """

    commit_ts: int
    """Where it would have to commit."""

    def __str__(self) -> str:
        return f"commit timestamp {self.commit_ts} is too far in the future"


@attrs.define(eq=False)
class CommitTsLag(TikvError):
    """PD's timestamps did not reach the one that the commit has to wait for in time. Nothing was committed.

    See `TransactionOptions.commit_after`.
    """

    retryable: ClassVar[bool] = True

    ts: int
    """The newest timestamp."""
    target: int
    """What the commit timestamp has to exceed."""
    waited: float
    """Seconds waited for it."""

    def __str__(self) -> str:
        return f"timestamp {self.ts} is still not above {self.target} after {self.waited:.3g} s"


@attrs.define(eq=False)
class TransactionExpired(TikvError):
    """A transaction is too old to commit. Nothing was committed; run it again from the start."""

    retryable: ClassVar[bool] = True

    start_ts: int
    """When it started."""
    age: float
    """Seconds since then, by PD's clock."""
    limit: float
    """Seconds after which a transaction may not commit."""

    def __str__(self) -> str:
        return f"the transaction of {self.start_ts} is {self.age:.0f} s old; after {self.limit:.0f} s none may commit"


@attrs.define(eq=False)
class TransactionEnded(TikvError):
    """The transaction has committed or was rolled back, or a commit of it failed: begin another."""

    start_ts: int
    """When it started; 0 when it never did."""
    state: str
    """What became of it, such as `committed`."""

    def __str__(self) -> str:
        return f"the transaction of {self.start_ts} is {self.state}; begin another"


@attrs.define(eq=False)
class SnapshotTooOld(TikvError):
    """The versions a snapshot would read may have been collected as garbage: read at a newer timestamp."""

    retryable: ClassVar[bool] = True

    ts: int
    """Where it reads."""
    safe_point: int
    """The cluster's txn safe point: nothing below it can be read."""

    def __str__(self) -> str:
        return f"timestamp {self.ts} is below the txn safe point {self.safe_point}"


@attrs.define(eq=False)
class KeyTooLarge(ConfigError):
    """A key is longer than a transaction takes. Nothing was written."""

    key: bytes
    """The key."""
    size: int
    """Its bytes, with the prefix that API v2 puts before each key."""
    limit: int
    """The most there may be."""

    def __str__(self) -> str:
        return f"a key of {self.size} bytes exceeds the limit of {self.limit}"


@attrs.define(eq=False)
class ValueTooLarge(ConfigError):
    """A key and its value are larger than one entry of a transaction may be. Nothing was written."""

    key: bytes
    """The key."""
    size: int
    """Bytes of key and value."""
    limit: int
    """The most there may be."""

    def __str__(self) -> str:
        return f"a key and value of {self.size} bytes exceed the limit of {self.limit}; split them over several keys"


@attrs.define(eq=False)
class TransactionTooLarge(TikvError):
    """What a transaction writes is too much in all. The write that would have made it so was not taken."""

    size: int
    """Bytes of all keys and values, with that write."""
    limit: int
    """The most there may be."""

    def __str__(self) -> str:
        return f"a transaction of {self.size} bytes exceeds the limit of {self.limit}; write less at once"


def key_error(error: kvrpcpb.KeyError, codec: KeyCodec, *, operation: str) -> TikvError:
    """Return what an error about a key means, with its keys decoded by `codec`.

    Where several fields are set, the one that says most decides: stores put words for people beside a conflict.
    """
    fields = {descriptor.name for descriptor, _ in error.ListFields()}
    for field, convert in _ROWS.items():
        if field in fields:
            return convert(error, _Decoder(codec), operation)
    return TransactionRefused(operation, str(error).strip())


@attrs.frozen
class _Decoder:
    codec: KeyCodec

    def __call__(self, key: bytes) -> bytes:
        """Return a key as users know it."""
        try:
            return self.codec.decode_key(key) if key else b""
        except CodecError:
            # A key of another keyspace, perhaps: what went wrong is better told with it than not at all.
            return key


def _conflict(error: kvrpcpb.KeyError, key: _Decoder, _operation: str) -> TikvError:
    conflict = error.conflict
    return WriteConflict(
        key(conflict.key),
        key(conflict.primary),
        conflict.start_ts,
        conflict.conflict_ts,
        conflict.conflict_commit_ts,
        _reason(conflict.reason),
    )


def _reason(number: kvrpcpb.WriteConflict.Reason.ValueType) -> str:
    reasons = kvrpcpb.WriteConflict.Reason
    return reasons.Name(number) if number in reasons.values() else str(number)


def _assertion_failed(error: kvrpcpb.KeyError, key: _Decoder, _operation: str) -> TikvError:
    failed = error.assertion_failed
    return AssertionFailed(
        key(failed.key),
        failed.start_ts,
        failed.assertion == kvrpcpb.Assertion.Exist,
        failed.existing_start_ts,
        failed.existing_commit_ts,
    )


def _locked(error: kvrpcpb.KeyError, key: _Decoder, _operation: str) -> TikvError:
    lock = error.locked
    return KeyLocked(key(lock.key), key(lock.primary_lock), lock.lock_version, lock.lock_ttl / 1000)


def _primary_mismatch(error: kvrpcpb.KeyError, key: _Decoder, _operation: str) -> TikvError:
    lock = error.primary_mismatch.lock_info
    return PrimaryMismatch(key(lock.key), key(lock.primary_lock), lock.lock_version)


def _commit_ts_expired(error: kvrpcpb.KeyError, key: _Decoder, _operation: str) -> TikvError:
    expired = error.commit_ts_expired
    return CommitTsExpired(key(expired.key), expired.start_ts, expired.attempted_commit_ts, expired.min_commit_ts)


_ROWS: Final[Mapping[str, Callable[[kvrpcpb.KeyError, _Decoder, str], TikvError]]] = {
    "conflict": _conflict,
    "already_exist": lambda error, key, _operation: AlreadyExists(key(error.already_exist.key)),
    "locked": _locked,
    "assertion_failed": _assertion_failed,
    "commit_ts_expired": _commit_ts_expired,
    "commit_ts_too_large": lambda error, _key, _operation: CommitTsTooLarge(error.commit_ts_too_large.commit_ts),
    "txn_not_found": lambda error, key, _operation: TransactionNotFound(
        error.txn_not_found.start_ts, key(error.txn_not_found.primary_key)
    ),
    "primary_mismatch": _primary_mismatch,
    "txn_lock_not_found": lambda error, key, operation: TransactionAborted(
        operation, key(error.txn_lock_not_found.key), error.retryable
    ),
    "retryable": lambda error, _key, operation: TransactionAborted(operation, b"", error.retryable),
    "abort": lambda error, _key, operation: TransactionRefused(operation, error.abort),
}
