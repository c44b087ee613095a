"""Transactions for programs that do not await: the same names, parameters and results, from any thread.

Written by `.ci/blocking.py` after the async client: change that one, and run the script.

What a transaction writes is kept in the thread that uses it, where its scans look at it: the event loop's thread only
reads from the cluster and commits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, Self, TypeAlias, overload

from tikv_pd import Address, ClosedError, SecurityConfig, TikvError, Timestamp, UndeterminedError
from tikv_pd.lowlevel import Transport
from tikv_rpc import Interceptor, RequestOptions, RpcObserver, RpcStats
from tikv_rpc.frontend.arguments import BytesLike
from tikv_rpc.frontend.portal import Pages, Portal

import tikv_txn._run
import tikv_txn.client
import tikv_txn.savepoint
import tikv_txn.scan
import tikv_txn.snapshot
import tikv_txn.transaction
import tikv_txn.transaction_scan
from tikv_txn._arguments import AnyTimestamp
from tikv_txn.client import ApiVersion, Parameters, Result
from tikv_txn.config import TxnConfig
from tikv_txn.options import TransactionOptions
from tikv_txn.transaction import TransactionState
from tikv_txn.versioned import Versioned


class Scan(Pages[tuple[bytes, bytes]]):
    """The (key, value) pairs of a range as a snapshot sees them, fetched page by page as they are consumed.

    Pairs come in key order, each key at most once, also when Regions split, merge or move meanwhile. Several threads
    may iterate over one scan: each pair goes to one of them.

    Breaking out of the loop leaves nothing behind but at most one page that is fetched and dropped; `close`, or
    `with`, ends that at once, too.

    Raises, while iterating:
        DeadlineExceeded: a page did not come within the scan's `timeout`. Iterating on tries again from there.
        SnapshotTooOld: what it reads may have been collected as garbage.
        ClosedError: the client was closed. Pairs fetched before are still returned.
        TransactionRefused: a store refused.

    Interrupted: safe. Iterating on afterwards continues with the pair after the last one returned.
    Source: kvrpcpb.ScanRequest.
    """

    def __init__(self, portal: Portal, scan: tikv_txn.scan.Scan) -> None:
        super().__init__(portal, scan._take_page, scan.aclose)


class Snapshot:
    """What the database holds at one timestamp: repeatable reads of everything that was committed by then.

    `TransactionClient.snapshot` makes it. Any number of threads may share it. It need not be closed, and may be used as
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

    Interrupted: safe.
    Source: client-go txnsnapshot.KVSnapshot.
    """

    def __init__(self, portal: Portal, snapshot: tikv_txn.snapshot.Snapshot) -> None:
        self._portal = portal
        self._snapshot = snapshot

    def get_ts(self, *, timeout: float | None = None) -> Timestamp:
        """Return where it reads; fixed by the first call of any kind.

        Args:
            timeout: Seconds.
        """
        return self._portal.call(self._snapshot.get_ts, timeout=timeout)

    def get(self, key: BytesLike, *, timeout: float | None = None) -> bytes | None:
        """Return the value of `key`, None when there is none.

        Args:
            key: Any bytes, also none.
            timeout: Seconds.

        Source: kvrpcpb.GetRequest.
        """
        return self._portal.call(self._snapshot.get, key, timeout=timeout)

    def exists(self, key: BytesLike, *, timeout: float | None = None) -> bool:
        """Tell whether there is a value of `key`.

        Args:
            key: Any bytes, also none.
            timeout: Seconds.
        """
        return self._portal.call(self._snapshot.exists, key, timeout=timeout)

    def get_versioned(self, key: BytesLike, *, timeout: float | None = None) -> Versioned | None:
        """Return the value of `key` with the commit timestamp of who wrote it, None when there is none.

        Slower than `get` where locks are met: the store reads through none.

        Args:
            key: Any bytes, also none.
            timeout: Seconds.

        Source: kvrpcpb.GetRequest.need_commit_ts.
        """
        return self._portal.call(self._snapshot.get_versioned, key, timeout=timeout)

    def batch_get(self, keys: Iterable[BytesLike], *, timeout: float | None = None) -> dict[bytes, bytes]:
        """Return the values of those `keys` that exist.

        Args:
            keys: Any number, in any order, duplicates allowed.
            timeout: Seconds, for all of them together.

        Returns:
            key → value for the keys found, in no given order.

        Source: kvrpcpb.BatchGetRequest.
        """
        return self._portal.call(self._snapshot.batch_get, keys, timeout=timeout)

    def batch_get_versioned(self, keys: Iterable[BytesLike], *, timeout: float | None = None) -> dict[bytes, Versioned]:
        """Return the values of those `keys` that exist, with the commit timestamps of who wrote them.

        Args:
            keys: Any number, in any order, duplicates allowed.
            timeout: Seconds, for all of them together.

        Source: kvrpcpb.BatchGetRequest.need_commit_ts.
        """
        return self._portal.call(self._snapshot.batch_get_versioned, keys, timeout=timeout)

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
        return Scan(
            self._portal,
            self._snapshot.scan(
                start,
                end,
                prefix=prefix,
                limit=limit,
                reverse=reverse,
                key_only=key_only,
                sample_step=sample_step,
                timeout=timeout,
            ),
        )


class TransactionScan(Iterator[tuple[bytes, bytes]]):
    """The (key, value) pairs of a range as a transaction sees them, fetched page by page as they are consumed.

    Those of its snapshot, with the transaction's own writes in their place. It may write while it scans: what it writes
    ahead of the pair returned last is seen, what it writes behind is not.

    Breaking out of the loop leaves nothing behind but at most one page that is fetched and dropped; `close`, or
    `with`, ends that at once, too.

    Raises, while iterating:
        TransactionEnded: the transaction has ended meanwhile.
        DeadlineExceeded: a page did not come within the scan's `timeout`. Iterating on tries again from there.
        The other errors of `Snapshot.scan`.

    Interrupted: safe. Iterating on afterwards continues with the pair after the last one returned.
    """

    def __init__(self, portal: Portal, scan: tikv_txn.transaction_scan.TransactionScan) -> None:
        self._portal = portal
        self._scan = scan

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[bytes, bytes]:
        scan = self._scan
        while (pair := scan._take()) is None:
            if not scan._needs_page:
                self.close()
                raise StopIteration
            self._portal.call(scan._fetch_page, scan._opened())
            scan._turn_page()
        return pair

    def close(self) -> None:
        """End the scan: nothing is fetched any more, iterating ends, also for a thread that waits for a pair now."""
        scan = self._scan._end()
        if scan is not None:
            with suppress(ClosedError):
                self._portal.call(scan.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Savepoint:
    """A moment within a transaction to which its writes can be taken back. `Transaction.savepoint` makes it.

    As a `with` block, what is written within is taken back when the block raises, and stays otherwise.
    It costs no request. Ending a savepoint ends those made after it; what was read is not forgotten.
    """

    def __init__(self, savepoint: tikv_txn.savepoint.Savepoint) -> None:
        self._savepoint = savepoint

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._savepoint.__exit__(kind, error, traceback)

    def release(self) -> None:
        """End the savepoint; what was written since stays, as far as the savepoints around and the transaction do.

        Raises:
            ConfigError: it has ended.
        """
        self._savepoint.release()

    def rollback(self) -> None:
        """End the savepoint, and take back what was written since: values, inserts, locks and assertions.

        Raises:
            ConfigError: it has ended.
        """
        self._savepoint.rollback()


class Transaction:
    """Reads at one moment, and writes that all happen at a later one, or none of them.

    `TransactionClient.begin` makes it. As `with client.begin() as txn`, it commits when the block ends, and rolls
    back when the block raises or is interrupted; a commit or rollback within the block ends it, and leaving the block
    then does nothing more. `txn = client.begin()` begins one that its user has to end.

    It is optimistic: writes stay in memory until the commit, which fails with WriteConflict when another transaction
    has written one of the same keys since the start; then the work has to be done again, as `TransactionClient.run`
    does. Isolation is snapshot isolation: of what it has only read, other transactions may write meanwhile, unless
    `lock_keys` says otherwise.

    One thread at a time may use it, its scans and its savepoints. Once a commit has begun, every other use fails with
    TransactionEnded.

    Every call may raise:
        TransactionEnded: it has committed, or was rolled back.
        TypeError: an argument is of the wrong type; a `str` must be encoded.
        ConfigError: an argument can never work, or the transaction has not begun.

    Every read may also raise:
        ClosedError: the client is not open, or was closed meanwhile.
        DeadlineExceeded: time ran out; the last failure, such as KeyLocked, is the `__cause__`.
        SnapshotTooOld: what it reads may have been collected as garbage.
        PdError, ClusterMismatch, RpcError: PD or a store refused for good.

    Its thread keeps what it writes, so that to write, and to read that, costs no way to another thread. Ctrl-C during
    a commit leaves the `state` UNDETERMINED, until more is known.

    Source: client-go transaction.KVTxn.
    """

    def __init__(self, portal: Portal, transaction: tikv_txn.transaction.Transaction) -> None:
        self._portal = portal
        self._transaction = transaction

    def __enter__(self) -> Self:
        self._transaction._active()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        transaction = self._transaction
        if transaction.state is not TransactionState.ACTIVE:
            return
        try:
            if error is None:
                self.commit()
        finally:
            if transaction.state is TransactionState.ACTIVE:
                transaction._roll_back()

    def get(self, key: BytesLike, *, timeout: float | None = None) -> bytes | None:
        """Return the value of `key`, or None when there is none. An empty value is a value.

        Args:
            key: Any bytes, also none.
            timeout: Seconds.

        Source: kvrpcpb.GetRequest.
        """
        transaction = self._transaction
        entry = transaction._written(key)
        if entry is not None:
            return entry.value
        return self._portal.call(transaction.snapshot.get, key, timeout=transaction._seconds(timeout))

    def exists(self, key: BytesLike, *, timeout: float | None = None) -> bool:
        """Tell whether there is a value of `key`.

        Args:
            key: Any bytes, also none.
            timeout: Seconds.
        """
        return self.get(key, timeout=timeout) is not None

    def batch_get(self, keys: Iterable[BytesLike], *, timeout: float | None = None) -> dict[bytes, bytes]:
        """Return the values of those `keys` that exist.

        Args:
            keys: Any number, in any order, duplicates allowed.
            timeout: Seconds, for all of them together.

        Returns:
            key → value for the keys found, in no given order.

        Source: kvrpcpb.BatchGetRequest.
        """
        transaction = self._transaction
        found, others = transaction._all_written(keys)
        if others:
            found |= self._portal.call(transaction.snapshot.batch_get, others, timeout=transaction._seconds(timeout))
        return found

    def savepoint(self) -> Savepoint:
        """Return a moment to which writes can be taken back, within all savepoints that are open.

        `with txn.savepoint():` takes back what is written in the block when the block raises.
        """
        return Savepoint(self._transaction.savepoint())

    def commit(self, *, timeout: float | None = None) -> Timestamp:
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

        Interrupted: it may or may not have committed; `state` says which, or UNDETERMINED when that is not known. What
        is left of it on stores is removed in the background, or by those who meet it.
        Source: client-go KVTxn.Commit.
        """
        transaction = self._transaction
        work = transaction._to_commit(timeout)
        transaction._state = TransactionState.COMMITTING
        try:
            return self._portal.call(transaction._commit, *work)
        except BaseException as error:
            if transaction.state is TransactionState.COMMITTING:
                is_refused = isinstance(error, TikvError)
                transaction._state = TransactionState.ACTIVE if is_refused else TransactionState.UNDETERMINED
            if isinstance(error, ClosedError) and transaction.state is TransactionState.UNDETERMINED:
                raise UndeterminedError("commit") from error
            raise

    def rollback(self) -> None:
        """Give all writes up. No store knows of them."""
        self._transaction._roll_back()

    def __repr__(self) -> str:
        return repr(self._transaction)

    @property
    def state(self) -> TransactionState:
        """What became of it so far."""
        return self._transaction.state

    @property
    def start_ts(self) -> Timestamp:
        """Where it reads.

        Raises:
            ConfigError: it has not begun.
        """
        return self._transaction.start_ts

    @property
    def commit_ts(self) -> Timestamp | None:
        """Where what it wrote is to be read; None unless it has committed."""
        return self._transaction.commit_ts

    @property
    def size(self) -> int:
        """Bytes of the keys and values that it writes."""
        return self._transaction.size

    @property
    def snapshot(self) -> Snapshot:
        """What it reads from, without its own writes; may be used after the transaction has ended."""
        return Snapshot(self._portal, self._transaction.snapshot)

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
        return TransactionScan(
            self._portal,
            self._transaction.scan(
                start, end, prefix=prefix, limit=limit, reverse=reverse, key_only=key_only, timeout=timeout
            ),
        )

    def put(self, key: BytesLike, value: BytesLike) -> None:
        """Store `value` under `key` when the transaction commits.

        Args:
            key: Any bytes, also none.
            value: Any bytes, also none. client-go takes an empty value for a key that does not exist.

        Raises:
            KeyTooLarge, ValueTooLarge, TransactionTooLarge: nothing has changed.
        """
        self._transaction.put(key, value)

    def put_many(self, pairs: Mapping[bytes, BytesLike] | Iterable[tuple[BytesLike, BytesLike]]) -> None:
        """Store many values when the transaction commits.

        Args:
            pairs: A mapping, or (key, value) tuples; of a key that comes twice, the last value counts.

        Raises:
            KeyTooLarge, ValueTooLarge, TransactionTooLarge: none of the pairs has been taken.
        """
        self._transaction.put_many(pairs)

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
        self._transaction.insert(key, value)

    def delete(self, key: BytesLike) -> None:
        """Remove `key` when the transaction commits; also when it does not exist.

        Args:
            key: Any bytes, also none.

        Raises:
            KeyTooLarge, TransactionTooLarge: nothing has changed.
        """
        self._transaction.delete(key)

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
        self._transaction.lock_keys(*keys)

    def assert_exists(self, key: BytesLike) -> None:
        """Have the commit fail with AssertionFailed unless `key` existed before this transaction.

        To find what should never happen, at the cost of no further request; `TransactionOptions.assertion_level` may
        turn it off. A key that is not written is locked.

        Args:
            key: Any bytes, also none.

        Source: kvrpcpb.Assertion.
        """
        self._transaction.assert_exists(key)

    def assert_not_exists(self, key: BytesLike) -> None:
        """Have the commit fail with AssertionFailed if `key` existed before this transaction; see `assert_exists`.

        Args:
            key: Any bytes, also none.
        """
        self._transaction.assert_not_exists(key)


