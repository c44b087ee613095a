"""The blocking client against the embedded cluster: threads, loops beside it, Ctrl-C, forks, and exits."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_raw import ClosedError, ConfigError, DeadlineExceeded, PdConfig, PdUnavailable, RawConfig, RawError
from tikv_raw.sync import RawClient

PAIRS = {b"%02d" % number: b"value of %02d" % number for number in range(20)}
SPLITS = "05,10,15"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a cluster in another process, so that all threads and sockets of this one are the client's."""
    command = [sys.executable, "-m", "tikv_embedded", "serve", "--api-version", "v1ttl", "--split-keys", SPLITS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[1]
        finally:
            server.terminate()


@pytest.fixture
def client(url: str) -> Iterator[RawClient]:
    with RawClient(url, api_version="v1ttl", config=RawConfig(scan_page=3, batch_keys=4)) as opened:
        opened.delete_range(b"", everything=True)
        opened.batch_put(PAIRS)
        yield opened


def test_every_operation_blocks_until_it_is_done(client: RawClient) -> None:
    client.put(b"k", b"v", ttl=100)

    assert client.get(b"k") == b"v"
    assert client.ttl(b"k") in range(90, 101)
    assert client.batch_get(PAIRS) == PAIRS
    assert client.compare_and_swap(b"k", b"v", b"w")
    assert client.checksum().total_kvs == len(PAIRS) + 1
    client.delete(b"k")
    client.batch_delete([b"00", b"01"])
    client.delete_range(b"02", b"04")
    assert list(client.scan()) == list(PAIRS.items())[4:]
    assert list(client.scan(prefix=b"1", reverse=True, limit=2)) == [(b"19", PAIRS[b"19"]), (b"18", PAIRS[b"18"])]
    assert client.with_options(timeout=3).get(b"07") == PAIRS[b"07"]
    assert client.stats().stores


def test_64_threads_share_a_client(client: RawClient) -> None:
    def work(number: int) -> None:
        for turn in range(10):
            key = b"thread %d %d" % (number, turn)
            client.put(key, key)
            assert client.get(key) == key
        assert [key for key, _ in client.scan(prefix=b"thread %d " % number)] == [
            b"thread %d %d" % (number, turn) for turn in range(10)
        ]

    with ThreadPoolExecutor(64) as threads:
        for outcome in [threads.submit(work, number) for number in range(64)]:
            outcome.result()


def test_a_client_works_in_a_cell_of_a_notebook(url: str) -> None:
    async def cell() -> bytes | None:
        with RawClient(url, api_version="v1ttl") as client:
            client.put(b"cell", b"1")
            assert list(client.scan(prefix=b"cel")) == [(b"cell", b"1")]
            return client.get(b"cell")

    assert asyncio.run(cell()) == b"1"
    assert anyio.run(cell, backend="trio") == b"1"


def test_a_client_may_be_opened_and_closed_without_a_block(url: str) -> None:
    client = RawClient(url, api_version="v1ttl").open()
    try:
        client.put(b"k", b"v")
        with pytest.raises(ConfigError, match="open already"):
            client.open()
    finally:
        client.close()

    with pytest.raises(ClosedError):
        client.get(b"k")


def test_a_call_ends_at_its_deadline() -> None:
    async def serve_and_stop(started: threading.Event, stopped: threading.Event) -> None:
        async with EmbeddedCluster() as cluster:
            addresses.append(cluster.url)
            started.set()
            await anyio.to_thread.run_sync(stopped.wait)
            for store in cluster.stores():
                await cluster.stop_store(store.id, elect=False)
            stopped.clear()
            await anyio.to_thread.run_sync(stopped.wait)

    addresses: list[str] = []
    started, stopped = threading.Event(), threading.Event()
    server = threading.Thread(target=anyio.run, args=(serve_and_stop, started, stopped))
    server.start()
    assert started.wait(10)
    try:
        with RawClient(addresses[0]) as client:
            client.put(b"k", b"v")
            stopped.set()
            while stopped.is_set():
                time.sleep(0.01)
            began = time.monotonic()

            with pytest.raises(DeadlineExceeded):
                client.get(b"k", timeout=0.5)

            assert time.monotonic() - began < 1.5
    finally:
        stopped.set()
        server.join()


def test_an_address_without_a_cluster_is_an_error() -> None:
    config = RawConfig(pd=PdConfig(open_timeout=0.5))

    with pytest.raises(PdUnavailable), RawClient("127.0.0.1:1", config=config):
        pass


def test_a_scan_that_is_left_or_closed_leaves_nothing(client: RawClient) -> None:
    for pair in client.scan():
        assert pair == (b"00", PAIRS[b"00"])
        break
    with client.scan() as scan:
        assert next(scan) == (b"00", PAIRS[b"00"])
    assert list(scan) == []

    scan = client.scan()
    first = [next(scan) for _ in range(4)]
    client.put(b"04", b"changed")

    assert first == list(PAIRS.items())[:4]
    assert len(list(scan)) == 16
    assert client.get(b"04") == b"changed"


def test_several_threads_share_a_scan(client: RawClient) -> None:
    scan = client.scan()
    with ThreadPoolExecutor(5) as threads:
        outcomes = [threads.submit(list, scan) for _ in range(5)]

    assert sorted(pair for outcome in outcomes for pair in outcome.result()) == list(PAIRS.items())


@pytest.mark.usefixtures("client")
def test_a_scan_of_a_closed_client_ends_with_an_error_after_what_was_fetched(url: str) -> None:
    with RawClient(url, api_version="v1ttl", config=RawConfig(scan_page=3)) as other:
        scan = other.scan()
        first = next(scan)

    rest = [next(scan) for _ in range(2)]
    with pytest.raises(ClosedError):
        next(scan)
    scan.close()

    assert [first, *rest] == list(PAIRS.items())[:3]
    assert list(scan) == []


def test_ctrl_c_ends_the_call_and_leaves_the_client_usable(client: RawClient) -> None:
    interrupted = 0
    for number in range(20):
        timer = threading.Timer(0.002 * number, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            for _ in range(100_000):
                client.batch_get(PAIRS)
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
        assert client.get(b"07") == PAIRS[b"07"]

    assert interrupted == 20


# --- what is passed to a call runs in the thread that calls -----------------------------------------------------------


def test_rows_of_a_database_are_stored_as_they_are_read(client: RawClient) -> None:
    database = sqlite3.connect(":memory:")  # Its objects refuse other threads.
    database.execute("create table pairs (key blob, value blob)")
    database.executemany("insert into pairs values (?, ?)", [(b"row %d" % row, b"v") for row in range(100)])

    client.batch_put(database.execute("select key, value from pairs"))
    found = client.batch_get(key for (key,) in database.execute("select key from pairs"))
    client.batch_delete(key for (key,) in database.execute("select key from pairs"))

    assert len(found) == 100
    assert client.count(prefix=b"row ") == 0
    database.close()


def test_everything_that_is_passed_is_at_home_in_the_thread_that_calls(client: RawClient) -> None:
    threads: set[int] = set()

    def seen(item: Any) -> Any:
        threads.add(threading.get_ident())
        return item

    class Lazy(list[bytes]):
        """Keys that are counted and read elsewhere."""

        def __len__(self) -> int:
            return seen(super().__len__())  # type: ignore[no-any-return]

        def __iter__(self) -> Iterator[bytes]:
            return map(seen, super().__iter__())

    client.batch_put(map(seen, PAIRS.items()), progress=seen)
    assert client.batch_get(Lazy(PAIRS), progress=seen) == PAIRS
    outcome = client.batch_get(map(seen, PAIRS), on_error="return", progress=seen)
    assert outcome.values == PAIRS
    assert len(client.batch_scan(map(seen, [(b"00", b"03"), (b"07", b"08")]))) == 2
    with pytest.raises(RawError):
        client.coprocessor("none", "1", map(seen, [(b"00", b"03")]), lambda _: bytes(seen(b"")))
    client.delete_range(b"00", b"07", progress=seen)
    client.delete_prefix(b"1", progress=seen)

    assert threads == {threading.get_ident()}


def test_a_client_copies_what_it_scans(client: RawClient) -> None:
    client.batch_put(client.scan())
    client.batch_put((b"copy of " + key, value) for key, value in client.scan())
    doubled = client.batch_get(key for key, _ in client.scan(prefix=b"copy ") if client.get(key[8:]) is not None)

    assert doubled == {b"copy of " + key: value for key, value in PAIRS.items()}


def test_a_slow_generator_holds_up_no_other_thread(client: RawClient) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        yield b"00"
        reading.set()
        assert go_on.wait(10)
        yield b"01"

    with ThreadPoolExecutor(1) as thread:
        outcome = thread.submit(client.batch_get, slow())
        assert reading.wait(10)

        found = [client.get(b"07") for _ in range(10)]

        assert not outcome.done()
        go_on.set()
        assert outcome.result(10) == {key: PAIRS[key] for key in (b"00", b"01")}
    assert found == [PAIRS[b"07"]] * 10


@pytest.mark.parametrize("after", [0, 30])
def test_a_generator_that_is_interrupted_leaves_the_client_usable(client: RawClient, after: int) -> None:
    def interrupted() -> Iterator[tuple[bytes, bytes]]:
        for number in range(after):
            yield b"before %d" % number, b"v"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.batch_put(interrupted())

    assert client.get(b"07", timeout=1) == PAIRS[b"07"]


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("mine"), ConfigError("mine"), DeadlineExceeded("mine", 1.0)], ids=type
)
@pytest.mark.parametrize("on_error", ["raise", "return"])
def test_what_a_generator_or_progress_raises_comes_out_as_it_is(
    client: RawClient, error: Exception, on_error: Any
) -> None:
    def failing() -> Iterator[tuple[bytes, bytes]]:
        yield from PAIRS.items()
        raise error

    def stop(_done: int) -> None:
        raise error

    for pairs, progress in ((failing(), None), (PAIRS, stop), (iter(PAIRS.items()), stop)):
        with pytest.raises(type(error)) as caught:
            client.batch_put(pairs, on_error=on_error, progress=progress)
        assert caught.value is error
    with pytest.raises(type(error)) as caught:
        client.delete_range(b"00", b"07", progress=stop)
    assert caught.value is error
    assert client.get(b"07") == PAIRS[b"07"]


