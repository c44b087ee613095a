"""Spans and metrics by OpenTelemetry; needs the extra `tikv-rpc[otel]`.

Names are those of the stable semantic conventions for database clients, and TiKV's own for what these do not know.
Source: OpenTelemetry semantic-conventions, database spans and metrics; client-go metrics/metrics.go and tikv/pd
client/resource_group/controller/metrics for the families.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import Token
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from google.protobuf.message import Message
from opentelemetry import context, metrics, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from tikv_pd import ClosedError
from tikv_proto import kvrpcpb
from tikv_region import Liveness

from tikv_rpc._reports.observer import (
    CANCELLED,
    OK,
    PD,
    AttemptReport,
    Operation,
    OperationReport,
    TokenRequestReport,
    TokenWaitReport,
    WaitReport,
)
from tikv_rpc.intercept import Attempt, Proceed
from tikv_rpc.options import TRACED_REQUESTS

if TYPE_CHECKING:
    from tikv_rpc._reports.stats import RpcStats, StoreStats
    from tikv_rpc.resource_control.stats import GroupCounts, GroupStats, RuSeries

Attributes: TypeAlias = dict[str, str | int | bool]

_SCOPE: Final = "tikv_rpc"
_SYSTEM: Final = "tikv"
_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Bounds of buckets that the conventions advise for `db.client.operation.duration`."""
_FINE_SECONDS: Final = tuple(0.0005 * 2**step for step in range(16))
"""Those of client-go for requests."""
_RETRIES: Final = (0.0, 1.0, 2.0, 3.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
_BYTES: Final = tuple(float(16 * 4**step) for step in range(11))
_TOKEN_SECONDS: Final = (0.0005, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 25.0, 30.0, 60.0, 600.0)
"""Those of PD's clients for waits for tokens."""
_STALE_READS: Final = {OK: "hit", "data_is_not_ready": "miss"}

_Read: TypeAlias = "Callable[[StoreStats], float]"
_COUNTERS: Final[Sequence[tuple[str, str, str, _Read]]] = (
    ("tikv.client.batch.messages", "{message}", "BatchCommands messages sent.", lambda store: store.batch.messages),
    ("tikv.client.batch.requests", "{request}", "Requests in them.", lambda store: store.batch.requests),
    ("tikv.client.batch.bytes", "By", "Size of them.", lambda store: store.batch.bytes_sent),
    ("tikv.client.batch.late_responses", "{response}", "Answers nobody waited for.", lambda store: store.batch.late),
    ("tikv.client.batch.reconnects", "{stream}", "Streams that broke.", lambda store: store.batch.reconnects),
    ("tikv.client.unary.requests", "{request}", "Requests sent by themselves.", lambda store: store.batch.unary),
)
_LEVELS: Final[Sequence[tuple[str, str, str, _Read]]] = (
    ("tikv.client.requests.in_flight", "{request}", "Calls under way.", lambda store: store.batch.in_flight),
    ("tikv.client.requests.queued", "{request}", "Those that wait for their turn.", lambda store: store.batch.queued),
    ("tikv.client.batch.streams", "{stream}", "Streams open.", lambda store: store.batch.streams),
    ("tikv.client.store.up", "1", "Whether it answers.", lambda store: float(store.liveness is Liveness.REACHABLE)),
    ("tikv.client.store.slow_score", "1", "How slow it is, from 1 to 100.", lambda store: store.slow_score),
    ("tikv.client.store.estimated_wait", "s", "Wait by its own estimate.", lambda store: store.estimated_wait),
)
_Count: TypeAlias = "Callable[[GroupCounts], Iterator[tuple[float, Attributes]]]"
_GROUP_COUNTERS: Final[Sequence[tuple[str, str, str, _Count]]] = (
    ("requests", "{request}", "Requests that got their tokens.", lambda counts: _one(counts.requests)),
    ("failures", "{request}", "Requests that did not get their tokens.", lambda counts: _by_error(counts.failures)),
    ("retries", "{look}", "Looks for tokens after a first one in vain.", lambda counts: _one(counts.retries)),
    ("wait.time", "s", "Waits of requests that got their tokens.", lambda counts: _one(counts.wait_seconds)),
    ("throttled.time", "s", "Waits of requests that were throttled.", lambda counts: _one(counts.throttled_seconds)),
    ("ru", "{request_unit}", "Request units.", lambda counts: _by_series(counts.ru)),
    ("token_requests", "{request}", "Requests for tokens to PD.", lambda counts: _one(counts.token_requests)),
    ("low_notices", "{request}", "Requests for tokens as they ran low.", lambda counts: _one(counts.low_notices)),
    ("reported_ru", "{request_unit}", "Request units PD was told of.", lambda counts: _one(counts.reported_ru)),
    ("coprocessor.predicted", "{request}", "Requests charged ahead.", lambda counts: _one(counts.predicted)),
    ("coprocessor.unpredicted", "{request}", "Requests not charged ahead.", lambda counts: _one(counts.unpredicted)),
    ("coprocessor.predicted_bytes", "By", "Bytes charged ahead.", lambda counts: _one(counts.predicted_bytes)),
    ("coprocessor.actual_bytes", "By", "Bytes read instead.", lambda counts: _one(counts.actual_bytes)),
)
_Level: TypeAlias = "Callable[[GroupStats, GroupCounts], float]"
_GROUP_LEVELS: Final[Sequence[tuple[str, str, str, _Level]]] = (
    ("waiting", "{request}", "Requests that are after tokens.", lambda _, counts: counts.waiting),
    ("tokens", "{request_unit}", "Tokens it holds.", lambda group, _: group.tokens),
    ("fill_rate", "{request_unit}/s", "Tokens it gets.", lambda group, _: group.rate),
    ("burst_limit", "{request_unit}", "Tokens it may save up.", lambda group, _: group.burst_limit),
)


class OtelObserver:
    """An observer that makes a span of each operation, attempt and wait, and records metrics.

    It observes an `RpcClient`, a `ResourceControl`, or both.

    The span of an operation is the current one of its task while it runs, so that whatever is called meanwhile, PD too,
    belongs to it. Nothing of it carries keys or values.

    Args:
        tracer_provider: Makes spans; None for the global one.
        meter_provider: Makes metrics; None for the global one.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        self._meters = _Meters(metrics.get_meter(_SCOPE, meter_provider=meter_provider))

    @contextmanager
    def watch(self, stats: Callable[[], RpcStats]) -> Iterator[None]:
        """Export the statistics of a client as metrics, inside the block.

        Args:
            stats: Returns them, such as `RpcClient.stats`; called by whoever exports, perhaps in a thread of its own.
        """
        self._meters.stats.append(stats)
        try:
            yield
        finally:
            self._meters.stats.remove(stats)

    @contextmanager
    def watch_groups(self, stats: Callable[[], Mapping[str, GroupStats]]) -> Iterator[None]:
        """Export how resource groups do as metrics, inside the block.

        Those in use are exported, and no others: what a group came to is gone when it is not used any more.

        Args:
            stats: Returns them: `ResourceControl.stats`; called by whoever exports, perhaps in a thread of its own.
        """
        self._meters.groups.append(stats)
        try:
            yield
        finally:
            self._meters.groups.remove(stats)

    def waited(self, report: TokenWaitReport) -> None:
        """Record a wait for tokens."""
        self._meters.waited(report)

    def asked(self, report: TokenRequestReport) -> None:
        """Record a request for tokens."""
        self._meters.asked(report)

    def begin(self, operation: Operation) -> _TracedOperation:
        """Begin the span of an operation."""
        return _TracedOperation(self._tracer, self._meters, operation)


class _TracedOperation:
    """The span of one operation, and those below it."""

    __slots__ = ("_attributes", "_context", "_meters", "_name", "_origin", "_span", "_token", "_tracer")

    def __init__(self, tracer: trace.Tracer, meters: _Meters, operation: Operation) -> None:
        attributes: Attributes = {"db.system.name": _SYSTEM, "db.operation.name": operation.name}
        self._tracer = tracer
        self._meters = meters
        self._name = operation.name
        self._attributes = attributes
        of_span = attributes.copy()
        if operation.keys is not None:
            of_span["db.operation.batch.size"] = operation.keys
        # What is reported has times of the client's clock, which is not that of spans.
        self._origin = time.time_ns() - round(operation.started * 1e9)
        self._span = tracer.start_span(
            operation.name, kind=SpanKind.CLIENT, attributes=of_span, start_time=self._at(operation.started)
        )
        self._context = trace.set_span_in_context(self._span)
        self._token: Token[context.Context] = context.attach(self._context)

    def attempt(self, report: AttemptReport) -> None:
        """Make the span of an attempt, and record it."""
        self._meters.attempt(report)
        if not self._span.is_recording():
            return
        attributes: Attributes = {
            **_server(report.address),
            "db.system.name": _SYSTEM,
            "rpc.system": "grpc",
            "rpc.service": "tikvpb.Tikv",
            "rpc.method": report.rpc,
            "tikv.store.id": report.store_id,
            "tikv.region.id": report.region_id,
            "tikv.access": report.access,
            "tikv.is_retry": report.is_retry,
            "tikv.branch": report.branch,
            "tikv.request.size": report.request_bytes,
            "tikv.response.size": report.response_bytes,
        }
        if report.forwarded_to:
            attributes["tikv.forwarded_to"] = report.forwarded_to
        self._child(report.rpc, SpanKind.CLIENT, attributes, report.started, report.seconds, report.outcome)

    def wait(self, report: WaitReport) -> None:
        """Make the span of a wait, and record it."""
        self._meters.wait(report)
        if self._span.is_recording():
            attributes: Attributes = {"tikv.wait.kind": report.kind, "tikv.branch": report.branch}
            name = "wait for PD" if report.kind == PD else f"backoff {report.kind}"
            self._child(name, SpanKind.INTERNAL, attributes, report.started, report.seconds, OK)

    def end(self, report: OperationReport) -> None:
        """End the span of the operation, and record it."""
        context.detach(self._token)
        if report.outcome != OK:
            self._attributes["error.type"] = report.outcome
            _fail(self._span, report.outcome)
        self._meters.end(self._attributes, self._name, report)
        self._span.end()

    def _child(
        self, name: str, kind: SpanKind, attributes: Attributes, started: float, seconds: float, outcome: str
    ) -> None:
        span = self._tracer.start_span(
            name, context=self._context, kind=kind, attributes=attributes, start_time=self._at(started)
        )
        if outcome != OK:
            _fail(span, outcome)
        span.end(self._at(started + seconds))

    def _at(self, moment: float) -> int:
        return self._origin + round(moment * 1e9)


def _error(outcome: str) -> Attributes:
    return {} if outcome == OK else {"error.type": outcome}


def _server(address: str) -> Attributes:
    host, _, port = address.rpartition(":")
    attributes: Attributes = {"server.address": host.strip("[]")}
    if port.isdecimal():
        attributes["server.port"] = int(port)
    return attributes


def _one(amount: float) -> Iterator[tuple[float, Attributes]]:
    yield amount, {}


def _by_error(failures: Mapping[str, int]) -> Iterator[tuple[float, Attributes]]:
    for error, count in failures.items():
        yield count, {"error.type": error}


def _by_series(ru: Mapping[RuSeries, float]) -> Iterator[tuple[float, Attributes]]:
    for series, amount in ru.items():
        yield (
            amount,
            {
                "tikv.request_source": series.source,
                "tikv.ru.kind": series.kind,
                "tikv.ru.direction": series.direction,
            },
        )


def _state(group: GroupStats) -> str:
    if group.is_deleted:
        return "deleted"
    if group.is_degraded:
        return "degraded"
    return "throttled" if group.is_throttled else "normal"


def _fail(span: Span, outcome: str) -> None:
    span.set_attribute("error.type", outcome)
    if outcome != CANCELLED:
        span.set_status(Status(StatusCode.ERROR, outcome))


class _Meters:
    """The metrics of an `OtelObserver`.

    Args:
        meter: Makes them.
    """

    def __init__(self, meter: metrics.Meter) -> None:
        def histogram(name: str, unit: str, description: str, bounds: tuple[float, ...] | None) -> metrics.Histogram:
            return meter.create_histogram(
                name, unit, description, explicit_bucket_boundaries_advisory=None if bounds is None else list(bounds)
            )

        self._operations = histogram(
            "db.client.operation.duration", "s", "Duration of database client operations.", _SECONDS
        )
        self._retries = histogram(
            "tikv.client.request.retries", "{attempt}", "Attempts of an operation after its first.", _RETRIES
        )
        self._requests = histogram("tikv.client.request.duration", "s", "Duration of attempts.", _FINE_SECONDS)
        self._net = histogram(
            "tikv.client.request.net_latency", "s", "Time of attempts outside of the store.", _FINE_SECONDS
        )
        self._sent = histogram("tikv.client.request.size", "By", "Size of requests.", _BYTES)
        self._received = histogram("tikv.client.response.size", "By", "Size of responses.", _BYTES)
        self._backoff = histogram("tikv.client.backoff.duration", "s", "Waits between attempts.", _FINE_SECONDS)
        self._pd = histogram("tikv.client.pd.duration", "s", "Time operations waited for PD.", _FINE_SECONDS)
        self._region_errors = meter.create_counter(
            "tikv.client.region_errors", "{attempt}", "Attempts refused because of the Region."
        )
        self._rpc_errors = meter.create_counter("tikv.client.rpc_errors", "{attempt}", "Attempts without an answer.")
        self._forwarded = meter.create_counter(
            "tikv.client.forwarded_requests", "{attempt}", "Attempts that another store was to pass on."
        )
        self._stale = meter.create_counter("tikv.client.stale_reads", "{attempt}", "Stale reads, by what came of them.")
        self._token_waits = histogram(
            "tikv.client.token_wait.duration", "s", "Waits of requests for tokens.", _TOKEN_SECONDS
        )
        self._token_requests = histogram(
            "tikv.client.token_request.duration", "s", "Duration of requests for tokens to PD.", _FINE_SECONDS
        )
        self.stats: list[Callable[[], RpcStats]] = []
        """The clients whose statistics are exported."""
        self.groups: list[Callable[[], Mapping[str, GroupStats]]] = []
        """The same of resource groups."""
        for name, unit, description, read in _COUNTERS:
            meter.create_observable_counter(name, [partial(self._read, read)], unit, description)
        for name, unit, description, read in _LEVELS:
            meter.create_observable_gauge(name, [partial(self._read, read)], unit, description)
        prefix = "tikv.client.resource_group."
        for name, unit, description, count in _GROUP_COUNTERS:
            meter.create_observable_counter(prefix + name, [partial(self._count, count)], unit, description)
        for name, unit, description, level in _GROUP_LEVELS:
            meter.create_observable_gauge(prefix + name, [partial(self._level, level)], unit, description)
        meter.create_observable_gauge(
            prefix + "status", [self._status], "1", "1 for each group in use, with the state it is in."
        )

    def waited(self, report: TokenWaitReport) -> None:
        """Record a wait for tokens. Not by group: what is recorded for one would stay when it is gone."""
        self._token_waits.record(report.seconds, _error(report.outcome))

    def asked(self, report: TokenRequestReport) -> None:
        """Record a request for tokens."""
        self._token_requests.record(report.seconds, _error(report.outcome))

    def attempt(self, report: AttemptReport) -> None:
        """Record an attempt."""
        store = report.store_id
        attributes: Attributes = {"rpc.method": report.rpc, "tikv.store.id": store, "tikv.access": report.access}
        if report.outcome != OK:
            attributes["error.type"] = report.outcome
        self._requests.record(report.seconds, attributes)
        if report.is_region_error:
            self._region_errors.add(1, {"error.type": report.outcome, "tikv.store.id": store})
        if report.is_rpc_error:
            self._rpc_errors.add(1, {"error.type": report.outcome, "tikv.store.id": store})
        whom: Attributes = {"rpc.method": report.rpc, "tikv.access": report.access}
        self._sent.record(report.request_bytes, whom)
        if report.response_bytes:
            self._received.record(report.response_bytes, whom)
        if report.forwarded_to:
            way: Attributes = {"tikv.forwarded_by": report.address, "tikv.forwarded_to": report.forwarded_to}
            self._forwarded.add(1, way | {"rpc.method": report.rpc} | _error(report.outcome))
        if report.execution is not None and report.execution.total:
            self._net.record(max(report.seconds - report.execution.total, 0.0), {"tikv.store.id": store})
        if report.access.startswith("stale") and report.outcome in _STALE_READS:
            self._stale.add(1, {"tikv.stale_read.result": _STALE_READS[report.outcome]})

    def wait(self, report: WaitReport) -> None:
        """Record a wait."""
        if report.kind == PD:
            self._pd.record(report.seconds)
        else:
            self._backoff.record(report.seconds, {"tikv.wait.kind": report.kind})

    def _read(self, read: _Read, _options: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
        for stats in self.stats.copy():
            # The client may be closed by now.
            with suppress(ClosedError):
                for address, store in stats().stores.items():
                    yield metrics.Observation(read(store), _server(address) | {"tikv.store.id": store.store_id})

    def _in_use(self) -> Iterator[tuple[GroupStats, GroupCounts, Attributes]]:
        for stats in self.groups.copy():
            for name, group in stats().items():
                if group.counts is not None:
                    yield group, group.counts, {"tikv.resource_group": name}

    def _count(self, count: _Count, _options: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
        for _, counts, attributes in self._in_use():
            for amount, more in count(counts):
                yield metrics.Observation(amount, attributes | more)

    def _level(self, level: _Level, _options: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
        for group, counts, attributes in self._in_use():
            yield metrics.Observation(level(group, counts), attributes)

    def _status(self, _options: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
        for group, _, attributes in self._in_use():
            yield metrics.Observation(1, attributes | {"tikv.resource_group.state": _state(group)})

    def end(self, attributes: Attributes, name: str, report: OperationReport) -> None:
        """Record an operation."""
        self._operations.record(report.seconds, attributes)
        if report.attempts:
            self._retries.record(report.attempts - 1, {"db.operation.name": name})


class TraceContext:
    """An interceptor that tells stores which trace a request belongs to: `kvrpcpb.Context.trace_id`.

    That is the id of the trace of the current span, 16 bytes as in W3C's traceparent: of the operation's own span with
    an `OtelObserver`, or of a span around it. Without one, or when the options name a trace, nothing is changed.
    """

    name: Final = "otel_trace_context"
    """The interceptor's name."""

    async def __call__(self, attempt: Attempt, proceed: Proceed) -> Message:
        """Name the trace."""
        current = trace.get_current_span().get_span_context()
        if current.is_valid and not attempt.options.trace_id:
            flags = attempt.options.trace_flags or TRACED_REQUESTS
            trace_id = current.trace_id.to_bytes(16, "big")
            attempt.patch(kvrpcpb.Context(trace_id=trace_id, trace_control_flags=flags))
        return await proceed()
