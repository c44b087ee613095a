"""What cannot work is refused with an error that says what to do; what is merely large works."""

from __future__ import annotations

import gc
import math
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.abc
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_raw import (
    ClosedError,
    ClusterMismatch,
    ConfigError,
    EntryTooLarge,
    KeyTooLarge,
    PdConfig,
    PdUnavailable,
    RawClient,
    RawConfig,
    RawError,
    TikvError,
    ValueTooLarge,
)

MIB = 1 << 20


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(split_keys=[b"m"]) as running:
        yield running


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[RawClient]:
    async with RawClient(cluster.url) as opened:
        yield opened


# --- arguments --------------------------------------------------------------------------------------------------------

Use = Callable[[Any], Any]

TYPE_ERRORS: dict[str, tuple[Use, str]] = {
    "str key": (lambda c: c.get("k"), r"key must be bytes, not str; .*\.encode\(\)"),
    "str value": (lambda c: c.put(b"k", "v"), r"value must be bytes, not str; .*\.encode\(\)"),
    "None value": (lambda c: c.put(b"k", None), "value must be bytes, not NoneType"),
    "None key": (lambda c: c.delete(None), "key must be bytes, not NoneType"),
    "int key": (lambda c: c.get(1), "key must be bytes, not int"),
    "str expected": (lambda c: c.compare_and_swap(b"k", "v", b"w"), "expected must be bytes, not str"),
    "None put": (lambda c: c.put(b"k", None), "value must be bytes, not NoneType"),
    "None if absent": (lambda c: c.put_if_absent(b"k", None), "value must be bytes, not NoneType"),
    "one key for many": (lambda c: c.batch_get(b"k"), r"not one key; pass \[key\]"),
    "one str for many": (lambda c: c.batch_delete("k"), r"not one key; pass \[key\]"),
    "str keys": (lambda c: c.batch_get(["k"]), r"key must be bytes, not str; .*\.encode\(\)"),
    "no keys at all": (lambda c: c.batch_get(None), "keys must be an iterable of keys, not NoneType"),
    "str pairs": (lambda c: c.batch_put("ab"), "pairs must be a mapping or an iterable of"),
    "bytes pairs": (lambda c: c.batch_put(b"ab"), "pairs must be a mapping or an iterable of"),
    "keys for pairs": (lambda c: c.batch_put([b"ab", b"cd"]), "a pair must be a .* tuple, not bytes"),
    "bytes for a ttl": (lambda c: c.batch_put([(b"a", b"b", b"c")]), "ttl must be whole seconds as an int, not bytes"),
    "four parts": (lambda c: c.batch_put([(b"a", b"b", 1, 2)]), "a pair must be a .* tuple, not 4 items"),
    "no pairs at all": (lambda c: c.batch_put(None), "pairs must be a mapping or an iterable of"),
    "dict of str": (lambda c: c.batch_put({"a": b"b"}), "key must be bytes, not str"),
    "dict to str": (lambda c: c.batch_put({b"a": "b"}), "value must be bytes, not str"),
    "str start": (lambda c: anext(c.scan("a")), "start must be bytes, not str"),
    "None end": (lambda c: anext(c.scan(b"a", None)), "end must be bytes, not NoneType"),
    "str prefix": (lambda c: anext(c.scan(prefix="a")), "prefix must be bytes, not str"),
    "str range": (lambda c: c.delete_range("a", "b"), "start must be bytes, not str"),
    "str checksum": (lambda c: c.checksum("a"), "start must be bytes, not str"),
    "str limit": (lambda c: anext(c.scan(limit="1")), "limit must be an int, not str"),
    "bool limit": (lambda c: anext(c.scan(limit=True)), "limit must be an int, not bool"),
    "float ttl": (lambda c: c.put(b"k", b"v", ttl=1.5), "ttl must be whole seconds as an int, not float"),
    "bool ttl": (lambda c: c.put(b"k", b"v", ttl=True), "ttl must be whole seconds as an int, not bool"),
    "str timeout": (lambda c: c.get(b"k", timeout="1"), "timeout must be seconds as a number, not str"),
    "bool timeout": (lambda c: c.get(b"k", timeout=True), "timeout must be seconds as a number, not bool"),
    "bytes cf": (lambda c: c.get(b"k", cf=b"default"), "cf must be a str, not bytes"),
}


