"""Keyspaces that are made, changed and watched while the cluster runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from tikv_embedded import EmbeddedCluster, OptionError
from tikv_embedded.pd.keyspaces import txn_bounds
from tikv_embedded.testing import BareClient, BareStream
from tikv_proto import keyspacepb, pdpb
from tikv_proto.services import PD, Keyspace

ENABLED, DISABLED = keyspacepb.KeyspaceState.ENABLED, keyspacepb.KeyspaceState.DISABLED
ARCHIVED, TOMBSTONE = keyspacepb.KeyspaceState.ARCHIVED, keyspacepb.KeyspaceState.TOMBSTONE


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(api_version="v2", keyspaces=["old"]) as running:
        yield running


def watch(
    cluster: EmbeddedCluster, client: BareClient, member: int = 0
) -> BareStream[keyspacepb.WatchKeyspacesRequest, keyspacepb.WatchKeyspacesResponse]:
    request = keyspacepb.WatchKeyspacesRequest(header=pdpb.RequestHeader(cluster_id=cluster.cluster_id))
    return client.server_stream(cluster.pd_addresses[member], Keyspace.WatchKeyspaces, request)


async def test_a_new_keyspace_has_regions_and_can_be_loaded(cluster: EmbeddedCluster, client: BareClient) -> None:
    keyspace_id = cluster.create_keyspace("new", {"team": "a"})

    found = (await client.ask_pd(cluster, Keyspace.LoadKeyspace, name="new")).keyspace
    assert (found.id, found.state, dict(found.config)) == (keyspace_id, ENABLED, {"team": "a"})
    assert set(txn_bounds(keyspace_id)) <= {region.start_key for region in cluster.regions()}


async def test_a_name_must_be_one_and_free(cluster: EmbeddedCluster) -> None:
    with pytest.raises(OptionError, match="there is a keyspace 'old' already"):
        cluster.create_keyspace("old")
    with pytest.raises(OptionError, match="not a keyspace name"):
        cluster.create_keyspace("a b")
    async with EmbeddedCluster() as other:
        with pytest.raises(OptionError, match="api_version='v2'"):
            other.create_keyspace("new")


async def test_a_keyspace_outlives_a_restart(client: BareClient, tmp_path: Path) -> None:
    async with EmbeddedCluster(path=tmp_path / "data", api_version="v2") as cluster:
        cluster.create_keyspace("new")
    async with EmbeddedCluster(path=tmp_path / "data", api_version="v2") as cluster:
        found = await client.ask_pd(cluster, Keyspace.LoadKeyspace, name="new")

    assert found.keyspace.name == "new"


async def test_a_keyspace_goes_through_its_states(cluster: EmbeddedCluster, client: BareClient) -> None:
    keyspace_id = cluster.create_keyspace("new")
    way = [DISABLED, ENABLED, ARCHIVED, DISABLED, ARCHIVED, ENABLED, ARCHIVED, TOMBSTONE, ENABLED]

    accepted = []
    for state in way:
        answer = await client.ask_pd(cluster, Keyspace.UpdateKeyspaceState, id=keyspace_id, state=state)
        accepted.append(not answer.header.HasField("error"))

    listed = await client.ask_pd(cluster, Keyspace.GetAllKeyspaces)
    assert accepted == [True, True, False, True, True, False, True, True, False]
    assert [each.state for each in listed.keyspaces] == [ENABLED, ENABLED, TOMBSTONE]


async def test_a_watch_tells_everything_and_then_changes(cluster: EmbeddedCluster, client: BareClient) -> None:
    stream = watch(cluster, client)
    first = await stream.read()
    keyspace_id = cluster.create_keyspace("new")
    made = await stream.read()
    await client.ask_pd(cluster, Keyspace.UpdateKeyspaceState, id=keyspace_id, state=DISABLED)
    changed = await stream.read()

    assert [each.name for each in first.keyspaces] == ["DEFAULT", "old"]
    assert [(each.name, each.state) for each in made.keyspaces] == [("new", ENABLED)]
    assert [(each.name, each.state) for each in changed.keyspaces] == [("new", DISABLED)]


async def test_changes_that_come_together_are_told_together(cluster: EmbeddedCluster, client: BareClient) -> None:
    stream = watch(cluster, client)
    await stream.read()

    cluster.create_keyspace("a")
    cluster.create_keyspace("b")

    assert [each.name for each in (await stream.read()).keyspaces] == ["a", "b"]


async def test_a_follower_is_not_watched(client: BareClient) -> None:
    async with EmbeddedCluster(api_version="v2", pd_members=3) as cluster:
        assert await watch(cluster, client, member=1).status() == (grpc.StatusCode.UNAVAILABLE, "not leader")


async def test_a_keyspace_may_have_safe_points_of_its_own(cluster: EmbeddedCluster, client: BareClient) -> None:
    keyspace_id = cluster.create_keyspace("own", {"gc_management_type": "keyspace_level"})
    scope = {"keyspace_id": keyspace_id}

    await client.ask_pd(cluster, PD.AdvanceTxnSafePoint, keyspace_scope=scope, target=10)

    own = (await client.ask_pd(cluster, PD.GetGCState, keyspace_scope=scope)).gc_state
    shared = (await client.ask_pd(cluster, PD.GetGCState, keyspace_scope={"keyspace_id": 1})).gc_state
    assert (own.txn_safe_point, own.is_keyspace_level_gc) == (10, True)
    assert (shared.txn_safe_point, shared.is_keyspace_level_gc) == (0, False)
