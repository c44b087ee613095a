"""What tests need in place of a cluster's transactions: `FakeMvcc`, on the stores of a `tikv_rpc.testing.FakeCluster`.

    async with FakeCluster([b"m"], codec=TxnV1Codec()) as cluster:
        mvcc = FakeMvcc(cluster)
        async with TransactionClient(cluster.url, transport=cluster.transport) as client:
            cluster.store(1).drop_reply_next(Tikv.KvCommit)

It is as strict as TiKV about optimistic transactions, and knows nothing of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
from google.protobuf.message import Message
from tikv_pd import LATEST, Timestamp
from tikv_proto import kvrpcpb
from tikv_proto.services import Rpc, Tikv
from tikv_region import KeyRange
from tikv_rpc.testing import FakeCluster, Handler

Op: Final = kvrpcpb.Op
Action: Final = kvrpcpb.Action


@attrs.frozen
class Version:
    """A committed version of a key."""

    commit_ts: int
    """When it was committed."""
    start_ts: int
    """When its transaction started."""
    op: int
    """kvrpcpb.Op: Put, Del, or Lock for none of them."""
    value: bytes
    """What a Put wrote."""


class FakeMvcc:
    """Keys with their versions and locks, shared by all stores of a cluster, which serve them from now on.

    All keys are as they travel. With `TxnV1Codec` that is how users know them.

    Args:
        cluster: Whose stores serve them.
    """

    def __init__(self, cluster: FakeCluster) -> None:
        self.versions: dict[bytes, list[Version]] = {}
        """Committed versions of each key, the newest first."""
        self.locks: dict[bytes, kvrpcpb.LockInfo] = {}
        """The locks, by key."""
        self.rolled_back: set[tuple[bytes, int]] = set()
        """(key, start timestamp) of rollbacks."""
        self.max_ts = 0
        """The newest timestamp that anybody has read at: async commits come after it."""
        self.refuses_one_pc = False
        """Whether one-phase commits fall back to locks."""
        self.refuses_async_commit = False
        """Whether async commits fall back to two phases."""
        self._cluster = cluster
        self._values: dict[tuple[bytes, int], tuple[int, bytes]] = {}
        answers: dict[Rpc[Any, Any], Callable[[Any], Message]] = {
            Tikv.KvPrewrite: self._prewrite,
            Tikv.KvCommit: self._commit,
            Tikv.KvBatchRollback: self._batch_rollback,
            Tikv.KvTxnHeartBeat: self._heartbeat,
            Tikv.KvCheckTxnStatus: self._check_txn_status,
            Tikv.KvCheckSecondaryLocks: self._check_secondary_locks,
            Tikv.KvResolveLock: self._resolve_lock,
            Tikv.KvGet: self._get,
            Tikv.KvBatchGet: self._batch_get,
            Tikv.KvScan: self._scan,
        }
        for rpc, answer in answers.items():
            cluster.handlers[rpc] = _handler(answer)

    def at(self, key: bytes, ts: int = LATEST) -> bytes | None:
        """Return the value of a key at a timestamp, whatever is locked."""
        version = self._version_at(key, ts)
        return None if version is None else version.value

    def write(self, key: bytes, value: bytes | None, commit_ts: int, start_ts: int | None = None) -> None:
        """Commit a value at a timestamp, or with None a deletion, as if by another client."""
        op = Op.Del if value is None else Op.Put
        self._record(key, Version(commit_ts, commit_ts - 1 if start_ts is None else start_ts, op, value or b""))

    def lock(
        self,
        key: bytes,
        start_ts: int,
        value: bytes | None = None,
        *,
        primary: bytes | None = None,
        ttl_ms: int = 3000,
        **fields: Any,
    ) -> None:
        """Lock a key, as if by another client.

        Args:
            key: The key.
            start_ts: When its transaction started.
            value: What it writes; None for a deletion.
            primary: Its primary key; None for this one.
            ttl_ms: How long the lock lasts.
            fields: More of kvrpcpb.LockInfo.
        """
        op = Op.Del if value is None else Op.Put
        self._values[key, start_ts] = op, value or b""
        self.locks[key] = kvrpcpb.LockInfo(
            key=key,
            primary_lock=key if primary is None else primary,
            lock_version=start_ts,
            lock_ttl=ttl_ms,
            lock_type=op,
            **fields,
        )

    def commit(self, key: bytes, start_ts: int, commit_ts: int) -> None:
        """Commit what a transaction has locked, as other clients do; nothing when it has no lock there."""
        lock = self._own_lock(key, start_ts)
        if lock is not None:
            del self.locks[key]
            op, value = self._values.get((key, start_ts), (lock.lock_type, b""))
            self._record(key, Version(commit_ts, start_ts, op, value))

    def roll_back(self, key: bytes, start_ts: int) -> None:
        """Roll a transaction back on a key, as other clients do when its lock has expired."""
        if self._own_lock(key, start_ts) is not None:
            del self.locks[key]
        self.rolled_back.add((key, start_ts))

    def _prewrite(self, request: kvrpcpb.PrewriteRequest) -> kvrpcpb.PrewriteResponse:
        start_ts, response = request.start_version, kvrpcpb.PrewriteResponse()
        assertion: kvrpcpb.KeyError | None = None
        min_commit_ts = 0
        for mutation in request.mutations:
            lock, own = self.locks.get(mutation.key), self._committed(mutation.key, start_ts)
            if lock is not None and lock.lock_version == start_ts:
                min_commit_ts = max(min_commit_ts, lock.min_commit_ts)
                if not lock.use_async_commit:
                    return kvrpcpb.PrewriteResponse()
            elif own is not None:
                is_one_pc = request.try_one_pc
                return kvrpcpb.PrewriteResponse(
                    min_commit_ts=own.commit_ts if request.use_async_commit else 0,
                    one_pc_commit_ts=own.commit_ts if is_one_pc else 0,
                )
            elif lock is not None:
                response.errors.add(locked=lock)
            else:
                failure = self._constraint(mutation, start_ts)
                if failure is not None:
                    return kvrpcpb.PrewriteResponse(errors=[failure])
                assertion = assertion or self._assertion(mutation, request)
        if assertion is not None and not response.errors:
            response.errors.append(assertion)
        if response.errors:
            return response
        min_commit_ts = min_commit_ts or max(request.min_commit_ts, self.max_ts + 1, start_ts + 1)
        return self._apply(request, min_commit_ts)

    def _apply(self, request: kvrpcpb.PrewriteRequest, min_commit_ts: int) -> kvrpcpb.PrewriteResponse:
        start_ts = request.start_version
        is_late = request.max_commit_ts and min_commit_ts > request.max_commit_ts
        if request.try_one_pc and not (is_late or self.refuses_one_pc):
            for mutation in request.mutations:
                if mutation.op != Op.CheckNotExists:
                    self._record(mutation.key, Version(min_commit_ts, start_ts, _kind(mutation.op), mutation.value))
            return kvrpcpb.PrewriteResponse(
                one_pc_commit_ts=min_commit_ts, min_commit_ts=min_commit_ts if request.use_async_commit else 0
            )
        is_async = request.use_async_commit and not (is_late or self.refuses_async_commit or request.try_one_pc)
        for mutation in request.mutations:
            if mutation.op != Op.CheckNotExists and mutation.key not in self.locks:
                self._values[mutation.key, start_ts] = _kind(mutation.op), mutation.value
                self.locks[mutation.key] = kvrpcpb.LockInfo(
                    key=mutation.key,
                    primary_lock=request.primary_lock,
                    lock_version=start_ts,
                    lock_ttl=request.lock_ttl,
                    txn_size=request.txn_size,
                    lock_type=_kind(mutation.op),
                    use_async_commit=is_async,
                    min_commit_ts=min_commit_ts if is_async else request.min_commit_ts,
                    secondaries=request.secondaries if is_async and mutation.key == request.primary_lock else (),
                )
        return kvrpcpb.PrewriteResponse(min_commit_ts=min_commit_ts if is_async else 0)

    def _constraint(self, mutation: kvrpcpb.Mutation, start_ts: int) -> kvrpcpb.KeyError | None:
        conflict = kvrpcpb.WriteConflict(start_ts=start_ts, conflict_ts=start_ts, key=mutation.key)
        if (mutation.key, start_ts) in self.rolled_back:
            conflict.reason = kvrpcpb.WriteConflict.SelfRolledBack
            return kvrpcpb.KeyError(conflict=conflict)
        newest = next(iter(self.versions.get(mutation.key, ())), None)
        if newest is not None and newest.commit_ts > start_ts:
            conflict.conflict_ts, conflict.conflict_commit_ts = newest.start_ts, newest.commit_ts
            conflict.reason = kvrpcpb.WriteConflict.Optimistic
            return kvrpcpb.KeyError(conflict=conflict)
        if mutation.op in {Op.Insert, Op.CheckNotExists} and self.at(mutation.key) is not None:
            return kvrpcpb.KeyError(already_exist=kvrpcpb.AlreadyExist(key=mutation.key))
        return None

    def _assertion(self, mutation: kvrpcpb.Mutation, request: kvrpcpb.PrewriteRequest) -> kvrpcpb.KeyError | None:
        exists = self.at(mutation.key) is not None
        wrong = kvrpcpb.Assertion.NotExist if exists else kvrpcpb.Assertion.Exist
        if request.assertion_level != kvrpcpb.AssertionLevel.Strict or mutation.assertion != wrong:
            return None
        failed = kvrpcpb.AssertionFailed(start_ts=request.start_version, key=mutation.key, assertion=wrong)
        if exists:
            newest = self.versions[mutation.key][0]
            failed.existing_start_ts, failed.existing_commit_ts = newest.start_ts, newest.commit_ts
        return kvrpcpb.KeyError(assertion_failed=failed)

    def _commit(self, request: kvrpcpb.CommitRequest) -> kvrpcpb.CommitResponse:
        start_ts, commit_ts = request.start_version, request.commit_version
        for key in request.keys:
            lock = self._own_lock(key, start_ts)
            if lock is None and self._committed(key, start_ts) is None:
                gone = kvrpcpb.TxnLockNotFound(key=key)
                return kvrpcpb.CommitResponse(error=kvrpcpb.KeyError(txn_lock_not_found=gone, retryable="no lock"))
            if lock is not None and commit_ts < lock.min_commit_ts:
                expired = kvrpcpb.CommitTsExpired(
                    start_ts=start_ts, attempted_commit_ts=commit_ts, key=key, min_commit_ts=lock.min_commit_ts
                )
                return kvrpcpb.CommitResponse(error=kvrpcpb.KeyError(commit_ts_expired=expired))
        for key in request.keys:
            self._end(key, start_ts, commit_ts)
        return kvrpcpb.CommitResponse(commit_version=commit_ts)

    def _batch_rollback(self, request: kvrpcpb.BatchRollbackRequest) -> kvrpcpb.BatchRollbackResponse:
        if any(self._committed(key, request.start_version) is not None for key in request.keys):
            return kvrpcpb.BatchRollbackResponse(error=kvrpcpb.KeyError(abort="Committed"))
        for key in request.keys:
            self._end(key, request.start_version, 0)
        return kvrpcpb.BatchRollbackResponse()

    def _heartbeat(self, request: kvrpcpb.TxnHeartBeatRequest) -> kvrpcpb.TxnHeartBeatResponse:
        lock = self._own_lock(request.primary_lock, request.start_version)
        if lock is None:
            return kvrpcpb.TxnHeartBeatResponse(error=_not_found(request.start_version, request.primary_lock))
        lock.lock_ttl = max(lock.lock_ttl, request.advise_lock_ttl)
        return kvrpcpb.TxnHeartBeatResponse(lock_ttl=lock.lock_ttl)

    def _check_txn_status(self, request: kvrpcpb.CheckTxnStatusRequest) -> kvrpcpb.CheckTxnStatusResponse:
        key, start_ts, caller = request.primary_key, request.lock_ts, request.caller_start_ts
        self._read_at(start_ts, request.current_ts, caller)
        lock = self._own_lock(key, start_ts)
        if lock is None:
            own = self._committed(key, start_ts)
            if own is not None:
                return kvrpcpb.CheckTxnStatusResponse(commit_version=own.commit_ts)
            if (key, start_ts) in self.rolled_back:
                return kvrpcpb.CheckTxnStatusResponse()
            if not request.rollback_if_not_exist:
                return kvrpcpb.CheckTxnStatusResponse(error=_not_found(start_ts, key))
            self.rolled_back.add((key, start_ts))
            return kvrpcpb.CheckTxnStatusResponse(action=Action.LockNotExistRollback)
        if lock.primary_lock != key:
            mismatch = kvrpcpb.PrimaryMismatch(lock_info=lock)
            return kvrpcpb.CheckTxnStatusResponse(error=kvrpcpb.KeyError(primary_mismatch=mismatch))
        if lock.use_async_commit and not request.force_sync_commit:
            return kvrpcpb.CheckTxnStatusResponse(lock_ttl=lock.lock_ttl, lock_info=lock)
        if _physical(start_ts) + lock.lock_ttl < _physical(request.current_ts):
            self.roll_back(key, start_ts)
            return kvrpcpb.CheckTxnStatusResponse(action=Action.TTLExpireRollback)
        if lock.min_commit_ts and caller != LATEST and caller >= lock.min_commit_ts:
            lock.min_commit_ts = max(caller + 1, request.current_ts)
        is_pushed = caller == LATEST or 0 < caller < lock.min_commit_ts
        action = Action.MinCommitTSPushed if is_pushed else Action.NoAction
        return kvrpcpb.CheckTxnStatusResponse(lock_ttl=lock.lock_ttl, lock_info=lock, action=action)

    def _check_secondary_locks(
        self, request: kvrpcpb.CheckSecondaryLocksRequest
    ) -> kvrpcpb.CheckSecondaryLocksResponse:
        response = kvrpcpb.CheckSecondaryLocksResponse()
        self._read_at(request.start_version)
        for key in request.keys:
            lock = self._own_lock(key, request.start_version)
            if lock is None:
                own = self._committed(key, request.start_version)
                if own is None:
                    self.rolled_back.add((key, request.start_version))
                return kvrpcpb.CheckSecondaryLocksResponse(commit_ts=0 if own is None else own.commit_ts)
            response.locks.append(lock)
        return response

    def _resolve_lock(self, request: kvrpcpb.ResolveLockRequest) -> kvrpcpb.ResolveLockResponse:
        start_ts = request.start_version
        for key in request.keys or [key for key in self._keys_within(request) if self._own_lock(key, start_ts)]:
            self._end(key, start_ts, request.commit_version)
        return kvrpcpb.ResolveLockResponse()

    def _get(self, request: kvrpcpb.GetRequest) -> kvrpcpb.GetResponse:
        pair = self._read(request.key, request)
        if pair is None:
            return kvrpcpb.GetResponse(not_found=True)
        if pair.HasField("error"):
            return kvrpcpb.GetResponse(error=pair.error)
        return kvrpcpb.GetResponse(value=pair.value, commit_ts=pair.commit_ts)

    def _batch_get(self, request: kvrpcpb.BatchGetRequest) -> kvrpcpb.BatchGetResponse:
        pairs = (self._read(key, request) for key in request.keys)
        return kvrpcpb.BatchGetResponse(pairs=[pair for pair in pairs if pair is not None])

    def _scan(self, request: kvrpcpb.ScanRequest) -> kvrpcpb.ScanResponse:
        lower, upper = request.start_key, request.end_key
        asked = KeyRange(upper, lower) if request.reverse else KeyRange(lower, upper)
        response, rows = kvrpcpb.ScanResponse(), 0
        for key in sorted(self._keys_within(request), reverse=request.reverse):
            pair = self._read(key, request) if asked.contains(key) else None
            if pair is None:
                continue
            if not pair.HasField("error"):
                rows += 1
                if request.sample_step and (rows - 1) % request.sample_step:
                    continue
                if request.key_only:
                    pair.value = b""
            response.pairs.append(pair)
            if len(response.pairs) == request.limit:
                break
        return response

    def _read(self, key: bytes, request: Any) -> kvrpcpb.KvPair | None:
        """Return what a read finds at a key: a value or the lock in its way, None when there is nothing."""
        needs_commit_ts = getattr(request, "need_commit_ts", False)
        lock = self._blocking(key, request.version, request.context)
        if lock is not None and (needs_commit_ts or lock.lock_version not in request.context.committed_locks):
            return kvrpcpb.KvPair(error=kvrpcpb.KeyError(locked=lock))
        if lock is not None:
            # Known to be committed below the timestamp.
            op, value = self._values.get((key, lock.lock_version), (Op.Del, b""))
            return kvrpcpb.KvPair(key=key, value=value) if op == Op.Put else None
        version = self._version_at(key, request.version)
        if version is None:
            return None
        return kvrpcpb.KvPair(key=key, value=version.value, commit_ts=version.commit_ts if needs_commit_ts else 0)

    def _blocking(self, key: bytes, ts: int, context: kvrpcpb.Context) -> kvrpcpb.LockInfo | None:
        """Return the lock that may commit at or below a timestamp."""
        if context.isolation_level != kvrpcpb.IsolationLevel.SI:
            return None
        self._read_at(ts)
        lock = self.locks.get(key)
        if lock is None or lock.lock_type == Op.Lock or lock.lock_version > ts or lock.min_commit_ts > ts:
            return None
        is_latest_primary = ts == LATEST and key == lock.primary_lock and not lock.use_async_commit
        return None if is_latest_primary or lock.lock_version in context.resolved_locks else lock

    def _version_at(self, key: bytes, ts: int) -> Version | None:
        """Return the version that a read at a timestamp finds."""
        versions = (each for each in self.versions.get(key, ()) if each.commit_ts <= ts and each.op != Op.Lock)
        newest = next(versions, None)
        return newest if newest is not None and newest.op == Op.Put else None

    def _keys_within(self, request: Any) -> list[bytes]:
        """Return the keys that the Region of a request holds, in no order."""
        bounds = KeyRange(*self._cluster.bounds(request.context.region_id))
        return [key for key in {*self.versions, *self.locks} if bounds.contains(key)]

    def _own_lock(self, key: bytes, start_ts: int) -> kvrpcpb.LockInfo | None:
        lock = self.locks.get(key)
        return lock if lock is not None and lock.lock_version == start_ts else None

    def _committed(self, key: bytes, start_ts: int) -> Version | None:
        return next((version for version in self.versions.get(key, ()) if version.start_ts == start_ts), None)

    def _end(self, key: bytes, start_ts: int, commit_ts: int) -> None:
        """Commit one key, or roll it back when there is no commit timestamp."""
        if commit_ts:
            self.commit(key, start_ts, commit_ts)
        else:
            self.roll_back(key, start_ts)

    def _record(self, key: bytes, version: Version) -> None:
        versions = [*self.versions.get(key, ()), version]
        self.versions[key] = sorted(versions, key=lambda each: each.commit_ts, reverse=True)

    def _read_at(self, *timestamps: int) -> None:
        self.max_ts = max([self.max_ts, *(ts for ts in timestamps if ts != LATEST)])


def _handler(answer: Callable[[Any], Message]) -> Handler:
    async def handle(request: Any) -> Message:
        return answer(request)

    return handle


def _kind(op: kvrpcpb.Op.ValueType) -> kvrpcpb.Op.ValueType:
    return Op.Put if op == Op.Insert else op


def _physical(ts: int) -> int:
    return Timestamp.from_ts(ts).physical


def _not_found(start_ts: int, primary: bytes) -> kvrpcpb.KeyError:
    return kvrpcpb.KeyError(txn_not_found=kvrpcpb.TxnNotFound(start_ts=start_ts, primary_key=primary))
