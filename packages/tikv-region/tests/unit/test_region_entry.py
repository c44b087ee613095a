from __future__ import annotations

from tikv_pd import Peer, Region, RegionEpoch
from tikv_region import InvalidReason, KeyRange, RegionEntry, StoreEntry

PEERS = (Peer(11, 1), Peer(12, 2), Peer(13, 3, is_learner=True), Peer(14, 4))


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


def entry(clock: Clock | None = None, leader: Peer | None = PEERS[0], peers: tuple[Peer, ...] = PEERS) -> RegionEntry:
    region = Region(1, b"b", b"d", RegionEpoch(3, 4), peers, leader)
    replicas = [(peer, StoreEntry(peer.store_id)) for peer in peers]
    return RegionEntry(region, (b"b", b"d"), replicas, 10.0, clock or Clock())


def test_an_entry_holds_the_keys_of_its_range() -> None:
    known = entry()

    assert known.range == KeyRange(b"b", b"d")
    assert [known.contains(key) for key in (b"a", b"b", b"cz", b"d")] == [False, True, True, False]


def test_an_entry_is_led_by_the_peer_pd_names() -> None:
    known = entry(leader=Peer(12, 2))

    assert (known.leader, known.leader_peer.id, known.leader_store.id) == (1, 12, 2)


def test_an_entry_without_a_known_leader_tries_its_first_voter() -> None:
    assert entry(leader=None).leader == 0
    assert entry(leader=Peer(99, 9), peers=(PEERS[2], PEERS[3])).leader == 1
    assert entry(leader=None, peers=(PEERS[2],)).leader == 0


def test_an_entry_is_invalid_when_its_time_is_over() -> None:
    clock = Clock()
    known = entry(clock)

    assert known.is_valid()
    clock.time = 10.0
    assert not known.is_valid()


def test_only_the_first_reason_to_invalidate_is_kept() -> None:
    known = entry()

    known.invalidate(InvalidReason.NO_LEADER)
    known.invalidate(InvalidReason.OTHER)

    assert not known.is_valid()
    assert known.invalid_reason is InvalidReason.NO_LEADER


def test_a_failure_of_the_leaders_store_makes_an_entry_stale_and_of_another_does_not() -> None:
    known = entry()

    known.stores[1].epoch += 1
    assert known.is_valid()
    assert not known.is_fresh(1)
    known.leader_store.epoch += 1
    assert not known.is_valid()


def test_switching_the_leader_trusts_its_store_again_and_drops_the_attachment() -> None:
    known = entry()
    known.attachment = object()
    known.stores[1].epoch += 1

    known.switch_leader(1)

    assert known.is_valid()
    assert known.is_fresh(1)
    assert known.leader_peer.id == 12
    assert known.attachment is None


def test_the_same_leader_again_keeps_the_attachment() -> None:
    known = entry()
    known.attachment = kept = object()
    known.leader_store.epoch += 1

    known.switch_leader(0)

    assert known.is_valid()
    assert known.attachment is kept


def test_the_next_leader_is_a_voter_whose_store_has_not_failed() -> None:
    known = entry()
    known.attachment = object()

    known.stores[1].epoch += 1
    known.next_leader()

    assert known.leader == 3
    assert known.attachment is None


def test_the_next_leader_is_any_other_voter_when_all_stores_failed() -> None:
    known = entry()
    for store in known.stores:
        store.epoch += 1

    known.next_leader()

    assert known.leader == 1
    assert not known.is_valid()


def test_a_single_voter_stays_the_leader() -> None:
    known = entry(peers=PEERS[2:])

    known.next_leader()

    assert known.leader_peer == PEERS[3]


def test_entries_tell_what_they_are() -> None:
    known = entry()

    assert repr(known) == "<Region 1 epoch 3.4 [b'b', b'd') led by <store 1 at ?>, valid>"
