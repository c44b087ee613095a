"""Measure timestamps: how many a second through one client, and what a burst costs, against a server of its own."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time

import anyio
from tikv_pd import PdClient


async def per_second(client: PdClient, tasks: int, operations: int) -> float:
    """Return the timestamps a second that so many tasks get, each one at a time."""

    async def get() -> None:
        for _ in range(operations // tasks):
            await client.get_ts()

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(get)
    return operations / (time.perf_counter() - started)


async def measure(url: str, runs: int, operations: int) -> None:
    """Print the figures of each round."""
    async with PdClient(url) as client:
        await client.get_ts()
        for _ in range(runs):
            for tasks in (1, 16, 256, 1024):
                count = operations if tasks > 1 else operations // 20
                print(f"{tasks:>5} tasks {await per_second(client, tasks, count):>10,.0f} timestamps/s", flush=True)
        started = time.perf_counter()
        await per_second(client, 10_000, 10_000)
        print(f"a burst of 10,000 callers took {(time.perf_counter() - started) * 1000:.0f} ms")


def main() -> None:
    """Run a server and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="rounds")
    parser.add_argument("--operations", type=int, default=100_000, help="timestamps in each round")
    parser.add_argument("--asyncio", action="store_true", help="do without uvloop")
    options = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, "-m", "tikv_embedded", "serve", "--stores", "1"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().removeprefix("ready ").strip()
        uvloop = importlib.util.find_spec("uvloop") is not None and not options.asyncio
        anyio.run(measure, url, options.runs, options.operations, backend_options={"use_uvloop": uvloop})
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
