"""How the reads of a snapshot get past locks.

Each request of a snapshot tells the store, in its Context, of which transactions the snapshot has learned that their
locks do not concern it, or are as good as committed. What it meets beyond these is found out about, and then only what
was locked is asked for again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs
from tikv_pd import LATEST
from tikv_pd.backoff import TXN_LOCK_FAST
from tikv_proto import kvrpcpb
from tikv_region import RegionEntry
from tikv_rpc import Call, KeyWork, ReplicaRead, Request, ResolveLocks
from tikv_rpc.frontend.sizes import PairSizes

from tikv_txn._locks.locks import Lock
from tikv_txn._locks.resolver import LockResolver
from tikv_txn._reads.requests import ReadRequests
from tikv_txn._store import TxnStore
from tikv_txn.errors import KeyLocked, TransactionRefused, key_error
from tikv_txn.versioned import Versioned

_PASSES: Final = 1024
"""Transactions of each kind that a snapshot's requests name at most. Those named first are forgotten first: by then
their locks have been put away, and if not they are met again."""
_KEY_OVERHEAD: Final = 16
"""Bytes a pair adds to an answer besides its key and value."""


class Passes:
    """The transactions whose locks the requests of a snapshot may pass."""

    __slots__ = ("_access", "_ignore", "context")

    def __init__(self) -> None:
        self.context = b""
        """The fields of kvrpcpb.Context that name them, serialized."""
        self._ignore: dict[int, None] = {}
        self._access: dict[int, None] = {}

    def add(self, ignore: frozenset[int], access: frozenset[int] = frozenset()) -> None:
        """Add transactions whose locks to pass by, and such whose locks to read through."""
        for known, new in ((self._ignore, ignore), (self._access, access)):
            known.update(dict.fromkeys(sorted(new)))
            for start_ts in list(known)[:-_PASSES]:
                del known[start_ts]
        context = kvrpcpb.Context(resolved_locks=list(self._ignore), committed_locks=list(self._access))
        self.context = context.SerializeToString()


class LockedReads:
    """What the reads at one timestamp have in common.

    Args:
        store: The cluster.
        resolver: Finds out about locks.
        sizes: Guesses how large values are.
        ts: Where they read.
    """

    def __init__(self, store: TxnStore, resolver: LockResolver, sizes: PairSizes, ts: int) -> None:
        self.store = store
        """The cluster."""
        self.requests = ReadRequests(store.codec)
        """Makes the requests."""
        self.sizes = sizes
        """Guesses how large values are."""
        self.ts = ts
        """Where they read."""
        self.passes = Passes()
        """Which locks they may pass."""
        self._resolver = resolver

    async def get_past(self, locks: Sequence[Lock], call: Call, *, lite: bool = False, clean: bool = False) -> None:
        """Return when it is time to ask again for what was locked.

        Args:
            locks: What was met.
            call: The operation.
            lite: See `LockResolver.resolve_for_read`.
            clean: Likewise.

        Raises:
            DeadlineExceeded, BackoffExceeded: from KeyLocked.
            TikvError: as `LockResolver.resolve_for_read`.
        """
        outcome = await self._resolver.resolve_for_read(locks, self.ts, call, lite=lite, clean=clean)
        self.passes.add(outcome.ignore, outcome.access)
        if call.options.stale_read:
            # A replica may see the lock for long after it was put away at the leader.
            call.options = attrs.evolve(
                call.options, stale_read=False, replica_read=ReplicaRead.LEADER, busy_threshold=None
            )
        cause = met(locks)
        if outcome.wait > 0:
            await call.backoffer.backoff(TXN_LOCK_FAST, cause, at_most=outcome.wait)
        else:
            await call.pause(None, cause)

    def locks_of(self, error: kvrpcpb.KeyError, call: Call) -> list[Lock]:
        """Return the locks that a store tells of; raise what else it says."""
        if not error.HasField("locked"):
            raise key_error(error, self.store.codec, operation=call.operation)
        return Lock.of(error.locked, self.store.codec)

    async def batch_get(
        self, keys: Sequence[bytes], call: Call, *, need_commit_ts: bool = False, as_operation: bool = True
    ) -> dict[bytes, Versioned]:
        """Return what many keys hold; of commit timestamps that are not needed, 0.

        Args:
            keys: The keys, each once.
            call: The operation.
            need_commit_ts: Whether to ask for commit timestamps.
            as_operation: Whether it is all the call does; else it is a part of it.
        """
        answers = _BatchAnswers(self, need_commit_ts)
        plan = self.store.fan_out_by(ResolveLocks(self.store.regions, answers))
        expected = int(self.sizes.guess) + _KEY_OVERHEAD
        work = KeyWork(
            keys,
            lambda part: answers.request([keys[position] for position in part]),
            self.store.config.batch_get_keys,
            self.store.config.batch_get_bytes,
            [len(key) + expected for key in keys],
        )
        await (self.store.operation(plan) if as_operation else plan).execute(work, call)
        return answers.found


class GetLocks:
    """Deals with locks met by requests for one key. Made anew for each read of the latest version.

    Args:
        reads: What the reads have in common.
        need_commit_ts: Whether commit timestamps are asked for: with those, stores read through no lock.
    """

    def __init__(self, reads: LockedReads, *, need_commit_ts: bool = False) -> None:
        self._reads = reads
        self._need_commit_ts = need_commit_ts
        self._first: int | None = None

    async def resolve(
        self, _entry: RegionEntry, request: Request[Any], response: Any, call: Call
    ) -> Request[Any] | None:
        """Return the request to send again, None when the response has what was asked for."""
        if not response.HasField("error"):
            return None
        reads = self._reads
        locks = reads.locks_of(response.error, call)
        if reads.ts == LATEST and self._is_new(locks):
            reads.passes.add(frozenset(lock.start_ts for lock in locks))
            await call.pause(None, met(locks))
        else:
            await reads.get_past(locks, call, lite=True, clean=self._need_commit_ts)
        request.context = reads.passes.context
        return request

    def _is_new(self, locks: Sequence[Lock]) -> bool:
        """Tell whether locks were made after the read began, so that it may take place before them."""
        if self._first is None:
            self._first = locks[0].start_ts
        return all(lock.start_ts != self._first for lock in locks)


class ScanLocks:
    """Deals with locks that kept a store from answering for a page of a scan at all."""

    def __init__(self, reads: LockedReads) -> None:
        self._reads = reads

    async def resolve(
        self, _entry: RegionEntry, request: Request[Any], response: Any, call: Call
    ) -> Request[Any] | None:
        """Return the request to send again, None when the response is a page."""
        if not response.HasField("error"):
            return None
        await self._reads.get_past(self._reads.locks_of(response.error, call), call)
        request.context = self._reads.passes.context
        return request


class _BatchAnswers:
    """Collects what the requests for many keys find, and asks again for what was locked."""

    def __init__(self, reads: LockedReads, need_commit_ts: bool) -> None:
        self.found: dict[bytes, Versioned] = {}
        self._reads = reads
        self._need_commit_ts = need_commit_ts

    def request(self, keys: Sequence[bytes]) -> Request[kvrpcpb.BatchGetResponse]:
        """Ask for keys of one Region."""
        reads = self._reads
        return reads.requests.batch_get(keys, reads.ts, reads.passes.context, need_commit_ts=self._need_commit_ts)

    async def resolve(
        self, _entry: RegionEntry, request: Request[Any], response: Any, call: Call
    ) -> Request[Any] | None:
        """Take in what was found; return a request for what was locked, None when nothing was."""
        reads, decode = self._reads, self._reads.store.codec.decode_key
        if response.HasField("error"):
            await self._get_past(reads.locks_of(response.error, call), call)
            request.context = reads.passes.context
            return request
        locks: list[Lock] = []
        locked: list[bytes] = []
        for pair in response.pairs:
            # Only a pair without a value can be an error; asking each takes time.
            if not pair.value and pair.HasField("error"):
                locks += reads.locks_of(pair.error, call)
                locked.append(decode(pair.error.locked.key))
                continue
            if self._need_commit_ts and not pair.commit_ts:
                raise lacks_commit_ts(call)
            self.found[decode(pair.key)] = Versioned(pair.value, pair.commit_ts)
        reads.sizes.learn(len(response.pairs), response.ByteSize())
        if not locks:
            return None
        await self._get_past(locks, call)
        return self.request(locked)

    async def _get_past(self, locks: Sequence[Lock], call: Call) -> None:
        await self._reads.get_past(locks, call, clean=self._need_commit_ts)


def met(locks: Sequence[Lock]) -> KeyLocked:
    """Return the error for a read that ends here."""
    first = locks[0]
    return KeyLocked(first.key, first.primary, first.start_ts, first.ttl_ms / 1000)


def lacks_commit_ts(call: Call) -> TransactionRefused:
    """Return the error for an answer without a commit timestamp that was asked for."""
    return TransactionRefused(call.operation, "it answered without the commit timestamp that was asked for")
