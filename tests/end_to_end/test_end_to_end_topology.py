"""A Region that splits, merges or moves in the middle of a call changes no result and raises nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_raw import ApiVersion, Checksum, RawClient, RawConfig

Operation = Callable[[RawClient, dict[bytes, bytes]], Awaitable[None]]
Change = Callable[[EmbeddedCluster], None]

KEYS = [b"%02d" % number for number in range(40)]
SPLITS = [b"08", b"16", b"24", b"32"]
SPARE = b"spare"
SHAKING = 0.4
"""Seconds for which Regions keep changing under each operation."""


async def get(client: RawClient, pairs: dict[bytes, bytes]) -> None:
    for key, value in pairs.items():
        assert await client.get(key) == value
    assert await client.get(SPARE) is None


async def batch_get(client: RawClient, pairs: dict[bytes, bytes]) -> None:
    assert await client.batch_get([SPARE, *reversed(pairs), *pairs]) == pairs


async def scan(client: RawClient, pairs: dict[bytes, bytes]) -> None:
    assert [pair async for pair in client.scan()] == list(pairs.items())


async def scan_reversed(client: RawClient, pairs: dict[bytes, bytes]) -> None:
    expected = list(pairs.items())[::-1][:30]
    assert [pair async for pair in client.scan(reverse=True, limit=30)] == expected


async def checksum(client: RawClient, pairs: dict[bytes, bytes]) -> None:
    found = await client.checksum()
    assert found.total_kvs == len(pairs)
    assert found.crc64_xor ^ (await client.checksum(b"", b"20")).crc64_xor == (await client.checksum(b"20")).crc64_xor


async def put(client: RawClient, pairs: dict[bytes, bytes]) -> None:
    for key, value in pairs.items():
        await client.put(key, value + b"+")
    pairs.update({key: value + b"+" for key, value in pairs.items()})
    assert await client.batch_get(pairs) == pairs


async def delete(client: RawClient, pairs: dict[bytes, bytes]) -> None:
    for key in list(pairs)[::5]:
        await client.delete(key)
        assert await client.get(key) is None
        await client.put(key, pairs[key])


async def batch_put(client: RawClient, pairs: dict[bytes, bytes]) -> None:
    pairs.update({key: value + b"*" for key, value in pairs.items()})
    await client.batch_put(pairs)
    assert [pair async for pair in client.scan()] == list(pairs.items())


async def batch_delete(client: RawClient, pairs: dict[bytes, bytes]) -> None:
    await client.batch_delete([SPARE, *list(pairs)[::2]])
    assert [pair async for pair in client.scan()] == list(pairs.items())[1::2]
    await client.batch_put(pairs)


async def delete_range(client: RawClient, pairs: dict[bytes, bytes]) -> None:
    await client.delete_range(b"05", b"30")
    assert [key async for key, _ in client.scan(key_only=True)] == [*KEYS[:5], *KEYS[30:]]
    await client.batch_put(pairs)


async def compare_and_swap(client: RawClient, pairs: dict[bytes, bytes]) -> None:
    for key in list(pairs)[::4]:
        result = await client.compare_and_swap(key, pairs[key], pairs[key] + b"!")
        assert (result.swapped, result.previous) == (True, pairs[key])
        pairs[key] += b"!"
        assert not (await client.compare_and_swap(key, None, b"never")).swapped
    assert await client.batch_get(pairs) == pairs


async def ttl(client: RawClient, pairs: dict[bytes, bytes]) -> None:
    await client.put(SPARE, b"v", ttl=1000)
    left = await client.ttl(SPARE)
    assert left is not None
    assert 900 < left <= 1000
    assert [await client.ttl(key) for key in list(pairs)[::8]] == [0] * 5
    await client.delete(SPARE)


READS: list[Operation] = [get, batch_get, scan, scan_reversed, checksum]
WRITES: list[Operation] = [put, delete, batch_put, batch_delete, delete_range, compare_and_swap, ttl]


def named(function: Any) -> str:
    return str(function.__name__)


def split(cluster: EmbeddedCluster) -> None:
    cluster.split(b"04", b"20", b"22", b"30\0", b"39")


def merge(cluster: EmbeddedCluster) -> None:
    first, second, third, fourth, fifth = (cluster.region_of(key).id for key in (KEYS[0], *SPLITS))
    cluster.merge(first, second)
    cluster.merge(fourth, third)
    cluster.merge(third, fifth)


def merge_all(cluster: EmbeddedCluster) -> None:
    while len(regions := cluster.regions()) > 1:
        cluster.merge(regions[1].id, regions[0].id)


def move_bounds(cluster: EmbeddedCluster) -> None:
    merge_all(cluster)
    cluster.split(b"04", b"12", b"20", b"28", b"36")


def transfer_leaders(cluster: EmbeddedCluster) -> None:
    for region in cluster.regions():
        other = next(peer for peer in region.peers if peer != region.leader)
        cluster.transfer_leader(region.id, other.store_id)


def move_peers(cluster: EmbeddedCluster) -> None:
    """Take every Region from half of the stores, its leader's among them wherever that is."""
    gone = [store.id for store in cluster.stores()][:2]
    for region in cluster.regions():
        for store_id in gone:
            cluster.remove_peer(region.id, store_id)