class TransactionClient:
    """A client of TiKV's transactions. Use inside `with`; any number of threads may share it.

    `begin` makes a transaction, `run` does work in one and again when others were in its way, `snapshot` reads without
    writing. Keys and values are bytes-like; ranges are half-open, an empty end is unbounded. Every call takes a
    `timeout` in seconds that covers all its retries. Regions that split, merge or move their leader are followed
    without the caller's notice, and so are locks that other clients left.

    Args:
        address: PD: `tikv://pd1:2379,pd2:2379`, one `host:port`, or several. A URL may name a keyspace:
            `tikv://pd:2379?keyspaceName=users`.
        api_version: What the cluster's `storage.api-version` is; by default `v2` when a keyspace is named, else `v1`.
        keyspace: Name of the keyspace under API v2, `DEFAULT` when none is named.
        config: Limits and defaults.
        security: TLS; None for plain text.
        interceptors: What runs around every attempt at a store, the first outermost; see `tikv_rpc.Interceptor`.
        observers: Who hears of every call, its attempts and its waits; see `tikv_rpc.RpcObserver`.
        transport: How to reach servers; gRPC by default.

    Raises:
        ConfigError: an argument can never work.
        TypeError: an argument is of the wrong type.

    Opening it may raise:
        PdUnavailable: no PD answered within `config.pd.open_timeout`, or none of the addresses is a PD.
        ClusterMismatch: the addresses belong to different clusters.
        KeyspaceNotFound: there is no such enabled keyspace.
        ConfigError: the client is open already, or TLS material cannot be read.
        ClosedError: another thread closed it meanwhile.

    Every call may raise:
        TypeError: an argument is of the wrong type.
        ConfigError: an argument can never work. Nothing was sent.
        ClosedError: the client is not open, or was closed meanwhile.

    An event loop runs in a thread of its own while the client is open, also beside a running one, as in a notebook.
    Ctrl-C interrupts a call and leaves the client usable. Iterables of keys, and functions that `run` calls, run in the
    thread that passes them. Interceptors and observers run in the client's thread, where calling it raises ConfigError.
    Processes fork before they open their first client; in a later fork's child clients raise ClosedError. A program
    that exits closes what it forgot to close.

    Source: client-go txnkv.Client.
    """

    def __init__(
        self,
        address: Address,
        *,
        api_version: ApiVersion | None = None,
        keyspace: str | None = None,
        config: TxnConfig | None = None,
        security: SecurityConfig | None = None,
        interceptors: Iterable[Interceptor] = (),
        observers: Iterable[RpcObserver] = (),
        transport: Transport | None = None,
    ) -> None:
        self._client = tikv_txn.client.TransactionClient(
            address,
            api_version=api_version,
            keyspace=keyspace,
            config=config,
            security=security,
            interceptors=interceptors,
            observers=observers,
            transport=transport,
        )
        self._portal = Portal(self._client, "TransactionClient")

    def open(self) -> Self:
        """Open the client, as `with` does, and return it: for programs that close it elsewhere, by `close`.

        Interrupted: it is not open.
        """
        self._portal.open()
        return self

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._portal.close()

    def close(self) -> None:
        """Close the client; calls under way fail with ClosedError, or UndeterminedError for a commit that was sent.

        Work of commits that goes on in the background has `TxnConfig.close_timeout` to end: what it leaves on stores is
        put right by whoever meets it. Closing twice is fine, and a closed client may be opened again. Any thread may
        close it.

        Raises:
            ConfigError: it is called in the client's own thread, by an interceptor.
        """
        self._portal.close()

    def begin(
        self,
        options: TransactionOptions | None = None,
        *,
        start_ts: AnyTimestamp | None = None,
        timeout: float | None = None,
    ) -> Transaction:
        """Return a transaction that has begun.

            with client.begin() as txn:  # commits at the end of the block, or rolls back when it raises
                txn.put(b"k", b"v")

            txn = client.begin()  # its user commits it or rolls it back

        Beginning fetches the start timestamp from PD.

        Args:
            options: How it commits, and what it asks of stores; None for `TxnConfig.transaction`.
            start_ts: Where to read, instead of a new timestamp; a commit fails when keys were written since. No other
                transaction that writes may start there, of whichever client: stores take both for one.
            timeout: Seconds that each of its calls may take that names no timeout, beginning included; None for what
                the options say.

        Beginning may raise:
            DeadlineExceeded: PD granted no timestamp in time.
            FutureTimestamp: `start_ts` lies ahead of what PD has granted.
            PdError, ClusterMismatch: PD refused for good.
        """
        return self._begun(self._client.begin(options, start_ts=start_ts, timeout=timeout))

    def run(
        self,
        function: Callable[[Transaction], Result],
        *,
        options: TransactionOptions | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Return the result of `function`, called with a transaction that is committed when it returns.

            def transfer(txn: Transaction) -> None:
                balance = int(txn.get(b"alice") or 0)
                txn.put(b"alice", str(balance - 5).encode())

            client.run(transfer)

        When the transaction fails in a way that a new one may not, as by WriteConflict, the function is called again
        with a new one, after a wait that grows. So it should have no other effects than those on its transaction, or
        such as may happen several times. It is never called again once the transaction has committed or may have. What
        else it raises rolls back, and is raised.

        Args:
            function: A function of a transaction. It need not commit, and may roll back.
            options: Of each transaction; None for `TxnConfig.transaction`.
            timeout: Seconds for all of it: no call of the transactions goes on for longer, and no new one is begun
                afterwards. None for `TxnConfig.run_timeout`.

        Raises:
            UndeterminedError: the transaction may or may not have committed.
            DeadlineExceeded: time ran out; the last failure is the `__cause__`. Nothing was committed.
            TikvError: a failure with which running again would not help, such as AlreadyExists. Nothing was committed.
            Exception: whatever else the function raises. Nothing was committed, unless the function did it.

        Interrupted: what is under way is rolled back; a commit under way may or may not take effect.
        """
        begin, deadline = self._client._to_run(options, timeout)
        pauses = tikv_txn._run.Pauses(deadline)
        while True:
            transaction = begin()
            try:
                with self._begun(transaction) as txn:
                    result = function(txn)
                    if inspect.iscoroutine(result):
                        result.close()
                        raise TypeError("the function must not be async: this client calls it in your own thread")
            except Exception as error:
                if not tikv_txn._run.may_run_again(error, transaction.state):
                    raise
                self._portal.call(pauses.after, error)
            else:
                return result

    def _begun(self, transaction: tikv_txn.transaction.Transaction) -> Transaction:
        self._portal.call(transaction._begin)
        return Transaction(self._portal, transaction)

    def snapshot(
        self,
        ts: AnyTimestamp | None = None,
        *,
        staleness: float | None = None,
        requests: RequestOptions | None = None,
        timeout: float | None = None,
    ) -> Snapshot:
        """Return reads at one moment, without writing; by default at a timestamp fetched when first needed.

        Args:
            ts: Where to read instead, such as a commit timestamp; `tikv_pd.LATEST` for the newest version of each key,
                which asks for no timestamp, but is no snapshot.
            staleness: So many seconds in the past instead, of any replica: one that is not that far has the leader
                asked. Spares leaders, and the way to them.
            requests: What to ask of stores; None for what `TxnConfig.transaction` says.
            timeout: Seconds that each of its calls may take that names no timeout.

        Raises:
            ConfigError: both `ts` and `staleness`.

        Source: client-go KVStore.GetSnapshot.
        """
        return Snapshot(
            self._portal, self._client.snapshot(ts, staleness=staleness, requests=requests, timeout=timeout)
        )

    @overload
    def transactional(self, function: Body[Parameters, Result], /) -> Bound[Parameters, Result]: ...

    @overload
    def transactional(
        self, /, *, options: TransactionOptions | None = None, timeout: float | None = None
    ) -> Callable[[Body[Parameters, Result]], Bound[Parameters, Result]]: ...

    def transactional(
        self,
        function: Body[..., Any] | None = None,
        /,
        *,
        options: TransactionOptions | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Make a function run in transactions of this client, as by `run`; for use as a decorator.

            @client.transactional
            def transfer(txn: Transaction, amount: int) -> None: ...

            transfer(5)

        `tikv_txn.sync.transactional` does so for functions that are defined before there is a client.

        Args:
            function: A function whose first parameter is the transaction; callers leave it out.
            options: As of `run`.
            timeout: As of `run`.
        """

        def bind(body: Body[Parameters, Result]) -> Bound[Parameters, Result]:

            @wraps(body)
            def bound(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
                return self.run(lambda txn: body(txn, *args, **kwargs), options=options, timeout=timeout)

            return bound

        return bind if function is None else bind(function)

    def get_ts(self, *, timeout: float | None = None) -> Timestamp:
        """Return a timestamp above every one granted before: all that has been committed by now is seen there.

        Args:
            timeout: Seconds.

        Raises:
            DeadlineExceeded: PD granted none in time.
            PdError, ClusterMismatch, TimestampFallback: PD refused for good.
        """
        return self._portal.call(self._client.get_ts, timeout=timeout)

    def stats(self) -> RpcStats:
        """Return how the client and its stores do: values, counted since the client was opened."""
        return self._portal.run(self._client.stats)


Body: TypeAlias = Callable[Concatenate[Transaction, Parameters], Result]
"A function that does its work in the transaction that it is called with first."
Bound: TypeAlias = Callable[Parameters, Result]
"The same without its first parameter."
Joining: TypeAlias = Callable[Concatenate[TransactionClient | Transaction, Parameters], Result]
"The same with a client or a transaction as its first parameter."


@overload
def transactional(function: Body[Parameters, Result], /) -> Joining[Parameters, Result]: ...


@overload
def transactional(
    *, options: TransactionOptions | None = None, timeout: float | None = None
) -> Callable[[Body[Parameters, Result]], Joining[Parameters, Result]]: ...


def transactional(
    function: Body[..., Any] | None = None,
    /,
    *,
    options: TransactionOptions | None = None,
    timeout: float | None = None,
) -> Any:
    """Make a function one that its callers give a client or a transaction; for use as a decorator.

        @transactional
        def transfer(txn: Transaction, amount: int) -> None: ...

        transfer(client, 5)  # in a transaction of its own, run again as by `TransactionClient.run`
        transfer(txn, 5)  # as a part of this transaction, once

    For libraries, whose functions can so be used alone and together.

    Args:
        function: A function whose first parameter is the transaction.
        options: Of transactions of its own; see `TransactionClient.run`.
        timeout: As of `TransactionClient.run`, for transactions of its own.
    """

    def bind(body: Body[Parameters, Result]) -> Joining[Parameters, Result]:

        @wraps(body)
        def joining(
            where: TransactionClient | Transaction, /, *args: Parameters.args, **kwargs: Parameters.kwargs
        ) -> Result:
            if isinstance(where, Transaction):
                return body(where, *args, **kwargs)
            if not isinstance(where, TransactionClient):
                raise TypeError(
                    f"the first argument must be a TransactionClient or a Transaction, not {type(where).__name__}"
                )
            return where.run(lambda txn: body(txn, *args, **kwargs), options=options, timeout=timeout)

        return joining

    return bind if function is None else bind(function)
