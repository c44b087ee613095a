"""Resource control against the embedded cluster's resource manager, over real gRPC and in real time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from google.protobuf.message import Message
from tikv_embedded import EmbeddedCluster
from tikv_pd import PdClient, PdConfig, ResourceGroup
from tikv_pd.grpc_transport import GrpcTransport
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import PlainCodec, RegionCache
from tikv_rpc import (
    AtKey,
    Attempt,
    Effect,
    Interceptor,
    Proceed,
    Request,
    RequestOptions,
    ResourceGroupNotFound,
    ResourceGroupThrottled,
    RetryRegion,
    RpcClient,
    Settle,
    dispatch,
)
from tikv_rpc.resource_control import PdTokens, ResourceControl, ResourceControlConfig, collect_ru

Connect = Callable[[ResourceControl], AbstractAsyncContextManager["Kv"]]


class Kv:
    """Raw key-value through the engine, on account of a group."""

    def __init__(self, rpc: RpcClient) -> None:
        self.rpc = rpc
        self.at_key: AtKey[Any] = AtKey(RetryRegion(dispatch(rpc), rpc), rpc.cache)

    async def get(self, group: str, key: bytes = b"k", source: str = "") -> bytes:
        request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=key), Effect.READ)
        options = RequestOptions(resource_group=group, request_source=source)
        response = await self.at_key.execute((key, request), self.rpc.call("get", 10.0, options))
        return bytes(response.value)

    async def put(self, group: str, key: bytes, value: bytes) -> None:
        request = Request(Tikv.RawPut, kvrpcpb.RawPutRequest(key=key, value=value), Effect.WRITE)
        options = RequestOptions(resource_group=group)
        await Settle(self.at_key).execute((key, request), self.rpc.call("put", 10.0, options))


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(stores=1, pd_members=3) as cluster:
        yield cluster


@pytest.fixture
async def pd(cluster: EmbeddedCluster) -> AsyncIterator[PdClient]:
    async with PdClient(cluster.url, config=PdConfig(member_interval=0.2)) as pd:
        yield pd


class Recorder:
    """Remembers what stores are told of resource groups."""

    name = "recorder"

    def __init__(self) -> None:
        self.told: list[kvrpcpb.ResourceControlContext] = []

    async def __call__(self, attempt: Attempt, proceed: Proceed) -> Message:
        self.told.append(kvrpcpb.Context.FromString(attempt.fields).resource_control_context)
        return await proceed()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def connect(pd: PdClient, recorder: Recorder) -> Connect:
    """Opens the engine with a resource control in it."""

    @asynccontextmanager
    async def connected(control: ResourceControl) -> AsyncIterator[Kv]:
        transport, codec = GrpcTransport(), PlainCodec()
        cache = RegionCache(pd, codec, now=transport.now)
        interceptors: list[Interceptor] = [control, recorder]
        async with control, RpcClient(cache, codec, pd.cluster_id, transport, interceptors=interceptors) as rpc:
            yield Kv(rpc)

    return connected


async def hammer(kv: Kv, group: str) -> None:
    while True:
        with suppress(ResourceGroupThrottled):
            await kv.get(group)


async def reported(pd: PdClient, group: str) -> float:
    found = await pd.resource_groups.get(group, with_ru_stats=True)
    assert found is not None
    assert found.consumption is not None
    return found.consumption.read_ru


async def test_a_group_uses_what_it_may_while_pd_s_leader_moves_and_another_is_not_disturbed(
    cluster: EmbeddedCluster, pd: PdClient, connect: Connect
) -> None:
    await pd.resource_groups.add(ResourceGroup("batch", 200))
    await pd.resource_groups.add(ResourceGroup("online", 1000, -1))
    control, seconds = ResourceControl(PdTokens(pd)), 3
    async with connect(control) as kv:
        await kv.put("online", b"k", b"v" * 256 * 1024)
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(hammer, kv, "batch")
            waits = []
            for second in range(seconds):
                await anyio.sleep(1)
                cluster.transfer_pd_leader(second % 3)
                with collect_ru() as ru:
                    await kv.get("online")
                waits.append(ru.details.wait)
            tasks.cancel_scope.cancel()
        used = control.stats()["batch"].details.read_ru
        with anyio.fail_after(20):
            # The group is low, so it keeps on asking, and thereby reporting.
            told = 0.0
            while told < used * 0.99:
                await anyio.sleep(0.1)
                told = await reported(pd, "batch")

    assert waits == [0.0] * seconds
    # PD lends up to twice the rate for a period of five seconds; a second's worth was there at the start, and each of
    # the readers may have gone into debt by one read.
    assert 0.4 * 200 * seconds < used < 200 * (2 * 5 + 1) + 8 * 5


async def test_a_group_that_used_everything_up_is_throttled_and_nothing_is_written(
    pd: PdClient, connect: Connect, recorder: Recorder
) -> None:
    await pd.resource_groups.add(ResourceGroup("small", 1))
    async with connect(ResourceControl(PdTokens(pd), ResourceControlConfig(max_wait=0.1))) as kv:
        with pytest.raises(ResourceGroupThrottled) as caught:
            await kv.put("small", b"k", b"v" * 100_000)

        assert await kv.get("") == b""
    assert caught.value.retryable
    assert not caught.value.undetermined
    # Only the read arrived at a store.
    assert [told.resource_group_name for told in recorder.told] == [""]


async def test_a_write_costs_what_it_writes_on_each_replica_and_a_read_what_it_returns(
    pd: PdClient, connect: Connect
) -> None:
    await pd.resource_groups.add(ResourceGroup("g", 1000))
    async with connect(ResourceControl(PdTokens(pd))) as kv:
        with collect_ru() as ru:
            await kv.put("g", b"k", b"v" * 1023)
            await kv.get("g")

    assert ru.details.write_ru == pytest.approx(2.7)
    assert ru.details.read_ru == pytest.approx(0.475 + 1026 / 65536)


async def test_jobs_in_the_background_are_left_to_the_stores(
    pd: PdClient, connect: Connect, recorder: Recorder
) -> None:
    await pd.resource_groups.add(ResourceGroup("g", 1000, job_types=("br",)))
    control = ResourceControl(PdTokens(pd))
    async with connect(control) as kv:
        await kv.get("g", source="internal_br")

        assert control.stats() == {}
    assert [told.override_priority for told in recorder.told] == [0]


async def test_groups_are_followed_as_they_change(pd: PdClient, connect: Connect, recorder: Recorder) -> None:
    await pd.resource_groups.add(ResourceGroup("g", 1000, priority=2))
    control = ResourceControl(PdTokens(pd))
    async with connect(control) as kv:
        with pytest.raises(ResourceGroupNotFound):
            await kv.get("other")
        await kv.get("g")
        assert recorder.told[-1].override_priority == 2

        await pd.resource_groups.modify(ResourceGroup("g", 1000, priority=14))
        with anyio.fail_after(10):
            while recorder.told[-1].override_priority != 14:
                await kv.get("g")
            await pd.resource_groups.delete("g")
            while not control.stats()["g"].is_deleted:
                await kv.get("g")
        await kv.get("g")
        assert recorder.told[-1].override_priority == 8


async def test_the_model_of_the_cluster_holds(pd: PdClient, connect: Connect) -> None:
    await pd.resource_groups.add(ResourceGroup("g", 1000, -1))
    async with connect(ResourceControl(PdTokens(pd))) as kv:
        with anyio.fail_after(10):
            await pd.meta.put(b"resource_group/controller", b'{"request-unit": {"read-base-cost": 5}}')
            ru = 0.0
            while ru < 5:
                with collect_ru() as collected:
                    await kv.get("g")
                ru = collected.details.read_ru

    assert ru == pytest.approx(5.35, abs=0.001)