def renew_peers(cluster: EmbeddedCluster) -> None:
    """Give every Region new peers on the stores where it was."""
    for region in cluster.regions():
        for peer in region.peers:
            cluster.remove_peer(region.id, peer.store_id)
            cluster.add_peer(region.id, peer.store_id)


def everything(cluster: EmbeddedCluster) -> None:
    for change in (split, move_peers, transfer_leaders, merge_all, renew_peers, split, transfer_leaders):
        change(cluster)


CHANGES: list[Change] = [split, merge, merge_all, move_bounds, transfer_leaders, move_peers, renew_peers, everything]


@asynccontextmanager
async def changeable(api_version: ApiVersion) -> AsyncIterator[tuple[EmbeddedCluster, RawClient]]:
    """Yield a cluster whose Regions live on all of its stores, and a client that takes small steps."""
    config = RawConfig(scan_page=7, batch_keys=6)
    async with (
        EmbeddedCluster(api_version=api_version, split_keys=SPLITS, stores=4, max_peer_count=4) as cluster,
        RawClient(cluster.url, api_version=api_version, config=config) as client,
    ):
        yield cluster, client


@pytest.mark.parametrize("change", CHANGES, ids=named)
@pytest.mark.parametrize("operation", [*READS, *WRITES], ids=named)
@pytest.mark.parametrize("api_version", ["v1ttl", "v2"])
async def test_an_operation_follows_what_changed_since_regions_were_cached(
    api_version: ApiVersion, operation: Operation, change: Change
) -> None:
    pairs = {key: b"value of " + key for key in KEYS}
    async with changeable(api_version) as (cluster, client):
        await client.batch_put(pairs)
        await scan(client, pairs)
        change(cluster)

        await operation(client, pairs)


@pytest.mark.parametrize("operation", WRITES, ids=named)
@pytest.mark.parametrize("api_version", ["v1ttl", "v2"])
async def test_a_write_is_right_while_regions_keep_changing(
    api_version: ApiVersion, operation: Operation, shaken: Callable[..., AbstractAsyncContextManager[Any]]
) -> None:
    pairs = {key: b"value of " + key for key in KEYS}
    async with changeable(api_version) as (cluster, client), shaken(cluster, KEYS, seed=5) as shaker:
        await client.batch_put(pairs)
        rounds, until = 0, anyio.current_time() + SHAKING
        while anyio.current_time() < until:
            await operation(client, pairs)
            rounds += 1

    assert rounds > 0
    assert shaker.changes > 0


@pytest.mark.parametrize("api_version", ["v1", "v2"])
async def test_reads_are_right_while_regions_keep_changing(
    api_version: ApiVersion, shaken: Callable[..., AbstractAsyncContextManager[Any]]
) -> None:
    pairs = {key: b"value of " + key for key in KEYS}
    rounds = dict.fromkeys(READS, 0)

    async def keep_reading(operation: Operation, until: float) -> None:
        while anyio.current_time() < until:
            await operation(client, pairs)
            rounds[operation] += 1

    async with changeable(api_version) as (cluster, client), shaken(cluster, KEYS, seed=6):
        await client.batch_put(pairs)
        async with anyio.create_task_group() as tasks:
            for operation in READS:
                tasks.start_soon(keep_reading, operation, anyio.current_time() + 3 * SHAKING)

    assert min(rounds.values()) > 0


@pytest.mark.parametrize("api_version", ["v1", "v2"])
async def test_increments_by_many_tasks_are_all_counted(
    api_version: ApiVersion, shaken: Callable[..., AbstractAsyncContextManager[Any]]
) -> None:
    tasks_count, increments = 32, 4

    async def increment() -> None:
        for _ in range(increments):
            swapped = False
            expected = await client.get(b"20")
            while not swapped:
                value = b"%d" % (int(expected or b"0") + 1)
                result = await client.compare_and_swap(b"20", expected, value)
                swapped, expected = result.swapped, result.previous

    async with changeable(api_version) as (cluster, client), shaken(cluster, KEYS, seed=7):
        async with anyio.create_task_group() as tasks:
            for _ in range(tasks_count):
                tasks.start_soon(increment)

        assert await client.get(b"20") == b"%d" % (tasks_count * increments)


async def test_equal_data_has_an_equal_checksum_however_it_is_split() -> None:
    pairs = {b"%03d" % number: b"v" * number for number in range(200)}
    found: set[Checksum] = set()
    async with EmbeddedCluster() as cluster, RawClient(cluster.url) as client:
        await client.batch_put(pairs)
        for step in (200, 40, 7, 3, 1):
            cluster.split(*list(pairs)[::step])
            found.add(await client.checksum())
        merge_all(cluster)
        found.add(await client.checksum())

    assert len(found) == 1
