"""TransactionClient: transactions on TiKV."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeAlias, TypeVar, get_args, overload

import attrs
from tikv_pd import Address, ConfigError, Deadline, SecurityConfig, Timestamp
from tikv_pd.lowlevel import Transport
from tikv_rpc import Interceptor, RequestOptions, RpcObserver, RpcStats
from tikv_rpc.frontend.arguments import check_kind, check_timeout
from tikv_rpc.frontend.session import Endpoint

from tikv_txn._arguments import AnyTimestamp, as_start_ts, as_ts, check_options, check_staleness
from tikv_txn._run import run
from tikv_txn._session import Opened, TxnSession
from tikv_txn.config import TxnConfig
from tikv_txn.options import TransactionOptions
from tikv_txn.snapshot import Snapshot, Start, fresh, granted, stale
from tikv_txn.transaction import Transaction

ApiVersion: TypeAlias = Literal["v1", "v2"]
"""The cluster's `storage.api-version`, of those that have transactions."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Body: TypeAlias = Callable[Concatenate[Transaction, Parameters], Awaitable[Result]]
"""An async function that does its work in the transaction that it is called with first."""
Bound: TypeAlias = Callable[Parameters, Coroutine[Any, Any, Result]]
"""The same without its first parameter."""
Joining: TypeAlias = "Callable[Concatenate[TransactionClient | Transaction, Parameters], Coroutine[Any, Any, Result]]"
"""The same with a client or a transaction as its first parameter."""


