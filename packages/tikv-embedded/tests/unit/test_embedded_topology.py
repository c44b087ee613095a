"""The cluster's Regions and stores as one durable whole."""

from __future__ import annotations

import bisect
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from tikv_embedded.bootstrap import new_cluster, open_state
from tikv_embedded.engine import Engine, MemoryEngine, RocksEngine, WriteBatch
from tikv_embedded.errors import OptionError, TopologyError
from tikv_embedded.options import ClusterOptions
from tikv_embedded.pd.keyspaces import raw_key, txn_bounds
from tikv_embedded.region import Region, Store
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.topology import ID_STEP, Topology


def options(
    *,
    stores: int = 3,
    mode: ApiMode = ApiMode.V1,
    split_keys: tuple[bytes, ...] = (),
    keyspaces: tuple[str, ...] = (),
    max_peer_count: int = 3,
) -> ClusterOptions:
    return ClusterOptions(
        stores=stores,
        path=None,
        mode=mode,
        pd_members=1,
        split_keys=split_keys,
        host="127.0.0.1",
        pd_port=0,
        keyspaces=keyspaces,
        max_peer_count=max_peer_count,
        sync=True,
    )


def topology(*split_keys: bytes, stores: int = 3, engine: Engine | None = None) -> Topology:
    opened, _ = open_state(engine or MemoryEngine(), options(stores=stores, split_keys=split_keys))
    return opened


def bounds(regions: list[Region]) -> list[tuple[bytes, bytes]]:
    return [(region.start_key, region.end_key) for region in regions]


class FailingEngine(MemoryEngine):
    """Refuses every write from the moment it is told to."""

    broken = False

    def write(self, batch: WriteBatch) -> None:
        if self.broken:
            raise OSError("disk full")
        super().write(batch)


# Looking up.


def test_a_new_cluster_is_one_region_over_everything_on_all_stores() -> None:
    (region,) = topology().scan(b"", b"", 0)

    assert (region.start_key, region.end_key) == (b"", b"")
    assert [peer.store_id for peer in region.peers] == [1, 2, 3]
    assert region.leader == region.peers[0]
    assert region.epoch.version == 1


def test_a_key_is_found_in_the_region_that_begins_at_it_or_before() -> None:
    cluster = topology(b"g", b"p")

    assert cluster.find(b"").end_key == b"g"
    assert cluster.find(b"f\xff").end_key == b"g"
    assert cluster.find(b"g").start_key == b"g"
    assert cluster.find(b"\xff").start_key == b"p"


def test_the_previous_region_is_the_one_on_the_left() -> None:
    cluster = topology(b"g", b"p")

    last_but_one = cluster.previous(b"z")

    assert last_but_one is not None
    assert last_but_one.start_key == b"g"
    assert cluster.previous(b"f") is None


@pytest.mark.parametrize(
    ("start", "end", "limit", "starts"),
    [
        (b"", b"", 0, [b"", b"g", b"p"]),
        (b"", b"", -1, [b"", b"g", b"p"]),
        (b"a", b"", 2, [b"", b"g"]),
        (b"h", b"q", 0, [b"g", b"p"]),
        (b"a", b"g", 0, [b""]),
        (b"g", b"g", 0, []),
        (b"h", b"h", 0, [b"g"]),
        (b"q", b"b", 0, []),
    ],
)
def test_a_scan_starts_at_the_region_of_its_start_and_stops_before_its_end(
    start: bytes, end: bytes, limit: int, starts: list[bytes]
) -> None:
    found = topology(b"g", b"p").scan(start, end, limit)

    assert [region.start_key for region in found] == starts


# Changing.


def test_a_split_is_visible_at_once_and_keys_that_are_bounds_do_nothing() -> None:
    cluster = topology(b"m")

    pieces = cluster.split([b"t", b"m", b"f", b"t"])

    assert bounds(pieces) == [(b"", b"f"), (b"f", b"m"), (b"m", b"t"), (b"t", b"")]
    assert bounds(cluster.scan(b"", b"", 0)) == bounds(pieces)
    assert cluster.split([b"m", b"t"]) == []


