"""Scan: pages ahead, limits, errors, cancellation, closing."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked
from tikv_pd import Keyspace
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_raw import ClosedError, CodecError, DeadlineExceeded, RawClient, RawConfig, RawError, Scan
from tikv_region import KeyspaceCodec
from tikv_rpc.testing import FakeCluster

PAIRS = {b"%02d" % number: b"value %d" % number for number in range(20)}


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """Regions split at b"05" and b"12"."""
    async with FakeCluster([b"05", b"12"]) as running:
        for key, value in PAIRS.items():
            running.raw.put(key, value)
        yield running


@pytest.fixture
async def client(cluster: FakeCluster) -> AsyncIterator[RawClient]:
    async with RawClient(cluster.url, config=RawConfig(scan_page=3), transport=cluster.transport) as opened:
        yield opened


def pages(cluster: FakeCluster) -> list[tuple[bytes, int]]:
    """Where each page asked for began, and how many pairs it was to have."""
    return [(request.start_key, request.limit) for request in cluster.requests(Tikv.RawScan)]


async def collect(scan: Scan) -> list[tuple[bytes, bytes]]:
    return [pair async for pair in scan]


async def test_nothing_is_asked_for_before_the_first_pair(cluster: FakeCluster, client: RawClient) -> None:
    client.scan()
    await wait_all_tasks_blocked()

    assert pages(cluster) == []


async def test_one_page_is_fetched_ahead_and_no_more(cluster: FakeCluster, client: RawClient) -> None:
    scan = client.scan()
    asked = []

    for _ in range(6):
        await anext(scan)
        await wait_all_tasks_blocked()
        asked.append(len(pages(cluster)))

    # The first Region has five keys: its second page is known to be its last.
    assert asked == [2, 2, 2, 3, 3, 4]
    assert pages(cluster) == [(b"", 3), (b"02\0", 3), (b"05", 3), (b"07\0", 3)]


async def test_the_next_page_is_asked_for_before_the_pairs_at_hand_are_consumed(client: RawClient) -> None:
    async for _ in client.scan():
        # Whoever consumes what is at hand lets no other task run.
        assert sum(store.batch.requests for store in client.stats().stores.values()) == 2
        break


@pytest.mark.parametrize("turns", range(30))
async def test_a_scan_cancelled_at_any_moment_of_a_turn_of_pages_goes_on_with_the_next_pair(
    client: RawClient, turns: int
) -> None:
    scan = client.scan()
    found = [await anext(scan) for _ in range(3)]

    async def go_on() -> None:
        found.append(await anext(scan))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(go_on)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    found += await collect(scan)

    assert found == list(PAIRS.items())


async def test_a_scan_goes_on_at_the_border_of_a_region(cluster: FakeCluster, client: RawClient) -> None:
    assert await collect(client.scan()) == list(PAIRS.items())
    forward = [start for start, _ in pages(cluster)]
    cluster.log.clear()

    assert await collect(client.scan(reverse=True)) == list(PAIRS.items())[::-1]

    assert forward == [b"", b"02\0", b"05", b"07\0", b"10\0", b"12", b"14\0", b"17\0"]
    assert [start for start, _ in pages(cluster)] == [b"", b"17", b"14", b"12", b"09", b"06", b"05", b"02"]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 6, 19, 20, 21])
async def test_a_limit_is_never_asked_beyond(
    cluster: FakeCluster, client: RawClient, limit: int, reverse: bool
) -> None:
    expected = sorted(PAIRS.items(), reverse=reverse)[:limit]

    assert await collect(client.scan(limit=limit, reverse=reverse)) == expected
    await wait_all_tasks_blocked()

    asked = pages(cluster)
    assert sum(size for _, size in asked) >= limit or limit > len(PAIRS)
    assert all(size <= 3 for _, size in asked)
    if limit <= 3:
        assert len(asked) == min(limit, 1)


async def test_an_empty_range_asks_nobody(cluster: FakeCluster, client: RawClient) -> None:
    assert await collect(client.scan(b"10", b"10")) == []
    assert await collect(client.scan(b"11", b"10", reverse=True)) == []
    assert await collect(client.scan(limit=0)) == []

    assert pages(cluster) == []


async def test_iterating_beyond_the_end_stays_at_the_end(client: RawClient) -> None:
    scan = client.scan(limit=1)
    await anext(scan)

    for _ in range(3):
        with pytest.raises(StopAsyncIteration):
            await anext(scan)


async def test_regions_without_a_key_of_the_range_are_passed_over(client: RawClient) -> None:
    await client.batch_delete(list(PAIRS)[3:15])

    assert [key for key, _ in await collect(client.scan())] == [b"00", b"01", b"02", b"15", b"16", b"17", b"18", b"19"]
    assert [key for key, _ in await collect(client.scan(limit=4, reverse=True))] == [b"19", b"18", b"17", b"16"]


# --- time -------------------------------------------------------------------------------------------------------------


async def test_the_timeout_is_that_of_a_page(cluster: FakeCluster, client: RawClient) -> None:
    cluster.store(1).delay_next(Tikv.RawScan, 0.9, times=math.inf)

    assert await collect(client.scan(timeout=1.0)) == list(PAIRS.items())


async def test_a_page_that_does_not_come_raises_and_is_asked_for_again(cluster: FakeCluster, client: RawClient) -> None:
    cluster.store(1).hang_next(Tikv.RawScan)
    scan = client.scan(timeout=1.0)

    with pytest.raises(DeadlineExceeded, match="scan did not finish within 1 s"):
        await anext(scan)

    assert await collect(scan) == list(PAIRS.items())


async def test_the_consumer_may_take_its_time(cluster: FakeCluster, client: RawClient) -> None:
    cluster.store(1).delay_next(Tikv.RawScan, 0.5, times=math.inf)
    found = []

    async for pair in client.scan(timeout=1.0):
        found.append(pair)
        await anyio.sleep(100)

    assert found == list(PAIRS.items())


async def test_a_page_is_fetched_while_the_one_before_is_consumed(cluster: FakeCluster, client: RawClient) -> None:
    cluster.store(1).delay_next(Tikv.RawScan, 1.0, times=math.inf)
    started = anyio.current_time()

    async for _ in client.scan(b"12"):
        await anyio.sleep(1.0)

    # Eight pairs of a second each in three pages; only the first page is waited for.
    assert anyio.current_time() == started + 9.0


# --- errors -----------------------------------------------------------------------------------------------------------


async def test_an_error_of_a_page_ahead_is_raised_when_it_is_reached(cluster: FakeCluster, client: RawClient) -> None:
    scan = client.scan(timeout=1.0)
    found = [await anext(scan)]
    await wait_all_tasks_blocked()  # The second page is there.
    cluster.store(1).hang_next(Tikv.RawScan)
    found += [await anext(scan) for _ in range(3)]
    await anyio.sleep(5)

    found.append(await anext(scan))
    with pytest.raises(DeadlineExceeded):
        await anext(scan)
    found += await collect(scan)

    assert found == list(PAIRS.items())


async def test_a_refusal_is_raised_and_asking_again_helps_if_it_has_passed(
    cluster: FakeCluster, client: RawClient
) -> None:
    refusal = kvrpcpb.RawScanResponse(kvs=[kvrpcpb.KvPair(error=kvrpcpb.KeyError(abort="not now"))])
    cluster.store(1).answer_next(Tikv.RawScan, refusal)
    scan = client.scan()

    with pytest.raises(RawError, match="the store refused scan: not now"):
        await anext(scan)

    assert await collect(scan) == list(PAIRS.items())


async def test_an_answer_that_makes_no_sense_concerns_the_scan_alone() -> None:
    codec = KeyspaceCodec(b"r", 0, "DEFAULT")
    async with FakeCluster(codec=codec) as cluster:
        cluster.pd.keyspaces["DEFAULT"] = Keyspace(0, "DEFAULT", "ENABLED")
        for key, value in PAIRS.items():
            cluster.raw.put(codec.encode_key(key), value)
        config = RawConfig(scan_page=3)
        async with RawClient(cluster.url, api_version="v2", config=config, transport=cluster.transport) as client:
            scan = client.scan()
            stray = kvrpcpb.RawScanResponse(kvs=[kvrpcpb.KvPair(key=b"x\0\0\0k")])
            cluster.store(1).before_next(Tikv.RawScan, lambda: cluster.store(1).answer_next(Tikv.RawScan, stray))

            found = [await anext(scan) for _ in range(3)]
            with pytest.raises(CodecError):
                await anext(scan)
            found += await collect(scan)

            assert found == list(PAIRS.items())
            assert await client.get(b"07") == PAIRS[b"07"]


# --- cancellation and closing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", range(8))
async def test_a_cancelled_wait_loses_no_pair_and_doubles_none(
    cluster: FakeCluster, client: RawClient, taken: int
) -> None:
    cluster.store(1).delay_next(Tikv.RawScan, 4.0, times=math.inf)
    scan = client.scan()
    found = [await anext(scan) for _ in range(taken)]
    cancelled = 0

    while len(found) < len(PAIRS):
        with anyio.move_on_after(3.0) as scope:
            found.append(await anext(scan))
        cancelled += scope.cancelled_caught
        if cancelled > 3:
            cluster.store(1).heal()

    assert found == list(PAIRS.items())
    assert cancelled
    assert await collect(scan) == []


@pytest.mark.parametrize("steps", range(30))
async def test_a_scan_cancelled_at_any_step_goes_on_where_it_was(client: RawClient, steps: int) -> None:
    scan = client.scan()
    found = []

    async def take_all(scope: anyio.CancelScope) -> None:
        with scope, suppress(StopAsyncIteration):
            while True:
                found.append(await anext(scan))

    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()
        tasks.start_soon(take_all, scope)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    assert found + await collect(scan) == list(PAIRS.items())


async def test_a_closed_scan_is_at_its_end_and_fetches_no_more(cluster: FakeCluster, client: RawClient) -> None:
    scan = client.scan()
    await anext(scan)
    await wait_all_tasks_blocked()
    asked = len(pages(cluster))

    await scan.aclose()
    await scan.aclose()

    assert await collect(scan) == []
    assert len(pages(cluster)) == asked


async def test_closing_ends_the_page_on_its_way(cluster: FakeCluster, client: RawClient) -> None:
    async with client.scan() as scan:
        await anext(scan)
        await wait_all_tasks_blocked()
        cluster.store(1).hang_next(Tikv.RawScan)
        for _ in range(3):
            await anext(scan)
        await wait_all_tasks_blocked()
        under_way = in_flight(client)

    await wait_all_tasks_blocked()

    assert under_way == 1
    assert in_flight(client) == 0


def in_flight(client: RawClient) -> int:
    return client.stats().in_flight


@pytest.mark.parametrize("ahead", [False, True])
async def test_closing_ends_the_wait_of_another_task(cluster: FakeCluster, client: RawClient, ahead: bool) -> None:
    scan = client.scan()
    found = []
    if ahead:
        found.append(await anext(scan))
        await wait_all_tasks_blocked()
    cluster.store(1).delay_next(Tikv.RawScan, 5.0, times=math.inf)

    async def take_all() -> None:
        found.extend(await collect(scan))

    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_all)
        await anyio.sleep(1.0)
        await scan.aclose()

    assert anyio.current_time() - began == pytest.approx(1.0)
    assert found == list(PAIRS.items())[: 5 if ahead else 0]


@pytest.mark.parametrize("waits", [False, True])
async def test_a_scan_of_a_closed_client_says_so(cluster: FakeCluster, waits: bool) -> None:
    outcomes: list[Any] = []

    async def take_all(scan: Scan) -> None:
        try:
            while True:
                outcomes.append(await anext(scan))
        except ClosedError as error:
            outcomes.append(str(error))

    async with anyio.create_task_group() as tasks:
        config = RawConfig(scan_page=3)
        async with RawClient(cluster.url, config=config, transport=cluster.transport) as client:
            scan = client.scan()
            outcomes.append(await anext(scan))
            await wait_all_tasks_blocked()
            if waits:
                cluster.store(1).hang_next(Tikv.RawScan)
                tasks.start_soon(take_all, scan)
                await wait_all_tasks_blocked()
        if not waits:
            await take_all(scan)

    fetched = 5 if waits else 3
    assert outcomes[:fetched] == list(PAIRS.items())[:fetched]
    assert len(outcomes) == fetched + 1
    assert "is not open; use it inside `async with`" in outcomes[-1]


async def test_tasks_that_share_a_scan_get_each_pair_once(client: RawClient) -> None:
    found: list[tuple[bytes, bytes]] = []
    scan = client.scan()

    async def take() -> None:
        async for pair in scan:
            found.append(pair)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        for _ in range(7):
            tasks.start_soon(take)

    assert sorted(found) == list(PAIRS.items())


# --- how much is asked for --------------------------------------------------------------------------------------------


async def test_the_first_page_is_small_whatever_scans_before_have_seen(cluster: FakeCluster) -> None:
    for number in range(2000):
        cluster.raw.put(b"k%04d" % number, b"v")
    async with RawClient(cluster.url, transport=cluster.transport) as client:
        for _ in range(3):
            cluster.log.clear()
            found = await collect(client.scan(b"k", b"l"))

    assert len(found) == 2000
    assert [limit for _, limit in pages(cluster)][:3] == [256, 1024, 1024]


async def test_after_a_page_that_took_too_long_less_is_asked_for(cluster: FakeCluster) -> None:
    for number in range(300):
        cluster.raw.put(b"k%04d" % number, b"v")

    async def take_long(request: kvrpcpb.RawScanRequest, serve: Callable[[], Any]) -> Any:
        await anyio.sleep(0.01 * request.limit)
        return await serve()

    async with RawClient(cluster.url, transport=cluster.transport) as client:
        await collect(client.scan(b"k", b"l"))
        cluster.store(1).script(Tikv.RawScan, take_long, times=math.inf)
        cluster.log.clear()
        async with client.scan(b"k", b"l", timeout=0.5) as scan:
            for _ in range(2):
                with pytest.raises(DeadlineExceeded):
                    await anext(scan)

            assert await anext(scan) == (b"k0000", b"v")

    assert list(dict.fromkeys(limit for _, limit in pages(cluster)))[:3] == [256, 64, 16]
