"""Stores that are killed, hang, lose answers, break streams, move or lie, under calls over real gRPC.

Bounds of time are generous, as machines are busy; `benchmarks/recovery.py` measures how soon calls recover.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_pd import ChannelConfig
from tikv_pd.errors import RpcError
from tikv_raw import DeadlineExceeded, RawClient, RawConfig, TikvError, UndeterminedError
from tikv_region import Liveness, RegionEntry
from tikv_rpc import Effect, RpcConfig

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Engine

Action = Callable[[], Coroutine[Any, Any, object]]
EngineOn = Callable[..., AbstractAsyncContextManager["Engine"]]

CALLERS = 256
KEYS = [b"%03d" % number for number in range(CALLERS)]
SPLITS = KEYS[64::64]
KEY = KEYS[0]
IMPATIENT = RpcConfig(attempt_timeout=0.5, liveness_timeout=0.3, connect_timeout=0.5)
SLACK = 1.0
"""Seconds by which a busy machine may be late."""


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(split_keys=SPLITS) as running:
        yield running


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[RawClient]:
    async with RawClient(cluster.url, config=RawConfig(rpc=IMPATIENT)) as opened:
        await opened.batch_put({key: key for key in KEYS})
        yield opened


@pytest.fixture
async def engine(cluster: EmbeddedCluster, engine_on: EngineOn) -> AsyncIterator[Engine]:
    async with engine_on(cluster, IMPATIENT) as opened:
        for key in KEYS[::64]:
            await opened.put(key, b"v")
        yield opened


def leader_of(cluster: EmbeddedCluster, key: bytes = KEY) -> int:
    leader = cluster.region_of(key).leader
    assert leader is not None
    return leader.store_id


def move_leaders_from(cluster: EmbeddedCluster, store: int) -> None:
    """Elect others, as raft does when a store is silent."""
    for region in cluster.regions():
        if region.leader is not None and region.leader.store_id == store:
            other = next(peer.store_id for peer in region.peers if peer.store_id != store)
            cluster.transfer_leader(region.id, other)


@contextmanager
def lasts(shortest: float, longest: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    elapsed = time.monotonic() - started
    assert shortest <= elapsed <= longest


async def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  # What is waited for has no event.
            await anyio.sleep(0.01)


def all_known(engine: Engine) -> list[RegionEntry]:
    return [engine.known(key) for key in KEYS[::64]]


async def in_parallel(calls: Iterable[Action]) -> None:
    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(call)


class TestKilled:
    @pytest.mark.parametrize("election", [0.0, 0.3], ids=["elected at once", "elected later"])
    async def test_no_call_of_256_callers_fails_and_all_go_on_soon(
        self, cluster: EmbeddedCluster, client: RawClient, election: float
    ) -> None:
        longest: dict[str, list[float]] = {"read": [], "write": []}
        killed, over = anyio.Event(), anyio.Event()
        victim = leader_of(cluster)

        async def keep(kind: str, call: Action) -> None:
            seconds = 0.0
            while not over.is_set():
                started = time.monotonic()
                await call()
                if killed.is_set():
                    seconds = max(seconds, time.monotonic() - started)
            longest[kind].append(seconds)

        async with anyio.create_task_group() as tasks:
            for key in KEYS[::2]:
                tasks.start_soon(keep, "read", partial(client.get, key, timeout=10))
            for key in KEYS[1::2]:
                tasks.start_soon(keep, "write", partial(client.put, key, key, timeout=10))
            await anyio.sleep(0.2)
            killed.set()
            await cluster.stop_store(victim, elect=not election)
            await anyio.sleep(election)
            # Stopped already: now others are elected.
            await cluster.stop_store(victim)
            await anyio.sleep(0.5)
            over.set()

        # Wanted is 1 s for reads and 3 s for writes.
        assert statistics.quantiles(longest["read"], n=100)[98] < 1.0 + election + SLACK
        assert statistics.quantiles(longest["write"], n=100)[98] < 3.0 + election + SLACK
        assert await client.batch_get(KEYS) == {key: key for key in KEYS}

    async def test_a_call_to_a_dead_store_ends_on_time_and_says_why(
        self, cluster: EmbeddedCluster, client: RawClient
    ) -> None:
        await cluster.stop_store(leader_of(cluster), elect=False)

        # Wanted is 1.1 s at most.
        with lasts(0.9, 1.1 + SLACK), pytest.raises(DeadlineExceeded) as caught:
            await client.get(KEY, timeout=1.0)

        assert isinstance(caught.value.__cause__, TikvError)

    async def test_one_that_is_back_at_its_port_leads_again(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        store = leader_of(cluster)
        await cluster.stop_store(store)
        await engine.put(KEY, b"1")
        await cluster.start_store(store)
        cluster.transfer_leader(cluster.region_of(KEY).id, store)

        await engine.put(KEY, b"2")

        assert await engine.get(KEY) == b"2"
        assert engine.known(KEY).leader_store.id == store

    async def test_one_that_is_back_at_another_port_is_found(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        store = leader_of(cluster)
        await cluster.stop_store(store, elect=False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.put, KEY, b"1")
            await anyio.sleep(0.1)
            moved = await cluster.move_store(store)

        assert await engine.get(KEY) == b"1"
        assert engine.known(KEY).leader_store.address == moved.address

    async def test_another_store_at_the_address_sends_nobody_astray(
        self, cluster: EmbeddedCluster, engine: Engine
    ) -> None:
        first, second = leader_of(cluster), next(s.id for s in cluster.stores() if s.id != leader_of(cluster))
        port = int(cluster.store_addresses[first].rpartition(":")[2])
        await cluster.move_store(first)
        await cluster.move_store(second, port=port)

        with cluster.faults.record() as recording:
            await engine.put(KEY, b"1")

        assert await engine.get(KEY) == b"1"
        assert recording.of("RawPut", store=first)


class TestHung:
    @pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
    async def test_it_costs_one_attempt_and_not_the_budget(
        self, cluster: EmbeddedCluster, client: RawClient, write: bool
    ) -> None:
        store = leader_of(cluster)
        hung = cluster.faults.hang(store)
        move_leaders_from(cluster, store)

        with lasts(IMPATIENT.attempt_timeout, IMPATIENT.attempt_timeout + IMPATIENT.liveness_timeout + SLACK):
            await (client.put(KEY, b"1", timeout=10) if write else client.get(KEY, timeout=10))
        # The others know by then.
        with lasts(0, SLACK):
            await in_parallel(partial(client.get, key, timeout=10) for key in KEYS)

        hung.lift()

    async def test_one_that_hangs_and_still_leads_is_waited_for_until_the_deadline(
        self, cluster: EmbeddedCluster, client: RawClient
    ) -> None:
        hung = cluster.faults.hang(leader_of(cluster))
        causes: list[BaseException | None] = []

        async def fail(call: Coroutine[Any, Any, object], error: type[TikvError]) -> None:
            with lasts(1.9, 2.1 + SLACK), pytest.raises(error) as caught:
                await call
            causes.append(caught.value.__cause__)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail, client.get(KEY, timeout=2.0), DeadlineExceeded)
            tasks.start_soon(fail, client.put(KEY, b"1", timeout=2.0), UndeterminedError)
        hung.lift()

        assert [isinstance(cause, TikvError) for cause in causes] == [True, True]

    async def test_calls_go_on_when_it_answers_again(self, cluster: EmbeddedCluster, client: RawClient) -> None:
        hung = cluster.faults.hang(leader_of(cluster))

        async with anyio.create_task_group() as tasks:
            for key in KEYS:
                tasks.start_soon(client.put, key, b"2")
            await anyio.sleep(1.0)
            hung.lift()

        assert await client.batch_get(KEYS) == dict.fromkeys(KEYS, b"2")


class TestPdIsGone:
    async def test_calls_to_known_regions_notice_nothing(self, cluster: EmbeddedCluster, client: RawClient) -> None:
        await cluster.stop_pd_member(0)

        with lasts(0, SLACK):
            for _ in range(5):
                await in_parallel(partial(client.put, key, b"1") for key in KEYS)
                await in_parallel(partial(client.get, key) for key in KEYS)

        assert await client.batch_get(KEYS) == dict.fromkeys(KEYS, b"1")

    async def test_a_leader_that_moves_is_followed(self, cluster: EmbeddedCluster, client: RawClient) -> None:
        await cluster.stop_pd_member(0)
        move_leaders_from(cluster, leader_of(cluster))

        with lasts(0, SLACK):
            await in_parallel(partial(client.put, key, b"1") for key in KEYS)

    async def test_a_store_that_dies_then_is_not_missed(self, cluster: EmbeddedCluster, client: RawClient) -> None:
        await cluster.stop_pd_member(0)
        await cluster.stop_store(leader_of(cluster))

        await in_parallel(partial(client.put, key, b"1", timeout=10) for key in KEYS)

        assert await client.batch_get(KEYS, timeout=10) == dict.fromkeys(KEYS, b"1")


class TestBrokenStreams:
    async def cut_under(self, cluster: EmbeddedCluster, rpc: str, calls: list[Action]) -> None:
        """Cut the stream when the calls were received and served, and none was answered."""
        store = leader_of(cluster)
        held = cluster.faults.on(rpc, store=store).hold_answer()
        async with anyio.create_task_group() as tasks:
            for call in calls:
                tasks.start_soon(call)
            with anyio.fail_after(5.0):
                await held.struck(len(calls))
            held.lift()
            assert cluster.faults.cut_streams(store) == 1

    async def test_reads_are_asked_again(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        found: list[bytes | None] = []

        async def read() -> None:
            found.append(await engine.get(KEY))

        with cluster.faults.record() as recording, lasts(0, SLACK):
            await self.cut_under(cluster, "RawGet", [read] * 20)

        assert found == [b"v"] * 20
        assert len(recording.of("RawGet")) == 40

    async def test_writes_are_made_again(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        with cluster.faults.record() as recording, lasts(0, SLACK):
            await self.cut_under(cluster, "RawPut", [partial(engine.put, key, b"1") for key in KEYS[:20]])

        assert [await engine.get(key) for key in KEYS[:20]] == [b"1"] * 20
        assert len(recording.of("RawPut")) == 40

    async def test_writes_that_must_not_be_made_twice_are_undetermined(
        self, cluster: EmbeddedCluster, engine: Engine
    ) -> None:
        causes: list[BaseException | None] = []

        async def write(key: bytes) -> None:
            with pytest.raises(UndeterminedError) as caught:
                await engine.put(key, b"1", effect=Effect.ONCE)
            causes.append(caught.value.__cause__)

        with cluster.faults.record() as recording, lasts(0, SLACK):
            await self.cut_under(cluster, "RawPut", [partial(write, key) for key in KEYS[:20]])

        assert [type(cause) for cause in causes] == [RpcError] * 20
        assert len(recording.of("RawPut")) == 20

    async def test_a_store_that_serves_is_not_blamed(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        epoch = engine.known(KEY).leader_store.epoch

        await self.cut_under(cluster, "RawGet", [partial(engine.get, KEY)])

        assert engine.known(KEY).leader_store.epoch == epoch

    async def test_without_batch_commands_calls_travel_by_themselves(
        self, cluster: EmbeddedCluster, engine_on: EngineOn
    ) -> None:
        cluster.faults.on("BatchCommands").refuse("UNIMPLEMENTED")

        with cluster.faults.record() as recording:
            async with engine_on(cluster) as engine:
                await in_parallel(partial(engine.put, key, key) for key in KEYS)
                found = [await engine.get(key) for key in KEYS]
                unary = sum(store.batch.unary for store in engine.rpc.stats().stores.values())

        assert found == KEYS
        assert not any(call.is_batched for call in recording.of("RawPut", "RawGet"))
        assert unary == len(recording.of("RawPut", "RawGet")) == 2 * CALLERS


class TestLostRequests:
    async def test_a_lost_read_costs_an_attempt(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        lost = cluster.faults.on("RawGet", times=1).lose_request()

        with lasts(IMPATIENT.attempt_timeout, IMPATIENT.attempt_timeout + SLACK):
            assert await engine.get(KEY) == b"v"

        assert lost.strikes == 1

    async def test_a_write_that_was_served_twice_is_there_once(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        cluster.faults.on("RawPut").duplicate()

        await in_parallel(partial(engine.put, key, key) for key in KEYS)

        assert [await engine.get(key) for key in KEYS] == KEYS

    @pytest.mark.parametrize("breaks", ["misdirect_answer", "empty_answer"])
    async def test_answers_to_nobody_or_of_nothing_fail_no_read(
        self, cluster: EmbeddedCluster, engine: Engine, breaks: str
    ) -> None:
        fault = getattr(cluster.faults.on("RawGet", times=1), breaks)()

        if breaks == "empty_answer":
            # What a store answers that does not know the command.
            with pytest.raises(RpcError, match="UNIMPLEMENTED"):
                await engine.get(KEY)
        assert await engine.get(KEY) == b"v"

        assert fault.strikes == 1

    async def test_whatever_is_lost_by_chance_no_write_is_reported_wrong(
        self, cluster: EmbeddedCluster, client: RawClient
    ) -> None:
        cluster.faults.seed(11)
        for lose, chance in (("lose_request", 0.1), ("lose_answer", 0.1), ("duplicate", 0.1), ("refuse", 0.01)):
            getattr(cluster.faults.on("RawPut", chance=chance), lose)()
        outcomes: dict[bytes, bool | None] = {}

        async def write(key: bytes) -> None:
            try:
                await client.put(key, b"new", timeout=4)
                outcomes[key] = True
            except UndeterminedError:
                outcomes[key] = None
            except DeadlineExceeded:
                outcomes[key] = False

        await in_parallel(partial(write, key) for key in KEYS)
        cluster.faults.clear()

        found = await client.batch_get(KEYS)
        assert len(outcomes) == CALLERS
        for key, outcome in outcomes.items():
            if outcome is not None:
                assert (found[key] == b"new") is outcome
        assert sum(outcome is True for outcome in outcomes.values()) > CALLERS / 2


class TestNobodyIsBlamed:
    async def test_deadlines_of_the_caller_blame_no_store(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        epochs = [store.epoch for entry in all_known(engine) for store in entry.stores]
        cluster.faults.on("RawGet").delay(0.05)

        async def read(key: bytes) -> None:
            with pytest.raises(DeadlineExceeded):
                await engine.get(key, timeout=0.001)

        await in_parallel(partial(read, key) for key in KEYS)
        cluster.faults.clear()

        with lasts(0, SLACK):
            await in_parallel(partial(engine.get, key) for key in KEYS)
        assert [store.epoch for entry in all_known(engine) for store in entry.stores] == epochs
        assert {store.health.liveness for entry in all_known(engine) for store in entry.stores} == {Liveness.REACHABLE}
        assert not any(entry.leader_store.health.is_slow(engine.rpc.now()) for entry in all_known(engine))

    async def test_cancellations_blame_no_store(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        epochs = [store.epoch for entry in all_known(engine) for store in entry.stores]
        held = cluster.faults.on("RawGet", "RawPut").hold()

        async with anyio.create_task_group() as tasks:
            for key in KEYS[::2]:
                tasks.start_soon(engine.get, key)
            for key in KEYS[1::2]:
                tasks.start_soon(engine.put, key, b"1")
            with anyio.fail_after(5.0):
                await held.struck(100)
            tasks.cancel_scope.cancel()
        held.lift()

        with lasts(0, SLACK):
            await in_parallel(partial(engine.get, key) for key in KEYS)
        assert [store.epoch for entry in all_known(engine) for store in entry.stores] == epochs
        assert engine.rpc.stats().in_flight == 0

    async def test_nor_does_a_deadline_while_a_dead_store_is_looked_at(
        self, cluster: EmbeddedCluster, engine: Engine
    ) -> None:
        """A store that only lost its stream and whose health check is slow is none the worse for impatient callers."""
        epoch = engine.known(KEY).leader_store.epoch
        store = leader_of(cluster)
        cluster.faults.on("Check", store=store).delay(0.1)
        cluster.faults.on("RawGet", store=store, times=1).refuse("UNAVAILABLE")

        with pytest.raises(DeadlineExceeded):
            await engine.get(KEY, timeout=0.05)

        assert await engine.get(KEY) == b"v"
        assert engine.known(KEY).leader_store.epoch == epoch


class TestPartitioned:
    """Connections that hang, with nothing refused or reset."""

    @pytest.fixture
    async def cluster(self) -> AsyncIterator[EmbeddedCluster]:
        async with EmbeddedCluster(split_keys=SPLITS, network_faults=True) as running:
            yield running

    async def test_keepalive_finds_a_connection_that_is_open_at_one_end_only(
        self, cluster: EmbeddedCluster, engine_on: EngineOn
    ) -> None:
        config = RpcConfig(
            attempt_timeout=30.0, channel=ChannelConfig(keepalive_time=0.5, keepalive_timeout=0.3), liveness_timeout=0.3
        )
        async with engine_on(cluster, config) as engine:
            await engine.put(KEY, b"v")
            store = leader_of(cluster)
            address = cluster.store_addresses[store]

            cluster.network.partition(address)
            move_leaders_from(cluster, store)
            # Long before the attempt is over, which has 30 s.
            with lasts(0.3, 10.0):
                found = await engine.get(KEY, timeout=60)
            cluster.network.heal(address)

        assert found == b"v"

    async def test_a_reset_connection_is_made_anew(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        address = cluster.store_addresses[leader_of(cluster)]

        with lasts(0, SLACK):
            assert cluster.network.reset(address) > 0
            assert await engine.get(KEY) == b"v"

    async def test_a_leader_out_of_reach_is_asked_through_another_store(
        self, cluster: EmbeddedCluster, engine_on: EngineOn
    ) -> None:
        config = RpcConfig(
            forwarding=True, attempt_timeout=0.5, connect_timeout=0.3, liveness_timeout=0.3, liveness_interval=0.1
        )
        async with engine_on(cluster, config) as engine:
            await engine.put(KEY, b"v")
            store = leader_of(cluster)
            cluster.network.partition(cluster.store_addresses[store])

            with cluster.faults.record() as recording:
                found = await engine.get(KEY)
                await engine.put(KEY, b"w")
                with lasts(0, SLACK):
                    await in_parallel([partial(engine.get, KEY)] * 50)
            proxies = {call.proxy for call in recording.of("RawGet", "RawPut", store=store)}
            cluster.network.heal(cluster.store_addresses[store])
            await wait_until(lambda: engine.known(KEY).leader_store.health.liveness is Liveness.REACHABLE)
            with cluster.faults.record() as healed:
                again = await engine.get(KEY)

        assert found == b"v"
        assert again == b"w"
        assert None not in proxies
        assert store not in proxies
        assert [call.proxy for call in healed.of("RawGet")] == [None]

    async def test_without_forwarding_it_is_waited_for(self, cluster: EmbeddedCluster, engine: Engine) -> None:
        address = cluster.store_addresses[leader_of(cluster)]
        store = engine.known(KEY).leader_store
        cluster.network.partition(address)

        with lasts(1.9, 2.1 + SLACK), pytest.raises(DeadlineExceeded):
            await engine.get(KEY, timeout=2.0)
        cluster.network.heal(address)

        await wait_until(lambda: store.health.liveness is Liveness.REACHABLE)
        assert await engine.get(KEY) == b"v"


class TestLimits:
    async def test_one_operation_keeps_so_many_requests_under_way(self, cluster: EmbeddedCluster) -> None:
        config = RawConfig(batch_keys=8, rpc=RpcConfig(concurrency=3))
        async with RawClient(cluster.url, config=config) as client:
            held = cluster.faults.on("RawBatchGet").hold()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.batch_get, KEYS)
                with anyio.fail_after(5.0):
                    await held.struck(3)
                await anyio.sleep(0.1)
                waiting = held.waiting
                held.lift()

        assert waiting == 3

    async def test_one_connection_to_a_store_keeps_so_many_under_way_and_answers_all(
        self, cluster: EmbeddedCluster, engine_on: EngineOn
    ) -> None:
        most = 0
        async with engine_on(cluster, RpcConfig(max_in_flight=4)) as engine:
            await engine.put(KEY, b"v")
            slow = cluster.faults.on("RawGet").delay(0.005)

            async def read() -> None:
                nonlocal most
                assert await engine.get(KEY) == b"v"
                most = max(most, slow.waiting)

            await in_parallel([read] * 100)

        assert slow.strikes == 100
        assert 1 < most <= 4

    async def test_stores_that_take_long_do_not_hold_up_the_others(
        self, cluster: EmbeddedCluster, engine_on: EngineOn
    ) -> None:
        store = leader_of(cluster)
        others = [key for key in KEYS if leader_of(cluster, key) != store]
        async with engine_on(cluster, RpcConfig(max_in_flight=4)) as engine:
            held = cluster.faults.on("RawGet", store=store).hold()
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(engine.get, KEY)
                with anyio.fail_after(5.0):
                    await held.struck(4)
                with lasts(0, SLACK):
                    await in_parallel(partial(engine.get, key) for key in others)
                held.lift()

        assert len(others) > CALLERS / 4


async def test_thousands_of_calls_wait_for_a_store_that_takes_its_time(
    cluster: EmbeddedCluster, engine: Engine
) -> None:
    held = cluster.faults.on("RawGet").hold()
    answers: list[bytes | None] = []

    async def read() -> None:
        answers.append(await engine.get(KEY, timeout=60))

    # Longer than an attempt may take, they would be sent again.
    async with anyio.create_task_group() as tasks:
        for _ in range(2_000):
            tasks.start_soon(read)
        with anyio.fail_after(10.0):
            await held.struck(2_000)
        held.lift()

    assert answers == [b"v"] * 2_000
    assert engine.rpc.stats().in_flight == 0
