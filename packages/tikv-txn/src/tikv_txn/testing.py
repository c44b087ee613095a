"""What tests need in place of a cluster's transactions: `FakeMvcc`, on the stores of a `tikv_rpc.testing.FakeCluster`.

    async with FakeCluster([b"m"], codec=TxnV1Codec()) as cluster:
        mvcc = FakeMvcc(cluster)
        async with TransactionClient(cluster.url, transport=cluster.transport) as client:
            cluster.store(1).drop_reply_next(Tikv.KvCommit)

It is as strict as TiKV about optimistic transactions, and knows nothing of the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import attrs
from google.protobuf.message import Message
from tikv_pd import LATEST, Peer, RegionEpoch, Timestamp
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import Rpc, Tikv
from tikv_rpc.testing import FakeCluster

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
        for rpc, serve, keys in (
            (Tikv.KvPrewrite, self._prewrite, lambda request: [each.key for each in request.mutations]),
            (Tikv.KvCommit, self._commit, lambda request: request.keys),
            (Tikv.KvBatchRollback, self._batch_rollback, lambda request: request.keys),
            (Tikv.KvTxnHeartBeat, self._heartbeat, lambda request: [request.primary_lock]),
            (Tikv.KvCheckTxnStatus, self._check_txn_status, lambda request: [request.primary_key]),
            (Tikv.KvCheckSecondaryLocks, self._check_secondary_locks, lambda request: request.keys),
            (Tikv.KvResolveLock, self._resolve_lock, lambda request: request.keys),
            (Tikv.KvGet, self._get, lambda request: [request.key]),
            (Tikv.KvBatchGet, self._batch_get, lambda request: request.keys),
        ):
            cluster.handlers[rpc] = self._handler(rpc, serve, keys)

    def at(self, key: bytes, ts: int = LATEST) -> bytes | None:
        """Return the value of a key at a timestamp, whatever is locked."""
        for version in self.versions.get(key, ()):
            if version.commit_ts <= ts and version.op != Op.Lock:
                return version.value if version.op == Op.Put else None
        return None

    def write(self, key: bytes, value: bytes, commit_ts: int, start_ts: int | None = None) -> None:
        """Commit a value at a timestamp, as if by another client."""
        self._record(key, Version(commit_ts, commit_ts - 1 if start_ts is None else start_ts, Op.Put, value))

    def lock(self, key: bytes, start_ts: int, *, primary: bytes | None = None, ttl_ms: int = 3000) -> None:
        """Lock a key to delete it, as if by another client."""
        self.locks[key] = kvrpcpb.LockInfo(
            key=key, primary_lock=primary or key, lock_version=start_ts, lock_ttl=ttl_ms, lock_type=Op.Del
        )

    def roll_back(self, key: bytes, start_ts: int) -> None:
        """Roll a transaction back on a key, as other clients do when its lock has expired."""
        if self._own_lock(key, start_ts) is not None:
            del self.locks[key]
        self.rolled_back.add((key, start_ts))

    def _handler(
        self, rpc: Rpc[Any, Any], serve: Callable[[Any], Message], keys: Callable[[Any], Iterable[bytes]]
    ) -> Callable[[Any], Awaitable[Message]]:
        async def handle(request: Any) -> Message:
            refusal = self._refusal(request.context, keys(request))
            refused: Message = rpc.response(region_error=refusal)
            return serve(request) if refusal is None else refused

        return handle

    def _refusal(self, context: kvrpcpb.Context, keys: Iterable[bytes]) -> errorpb.Error | None:
        cluster, epoch = self._cluster.map, context.region_epoch
        for key in keys:
            refusal = cluster.refusal(
                context.region_id,
                RegionEpoch(epoch.conf_ver, epoch.version),
                Peer.from_pb(context.peer),
                cluster.codec.decode_key(key),
            )
            if refusal is not None:
                return refusal
        return None

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
        for key in request.keys or [key for key, lock in self.locks.items() if lock.lock_version == start_ts]:
            # Without keys a real store goes through one Region; to go through all is as right.
            if self._own_lock(key, start_ts) is not None or not request.commit_version:
                self._end(key, start_ts, request.commit_version)
        return kvrpcpb.ResolveLockResponse()

    def _get(self, request: kvrpcpb.GetRequest) -> kvrpcpb.GetResponse:
        lock = self._blocking(request.key, request.version, request.context)
        if lock is not None and lock.lock_version not in request.context.committed_locks:
            return kvrpcpb.GetResponse(error=kvrpcpb.KeyError(locked=lock))
        value = self._value(request.key, request.version, lock)
        return kvrpcpb.GetResponse(value=value or b"", not_found=value is None)

    def _batch_get(self, request: kvrpcpb.BatchGetRequest) -> kvrpcpb.BatchGetResponse:
        response = kvrpcpb.BatchGetResponse()
        for key in request.keys:
            lock = self._blocking(key, request.version, request.context)
            if lock is not None and lock.lock_version not in request.context.committed_locks:
                response.pairs.add(error=kvrpcpb.KeyError(locked=lock))
                continue
            value = self._value(key, request.version, lock)
            if value is not None:
                response.pairs.add(key=key, value=value)
        return response

    def _blocking(self, key: bytes, ts: int, context: kvrpcpb.Context) -> kvrpcpb.LockInfo | None:
        """Return the lock that may commit at or below a timestamp."""
        self._read_at(ts)
        lock = self.locks.get(key)
        if lock is None or lock.lock_type == Op.Lock or lock.lock_version > ts:
            return None
        if lock.lock_version in context.resolved_locks or (lock.min_commit_ts > ts):
            return None
        return lock

    def _value(self, key: bytes, ts: int, lock: kvrpcpb.LockInfo | None) -> bytes | None:
        """Return the value at a timestamp, read through a lock that is known to be committed below it."""
        if lock is None:
            return self.at(key, ts)
        op, value = self._values.get((key, lock.lock_version), (Op.Del, b""))
        return value if op == Op.Put else None

    def _own_lock(self, key: bytes, start_ts: int) -> kvrpcpb.LockInfo | None:
        lock = self.locks.get(key)
        return lock if lock is not None and lock.lock_version == start_ts else None

    def _committed(self, key: bytes, start_ts: int) -> Version | None:
        return next((version for version in self.versions.get(key, ()) if version.start_ts == start_ts), None)

    def _end(self, key: bytes, start_ts: int, commit_ts: int) -> None:
        """Commit or roll back one key."""
        lock = self._own_lock(key, start_ts)
        if not commit_ts:
            self.roll_back(key, start_ts)
        elif lock is not None:
            del self.locks[key]
            op, value = self._values.get((key, start_ts), (lock.lock_type, b""))
            self._record(key, Version(commit_ts, start_ts, op, value))

    def _record(self, key: bytes, version: Version) -> None:
        versions = [*self.versions.get(key, ()), version]
        self.versions[key] = sorted(versions, key=lambda each: each.commit_ts, reverse=True)

    def _read_at(self, *timestamps: int) -> None:
        self.max_ts = max(self.max_ts, *(ts for ts in timestamps if ts != LATEST))


def _kind(op: kvrpcpb.Op.ValueType) -> kvrpcpb.Op.ValueType:
    return Op.Put if op == Op.Insert else op


def _physical(ts: int) -> int:
    return Timestamp.from_ts(ts).physical


def _not_found(start_ts: int, primary: bytes) -> kvrpcpb.KeyError:
    return kvrpcpb.KeyError(txn_not_found=kvrpcpb.TxnNotFound(start_ts=start_ts, primary_key=primary))
