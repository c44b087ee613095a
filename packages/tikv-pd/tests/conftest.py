from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from tikv_pd import Peer, Region, RegionEpoch, Store
from tikv_pd.testing import FakePd, MemoryTransport, virtual_time


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


@pytest.fixture
async def network() -> AsyncIterator[MemoryTransport]:
    async with MemoryTransport() as transport:
        yield transport


@pytest.fixture
def pd(network: MemoryTransport) -> FakePd:
    """Three members, pd1 leads; Regions 2, 3 and 4, split at b"g" and b"p"; stores 1 and 2, of which 2 is gone."""
    fake = FakePd(network, members=("pd1:2379", "pd2:2379", "pd3:2379"))
    bounds = [b"", b"g", b"p", b""]
    for number, (start, end) in enumerate(pairwise(bounds), start=2):
        peer = Peer(number * 10, 1)
        fake.regions.append(Region(number, start, end, RegionEpoch(1, 1), (peer, Peer(number * 10 + 1, 2)), peer))
    fake.stores = {1: Store(1, "tikv1:20160", (("zone", "a"),)), 2: Store(2, "tikv2:20160", is_tombstone=True)}
    return fake
