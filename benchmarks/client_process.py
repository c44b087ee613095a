"""One blocking client in a process of its own: runs one job and prints the measurements as JSON.

Arguments: the client, the server's URL and process id, and the job: `get THREADS OPERATIONS`, or `bulk KEYS REPEATS`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict

from clients import OPEN, Client
from measure import Measurement, Meter
from threads import in_threads

BATCH_VALUE = b"v" * 100
BATCH_GET, BATCH_PUT, SCAN = "batch_get", "batch_put", "scan"


def bulk_pairs(count: int) -> dict[bytes, bytes]:
    """Return the pairs of the bulk cases."""
    return {b"bulk:%012d" % number: BATCH_VALUE for number in range(count)}


def bulk(client: Client, server: int, count: int, repeats: int) -> dict[str, Measurement]:
    """Put, get and scan so many keys, each so many times after one that warms up."""
    pairs = bulk_pairs(count)
    keys = list(pairs)

    def scan() -> int:
        found = 0
        for _ in client.scan(b"bulk:", b"bulk;"):
            found += 1
        return found

    def batch_put() -> int:
        client.batch_put(pairs)
        return count

    jobs: dict[str, Callable[[], int]] = {
        BATCH_PUT: batch_put,
        BATCH_GET: lambda: len(client.batch_get(keys)),
        SCAN: scan,
    }
    measured = {}
    for name, job in jobs.items():
        job()
        meter = Meter(server)
        found = sum(job() for _ in range(repeats))
        measured[name] = meter.read(count * repeats)
        if found != count * repeats:
            raise RuntimeError(f"{name} found {found} of {count * repeats} keys")
    return measured


def main() -> None:
    """Run the job."""
    name, url, server, job = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    first, second = int(sys.argv[5]), int(sys.argv[6])
    with OPEN[name](url) as client:
        if job == "get":
            in_threads(server, first, second // 10, client.get)
            measured = {job: in_threads(server, first, second, client.get)}
        else:
            measured = bulk(client, server, first, second)
        print(json.dumps({case: asdict(measurement) for case, measurement in measured.items()}), flush=True)


if __name__ == "__main__":
    main()
