from __future__ import annotations

import pytest
from tikv_pd import ConfigError, Keyspace, Peer, Region, RegionEpoch, Store
from tikv_proto import apipb, keyspacepb, metapb, pdpb

LEADER = Peer(11, 1)
REGION = Region(1, b"a", b"m", RegionEpoch(3, 5), (LEADER, Peer(12, 2, is_learner=True), Peer(13, 3, is_witness=True)))


def test_a_region_survives_the_wire() -> None:
    assert Region.from_pb(REGION.to_pb()) == REGION


def test_a_region_takes_leader_and_peer_states_from_the_answer() -> None:
    answer = pdpb.GetRegionResponse(
        region=REGION.to_pb(),
        leader=LEADER.to_pb(),
        down_peers=[pdpb.PeerStats(peer=metapb.Peer(id=12))],
        pending_peers=[metapb.Peer(id=13)],
    )

    region = Region.from_answer(answer)

    assert region is not None
    assert (region.leader, region.down_peers, region.pending_peers) == (LEADER, (12,), (13,))


def test_a_leader_with_id_zero_is_none() -> None:
    assert Region.from_pb(REGION.to_pb(), metapb.Peer()).leader is None


def test_an_answer_without_region_is_none() -> None:
    assert Region.from_answer(pdpb.GetRegionResponse()) is None


@pytest.mark.parametrize("is_tombstone", [False, True])
def test_a_store_survives_the_wire(is_tombstone: bool) -> None:
    store = Store(1, "tikv1:20160", (("zone", "a"), ("host", "h")), is_tombstone, "8.5.0")

    assert Store.from_pb(store.to_pb()) == store


@pytest.mark.parametrize(
    "gone", [metapb.Store(state=metapb.StoreState.Tombstone), metapb.Store(node_state=metapb.NodeState.Removed)]
)
def test_a_store_is_gone_by_either_of_its_states(gone: metapb.Store) -> None:
    assert Store.from_pb(gone).is_tombstone


def test_a_keyspace_has_its_state_by_name() -> None:
    meta = keyspacepb.KeyspaceMeta(id=4, name="orders", state=keyspacepb.KeyspaceState.ARCHIVED)

    assert Keyspace.from_pb(meta) == Keyspace(4, "orders", "ARCHIVED")


def test_a_keyspace_of_api_v3_is_not_taken_for_the_default_one() -> None:
    identity = apipb.KeyspaceIdentity(namespace_id=1, keyspace_id=7)

    with pytest.raises(ConfigError, match="API V3"):
        Keyspace.from_pb(keyspacepb.KeyspaceMeta(keyspace_identity=identity, name="shop"))
