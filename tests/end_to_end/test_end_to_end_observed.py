"""What a client tells of itself, over real gRPC: statistics, details of calls, slow operations, spans, redaction."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import anyio
import pytest
from google.protobuf.message import Message
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tikv_embedded import EmbeddedCluster
from tikv_proto import kvrpcpb
from tikv_raw import ClosedError, DeadlineExceeded, RawClient, RawConfig, RawError, RpcConfig
from tikv_region import Liveness
from tikv_rpc import Attempt, AttemptReport, Operation, OperationReport, Proceed, WaitReport, collect_exec_details
from tikv_rpc.otel import OtelObserver, TraceContext

KEYS = [b"a", b"h", b"q", b"z"]


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(stores=3, split_keys=[b"g", b"p"]) as running:
        yield running


class Heard:
    """An observer that remembers what each operation went through."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.attempts: list[AttemptReport] = []
        self.waits: list[WaitReport] = []
        self.ended: list[OperationReport] = []

    def begin(self, operation: Operation) -> Heard:
        self.operations.append(operation)
        return self

    def attempt(self, report: AttemptReport) -> None:
        self.attempts.append(report)

    def wait(self, report: WaitReport) -> None:
        self.waits.append(report)

    def end(self, report: OperationReport) -> None:
        self.ended.append(report)


async def do_everything(client: RawClient) -> None:
    """Call each operation once."""
    await client.put(b"a", b"1", ttl=60)
    await client.get(b"a")
    await client.ttl(b"a")
    await client.compare_and_swap(b"a", b"1", b"2")
    await client.batch_put(dict.fromkeys(KEYS, b"v"))
    await client.batch_get(KEYS)
    _ = [pair async for pair in client.scan()]
    _ = await client.batch_scan([(b"a", b"h"), (b"p", b"z")])
    await client.checksum()
    await client.count()
    await client.put_if_absent(b"b", b"1")
    await client.delete(b"a")
    await client.batch_delete(KEYS)
    await client.delete_range(b"a", b"z")
    await client.delete_prefix(b"z")


async def test_every_operation_is_observed() -> None:
    heard = Heard()
    async with (
        EmbeddedCluster(split_keys=[b"g", b"p"], api_version="v1ttl") as cluster,
        RawClient(cluster.url, api_version="v1ttl", observers=[heard]) as client,
    ):
        await do_everything(client)

    names = [operation.name for operation in heard.operations]
    assert set(names) == {
        "put",
        "get",
        "ttl",
        "compare_and_swap",
        "batch_put",
        "batch_get",
        "scan",
        "checksum",
        "delete",
        "batch_delete",
        "delete_range",
        "delete_prefix",
        "batch_scan",
        "count",
        "put_if_absent",
    }
    assert {report.outcome for report in heard.ended} == {"OK"}
    assert len(heard.ended) == len(names)
    assert all(report.seconds > 0 and report.response_bytes >= 0 for report in heard.attempts)
    assert "PD" in {wait.kind for wait in heard.waits}


async def test_statistics_tell_of_stores_and_of_what_went_wrong(cluster: EmbeddedCluster) -> None:
    async with RawClient(cluster.url) as client:
        await client.put(b"a", b"1")
        leader = cluster.regions()[0].leader
        assert leader is not None
        cluster.faults.on("RawGet", times=1).region_error("region_not_initialized")
        await client.get(b"a")
        stats = client.stats()

    (address,) = (store.address for store in cluster.stores() if store.id == leader.store_id)
    assert stats.stores[address].liveness is Liveness.REACHABLE
    assert stats.stores[address].batch.requests == stats.attempts == 3
    assert stats.region_errors == {"region_not_initialized": 1}
    assert stats.waits["regionNotInitialized"] == 1
    assert stats.in_flight == 0
    with pytest.raises(ClosedError):
        client.stats()


