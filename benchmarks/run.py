"""The raw client beside grpc.aio unary calls and the bare BatchCommands pump, in one run against one server.

Run with `nox -s bench`. The server, `tikv-embedded`, is a process of its own. Machines are noisy: compare figures
within one run, by the ratios the last table gives.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import attrs
import grpc
from bare import BareStore
from measure import Measurement, Result, in_tasks, once, table
from tikv_pd import PdClient
from tikv_proto import kvrpcpb, metapb
from tikv_proto.services import Tikv
from tikv_raw import RawClient

VALUE = b"v" * 128
BATCH_VALUE = b"v" * 100
KEYS = [b"key:%012d" % number for number in range(10_000)]

Case = Callable[[], Awaitable[Measurement]]


def main() -> None:
    """Measure, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of each case; the median counts")
    parser.add_argument("--scale", type=float, default=1.0, help="how much longer or shorter each run is")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results.json"), help="where figures go")
    options = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, "-m", "tikv_embedded", "serve", "--stores", "1"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().removeprefix("ready ").strip()
        if not url:
            sys.exit("the server did not start")
        uvloop = importlib.util.find_spec("uvloop") is not None
        results = anyio.run(
            measure_all, url, options.runs, options.scale, backend_options={"use_uvloop": True} if uvloop else {}
        )
    finally:
        server.terminate()
        server.wait()
    report(results, options.json, uvloop=uvloop)


async def measure_all(url: str, runs: int, scale: float) -> list[Result]:
    """Run every case in turn, `runs` rounds of them, so that noise falls on all alike."""
    context, address = await only_region(url)
    bare = BareStore(address, context)
    async with RawClient(url) as client:
        await client.batch_put(dict.fromkeys(KEYS, VALUE))
        cases = point_cases(client, bare, scale) | bulk_cases(client, scale)
        measured: dict[str, list[Measurement]] = {name: [] for name in cases}
        for _ in range(runs):
            for name, case in cases.items():
                measured[name].append(await case())
    await bare.aclose()
    return [
        Result(name, "key" if "keys" in name else "op", tuple(measurements)) for name, measurements in measured.items()
    ]


def point_cases(client: RawClient, bare: BareStore, scale: float) -> dict[str, Case]:
    """Return the cases of one key at a time."""
    many, some, few = (max(int(count * scale), 256) for count in (40_000, 4_000, 1_500))
    unary_get, unary_put = bare.unary(Tikv.RawGet), bare.unary(Tikv.RawPut)
    fill_get, fill_put = bare.get_filler(KEYS), bare.put_filler(KEYS, VALUE)

    def key(number: int) -> bytes:
        return KEYS[number % len(KEYS)]

    return {
        "get, bare pump, 256 in flight": lambda: bare.pump(256, many, fill_get, "RawGet"),
        "get, SDK, 256 tasks": lambda: in_tasks(256, many, lambda number: client.get(key(number))),
        "get, grpc.aio unary, 256 tasks": lambda: in_tasks(
            256, some, lambda number: unary_get(bare.get_request(key(number)))
        ),
        "put, bare pump, 256 in flight": lambda: bare.pump(256, many, fill_put, "RawPut"),
        "put, SDK, 256 tasks": lambda: in_tasks(256, many, lambda number: client.put(key(number), VALUE)),
        "put, grpc.aio unary, 256 tasks": lambda: in_tasks(
            256, some, lambda number: unary_put(bare.put_request(key(number), VALUE))
        ),
        "get, SDK, 1 task": lambda: in_tasks(1, few, lambda number: client.get(key(number))),
        "get, grpc.aio unary, 1 task": lambda: in_tasks(
            1, few, lambda number: unary_get(bare.get_request(key(number)))
        ),
    }


def bulk_cases(client: RawClient, scale: float) -> dict[str, Case]:
    """Return the cases of many keys in one call."""
    count = max(int(50_000 * scale), 1_000)
    pairs = {b"bulk:%012d" % number: BATCH_VALUE for number in range(count)}

    async def scan() -> None:
        found = 0
        async for _ in client.scan(prefix=b"bulk:"):
            found += 1
        assert found == count, found

    async def batch_get() -> None:
        assert len(await client.batch_get(pairs)) == count

    return {
        f"batch_put, SDK, {count:,} keys": lambda: once(count, lambda: client.batch_put(pairs)),
        f"batch_get, SDK, {count:,} keys": lambda: once(count, batch_get),
        f"scan, SDK, {count:,} keys": lambda: once(count, scan),
    }


async def only_region(url: str) -> tuple[kvrpcpb.Context, str]:
    """Return the Context of requests to the leader of the only Region, and its store's address."""
    async with PdClient(url) as pd:
        region = await pd.get_region(b"")
        assert region is not None
        assert region.leader is not None
        store = await pd.get_store(region.leader.store_id)
        assert store is not None
        context = kvrpcpb.Context(
            region_id=region.id,
            region_epoch=metapb.RegionEpoch(conf_ver=region.epoch.conf_ver, version=region.epoch.version),
            peer=metapb.Peer(id=region.leader.id, store_id=region.leader.store_id),
            cluster_id=pd.cluster_id,
        )
        return context, store.address


def report(results: list[Result], path: Path, *, uvloop: bool) -> None:
    """Print the tables and write the JSON."""
    print(table(results))
    by_name = {result.name: result for result in results}

    def cpu(name: str) -> float:
        return by_name[name].cpu_microseconds

    def rate(name: str) -> float:
        return by_name[name].rate

    ratios = {
        "get: client CPU, SDK to bare pump": cpu("get, SDK, 256 tasks") / cpu("get, bare pump, 256 in flight"),
        "get: throughput, SDK to bare pump": rate("get, SDK, 256 tasks") / rate("get, bare pump, 256 in flight"),
        "get: throughput, SDK to grpc.aio unary": rate("get, SDK, 256 tasks") / rate("get, grpc.aio unary, 256 tasks"),
        "put: client CPU, SDK to bare pump": cpu("put, SDK, 256 tasks") / cpu("put, bare pump, 256 in flight"),
        "get, 1 task: time, SDK to grpc.aio unary": rate("get, grpc.aio unary, 1 task") / rate("get, SDK, 1 task"),
    }
    print("\n| ratio | |\n|---|---:|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.2f} |")
    environment = {
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "uvloop": uvloop,
        "machine": platform.machine(),
        "when": time.strftime("%Y-%m-%d"),
    }
    figures = {
        result.name: {
            "per_second": round(result.rate),
            "client_cpu_us": round(result.cpu_microseconds, 2),
            "us": round(result.latency_microseconds, 2),
            "runs": [attrs.asdict(run) for run in result.runs],
        }
        for result in results
    }
    path.write_text(json.dumps({"environment": environment, "ratios": ratios, "figures": figures}, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
