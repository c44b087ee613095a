"""Many keys in one call: batches and scans, async and blocking, beside other clients, same server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from cases import Case, rate
from client_process import BATCH_GET, BATCH_PUT, SCAN, bulk_pairs
from clients import SDK, TIKV_CLIENT, TIKV_PYTHON
from measure import Measurement, Meter
from peers import ClientFailedError, Environments
from servers import Server
from table import Row, Section, at_least, at_most, cost_of, times
from tikv_raw import RawClient

KEYS, REPEATS = 50_000, 5
JOBS = (BATCH_GET, BATCH_PUT, SCAN)
ASYNC = "SDK (async)"
OWN = (ASYNC, SDK)
CLIENTS = (*OWN, TIKV_PYTHON, TIKV_CLIENT)

Cases = dict[tuple[str, str], Case]


def measure(
    server: Server, environments: Environments, rounds: int, scale: float, backend_options: dict[str, object]
) -> Cases:
    """Run the jobs of every client, so many rounds of them."""
    count = max(int(KEYS * scale), 1_000)
    cases = {(client, job): Case() for client in CLIENTS for job in JOBS}
    for _ in range(rounds):
        for client in CLIENTS:
            if cases[client, SCAN].failure:
                continue
            try:
                if client == ASYNC:
                    measured = anyio.run(run_async, server, count, backend_options=backend_options)
                else:
                    measured = environments.run(client, server, "bulk", str(count), str(REPEATS))
            except ClientFailedError as error:
                for job in JOBS:
                    cases[client, job].fail(str(error))
            else:
                for job in JOBS:
                    cases[client, job].runs.append(measured[job])
    return cases


async def run_async(server: Server, count: int) -> dict[str, Measurement]:
    """Put, get and scan so many keys with the async client, each `REPEATS` times after one that warms up."""
    pairs = bulk_pairs(count)
    keys = list(pairs)
    measured = {}
    async with RawClient(server.url) as client:

        async def scan() -> int:
            found = 0
            async for _ in client.scan(b"bulk:", b"bulk;"):
                found += 1
            return found

        async def batch_put() -> int:
            await client.batch_put(pairs)
            return count

        async def batch_get() -> int:
            return len(await client.batch_get(keys))

        jobs: dict[str, Callable[[], Awaitable[int]]] = {BATCH_PUT: batch_put, BATCH_GET: batch_get, SCAN: scan}
        for name, job in jobs.items():
            await job()
            meter = Meter(server.pid)
            for _ in range(REPEATS):
                assert await job() == count
            measured[name] = meter.read(count * REPEATS)
    return measured


def sections(cases: Cases) -> list[Section]:
    """Return the rows of what `measure` measured."""
    return [Section(f"{job}, {_keys(cases):,} keys of 100 bytes, tikv-embedded", _rows(job, cases)) for job in JOBS]


def _keys(cases: Cases) -> int:
    """Return how many keys there were in one call."""
    return cases[ASYNC, SCAN].runs[0].operations // REPEATS


def _rows(job: str, cases: Cases) -> list[Row]:
    by_client = {client: cases[client, job] for client in CLIENTS}
    return [
        *(
            cost_of(f"client CPU for a key, {client}", case, at_most(2) if client in OWN else None)
            for client, case in by_client.items()
        ),
        *(
            times(f"throughput, {client} to {peer}", by_client[client], by_client[peer], rate, target)
            for peer, target in ((TIKV_PYTHON, at_least(1.5)), (TIKV_CLIENT, None))
            for client in OWN
        ),
    ]
