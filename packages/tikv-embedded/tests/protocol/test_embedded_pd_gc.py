"""GC states over the PD ports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tikv_embedded import EmbeddedCluster
from tikv_embedded.pd.gc_states import NEVER
from tikv_embedded.pd.gc_store import NULL_KEYSPACE
from tikv_embedded.testing import BareClient
from tikv_proto import pdpb
from tikv_proto.services import PD, Rpc

SHARED = {"keyspace_id": NULL_KEYSPACE}
DEFAULT = {"keyspace_id": 0}
SCOPES: list[dict[str, Any]] = [{}, {"keyspace_scope": SHARED}, {"keyspace_scope": DEFAULT}]


async def test_a_new_cluster_has_collected_nothing(cluster: EmbeddedCluster, client: BareClient) -> None:
    for scope in SCOPES:
        answer = await client.ask_pd(cluster, PD.GetGCState, **scope)

        assert answer.gc_state == pdpb.GCState(keyspace_scope=pdpb.KeyspaceScope(keyspace_id=NULL_KEYSPACE))
        assert not answer.header.HasField("error")
        assert not answer.HasField("global_gc_barriers")


async def test_safe_points_advance_in_their_order(cluster: EmbeddedCluster, client: BareClient) -> None:
    early = await client.ask_pd(cluster, PD.AdvanceGCSafePoint, keyspace_scope=SHARED, target=10)
    txn = await client.ask_pd(cluster, PD.AdvanceTxnSafePoint, keyspace_scope=SHARED, target=20)
    gc = await client.ask_pd(cluster, PD.AdvanceGCSafePoint, keyspace_scope=SHARED, target=10)
    back = await client.ask_pd(cluster, PD.AdvanceTxnSafePoint, keyspace_scope=SHARED, target=19)
    backward = await client.ask_pd(cluster, PD.AdvanceGCSafePoint, keyspace_scope=SHARED, target=9)

    assert "exceeds the txn safe point" in early.header.error.message
    assert (txn.old_txn_safe_point, txn.new_txn_safe_point, txn.blocker_description) == (0, 20, "")
    assert (gc.old_gc_safe_point, gc.new_gc_safe_point) == (0, 10)
    assert "trying to update txn safe point to a smaller value" in back.header.error.message
    assert "trying to update GC safe point to a smaller value" in backward.header.error.message


async def test_barriers_are_set_shown_and_deleted(cluster: EmbeddedCluster, client: BareClient) -> None:
    barrier: dict[str, Any] = {"barrier_id": "backup", "barrier_ts": 50}

    made = await client.ask_pd(cluster, PD.SetGCBarrier, keyspace_scope=DEFAULT, ttl_seconds=60, **barrier)
    wide = await client.ask_pd(cluster, PD.SetGlobalGCBarrier, ttl_seconds=NEVER, barrier_id="all", barrier_ts=70)
    held = await client.ask_pd(cluster, PD.AdvanceTxnSafePoint, target=100)
    shown = await client.ask_pd(cluster, PD.GetGCState, include_global_gc_barriers=True)
    hidden = await client.ask_pd(cluster, PD.GetGCState, exclude_gc_barriers=True)
    gone = await client.ask_pd(cluster, PD.DeleteGCBarrier, keyspace_scope=DEFAULT, barrier_id="backup")
    none = await client.ask_pd(cluster, PD.DeleteGCBarrier, barrier_id="backup")
    globally = await client.ask_pd(cluster, PD.DeleteGlobalGCBarrier, barrier_id="all")
    none_globally = await client.ask_pd(cluster, PD.DeleteGlobalGCBarrier, barrier_id="all")

    assert 59 <= made.new_barrier_info.ttl_seconds <= 60
    assert wide.new_barrier_info == pdpb.GlobalGCBarrierInfo(barrier_id="all", barrier_ts=70, ttl_seconds=NEVER)
    assert held.new_txn_safe_point == 50
    assert held.blocker_description.startswith('GCBarrier { BarrierID: "backup"')
    assert [each.barrier_id for each in shown.gc_state.gc_barriers] == ["backup"]
    assert [each.barrier_id for each in shown.global_gc_barriers.barriers] == ["all"]
    assert not hidden.gc_state.gc_barriers
    assert gone.deleted_barrier_info.barrier_ts == 50
    assert not none.HasField("deleted_barrier_info")
    assert globally.deleted_barrier_info.barrier_ts == 70
    assert not none_globally.HasField("deleted_barrier_info")


@pytest.mark.parametrize(
    ("rpc", "fields", "reason"),
    [
        (PD.GetGCState, {"keyspace_scope": {"keyspace_id": 99}}, "keyspace does not exist"),
        (PD.AdvanceTxnSafePoint, {"keyspace_scope": DEFAULT, "target": 1}, "keyspace level GC is not enabled"),
        (PD.AdvanceGCSafePoint, {"keyspace_scope": DEFAULT, "target": 1}, "keyspace level GC is not enabled"),
        (PD.SetGCBarrier, {"barrier_id": "b", "barrier_ts": 1}, "invalid argument for ttl"),
        (PD.SetGlobalGCBarrier, {"barrier_ts": 1, "ttl_seconds": 1}, "invalid argument for barrierID"),
        (PD.DeleteGlobalGCBarrier, {}, "invalid argument for barrierID"),
    ],
)
async def test_refusals_are_errors_in_the_header(
    cluster: EmbeddedCluster, client: BareClient, rpc: Rpc[Any, Any], fields: dict[str, Any], reason: str
) -> None:
    answer = await client.ask_pd(cluster, rpc, **fields)

    assert answer.header.error.type == pdpb.ErrorType.UNKNOWN
    assert reason in answer.header.error.message


async def test_all_states_come_at_once_and_outlive_a_restart(client: BareClient, tmp_path: Path) -> None:
    async with EmbeddedCluster(path=tmp_path / "data") as cluster:
        await client.ask_pd(cluster, PD.AdvanceTxnSafePoint, target=100)
        await client.ask_pd(cluster, PD.SetGlobalGCBarrier, ttl_seconds=60, barrier_id="all", barrier_ts=170)
    async with EmbeddedCluster(path=tmp_path / "data") as cluster:
        answer = await client.ask_pd(cluster, PD.GetAllKeyspacesGCStates)
        without = await client.ask_pd(cluster, PD.GetAllKeyspacesGCStates, exclude_global_gc_barriers=True)

    scopes = [(each.keyspace_scope.keyspace_id, each.txn_safe_point) for each in answer.gc_states]
    assert scopes == [(NULL_KEYSPACE, 100), (0, 0)]
    assert [each.barrier_id for each in answer.global_gc_barriers] == ["all"]
    assert not without.global_gc_barriers
