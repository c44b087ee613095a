"""Stores that come, move, change and go while the cluster runs."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from tikv_embedded import EmbeddedCluster, PortInUseError, StoreState, TopologyError
from tikv_embedded.testing import BareClient, context_for
from tikv_proto import kvrpcpb, metapb, pdpb
from tikv_proto.services import PD, Tikv


async def get(cluster: EmbeddedCluster, client: BareClient, address: str) -> kvrpcpb.RawGetResponse:
    request = kvrpcpb.RawGetRequest(context=context_for(cluster.regions()[0]), key=b"a")
    return await client.call(address, Tikv.RawGet, request)


async def states(
    cluster: EmbeddedCluster, client: BareClient, *, all_of_them: bool = True
) -> dict[int, tuple[str, str]]:
    answer = await client.ask_pd(cluster, PD.GetAllStores, exclude_tombstone_stores=not all_of_them)
    return {
        store.id: (metapb.StoreState.Name(store.state), metapb.NodeState.Name(store.node_state))
        for store in answer.stores
    }


# Removing.


async def test_a_removed_store_is_a_tombstone_whose_peers_are_elsewhere(client: BareClient) -> None:
    async with EmbeddedCluster(stores=4, split_keys=[b"g", b"n"]) as cluster:
        address = cluster.store_addresses[1]

        removed = await cluster.remove_store(1)
        shown = await states(cluster, client)
        kept = await states(cluster, client, all_of_them=False)
        one = await client.ask_pd(cluster, PD.GetStore, store_id=1)

        assert removed.state is StoreState.TOMBSTONE
        assert shown[1] == ("Tombstone", "Removed")
        assert set(kept) == {store.id for store in cluster.stores()} == set(cluster.store_addresses) == {2, 3, 4}
        assert one.store.state == metapb.StoreState.Tombstone
        for region in cluster.regions():
            assert {peer.store_id for peer in region.peers} == {2, 3, 4}
            assert region.leader in region.peers
        with pytest.raises(grpc.aio.AioRpcError):
            await client.health(address)


async def test_a_region_that_loses_its_store_changes_its_peers_epoch(client: BareClient) -> None:
    async with EmbeddedCluster(stores=4) as cluster:
        before = cluster.regions()[0]

        await cluster.remove_store(1)

        after = cluster.regions()[0]
        assert after.epoch.conf_ver == before.epoch.conf_ver + 2
        assert after.epoch.version == before.epoch.version
        assert {peer.id for peer in after.peers}.isdisjoint({before.peers[0].id})
        assert after.leader is not None
        assert (await get(cluster, client, cluster.store_addresses[after.leader.store_id])).not_found


async def test_without_a_store_to_move_to_a_region_has_a_peer_less(cluster: EmbeddedCluster) -> None:
    await cluster.remove_store(2)

    assert [peer.store_id for peer in cluster.regions()[0].peers] == [1, 3]


async def test_the_last_place_of_a_region_cannot_be_removed() -> None:
    async with EmbeddedCluster(stores=1) as cluster:
        with pytest.raises(TopologyError, match="without a peer that can lead"):
            await cluster.remove_store(1)

        assert [store.state for store in cluster.stores()] == [StoreState.UP]
        with pytest.raises(TopologyError, match="no store 9"):
            await cluster.remove_store(9)


async def test_a_removed_store_stays_removed_after_a_restart_and_its_id_is_not_used_again(
    tmp_path: Path, client: BareClient
) -> None:
    async with EmbeddedCluster(path=tmp_path / "data") as cluster:
        await cluster.remove_store(3)
        cluster.set_store_offline(2)
        cluster.set_store_labels(2, {"zone": "z2"})
    async with EmbeddedCluster(path=tmp_path / "data") as cluster:
        stores = {store.id: store for store in cluster.stores()}

        assert (await states(cluster, client))[3] == ("Tombstone", "Removed")
        assert len(stores) == 3
        assert 3 not in stores
        assert (stores[2].state, dict(stores[2].labels)) == (StoreState.OFFLINE, {"zone": "z2"})


async def test_nothing_can_be_done_to_a_removed_store(cluster: EmbeddedCluster, client: BareClient) -> None:
    await cluster.remove_store(3)

    for act in (cluster.start_store, cluster.stop_store, cluster.move_store, cluster.remove_store):
        with pytest.raises(TopologyError, match="no store 3"):
            await act(3)
    with pytest.raises(TopologyError, match="no store 3"):
        cluster.set_store_offline(3)
    with pytest.raises(TopologyError, match="TOMBSTONE"):
        cluster.add_peer(cluster.regions()[0].id, 3)
    registered = await client.ask_pd(cluster, PD.PutStore, store=metapb.Store(id=3))
    beaten = await client.ask_pd(cluster, PD.StoreHeartbeat, stats=pdpb.StoreStats(store_id=3))
    for header in (registered.header, beaten.header):
        assert header.error.type == pdpb.ErrorType.STORE_TOMBSTONE


# Changing.


async def test_a_store_that_goes_offline_still_serves(cluster: EmbeddedCluster, client: BareClient) -> None:
    cluster.set_store_offline(1)
    offline = (await states(cluster, client))[1]
    answer = await get(cluster, client, cluster.store_addresses[1])
    cluster.set_store_offline(1, False)

    assert offline == ("Offline", "Removing")
    assert answer.not_found
    assert (await states(cluster, client))[1] == ("Up", "Serving")


async def test_labels_can_be_changed_from_both_sides(cluster: EmbeddedCluster, client: BareClient) -> None:
    added = await cluster.add_store({"engine": "tiflash"})
    cluster.set_store_labels(1, {"zone": "z1"})
    label = metapb.StoreLabel(key="host", value="h1")
    await client.ask_pd(cluster, PD.PutStore, store=metapb.Store(id=1, labels=[label]))

    answer = await client.ask_pd(cluster, PD.GetAllStores)

    labels = {store.id: {label.key: label.value for label in store.labels} for store in answer.stores}
    assert labels[1] == {"zone": "z1", "host": "h1"}
    assert labels[added.id] == {"engine": "tiflash"}


async def test_a_store_nobody_knows_cannot_register(cluster: EmbeddedCluster, client: BareClient) -> None:
    answer = await client.ask_pd(cluster, PD.PutStore, store=metapb.Store(id=99))

    assert answer.header.error.type == pdpb.ErrorType.UNKNOWN


# Moving.


async def test_a_store_moves_to_another_port(cluster: EmbeddedCluster, client: BareClient) -> None:
    old = cluster.store_addresses[1]

    moved = await cluster.move_store(1)
    told = await client.ask_pd(cluster, PD.GetStore, store_id=1)

    assert moved.address == told.store.address == cluster.store_addresses[1] != old
    assert (await get(cluster, client, moved.address)).not_found
    with pytest.raises(grpc.aio.AioRpcError):
        await client.health(old)


async def test_stores_that_swap_ports_say_who_they_are(cluster: EmbeddedCluster, client: BareClient) -> None:
    old = cluster.store_addresses[1]
    await cluster.move_store(1)

    await cluster.move_store(2, port=int(old.rsplit(":", 1)[1]))

    answer = await get(cluster, client, old)
    assert answer.region_error.store_not_match.actual_store_id == 2


async def test_a_store_cannot_move_to_a_port_that_is_taken(cluster: EmbeddedCluster, client: BareClient) -> None:
    taken = int(cluster.store_addresses[2].rsplit(":", 1)[1])

    with pytest.raises(PortInUseError):
        await cluster.move_store(1, port=taken)
    await cluster.start_store(1)

    assert (await get(cluster, client, cluster.store_addresses[1])).not_found


# What stores report to PD.


async def test_heartbeats_and_buckets_are_taken_note_of_by_nobody(cluster: EmbeddedCluster, client: BareClient) -> None:
    header = pdpb.RequestHeader(cluster_id=cluster.cluster_id)
    beats = client.stream(cluster.pd_addresses[0], PD.RegionHeartbeat)
    await beats.write(pdpb.RegionHeartbeatRequest(header=header))
    await beats.done_writing()
    strange = client.stream(cluster.pd_addresses[0], PD.RegionHeartbeat)
    await strange.write(pdpb.RegionHeartbeatRequest())

    with pytest.raises(EOFError):
        await beats.read()
    assert (await strange.status())[0] is grpc.StatusCode.FAILED_PRECONDITION


async def test_ids_for_a_split_are_given_out_once(cluster: EmbeddedCluster, client: BareClient) -> None:
    region = metapb.Region(id=4, peers=[metapb.Peer(id=5, store_id=1), metapb.Peer(id=6, store_id=2)])

    asked = [await client.ask_pd(cluster, PD.AskBatchSplit, region=region, split_count=2) for _ in range(2)]
    reported = await client.ask_pd(cluster, PD.ReportBatchSplit)

    pieces = [piece for answer in asked for piece in answer.ids]
    ids = [each for piece in pieces for each in (piece.new_region_id, *piece.new_peer_ids)]
    assert len(ids) == len(set(ids)) == 12
    assert not reported.header.HasField("error")
