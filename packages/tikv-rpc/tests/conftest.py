from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from tikv_pd import PdClient, Region, Store
from tikv_pd.testing import virtual_time
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import KeyRange, RegionCache
from tikv_rpc import (
    AtEdge,
    AtKey,
    Dispatch,
    Edge,
    Effect,
    FanOut,
    KeyWork,
    RangeWork,
    Request,
    RetryRegion,
    RpcClient,
    Settle,
)
from tikv_rpc.testing import FakeCluster


class Kv:
    """Raw key-value as plans over an `RpcClient`, with nothing around them."""

    def __init__(self, rpc: RpcClient) -> None:
        self.rpc = rpc
        self.cache = rpc.cache
        self.retry = RetryRegion(Dispatch(rpc), rpc)
        self.at_key: AtKey[Any] = AtKey(self.retry, rpc.cache)
        self.fan_out: FanOut[Any, Any] = FanOut(self.retry, rpc.cache, rpc.config.concurrency)
        self.at_edge: AtEdge[Any] = AtEdge(self.retry, rpc.cache)

    async def get(self, key: bytes, timeout: float = 30) -> bytes | None:
        request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=key), Effect.READ)
        response = await self.at_key.execute((key, request), self.rpc.call("get", timeout))
        return None if response.not_found else bytes(response.value)

    async def put(self, key: bytes, value: bytes, timeout: float = 30, effect: Effect = Effect.WRITE) -> None:
        request = Request(Tikv.RawPut, kvrpcpb.RawPutRequest(key=key, value=value), effect)
        await Settle(self.at_key).execute((key, request), self.rpc.call("put", timeout))

    async def swap(self, key: bytes, expected: bytes, value: bytes, timeout: float = 30) -> bool:
        """Compare and swap: unary, and not to be applied twice."""
        message = kvrpcpb.RawCASRequest(key=key, previous_value=expected, value=value)
        request = Request(Tikv.RawCompareAndSwap, message, Effect.ONCE)
        response = await Settle(self.at_key).execute((key, request), self.rpc.call("swap", timeout))
        return bool(response.succeed)

    async def ttl(self, key: bytes, timeout: float = 30) -> int:
        """A read that cannot be batched."""
        request = Request(Tikv.RawGetKeyTTL, kvrpcpb.RawGetKeyTTLRequest(key=key), Effect.READ)
        response = await self.at_key.execute((key, request), self.rpc.call("ttl", timeout))
        return int(response.ttl)

    async def batch_get(self, keys: Sequence[bytes], max_keys: int = 100, timeout: float = 30) -> dict[bytes, bytes]:
        def build(part: Sequence[int]) -> Request[Any]:
            message = kvrpcpb.RawBatchGetRequest(keys=[keys[position] for position in part])
            return Request(Tikv.RawBatchGet, message, Effect.READ)

        work = KeyWork(keys, build, max_keys, 1 << 20, [len(key) for key in keys])
        answers = await self.fan_out.execute(work, self.rpc.call("batch_get", timeout))
        return {pair.key: pair.value for _, response in answers for pair in response.pairs}

    async def batch_put(self, pairs: Mapping[bytes, bytes], max_keys: int = 100, timeout: float = 30) -> None:
        keys, values = list(pairs), list(pairs.values())

        def build(part: Sequence[int]) -> Request[Any]:
            message = kvrpcpb.RawBatchPutRequest(
                pairs=[kvrpcpb.KvPair(key=keys[position], value=values[position]) for position in part]
            )
            return Request(Tikv.RawBatchPut, message, Effect.WRITE)

        work = KeyWork(keys, build, max_keys, 1 << 20, [len(key) for key in keys])
        await Settle(self.fan_out).execute(work, self.rpc.call("batch_put", timeout))

    async def delete_range(self, key_range: KeyRange, timeout: float = 30) -> list[KeyRange]:
        """Remove a range and return its pieces."""

        def build(part: KeyRange) -> Request[Any]:
            message = kvrpcpb.RawDeleteRangeRequest(start_key=part.start, end_key=part.end)
            return Request(Tikv.RawDeleteRange, message, Effect.WRITE)

        work = RangeWork(key_range, build)
        answers = await Settle(self.fan_out).execute(work, self.rpc.call("delete_range", timeout))
        return sorted((part for part, _ in answers), key=lambda part: part.start)

    async def page(self, key_range: KeyRange, *, at_end: bool, timeout: float = 30) -> tuple[KeyRange, list[bytes]]:
        """Scan the Region at one edge of a range: the part that lies in it, and its keys."""

        def build(part: KeyRange) -> Request[Any]:
            start, end = (part.end, part.start) if at_end else (part.start, part.end)
            message = kvrpcpb.RawScanRequest(start_key=start, end_key=end, limit=1000, reverse=at_end)
            return Request(Tikv.RawScan, message, Effect.READ)

        part, response = await self.at_edge.execute(Edge(key_range, at_end, build), self.rpc.call("scan", timeout))
        return part, [pair.key for pair in response.kvs]


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Ctrl-C raises KeyboardInterrupt, also where whoever started the tests has it ignored, as shells do behind `&`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def anyio_backend() -> Any:
    return virtual_time()


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """Regions [∅, g), [g, p), [p, ∞) on three stores, all led from store 1."""
    async with FakeCluster([b"g", b"p"]) as cluster:
        yield cluster


