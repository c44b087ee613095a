from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tikv_pd.testing import virtual_time
from tikv_raw import RawClient, RawConfig
from tikv_rpc.testing import FakeCluster


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Time jumps: a wait of seconds takes none."""
    return virtual_time()


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """Three stores; Regions split at b"g" and b"p", all led from store 1."""
    async with FakeCluster([b"g", b"p"]) as running:
        yield running


@pytest.fixture
async def client(cluster: FakeCluster) -> AsyncIterator[RawClient]:
    """A client that takes small steps."""
    config = RawConfig(scan_page=2, batch_keys=3)
    async with RawClient(cluster.url, api_version="v1ttl", config=config, transport=cluster.transport) as opened:
        yield opened