@pytest.mark.parametrize("name", TYPE_ERRORS)
async def test_an_argument_of_a_wrong_type_is_refused(client: RawClient, name: str) -> None:
    use, message = TYPE_ERRORS[name]

    with pytest.raises(TypeError, match=message):
        await use(client)


CONFIG_ERRORS: dict[str, tuple[Use, str]] = {
    "negative limit": (lambda c: anext(c.scan(limit=-1)), "limit must not be negative, got -1; leave it out"),
    "negative ttl": (lambda c: c.put(b"k", b"v", ttl=-1), "ttl must be at least 1 second, got -1; leave it out"),
    "zero ttl": (lambda c: c.batch_put({b"k": b"v"}, ttl=0), "ttl must be at least 1 second, got 0"),
    "huge ttl": (lambda c: c.put(b"k", b"v", ttl=2**64), "ttl must be below"),
    "ttl in v1": (lambda c: c.put(b"k", b"v", ttl=1), "open it with api_version='v1ttl' or 'v2'"),
    "ttl of a key in v1": (lambda c: c.ttl(b"k"), "open it with api_version='v1ttl' or 'v2'"),
    "unknown cf": (lambda c: c.get(b"k", cf="meta"), "unknown column family 'meta'; known are default, lock, write"),
    "zero timeout": (lambda c: c.get(b"k", timeout=0), "timeout must be above 0 seconds, got 0"),
    "negative timeout": (lambda c: c.get(b"k", timeout=-1), "timeout must be above 0 seconds"),
    "no number for a timeout": (lambda c: c.get(b"k", timeout=math.nan), "timeout must be above 0 seconds, got nan"),
    "timeout beyond floats": (lambda c: c.get(b"k", timeout=10**400), "timeout must be"),
    "prefix and start": (lambda c: anext(c.scan(b"a", prefix=b"b")), "either a prefix or start and end"),
    "prefix and end": (lambda c: anext(c.scan(b"", b"b", prefix=b"")), "either a prefix or start and end"),
    "everything by mistake": (lambda c: c.delete_range(b"a"), "pass everything=True"),
}


@pytest.mark.parametrize("name", CONFIG_ERRORS)
async def test_an_argument_that_can_never_work_is_refused(client: RawClient, name: str) -> None:
    use, message = CONFIG_ERRORS[name]

    with pytest.raises(ConfigError, match=message) as caught:
        await use(client)

    assert isinstance(caught.value, ValueError)
    assert not caught.value.retryable


async def test_a_scan_is_refused_when_it_is_made_not_when_it_is_read(client: RawClient) -> None:
    with pytest.raises(ConfigError):
        client.scan(limit=-1)


async def test_no_limit_in_time_is_fine(client: RawClient) -> None:
    await client.put(b"k", b"v", timeout=math.inf)

    assert await client.get(b"k", timeout=10**300) == b"v"


async def test_an_empty_end_is_unbounded_also_in_reverse(client: RawClient) -> None:
    await client.batch_put({b"a": b"1", b"m": b"2", b"\xff\xff": b"3"})

    assert [key async for key, _ in client.scan(reverse=True)] == [b"\xff\xff", b"m", b"a"]
    assert [key async for key, _ in client.scan(b"b", b"", reverse=True, limit=1)] == [b"\xff\xff"]
    assert [key async for key, _ in client.scan(b"b", b"", reverse=True)] == [b"\xff\xff", b"m"]


