"""Clients that are opened in one task, used in others and closed in yet another, over real gRPC."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import pytest
from tikv_embedded import EmbeddedCluster
from tikv_raw import ClosedError, ConfigError, RawClient
from tikv_txn import TransactionClient

Client: TypeAlias = RawClient | TransactionClient
every_client = pytest.mark.parametrize("make", [RawClient, TransactionClient])
pytestmark = pytest.mark.usefixtures("nothing_is_logged")


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster() as running:
        yield running


@pytest.fixture
async def client(cluster: EmbeddedCluster, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """Opened and closed by an asynchronous generator, each of whose steps may be a task's own."""
    async with request.param(cluster.url) as opened:
        yield opened


async def use(client: Client, number: int) -> None:
    pairs = {b"%d" % number: b"low", b"9%d" % number: b"high"}
    if isinstance(client, RawClient):
        await client.batch_put(pairs)
        assert await client.batch_get(pairs) == pairs
        return
    async with client.begin() as txn:
        for key, value in pairs.items():
            txn.put(key, value)
    assert await client.snapshot().batch_get(pairs) == pairs


async def read(client: Client) -> None:
    await (client if isinstance(client, RawClient) else client.snapshot()).get(b"k")


async def read_for_long(client: Client) -> None:
    for _ in range(100_000):
        await read(client)


async def refuses(client: Client) -> bool:
    try:
        await read(client)
    except ClosedError:
        return True
    return False


@every_client
async def test_opened_used_and_closed_in_tasks_of_their_own(
    cluster: EmbeddedCluster, make: Callable[[str], Any]
) -> None:
    client = make(cluster.url)
    await asyncio.create_task(client.open())
    await asyncio.gather(*(asyncio.create_task(use(client, number)) for number in range(10)))

    await asyncio.create_task(client.aclose())

    assert await refuses(client)
    async with client:
        await use(client, 0)


@every_client
async def test_closed_within_a_time(cluster: EmbeddedCluster, make: Callable[[str], Any]) -> None:
    client = make(cluster.url)
    await client.open()
    await use(client, 0)

    # Up to Python 3.11 this closes it in a task of its own.
    await asyncio.wait_for(client.aclose(), 5)

    assert await refuses(client)
    await asyncio.sleep(0.01)


@every_client
async def test_closed_by_whoever_shuts_the_program_down(cluster: EmbeddedCluster, make: Callable[[str], Any]) -> None:
    client = make(cluster.url)
    is_open, outcomes = asyncio.Event(), []

    async def serve() -> None:
        async with client:
            is_open.set()
            with pytest.raises(ClosedError):
                await read_for_long(client)
            outcomes.append("told")

    server = asyncio.create_task(serve())
    await is_open.wait()
    await use(client, 0)

    await asyncio.gather(*(asyncio.create_task(client.aclose()) for _ in range(3)))

    await server
    assert outcomes == ["told"]


@every_client
async def test_the_task_that_opened_it_may_be_cancelled(cluster: EmbeddedCluster, make: Callable[[str], Any]) -> None:
    client = make(cluster.url)
    is_open = asyncio.Event()

    async def serve() -> None:
        await client.open()
        is_open.set()
        await asyncio.sleep(3600)

    server = asyncio.create_task(serve())
    await is_open.wait()
    server.cancel()
    await asyncio.wait([server])

    await use(client, 0)

    await client.aclose()


@every_client
async def test_another_event_loop_cannot_close_it(cluster: EmbeddedCluster, make: Callable[[str], Any]) -> None:
    async with make(cluster.url) as client:
        with pytest.raises(ConfigError, match="was opened in another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(client.aclose()))

        await use(client, 0)


@pytest.mark.parametrize("client", [RawClient, TransactionClient], indirect=True)
async def test_a_fixture_opens_and_closes_it(client: Client) -> None:
    await use(client, 0)


FORGETFUL = """
import asyncio, sys
import tikv_raw, tikv_txn
from tikv_embedded import EmbeddedCluster

async def main() -> None:
    async with EmbeddedCluster() as cluster:
        raw, txn = tikv_raw.RawClient(cluster.url), tikv_txn.TransactionClient(cluster.url)
        await asyncio.create_task(raw.open())
        await asyncio.create_task(txn.open())
        await raw.put(b"k", b"v")
        async with txn.begin() as begun:
            begun.put(b"k", b"v")
        kept.extend([raw, txn])

kept = []
asyncio.run(main())
print("done")
"""


def test_a_program_that_forgets_to_close_ends_quietly() -> None:
    program = subprocess.run(
        [sys.executable, "-W", "always", "-c", FORGETFUL], capture_output=True, text=True, timeout=50, check=False
    )

    assert (program.stdout, program.stderr) == ("done\n", "")
