"""Commits: prewrite, then commit or clean up. What happens is told to `CommitState`, which knows what it means.

Source: client-go txnkv/transaction, 2pc.go, prewrite.go, commit.go and cleanup.go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
from tikv_pd import Timestamp, UndeterminedError
from tikv_pd.backoff import COMMIT_TS_LAG
from tikv_pd.timestamp import LOGICAL_BITS
from tikv_proto import kvrpcpb
from tikv_rpc import Call, Collect, GroupedWork, KeyWork, Plan, ResolveLocks

from tikv_txn._commit.answers import CommitAnswers, Committing, PrewriteAnswers, Prewriting, RollingBack
from tikv_txn._commit.background import Background
from tikv_txn._commit.heartbeat import Heartbeat
from tikv_txn._commit.mutations import Mutations
from tikv_txn._commit.requests import (
    CommitOrder,
    CommitRequests,
    Pieces,
    PrewriteWork,
    PrimaryFirst,
    commit_work,
    rollback_work,
)
from tikv_txn._commit.state import CommitState, Outcome
from tikv_txn._locks.resolver import LockResolver
from tikv_txn._store import TxnStore
from tikv_txn.errors import CommitTsLag, TransactionAborted, TransactionExpired, key_error
from tikv_txn.options import TransactionOptions

_SECONDARIES_SECONDS: Final = 41.0
"""Time to commit in the background what the caller does not wait for. Source: client-go CommitSecondaryMaxBackoff."""
_CLEAN_UP_SECONDS: Final = 20.0
"""Time to roll back what a failed commit has locked. Source: client-go cleanupMaxBackoff."""
_MAX_AGE: Final = 86_400.0
"""Seconds after which a transaction may not commit. Source: client-go MaxTxnTimeUse."""


class Committer:
    """Commits transactions. One for each client; any number of commits may be under way.

    Args:
        store: The cluster.
        resolver: Puts locks out of the way.
    """

    def __init__(self, store: TxnStore, resolver: LockResolver) -> None:
        self._store = store
        self._background = Background(store.rpc)
        self._plan: Plan[CommitOrder, int] = store.operation(_Commits(store, resolver, self._background))

    async def commit(
        self,
        mutations: Mutations,
        start_ts: int,
        options: TransactionOptions,
        call: Call,
        *,
        began: float,
        cancelled: Callable[[Outcome, int], None] | None = None,
    ) -> int:
        """Return the commit timestamp, once the transaction is committed.

        Args:
            mutations: What it does; at least one.
            start_ts: When it started.
            options: How it commits.
            call: Its operation.
            began: When it was begun, by the clock of `RpcClient.now`.
            cancelled: Hears, if the commit is cancelled, what is known of the outcome, and the commit timestamp or 0.

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
        order = CommitOrder(mutations, start_ts, self._store.rpc.now() - began, options, cancelled)
        return await self._plan.execute(order, call)

    async def finish(self) -> None:
        """Wait until the locks of commits that have ended for their callers are gone, but not for long.

        For the moment before a client is closed: locks that it left behind would be in the way of others until they
        expire. Those of an async commit are, although it is committed.
        """
        await self._background.finish(self._store.config.close_timeout)


@attrs.frozen
class _Commits:
    """The plan of a commit, as a whole."""

    store: TxnStore
    resolver: LockResolver
    background: Background

    async def execute(self, work: CommitOrder, call: Call) -> int:
        """Commit."""
        return await _Commit(self.store, self.resolver, self.background, work, call).run()


