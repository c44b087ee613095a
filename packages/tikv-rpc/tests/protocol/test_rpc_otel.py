"""Spans and metrics, as an SDK of OpenTelemetry receives them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import attrs
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from tikv_pd import ClosedError, DeadlineExceeded
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import Tikv
from tikv_rpc import (
    AtKey,
    AttemptReport,
    Effect,
    Execution,
    FanOut,
    KeyWork,
    Operation,
    OperationReport,
    Plan,
    Request,
    RequestOptions,
    RetryRegion,
    RpcClient,
    RpcStats,
    WaitReport,
    dispatch,
    operation,
)
from tikv_rpc.otel import OtelObserver, TraceContext
from tikv_rpc.testing import FakeCluster


class Collector:
    """An SDK that keeps everything in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider(metric_readers=[self._reader])
        self.observer = OtelObserver(self.tracers, self.meters)

    def spans(self) -> dict[str, ReadableSpan]:
        """Return the spans by name; of several with one name the last to end."""
        return {span.name: span for span in self._exporter.get_finished_spans()}

    def span_names(self) -> list[str]:
        return [span.name for span in self._exporter.get_finished_spans()]

    def points(self, metric: str) -> list[Any]:
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else [])
            for scope in resource.scope_metrics
            for each in scope.metrics
            if each.name == metric
            for point in each.data.data_points
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.meters.shutdown()
    collector.tracers.shutdown()


async def get(rpc: RpcClient, key: bytes = b"a", timeout: float = 30, options: RequestOptions | None = None) -> None:
    request: Request[Any] = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=key), Effect.READ)
    plan: Plan[Any, Any] = operation(rpc, AtKey(RetryRegion(dispatch(rpc), rpc), rpc.cache))
    await plan.execute((key, request), rpc.call("get", timeout, options or RequestOptions()))


async def batch_get(rpc: RpcClient, *keys: bytes) -> None:
    def build(part: Any) -> Request[Any]:
        message = kvrpcpb.RawBatchGetRequest(keys=[keys[position] for position in part])
        return Request(Tikv.RawBatchGet, message, Effect.READ)

    plan: Plan[Any, Any] = operation(rpc, FanOut(RetryRegion(dispatch(rpc), rpc), rpc.cache, 16))
    await plan.execute(KeyWork(keys, build, 100, 1 << 20, [1] * len(keys)), rpc.call("batch_get", 30))


