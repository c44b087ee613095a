"""Everything that tikv-raw promises of speed, beside its target, in one table. Run with `nox -s bench`.

Each server and each blocking client is a process of its own. Machines are noisy: every case runs once in each round,
ratios are of the same round, and medians over the rounds count. Needs Linux for the CPU time of servers and for memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import bulk
import grpc
import points
import processes
import sync_gets
from cases import Case
from peers import install, left_out
from servers import EMBEDDED, RESPONDER, running
from table import Section, quoted, render, verdict


def main() -> None:
    """Measure, write JSON and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--scale", type=float, default=1.0, help="how much longer or shorter each run is")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results.json"), help="where figures go")
    parser.add_argument("--quote", type=Path, help="Markdown file that quotes the table between two comments")
    parser.add_argument("--no-peers", action="store_true", help="leave other clients out")
    options = parser.parse_args()
    # Read at once: a wrong path or a file without the comments should not cost the whole run.
    document = quoted(options.quote.read_text(), "") if options.quote is not None else ""
    began, load = time.monotonic(), os.getloadavg()[0]
    uvloop = importlib.util.find_spec("uvloop") is not None
    sections, cases = measure(options.runs, options.scale, uvloop=uvloop, peers=not options.no_peers)
    environment = describe(options.runs, load, uvloop=uvloop)
    options.json.write_text(as_json(environment, sections, cases))
    conditions = ", ".join(f"{name} {value}" for name, value in environment.items())
    text = f"{conditions[0].upper()}{conditions[1:]}.\n\n{render(sections)}\n\n{verdict(sections)}"
    if options.quote is not None:
        options.quote.write_text(quoted(document, text))
    print(f"{text}\n\ntook {time.monotonic() - began:.0f} s, every run is in {options.json}")


def measure(rounds: int, scale: float, *, uvloop: bool, peers: bool) -> tuple[list[Section], dict[str, Case]]:
    """Run every job; return the table, and all runs by name."""
    loop: dict[str, Any] = {"use_uvloop": uvloop}
    with running(RESPONDER) as server:
        say("async gets and puts")
        async_cases = anyio.run(points.measure, server, rounds, scale, backend_options=loop)
        say("imports and memory")
        fresh = processes.measure(server, rounds)
    with tempfile.TemporaryDirectory() as directory, running(EMBEDDED) as server:
        say("other clients' environments")
        environments = install(Path(directory)) if peers else left_out()
        say("tikv-embedded")
        served = anyio.run(points.measure_embedded, server, rounds, scale, backend_options=loop)
        say("blocking gets")
        sync_cases = sync_gets.measure(server, environments, rounds, scale)
        say("batches and scans")
        bulk_cases = bulk.measure(server, environments, rounds, scale, loop)
    sections = [
        *points.sections(async_cases),
        *sync_gets.sections(sync_cases),
        *bulk.sections(bulk_cases),
        *processes.sections(fresh),
        points.embedded_section(served),
    ]
    cases = dict(async_cases)
    cases |= {f"tikv-embedded, {way}": case for way, case in served.items()}
    cases |= {f"get, {threads} threads, {client}": case for (client, threads), case in sync_cases.items()}
    cases |= {f"{job}, {client}": case for (client, job), case in bulk_cases.items()}
    return sections, cases


def say(what: str) -> None:
    """Tell what is measured now."""
    print(f"measuring: {what}", file=sys.stderr, flush=True)


def describe(rounds: int, load: float, *, uvloop: bool) -> dict[str, object]:
    """Return what the figures depend on, the load of the machine before the first run among it."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpus": os.cpu_count(),
        "load before": round(load, 1),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "loop": "uvloop" if uvloop else "asyncio",
        "rounds": rounds,
    }


def as_json(environment: Mapping[str, object], sections: list[Section], cases: Mapping[str, Case]) -> str:
    """Return everything, down to each run."""
    rows = [
        {
            "section": section.title,
            "what": row.what,
            "measured": None if row.failed else round(row.values.median, 4),
            "rounds": [round(value, 4) for value in row.values.values],
            "unit": row.unit,
            "target": row.target and f"{'>=' if row.target.at_least else '<='} {row.target.bound:g}",
            "met": row.met,
            "failure": row.values.failure,
        }
        for section in sections
        for row in section.rows
    ]
    runs = {name: {"failure": case.failure, "runs": [asdict(run) for run in case.runs]} for name, case in cases.items()}
    # NaN is no JSON: what was not measured is null.
    plain = json.loads(json.dumps(runs), parse_constant=lambda _: None)
    return json.dumps({"environment": environment, "rows": rows, "cases": plain}, indent=1, allow_nan=False) + "\n"


if __name__ == "__main__":
    main()
