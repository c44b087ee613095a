"""What the client sends for its operations, and how it is opened and closed."""

from __future__ import annotations

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from tikv_pd import Keyspace
from tikv_pd.testing import MemoryTransport
from tikv_proto.services import PD, Tikv
from tikv_raw import (
    ClosedError,
    ConfigError,
    KeyspaceNotFound,
    PdConfig,
    PdUnavailable,
    RawClient,
    RawConfig,
)
from tikv_region import KeyspaceCodec
from tikv_rpc.testing import FakeCluster, crc64


async def test_operations_of_one_key(cluster: FakeCluster, client: RawClient) -> None:
    await client.put(b"a", b"1", ttl=60)
    await client.put(b"h", b"2", cf="lock")
    await client.put(b"q", b"")

    assert await client.get(b"a") == b"1"
    assert await client.get(b"h") is None
    assert await client.get(b"h", cf="lock") == b"2"
    assert await client.get(b"q") == b""
    assert await client.ttl(b"a") == 60
    assert await client.ttl(b"q") == 0
    assert await client.ttl(b"z") is None
    await anyio.sleep(60)
    assert await client.get(b"a") is None
    await client.delete(b"q")
    assert cluster.data == {}


async def test_a_batch_is_cut_by_region_number_and_size(cluster: FakeCluster) -> None:
    config = RawConfig(batch_keys=4, batch_bytes=200)
    async with RawClient(cluster.url, config=config, transport=cluster.transport) as client:
        await client.batch_put({b"a%d" % number: b"v" for number in range(10)} | {b"h": bytes(300), b"i": bytes(300)})

    sizes = sorted(len(request.pairs) for request in cluster.requests(Tikv.RawBatchPut))
    assert sizes == [1, 1, 2, 4, 4]
    assert len(cluster.data) == 12


async def test_no_more_requests_are_under_way_than_allowed(cluster: FakeCluster, client: RawClient) -> None:
    keys = [b"a%03d" % number for number in range(300)]
    await client.get(b"a")
    cluster.store(1).delay_next(Tikv.RawBatchGet, 1.0, times=1000)
    started = anyio.current_time()

    await client.batch_get(keys)

    # A hundred requests of three keys, sixteen at a time.
    assert anyio.current_time() == pytest.approx(started + 7.0)


