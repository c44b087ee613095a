"""What became of the calls of a block, for those who want to know: `collect_exec_details`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final

import attrs

from tikv_rpc._reports.observer import OK, PD, AttemptReport, Execution, Operation, OperationReport, WaitReport

_COLLECTORS: ContextVar[tuple[ExecDetailsCollector, ...]] = ContextVar("exec_details_collectors", default=())
_NOTHING: Final = Execution()
_NONE: Final[Mapping[str, int]] = MappingProxyType({})
_NO_TIME: Final[Mapping[str, float]] = MappingProxyType({})


@attrs.frozen(kw_only=True)
class ExecDetails:
    """What some operations went through. Seconds of what ran in parallel are added up.

    Source: client-go util.ExecDetails; there, raw requests have no bytes.
    """

    operations: int = 0
    """Operations that ended; each page of a scan is one."""
    attempts: int = 0
    """Requests to stores that ended."""
    retries: int = 0
    """Those of them that were sent before."""
    failures: Mapping[str, int] = _NONE
    """Attempts that did not succeed, by outcome; see `AttemptReport.outcome`."""
    store_seconds: float = 0.0
    """Time that attempts took."""
    pd_seconds: float = 0.0
    """Time spent waiting for PD to name Regions and stores; 0 unless the client's cache is an
    `ObservedRegionCache`."""
    waits: Mapping[str, int] = _NONE
    """Waits between attempts, by kind; see `tikv_pd.BackoffKind`."""
    wait_seconds: Mapping[str, float] = _NO_TIME
    """Time they took, by kind."""
    bytes_sent: int = 0
    """Requests with their Contexts, before compression."""
    bytes_received: int = 0
    """Responses."""
    execution: Execution = _NOTHING
    """What stores say that it cost them."""

    @property
    def backoff_seconds(self) -> float:
        """Time that waits between attempts took."""
        return sum(self.wait_seconds.values())


class ExecDetailsCollector:
    """Adds up what operations go through."""

    def __init__(self) -> None:
        self._operations = self._attempts = self._retries = 0
        self._bytes_sent = self._bytes_received = 0
        self._store_seconds = self._pd_seconds = 0.0
        self._failures: Counter[str] = Counter()
        self._waits: Counter[str] = Counter()
        self._wait_seconds: dict[str, float] = {}
        self._execution = _NOTHING

    @property
    def details(self) -> ExecDetails:
        """What they went through so far."""
        return ExecDetails(
            operations=self._operations,
            attempts=self._attempts,
            retries=self._retries,
            failures=MappingProxyType(dict(self._failures)),
            store_seconds=self._store_seconds,
            pd_seconds=self._pd_seconds,
            waits=MappingProxyType(dict(self._waits)),
            wait_seconds=MappingProxyType(dict(self._wait_seconds)),
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
            execution=self._execution,
        )

    def attempt(self, report: AttemptReport) -> None:
        """Add an attempt."""
        self._attempts += 1
        self._retries += report.is_retry
        if report.outcome != OK:
            self._failures[report.outcome] += 1
        self._store_seconds += report.seconds
        self._bytes_sent += report.request_bytes
        self._bytes_received += report.response_bytes
        if report.execution is not None:
            self._execution = Execution.sum([self._execution, report.execution])

    def wait(self, report: WaitReport) -> None:
        """Add a wait."""
        if report.kind == PD:
            self._pd_seconds += report.seconds
            return
        self._waits[report.kind] += 1
        self._wait_seconds[report.kind] = self._wait_seconds.get(report.kind, 0.0) + report.seconds

    def end(self, _report: OperationReport) -> None:
        """Count an operation."""
        self._operations += 1


class _Collecting:
    """Several collectors as one observer of an operation."""

    __slots__ = ("_collectors",)

    def __init__(self, collectors: tuple[ExecDetailsCollector, ...]) -> None:
        self._collectors = collectors

    def attempt(self, report: AttemptReport) -> None:
        for collector in self._collectors:
            collector.attempt(report)

    def wait(self, report: WaitReport) -> None:
        for collector in self._collectors:
            collector.wait(report)

    def end(self, report: OperationReport) -> None:
        for collector in self._collectors:
            collector.end(report)


class ExecDetailsObserver:
    """Serves `collect_exec_details`; what `RpcConfig.exec_details` adds to a client's observers."""

    def begin(self, _operation: Operation) -> _Collecting | None:
        """Hear of operations that begin inside of a block."""
        collectors = _COLLECTORS.get()
        return _Collecting(collectors) if collectors else None


@contextmanager
def collect_exec_details() -> Iterator[ExecDetailsCollector]:
    """Collect what all calls made inside the block go through, also of tasks started there.

        with collect_exec_details() as collected:
            await client.get(b"k")
        print(collected.details.attempts)

    Of clients opened with `RpcConfig(exec_details=True)`; others have nothing to tell, and stay as fast as they are.
    Blocks may be nested: each counts what happens inside of it. What tasks still do after the block is added, too.
    """
    collector = ExecDetailsCollector()
    token = _COLLECTORS.set((*_COLLECTORS.get(), collector))
    try:
        yield collector
    finally:
        _COLLECTORS.reset(token)
