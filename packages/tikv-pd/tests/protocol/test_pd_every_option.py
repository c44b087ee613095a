"""Every field of the configuration shows on the wire or in time: a field without a check here fails, as does a check
whose field is ignored, since its values then come out alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import attrs
import pytest
from tikv_pd import BreakerConfig, CircuitOpen, PdClient, PdConfig, TikvError
from tikv_pd._routing.service_route import ROUTERS
from tikv_pd.backoff import PD_TSO
from tikv_pd.breaker import CircuitBreaker
from tikv_pd.testing import FakePd, FakeTso
from tikv_proto.services import PD

Outcome = Callable[[FakePd, PdConfig], Awaitable[Any]]


def connect(pd: FakePd, config: PdConfig) -> PdClient:
    return PdClient(["pd1:2379", "pd2:2379"], config=config, transport=pd.transport)


async def seconds(call: Awaitable[object]) -> float:
    """Return how long a call takes, whatever comes of it."""
    began = anyio.current_time()
    with suppress(TikvError):
        await call
    return anyio.current_time() - began


async def seconds_for_a_lost_answer(pd: FakePd, config: PdConfig) -> int:
    """In whole ones, as the wait after it is short and varies."""
    async with connect(pd, config) as client:
        pd.hang(PD.GetAllStores, times=1)
        return math.floor(await seconds(client.get_stores()))


async def seconds_without_answers(pd: FakePd, config: PdConfig) -> float:
    async with connect(pd, config) as client:
        pd.hang(PD.GetAllStores)
        return await seconds(client.get_stores())


async def seconds_to_open(pd: FakePd, config: PdConfig) -> float:
    pd.stop()
    return await seconds(connect(pd, config).__aenter__())


async def looks_at_members(pd: FakePd, config: PdConfig) -> int:
    async with connect(pd, config):
        before = pd.calls(PD.GetMembers)
        await anyio.sleep(99)
        return pd.calls(PD.GetMembers) - before


def granter(pd: FakePd) -> str:
    """Return who was asked last for a stream of timestamps."""
    return [address for address, name in pd.transport.log if name == "Tso"][-1]


async def granter_after_servers_came(pd: FakePd, config: PdConfig) -> str:
    tso = FakeTso(pd, ("tso1:3379",))
    tso.withdraw()
    pd.tso_urls = None
    async with connect(pd, config) as client:
        await client.get_ts()
        tso.publish()
        await anyio.sleep(10)
        await client.get_ts()
    return granter(pd)


async def granter_beside_servers(pd: FakePd, config: PdConfig) -> str:
    FakeTso(pd, ("tso1:3379",))
    async with connect(pd, config) as client:
        await client.get_ts()
    return granter(pd)


async def who_tells_of_stores(pd: FakePd, config: PdConfig) -> str:
    address = "router1:3379"
    pd.meta.put(b"/ms/7/router/registry/1", json.dumps({"service-addr": f"http://{address}"}).encode())
    handlers = pd.handlers("pd1:2379")
    pd.transport.serve(address, {router: handlers[rpc] for rpc, router in ROUTERS.rpcs.items()})
    async with connect(pd, config) as client:
        await client.get_store(1)
    return next(address for address, name in pd.transport.log if name == "GetStore")


async def largest_message(pd: FakePd, config: PdConfig) -> int:
    async with connect(pd, config) as client:
        await client.get_ts()
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(client.get_ts)
    return max(pd.tso_counts)


async def timestamps_of_low_resolution(pd: FakePd, config: PdConfig) -> int:
    async with connect(pd, config) as client:
        await client.get_low_resolution_ts()
        await anyio.sleep(29)
    return len(pd.tso_counts)


async def reaches_a_leader_that_is_cut_off(pd: FakePd, config: PdConfig) -> bool:
    async with connect(pd, config) as client:
        pd.transport.stop("pd1:2379")
        with suppress(TikvError):
            return await client.get_store(1, timeout=5) is not None
    return False


async def streams_of_the_leader(pd: FakePd, config: PdConfig) -> int:
    async with connect(pd, config) as client:
        await client.get_ts()
    return pd.calls(PD.Tso, at="pd1:2379")


async def fails_at_once(pd: FakePd, config: PdConfig) -> bool:
    async with connect(pd, config) as client:
        pd.hang(PD.BatchScanRegions)
        for _ in range(3):
            await seconds(client.scan_regions(b"", timeout=1.1))
        with suppress(TikvError):
            try:
                await client.scan_regions(b"", timeout=1)
            except CircuitOpen:
                return True
    return False


async def name_of_the_caller(pd: FakePd, config: PdConfig) -> str:
    async with connect(pd, config) as client:
        await client.get_stores()
    return pd.headers[-1].caller_component


async def where_members_are_dialed(pd: FakePd, config: PdConfig) -> str:
    pd.transport.serve("127.0.0.1:1", pd.handlers("pd1:2379"))
    async with connect(pd, config) as client:
        await client.get_stores()
    return pd.transport.log[-1][0]


CHECKS: dict[str, tuple[Outcome, list[tuple[Any, Any]]]] = {
    "timeout": (seconds_for_a_lost_answer, [(1.0, 1), (4.0, 4)]),
    "operation_timeout": (seconds_without_answers, [(1.0, 1.0), (4.0, 4.0)]),
    "open_timeout": (seconds_to_open, [(1.0, 1.0), (4.0, 4.0)]),
    "member_interval": (looks_at_members, [(10.0, 9), (50.0, 1)]),
    "service_interval": (granter_after_servers_came, [(3.0, "tso1:3379"), (60.0, "pd1:2379")]),
    "tso_from_pd": (granter_beside_servers, [(True, "pd1:2379"), (False, "tso1:3379")]),
    "use_routers": (who_tells_of_stores, [(True, "router1:3379"), (False, "pd1:2379")]),
    "max_tso_batch": (largest_message, [(4, 4), (100, 10)]),
    "low_resolution_interval": (timestamps_of_low_resolution, [(30.0, 1), (10.0, 3)]),
    "forwarding": (reaches_a_leader_that_is_cut_off, [(True, True), (False, False)]),
    "tso_through_follower": (streams_of_the_leader, [(True, 0), (False, 1)]),
    "region_breaker": (
        fails_at_once,
        [(BreakerConfig(threshold=50, window=1, min_rate=1, cooldown=5), True), (None, False)],
    ),
    "caller_component": (name_of_the_caller, [("orders", "orders"), ("bills", "bills")]),
    "host_mapping": (where_members_are_dialed, [({"pd1:2379": "127.0.0.1:1"}, "127.0.0.1:1"), (None, "pd1:2379")]),
}


def test_every_field_is_checked() -> None:
    assert CHECKS.keys() == attrs.fields_dict(PdConfig).keys()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [(field, value, expected) for field, (_, values) in CHECKS.items() for value, expected in values],
)
async def test_the_configuration_shows(pd: FakePd, field: str, value: Any, expected: Any) -> None:
    outcome, _ = CHECKS[field]

    assert await outcome(pd, PdConfig(**{field: value})) == expected


def admitted(config: BreakerConfig) -> list[int]:
    """Return how many calls each of 60 seconds lets through: four together, half of which fail before second 20."""
    breaker = CircuitBreaker(config)
    counts = []
    for second in range(60):
        periods = [breaker.admit(float(second)) for _ in range(4)]
        for number, period in enumerate(periods):
            if period is not None:
                breaker.settle(period, second >= 20 or number % 2 == 0)
        counts.append(sum(period is not None for period in periods))
    return counts


BREAKER: dict[str, list[Any]] = {
    "threshold": [50.0, 90.0],
    "window": [10.0, 15.0],
    "min_rate": [1.0, 5.0],
    "cooldown": [10.0, 5.0],
    "trials": [1, 3],
}


def test_every_field_of_the_breaker_is_checked() -> None:
    assert BREAKER.keys() == attrs.fields_dict(BreakerConfig).keys()


@pytest.mark.parametrize("field", BREAKER)
def test_the_configuration_of_the_breaker_shows(field: str) -> None:
    """The tests of the breaker say how."""
    usual = BreakerConfig(threshold=50, window=10, min_rate=1, cooldown=10, trials=1)

    outcomes = [admitted(attrs.evolve(usual, **{field: value})) for value in BREAKER[field]]

    assert outcomes[0] != outcomes[1]


async def test_waits_for_timestamps_are_those_of_their_kind(pd: FakePd) -> None:
    async with connect(pd, PdConfig()) as client:
        await client.get_ts()
        pd.refuse(PD.Tso, times=1)

        waited = await seconds(client.get_ts())

    assert PD_TSO.base / 2 <= waited <= PD_TSO.base
