"""From a transactional request to its response: the checks of the store around the pure actions of `mvcc.actions`."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import attrs
from tikv_proto import kvrpcpb

from tikv_embedded.engine import Snapshot, WriteBatch
from tikv_embedded.mvcc.actions.check_secondary_locks import check_secondary_locks
from tikv_embedded.mvcc.actions.check_txn_status import check_txn_status
from tikv_embedded.mvcc.actions.commit import commit
from tikv_embedded.mvcc.actions.delete_range import delete_range, unsafe_destroy_range
from tikv_embedded.mvcc.actions.heartbeat import txn_heart_beat
from tikv_embedded.mvcc.actions.inspect import mvcc_get_by_key, mvcc_get_by_start_ts
from tikv_embedded.mvcc.actions.prewrite import prewrite
from tikv_embedded.mvcc.actions.read import batch_get, get, scan
from tikv_embedded.mvcc.actions.resolve_lock import resolve_lock, scan_lock
from tikv_embedded.mvcc.actions.rollback import batch_rollback, cleanup
from tikv_embedded.mvcc.context import TxnContext
from tikv_embedded.mvcc.errors import MvccError, RegionRefusedError, aborted, put_key_error
from tikv_embedded.mvcc.keys import MAX_TS, encode_key
from tikv_embedded.mvcc.max_ts import MaxTs
from tikv_embedded.mvcc.reader import MvccReader
from tikv_embedded.region import Region
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.store.entry_size import entry_error
from tikv_embedded.store.exec_details import fill_details
from tikv_embedded.store.raw_requests import ClusterIdMismatchError
from tikv_embedded.store.region_checks import check_keys, check_region, data_is_not_ready, deadline_error
from tikv_embedded.store.safe_ts import SafeTs
from tikv_embedded.store.txn_checks import check_txn_keys, check_txn_range
from tikv_embedded.topology import Topology

TxnAction = Callable[[TxnContext, Any], tuple[Any, WriteBatch | None]]
"""`(ctx, kvrpcpb request) -> (kvrpcpb response, what to write)`; raises what it refuses."""


@attrs.frozen
class TxnRule:
    """How one kind of transactional request is served."""

    response: type[Any]
    """Class of the response; all have a `region_error`."""
    action: TxnAction
    keys: Callable[[Any], Collection[bytes]] | None = None
    """The user keys that it changes, which must be in its Region; None is all keys of the Region."""
    is_read: bool = False
    """Whether it writes nothing."""
    by_replicas: bool = False
    """Whether replicas may answer it when asked to."""
    refusal: Callable[[ApiMode, Any], str | None] = lambda _mode, _request: None
    """Its API version and key modes, where TiKV checks them."""


def _key(request: Any) -> Collection[bytes]:
    return (request.key,)


def _keys(request: Any) -> Collection[bytes]:
    return request.keys  # type: ignore[no-any-return]  # Of any request that has them.


def _mutated(request: Any) -> Collection[bytes]:
    return [mutation.key for mutation in request.mutations]


def _primary_lock(request: Any) -> Collection[bytes]:
    return (request.primary_lock,)


def _primary_key(request: Any) -> Collection[bytes]:
    return (request.primary_key,)


def _resolved(request: Any) -> Collection[bytes] | None:
    return request.keys or None


def _checked_keys(command: str, keys: Callable[[Any], Iterable[bytes]]) -> Callable[[ApiMode, Any], str | None]:
    return lambda mode, request: check_txn_keys(mode, request.context, command, keys(request))


def _checked_range(command: str) -> Callable[[ApiMode, Any], str | None]:
    def check(mode: ApiMode, request: Any) -> str | None:
        start, end = request.start_key, request.end_key
        if getattr(request, "reverse", False):
            start, end = end, start
        return check_txn_range(mode, request.context, command, start, end)

    return check


def _read(response: type[Any], action: TxnAction, refusal: Callable[[ApiMode, Any], str | None]) -> TxnRule:
    return TxnRule(response, action, is_read=True, by_replicas=True, refusal=refusal)


TXN_RULES: dict[type[Any], TxnRule] = {
    kvrpcpb.GetRequest: _read(kvrpcpb.GetResponse, get, _checked_keys("get", _key)),
    kvrpcpb.BatchGetRequest: _read(kvrpcpb.BatchGetResponse, batch_get, _checked_keys("batch_get", _keys)),
    kvrpcpb.ScanRequest: _read(kvrpcpb.ScanResponse, scan, _checked_range("scan")),
    kvrpcpb.PrewriteRequest: TxnRule(
        kvrpcpb.PrewriteResponse, prewrite, _mutated, refusal=_checked_keys("prewrite", _mutated)
    ),
    kvrpcpb.CommitRequest: TxnRule(kvrpcpb.CommitResponse, commit, _keys),
    kvrpcpb.BatchRollbackRequest: TxnRule(kvrpcpb.BatchRollbackResponse, batch_rollback, _keys),
    kvrpcpb.CleanupRequest: TxnRule(kvrpcpb.CleanupResponse, cleanup, _key),
    kvrpcpb.TxnHeartBeatRequest: TxnRule(kvrpcpb.TxnHeartBeatResponse, txn_heart_beat, _primary_lock),
    kvrpcpb.CheckTxnStatusRequest: TxnRule(kvrpcpb.CheckTxnStatusResponse, check_txn_status, _primary_key),
    kvrpcpb.CheckSecondaryLocksRequest: TxnRule(kvrpcpb.CheckSecondaryLocksResponse, check_secondary_locks, _keys),
    kvrpcpb.ResolveLockRequest: TxnRule(kvrpcpb.ResolveLockResponse, resolve_lock, _keys),
    kvrpcpb.ScanLockRequest: TxnRule(kvrpcpb.ScanLockResponse, scan_lock, is_read=True),
    kvrpcpb.DeleteRangeRequest: TxnRule(
        kvrpcpb.DeleteRangeResponse, delete_range, refusal=_checked_range("delete_range")
    ),
    kvrpcpb.MvccGetByKeyRequest: TxnRule(kvrpcpb.MvccGetByKeyResponse, mvcc_get_by_key, _key, is_read=True),
    kvrpcpb.MvccGetByStartTsRequest: TxnRule(kvrpcpb.MvccGetByStartTsResponse, mvcc_get_by_start_ts, is_read=True),
}
"""Every transactional request a store serves; UnsafeDestroyRange, which belongs to no Region, is none of them."""


def latches_of(rule: TxnRule, request: Any) -> Collection[bytes] | None:
    """Return the keys that nobody else may change while the request is decided; None is all of them."""
    return (rule.keys(request) or None) if rule.keys is not None else None


@attrs.frozen
class TxnStore:
    """Serves the transactional requests of one store. Nothing here awaits or writes."""

    topology: Topology
    mode: ApiMode
    store_id: int
    max_ts_of: Callable[[int], MaxTs]
    """Of the store with that id."""
    safe_ts: SafeTs
    """Of this store."""
    clock: Callable[[], float] = time.monotonic
    """Seconds; deadlines and processing times are measured with it."""

    def session(self, snapshot: Snapshot) -> TxnSession:
        """Return what serves requests from that snapshot; for one step of the loop."""
        return TxnSession(self, snapshot)

    def resolved_ts(self, snapshot: Snapshot, lower: bytes = b"", upper: bytes = b"") -> int:
        """Return how far stale reads of an encoded range can go: to the safe timestamp, or to the start of a lock."""
        locks = MvccReader(snapshot).locks(lower, upper)
        return min([self.safe_ts.advance(), *(lock.start_ts for _, lock in locks)])

    def destroy_range(
        self, request: kvrpcpb.UnsafeDestroyRangeRequest
    ) -> tuple[kvrpcpb.UnsafeDestroyRangeResponse, WriteBatch | None]:
        """Return the response and what to write before it is sent; no Region is asked."""
        return unsafe_destroy_range(request)


class TxnSession:
    """Serves requests that arrived together from one snapshot; those that write have no key in common."""

    def __init__(self, store: TxnStore, snapshot: Snapshot) -> None:
        self._store = store
        self._snapshot = snapshot
        self._received = store.clock()

    def run(self, rule: TxnRule, request: Any) -> tuple[Any, WriteBatch | None]:
        """Return the response and what to write before it is sent.

        Raises:
            ClusterIdMismatchError: the request is for another cluster.
        """
        response, batch = self._answer(rule, request)
        fill_details(response, self._store.clock() - self._received)
        return response, batch or None

    def _answer(self, rule: TxnRule, request: Any) -> tuple[Any, WriteBatch | None]:
        topology, context = self._store.topology, request.context
        if context.cluster_id and context.cluster_id != topology.cluster_id:
            raise ClusterIdMismatchError.of(topology.cluster_id, context.cluster_id)
        region = check_region(topology, self._store.store_id, context, is_read=rule.by_replicas)
        if not isinstance(region, Region):
            return rule.response(region_error=region), None
        error = deadline_error(context, (self._store.clock() - self._received) * 1000)
        if error is not None:
            return rule.response(region_error=error), None
        try:
            return self._carry_out(rule, region, request)
        except MvccError as refused:
            response = rule.response()
            put_key_error(response, refused.key_error)
            return response, None
        except RegionRefusedError as refused:
            return rule.response(region_error=refused.region_error), None

    def _carry_out(self, rule: TxnRule, region: Region, request: Any) -> tuple[Any, WriteBatch | None]:
        if refusal := rule.refusal(self._store.mode, request):
            raise aborted(refusal)
        if rule.keys is not None and (error := check_keys(region, map(encode_key, rule.keys(request)))):
            raise RegionRefusedError(error)
        ctx = TxnContext(self._snapshot, region, self._max_ts(region))
        if rule.by_replicas and request.context.stale_read:
            self._check_stale_read(ctx, request.version)
        response, batch = rule.action(ctx, request)
        # Only prewrites carry values; TiKV resolves locks in as many entries as it takes.
        if batch is not None and rule.action is prewrite and (error := entry_error(region.id, batch)):
            raise RegionRefusedError(error)
        return response, batch

    def _max_ts(self, region: Region) -> MaxTs:
        """A replica asks the leader, which notes the timestamp of the read."""
        store_id = self._store.store_id if region.leader is None else region.leader.store_id
        return self._store.max_ts_of(store_id)

    def _check_stale_read(self, ctx: TxnContext, version: int) -> None:
        """Refuse to read what may still change; what is read may not change afterwards."""
        region, store_id = ctx.region, self._store.store_id
        safe_ts = self._store.resolved_ts(ctx.snapshot, region.start_key, region.end_key)
        if version != MAX_TS and version <= safe_ts:
            ctx.max_ts.observe(version)
            return
        peer = region.peer_on(store_id)
        raise RegionRefusedError(data_is_not_ready(region.id, 0 if peer is None else peer.id, safe_ts))
