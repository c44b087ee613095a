"""Running an operation in many tasks at once."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import anyio
from measure import Measurement, Meter


async def in_tasks(
    server: int, tasks: int, operations: int, operate: Callable[[int], Awaitable[object]]
) -> Measurement:
    """Run `operate(number)` for each number below `operations`, so many at once."""
    numbers = iter(range(operations))

    async def worker() -> None:
        for number in numbers:
            await operate(number)

    meter = Meter(server)
    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(worker)
    return meter.read(operations)


async def one_by_one(server: int, operations: int, operate: Callable[[int], Awaitable[object]]) -> Measurement:
    """Run `operate(number)` for each number below `operations`, one after the other, and take the time of each."""
    clock = time.perf_counter
    latencies: list[float] = []
    meter = Meter(server)
    for number in range(operations):
        began = clock()
        await operate(number)
        latencies.append(clock() - began)
    return meter.read(operations, latencies)
