"""The raw client against the embedded cluster, over real gRPC on loopback."""

from __future__ import annotations

import gc
import logging
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_embedded.errors import TopologyError
from tikv_pd import PdClient
from tikv_pd.grpc_transport import GrpcTransport
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import PlainCodec, RegionCache, RegionEntry
from tikv_rpc import (
    AtKey,
    Effect,
    Request,
    RequestOptions,
    RetryRegion,
    RpcClient,
    RpcConfig,
    Settle,
    dispatch,
)

PLAIN = RequestOptions()
Shake = Callable[..., AbstractAsyncContextManager["Shaker"]]


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Ctrl-C raises KeyboardInterrupt, also where whoever started the tests has it ignored, as shells do behind `&`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def anyio_backend() -> str:
    """Both sides are grpc.aio's, which knows asyncio alone."""
    return "asyncio"


class Shaker:
    """Changes the Regions of a cluster at random: splits, merges, moves leaders, adds and removes peers.

    Args:
        cluster: What to change.
        keys: Where it may split.
        seed: Makes a run repeatable.
    """

    def __init__(self, cluster: EmbeddedCluster, keys: Sequence[bytes], seed: int) -> None:
        self.changes = 0
        """How many changes there were."""
        self._cluster = cluster
        self._keys = keys
        self._random = random.Random(seed)

    async def run(self) -> None:
        while True:
            self.step()
            await anyio.sleep(self._random.random() * 0.004)

    def step(self) -> None:
        """Make one change; one that the cluster cannot make now is left out."""
        change = self._random.choice(
            [self._split, self._split, self._merge, self._transfer, self._transfer, self._add_peer, self._remove_peer]
        )
        try:
            change()
        except TopologyError:
            return
        self.changes += 1

    def _split(self) -> None:
        self._cluster.split(self._random.choice(self._keys))

    def _merge(self) -> None:
        regions = self._cluster.regions()
        if len(regions) < 2:
            return
        left = self._random.randrange(len(regions) - 1)
        source, target = self._random.sample(regions[left : left + 2], 2)
        wanted, present = ({peer.store_id for peer in region.peers} for region in (target, source))
        for store_id in wanted - present:
            self._cluster.add_peer(source.id, store_id)
        for store_id in present - wanted:
            self._cluster.remove_peer(source.id, store_id)
        self._cluster.merge(source.id, target.id)

    def _transfer(self) -> None:
        region = self._random.choice(self._cluster.regions())
        self._cluster.transfer_leader(region.id, self._random.choice(region.peers).store_id)

    def _add_peer(self) -> None:
        region = self._random.choice(self._cluster.regions())
        store = self._random.choice(self._cluster.stores())
        self._cluster.add_peer(region.id, store.id, is_learner=self._random.random() < 0.3)

    def _remove_peer(self) -> None:
        region = self._random.choice(self._cluster.regions())
        if len(region.peers) > 1:
            self._cluster.remove_peer(region.id, self._random.choice(region.peers).store_id)


@pytest.fixture
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Asyncio tells of lost tasks and exceptions in its log alone."""
    yield
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.fixture
def shaken() -> Shake:
    """Make a context in which a cluster's Regions keep changing: `async with shaken(cluster, keys, seed)`."""

    @asynccontextmanager
    async def shaking(cluster: EmbeddedCluster, keys: Sequence[bytes], seed: int = 1) -> AsyncIterator[Shaker]:
        shaker = Shaker(cluster, keys, seed)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shaker.run)
            yield shaker
            tasks.cancel_scope.cancel()

    return shaking


class Engine:
    """Raw requests through the engine itself, with options that the raw client does not have.

    Args:
        rpc: Over real gRPC.
    """

    def __init__(self, rpc: RpcClient) -> None:
        self.rpc = rpc
        self._plan: AtKey[Any] = AtKey(RetryRegion(dispatch(rpc), rpc), rpc.cache)

    async def get(self, key: bytes, options: RequestOptions = PLAIN, *, timeout: float = 10) -> bytes | None:
        request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=key), Effect.READ)
        response = await self._plan.execute((key, request), self.rpc.call("get", timeout, options))
        return None if response.not_found else bytes(response.value)

    async def get_at(self, key: bytes, version: int, options: RequestOptions) -> bytes:
        """Read at a timestamp, as transactions do."""
        request = Request(Tikv.KvGet, kvrpcpb.GetRequest(key=key, version=version), Effect.READ)
        response = await self._plan.execute((key, request), self.rpc.call("get", 10, options))
        return bytes(response.value)

    async def put(self, key: bytes, value: bytes, *, effect: Effect = Effect.WRITE, timeout: float = 10) -> None:
        request = Request(Tikv.RawPut, kvrpcpb.RawPutRequest(key=key, value=value), effect)
        await Settle(self._plan).execute((key, request), self.rpc.call("put", timeout))

    def known(self, key: bytes) -> RegionEntry:
        """Return the Region of a key as this client knows it."""
        entry = self.rpc.cache.find(key)
        assert entry is not None
        return entry


@asynccontextmanager
async def open_engine(cluster: EmbeddedCluster, config: RpcConfig | None = None) -> AsyncIterator[Engine]:
    config = config if config is not None else RpcConfig()
    transport, codec = GrpcTransport(config=config.channel), PlainCodec()
    async with PdClient(cluster.url) as pd:
        cache = RegionCache(pd, codec, now=transport.now)
        async with RpcClient(cache, codec, pd.cluster_id, transport, config) as rpc:
            yield Engine(rpc)


@pytest.fixture
def engine_on() -> Callable[..., AbstractAsyncContextManager[Engine]]:
    """Open the engine on a cluster: `async with engine_on(cluster, config) as engine`."""
    return open_engine
