"""A watch over the stores of a cluster in memory, on virtual time."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import attrs
import pytest
import trio
from tikv_pd import Backoffer, Deadline, PdClient
from tikv_pd.lowlevel import BackgroundTasks, Transport, map_hosts
from tikv_pd.testing import MemoryConnection
from tikv_proto import kvrpcpb
from tikv_proto.healthpb import HealthCheckResponse
from tikv_proto.services import PD, Health, Tikv
from tikv_region import RegionCache, StoreEntry
from tikv_region.health import TICK, Liveness
from tikv_rpc import RpcConfig
from tikv_rpc._stores.watch import RESOLVE_INTERVAL, StoreWatch
from tikv_rpc.testing import FakeCluster, FakeStore


class Bench:
    """A watch, and what it watches over."""

    def __init__(self, cluster: FakeCluster, cache: RegionCache, transport: Transport, config: RpcConfig) -> None:
        self.cluster = cluster
        self.cache = cache
        self.watch = StoreWatch(cache, transport, config, lambda: None)
        self.store = StoreEntry(0)
        self.other = StoreEntry(0)

    @property
    def fake(self) -> FakeStore:
        """What `store` stands for."""
        return self.cluster.store(self.store.id)

    @property
    def liveness(self) -> Liveness:
        return self.store.health.liveness

    @property
    def checks(self) -> int:
        """Health checks that reached any store."""
        return len(self.cluster.requests(Health.Check))

    def deadline(self, seconds: float = 30) -> Deadline:
        return Deadline("get", seconds, self.cluster.transport.now)

    async def learn_stores(self) -> None:
        entry = await self.cache.locate(b"a", Backoffer(self.deadline()))
        self.store, self.other, _ = entry.stores
        for store in entry.stores:
            await self.cache.resolve(store, Backoffer(self.deadline()))

    async def probe(self, seconds: float = 30, store: StoreEntry | None = None) -> Liveness:
        return await self.watch.probe(store or self.store, self.deadline(seconds))

    def fail(self) -> None:
        """Have the store say that it does not serve."""
        self.fake.serving_status = HealthCheckResponse.NOT_SERVING

    def recover(self) -> None:
        self.fake.serving_status = HealthCheckResponse.SERVING


@asynccontextmanager
async def watching(
    cluster: FakeCluster, config: RpcConfig | None = None, transport: Transport | None = None
) -> AsyncIterator[Bench]:
    """Run a watch over the stores of a cluster."""
    transport = transport or cluster.transport
    async with PdClient(cluster.url, transport=cluster.transport) as pd, BackgroundTasks() as tasks:
        cache = RegionCache(pd, cluster.map.codec, now=cluster.transport.now)
        bench = Bench(cluster, cache, transport, config or RpcConfig())
        await bench.learn_stores()
        tasks.start_soon(bench.watch.run)
        await anyio.wait_all_tasks_blocked()
        yield bench


@pytest.fixture
async def bench(cluster: FakeCluster) -> AsyncIterator[Bench]:
    async with watching(cluster) as bench:
        yield bench


def tasks_running() -> int:
    return trio.lowlevel.current_statistics().tasks_living


class Counted:
    """A transport that counts its connections by channel number."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._transport = cluster.transport
        self.now = cluster.transport.now
        self.waiters = cluster.transport.waiters
        self.channels: list[int] = []

    def connect(self, address: str, *, channel: int = 0) -> MemoryConnection:
        self.channels.append(channel)
        return self._transport.connect(address, channel=channel)


