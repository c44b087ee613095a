"""Scans of a snapshot: pages ahead, limits, bounds, errors, cancellation, closing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked
from tikv_pd import ClosedError, DeadlineExceeded, Timestamp
from tikv_proto.services import Tikv
from tikv_rpc import RequestOptions
from tikv_rpc.testing import FakeCluster
from tikv_txn._locks.resolver import LockResolver
from tikv_txn._store import TxnStore
from tikv_txn.config import TxnConfig
from tikv_txn.scan import Scan
from tikv_txn.snapshot import Reads, Snapshot
from tikv_txn.testing import FakeMvcc

NOW_MS = 1_000_000
READ = Timestamp(NOW_MS, 0).ts
OLD = Timestamp(NOW_MS - 10_000, 0).ts
KEYS = [b"a", b"b", b"c", b"d", b"g", b"h", b"i", b"p", b"q", b"r", b"s", b"t"]
PAIRS = [(key, b"value " + key) for key in KEYS]
"""Four of them before the border at g, three before that at p."""


@pytest.fixture
def config() -> TxnConfig:
    return TxnConfig(scan_page=3)


@pytest.fixture
def snapshot(store: TxnStore, mvcc: FakeMvcc) -> Snapshot:
    for key, value in PAIRS:
        mvcc.write(key, value, OLD - 5)
    return Snapshot(Reads(store, LockResolver(store)), READ, RequestOptions(), 10.0)


def lock_every_other_key(mvcc: FakeMvcc) -> list[tuple[bytes, bytes]]:
    """Lock keys, of transactions that committed or did not; return what there is to be read."""
    found = dict(PAIRS)
    for number, key in enumerate(KEYS):
        start_ts = OLD + 2 * number
        if number % 4 == 0:
            mvcc.lock(key, start_ts, b"other", primary=b"?%d" % number)
            mvcc.write(b"?%d" % number, b"x", start_ts + 1, start_ts)
            mvcc.write(b"?%d" % number, None, READ - 1)
            found[key] = b"other"
        elif number % 4 == 1:
            mvcc.lock(key, start_ts, b"other")
        elif number % 4 == 2:
            mvcc.lock(key + b"+", start_ts, b"other")
    return list(found.items())


def pages(cluster: FakeCluster) -> list[tuple[bytes, int]]:
    """Where each page asked for began, and how many pairs it was to have."""
    return [(request.start_key, request.limit) for request in cluster.requests(Tikv.KvScan)]


async def collect(scan: Scan) -> list[tuple[bytes, bytes]]:
    return [pair async for pair in scan]


async def test_nothing_is_asked_for_before_the_first_pair(cluster: FakeCluster, snapshot: Snapshot) -> None:
    snapshot.scan()
    await wait_all_tasks_blocked()

    assert cluster.log == []


async def test_one_page_is_fetched_ahead_and_no_more(cluster: FakeCluster, snapshot: Snapshot) -> None:
    scan = snapshot.scan()
    asked = []

    for _ in range(6):
        await anext(scan)
        await wait_all_tasks_blocked()
        asked.append(len(pages(cluster)))

    assert asked == [2, 2, 2, 3, 4, 4]
    assert pages(cluster) == [(b"", 3), (b"c\0", 3), (b"g", 3), (b"i\0", 3)]


async def test_a_scan_goes_on_at_the_border_of_a_region(cluster: FakeCluster, snapshot: Snapshot) -> None:
    assert await collect(snapshot.scan()) == PAIRS
    forward = pages(cluster)
    cluster.log.clear()

    assert await collect(snapshot.scan(reverse=True)) == PAIRS[::-1]

    assert [start for start, _ in forward] == [b"", b"c\0", b"g", b"i\0", b"p", b"r\0"]
    assert [start for start, _ in pages(cluster)] == [b"", b"r", b"p", b"g", b"b"]
    assert [request.end_key for request in cluster.requests(Tikv.KvScan)] == [b"p", b"p", b"g", b"", b""]


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [0, 1, 3, 4, 5, 11, 12, 13])
async def test_a_limit_is_kept(
    cluster: FakeCluster, snapshot: Snapshot, mvcc: FakeMvcc, limit: int, reverse: bool, locked: bool
) -> None:
    expected = lock_every_other_key(mvcc) if locked else PAIRS

    found = await collect(snapshot.scan(b"a", limit=limit, reverse=reverse))

    assert found == sorted(expected, reverse=reverse)[:limit]
    assert all(size <= 3 for _, size in pages(cluster))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("start", "end"), [(b"b", b"q"), (b"b\0", b"p"), (b"g", b"g\0"), (b"z", b""), (b"d\0", b"g")])
async def test_bounds(snapshot: Snapshot, mvcc: FakeMvcc, start: bytes, end: bytes, reverse: bool) -> None:
    everything = lock_every_other_key(mvcc)

    found = await collect(snapshot.scan(start, end, reverse=reverse))

    expected = [(key, value) for key, value in everything if start <= key and (not end or key < end)]
    assert found == sorted(expected, reverse=reverse)


async def test_a_prefix(snapshot: Snapshot) -> None:
    assert await collect(snapshot.scan(prefix=b"g")) == [(b"g", b"value g")]
    assert await collect(snapshot.scan(prefix=b"")) == PAIRS


async def test_an_empty_range_asks_nobody(cluster: FakeCluster, snapshot: Snapshot) -> None:
    assert await collect(snapshot.scan(b"b", b"b")) == []
    assert await collect(snapshot.scan(b"c", b"b", reverse=True)) == []
    assert await collect(snapshot.scan(limit=0)) == []

    assert cluster.log == []


async def test_large_values_make_small_pages(cluster: FakeCluster, snapshot: Snapshot, mvcc: FakeMvcc) -> None:
    for key in KEYS:
        mvcc.write(key, bytes(3 << 20), OLD)

    assert [key async for key, _ in snapshot.scan()] == KEYS

    # The page ahead was asked for before the first large one had come.
    assert [limit for _, limit in pages(cluster)][:2] == [3, 1]
    assert {limit for _, limit in pages(cluster)[1:]} == {1}


async def test_the_timeout_is_that_of_a_page(cluster: FakeCluster, snapshot: Snapshot) -> None:
    cluster.store(1).delay_next(Tikv.KvScan, 0.9, times=math.inf)

    assert await collect(snapshot.scan(timeout=1.0)) == PAIRS


async def test_a_page_that_does_not_come_raises_and_is_asked_for_again(
    cluster: FakeCluster, snapshot: Snapshot
) -> None:
    cluster.store(1).hang_next(Tikv.KvScan)
    scan = snapshot.scan(timeout=1.0)

    with pytest.raises(DeadlineExceeded, match="scan did not finish within 1 s"):
        await anext(scan)

    assert await collect(scan) == PAIRS


async def test_regions_split_and_merge_while_a_scan_goes_on(
    cluster: FakeCluster, snapshot: Snapshot, mvcc: FakeMvcc
) -> None:
    expected = lock_every_other_key(mvcc)
    changes: Iterator[Callable[[], None]] = iter(
        [
            lambda: cluster.split(b"b"),
            lambda: cluster.split(b"c\0", b"s"),
            lambda: cluster.merge(b"b"),
            lambda: cluster.merge(b"d"),
            lambda: cluster.move_leader(b"h", 2),
            lambda: cluster.split(b"h"),
            lambda: cluster.merge(b"i"),
        ]
    )

    def change() -> None:
        following = next(changes, None)
        if following is not None:
            following()

    for store in cluster.stores.values():
        store.before_next(Tikv.KvScan, change, times=math.inf)
        store.before_next(Tikv.KvBatchGet, change, times=math.inf)

    assert await collect(snapshot.scan(b"a")) == expected
    assert next(changes, None) is None


async def test_closing_ends_it(cluster: FakeCluster, snapshot: Snapshot) -> None:
    async with snapshot.scan() as scan:
        await anext(scan)
        cluster.store(1).hang_next(Tikv.KvScan, times=math.inf)
        for _ in range(2):
            await anext(scan)
        await wait_all_tasks_blocked()

    with pytest.raises(StopAsyncIteration):
        await anext(scan)


async def test_cancelled_it_goes_on_with_the_next_pair(snapshot: Snapshot, mvcc: FakeMvcc) -> None:
    expected = lock_every_other_key(mvcc)
    found: list[tuple[bytes, bytes]] = []
    scan = snapshot.scan(b"a")
    steps = 0

    while len(found) < len(expected):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def cancel(after: int, scope: anyio.CancelScope = scope) -> None:
                    for _ in range(after):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()

                tasks.start_soon(cancel, steps % 40)
                found.append(await anext(scan))
                tasks.cancel_scope.cancel()
        steps += 1

    assert found == expected


async def test_a_closed_client_still_gives_what_it_had(store: TxnStore, snapshot: Snapshot) -> None:
    scan = snapshot.scan()
    first = await anext(scan)
    await store.rpc.__aexit__(None, None, None)

    assert [first, await anext(scan), await anext(scan)] == PAIRS[:3]
    with pytest.raises(ClosedError):
        await anext(scan)

    await store.rpc.__aenter__()
