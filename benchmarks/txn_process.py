"""The transactions of tikv-client in a process of its own, optimistic ones of its async client; prints JSON.

Arguments: the client, which is always tikv-client; the server's URL and process id; how many tasks; and for how many
seconds. The loop is uvloop's where that is installed.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

from measure import Measurement, metered

UPDATE = "update"
VALUE = b"v" * 128


def key_of(task: int) -> bytes:
    """Return the key that a task reads and writes."""
    return b"key %04d" % task


async def update(client: Any, tasks: int, count: int) -> None:
    """Run so many transactions, some at once."""

    async def work(key: bytes) -> None:
        for _ in range(count // tasks):
            txn = await client.begin(pessimistic=False)
            await txn.get(key)
            await txn.put(key, VALUE)
            await txn.commit()

    async with asyncio.TaskGroup() as group:
        for number in range(tasks):
            group.create_task(work(key_of(number)))


async def run(url: str, server: int, tasks: int, seconds: float) -> Measurement:
    """Return what the transactions took."""
    from tikv_client.asynchronous import (  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415
        TransactionClient,
    )

    client = await TransactionClient.connect([url.removeprefix("tikv://")])
    # The process is new: what only its first transactions do is nothing that tells how many to run.
    await update(client, tasks, tasks)
    return await metered(server, tasks, seconds, partial(update, client, tasks))


def main() -> None:
    """Run them."""
    url, server, tasks, seconds = sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
    has_uvloop = importlib.util.find_spec("uvloop") is not None
    new_loop = importlib.import_module("uvloop").new_event_loop if has_uvloop else None
    with asyncio.Runner(loop_factory=new_loop) as runner:
        measurement = runner.run(run(url, server, tasks, seconds))
    print(json.dumps({UPDATE: asdict(measurement)}), flush=True)


if __name__ == "__main__":
    main()
