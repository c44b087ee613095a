"""RawClient keeps what it knows of the cluster up to date while nobody asks."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from tikv_pd.testing import virtual_time
from tikv_raw import RawClient
from tikv_rpc.testing import FakeCluster


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


async def test_a_store_that_moved_is_found_without_asking_its_old_address() -> None:
    async with FakeCluster() as cluster, RawClient(cluster.url, transport=cluster.transport) as client:
        await client.put(b"k", b"1")
        cluster.move_store(1, "moved:20160")

        await anyio.sleep(11)
        started = anyio.current_time()

        assert await client.get(b"k") == b"1"
        assert anyio.current_time() == started
