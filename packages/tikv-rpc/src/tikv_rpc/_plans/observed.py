"""Observation, as plans around what is observed. Composed only for clients that somebody observes.

    ObservedOperation     around the whole plan of an operation
    ObservedAttempt       around one attempt
    ObservedRegionCache   in place of the Region cache, for the time that PD takes

What belongs to one operation is its `Record`, which takes the place of the `Waits` in its `Call`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar

import attrs
from tikv_pd import Backoffer
from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import Resp
from tikv_region import KeyRange, RegionCache, RegionEntry, RegionError, StoreEntry

from tikv_rpc._plans.attempts import RoutePlan
from tikv_rpc._plans.over_regions import Plan
from tikv_rpc._reports.observer import (
    CANCELLED,
    OK,
    PD,
    AttemptReport,
    Execution,
    Operation,
    OperationObserver,
    OperationReport,
    RpcObserver,
    WaitReport,
)
from tikv_rpc._stores.route import Route, manner
from tikv_rpc.call import Call
from tikv_rpc.request import Request
from tikv_rpc.waits import CountedBackoffer, Waits

Work = TypeVar("Work")
Result = TypeVar("Result")

_NO_IO: Final = 1e-4
"""Seconds that a lookup takes at most that did not ask PD."""


class _Shared:
    """What the branches of an operation have in common."""

    __slots__ = ("attempts", "branches", "now", "observers", "waits")

    def __init__(self, observers: Sequence[OperationObserver], now: Callable[[], float]) -> None:
        self.observers = observers
        self.now = now
        self.attempts = self.waits = self.branches = 0


class Record(Waits):
    """One operation under observation, or one of its parallel branches."""

    __slots__ = ("_shared", "branch", "is_asking", "waited")

    def __init__(self, plain: Waits, shared: _Shared, branch: int = 0) -> None:
        super().__init__(plain.budget, plain.totals)
        self._shared = shared
        self.branch = branch
        """Its number, counted from 0 for the operation itself."""
        self.is_asking = False
        """Whether the time that PD takes is being measured."""
        self.waited = 0.0
        """Seconds it waited between attempts."""

    @property
    def now(self) -> Callable[[], float]:
        """The clock."""
        return self._shared.now

    def took(self, kind: str, began: float, seconds: float, /) -> None:
        """Count and report a wait between attempts."""
        super().took(kind, began, seconds)
        self.waited += seconds
        self.report_wait(kind, began, seconds)

    def fork(self) -> Record:
        """Return the record of a parallel branch."""
        self._shared.branches += 1
        return Record(self, self._shared, self._shared.branches)

    def report_wait(self, kind: str, began: float, seconds: float) -> None:
        """Report a wait of any kind."""
        self._shared.waits += 1
        report = WaitReport(kind, self.branch, began, seconds)
        for observer in self._shared.observers:
            observer.wait(report)

    def report_attempt(self, report: AttemptReport) -> None:
        """Report an attempt."""
        self._shared.attempts += 1
        for observer in self._shared.observers:
            observer.attempt(report)

    def end(self, seconds: float, outcome: str) -> None:
        """Report the end."""
        report = OperationReport(seconds, outcome, self._shared.attempts, self._shared.waits)
        # The last to begin is the first to end, as contexts nest.
        for observer in reversed(self._shared.observers):
            observer.end(report)


@attrs.frozen
class ObservedOperation(Generic[Work, Result]):
    """Report what becomes of an operation, to those who care for it."""

    inner: Plan[Work, Result]
    observers: tuple[RpcObserver, ...]

    async def execute(self, work: Work, call: Call) -> Result:
        """Do the work."""
        now = call.deadline.now
        key, keys = subject_of(work)
        operation = Operation(call.operation, key, keys, now())
        hearing = [each for each in (observer.begin(operation) for observer in self.observers) if each is not None]
        if not hearing:
            return await self.inner.execute(work, call)
        plain = call.waits
        record = Record(plain, _Shared(hearing, now))
        call.wait_by(record)
        outcome = CANCELLED
        try:
            result = await self.inner.execute(work, call)
            outcome = OK
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            call.wait_by(plain)
            record.end(now() - operation.started, outcome)
        return result


@attrs.frozen
class ObservedAttempt:
    """Report what becomes of an attempt, when its operation is observed."""

    inner: RoutePlan

    def execute(
        self, entry: RegionEntry, route: Route, request: Request[Resp], call: Call, /
    ) -> Coroutine[Any, Any, Resp]:
        """Send it, once awaited."""
        record = call.waits
        if isinstance(record, Record):
            return self._observe(entry, route, request, call, record)
        return self.inner.execute(entry, route, request, call)

    async def _observe(
        self, entry: RegionEntry, route: Route, request: Request[Resp], call: Call, record: Record
    ) -> Resp:
        index, is_retry = route.target.index, bool(request.first)
        access, size = manner(route.target, is_leader=index == entry.leader), len(route.context) + len(request.payload)
        outcome, response = CANCELLED, None
        began = record.now()
        try:
            response = await self.inner.execute(entry, route, request, call)
            outcome = _outcome(response, entry, index)
        except RpcError as error:
            outcome = error.code
            raise
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            record.report_attempt(
                AttemptReport(
                    rpc=request.rpc.name,
                    store_id=entry.stores[index].id,
                    address=route.client.address,
                    forwarded_to=route.forward,
                    region_id=entry.id,
                    access=access,
                    is_retry=is_retry,
                    branch=record.branch,
                    started=began,
                    seconds=record.now() - began,
                    outcome=outcome,
                    request_bytes=size,
                    response_bytes=0 if response is None else response.ByteSize(),
                    execution=None if response is None else Execution.of(response),
                )
            )
        return response


def _outcome(response: Any, entry: RegionEntry, index: int) -> str:
    if not response.HasField("region_error"):
        return OK
    return RegionError.from_pb(response.region_error, entry.id, entry.stores[index].id).kind


def subject_of(work: Any) -> tuple[bytes | None, int | None]:
    """Return what a plan's work is about: a key, and how many there are if it was given many.

    Of a (key, request) pair that is its key; of other work its `subject`, if it has one.
    """
    if isinstance(work, tuple):
        return work[0], None
    subject: tuple[bytes | None, int | None] = getattr(work, "subject", (None, None))
    return subject


class ObservedRegionCache(RegionCache):
    """A Region cache that reports, for operations under observation, how long they wait for PD."""

    async def locate(self, key: bytes, backoffer: Backoffer) -> RegionEntry:
        """See `RegionCache.locate`."""
        with _timed(backoffer):
            return await super().locate(key, backoffer)

    async def locate_end(self, key: bytes, backoffer: Backoffer) -> RegionEntry:
        """See `RegionCache.locate_end`."""
        with _timed(backoffer):
            return await super().locate_end(key, backoffer)

    async def locate_range(self, key_range: KeyRange, backoffer: Backoffer) -> list[RegionEntry]:
        """See `RegionCache.locate_range`."""
        with _timed(backoffer):
            return await super().locate_range(key_range, backoffer)

    async def group_keys(self, keys: Sequence[bytes], backoffer: Backoffer) -> list[tuple[RegionEntry, Sequence[int]]]:
        """See `RegionCache.group_keys`."""
        with _timed(backoffer):
            return await super().group_keys(keys, backoffer)

    async def resolve(self, store: StoreEntry, backoffer: Backoffer) -> str:
        """See `RegionCache.resolve`."""
        with _timed(backoffer):
            return await super().resolve(store, backoffer)


@contextmanager
def _timed(backoffer: Backoffer) -> Iterator[None]:
    """Report the time spent inside as a wait for PD, but for the waits that are reported as such."""
    record = backoffer.listener if isinstance(backoffer, CountedBackoffer) else None
    if not isinstance(record, Record) or record.is_asking:
        yield
        return
    record.is_asking = True
    began, waited = record.now(), record.waited
    try:
        yield
    finally:
        record.is_asking = False
        seconds = record.now() - began - (record.waited - waited)
        if seconds > _NO_IO:
            record.report_wait(PD, began, seconds)
