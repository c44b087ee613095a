"""What those hear who observe a client, and what its statistics say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anyio
import attrs
import pytest
from google.protobuf.message import Message
from tikv_pd import DeadlineExceeded, PdClient, TikvError
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import PD, Tikv
from tikv_region import KeyRange, Liveness
from tikv_rpc import (
    AtKey,
    Attempt,
    AttemptReport,
    Dispatch,
    Edge,
    Effect,
    Execution,
    FanOut,
    KeyWork,
    ObservedRegionCache,
    Operation,
    OperationReport,
    Plan,
    Proceed,
    RangeWork,
    ReplicaRead,
    Request,
    RequestOptions,
    RetryRegion,
    RpcClient,
    RpcConfig,
    Settle,
    WaitReport,
    collect_exec_details,
    dispatch,
    operation,
)
from tikv_rpc._plans.observed import subject_of
from tikv_rpc.testing import FakeCluster

if TYPE_CHECKING:
    from tests.conftest import Kv

PLAIN = RequestOptions()
BUSY = errorpb.Error(server_is_busy=errorpb.ServerIsBusy(reason="scheduler is busy"))


@attrs.define(eq=False)
class Heard:
    """An observer that remembers everything, and may leave operations out."""

    skipped: str = ""
    began: list[Operation] = attrs.field(factory=list)
    attempts: list[AttemptReport] = attrs.field(factory=list)
    waits: list[WaitReport] = attrs.field(factory=list)
    ended: list[OperationReport] = attrs.field(factory=list)

    def begin(self, operation: Operation) -> Heard | None:
        if operation.name == self.skipped:
            return None
        self.began.append(operation)
        return self

    def attempt(self, report: AttemptReport) -> None:
        self.attempts.append(report)

    def wait(self, report: WaitReport) -> None:
        self.waits.append(report)

    def end(self, report: OperationReport) -> None:
        self.ended.append(report)


def _no_request(_part: Any) -> Any:
    raise NotImplementedError


class Seen:
    """Raw key-value with plans that can be observed."""

    def __init__(self, rpc: RpcClient) -> None:
        self.rpc = rpc
        retry = RetryRegion(dispatch(rpc), rpc)
        self.at_key: Plan[Any, Any] = operation(rpc, Settle(AtKey(retry, rpc.cache)))
        self.fan_out: Plan[Any, Any] = operation(rpc, FanOut(retry, rpc.cache, 16))

    async def get(self, key: bytes, timeout: float = 30, options: RequestOptions = PLAIN) -> bytes:
        request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=key), Effect.READ)
        response = await self.at_key.execute((key, request), self.rpc.call("get", timeout, options))
        return bytes(response.value)

    async def put(self, key: bytes, value: bytes, timeout: float = 30) -> None:
        request = Request(Tikv.RawPut, kvrpcpb.RawPutRequest(key=key, value=value), Effect.WRITE)
        await self.at_key.execute((key, request), self.rpc.call("put", timeout))

    async def batch_get(self, keys: Sequence[bytes]) -> None:
        def build(part: Sequence[int]) -> Request[Any]:
            message = kvrpcpb.RawBatchGetRequest(keys=[keys[position] for position in part])
            return Request(Tikv.RawBatchGet, message, Effect.READ)

        work = KeyWork(keys, build, 100, 1 << 20, [len(key) for key in keys])
        await self.fan_out.execute(work, self.rpc.call("batch_get", 30))

    async def txn_get(self, key: bytes) -> None:
        request = Request(Tikv.KvGet, kvrpcpb.GetRequest(key=key, version=1), Effect.READ)
        await self.at_key.execute((key, request), self.rpc.call("get", 30))


class TestObserver:
    async def test_an_operation_and_its_attempt_are_reported(self, cluster: FakeCluster) -> None:
        heard = Heard()
        async with cluster.connect(observers=[heard]) as rpc:
            await Seen(rpc).put(b"a", b"1")

        (attempt,) = heard.attempts
        assert (heard.began[0].name, heard.began[0].key, heard.began[0].keys) == ("put", b"a", None)
        assert (attempt.rpc, attempt.store_id, attempt.address) == ("RawPut", 1, "tikv1:20160")
        assert (attempt.access, attempt.is_retry, attempt.branch, attempt.outcome) == ("leader", False, 0, "OK")
        assert attempt.region_id == cluster.map.region(b"a").id
        assert attempt.request_bytes > len(b"a1")
        assert heard.ended == [OperationReport(heard.ended[0].seconds, "OK", 1, 0)]

    async def test_a_response_has_its_size(self, cluster: FakeCluster) -> None:
        heard = Heard()
        async with cluster.connect(observers=[heard]) as rpc:
            await Seen(rpc).put(b"a", bytes(1000))
            await Seen(rpc).get(b"a")

        assert heard.attempts[0].request_bytes > 1000 > heard.attempts[0].response_bytes
        assert heard.attempts[1].response_bytes > 1000 > heard.attempts[1].request_bytes

    async def test_a_refused_attempt_the_wait_and_the_next_attempt_are_reported(self, cluster: FakeCluster) -> None:
        cluster.store(1).answer_next(Tikv.RawPut, region_error=BUSY)
        heard = Heard()
        async with cluster.connect(observers=[heard]) as rpc:
            await Seen(rpc).put(b"a", b"1")

        (wait,) = heard.waits
        assert [(each.outcome, each.is_retry) for each in heard.attempts] == [("server_is_busy", False), ("OK", True)]
        assert heard.attempts[0].is_region_error
        assert not heard.attempts[0].is_rpc_error
        assert wait.kind == "tikvServerBusy"
        assert 1 <= wait.seconds <= 2
        assert heard.ended[0].seconds == pytest.approx(wait.seconds)
        assert (heard.ended[0].attempts, heard.ended[0].waits) == (2, 1)

    async def test_an_attempt_without_an_answer_has_the_status(self, cluster: FakeCluster) -> None:
        cluster.store(1).fail_next(Tikv.RawPut, "UNAVAILABLE")
        heard = Heard()
        async with cluster.connect(observers=[heard]) as rpc:
            await Seen(rpc).put(b"a", b"1")

        assert heard.attempts[0].outcome == "UNAVAILABLE"
        assert heard.attempts[0].is_rpc_error
        assert heard.attempts[0].response_bytes == 0

    async def test_an_error_is_the_outcome_of_its_operation(self, cluster: FakeCluster) -> None:
        cluster.store(1).hang_next(Tikv.RawGet)
        heard = Heard()
        async with cluster.connect(observers=[heard]) as rpc:
            with pytest.raises(DeadlineExceeded):
                await Seen(rpc).get(b"a", timeout=2)

        assert heard.attempts[0].outcome == "DEADLINE_EXCEEDED"
        assert heard.attempts[0].seconds == pytest.approx(2)
        assert heard.ended[0].outcome == "DeadlineExceeded"
        assert heard.ended[0].seconds == pytest.approx(2)

    async def test_a_cancelled_operation_ends_as_such(self, cluster: FakeCluster) -> None:
        cluster.store(1).hang_next(Tikv.RawGet)
        heard = Heard()
        async with cluster.connect(observers=[heard]) as rpc:
            with anyio.move_on_after(1):
                await Seen(rpc).get(b"a")

        assert heard.attempts[0].outcome == heard.ended[0].outcome == "Cancelled"
        assert heard.ended[0].seconds == pytest.approx(1)

    async def test_a_wait_that_is_cut_short_is_as_long_as_it_was(self, cluster: FakeCluster) -> None:
        cluster.store(1).answer_next(Tikv.RawGet, region_error=BUSY)
        heard = Heard()
        async with cluster.connect(observers=[heard]) as rpc:
            with anyio.move_on_after(0.5):
                await Seen(rpc).get(b"a")

        assert heard.waits[0].seconds == pytest.approx(0.5)

    async def test_parallel_branches_are_told_apart(self, cluster: FakeCluster) -> None:
        heard = Heard()
        async with cluster.connect(observers=[heard]) as rpc:
            await Seen(rpc).batch_get([b"a", b"k", b"z"])

        assert (heard.began[0].key, heard.began[0].keys) == (b"a", 3)
        assert sorted(each.branch for each in heard.attempts) == [1, 2, 3]
        assert heard.ended[0].attempts == 3

    @pytest.mark.parametrize(
        ("work", "subject"),
        [
            ((b"k", None), (b"k", None)),
            (KeyWork([b"b", b"a"], _no_request, 1, 1, [1, 1]), (b"b", 2)),
            (KeyWork([], _no_request, 1, 1, []), (None, 0)),
            (RangeWork(KeyRange(b"a", b"c"), _no_request), (b"a", None)),
            (Edge(KeyRange(b"a", b"c"), at_end=True, request=_no_request), (b"a", None)),
            (object(), (None, None)),
        ],
    )
    def test_what_an_operation_is_about_is_told_by_its_work(self, work: object, subject: object) -> None:
        assert subject_of(work) == subject

    async def test_a_read_by_a_follower_is_reported_as_one(self, cluster: FakeCluster) -> None:
        heard = Heard()
        async with cluster.connect(observers=[heard]) as rpc:
            await Seen(rpc).get(b"a", options=RequestOptions(replica_read=ReplicaRead.FOLLOWER))

        assert heard.attempts[0].access == "follower"
        assert heard.attempts[0].store_id != 1

    async def test_an_operation_that_is_left_out_is_not_reported(self, cluster: FakeCluster) -> None:
        heard = Heard(skipped="get")
        async with cluster.connect(observers=[heard]) as rpc:
            await Seen(rpc).get(b"a")
            await Seen(rpc).put(b"a", b"1")

        assert [each.name for each in heard.began] == ["put"]
        assert [each.rpc for each in heard.attempts] == ["RawPut"]

    async def test_a_call_may_be_several_operations_each_with_waits_of_its_own(self, cluster: FakeCluster) -> None:
        heard = Heard(skipped="quiet")
        request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=b"a"), Effect.READ)
        async with cluster.connect(observers=[heard]) as rpc:
            call, seen = rpc.call("get", 30), Seen(rpc)
            for name in ("get", "quiet", "get"):
                call.operation = name
                cluster.store(1).answer_next(Tikv.RawGet, region_error=BUSY)
                await seen.at_key.execute((b"a", request), call)
            waited = rpc.stats().waits

        assert [report.waits for report in heard.ended] == [1, 1]
        assert len(heard.waits) == 2
        assert waited == {"tikvServerBusy": 3}

    async def test_what_an_interceptor_raises_is_the_outcome(self, cluster: FakeCluster) -> None:
        class Refuse:
            name = "refuse"

            async def __call__(self, _attempt: Attempt, _proceed: Proceed) -> Message:
                raise LookupError("no")

        heard = Heard()
        async with cluster.connect(observers=[heard], interceptors=[Refuse()]) as rpc:
            with pytest.raises(LookupError):
                await Seen(rpc).get(b"a")

        assert heard.attempts[0].outcome == heard.ended[0].outcome == "LookupError"

    async def test_an_attempt_outside_of_any_operation_goes_unreported(self, cluster: FakeCluster) -> None:
        heard = Heard()
        async with cluster.connect(observers=[heard]) as rpc:
            request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=b"a"), Effect.READ)
            plain: AtKey[Any] = AtKey(RetryRegion(dispatch(rpc), rpc), rpc.cache)
            await plain.execute((b"a", request), rpc.call("get", 5))

        assert (heard.began, heard.attempts) == ([], [])

    async def test_the_time_that_pd_takes_is_a_wait_of_its_own(self, cluster: FakeCluster) -> None:
        heard = Heard()
        async with PdClient(cluster.url, transport=cluster.transport) as pd:
            cache = ObservedRegionCache(pd, cluster.map.codec, now=cluster.transport.now)
            cluster_id, transport = cluster.pd.cluster_id, cluster.transport
            async with RpcClient(cache, cluster.map.codec, cluster_id, transport, observers=[heard]) as rpc:
                cluster.pd.hang(PD.GetRegion)
                cluster.pd.hang(PD.BatchScanRegions)
                cluster.pd.hang(PD.QueryRegion)
                with pytest.raises(DeadlineExceeded):
                    await Seen(rpc).get(b"a", timeout=5)

        waited = sum(wait.seconds for wait in heard.waits)
        assert "PD" in {wait.kind for wait in heard.waits}
        assert waited == pytest.approx(5, abs=0.01)
        assert heard.attempts == []


class TestWithoutObservers:
    async def test_nothing_is_put_around_a_plan(self, kv: Kv) -> None:
        plain: AtKey[Any] = AtKey(RetryRegion(dispatch(kv.rpc), kv.rpc), kv.rpc.cache)

        composed = operation(kv.rpc, plain)

        assert composed is plain
        assert isinstance(dispatch(kv.rpc), Dispatch)

    async def test_details_of_a_client_that_tells_none_are_empty(self, cluster: FakeCluster) -> None:
        async with cluster.connect() as rpc:
            with collect_exec_details() as collected:
                await Seen(rpc).get(b"a")

        assert collected.details.operations == collected.details.attempts == 0


class TestExecDetails:
    async def test_what_calls_go_through_is_added_up(self, cluster: FakeCluster) -> None:
        cluster.store(1).answer_next(Tikv.RawPut, region_error=BUSY)
        cluster.store(1).delay_next(Tikv.RawGet, 0.25)
        async with cluster.connect(RpcConfig(exec_details=True)) as rpc:
            with collect_exec_details() as collected:
                await Seen(rpc).put(b"a", b"1")
                await Seen(rpc).get(b"a")
            await Seen(rpc).get(b"a")

        details = collected.details
        assert (details.operations, details.attempts, details.retries) == (2, 3, 1)
        assert details.failures == {"server_is_busy": 1}
        assert details.waits == {"tikvServerBusy": 1}
        assert 1 <= details.backoff_seconds == details.wait_seconds["tikvServerBusy"] <= 2
        assert details.store_seconds == pytest.approx(0.25)
        assert details.bytes_sent > 100
        assert 0 < details.bytes_received < 100

    async def test_blocks_may_be_nested_and_reach_into_tasks(self, cluster: FakeCluster) -> None:
        async with cluster.connect(RpcConfig(exec_details=True)) as rpc:
            with collect_exec_details() as outer:
                await Seen(rpc).get(b"a")
                with collect_exec_details() as inner:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(Seen(rpc).get, b"b")
                        tasks.start_soon(Seen(rpc).get, b"z")

        assert (outer.details.operations, inner.details.operations) == (3, 2)

    async def test_blocks_of_different_tasks_are_separate(self, cluster: FakeCluster) -> None:
        counts: list[int] = []

        async def work(times: int) -> None:
            with collect_exec_details() as collected:
                for _ in range(times):
                    await Seen(rpc).get(b"a")
            counts.append(collected.details.operations)

        async with cluster.connect(RpcConfig(exec_details=True)) as rpc, anyio.create_task_group() as tasks:
            tasks.start_soon(work, 2)
            tasks.start_soon(work, 5)

        assert sorted(counts) == [2, 5]

    async def test_what_stores_say_of_their_work_is_added_up(self, cluster: FakeCluster) -> None:
        async def answer(_request: Any) -> Message:
            times = kvrpcpb.TimeDetailV2(process_wall_time_ns=3_000_000, wait_wall_time_ns=1_000_000)
            scan = kvrpcpb.ScanDetailV2(processed_versions=2, total_versions=5, rocksdb_block_read_count=1)
            details = kvrpcpb.ExecDetailsV2(time_detail_v2=times, scan_detail_v2=scan)
            return kvrpcpb.GetResponse(value=b"1", exec_details_v2=details)

        cluster.handlers[Tikv.KvGet] = answer
        async with cluster.connect(RpcConfig(exec_details=True)) as rpc:
            with collect_exec_details() as collected:
                await Seen(rpc).txn_get(b"a")
                await Seen(rpc).txn_get(b"b")

        execution = collected.details.execution
        assert execution.process == pytest.approx(0.006)
        assert execution.wait == pytest.approx(0.002)
        assert (execution.processed_versions, execution.total_versions, execution.read_blocks) == (4, 10, 2)

    def test_older_stores_tell_times_in_milliseconds(self) -> None:
        old = kvrpcpb.TimeDetail(process_wall_time_ms=3, wait_wall_time_ms=1, total_rpc_wall_time_ns=5_000_000)

        execution = Execution.from_pb(kvrpcpb.ExecDetailsV2(time_detail=old))

        assert (execution.process, execution.wait, execution.total) == (0.003, 0.001, 0.005)


class TestStats:
    async def test_a_client_without_calls_has_empty_statistics(self, cluster: FakeCluster) -> None:
        async with cluster.connect() as rpc:
            stats = rpc.stats()

        assert (stats.stores, stats.attempts, stats.in_flight) == ({}, 0, 0)
        assert (stats.region_errors, stats.rpc_errors, stats.waits, stats.wait_seconds) == ({}, {}, {}, {})

    async def test_attempts_errors_and_waits_are_counted_without_observers(self, cluster: FakeCluster) -> None:
        cluster.store(1).answer_next(Tikv.RawPut, region_error=BUSY)
        cluster.store(1).fail_next(Tikv.RawPut, "UNAVAILABLE")
        async with cluster.connect() as rpc:
            await Seen(rpc).put(b"a", b"1")
            stats = rpc.stats()

        assert stats.attempts == 3
        assert stats.region_errors == {"server_is_busy": 1}
        assert stats.rpc_errors == {"UNAVAILABLE": 1}
        assert stats.waits["tikvServerBusy"] == 1
        assert 1 <= stats.wait_seconds["tikvServerBusy"] <= 2

    async def test_a_store_that_serves_is_told_so(self, cluster: FakeCluster) -> None:
        async with cluster.connect() as rpc:
            await Seen(rpc).put(b"a", b"1")
            store = rpc.stats().stores["tikv1:20160"]

        assert (store.store_id, store.liveness, store.slow_score) == (1, Liveness.REACHABLE, 1.0)
        assert (store.batch.requests, store.estimated_wait) == (1, 0.0)

    async def test_a_store_that_is_down_is_told_so(self, cluster: FakeCluster) -> None:
        async with cluster.connect() as rpc:
            await Seen(rpc).put(b"a", b"1")
            cluster.store(1).stop()
            with pytest.raises(TikvError):
                await Seen(rpc).put(b"a", b"1", timeout=3)
            store = rpc.stats().stores["tikv1:20160"]

        assert (store.liveness, store.slow_score) == (Liveness.UNREACHABLE, 100.0)

    async def test_statistics_are_values_that_stay_as_they_are(self, cluster: FakeCluster) -> None:
        async with cluster.connect() as rpc:
            before = rpc.stats()
            await Seen(rpc).put(b"a", b"1")

        assert before.attempts == 0
        with pytest.raises(TypeError):
            before.waits["regionMiss"] = 1  # type: ignore[index]
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            before.waits = {}  # type: ignore[misc]

    async def test_a_call_under_way_is_in_flight(self, cluster: FakeCluster) -> None:
        cluster.store(1).hang_next(Tikv.RawGet)
        async with cluster.connect() as rpc, anyio.create_task_group() as tasks:
            tasks.start_soon(Seen(rpc).get, b"a")
            await anyio.sleep(1)
            stats = rpc.stats()
            tasks.cancel_scope.cancel()

        assert stats.in_flight == 1
