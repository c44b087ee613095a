"""The blocking client's gets beside a blocking stub and other clients, each in a process of its own, same server."""

from __future__ import annotations

from cases import Case, p50, rate
from clients import OPEN, SDK, STUB, TIKV_CLIENT, TIKV_PYTHON
from peers import ClientFailedError, Environments
from servers import Server
from table import Section, at_least, at_most, p50_of, rate_of, times

OPERATIONS = {1: 3_000, 16: 12_000}
"""Threads, and operations in all."""

Cases = dict[tuple[str, int], Case]


def measure(server: Server, environments: Environments, rounds: int, scale: float) -> Cases:
    """Run every client with 1 and 16 threads, so many rounds of them."""
    cases: Cases = {(client, threads): Case() for threads in OPERATIONS for client in OPEN}
    for _ in range(rounds):
        for (client, threads), case in cases.items():
            if case.failure:
                continue
            operations = max(int(OPERATIONS[threads] * scale), 10 * threads)
            try:
                measured = environments.run(client, server, "get", str(threads), str(operations))
            except ClientFailedError as error:
                case.fail(str(error))
            else:
                case.runs.append(measured["get"])
    return cases


def sections(cases: Cases) -> list[Section]:
    """Return the rows of what `measure` measured."""
    alone = {client: case for (client, threads), case in cases.items() if threads == 1}
    many = {client: case for (client, threads), case in cases.items() if threads == 16}
    return [
        Section(
            "sync get, 1 thread, tikv-embedded",
            [
                *(p50_of(f"p50, {client}", case) for client, case in alone.items()),
                *(
                    times(f"p50, {SDK} to {client}", alone[SDK], alone[client], p50, target)
                    for client, target in ((STUB, at_most(1.3)), (TIKV_PYTHON, at_most(1)), (TIKV_CLIENT, None))
                ),
            ],
        ),
        Section(
            "sync get, 16 threads, tikv-embedded",
            [
                *(rate_of(f"throughput, {client}", case) for client, case in many.items()),
                *(
                    times(f"throughput, {SDK} to {client}", many[SDK], many[client], rate, target)
                    for client, target in ((STUB, at_least(3)), (TIKV_PYTHON, None), (TIKV_CLIENT, None))
                ),
            ],
        ),
    ]
