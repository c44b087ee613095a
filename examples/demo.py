"""The demo: Python's standard library in a durable three-store cluster that is split, shaken and killed meanwhile.

Run with `nox -s demo`. The cluster runs in a process of its own (this file, `--serve`), so that it can be killed like
any server. Everything read back is compared; any difference ends the demo with a non-zero status.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread
import fastcrc
from tikv_embedded import EmbeddedCluster
from tikv_raw import RawClient

PREFIX = b"stdlib/"
SPLIT_KEYS = [PREFIX + name for name in (b"c", b"e", b"i", b"m", b"s", b"test/", b"test/m", b"test/t", b"u")]
WORKERS = 64


class Difference(Exception):
    """What was read is not what was written."""


def main() -> None:
    """Run the demo, or the server it needs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", nargs=2, metavar=("DIR", "PORT"), help="run the demo's server")
    options = parser.parse_args()
    if options.serve:
        directory, port = options.serve
        fresh = not Path(directory).exists()
        anyio.run(serve, directory, int(port), SPLIT_KEYS if fresh else [])
        return
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="tikv-demo-") as directory:
            anyio.run(demo, Path(directory))
    except Difference as difference:
        sys.exit(f"DIFFERENT: {difference}")
    print(f"all the same, {time.perf_counter() - started:.1f} s in all")


# --- the server's process ---------------------------------------------------------------------------------------------


async def serve(directory: str, port: int, split_keys: list[bytes]) -> None:
    """Run a cluster; each line read from standard input switches the shaking of its Regions on and off."""
    async with EmbeddedCluster(
        stores=3, path=directory, api_version="v1ttl", pd_port=port, split_keys=split_keys
    ) as cluster:
        print(f"ready {cluster.url} {len(cluster.regions())}", flush=True)
        shaking = threading.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shake, cluster, shaking)
            while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
                shaking.set() if line.strip() == "shake" else shaking.clear()
                print(f"{line.strip()} {len(cluster.regions())}", flush=True)
            tasks.cancel_scope.cancel()


async def shake(cluster: EmbeddedCluster, shaking: threading.Event) -> None:
    """Split Regions and move leaders, many times a second, while told to."""
    chance = random.Random(20261121)
    while True:
        await anyio.sleep(0.01)
        if not shaking.is_set():
            continue
        region = chance.choice(cluster.regions())
        if chance.random() < 0.1 and region.start_key.startswith(PREFIX):
            cluster.split(region.start_key + bytes([chance.randrange(97, 123)]))
        else:
            cluster.transfer_leader(region.id, chance.choice(region.peers).store_id)