def test_each_region_counts_only_its_own_pieces() -> None:
    cluster = topology(b"m")
    before = cluster.find(b"").epoch.version

    pieces = cluster.split([b"a", b"b", b"t"])

    assert [piece.epoch.version - before for piece in pieces] == [2, 2, 2, 1, 1]


def test_a_merged_source_is_gone() -> None:
    cluster = topology(b"m")
    source, target = cluster.scan(b"", b"", 0)

    merged = cluster.merge(source.id, target.id)

    assert cluster.scan(b"", b"", 0) == [merged]
    assert source.id not in cluster.regions
    with pytest.raises(TopologyError, match="no region"):
        cluster.region(source.id)


def test_ids_are_never_given_twice() -> None:
    cluster = topology(b"m")
    used = {*cluster.stores, *cluster.regions}
    used |= {peer.id for region in cluster.regions.values() for peer in region.peers}

    fresh = cluster.allocate_ids(3)
    more = cluster.allocate_ids(1)

    assert used.isdisjoint(fresh)
    assert more[0] == fresh[-1] + 1


def test_a_change_that_cannot_be_written_did_not_happen() -> None:
    engine = FailingEngine()
    cluster = topology(engine=engine)
    before = cluster.scan(b"", b"", 0)
    engine.broken = True

    with pytest.raises(OSError, match="disk full"):
        cluster.split([b"m"])

    assert cluster.scan(b"", b"", 0) == before


def test_leaders_balance_over_the_stores() -> None:
    cluster = topology()
    pieces = cluster.split([b"%d" % digit for digit in range(1, 9)])

    cluster.balance_leaders([*(piece.id for piece in pieces), 12345])

    led = [region.leader.store_id for region in cluster.regions.values() if region.leader is not None]
    assert sorted(led.count(store_id) for store_id in (1, 2, 3)) == [3, 3, 3]


def test_a_region_without_a_leader_is_not_balanced() -> None:
    cluster = topology(b"m")
    cluster.watch_stores(lambda _store_id: False)
    cluster.elect()
    before = cluster.scan(b"", b"", 0)

    cluster.balance_leaders([region.id for region in before])

    assert cluster.scan(b"", b"", 0) == before


# Elections.


def test_a_stopped_leader_is_replaced_by_a_running_voter_in_a_new_term() -> None:
    cluster = topology()
    (before,) = cluster.scan(b"", b"", 0)
    cluster.watch_stores(lambda store_id: store_id != 1)

    cluster.elect()

    (after,) = cluster.scan(b"", b"", 0)
    assert after.leader is not None
    assert after.leader.store_id == 2
    assert after.term == before.term + 1
    assert after.epoch == before.epoch


def test_without_a_majority_there_is_no_leader_until_it_is_back() -> None:
    cluster = topology()
    running = {1}
    cluster.watch_stores(running.__contains__)

    cluster.elect()
    alone = cluster.find(b"").leader
    running.add(2)
    cluster.elect()
    together = cluster.find(b"").leader

    assert alone is None
    assert together is not None
    assert together.store_id == 1


def test_voters_without_data_are_a_majority_and_no_leader() -> None:
    cluster = topology()
    region_id = cluster.find(b"").id
    for store_id in (2, 3):
        cluster.remove_peer(region_id, store_id)
        cluster.add_peer(region_id, store_id, is_learner=False, is_witness=True, is_pending=False)
    cluster.watch_stores(lambda store_id: store_id != 1)

    cluster.elect()

    assert cluster.find(b"").leader is None


def test_a_store_that_does_not_run_cannot_be_given_the_lead() -> None:
    cluster = topology()
    cluster.watch_stores(lambda store_id: store_id != 2)

    with pytest.raises(TopologyError, match="does not run"):
        cluster.transfer_leader(cluster.find(b"").id, 2)


# Starting anew and again.


