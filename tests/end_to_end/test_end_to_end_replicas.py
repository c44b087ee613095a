"""Which replica answers: reads from followers and learners, near ones, stale ones, and around slow and busy stores."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING

import anyio
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_proto import kvrpcpb
from tikv_rpc import ReplicaRead, RequestOptions, RpcConfig

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Engine

EngineOn = Callable[..., AbstractAsyncContextManager["Engine"]]

KEY = b"key"
LEADER, SECOND, THIRD = 1, 2, 3
SLACK = 1.0
"""Seconds by which a busy machine may be late."""


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(stores=3) as running:
        stores = [store.id for store in running.stores()]
        assert stores == [LEADER, SECOND, THIRD]
        running.transfer_leader(running.region_of(KEY).id, LEADER)
        for store, zone in zip(stores, "abc", strict=True):
            running.set_store_labels(store, {"zone": zone})
        yield running


@pytest.fixture
async def engine(cluster: EmbeddedCluster, engine_on: EngineOn) -> AsyncIterator[Engine]:
    async with engine_on(cluster, RpcConfig(liveness_timeout=0.5)) as opened:
        await opened.put(KEY, b"v")
        yield opened


@contextmanager
def within(longest: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started <= longest


async def served_by(
    cluster: EmbeddedCluster, engine: Engine, options: RequestOptions, reads: int = 30
) -> tuple[set[int], set[bool]]:
    """Read some times; return the stores that answered, and whether they were asked as replicas."""
    with cluster.faults.record() as recording:
        for _ in range(reads):
            assert await engine.get(KEY, options) == b"v"
    calls = recording.of("RawGet")
    assert len(calls) == reads
    return {call.store_id for call in calls}, {call.context.replica_read for call in calls}


class TestReplicaReads:
    @pytest.mark.parametrize(
        ("replica_read", "stores", "as_replica"),
        [
            (ReplicaRead.LEADER, {LEADER}, {False}),
            (ReplicaRead.FOLLOWER, {SECOND, THIRD}, {True}),
            (ReplicaRead.MIXED, {LEADER, SECOND, THIRD}, {False, True}),
            (ReplicaRead.PREFER_LEADER, {LEADER}, {False}),
        ],
    )
    async def test_those_answer_that_are_meant(
        self,
        cluster: EmbeddedCluster,
        engine: Engine,
        replica_read: ReplicaRead,
        stores: set[int],
        as_replica: set[bool],
    ) -> None:
        assert await served_by(cluster, engine, RequestOptions(replica_read=replica_read)) == (stores, as_replica)

    async def test_a_learner_answers_alone(self, cluster: EmbeddedCluster, engine_on: EngineOn) -> None:
        learner = await cluster.add_store({"zone": "d"})
        cluster.add_peer(cluster.region_of(KEY).id, learner.id, is_learner=True)

        async with engine_on(cluster) as engine:
            await engine.put(KEY, b"v")
            served = await served_by(cluster, engine, RequestOptions(replica_read=ReplicaRead.LEARNER))

        assert served == ({learner.id}, {True})

    @pytest.mark.parametrize("replica_read", [ReplicaRead.FOLLOWER, ReplicaRead.MIXED])
    async def test_the_one_in_the_own_zone_is_preferred(
        self, cluster: EmbeddedCluster, engine: Engine, replica_read: ReplicaRead
    ) -> None:
        options = RequestOptions(replica_read=replica_read, match_labels=(("zone", "c"),))

        assert await served_by(cluster, engine, options) == ({THIRD}, {True})

    async def test_so_is_one_of_the_named_stores(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        options = RequestOptions(replica_read=ReplicaRead.MIXED, match_stores={SECOND})

        assert await served_by(cluster, engine, options) == ({SECOND}, {True})

    @pytest.mark.parametrize("replica_read", list(ReplicaRead))
    async def test_when_it_is_dead_another_one_answers(
        self, cluster: EmbeddedCluster, engine: Engine, replica_read: ReplicaRead
    ) -> None:
        options = RequestOptions(replica_read=replica_read, match_labels=(("zone", "c"),))
        cluster.transfer_leader(cluster.region_of(KEY).id, THIRD)
        await engine.put(KEY, b"v")
        await cluster.stop_store(THIRD)

        with within(SLACK):
            assert await engine.get(KEY, options) == b"v"

    async def test_writes_go_to_the_leader_whatever_is_read_from(
        self, cluster: EmbeddedCluster, engine: Engine
    ) -> None:
        with cluster.faults.record() as recording:
            await engine.put(KEY, b"v")

        assert [(call.store_id, call.context.replica_read) for call in recording.of("RawPut")] == [(LEADER, False)]

    async def test_prefer_leader_leaves_a_leader_that_says_it_is_slow(
        self, cluster: EmbeddedCluster, engine: Engine
    ) -> None:
        options = RequestOptions(replica_read=ReplicaRead.PREFER_LEADER)
        cluster.faults.set_slow_score(LEADER, 100)
        leader = engine.known(KEY).leader_store
        with anyio.fail_after(10.0):
            # Stores tell along with answers, once a second; one report within 100 ms of another is left out.
            while not leader.health.is_slow(engine.rpc.now()):
                await engine.get(KEY, options)

        assert await served_by(cluster, engine, options) == ({SECOND, THIRD}, {True})


class TestStaleReads:
    """At a timestamp, as transactions read: the embedded stores know how far they are, and the test answers."""

    OPTIONS = RequestOptions(stale_read=True, match_labels=(("zone", "b"),))

    @pytest.fixture(autouse=True)
    def reads_at_timestamps(self, cluster: EmbeddedCluster) -> None:
        for store in (LEADER, SECOND, THIRD):
            # A lag comes first, as faults strike in the order they were made.
            cluster.faults.set_safe_ts_lag(store, 1000.0 if store == SECOND else 0.0)

    async def read(self, cluster: EmbeddedCluster, engine: Engine, version: int) -> list[tuple[int, bool, bool]]:
        """Return who was asked: the store, whether for a stale read, and whether as a replica."""
        cluster.faults.on("KvGet").answer(kvrpcpb.GetResponse(value=b"v"))
        with cluster.faults.record() as recording:
            assert await engine.get_at(KEY, version, self.OPTIONS) == b"v"
        return [(call.store_id, call.context.stale_read, call.context.replica_read) for call in recording.of("KvGet")]

    async def test_a_replica_that_is_far_enough_answers(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        assert await self.read(cluster, engine, 1) == [(SECOND, True, False)]

    async def test_one_that_is_not_refers_to_the_leader(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        with within(SLACK):
            asked = await self.read(cluster, engine, 1 << 62)

        assert asked == [(SECOND, True, False), (LEADER, False, False)]

    async def test_one_that_is_dead_leaves_it_to_the_leader(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        await cluster.stop_store(SECOND)

        with within(SLACK):
            asked = await self.read(cluster, engine, 1 << 62)

        assert asked == [(LEADER, False, False)]


class TestBusyStores:
    async def test_an_idle_replica_answers_when_the_leader_would_let_wait(
        self, cluster: EmbeddedCluster, engine: Engine
    ) -> None:
        cluster.faults.set_read_wait(LEADER, 5000)

        with cluster.faults.record() as recording, within(SLACK):
            assert await engine.get(KEY, RequestOptions(busy_threshold=0.05)) == b"v"

        first, second = recording.of("RawGet")
        assert (first.store_id, first.context.busy_threshold_ms) == (LEADER, 50)
        assert second.store_id in {SECOND, THIRD}
        assert second.context.replica_read

    async def test_and_is_asked_first_as_long_as_that_lasts(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        cluster.faults.set_read_wait(LEADER, 60_000)
        options = RequestOptions(busy_threshold=0.05)
        await engine.get(KEY, options)

        assert await served_by(cluster, engine, options) == ({SECOND, THIRD}, {True})

    async def test_when_all_are_busy_the_leader_answers_all_the_same(
        self, cluster: EmbeddedCluster, engine: Engine
    ) -> None:
        for store in (LEADER, SECOND, THIRD):
            cluster.faults.set_read_wait(store, 5000)

        # The leader is asked again only after the 2 s of tikvServerBusy, or half of them.
        with cluster.faults.record() as recording, within(2.0 + SLACK):
            assert await engine.get(KEY, RequestOptions(busy_threshold=0.05)) == b"v"

        last = recording.of("RawGet")[-1]
        assert (last.store_id, last.context.busy_threshold_ms) == (LEADER, 0)

    async def test_those_who_set_no_threshold_are_served_by_the_leader(
        self, cluster: EmbeddedCluster, engine: Engine
    ) -> None:
        cluster.faults.set_read_wait(LEADER, 5000)

        assert await served_by(cluster, engine, RequestOptions()) == ({LEADER}, {False})

    async def test_a_leader_that_is_busy_for_who_knows_how_long_is_waited_for(
        self, cluster: EmbeddedCluster, engine: Engine
    ) -> None:
        busy = cluster.faults.on(store=LEADER, times=1).region_error("server_is_busy")
        started = time.monotonic()

        await engine.put(KEY, b"w")

        # Half of the 2 s of tikvServerBusy at least.
        assert time.monotonic() - started > 0.9
        assert busy.strikes == 1

    async def test_other_replicas_answer_reads_that_may_go_to_any(
        self, cluster: EmbeddedCluster, engine: Engine
    ) -> None:
        cluster.faults.on(store=LEADER).region_error("server_is_busy")
        options = RequestOptions(replica_read=ReplicaRead.MIXED, match_labels=(("zone", "a"),))

        with cluster.faults.record() as recording, within(SLACK):
            assert await engine.get(KEY, options) == b"v"

        assert recording.of("RawGet")[0].store_id == LEADER
        assert len(recording.of("RawGet")) == 2


class TestReadTimeouts:
    async def test_the_next_replica_is_asked_without_blame(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        held = cluster.faults.on("RawGet", store=LEADER).hold()
        epoch = engine.known(KEY).leader_store.epoch

        with cluster.faults.record() as recording, within(0.1 + SLACK):
            assert await engine.get(KEY, RequestOptions(read_timeout=0.1)) == b"v"
        held.lift()

        first, second = recording.of("RawGet")
        assert (first.store_id, first.context.max_execution_duration_ms) == (LEADER, 100)
        assert second.store_id in {SECOND, THIRD}
        assert second.context.replica_read
        assert engine.known(KEY).leader_store.epoch == epoch
        assert not recording.of("Check")

    async def test_and_the_one_after_that(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        slow = [cluster.faults.on("RawGet", store=store).hold() for store in (LEADER, SECOND)]

        with within(0.2 + SLACK):
            assert await engine.get(KEY, RequestOptions(read_timeout=0.1)) == b"v"

        for each in slow:
            each.lift()

    async def test_a_write_has_all_the_time_it_needs(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        cluster.faults.on("RawPut", times=1).delay(0.3)

        with cluster.faults.record() as recording:
            await engine.put(KEY, b"w")

        assert len(recording.of("RawPut")) == 1


class TestLeadersThatMoved:
    async def test_the_one_that_is_named_is_asked_at_once(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        cluster.transfer_leader(cluster.region_of(KEY).id, THIRD)

        with cluster.faults.record() as recording, within(SLACK):
            await engine.put(KEY, b"w")

        assert [call.store_id for call in recording.of("RawPut")] == [LEADER, THIRD]

    async def test_without_a_name_the_others_are_asked_until_one_tells(
        self, cluster: EmbeddedCluster, engine: Engine
    ) -> None:
        cluster.faults.on("RawPut", store=LEADER).region_error("not_leader")
        cluster.transfer_leader(cluster.region_of(KEY).id, THIRD)

        with cluster.faults.record() as recording, within(SLACK):
            await engine.put(KEY, b"w")

        asked = [call.store_id for call in recording.of("RawPut")]
        assert asked[0] == LEADER
        assert asked[-1] == THIRD
        assert len(asked) <= 3

    async def test_while_nobody_leads_the_call_waits(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        nobody = cluster.faults.on("RawPut").region_error("not_leader")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.put, KEY, b"w")
            await anyio.sleep(0.3)
            nobody.lift()

        assert await engine.get(KEY) == b"w"
        # Waits grow: a call that spins would have asked thousands of times.
        assert nobody.strikes < 200

    async def test_two_that_name_each_other_do_not_make_it_spin(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        region = cluster.region_of(KEY)
        peers = {peer.store_id: peer for peer in region.peers}
        liars = [
            cluster.faults.on("RawPut", store=store).region_error("not_leader", leader=peers[other])
            for store, other in ((LEADER, SECOND), (SECOND, LEADER))
        ]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.put, KEY, b"w")
            await anyio.sleep(0.3)
            for liar in liars:
                liar.lift()

        assert await engine.get(KEY) == b"w"
        assert sum(liar.strikes for liar in liars) < 200

    async def test_a_store_that_says_it_is_another_is_looked_up_again(
        self, cluster: EmbeddedCluster, engine: Engine
    ) -> None:
        wrong = cluster.faults.on("RawPut", store=LEADER, times=1).region_error("store_not_match")

        with within(SLACK):
            await engine.put(KEY, b"w")

        assert wrong.strikes == 1
        # The connection it was asked on is not used any more.
        assert [store.batch.requests for store in engine.rpc.stats().stores.values()] == [1]

    async def test_one_that_fails_and_says_it_does_not_serve_is_left(
        self, cluster: EmbeddedCluster, engine: Engine
    ) -> None:
        cluster.faults.set_health(LEADER, "NOT_SERVING")
        cluster.faults.on("RawPut", store=LEADER).refuse("UNAVAILABLE")
        cluster.transfer_leader(cluster.region_of(KEY).id, SECOND)

        with within(SLACK):
            await engine.put(KEY, b"w")

        assert engine.known(KEY).leader_store.id == SECOND
