"""What the raw client offers beyond single requests: per-key outcomes, many ranges, bulk, views, replicas."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Iterator

import pytest
from tikv_embedded import EmbeddedCluster
from tikv_pd import PdClient
from tikv_raw import (
    ApiVersion,
    BatchOutcome,
    CasResult,
    ConfigError,
    Priority,
    RawClient,
    RawConfig,
    RawError,
    ReplicaRead,
    RpcConfig,
    prefix_range,
)
from tikv_region import KeyspaceCodec, PlainCodec

PAIRS = {b"%04d" % number: b"value %d" % number for number in range(1000)}
SPLITS = [b"0100", b"0555", b"0556", b"08"]


@pytest.fixture(params=["v1", "v1ttl", "v2"])
def api_version(request: pytest.FixtureRequest) -> ApiVersion:
    chosen: ApiVersion = request.param
    return chosen


@pytest.fixture
async def cluster(api_version: ApiVersion) -> AsyncIterator[EmbeddedCluster]:
    codec = KeyspaceCodec(b"r", 0, "DEFAULT") if api_version == "v2" else PlainCodec()
    async with EmbeddedCluster(stores=3, api_version=api_version) as running:
        async with PdClient(running.url) as pd:
            await pd.split_regions([codec.encode_region_key(key) for key in SPLITS])
        yield running


@pytest.fixture
async def client(cluster: EmbeddedCluster, api_version: ApiVersion) -> AsyncIterator[RawClient]:
    config = RawConfig(batch_keys=10, scan_page=50, rpc=RpcConfig(concurrency=4))
    async with RawClient(cluster.url, api_version=api_version, config=config) as opened:
        yield opened


async def test_a_swap_may_remove_what_it_expects(client: RawClient) -> None:
    created = await client.put_if_absent(b"k", b"1")
    kept = await client.put_if_absent(b"k", b"2")
    refused = await client.compare_and_swap(b"k", b"2", None)
    removed = await client.compare_and_swap(b"k", b"1", None)
    still_missing = await client.compare_and_swap(b"k", None, None)

    assert created == CasResult(swapped=True, previous=None)
    assert kept == refused == CasResult(swapped=False, previous=b"1")
    assert removed == CasResult(swapped=True, previous=b"1")
    assert still_missing == CasResult(swapped=True, previous=None)
    assert await client.get(b"k") is None


async def test_a_swap_that_removes_takes_no_ttl(client: RawClient) -> None:
    with pytest.raises(ConfigError, match="takes no ttl"):
        await client.compare_and_swap(b"k", b"1", None, ttl=5)


async def test_each_pair_has_its_own_ttl(client: RawClient, api_version: ApiVersion) -> None:
    pairs = [(b"%04d" % number, b"v", number * 1000 or None) for number in range(0, 1000, 10)]
    if api_version == "v1":
        with pytest.raises(ConfigError, match="has no TTL"):
            await client.batch_put(pairs)
        return

    await client.batch_put(pairs)

    for key, _, ttl in pairs[::9]:
        left = await client.ttl(key)
        assert left == 0 if ttl is None else left is not None and ttl - 10 < left <= ttl


async def test_many_pairs_of_a_generator_are_stored_read_and_removed(client: RawClient) -> None:
    told: list[int] = []

    await client.batch_put(iter(PAIRS.items()), progress=told.append)
    found = await client.batch_get(iter(PAIRS))
    outcome = await client.batch_get([*PAIRS, b"missing"], on_error="return")
    removed = await client.batch_delete(list(PAIRS)[:500], on_error="return")

    assert told[-1] == 1000
    assert found == PAIRS
    assert outcome == BatchOutcome(PAIRS, {})
    assert removed == BatchOutcome({}, {})
    assert [pair async for pair in client.scan()] == list(PAIRS.items())[500:]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [None, 1, 7, 60])
async def test_many_ranges_are_scanned_at_once(client: RawClient, reverse: bool, limit: int | None) -> None:
    await client.batch_put(PAIRS)
    prefixes = [b"%02d" % number for number in range(10)]

    found = await client.batch_scan([*map(prefix_range, prefixes), (b"", b"")], each_limit=limit, reverse=reverse)

    expected = [[(key, value) for key, value in PAIRS.items() if key.startswith(prefix)] for prefix in [*prefixes, b""]]
    assert found == [(pairs[::-1] if reverse else pairs)[:limit] for pairs in expected]


async def test_ranges_are_counted_and_removed_with_progress(client: RawClient) -> None:
    await client.batch_put(PAIRS)
    told: list[int] = []

    counts = [await client.count(), await client.count(prefix=b"05"), await client.count(b"0990", b"1")]
    await client.delete_prefix(b"05", progress=told.append)
    after = await client.count()
    await client.delete_range(b"0", b"1", progress=told.append)

    assert counts == [1000, 100, 10]
    assert after == 900
    assert told == [1, 2, 3, 1, 2, 3, 4, 5]
    assert await client.count() == 0


async def test_a_scan_has_any_limit(client: RawClient) -> None:
    pairs = {b"%05d" % number: b"" for number in range(12_000)}
    await client.batch_put(pairs)

    found = [key async for key, _ in client.scan(limit=11_000, reverse=True)]

    assert found == list(pairs)[::-1][:11_000]


@pytest.mark.parametrize("replica_read", list(ReplicaRead))
async def test_every_read_is_served_by_any_replica(
    client: RawClient, api_version: ApiVersion, replica_read: ReplicaRead
) -> None:
    await client.batch_put(PAIRS)
    view = client.with_options(replica_read=replica_read, priority=Priority.LOW, request_source="test")

    assert await view.get(b"0001") == PAIRS[b"0001"]
    assert await view.batch_get([b"0001", b"0999"]) == {key: PAIRS[key] for key in (b"0001", b"0999")}
    assert [pair async for pair in view.scan(reverse=True)] == list(PAIRS.items())[::-1]
    assert await view.batch_scan([(b"", b"")], each_limit=3) == [list(PAIRS.items())[:3]]
    assert await view.count() == 1000
    if api_version != "v1":
        assert await view.ttl(b"0001") == 0


async def test_views_of_column_families_share_a_connection(cluster: EmbeddedCluster, api_version: ApiVersion) -> None:
    async with RawClient(cluster.url, api_version=api_version) as client:
        if api_version == "v2":
            with pytest.raises(ConfigError, match="API v2 has no column family 'lock'"):
                client.with_options(cf="lock")
            return
        locks = client.with_options(cf="lock", atomic=True)

        await locks.batch_put(PAIRS)

        assert (await client.count(), await locks.count(), await locks.count(prefix=b"01")) == (0, 1000, 100)


async def test_a_plugin_that_is_not_there_is_an_error(client: RawClient) -> None:
    with pytest.raises(RawError, match="the store refused coprocessor"):
        await client.coprocessor("nothing", "*", [(b"a", b"b")], read_only=True, timeout=5)


async def test_a_stream_of_pairs_takes_bounded_memory(cluster: EmbeddedCluster, api_version: ApiVersion) -> None:
    def make(number: int) -> Iterator[tuple[bytes, bytes]]:
        # One key in two, so that the store's own memory stays out of the measurement.
        return ((b"%d" % (count % 2), bytes(100)) for count in range(number))

    config = RawConfig(batch_keys=100, rpc=RpcConfig(concurrency=4))
    async with RawClient(cluster.url, api_version=api_version, config=config) as client:
        await client.batch_put(make(2000))
        tracemalloc.start()
        try:
            await client.batch_put(make(100_000), timeout=100)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert peak < 4 << 20
