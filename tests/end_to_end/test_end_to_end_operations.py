"""Each operation in each API version, on Regions that are split in the middle of the keys used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import attrs
import fastcrc
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_pd import PdClient
from tikv_raw import ApiVersion, CasResult, Checksum, ConfigError, KeyspaceNotFound, RawClient, RawConfig
from tikv_region import KeyspaceCodec

KEYS = [b"", b"\0", b"a", b"a\0", b"b", b"b\0\0", b"k", b"m", b"m\xff", b"z", b"\xff", b"\xff\xff\xff\xff"]
SPLITS = [b"a\0", b"k", b"m\xff", b"\xff"]


@attrs.frozen
class Mode:
    api_version: ApiVersion
    keyspace: str | None = None

    def __str__(self) -> str:
        return f"{self.api_version}-{self.keyspace}" if self.keyspace else self.api_version


V1, V1TTL, V2, NAMED = Mode("v1"), Mode("v1ttl"), Mode("v2"), Mode("v2", "users")


@pytest.fixture(params=[V1, V1TTL, V2, NAMED], ids=str)
def mode(request: pytest.FixtureRequest) -> Mode:
    chosen: Mode = request.param
    return chosen


@pytest.fixture
async def cluster(mode: Mode) -> AsyncIterator[EmbeddedCluster]:
    keyspaces = ["users", "orders"] if mode.api_version == "v2" else []
    async with EmbeddedCluster(api_version=mode.api_version, keyspaces=keyspaces) as running:
        async with PdClient(running.url) as pd:
            if mode.api_version == "v2":
                keyspace = await pd.load_keyspace(mode.keyspace or "DEFAULT")
                codec = KeyspaceCodec(b"r", keyspace.id, keyspace.name)
                await pd.split_regions([codec.encode_region_key(key) for key in SPLITS])
            else:
                await pd.split_regions(SPLITS)
        yield running


@pytest.fixture
async def client(cluster: EmbeddedCluster, mode: Mode) -> AsyncIterator[RawClient]:
    async with RawClient(
        cluster.url, api_version=mode.api_version, keyspace=mode.keyspace, config=RawConfig(scan_page=3)
    ) as opened:
        yield opened


async def test_what_is_put_is_read_until_it_is_deleted(client: RawClient) -> None:
    for key in KEYS:
        before = await client.get(key)
        await client.put(key, b"value of " + key)
        found = await client.get(key)
        await client.put(key, b"another")
        replaced = await client.get(key)
        await client.delete(key)
        after = await client.get(key)
        await client.delete(key)

        assert [before, found, replaced, after] == [None, b"value of " + key, b"another", None]


async def test_an_empty_value_is_not_a_missing_one(client: RawClient) -> None:
    await client.put(b"k", b"")

    assert await client.get(b"k") == b""
    assert await client.get(b"l") is None
    assert await client.batch_get([b"k", b"l"]) == {b"k": b""}
    assert [pair async for pair in client.scan()] == [(b"k", b"")]
    assert await client.compare_and_swap(b"k", None, b"x") == CasResult(swapped=False, previous=b"")
    assert await client.compare_and_swap(b"k", b"", b"x") == CasResult(swapped=True, previous=b"")


async def test_keys_and_values_may_be_any_bytes_like_object(client: RawClient) -> None:
    await client.put(bytearray(b"k"), memoryview(b"value"))

    assert await client.get(memoryview(b"k")) == b"value"
    assert await client.batch_get([bytearray(b"k")]) == {b"k": b"value"}


async def test_a_batch_reaches_every_region(client: RawClient) -> None:
    pairs = {key: b"value of " + key for key in KEYS}

    await client.batch_put(pairs)
    found = await client.batch_get([*reversed(KEYS), b"missing", *KEYS])
    await client.batch_delete([*KEYS[::2], b"missing", KEYS[0]])

    assert found == pairs
    assert [key async for key, _ in client.scan()] == KEYS[1::2]


async def test_of_several_pairs_with_one_key_the_last_one_counts(client: RawClient) -> None:
    await client.batch_put([(b"k", b"1"), (b"a", b"2"), (b"k", b"3")])

    assert await client.batch_get([b"k", b"a"]) == {b"k": b"3", b"a": b"2"}


async def test_batches_of_nothing_do_nothing(client: RawClient) -> None:
    await client.batch_put({})
    await client.batch_put([])
    await client.batch_delete([])

    assert await client.batch_get([]) == {}


async def test_a_batch_larger_than_one_request_travels_in_several(cluster: EmbeddedCluster, mode: Mode) -> None:
    pairs = {b"%05d" % number: b"v" * (number % 100) for number in range(1000)}
    config = RawConfig(batch_keys=7, batch_bytes=200)
    async with RawClient(cluster.url, api_version=mode.api_version, keyspace=mode.keyspace, config=config) as client:
        await client.batch_put(pairs)

        assert await client.batch_get(pairs) == pairs
        await client.batch_delete(list(pairs)[:500])
        assert [pair async for pair in client.scan()] == list(pairs.items())[500:]


async def test_a_range_is_deleted_without_its_end(client: RawClient) -> None:
    await client.batch_put(dict.fromkeys(KEYS, b"v"))

    await client.delete_range(b"a", b"m\xff")

    assert [key async for key, _ in client.scan()] == [b"", b"\0", b"m\xff", b"z", b"\xff", b"\xff\xff\xff\xff"]


async def test_an_empty_range_is_deleted_without_effect(client: RawClient) -> None:
    await client.batch_put(dict.fromkeys(KEYS, b"v"))

    await client.delete_range(b"k", b"k")
    await client.delete_range(b"z", b"a")

    assert [key async for key, _ in client.scan()] == KEYS


async def test_everything_is_deleted_only_when_that_is_said(client: RawClient) -> None:
    await client.batch_put(dict.fromkeys(KEYS, b"v"))

    with pytest.raises(ConfigError, match="everything=True"):
        await client.delete_range(b"b", b"")
    await client.delete_range(b"b", everything=True)
    rest = [key async for key, _ in client.scan()]
    await client.delete_range(b"", everything=True)

    assert rest == [b"", b"\0", b"a", b"a\0"]
    assert [key async for key, _ in client.scan()] == []


async def test_a_swap_happens_only_for_the_expected_value(client: RawClient) -> None:
    created = await client.compare_and_swap(b"k", None, b"1")
    refused = await client.compare_and_swap(b"k", None, b"2")
    mistaken = await client.compare_and_swap(b"k", b"other", b"2")
    swapped = await client.compare_and_swap(b"k", b"1", b"2")
    missing = await client.compare_and_swap(b"l", b"1", b"2")

    assert created == CasResult(swapped=True, previous=None)
    assert refused == CasResult(swapped=False, previous=b"1")
    assert mistaken == CasResult(swapped=False, previous=b"1")
    assert swapped == CasResult(swapped=True, previous=b"1")
    assert missing == CasResult(swapped=False, previous=None)
    assert await client.batch_get([b"k", b"l"]) == {b"k": b"2"}


async def test_atomic_writes_do_the_same(cluster: EmbeddedCluster, mode: Mode) -> None:
    async with RawClient(
        cluster.url, api_version=mode.api_version, keyspace=mode.keyspace, config=RawConfig(atomic=True)
    ) as client:
        await client.put(b"a", b"1")
        await client.batch_put({b"b": b"2", b"z": b"3"})
        await client.delete(b"a")
        await client.batch_delete([b"z"])

        assert [pair async for pair in client.scan()] == [(b"b", b"2")]


async def test_a_checksum_covers_keys_and_values_and_no_bounds(client: RawClient, cluster: EmbeddedCluster) -> None:
    await client.batch_put({key: b"value of " + key for key in KEYS})

    before = await client.checksum()
    part = await client.checksum(b"a", b"z")
    cluster.split(b"a", b"b\0", b"l", b"y")
    after = await client.checksum()

    assert before == after
    assert (before.total_kvs, part.total_kvs) == (len(KEYS), 7)
    assert await client.checksum(b"b", b"b") == Checksum(0, 0, 0)
    await client.put(b"k", b"changed")
    assert (await client.checksum()).crc64_xor != before.crc64_xor


@pytest.mark.parametrize("mode", [V1, V1TTL], ids=str, indirect=True)
async def test_a_checksum_is_the_crc64_of_every_pair(client: RawClient) -> None:
    pairs = {key: b"value of " + key for key in KEYS}
    await client.batch_put(pairs)

    checksum = await client.checksum()

    expected = 0
    for key, value in pairs.items():
        expected ^= fastcrc.crc64.xz(key + value)
    size = sum(len(key) + len(value) for key, value in pairs.items())
    assert checksum == Checksum(expected, len(pairs), size)


@pytest.mark.parametrize("mode", [V1TTL, V2, NAMED], ids=str, indirect=True)
async def test_a_ttl_is_told_and_replaced_by_the_next_put(client: RawClient) -> None:
    await client.put(b"a", b"1", ttl=1000)
    await client.batch_put({b"b": b"2", b"z": b"3"}, ttl=2000)
    await client.put(b"k", b"4")
    await client.compare_and_swap(b"m", None, b"5", ttl=3000)

    found = [await client.ttl(key) for key in (b"a", b"b", b"z", b"k", b"m", b"missing")]
    await client.put(b"a", b"1")
    await client.compare_and_swap(b"m", b"5", b"6")

    assert [ttl if ttl is None else -(-ttl // 1000) for ttl in found] == [1, 2, 2, 0, 3, None]
    assert [await client.ttl(key) for key in (b"a", b"m")] == [0, 0]


@pytest.mark.parametrize("mode", [V1TTL, V2, NAMED], ids=str, indirect=True)
async def test_an_expired_key_is_gone_for_every_operation(client: RawClient) -> None:
    await client.batch_put({b"a": b"1", b"k": b"2", b"z": b"3"})
    await client.batch_put({b"k": b"2", b"l": b"4"}, ttl=1)

    while await client.get(b"k") is not None:
        assert await client.ttl(b"k") == 1 or await client.get(b"k") is None

    assert await client.ttl(b"k") is None
    assert await client.batch_get([b"a", b"k", b"l"]) == {b"a": b"1"}
    assert [key async for key, _ in client.scan(limit=2)] == [b"a", b"z"]
    assert (await client.checksum()).total_kvs == 2
    assert await client.compare_and_swap(b"k", None, b"new") == CasResult(swapped=True, previous=None)


@pytest.mark.parametrize("mode", [V1, V1TTL], ids=str, indirect=True)
async def test_column_families_do_not_see_each_other(client: RawClient, cluster: EmbeddedCluster, mode: Mode) -> None:
    for cf in ("default", "lock", "write"):
        await client.batch_put({b"a": cf.encode(), b"z": cf.encode()}, cf=cf)
    async with RawClient(cluster.url, api_version=mode.api_version, cf="lock") as locks:
        await locks.delete(b"a")
        await locks.put(b"k", b"v", cf="write")
        await client.delete_range(b"z", everything=True, cf="write")
        swapped = await locks.compare_and_swap(b"z", b"lock", b"new")

        assert swapped.swapped
        assert [pair async for pair in client.scan()] == [(b"a", b"default"), (b"z", b"default")]
        assert [pair async for pair in locks.scan()] == [(b"z", b"new")]
        assert [pair async for pair in locks.scan(cf="write")] == [(b"a", b"write"), (b"k", b"v")]
        assert await locks.get(b"a") is None
        assert await locks.get(b"a", cf="default") == b"default"
        assert await client.batch_get([b"a", b"k"], cf="write") == {b"a": b"write", b"k": b"v"}


async def test_keyspaces_do_not_see_each_other() -> None:
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(EmbeddedCluster(api_version="v2", keyspaces=["users", "orders"]))
        default = await stack.enter_async_context(RawClient(cluster.url, api_version="v2"))
        users = await stack.enter_async_context(RawClient(cluster.url, keyspace="users"))
        orders = await stack.enter_async_context(RawClient(f"{cluster.url}?keyspaceName=orders"))
        for name, client in {b"default": default, b"users": users, b"orders": orders}.items():
            await client.batch_put(dict.fromkeys(KEYS, name))

        await users.delete_range(b"", everything=True)
        await orders.delete_range(b"b", everything=True)

        assert [key async for key, _ in users.scan()] == []
        assert [pair async for pair in orders.scan()] == [(key, b"orders") for key in KEYS[:4]]
        assert [pair async for pair in orders.scan(reverse=True)] == [(key, b"orders") for key in KEYS[3::-1]]
        assert [pair async for pair in default.scan()] == [(key, b"default") for key in KEYS]
        assert (await users.checksum()).total_kvs == 0
        assert (await default.checksum()).total_kvs == len(KEYS)


async def test_a_keyspace_that_is_not_there_cannot_be_opened() -> None:
    async with EmbeddedCluster(api_version="v2") as cluster:
        with pytest.raises(KeyspaceNotFound, match="'nobody'"):
            async with RawClient(cluster.url, keyspace="nobody"):
                pass


async def test_a_client_can_be_opened_again(client: RawClient, cluster: EmbeddedCluster, mode: Mode) -> None:
    await client.put(b"k", b"v")
    other = RawClient(cluster.url, api_version=mode.api_version, keyspace=mode.keyspace)

    for _ in range(3):
        async with other:
            assert await other.get(b"k") == b"v"
