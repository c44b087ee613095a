"""Reads at one timestamp."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

from tikv_pd import LATEST, ConfigError, Timestamp
from tikv_region import KeyRange
from tikv_region.flight import SingleFlight
from tikv_rpc import Call, Isolation, RequestOptions, ResolveLocks
from tikv_rpc.frontend.arguments import BytesLike, as_items, as_key, as_range, check_flag, check_limit, check_timeout
from tikv_rpc.frontend.callers import while_reading
from tikv_rpc.frontend.paging import Page
from tikv_rpc.frontend.sizes import PairSizes

from tikv_txn._locks.resolver import LockResolver
from tikv_txn._reads.cache import ReadCache
from tikv_txn._reads.locked_reads import GetLocks, LockedReads, lacks_commit_ts
from tikv_txn._reads.safe_point import SafePoint
from tikv_txn._store import TxnStore, in_time_of
from tikv_txn.scan import ReadPage, Scan, ScanOrder
from tikv_txn.versioned import Versioned

Start: TypeAlias = Callable[[TxnStore, Call], Awaitable[int]]
"""Returns the timestamp a snapshot reads at."""


class Reads:
    """What the snapshots of one client share.

    Args:
        store: The cluster.
        resolver: Finds out about locks.
    """

    def __init__(self, store: TxnStore, resolver: LockResolver) -> None:
        self.store = store
        """The cluster."""
        self.resolver = resolver
        """Finds out about locks."""
        self.safe_point = SafePoint(store)
        """Knows what can still be read."""
        self.sizes = PairSizes()
        """Guesses how large values are."""

    def at(self, ts: int) -> LockedReads:
        """Return what reads at a timestamp have in common."""
        return LockedReads(self.store, self.resolver, self.sizes, ts)


async def fresh(store: TxnStore, call: Call) -> int:
    """Return a new timestamp: all that has been committed by now is seen there."""
    return await store.get_ts(call)


def granted(ts: int) -> Start:
    """Return what starts a snapshot at a timestamp of the caller's, if PD has granted one as late as that."""

    async def start(store: TxnStore, call: Call) -> int:
        await in_time_of(call, lambda left: store.pd.validate_read_ts(ts, stale=call.options.stale_read, timeout=left))
        return ts

    return start


def stale(seconds: float) -> Start:
    """Return what starts a snapshot so many seconds in the past."""

    async def start(store: TxnStore, call: Call) -> int:
        return (await in_time_of(call, lambda left: store.pd.get_stale_ts(seconds, timeout=left))).ts

    return start


