"""Routers and resource managers beside PD, found in its meta storage."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from tikv_embedded import EmbeddedCluster, TopologyError
from tikv_embedded.region import region_to_pb
from tikv_embedded.testing import BareClient
from tikv_proto import meta_storagepb, metapb, pdpb, resource_manager as rm
from tikv_proto.services import MetaStorage, ResourceManager, Router


@pytest.fixture
async def apart() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(router_servers=2, resource_managers=2, split_keys=[b"m"]) as running:
        yield running


def header(cluster: EmbeddedCluster) -> pdpb.RequestHeader:
    return pdpb.RequestHeader(cluster_id=cluster.cluster_id)


async def stored(cluster: EmbeddedCluster, client: BareClient, path: str) -> list[meta_storagepb.KeyValue]:
    key = f"/ms/{cluster.cluster_id}/{path}".encode()
    end = key[:-1] + bytes([key[-1] + 1])
    request = meta_storagepb.GetRequest(
        header=meta_storagepb.RequestHeader(cluster_id=cluster.cluster_id), key=key, range_end=end
    )
    return list((await client.call(cluster.pd_addresses[0], MetaStorage.Get, request)).kvs)


async def registered(cluster: EmbeddedCluster, client: BareClient) -> list[str]:
    return [json.loads(pair.value)["service-addr"] for pair in await stored(cluster, client, "router/registry/")]


async def primary(cluster: EmbeddedCluster, client: BareClient) -> list[str]:
    pairs = await stored(cluster, client, "resource_manager/primary")
    return [url for pair in pairs for url in rm.Participant.FromString(pair.value).listen_urls]


async def test_routers_answer_queries_of_regions(apart: EmbeddedCluster, client: BareClient) -> None:
    left, right = map(region_to_pb, apart.regions())
    for router in apart.routers.addresses:
        request = pdpb.GetRegionRequest(header=header(apart), region_key=b"z")
        found = await client.call(router, Router.GetRegion, request)
        before = await client.call(router, Router.GetPrevRegion, request)
        by_id = await client.call(
            router, Router.GetRegionByID, pdpb.GetRegionByIDRequest(header=header(apart), region_id=left.id)
        )
        scan = pdpb.BatchScanRegionsRequest(header=header(apart), ranges=[pdpb.KeyRange()])
        scanned = await client.call(router, Router.BatchScanRegions, scan)

        assert [found.region, before.region, by_id.region] == [right, left, left]
        assert [region.region for region in scanned.regions] == [left, right]


async def test_routers_answer_queries_of_stores_and_streams(apart: EmbeddedCluster, client: BareClient) -> None:
    router = apart.routers.addresses[0]
    await apart.remove_store(3)

    one = await client.call(router, Router.GetStore, pdpb.GetStoreRequest(header=header(apart), store_id=3))
    stores = await client.call(
        router, Router.GetAllStores, pdpb.GetAllStoresRequest(header=header(apart), exclude_tombstone_stores=True)
    )
    stream = client.stream(router, Router.QueryRegion)
    await stream.write(pdpb.QueryRegionRequest(header=header(apart), keys=[b"a", b"z"]))
    answer = await stream.read()

    assert one.store.state == metapb.StoreState.Tombstone
    assert [store.id for store in stores.stores] == [1, 2]
    assert list(answer.key_id_map) == [region.id for region in apart.regions()]


async def test_a_router_refuses_other_clusters_and_knows_no_region_that_is_not_there(
    apart: EmbeddedCluster, client: BareClient
) -> None:
    router = apart.routers.addresses[0]

    missing = await client.call(
        router, Router.GetRegionByID, pdpb.GetRegionByIDRequest(header=header(apart), region_id=999)
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.call(router, Router.GetRegion, pdpb.GetRegionRequest())

    assert missing.header.error.type == pdpb.ErrorType.REGION_NOT_FOUND
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_routers_are_registered_while_they_run(apart: EmbeddedCluster, client: BareClient) -> None:
    urls = [f"http://{address}" for address in apart.routers.addresses]

    at_first = await registered(apart, client)
    await apart.routers.stop(0)
    without = await registered(apart, client)
    await apart.routers.start(0)

    assert at_first == sorted(urls)
    assert without == urls[1:]
    assert await registered(apart, client) == sorted(urls)


async def test_what_an_earlier_start_registered_is_struck_off(tmp_path: Path, client: BareClient) -> None:
    async with EmbeddedCluster(path=tmp_path / "data", router_servers=1, resource_managers=1):
        pass
    async with EmbeddedCluster(path=tmp_path / "data") as cluster:
        assert await registered(cluster, client) == []
        assert await primary(cluster, client) == []
        assert cluster.routers.addresses == cluster.resource_managers.addresses == []


async def test_the_primary_resource_manager_grants_tokens_alone(apart: EmbeddedCluster, client: BareClient) -> None:
    managers = apart.resource_managers
    listing = rm.ListResourceGroupsRequest()

    groups = await client.call(managers.addresses[0], ResourceManager.ListResourceGroups, listing)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.call(managers.addresses[1], ResourceManager.ListResourceGroups, listing)
    managers.transfer_primary(1)
    moved = await client.call(managers.addresses[1], ResourceManager.ListResourceGroups, listing)

    assert [group.name for group in groups.groups] == [group.name for group in moved.groups] == ["default"]
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await primary(apart, client) == [f"http://{managers.addresses[1]}"]
    assert managers.primary == 1


async def test_another_resource_manager_takes_over(apart: EmbeddedCluster, client: BareClient) -> None:
    managers = apart.resource_managers

    await managers.stop(0)
    taken_over = await primary(apart, client)
    await managers.stop(1)
    nobody = await primary(apart, client)

    assert taken_over == [f"http://{managers.addresses[1]}"]
    assert nobody == []
    with pytest.raises(TopologyError, match="does not run"):
        managers.transfer_primary(0)
    with pytest.raises(TopologyError, match="no server 5"):
        await managers.start(5)
