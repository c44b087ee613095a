"""The embedded cluster's transactions on a network in memory, where time is virtual and every request may suffer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import anyio
import attrs
from google.protobuf.message import Message
from tikv_embedded import memcomparable, meta
from tikv_embedded.engine import CF_LOCK, MemoryEngine
from tikv_embedded.mvcc.keys import decode_key
from tikv_embedded.mvcc.max_ts import MaxTs
from tikv_embedded.mvcc.reader import CommitRecord, MvccReader
from tikv_embedded.region import Peer, Region, RegionEpoch, Store, peer_to_pb, region_to_pb
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.store.raw_requests import ClusterIdMismatchError
from tikv_embedded.store.safe_ts import SafeTs
from tikv_embedded.store.txn_requests import TXN_RULES, TxnStore
from tikv_embedded.topology import Topology
from tikv_pd import Region as KnownRegion, Timestamp
from tikv_pd.testing import FakePd, fail
from tikv_proto import errorpb, pdpb
from tikv_region import TxnV1Codec
from tikv_rpc.testing import FakeCluster, FakeStore, Serve

CLUSTER_ID = 7
TICK = 0.05
"""Seconds for which PD's physical time stands still. Source: PD tso-update-physical-interval."""


@attrs.frozen
class Fault:
    """What befalls one request."""

    before: float = 0.0
    """Seconds it travels."""
    after: float = 0.0
    """Seconds its answer travels."""
    refusal: errorpb.Error | None = None
    """Answer with this error of the Region, and do nothing."""
    denial: errorpb.Error | None = None
    """Do it, and answer with this error all the same."""
    is_lost: bool = False
    """Break the stream instead of doing it."""
    is_answer_lost: bool = False
    """Break the stream instead of answering."""
    late: float | None = None
    """Break the stream, and do it so many seconds later."""

    async def act(self, cluster: VirtualCluster, serve: Serve, response: type[Any]) -> Message:
        await anyio.sleep(self.before)
        if self.refusal is not None:
            refused: Message = response(region_error=self.refusal)
            return refused
        if self.late is not None:
            cluster.serve_later(serve, self.late)
        if self.is_lost or self.late is not None:
            raise fail("UNAVAILABLE", "the connection broke")
        served = await serve()
        await anyio.sleep(self.after)
        if self.is_answer_lost:
            raise fail("UNAVAILABLE", "the connection broke")
        if self.denial is not None:
            denied: Message = response(region_error=self.denial)
            return denied
        return served


class _ClockedPd(FakePd):
    """Grants timestamps by the clock of the backend, whose physical time goes in ticks as PD's does."""

    def grant(self, count: int) -> pdpb.Timestamp:
        ticks = int(anyio.current_time() / TICK)
        self.timestamp = max(self.timestamp, Timestamp(1_000_000 + int(ticks * TICK * 1000), 0))
        return super().grant(count)


