"""Measure transactions: how many a second, and what each costs its client, in every way to commit.

Each reads one key and writes it, against `tikv-embedded` in a process of its own; no two write the same key. Prints a
table in Markdown.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import time
from typing import Any

import anyio
from measure import Measurement, Meter
from servers import EMBEDDED, running
from tikv_proto.services import Rpc
from tikv_rpc import Attempt, Proceed
from tikv_txn import TransactionClient, TransactionOptions

WAYS = {
    "one phase": TransactionOptions(),
    "one phase, causally consistent": TransactionOptions(causal_consistency=True),
    "async commit": TransactionOptions(one_pc=False),
    "two phases": TransactionOptions(one_pc=False, async_commit=False),
}
TASKS = (1, 64)
VALUE = b"v" * 128


class Counter:
    """Counts what is sent to stores."""

    name = "counter"

    def __init__(self) -> None:
        self.rpcs: list[Rpc[Any, Any]] = []

    async def __call__(self, attempt: Attempt, proceed: Proceed) -> Any:
        """Count an attempt, and send it on."""
        self.rpcs.append(attempt.rpc)
        return await proceed()


async def update(client: TransactionClient, options: TransactionOptions, tasks: int, count: int) -> None:
    """Run so many transactions, some at once."""

    async def work(key: bytes) -> None:
        for _ in range(count // tasks):
            async with client.begin(options) as txn:
                await txn.get(key)
                txn.put(key, VALUE)

    async with anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(work, b"key %04d" % number)


async def requests_for_each(url: str, options: TransactionOptions) -> float:
    """Return how many requests to stores a transaction takes, those in the background included."""
    counter, count = Counter(), 100
    async with TransactionClient(url, interceptors=[counter]) as client:
        await update(client, options, 1, count)
    return len(counter.rpcs) / count


async def measure(url: str, pid: int, rounds: int, seconds: float) -> dict[tuple[str, int], list[Measurement]]:
    """Return what each way took in each round, by its name and the number of tasks."""
    found: dict[tuple[str, int], list[Measurement]] = {(way, tasks): [] for way in WAYS for tasks in TASKS}
    async with TransactionClient(url) as client:
        for _ in range(rounds):
            for (way, tasks), measurements in found.items():
                began = time.perf_counter()
                await update(client, WAYS[way], tasks, 2 * tasks)
                count = max(int(seconds / (time.perf_counter() - began)), 1) * 2 * tasks
                meter = Meter(pid)
                await update(client, WAYS[way], tasks, count)
                measurements.append(meter.read(count))
    return found


async def show(url: str, pid: int, rounds: int, seconds: float) -> None:
    """Print the table."""
    found = await measure(url, pid, rounds, seconds)
    print("| way to commit | tasks | transactions/s | client CPU | CPUs: client + server | requests to stores |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for (way, tasks), measurements in found.items():
        rate, cpu, client, server = (
            statistics.median(getattr(each, name) for each in measurements)
            for name in ("rate", "cpu", "client_load", "server_load")
        )
        requests = await requests_for_each(url, WAYS[way])
        cost = f"{cpu * 1e6:.0f} µs | {client:.2f} + {server:.2f} | {requests:.1f}"
        print(f"| {way} | {tasks} | {rate:,.0f} | {cost} |")


def main() -> None:
    """Run a server and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--seconds", type=float, default=0.4, help="how long a case takes in each round, about")
    options = parser.parse_args()
    uvloop = importlib.util.find_spec("uvloop") is not None
    with running(EMBEDDED) as server:
        loop = "uvloop" if uvloop else "asyncio"
        print(f"Date {time.strftime('%Y-%m-%d')}, python {platform.python_version()}, loop {loop}.\n")
        anyio.run(show, server.url, server.pid, options.runs, options.seconds, backend_options={"use_uvloop": uvloop})


if __name__ == "__main__":
    main()