class TestProbe:
    @pytest.mark.parametrize(
        ("status", "liveness"),
        [
            (HealthCheckResponse.SERVING, Liveness.REACHABLE),
            (HealthCheckResponse.NOT_SERVING, Liveness.UNREACHABLE),
            (HealthCheckResponse.SERVICE_UNKNOWN, Liveness.UNKNOWN),
            (HealthCheckResponse.UNKNOWN, Liveness.UNKNOWN),
        ],
    )
    async def test_a_store_is_what_it_says_of_itself(
        self, bench: Bench, status: HealthCheckResponse.ServingStatus.ValueType, liveness: Liveness
    ) -> None:
        bench.fake.serving_status = status

        assert await bench.probe() is liveness
        assert bench.liveness is liveness
        assert [check.service for check in bench.cluster.requests(Health.Check)] == [""]

    async def test_a_store_that_refuses_connections_is_unreachable_at_once(self, bench: Bench) -> None:
        bench.fake.stop()
        began = anyio.current_time()

        assert await bench.probe() is Liveness.UNREACHABLE
        assert anyio.current_time() == began

    @pytest.mark.parametrize("timeout", [1.0, 0.25])
    async def test_a_store_that_never_answers_is_unreachable_after_the_timeout(
        self, cluster: FakeCluster, timeout: float
    ) -> None:
        async with watching(cluster, RpcConfig(liveness_timeout=timeout)) as bench:
            bench.fake.hang_next(Health.Check)
            began = anyio.current_time()

            assert await bench.probe() is Liveness.UNREACHABLE
            assert anyio.current_time() - began == pytest.approx(timeout)

    async def test_a_server_without_a_health_service_is_reachable(self, bench: Bench) -> None:
        bench.fake.fail_next(Health.Check, "UNIMPLEMENTED")

        assert await bench.probe() is Liveness.REACHABLE

    async def test_many_who_ask_at_once_share_a_look(self, bench: Bench) -> None:
        bench.fake.delay_next(Health.Check, 0.5)
        found: list[Liveness] = []

        async def ask() -> None:
            found.append(await bench.probe())

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(ask)

        assert found == [Liveness.REACHABLE] * 50
        assert bench.checks == 1

    async def test_stores_are_looked_at_each_for_itself(self, bench: Bench) -> None:
        bench.fail()

        assert await bench.probe() is Liveness.UNREACHABLE
        assert await bench.probe(store=bench.other) is Liveness.REACHABLE
        assert bench.liveness is Liveness.UNREACHABLE

    async def test_each_look_has_a_connection_of_its_own_and_closes_it(self, cluster: FakeCluster) -> None:
        counted = Counted(cluster)
        async with watching(cluster, transport=counted) as bench:
            before = len(cluster.transport.open_connections())
            for _ in range(3):
                await bench.probe()
            bench.fake.hang_next(Health.Check)
            await bench.probe()

            assert len(cluster.transport.open_connections()) == before
            assert len(set(counted.channels)) == 4
            assert max(counted.channels) < 0

    async def test_a_store_is_looked_at_where_its_address_leads(self, cluster: FakeCluster) -> None:
        inside = {store.address: f"outside-{store.id}:1" for store in cluster.stores.values()}
        for store in cluster.stores.values():
            cluster.move_store(store.id, inside[store.address])
            cluster.map.stores[store.id] = attrs.evolve(
                cluster.map.stores[store.id], address=next(a for a in inside if inside[a] == store.address)
            )

        async with watching(cluster, transport=map_hosts(cluster.transport, inside)) as bench:
            assert await bench.probe() is Liveness.REACHABLE

    async def test_nothing_is_known_of_a_store_without_an_address(self, bench: Bench) -> None:
        stranger = StoreEntry(9)

        assert await bench.probe(store=stranger) is Liveness.UNKNOWN
        assert stranger.health.liveness is Liveness.REACHABLE
        assert bench.checks == 0


