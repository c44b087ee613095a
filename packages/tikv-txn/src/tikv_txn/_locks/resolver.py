"""What stands in the way of reads and writes of transactions is found out about, and put away.

The decisions are in `locks.py`; here they meet the stores. A write waits until the locks it met are gone. A read needs
to know only what became of their transactions: it tells the store which locks to pass by and which to read through, and
the locks themselves are put away in the background, where nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

import attrs
from tikv_pd import TikvError, UndeterminedError
from tikv_pd.backoff import TXN_NOT_FOUND
from tikv_proto import kvrpcpb
from tikv_region import RegionCache, RegionEntry
from tikv_rpc import Call, Collapse, KeyWork, Plan, Request, RequestOptions

from tikv_txn._locks.chores import Chore, chores
from tikv_txn._locks.locks import (
    MISPLACED,
    EndedTransactions,
    Fate,
    Lock,
    NotFound,
    Passage,
    SecondariesAnswer,
    TxnStatus,
    needs_recovery,
    passage,
    recover,
    seconds_blocked,
    when_not_found,
)
from tikv_txn._locks.requests import Inquiry, LockRequests, Question
from tikv_txn._store import TxnStore
from tikv_txn.errors import key_error

Work = TypeVar("Work")
Result = TypeVar("Result")

BACKGROUND_SECONDS: Final = 40.0
"""Time that putting locks away in the background may take. Source: client-go, asyncResolveLockMaxBackoff."""


@attrs.frozen
class ReadOutcome:
    """How a read goes on that met locks. The sets are for the Context of its requests."""

    wait: float
    """Seconds until the first lock in its way may have expired; 0 to go on at once."""
    ignore: frozenset[int]
    """Start timestamps of transactions whose locks to pass by. Source: kvrpcpb.Context.resolved_locks."""
    access: frozenset[int]
    """Start timestamps of those whose locks to read through. Source: kvrpcpb.Context.committed_locks."""


@attrs.frozen
class _Judgement:
    """What was found out about locks."""

    met: list[tuple[Lock, TxnStatus]]
    """The locks with the status of their transactions."""
    recovered: list[tuple[Lock, TxnStatus]]
    """Primary locks of the async commits among them whose other keys were asked."""
    now_ts: int
    """When that was."""


class LockResolver:
    """Finds out about the locks that others left, and puts them away. One for each client.

    What may be done twice is: clients that meet the same lock do the same about it.

    Args:
        store: The cluster.
    """

    def __init__(self, store: TxnStore) -> None:
        self.in_background = 0
        """How many tasks put locks away just now."""
        self._store = store
        self._requests = LockRequests(store.codec)
        self._ended = EndedTransactions(store.config.resolved_transactions)
        self._ask = store.fan_out_by(store.regions)
        # Many readers meet the locks of one transaction at once.
        self._clean = store.fan_out_by(Collapse(store.regions))
        self._being_cleaned: set[Chore] = set()

    async def resolve(self, locks: Iterable[Lock], caller_start_ts: int, call: Call) -> float:
        """Put away the locks that a write met, of transactions that have ended or whose time is over.

        Args:
            locks: The locks.
            caller_start_ts: Start timestamp of the transaction that writes.
            call: Its operation: its time, its options. Nothing is told to it about lost answers: the locks of others
                are no concern of its own outcome.

        Returns:
            Seconds until the first of the others may have expired; 0 when the write should go on at once.

        Raises:
            InconsistentLocks: stores contradict each other.
            PrimaryMismatch, TransactionRefused: a store refused to say, or to do it.
            DeadlineExceeded, BackoffExceeded: the call's time ran out.

        Cancellation: safe; some locks may have been put away.
        Source: client-go LockResolver.ResolveLocks.
        """
        judged = await self._judge(locks, caller_start_ts, call)
        await self._carry_out(chores(judged.met, judged.recovered, self._store.config.resolve_lite_keys), call)
        blocked = (seconds_blocked(lock, status, judged.now_ts) for lock, status in judged.met)
        return min((seconds for seconds in blocked if seconds is not None), default=0.0)

    async def resolve_for_read(
        self, locks: Iterable[Lock], read_ts: int, call: Call, *, lite: bool = False, clean: bool = False
    ) -> ReadOutcome:
        """Find out how a read gets past the locks it met, and have them put away in the background.

        Args:
            locks: The locks.
            read_ts: Where it reads.
            call: Its operation.
            lite: Whether to put away only these locks, and not all others of large transactions with them.
            clean: Whether to return only when they are put away, for a read that cannot read through locks.

        Raises:
            InconsistentLocks, PrimaryMismatch, TransactionRefused: as `resolve`; of putting away only with `clean`.
            DeadlineExceeded, BackoffExceeded: the call's time ran out.

        Cancellation: safe.
        Source: client-go LockResolver.ResolveLocksForRead.
        """
        judged = await self._judge(locks, read_ts, call)
        found = chores(judged.met, judged.recovered, float("inf") if lite else self._store.config.resolve_lite_keys)
        if clean:
            await self._carry_out(found, call)
        else:
            await self._carry_out_in_background(found, call)
        ways: dict[Passage, set[int]] = {way: set() for way in Passage}
        waits = []
        for lock, status in judged.met:
            way = passage(status, read_ts)
            ways[way].add(lock.start_ts)
            if way is Passage.WAIT:
                waits.append(seconds_blocked(lock, status, judged.now_ts) or 0.0)
        return ReadOutcome(min(waits, default=0.0), frozenset(ways[Passage.IGNORE]), frozenset(ways[Passage.ACCESS]))

    async def _judge(self, locks: Iterable[Lock], caller_ts: int, call: Call) -> _Judgement:
        """Find out what became of the locks' transactions, each once."""
        branch = call.fork()
        locks = list(locks)
        now_ts = await self._store.low_resolution_ts(call)
        statuses: dict[Question, TxnStatus] = {}
        inquiries: dict[Question, Inquiry] = {}
        for lock in locks:
            question = Question.about(lock)
            ended = self._ended.get(lock.start_ts)
            if ended is not None:
                statuses[question] = ended
            else:
                inquiries.setdefault(question, Inquiry(question, lock))
        statuses.update(await self._statuses(list(inquiries.values()), caller_ts, branch))
        recovered = []
        for question, inquiry in inquiries.items():
            status = statuses[question]
            if not needs_recovery(inquiry.lock, status, now_ts):
                continue
            assert status.primary is not None
            found = await self._recover(status.primary, branch)
            if found is None:
                inquiry = attrs.evolve(inquiry, force_sync=True)  # noqa: PLW2901  # the same question, asked otherwise
                found = (await self._statuses([inquiry], caller_ts, branch))[question]
            else:
                recovered.append((status.primary, found))
            self._ended.add(inquiry.lock, found)
            statuses[question] = found
        call.backoffer.join([branch.backoffer])
        return _Judgement([(lock, statuses[Question.about(lock)]) for lock in locks], recovered, now_ts)

    async def _statuses(self, inquiries: Sequence[Inquiry], caller_ts: int, call: Call) -> dict[Question, TxnStatus]:
        """Ask the primary keys until all have answered."""
        found: dict[Question, TxnStatus] = {}
        while inquiries:
            now_ts = await self._store.low_resolution_ts(call)
            again: list[Inquiry] = []
            missing: TikvError | None = None
            work = self._requests.check_status(inquiries, caller_ts, now_ts)
            for part, response in await self._send(self._ask, work, call):
                inquiry = inquiries[part[0]]
                status = self._read_status(inquiry, response)
                if status is None:
                    decision = when_not_found(inquiry.lock, now_ts)
                    if decision is NotFound.ROLL_BACK:
                        again.append(attrs.evolve(inquiry, rolls_back=True))
                        continue
                    if decision is NotFound.WAIT:
                        again.append(inquiry)
                        missing = self._error(response.error)
                        continue
                    status = TxnStatus(Fate.ALIVE, ttl_ms=inquiry.lock.ttl_ms)
                self._ended.add(inquiry.lock, status)
                found[inquiry.question] = status
            inquiries = again
            if missing is not None:
                await call.backoffer.backoff(TXN_NOT_FOUND, missing)
        return found

    def _read_status(self, inquiry: Inquiry, response: kvrpcpb.CheckTxnStatusResponse) -> TxnStatus | None:
        """Return what a primary key says; None if it has not heard of the transaction."""
        if not response.HasField("error"):
            return TxnStatus.of(response, self._store.codec)
        if response.error.HasField("txn_not_found") and not inquiry.rolls_back:
            return None
        if response.error.HasField("primary_mismatch") and inquiry.question.is_pessimistic:
            return MISPLACED
        raise self._error(response.error)

    async def _recover(self, primary: Lock, call: Call) -> TxnStatus | None:
        """Ask the other keys of an async commit; None if it is none after all."""
        answers = []
        for part, response in await self._send(self._ask, self._requests.check_secondaries(primary), call):
            if response.HasField("error"):
                raise self._error(response.error)
            answers.append(SecondariesAnswer.of(len(part), response, self._store.codec))
        return recover(primary, answers)

    async def _carry_out(self, found: Sequence[Chore], call: Call) -> None:
        """Put locks away."""
        if not found:
            return
        branch = call.fork()
        works = [chore.work(self._requests) for chore in found]
        for _, response in await self._send(self._clean, _Together(works), branch):
            refusal = _refusal(response)
            if refusal is not None:
                raise self._error(refusal)
        call.backoffer.join([branch.backoffer])

    async def _carry_out_in_background(self, found: Sequence[Chore], call: Call) -> None:
        """Put locks away while the caller goes on, unless that is under way already or too much of it is."""
        found = [chore for chore in found if chore not in self._being_cleaned]
        if not found or self._store.rpc.closed:
            return
        self._being_cleaned.update(found)
        if self.in_background < self._store.config.background_tasks:
            self.in_background += 1
            self._store.rpc.tasks.start_soon(self._run_in_background, found, call.options)
            return
        try:
            await self._carry_out(found, call)
        except TikvError:
            # As in the background: the read goes on without, and whoever meets them next tries again.
            return
        finally:
            self._being_cleaned.difference_update(found)

    async def _run_in_background(self, found: Sequence[Chore], options: RequestOptions) -> None:
        try:
            await self._carry_out(found, self._store.rpc.call("resolve_locks", BACKGROUND_SECONDS, options))
        except Exception:
            # Whoever meets them next tries again, also where an interceptor raises an error of its own: nobody is there
            # to hear of it, and other work of the client must not end by it.
            return
        finally:
            self._being_cleaned.difference_update(found)
            self.in_background -= 1

    async def _send(self, plan: Plan[Work, Result], work: Work, call: Call) -> Result:
        """Send requests whose effect is the same however often they are applied."""
        while True:
            try:
                return await plan.execute(work, call)
            except UndeterminedError as error:
                await call.pause(None, error)

    def _error(self, error: kvrpcpb.KeyError) -> TikvError:
        return key_error(error, self._store.codec, operation="resolve_locks")


