"""Importing the wire is cheap: the descriptor set is parsed, classes come later."""

from __future__ import annotations

import subprocess
import sys

LIMIT = 0.050
ATTEMPTS = 10

PROGRAM = """
import time
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
start = time.perf_counter()
from tikv_proto import kvrpcpb, tikvpb
print(time.perf_counter() - start)
"""


def measure() -> float:
    """Return the seconds that the import takes in a new process, on top of protobuf's own."""
    return float(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True).stdout)


def test_importing_kvrpcpb_and_tikvpb_costs_under_50_ms() -> None:
    # The best of several, because other processes share the machine; the first may also compile the modules.
    best = measure()

    for _ in range(ATTEMPTS - 1):
        if best < LIMIT:
            break
        best = min(best, measure())

    assert best < LIMIT
