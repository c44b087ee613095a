"""Resource groups over the PD ports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_embedded.pd.gc_store import NULL_KEYSPACE
from tikv_embedded.testing import BareClient
from tikv_proto import meta_storagepb, resource_manager as rm
from tikv_proto.services import MetaStorage, ResourceManager, Rpc


def group(name: str, rate: int = 1000, limit: int = 2000, **fields: Any) -> rm.ResourceGroup:
    settings = rm.TokenLimitSettings(fill_rate=rate, burst_limit=limit)
    units = rm.GroupRequestUnitSettings(r_u=rm.TokenBucket(settings=settings, tokens=fields.pop("tokens", 0)))
    merged: dict[str, Any] = {"name": name, "mode": rm.GroupMode.RUMode, "r_u_settings": units} | fields
    return rm.ResourceGroup(**merged)


async def call(
    cluster: EmbeddedCluster, client: BareClient, rpc: Rpc[Any, Any], *, member: int = 0, **fields: Any
) -> Any:
    return await client.call(cluster.pd_addresses[member], rpc, rpc.request(**fields))


async def failure(awaitable: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.details() or ""


async def names(cluster: EmbeddedCluster, client: BareClient, **fields: Any) -> list[str]:
    answer = await call(cluster, client, ResourceManager.ListResourceGroups, **fields)
    return [each.name for each in answer.groups]


async def test_the_default_group_is_there_and_unlimited(cluster: EmbeddedCluster, client: BareClient) -> None:
    found = (await call(cluster, client, ResourceManager.GetResourceGroup, resource_group_name="default")).group

    limits = found.r_u_settings.r_u.settings
    assert (limits.fill_rate, limits.burst_limit, found.priority) == (2**31 - 1, -1, 8)
    assert (found.mode, found.keyspace_id.value) == (rm.GroupMode.RUMode, NULL_KEYSPACE)
    refused = call(cluster, client, ResourceManager.DeleteResourceGroup, resource_group_name="default")
    assert await failure(refused) == "cannot delete reserved group"


async def test_groups_are_added_changed_and_deleted(cluster: EmbeddedCluster, client: BareClient) -> None:
    made = await call(cluster, client, ResourceManager.AddResourceGroup, group=group("a", tokens=5))
    await call(cluster, client, ResourceManager.ModifyResourceGroup, group=group("a", 7, tokens=6, priority=3))
    changed = (await call(cluster, client, ResourceManager.GetResourceGroup, resource_group_name="a")).group
    listed = await names(cluster, client)
    await call(cluster, client, ResourceManager.DeleteResourceGroup, resource_group_name="a")
    missing = await failure(call(cluster, client, ResourceManager.GetResourceGroup, resource_group_name="a"))

    assert made.body == "Success!"
    assert (changed.r_u_settings.r_u.settings.fill_rate, changed.priority) == (7, 3)
    assert changed.r_u_settings.r_u.tokens == 11
    assert listed == ["a", "default"]
    assert missing == "the a resource group does not exist"


async def test_a_change_without_limits_keeps_them(cluster: EmbeddedCluster, client: BareClient) -> None:
    await call(cluster, client, ResourceManager.AddResourceGroup, group=group("a"))

    change = rm.ResourceGroup(name="a", mode=rm.GroupMode.RUMode, priority=4, r_u_settings={})  # type: ignore[arg-type]
    await call(cluster, client, ResourceManager.ModifyResourceGroup, group=change)

    found = (await call(cluster, client, ResourceManager.GetResourceGroup, resource_group_name="a")).group
    assert (found.priority, found.r_u_settings.r_u.settings.fill_rate) == (4, 1000)


@pytest.mark.parametrize(
    ("rpc", "settings", "reason"),
    [
        (ResourceManager.AddResourceGroup, group(""), "check the group name"),
        (ResourceManager.AddResourceGroup, group("x" * 33), "check the group name"),
        (ResourceManager.AddResourceGroup, group("a", priority=17), "check the group priority"),
        (ResourceManager.AddResourceGroup, group("a", mode=rm.GroupMode.RawMode), "check the group mode"),
        (ResourceManager.AddResourceGroup, group("a", keyspace_id={"value": 9}), "keyspace does not exist with id 9"),
        (ResourceManager.ModifyResourceGroup, group(""), "check the group name"),
        (ResourceManager.ModifyResourceGroup, group("a"), "the a resource group does not exist"),
        (ResourceManager.ModifyResourceGroup, group("default", priority=17), "should be in"),
        (ResourceManager.ModifyResourceGroup, group("default", mode=rm.GroupMode.RawMode), "in same mode"),
        (
            ResourceManager.ModifyResourceGroup,
            rm.ResourceGroup(name="default", mode=rm.GroupMode.RUMode),
            "RU mode should set RU settings",
        ),
    ],
)
async def test_settings_that_make_no_sense_are_refused(
    cluster: EmbeddedCluster, client: BareClient, rpc: Rpc[Any, Any], settings: rm.ResourceGroup, reason: str
) -> None:
    assert reason in await failure(call(cluster, client, rpc, group=settings))


async def test_settings_are_seen_by_watches_of_meta_storage(cluster: EmbeddedCluster, client: BareClient) -> None:
    request = meta_storagepb.WatchRequest(
        key=b"resource_group/settings", range_end=b"resource_group/settingt", start_revision=1
    )

    watch = client.server_stream(cluster.pd_addresses[0], MetaStorage.Watch, request)
    first = await watch.read()
    await call(cluster, client, ResourceManager.AddResourceGroup, group=group("a", 7))
    made = await watch.read()
    await call(cluster, client, ResourceManager.DeleteResourceGroup, resource_group_name="a")
    gone = await watch.read()

    assert first.events[0].kv.key == b"resource_group/settings/default"
    assert made.events[0].kv.key == gone.events[0].kv.key == b"resource_group/settings/a"
    stored = rm.ResourceGroup.FromString(made.events[0].kv.value)
    assert stored.r_u_settings.r_u.settings.fill_rate == 7
    assert gone.events[0].type == meta_storagepb.Event.EventType.DELETE
    controller = await client.ask_pd(cluster, MetaStorage.Get, key=b"resource_group/controller")
    assert b'"write-base-cost": 1' in controller.kvs[0].value


async def test_keyspaces_have_groups_of_their_own(client: BareClient, tmp_path: Path) -> None:
    own: dict[str, Any] = {"keyspace_id": {"value": 0}}
    async with EmbeddedCluster(path=tmp_path / "data") as cluster:
        await call(cluster, client, ResourceManager.AddResourceGroup, group=group("a", **own))
        await call(cluster, client, ResourceManager.AddResourceGroup, group=group("b"))
    async with EmbeddedCluster(path=tmp_path / "data") as cluster:
        assert await names(cluster, client) == ["b", "default"]
        assert await names(cluster, client, **own) == ["a", "default"]


def asking(name: str, wanted: float, **fields: Any) -> rm.TokenBucketRequest:
    items = rm.TokenBucketRequest.RequestRU(request_r_u=[rm.RequestUnitItem(value=wanted)])
    return rm.TokenBucketRequest(resource_group_name=name, ru_items=items, **fields)


async def test_tokens_are_granted_and_consumption_is_counted(cluster: EmbeddedCluster, client: BareClient) -> None:
    await call(cluster, client, ResourceManager.AddResourceGroup, group=group("a"))
    used = rm.Consumption(r_r_u=1.5, kv_read_rpc_count=2)
    requests = [
        asking("default", 7, consumption_since_last_request=used),
        asking("none", 7),
        asking("a", 200_000, consumption_since_last_request=used),
        asking("a", 1, is_background=True, consumption_since_last_request=used),
    ]

    stream = client.stream(cluster.pd_addresses[0], ResourceManager.AcquireTokenBuckets)
    await stream.write(rm.TokenBucketsRequest(requests=requests, target_request_period_ms=5000, client_unique_id=1))
    answer = await stream.read()

    unlimited, limited = answer.responses
    (at_once,), (in_time,) = unlimited.granted_r_u_tokens, limited.granted_r_u_tokens
    assert (unlimited.resource_group_name, at_once.granted_tokens.tokens, at_once.trickle_time_ms) == ("default", 7, 0)
    assert at_once.granted_tokens.settings.burst_limit == -1
    assert (limited.resource_group_name, in_time.granted_tokens.tokens) == ("a", 110_000)
    assert in_time.trickle_time_ms == 5000
    shown = await call(cluster, client, ResourceManager.GetResourceGroup, resource_group_name="a", with_ru_stats=True)
    assert shown.group.RUStats == rm.Consumption(r_r_u=3, kv_read_rpc_count=4)


async def test_followers_manage_nothing(client: BareClient) -> None:
    async with EmbeddedCluster(pd_members=3) as cluster:
        stream = client.stream(cluster.pd_addresses[1], ResourceManager.AcquireTokenBuckets)
        await stream.write(rm.TokenBucketsRequest())

        assert await failure(call(cluster, client, ResourceManager.ListResourceGroups, member=1)) == "not leader"
        assert await stream.status() == (grpc.StatusCode.UNAVAILABLE, "not leader")
