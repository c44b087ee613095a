from __future__ import annotations

import anyio
import pytest
from tikv_pd import BreakerConfig, CircuitOpen, DeadlineExceeded, PdClient, PdConfig
from tikv_pd.testing import FakePd
from tikv_proto.services import PD


async def test_queries_of_regions_fail_at_once_while_pd_is_overloaded(pd: FakePd) -> None:
    config = PdConfig(region_breaker=BreakerConfig(threshold=50, window=1, min_rate=1, cooldown=5))
    pd.hang(PD.QueryRegion)
    pd.hang(PD.BatchScanRegions)

    async with PdClient("pd1:2379", config=config, transport=pd.transport) as client:
        with pytest.raises(DeadlineExceeded):
            await client.get_region(b"k", timeout=0.9)
        with pytest.raises(DeadlineExceeded):
            await client.scan_regions(b"", timeout=0.2)
        started = anyio.current_time()
        with pytest.raises(CircuitOpen):
            await client.get_region(b"k")
        with pytest.raises(CircuitOpen):
            await client.scan_regions(b"")
        assert anyio.current_time() == started
        assert (await client.get_ts()).logical == 1
        pd.heal()
        await anyio.sleep(5)

        assert await client.get_region(b"k") is not None
        assert len(await client.scan_regions(b"")) == 3
