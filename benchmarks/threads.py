"""Running a blocking operation in many threads at once. Imports nothing but Python, for other clients' environments."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable

KEYS = [b"key:%012d" % number for number in range(10_000)]


def in_threads(threads: int, operations: int, operate: Callable[[bytes], object]) -> dict[str, float]:
    """Run `operate(key)` so often in all; return rate, CPU seconds of each, median and 99th percentile of the time.

    A single thread is the calling one: not every client works in another.
    """
    each = operations // threads
    latencies: list[list[float]] = [[] for _ in range(threads)]
    ready = threading.Barrier(threads)

    def work(number: int) -> None:
        clock, taken = time.perf_counter, latencies[number]
        keys = [KEYS[(number * each + step) % len(KEYS)] for step in range(each)]
        ready.wait()
        for key in keys:
            began = clock()
            operate(key)
            taken.append(clock() - began)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(1, threads)]
    for worker in workers:
        worker.start()
    started, cpu_started = time.perf_counter(), time.process_time()
    work(0)
    for worker in workers:
        worker.join()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    ordered = sorted(latency for taken in latencies for latency in taken)
    assert len(ordered) == each * threads, "a thread failed"
    return {
        "per_second": len(ordered) / seconds,
        "cpu": cpu / len(ordered),
        "p50": statistics.median(ordered),
        "p99": ordered[int(len(ordered) * 0.99)],
    }
