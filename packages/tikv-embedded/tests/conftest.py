from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tikv_embedded import EmbeddedCluster
from tikv_embedded.testing import BareClient


@pytest.fixture
def anyio_backend() -> str:
    """The servers are grpc.aio's, which knows asyncio alone."""
    return "asyncio"


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    """Three stores in memory, one Region over everything, led from the first store."""
    async with EmbeddedCluster() as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[BareClient]:
    async with BareClient() as bare:
        yield bare