class TestSpans:
    async def test_an_operation_is_a_span_of_the_conventions_with_its_attempt_below(
        self, cluster: FakeCluster, collector: Collector
    ) -> None:
        async with cluster.connect(observers=[collector.observer]) as rpc:
            await get(rpc)

        whole, attempt = collector.spans()["get"], collector.spans()["RawGet"]
        assert whole.kind is SpanKind.CLIENT
        assert whole.attributes == {"db.system.name": "tikv", "db.operation.name": "get"}
        assert whole.status.status_code is StatusCode.UNSET
        assert attempt.parent is not None
        assert attempt.parent.span_id == whole.context.span_id
        assert attempt.attributes is not None
        expected = {
            "server.address": "tikv1",
            "server.port": 20160,
            "rpc.method": "RawGet",
            "tikv.store.id": 1,
            "tikv.access": "leader",
            "tikv.is_retry": False,
        }
        assert expected.items() <= dict(attempt.attributes).items()

    async def test_spans_have_the_times_of_what_they_stand_for(
        self, cluster: FakeCluster, collector: Collector
    ) -> None:
        cluster.store(1).delay_next(Tikv.RawGet, 0.5)
        async with cluster.connect(observers=[collector.observer]) as rpc:
            await get(rpc)

        attempt = collector.spans()["RawGet"]
        assert attempt.start_time is not None
        assert attempt.end_time is not None
        assert attempt.end_time - attempt.start_time == pytest.approx(0.5e9, rel=1e-3)

    async def test_a_refused_attempt_and_a_wait_are_spans_too(self, cluster: FakeCluster, collector: Collector) -> None:
        refusal = errorpb.Error(region_not_initialized=errorpb.RegionNotInitialized())
        cluster.store(1).answer_next(Tikv.RawGet, region_error=refusal)
        async with cluster.connect(observers=[collector.observer]) as rpc:
            await get(rpc)

        assert collector.span_names() == ["RawGet", "backoff regionNotInitialized", "RawGet", "get"]
        assert collector.spans()["backoff regionNotInitialized"].kind is SpanKind.INTERNAL
        assert collector.spans()["get"].status.status_code is StatusCode.UNSET

    async def test_a_failure_is_the_status_and_the_type(self, cluster: FakeCluster, collector: Collector) -> None:
        cluster.store(1).hang_next(Tikv.RawGet)
        async with cluster.connect(observers=[collector.observer]) as rpc:
            with pytest.raises(DeadlineExceeded):
                await get(rpc, timeout=1)

        whole, attempt = collector.spans()["get"], collector.spans()["RawGet"]
        assert (whole.status.status_code, attempt.status.status_code) == (StatusCode.ERROR, StatusCode.ERROR)
        assert dict(whole.attributes or {})["error.type"] == "DeadlineExceeded"
        assert dict(attempt.attributes or {})["error.type"] == "DEADLINE_EXCEEDED"

    async def test_a_cancelled_operation_is_no_error(self, cluster: FakeCluster, collector: Collector) -> None:
        cluster.store(1).hang_next(Tikv.RawGet)
        async with cluster.connect(observers=[collector.observer]) as rpc:
            with anyio.move_on_after(1):
                await get(rpc)

        assert collector.spans()["get"].status.status_code is StatusCode.UNSET
        assert dict(collector.spans()["get"].attributes or {})["error.type"] == "Cancelled"

    async def test_parallel_attempts_are_below_their_operation(
        self, cluster: FakeCluster, collector: Collector
    ) -> None:
        async with cluster.connect(observers=[collector.observer]) as rpc:
            await batch_get(rpc, b"a", b"k", b"z")

        whole = collector.spans()["batch_get"]
        assert dict(whole.attributes or {})["db.operation.batch.size"] == 3
        assert collector.span_names() == ["RawBatchGet"] * 3 + ["batch_get"]

    async def test_an_operation_is_below_the_callers_span_which_stays_current(
        self, cluster: FakeCluster, collector: Collector
    ) -> None:
        tracer = collector.tracers.get_tracer("test")
        async with cluster.connect(observers=[collector.observer]) as rpc:
            with tracer.start_as_current_span("request") as outer:
                await get(rpc)
                current = trace.get_current_span()

        whole = collector.spans()["get"]
        assert whole.parent is not None
        assert whole.parent.span_id == outer.get_span_context().span_id
        assert current is outer

    async def test_spans_that_are_not_sampled_have_none_below_and_metrics_all_the_same(
        self, cluster: FakeCluster, collector: Collector
    ) -> None:
        observer = OtelObserver(TracerProvider(sampler=ALWAYS_OFF), collector.meters)
        async with cluster.connect(observers=[observer]) as rpc:
            await get(rpc)

        assert collector.span_names() == []
        assert collector.points("db.client.operation.duration")[0].count == 1

    async def test_no_key_and_no_value_is_in_any_span(self, cluster: FakeCluster, collector: Collector) -> None:
        async with cluster.connect(observers=[collector.observer]) as rpc:
            await get(rpc, b"secret")

        assert not any("secret" in span.to_json() for span in collector.spans().values())
        assert not any(b"secret".hex() in span.to_json() for span in collector.spans().values())


