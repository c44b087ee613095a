from __future__ import annotations

import pytest
from tikv_pd import Peer, RegionEpoch
from tikv_region import KeyspaceCodec, TxnV1Codec, memcomparable_encode
from tikv_region.testing import RegionMap


@pytest.fixture
def region_map() -> RegionMap:
    return RegionMap([b"g", b"p"], stores=2)


def test_regions_are_contiguous_and_led_from_the_first_store(region_map: RegionMap) -> None:
    assert [(region.start_key, region.end_key) for region in region_map.regions] == [
        (b"", b"g"),
        (b"g", b"p"),
        (b"p", b""),
    ]
    assert all(region.leader == region.peers[0] for region in region_map.regions)
    assert len({peer.id for region in region_map.regions for peer in region.peers}) == 6


def test_bounds_are_encoded() -> None:
    assert RegionMap([b"g"], codec=TxnV1Codec()).regions[1].start_key == memcomparable_encode(b"g")
    starts = [region.start_key for region in RegionMap([b"g"], codec=KeyspaceCodec(b"r", 1, "")).regions]
    assert starts == [b"", *(memcomparable_encode(key) for key in (b"r\0\0\1", b"r\0\0\1g", b"r\0\0\2"))]


def test_the_right_piece_of_a_split_keeps_the_id(region_map: RegionMap) -> None:
    before = region_map.regions
    old = region_map.region(b"h")

    left = region_map.split(b"k")

    right = region_map.region(b"k")
    assert (left.start_key, left.end_key, right.start_key, right.end_key) == (b"g", b"k", b"k", b"p")
    assert (right.id, right.epoch, left.epoch) == (old.id, RegionEpoch(1, 2), RegionEpoch(1, 2))
    assert len(before) == 3
    with pytest.raises(ValueError, match="already"):
        region_map.split(b"k")


def test_a_merge_keeps_the_id_of_the_neighbor(region_map: RegionMap) -> None:
    right, left = region_map.region(b"p"), region_map.region(b"a")

    merged = region_map.merge(b"h")

    assert (merged.id, merged.start_key, merged.end_key, merged.epoch) == (right.id, b"g", b"", RegionEpoch(1, 2))
    assert region_map.merge(b"h", into_left=True).id == left.id
    assert region_map.region(b"z").epoch == RegionEpoch(1, 3)
    for into_left in (True, False):
        with pytest.raises(ValueError, match="neighbor"):
            region_map.merge(b"h", into_left=into_left)


def test_a_request_is_refused_as_tikv_does(region_map: RegionMap) -> None:
    region = region_map.region(b"h")
    leader, follower = region.peers

    def refused(
        epoch: RegionEpoch = region.epoch, peer: Peer = leader, key: bytes = b"h", region_id: int = region.id
    ) -> str:
        error = region_map.refusal(region_id, epoch, peer, key)
        return error.ListFields()[-1][0].name if error is not None else "served"

    assert refused() == "served"
    assert refused(region_id=999) == "region_not_found"
    assert refused(peer=Peer(leader.id, 9)) == "region_not_found"
    assert refused(peer=Peer(999, 1)) == "mismatch_peer_id"
    assert refused(peer=follower) == "not_leader"
    assert refused(epoch=RegionEpoch(1, 9)) == "epoch_not_match"
    assert refused(key=b"q") == "key_not_in_region"


def test_an_epoch_error_tells_of_the_left_neighbor_too(region_map: RegionMap) -> None:
    error = region_map.epoch_not_match(region_map.regions[0], region_map.regions[2])

    ids = [region.id for region in error.epoch_not_match.current_regions]
    assert ids == [region_map.regions[0].id, region_map.regions[2].id, region_map.regions[1].id]


def test_a_peer_that_moves_gets_a_new_id_and_changes_the_epoch(region_map: RegionMap) -> None:
    moved = region_map.move_peer(b"h", 1, 3)

    assert moved.epoch == RegionEpoch(3, 1)
    assert [peer.store_id for peer in moved.peers] == [3, 2]
    assert moved.leader == moved.peers[0]
    assert region_map.move_peer(b"h", 2, 1).leader == moved.leader
