"""Safe points and barriers: what may move, how far, and what holds it back."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings, strategies as st
from tikv_embedded.engine import MemoryEngine
from tikv_embedded.pd import gc_states
from tikv_embedded.pd.gc_states import NEVER, Barrier, GcRefusedError, GcState
from tikv_embedded.pd.gc_store import NULL_KEYSPACE, GcStates
from tikv_embedded.pd.keyspaces import Keyspaces
from tikv_embedded.pd.revisions import RevisionedStore

OWN_GC = {"gc_management_type": "keyspace_level"}


@attrs.define
class Cluster:
    """What a restart keeps, and a clock."""

    engine: MemoryEngine = attrs.field(factory=MemoryEngine)
    now: float = 1000.5

    def open(self) -> GcStates:
        keyspaces = Keyspaces(self.engine)
        keyspaces.ensure("DEFAULT")
        keyspaces.ensure("own", OWN_GC)
        return GcStates(RevisionedStore(self.engine), keyspaces, 7, lambda: self.now)


def test_nothing_is_collected_at_first() -> None:
    assert Cluster().open().load(NULL_KEYSPACE) == GcState()


def test_a_barrier_holds_the_transaction_safe_point_until_it_is_deleted() -> None:
    gc = Cluster().open()
    gc.set_barrier(NULL_KEYSPACE, "backup", 50, 60)

    _, held, blocker = gc.advance_txn_safe_point(NULL_KEYSPACE, 100)
    deleted = gc.delete_barrier(NULL_KEYSPACE, "backup")
    before, free, nothing = gc.advance_txn_safe_point(NULL_KEYSPACE, 100)

    assert held.txn_safe_point == before.txn_safe_point == 50
    assert 'GCBarrier { BarrierID: "backup", BarrierTS: 50,' in blocker
    assert deleted is not None
    assert (free.txn_safe_point, nothing) == (100, "")


def test_a_barrier_expires_by_the_clock_and_is_gone_with_the_next_advance() -> None:
    cluster = Cluster()
    gc = cluster.open()
    barrier = gc.set_barrier(NULL_KEYSPACE, "backup", 50, 60)

    cluster.now = 1061.0
    _, held, _ = gc.advance_txn_safe_point(NULL_KEYSPACE, 100)
    cluster.now = 1061.1
    shown = gc.load(NULL_KEYSPACE).barriers
    _, free, _ = gc.advance_txn_safe_point(NULL_KEYSPACE, 100)

    assert barrier.expires_at == 1061
    assert held.txn_safe_point == 50
    assert shown == (barrier,)
    assert free == GcState(txn_safe_point=100)
    assert gc.load(NULL_KEYSPACE) == free


@pytest.mark.parametrize(("ttl", "left"), [(60, 60), (1, 1), (NEVER, NEVER)])
def test_the_time_to_live_is_rounded_to_whole_seconds(ttl: int, left: int) -> None:
    cluster = Cluster()

    barrier = cluster.open().set_barrier(NULL_KEYSPACE, "backup", 50, ttl)

    assert barrier.ttl_left(cluster.now) == left


def test_a_barrier_that_is_over_has_no_time_left() -> None:
    assert Barrier("b", 1, 1000).ttl_left(2000.0) == 0


def test_global_barriers_hold_every_scope_and_the_scope_s_own_come_first() -> None:
    cluster = Cluster()
    gc = cluster.open()
    gc.set_global_barrier("everywhere", 50, 60)
    gc.set_barrier(NULL_KEYSPACE, "here", 50, NEVER)

    _, shared, shared_blocker = gc.advance_txn_safe_point(NULL_KEYSPACE, 90)
    _, own, own_blocker = gc.advance_txn_safe_point(1, 80)

    assert shared.txn_safe_point == own.txn_safe_point == 50
    assert shared_blocker.startswith('GCBarrier { BarrierID: "here"')
    assert 'ExpirationTime: "<nil>"' in shared_blocker
    assert own_blocker.startswith('GlobalGCBarrier { BarrierID: "everywhere"')


def test_an_expired_global_barrier_is_gone_with_the_next_advance() -> None:
    cluster = Cluster()
    gc = cluster.open()
    gc.set_global_barrier("everywhere", 50, 60)
    gc.set_global_barrier("for ever", 200, NEVER)

    cluster.now += 100
    _, state, _ = gc.advance_txn_safe_point(NULL_KEYSPACE, 90)

    assert state.txn_safe_point == 90
    assert [barrier.id for barrier in gc.global_barriers()] == ["for ever"]


def test_a_global_barrier_is_measured_by_the_furthest_scope() -> None:
    gc = Cluster().open()
    gc.advance_txn_safe_point(1, 80)

    with pytest.raises(GcRefusedError, match=r'behind the txn safe point 80 of keyspace { name: "own", id: 1 }'):
        gc.set_global_barrier("everywhere", 79, 60)
    gc.advance_txn_safe_point(NULL_KEYSPACE, 90)
    with pytest.raises(GcRefusedError, match="of keyspace <null_keyspace>"):
        gc.set_global_barrier("everywhere", 89, 60)

    assert gc.set_global_barrier("everywhere", 90, 60) in gc.global_barriers()


def test_deleting_a_barrier_that_is_not_there_says_so() -> None:
    gc = Cluster().open()

    assert gc.delete_barrier(NULL_KEYSPACE, "none") is None
    assert gc.delete_global_barrier("none") is None


@pytest.mark.parametrize(
    ("barrier_id", "ts", "ttl", "reason"),
    [
        ("", 50, 60, "invalid argument for barrierID"),
        ("backup", 50, 0, "invalid argument for ttl"),
        ("gc_worker", 50, 60, "reserved: gc_worker"),
        ("backup", 9, 60, "on ts 9 which is already behind the txn safe point 10"),
    ],
)
def test_bad_barriers_are_refused(barrier_id: str, ts: int, ttl: int, reason: str) -> None:
    gc = Cluster().open()
    gc.advance_txn_safe_point(NULL_KEYSPACE, 10)

    with pytest.raises(GcRefusedError, match=reason):
        gc.set_barrier(NULL_KEYSPACE, barrier_id, ts, ttl)

    assert gc.load(NULL_KEYSPACE).barriers == ()


@pytest.mark.parametrize("barrier_id", ["", "gc_worker"])
def test_bad_ids_cannot_be_deleted(barrier_id: str) -> None:
    with pytest.raises(GcRefusedError):
        Cluster().open().delete_barrier(NULL_KEYSPACE, barrier_id)


def test_a_keyspace_shares_the_common_scope_unless_its_config_says_otherwise() -> None:
    gc = Cluster().open()

    assert [gc.user_scope(keyspace) for keyspace in (0, 1, 1 << 24)] == [NULL_KEYSPACE, 1, NULL_KEYSPACE]
    assert [gc.driver_scope(keyspace) for keyspace in (1, NULL_KEYSPACE)] == [1, NULL_KEYSPACE]
    with pytest.raises(GcRefusedError, match=r"keyspace DEFAULT \(id: 0\) where keyspace level GC is not enabled"):
        gc.driver_scope(0)
    with pytest.raises(GcRefusedError, match="keyspace does not exist"):
        gc.user_scope(2)


def test_everything_outlives_a_restart_in_every_scope() -> None:
    cluster = Cluster()
    gc = cluster.open()
    for scope, ts in ((NULL_KEYSPACE, 100), (1, 200)):
        gc.advance_txn_safe_point(scope, ts)
        gc.advance_gc_safe_point(scope, ts - 1)
        gc.set_barrier(scope, "backup", ts + 1, 60)
        gc.set_barrier(scope, "log", ts + 2, NEVER)
    gc.set_global_barrier("everywhere", 300, 60)
    gc.set_global_barrier("for ever", 300, NEVER)

    again = cluster.open()

    assert again.load_all() == gc.load_all()
    assert again.load(1).barriers == (Barrier("backup", 201, 1061), Barrier("log", 202))
    assert again.global_barriers() == (Barrier("everywhere", 300, 1061), Barrier("for ever", 300))


SCOPES = st.sampled_from([NULL_KEYSPACE, 1])
TS = st.integers(0, 30)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("txn"), SCOPES, TS),
        st.tuples(st.just("gc"), SCOPES, TS),
        st.tuples(st.just("barrier"), SCOPES, TS),
        st.tuples(st.just("global"), SCOPES, TS),
        st.tuples(st.just("wait"), SCOPES, TS),
        st.tuples(st.just("delete"), SCOPES, TS),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(STEPS)
def test_safe_points_only_grow_and_never_pass_each_other_or_a_barrier(steps: list[tuple[str, int, int]]) -> None:
    cluster = Cluster()
    gc = cluster.open()

    for action, scope, number in steps:
        before = {each: gc.load(each) for each in (NULL_KEYSPACE, 1)}
        try:
            match action:
                case "txn":
                    gc.advance_txn_safe_point(scope, number)
                case "gc":
                    gc.advance_gc_safe_point(scope, number)
                case "barrier":
                    gc.set_barrier(scope, f"b{number % 3}", number, 1 + number)
                case "global":
                    gc.set_global_barrier(f"g{number % 3}", number, 1 + number)
                case "wait":
                    cluster.now += number / 3
                case _:
                    gc.delete_barrier(scope, f"b{number % 3}")
        except GcRefusedError:
            assert {each: gc.load(each) for each in before} == before

        for each, old in before.items():
            new = gc.load(each)
            assert new.txn_safe_point >= old.txn_safe_point
            assert new.gc_safe_point >= old.gc_safe_point
            assert new.gc_safe_point <= new.txn_safe_point
            held = gc_states.alive((*new.barriers, *gc.global_barriers()), cluster.now)
            assert all(new.txn_safe_point <= barrier.ts for barrier in held)
