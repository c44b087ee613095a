"""The memory of this process, with a client and its calls in flight or with tasks that only wait, as JSON, in bytes.

Arguments: how many calls, and the responder's URL; without it, tasks.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tikv_rpc import RpcStats

HOLD, RELEASE = b"hold", b"release"
"""Keys by which the responder is told to hold answers back, and to give them."""


def resident() -> int:
    """Return the memory of this process that is in use, in bytes; Linux alone tells."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def with_client(calls: int, url: str) -> dict[str, float]:
    """Return what an import, a client and a call take. Keys are the caller's and do not count, tasks do."""
    import tikv_raw  # noqa: PLC0415

    figures: dict[str, float] = {"imported": resident()}
    async with tikv_raw.RawClient(url) as client:

        async def all_sent(count: int) -> None:
            # No client tells when it has sent everything.
            while _unsent(client.stats(), count):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        await client.get(b"first")
        figures["connected"] = resident()
        holding = asyncio.create_task(client.get(HOLD))
        await all_sent(1)
        keys = [b"key:%012d" % number for number in range(calls)]
        before = resident()
        tasks = [asyncio.create_task(client.get(key)) for key in keys]
        await all_sent(1 + calls)
        figures["call"] = (resident() - before) / calls
        await client.get(RELEASE)
        await asyncio.gather(holding, *tasks)
    return figures


def _unsent(stats: RpcStats, count: int) -> bool:
    """Return whether fewer calls than `count` are under way, or some wait for their turn."""
    return stats.in_flight < count or any(store.batch.queued for store in stats.stores.values())


async def without_client(calls: int) -> dict[str, float]:
    """Return what a task takes that waits for a future of its own."""
    loop = asyncio.get_running_loop()

    async def wait() -> None:
        future = loop.create_future()
        futures.append(future)
        await future

    futures: list[asyncio.Future[None]] = []
    before = resident()
    tasks = [asyncio.create_task(wait()) for _ in range(calls)]
    await asyncio.sleep(0)
    grown = resident() - before
    for future in futures:
        future.set_result(None)
    await asyncio.gather(*tasks)
    return {"task": grown / calls}


def main() -> None:
    """Measure and print."""
    calls = int(sys.argv[1])
    print(json.dumps(asyncio.run(with_client(calls, sys.argv[2]) if len(sys.argv) > 2 else without_client(calls))))


if __name__ == "__main__":
    main()
