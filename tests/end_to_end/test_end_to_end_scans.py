"""Scans: every direction, limit, bound and page size, also when Regions change between two pages."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable

import pytest
from tikv_embedded import EmbeddedCluster
from tikv_raw import ApiVersion, RawClient, RawConfig

KEYS = [
    b"",
    b"\0",
    b"a",
    b"a\0",
    b"a\0\0",
    b"a\xff",
    b"b",
    b"k",
    b"z",
    b"\xff",
    b"\xff\0",
    b"\xff\xff",
    b"\xff\xff\xff",
]
PAIRS = {key: b"value of " + key for key in KEYS}
SPLITS = [b"a\0", b"b\0", b"\xff"]


@pytest.fixture(params=["v1", "v2"])
def api_version(request: pytest.FixtureRequest) -> ApiVersion:
    chosen: ApiVersion = request.param
    return chosen


@pytest.fixture
async def cluster(api_version: ApiVersion) -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(api_version=api_version, split_keys=SPLITS) as running:
        async with RawClient(running.url, api_version=api_version) as client:
            await client.batch_put(PAIRS)
        yield running


def open_client(cluster: EmbeddedCluster, api_version: ApiVersion, page: int) -> RawClient:
    return RawClient(cluster.url, api_version=api_version, config=RawConfig(scan_page=page))


def between(start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
    return [(key, value) for key, value in PAIRS.items() if key >= start and (not end or key < end)]


def in_order(pairs: Iterable[tuple[bytes, bytes]], limit: int | None, *, reverse: bool) -> list[tuple[bytes, bytes]]:
    return sorted(pairs, reverse=reverse)[:limit]


@pytest.mark.parametrize("page", [1, 2, 3])
@pytest.mark.parametrize("reverse", [False, True])
async def test_a_scan_returns_the_pairs_between_its_bounds(
    cluster: EmbeddedCluster, api_version: ApiVersion, page: int, reverse: bool
) -> None:
    bounds = [b"", b"\0", b"a", b"a\0", b"b\0", b"c", b"\xff", b"\xff\xff\xff\xff"]
    async with open_client(cluster, api_version, page) as client:
        for start, end in itertools.product(bounds, bounds):
            expected = in_order(between(start, end), None, reverse=reverse)

            assert [pair async for pair in client.scan(start, end, reverse=reverse)] == expected, (start, end)


@pytest.mark.parametrize("page", [1, 2, 1000])
@pytest.mark.parametrize("reverse", [False, True])
async def test_a_scan_stops_at_its_limit(
    cluster: EmbeddedCluster, api_version: ApiVersion, page: int, reverse: bool
) -> None:
    async with open_client(cluster, api_version, page) as client:
        for limit in [0, 1, 2, 3, 4, len(KEYS) - 1, len(KEYS), len(KEYS) + 1, 10**30]:
            expected = in_order(between(b"\0", b""), limit, reverse=reverse)

            assert [pair async for pair in client.scan(b"\0", reverse=reverse, limit=limit)] == expected, limit


@pytest.mark.parametrize("prefix", [b"", b"a", b"a\0", b"a\xff", b"b", b"c", b"\0", b"\xff", b"\xff\xff", b"\xff" * 5])
async def test_a_prefix_selects_the_keys_that_begin_with_it(
    cluster: EmbeddedCluster, api_version: ApiVersion, prefix: bytes
) -> None:
    expected = [(key, value) for key, value in PAIRS.items() if key.startswith(prefix)]
    async with open_client(cluster, api_version, 2) as client:
        assert [pair async for pair in client.scan(prefix=prefix)] == expected
        assert [pair async for pair in client.scan(prefix=prefix, reverse=True)] == expected[::-1]
        assert [pair async for pair in client.scan(prefix=prefix, limit=2)] == expected[:2]


async def test_a_key_only_scan_leaves_the_values_out(cluster: EmbeddedCluster, api_version: ApiVersion) -> None:
    async with open_client(cluster, api_version, 4) as client:
        assert [pair async for pair in client.scan(key_only=True)] == [(key, b"") for key in KEYS]


@pytest.mark.parametrize("page", [1, 2, 3])
@pytest.mark.parametrize("reverse", [False, True])
async def test_regions_that_change_between_two_pages_change_no_pair(
    cluster: EmbeddedCluster, api_version: ApiVersion, page: int, reverse: bool
) -> None:
    found = []
    async with open_client(cluster, api_version, page) as client:
        async for pair in client.scan(reverse=reverse):
            found.append(pair)
            regions = cluster.regions()
            if len(regions) > 2 and len(found) % 3:
                cluster.merge(regions[len(found) % 2].id, regions[1 - len(found) % 2].id)
            else:
                cluster.split(KEYS[-len(found)] or b"m", KEYS[len(found) - 1] + b"\0")
            for region in cluster.regions():
                others = [peer.store_id for peer in region.peers if peer != region.leader]
                cluster.transfer_leader(region.id, others[len(found) % len(others)])

    assert found == in_order(PAIRS.items(), None, reverse=reverse)


async def test_pairs_written_ahead_of_a_scan_may_show_and_those_behind_do_not(
    cluster: EmbeddedCluster, api_version: ApiVersion
) -> None:
    found = []
    async with open_client(cluster, api_version, 1) as client:
        async for key, _ in client.scan():
            found.append(key)
            if key in PAIRS:
                await client.put(key + b"\0\0\0", b"new")
                await client.put(key[:-1], b"new")

    assert found == sorted(set(found))
    assert set(KEYS) <= set(found)


async def test_a_scan_left_early_leaves_the_client_usable(cluster: EmbeddedCluster, api_version: ApiVersion) -> None:
    async with open_client(cluster, api_version, 1) as client:
        for taken in range(len(KEYS)):
            async with client.scan() as scan:
                found = [pair async for pair, _ in zip_shortest(scan, taken)]
            assert found == list(PAIRS.items())[:taken]
            async for pair in client.scan():
                assert pair == (b"", PAIRS[b""])
                break
        assert await client.get(b"a") == PAIRS[b"a"]


async def zip_shortest(
    pairs: AsyncIterator[tuple[bytes, bytes]], count: int
) -> AsyncIterator[tuple[tuple[bytes, bytes], int]]:
    for number in range(count):
        yield await anext(pairs), number


async def test_scans_by_many_tasks_do_not_disturb_each_other(cluster: EmbeddedCluster, api_version: ApiVersion) -> None:
    async with open_client(cluster, api_version, 2) as client:
        scans = [client.scan(reverse=bool(number % 2)) for number in range(20)]
        found: list[list[tuple[bytes, bytes]]] = [[] for _ in scans]
        for _ in KEYS:
            for scan, pairs in zip(scans, found, strict=True):
                pairs.append(await anext(scan))

        assert found == [in_order(PAIRS.items(), None, reverse=bool(number % 2)) for number in range(20)]
        for scan in scans:
            with pytest.raises(StopAsyncIteration):
                await anext(scan)


async def test_a_scan_under_a_leader_that_dies_goes_on(cluster: EmbeddedCluster, api_version: ApiVersion) -> None:
    found = []
    async with open_client(cluster, api_version, 2) as client:
        async for pair in client.scan():
            found.append(pair)
            if len(found) == 4:
                leader = cluster.region_of(b"b").leader
                assert leader is not None
                await cluster.stop_store(leader.store_id)

    assert found == list(PAIRS.items())