class TestCallers:
    async def test_a_caller_without_time_learns_nothing_and_the_store_is_not_blamed(self, bench: Bench) -> None:
        bench.fake.delay_next(Health.Check, 0.5)
        began = anyio.current_time()

        found = await bench.probe(0.1)
        took = anyio.current_time() - began
        await anyio.sleep(10)

        assert found is Liveness.UNKNOWN
        assert took == pytest.approx(0.1)
        assert bench.liveness is Liveness.REACHABLE
        assert bench.checks == 1

    async def test_a_caller_whose_time_is_over_waits_no_more(self, bench: Bench) -> None:
        bench.fake.hang_next(Health.Check)
        late = bench.deadline(0.1)
        await anyio.sleep(1)

        assert await bench.watch.probe(bench.store, late) is Liveness.UNKNOWN
        assert bench.liveness is Liveness.REACHABLE

    async def test_a_caller_without_a_deadline_waits_for_the_look(self, bench: Bench) -> None:
        bench.fake.hang_next(Health.Check)

        assert await bench.probe(math.inf) is Liveness.UNREACHABLE

    async def test_a_cancelled_caller_takes_nothing_from_the_others(self, bench: Bench) -> None:
        bench.fake.delay_next(Health.Check, 0.5)
        found: list[Liveness] = []

        async def ask() -> None:
            found.append(await bench.probe())

        async with anyio.create_task_group() as tasks:
            with anyio.move_on_after(0.1):
                tasks.start_soon(ask)
                await bench.probe()

        assert found == [Liveness.REACHABLE]
        assert bench.checks == 1

    async def test_a_look_finds_out_though_the_only_caller_is_gone(self, bench: Bench) -> None:
        bench.fake.hang_next(Health.Check)

        found = await bench.probe(0.1)
        before = bench.liveness
        await anyio.sleep(1)

        assert (found, before, bench.liveness) == (Liveness.UNKNOWN, Liveness.REACHABLE, Liveness.UNREACHABLE)


class TestRecovery:
    async def test_a_store_is_looked_at_every_second_until_it_serves(self, bench: Bench) -> None:
        bench.fail()
        await bench.probe()
        await anyio.sleep(10.5)
        meanwhile = bench.liveness, bench.checks
        bench.recover()
        await anyio.sleep(1)
        afterwards = bench.liveness, bench.checks
        await anyio.sleep(60)

        assert meanwhile == (Liveness.UNREACHABLE, 11)
        assert afterwards == (Liveness.REACHABLE, 12)
        assert bench.checks == 12

    async def test_the_interval_is_an_option(self, cluster: FakeCluster) -> None:
        async with watching(cluster, RpcConfig(liveness_interval=5)) as bench:
            bench.fail()
            await bench.probe()
            await anyio.sleep(16)

            assert bench.checks == 4

    async def test_who_asks_for_a_store_that_is_down_has_it_looked_at_and_finds_it_back(self, bench: Bench) -> None:
        bench.fail()
        await bench.probe()
        bench.recover()

        assert await bench.probe() is Liveness.REACHABLE
        assert bench.liveness is Liveness.REACHABLE

    async def test_a_store_that_is_back_and_goes_at_once_is_noticed(self, bench: Bench) -> None:
        bench.fail()
        await bench.probe()
        await anyio.sleep(0.1)
        bench.recover()
        await bench.probe()
        bench.fail()
        await bench.probe()
        await anyio.sleep(0.1)
        gone = bench.liveness
        bench.recover()
        await anyio.sleep(2)

        assert (gone, bench.liveness) == (Liveness.UNREACHABLE, Liveness.REACHABLE)

    async def test_an_unhealthy_store_is_looked_at_too(self, bench: Bench) -> None:
        bench.fake.serving_status = HealthCheckResponse.SERVICE_UNKNOWN
        await bench.probe()
        bench.recover()
        await anyio.sleep(1.1)

        assert bench.liveness is Liveness.REACHABLE

    async def test_a_store_that_starts_elsewhere_is_found_through_pd(self, bench: Bench) -> None:
        epoch = bench.store.epoch
        bench.fake.stop()
        await bench.probe()
        bench.cluster.move_store(bench.store.id, "elsewhere:20160")
        await anyio.sleep(RESOLVE_INTERVAL + 1.5)

        assert bench.store.address == "elsewhere:20160"
        assert bench.store.epoch == epoch + 1
        assert bench.liveness is Liveness.REACHABLE

    async def test_pd_is_asked_for_the_address_at_once_and_then_twice_a_minute(self, bench: Bench) -> None:
        epoch = bench.store.epoch
        bench.fail()
        before = bench.cluster.pd.calls(PD.GetStore)
        await bench.probe()
        await anyio.sleep(2 * RESOLVE_INTERVAL + 5)

        assert bench.cluster.pd.calls(PD.GetStore) - before == 3
        assert bench.store.epoch == epoch

    @pytest.mark.parametrize("hangs", [False, True])
    async def test_without_pd_a_store_is_looked_at_where_it_was(self, bench: Bench, hangs: bool) -> None:
        bench.fail()
        await bench.probe()
        if hangs:
            bench.cluster.pd.hang(PD.GetStore)
        else:
            bench.cluster.pd.refuse(PD.GetStore)
        await anyio.sleep(RESOLVE_INTERVAL + 5)
        gone = bench.liveness
        bench.recover()
        await anyio.sleep(1.1)

        assert (gone, bench.liveness) == (Liveness.UNREACHABLE, Liveness.REACHABLE)
        assert not bench.store.needs_check

    async def test_pd_refusing_for_good_ends_nothing(self, bench: Bench) -> None:
        bench.fail()
        await bench.probe()
        bench.cluster.pd.answer_error(PD.GetStore, "UNKNOWN")
        await anyio.sleep(RESOLVE_INTERVAL + 5)
        bench.recover()
        await anyio.sleep(1.1)

        assert bench.liveness is Liveness.REACHABLE

    async def test_a_store_that_left_is_looked_at_no_more(self, cluster: FakeCluster) -> None:
        counted = Counted(cluster)
        async with watching(cluster, transport=counted) as bench:
            idle = tasks_running()
            cluster.remove_store(bench.store.id)
            await bench.probe()
            await anyio.sleep(2)
            tombstone, looks = bench.store.is_tombstone, len(counted.channels)
            await anyio.sleep(60)

            assert tombstone
            assert looks == len(counted.channels)
            assert tasks_running() == idle

    async def test_what_is_found_at_an_address_is_not_told_of_a_store_that_moved_meanwhile(self, bench: Bench) -> None:
        bench.fake.hang_next(Health.Check)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.probe)
            await anyio.sleep(0.5)
            bench.store.address = "elsewhere:20160"

        assert bench.liveness is Liveness.REACHABLE


