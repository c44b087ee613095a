"""What one run of one case took. Imports nothing but Python: other clients' environments have nothing else."""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """One run of one case."""

    operations: int
    """How many operations, or keys for batches, were done."""
    seconds: float
    """Time it took."""
    client_cpu: float
    """CPU seconds of the client's process, all threads."""
    server_cpu: float
    """CPU seconds of the server's process, all threads; NaN where the system does not tell."""
    p50: float = math.nan
    """Median of the seconds that one operation took; NaN where they were not taken one by one."""

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    @property
    def cpu(self) -> float:
        """CPU seconds of the client for one operation."""
        return self.client_cpu / self.operations

    @property
    def client_load(self) -> float:
        """CPUs that the client kept busy."""
        return self.client_cpu / self.seconds

    @property
    def server_load(self) -> float:
        """CPUs that the server kept busy."""
        return self.server_cpu / self.seconds


class Meter:
    """Measures from when it is made until it is asked, this process being the client.

    Args:
        server: The server's process id.
    """

    def __init__(self, server: int) -> None:
        gc.collect()
        self._server = server
        self._server_cpu = cpu_seconds(server)
        self._cpu = time.process_time()
        self._started = time.perf_counter()

    def read(self, operations: int, latencies: Sequence[float] = ()) -> Measurement:
        """Return what so many operations took."""
        seconds, cpu = time.perf_counter() - self._started, time.process_time() - self._cpu
        server_cpu = cpu_seconds(self._server) - self._server_cpu
        return Measurement(
            operations, seconds, cpu, server_cpu, statistics.median(latencies) if latencies else math.nan
        )


async def metered(server: int, tasks: int, seconds: float, run: Callable[[int], Awaitable[None]]) -> Measurement:
    """Run operations for about so many seconds, after two for each task, which tell how many those are.

    Args:
        server: The server's process id.
        tasks: How many tasks `run` starts; it is asked for a multiple of that.
        seconds: How long the measured run shall take.
        run: Runs so many operations.
    """
    began = time.perf_counter()
    await run(2 * tasks)
    count = max(int(seconds / (time.perf_counter() - began)), 1) * 2 * tasks
    meter = Meter(server)
    await run(count)
    return meter.read(count)


def cpu_seconds(process: int) -> float:
    """Return the CPU time that a process took so far; NaN where the system does not tell."""
    if sys.platform != "linux":
        return math.nan
    # The clock of another process, as clock_getcpuclockid(3) makes it; /proc counts in steps of 10 ms.
    return time.clock_gettime(~process << 3 | 2)
