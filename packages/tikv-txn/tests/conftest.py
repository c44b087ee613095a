from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from tikv_pd import LATEST, Peer, Region, RegionEpoch
from tikv_pd.testing import virtual_time
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import Rpc, Tikv
from tikv_region import KeyRange, TxnV1Codec
from tikv_rpc.frontend.session import Endpoint, connect
from tikv_rpc.testing import FakeCluster, Handler
from tikv_txn._store import TxnStore
from tikv_txn.config import TxnConfig


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Time jumps: a wait of seconds takes none."""
    return virtual_time()


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """Three stores; Regions split at b"g" and b"p", all led from store 1. What it answers is scripted."""
    async with FakeCluster([b"g", b"p"], codec=TxnV1Codec()) as running:
        yield running


@pytest.fixture
def config() -> TxnConfig:
    """Limits of `store`."""
    return TxnConfig()


@asynccontextmanager
async def open_store(cluster: FakeCluster, config: TxnConfig) -> AsyncIterator[TxnStore]:
    """Connect to a cluster as a client of transactions does."""
    endpoint = Endpoint((*cluster.pd.members,), None, None, (), (), cluster.transport)
    async with AsyncExitStack() as stack:
        connection = await connect(stack, endpoint, b"x", config.pd, config.region, config.rpc)
        yield TxnStore(connection.rpc, connection.pd, connection.codec, config)


@pytest.fixture
async def store(cluster: FakeCluster, config: TxnConfig) -> AsyncIterator[TxnStore]:
    """What the parts of a client work with."""
    async with open_store(cluster, config) as opened:
        yield opened


class Ledger:
    """Versions and locks of a `FakeCluster`, answering reads and questions about transactions as TiKV does."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.versions: dict[bytes, dict[int, tuple[int, bytes | None]]] = {}
        """Of each key: commit timestamp → (start timestamp, value or None for a deletion)."""
        self.locks: dict[bytes, tuple[kvrpcpb.LockInfo, bytes | None]] = {}
        """Of each locked key: the lock, and what it would write."""
        self.rolled_back: set[tuple[bytes, int]] = set()
        """(key, start timestamp) of what was rolled back."""
        handlers: dict[Any, Callable[[Any], Any]] = {
            Tikv.KvGet: self.get,
            Tikv.KvBatchGet: self.batch_get,
            Tikv.KvScan: self.scan,
            Tikv.KvCheckTxnStatus: self.check_txn_status,
            Tikv.KvCheckSecondaryLocks: self.check_secondary_locks,
            Tikv.KvResolveLock: self.resolve_lock,
        }
        for rpc, handler in handlers.items():
            cluster.handlers[rpc] = self._served(rpc, handler)

    def _served(self, rpc: Rpc[Any, Any], handler: Callable[[Any], Any]) -> Handler:
        async def serve(request: Any) -> Any:
            refusal = self._refusal(request)
            return handler(request) if refusal is None else rpc.response(region_error=refusal)

        return serve

    def _refusal(self, request: Any) -> errorpb.Error | None:
        """Return why a request whose keys the cluster does not check does not belong there."""
        context, cluster = request.context, self.cluster.map
        if isinstance(request, kvrpcpb.CheckTxnStatusRequest):
            key = request.primary_key
        elif isinstance(request, kvrpcpb.ResolveLockRequest) and not request.keys:
            bounds = [self._bounds(region) for region in cluster.regions if region.id == context.region_id]
            key = bounds[0].start if bounds else b""
        else:
            return None
        epoch = RegionEpoch(context.region_epoch.conf_ver, context.region_epoch.version)
        return cluster.refusal(context.region_id, epoch, Peer.from_pb(context.peer), key)

    def write(self, key: bytes, value: bytes | None, commit_ts: int, start_ts: int = 0) -> None:
        """Have a version committed."""
        self.versions.setdefault(key, {})[commit_ts] = (start_ts, value)

    def lock(self, key: bytes, value: bytes | None, start_ts: int, **fields: Any) -> None:
        """Have a key locked by a transaction that would write a value there."""
        kind = kvrpcpb.Op.Del if value is None else kvrpcpb.Op.Put
        info = {"key": key, "primary_lock": key, "lock_version": start_ts, "lock_ttl": 3000, "lock_type": kind}
        self.locks[key] = kvrpcpb.LockInfo(**{**info, **fields}), value

    def get(self, request: kvrpcpb.GetRequest) -> kvrpcpb.GetResponse:
        pair = self._read(request.key, request)
        if pair is None:
            return kvrpcpb.GetResponse(not_found=True)
        if pair.HasField("error"):
            return kvrpcpb.GetResponse(error=pair.error)
        return kvrpcpb.GetResponse(value=pair.value, commit_ts=pair.commit_ts)

    def batch_get(self, request: kvrpcpb.BatchGetRequest) -> kvrpcpb.BatchGetResponse:
        pairs = [self._read(key, request) for key in request.keys]
        return kvrpcpb.BatchGetResponse(pairs=[pair for pair in pairs if pair is not None])

    def scan(self, request: kvrpcpb.ScanRequest) -> kvrpcpb.ScanResponse:
        lower, upper = request.start_key, request.end_key
        if request.reverse:
            lower, upper = upper, lower
        within = KeyRange(lower, upper).intersect(self._region(request))
        keys = sorted({*self.versions, *self.locks}, reverse=request.reverse)
        pairs: list[kvrpcpb.KvPair] = []
        rows = 0
        for key in keys:
            pair = self._read(key, request) if within.contains(key) and len(pairs) < request.limit else None
            if pair is None:
                continue
            if not pair.HasField("error"):
                rows += 1
                if request.sample_step and (rows - 1) % request.sample_step:
                    continue
                if request.key_only:
                    pair.value = b""
            pairs.append(pair)
        return kvrpcpb.ScanResponse(pairs=pairs)

    def _read(self, key: bytes, request: Any) -> kvrpcpb.KvPair | None:
        needs_commit_ts = getattr(request, "need_commit_ts", False)
        if key in self.locks and request.context.isolation_level == kvrpcpb.IsolationLevel.SI:
            info, value = self.locks[key]
            start_ts = info.lock_version
            is_latest_primary = request.version == LATEST and key == info.primary_lock and not info.use_async_commit
            if start_ts > request.version or info.min_commit_ts > request.version or is_latest_primary:
                pass
            elif start_ts in request.context.committed_locks and not needs_commit_ts:
                return None if value is None else kvrpcpb.KvPair(key=key, value=value)
            elif start_ts not in request.context.resolved_locks:
                return kvrpcpb.KvPair(error=kvrpcpb.KeyError(locked=info))
        seen = [commit_ts for commit_ts in self.versions.get(key, {}) if commit_ts <= request.version]
        value = self.versions[key][max(seen)][1] if seen else None
        if value is None:
            return None
        return kvrpcpb.KvPair(key=key, value=value, commit_ts=max(seen) if needs_commit_ts else 0)

    def check_txn_status(self, request: kvrpcpb.CheckTxnStatusRequest) -> kvrpcpb.CheckTxnStatusResponse:
        key, start_ts = request.primary_key, request.lock_ts
        answer = kvrpcpb.CheckTxnStatusResponse
        if not self._is_locked(key, start_ts):
            commit_ts = self._committed(key, start_ts)
            if commit_ts or (key, start_ts) in self.rolled_back:
                return answer(commit_version=commit_ts)
            if not request.rollback_if_not_exist:
                missing = kvrpcpb.TxnNotFound(start_ts=start_ts, primary_key=key)
                return answer(error=kvrpcpb.KeyError(txn_not_found=missing))
            self.rolled_back.add((key, start_ts))
            return answer(action=kvrpcpb.Action.LockNotExistRollback)
        info, _ = self.locks[key]
        if info.use_async_commit and not request.force_sync_commit:
            return answer(lock_ttl=info.lock_ttl, lock_info=info)
        if (start_ts >> 18) + info.lock_ttl < request.current_ts >> 18:
            self._finish(key, 0)
            return answer(action=kvrpcpb.Action.TTLExpireRollback)
        caller = request.caller_start_ts
        if info.min_commit_ts and caller != LATEST and caller >= info.min_commit_ts:
            info.min_commit_ts = caller + 1
        is_pushed = caller == LATEST or (caller != 0 and info.min_commit_ts > caller)
        action = kvrpcpb.Action.MinCommitTSPushed if is_pushed else kvrpcpb.Action.NoAction
        return answer(lock_ttl=info.lock_ttl, lock_info=info, action=action)

    def check_secondary_locks(self, request: kvrpcpb.CheckSecondaryLocksRequest) -> kvrpcpb.CheckSecondaryLocksResponse:
        start_ts = request.start_version
        for key in request.keys:
            if not self._is_locked(key, start_ts):
                commit_ts = self._committed(key, start_ts)
                if not commit_ts:
                    self.rolled_back.add((key, start_ts))
                return kvrpcpb.CheckSecondaryLocksResponse(commit_ts=commit_ts)
        return kvrpcpb.CheckSecondaryLocksResponse(locks=[self.locks[key][0] for key in request.keys])

    def resolve_lock(self, request: kvrpcpb.ResolveLockRequest) -> kvrpcpb.ResolveLockResponse:
        within = self._region(request)
        for key in request.keys or [key for key in self.locks if within.contains(key)]:
            if self._is_locked(key, request.start_version):
                self._finish(key, request.commit_version)
        return kvrpcpb.ResolveLockResponse()

    def _finish(self, key: bytes, commit_ts: int) -> None:
        info, value = self.locks.pop(key)
        if commit_ts:
            self.write(key, value, commit_ts, info.lock_version)
        else:
            self.rolled_back.add((key, info.lock_version))

    def _is_locked(self, key: bytes, start_ts: int) -> bool:
        return key in self.locks and self.locks[key][0].lock_version == start_ts

    def _committed(self, key: bytes, start_ts: int) -> int:
        return next((at for at, (start, _) in self.versions.get(key, {}).items() if start == start_ts), 0)

    def _region(self, request: Any) -> KeyRange:
        return self._bounds(next(each for each in self.cluster.map.regions if each.id == request.context.region_id))

    def _bounds(self, region: Region) -> KeyRange:
        bounds = self.cluster.map.codec.decode_region_range(region.start_key, region.end_key)
        assert bounds is not None
        return KeyRange(*bounds)


@pytest.fixture
def ledger(cluster: FakeCluster) -> Ledger:
    """What the cluster holds."""
    return Ledger(cluster)


@pytest.fixture
def new_ledger() -> Callable[[FakeCluster], Any]:
    """Returns a `Ledger` of a cluster."""
    return Ledger


@pytest.fixture
def open_cluster() -> Callable[[FakeCluster, TxnConfig], AbstractAsyncContextManager[TxnStore]]:
    """Connects to a cluster as `store` is connected."""
    return open_store
