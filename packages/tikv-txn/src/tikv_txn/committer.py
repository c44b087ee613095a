"""Commits: prewrite, then commit or clean up. What happens is told to `CommitState`, which knows what it means.

Source: client-go txnkv/transaction, 2pc.go, prewrite.go, commit.go and cleanup.go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol, cast

import attrs
from tikv_pd import BackoffExceeded, DeadlineExceeded, TikvError, Timestamp, UndeterminedError
from tikv_pd.backoff import COMMIT_TS_LAG, TXN_LOCK
from tikv_pd.lowlevel import Resp
from tikv_pd.timestamp import LOGICAL_BITS
from tikv_region import KeyCodec, RegionEntry
from tikv_rpc import Call, Collect, GroupedWork, KeyWork, Plan, RegionPlan, Request, ResolveLocks
from tikv_rpc.errors import RelocateError

from tikv_txn._commit_requests import (
    CommitOrder,
    CommitRequests,
    PartRequest,
    Pieces,
    PrewriteWork,
    PrimaryFirst,
    commit_work,
    rollback_work,
)
from tikv_txn._store import TxnStore
from tikv_txn.commit_state import CommitState, Outcome
from tikv_txn.errors import (
    AlreadyExists,
    AssertionFailed,
    CommitTsExpired,
    CommitTsLag,
    CommitTsTooLarge,
    KeyLocked,
    TransactionAborted,
    TransactionExpired,
    WriteConflict,
    key_error,
)
from tikv_txn.heartbeat import Heartbeat
from tikv_txn.locks import Lock
from tikv_txn.mutations import Mutations
from tikv_txn.options import TransactionOptions

_SECONDARIES_SECONDS: Final = 41.0
"""Time to commit in the background what the caller does not wait for. Source: client-go CommitSecondaryMaxBackoff."""
_CLEAN_UP_SECONDS: Final = 20.0
"""Time to roll back what a failed commit has locked. Source: client-go cleanupMaxBackoff."""
_MAX_AGE: Final = 86_400.0
"""Seconds after which a transaction may not commit. Source: client-go MaxTxnTimeUse."""
_MAX_TS_JUMP: Final = 3_600_000 << LOGICAL_BITS
"""How far stores may push a commit timestamp: an hour. Source: client-go commit.go."""
_FINAL: Final = (WriteConflict, AlreadyExists)
"""Refusals of a prewrite that no later attempt can escape."""


class LockResolver(Protocol):
    """What a commit asks about the locks in its way; `tikv_txn.lock_resolver.LockResolver`."""

    async def resolve(self, locks: Iterable[Lock], caller_start_ts: int, call: Call) -> float:
        """Return the seconds until the first of them may have expired, 0 to go on at once."""
        ...


class Committer:
    """Commits transactions. One for each client; any number of commits may be under way.

    Args:
        store: The cluster.
        resolver: Puts locks out of the way.
    """

    def __init__(self, store: TxnStore, resolver: LockResolver) -> None:
        self._store = store
        self._plan: Plan[CommitOrder, int] = store.operation(_Commits(store, resolver))

    async def commit(
        self, mutations: Mutations, start_ts: int, options: TransactionOptions, call: Call, *, began: float
    ) -> int:
        """Return the commit timestamp, once the transaction is committed.

        Args:
            mutations: What it does; at least one.
            start_ts: When it started.
            options: How it commits.
            call: Its operation.
            began: When it was begun, by the clock of `RpcClient.now`.

        Raises:
            WriteConflict: another transaction wrote one of the keys since the start, or is about to.
            AlreadyExists: a key that was inserted exists.
            AssertionFailed: what was asserted of a key is not so, and nothing else was wrong.
            KeyLocked: a lock of another transaction outlived the call.
            TransactionAborted: others rolled it back.
            CommitTsLag, CommitTsTooLarge, TransactionExpired: no commit timestamp is right.
            TransactionRefused: a store refused for good.
            EntryTooLarge: a request exceeds raft's limit of an entry.
            DeadlineExceeded, BackoffExceeded, PdError, RpcError: PD or stores were not there for it.
            UndeterminedError: it may or may not be committed; of all these, only then.

        Cancellation: it may or may not be committed. If it is not, it is rolled back in the background.
        """
        order = CommitOrder(mutations, start_ts, self._store.rpc.now() - began, options)
        return await self._plan.execute(order, call)


@attrs.frozen
class _Commits:
    """The plan of a commit, as a whole."""

    store: TxnStore
    resolver: LockResolver

    async def execute(self, work: CommitOrder, call: Call) -> int:
        """Commit."""
        return await _Commit(self.store, self.resolver, work, call).run()


class _Commit:
    """One commit under way."""

    def __init__(self, store: TxnStore, resolver: LockResolver, order: CommitOrder, call: Call) -> None:
        mutations, options, config = order.mutations, order.options, store.config
        self.codec = store.codec
        self.order = order
        self.resolver = resolver
        self.requests = CommitRequests(order, store.codec, mutations.lock_ttl(order.elapsed, config))
        has_locks = bool(mutations.locking)
        self.state = CommitState(
            len(mutations),
            mutations.locking,
            mutations.primary,
            order.start_ts,
            one_pc=options.one_pc and has_locks,
            async_commit=options.async_commit and has_locks and mutations.may_commit_async(config),
        )
        self.assertion: AssertionFailed | None = None
        """What a store found of an assertion, to be told if nothing else is wrong."""
        self._store = store
        self._call = call
        self._is_slow = mutations.size > config.heartbeat_bytes
        self._heartbeat = Heartbeat(
            store,
            mutations.keys[mutations.primary],
            order.start_ts,
            self.requests.heartbeat,
            mutations.lock_ttl(0.0, config),
            call.options,
        )

    async def run(self) -> int:
        """Commit; see `Committer.commit`."""
        state, call = self.state, self._call
        try:
            await self._prewrite(call)
            if not state.commit_ts:
                await self._commit_primary(call)
            elif not state.one_pc:
                self._commit_in_background()
        except BaseException as error:
            outcome = state.outcome
            self._wind_up(outcome)
            if not isinstance(error, Exception):
                raise
            if outcome is Outcome.UNKNOWN:
                raise UndeterminedError(call.operation) from error
            if outcome is Outcome.NOT_COMMITTED:
                if isinstance(error, UndeterminedError):
                    # A store does not know what became of one request, but without another nothing is committed.
                    raise TransactionAborted(call.operation, b"", str(error.__cause__)) from error
                raise
        finally:
            self._heartbeat.stop()
        return state.commit_ts

    def keep_alive(self, *, is_slow: bool = False) -> None:
        """Keep the primary lock alive if there is one, and the commit is large or has to wait."""
        self._is_slow = self._is_slow or is_slow
        if self._is_slow and self.state.is_primary_locked and not self.state.one_pc:
            self._heartbeat.start()

    async def later_ts(self, call: Call) -> int:
        """Return a timestamp that the transaction may commit at.

        Raises:
            CommitTsLag: PD's timestamps are too far behind what it has to commit after.
            TransactionExpired: it is too old by then.
        """
        options, now = self.order.options, call.deadline.now
        began = now()
        while True:
            ts = await self._store.get_ts(call)
            target = max(options.commit_after, self.state.min_commit_ts - 1)
            if ts > target:
                self._check_age(ts)
                return ts
            waited = now() - began
            lag = CommitTsLag(ts, target, waited)
            left = options.commit_after_timeout - waited
            if left <= 0 or Timestamp.from_ts(target).physical - Timestamp.from_ts(ts).physical > left * 1000:
                raise lag
            await call.backoffer.backoff(COMMIT_TS_LAG, lag, at_most=left)

    async def _prewrite(self, call: Call) -> None:
        """Prewrite all mutations; in the first two modes that commits."""
        store, state, config = self._store, self.state, self._store.config
        work = PrewriteWork(self.requests, state, config.commit_batch_bytes)
        pieces = await work.begin(store.cache, call)
        if state.one_pc or state.async_commit:
            await self._bound_commit_ts(call)
        plan = _Prewriting(ResolveLocks(store.regions, _PrewriteAnswers(self)), state)
        await store.fan_out_by(plan, config.commit_concurrency).execute(GroupedWork(work, pieces), call)
        if self.assertion is not None:
            raise self.assertion

    async def _bound_commit_ts(self, call: Call) -> None:
        """Fix beforehand between which timestamps stores may choose the one to commit at."""
        order = self.order
        if not order.options.causal_consistency or order.options.commit_after:
            latest = await self.later_ts(call)
            self.state.commit_after(latest)
        else:
            latest = order.start_ts + (int(order.elapsed * 1000) << LOGICAL_BITS)
            # Once the locks are there it is too late to refuse.
            self._check_age(latest)
        self.requests.max_commit_ts = latest + (int(self._store.config.async_commit_window * 1000) << LOGICAL_BITS)

    async def _commit_primary(self, call: Call) -> None:
        """Commit the primary key, with what lies beside it, and have the others committed in the background."""
        state, store = self.state, self._store
        self.requests.commit_ts = await self.later_ts(call)
        if not self.order.mutations.locking:
            # Nothing but checks: they held, and there is nothing to commit.
            state.on_committed(self.requests.commit_ts)
            return
        work = self._commit_work()
        first = PrimaryFirst(work, await work.begin(store.cache, call))
        plan = _Committing(ResolveLocks(store.regions, _CommitAnswers(self)), state)
        await store.fan_out_by(plan, 1).execute(first, call)
        if first.rest:
            self._in_background(self._commit_pieces, first.rest)

    def _wind_up(self, outcome: Outcome) -> None:
        """Leave nothing behind of a commit that ends before its time, as far as that is right."""
        if outcome is Outcome.COMMITTED and not self.state.one_pc:
            self._commit_in_background()
        elif self.state.to_clean_up:
            self._in_background(self._clean_up, self.state.to_clean_up)

    def _commit_in_background(self) -> None:
        self._in_background(self._commit_pieces, None)

    async def _commit_pieces(self, pieces: Pieces | None) -> None:
        """Commit what is left of a transaction that is committed: some pieces, or everything."""
        call = self._store.rpc.call("commit_secondaries", _SECONDARIES_SECONDS, self._call.options)
        self.requests.commit_ts = self.state.commit_ts
        work = self._commit_work()
        plan: Collect[Any, Any] = Collect(self._store.regions, self._store.cache, self._store.config.commit_concurrency)
        # What fails is left to those who meet the locks; they find out that the transaction is committed.
        await plan.execute(work if pieces is None else GroupedWork(work, pieces), call)

    async def _clean_up(self, positions: list[int]) -> None:
        """Roll back what a transaction that is not committed may have locked."""
        store, config = self._store, self._store.config
        call = store.rpc.call("clean_up", _CLEAN_UP_SECONDS, self._call.options)
        work = rollback_work(self.requests, positions, config.commit_batch_bytes)
        first = PrimaryFirst(work, await work.begin(store.cache, call))
        # If the primary key cannot be rolled back, neither may the others: it decides.
        await store.fan_out_by(_RollingBack(store.regions, store.codec), 1).execute(first, call)
        plan: Collect[Any, Any] = Collect(store.regions, store.cache, config.commit_concurrency)
        await plan.execute(GroupedWork(work, first.rest), call)

    def _commit_work(self) -> KeyWork[Any]:
        return commit_work(self.requests, self._store.config.commit_batch_bytes)

    def _in_background(self, function: Callable[[Any], Awaitable[None]], argument: object) -> None:
        """Do something that nobody waits for; if the client is closed first, readers have to do it."""

        async def run() -> None:
            try:
                await function(argument)
            except TikvError:
                # Readers do it.
                return

        if not self._store.rpc.closed:
            self._store.rpc.tasks.start_soon(run)

    def _check_age(self, ts: int) -> None:
        start_ts = self.order.start_ts
        age = (Timestamp.from_ts(ts).physical - Timestamp.from_ts(start_ts).physical) / 1000
        if age > _MAX_AGE:
            raise TransactionExpired(start_ts, age, _MAX_AGE)


def _is_doubtful(error: BaseException, call: Call) -> bool:
    """Tell whether a request that ended so may have been applied, or may be later."""
    if call.lost is not None or isinstance(error, UndeterminedError):
        return True
    # An interceptor's own; what it did before, nobody knows.
    return isinstance(error, Exception) and not isinstance(error, (TikvError, RelocateError))


@attrs.frozen
class _Prewriting:
    """Notes which prewrites nobody will hear of."""

    inner: RegionPlan
    state: CommitState

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Send it."""
        assert isinstance(request, PartRequest)
        while True:
            # Losses are told of each part, and those of others are no concern of this one.
            call.lost = None
            try:
                return await self.inner.execute(entry, request, call)
            except BaseException as error:
                if _is_doubtful(error, call):
                    self.state.on_lost(request.part)
                if not isinstance(error, UndeterminedError) or self.state.one_pc or self.state.async_commit:
                    raise
                # In two phases a prewrite decides nothing, and may be sent as often as it takes.
                await call.pause(None, error)