class TestTraceContext:
    async def test_stores_are_told_the_trace_of_the_operation(self, cluster: FakeCluster, collector: Collector) -> None:
        async with cluster.connect(observers=[collector.observer], interceptors=[TraceContext()]) as rpc:
            await get(rpc)

        (received,) = cluster.requests(Tikv.RawGet)
        assert int.from_bytes(received.context.trace_id, "big") == collector.spans()["get"].context.trace_id
        assert len(received.context.trace_id) == 16
        assert received.context.trace_control_flags == 2

    async def test_what_is_to_be_traced_of_it_may_be_chosen(self, cluster: FakeCluster, collector: Collector) -> None:
        async with cluster.connect(observers=[collector.observer], interceptors=[TraceContext()]) as rpc:
            await get(rpc, options=RequestOptions(trace_flags=9))

        assert cluster.requests(Tikv.RawGet)[0].context.trace_control_flags == 9

    async def test_parallel_attempts_are_of_the_same_trace(self, cluster: FakeCluster, collector: Collector) -> None:
        async with cluster.connect(observers=[collector.observer], interceptors=[TraceContext()]) as rpc:
            await batch_get(rpc, b"a", b"k", b"z")

        assert len({received.context.trace_id for received in cluster.requests(Tikv.RawBatchGet)} - {b""}) == 1

    async def test_a_trace_that_the_options_name_stays(self, cluster: FakeCluster, collector: Collector) -> None:
        async with cluster.connect(observers=[collector.observer], interceptors=[TraceContext()]) as rpc:
            await get(rpc, options=RequestOptions(trace_id=b"mine"))

        assert cluster.requests(Tikv.RawGet)[0].context.trace_id == b"mine"

    async def test_without_a_span_stores_are_told_none(self, cluster: FakeCluster) -> None:
        async with cluster.connect(interceptors=[TraceContext()]) as rpc:
            await get(rpc)

        assert cluster.requests(Tikv.RawGet)[0].context.trace_id == b""


