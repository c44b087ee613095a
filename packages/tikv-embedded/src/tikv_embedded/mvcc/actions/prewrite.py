"""KvPrewrite: all mutations of a transaction in one Region are locked, or none.

With async commit each lock gets a `min_commit_ts` above every read so far, and the transaction is committed when all
locks are there. With 1PC no lock is written: the records are, at the greatest of those timestamps. Either falls back to
plain two-phase commit when that timestamp would be beyond `max_commit_ts`, or when a lock of the same transaction is
there that has none; then the response carries zeros.
Source: TiKV storage/txn/commands/prewrite.rs.
"""

from __future__ import annotations

from tikv_proto import kvrpcpb

from tikv_embedded.engine import CF_WRITE, WriteBatch
from tikv_embedded.mvcc.actions.prewrite_key import (
    CommitKind,
    CommitTsTooLargeError,
    KeyPrewrite,
    Prewritten,
    TxnProperties,
)
from tikv_embedded.mvcc.context import TxnContext
from tikv_embedded.mvcc.errors import MvccError, aborted
from tikv_embedded.mvcc.keys import append_ts, encode_key
from tikv_embedded.mvcc.lock import Lock
from tikv_embedded.mvcc.modifications import Modifications
from tikv_embedded.mvcc.reader import MvccReader
from tikv_embedded.mvcc.write import Write

SORTED_FROM = 13
"""So many mutations are sorted, and not checked one by one where no key of their range was ever written."""
MAX_KEY_SIZE = 8 * 1024
"""Longest encoded key, in bytes; TiKV's `storage.max-key-size`."""

_OPS = frozenset((kvrpcpb.Op.Put, kvrpcpb.Op.Del, kvrpcpb.Op.Lock, kvrpcpb.Op.Insert, kvrpcpb.Op.CheckNotExists))


def prewrite(ctx: TxnContext, request: kvrpcpb.PrewriteRequest) -> tuple[kvrpcpb.PrewriteResponse, WriteBatch | None]:
    """Lock the keys of an optimistic transaction, or commit them at once with 1PC."""
    _check_request(request)
    return _Prewriter(ctx, request).run()


def _check_request(request: kvrpcpb.PrewriteRequest) -> None:
    if request.for_update_ts:
        raise aborted("Other: pessimistic transactions are not served by the embedded cluster")
    for mutation in request.mutations:
        if mutation.op not in _OPS:
            raise aborted(f"Other: {kvrpcpb.Op.Name(mutation.op)} cannot be prewritten optimistically")
        size = len(encode_key(mutation.key))
        if size > MAX_KEY_SIZE:
            raise aborted(f"KeyTooLarge: max key size exceeded, size: {size}, limit: {MAX_KEY_SIZE}")


