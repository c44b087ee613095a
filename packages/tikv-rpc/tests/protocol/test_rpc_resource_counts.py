"""What is counted of resource groups, as values and as metrics of OpenTelemetry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tikv_pd import ResourceGroup, TikvError, TokenGrant
from tikv_pd.errors import RpcError
from tikv_proto import coprocessor, kvrpcpb
from tikv_proto.services import Tikv
from tikv_rpc import (
    AtKey,
    Effect,
    Request,
    RequestOptions,
    ResourceGroupThrottled,
    RetryRegion,
    RpcClient,
    TokenRequestReport,
    TokenWaitReport,
    dispatch,
)
from tikv_rpc.otel import OtelObserver
from tikv_rpc.resource_control import GroupCounts, ResourceControl, RuSeries
from tikv_rpc.testing import FakeCluster, FakeTokens

GROUP = "tikv.client.resource_group."


class Engine:
    """An engine whose requests are charged, and all that listens to it."""

    def __init__(self) -> None:
        self.waits: list[TokenWaitReport] = []
        self.requests: list[TokenRequestReport] = []
        self.predicted = 0
        # 10 RU a second; PD gives no more unless told to.
        self.tokens = FakeTokens(ResourceGroup("g", 10), ResourceGroup("default", 1000, -1))
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider(metric_readers=[self._reader])
        self.otel = OtelObserver(meter_provider=self.meters)
        self.control = ResourceControl(
            self.tokens, observers=[self, self.otel], predict_read_bytes=lambda _attempt: self.predicted
        )
        self.rpc: RpcClient

    def waited(self, report: TokenWaitReport) -> None:
        self.waits.append(report)

    def asked(self, report: TokenRequestReport) -> None:
        self.requests.append(report)

    @property
    def counts(self) -> GroupCounts:
        counts = self.control.stats()["g"].counts
        assert counts is not None
        return counts

    async def send(self, request: Request[Any], group: str = "g", source: str = "", timeout: float = 30) -> Any:
        plan: AtKey[Any] = AtKey(RetryRegion(dispatch(self.rpc), self.rpc), self.rpc.cache)
        options = RequestOptions(resource_group=group, request_source=source)
        return await plan.execute((b"k", request), self.rpc.call("do", timeout, options))

    async def put(self, size: int = 1, group: str = "g", source: str = "", timeout: float = 30) -> None:
        message = kvrpcpb.RawPutRequest(key=b"k", value=b"v" * (size - 1))
        await self.send(Request(Tikv.RawPut, message, Effect.WRITE), group, source, timeout)

    async def get(self, group: str = "g", source: str = "") -> None:
        await self.send(Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=b"k"), Effect.READ), group, source)

    async def coprocess(self) -> None:
        await self.send(Request(Tikv.Coprocessor, coprocessor.Request(), Effect.READ))

    def points(self, metric: str) -> dict[tuple[Any, ...], Any]:
        """Return the data points of a metric by the values of their attributes, in order of the attributes' names."""
        data = self._reader.get_metrics_data()
        return {
            tuple(value for _, value in sorted((point.attributes or {}).items())): point
            for resource in (data.resource_metrics if data is not None else [])
            for scope in resource.scope_metrics
            for each in scope.metrics
            if each.name == metric
            for point in each.data.data_points
        }

    def values(self, metric: str) -> dict[tuple[Any, ...], float]:
        return {key: point.value for key, point in self.points(metric).items()}


async def settle() -> None:
    for _ in range(50):
        await checkpoint()


@pytest.fixture
async def engine(cluster: FakeCluster) -> AsyncIterator[Engine]:
    engine = Engine()
    async with engine.control, cluster.connect(interceptors=[engine.control]) as engine.rpc:
        yield engine
    engine.meters.shutdown()


async def test_request_units_are_counted_by_source_kind_and_direction(engine: Engine) -> None:
    await engine.put(1024, source="app")
    await engine.get(source="app")
    await engine.get()

    # A write costs 2.7 for each of three replicas; a read 0.475 ahead, and afterwards the bytes it returned.
    assert engine.counts.requests == 3
    assert engine.counts.ru == {
        RuSeries("app", "write", "charge"): pytest.approx(8.1),
        RuSeries("app", "read", "charge"): pytest.approx(0.475, rel=0.1),
        RuSeries("", "read", "charge"): pytest.approx(0.475, rel=0.1),
    }


