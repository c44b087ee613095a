"""What `Snapshot.scan` returns, and how its pages are read."""

from __future__ import annotations

import attrs
from tikv_proto import kvrpcpb
from tikv_region import KeyRange
from tikv_rpc import Call, Edge, Plan, Request, ResolveLocks
from tikv_rpc.frontend.paging import Page, PagedScan, rest_of_scan

from tikv_txn._locks.locks import Lock
from tikv_txn._reads.locked_reads import LockedReads, ScanLocks


class Scan(PagedScan):
    """The (key, value) pairs of a range as a snapshot sees them, fetched page by page as they are consumed.

    Pairs come in key order, each key at most once, also when Regions split, merge or move meanwhile. Several tasks may
    iterate over one scan: each pair goes to one of them.

    Breaking out of the loop leaves nothing behind but at most one page that is fetched and dropped; `aclose`, or
    `async with`, ends that at once, too.

    Raises, while iterating:
        DeadlineExceeded: a page did not come within the scan's `timeout`. Iterating on tries again from there.
        SnapshotTooOld: what it reads may have been collected as garbage.
        ClosedError: the client was closed. Pairs fetched before are still returned.
        TransactionRefused: a store refused.

    Cancellation: safe. Iterating on afterwards continues with the pair after the last one returned.
    Source: kvrpcpb.ScanRequest.
    """


@attrs.frozen
class ScanOrder:
    """Which pairs of a range a scan is about."""

    reverse: bool = False
    """Whether it descends."""
    key_only: bool = False
    """Whether values are left out."""
    sample_step: int = 0
    """Of how many pairs the first is returned; 0 for every pair."""


@attrs.frozen(eq=False)
class ReadPage:
    """Read the first pairs of a range in the order of a scan, as far as one Region holds them.

    A store answers with locks in the places of pairs; those are asked for again by their keys.
    """

    inner: Plan[Edge[kvrpcpb.ScanResponse], tuple[KeyRange, kvrpcpb.ScanResponse]]
    reads: LockedReads
    order: ScanOrder
    limit: int

    @classmethod
    def of(cls, reads: LockedReads, order: ScanOrder, limit: int) -> ReadPage:
        """Return the plan for a page of up to `limit` pairs."""
        regions = ResolveLocks(reads.store.regions, ScanLocks(reads))
        return cls(reads.store.at_edge_by(regions), reads, order, limit)

    def work(self, rest: KeyRange) -> Edge[kvrpcpb.ScanResponse]:
        """Return the work of reading what remains of a range."""
        return Edge(rest, self.order.reverse, self._request)

    async def execute(self, work: Edge[kvrpcpb.ScanResponse], call: Call) -> Page:
        """Read a page."""
        covered, response = await self.inner.execute(work, call)
        decode = self.reads.store.codec.decode_key
        keys: list[bytes] = []
        values: list[bytes | None] = []
        locks: list[Lock] = []
        for pair in response.pairs:
            value: bytes | None = pair.value
            key = pair.key
            # Only a pair without a value can be an error; asking each takes time.
            if not value and pair.HasField("error"):
                locks += self.reads.locks_of(pair.error, call)
                value = None
                key = key or pair.error.locked.key
            keys.append(decode(key))
            values.append(value)
        if not self.order.key_only:
            self.reads.sizes.learn(len(keys), response.ByteSize())
        last = keys[-1] if len(keys) >= self.limit else None
        rest = rest_of_scan(work.key_range, covered, last, reverse=self.order.reverse)
        pairs = list(zip(keys, values, strict=True))
        if not locks:
            return Page.of([(key, value) for key, value in pairs if value is not None], rest)
        await self.reads.get_past(locks, call)
        locked = [key for key, value in pairs if value is None]
        found = await self.reads.batch_get(locked, call, as_operation=False)
        unlocked = {key: b"" if self.order.key_only else entry.value for key, entry in found.items()}
        filled = ((key, unlocked.get(key) if value is None else value) for key, value in pairs)
        return Page.of([(key, value) for key, value in filled if value is not None], rest)

    def _request(self, part: KeyRange) -> Request[kvrpcpb.ScanResponse]:
        order = self.order
        return self.reads.requests.scan(
            part,
            self.reads.ts,
            self.reads.passes.context,
            self.limit,
            reverse=order.reverse,
            key_only=order.key_only,
            sample_step=order.sample_step,
        )