CONSTRUCTORS: dict[str, tuple[Callable[[], object], str]] = {
    "no port": (lambda: RawClient("127.0.0.1"), "is not host:port"),
    "no host": (lambda: RawClient(":2379"), "is not host:port"),
    "port name": (lambda: RawClient("127.0.0.1:pd"), "is not a port"),
    "other scheme": (lambda: RawClient("redis://127.0.0.1:2379"), "unknown scheme"),
    "no address": (lambda: RawClient([]), "no PD address given"),
    "None address": (lambda: RawClient(None), "a PD address is a str"),  # type: ignore[arg-type]  # on purpose
    "unknown parameter": (lambda: RawClient("tikv://pd:2379?keyspace=x"), "known is keyspaceName"),
    "unknown version": (lambda: RawClient("pd:2379", api_version="v3"), "unknown api_version 'v3'"),  # type: ignore[arg-type]  # on purpose
    "keyspace in v1": (lambda: RawClient("pd:2379", api_version="v1", keyspace="x"), "needs api_version='v2'"),
    "two keyspaces": (lambda: RawClient("pd:2379?keyspaceName=a", keyspace="b"), "names keyspace 'a'"),
    "unknown cf": (lambda: RawClient("pd:2379", cf="data"), "unknown column family 'data'"),
    "cf in v2": (lambda: RawClient("pd:2379", api_version="v2", cf="lock"), "API v2 has no column family"),
    "no timeout": (lambda: RawConfig(timeout=0), "timeout must be above 0"),
    "no page": (lambda: RawConfig(scan_page=0), "scan_page must be above 0"),
    "too large a page": (lambda: RawConfig(scan_page=2**32), "scan_page must be"),
    "no keys": (lambda: RawConfig(batch_keys=-1), "batch_keys must be above 0"),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_client_that_can_never_work_is_not_made(name: str) -> None:
    construct, message = CONSTRUCTORS[name]

    with pytest.raises(ConfigError, match=message):
        construct()


# --- the way to the cluster -------------------------------------------------------------------------------------------


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def patient_for(seconds: float) -> RawConfig:
    return RawConfig(pd=PdConfig(open_timeout=seconds))


async def test_a_port_where_nobody_listens_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        with within(1.0), pytest.raises(PdUnavailable, match=rf"{address}.*refused.*Is the address a PD"):
            async with RawClient(address, config=patient_for(0.5)):
                pass


async def test_a_host_that_is_not_there_is_named() -> None:
    with within(1.5), pytest.raises(PdUnavailable, match=r"nowhere\.invalid:2379"):
        async with RawClient("nowhere.invalid:2379", config=patient_for(0.5)):
            pass


async def test_a_store_is_not_a_pd(cluster: EmbeddedCluster) -> None:
    address = cluster.store_addresses[1]

    with within(1.0), pytest.raises(PdUnavailable, match=rf"{address}.*UNIMPLEMENTED.*Is the address a PD"):
        async with RawClient(address, config=patient_for(5.0)):
            pass


@asynccontextmanager
async def plain_server(answer: bytes) -> AsyncIterator[str]:
    """Serve TCP that knows nothing of gRPC: it answers whatever comes, or says nothing for an empty answer."""

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            async for _ in stream:
                if answer:
                    await stream.send(answer)
                    return

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield f"127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["http", "silent"])
async def test_a_port_that_speaks_no_grpc_is_named(answer: bytes) -> None:
    async with plain_server(answer) as address:
        with within(1.5), pytest.raises(PdUnavailable, match=rf"{address}.*Is the address a PD"):
            async with RawClient(address, config=patient_for(0.5)):
                pass


async def test_a_wrong_address_beside_a_right_one_does_no_harm(cluster: EmbeddedCluster) -> None:
    async with plain_server(b"") as silent, RawClient([silent, cluster.url]) as client:
        await client.put(b"k", b"v")

        assert await client.get(b"k") == b"v"


async def test_addresses_of_two_clusters_are_refused(cluster: EmbeddedCluster) -> None:
    async with EmbeddedCluster() as other:
        with pytest.raises(ClusterMismatch, match="check the PD addresses"):
            async with RawClient([cluster.url, other.url]):
                pass


USES: dict[str, Use] = {
    "get": lambda c: c.get(b"k"),
    "batch_get": lambda c: c.batch_get([b"k"]),
    "put": lambda c: c.put(b"k", b"v"),
    "batch_put": lambda c: c.batch_put({b"k": b"v"}),
    "delete": lambda c: c.delete(b"k"),
    "batch_delete": lambda c: c.batch_delete([b"k"]),
    "delete_range": lambda c: c.delete_range(b"a", b"b"),
    "scan": lambda c: anext(c.scan()),
    "ttl": lambda c: c.ttl(b"k"),
    "compare_and_swap": lambda c: c.compare_and_swap(b"k", None, b"v"),
    "checksum": lambda c: c.checksum(),
}


# --- the wrong API version --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("storage", "spoken"), [("v2", "v1"), ("v2", "v1ttl"), ("v1", "v2"), ("v1ttl", "v2")])
async def test_a_client_of_another_api_version_is_told(storage: str, spoken: Any) -> None:
    async with EmbeddedCluster(api_version=storage) as cluster:
        uses: dict[str, Use] = {**USES, "scan reversed": lambda c: anext(c.scan(reverse=True))}
        for use in [use for name, use in uses.items() if name != "ttl" or spoken != "v1"]:
            with within(2.0), pytest.raises(TikvError, match=r"(?i)api[ _]version|keyspace") as caught:
                async with RawClient(cluster.url, api_version=spoken) as client:
                    await use(client)
            assert not caught.value.retryable


async def test_a_ttl_on_a_store_without_ttl_is_refused_by_the_store(cluster: EmbeddedCluster) -> None:
    async with RawClient(cluster.url, api_version="v1ttl") as client:
        for use in (
            client.put(b"k", b"v", ttl=1),
            client.batch_put({b"k": b"v"}, ttl=1),
            client.compare_and_swap(b"k", None, b"v", ttl=1),
            client.ttl(b"k"),
        ):
            with pytest.raises(RawError, match="ttl"):
                await use
        await client.put(b"k", b"v")
        assert await client.get(b"k") == b"v"


# --- a client that is not open ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_a_client_outside_async_with_says_so(cluster: EmbeddedCluster, use: Use) -> None:
    never_opened = RawClient(cluster.url)
    async with RawClient(cluster.url) as closed:
        pass

    for client in (never_opened, closed):
        with pytest.raises(ClosedError, match=r"RawClient is not open; use it inside `async with`"):
            await use(client)


async def test_closing_twice_or_unopened_is_fine(cluster: EmbeddedCluster) -> None:
    client = RawClient(cluster.url)
    await client.aclose()
    async with client:
        await client.aclose()
        await client.aclose()


async def test_an_open_client_is_not_opened_again(client: RawClient) -> None:
    with pytest.raises(ConfigError, match="open already"):
        async with client:
            pass

    await client.put(b"k", b"v")


async def test_a_client_is_opened_by_one_task_only(cluster: EmbeddedCluster) -> None:
    client = RawClient(cluster.url)
    refused = 0

    async def open_it() -> None:
        nonlocal refused
        try:
            async with client:
                await anyio.sleep(0.05)
        except ConfigError:
            refused += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_it)
        tasks.start_soon(open_it)

    assert refused == 1


