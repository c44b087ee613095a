"""Queries of Regions fail at once while PD has no time for them. Each attempt counts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import attrs
import pytest
from tikv_pd import BreakerConfig, CircuitOpen, ClosedError, DeadlineExceeded, PdClient, PdConfig
from tikv_pd.testing import FakePd
from tikv_proto.services import PD

BREAKER = BreakerConfig(threshold=50, window=1, min_rate=1, cooldown=5)
PATIENT = BreakerConfig(threshold=50, window=20, min_rate=0.2, cooldown=5)
"""Four attempts in its window are enough."""
Ask = Callable[[PdClient], Awaitable[object]]


async def by_stream(client: PdClient) -> None:
    await client.get_region(b"k", timeout=19)


async def by_scan(client: PdClient) -> None:
    await client.scan_regions(b"", timeout=19)


async def of_follower(client: PdClient) -> None:
    await client.get_region(b"k", allow_follower=True, timeout=19)


@pytest.fixture
async def client(pd: FakePd) -> AsyncIterator[PdClient]:
    async with PdClient("pd1:2379", config=PdConfig(region_breaker=BREAKER), transport=pd.transport) as client:
        yield client


async def is_open(client: PdClient) -> bool:
    try:
        await client.scan_regions(b"", timeout=0.1)
    except CircuitOpen:
        return True
    except DeadlineExceeded:
        pass
    return False


async def fail(client: PdClient, pd: FakePd) -> None:
    """Let attempts fail for a second."""
    pd.hang(PD.BatchScanRegions)
    for _ in range(4):
        with pytest.raises(DeadlineExceeded):
            await client.scan_regions(b"", timeout=0.3)


async def test_queries_of_regions_fail_at_once_while_pd_is_overloaded(client: PdClient, pd: FakePd) -> None:
    pd.hang(PD.QueryRegion)
    pd.hang(PD.BatchScanRegions)

    with pytest.raises(DeadlineExceeded):
        await client.get_region(b"k", timeout=0.9)
    with pytest.raises(DeadlineExceeded):
        await client.scan_regions(b"", timeout=0.2)
    started = anyio.current_time()
    with pytest.raises(CircuitOpen, match="get_region "):
        await client.get_region(b"k")
    with pytest.raises(CircuitOpen, match="scan_regions "):
        await client.scan_regions(b"")
    assert anyio.current_time() == started
    assert (await client.get_ts()).logical == 1
    pd.heal()
    await anyio.sleep(5)

    assert await client.get_region(b"k") is not None
    assert len(await client.scan_regions(b"")) == 3


@pytest.mark.parametrize("ask", [by_stream, by_scan, of_follower])
async def test_each_attempt_of_one_query_counts(pd: FakePd, ask: Ask) -> None:
    for rpc in (PD.QueryRegion, PD.GetRegion, PD.BatchScanRegions):
        pd.hang(rpc)
    config = PdConfig(region_breaker=PATIENT, timeout=1)

    async with PdClient("pd1:2379", config=config, transport=pd.transport) as client:
        with pytest.raises(DeadlineExceeded):
            await ask(client)
        await anyio.sleep(2)

        assert await is_open(client)


@pytest.mark.parametrize("ask", [by_stream, by_scan])
@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
async def test_a_query_under_way_ends_when_the_breaker_opens(pd: FakePd, ask: Ask, code: str) -> None:
    for rpc in (PD.QueryRegion, PD.BatchScanRegions):
        pd.refuse(rpc, code)
    config = PdConfig(region_breaker=attrs.evolve(PATIENT, window=5), timeout=1)

    async with PdClient("pd1:2379", config=config, transport=pd.transport) as client:
        with pytest.raises(CircuitOpen):
            await ask(client)


async def test_a_server_that_fails_otherwise_is_not_overloaded(pd: FakePd) -> None:
    pd.refuse(PD.BatchScanRegions, "UNKNOWN")
    config = PdConfig(region_breaker=attrs.evolve(PATIENT, window=5), timeout=1)

    async with PdClient("pd1:2379", config=config, transport=pd.transport) as client:
        with pytest.raises(DeadlineExceeded):
            await by_scan(client)


async def test_other_requests_neither_count_nor_fail(client: PdClient, pd: FakePd) -> None:
    pd.hang(PD.GetStore)
    for _ in range(4):
        with pytest.raises(DeadlineExceeded):
            await client.get_store(1, timeout=0.3)
    assert not await is_open(client)
    await fail(client, pd)
    assert await is_open(client)

    assert await client.get_stores()


async def test_another_setting_counts_without_a_restart(client: PdClient, pd: FakePd) -> None:
    client.change_region_breaker(attrs.evolve(BREAKER, min_rate=100))
    await fail(client, pd)
    assert not await is_open(client)

    client.change_region_breaker(BREAKER)

    with pytest.raises(CircuitOpen):
        await fail(client, pd)


async def test_a_breaker_that_is_open_can_be_taken_out_and_put_in_again(client: PdClient, pd: FakePd) -> None:
    await fail(client, pd)
    assert await is_open(client)

    client.change_region_breaker(None)
    pd.heal()
    assert await client.scan_regions(b"")
    client.change_region_breaker(BREAKER)
    assert await client.scan_regions(b"")
    await anyio.sleep(1)
    await fail(client, pd)

    assert await is_open(client)


async def test_what_is_no_setting_is_refused(client: PdClient) -> None:
    with pytest.raises(TypeError):
        client.change_region_breaker(50)  # type: ignore[arg-type]


async def test_a_client_that_is_not_open_has_no_breaker() -> None:
    with pytest.raises(ClosedError):
        PdClient("pd1:2379").change_region_breaker(BREAKER)
