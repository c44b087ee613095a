"""Attempts without an answer: what is tried again, what is undetermined, and whom nobody blames."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tikv_pd import BackoffExceeded, ClosedError, ConfigError, DeadlineExceeded, PdError, UndeterminedError
from tikv_pd.errors import RpcError
from tikv_pd.testing import MemoryConnection, MemoryTransport, fail
from tikv_proto.services import PD, Health, Tikv
from tikv_region import RegionCache
from tikv_rpc import Effect, RequestOptions, RpcClient, RpcConfig
from tikv_rpc.testing import Act, FakeCluster, Serve

if TYPE_CHECKING:
    from tests.conftest import AskedPd, Kv


def apply_and(then: Callable[[], None]) -> Act:
    """Apply a request, let something happen, and lose the answer."""

    async def act(_request: Any, serve: Serve) -> Any:
        await serve()
        then()
        raise fail("UNAVAILABLE", "the connection broke")

    return act


def stop_all(cluster: FakeCluster) -> None:
    for store in cluster.stores.values():
        store.stop()


class TestLostAnswers:
    async def test_a_read_is_asked_again(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        cluster.store(1).drop_reply_next(Tikv.RawGet)

        assert await kv.get(b"a") == b"1"

    async def test_a_write_that_may_be_repeated_is_repeated(self, cluster: FakeCluster, kv: Kv) -> None:
        cluster.store(1).drop_reply_next(Tikv.RawPut)

        await kv.put(b"a", b"1")

        assert len(cluster.requests(Tikv.RawPut)) >= 2

    async def test_a_write_that_must_not_be_repeated_is_undetermined_at_once(
        self, cluster: FakeCluster, kv: Kv
    ) -> None:
        cluster.store(1).drop_reply_next(Tikv.RawPut)
        began = anyio.current_time()

        with pytest.raises(UndeterminedError) as raised:
            await kv.put(b"a", b"1", effect=Effect.ONCE)

        assert anyio.current_time() == began
        assert isinstance(raised.value.__cause__, RpcError)
        assert len(cluster.requests(Tikv.RawPut)) == 1
        assert cluster.data == {b"a": b"1"}

    async def test_the_same_holds_for_what_is_not_batched(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        cluster.store(1).drop_reply_next(Tikv.RawCompareAndSwap)

        with pytest.raises(UndeterminedError):
            await kv.swap(b"a", b"1", b"2")

        assert len(cluster.requests(Tikv.RawCompareAndSwap)) == 1
        assert cluster.data == {b"a": b"2"}

    @pytest.mark.parametrize("effect", [Effect.WRITE, Effect.ONCE])
    async def test_a_write_whose_answer_never_comes_is_undetermined_at_its_deadline(
        self, cluster: FakeCluster, kv: Kv, effect: Effect
    ) -> None:
        cluster.store(1).drop_reply_next(Tikv.RawPut, hang=True)
        began = anyio.current_time()

        with pytest.raises(UndeterminedError):
            await kv.put(b"a", b"1", timeout=2, effect=effect)

        assert anyio.current_time() - began == pytest.approx(2)

    async def test_a_write_lost_once_and_never_sent_again_is_undetermined(self, cluster: FakeCluster, kv: Kv) -> None:
        cluster.store(1).script(Tikv.RawPut, apply_and(lambda: stop_all(cluster)))

        with pytest.raises(UndeterminedError) as raised:
            await kv.put(b"a", b"1", timeout=2)

        assert isinstance(raised.value.__cause__, DeadlineExceeded)

    async def test_a_read_whose_answer_never_comes_ends_at_its_deadline(self, cluster: FakeCluster, kv: Kv) -> None:
        cluster.store(1).hang_next(Tikv.RawGet)

        with pytest.raises(DeadlineExceeded) as raised:
            await kv.get(b"a", timeout=2)

        assert isinstance(raised.value.__cause__, RpcError)


class TestNothingSent:
    @pytest.fixture(autouse=True)
    async def stopped(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.get(b"a")
        stop_all(cluster)
        await anyio.wait_all_tasks_blocked()

    async def test_a_write_fails_as_not_done(self, kv: Kv) -> None:
        with pytest.raises(DeadlineExceeded) as raised:
            await kv.put(b"a", b"1", timeout=2)

        assert isinstance(raised.value.__cause__, RpcError)
        assert not raised.value.__cause__.sent

    async def test_a_write_not_to_be_repeated_waits_for_a_connection(self, cluster: FakeCluster, kv: Kv) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kv.put, b"a", b"1", 30, Effect.ONCE)
            await anyio.sleep(1)
            cluster.store(1).start()

        assert cluster.data == {b"a": b"1"}

    async def test_the_same_holds_for_what_is_not_batched(self, cluster: FakeCluster, kv: Kv) -> None:
        cluster.raw.put(b"a", b"1")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kv.swap, b"a", b"1", b"2")
            await anyio.sleep(1)
            cluster.store(1).start()

        assert cluster.data == {b"a": b"2"}

    async def test_a_swap_fails_as_not_done(self, kv: Kv) -> None:
        with pytest.raises(DeadlineExceeded):
            await kv.swap(b"a", b"1", b"2", timeout=2)

    async def test_a_budget_of_waiting_ends_it_before_the_deadline(
        self, cluster: FakeCluster, make_kv: type[Kv]
    ) -> None:
        async with cluster.connect(RpcConfig(backoff_budget=1)) as rpc:
            with pytest.raises(BackoffExceeded):
                await make_kv(rpc).put(b"a", b"1", timeout=1000)


class TestBlame:
    @pytest.mark.parametrize("rpc", [Tikv.RawGet, Tikv.RawGetKeyTTL], ids=["batched", "unary"])
    async def test_the_callers_own_deadline_teaches_nothing_about_the_store(
        self, cluster: FakeCluster, kv: Kv, rpc: Any
    ) -> None:
        await kv.get(b"a")
        entry = kv.cache.find(b"a")
        assert entry is not None
        leader, epoch = entry.leader_store, entry.leader_store.epoch
        cluster.store(1).hang_next(rpc)

        with pytest.raises(DeadlineExceeded):
            await (kv.get(b"a", timeout=2) if rpc is Tikv.RawGet else kv.ttl(b"a", timeout=2))

        assert kv.cache.find(b"a") is entry
        assert entry.leader_store is leader
        assert (leader.epoch, leader.needs_check) == (epoch, False)

    async def test_nor_does_a_timer_of_grpc_that_is_a_little_early(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.get(b"a")
        entry = kv.cache.find(b"a")
        assert entry is not None

        class Early(MemoryConnection):
            async def unary(self, rpc: Any, request: Any, *, timeout: float, metadata: Any = ()) -> Any:
                return await super().unary(rpc, request, timeout=timeout - 0.001, metadata=metadata)

        route = kv.rpc.known_route(entry, RequestOptions())
        assert route is not None
        route.client._lanes[0].connection._inner = Early(cluster.transport, "tikv1:20160")
        cluster.store(1).hang_next(Tikv.RawGetKeyTTL)

        with pytest.raises(DeadlineExceeded):
            await kv.ttl(b"a", timeout=2)

        assert kv.cache.find(b"a") is entry

    async def test_a_store_that_does_not_answer_an_attempt_costs_the_attempt_and_no_more(
        self, cluster: FakeCluster, kv: Kv
    ) -> None:
        await kv.put(b"a", b"1")
        cluster.store(1).hang_next(Tikv.RawGet)
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(move_soon, cluster)

            value = await kv.get(b"a")

        assert value == b"1"
        assert 10 < anyio.current_time() - began < 11

    async def test_a_store_that_hangs_and_says_that_it_serves_is_asked_again(
        self, cluster: FakeCluster, kv: Kv
    ) -> None:
        await kv.put(b"a", b"1")
        cluster.store(1).hang_next(Tikv.RawGet)

        await kv.get(b"a")

        assert [r.store_id for r in cluster.log if r.rpc is Tikv.RawGet] == [1, 1]

    async def test_a_store_that_hangs_altogether_is_tried_through_its_replicas(
        self, cluster: FakeCluster, kv: Kv
    ) -> None:
        await kv.put(b"a", b"1")
        cluster.store(1).hang_next(Tikv.RawGet)
        cluster.store(1).hang_next(Health.Check)

        await kv.get(b"a")

        asked = [r.store_id for r in cluster.log if r.rpc is Tikv.RawGet]
        assert asked == [1, 2, 1]

    async def test_regions_of_a_store_that_serves_are_kept_when_its_stream_breaks(
        self, cluster: FakeCluster, pd: AskedPd, kv: Kv
    ) -> None:
        await kv.batch_get([b"a", b"h", b"q"])
        cluster.store(1).drop_reply_next(Tikv.RawGet)
        pd.asked.clear()

        await kv.get(b"a")
        await kv.get(b"q")

        assert pd.asked == []

    async def test_all_regions_of_a_store_that_failed_are_looked_at_again(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.batch_get([b"a", b"h", b"q"])
        entry = kv.cache.find(b"q")
        cluster.store(1).stop()
        cluster.move_leader(b"a", 2)

        await kv.get(b"a")

        assert entry is not None
        assert not entry.is_valid()

    async def test_a_store_that_comes_back_is_used_again(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        cluster.store(1).stop()
        cluster.store(1).start()

        assert await kv.get(b"a") == b"1"

    async def test_a_store_that_is_back_and_leads_again_is_used_at_once(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        cluster.store(1).stop()
        cluster.move_leader(b"a", 2)
        await kv.get(b"a")
        cluster.store(1).start()
        cluster.move_leader(b"a", 1)
        began = anyio.current_time()

        assert await kv.get(b"a") == b"1"

        assert anyio.current_time() - began < 0.1

    async def test_a_leader_that_died_is_followed_to_the_next(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        cluster.store(1).stop()
        for key in (b"a", b"h", b"q"):
            cluster.move_leader(key, 2)
        began = anyio.current_time()

        assert await kv.get(b"a") == b"1"

        assert anyio.current_time() - began < 0.2


async def move_soon(cluster: FakeCluster) -> None:
    await anyio.sleep(1)
    cluster.move_leader(b"a", 2)


class TestRefusals:
    CODES = ("UNAUTHENTICATED", "PERMISSION_DENIED", "FAILED_PRECONDITION")

    @pytest.mark.parametrize("code", CODES)
    async def test_a_status_that_no_retry_cures_ends_the_call(self, cluster: FakeCluster, kv: Kv, code: str) -> None:
        cluster.store(1).fail_next(Tikv.RawGet, code, "no")

        with pytest.raises(RpcError, match="no") as raised:
            await kv.get(b"a")

        assert raised.value.code == code
        assert len(cluster.requests(Tikv.RawGet)) == 1

    async def test_what_a_store_knows_neither_in_a_batch_nor_alone_ends_the_call(
        self, cluster: FakeCluster, kv: Kv
    ) -> None:
        cluster.store(1).fail_next(Tikv.RawGet, "UNIMPLEMENTED", "no", times=2)

        with pytest.raises(RpcError, match="no") as raised:
            await kv.get(b"a")

        assert raised.value.code == "UNIMPLEMENTED"
        assert [received.batched for received in cluster.log] == [True, False]

    @pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED", "UNKNOWN", "CANCELLED"])
    async def test_any_other_status_is_tried_again(self, cluster: FakeCluster, kv: Kv, code: str) -> None:
        await kv.put(b"a", b"1")
        cluster.store(1).fail_next(Tikv.RawGet, code)

        assert await kv.get(b"a") == b"1"

    async def test_stores_of_another_cluster_refuse(self, cluster: FakeCluster, kv: Kv, make_kv: type[Kv]) -> None:
        async with RpcClient(kv.cache, cluster.map.codec, 8, cluster.transport) as rpc:
            stranger = make_kv(rpc)
            with pytest.raises(DeadlineExceeded, match="cluster id"):
                await stranger.get(b"a")
            for effect in (Effect.WRITE, Effect.ONCE):
                with pytest.raises(DeadlineExceeded, match="cluster id"):
                    await stranger.put(b"a", b"1", effect=effect)

        assert cluster.data == {}

    async def test_an_address_given_to_another_cluster_is_asked_for_again(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        cluster.store(1).fail_next(Tikv.RawPut, "INVALID_ARGUMENT", "cluster id mismatch")
        asked = cluster.pd.calls(PD.GetStore)

        await kv.put(b"a", b"2")

        assert await kv.get(b"a") == b"2"
        assert cluster.pd.calls(PD.GetStore) > asked

    async def test_an_rpc_the_store_does_not_serve_ends_the_call(self, cluster: FakeCluster, kv: Kv) -> None:
        cluster.store(1).fail_next(Tikv.RawGetKeyTTL, "UNIMPLEMENTED")

        with pytest.raises(RpcError):
            await kv.ttl(b"a")

    async def test_an_answer_that_cannot_be_read_is_a_failure_like_any_other(
        self, cluster: FakeCluster, kv: Kv
    ) -> None:
        class Garbled:
            def SerializeToString(self) -> bytes:
                return b"\xff"

        garbled: Any = Garbled()
        cluster.store(1).answer_next(Tikv.RawGetKeyTTL, garbled)

        assert await kv.ttl(b"a") == 0


class TestClosing:
    async def test_reads_end_with_closed_error(self, cluster: FakeCluster, make_kv: type[Kv]) -> None:
        errors = await close_while(cluster, make_kv, lambda kv: kv.get(b"a"), Tikv.RawGet)

        assert [type(error) for error in errors] == [ClosedError]

    async def test_unary_reads_end_with_closed_error(self, cluster: FakeCluster, make_kv: type[Kv]) -> None:
        errors = await close_while(cluster, make_kv, lambda kv: kv.ttl(b"a"), Tikv.RawGetKeyTTL)

        assert [type(error) for error in errors] == [ClosedError]

    async def test_writes_that_were_sent_are_undetermined(self, cluster: FakeCluster, make_kv: type[Kv]) -> None:
        errors = await close_while(cluster, make_kv, lambda kv: kv.put(b"a", b"1"), Tikv.RawPut)

        assert [type(error) for error in errors] == [UndeterminedError]

    async def test_swaps_that_were_sent_are_undetermined(self, cluster: FakeCluster, make_kv: type[Kv]) -> None:
        errors = await close_while(cluster, make_kv, lambda kv: kv.swap(b"a", b"1", b"2"), Tikv.RawCompareAndSwap)

        assert [type(error) for error in errors] == [UndeterminedError]

    async def test_a_call_that_waits_to_try_again_ends_with_closed_error(
        self, cluster: FakeCluster, make_kv: type[Kv]
    ) -> None:
        stop_all(cluster)

        errors = await close_while(cluster, make_kv, lambda kv: kv.put(b"a", b"1"), Tikv.RawPut)

        assert [type(error) for error in errors] == [ClosedError]

    async def test_a_closed_client_starts_no_operation(self, cluster: FakeCluster, make_kv: type[Kv]) -> None:
        async with cluster.connect() as rpc:
            kv = make_kv(rpc)

        with pytest.raises(ClosedError):
            await kv.get(b"a")
        with pytest.raises(ClosedError):
            rpc.store("tikv1:20160")

    async def test_what_the_block_raises_is_not_wrapped(self, cluster: FakeCluster, make_kv: type[Kv]) -> None:
        async def fail_inside() -> None:
            async with cluster.connect() as rpc:
                await make_kv(rpc).get(b"a")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail_inside()

    async def test_nothing_is_connected_after_the_end(self, cluster: FakeCluster, make_kv: type[Kv]) -> None:
        async with cluster.connect() as rpc:
            await make_kv(rpc).get(b"a")
        connections = [c for c in cluster.transport._connections if c.address == "tikv1:20160"]

        assert [connection.closed for connection in connections] == [True]
        assert rpc.stats().stores == {}


async def close_while(cluster: FakeCluster, make_kv: type[Kv], call: Any, rpc: Any) -> list[BaseException]:
    """Close a client while a call waits for its answer, and return what the call raised."""
    errors: list[BaseException] = []
    cluster.store(1).drop_reply_next(rpc, hang=True)

    async def run(kv: Any) -> None:
        try:
            await call(kv)
        except Exception as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks, cluster.connect() as client:
        tasks.start_soon(run, make_kv(client))
        await anyio.wait_all_tasks_blocked()
    return errors


class TestPd:
    async def test_pd_is_not_needed_while_regions_are_known(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        cluster.pd.stop()

        assert await kv.get(b"a") == b"1"

    async def test_a_move_that_the_store_tells_needs_no_pd(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        await kv.get(b"h")
        cluster.pd.stop()
        cluster.split(b"c")

        assert await kv.get(b"a") == b"1"

    async def test_a_region_that_must_be_loaded_waits_for_pd(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        entry = kv.cache.find(b"a")
        assert entry is not None
        cluster.pd.stop()
        cluster.merge(b"a")
        values = []

        async def get() -> None:
            values.append(await kv.get(b"a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await anyio.sleep(5)
            cluster.pd.start("pd1:2379")

        assert values == [b"1"]

    async def test_pd_being_away_is_the_cause_at_the_deadline(self, cluster: FakeCluster, kv: Kv) -> None:
        cluster.pd.stop()

        with pytest.raises(DeadlineExceeded) as raised:
            await kv.get(b"a", timeout=5)

        assert raised.value.__cause__ is not None

    async def test_what_pd_refuses_for_good_after_a_lost_write_is_undetermined(
        self, cluster: FakeCluster, kv: Kv
    ) -> None:
        def part() -> None:
            cluster.pd.answer_error(PD.GetRegion, "INCOMPATIBLE_VERSION")
            cluster.store(1).stop()

        cluster.store(1).script(Tikv.RawPut, apply_and(part))

        with pytest.raises(UndeterminedError) as raised:
            await kv.put(b"a", b"1", timeout=5)

        assert isinstance(raised.value.__cause__, PdError)


async def test_material_for_tls_that_vanished_fails_the_call_and_not_the_client(
    cluster: FakeCluster, pd: AskedPd, make_kv: type[Kv]
) -> None:
    class Vanished(MemoryTransport):
        broken = True

        def connect(self, address: str, *, channel: int = 0) -> MemoryConnection:
            if self.broken:
                raise ConfigError("TLS material cannot be read")
            return cluster.transport.connect(address, channel=channel)

    transport = Vanished()
    cache = RegionCache(pd, cluster.map.codec, now=anyio.current_time)
    async with RpcClient(cache, cluster.map.codec, 7, transport) as rpc:
        other = make_kv(rpc)
        with pytest.raises(ConfigError, match="TLS"):
            await other.get(b"a")
        with pytest.raises(ConfigError, match="TLS"):
            await other.batch_get([b"a", b"h", b"q"])
        transport.broken = False

        assert await other.get(b"a") is None


async def test_the_limit_of_an_attempt_reaches_the_store(cluster: FakeCluster, make_kv: type[Kv]) -> None:
    async with cluster.connect(RpcConfig(attempt_timeout=3)) as rpc:
        await make_kv(rpc).get(b"a")

    (message,) = cluster.requests(Tikv.RawGet)
    assert message.context.max_execution_duration_ms == 2000