class _PrewriteAnswers:
    """Decides what the answer to a prewrite means; see `tikv_rpc.LockResolver`."""

    def __init__(self, commit: _Commit) -> None:
        self._commit = commit

    async def resolve(
        self, _entry: RegionEntry, request: Request[Resp], response: Any, call: Call
    ) -> Request[Resp] | None:
        """Return None when it succeeded, or the request again when locks were in its way."""
        assert isinstance(request, PartRequest)
        commit, state = self._commit, self._commit.state
        locks: list[Lock] = []
        for error in response.errors:
            if error.HasField("locked"):
                locks += Lock.of(error.locked, commit.codec)
                continue
            failure = key_error(error, commit.codec, operation="prewrite")
            if isinstance(failure, AssertionFailed):
                call.lost = None
                state.on_refused(request.part)
                # The others go on: what is wrong with them says more.
                commit.assertion = commit.assertion or failure
                return None
            if isinstance(failure, _FINAL):
                call.lost = None
                state.on_refused(request.part)
            raise failure
        if locks:
            await self._wait(locks, call)
            return request
        call.lost = None
        state.on_prewritten(request.part, response.min_commit_ts, response.one_pc_commit_ts)
        commit.keep_alive()
        return None

    async def _wait(self, locks: list[Lock], call: Call) -> None:
        commit, start_ts = self._commit, self._commit.order.start_ts
        for lock in locks:
            if lock.start_ts > start_ts:
                # If that one commits, this one is in conflict with it; it is rarely worth the wait to see.
                raise WriteConflict(lock.key, lock.primary, start_ts, lock.start_ts, 0, "Optimistic")
        first = locks[0]
        cause = KeyLocked(first.key, first.primary, first.start_ts, first.ttl_ms / 1000)
        commit.keep_alive(is_slow=True)
        try:
            wait = await commit.resolver.resolve(locks, start_ts, call)
            if wait > 0:
                await call.backoffer.backoff(TXN_LOCK, cause, at_most=wait)
            else:
                await call.pause(None, cause)
        except (DeadlineExceeded, BackoffExceeded) as error:
            raise cause from error


