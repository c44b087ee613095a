"""Every field of the configuration shows on the wire or in time: a field without a check here fails, as does a check
whose field is ignored, since its values then come out alike.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import attrs
import pytest
from tikv_proto.services import PD, Tikv
from tikv_raw import ConfigError, DeadlineExceeded, PdConfig, RawClient, RawConfig, RegionConfig, RpcConfig
from tikv_rpc.testing import FakeCluster

Outcome = Callable[[FakeCluster, RawClient], Awaitable[Any]]

KEYS = [b"a%d" % number for number in range(8)]


async def seconds_without_a_store(cluster: FakeCluster, client: RawClient) -> float:
    for store in cluster.stores.values():
        store.stop()
    began = anyio.current_time()
    with pytest.raises(DeadlineExceeded):
        await client.get(b"a")
    return anyio.current_time() - began


async def is_ordered_with_swaps(cluster: FakeCluster, client: RawClient) -> bool:
    await client.put(b"a", b"v")
    return bool(cluster.requests(Tikv.RawPut)[0].for_cas)


async def keys_in_requests(cluster: FakeCluster, client: RawClient) -> list[int]:
    await client.batch_get(KEYS)
    return sorted(len(request.keys) for request in cluster.requests(Tikv.RawBatchGet))


async def pairs_in_requests(cluster: FakeCluster, client: RawClient) -> list[int]:
    await client.batch_put(dict.fromkeys(KEYS, b"v" * 98))
    return sorted(len(request.pairs) for request in cluster.requests(Tikv.RawBatchPut))


async def limits_of_scans(cluster: FakeCluster, client: RawClient) -> int:
    async for _ in client.scan():
        pass
    return max(int(request.limit) for request in cluster.requests(Tikv.RawScan))


async def limit_while_sizes_are_unknown(cluster: FakeCluster, client: RawClient) -> int:
    """How many pairs the first page has, as each may be of 64 KiB for all that is known."""
    async for _ in client.scan():
        pass
    return int(cluster.requests(Tikv.RawScan)[0].limit)


def takes(key: int, value: int) -> Outcome:
    async def outcome(_cluster: FakeCluster, client: RawClient) -> bool:
        try:
            await client.put(b"k" * key, b"v" * value)
        except (ConfigError, ValueError):
            return False
        return True

    return outcome


async def name_of_the_caller(cluster: FakeCluster, client: RawClient) -> str:
    await client.get(b"a")
    return cluster.pd.headers[-1].caller_component


async def pages_of_regions(cluster: FakeCluster, client: RawClient) -> int:
    await client.batch_get([b"a", b"h", b"q"])
    return cluster.pd.calls(PD.BatchScanRegions)


async def time_of_an_attempt(cluster: FakeCluster, client: RawClient) -> int:
    await client.get(b"a")
    return int(cluster.requests(Tikv.RawGet)[0].context.max_execution_duration_ms)


CHECKS: dict[str, tuple[Outcome, list[tuple[Any, Any]]]] = {
    "timeout": (seconds_without_a_store, [(2.0, 2.0), (5.0, 5.0)]),
    "atomic": (is_ordered_with_swaps, [(True, True), (False, False)]),
    "batch_keys": (keys_in_requests, [(3, [2, 3, 3]), (100, [8])]),
    "batch_bytes": (pairs_in_requests, [(300, [2, 2, 2, 2]), (1 << 20, [8])]),
    "scan_page": (limits_of_scans, [(3, 3), (30, 30)]),
    "scan_bytes": (limit_while_sizes_are_unknown, [(1 << 20, 16), (4 << 20, 64)]),
    "max_key_bytes": (takes(100, 1), [(50, False), (100, True)]),
    "max_value_bytes": (takes(1, 100), [(50, False), (100, True)]),
    "pd": (name_of_the_caller, [(PdConfig(caller_component="orders"), "orders"), (PdConfig(), "tikv-sdk-python")]),
    "region": (pages_of_regions, [(RegionConfig(scan_page=1), 3), (RegionConfig(), 1)]),
    "rpc": (time_of_an_attempt, [(RpcConfig(attempt_timeout=3), 2000), (RpcConfig(attempt_timeout=6), 4000)]),
}


def test_every_field_is_checked() -> None:
    assert CHECKS.keys() == attrs.fields_dict(RawConfig).keys()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [(field, value, expected) for field, (_, values) in CHECKS.items() for value, expected in values],
)
async def test_the_configuration_shows(cluster: FakeCluster, field: str, value: Any, expected: Any) -> None:
    outcome, _ = CHECKS[field]
    config = RawConfig(**{field: value})
    async with RawClient(cluster.url, api_version="v1ttl", config=config, transport=cluster.transport) as client:
        assert await outcome(cluster, client) == expected