@pytest.mark.usefixtures("client")
def test_a_client_that_is_closed_while_a_generator_is_read_does_not_wait_for_it(url: str) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        reading.set()
        assert go_on.wait(10)
        yield b"01"

    with ThreadPoolExecutor(1) as thread:
        with RawClient(url, api_version="v1ttl") as other:
            outcome = thread.submit(other.batch_get, slow())
            assert reading.wait(10)

        go_on.set()
        with pytest.raises(ClosedError):
            outcome.result(10)


# --- the end ----------------------------------------------------------------------------------------------------------


def sockets() -> int:
    """Return how many sockets this process has open."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # The one that lists them is gone by now.
            count += str(descriptor.readlink()).startswith("socket:")
    return count


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads the descriptors from /proc")
def test_closed_clients_leave_no_thread_and_no_socket(url: str) -> None:
    def use() -> None:
        with RawClient(url, api_version="v1ttl", config=RawConfig(scan_page=3)) as client:
            client.batch_put(PAIRS)
            next(client.scan())

    def at_rest() -> tuple[int, int]:
        counts = []
        for _ in range(20):
            gc.collect()
            counts.append((sockets(), threading.active_count()))
            time.sleep(0.05)
        return min(counts)

    use()  # What gRPC makes once and keeps.
    before = at_rest()

    for _ in range(5):
        use()

    assert at_rest() == before


def run(program: str, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program that must end by itself."""
    command = [sys.executable, "-u", "-c", program, url]
    environ = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environ)


