"""What the engine makes of resource control: refusals are no store's fault, and each attempt is charged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import attrs
import pytest
from tikv_pd import PdClient, ResourceGroup, UndeterminedError
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import RegionCache
from tikv_rpc import (
    AtKey,
    Effect,
    RequestOptions,
    ResourceGroupNotFound,
    ResourceGroupThrottled,
    RetryRegion,
    RpcClient,
    Settle,
    dispatch,
)
from tikv_rpc.request import Request
from tikv_rpc.resource_control import ResourceControl, collect_ru
from tikv_rpc.testing import FakeCluster, FakeTokens


@attrs.define
class Engine:
    rpc: RpcClient
    tokens: FakeTokens
    control: ResourceControl

    async def put(self, size: int = 1, group: str = "g", effect: Effect = Effect.WRITE) -> None:
        plan: Settle[Any, Any] = Settle(AtKey(RetryRegion(dispatch(self.rpc), self.rpc), self.rpc.cache))
        request = Request(Tikv.RawPut, kvrpcpb.RawPutRequest(key=b"k", value=b"v" * size), effect)
        await plan.execute((b"k", request), self.rpc.call("put", 10.0, RequestOptions(resource_group=group)))


@pytest.fixture
async def engine(cluster: FakeCluster) -> AsyncIterator[Engine]:
    """An engine with a group `g` of 20 RU, which PD gives no more."""
    tokens = FakeTokens(ResourceGroup("g", 20))
    control = ResourceControl(tokens)
    codec, transport = cluster.map.codec, cluster.transport
    async with PdClient(cluster.url, transport=transport) as pd, control:
        cache = RegionCache(pd, codec, now=transport.now)
        async with RpcClient(cache, codec, cluster.pd.cluster_id, transport, interceptors=[control]) as rpc:
            yield Engine(rpc, tokens, control)


def arrived(cluster: FakeCluster) -> int:
    return sum(received.rpc is Tikv.RawPut for received in cluster.log)


async def test_a_throttled_request_is_not_sent_not_tried_again_and_no_store_is_blamed(
    cluster: FakeCluster, engine: Engine
) -> None:
    await engine.put()
    entry = engine.rpc.cache.find(b"k")
    assert entry is not None
    began = anyio.current_time()

    with pytest.raises(ResourceGroupThrottled):
        await engine.put(size=100_000)

    assert anyio.current_time() - began == pytest.approx(1.0)
    assert arrived(cluster) == 1
    assert engine.rpc.cache.find(b"k") is entry
    assert entry.is_valid()
    await engine.put()


async def test_an_unknown_group_fails_the_call(cluster: FakeCluster, engine: Engine) -> None:
    with pytest.raises(ResourceGroupNotFound):
        await engine.put(group="other")

    assert arrived(cluster) == 0


async def test_each_attempt_is_charged(cluster: FakeCluster, engine: Engine) -> None:
    await engine.put()
    cluster.move_leader(b"k", 2)

    with collect_ru() as ru:
        await engine.put()

    replicas = 3
    assert ru.details.write_ru == pytest.approx(2 * replicas * (1.7 + 2 / 1024), rel=1e-6)


async def test_a_write_throttled_after_an_attempt_was_lost_is_undetermined(
    cluster: FakeCluster, engine: Engine
) -> None:
    await engine.put()
    cluster.store(1).drop_reply_next(Tikv.RawPut)

    # One attempt of this can be paid, and not a second one.
    with pytest.raises(UndeterminedError) as caught:
        await engine.put(size=2600)

    assert isinstance(caught.value.__cause__, ResourceGroupThrottled)
    assert arrived(cluster) == 2