class Snapshot:
    """What the database holds at one timestamp: repeatable reads of everything that was committed by then.

    `TransactionClient.snapshot` makes it. Any number of tasks may share it. It need not be closed, and may be used as
    long as the cluster keeps old versions: ten minutes, as a rule. It keeps no lock and stands in nobody's way.
    Values that were read are remembered, as `TxnConfig.snapshot_cache_bytes` allows.

    At `tikv_pd.LATEST` each read sees the newest version of each of its keys, which saves asking PD for a timestamp;
    reads of several keys are then no snapshot, and nothing is repeatable.

    Every call may raise:
        DeadlineExceeded: its time ran out; the last failure, such as KeyLocked, is the `__cause__`.
        SnapshotTooOld: what it reads may have been collected as garbage.
        WriteConflict: with `Isolation.RC_CHECK_TS`, there is something newer.
        FutureTimestamp: the timestamp that it was given lies ahead of what PD has granted.
        TransactionRefused: a store refused.
        PdError, ClusterMismatch, RpcError: PD or a store refused for good.
        TypeError, ConfigError: an argument is of the wrong type, or can never work. Nothing was sent.
        ClosedError: the client is not open.

    Cancellation: safe.
    Source: client-go txnsnapshot.KVSnapshot.
    """

    def __init__(self, reads: Reads, start: int | Start, options: RequestOptions, timeout: float) -> None:
        self._client = reads
        self._start = start if callable(start) else None
        self._at: LockedReads | None = None
        self._plan: Any = None
        self._options = options
        self._timeout = timeout
        self._cache = ReadCache(reads.store.config.snapshot_cache_bytes)
        self._starting: SingleFlight[int] = SingleFlight()
        if not callable(start):
            self._begin_at(start)

    async def get_ts(self, *, timeout: float | None = None) -> Timestamp:
        """Return where it reads; fixed by the first call of any kind.

        Args:
            timeout: Seconds.
        """
        return Timestamp.from_ts((await self._started(self._call("get_ts", timeout))).ts)

    async def get(self, key: BytesLike, *, timeout: float | None = None) -> bytes | None:
        """Return the value of `key`, None when there is none.

        Args:
            key: Any bytes, also none.
            timeout: Seconds.

        Source: kvrpcpb.GetRequest.
        """
        found = await self._get("get", as_key(key), timeout, need_commit_ts=False)
        return None if found is None else found.value

    async def exists(self, key: BytesLike, *, timeout: float | None = None) -> bool:
        """Tell whether there is a value of `key`.

        Args:
            key: Any bytes, also none.
            timeout: Seconds.
        """
        return await self._get("exists", as_key(key), timeout, need_commit_ts=False) is not None

    async def get_versioned(self, key: BytesLike, *, timeout: float | None = None) -> Versioned | None:
        """Return the value of `key` with the commit timestamp of who wrote it, None when there is none.

        Slower than `get` where locks are met: the store reads through none.

        Args:
            key: Any bytes, also none.
            timeout: Seconds.

        Source: kvrpcpb.GetRequest.need_commit_ts.
        """
        return await self._get("get_versioned", as_key(key), timeout, need_commit_ts=True)

    async def batch_get(self, keys: Iterable[BytesLike], *, timeout: float | None = None) -> dict[bytes, bytes]:
        """Return the values of those `keys` that exist.

        Args:
            keys: Any number, in any order, duplicates allowed.
            timeout: Seconds, for all of them together.

        Returns:
            key → value for the keys found, in no given order.

        Source: kvrpcpb.BatchGetRequest.
        """
        found = await self._batch_get("batch_get", keys, timeout, need_commit_ts=False)
        return {key: entry.value for key, entry in found.items()}

    async def batch_get_versioned(
        self, keys: Iterable[BytesLike], *, timeout: float | None = None
    ) -> dict[bytes, Versioned]:
        """Return the values of those `keys` that exist, with the commit timestamps of who wrote them.

        Args:
            keys: Any number, in any order, duplicates allowed.
            timeout: Seconds, for all of them together.

        Source: kvrpcpb.BatchGetRequest.need_commit_ts.
        """
        return await self._batch_get("batch_get_versioned", keys, timeout, need_commit_ts=True)

    def scan(
        self,
        start: BytesLike = b"",
        end: BytesLike = b"",
        *,
        prefix: BytesLike | None = None,
        limit: int | None = None,
        reverse: bool = False,
        key_only: bool = False,
        sample_step: int = 0,
        timeout: float | None = None,
    ) -> Scan:
        """Return an iterator over the (key, value) pairs from `start` up to but excluding `end`.

        Lazy: pages of `TxnConfig.scan_page` pairs or about `scan_bytes` are fetched as they are consumed, one ahead.

        Args:
            start: First key, inclusive, also when `reverse`.
            end: End of the range, exclusive, also when `reverse`; empty for unbounded.
            prefix: Instead of `start` and `end`: all keys that begin with it, all keys there are when it is empty.
            limit: Pairs at most, any number; None for all, 0 for none.
            reverse: Descending instead of ascending order of keys.
            key_only: Leave the values out; they come as b"".
            sample_step: Return one pair out of so many, about, counted anew in each Region and page; 0 for all.
            timeout: Seconds that fetching one page may take.

        Raises:
            ConfigError: `prefix` together with `start` or `end`, or a negative number.
            ClosedError: the client is not open. The errors of reading come while iterating; see `Scan`.

        Source: kvrpcpb.ScanRequest.
        """
        key_range = as_range(start, end, prefix)
        limit = check_limit(limit)
        order = ScanOrder(check_flag(reverse, "reverse"), check_flag(key_only, "key_only"), _check_step(sample_step))
        if timeout is not None:
            timeout = check_timeout(timeout)
        # Fails where nothing can be read any more.
        self._call("scan", timeout)
        client, config = self._client, self._client.store.config

        async def fetch(rest: KeyRange, page_limit: int) -> Page:
            call = self._call("scan", timeout)
            reads = await self._started(call)
            plan = ReadPage.of(reads, order, page_limit)
            page = await client.store.operation(plan).execute(plan.work(rest), call)
            await self._check(reads, call)
            return page

        page_pairs = partial(client.sizes.fit, config.scan_page, config.scan_bytes, key_only=key_only)
        return Scan(fetch, client.store.rpc, key_range, limit, page_pairs, "TransactionClient")

    async def _get(
        self, operation: str, key: bytes, timeout: float | None, *, need_commit_ts: bool
    ) -> Versioned | None:
        call = self._call(operation, timeout)
        known = self._cache.get(key, need_commit_ts=need_commit_ts)
        if known is not None:
            return known[0]
        reads = await self._started(call)
        plan = self._plan
        if need_commit_ts or reads.ts == LATEST:
            plan = self._key_plan(reads, need_commit_ts=need_commit_ts)
        request = reads.requests.get(key, reads.ts, reads.passes.context, need_commit_ts=need_commit_ts)
        response = await plan.execute((key, request), call)
        if need_commit_ts and not response.not_found and not response.commit_ts:
            raise lacks_commit_ts(call)
        await self._check(reads, call)
        found = None if response.not_found else Versioned(response.value, response.commit_ts)
        if self._is_repeatable(reads):
            self._cache.put(key, found)
        return found

    async def _batch_get(
        self, operation: str, keys: Iterable[Any], timeout: float | None, *, need_commit_ts: bool
    ) -> dict[bytes, Versioned]:
        call = self._call(operation, timeout)
        found: dict[bytes, Versioned] = {}
        unknown = []
        for key in await while_reading(keys, lambda: dict.fromkeys(map(as_key, as_items(keys)))):
            known = self._cache.get(key, need_commit_ts=need_commit_ts)
            if known is None:
                unknown.append(key)
            elif known[0] is not None:
                found[key] = known[0]
        if not unknown:
            return found
        reads = await self._started(call)
        read = await reads.batch_get(unknown, call, need_commit_ts=need_commit_ts)
        await self._check(reads, call)
        if self._is_repeatable(reads):
            for key in unknown:
                self._cache.put(key, read.get(key))
        return found | read

    def _call(self, operation: str, timeout: float | None) -> Call:
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        return self._client.store.rpc.call(operation, seconds, self._options)

    async def _started(self, call: Call) -> LockedReads:
        """Return where it reads, which the first call fixes."""
        self._client.safe_point.refresh_soon()
        at, start = self._at, self._start
        if at is None and start is not None:
            store = self._client.store

            async def ask() -> int:
                return await start(store, call)

            ts = await self._starting.ask("start", call.deadline, ask)
            at = self._at or self._begin_at(ts)
        assert at is not None
        # What is newest changes, and with it which locks to pass.
        return self._client.at(LATEST) if at.ts == LATEST else at

    def _begin_at(self, ts: int) -> LockedReads:
        self._at = self._client.at(ts)
        self._plan = self._key_plan(self._at, need_commit_ts=False)
        return self._at

    def _key_plan(self, reads: LockedReads, *, need_commit_ts: bool) -> Any:
        store = self._client.store
        locks = GetLocks(reads, need_commit_ts=need_commit_ts)
        return store.operation(store.at_key_by(ResolveLocks(store.regions, locks)))

    async def _check(self, reads: LockedReads, call: Call) -> None:
        if reads.ts != LATEST:
            await self._client.safe_point.check(reads.ts, call)

    def _is_repeatable(self, reads: LockedReads) -> bool:
        return reads.ts != LATEST and self._options.isolation is Isolation.SI


def _check_step(step: int) -> int:
    if isinstance(step, bool) or not isinstance(step, int):
        raise TypeError(f"sample_step must be an int, not {type(step).__name__}")
    if not 0 <= step < 1 << 32:
        raise ConfigError(f"sample_step must be between 0 and 2**32 - 1, got {step}")
    return step