async def test_duplicates_are_sent_once_and_the_last_pair_counts(cluster: FakeCluster, client: RawClient) -> None:
    await client.batch_put([(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
    found = await client.batch_get([b"b", b"a", b"b", b"a"])
    await client.batch_delete([b"a", b"a"])

    assert found == {b"a": b"3", b"b": b"2"}
    assert [len(request.pairs) for request in cluster.requests(Tikv.RawBatchPut)] == [2]
    assert [list(request.keys) for request in cluster.requests(Tikv.RawBatchGet)] == [[b"b", b"a"]]
    assert [list(request.keys) for request in cluster.requests(Tikv.RawBatchDelete)] == [[b"a"]]


async def test_nothing_is_sent_for_nothing(cluster: FakeCluster, client: RawClient) -> None:
    await client.batch_put({})
    await client.batch_delete(())
    await client.delete_range(b"b", b"a")

    assert await client.batch_get(()) == {}
    assert (await client.checksum(b"b", b"b")).total_kvs == 0
    assert cluster.log == []


async def test_a_range_is_cut_at_the_borders_of_regions(cluster: FakeCluster, client: RawClient) -> None:
    for key in (b"a", b"h", b"q"):
        cluster.raw.put(key, b"v")

    checksum = await client.checksum()
    await client.delete_range(b"b", b"z")

    deleted = [(request.start_key, request.end_key) for request in cluster.requests(Tikv.RawDeleteRange)]
    assert sorted(deleted) == [(b"b", b"g"), (b"g", b"p"), (b"p", b"z")]
    assert checksum.crc64_xor == crc64(b"av") ^ crc64(b"hv") ^ crc64(b"qv")
    assert cluster.data == {b"a": b"v"}


async def test_a_keyspace_is_looked_up_by_name_and_bounds_every_key() -> None:
    codec = KeyspaceCodec(b"r", 5, "users")
    async with FakeCluster([b"m"], codec=codec) as cluster:
        cluster.pd.keyspaces["users"] = Keyspace(5, "users", "ENABLED")
        async with RawClient(f"{cluster.url}?keyspaceName=users", transport=cluster.transport) as client:
            await client.batch_put({b"": b"1", b"a": b"2", b"z": b"3"})
            found = [pair async for pair in client.scan(reverse=True)]
            await client.delete_range(b"b", everything=True)

        prefix = b"r\0\0\5"
        assert cluster.data == {prefix: b"1", prefix + b"a": b"2"}
        assert found == [(b"z", b"3"), (b"a", b"2"), (b"", b"1")]
        context = cluster.log[0].message.context
        assert (context.api_version, context.keyspace_id, context.keyspace_name) == (2, 5, "users")


@pytest.mark.parametrize("state", ["DISABLED", "ARCHIVED", None])
async def test_a_keyspace_that_is_not_enabled_cannot_be_opened(cluster: FakeCluster, state: str | None) -> None:
    if state is not None:
        cluster.pd.keyspaces["users"] = Keyspace(5, "users", state)

    with pytest.raises(KeyspaceNotFound, match="'users'"):
        async with RawClient(cluster.url, keyspace="users", transport=cluster.transport):
            pass

    assert cluster.transport.open_connections() == []


async def test_a_client_knows_nothing_before_it_is_opened_and_after_it_is_closed(cluster: FakeCluster) -> None:
    client = RawClient(cluster.url, transport=cluster.transport)

    with pytest.raises(ClosedError, match="RawClient is not open; use it inside `async with`"):
        await client.get(b"a")
    async with client:
        await client.put(b"a", b"v")
    with pytest.raises(ClosedError):
        client.scan()
    async with client:
        assert await client.get(b"a") == b"v"
    assert cluster.transport.open_connections() == []


async def test_an_open_client_cannot_be_opened_again(cluster: FakeCluster, client: RawClient) -> None:
    with pytest.raises(ConfigError, match="open already"):
        async with client:
            pass

    await client.put(b"a", b"v")
    assert cluster.data == {b"a": b"v"}


async def test_a_client_being_opened_cannot_be_opened_again(cluster: FakeCluster) -> None:
    client = RawClient(cluster.url, transport=cluster.transport)
    cluster.pd.hang(PD.GetMembers, times=1)
    refused: list[str] = []

    async def open_too() -> None:
        try:
            await wait_all_tasks_blocked()  # The other waits for PD.
            async with client:
                pass
        except ConfigError as error:
            refused.append(str(error))
            cluster.pd.heal()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_too)
        async with client:
            await client.put(b"a", b"v")

    assert len(refused) == 1
    assert cluster.data == {b"a": b"v"}


async def test_a_client_that_could_not_be_opened_leaves_nothing_and_may_be_tried_again(cluster: FakeCluster) -> None:
    config = RawConfig(pd=PdConfig(open_timeout=2.0))
    client = RawClient(cluster.url, config=config, transport=cluster.transport)
    cluster.pd.stop()
    started = anyio.current_time()

    with pytest.raises(PdUnavailable, match="connection refused"):
        async with client:
            pass
    elapsed = anyio.current_time() - started
    cluster.pd.start(cluster.pd.members[0])

    assert elapsed == pytest.approx(2.0)
    assert cluster.transport.open_connections() == []
    async with client:
        assert await client.get(b"a") is None


async def test_two_clients_share_nothing(cluster: FakeCluster) -> None:
    network: MemoryTransport = cluster.transport
    async with (
        RawClient(cluster.url, transport=network, cf="lock", api_version="v1ttl") as locks,
        RawClient(cluster.url, transport=network, config=RawConfig(atomic=True)) as plain,
    ):
        await locks.put(b"a", b"1", ttl=60)
        await plain.put(b"a", b"2")

        assert await locks.get(b"a") == b"1"
        assert await plain.get(b"a") == b"2"

    assert [request.for_cas for request in cluster.requests(Tikv.RawPut)] == [False, True]
