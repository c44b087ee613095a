"""Resource control with PD in between: what travels, and what is watched."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from tikv_pd import Consumption, PdClient, ResourceGroup, TokenGrant, TokenRequest
from tikv_proto import resource_manager as rmpb
from tikv_rpc.resource_control import PdTokens
from tikv_rpc.testing import FakeCluster


@pytest.fixture
async def client(cluster: FakeCluster) -> AsyncIterator[PdClient]:
    async with PdClient(cluster.url, transport=cluster.transport) as client:
        yield client


async def test_groups_come_from_pd(client: PdClient) -> None:
    tokens = PdTokens(client)
    await client.resource_groups.add(ResourceGroup("g", 100, 200))

    assert await tokens.get_group("g", timeout=1) == ResourceGroup("g", 100, 200)
    assert await tokens.get_group("other", timeout=1) is None
    assert tokens.keyspace_id is None


async def test_tokens_are_asked_for_with_what_was_used(client: PdClient, cluster: FakeCluster) -> None:
    tokens, others = PdTokens(client), PdTokens(client)
    await client.resource_groups.add(ResourceGroup("g", 100))
    requests = [TokenRequest("g", 7, Consumption(read_ru=3, ru_v2=4))]

    assert await tokens.acquire(requests, period=5, timeout=1) == [TokenGrant("g", 7)]
    await tokens.acquire(requests, period=5, timeout=1)
    await others.acquire(requests, period=5, timeout=1)

    first, second, third = cluster.pd.resources.token_requests
    assert first.target_request_period_ms == 5000
    assert first.requests[0].consumption_since_last_request == rmpb.Consumption(r_r_u=3, tikv_r_u_v2=4)
    assert first.client_unique_id == second.client_unique_id != third.client_unique_id


async def test_groups_of_a_keyspace_are_its_own(client: PdClient, cluster: FakeCluster) -> None:
    tokens = PdTokens(client, keyspace_id=7)

    await tokens.acquire([TokenRequest("default", 1)], period=5, timeout=1)

    assert cluster.pd.resources.token_requests[0].requests[0].keyspace_id.value == 7


async def test_changes_of_groups_and_settings_are_told(client: PdClient, cluster: FakeCluster) -> None:
    tokens = PdTokens(client)
    assert await tokens.get_settings(timeout=1) is None

    with anyio.fail_after(5):
        async with tokens.watch_groups() as groups:
            await client.resource_groups.add(ResourceGroup("g", 100))
            await client.resource_groups.delete("g")
            changes = [await anext(groups), await anext(groups)]
        async with tokens.watch_settings() as settings:
            cluster.pd.meta.put(b"resource_group/controller", b"{}")
            change = await anext(settings)

    assert [(each.name, each.group is None) for each in changes] == [("g", False), ("g", True)]
    assert change.value == b"{}"
    assert await tokens.get_settings(timeout=1) == b"{}"
