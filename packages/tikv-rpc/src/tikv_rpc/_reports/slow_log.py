"""The log of slow operations: what each went through, as a tree of its attempts and waits.

One entry has a line for the operation and one for each event, in the order in which they began, those of parallel
branches together: `slow batch_get: 1.250 s, OK, 3 keys from 0x61, 2 attempts, 1 wait`, and under it
`+0.000 s  PD 0.050 s` and `+0.050 s  RawBatchGet to store 1 (10.0.0.1:20160), Region 4 as leader: 1.200 s, OK`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from tikv_region import Redaction
from tikv_region.redaction import redact_key, shorten

from tikv_rpc._reports.observer import AttemptReport, Operation, OperationReport, WaitReport

LOGGER: Final = logging.getLogger("tikv_rpc.slow")
"""Where slow operations are logged, as warnings."""
KEPT: Final = 32
"""Attempts and waits kept of an operation's beginning, and as many of its end; those in between are counted."""


class SlowLog:
    """An observer that logs each operation which took at least `threshold` seconds, once it ended.

    What `RpcConfig.slow_threshold` adds to a client's observers. Values never appear.

    Args:
        threshold: Seconds.
        redaction: How keys print.
    """

    def __init__(self, threshold: float, redaction: Redaction = "off") -> None:
        self._threshold = threshold
        self._redaction = redaction

    def begin(self, operation: Operation) -> _Kept:
        """Keep what an operation goes through, until it is known whether it was slow."""
        return _Kept(operation, self._log)

    def _log(self, kept: _Kept, report: OperationReport) -> None:
        if report.seconds >= self._threshold and LOGGER.isEnabledFor(logging.WARNING):
            LOGGER.warning("%s", "\n".join(kept.lines(report, self._redaction)))


class _Kept:
    """What one operation went through."""

    __slots__ = ("_first", "_last", "_log", "_operation", "_seen")

    def __init__(self, operation: Operation, log: Callable[[_Kept, OperationReport], None]) -> None:
        self._operation = operation
        self._log = log
        self._first: list[AttemptReport | WaitReport] = []
        self._last: deque[AttemptReport | WaitReport] = deque(maxlen=KEPT)
        self._seen = 0

    def attempt(self, report: AttemptReport) -> None:
        """Keep an attempt."""
        self._keep(report)

    def wait(self, report: WaitReport) -> None:
        """Keep a wait."""
        self._keep(report)

    def end(self, report: OperationReport) -> None:
        """Have it logged if it was slow."""
        self._log(self, report)

    def lines(self, report: OperationReport, redaction: Redaction) -> Iterator[str]:
        """Render it."""
        operation = self._operation
        parts = [f"{report.seconds:.3f} s", report.outcome]
        key = None if operation.key is None else shorten(redact_key(operation.key, redaction))
        if operation.keys is not None:
            parts.append(_count(operation.keys, "key") + (f" from {key}" if key is not None else ""))
        elif key is not None:
            parts.append(f"key {key}")
        parts += [_count(report.attempts, "attempt"), _count(report.waits, "wait")]
        yield f"slow {operation.name}: {', '.join(parts)}"
        events = sorted([*self._first, *self._last], key=lambda event: event.started)
        for branch in sorted({event.branch for event in events}):
            if branch:
                yield f"  branch {branch}"
            for event in events:
                if event.branch == branch:
                    yield f"  {'  ' if branch else ''}+{event.started - operation.started:.3f} s  {_event(event)}"
        dropped = self._seen - len(events)
        if dropped:
            yield f"  and {dropped} more in between"

    def _keep(self, event: AttemptReport | WaitReport) -> None:
        self._seen += 1
        if len(self._first) < KEPT:
            self._first.append(event)
        else:
            self._last.append(event)


def _event(event: AttemptReport | WaitReport) -> str:
    if isinstance(event, WaitReport):
        return f"{event.kind} {event.seconds:.3f} s"
    way = event.address + (f" for {event.forwarded_to}" if event.forwarded_to else "")
    again = ", again" if event.is_retry else ""
    served = f", {event.execution.total:.3f} s of it in the store" if event.execution is not None else ""
    return (
        f"{event.rpc} to store {event.store_id} ({way}), Region {event.region_id} as {event.access}{again}:"
        f" {event.seconds:.3f} s{served}, {event.outcome}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
