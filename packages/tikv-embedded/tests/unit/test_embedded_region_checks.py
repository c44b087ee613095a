"""Which region error a store answers with, in which order, and what it carries."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from tikv_embedded import meta
from tikv_embedded.engine import MemoryEngine
from tikv_embedded.region import Peer, Region, RegionEpoch, Store, drop_leader, region_to_pb
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.store.region_checks import (
    MAX_REGIONS_IN_ERROR,
    check_keys,
    check_range,
    check_region,
    check_seeks,
    check_split,
    deadline_error,
)
from tikv_embedded.testing import context_for
from tikv_embedded.topology import Topology
from tikv_proto import errorpb, kvrpcpb, metapb

PEERS = (Peer(11, 1), Peer(12, 2), Peer(13, 3, is_witness=True), Peer(14, 4, is_pending=True))
REGION = Region(1, b"b", b"y", RegionEpoch(2, 5), PEERS, leader=PEERS[0], term=9)
LEADER = metapb.Peer(id=11, store_id=1)


def topology(*regions: Region) -> Topology:
    state = meta.ClusterState(
        cluster_id=1,
        mode=ApiMode.V1,
        max_peer_count=3,
        next_id=1000,
        stores=tuple(Store(store_id, "") for store_id in range(1, 6)),
        regions=regions,
    )
    return Topology(MemoryEngine(), state)


CLUSTER = topology(REGION)


def check(context: kvrpcpb.Context, *, store_id: int = 1, is_read: bool = False) -> Region | errorpb.Error:
    return check_region(CLUSTER, store_id, context, is_read=is_read)


def kind(error: Region | errorpb.Error | None) -> str | None:
    """Return the one field that is set beside the message; there is always a message."""
    assert isinstance(error, errorpb.Error)
    assert error.message
    fields = [field.name for field, _ in error.ListFields() if field.name != "message"]
    assert len(fields) <= 1
    return fields[0] if fields else None


def test_the_leader_serves_a_request_that_knows_its_region() -> None:
    assert check(context_for(REGION)) is REGION


@pytest.mark.parametrize(
    ("store_id", "fields", "expected"),
    [
        (2, {}, errorpb.Error(store_not_match=errorpb.StoreNotMatch(request_store_id=1, actual_store_id=2))),
        (1, {"region_id": 7}, errorpb.Error(region_not_found=errorpb.RegionNotFound(region_id=7))),
        (
            1,
            {"peer": metapb.Peer(id=99)},
            errorpb.Error(mismatch_peer_id=errorpb.MismatchPeerId(request_peer_id=99, store_peer_id=11)),
        ),
        (1, {"term": 7}, errorpb.Error(stale_command=errorpb.StaleCommand())),
    ],
)
def test_a_request_that_is_wrong_in_one_thing_is_told_which(
    store_id: int, fields: dict[str, Any], expected: errorpb.Error
) -> None:
    error = check(context_for(REGION, **fields), store_id=store_id)

    assert isinstance(error, errorpb.Error)
    assert error.message
    error.message = ""
    assert error == expected


def test_a_store_without_a_peer_does_not_know_the_region() -> None:
    context = context_for(REGION)
    context.peer.store_id = 5

    error = check(context, store_id=5)

    assert kind(error) == "region_not_found"


@pytest.mark.parametrize("term", [0, 8, 9, 10])
def test_a_term_may_be_absent_or_one_behind(term: int) -> None:
    assert check(context_for(REGION, term=term)) is REGION


def test_a_follower_names_the_leader() -> None:
    error = check(context_for(REGION, 2), store_id=2)

    assert isinstance(error, errorpb.Error)
    assert error.not_leader == errorpb.NotLeader(region_id=1, leader=LEADER)


def test_during_an_election_nobody_is_named() -> None:
    leaderless = topology(drop_leader(REGION))

    error = check_region(leaderless, 1, context_for(REGION), is_read=False)

    assert isinstance(error, errorpb.Error)
    assert error.not_leader.region_id == 1
    assert not error.not_leader.HasField("leader")


@pytest.mark.parametrize("flag", ["replica_read", "stale_read"])
def test_a_follower_answers_reads_that_allow_it_and_no_writes(flag: str) -> None:
    context = context_for(REGION, 2, **{flag: True})

    assert check(context, store_id=2, is_read=True) is REGION
    assert kind(check(context, store_id=2, is_read=False)) == "not_leader"


@pytest.mark.parametrize(("store_id", "expected"), [(3, "is_witness"), (4, "region_not_initialized")])
def test_a_peer_without_data_answers_not_even_replica_reads(store_id: int, expected: str) -> None:
    error = check(context_for(REGION, store_id, replica_read=True), store_id=store_id, is_read=True)

    assert kind(error) == expected


@pytest.mark.parametrize("version", [0, 4, 6])
def test_any_other_version_fails(version: int) -> None:
    error = check(context_for(attrs.evolve(REGION, epoch=RegionEpoch(2, version))))

    assert kind(error) == "epoch_not_match"


@pytest.mark.parametrize("conf_ver", [0, 1, 3])
def test_conf_ver_is_not_compared(conf_ver: int) -> None:
    assert check(context_for(attrs.evolve(REGION, epoch=RegionEpoch(conf_ver, 5)))) is REGION


def test_a_request_without_an_epoch_gets_a_message_alone() -> None:
    context = context_for(REGION)
    context.ClearField("region_epoch")

    error = check(context)

    assert kind(error) is None
    assert isinstance(error, errorpb.Error)
    assert "missing epoch" in error.message


def test_checks_fail_in_the_order_of_tikv() -> None:
    """A request with everything wrong, put right step by step."""
    context = kvrpcpb.Context(
        region_id=7, peer=metapb.Peer(id=99, store_id=8), term=1, region_epoch=metapb.RegionEpoch(version=1)
    )
    store_id = 3
    seen = []

    def step() -> None:
        seen.append(kind(check(context, store_id=store_id)))

    step()
    context.peer.store_id = 3
    step()
    context.region_id = 1
    step()
    context.peer.id = 13
    step()
    context.peer.CopyFrom(LEADER)
    store_id = 1
    step()
    context.term = 9
    step()
    context.region_epoch.version = 5

    assert seen == [
        "store_not_match",
        "region_not_found",
        "mismatch_peer_id",
        "not_leader",
        "stale_command",
        "epoch_not_match",
    ]
    assert check(context) is REGION


# What EpochNotMatch tells about the Regions of today.


def current(cluster: Topology, region: Region, version: int) -> list[bytes]:
    """Return the start keys of the Regions named to a caller that knows `version` of `region`."""
    stale = context_for(attrs.evolve(region, epoch=RegionEpoch(1, version)))
    error = check_region(cluster, 1, stale, is_read=True)
    assert isinstance(error, errorpb.Error)
    return [named.start_key for named in error.epoch_not_match.current_regions]


def split_once(*keys: bytes) -> Topology:
    cluster = topology(attrs.evolve(REGION, start_key=b"", end_key=b""))
    cluster.split(keys)
    return cluster


def test_a_caller_from_before_a_split_learns_the_region_and_its_left_siblings() -> None:
    cluster = split_once(b"f", b"m")

    assert current(cluster, cluster.regions[1], 5) == [b"m", b"f", b""]


def test_a_caller_learns_no_more_siblings_than_it_missed() -> None:
    cluster = split_once(b"f")
    cluster.split([b"m"])

    assert current(cluster, cluster.regions[1], 6) == [b"m", b"f"]


def test_a_sibling_that_was_split_again_counts_for_its_pieces() -> None:
    cluster = split_once(b"m")
    cluster.split([b"c", b"f"])

    assert current(cluster, cluster.regions[1], 5) == [b"m", b"f", b"c", b""]


def test_a_caller_that_is_ahead_gets_the_region_alone() -> None:
    cluster = split_once(b"m")

    assert current(cluster, cluster.regions[1], 99) == [b"m"]


def test_at_most_ten_siblings_are_named() -> None:
    cluster = split_once(*(b"%02d" % number for number in range(30)))

    assert len(current(cluster, cluster.regions[1], 5)) == 1 + MAX_REGIONS_IN_ERROR


def test_the_regions_named_are_complete() -> None:
    cluster = split_once(b"m")
    region = cluster.regions[1]

    error = check_region(cluster, 1, context_for(REGION), is_read=True)

    assert isinstance(error, errorpb.Error)
    assert error.epoch_not_match.current_regions[0] == region_to_pb(region)


# Keys.


@pytest.mark.parametrize("key", [b"", b"a", b"y", b"z"])
def test_a_key_outside_the_region_is_named_with_the_bounds(key: bytes) -> None:
    error = check_keys(REGION, [b"b", key])

    assert error is not None
    assert error.key_not_in_region == errorpb.KeyNotInRegion(key=key, region_id=1, start_key=b"b", end_key=b"y")


@pytest.mark.parametrize(
    ("region", "keys"),
    [(REGION, [b"b", b"x\xff"]), (REGION, []), (attrs.evolve(REGION, end_key=b""), [b"b", b"\xff"])],
)
def test_keys_inside_pass(region: Region, keys: list[bytes]) -> None:
    assert check_keys(region, keys) is None


@pytest.mark.parametrize(("key", "passes"), [(b"a", False), (b"b", True), (b"y", True), (b"y\x00", False)])
def test_a_scan_may_begin_at_the_end_of_the_region(key: bytes, passes: bool) -> None:
    assert (check_seeks(REGION, [key]) is None) is passes


@pytest.mark.parametrize(
    ("start", "end", "passes"),
    [
        (b"b", b"y", True),
        (b"c", b"d", True),
        (b"a", b"c", False),
        (b"c", b"z", False),
        (b"c", b"", False),
        (b"y", b"y", False),
    ],
)
def test_a_range_must_lie_inside(start: bytes, end: bytes, passes: bool) -> None:
    assert (check_range(REGION, start, end) is None) is passes


def test_the_last_region_takes_an_open_range() -> None:
    assert check_range(attrs.evolve(REGION, end_key=b""), b"c", b"") is None


# Splits and deadlines.


@pytest.mark.parametrize(
    ("store_id", "fields", "keys", "expected"),
    [
        (1, {"region_id": 7}, [b"m"], "region_not_found"),
        (5, {}, [b"m"], "region_not_found"),
        (2, {}, [b"m"], "not_leader"),
        (1, {}, [], None),
        (1, {"region_epoch": metapb.RegionEpoch(version=1)}, [b"m"], "epoch_not_match"),
        (1, {}, [b"m", b""], None),
        (1, {}, [b"m", b"z"], "key_not_in_region"),
        (1, {}, [b"b"], None),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(
    store_id: int, fields: dict[str, Any], keys: list[bytes], expected: str | None
) -> None:
    error = check_split(CLUSTER, store_id, context_for(REGION, **fields), keys)

    assert kind(error) == expected


def test_a_split_looks_at_neither_store_nor_peer_of_the_context() -> None:
    context = context_for(REGION)
    context.peer.CopyFrom(metapb.Peer(id=99, store_id=99))

    assert check_split(CLUSTER, 1, context, [b"b", b"m"]) is REGION


@pytest.mark.parametrize(("limit_ms", "waited_ms", "is_late"), [(0, 1e6, False), (5, 4, False), (5, 5, True)])
def test_a_request_that_waited_too_long_is_given_up(limit_ms: int, waited_ms: float, is_late: bool) -> None:
    error = deadline_error(kvrpcpb.Context(max_execution_duration_ms=limit_ms), waited_ms)

    assert (error is not None) is is_late
    if error is not None:
        assert error.message == "Deadline is exceeded"
        assert error.server_is_busy.reason == "deadline is exceeded"