class TransactionClient:
    """A client of TiKV's transactions. Use inside `async with`; any number of tasks may share it.

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
        ClosedError: another task closed it meanwhile.

    Every call may raise:
        TypeError: an argument is of the wrong type.
        ConfigError: an argument can never work. Nothing was sent.
        ClosedError: the client is not open, or was closed meanwhile.

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
        endpoint = Endpoint.of(
            address,
            api_version,
            keyspace,
            versions=get_args(ApiVersion),
            security=security,
            interceptors=interceptors,
            observers=observers,
            transport=transport,
        )
        check_kind(config, TxnConfig, "config")
        self._session = TxnSession(endpoint, config if config is not None else TxnConfig())

    async def open(self) -> Self:
        """Open the client, as `async with` does, and return it: for programs that close it elsewhere, by `aclose`.

        Cancellation: it is not open.
        """
        await self._session.open()
        return self

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the client; calls under way fail with ClosedError, or UndeterminedError for a commit that was sent.

        Work of commits that goes on in the background has `TxnConfig.close_timeout` to end: what it leaves on stores is
        put right by whoever meets it. Closing twice is fine, and a closed client may be opened again. Any task of the
        event loop may close it, whichever opened it; all who do return when it is closed.

        Raises:
            ConfigError: it was opened in another event loop.

        Cancellation: the client is closed all the same, and waits for no such work.
        """
        await self._session.aclose()

    def begin(
        self,
        options: TransactionOptions | None = None,
        *,
        start_ts: AnyTimestamp | None = None,
        timeout: float | None = None,
    ) -> Transaction:
        """Return a transaction, to be begun by `async with` or by `await`.

            async with client.begin() as txn:  # commits at the end of the block, or rolls back when it raises
                txn.put(b"k", b"v")

            txn = await client.begin()  # its user commits it or rolls it back

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
        return self._begin(self._options(options), start_ts, timeout)

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
        opened = self._opened()
        config = self._session.config
        if requests is None:
            requests = config.transaction.requests
        elif not isinstance(requests, RequestOptions):
            raise TypeError(f"requests must be RequestOptions, not {type(requests).__name__}")
        start: Start = fresh
        if staleness is not None:
            if ts is not None:
                raise ConfigError("pass either ts or staleness, not both")
            start = stale(check_staleness(staleness))
            requests = attrs.evolve(requests, stale_read=True)
        elif ts is not None:
            start = granted(as_ts(ts, "ts"))
        seconds = config.timeout if timeout is None else check_timeout(timeout)
        return Snapshot(opened.reads, start, requests, seconds)

    async def run(
        self,
        function: Callable[[Transaction], Awaitable[Result]],
        *,
        options: TransactionOptions | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Return the result of `function`, called with a transaction that is committed when it returns.

            async def transfer(txn: Transaction) -> None:
                balance = int(await txn.get(b"alice") or 0)
                txn.put(b"alice", str(balance - 5).encode())

            await client.run(transfer)

        When the transaction fails in a way that a new one may not, as by WriteConflict, the function is called again
        with a new one, after a wait that grows. So it should have no other effects than those on its transaction, or
        such as may happen several times. It is never called again once the transaction has committed or may have. What
        else it raises rolls back, and is raised.

        Args:
            function: An async function of a transaction. It need not commit, and may roll back.
            options: Of each transaction; None for `TxnConfig.transaction`.
            timeout: Seconds for all of it: no call of the transactions goes on for longer, and no new one is begun
                afterwards. None for `TxnConfig.run_timeout`.

        Raises:
            UndeterminedError: the transaction may or may not have committed.
            DeadlineExceeded: time ran out; the last failure is the `__cause__`. Nothing was committed.
            TikvError: a failure with which running again would not help, such as AlreadyExists. Nothing was committed.
            Exception: whatever else the function raises. Nothing was committed, unless the function did it.

        Cancellation: what is under way is rolled back; a commit under way may or may not take effect.
        """
        begin, deadline = self._to_run(options, timeout)
        return await run(begin, function, deadline)

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
        """Make an async function run in transactions of this client, as by `run`; for use as a decorator.

            @client.transactional
            async def transfer(txn: Transaction, amount: int) -> None: ...

            await transfer(5)

        `tikv_txn.transactional` does so for functions that are defined before there is a client.

        Args:
            function: An async function whose first parameter is the transaction; callers leave it out.
            options: As of `run`.
            timeout: As of `run`.
        """

        def bind(body: Body[Parameters, Result]) -> Bound[Parameters, Result]:
            @wraps(body)
            async def bound(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
                return await self.run(lambda txn: body(txn, *args, **kwargs), options=options, timeout=timeout)

            return bound

        return bind if function is None else bind(function)

    async def get_ts(self, *, timeout: float | None = None) -> Timestamp:
        """Return a timestamp above every one granted before: all that has been committed by now is seen there.

        Args:
            timeout: Seconds.

        Raises:
            DeadlineExceeded: PD granted none in time.
            PdError, ClusterMismatch, TimestampFallback: PD refused for good.
        """
        opened = self._opened()
        seconds = self._session.config.timeout if timeout is None else check_timeout(timeout)
        return Timestamp.from_ts(await opened.store.get_ts(opened.store.rpc.call("get_ts", seconds)))

    def stats(self) -> RpcStats:
        """Return how the client and its stores do: values, counted since the client was opened."""
        return self._opened().store.rpc.stats()

    def _opened(self) -> Opened:
        return self._session.opened or self._session.not_open()

    def _options(self, options: TransactionOptions | None) -> TransactionOptions:
        return self._session.config.transaction if options is None else check_options(options)

    def _to_run(
        self, options: TransactionOptions | None, timeout: float | None
    ) -> tuple[Callable[[], Transaction], Deadline]:
        """Return what begins the transactions of a run, and when it ends."""
        opened = self._opened()
        seconds = self._session.config.run_timeout if timeout is None else check_timeout(timeout)
        used = self._options(options)
        deadline = Deadline("run", seconds, opened.store.rpc.now)
        return lambda: self._begin(used, None, None, deadline), deadline

    def _begin(
        self,
        options: TransactionOptions,
        start_ts: AnyTimestamp | None,
        timeout: float | None,
        until: Deadline | None = None,
    ) -> Transaction:
        if timeout is not None:
            timeout = check_timeout(timeout)
        elif options.timeout is not None:
            timeout = options.timeout
        else:
            timeout = self._session.config.timeout
        at = None if start_ts is None else as_start_ts(start_ts)
        return Transaction(self._opened(), options, timeout=timeout, start_ts=at, until=until)


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
    """Make an async function one that its callers give a client or a transaction; for use as a decorator.

        @transactional
        async def transfer(txn: Transaction, amount: int) -> None: ...

        await transfer(client, 5)  # in a transaction of its own, run again as by `TransactionClient.run`
        await transfer(txn, 5)  # as a part of this transaction, once

    For libraries, whose functions can so be used alone and together.

    Args:
        function: An async function whose first parameter is the transaction.
        options: Of transactions of its own; see `TransactionClient.run`.
        timeout: As of `TransactionClient.run`, for transactions of its own.
    """

    def bind(body: Body[Parameters, Result]) -> Joining[Parameters, Result]:
        @wraps(body)
        async def joining(
            where: TransactionClient | Transaction, /, *args: Parameters.args, **kwargs: Parameters.kwargs
        ) -> Result:
            if isinstance(where, Transaction):
                return await body(where, *args, **kwargs)
            if not isinstance(where, TransactionClient):
                raise TypeError(
                    f"the first argument must be a TransactionClient or a Transaction, not {type(where).__name__}"
                )
            return await where.run(lambda txn: body(txn, *args, **kwargs), options=options, timeout=timeout)

        return joining

    return bind if function is None else bind(function)
