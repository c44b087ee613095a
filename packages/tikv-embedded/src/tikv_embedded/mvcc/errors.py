"""Why an action is refused: each error is the `kvrpcpb.KeyError` that clients get.

Source: TiKV storage/errors.rs extract_key_error; the texts are those of storage/mvcc/mod.rs in other words.
"""

from __future__ import annotations

from typing import Any

from tikv_proto import errorpb, kvrpcpb


class MvccError(Exception):
    """An action is refused, and nothing is written.

    Attributes:
        key_error: What the client is told.
    """

    def __init__(self, key_error: kvrpcpb.KeyError) -> None:
        super().__init__(key_error)
        self.key_error = key_error

    @property
    def is_locked(self) -> bool:
        """Whether another transaction's lock is in the way."""
        return self.key_error.HasField("locked")

    @property
    def is_assertion(self) -> bool:
        """Whether an assertion failed."""
        return self.key_error.HasField("assertion_failed")


class CommittedError(MvccError):
    """A transaction that shall be rolled back is committed.

    Attributes:
        commit_ts: When.
    """

    def __init__(self, key: bytes, start_ts: int, commit_ts: int) -> None:
        text = f"Committed: txn already committed, start_ts: {start_ts}, commit_ts: {commit_ts}, key: {_show(key)}"
        super().__init__(kvrpcpb.KeyError(abort=text))
        self.commit_ts = commit_ts


class RegionRefusedError(Exception):
    """An action is refused with a Region error, and nothing is written.

    Attributes:
        region_error: What the client is told.
    """

    def __init__(self, region_error: errorpb.Error) -> None:
        super().__init__(region_error)
        self.region_error = region_error


def aborted(text: str) -> MvccError:
    """Return an error that has no field of its own."""
    return MvccError(kvrpcpb.KeyError(abort=text))


def key_is_locked(info: kvrpcpb.LockInfo) -> MvccError:
    """Return the error for a lock in the way."""
    return MvccError(kvrpcpb.KeyError(locked=info))


def write_conflict(conflict: kvrpcpb.WriteConflict) -> MvccError:
    """Return the error for a newer record; old clients look at `retryable`."""
    text = (
        f"WriteConflict: start_ts: {conflict.start_ts}, conflict_start_ts: {conflict.conflict_ts}, "
        f"conflict_commit_ts: {conflict.conflict_commit_ts}, key: {_show(conflict.key)}"
    )
    return MvccError(kvrpcpb.KeyError(conflict=conflict, retryable=text))


def already_exist(key: bytes) -> MvccError:
    """Return the error for an insertion of a key that exists."""
    return MvccError(kvrpcpb.KeyError(already_exist=kvrpcpb.AlreadyExist(key=key)))


def assertion_failed(
    key: bytes, start_ts: int, assertion: kvrpcpb.Assertion.ValueType, existing: tuple[int, int]
) -> MvccError:
    """Return the error for an assertion; `existing` is the start and commit timestamp of what was found, or zeros."""
    failed = kvrpcpb.AssertionFailed(
        start_ts=start_ts,
        key=key,
        assertion=assertion,
        existing_start_ts=existing[0],
        existing_commit_ts=existing[1],
    )
    return MvccError(kvrpcpb.KeyError(assertion_failed=failed))


def lock_type_not_match(key: bytes, start_ts: int) -> MvccError:
    """Return the error of an optimistic prewrite that meets its own pessimistic lock."""
    return aborted(f"LockTypeNotMatch: start_ts: {start_ts}, key: {_show(key)}, pessimistic: true")


def txn_lock_not_found(key: bytes, start_ts: int, commit_ts: int, debug_info: kvrpcpb.MvccInfo | None) -> MvccError:
    """Return the error of a commit that finds neither its lock nor its record."""
    error = kvrpcpb.KeyError(
        txn_lock_not_found=kvrpcpb.TxnLockNotFound(key=key),
        retryable=f"TxnLockNotFound: start_ts: {start_ts}, commit_ts: {commit_ts}, key: {_show(key)}",
    )
    return MvccError(_with_debug_info(error, key, debug_info))


def commit_ts_expired(
    key: bytes, start_ts: int, commit_ts: int, min_commit_ts: int, debug_info: kvrpcpb.MvccInfo | None
) -> MvccError:
    """Return the error of a commit earlier than the lock allows."""
    expired = kvrpcpb.CommitTsExpired(
        start_ts=start_ts, attempted_commit_ts=commit_ts, key=key, min_commit_ts=min_commit_ts
    )
    return MvccError(_with_debug_info(kvrpcpb.KeyError(commit_ts_expired=expired), key, debug_info))


def invalid_txn_tso(start_ts: int, commit_ts: int) -> MvccError:
    """Return the error of a commit that is not after its start."""
    return aborted(f"InvalidTxnTso: start_ts: {start_ts}, commit_ts: {commit_ts}")


def txn_not_found(primary: bytes, start_ts: int) -> MvccError:
    """Return the error for a transaction of which the key knows nothing."""
    return MvccError(kvrpcpb.KeyError(txn_not_found=kvrpcpb.TxnNotFound(start_ts=start_ts, primary_key=primary)))


def primary_mismatch(info: kvrpcpb.LockInfo) -> MvccError:
    """Return the error of a check that was sent to a secondary lock."""
    return MvccError(kvrpcpb.KeyError(primary_mismatch=kvrpcpb.PrimaryMismatch(lock_info=info)))


def invalid_req_range(start: bytes | None, end: bytes | None, region: tuple[bytes, bytes]) -> MvccError:
    """Return the error of a scan whose encoded bounds stick out of its Region."""
    shown = [None if bound is None else _show(bound) for bound in (start, end, *region)]
    return aborted(
        f"InvalidReqRange: start: {shown[0]}, end: {shown[1]}, lower_bound: {shown[2]}, upper_bound: {shown[3]}"
    )


def default_not_found(key: bytes, start_ts: int) -> MvccError:
    """Return the error for a long value that is missing."""
    return aborted(f"DefaultNotFound: key: {_show(key)}, start_ts: {start_ts}")


def put_key_error(response: Any, error: kvrpcpb.KeyError) -> None:
    """Fill the field that a response has for errors: one, several, or a text; pairs repeat it for old clients."""
    fields = response.DESCRIPTOR.fields_by_name
    if "errors" in fields:
        response.errors.append(error)
    elif fields["error"].message_type is None:
        response.error = error.abort or str(error)
    else:
        response.error.CopyFrom(error)
    if "pairs" in fields:
        response.pairs.add().error.CopyFrom(error)


def _with_debug_info(error: kvrpcpb.KeyError, key: bytes, info: kvrpcpb.MvccInfo | None) -> kvrpcpb.KeyError:
    """Attach what the key holds, without long values."""
    if info is not None:
        found = error.debug_info.mvcc_info.add(key=key)
        found.mvcc.CopyFrom(info)
        found.mvcc.ClearField("values")
    return error


def _show(key: bytes) -> str:
    return key.hex().upper()
