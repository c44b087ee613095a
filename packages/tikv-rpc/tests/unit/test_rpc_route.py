"""The Context of an attempt: whom it names, what the caller's options and the attempts before add."""

from __future__ import annotations

from typing import Any

import pytest
from tikv_pd import Peer, Region, RegionEpoch
from tikv_proto import kvrpcpb, metapb
from tikv_proto.services import Tikv
from tikv_region import KeyCodec, KeyspaceCodec, PlainCodec, RegionEntry
from tikv_region.region import StoreEntry
from tikv_rpc import DiskFull, Effect, Isolation, Priority, ReplicaRead, Request, RequestOptions
from tikv_rpc._stores.replicas import Access, Target
from tikv_rpc._stores.route import attempt_context, framed, replica_context


def entry(*, is_learner: bool = False, is_witness: bool = False) -> RegionEntry:
    peers = (Peer(11, 1), Peer(12, 2, is_learner, is_witness))
    region = Region(10, b"", b"", RegionEpoch(3, 5), peers, peers[1])
    return RegionEntry(region, (b"", b""), [(peer, StoreEntry(peer.store_id)) for peer in peers], 1e9, lambda: 0.0)


def named(codec: KeyCodec, region: RegionEntry, timeout: float = 10.0) -> kvrpcpb.Context:
    return kvrpcpb.Context.FromString(replica_context(7, codec, region, 1, timeout))


def added(
    options: RequestOptions,
    access: Access = Access.LEADER,
    *,
    is_leader: bool = True,
    first: str = "",
    effect: Effect = Effect.READ,
    busy_threshold: float = 0.0,
) -> kvrpcpb.Context:
    request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(), effect)
    request.first = first
    target = Target(0, access)
    fields = attempt_context(options, target, request, is_leader=is_leader, busy_threshold=busy_threshold)
    return kvrpcpb.Context.FromString(options.context + fields)


def test_the_context_names_region_epoch_peer_and_cluster() -> None:
    assert named(PlainCodec(), entry()) == kvrpcpb.Context(
        region_id=10,
        region_epoch=metapb.RegionEpoch(conf_ver=3, version=5),
        peer=metapb.Peer(id=12, store_id=2),
        cluster_id=7,
        keyspace_id=0xFFFFFFFF,
        max_execution_duration_ms=6666,
    )


@pytest.mark.parametrize("role", ["is_learner", "is_witness"])
def test_the_context_tells_what_the_peer_is(role: str) -> None:
    peer = Peer.from_pb(named(PlainCodec(), entry(**{role: True})).peer)

    assert peer == Peer(12, 2, **{role: True})


def test_the_context_names_the_keyspace() -> None:
    context = named(KeyspaceCodec(b"r", 42, "users"), entry())

    assert (context.api_version, context.keyspace_id, context.keyspace_name) == (kvrpcpb.APIVersion.V2, 42, "users")


def test_a_store_has_less_time_to_begin_than_an_attempt_takes_but_never_none() -> None:
    limits = [named(PlainCodec(), entry(), timeout).max_execution_duration_ms for timeout in (30.0, 0.001)]

    assert limits == [20_000, 1]


def test_a_context_is_the_first_field_of_every_request() -> None:
    context = kvrpcpb.Context(region_id=7, request_source="s" * 200)

    assert kvrpcpb.RawGetRequest.FromString(framed(context.SerializeToString())).context == context


