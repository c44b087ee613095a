"""What goes wrong on an embedded cluster: Regions change, stores die, answers get lost; all of it by a seed."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
from tikv_embedded import EmbeddedCluster
from tikv_embedded.errors import TopologyError
from tikv_embedded.testing import BareClient, context_for
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import TxnV1Codec
from tikv_txn import TransactionClient

_WRITES = ("KvPrewrite", "KvCommit", "KvBatchRollback", "KvResolveLock")
_QUESTIONS = ("KvCheckTxnStatus", "KvCheckSecondaryLocks", "KvTxnHeartBeat")


class Turmoil:
    """Disturbs a cluster until it is told to stop.

    Args:
        cluster: Which.
        keys: Where Regions may split.
        seed: Of all that happens.
    """

    def __init__(self, cluster: EmbeddedCluster, keys: Sequence[bytes], seed: int) -> None:
        self.changes = 0
        """How often a Region has changed."""
        self.restarts = 0
        """How often a store was killed and started again."""
        self._cluster = cluster
        self._keys = [TxnV1Codec().encode_region_key(key) for key in keys]
        self._random = random.Random(seed)

    def lose_answers(self) -> None:
        """Let requests and answers get lost, be late, and come twice, from now on."""
        on = self._cluster.faults.on
        self._cluster.faults.seed(self._random.randrange(1 << 30))
        on(*_WRITES, *_QUESTIONS, chance=0.004).lose_answer()
        on(*_WRITES, *_QUESTIONS, chance=0.004).lose_request()
        on(*_WRITES, chance=0.02).duplicate()
        on(*_WRITES, *_QUESTIONS, chance=0.02).delay(0.05)
        on(*_WRITES, chance=0.02).delay_answer(0.05)
        on(*_WRITES, chance=0.004).delay(0.7)

    async def move_regions(self, seconds: float = 0.01) -> None:
        """Split, merge and move Regions for good, about so often."""
        while True:
            with suppress(TopologyError):
                self._random.choice([self._split, self._split, self._merge, self._transfer, self._transfer])()
                self.changes += 1
            await anyio.sleep(self._random.random() * 2 * seconds)

    async def kill_stores(self, seconds: float = 0.5) -> None:
        """Kill one store after the other, about so often, and start it again."""
        while True:
            await anyio.sleep(self._random.random() * 2 * seconds)
            store = self._random.choice(self._cluster.stores()).id
            await self._cluster.stop_store(store, elect=self._random.random() < 0.8)
            await anyio.sleep(self._random.random() * seconds / 2)
            await self._cluster.start_store(store)
            self.restarts += 1

    async def cut_streams(self, seconds: float = 0.2) -> None:
        """Cut the streams of one store after the other, about so often: the answers under way are lost."""
        while True:
            await anyio.sleep(self._random.random() * 2 * seconds)
            self._cluster.faults.cut_streams(self._random.choice(self._cluster.stores()).id)

    async def move_pd(self, seconds: float = 0.4) -> None:
        """Let one member of PD after the other lead, about so often."""
        while True:
            await anyio.sleep(self._random.random() * 2 * seconds)
            self._cluster.transfer_pd_leader(self._random.randrange(len(self._cluster.pd_addresses)))

    async def break_network(self, seconds: float = 0.3) -> None:
        """Cut or freeze the connections of one port after the other, about so often."""
        network = self._cluster.network
        while True:
            await anyio.sleep(self._random.random() * 2 * seconds)
            ports = [*self._cluster.store_addresses.values(), *self._cluster.pd_addresses]
            address = self._random.choice(ports)
            if self._random.random() < 0.5:
                network.reset(address)
                continue
            network.partition(address)
            try:
                await anyio.sleep(self._random.random() * 2 * seconds)
            finally:
                network.heal(address)

    def _split(self) -> None:
        if len(self._cluster.regions()) < 12:
            self._cluster.split(self._random.choice(self._keys))

    def _merge(self) -> None:
        regions = self._cluster.regions()
        left = self._random.randrange(len(regions))
        if left + 1 < len(regions):
            source, target = self._random.sample(regions[left : left + 2], 2)
            self._cluster.merge(source.id, target.id)

    def _transfer(self) -> None:
        region = self._random.choice(self._cluster.regions())
        self._cluster.transfer_leader(region.id, self._random.choice(region.peers).store_id)


@asynccontextmanager
async def turmoil(
    cluster: EmbeddedCluster, keys: Sequence[bytes], seed: int, *, network: bool = False
) -> AsyncIterator[Turmoil]:
    """Disturb a cluster in every way while the block runs; afterwards all is well again.

    Args:
        cluster: With three members of PD.
        keys: Where Regions may split.
        seed: Of all that happens.
        network: Whether connections suffer, too; the cluster has to be made for that.
    """
    disturbing = Turmoil(cluster, keys, seed)
    disturbing.lose_answers()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(disturbing.move_regions)
            tasks.start_soon(disturbing.kill_stores)
            tasks.start_soon(disturbing.cut_streams)
            tasks.start_soon(disturbing.move_pd)
            if network:
                tasks.start_soon(disturbing.break_network)
            yield disturbing
            tasks.cancel_scope.cancel()
    finally:
        cluster.faults.clear()
        with anyio.CancelScope(shield=True):
            for store in cluster.stores():
                await cluster.start_store(store.id)


async def unlocked(cluster: EmbeddedCluster, client: TransactionClient, seconds: float = 20.0) -> None:
    """Return when no key is locked any more; read all of them meanwhile, which puts locks away."""
    with anyio.fail_after(seconds):
        while await _locks(cluster, (await client.get_ts()).ts):
            async for _ in client.snapshot().scan():
                pass
            await anyio.sleep(0.05)


async def _locks(cluster: EmbeddedCluster, max_ts: int) -> list[kvrpcpb.LockInfo]:
    """Return every lock there is, of transactions that started at `max_ts` or before."""
    found: list[kvrpcpb.LockInfo] = []
    async with BareClient() as bare:
        for region in cluster.regions():
            assert region.leader is not None
            request = kvrpcpb.ScanLockRequest(context=context_for(region), max_version=max_ts)
            response = await bare.call(cluster.store_addresses[region.leader.store_id], Tikv.KvScanLock, request)
            assert not response.HasField("region_error"), response.region_error
            found += response.locks
    return found
