"""Running a blocking operation in many threads at once. Imports nothing but Python, for other clients' environments."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from measure import Measurement, Meter

KEYS = [b"key:%012d" % number for number in range(10_000)]
VALUE = b"v" * 128


def in_threads(server: int, threads: int, operations: int, operate: Callable[[bytes], object]) -> Measurement:
    """Run `operate(key)` so often in all.

    A single thread is the calling one: not every client works in another.
    """
    each = operations // threads
    latencies: list[list[float]] = [[] for _ in range(threads)]
    errors: list[Exception] = []
    ready = threading.Barrier(threads)

    def work(number: int) -> None:
        clock, taken = time.perf_counter, latencies[number]
        keys = [KEYS[(number * each + step) % len(KEYS)] for step in range(each)]
        ready.wait()
        try:
            for key in keys:
                began = clock()
                operate(key)
                taken.append(clock() - began)
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(1, threads)]
    for worker in workers:
        worker.start()
    meter = Meter(server)
    work(0)
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return meter.read(each * threads, [latency for taken in latencies for latency in taken])