class TestSlow:
    async def test_a_store_found_not_serving_is_slow_once(self, bench: Bench) -> None:
        now = bench.cluster.transport.now
        bench.fail()
        await bench.probe()
        slow = bench.store.health.is_slow(now())
        await anyio.sleep(12 * TICK)

        assert slow
        assert not bench.store.health.is_slow(now())

    async def test_requests_are_judged_every_tick(self, bench: Bench) -> None:
        bench.watch.slowness.mark_slow(bench.store)
        scores = []
        await anyio.sleep(1)
        for _ in range(3):
            scores.append(bench.store.health.timed.score)
            await anyio.sleep(TICK)

        assert scores == sorted(set(scores), reverse=True)

    async def test_a_slow_store_that_reports_no_more_is_asked(self, bench: Bench) -> None:
        bench.watch.slowness.record(bench.store, 0.001)
        bench.watch.slowness.on_feedback(bench.store.id, 0, 90)
        bench.fake.slow_score = 50
        await anyio.sleep(2 * TICK + 1)
        asked = len(bench.cluster.requests(Tikv.GetHealthFeedback))
        reported = bench.store.health.reported_score(bench.cluster.transport.now())
        bench.fake.slow_score = 1
        await anyio.sleep(10 * TICK)

        assert asked >= 1
        assert reported == 50
        assert bench.store.health.reported_score(bench.cluster.transport.now()) == 1
        assert len(bench.cluster.requests(Tikv.GetHealthFeedback)) == asked + 1

    @pytest.mark.parametrize("fault", ["hang", "refuse"])
    async def test_one_that_does_not_answer_is_asked_until_its_report_has_lost_its_meaning(
        self, bench: Bench, fault: str
    ) -> None:
        idle, connections = tasks_running(), len(bench.cluster.transport.open_connections())
        bench.watch.slowness.record(bench.store, 0.001)
        bench.watch.slowness.on_feedback(bench.store.id, 0, 90)
        if fault == "hang":
            bench.fake.hang_next(Tikv.GetHealthFeedback, times=math.inf)
        else:
            bench.fake.fail_next(Tikv.GetHealthFeedback, "UNAVAILABLE", times=math.inf)
        await anyio.sleep(100 * TICK)

        assert bench.store.health.reported_score(bench.cluster.transport.now()) == 1
        assert 10 <= len(bench.cluster.requests(Tikv.GetHealthFeedback)) <= 20
        assert tasks_running() == idle
        assert len(bench.cluster.transport.open_connections()) == connections

    async def test_the_report_of_another_store_at_the_address_is_not_taken_for_its_own(self, bench: Bench) -> None:
        bench.watch.slowness.record(bench.store, 0.001)
        bench.watch.slowness.record(bench.other, 0.001)
        bench.watch.slowness.on_feedback(bench.store.id, 0, 90)
        bench.cluster.store(bench.other.id).slow_score = 30
        theirs = kvrpcpb.HealthFeedback(store_id=bench.other.id, feedback_seq_no=1, slow_score=30)
        bench.fake.answer_next(Tikv.GetHealthFeedback, kvrpcpb.GetHealthFeedbackResponse(health_feedback=theirs))
        await anyio.sleep(2 * TICK + 1)

        now = bench.cluster.transport.now()
        assert bench.other.health.reported_score(now) == 30


