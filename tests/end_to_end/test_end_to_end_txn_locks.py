"""What transactions leave behind whose client vanished, and how those that come after get past it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import anyio
import attrs
import pytest
from google.protobuf.message import Message
from tikv_embedded import EmbeddedCluster
from tikv_pd import LATEST, PdConfig, Timestamp
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import KeyRange, TxnV1Codec
from tikv_rpc import Attempt, Edge, Effect, Proceed, Request
from tikv_txn import DeadlineExceeded, TransactionClient, TransactionOptions, TxnConfig
from tikv_txn.errors import KeyLocked

TWO_PC = TransactionOptions(async_commit=False, one_pc=False)
ASYNC_COMMIT = TransactionOptions(async_commit=True, one_pc=False)
ONE_PC = TransactionOptions(async_commit=False, one_pc=True)

# Timestamps that tell whether a lock has expired are to be no older than locks live.
PD = PdConfig(low_resolution_interval=0.05)
CONFIG = TxnConfig(lock_ttl=0.3, scan_page=2, pd=PD)
VANISHING = attrs.evolve(CONFIG, close_timeout=0)

KEYS = [b"a", b"b", b"h", b"i", b"q"]
"""The first is the primary key. There are Regions from g and from p on."""
OLD = {key: b"old " + key for key in KEYS[:-1]}
NEW = {key: b"new " + key for key in KEYS[1:]}
"""It deletes the primary key."""

_MESSAGES: dict[Any, Any] = {Tikv.KvPrewrite: kvrpcpb.PrewriteRequest, Tikv.KvCommit: kvrpcpb.CommitRequest}


def keys_of(attempt: Attempt) -> set[bytes]:
    """The keys that an attempt writes; none for others."""
    message = _MESSAGES.get(attempt.request.rpc)
    if message is None:
        return set()
    request = message.FromString(attempt.request.payload)
    return {each.key for each in request.mutations} if attempt.request.rpc is Tikv.KvPrewrite else set(request.keys)


@attrs.frozen
class Point:
    """How far a commit gets."""

    rpc: Any
    """The requests that come to nothing."""
    keys: set[bytes]
    """Those with one of these keys, that is."""
    done: int
    """How many others are answered before the client vanishes."""
    is_sent: bool = False
    """Whether it is only the answer that comes to nothing."""


class Vanishing:
    """Holds requests of a client up at some point, and all of them once it has vanished."""

    name = "vanishing"

    def __init__(self, point: Point) -> None:
        self.reached = anyio.Event()
        self.released = anyio.Event()
        self.has_vanished = False
        self._done = 0
        self._held = 0
        self._point = point

    async def __call__(self, attempt: Attempt, proceed: Proceed) -> Message:
        if self.has_vanished:
            await anyio.sleep_forever()
        if attempt.request.rpc is self._point.rpc and keys_of(attempt) & self._point.keys:
            if self._point.is_sent:
                await proceed()
            self._held += 1
            self._look()
            await self.released.wait()
        response = await proceed()
        self._done += bool(keys_of(attempt))
        self._look()
        return response

    def _look(self) -> None:
        if self._held and self._done >= self._point.done:
            self.reached.set()


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(stores=3) as running:
        codec = TxnV1Codec()
        running.split(codec.encode_region_key(b"g"), codec.encode_region_key(b"p"))
        yield running


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[TransactionClient]:
    """One that all is well with."""
    async with TransactionClient(cluster.url, config=CONFIG) as opened:
        async with opened.begin() as txn:
            txn.put_many(OLD)
        yield opened


@asynccontextmanager
async def committing(
    cluster: EmbeddedCluster,
    options: TransactionOptions,
    point: Point,
    writes: dict[bytes, bytes | None],
    config: TxnConfig = VANISHING,
) -> AsyncIterator[Vanishing]:
    """Have another client commit up to some point; at the end of the block it vanishes."""
    vanishing = Vanishing(point)
    async with TransactionClient(cluster.url, config=config, interceptors=[vanishing]) as opened:
        txn = await opened.begin(options)
        for key, value in writes.items():
            if value is None:
                txn.delete(key)
            else:
                txn.put(key, value)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(txn.commit)
            with anyio.fail_after(10):
                await vanishing.reached.wait()
            yield vanishing
            if not vanishing.released.is_set():
                vanishing.has_vanished = True
                tasks.cancel_scope.cancel()


async def vanish(cluster: EmbeddedCluster, options: TransactionOptions, point: Point) -> None:
    """Have another client commit up to some point, and vanish."""
    async with committing(cluster, options, point, {b"a": None, **NEW}):
        pass


async def locked(client: TransactionClient) -> list[kvrpcpb.LockInfo]:
    """Return all locks there are."""
    opened = client._session.opened
    assert opened is not None
    store, rest, found = opened.store, KeyRange(), []
    plan = store.at_edge_by(store.regions)
    message = kvrpcpb.ScanLockRequest(max_version=(await client.get_ts()).ts)

    def scan(part: KeyRange) -> Request[kvrpcpb.ScanLockResponse]:
        message.start_key, message.end_key = part.start, part.end
        return Request(Tikv.KvScanLock, message, Effect.WRITE)

    while True:
        part, response = await plan.execute(Edge(rest, False, scan), store.rpc.call("scan_lock", 10.0))
        found += response.locks
        if not part.end:
            return found
        rest = KeyRange(part.end)


async def by_gets(client: TransactionClient) -> dict[bytes, bytes]:
    snapshot = client.snapshot()
    values = [(key, await snapshot.get(key)) for key in KEYS]
    return {key: value for key, value in values if value is not None}


async def by_batch_get(client: TransactionClient) -> dict[bytes, bytes]:
    return await client.snapshot().batch_get(KEYS)


async def by_scan(client: TransactionClient) -> dict[bytes, bytes]:
    return dict([pair async for pair in client.snapshot().scan()])


async def by_reverse_scan(client: TransactionClient) -> dict[bytes, bytes]:
    return dict([pair async for pair in client.snapshot().scan(reverse=True)])


async def by_versions(client: TransactionClient) -> dict[bytes, bytes]:
    found = await client.snapshot().batch_get_versioned(KEYS)
    return {key: entry.value for key, entry in found.items()}


async def by_latest_gets(client: TransactionClient) -> dict[bytes, bytes]:
    snapshot = client.snapshot(LATEST)
    values = [(key, await snapshot.get(key)) for key in KEYS]
    return {key: value for key, value in values if value is not None}


async def all_put_away(client: TransactionClient) -> bool:
    """Tell whether reads put away all locks of those who vanished, once their time is over."""
    await anyio.sleep(0.4)
    for _ in range(200):
        await by_batch_get(client)
        if not await locked(client):
            return True
        await anyio.sleep(0.01)
    return False


Read: TypeAlias = Callable[[TransactionClient], Awaitable[dict[bytes, bytes]]]
READS: list[Read] = [
    by_gets,
    by_batch_get,
    by_scan,
    by_reverse_scan,
    by_versions,
    by_latest_gets,
]

REST = {b"h", b"i", b"q"}
POINTS = {
    "2pc, primary key alone": (TWO_PC, Point(Tikv.KvPrewrite, REST, 1), OLD),
    "2pc, no primary key": (TWO_PC, Point(Tikv.KvPrewrite, {b"a"}, 2), OLD),
    "2pc, all locked": (TWO_PC, Point(Tikv.KvCommit, {b"a"}, 3), OLD),
    "2pc, answer lost": (TWO_PC, Point(Tikv.KvCommit, {b"a"}, 3, is_sent=True), NEW),
    "2pc, primary key committed": (TWO_PC, Point(Tikv.KvCommit, REST, 4), NEW),
    "async commit, primary key alone": (ASYNC_COMMIT, Point(Tikv.KvPrewrite, REST, 1), OLD),
    "async commit, no primary key": (ASYNC_COMMIT, Point(Tikv.KvPrewrite, {b"a"}, 2), OLD),
    "async commit, one Region missing": (ASYNC_COMMIT, Point(Tikv.KvPrewrite, {b"h"}, 2), OLD),
    "async commit, all locked": (ASYNC_COMMIT, Point(Tikv.KvCommit, {*KEYS}, 3), NEW),
    "async commit, answer lost": (ASYNC_COMMIT, Point(Tikv.KvPrewrite, {b"h"}, 2, is_sent=True), NEW),
    "async commit, primary key committed": (ASYNC_COMMIT, Point(Tikv.KvCommit, REST, 4), NEW),
}
every_point = pytest.mark.parametrize(("options", "point", "expected"), POINTS.values(), ids=list(POINTS))


@pytest.mark.parametrize("read", READS)
@every_point
async def test_reads_get_past_what_was_left(
    cluster: EmbeddedCluster,
    client: TransactionClient,
    options: TransactionOptions,
    point: Point,
    expected: dict[bytes, bytes],
    read: Read,
) -> None:
    await vanish(cluster, options, point)

    first = await read(client)
    again = await read(client)

    assert first == again == expected


@every_point
async def test_writes_get_past_what_was_left(
    cluster: EmbeddedCluster,
    client: TransactionClient,
    options: TransactionOptions,
    point: Point,
    expected: dict[bytes, bytes],
) -> None:
    await vanish(cluster, options, point)

    async with client.begin(options) as txn:
        txn.put_many(dict.fromkeys(KEYS[::2], b"newest"))

    assert await by_scan(client) == expected | dict.fromkeys(KEYS[::2], b"newest")
    assert await all_put_away(client)


@pytest.mark.parametrize("is_sent", [False, True])
async def test_a_commit_in_one_phase_leaves_nothing(
    cluster: EmbeddedCluster, client: TransactionClient, is_sent: bool
) -> None:
    point = Point(Tikv.KvPrewrite, {b"a"}, 0, is_sent)

    async with committing(cluster, ONE_PC, point, {b"a": b"new", b"b": b"new"}):
        assert await locked(client) == []

    assert await by_scan(client) == (OLD | {b"a": b"new", b"b": b"new"} if is_sent else OLD)


async def test_an_async_commit_that_fell_back(cluster: EmbeddedCluster, client: TransactionClient) -> None:
    # No store can find a commit timestamp within so short a window.
    config = attrs.evolve(VANISHING, async_commit_window=1e-9)
    for point, expected in (
        (Point(Tikv.KvPrewrite, REST, 1), OLD),
        (Point(Tikv.KvCommit, {b"a"}, 3), OLD),
        (Point(Tikv.KvCommit, REST, 4), NEW),
    ):
        async with committing(cluster, ASYNC_COMMIT, point, {b"a": None, **NEW}, config):
            pass

        assert await by_batch_get(client) == expected
        assert await all_put_away(client)


async def test_a_large_transaction_is_put_away_as_a_whole(cluster: EmbeddedCluster, client: TransactionClient) -> None:
    writes: dict[bytes, bytes | None] = {b"k%04d" % number: b"new" for number in range(600)}
    config = attrs.evolve(VANISHING, commit_batch_bytes=1 << 20)
    point = Point(Tikv.KvCommit, {b"k0000"}, 1)
    async with committing(cluster, TWO_PC, point, writes, config):
        pass

    before = len(await locked(client))
    await anyio.sleep(0.4)
    assert await client.snapshot().get(b"k0300") is None
    for _ in range(200):
        if len(await locked(client)) < before:
            break
        await anyio.sleep(0.01)
    after_one = len(await locked(client))
    assert await client.snapshot().batch_get([b"k0001", b"k0599"]) == {}

    assert await all_put_away(client)
    # The primary key and the one that was read.
    assert (before, after_one) == (600, 598)


@pytest.mark.parametrize("options", [TWO_PC, ASYNC_COMMIT])
async def test_who_is_alive_is_not_put_away(
    cluster: EmbeddedCluster, client: TransactionClient, options: TransactionOptions
) -> None:
    config = TxnConfig(lock_ttl=20.0, pd=PD)
    point = Point(Tikv.KvCommit, {b"a"}, 3) if options is TWO_PC else Point(Tikv.KvPrewrite, {b"h"}, 2)

    async with committing(cluster, options, point, {b"a": None, **NEW}, config) as writer:
        if options is TWO_PC:
            # It is pushed ahead of the reads: it will commit after them.
            began = anyio.current_time()
            assert await by_scan(client) == await by_batch_get(client) == OLD
            assert anyio.current_time() - began < 1
        else:
            with pytest.raises(DeadlineExceeded) as caught:
                await client.snapshot().get(b"b", timeout=0.3)
            assert isinstance(caught.value.__cause__, KeyLocked)
        snapshot = client.snapshot(await client.get_ts()) if options is TWO_PC else None
        if snapshot is not None:
            assert await snapshot.batch_get(KEYS) == OLD
        writer.released.set()

    assert await by_scan(client) == NEW
    if snapshot is not None:
        again = client.snapshot(await snapshot.get_ts())
        assert await again.batch_get(KEYS) == OLD
    assert await all_put_away(client)


async def look(cluster: EmbeddedCluster, read: Read, found: list[dict[bytes, bytes]]) -> None:
    """Read by another client."""
    async with TransactionClient(cluster.url, config=CONFIG) as other:
        found.append(await read(other))


@every_point
async def test_everybody_agrees_on_what_became_of_it(
    cluster: EmbeddedCluster,
    client: TransactionClient,
    shaken: Any,
    options: TransactionOptions,
    point: Point,
    expected: dict[bytes, bytes],
) -> None:
    """Many clients meet it at once, while Regions move."""
    found: list[dict[bytes, bytes]] = []
    await vanish(cluster, options, point)

    async with (
        shaken(cluster, [TxnV1Codec().encode_region_key(key) for key in KEYS], len(str(point))),
        anyio.create_task_group() as tasks,
    ):
        for read in READS:
            tasks.start_soon(look, cluster, read, found)

    assert found == [expected] * len(READS)
    assert await all_put_away(client)


async def test_a_snapshot_of_the_past_sees_what_was_committed_then(
    cluster: EmbeddedCluster, client: TransactionClient
) -> None:
    before = await client.get_ts()
    await vanish(cluster, *POINTS["async commit, all locked"][:2])

    after = await client.get_ts()

    assert await client.snapshot(before).batch_get(KEYS) == OLD
    assert await client.snapshot(after).batch_get(KEYS) == NEW
    assert await client.snapshot(Timestamp(before.physical, before.logical)).get(b"q") is None