def test_split_keys_spread_regions_and_leaders_over_the_stores() -> None:
    state = new_cluster(options(stores=4, max_peer_count=2), [b"b", b"c", b"d"])

    assert [[peer.store_id for peer in region.peers] for region in state.regions] == [[1, 2], [2, 3], [3, 4], [4, 1]]
    assert [region.leader for region in state.regions] == [region.peers[0] for region in state.regions]
    assert {region.epoch.version for region in state.regions} == {4}


def test_everything_is_as_it_was_after_a_restart(tmp_path: Path) -> None:
    first_engine = RocksEngine(tmp_path / "data")
    first = topology(b"m", engine=first_engine)
    first.split([b"f"])
    first.transfer_leader(first.find(b"z").id, 1)
    first.remove_peer(first.find(b"a").id, 3)
    (store_id,) = first.allocate_ids(1)
    first.put_store(Store(store_id, "127.0.0.1:1", (("zone", "a"),), 7))
    first.add_peer(first.find(b"a").id, store_id, is_learner=True, is_witness=False, is_pending=True)
    first.set_max_peer_count(5)
    first_engine.close()

    second_engine = RocksEngine(tmp_path / "data")
    second = topology(engine=second_engine)

    assert second.cluster_id == first.cluster_id
    assert second.regions == first.regions
    assert second.stores == first.stores
    assert second.max_peer_count == 5
    assert second.allocate_ids(1)[0] > first.allocate_ids(1)[0]
    second_engine.close()


def test_ids_skip_at_most_one_step_per_restart() -> None:
    engine = MemoryEngine()
    first = topology(engine=engine).allocate_ids(1)[0]

    second = topology(engine=engine).allocate_ids(1)[0]

    assert first < second <= first + ID_STEP


def test_a_restart_adds_the_stores_and_bounds_that_are_asked_for_and_takes_none_away() -> None:
    engine = MemoryEngine()
    topology(b"m", engine=engine)

    more = topology(b"f", stores=5, engine=engine)
    fewer = topology(stores=1, engine=engine)

    assert len(more.stores) == 5
    assert bounds(more.scan(b"", b"", 0)) == [(b"", b"f"), (b"f", b"m"), (b"m", b"")]
    assert fewer.stores == more.stores
    assert fewer.regions == more.regions


def test_the_storage_mode_cannot_change() -> None:
    engine = MemoryEngine()
    topology(engine=engine)

    with pytest.raises(OptionError, match="'v1', not 'v1ttl'"):
        open_state(engine, options(mode=ApiMode.V1TTL))


def test_v2_cuts_out_each_keyspace_and_splits_in_the_default_one() -> None:
    opened, keyspaces = open_state(
        MemoryEngine(), options(mode=ApiMode.V2, split_keys=(b"m",), keyspaces=("blue", "red"))
    )

    starts = [region.start_key for region in opened.scan(b"", b"", 0)]
    assert [keyspace.name for keyspace in keyspaces.since(0)] == ["DEFAULT", "blue", "red"]
    # The end of one keyspace is the start of the next.
    assert starts == [b"", raw_key(0, b"m"), *txn_bounds(0), txn_bounds(1)[1], txn_bounds(2)[1]]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.binary(min_size=1, max_size=3), max_size=4), max_size=6), st.data())
def test_regions_always_cover_the_key_space_without_gaps_or_overlaps(
    splits: list[list[bytes]], data: st.DataObject
) -> None:
    cluster = topology()

    for keys in splits:
        cluster.split(keys)
        ordered = cluster.scan(b"", b"", 0)
        if len(ordered) > 1 and data.draw(st.booleans()):
            position = data.draw(st.integers(0, len(ordered) - 2))
            pair = [ordered[position].id, ordered[position + 1].id]
            cluster.merge(*(pair if data.draw(st.booleans()) else reversed(pair)))

    ordered = cluster.scan(b"", b"", 0)
    assert ordered[0].start_key == b""
    assert ordered[-1].end_key == b""
    assert [region.end_key for region in ordered[:-1]] == [region.start_key for region in ordered[1:]]
    starts = [region.start_key for region in ordered]
    assert starts == sorted(set(starts))
    key = data.draw(st.binary(max_size=4))
    assert cluster.find(key) == ordered[bisect.bisect_right(starts, key) - 1]