class TestLife:
    async def test_while_all_serve_there_is_one_task(self, cluster: FakeCluster) -> None:
        async with watching(cluster) as bench:
            running = tasks_running()
            await bench.probe()
            bench.fail()
            await bench.probe()
            down = tasks_running()
            bench.recover()
            await anyio.sleep(2)
            bench.watch.slowness.record(bench.store, 0.001)
            await anyio.sleep(10 * TICK)
            back = tasks_running()

        assert (down - running, back) == (1, running)

    async def test_a_cluster_without_any_store_that_serves_costs_a_task_for_each(self, cluster: FakeCluster) -> None:
        async with watching(cluster) as bench:
            idle = tasks_running()
            for store in cluster.stores.values():
                store.serving_status = HealthCheckResponse.NOT_SERVING
            for _ in range(100):
                for entry in (bench.store, bench.other):
                    await bench.probe(store=entry)
                await anyio.sleep(0.05)

            assert tasks_running() - idle <= 4

    async def test_a_watch_that_does_not_run_learns_nothing(self, cluster: FakeCluster) -> None:
        async with PdClient(cluster.url, transport=cluster.transport) as pd:
            cache = RegionCache(pd, cluster.map.codec, now=cluster.transport.now)
            bench = Bench(cluster, cache, cluster.transport, RpcConfig())
            await bench.learn_stores()
            bench.fail()

            assert await bench.probe() is Liveness.UNKNOWN
            assert bench.liveness is Liveness.REACHABLE
            assert bench.checks == 0

    async def test_closing_ends_everything_and_tells_those_who_wait(self, cluster: FakeCluster) -> None:
        found: list[Liveness] = []

        async with anyio.create_task_group() as tasks:
            async with watching(cluster) as bench:
                connections = len(cluster.transport.open_connections())

                async def ask() -> None:
                    found.append(await bench.probe(store=bench.other))

                bench.fail()
                await bench.probe()
                cluster.store(bench.other.id).hang_next(Health.Check)
                tasks.start_soon(ask)
                await anyio.wait_all_tasks_blocked()
            closed_at = anyio.current_time()
        waited = anyio.current_time() - closed_at
        checks = bench.checks
        late = await bench.probe()
        await anyio.sleep(60)

        assert found == [Liveness.UNKNOWN]
        assert waited == 0
        assert late is Liveness.UNKNOWN
        assert bench.checks == checks
        # Who uses the same cache later finds out anew: nobody looks at the store any more.
        assert bench.liveness is Liveness.REACHABLE
        assert bench.other.health.liveness is Liveness.REACHABLE
        assert len(cluster.transport.open_connections()) <= connections
