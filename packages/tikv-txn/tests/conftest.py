from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from tikv_pd.testing import virtual_time
from tikv_region import TxnV1Codec
from tikv_rpc.frontend.session import Endpoint, connect
from tikv_rpc.testing import FakeCluster
from tikv_txn._store import TxnStore
from tikv_txn.config import TxnConfig
from tikv_txn.testing import FakeMvcc


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Time jumps: a wait of seconds takes none."""
    return virtual_time()


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """Three stores; Regions split at b"g" and b"p", all led from store 1. What it answers is scripted."""
    async with FakeCluster([b"g", b"p"], codec=TxnV1Codec()) as running:
        yield running


@pytest.fixture
def config() -> TxnConfig:
    """Limits of `store`."""
    return TxnConfig()


@asynccontextmanager
async def open_store(cluster: FakeCluster, config: TxnConfig) -> AsyncIterator[TxnStore]:
    """Connect to a cluster as a client of transactions does."""
    endpoint = Endpoint((*cluster.pd.members,), None, None, (), (), cluster.transport)
    async with AsyncExitStack() as stack:
        connection = await connect(stack, endpoint, b"x", config.pd, config.region, config.rpc)
        yield TxnStore(connection.rpc, connection.pd, connection.codec, config)


@pytest.fixture
async def store(cluster: FakeCluster, config: TxnConfig) -> AsyncIterator[TxnStore]:
    """What the parts of a client work with."""
    async with open_store(cluster, config) as opened:
        yield opened


@pytest.fixture
def mvcc(cluster: FakeCluster) -> FakeMvcc:
    """What the cluster holds."""
    return FakeMvcc(cluster)


@pytest.fixture
def open_cluster() -> Callable[[FakeCluster, TxnConfig], AbstractAsyncContextManager[TxnStore]]:
    """Connects to a cluster as `store` is connected."""
    return open_store