# --- sizes ------------------------------------------------------------------------------------------------------------


async def test_a_value_beyond_the_limit_is_refused_before_anything_is_sent(client: RawClient) -> None:
    too_large = bytes(7 * MIB + 1)
    writes: list[Callable[[RawClient], Awaitable[object]]] = [
        lambda c: c.put(b"k", too_large),
        lambda c: c.batch_put({b"a": b"fine", b"k": too_large}),
        lambda c: c.batch_put([(b"a", b"fine"), (b"k", too_large)], on_error="return"),
        lambda c: c.compare_and_swap(b"k", None, too_large),
        lambda c: c.put_if_absent(b"k", too_large),
    ]

    for write in writes:
        with pytest.raises(ValueTooLarge, match="a value of 7340033 bytes exceeds the limit of 7340032"):
            await write(client)

    assert await client.count() == 0


async def test_a_store_has_the_last_word_on_sizes(cluster: EmbeddedCluster) -> None:
    config = RawConfig(max_value_bytes=9 * MIB, max_key_bytes=9000)
    too_large = bytes(8 * MIB + 1)
    async with RawClient(cluster.url, config=config) as client:
        writes: list[Callable[[RawClient], Awaitable[object]]] = [
            lambda c: c.put(b"k", too_large),
            lambda c: c.batch_put({b"k": too_large}),
            lambda c: c.compare_and_swap(b"k", None, too_large),
        ]
        for write in writes:
            with pytest.raises(EntryTooLarge, match="raft-entry-max-size") as caught:
                await write(client)
            assert caught.value.entry_size > 8 * MIB
            assert not caught.value.retryable
        with pytest.raises(RawError, match="max key size exceeded, size: 8193, limit: 8192"):
            await client.put(bytes(8193), b"v")

        assert await client.count() == 0


