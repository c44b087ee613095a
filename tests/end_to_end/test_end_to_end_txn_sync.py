"""Transactions without await, on an embedded cluster in another thread: conflicts, scans, Ctrl-C, forks, and exits."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TypeVar

import anyio
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from tikv_embedded import EmbeddedCluster
from tikv_proto.services import Tikv
from tikv_region import TxnV1Codec
from tikv_rpc import Attempt, Proceed
from tikv_txn import (
    AlreadyExists,
    ClosedError,
    ConfigError,
    DeadlineExceeded,
    TransactionEnded,
    TransactionOptions,
    TransactionState,
    TxnConfig,
    UndeterminedError,
    WriteConflict,
)
from tikv_txn.sync import Transaction, TransactionClient, transactional

T = TypeVar("T")
PAIRS = {b"%02d" % number: b"value of %02d" % number for number in range(20)}
TWO_PC = TransactionOptions(async_commit=False, one_pc=False)


class Cluster:
    """An embedded cluster, driven from other threads than its own."""

    def __init__(self, portal: BlockingPortal, embedded: EmbeddedCluster) -> None:
        self.embedded = embedded
        self.url = embedded.url
        self.portal = portal

    @contextmanager
    def hold(self, *methods: str) -> Iterator[Any]:
        """Let requests wait; `struck()` returns when one does."""
        with self._entered(self.embedded.faults.on(*methods).hold()) as fault:
            yield lambda: self.portal.call(fault.struck)

    @contextmanager
    def _entered(self, manager: AbstractContextManager[T]) -> Iterator[T]:
        entered = self.portal.call(manager.__enter__)
        try:
            yield entered
        finally:
            self.portal.call(manager.__exit__, None, None, None)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(EmbeddedCluster(stores=3)) as embedded:
        codec = TxnV1Codec()
        portal.call(lambda: embedded.split(*(codec.encode_region_key(key) for key in (b"05", b"10", b"15"))))
        yield Cluster(portal, embedded)


@pytest.fixture
def client(cluster: Cluster) -> Iterator[TransactionClient]:
    with TransactionClient(cluster.url, config=TxnConfig(scan_page=3, lock_ttl=0.3)) as opened:
        with opened.begin() as txn:
            for key, _ in txn.scan():
                txn.delete(key)
        yield opened


@pytest.fixture
def filled(client: TransactionClient) -> TransactionClient:
    with client.begin() as txn:
        txn.put_many(PAIRS)
    return client


def stored(client: TransactionClient) -> dict[bytes, bytes]:
    return dict(client.snapshot().scan())


def interrupt_when(happens: Callable[[], object]) -> threading.Thread:
    """Press Ctrl-C as soon as something has happened."""

    def press() -> None:
        happens()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def test_every_operation_blocks_until_it_is_done(client: TransactionClient) -> None:
    with client.begin() as txn:
        txn.put(b"a", b"1")
        txn.insert(b"b", b"2")
        txn.put_many({b"c": b"3", b"d": b"4"})
        txn.delete(b"c")
        txn.lock_keys(b"e", b"f")
        txn.assert_not_exists(b"a")

        assert (txn.get(b"a"), txn.exists(b"c")) == (b"1", False)
        assert txn.batch_get([b"a", b"b", b"c", b"x"]) == {b"a": b"1", b"b": b"2"}
        assert list(txn.scan(prefix=b"", reverse=True, limit=2)) == [(b"d", b"4"), (b"b", b"2")]
        assert txn.size > 0
        assert txn.snapshot.get(b"a") is None
        assert stored(client) == {}

    assert txn.state is TransactionState.COMMITTED
    assert txn.commit_ts is not None
    assert txn.start_ts < txn.commit_ts <= client.get_ts()
    assert stored(client) == {b"a": b"1", b"b": b"2", b"d": b"4"}
    snapshot = client.snapshot(txn.commit_ts)
    assert snapshot.get_ts() == txn.commit_ts
    assert snapshot.batch_get([b"a", b"c"]) == {b"a": b"1"}
    assert snapshot.exists(b"b")
    assert [key for key, _ in snapshot.scan(b"b", reverse=True)] == [b"d", b"b"]
    found = snapshot.get_versioned(b"a")
    assert found is not None
    assert (found.value, found.commit_ts) == (b"1", txn.commit_ts.ts)
    assert client.stats().stores


def test_a_transaction_without_a_block_is_ended_by_its_user(client: TransactionClient) -> None:
    kept, dropped = client.begin(), client.begin(TWO_PC)
    kept.put(b"k", b"1")
    dropped.put(b"l", b"1")

    assert kept.commit() == kept.commit_ts
    dropped.rollback()

    assert stored(client) == {b"k": b"1"}
    assert (kept.state, dropped.state) == (TransactionState.COMMITTED, TransactionState.ROLLED_BACK)
    for txn in (kept, dropped):
        with pytest.raises(TransactionEnded):
            txn.put(b"k", b"2")
        with pytest.raises(TransactionEnded):
            txn.commit()
        with pytest.raises(TransactionEnded), txn:
            pytest.fail("it has ended")


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_rolls_back(client: TransactionClient, error: type[BaseException]) -> None:
    def fail(txn: Transaction) -> None:
        with txn:
            txn.put(b"k", b"1")
            raise error

    txn = client.begin()

    with pytest.raises(error):
        fail(txn)

    assert txn.state is TransactionState.ROLLED_BACK
    assert stored(client) == {}


def test_the_second_of_two_that_write_the_same_key_conflicts(client: TransactionClient) -> None:
    first, second = client.begin(), client.begin()
    first.put(b"k", b"1")
    second.put(b"k", b"2")

    first.commit()
    with pytest.raises(WriteConflict):
        second.commit()

    assert second.state is TransactionState.ROLLED_BACK
    assert stored(client) == {b"k": b"1"}


def test_what_can_never_work_leaves_the_transaction_as_it_is(client: TransactionClient) -> None:
    with client.begin() as txn:
        txn.put(b"k", b"1")
        with pytest.raises(ConfigError):
            txn.commit(timeout=-1)
        with pytest.raises(TypeError):
            txn.put("k", b"2")  # type: ignore[arg-type]  # the mistake
        with pytest.raises(AlreadyExists):
            txn.insert(b"k", b"3")

        assert txn.state is TransactionState.ACTIVE

    assert stored(client) == {b"k": b"1"}


def test_eight_threads_increment_one_counter(client: TransactionClient) -> None:
    def increment(txn: Transaction) -> int:
        count = int(txn.get(b"counter") or 0) + 1
        txn.put(b"counter", b"%d" % count)
        return count

    def work() -> list[int]:
        return [client.run(increment) for _ in range(10)]

    with ThreadPoolExecutor(8) as threads:
        counts = [count for outcome in [threads.submit(work) for _ in range(8)] for count in outcome.result()]

    assert sorted(counts) == list(range(1, 81))
    assert client.snapshot().get(b"counter") == b"80"


def test_run_calls_its_function_in_the_thread_of_its_caller_until_it_commits(client: TransactionClient) -> None:
    threads = []

    def meet_another(txn: Transaction) -> str:
        threads.append(threading.current_thread())
        txn.get(b"k")
        txn.put(b"k", b"mine")
        if len(threads) < 3:
            with client.begin() as other:
                other.put(b"k", b"another's")
        return "done"

    assert client.run(meet_another) == "done"
    assert threads == [threading.current_thread()] * 3
    assert stored(client) == {b"k": b"mine"}


def test_run_raises_what_running_again_would_not_help(client: TransactionClient) -> None:
    calls = []

    def fail(txn: Transaction) -> None:
        calls.append(txn)
        txn.put(b"k", b"1")
        raise LookupError

    async def wait(txn: Transaction) -> bytes | None:
        return txn.get(b"k")

    with pytest.raises(LookupError):
        client.run(fail)
    with pytest.raises(TypeError, match="must not be async"):
        client.run(wait)  # type: ignore[unused-coroutine]  # the mistake

    assert len(calls) == 1
    assert calls[0].state is TransactionState.ROLLED_BACK
    assert stored(client) == {}


def test_run_gives_up_when_its_time_is_over(client: TransactionClient) -> None:
    def never(txn: Transaction) -> None:
        txn.put(b"k", b"mine")
        with client.begin() as other:
            other.put(b"k", b"another's")

    with pytest.raises(DeadlineExceeded) as raised:
        client.run(never, timeout=0.3)

    assert isinstance(raised.value.__cause__, WriteConflict)


def test_functions_become_transactional(client: TransactionClient) -> None:
    @transactional
    def add(txn: Transaction, account: bytes, amount: int) -> int:
        balance = int(txn.get(account) or 0) + amount
        txn.put(account, b"%d" % balance)
        return balance

    @client.transactional(timeout=5)
    def transfer(txn: Transaction, amount: int) -> None:
        add(txn, b"alice", -amount)
        add(txn, b"bob", amount)

    assert add(client, b"alice", 100) == 100
    transfer(5)

    assert stored(client) == {b"alice": b"95", b"bob": b"5"}
    with pytest.raises(TypeError):
        add(None, b"alice", 1)  # type: ignore[arg-type]  # the mistake


def test_savepoints_take_back_what_was_written_since(client: TransactionClient) -> None:
    with client.begin() as txn:
        txn.put(b"a", b"1")
        with suppress(LookupError), txn.savepoint():
            txn.put(b"a", b"2")
            raise LookupError
        with txn.savepoint():
            txn.put(b"b", b"1")
        outer = txn.savepoint()
        txn.put(b"c", b"1")
        txn.savepoint().release()
        outer.rollback()
        with pytest.raises(ConfigError):
            outer.release()

        assert dict(txn.scan()) == {b"a": b"1", b"b": b"1"}

    assert stored(client) == {b"a": b"1", b"b": b"1"}


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_sees_what_is_written_ahead_of_it(filled: TransactionClient, reverse: bool) -> None:
    with filled.begin() as txn:
        txn.delete(b"01")
        txn.put(b"02a", b"new")
        txn.put(b"19", b"changed")
        found = []
        for key, _ in txn.scan(reverse=reverse):
            found.append(key)
            # Between two pairs of one page, and on pages that are being fetched.
            number = int(key[:2])
            txn.put(b"%02d ahead" % (number - 1 if reverse else number), b"1")
            txn.delete(b"%02d" % (number - 2 if reverse else number + 2))
            txn.put(b"%02d behind" % (number + 1 if reverse else number - 1), b"1")
            if len(found) > 60:
                pytest.fail("it never ends")

        assert found == sorted(found, reverse=reverse)
        assert len(found) == len(set(found))
        assert dict(txn.scan(reverse=reverse)) == dict(txn.scan())
        assert not [key for key in found if key.endswith(b"behind")]
        assert [key for key in found if key.endswith(b"ahead")]


def test_scans_with_limits_and_own_deletions_return_as_many_as_there_are(filled: TransactionClient) -> None:
    with filled.begin() as txn:
        for number in range(0, 20, 2):
            txn.delete(b"%02d" % number)
        odd = [pair for pair in PAIRS.items() if int(pair[0]) % 2]

        assert list(txn.scan(limit=5)) == odd[:5]
        assert list(txn.scan(limit=100, reverse=True)) == odd[::-1]
        assert list(txn.scan(limit=0)) == []
        assert list(txn.scan(b"05", b"12", key_only=True)) == [(b"05", b""), (b"07", b""), (b"09", b""), (b"11", b"")]
        txn.rollback()


def test_a_scan_that_is_left_or_closed_leaves_nothing(filled: TransactionClient) -> None:
    with filled.begin() as txn:
        for pair in txn.scan():
            assert pair == (b"00", PAIRS[b"00"])
            break
        with txn.scan() as scan:
            assert next(scan) == (b"00", PAIRS[b"00"])
        assert list(scan) == []
        scan = txn.scan()
        next(scan)

    with pytest.raises(TransactionEnded):
        next(scan)
    scan.close()
    with filled.snapshot().scan() as pages:
        assert next(pages) == (b"00", PAIRS[b"00"])
    assert list(pages) == []


def test_keys_are_read_in_the_thread_that_calls_and_may_come_from_the_same_client(filled: TransactionClient) -> None:
    threads: set[int] = set()

    def keys() -> Iterator[bytes]:
        for key, _ in filled.snapshot().scan(limit=5):
            threads.add(threading.get_ident())
            yield key

    snapshot = filled.snapshot()
    first = dict(list(PAIRS.items())[:5])

    assert snapshot.batch_get(keys()) == first
    assert snapshot.batch_get_versioned(keys()).keys() == first.keys()
    with filled.begin() as txn:
        assert txn.batch_get(keys()) == first
    assert threads == {threading.get_ident()}


def test_a_transaction_may_go_from_thread_to_thread_and_a_snapshot_serves_many(filled: TransactionClient) -> None:
    txn = filled.begin()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(txn.put, b"00", b"of another thread").result()
        assert thread.submit(txn.get, b"00").result() == b"of another thread"
    txn.commit()

    snapshot = filled.snapshot()
    scan = snapshot.scan()
    with ThreadPoolExecutor(8) as threads:
        values = list(threads.map(snapshot.get, PAIRS))
        outcomes = [threads.submit(list, scan) for _ in range(4)]

    assert values == [b"of another thread", *list(PAIRS.values())[1:]]
    assert sorted(key for outcome in outcomes for key, _ in outcome.result()) == list(PAIRS)


def test_it_works_in_a_cell_of_a_notebook(cluster: Cluster) -> None:
    async def cell() -> dict[bytes, bytes]:
        with TransactionClient(cluster.url) as client, client.begin() as txn:
            txn.put(b"cell", b"1")
            assert list(client.snapshot().scan(prefix=b"none")) == []
            return dict(txn.scan(prefix=b"cel"))

    assert asyncio.run(cell()) == {b"cell": b"1"}
    assert anyio.run(cell, backend="trio") == {b"cell": b"1"}


def test_a_transaction_that_was_dropped_warns_and_writes_nothing(client: TransactionClient) -> None:
    kept = [client.begin()]
    kept[0].put(b"k", b"1")

    with pytest.warns(ResourceWarning, match="neither committed nor rolled back"):
        kept.clear()

    assert stored(client) == {}


def test_a_closed_client_commits_nothing(cluster: Cluster) -> None:
    with TransactionClient(cluster.url) as client:
        txn, other = client.begin(), client.begin()
        snapshot = client.snapshot()

    # Writing asks nobody, nor does reading what was written.
    txn.put(b"closed", b"1")
    assert txn.get(b"closed") == b"1"
    assert txn.batch_get([b"closed"]) == {b"closed": b"1"}
    with pytest.raises(ClosedError):
        txn.commit()
    assert txn.state is TransactionState.ACTIVE
    txn.rollback()
    with pytest.raises(ClosedError), other:
        other.put(b"closed", b"1")
    assert other.state is TransactionState.ROLLED_BACK
    for use in (client.begin, client.get_ts, client.snapshot, lambda: snapshot.get(b"k"), lambda: client.run(id)):
        with pytest.raises(ClosedError):
            use()


def test_closing_during_a_commit_tells_whether_it_may_have_happened(cluster: Cluster) -> None:
    client = TransactionClient(cluster.url)
    with client, ThreadPoolExecutor(1) as thread, cluster.hold("KvPrewrite") as struck:
        txn = client.begin()
        txn.put(b"closed", b"1")
        commit = thread.submit(txn.commit)
        struck()

        client.close()

        error = commit.exception(10)

    assert isinstance(error, (ClosedError, UndeterminedError))
    assert isinstance(error, UndeterminedError) == (txn.state is TransactionState.UNDETERMINED)


def test_ctrl_c_during_a_commit_leaves_the_outcome_open_and_the_client_usable(
    client: TransactionClient, cluster: Cluster
) -> None:
    with cluster.hold("KvPrewrite") as struck:
        thread = interrupt_when(struck)
        with pytest.raises(KeyboardInterrupt), client.begin() as txn:
            txn.put(b"k", b"1")
        thread.join()
        # What the loop makes of it afterwards does not change that.
        client.get_ts()

        assert txn.state is TransactionState.UNDETERMINED
        with pytest.raises(TransactionEnded):
            txn.get(b"k")

    with client.begin() as txn:
        txn.put(b"l", b"1")
    assert client.snapshot().get(b"l") == b"1"


def test_ctrl_c_does_not_make_run_begin_anew(client: TransactionClient, cluster: Cluster) -> None:
    calls = []

    def write(txn: Transaction) -> None:
        calls.append(txn)
        txn.put(b"k", b"1")

    with cluster.hold("KvPrewrite") as struck:
        thread = interrupt_when(struck)
        with pytest.raises(KeyboardInterrupt):
            client.run(write)
        thread.join()

    assert [txn.state for txn in calls] == [TransactionState.UNDETERMINED]


class CtrlC:
    """Presses Ctrl-C in the client's thread when the first answer has come."""

    name = "Ctrl-C"

    def __init__(self) -> None:
        self.is_armed = True

    async def __call__(self, attempt: Attempt, proceed: Proceed) -> Any:
        answer = await proceed()
        if self.is_armed and attempt.request.rpc is Tikv.KvScan:
            self.is_armed = False
            signal.raise_signal(signal.SIGINT)
        return answer


