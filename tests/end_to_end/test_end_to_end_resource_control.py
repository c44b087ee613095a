"""Resource control against the embedded cluster's resource manager, over real gRPC and in real time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import attrs
import pytest
from anyio.lowlevel import checkpoint
from tikv_embedded import EmbeddedCluster
from tikv_pd import Deadline, PdClient, PdConfig, ResourceGroup
from tikv_proto import kvrpcpb
from tikv_proto.services import Rpc, Tikv
from tikv_rpc import PdTokens, ResourceControl, ResourceGroupNotFound, ResourceGroupThrottled, collect_ru


@attrs.frozen
class Options:
    resource_group: str
    request_source: str = ""


@attrs.frozen
class Payload:
    payload: bytes = b""


@attrs.frozen
class Entry:
    replica_count: int = 3


@attrs.frozen
class Store:
    id: int = 1
    zone: str = ""


@attrs.define
class Attempt:
    """What an engine hands an interceptor."""

    options: Options
    rpc: Rpc[Any, Any] = Tikv.RawGet
    request: Payload = Payload()
    entry: Entry = Entry()
    store: Store = Store()
    deadline: Deadline = attrs.Factory(lambda: Deadline("get", 10.0, anyio.current_time))
    context: kvrpcpb.Context = attrs.Factory(kvrpcpb.Context)

    def patch(self, context: kvrpcpb.Context) -> None:
        self.context.MergeFrom(context)


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(stores=1, pd_members=3) as cluster:
        yield cluster


@pytest.fixture
async def pd(cluster: EmbeddedCluster) -> AsyncIterator[PdClient]:
    async with PdClient(cluster.url, config=PdConfig(member_interval=0.2)) as pd:
        yield pd


async def read(control: ResourceControl, group: str, kib: int = 0) -> Attempt:
    """Read some KiB: 0.475 RU, and one for each 64 KiB."""
    attempt = Attempt(Options(group))

    async def proceed() -> Any:
        await checkpoint()
        return kvrpcpb.RawGetResponse(value=b"v" * kib * 1024)

    await control(attempt, proceed)
    return attempt


async def hammer(control: ResourceControl, group: str) -> None:
    while True:
        with suppress(ResourceGroupThrottled):
            await read(control, group, kib=256)


async def reported(pd: PdClient, group: str) -> float:
    found = await pd.resource_groups.get(group, with_ru_stats=True)
    assert found is not None
    assert found.consumption is not None
    return found.consumption.read_ru


async def test_a_group_uses_what_it_may_while_pd_s_leader_moves_and_another_is_not_disturbed(
    cluster: EmbeddedCluster, pd: PdClient
) -> None:
    await pd.resource_groups.add(ResourceGroup("batch", 200))
    await pd.resource_groups.add(ResourceGroup("online", 1000, -1))
    seconds = 3
    async with ResourceControl(PdTokens(pd)) as control:
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(hammer, control, "batch")
            waits = []
            for second in range(seconds):
                await anyio.sleep(1)
                cluster.transfer_pd_leader(second % 3)
                with collect_ru() as ru:
                    await read(control, "online", kib=256)
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


async def test_groups_are_followed_as_they_change(pd: PdClient) -> None:
    await pd.resource_groups.add(ResourceGroup("g", 1000, priority=2))
    async with ResourceControl(PdTokens(pd)) as control:
        with pytest.raises(ResourceGroupNotFound):
            await read(control, "other")
        assert (await read(control, "g")).context.resource_control_context.override_priority == 2

        await pd.resource_groups.modify(ResourceGroup("g", 1000, priority=14))
        with anyio.fail_after(10):
            priority = 2
            while priority != 14:
                await anyio.sleep(0.01)
                priority = (await read(control, "g")).context.resource_control_context.override_priority
            await pd.resource_groups.delete("g")
            while not control.stats()["g"].is_deleted:
                await read(control, "g")
                await anyio.sleep(0.01)
        assert (await read(control, "g")).context.resource_control_context.override_priority == 8


async def test_the_model_of_the_cluster_holds(pd: PdClient) -> None:
    await pd.resource_groups.add(ResourceGroup("g", 1000))
    async with ResourceControl(PdTokens(pd)) as control:
        with anyio.fail_after(10):
            await pd.meta.put(b"resource_group/controller", b'{"request-unit": {"read-base-cost": 5}}')
            ru = 0.0
            while ru < 5:
                with collect_ru() as collected:
                    await read(control, "g")
                ru = collected.details.read_ru
                await anyio.sleep(0.01)

    assert ru == pytest.approx(5.35)
