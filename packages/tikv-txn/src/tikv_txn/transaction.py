"""Transactions: reads at one moment, and writes that all happen at another, or not at all."""

from __future__ import annotations

import enum
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

from tikv_pd import ClosedError, ConfigError, Deadline, Timestamp, UndeterminedError
from tikv_pd.lowlevel import as_bytes
from tikv_region import KeyRange
from tikv_rpc import Call
from tikv_rpc.frontend.arguments import (
    BytesLike,
    as_items,
    as_key,
    as_pair_items,
    as_range,
    check_flag,
    check_limit,
    check_timeout,
)

from tikv_txn._buffer import Assertion, Buffer, Entry, Limits
from tikv_txn._commit.mutations import Mutations
from tikv_txn._commit.state import Outcome
from tikv_txn._reads.safe_point import REFRESH_SECONDS
from tikv_txn._session import Opened
from tikv_txn.errors import TransactionEnded
from tikv_txn.options import TransactionOptions
from tikv_txn.savepoint import Savepoint
from tikv_txn.scan import Scan
from tikv_txn.snapshot import Snapshot
from tikv_txn.transaction_scan import TransactionScan


class TransactionState(enum.Enum):
    """What became of a transaction."""

    NEW = "not begun"
    """It has no start timestamp yet."""
    ACTIVE = "active"
    """It can be used."""
    COMMITTING = "committing"
    """Its commit is under way."""
    COMMITTED = "committed"
    """What it wrote is there."""
    ROLLED_BACK = "rolled back"
    """What it wrote was given up, by its user or because committing failed."""
    UNDETERMINED = "of unknown outcome"
    """Its commit was interrupted, or the answer got lost: it may have committed."""


_STATES: Final = {
    Outcome.COMMITTED: TransactionState.COMMITTED,
    Outcome.NOT_COMMITTED: TransactionState.ROLLED_BACK,
    Outcome.UNKNOWN: TransactionState.UNDETERMINED,
}