class _Commit:
    """One commit under way."""

    def __init__(
        self, store: TxnStore, resolver: LockResolver, background: Background, order: CommitOrder, call: Call
    ) -> None:
        mutations, options, config = order.mutations, order.options, store.config
        self._order = order
        self._requests = CommitRequests(order, store.codec, mutations.lock_ttl(order.elapsed, config))
        self._state = CommitState(
            len(mutations),
            mutations.locking,
            mutations.primary,
            order.start_ts,
            one_pc=options.one_pc and mutations.may_commit_at_once,
            async_commit=options.async_commit and mutations.may_commit_async(config),
        )
        self._resolver = resolver
        self._background = background
        self._store = store
        self._call = call
        self._is_slow = mutations.size > config.heartbeat_bytes
        self._heartbeat = Heartbeat(
            store,
            mutations.keys[mutations.primary],
            order.start_ts,
            self._requests.heartbeat,
            store.rpc.now() + mutations.lock_ttl(0.0, config),
            call.options,
        )

    async def run(self) -> int:
        """Commit; see `Committer.commit`."""
        state, call = self._state, self._call
        try:
            await self._prewrite(call)
            if state.is_in_doubt:
                await self._ask_primary(call)
            if not state.commit_ts:
                await self._commit_primary(call)
            elif not state.one_pc:
                self._background.start(self._commit_pieces, None)
        except BaseException as error:
            outcome = state.outcome
            self._wind_up(outcome)
            if not isinstance(error, Exception):
                if self._order.cancelled is not None:
                    self._order.cancelled(outcome, state.commit_ts)
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

    def _keep_alive(self, is_slow: bool) -> None:
        """Keep the primary lock alive if there is one, and the commit is large or has to wait."""
        self._is_slow = self._is_slow or is_slow
        if self._is_slow and self._state.is_primary_locked and not self._state.one_pc:
            self._heartbeat.start()

    async def _later_ts(self, call: Call) -> int:
        """Return a timestamp that the transaction may commit at.

        Raises:
            CommitTsLag: PD's timestamps are too far behind what it has to commit after.
            TransactionExpired: it is too old by then.
        """
        options, now = self._order.options, call.deadline.now
        began = now()
        while True:
            ts = await self._store.get_ts(call)
            target = max(options.commit_after, self._state.min_commit_ts - 1)
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
        store, state, config = self._store, self._state, self._store.config
        work = PrewriteWork(self._requests, state, config.commit_batch_bytes)
        pieces = await work.begin(store.cache, call)
        if state.one_pc or state.async_commit:
            await self._bound_commit_ts(call)
        answers = PrewriteAnswers(state, store.codec, self._resolver, self._order.start_ts, self._keep_alive)
        plan = Prewriting(ResolveLocks(store.regions, answers), state)
        await store.fan_out_by(plan, config.commit_concurrency).execute(GroupedWork(work, pieces), call)
        if answers.assertion is not None:
            raise answers.assertion

    async def _bound_commit_ts(self, call: Call) -> None:
        """Fix beforehand between which timestamps stores may choose the one to commit at."""
        order = self._order
        if not order.options.causal_consistency or order.options.commit_after:
            latest = await self._later_ts(call)
            self._state.commit_after(latest)
        else:
            latest = order.start_ts + (int(order.elapsed * 1000) << LOGICAL_BITS)
            # Once the locks are there it is too late to refuse.
            self._check_age(latest)
        self._requests.max_commit_ts = latest + (int(self._store.config.async_commit_window * 1000) << LOGICAL_BITS)

    async def _ask_primary(self, call: Call) -> None:
        """Find out whether an attempt that was not answered has committed."""
        order, store = self._order, self._store
        key = order.mutations.keys[order.mutations.primary]
        response: kvrpcpb.CheckTxnStatusResponse = await store.at_key.execute((key, self._requests.status()), call)
        # Where the key knows nothing, the transaction has been rolled back, as its commit will be told.
        if response.HasField("error") and not response.error.HasField("txn_not_found"):
            raise key_error(response.error, store.codec, operation=call.operation)
        self._state.on_status(response.commit_version)

    async def _commit_primary(self, call: Call) -> None:
        """Commit the primary key, with what lies beside it, and have the others committed in the background."""
        state, store = self._state, self._store
        self._requests.commit_ts = await self._later_ts(call)
        if not self._order.mutations.locking:
            # Nothing but checks: they held, and there is nothing to commit.
            state.on_committed(self._requests.commit_ts)
            return
        work = self._commit_work()
        first = PrimaryFirst(work, await work.begin(store.cache, call))
        answers = CommitAnswers(state, self._requests, store.codec, self._later_ts)
        plan = Committing(ResolveLocks(store.regions, answers), state)
        await store.fan_out_by(plan, 1).execute(first, call)
        if first.rest:
            self._background.start(self._commit_pieces, first.rest)

    def _wind_up(self, outcome: Outcome) -> None:
        """Leave nothing behind of a commit that ends before its time, as far as that is right."""
        if outcome is Outcome.COMMITTED and not self._state.one_pc:
            self._background.start(self._commit_pieces, None)
        elif self._state.to_clean_up:
            self._background.start(self._clean_up, self._state.to_clean_up)

    async def _commit_pieces(self, pieces: Pieces | None) -> None:
        """Commit what is left of a transaction that is committed: some pieces, or everything."""
        call = self._store.rpc.call("commit_secondaries", _SECONDARIES_SECONDS, self._call.options)
        self._requests.commit_ts = self._state.commit_ts
        work = self._commit_work()
        plan: Collect[Any, Any] = Collect(self._store.regions, self._store.cache, self._store.config.commit_concurrency)
        # What fails is left to those who meet the locks; they find out that the transaction is committed.
        await plan.execute(work if pieces is None else GroupedWork(work, pieces), call)

    async def _clean_up(self, positions: list[int]) -> None:
        """Roll back what a transaction that is not committed may have locked."""
        store, config = self._store, self._store.config
        call = store.rpc.call("clean_up", _CLEAN_UP_SECONDS, self._call.options)
        work = rollback_work(self._requests, positions, config.commit_batch_bytes)
        first = PrimaryFirst(work, await work.begin(store.cache, call))
        # If the primary key cannot be rolled back, neither may the others: it decides.
        await store.fan_out_by(RollingBack(store.regions, store.codec), 1).execute(first, call)
        plan: Collect[Any, Any] = Collect(store.regions, store.cache, config.commit_concurrency)
        await plan.execute(GroupedWork(work, first.rest), call)

    def _commit_work(self) -> KeyWork[Any]:
        return commit_work(self._requests, self._store.config.commit_batch_bytes)

    def _check_age(self, ts: int) -> None:
        start_ts = self._order.start_ts
        age = (Timestamp.from_ts(ts).physical - Timestamp.from_ts(start_ts).physical) / 1000
        if age > _MAX_AGE:
            raise TransactionExpired(start_ts, age, _MAX_AGE)
