"""The raw client against the embedded cluster, over real gRPC on loopback."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_embedded.errors import TopologyError

Shake = Callable[..., AbstractAsyncContextManager["Shaker"]]


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