class TestMetrics:
    async def test_operations_and_attempts_are_timed(self, cluster: FakeCluster, collector: Collector) -> None:
        cluster.store(1).delay_next(Tikv.RawGet, 0.5)
        async with cluster.connect(observers=[collector.observer]) as rpc:
            await get(rpc)

        (whole,) = collector.points("db.client.operation.duration")
        (attempt,) = collector.points("tikv.client.request.duration")
        assert whole.attributes == {"db.system.name": "tikv", "db.operation.name": "get"}
        assert whole.sum == pytest.approx(0.5)
        assert whole.explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
        assert attempt.attributes == {"rpc.method": "RawGet", "tikv.store.id": 1, "tikv.access": "leader"}
        assert attempt.sum == pytest.approx(0.5)

    async def test_failures_are_told_by_their_type(self, cluster: FakeCluster, collector: Collector) -> None:
        cluster.store(1).hang_next(Tikv.RawGet)
        async with cluster.connect(observers=[collector.observer]) as rpc:
            with pytest.raises(DeadlineExceeded):
                await get(rpc, timeout=1)

        assert collector.points("db.client.operation.duration")[0].attributes["error.type"] == "DeadlineExceeded"
        (errors,) = collector.points("tikv.client.rpc_errors")
        assert errors.attributes == {"error.type": "DEADLINE_EXCEEDED", "tikv.store.id": 1}

    async def test_region_errors_waits_and_retries_are_counted(
        self, cluster: FakeCluster, collector: Collector
    ) -> None:
        refusal = errorpb.Error(region_not_initialized=errorpb.RegionNotInitialized())
        cluster.store(1).answer_next(Tikv.RawGet, region_error=refusal)
        async with cluster.connect(observers=[collector.observer]) as rpc:
            await get(rpc)

        (errors,) = collector.points("tikv.client.region_errors")
        (wait,) = collector.points("tikv.client.backoff.duration")
        (retries,) = collector.points("tikv.client.request.retries")
        assert (errors.value, errors.attributes["error.type"]) == (1, "region_not_initialized")
        assert (wait.sum, wait.attributes) == (pytest.approx(0.002), {"tikv.wait.kind": "regionNotInitialized"})
        assert retries.sum == 1

    async def test_sizes_are_recorded(self, cluster: FakeCluster, collector: Collector) -> None:
        async with cluster.connect(observers=[collector.observer]) as rpc:
            await get(rpc)

        (sent,) = collector.points("tikv.client.request.size")
        assert sent.sum > 10
        assert sent.attributes == {"rpc.method": "RawGet", "tikv.access": "leader"}
        assert collector.points("tikv.client.response.size")[0].sum > 0

    async def test_the_statistics_of_a_client_are_exported_while_it_is_watched(
        self, cluster: FakeCluster, collector: Collector
    ) -> None:
        async with cluster.connect() as rpc:
            with collector.observer.watch(rpc.stats):
                await get(rpc)
                (requests,) = collector.points("tikv.client.batch.requests")
                (is_up,) = collector.points("tikv.client.store.up")
            after = collector.points("tikv.client.store.up")

        assert (requests.value, is_up.value) == (1, 1)
        assert requests.attributes == {"server.address": "tikv1", "server.port": 20160, "tikv.store.id": 1}
        assert after == []

    def test_the_statistics_of_a_client_that_is_closed_are_left_out(self, collector: Collector) -> None:
        def stats() -> RpcStats:
            raise ClosedError("RawClient")

        with collector.observer.watch(stats):
            assert collector.points("tikv.client.store.up") == []

    def test_time_outside_of_the_store_and_stale_reads_are_recorded(self, collector: Collector) -> None:
        traced = collector.observer.begin(Operation("get", b"k", None, 0.0))
        report = AttemptReport(
            rpc="KvGet",
            store_id=2,
            address="[::1]:20160",
            forwarded_to="tikv3:20160",
            region_id=4,
            access="stale_follower",
            is_retry=False,
            branch=0,
            started=0.0,
            seconds=0.5,
            outcome="OK",
            request_bytes=10,
            response_bytes=20,
            execution=Execution(total=0.4),
        )
        traced.attempt(report)
        traced.attempt(attrs.evolve(report, outcome="data_is_not_ready", execution=None))
        traced.wait(WaitReport("PD", 0, 0.5, 0.25))
        traced.end(OperationReport(1.0, "OK", 2, 1))

        (net,) = collector.points("tikv.client.request.net_latency")
        (pd,) = collector.points("tikv.client.pd.duration")
        stale = {
            point.attributes["tikv.stale_read.result"]: point.value
            for point in collector.points("tikv.client.stale_reads")
        }
        attributes = dict(collector.spans()["KvGet"].attributes or {})
        assert (net.sum, pd.sum) == (pytest.approx(0.1), 0.25)
        assert stale == {"hit": 1, "miss": 1}
        assert (attributes["server.address"], attributes["tikv.forwarded_to"]) == ("::1", "tikv3:20160")
        assert "wait for PD" in collector.span_names()

    def test_attempts_that_others_pass_on_are_counted(self, collector: Collector) -> None:
        traced = collector.observer.begin(Operation("get", b"k", None, 0.0))
        report = AttemptReport(
            rpc="RawGet",
            store_id=1,
            address="tikv2:20160",
            forwarded_to="tikv1:20160",
            region_id=4,
            access="leader",
            is_retry=False,
            branch=0,
            started=0.0,
            seconds=0.5,
            outcome="OK",
            request_bytes=10,
            response_bytes=20,
            execution=None,
        )
        traced.attempt(report)
        traced.attempt(attrs.evolve(report, forwarded_to="", address="tikv1:20160"))
        traced.end(OperationReport(1.0, "OK", 2, 0))

        (forwarded,) = collector.points("tikv.client.forwarded_requests")
        assert forwarded.value == 1
        assert forwarded.attributes == {
            "rpc.method": "RawGet",
            "tikv.forwarded_by": "tikv2:20160",
            "tikv.forwarded_to": "tikv1:20160",
        }


def test_the_package_does_not_import_opentelemetry() -> None:
    code = "import sys, tikv_rpc; sys.exit('opentelemetry' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], check=False)

    assert done.returncode == 0