class Transaction:
    """Reads at one moment, and writes that all happen at a later one, or none of them.

    `TransactionClient.begin` makes it. As `async with client.begin() as txn`, it commits when the block ends, and rolls
    back when the block raises or is cancelled; a commit or rollback within the block ends it, and leaving the block
    then does nothing more. `txn = await client.begin()` begins one that its user has to end.

    It is optimistic: writes stay in memory until the commit, which fails with WriteConflict when another transaction
    has written one of the same keys since the start; then the work has to be done again, as `TransactionClient.run`
    does. Isolation is snapshot isolation: of what it has only read, other transactions may write meanwhile, unless
    `lock_keys` says otherwise.

    The tasks of one event loop may read and write in one transaction at the same time, as in a task group; other
    threads must not. Once a commit has begun, every other use fails with TransactionEnded.

    Every call may raise:
        TransactionEnded: it has committed, or was rolled back.
        TypeError: an argument is of the wrong type; a `str` must be encoded.
        ConfigError: an argument can never work, or the transaction has not begun.

    Every read may also raise:
        ClosedError: the client is not open, or was closed meanwhile.
        DeadlineExceeded: time ran out; the last failure, such as KeyLocked, is the `__cause__`.
        SnapshotTooOld: what it reads may have been collected as garbage.
        PdError, ClusterMismatch, RpcError: PD or a store refused for good.

    Source: client-go transaction.KVTxn.
    """

    def __init__(
        self,
        opened: Opened,
        options: TransactionOptions,
        *,
        timeout: float,
        start_ts: int | None = None,
        until: Deadline | None = None,
    ) -> None:
        self._state = TransactionState.NEW
        self._opened = opened
        self._options = options
        self._timeout = timeout
        self._until = until
        self._given_ts = start_ts
        self._start_ts: Timestamp | None = None
        self._commit_ts: Timestamp | None = None
        self._snapshot: Snapshot | None = None
        self._began = 0.0
        self._is_beginning = False
        store = opened.store
        config = store.config
        self._buffer = Buffer(
            Limits.of(store.codec, config.max_key_bytes, options.max_entry_bytes, options.max_bytes, config.rpc.redact)
        )

    @property
    def state(self) -> TransactionState:
        """What became of it so far."""
        return self._state

    @property
    def start_ts(self) -> Timestamp:
        """Where it reads.

        Raises:
            ConfigError: it has not begun.
        """
        if self._start_ts is None:
            raise _not_begun()
        return self._start_ts

    @property
    def commit_ts(self) -> Timestamp | None:
        """Where what it wrote is to be read; None unless it has committed."""
        return self._commit_ts

    @property
    def size(self) -> int:
        """Bytes of the keys and values that it writes."""
        return self._buffer.size

    @property
    def snapshot(self) -> Snapshot:
        """What it reads from, without its own writes; may be used after the transaction has ended."""
        if self._snapshot is None:
            raise _not_begun()
        return self._snapshot

    def __await__(self) -> Generator[Any, None, Self]:
        return self._begin().__await__()

    async def __aenter__(self) -> Self:
        return await self._begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._state is not TransactionState.ACTIVE:
            return
        try:
            if error is None:
                await self.commit()
        finally:
            # It raised, or the commit could not even begin.
            if self._state is TransactionState.ACTIVE:
                self._state = TransactionState.ROLLED_BACK

    async def get(self, key: BytesLike, *, timeout: float | None = None) -> bytes | None:
        """Return the value of `key`, or None when there is none. An empty value is a value.

        Args:
            key: Any bytes, also none.
            timeout: Seconds.

        Source: kvrpcpb.GetRequest.
        """
        entry = self._written(key)
        if entry is not None:
            return entry.value
        return await self.snapshot.get(key, timeout=self._seconds(timeout))

    async def exists(self, key: BytesLike, *, timeout: float | None = None) -> bool:
        """Tell whether there is a value of `key`.

        Args:
            key: Any bytes, also none.
            timeout: Seconds.
        """
        return await self.get(key, timeout=timeout) is not None

    async def batch_get(self, keys: Iterable[BytesLike], *, timeout: float | None = None) -> dict[bytes, bytes]:
        """Return the values of those `keys` that exist.

        Args:
            keys: Any number, in any order, duplicates allowed.
            timeout: Seconds, for all of them together.

        Returns:
            key → value for the keys found, in no given order.

        Source: kvrpcpb.BatchGetRequest.
        """
        found, others = self._all_written(keys)
        if others:
            found |= await self.snapshot.batch_get(others, timeout=self._seconds(timeout))
        return found

    def scan(
        self,
        start: BytesLike = b"",
        end: BytesLike = b"",
        *,
        prefix: BytesLike | None = None,
        limit: int | None = None,
        reverse: bool = False,
        key_only: bool = False,
        timeout: float | None = None,
    ) -> TransactionScan:
        """Return an iterator over the (key, value) pairs from `start` up to but excluding `end`.

        Lazy: pages of `TxnConfig.scan_page` pairs are fetched as they are consumed, one ahead.

        Args:
            start: First key, inclusive, also when `reverse`.
            end: End of the range, exclusive, also when `reverse`; empty for unbounded.
            prefix: Instead of `start` and `end`: all keys that begin with it, all keys there are when it is empty.
            limit: Pairs at most, any number; None for all, 0 for none.
            reverse: Descending instead of ascending order of keys.
            key_only: Leave the values out; they come as b"".
            timeout: Seconds that fetching one page may take.

        Raises:
            ConfigError: `prefix` together with `start` or `end`, or a negative limit.

        Source: kvrpcpb.ScanRequest.
        """
        self._active()
        check_flag(reverse, "reverse")
        check_flag(key_only, "key_only")
        if timeout is not None:
            timeout = check_timeout(timeout)

        def scan_snapshot(key_range: KeyRange, at_most: int | None) -> Scan:
            return self.snapshot.scan(
                key_range.start,
                key_range.end,
                limit=at_most,
                reverse=reverse,
                key_only=key_only,
                timeout=self._seconds(timeout),
            )

        key_range = as_range(start, end, prefix)
        limit = check_limit(limit)
        return TransactionScan(self._active, scan_snapshot, key_range, limit=limit, reverse=reverse, key_only=key_only)

    def put(self, key: BytesLike, value: BytesLike) -> None:
        """Store `value` under `key` when the transaction commits.

        Args:
            key: Any bytes, also none.
            value: Any bytes, also none. client-go takes an empty value for a key that does not exist.

        Raises:
            KeyTooLarge, ValueTooLarge, TransactionTooLarge: nothing has changed.
        """
        self._active().put(as_key(key), as_bytes(value, "value"))

    def put_many(self, pairs: Mapping[bytes, BytesLike] | Iterable[tuple[BytesLike, BytesLike]]) -> None:
        """Store many values when the transaction commits.

        Args:
            pairs: A mapping, or (key, value) tuples; of a key that comes twice, the last value counts.

        Raises:
            KeyTooLarge, ValueTooLarge, TransactionTooLarge: none of the pairs has been taken.
        """
        with self._all_or_none() as buffer:
            for pair in as_pair_items(pairs):
                # Anything but these might unpack into two by chance: two bytes, a str of two letters.
                if not isinstance(pair, tuple | list) or len(pair) != 2:
                    # Not what it holds: keys and values are for no log.
                    shape = f"{len(pair)} items" if isinstance(pair, tuple | list) else type(pair).__name__
                    raise TypeError(f"a pair must be a (key, value) tuple, not {shape}")
                buffer.put(as_key(pair[0]), as_bytes(pair[1], "value"))

    def insert(self, key: BytesLike, value: BytesLike) -> None:
        """Store `value` under a key that must not exist: else the commit fails with AlreadyExists.

        Saves reading the key. A key that the transaction deleted before counts as missing.

        Args:
            key: Any bytes, also none.
            value: As for `put`.

        Raises:
            AlreadyExists: this transaction has stored a value under the key.
            KeyTooLarge, ValueTooLarge, TransactionTooLarge: nothing has changed.

        Source: kvrpcpb.Op.Insert.
        """
        self._active().insert(as_key(key), as_bytes(value, "value"))

    def delete(self, key: BytesLike) -> None:
        """Remove `key` when the transaction commits; also when it does not exist.

        Args:
            key: Any bytes, also none.

        Raises:
            KeyTooLarge, TransactionTooLarge: nothing has changed.
        """
        self._active().delete(as_key(key))

    def lock_keys(self, *keys: BytesLike) -> None:
        """Have the commit fail with WriteConflict when others write one of `keys` meanwhile, as if they were written.

        For keys that are read and not written, on which what is written depends. Others are not kept waiting by it: it
        takes effect when the transaction commits.

        Args:
            keys: Any number.

        Raises:
            KeyTooLarge, TransactionTooLarge: none of the keys has been taken.

        Source: kvrpcpb.Op.Lock.
        """
        with self._all_or_none() as buffer:
            for key in keys:
                buffer.lock(as_key(key))

    def assert_exists(self, key: BytesLike) -> None:
        """Have the commit fail with AssertionFailed unless `key` existed before this transaction.

        To find what should never happen, at the cost of no further request; `TransactionOptions.assertion_level` may
        turn it off. A key that is not written is locked.

        Args:
            key: Any bytes, also none.

        Source: kvrpcpb.Assertion.
        """
        self._active().assert_that(as_key(key), Assertion.EXIST)

    def assert_not_exists(self, key: BytesLike) -> None:
        """Have the commit fail with AssertionFailed if `key` existed before this transaction; see `assert_exists`.

        Args:
            key: Any bytes, also none.
        """
        self._active().assert_that(as_key(key), Assertion.NOT_EXIST)

    def savepoint(self) -> Savepoint:
        """Return a moment to which writes can be taken back, within all savepoints that are open.

        `with txn.savepoint():` takes back what is written in the block when the block raises.
        """
        return Savepoint(self._active())

    async def commit(self, *, timeout: float | None = None) -> Timestamp:
        """Make all writes happen at once, and return the moment: whoever reads there or later sees them.

        A transaction that wrote nothing asks nobody; its moment is that of its reads.

        Args:
            timeout: Seconds.

        Raises:
            WriteConflict: another transaction wrote one of the keys since the start.
            AlreadyExists: a key that was inserted exists.
            AssertionFailed: what was asserted of a key is not so.
            TransactionAborted: others rolled it back, as its locks were not kept alive.
            CommitTsLag, CommitTsTooLarge, TransactionExpired: no commit timestamp is right.
            SnapshotTooOld: it began so long ago that conflicts may have been collected as garbage.
            ConfigError: another transaction of the client has committed, or tried to, with its `start_ts`.
            KeyLocked, DeadlineExceeded: time ran out. Nothing was committed.
            EntryTooLarge: a request exceeds raft's entry limit, 8 MiB by default. Nothing was committed.
            UndeterminedError: it may or may not have committed; only then.

        Cancellation: it may or may not have committed; `state` says which, or UNDETERMINED when that is not known. What
        is left of it on stores is removed in the background, or by those who meet it.
        Source: client-go KVTxn.Commit.
        """
        return await self._commit(*self._to_commit(timeout))

    async def rollback(self) -> None:
        """Give all writes up. No store knows of them."""
        self._roll_back()

    def __del__(self) -> None:
        # Its writes were in memory alone, and are gone with it: no store has to be told.
        if getattr(self, "_state", None) is TransactionState.ACTIVE and not sys.is_finalizing():
            warnings.warn(
                f"{self!r} was neither committed nor rolled back: use `async with`, or end it",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        start = "" if self._start_ts is None else f" of {self._start_ts.ts}"
        return f"<Transaction{start}: {self._state.value}, {self._buffer.size} bytes>"

    async def _begin(self) -> Self:
        """Fetch the start timestamp."""
        if self._state is not TransactionState.NEW or self._is_beginning:
            raise ConfigError("this transaction has begun already; begin another")
        self._is_beginning = True
        try:
            store = self._opened.store
            call = self._call("begin", None)
            self._began = store.rpc.now()
            if self._given_ts is None:
                start_ts = await store.get_ts(call)
            else:
                start_ts = self._given_ts
                await store.pd.validate_read_ts(start_ts, timeout=call.deadline.check())
                # How long locks last is counted from there.
                now = Timestamp.from_ts(await store.low_resolution_ts(call))
                self._began -= max(now.physical - Timestamp.from_ts(start_ts).physical, 0) / 1000
        finally:
            self._is_beginning = False
        self._start_ts = Timestamp.from_ts(start_ts)
        self._snapshot = Snapshot(self._opened.reads, start_ts, self._options.requests, self._timeout)
        self._state = TransactionState.ACTIVE
        return self

    def _written(self, key: BytesLike) -> Entry | None:
        """Return what the transaction has written of a key."""
        entry = self._active().get(as_key(key))
        return entry if entry is not None and entry.is_written else None

    def _all_written(self, keys: Iterable[BytesLike]) -> tuple[dict[bytes, bytes], list[bytes]]:
        """Return the values that the transaction has written, and the keys of which it has written nothing."""
        buffer = self._active()
        found: dict[bytes, bytes] = {}
        others: list[bytes] = []
        for key in dict.fromkeys(map(as_key, as_items(keys))):
            entry = buffer.get(key)
            if entry is None or not entry.is_written:
                others.append(key)
            elif entry.value is not None:
                found[key] = entry.value
        return found, others

    def _to_commit(self, timeout: float | None) -> tuple[Mutations, Call]:
        """Return what a commit is about. Where threads take turns, this is for the one that writes."""
        return Mutations(self._active().entries()), self._call("commit", timeout)

    async def _commit(self, mutations: Mutations, call: Call) -> Timestamp:
        """Commit; from here on, `state` tells what became of it."""
        self._state = TransactionState.COMMITTING
        state = TransactionState.ROLLED_BACK

        def cancelled(outcome: Outcome, commit_ts: int) -> None:
            nonlocal state
            state = _STATES[outcome]
            self._commit_ts = Timestamp.from_ts(commit_ts) if commit_ts else None

        try:
            if len(mutations):
                await self._check_start(call)
            state = TransactionState.UNDETERMINED
            self._commit_ts = await self._make_happen(mutations, call, cancelled)
            state = TransactionState.COMMITTED
        except UndeterminedError:
            raise
        except Exception:
            state = TransactionState.ROLLED_BACK
            raise
        finally:
            self._state = state
        return self._commit_ts

    def _roll_back(self) -> None:
        if self._state is not TransactionState.NEW:
            self._active()
        self._state = TransactionState.ROLLED_BACK

    async def _check_start(self, call: Call) -> None:
        """Raise if conflicts with others would not be found."""
        opened, start_ts = self._opened, self.start_ts.ts
        opened.starts.take(start_ts)
        if opened.store.rpc.now() - self._began > REFRESH_SECONDS:
            # A key that was deleted since may be gone without a trace.
            await opened.reads.safe_point.check(start_ts, call)

    async def _make_happen(
        self, mutations: Mutations, call: Call, cancelled: Callable[[Outcome, int], None]
    ) -> Timestamp:
        if not len(mutations):
            return self.start_ts
        ts = await self._opened.committer.commit(
            mutations, self.start_ts.ts, self._options, call, began=self._began, cancelled=cancelled
        )
        return Timestamp.from_ts(ts)

    def _active(self) -> Buffer:
        """Return the buffer of a transaction that can be used."""
        if self._state is TransactionState.ACTIVE:
            return self._buffer
        if self._state is TransactionState.NEW:
            raise _not_begun()
        raise TransactionEnded(self.start_ts.ts if self._start_ts else 0, self._state.value)

    @contextmanager
    def _all_or_none(self) -> Generator[Buffer, None, None]:
        """Take all writes of a block back when one of them fails."""
        buffer = self._active()
        with Savepoint(buffer):
            yield buffer

    def _seconds(self, timeout: float | None) -> float:
        """Return what a call may take."""
        seconds = self._timeout if timeout is None else check_timeout(timeout)
        return seconds if self._until is None else min(seconds, self._until.check())

    def _call(self, operation: str, timeout: float | None) -> Call:
        rpc = self._opened.store.rpc
        if rpc.closed:
            raise ClosedError("TransactionClient")
        return rpc.call(operation, self._seconds(timeout), self._options.requests)


def _not_begun() -> ConfigError:
    return ConfigError("the transaction has not begun: use `async with client.begin()` or `await client.begin()`")
