"""Clients in programs that run one event loop after another, as scripts, notebooks and tests do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

PROGRAM = """
import sys

import anyio
from tikv_raw import RawClient


async def use() -> None:
    async with RawClient(sys.argv[1], api_version="v1ttl") as client:
        await client.batch_put({b"a": b"1", b"n": b"2"})
        with anyio.move_on_after(0.0005):
            await client.ttl(b"a")
        with anyio.move_on_after(0.0005):
            await client.get(b"n")
        await anext(client.scan())


for _ in range(60):
    anyio.run(use)
print("done")
"""


@pytest.fixture
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "tikv_embedded", "serve", "--api-version", "v1ttl", "--split-keys", "b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[1]
        finally:
            server.terminate()


def test_a_loop_after_another_never_hears_of_the_calls_before_it(url: str) -> None:
    # gRPC reports what becomes of a cancelled call to the loop it was made in, closed or not.
    program = subprocess.run(
        [sys.executable, "-c", PROGRAM, url], capture_output=True, text=True, timeout=50, check=False
    )

    assert program.stderr == ""
    assert program.stdout == "done\n"
