"""What a fresh process pays: the time of imports, and the memory of a client and of its calls in flight."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from cases import Values
from servers import HERE, Server
from table import Row, Section, at_most

_IMPORT = """
import json, sys, time
started = time.perf_counter()
import {module}
print(json.dumps([time.perf_counter() - started, "grpc" in sys.modules]))
"""
_MODULES = ("tikv_raw", "grpc.aio")
CALLS = 10_000

Figures = dict[str, tuple[float, ...]]
"""Figures of each round."""


def measure(server: Server, rounds: int) -> Figures:
    """Measure in fresh processes; the server is the responder, which can hold answers back."""
    for module in _MODULES:
        _import(module)
    figures: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    for _ in range(rounds):
        whole, brings_grpc = _import("tikv_raw")
        alone, _ = _import("grpc.aio")
        add("import", whole)
        add("grpc", alone)
        add("share", alone if brings_grpc else 0.0)
        for arguments in ([server.url], []):
            for name, value in json.loads(_run(str(HERE / "memory.py"), str(CALLS), *arguments)).items():
                add(name, value)
    return {name: tuple(values) for name, values in figures.items()}


def sections(figures: Figures) -> list[Section]:
    """Return the rows of what `measure` measured."""

    def of(name: str, factor: float) -> Values:
        return Values(figures[name]).scaled(factor)

    mebi, kibi = 2**-20, 2**-10
    return [
        Section(
            "import tikv_raw, fresh process",
            [
                Row("import tikv_raw", of("import", 1), "s", at_most(0.15)),
                Row("of which grpc (0: it is imported when a client opens)", of("share", 1), "s"),
                Row("import grpc.aio alone", of("grpc", 1), "s"),
            ],
        ),
        Section(
            "memory (RSS), fresh process",
            [
                Row("after import tikv_raw", of("imported", mebi), "MiB"),
                Row("with a connected client, all in all", of("connected", mebi), "MiB"),
                Row(f"a call, {CALLS:,} in flight, its task included", of("call", kibi), "KiB", at_most(3)),
                Row("of which a task that only waits", of("task", kibi), "KiB"),
            ],
        ),
    ]


def _import(module: str) -> tuple[float, bool]:
    """Return the seconds an import took, and whether it brought gRPC with it."""
    seconds, brings_grpc = json.loads(_run("-c", _IMPORT.format(module=module)))
    return seconds, brings_grpc


def _run(*arguments: str) -> str:
    """Run Python and return what it printed. Bytecode is kept, as it is where packages are installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