class VirtualCluster(FakeCluster):
    """Stores that serve transactions as TiKV does, over one engine in memory, and a PD whose clock is the backend's.

    Args:
        splits: Keys at which Regions begin, apart from the first.
        faults: What befalls the requests, in the order they arrive; none when it ends.
    """

    def __init__(self, splits: Iterable[bytes] = (), faults: Iterable[Fault] = ()) -> None:
        stores = tuple(Store(number, f"tikv{number}:20160") for number in (1, 2, 3))
        peers = tuple(Peer(10 + store.id, store.id) for store in stores)
        region = Region(1, b"", b"", RegionEpoch(), peers, leader=peers[0])
        self.engine = MemoryEngine()
        state = meta.ClusterState(
            cluster_id=CLUSTER_ID,
            mode=ApiMode.V1,
            max_peer_count=3,
            next_id=1000,
            stores=stores,
            regions=(region,),
        )
        self.topology = Topology(self.engine, state)
        self.topology.split(map(memcomparable.encode, splits))
        super().__init__(codec=TxnV1Codec(), cluster_id=CLUSTER_ID)
        self.pd = _ClockedPd(self.transport, cluster_id=CLUSTER_ID)
        self.pd.stores = self.map.stores
        self.update_pd()
        max_ts = {store.id: MaxTs(self._next_ts) for store in stores}
        self._served = {
            store.id: TxnStore(
                self.topology,
                ApiMode.V1,
                store.id,
                max_ts.__getitem__,
                SafeTs(self._next_ts),
                clock=anyio.current_time,
            )
            for store in stores
        }
        self._faults: Iterator[Fault] = iter(faults)
        for each in self.stores.values():
            each.script(None, self._suffer, times=math.inf)

    def heal(self) -> None:
        """Let nothing befall requests from now on, and let all stores serve."""
        self._faults = iter(())
        for store in self.stores.values():
            if not self.transport.is_served(store.address):
                store.start()

    def update_pd(self) -> None:
        self.pd.regions = [
            KnownRegion.from_pb(region_to_pb(region), None if region.leader is None else peer_to_pb(region.leader))
            for region in self.topology.scan(b"", b"", 0)
        ]

    def split(self, *keys: bytes) -> None:
        self.topology.split(map(memcomparable.encode, keys))
        self._moved()

    def merge(self, key: bytes) -> None:
        """Merge the Region that holds `key` into its right neighbor, if there is one."""
        region = self.topology.find(memcomparable.encode(key))
        if region.end_key:
            self.topology.merge(region.id, self.topology.find(region.end_key).id)
        self._moved()

    def move_leader(self, key: bytes, store_id: int) -> None:
        """Have the Region that holds `key` led from another store."""
        self.topology.transfer_leader(self.topology.find(memcomparable.encode(key)).id, store_id)
        self._moved()

    def crash(self, store_id: int) -> None:
        """Stop a store, unless it is the last one; others lead what it led."""
        served = [store for store in self.stores.values() if self.transport.is_served(store.address)]
        if len(served) < 2 or self.stores[store_id] not in served:
            return
        self.stores[store_id].stop()
        others = [store.id for store in served if store.id != store_id]
        for region in self.topology.scan(b"", b"", 0):
            if region.leader is not None and region.leader.store_id == store_id:
                self.topology.transfer_leader(region.id, others[region.id % len(others)])
        self._moved()

    def restart(self, store_id: int) -> None:
        """Start a store again."""
        store = self.stores[store_id]
        if not self.transport.is_served(store.address):
            store.start()

    def serves(self, rpc: Any) -> bool:
        return rpc.request in TXN_RULES

    async def answer(self, store: FakeStore, rpc: Any, request: Any) -> Message:
        try:
            with self.engine.snapshot() as snapshot:
                response, batch = self._served[store.id].session(snapshot).run(TXN_RULES[rpc.request], request)
        except ClusterIdMismatchError as error:
            raise fail("INVALID_ARGUMENT", str(error)) from error
        if batch is not None:
            self.engine.write(batch)
        served: Message = response
        return served

    def serve_later(self, serve: Serve, seconds: float) -> None:
        """Serve a request of a caller that is gone."""

        async def run() -> None:
            await anyio.sleep(seconds)
            await serve()

        self.transport.start_task(run)

    def locks(self) -> list[bytes]:
        """Return the keys that are locked."""
        with self.engine.snapshot() as snapshot:
            return [decode_key(key) for key, _ in snapshot.scan(CF_LOCK, b"", b"")]

    def record(self, key: bytes, start_ts: int) -> CommitRecord:
        """Return what a key tells of a transaction."""
        with self.engine.snapshot() as snapshot:
            return MvccReader(snapshot).commit_record(key, start_ts)

    async def _suffer(self, request: Any, serve: Serve) -> Message:
        return await next(self._faults, Fault()).act(self, serve, _RESPONSES[type(request)])

    def _next_ts(self) -> int:
        granted = self.pd.grant(1)
        return Timestamp(granted.physical, granted.logical).ts


_RESPONSES: dict[type[Any], type[Any]] = {request: rule.response for request, rule in TXN_RULES.items()}
"""What answers each request."""
