"""The blocking raw client beside a blocking gRPC stub, and beside other clients, in one run against one server.

Run with `nox -s bench`. Other clients are installed into a temporary environment of their own; `--no-peers` leaves them
out. Compare figures within one run, by the ratios the last table gives.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

import anyio
import grpc
from run import VALUE, only_region
from threads import KEYS, in_threads
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_raw.sync import RawClient

HERE = Path(__file__).parent
PEERS = {"tikv-python": "tikv-python==0.1.1", "tikv-client": "tikv-client==0.0.4"}
SDK, STUB = "SDK", "grpc stub"
THREADS = {1: 3_000, 16: 16_000}
"""Threads, and operations in all."""

Figures = dict[str, float]


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of each case; the median counts")
    parser.add_argument("--no-peers", action="store_true", help="leave other clients out")
    options = parser.parse_args()
    command = [sys.executable, "-m", "tikv_embedded", "serve", "--stores", "1"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        tempfile.TemporaryDirectory() as directory,
    ):
        try:
            assert server.stdout is not None
            url = server.stdout.readline().removeprefix("ready ").strip()
            python = None if options.no_peers else install_peers(Path(directory))
            report(measure_all(url, options.runs, python))
        finally:
            server.terminate()


def install_peers(directory: Path) -> Path | None:
    """Install other clients into an environment of their own, and return its Python; None when that fails."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    installed = subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS.values()], check=False)
    return python if installed.returncode == 0 else None


def measure_all(url: str, runs: int, peers: Path | None) -> dict[tuple[str, int], list[Figures]]:
    """Run every case in turn, `runs` rounds of them, so that noise falls on all alike."""
    context, address = anyio.run(only_region, url)
    measured: dict[tuple[str, int], list[Figures]] = {}
    with RawClient(url) as client, grpc.insecure_channel(address) as channel:
        client.batch_put(dict.fromkeys(KEYS, VALUE))
        method = channel.unary_unary(
            Tikv.RawGet.path, kvrpcpb.RawGetRequest.SerializeToString, kvrpcpb.RawGetResponse.FromString
        )

        def stub(key: bytes) -> object:
            return method(kvrpcpb.RawGetRequest(context=context, key=key))

        here: dict[str, Callable[[bytes], object]] = {STUB: stub, SDK: client.get}
        for _ in range(runs):
            for threads, operations in THREADS.items():
                for name, get in here.items():
                    in_threads(threads, operations // 10, get)
                    measured.setdefault((name, threads), []).append(in_threads(threads, operations, get))
                for name in PEERS if peers is not None else ():
                    command = [
                        str(peers), str(HERE / "sync_peer.py"), name, url.removeprefix("tikv://"), str(threads),
                        str(operations),
                    ]  # fmt: skip
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    if done.stdout:
                        measured.setdefault((name, threads), []).append(json.loads(done.stdout))
                    else:
                        reason = done.stderr.strip() or f"exit code {done.returncode}"
                        print(f"{name}, {threads} threads, failed: {reason.splitlines()[-1]}", file=sys.stderr)
    return measured


def report(measured: dict[tuple[str, int], list[Figures]]) -> None:
    """Print the figures, and the ratios between figures of the same round."""
    print("| get, blocking | per second | client CPU, µs | p50, µs | p99, µs |\n|---|---:|---:|---:|---:|")
    for (name, threads), rounds in sorted(measured.items(), key=lambda item: item[0][1]):
        median = {field: statistics.median(figures[field] for figures in rounds) for field in rounds[0]}
        print(
            f"| {name}, {threads} threads | {median['per_second']:,.0f} | {median['cpu'] * 1e6:.1f}"
            f" | {median['p50'] * 1e6:.0f} | {median['p99'] * 1e6:.0f} |"
        )

    def ratio(field: str, threads: int, other: str) -> str:
        pairs = zip(measured[SDK, threads], measured.get((other, threads), ()), strict=False)
        ratios = [own[field] / others[field] for own, others in pairs]
        return f"{statistics.median(ratios):.2f}" if ratios else "-"

    print("\n| ratio | measured | aim |\n|---|---:|---:|")
    print(f"| 1 thread: p50, SDK to blocking stub | {ratio('p50', 1, STUB)} | 1.3 |")
    print(f"| 1 thread: p50, SDK to tikv-python | {ratio('p50', 1, 'tikv-python')} | 1.0 |")
    print(f"| 1 thread: p50, SDK to tikv-client | {ratio('p50', 1, 'tikv-client')} | |")
    print(f"| 16 threads: throughput, SDK to blocking stub | {ratio('per_second', 16, STUB)} | 3 |")
    print(f"| 16 threads: throughput, SDK to tikv-python | {ratio('per_second', 16, 'tikv-python')} | |")
    print(f"| 16 threads: throughput, SDK to tikv-client | {ratio('per_second', 16, 'tikv-client')} | |")


if __name__ == "__main__":
    main()