def test_a_program_that_does_not_close_its_client_ends(url: str) -> None:
    done = run(
        """
import sys, threading
from tikv_raw.sync import RawClient

client = RawClient(sys.argv[1], api_version="v1ttl").__enter__()
client.put(b"exit", b"1")
scan = client.scan()
next(scan)

def work():
    for _ in range(300):
        client.get(b"exit")
    print("worked to the end")

threading.Thread(target=work).start()
""",
        url,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "worked to the end\n", "")


def test_ctrl_c_ends_a_program_that_waits(url: str) -> None:
    done = run(
        """
import os, signal, sys, threading
from tikv_raw.sync import RawClient

with RawClient(sys.argv[1], api_version="v1ttl") as client:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        while True:
            client.get(b"k")
    finally:
        client.put(b"k", b"v")
        print(client.get(b"k"))
""",
        url,
    )

    assert done.stdout == "b'v'\n"
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert done.returncode == -signal.SIGINT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")
def test_the_child_of_a_fork_is_told_so_and_the_parent_goes_on(url: str) -> None:
    done = run(
        """
import os, sys
from tikv_raw import ClosedError
from tikv_raw.sync import RawClient

unused = RawClient(sys.argv[1], api_version="v1ttl")
if os.fork() == 0:
    with unused:
        unused.put(b"fork", b"of a child that opens its own")
    sys.exit()
os.wait()
with RawClient(sys.argv[1], api_version="v1ttl") as client:
    print(client.get(b"fork"))
    if os.fork() == 0:
        for use in (lambda: client.get(b"fork"), lambda: next(client.scan()), unused.__enter__):
            try:
                use()
            except ClosedError as error:
                print(error)
        client.close()
        sys.exit()
    os.wait()
    print(client.get(b"fork"))
""",
        url,
        # gRPC's own handlers of forks do not know its event loops: one child in ten crashes in them.
        GRPC_ENABLE_FORK_SUPPORT="0",
    )

    lines = done.stdout.splitlines()
    assert lines[0] == lines[-1] == "b'of a child that opens its own'"
    assert len(lines) == 5
    assert all("fork" in line for line in lines[1:4])
    assert done.returncode == 0