class _Prewriter:
    """Goes through the mutations of one request."""

    def __init__(self, ctx: TxnContext, request: kvrpcpb.PrewriteRequest) -> None:
        self._ctx = ctx
        self._request = request
        self._reader = ctx.reader
        self._is_async = request.use_async_commit
        self._is_one_pc = request.try_one_pc
        self._min_commit_ts = 0
        self._locks: list[tuple[bytes, Lock]] = []
        self._values: list[tuple[bytes, bytes]] = []

    def run(self) -> tuple[kvrpcpb.PrewriteResponse, WriteBatch | None]:
        """Return the answer and what to write."""
        if self._is_async or self._is_one_pc:
            self._ctx.max_ts.sync(self._ctx.region)
        locked: list[kvrpcpb.KeyError] = []
        failed_assertion: MvccError | None = None
        mutations, is_checked = _order(self._reader, self._request)
        for mutation in mutations:
            properties = self._properties(is_checked=is_checked)
            try:
                self._accept(mutation.key, KeyPrewrite(self._reader, self._ctx.max_ts, properties, mutation).run())
            except CommitTsTooLargeError as error:
                if committed := self._commit_ts(mutation.key):
                    return self._answer(committed), None
                self._add(mutation.key, error.prewritten)
                self._fall_back()
            except MvccError as error:
                if _may_be_a_retry(error) and (committed := self._commit_ts(mutation.key)):
                    return self._answer(committed), None
                if error.is_locked:
                    locked.append(error.key_error)
                elif error.is_assertion:
                    failed_assertion = failed_assertion or error
                else:
                    raise
        if failed_assertion is not None:
            raise failed_assertion
        response = self._answer(self._min_commit_ts)
        if locked:
            response.errors.extend(locked)
            response.one_pc_commit_ts = 0
            return response, None
        return response, self._modifications().batch

    def _properties(self, *, is_checked: bool) -> TxnProperties:
        request = self._request
        kind = CommitKind.ONE_PC if self._is_one_pc else CommitKind.ASYNC if self._is_async else CommitKind.TWO_PC
        return TxnProperties(
            start_ts=request.start_version,
            primary=request.primary_lock,
            lock_ttl=request.lock_ttl,
            txn_size=request.txn_size,
            min_commit_ts=request.min_commit_ts,
            max_commit_ts=request.max_commit_ts,
            kind=kind,
            secondaries=tuple(request.secondaries) if self._is_async else None,
            is_checked=is_checked,
            assertion_level=request.assertion_level,
            txn_source=request.context.txn_source,
        )

    def _accept(self, key: bytes, done: Prewritten) -> None:
        """Add what one key needs; whether the transaction can time its commit depends on each of them."""
        self._add(key, done)
        if self._is_async or self._is_one_pc:
            if done.min_commit_ts:
                self._min_commit_ts = max(self._min_commit_ts, done.min_commit_ts)
            else:
                self._fall_back()

    def _add(self, key: bytes, done: Prewritten) -> None:
        if done.lock is not None:
            self._locks.append((key, done.lock))
        if done.long_value is not None:
            self._values.append((key, done.long_value))

    def _fall_back(self) -> None:
        """Go on as two-phase commit; locks decided so far stay as they are."""
        self._is_async = self._is_one_pc = False
        self._min_commit_ts = 0

    def _commit_ts(self, key: bytes) -> int:
        """Return when the transaction committed `key`, 0 if it did not: its request may have come twice."""
        record = self._reader.commit_record(key, self._request.start_version)
        return record.commit_ts if record.is_committed else 0

    def _answer(self, min_commit_ts: int) -> kvrpcpb.PrewriteResponse:
        return kvrpcpb.PrewriteResponse(
            min_commit_ts=min_commit_ts if self._is_async else 0,
            one_pc_commit_ts=min_commit_ts if self._is_one_pc else 0,
        )

    def _modifications(self) -> Modifications:
        request, written = self._request, Modifications()
        for key, value in self._values:
            written.put_value(key, request.start_version, value)
        for key, lock in self._locks:
            if self._is_one_pc:
                written.put_write(key, self._min_commit_ts, _record(lock))
            else:
                written.put_lock(key, lock)
        return written


def _may_be_a_retry(error: MvccError) -> bool:
    """Whether the error could come from what the same request did before."""
    conflict = error.key_error.conflict
    return error.is_locked or (error.key_error.HasField("conflict") and conflict.conflict_commit_ts > conflict.start_ts)


def _order(reader: MvccReader, request: kvrpcpb.PrewriteRequest) -> tuple[list[kvrpcpb.Mutation], bool]:
    """Return the mutations in the order to go through, and whether they must be checked against newer records."""
    mutations, is_checked = list(request.mutations), not request.skip_constraint_check
    if len(mutations) >= SORTED_FROM:
        mutations.sort(key=lambda mutation: mutation.key)
        lower, upper = encode_key(mutations[0].key), append_ts(encode_key(mutations[-1].key), 0)
        if next(iter(reader.snapshot.scan(CF_WRITE, lower, upper)), None) is None:
            is_checked = False
    return mutations, is_checked


def _record(lock: Lock) -> Write:
    return Write(
        lock.write_type,
        lock.start_ts,
        lock.short_value,
        last_change=lock.last_change,
        txn_source=lock.txn_source,
    )
