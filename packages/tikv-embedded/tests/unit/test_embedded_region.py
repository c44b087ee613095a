"""What happens to a Region's bounds, epoch, peers and leader when it changes."""

from __future__ import annotations

import attrs
import pytest
from tikv_embedded.errors import TopologyError
from tikv_embedded.region import (
    Peer,
    Region,
    RegionEpoch,
    add_peer,
    drop_leader,
    merge,
    peer_to_pb,
    region_to_pb,
    remove_peer,
    split,
    transfer_leader,
)
from tikv_proto import metapb


def region(region_id: int = 1, start: bytes = b"b", end: bytes = b"y", version: int = 5, conf_ver: int = 3) -> Region:
    peers = tuple(Peer(region_id * 10 + store_id, store_id) for store_id in (1, 2, 3))
    return Region(region_id, start, end, RegionEpoch(conf_ver, version), peers, leader=peers[1], term=8)


def test_a_region_contains_its_start_and_not_its_end() -> None:
    bounded, unbounded = region(), region(end=b"")

    assert bounded.contains(b"b")
    assert bounded.contains(b"x\xff")
    assert not bounded.contains(b"y")
    assert not bounded.contains(b"a")
    assert unbounded.contains(b"\xff\xff")


def test_a_split_keeps_the_right_piece_under_the_old_id() -> None:
    left, right = split(region(), [b"m"], [(2, [21, 22, 23])])

    assert (left.id, left.start_key, left.end_key) == (2, b"b", b"m")
    assert (right.id, right.start_key, right.end_key) == (1, b"m", b"y")
    assert right.peers == region().peers


def test_every_piece_of_a_batch_split_gets_the_version_plus_the_number_of_new_regions() -> None:
    pieces = split(region(), [b"f", b"m", b"t"], [(2, [21, 22, 23]), (3, [31, 32, 33]), (4, [41, 42, 43])])

    assert [piece.id for piece in pieces] == [2, 3, 4, 1]
    assert {piece.epoch for piece in pieces} == {RegionEpoch(conf_ver=3, version=8)}
    assert [piece.start_key for piece in pieces] == [b"b", b"f", b"m", b"t"]
    assert [piece.end_key for piece in pieces] == [b"f", b"m", b"t", b"y"]


def test_new_pieces_have_new_peers_on_the_same_stores_and_the_leader_on_the_same_store() -> None:
    left, right = split(region(), [b"m"], [(2, [21, 22, 23])])

    assert left.peers == (Peer(21, 1), Peer(22, 2), Peer(23, 3))
    assert left.leader == Peer(22, 2)
    assert right.leader == Peer(12, 2)
    assert right.term == 8


def test_a_region_without_a_leader_splits_into_pieces_without_leaders() -> None:
    pieces = split(drop_leader(region()), [b"m"], [(2, [21, 22, 23])])

    assert [piece.leader for piece in pieces] == [None, None]


@pytest.mark.parametrize(("source_version", "target_version", "merged"), [(5, 5, 7), (9, 5, 11), (5, 9, 10)])
def test_a_merged_region_is_newer_than_both_and_than_the_prepared_source(
    source_version: int, target_version: int, merged: int
) -> None:
    source = region(1, b"b", b"m", version=source_version)
    target = region(2, b"m", b"y", version=target_version)

    grown = merge(source, target)

    assert grown.epoch == RegionEpoch(conf_ver=3, version=merged)


def test_a_merge_takes_the_range_of_the_left_or_of_the_right_neighbor() -> None:
    left, right = region(1, b"b", b"m"), region(2, b"m", b"y")

    into_right, into_left = merge(left, right), merge(right, left)

    assert (into_right.id, into_right.start_key, into_right.end_key) == (2, b"b", b"y")
    assert (into_left.id, into_left.start_key, into_left.end_key) == (1, b"b", b"y")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(region(2, b"z", b""), id="a gap between them"),
        pytest.param(attrs.evolve(region(2, b"y", b""), peers=(Peer(21, 1), Peer(22, 2))), id="other stores"),
        pytest.param(region(1), id="itself"),
    ],
)
def test_only_neighbors_on_the_same_stores_merge(other: Region) -> None:
    with pytest.raises(TopologyError):
        merge(region(), other)


def test_the_first_and_the_last_region_are_not_neighbors() -> None:
    with pytest.raises(TopologyError):
        merge(region(1, b"", b"b"), region(2, b"y", b""))


def test_a_leader_transfer_is_a_new_term_in_the_same_epoch() -> None:
    moved = transfer_leader(region(), 3)

    assert moved.leader == Peer(13, 3)
    assert moved.term == 9
    assert moved.epoch == region().epoch


def test_a_transfer_to_the_leader_changes_nothing() -> None:
    assert transfer_leader(region(), 2) == region()


@pytest.mark.parametrize(
    "peer", [Peer(14, 4, is_learner=True), Peer(14, 4, is_witness=True), Peer(14, 4, is_pending=True)]
)
def test_a_peer_without_vote_or_data_cannot_lead(peer: Peer) -> None:
    grown = add_peer(region(), peer)

    with pytest.raises(TopologyError, match="cannot lead"):
        transfer_leader(grown, 4)


def test_a_store_without_a_peer_cannot_lead() -> None:
    with pytest.raises(TopologyError, match="no peer on store 4"):
        transfer_leader(region(), 4)


def test_adding_and_removing_peers_counts_conf_ver_and_leaves_the_version() -> None:
    grown = add_peer(region(), Peer(14, 4))
    shrunk = remove_peer(grown, 1)

    assert grown.epoch == RegionEpoch(conf_ver=4, version=5)
    assert shrunk.epoch == RegionEpoch(conf_ver=5, version=5)
    assert [peer.store_id for peer in shrunk.peers] == [2, 3, 4]
    assert shrunk.leader == region().leader


def test_a_removed_leader_hands_over_first() -> None:
    shrunk = remove_peer(region(), 2)

    assert shrunk.leader == Peer(11, 1)
    assert shrunk.term == 9


def test_a_store_holds_one_peer_of_a_region() -> None:
    with pytest.raises(TopologyError, match="already"):
        add_peer(region(), Peer(14, 3))


def test_the_last_peer_that_could_lead_stays() -> None:
    alone = attrs.evolve(region(), peers=(Peer(12, 2), Peer(13, 3, is_learner=True)), leader=Peer(12, 2))

    with pytest.raises(TopologyError):
        remove_peer(alone, 2)
    with pytest.raises(TopologyError, match="no peer"):
        remove_peer(alone, 1)


def test_the_wire_form_names_range_epoch_and_roles() -> None:
    learner = Peer(14, 4, is_learner=True)

    message = region_to_pb(add_peer(region(), learner))

    assert message.id == 1
    assert (message.start_key, message.end_key) == (b"b", b"y")
    assert (message.region_epoch.conf_ver, message.region_epoch.version) == (4, 5)
    assert [peer.role for peer in message.peers] == [metapb.PeerRole.Voter] * 3 + [metapb.PeerRole.Learner]
    assert peer_to_pb(Peer(1, 2, is_witness=True)).is_witness
