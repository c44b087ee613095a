"""What clients do in transactions is noted as a history."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import count

import attrs
from tikv_txn import (
    LATEST,
    AlreadyExists,
    Snapshot,
    Transaction,
    TransactionClient,
    TransactionOptions,
    TransactionState,
)

from tests.transactions.history import LatestRead, Lock, Outcome, Read, Step, Txn, Write

_OUTCOMES = {
    TransactionState.COMMITTED: Outcome.COMMITTED,
    TransactionState.ROLLED_BACK: Outcome.ABORTED,
    TransactionState.UNDETERMINED: Outcome.UNDETERMINED,
}


@attrs.define
class Recording:
    """The history of any number of clients in this process."""

    keys: tuple[bytes, ...]
    """All keys there may be."""
    txns: list[Txn] = attrs.field(factory=list)
    """Those that have ended."""
    latest: list[LatestRead] = attrs.field(factory=list)
    """Reads of what was newest."""
    _moments: Iterable[int] = attrs.field(factory=lambda: count(1))

    def now(self) -> int:
        """Return a moment later than each before."""
        return next(iter(self._moments))

    @asynccontextmanager
    async def transaction(
        self, client: TransactionClient, options: TransactionOptions | None = None, *, timeout: float | None = None
    ) -> AsyncIterator[RecordedTransaction]:
        """Begin a transaction; it commits when the block ends, as `client.begin` does."""
        began = self.now()
        async with self.noted(client.begin(options, timeout=timeout), began) as txn:
            yield txn

    @asynccontextmanager
    async def noted(self, inner: Transaction, began: float) -> AsyncIterator[RecordedTransaction]:
        """Begin a transaction that was made."""
        txn: RecordedTransaction | None = None
        try:
            async with inner:
                txn = RecordedTransaction(inner, self.keys, self.now)
                yield txn
                txn.committing = self.now()
        finally:
            if txn is not None:
                self.txns.append(txn.noted(began, self.now()))

    async def read_latest(self, client: TransactionClient, keys: Iterable[bytes]) -> None:
        """Read whatever is newest."""
        snapshot = client.snapshot(LATEST)
        for key in keys:
            began = self.now()
            self.latest.append(LatestRead(key, await snapshot.get(key), began))

    async def read_snapshot(self, snapshot: Snapshot) -> None:
        """Read everything that a snapshot shows, in every way."""
        ts = await snapshot.get_ts()
        steps: list[Step] = []
        # Also what was read before one of the ways failed.
        self.txns.append(Txn(name=f"snapshot {self.now()}", start_ts=ts.ts, commit_ts=ts.ts))
        position = len(self.txns) - 1
        try:
            found = [pair async for pair in snapshot.scan()]
            pairs = dict(found)
            steps += [Read(key, pairs.get(key)) for key in self.keys]
            versions = await snapshot.batch_get_versioned(self.keys)
            for key in self.keys:
                version = versions.get(key)
                steps.append(Read(key, None) if version is None else Read(key, version.value, version.commit_ts))
            steps += [Read(key, await snapshot.get(key)) for key in self.keys]
        finally:
            self.txns[position] = attrs.evolve(self.txns[position], steps=tuple(steps))


class RecordedTransaction:
    """Reads and writes, each of which is noted; the values it writes are its own.

    Args:
        inner: What does it; begun.
        keys: All keys there may be.
        now: Tells the moment.
    """

    def __init__(self, inner: Transaction, keys: tuple[bytes, ...], now: Callable[[], float]) -> None:
        self.inner = inner
        self.committing = float("inf")
        self.keys = keys
        self._started = now()
        self._steps: list[Step] = []

    @property
    def name(self) -> str:
        return str(self.inner.start_ts.ts)

    def value(self, tag: bytes = b"") -> bytes:
        """Return a value that nobody else writes; what comes before the first `:` is `tag`."""
        return b"%s:%s.%d" % (tag, self.name.encode(), len(self._steps))

    async def get(self, key: bytes) -> bytes | None:
        value = await self.inner.get(key)
        self._steps.append(Read(key, value))
        return value

    async def batch_get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        keys = list(keys)
        found = await self.inner.batch_get(keys)
        self._steps += [Read(key, found.get(key)) for key in keys]
        return found

    async def scan(self, *, reverse: bool = False) -> dict[bytes, bytes]:
        """Scan everything."""
        found = [pair async for pair in self.inner.scan(reverse=reverse)]
        assert [key for key, _ in found] == sorted({key for key, _ in found}, reverse=reverse), found
        pairs = dict(found)
        assert pairs.keys() <= set(self.keys), pairs
        self._steps += [Read(key, pairs.get(key)) for key in self.keys]
        return pairs

    def put(self, key: bytes, value: bytes | None = None) -> None:
        value = self.value() if value is None else value
        self.inner.put(key, value)
        self._steps.append(Write(key, value))

    def delete(self, key: bytes) -> None:
        self.inner.delete(key)
        self._steps.append(Write(key, None))

    def insert(self, key: bytes) -> None:
        """Insert a key, unless this transaction has written it."""
        value = self.value()
        try:
            self.inner.insert(key, value)
        except AlreadyExists:
            return
        self._steps.append(Write(key, value, is_insert=True))

    def lock(self, key: bytes) -> None:
        self.inner.lock_keys(key)
        self._steps.append(Lock(key))

    def noted(self, began: float, ended: float) -> Txn:
        """Return what there is to tell of it, now that it has ended."""
        inner = self.inner
        commit_ts = inner.commit_ts
        return Txn(
            name=self.name,
            start_ts=inner.start_ts.ts,
            steps=tuple(self._steps),
            outcome=_OUTCOMES[inner.state],
            commit_ts=0 if commit_ts is None else commit_ts.ts,
            began=began,
            started=self._started,
            committing=self.committing,
            ended=ended,
            is_causal=inner._options.causal_consistency,
        )
