"""Measure transactions: how many a second, and what each costs its client, in every way to commit, beside tikv-client.

Each reads one key and writes it, against `tikv-embedded` in a process of its own; no two write the same key. What they
ask stores and PD for is counted apart, by a cluster in this process. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
from cases import Case
from clients import TIKV_CLIENT
from measure import Measurement, metered
from peers import ClientFailedError, Environments, install, left_out
from servers import EMBEDDED, Server, running
from tikv_embedded import EmbeddedCluster
from tikv_proto import pdpb
from tikv_txn import TransactionClient, TransactionOptions
from txn_process import UPDATE, VALUE, key_of

WAYS = {
    "one phase": TransactionOptions(),
    "one phase, causally consistent": TransactionOptions(causal_consistency=True),
    "async commit": TransactionOptions(one_pc=False),
    "two phases": TransactionOptions(one_pc=False, async_commit=False),
}
TASKS = (1, 64)
COUNTS = ("requests to stores", "timestamps of PD")
COUNTED = 0.1
"""Seconds for which requests are counted, about."""

Run = Callable[[int, float], Awaitable[Measurement]]
"""Runs so many tasks for about so many seconds."""


@dataclass(frozen=True)
class Requests:
    """What a transaction asks for, on average."""

    stores: float
    """Requests to stores, those in the background included."""
    timestamps: float
    """Timestamps of PD; those that tasks ask for at once travel in one message."""


async def update(client: TransactionClient, options: TransactionOptions, tasks: int, count: int) -> None:
    """Run so many transactions, some at once."""

    async def work(key: bytes) -> None:
        for _ in range(count // tasks):
            async with client.begin(options) as txn:
                await txn.get(key)
                txn.put(key, VALUE)

    async with anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(work, key_of(number))


def runs_of(client: TransactionClient, server: Server, environments: Environments) -> dict[str, Run]:
    """Return what runs each way to commit, and tikv-client."""

    async def run(options: TransactionOptions, tasks: int, seconds: float) -> Measurement:
        return await metered(server.pid, tasks, seconds, partial(update, client, options, tasks))

    async def run_peer(tasks: int, seconds: float) -> Measurement:
        job = partial(environments.run, TIKV_CLIENT, server, str(tasks), str(seconds), script="txn_process.py")
        return (await anyio.to_thread.run_sync(job))[UPDATE]

    return {way: partial(run, options) for way, options in WAYS.items()} | {TIKV_CLIENT: run_peer}


async def measure(
    server: Server, environments: Environments, rounds: int, seconds: float
) -> dict[tuple[str, int], Case]:
    """Return what each way took in each round, by its name and the number of tasks."""
    async with TransactionClient(server.url) as client:
        runs = runs_of(client, server, environments)
        cases = {(way, tasks): Case() for way in runs for tasks in TASKS}
        for _ in range(rounds):
            for (way, tasks), case in cases.items():
                if case.failure:
                    continue
                try:
                    case.runs.append(await runs[way](tasks, seconds))
                except ClientFailedError as error:
                    case.fail(str(error))
    return cases


async def count_requests(way: str, tasks: int, environments: Environments) -> Requests:
    """Return what a transaction asks for.

    Raises:
        ClientFailedError: tikv-client failed.
    """
    timestamps = 0

    def add(answer: pdpb.TsoResponse) -> None:
        nonlocal timestamps
        timestamps += answer.count

    async with EmbeddedCluster(stores=1) as cluster:
        cluster.pd.edit_answers("Tso", add, times=None)
        with cluster.faults.record() as recording:
            # Counted when the client has closed: that waits for what it does in the background.
            async with TransactionClient(cluster.url) as client:
                runs = runs_of(client, Server(cluster.url, os.getpid()), environments)
                await runs[way](tasks, COUNTED)
    transactions = len({call.request.start_version for call in recording.of("KvPrewrite")})
    # Opening a stream and asking for a store's health belong to no transaction.
    requests = sum(call.rpc.startswith("Kv") for call in recording.calls)
    return Requests(requests / transactions, timestamps / transactions)


async def show(server: Server, environments: Environments, rounds: int, seconds: float) -> None:
    """Print the table."""
    cases = await measure(server, environments, rounds, seconds)
    titles = ("way to commit", "tasks", "transactions/s", "client CPU", "CPUs: client + server", *COUNTS)
    print(f"| {' | '.join(titles)} |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for (way, tasks), case in cases.items():
        if case.failure:
            print(f"| {way} | {tasks} | failed: {case.failure} | | | | |")
            continue
        rate, cpu, client, server_load = (
            statistics.median(getattr(each, name) for each in case.runs)
            for name in ("rate", "cpu", "client_load", "server_load")
        )
        requests = await count_requests(way, tasks, environments)
        cost = f"{cpu * 1e6:.0f} µs | {client:.2f} + {server_load:.2f}"
        print(f"| {way} | {tasks} | {rate:,.0f} | {cost} | {requests.stores:.1f} | {requests.timestamps:.1f} |")


def main() -> None:
    """Run a server and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--seconds", type=float, default=0.4, help="how long a case takes in each round, about")
    parser.add_argument("--no-peers", action="store_true", help="leave tikv-client out")
    options = parser.parse_args()
    load, uvloop = os.getloadavg()[0], importlib.util.find_spec("uvloop") is not None
    machine = f"cpus {os.cpu_count()}, load before {load:.1f}, machine {platform.machine()}"
    python = f"python {platform.python_version()}, loop {'uvloop' if uvloop else 'asyncio'}, rounds {options.runs}"
    print(f"Date {time.strftime('%Y-%m-%d')}, {machine}, {python}.\n")
    with tempfile.TemporaryDirectory() as directory, running(EMBEDDED) as server:
        # The same loop for all.
        also = [f"uvloop=={importlib.metadata.version('uvloop')}"] if uvloop else []
        environments = left_out() if options.no_peers else install(Path(directory), [TIKV_CLIENT], *also)
        anyio.run(
            partial(show, server, environments, options.runs, options.seconds),
            backend_options={"use_uvloop": uvloop},
        )


if __name__ == "__main__":
    main()