async def test_what_was_charged_ahead_for_nothing_is_a_refund(engine: Engine, cluster: FakeCluster) -> None:
    engine.predicted = 65536 * 3

    async def serve(_request: Any) -> coprocessor.Response:
        return coprocessor.Response(data=b"d" * 65536)

    cluster.handlers[Tikv.Coprocessor] = serve
    await engine.coprocess()

    assert engine.counts.ru[RuSeries("", "read", "charge")] == pytest.approx(3.475)
    assert engine.counts.ru[RuSeries("", "read", "refund")] == pytest.approx(2)
    assert (engine.counts.predicted, engine.counts.predicted_bytes) == (1, 65536 * 3)
    assert (engine.counts.actual_bytes, engine.counts.unpredicted) == (65536, 0)

    engine.predicted = 0
    await engine.coprocess()

    assert (engine.counts.predicted, engine.counts.unpredicted) == (1, 1)
    assert engine.counts.actual_bytes == 65536


async def test_a_failed_request_gets_back_what_it_was_charged_ahead(engine: Engine, cluster: FakeCluster) -> None:
    engine.predicted = 65536

    async def refuse(_request: Any) -> coprocessor.Response:
        raise RpcError("tikv1", "Coprocessor", "PERMISSION_DENIED", "")

    cluster.handlers[Tikv.Coprocessor] = refuse
    with pytest.raises(RpcError):
        await engine.coprocess()

    assert engine.counts.ru[RuSeries("", "read", "refund")] == pytest.approx(1)
    assert engine.counts.actual_bytes == 0


async def test_a_request_that_waits_is_seen_waiting_and_its_wait_is_counted(engine: Engine) -> None:
    engine.tokens.delay = 0.3
    engine.tokens.grants["g"] = TokenGrant("g", 1000)
    await engine.put(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.put, 2000)
        await anyio.sleep(0.1)
        waiting = engine.counts.waiting
        requests = engine.counts.requests

    assert (waiting, requests) == (1, 1)
    assert (engine.counts.waiting, engine.counts.requests) == (0, 2)
    assert engine.counts.retries > 0
    assert 0 < engine.counts.wait_seconds <= 0.3 + 1e-6
    assert engine.counts.failures == {}
    assert [report.outcome for report in engine.waits] == ["OK", "OK"]
    assert engine.waits[-1] == TokenWaitReport("g", engine.counts.wait_seconds, "OK")


async def test_those_that_got_no_tokens_are_counted_by_what_became_of_them(engine: Engine) -> None:
    with pytest.raises(ResourceGroupThrottled):
        await engine.put(100_000)
    with pytest.raises(TikvError):
        await engine.put(100_000, timeout=0.5)
    with anyio.move_on_after(0.2):
        await engine.put(100_000)

    assert engine.counts.requests == 0
    assert engine.counts.failures == {"ResourceGroupThrottled": 1, "DeadlineExceeded": 1, "Cancelled": 1}
    assert engine.counts.throttled_seconds == pytest.approx(1.0)
    assert engine.counts.wait_seconds == 0
    assert engine.counts.ru == {}
    assert [report.outcome for report in engine.waits] == ["ResourceGroupThrottled", "DeadlineExceeded", "Cancelled"]


async def test_requests_for_tokens_are_counted_and_what_they_reported(engine: Engine) -> None:
    engine.tokens.grants["g"] = TokenGrant("g", 1000)
    engine.tokens.delay = 0.25
    await engine.put(1024)
    await anyio.sleep(2)
    engine.tokens.failure = RpcError("pd", "AcquireTokenBuckets", "UNAVAILABLE", "away")
    await engine.put(100_000)
    await anyio.sleep(8.5)

    assert engine.counts.token_requests == len(engine.tokens.log)
    assert engine.counts.low_notices >= 1
    assert engine.counts.reported_ru == pytest.approx(8.1)
    first, last = engine.requests[0], engine.requests[-1]
    assert (first.outcome, first.groups) == ("OK", 1)
    assert first.seconds == pytest.approx(0.25)
    assert last.outcome == "RpcError"


async def test_a_group_without_a_limit_is_never_after_tokens(engine: Engine) -> None:
    await engine.put(group="default")

    counts = engine.control.stats()["default"].counts
    assert counts is not None
    assert counts.requests == 1
    assert engine.waits == []