class AskedPd:
    """A source of Regions that remembers what it was asked, however that travels."""

    def __init__(self, pd: PdClient) -> None:
        self._pd = pd
        self.asked: list[str] = []

    async def get_region(
        self, key: bytes, *, need_buckets: bool, allow_follower: bool, timeout: float
    ) -> Region | None:
        self.asked.append("Region")
        return await self._pd.get_region(key, need_buckets=need_buckets, allow_follower=allow_follower, timeout=timeout)

    async def get_prev_region(
        self, key: bytes, *, need_buckets: bool, allow_follower: bool, timeout: float
    ) -> Region | None:
        self.asked.append("Region")
        return await self._pd.get_prev_region(
            key, need_buckets=need_buckets, allow_follower=allow_follower, timeout=timeout
        )

    async def get_region_by_id(self, region_id: int, *, need_buckets: bool, timeout: float) -> Region | None:
        self.asked.append("Region")
        return await self._pd.get_region_by_id(region_id, need_buckets=need_buckets, timeout=timeout)

    async def batch_scan_regions(
        self,
        ranges: Sequence[tuple[bytes, bytes]],
        *,
        limit: int,
        need_buckets: bool,
        allow_follower: bool,
        timeout: float,
    ) -> list[Region]:
        self.asked.append("Regions")
        return await self._pd.batch_scan_regions(
            ranges, limit=limit, need_buckets=need_buckets, allow_follower=allow_follower, timeout=timeout
        )

    async def get_store(self, store_id: int, *, timeout: float) -> Store | None:
        self.asked.append("Store")
        return await self._pd.get_store(store_id, timeout=timeout)

    async def get_stores(self, *, timeout: float) -> list[Store]:
        self.asked.append("Stores")
        return await self._pd.get_stores(timeout=timeout)


@pytest.fixture
async def pd(cluster: FakeCluster) -> AsyncIterator[AskedPd]:
    async with PdClient(cluster.url, transport=cluster.transport) as client:
        yield AskedPd(client)


@pytest.fixture
async def kv(cluster: FakeCluster, pd: AskedPd) -> AsyncIterator[Kv]:
    cache = RegionCache(pd, cluster.map.codec, now=cluster.transport.now)
    async with RpcClient(cache, cluster.map.codec, cluster.pd.cluster_id, cluster.transport, choose=min) as rpc:
        yield Kv(rpc)


@pytest.fixture
def make_kv() -> type[Kv]:
    """For tests that open clients of their own."""
    return Kv
