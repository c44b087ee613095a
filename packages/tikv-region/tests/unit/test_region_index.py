from __future__ import annotations

import pytest
from tikv_pd import Peer, Region, RegionEpoch
from tikv_region import InvalidReason, KeyRange, RegionEntry, StoreEntry
from tikv_region._index import RegionIndex

STORES = {number: StoreEntry(number) for number in (1, 2, 3)}


def entry(region_id: int, start: bytes, end: bytes, version: int = 1, conf_ver: int = 1) -> RegionEntry:
    peers = tuple(Peer(region_id * 10 + number, number) for number in STORES)
    region = Region(region_id, start, end, RegionEpoch(conf_ver, version), peers, peers[0])
    replicas = [(peer, STORES[peer.store_id]) for peer in peers]
    return RegionEntry(region, (start, end), replicas, 10.0, lambda: 0.0)


@pytest.fixture
def index() -> RegionIndex:
    """[a, g) of Region 1, [g, p) of 2, [p, ∞) of 3; nothing below b"a"."""
    index = RegionIndex()
    for known in (entry(1, b"a", b"g"), entry(2, b"g", b"p"), entry(3, b"p", b"")):
        assert index.put(known) is known
    return index


def ids(index: RegionIndex) -> list[tuple[int, bytes]]:
    assert index.starts == [known.start for known in index.entries]
    return [(known.id, known.start) for known in index.entries]


def test_a_key_is_held_by_the_entry_around_it(index: RegionIndex) -> None:
    found = {key: index.at(key) for key in (b"", b"a", b"fz", b"g", b"zz")}

    assert {key: known and known.id for key, known in found.items()} == {
        b"": None,
        b"a": 1,
        b"fz": 1,
        b"g": 2,
        b"zz": 3,
    }


def test_an_end_key_is_held_by_the_entry_below_it(index: RegionIndex) -> None:
    found = {key: index.at_end(key) for key in (b"a", b"a\0", b"g", b"h", b"")}

    assert {key: known and known.id for key, known in found.items()} == {
        b"a": None,
        b"a\0": 1,
        b"g": 1,
        b"h": 2,
        b"": 3,
    }


def test_nothing_ends_the_key_space_while_its_last_region_is_unknown() -> None:
    index = RegionIndex()

    assert index.at_end(b"") is None
    index.put(entry(1, b"", b"g"))
    assert index.at_end(b"") is None
    assert index.at_end(b"h") is None
    assert index.at(b"g") is None


def test_overlapping_entries_are_those_that_share_keys(index: RegionIndex) -> None:
    assert [known.id for known in index.overlapping(b"b", b"g")] == [1]
    assert [known.id for known in index.overlapping(b"b", b"g\0")] == [1, 2]
    assert [known.id for known in index.overlapping(b"", b"a")] == []
    assert [known.id for known in index.overlapping(b"g", b"")] == [2, 3]


def test_a_newer_region_takes_the_place_of_all_it_overlaps(index: RegionIndex) -> None:
    replaced = list(index.entries)

    index.put(entry(2, b"c", b"q", version=2))

    assert ids(index) == [(2, b"c")]
    assert {known.invalid_reason for known in replaced} == {InvalidReason.REPLACED}
    assert index.at(b"b") is None


def test_both_pieces_of_a_split_take_the_place_of_the_whole(index: RegionIndex) -> None:
    index.put(entry(9, b"g", b"k", version=2))
    index.put(entry(2, b"k", b"p", version=2))

    assert ids(index) == [(1, b"a"), (9, b"g"), (2, b"k"), (3, b"p")]


@pytest.mark.parametrize(("version", "conf_ver"), [(1, 3), (2, 2), (1, 2)])
def test_an_earlier_epoch_of_a_region_is_rejected(index: RegionIndex, version: int, conf_ver: int) -> None:
    index.put(entry(2, b"g", b"p", version=2, conf_ver=3))

    rejected = index.put(entry(2, b"g", b"p", version=version, conf_ver=conf_ver))

    assert rejected is None
    assert index.at(b"h") is not None


def test_an_earlier_epoch_is_rejected_wherever_it_was(index: RegionIndex) -> None:
    index.put(entry(3, b"p", b"", version=5))

    assert index.put(entry(3, b"", b"a", version=4)) is None


def test_a_region_older_than_one_it_overlaps_is_rejected_whole(index: RegionIndex) -> None:
    index.put(entry(2, b"g", b"p", version=3))
    before = list(index.entries)

    assert index.put(entry(9, b"a", b"h", version=2)) is None
    assert index.put(entry(9, b"h", b"z", version=2)) is None
    assert index.entries == before
    assert all(known.is_valid() for known in before)