@attrs.frozen
class _Committing:
    """Notes that nobody will hear of a commit of the primary key."""

    inner: RegionPlan
    state: CommitState

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Send it."""
        call.lost = None
        try:
            return await self.inner.execute(entry, request, call)
        except BaseException as error:
            if _is_doubtful(error, call):
                self.state.on_commit_lost()
            raise


class _CommitAnswers:
    """Decides what the answer to the commit of the primary key means; see `tikv_rpc.LockResolver`."""

    def __init__(self, commit: _Commit) -> None:
        self._commit = commit

    async def resolve(
        self, _entry: RegionEntry, request: Request[Resp], response: Any, call: Call
    ) -> Request[Resp] | None:
        """Return None when it succeeded, or a request with a later timestamp when this one was pushed away."""
        assert isinstance(request, PartRequest)
        commit, requests = self._commit, self._commit.requests
        call.lost = None
        if not response.HasField("error"):
            commit.state.on_committed(requests.commit_ts)
            return None
        commit.state.on_commit_refused()
        failure = key_error(response.error, commit.codec, operation=call.operation)
        mutations = commit.order.mutations
        if not isinstance(failure, CommitTsExpired) or failure.key != mutations.keys[mutations.primary]:
            raise failure
        if failure.min_commit_ts - failure.attempted_commit_ts > _MAX_TS_JUMP:
            raise CommitTsTooLarge(failure.min_commit_ts) from failure
        # Readers of later timestamps came by and were told that they need not wait for this commit.
        commit.state.commit_after(failure.min_commit_ts - 1)
        requests.commit_ts = await commit.later_ts(call)
        return cast("Request[Resp]", requests.commit(request.part))


@attrs.frozen
class _RollingBack:
    """Takes an error about a key for one."""

    inner: RegionPlan
    codec: KeyCodec

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Send it."""
        response: Any = await self.inner.execute(entry, request, call)
        if response.HasField("error"):
            raise key_error(response.error, self.codec, operation=call.operation)
        return response  # type: ignore[no-any-return]