async def test_details_of_calls_tell_of_bytes_time_and_pd(cluster: EmbeddedCluster) -> None:
    async with RawClient(cluster.url, config=RawConfig(rpc=RpcConfig(exec_details=True))) as client:
        cluster.faults.on("RawGet", times=1).delay(0.2)
        with collect_exec_details() as first:
            await client.put(b"a", bytes(10_000))
            await client.get(b"a")
        with collect_exec_details() as second:
            await client.get(b"a")

    assert (first.details.operations, first.details.attempts) == (2, 2)
    assert first.details.bytes_sent > 10_000
    assert first.details.bytes_received > 10_000
    assert first.details.store_seconds > 0.2
    assert first.details.pd_seconds > 0
    assert (second.details.attempts, second.details.pd_seconds) == (1, 0.0)


async def test_a_slow_operation_is_logged_with_its_attempts(
    cluster: EmbeddedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tikv_rpc.slow")
    config = RawConfig(rpc=RpcConfig(slow_threshold=0.3, redact="on"))
    async with RawClient(cluster.url, config=config) as client:
        await client.put(b"secret", b"1")
        cluster.faults.on("RawGet", times=1).delay(0.5)
        await client.get(b"secret")

    (entry,) = [record.getMessage() for record in caplog.records if record.name == "tikv_rpc.slow"]
    first, attempt = entry.splitlines()
    assert first.startswith("slow get: 0.5")
    assert first.endswith("s, OK, key ?, 1 attempt, 0 waits")
    assert "RawGet to store" in attempt
    assert b"secret".hex() not in entry


async def test_a_client_is_traced_from_its_caller_to_the_store(cluster: EmbeddedCluster) -> None:
    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    traces: list[bytes] = []

    class Watch:
        """Reads what the store is told; innermost."""

        name = "watch"

        async def __call__(self, attempt: Attempt, proceed: Proceed) -> Message:
            traces.append(kvrpcpb.Context.FromString(attempt.fields).trace_id)
            return await proceed()

    observer = OtelObserver(tracers)
    async with RawClient(cluster.url, observers=[observer], interceptors=[TraceContext(), Watch()]) as client:
        with tracers.get_tracer("test").start_as_current_span("request") as outer:
            await client.batch_put(dict.fromkeys(KEYS, b"v"))
            pairs = [pair async for pair in client.scan()]

    trace_id = outer.get_span_context().trace_id
    spans = exporter.get_finished_spans()
    assert len(pairs) == len(KEYS)
    assert {span.context.trace_id for span in spans} == {trace_id}
    assert {int.from_bytes(each, "big") for each in traces} == {trace_id}
    assert {"request", "batch_put", "RawBatchPut", "scan", "RawScan"} <= {span.name for span in spans}
    tracers.shutdown()


async def test_errors_of_a_client_show_no_keys_when_it_is_told_so(cluster: EmbeddedCluster) -> None:
    shown, hidden = await errors_of(cluster, RpcConfig()), await errors_of(cluster, RpcConfig(redact="on"))

    assert all(b"secret".hex() in str(error) for error in shown)
    assert not any(b"secret".hex() in f"{error} {error!r} {error.__cause__!r}" for error in hidden)


async def errors_of(cluster: EmbeddedCluster, rpc: RpcConfig) -> list[Exception]:
    """Return those of a key that is quoted by a store that refuses it for now, and by one that does so for good."""
    words = f"key {b'secret'.hex()} is not served"
    async with RawClient(cluster.url, config=RawConfig(rpc=rpc)) as client:
        fault = cluster.faults.on("RawGet").region_error("region_not_initialized", message=words)
        with pytest.raises(DeadlineExceeded) as late:
            await client.get(b"secret", timeout=0.5)
        fault.lift()
        cluster.faults.on("RawGet", times=1).answer(kvrpcpb.RawGetResponse(error=words))
        with pytest.raises(RawError) as refused:
            await client.get(b"secret")
    return [late.value, refused.value]


async def test_an_interceptor_of_a_raw_client_runs_around_every_attempt(cluster: EmbeddedCluster) -> None:
    asked: list[str] = []

    class Count:
        name = "count"

        async def __call__(self, attempt: Attempt, proceed: Proceed) -> Message:
            asked.append(attempt.rpc.name)
            return await proceed()

    async with RawClient(cluster.url, interceptors=[Count()]) as client:
        await client.put(b"a", b"1")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.get, b"a")
            tasks.start_soon(client.get, b"z")

    assert asked == ["RawPut", "RawGet", "RawGet"]
