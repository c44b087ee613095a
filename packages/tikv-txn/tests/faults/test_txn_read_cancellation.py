"""Each read is cancelled at each of its steps, and closed over; the client stays usable and nothing is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked
from tikv_pd import Timestamp
from tikv_pd.testing import virtual_time
from tikv_proto.services import PD, Rpc, Tikv
from tikv_rpc import RequestOptions
from tikv_rpc.testing import FakeCluster
from tikv_txn._locks.resolver import LockResolver
from tikv_txn._store import TxnStore
from tikv_txn.config import TxnConfig
from tikv_txn.snapshot import Reads, Snapshot, fresh
from tikv_txn.testing import FakeMvcc

NOW_MS = 1_000_000
OLD = Timestamp(NOW_MS - 10_000, 0).ts
KEYS = [b"a", b"b", b"h", b"q"]
Call = Callable[[Snapshot], Coroutine[Any, Any, Any]]


async def scan(snapshot: Snapshot) -> Any:
    async with snapshot.scan() as opened:
        return [pair async for pair in opened]


OPERATIONS: dict[str, Call] = {
    "get": lambda snapshot: snapshot.get(b"h"),
    "get_versioned": lambda snapshot: snapshot.get_versioned(b"h"),
    "batch_get": lambda snapshot: snapshot.batch_get(KEYS),
    "batch_get_versioned": lambda snapshot: snapshot.batch_get_versioned(KEYS),
    "scan": scan,
}
every_operation = pytest.mark.parametrize("call", OPERATIONS.values(), ids=list(OPERATIONS))


# Both ways in which anyio cancels, and the clock of one of them jumps.
@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_time() if request.param == "trio" else "asyncio"


@pytest.fixture
def config() -> TxnConfig:
    return TxnConfig(scan_page=2)


def lock_keys(mvcc: FakeMvcc) -> None:
    """Lock every key, by transactions of each kind."""
    for key in KEYS:
        mvcc.write(key, b"old", OLD - 5)
    mvcc.lock(b"a", OLD, b"new", primary=b"0")
    mvcc.write(b"0", b"new", OLD + 5, OLD)
    mvcc.lock(b"b", OLD + 1, b"new")
    mvcc.lock(b"h", OLD + 2, b"new", primary=b"q", use_async_commit=True, min_commit_ts=OLD + 9)
    mvcc.lock(b"q", OLD + 2, b"new", use_async_commit=True, min_commit_ts=OLD + 8, secondaries=[b"h"])


def open_snapshot(store: TxnStore) -> tuple[LockResolver, Snapshot]:
    resolver = LockResolver(store)
    return resolver, Snapshot(Reads(store, resolver), fresh, RequestOptions(), 10.0)


async def cancelled_after(steps: int, call: Callable[[], Coroutine[Any, Any, object]]) -> bool:
    """Run the call for so many steps of the scheduler, then cancel it; tell whether it was still running."""
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await call()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        scope.cancel()
    return scope.cancelled_caught


async def is_quiet(store: TxnStore, resolver: LockResolver) -> bool:
    """Tell whether nothing is under way, once what goes on in the background had its time."""
    for _ in range(100):
        await wait_all_tasks_blocked()
        if resolver.in_background == 0 and store.rpc.stats().in_flight == 0:
            return True
    return False


@every_operation
async def test_a_read_may_be_cancelled_anywhere(
    cluster: FakeCluster, store: TxnStore, mvcc: FakeMvcc, call: Call
) -> None:
    expected = None
    step = 0
    while True:
        lock_keys(mvcc)
        resolver, snapshot = open_snapshot(store)

        was_cancelled = await cancelled_after(step, lambda snapshot=snapshot: call(snapshot))  # type: ignore[misc]

        assert await is_quiet(store, resolver)
        found = await call(snapshot)
        again = await call(open_snapshot(store)[1])
        assert found == again
        expected = found if expected is None else expected
        assert found == expected
        if not was_cancelled:
            break
        step += 1 + step // 10
    assert step > 5
    assert cluster.log


STEPS: dict[str, Rpc[Any, Any]] = {
    "get": Tikv.KvGet,
    "batch_get": Tikv.KvBatchGet,
    "scan": Tikv.KvScan,
    "check_status": Tikv.KvCheckTxnStatus,
    "check_secondaries": Tikv.KvCheckSecondaryLocks,
}


@pytest.mark.parametrize("rpc", STEPS.values(), ids=list(STEPS))
async def test_a_read_whose_request_hangs_is_cancelled(
    cluster: FakeCluster, store: TxnStore, mvcc: FakeMvcc, rpc: Rpc[Any, Any]
) -> None:
    lock_keys(mvcc)
    cluster.store(1).hang_next(rpc, times=math.inf)
    resolver, snapshot = open_snapshot(store)

    async with anyio.create_task_group() as tasks:
        for call in (OPERATIONS["get"], OPERATIONS["batch_get"], OPERATIONS["scan"]):
            tasks.start_soon(call, snapshot)
        await wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert await is_quiet(store, resolver)
    cluster.store(1).heal()
    assert await snapshot.batch_get(KEYS) == {b"a": b"new", b"b": b"old", b"h": b"new", b"q": b"new"}


async def test_another_that_waits_for_the_same_is_not_cancelled(
    cluster: FakeCluster, store: TxnStore, mvcc: FakeMvcc
) -> None:
    lock_keys(mvcc)
    cluster.pd.hang(PD.Tso)
    _, snapshot = open_snapshot(store)
    found = []

    async def read() -> None:
        found.append(await snapshot.get(b"a"))

    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def first() -> None:
            with scope:
                await snapshot.get(b"h")

        tasks.start_soon(first)
        await wait_all_tasks_blocked()
        tasks.start_soon(read)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        cluster.pd.heal()

    assert found == [b"new"]