def test_an_older_region_that_starts_before_the_new_one_goes_too(index: RegionIndex) -> None:
    index.put(entry(9, b"h", b"k", version=2))

    assert ids(index) == [(1, b"a"), (9, b"h"), (3, b"p")]
    assert index.at(b"g") is None
    assert index.at(b"m") is None


def test_a_region_that_moved_away_is_not_left_where_it_was(index: RegionIndex) -> None:
    index.put(entry(3, b"", b"a", version=2))

    assert ids(index) == [(3, b""), (1, b"a"), (2, b"g")]


def test_the_same_region_again_keeps_the_entry_and_what_it_learned(index: RegionIndex) -> None:
    known = index.at(b"h")
    assert known is not None
    known.switch_leader(2)
    again = entry(2, b"g", b"p")
    again.expires_at = 99.0

    assert index.put(again) is known
    assert known.leader == 2
    assert known.expires_at == 99.0


def test_the_same_region_again_replaces_an_invalid_entry(index: RegionIndex) -> None:
    known = index.at(b"h")
    assert known is not None
    known.invalidate(InvalidReason.OTHER)
    again = entry(2, b"g", b"p")

    assert index.put(again) is again
    assert index.at(b"h") is again


def test_a_leader_tried_in_vain_is_not_tried_first_again(index: RegionIndex) -> None:
    known = index.at(b"h")
    assert known is not None
    known.invalidate(InvalidReason.NO_LEADER)
    again = entry(2, b"g", b"p")

    index.put(again)

    assert again.leader == 1


def test_another_leader_than_the_one_tried_in_vain_is_believed(index: RegionIndex) -> None:
    known = index.at(b"h")
    assert known is not None
    known.switch_leader(2)
    known.invalidate(InvalidReason.NO_LEADER)
    again = entry(2, b"g", b"p")

    index.put(again)

    assert again.leader == 0


def test_obstacles_are_what_an_outdated_region_is_rejected_for(index: RegionIndex) -> None:
    index.put(entry(2, b"g", b"p", version=3))
    index.put(entry(3, b"p", b"", conf_ver=2))

    assert [known.id for known in index.obstacles(entry(9, b"a", b"z", version=2))] == [2]
    assert [known.id for known in index.obstacles(entry(3, b"", b"a", version=1))] == [3]
    assert index.obstacles(entry(9, b"a", b"z", version=3)) == []


def test_removing_forgets_an_entry_and_its_epoch(index: RegionIndex) -> None:
    known = index.at(b"h")
    assert known is not None

    index.remove(known)
    index.remove(known)

    assert ids(index) == [(1, b"a"), (3, b"p")]
    assert index.put(entry(2, b"g", b"p", version=0)) is not None


def test_neighbors_share_one_object_for_their_common_bound(index: RegionIndex) -> None:
    index.put(entry(9, bytes(bytearray(b"g")), bytes(bytearray(b"p")), version=2))

    one, two, three = index.entries
    assert one.end is two.start
    assert two.end is three.start


def test_a_sweep_goes_round_and_forgets_what_is_of_no_more_use(index: RegionIndex) -> None:
    known = index.at(b"h")
    assert known is not None
    known.invalidate(InvalidReason.OTHER)

    cursors = [index.sweep(b"", 1)]
    cursors.append(index.sweep(cursors[-1], 1))
    cursors.append(index.sweep(cursors[-1], 2))

    assert cursors == [b"a\0", b"g\0", b""]
    assert ids(index) == [(1, b"a"), (3, b"p")]
    assert index.put(entry(2, b"g", b"p")) is not None


def test_a_sweep_of_nothing_starts_again() -> None:
    assert RegionIndex().sweep(b"k", 10) == b""


def test_an_entry_that_is_renewed_takes_the_place_of_an_equal_one(index: RegionIndex) -> None:
    again = entry(2, b"g", b"p")

    assert index.put(again, renew=True) is again
    assert index.at(b"h") is again


def test_what_no_valid_entry_holds_is_unknown(index: RegionIndex) -> None:
    whole, empty = KeyRange(), KeyRange(b"k", b"k")
    assert index.unknown(whole) == [KeyRange(b"", b"a")]
    assert index.unknown(KeyRange(b"h", b"z")) == index.unknown(empty) == []
    assert RegionIndex().unknown(whole) == [whole]
    for key in (b"h", b"q"):
        known = index.at(key)
        assert known is not None
        known.invalidate(InvalidReason.OTHER)

    assert index.unknown(whole) == [KeyRange(b"", b"a"), KeyRange(b"g", b"")]
    assert index.unknown(KeyRange(b"b", b"h")) == [KeyRange(b"g", b"h")]


def test_an_equal_epoch_with_other_bounds_is_another_region(index: RegionIndex) -> None:
    # A cluster that was set back to a backup may have split at other keys since.
    other = entry(2, b"g", b"m")

    assert index.put(other) is other
    assert index.at(b"n") is None