async def test_counts_go_on_when_a_group_is_deleted_and_made_anew(engine: Engine) -> None:
    await engine.put()
    engine.tokens.delete("g")
    await settle()
    await engine.put()
    engine.tokens.put(ResourceGroup("g", 77))
    await settle()
    await engine.put()

    assert engine.counts.requests == 3


async def test_counts_are_gone_with_the_group_and_nothing_late_brings_them_back(
    engine: Engine, cluster: FakeCluster
) -> None:
    engine.tokens.grants["g"] = TokenGrant("g", 10)
    cluster.store(1).delay_next(Tikv.RawPut, 1000, times=1)
    release = anyio.Event()

    async def late(_request: Any) -> kvrpcpb.RawGetResponse:
        await release.wait()
        return kvrpcpb.RawGetResponse()

    cluster.handlers[Tikv.RawGet] = late
    with engine.otel.watch_groups(engine.control.stats):
        async with anyio.create_task_group() as tasks:

            async def get() -> None:
                with suppress(TikvError):
                    await engine.send(
                        Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=b"k"), Effect.READ), timeout=10_000
                    )

            tasks.start_soon(get)
            await anyio.sleep(1)
            before = engine.values(GROUP + "requests")
            # Attempts that take long are made anew, and charged: nothing is forgotten that is in use.
            del engine.control._controller.groups["g"]
            release.set()
        await settle()
        after = {name: engine.values(GROUP + name) for name in ("requests", "ru", "status", "tokens", "waiting")}

    assert before == {("g",): 1}
    assert not any(after.values())
    stats = engine.control.stats()["g"]
    assert stats.counts is None
    assert stats.details.read_ru == pytest.approx(0.475)


async def test_groups_are_exported_while_they_are_watched(engine: Engine) -> None:
    engine.tokens.grants["g"] = TokenGrant("g", 10)
    engine.tokens.delay = 0.25
    with engine.otel.watch_groups(engine.control.stats):
        await engine.put(1024, source="app")
        await anyio.sleep(2)
        assert engine.values(GROUP + "reported_ru") == {("g",): pytest.approx(8.1)}
        with pytest.raises(ResourceGroupThrottled):
            await engine.put(10_000_000)

        assert engine.values(GROUP + "requests") == {("g",): 1}
        assert engine.values(GROUP + "ru") == {("app", "g", "charge", "write"): pytest.approx(8.1)}
        assert engine.values(GROUP + "failures") == {("ResourceGroupThrottled", "g"): 1}
        assert engine.values(GROUP + "token_requests")["g",] >= 1
        assert engine.values(GROUP + "waiting") == {("g",): 0}
        assert engine.values(GROUP + "status") == {("g", "normal"): 1}
        assert engine.values(GROUP + "throttled.time")["g",] > 0
    assert engine.values(GROUP + "requests") == {}


@pytest.mark.parametrize(("grant", "state"), [(TokenGrant("g", 1, trickle=5), "throttled"), (None, "deleted")])
async def test_the_state_of_a_group_is_exported(engine: Engine, grant: TokenGrant | None, state: str) -> None:
    if grant is not None:
        engine.tokens.grants["g"] = grant
    await engine.put()
    if grant is None:
        engine.tokens.delete("g")
    await anyio.sleep(2)

    with engine.otel.watch_groups(engine.control.stats):
        assert engine.values(GROUP + "status") == {("g", state): 1}


async def test_a_group_that_fills_itself_is_degraded(engine: Engine) -> None:
    engine.tokens.change_settings(b'{"degraded-mode-wait-duration": "2s"}')
    await settle()
    await engine.put()
    engine.tokens.is_silent = True
    await anyio.sleep(8)

    with engine.otel.watch_groups(engine.control.stats):
        assert engine.values(GROUP + "status") == {("g", "degraded"): 1}


async def test_waits_and_requests_for_tokens_are_distributions(engine: Engine) -> None:
    engine.tokens.grants["g"] = TokenGrant("g", 10)
    engine.tokens.delay = 0.25
    await engine.put()
    with pytest.raises(ResourceGroupThrottled):
        await engine.put(10_000_000)

    waits = engine.points("tikv.client.token_wait.duration")
    requests = engine.points("tikv.client.token_request.duration")
    assert waits[()].count == 1
    assert waits["ResourceGroupThrottled",].sum == pytest.approx(1.0, abs=0.2)
    assert requests[()].sum >= 0.25