@pytest.mark.parametrize("is_snapshot", [False, True], ids=["transaction", "snapshot"])
@pytest.mark.usefixtures("filled")
def test_ctrl_c_loses_no_page_of_a_scan(cluster: Cluster, is_snapshot: bool) -> None:
    config = TxnConfig(scan_page=3)
    with TransactionClient(cluster.url, config=config, interceptors=[CtrlC()]) as client, client.begin() as txn:
        scan: Iterator[tuple[bytes, bytes]] = txn.snapshot.scan() if is_snapshot else txn.scan()

        with pytest.raises(KeyboardInterrupt):
            next(scan)

        assert list(scan) == list(PAIRS.items())


# One that began just when it was interrupted is dropped.
@pytest.mark.filterwarnings("ignore:.*neither committed nor rolled back:ResourceWarning")
def test_ctrl_c_at_any_moment_leaves_the_client_usable(filled: TransactionClient) -> None:
    def work(txn: Transaction) -> None:
        txn.put(b"k", b"1")
        assert [key for key, _ in txn.scan(prefix=b"0")] == list(PAIRS)[:10]

    interrupted = 0
    for number in range(20):
        timer = threading.Timer(0.002 * number, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            for _ in range(100_000):
                filled.run(work)
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
        assert filled.run(lambda txn: txn.get(b"07")) == PAIRS[b"07"]

    assert interrupted == 20


def run(program: str, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program that must end by itself."""
    command = [sys.executable, "-u", "-c", program, url]
    environ = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environ)


def test_ctrl_c_ends_a_program_that_waits_for_a_commit(cluster: Cluster) -> None:
    program = """
import sys
from tikv_txn.sync import TransactionClient

with TransactionClient(sys.argv[1]) as client:
    try:
        with client.begin() as txn:
            txn.put(b"ctrl-c", b"1")
    finally:
        print(txn.state.name)
"""
    command = [sys.executable, "-u", "-c", program, cluster.url]
    with (
        cluster.hold("KvPrewrite") as struck,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
    ):
        struck()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)

    assert out == "UNDETERMINED\n"
    assert err.endswith("KeyboardInterrupt\n")
    assert process.returncode == -signal.SIGINT


def test_a_program_that_does_not_close_its_client_ends(cluster: Cluster) -> None:
    done = run(
        """
import sys, threading
from tikv_txn.sync import TransactionClient

client = TransactionClient(sys.argv[1]).__enter__()
with client.begin() as txn:
    txn.put(b"exit", b"1")
forgotten = client.begin()
forgotten.put(b"exit", b"2")
scan = forgotten.scan()
next(scan)

def increment(txn):
    txn.put(b"exit", b"%d" % (int(txn.get(b"exit")) + 1))

def work():
    for _ in range(20):
        client.run(increment)
    print("worked to the end", client.snapshot().get(b"exit"))

threading.Thread(target=work).start()
""",
        cluster.url,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "worked to the end b'21'\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")
def test_the_child_of_a_fork_is_told_so_and_the_parent_goes_on(cluster: Cluster) -> None:
    done = run(
        """
import os, sys
from tikv_txn import ClosedError
from tikv_txn.sync import TransactionClient

with TransactionClient(sys.argv[1]) as client:
    with client.begin() as txn:
        txn.put(b"fork", b"1")
        if os.fork() == 0:
            for use in (txn.commit, lambda: txn.get(b"other"), client.begin, TransactionClient(sys.argv[1]).__enter__):
                try:
                    use()
                except ClosedError as error:
                    print(error)
            txn.rollback()
            client.close()
            sys.exit()
        os.wait()
    print(client.snapshot().get(b"fork"))
""",
        cluster.url,
        # gRPC's own handlers of forks do not know its event loops: one child in ten crashes in them.
        GRPC_ENABLE_FORK_SUPPORT="0",
    )

    lines = done.stdout.splitlines()
    assert lines[-1] == "b'1'"
    assert len(lines) == 5
    assert all("fork" in line for line in lines[:4])
    assert done.returncode == 0
