"""Every option and every kind of wait shows on the wire or in time: a field without a check here fails, as does a check
whose field is ignored, since its two values then come out alike.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import attrs
import pytest
from google.protobuf.message import Message
from tikv_pd import BackoffExceeded, BackoffKind, Deadline, DeadlineExceeded, PdClient, TikvError, backoff
from tikv_pd.testing import MemoryConnection, MemoryTransport
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.healthpb import HealthCheckResponse
from tikv_proto.services import Health, Tikv
from tikv_region import Liveness, RegionCache
from tikv_rpc import (
    AtKey,
    Attempt,
    DiskFull,
    Effect,
    Isolation,
    Priority,
    Proceed,
    ReplicaRead,
    Request,
    RequestOptions,
    RetryRegion,
    RpcClient,
    RpcConfig,
    collect_exec_details,
    dispatch,
    operation,
)
from tikv_rpc.testing import FakeCluster

if TYPE_CHECKING:
    from tests.conftest import Kv


class Network(MemoryTransport):
    """The network of a cluster, which counts the connections of each number and may take its time to connect."""

    def __init__(self, cluster: FakeCluster) -> None:
        super().__init__()
        self.made: list[int] = []
        self.connects_in = 0.0
        self._cluster = cluster

    def connect(self, address: str, *, channel: int = 0) -> MemoryConnection:
        if channel >= 0:
            self.made.append(channel)
        return SlowConnection(self._cluster.transport, address, self)


class SlowConnection(MemoryConnection):
    def __init__(self, transport: MemoryTransport, address: str, network: Network) -> None:
        super().__init__(transport, address)
        self._network = network

    async def ready(self, *, timeout: float) -> None:
        with anyio.move_on_after(timeout):
            await anyio.sleep(self._network.connects_in)
        await super().ready(timeout=timeout if self._network.connects_in < timeout else 0)


@attrs.define
class Bench:
    """A client with some options, on a cluster of three stores, all led from store 1."""

    cluster: FakeCluster
    network: Network
    rpc: RpcClient
    kv: Kv

    async def seconds(self, call: Awaitable[object]) -> float:
        """Return how long a call takes, whatever comes of it."""
        began = anyio.current_time()
        with suppress(TikvError):
            await call
        return anyio.current_time() - began

    async def while_hanging(self, calls: list[Callable[[], Any]]) -> None:
        """Make calls that are never answered, let everybody do what they can, and give them up."""
        self.cluster.store(1).hang_next(None, times=math.inf)
        async with anyio.create_task_group() as tasks:
            for call in calls:
                tasks.start_soon(call)
            await anyio.sleep(0.5)
            tasks.cancel_scope.cancel()

    async def read(self, options: RequestOptions) -> None:
        request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=b"a"), Effect.READ)
        plan: AtKey[Any] = AtKey(RetryRegion(dispatch(self.rpc), self.rpc), self.rpc.cache)
        await operation(self.rpc, plan).execute((b"a", request), self.rpc.call("get", 30, options))

    def received(self, rpc: Any = Tikv.RawGet) -> list[kvrpcpb.Context]:
        return [request.context for request in self.cluster.requests(rpc)]


@asynccontextmanager
async def bench_with(make_kv: type[Kv], config: RpcConfig | None = None) -> AsyncIterator[Bench]:
    async with FakeCluster([b"g", b"p"]) as cluster:
        for store, zone in ((1, "a"), (2, "b"), (3, "c")):
            cluster.map.stores[store] = attrs.evolve(cluster.map.stores[store], labels=(("zone", zone),))
        network = Network(cluster)
        async with PdClient(cluster.url, transport=cluster.transport) as pd:
            cache = RegionCache(pd, cluster.map.codec, now=cluster.transport.now)
            async with RpcClient(cache, cluster.map.codec, cluster.pd.cluster_id, network, config, choose=min) as rpc:
                yield Bench(cluster, network, rpc, make_kv(rpc))


Outcome = Callable[[Bench], Awaitable[Any]]


def whole(seconds: float) -> int:
    """Return whole seconds, as waits between attempts are short and vary."""
    return math.floor(seconds)


async def attempt_timeout(bench: Bench) -> int:
    bench.cluster.store(1).hang_next(Tikv.RawGet)
    return whole(await bench.seconds(bench.kv.get(b"a")))


async def connect_timeout(bench: Bench) -> int:
    bench.network.connects_in = 1000.0

    async def connect_soon() -> None:
        await anyio.sleep(0.5)
        bench.network.connects_in = 0.0

    bench.rpc.tasks.start_soon(connect_soon)
    return whole(await bench.seconds(bench.kv.get(b"a")))


async def connections(bench: Bench) -> set[int]:
    await bench.kv.get(b"a")
    return set(bench.network.made)


async def idle_timeout(bench: Bench) -> int:
    await bench.kv.get(b"a")
    await anyio.sleep(100.0)
    await bench.kv.get(b"a")
    return len(bench.network.made)


async def max_in_flight(bench: Bench) -> int:
    await bench.kv.get(b"a")
    bench.cluster.log.clear()
    await bench.while_hanging([lambda: bench.kv.get(b"a")] * 5)
    return len(bench.received())


async def batch_sizes(bench: Bench) -> list[int]:
    await bench.kv.get(b"a")
    store = bench.cluster.store(1)
    store.batch_sizes.clear()
    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(bench.kv.put, b"a", b"v" * 1000)
    return store.batch_sizes


async def concurrency(bench: Bench) -> int:
    await bench.while_hanging([lambda: bench.kv.batch_get([b"a", b"h", b"q"])])
    return len(bench.received(Tikv.RawBatchGet))


async def backoff_budget(bench: Bench) -> tuple[str, bool]:
    for store in bench.cluster.stores.values():
        store.stop()
    with pytest.raises((BackoffExceeded, DeadlineExceeded)) as raised:
        await bench.kv.get(b"a", timeout=20)
    return type(raised.value).__name__, anyio.current_time() < 10


async def liveness_timeout(bench: Bench) -> int:
    await bench.kv.get(b"a")
    bench.cluster.store(1).hang_next(Health.Check, times=math.inf)
    bench.cluster.store(1).fail_next(Tikv.RawGet, "UNAVAILABLE", times=math.inf)
    bench.cluster.move_leader(b"a", 2)
    return whole(await bench.seconds(bench.kv.get(b"a")))


async def liveness_interval(bench: Bench) -> int:
    await bench.kv.get(b"a")
    bench.cluster.store(1).serving_status = HealthCheckResponse.NOT_SERVING
    entry = bench.kv.cache.find(b"a")
    assert entry is not None
    await bench.rpc.watch.probe(entry.leader_store, Deadline("get", 30, bench.rpc.now))
    await anyio.sleep(9.5)
    return len(bench.cluster.requests(Health.Check))


async def forwarding(bench: Bench) -> bool:
    """Whether another store is asked to pass on what is meant for the leader; these stores do not know how to."""
    await bench.kv.get(b"a")
    entry = bench.kv.cache.find(b"a")
    assert entry is not None
    entry.leader_store.health.liveness = Liveness.UNREACHABLE
    bench.cluster.log.clear()
    with anyio.move_on_after(1):
        await bench.kv.get(b"a")
    first = bench.cluster.log[0]
    return bool(first.store_id != first.message.context.peer.store_id)


async def slow_log(bench: Bench) -> list[str]:
    """Return what is logged of a read that takes a second."""
    logged: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record.getMessage().splitlines()[0])

    handler, logger = Keep(), logging.getLogger("tikv_rpc.slow")
    logger.addHandler(handler)
    try:
        bench.cluster.store(1).delay_next(Tikv.RawGet, 1.0)
        await bench.read(RequestOptions())
    finally:
        logger.removeHandler(handler)
    return logged


async def exec_details(bench: Bench) -> int:
    with collect_exec_details() as collector:
        await bench.read(RequestOptions())
    return collector.details.operations


async def redact(bench: Bench) -> bool:
    """Whether an error tells a key."""
    bench.cluster.pd.regions.clear()
    plan: AtKey[Any] = AtKey(RetryRegion(dispatch(bench.rpc), bench.rpc), bench.rpc.cache)
    request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=b"secret"), Effect.READ)
    with pytest.raises(TikvError) as raised:
        await operation(bench.rpc, plan).execute((b"secret", request), bench.rpc.call("get", 1))
    return b"secret".hex() in f"{raised.value} {raised.value.__cause__}"


@attrs.frozen
class Check:
    """What two values of a field come to."""

    outcome: Outcome
    expected: dict[Any, Any]
    with_others: dict[str, Any] = attrs.field(factory=dict)
    """Options that make it show."""


CONFIG: dict[str, Check] = {
    "attempt_timeout": Check(attempt_timeout, {3.0: 3, 7.0: 7}),
    "connect_timeout": Check(connect_timeout, {1.0: 1, 4.0: 4}, {"liveness_timeout": 0.1}),
    "connections": Check(connections, {1: {0}, 3: {0, 1, 2}}),
    "idle_timeout": Check(idle_timeout, {20.0: 2, 300.0: 1}),
    "max_in_flight": Check(max_in_flight, {2: 2, None: 5}),
    "max_batch_size": Check(batch_sizes, {4: [4, 2], 100: [6]}),
    "max_batch_bytes": Check(batch_sizes, {2000: [2, 2, 2], 1 << 20: [6]}),
    "concurrency": Check(concurrency, {2: 2, 16: 3}),
    "backoff_budget": Check(backoff_budget, {1.0: ("BackoffExceeded", True), math.inf: ("DeadlineExceeded", False)}),
    "liveness_timeout": Check(liveness_timeout, {1.0: 1, 4.0: 4}),
    "liveness_interval": Check(liveness_interval, {1.0: 10, 4.0: 3}),
    "forwarding": Check(forwarding, {True: True, False: False}),
    "slow_threshold": Check(
        slow_log, {0.5: ["slow get: 1.000 s, OK, key 0x61, 1 attempt, 0 waits"], 2.0: [], None: []}
    ),
    "exec_details": Check(exec_details, {True: 1, False: 0}),
    "redact": Check(redact, {"off": True, "on": False}),
}
ELSEWHERE = {"channel"}
"""Heeded by those who make a transport: `RawClient` does, and its tests look at the wire."""


def test_every_field_of_the_configuration_is_checked() -> None:
    assert CONFIG.keys() | ELSEWHERE == attrs.fields_dict(RpcConfig).keys()


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, check in CONFIG.items() for value in check.expected]
)
async def test_the_configuration_shows(make_kv: type[Kv], field: str, value: Any) -> None:
    check = CONFIG[field]

    async with bench_with(make_kv, RpcConfig(**{field: value, **check.with_others})) as bench:
        outcome = await check.outcome(bench)

    assert outcome == check.expected[value]


def field_of_context(name: str) -> Callable[[Bench], Any]:
    return lambda bench: getattr(bench.received()[0], name)


def asked_first(bench: Bench) -> int:
    return bench.cluster.log[0].store_id


def gave_up_on(bench: Bench) -> list[int]:
    """Return the stores that were left for another one."""
    return [received.store_id for received in bench.cluster.log[:2]][:-1]


MIXED = {"replica_read": ReplicaRead.MIXED}
OPTIONS: dict[str, tuple[Callable[[Bench], Any], list[tuple[Any, Any]], dict[str, Any]]] = {
    "replica_read": (asked_first, [(ReplicaRead.LEADER, 1), (ReplicaRead.FOLLOWER, 2)], {}),
    "stale_read": (field_of_context("stale_read"), [(True, True), (False, False)], {}),
    "match_labels": (asked_first, [((("zone", "c"),), 3), ((("zone", "b"),), 2)], MIXED),
    "match_stores": (asked_first, [({3}, 3), ({2}, 2)], MIXED),
    "read_timeout": (gave_up_on, [(1.0, [1]), (None, [])], {}),
    "busy_threshold": (field_of_context("busy_threshold_ms"), [(0.5, 500), (None, 0)], {}),
    "priority": (field_of_context("priority"), [(Priority.HIGH, 2), (Priority.NORMAL, 0)], {}),
    "request_source": (field_of_context("request_source"), [("app", "leader_app"), ("", "")], {}),
    "resource_group": (
        lambda bench: bench.received()[0].resource_control_context.resource_group_name,
        [("g", "g"), ("", "")],
        {},
    ),
    "resource_group_tag": (
        field_of_context("resource_group_tag"),
        [(b"tag", b"tag"), (lambda rpc: rpc.name.encode(), b"RawGet"), (b"", b"")],
        {},
    ),
    "task_id": (field_of_context("task_id"), [(7, 7), (0, 0)], {}),
    "isolation": (field_of_context("isolation_level"), [(Isolation.RC, 1), (Isolation.SI, 0)], {}),
    "not_fill_cache": (field_of_context("not_fill_cache"), [(True, True), (False, False)], {}),
    "sync_log": (field_of_context("sync_log"), [(True, True), (False, False)], {}),
    "disk_full": (
        field_of_context("disk_full_opt"),
        [(DiskFull.ALLOWED_ON_ALMOST_FULL, 1), (DiskFull.NOT_ALLOWED, 0)],
        {},
    ),
    "max_execution_duration": (field_of_context("max_execution_duration_ms"), [(2.5, 2500), (None, 6666)], {}),
    "txn_source": (field_of_context("txn_source"), [(9, 9), (0, 0)], {}),
    "trace_id": (field_of_context("trace_id"), [(b"t", b"t"), (b"", b"")], {}),
    "trace_flags": (field_of_context("trace_control_flags"), [(5, 5), (0, 0)], {}),
}
DERIVED = {"context", "is_plain"}
"""What the others come to."""


def test_every_option_of_requests_is_checked() -> None:
    assert OPTIONS.keys() | DERIVED == attrs.fields_dict(RequestOptions).keys()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [(field, value, expected) for field, (_, values, _) in OPTIONS.items() for value, expected in values],
)
async def test_options_of_requests_show(make_kv: type[Kv], field: str, value: Any, expected: Any) -> None:
    look, _, others = OPTIONS[field]
    async with bench_with(make_kv) as bench:
        if field == "read_timeout":
            bench.cluster.store(1).delay_next(Tikv.RawGet, 5.0)
        await bench.read(RequestOptions(**{field: value, **others}))

        assert look(bench) == expected


def refused_with(**error: Any) -> Callable[[Bench], None]:
    def refuse(bench: Bench) -> None:
        bench.cluster.store(1).answer_next(Tikv.RawGet, region_error=errorpb.Error(**error))

    return refuse


def store_fails(bench: Bench) -> None:
    bench.cluster.store(1).fail_next(Tikv.RawGet, "UNAVAILABLE")


def pd_knows_no_region(bench: Bench) -> None:
    """For a tenth of a second."""

    async def learn() -> None:
        await anyio.sleep(0.1)
        bench.cluster.update_pd()

    bench.cluster.pd.regions.clear()
    bench.rpc.tasks.start_soon(learn)
    bench.kv.cache.clear()


WAITS: dict[str, Callable[[Bench], None]] = {
    "TIKV_RPC": store_fails,
    "PD_RPC": pd_knows_no_region,
    "REGION_MISS": refused_with(region_not_found=errorpb.RegionNotFound()),
    "REGION_SCHEDULING": refused_with(read_index_not_ready=errorpb.ReadIndexNotReady()),
    "SERVER_BUSY": refused_with(server_is_busy=errorpb.ServerIsBusy()),
    "DISK_FULL": refused_with(disk_full=errorpb.DiskFull()),
    "RECOVERY_IN_PROGRESS": refused_with(RecoveryInProgress=errorpb.RecoveryInProgress()),
    "MAX_TS_NOT_SYNCED": refused_with(max_timestamp_not_synced=errorpb.MaxTimestampNotSynced()),
    "REGION_NOT_INITIALIZED": refused_with(region_not_initialized=errorpb.RegionNotInitialized()),
    "IS_WITNESS": refused_with(is_witness=errorpb.IsWitness()),
}
KINDS = {name: kind for name, kind in vars(backoff).items() if isinstance(kind, BackoffKind)}
NOT_OF_REQUESTS = {"PD_TSO", "TXN_LOCK", "TXN_LOCK_FAST", "TXN_NOT_FOUND", "COMMIT_TS_LAG"}
"""Timestamps do not come from stores: the tests of tikv-pd look at their waits. Locks are a matter of tikv-txn."""


def test_every_kind_of_wait_is_checked() -> None:
    assert WAITS.keys() | NOT_OF_REQUESTS == KINDS.keys()


@pytest.mark.parametrize("name", WAITS)
async def test_every_kind_of_wait_takes_its_time(make_kv: type[Kv], name: str) -> None:
    kind = KINDS[name]
    shortest = kind.base / 2 if kind.jitter is backoff.Jitter.EQUAL else kind.base
    async with bench_with(make_kv) as bench:
        await bench.kv.get(b"a")
        WAITS[name](bench)

        elapsed = await bench.seconds(bench.kv.get(b"a"))

        stats = bench.rpc.stats()
    assert stats.waits == {kind.name: 1}
    assert stats.wait_seconds[kind.name] == pytest.approx(elapsed)
    assert shortest - 1e-9 <= elapsed <= kind.base + 1e-9


@pytest.mark.parametrize("name", WAITS)
async def test_waits_of_a_kind_grow_up_to_its_limit(make_kv: type[Kv], name: str) -> None:
    kind = KINDS[name]
    async with bench_with(make_kv) as bench:
        call = bench.rpc.call("get", 1000)

        waits = []
        for _ in range(14):
            began = anyio.current_time()
            await call.pause(kind, DeadlineExceeded("get", 1.0))
            waits.append(anyio.current_time() - began)

    shortest = 0.5 if kind.jitter is backoff.Jitter.EQUAL else 1.0
    for attempt, wait in enumerate(waits):
        full = min(kind.cap, kind.base * 2.0**attempt)
        assert full * shortest - 1e-9 <= wait <= full + 1e-9
    assert kind.base * 2.0**13 > kind.cap


@pytest.mark.parametrize("name", WAITS)
async def test_only_waits_that_are_excluded_leave_the_budget_alone(make_kv: type[Kv], name: str) -> None:
    kind = KINDS[name]
    async with bench_with(make_kv, RpcConfig(backoff_budget=0.001)) as bench:
        call = bench.rpc.call("get", 1000)
        await call.pause(kind, DeadlineExceeded("get", 1.0))

        if kind.excluded:
            await call.pause(kind, DeadlineExceeded("get", 1.0))
        else:
            with pytest.raises(BackoffExceeded):
                await call.pause(kind, DeadlineExceeded("get", 1.0))


class PassOn:
    """An interceptor that adds to the Context."""

    name = "pass on"

    async def __call__(self, attempt: Attempt, proceed: Proceed) -> Message:
        attempt.patch(kvrpcpb.Context(task_id=8))
        return await proceed()


@pytest.mark.parametrize("interceptors", [[], [PassOn()]])
async def test_a_request_has_fields_of_context_of_its_own(cluster: FakeCluster, interceptors: list[PassOn]) -> None:
    passed = kvrpcpb.Context(resolved_locks=[5, 7]).SerializeToString()
    request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=b"a"), Effect.READ, passed)

    async with cluster.connect(interceptors=interceptors) as rpc:
        plan: AtKey[kvrpcpb.RawGetResponse] = AtKey(RetryRegion(dispatch(rpc), rpc), rpc.cache)
        await plan.execute((b"a", request), rpc.call("get", 30))

    (received,) = cluster.requests(Tikv.RawGet)
    assert list(received.context.resolved_locks) == [5, 7]
    assert received.context.region_id
    assert received.context.task_id == 8 * len(interceptors)