OPTIONS: list[tuple[dict[str, Any], kvrpcpb.Context]] = [
    ({}, kvrpcpb.Context()),
    ({"priority": Priority.HIGH}, kvrpcpb.Context(priority=kvrpcpb.CommandPri.High)),
    ({"priority": Priority.LOW}, kvrpcpb.Context(priority=kvrpcpb.CommandPri.Low)),
    ({"isolation": Isolation.RC}, kvrpcpb.Context(isolation_level=kvrpcpb.IsolationLevel.RC)),
    ({"isolation": Isolation.RC_CHECK_TS}, kvrpcpb.Context(isolation_level=kvrpcpb.IsolationLevel.RCCheckTS)),
    ({"not_fill_cache": True}, kvrpcpb.Context(not_fill_cache=True)),
    ({"sync_log": True}, kvrpcpb.Context(sync_log=True)),
    ({"task_id": 2**64 - 1}, kvrpcpb.Context(task_id=2**64 - 1)),
    ({"resource_group_tag": b"tag"}, kvrpcpb.Context(resource_group_tag=b"tag")),
    ({"resource_group_tag": lambda rpc: rpc.name.encode()}, kvrpcpb.Context(resource_group_tag=b"RawGet")),
    (
        {"disk_full": DiskFull.ALLOWED_ON_ALMOST_FULL},
        kvrpcpb.Context(disk_full_opt=kvrpcpb.DiskFullOpt.AllowedOnAlmostFull),
    ),
    (
        {"disk_full": DiskFull.ALLOWED_ON_ALREADY_FULL},
        kvrpcpb.Context(disk_full_opt=kvrpcpb.DiskFullOpt.AllowedOnAlreadyFull),
    ),
    ({"max_execution_duration": 1.5}, kvrpcpb.Context(max_execution_duration_ms=1500)),
    ({"read_timeout": 0.25}, kvrpcpb.Context(max_execution_duration_ms=250)),
    ({"read_timeout": 0.25, "max_execution_duration": 2}, kvrpcpb.Context(max_execution_duration_ms=2000)),
    ({"txn_source": 3}, kvrpcpb.Context(txn_source=3)),
    ({"trace_id": b"\1\2"}, kvrpcpb.Context(trace_id=b"\1\2", trace_control_flags=2)),
    ({"trace_id": b"\1", "trace_flags": 4}, kvrpcpb.Context(trace_id=b"\1", trace_control_flags=4)),
    ({"trace_flags": 6}, kvrpcpb.Context(trace_control_flags=6)),
    ({"request_source": "app"}, kvrpcpb.Context(request_source="leader_app")),
    (
        {"resource_group": "rg1"},
        kvrpcpb.Context(resource_control_context=kvrpcpb.ResourceControlContext(resource_group_name="rg1")),
    ),
]


@pytest.mark.parametrize(("options", "context"), OPTIONS, ids=lambda part: "+".join(part) if type(part) is dict else "")
def test_an_option_is_a_field_of_the_context(options: dict[str, Any], context: kvrpcpb.Context) -> None:
    assert added(RequestOptions(**options)) == context


def test_a_time_limit_of_reads_is_none_of_writes() -> None:
    assert added(RequestOptions(read_timeout=0.25), effect=Effect.WRITE) == kvrpcpb.Context()


@pytest.mark.parametrize(
    ("access", "context"),
    [
        (Access.LEADER, kvrpcpb.Context()),
        (Access.REPLICA, kvrpcpb.Context(replica_read=True)),
        (Access.STALE, kvrpcpb.Context(stale_read=True)),
    ],
)
def test_a_replica_is_told_how_it_is_asked(access: Access, context: kvrpcpb.Context) -> None:
    assert added(RequestOptions(), access) == context


def test_a_store_is_told_how_busy_it_may_be() -> None:
    assert added(RequestOptions(), busy_threshold=0.02) == kvrpcpb.Context(busy_threshold_ms=20)


@pytest.mark.parametrize(
    ("access", "is_leader", "first", "source"),
    [
        (Access.LEADER, True, "", "leader_app"),
        (Access.REPLICA, False, "", "follower_app"),
        (Access.STALE, False, "", "stale_follower_app"),
        (Access.STALE, True, "", "stale_leader_app"),
        (Access.LEADER, True, "stale_follower", "retry_stale_follower_leader_app"),
        (Access.REPLICA, False, "leader", "retry_leader_follower_app"),
    ],
)
def test_the_source_says_how_this_and_the_first_attempt_asked(
    access: Access, is_leader: bool, first: str, source: str
) -> None:
    context = added(RequestOptions(request_source="app"), access, is_leader=is_leader, first=first)

    assert context.request_source == source
    assert context.is_retry_request == bool(first)


def test_attempts_differ_as_soon_as_an_option_says_so() -> None:
    plain: list[dict[str, Any]] = [{}, {"priority": Priority.HIGH}, {"resource_group": "a"}, {"task_id": 1}]
    varying: list[dict[str, Any]] = [
        {"replica_read": ReplicaRead.MIXED},
        {"stale_read": True},
        {"match_labels": (("zone", "a"),)},
        {"match_stores": {1}},
        {"read_timeout": 1},
        {"busy_threshold": 1},
        {"request_source": "app"},
        {"resource_group_tag": lambda _rpc: b""},
    ]

    assert all(RequestOptions(**options).is_plain for options in plain)
    assert not any(RequestOptions(**options).is_plain for options in varying)