class Server:
    """The server's process, as the demo sees it."""

    def __init__(self, directory: Path, port: int) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(directory), str(port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = self._line().split()
        if ready[:1] != ["ready"]:
            sys.exit("the server did not start")
        self.url = ready[1]
        self.regions = int(ready[2])

    def tell(self, command: str) -> int:
        """Send a command; returns how many Regions there are."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return int(self._line().split()[1])

    def kill(self) -> None:
        """Kill it without any warning."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._close_pipes()

    def stop(self) -> None:
        """Let it end: it does when its standard input is closed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._close_pipes()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


# --- the client's process ---------------------------------------------------------------------------------------------


async def demo(directory: Path) -> None:
    """Do everything the demo shows, in order."""
    files = stdlib_files()
    size = sum(map(len, files.values()))
    large = sum(len(content) > 1 << 16 for content in files.values())
    print(f"{len(files)} files of the standard library, {size / 1e6:.1f} MB, {large} of them above 64 KiB")
    data = directory / "data"
    with timed("server started"):
        server = Server(data, 0)
    print(f"  3 stores, {server.regions} Regions, durable, at {server.url}")
    try:
        async with RawClient(server.url, api_version="v1ttl") as client:
            with timed("files written one by one", len(files), size):
                await write_all(client, files)
            with timed("files read back and compared", len(files), size):
                await compare_all(client, files)
            with timed("files read in one batch and compared", len(files), size):
                check("batch_get", await client.batch_get(files), files)
            with timed("pairs scanned by prefix, up and down, and compared", 2 * len(files), 2 * size):
                await compare_scans(client, files)
            await show_checksum(client, files)
            await show_ttl(client)
            await show_race(client)
            server.tell("shake")
            await read_shaken(client, files)
            print(f"  {server.tell('calm')} Regions by now")
            server.kill()
            with timed("server killed with SIGKILL and started again on its data"):
                server = Server(data, int(server.url.rpartition(":")[2]))
            with timed("files verified after the crash, by the same client", len(files), size):
                await compare_all(client, files)
            await show_checksum(client, files)
    finally:
        server.stop()


def stdlib_files() -> dict[bytes, bytes]:
    """Return the sources of the running Python's standard library by key."""
    root = Path(sysconfig.get_path("stdlib"))
    return {
        PREFIX + os.fsencode(path.relative_to(root).as_posix()): path.read_bytes()
        for path in sorted(root.rglob("*.py"))
        if "site-packages" not in path.parts
    }


async def write_all(client: RawClient, files: dict[bytes, bytes]) -> None:
    """Put every file, some at a time."""
    todo = iter(files.items())

    async def worker() -> None:
        for key, content in todo:
            await client.put(key, content)

    async with anyio.create_task_group() as tasks:
        for _ in range(WORKERS):
            tasks.start_soon(worker)


async def compare_all(client: RawClient, files: dict[bytes, bytes]) -> None:
    """Get every file, some at a time, and compare it."""
    todo = iter(files.items())
    different: list[bytes] = []

    async def worker() -> None:
        for key, content in todo:
            if await client.get(key) != content:
                different.append(key)

    async with anyio.create_task_group() as tasks:
        for _ in range(WORKERS):
            tasks.start_soon(worker)
    check("get", different, [])


async def read_shaken(client: RawClient, files: dict[bytes, bytes]) -> None:
    """Read everything again and again while the cluster changes, for some seconds."""
    rounds = 0
    started = time.perf_counter()
    while time.perf_counter() - started < 4:
        await compare_all(client, files)
        await compare_scans(client, files)
        rounds += 1
    print(f"every file read {rounds} times and scanned {2 * rounds} times while Regions split and leaders moved")


async def compare_scans(client: RawClient, files: dict[bytes, bytes]) -> None:
    """Scan one package and everything, both ways."""
    for prefix in (PREFIX + b"asyncio/", PREFIX):
        expected = sorted(pair for pair in files.items() if pair[0].startswith(prefix))
        check("scan", [pair async for pair in client.scan(prefix=prefix)], expected)
        check("reverse scan", [pair async for pair in client.scan(prefix=prefix, reverse=True)], expected[::-1])


async def show_checksum(client: RawClient, files: dict[bytes, bytes]) -> None:
    """Compare the cluster's checksum with one computed here."""
    with timed("bytes summed in the stores and here", sum(map(len, files.values()))):
        crc = 0
        for key, content in files.items():
            crc ^= fastcrc.crc64.xz(key + content)
        found = await client.checksum(PREFIX, PREFIX[:-1] + b"0")
        size = sum(len(key) + len(content) for key, content in files.items())
        check("checksum", (found.crc64_xor, found.total_kvs, found.total_bytes), (crc, len(files), size))
    print(f"  crc64-xor {crc:016x} over {len(files)} pairs, the same on both sides")


async def show_ttl(client: RawClient) -> None:
    """Write a key that vanishes, and see it vanish. Stores count whole seconds of their clock."""
    await client.put(b"session", b"here for two seconds", ttl=2)
    check("value before its TTL", await client.get(b"session"), b"here for two seconds")
    with timed("a key with a TTL of two seconds vanished"), anyio.fail_after(10):
        while await client.get(b"session") is not None:  # noqa: ASYNC110  # the store tells nobody
            await anyio.sleep(0.05)
    check("TTL of a missing key", await client.ttl(b"session"), None)


async def show_race(client: RawClient) -> None:
    """Let 32 tasks race for one key."""
    winners: list[int] = []

    async def racer(number: int) -> None:
        result = await client.compare_and_swap(b"winner", None, str(number).encode())
        if result.swapped:
            winners.append(number)

    with timed("tasks raced for one key by compare-and-swap", 32):
        async with anyio.create_task_group() as tasks:
            for number in range(32):
                tasks.start_soon(racer, number)
    check("number of winners", len(winners), 1)
    check("the winner's value", await client.get(b"winner"), str(winners[0]).encode())
    await client.delete(b"winner")
    print(f"  task {winners[0]} won, 31 lost")


def check(what: str, found: object, expected: object) -> None:
    """Raise when two things differ."""
    if found != expected:
        raise Difference(f"{what} gave {str(found)[:200]}, not {str(expected)[:200]}")


@contextmanager
def timed(what: str, count: int = 0, size: int = 0) -> Iterator[None]:
    """Print what was done, how long it took, and at which rates."""
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    rates = [f"{count / seconds:,.0f}/s"] if count else []
    rates += [f"{size / seconds / 1e6:,.0f} MB/s"] if size else []
    counted = f"{count:,} " if count else ""
    print(f"{counted}{what}: {seconds:.2f} s" + (f" ({', '.join(rates)})" if rates else ""), flush=True)


if __name__ == "__main__":
    main()
