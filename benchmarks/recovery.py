"""How long calls take when a store dies under them: 256 callers, reads and writes, on a cluster in this process.

Each round kills the store that leads the Regions, lets it be dead for a while, and takes the longest call of every
caller. `--election` is the time until raft has elected other leaders; 0 elects at once.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable

import anyio
from tikv_embedded import EmbeddedCluster
from tikv_raw import RawClient

CALLERS = 256
KEYS = [b"%03d" % number for number in range(CALLERS)]
TIMEOUT = 10.0
SETTLE = 2.0
"""Seconds for which callers go on after the election."""


async def longest(
    call: Callable[[bytes], Awaitable[object]], key: bytes, killed: anyio.Event, over: anyio.Event
) -> float:
    """Call again and again until it is over, and return how long the longest call lasted that ended after the kill."""
    seconds = 0.0
    while not over.is_set():
        started = time.perf_counter()
        await call(key)
        if killed.is_set():
            seconds = max(seconds, time.perf_counter() - started)
    return seconds


async def strike(cluster: EmbeddedCluster, client: RawClient, election: float) -> tuple[list[float], list[float]]:
    """Kill a store under callers; return the longest call of each reader and of each writer."""
    victim = cluster.region_of(KEYS[0]).leader
    assert victim is not None
    killed, over = anyio.Event(), anyio.Event()
    reads: list[float] = []
    writes: list[float] = []

    async def read(key: bytes) -> None:
        reads.append(await longest(lambda key: client.get(key, timeout=TIMEOUT), key, killed, over))

    async def write(key: bytes) -> None:
        writes.append(await longest(lambda key: client.put(key, key, timeout=TIMEOUT), key, killed, over))

    async with anyio.create_task_group() as tasks:
        for number, key in enumerate(KEYS):
            tasks.start_soon(write if number % 2 else read, key)
        await anyio.sleep(0.5)
        killed.set()
        await cluster.stop_store(victim.store_id, elect=not election)
        await anyio.sleep(election)
        await cluster.stop_store(victim.store_id)
        await anyio.sleep(SETTLE)
        over.set()
    await cluster.start_store(victim.store_id)
    return reads, writes


async def measure(rounds: int, election: float) -> None:
    """Print the figures of each round."""
    async with EmbeddedCluster(split_keys=KEYS[64::64]) as cluster, RawClient(cluster.url) as client:
        await client.batch_put({key: key for key in KEYS})
        for number in itertools.count(1):
            for name, seconds in zip(("reads", "writes"), await strike(cluster, client, election), strict=True):
                cuts = statistics.quantiles(seconds, n=100)
                print(
                    f"round {number} {name:6} p50 {cuts[49] * 1000:7.0f} ms  p99 {cuts[98] * 1000:7.0f} ms"
                    f"  longest {max(seconds) * 1000:7.0f} ms",
                    flush=True,
                )
            if number == rounds:
                return
            await anyio.sleep(2.0)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="stores killed")
    parser.add_argument("--election", type=float, default=0.0, help="seconds until others lead")
    options = parser.parse_args()
    anyio.run(measure, options.rounds, options.election)


if __name__ == "__main__":
    main()