def _refusal(response: Any) -> kvrpcpb.KeyError | None:
    """Return why a store did not put locks away, None if it did."""
    if isinstance(response, kvrpcpb.PessimisticRollbackResponse):
        return response.errors[0] if response.errors else None
    error: kvrpcpb.KeyError | None = response.error if response.HasField("error") else None
    return error


@attrs.frozen(eq=False)
class _Together:
    """Several works as one, whose requests are sent together. A piece is that of the work at a position."""

    works: Sequence[KeyWork[Any]]

    @property
    def whole(self) -> tuple[int, Sequence[int]]:
        """Nothing can stand for all pieces; nobody asks `FanOut` for it."""
        return 0, ()

    async def begin(self, cache: RegionCache, call: Call) -> list[tuple[RegionEntry, tuple[int, Sequence[int]]]]:
        """Return the pieces of all works."""
        return [
            piece
            for position, work in enumerate(self.works)
            for piece in await self.split((position, work.whole), cache, call)
        ]

    async def split(
        self, part: tuple[int, Sequence[int]], cache: RegionCache, call: Call
    ) -> list[tuple[RegionEntry, tuple[int, Sequence[int]]]]:
        """Split a piece of one work."""
        position, keys = part
        return [(entry, (position, piece)) for entry, piece in await self.works[position].split(keys, cache, call)]

    def request(self, part: tuple[int, Sequence[int]]) -> Request[Any]:
        """Return the request for a piece of one work."""
        position, keys = part
        return self.works[position].request(keys)
