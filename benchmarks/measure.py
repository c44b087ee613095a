"""Running a case many times at once, and what that took."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Iterable

import anyio
import attrs


@attrs.frozen
class Measurement:
    """One run of one case."""

    operations: int
    """How many operations, or keys for batches, were done."""
    seconds: float
    """Time it took."""
    cpu_seconds: float
    """CPU time of this process, all threads."""


@attrs.frozen
class Result:
    """The median of several runs of one case."""

    name: str
    """The case."""
    unit: str
    """What is counted: `op` or `key`."""
    runs: tuple[Measurement, ...]
    """Every run."""

    @property
    def rate(self) -> float:
        """Operations a second."""
        return statistics.median(run.operations / run.seconds for run in self.runs)

    @property
    def cpu_microseconds(self) -> float:
        """CPU time of this process for one operation."""
        return statistics.median(run.cpu_seconds / run.operations for run in self.runs) * 1e6

    @property
    def latency_microseconds(self) -> float:
        """Time one operation takes if they follow one another."""
        return statistics.median(run.seconds / run.operations for run in self.runs) * 1e6


async def in_tasks(tasks: int, operations: int, operate: Callable[[int], Awaitable[object]]) -> Measurement:
    """Run `operate(number)` for each number below `operations`, so many at once."""
    numbers = iter(range(operations))

    async def worker() -> None:
        for number in numbers:
            await operate(number)

    started, cpu_started = time.perf_counter(), time.process_time()
    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(worker)
    return Measurement(operations, time.perf_counter() - started, time.process_time() - cpu_started)


async def once(operations: int, operate: Callable[[], Awaitable[object]]) -> Measurement:
    """Run one call that stands for so many operations."""
    started, cpu_started = time.perf_counter(), time.process_time()
    await operate()
    return Measurement(operations, time.perf_counter() - started, time.process_time() - cpu_started)


def table(results: Iterable[Result]) -> str:
    """Return results as a Markdown table."""
    lines = ["| case | per second | client CPU, µs | time, µs |", "|---|---:|---:|---:|"]
    lines += [
        f"| {result.name} | {result.rate:,.0f} {result.unit}s | {result.cpu_microseconds:.2f}"
        f" | {result.latency_microseconds:.2f} |"
        for result in results
    ]
    return "\n".join(lines)