async def test_values_of_all_sizes_up_to_the_limit_work(client: RawClient) -> None:
    large = bytes(7 * MIB)

    await client.put(b"k", large)
    await client.batch_put({b"a": large, b"e": b"", b"z": large})

    assert await client.get(b"k") == large
    assert await client.batch_get([b"a", b"k", b"z"]) == dict.fromkeys([b"a", b"k", b"z"], large)
    assert [(key, len(value)) async for key, value in client.scan()] == [
        (b"a", 7 * MIB),
        (b"e", 0),
        (b"k", 7 * MIB),
        (b"z", 7 * MIB),
    ]
    assert (await client.compare_and_swap(b"k", large, b"")).swapped


async def test_a_key_beyond_the_limit_is_refused_before_anything_is_sent(client: RawClient) -> None:
    too_long = bytes(8193)
    writes: list[Callable[[RawClient], Awaitable[object]]] = [
        lambda c: c.put(too_long, b"v"),
        lambda c: c.batch_put([(b"a", b"fine"), (too_long, b"v")]),
        lambda c: c.delete(too_long),
        lambda c: c.batch_delete([b"a", too_long]),
        lambda c: c.delete_range(b"a", too_long),
        lambda c: c.delete_prefix(too_long),
        lambda c: c.put_if_absent(too_long, b"v"),
    ]
    for write in writes:
        with pytest.raises(KeyTooLarge, match="a key of 8193 bytes exceeds the limit of 8192"):
            await write(client)

    await client.put(bytes(8192), b"v")

    assert await client.get(too_long) is None
    assert await client.get(bytes(8192)) == b"v"
    assert await client.count() == 1


async def test_a_batch_of_100_mb_works_and_is_not_held_several_times(client: RawClient) -> None:
    pairs = {b"%06d" % number: bytes(100_000) for number in range(1000)}
    gc.collect()
    tracemalloc.start()

    try:
        await client.batch_put(pairs)
        _, written = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        found = await client.batch_get(pairs)
        _, read = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert found == pairs
    assert await client.batch_get([b"missing"]) == {}
    # The store in this process keeps one copy, and pieces of 1 MiB are under way.
    assert written < 200 * MIB
    # The copies of the found values, and of the answers they came in.
    assert read < 400 * MIB


async def test_a_batch_of_many_tiny_pairs_works(client: RawClient) -> None:
    pairs = {b"%06d" % number: b"%d" % number for number in range(50_000)}

    await client.batch_put(pairs)
    found = await client.batch_get(pairs)
    await client.batch_delete(list(pairs)[1:])

    assert found == pairs
    assert [pair async for pair in client.scan()] == [(b"000000", b"0")]
