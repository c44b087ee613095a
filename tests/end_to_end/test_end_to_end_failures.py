"""Stores and PD members that die, hang, move and come back; answers that are lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_pd.errors import RpcError
from tikv_pd.grpc_transport import GrpcTransport
from tikv_pd.lowlevel import Connection, Metadata, Req, Resp, Stream
from tikv_proto.services import Rpc
from tikv_raw import (
    ApiVersion,
    CasResult,
    DeadlineExceeded,
    PdConfig,
    PdUnavailable,
    RawClient,
    RawConfig,
    TikvError,
    UndeterminedError,
)

KEYS = [b"%02d" % number for number in range(20)]
SPLITS = [b"05", b"10", b"15"]


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(api_version="v1ttl", split_keys=SPLITS, pd_members=3) as running:
        yield running


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[RawClient]:
    async with RawClient(cluster.url, api_version="v1ttl") as opened:
        yield opened


async def use_everything(client: RawClient, value: bytes) -> None:
    pairs = dict.fromkeys(KEYS, value)
    await client.batch_put(pairs)
    for key in KEYS[::3]:
        await client.put(key, value + b"!", ttl=1000)
        assert await client.ttl(key)
        assert await client.compare_and_swap(key, value + b"!", value) == CasResult(True, value + b"!")
        assert await client.get(key) == value
    assert await client.batch_get(KEYS) == pairs
    assert [pair async for pair in client.scan()] == list(pairs.items())
    assert [pair async for pair in client.scan(reverse=True)] == list(pairs.items())[::-1]
    assert (await client.checksum()).total_kvs == len(KEYS)
    await client.delete(KEYS[0])
    await client.batch_delete(KEYS[1:5])
    await client.delete_range(KEYS[5], everything=True)
    assert await client.batch_get(KEYS) == {}


async def test_stores_that_die_one_after_the_other_are_not_missed(cluster: EmbeddedCluster, client: RawClient) -> None:
    await use_everything(client, b"0")

    for store in cluster.stores():
        await cluster.stop_store(store.id)
        await use_everything(client, b"without %d" % store.id)
        await cluster.start_store(store.id)
        await use_everything(client, b"with %d" % store.id)


async def test_a_swap_on_a_store_that_died_before_is_not_undetermined(
    cluster: EmbeddedCluster, client: RawClient
) -> None:
    await client.put(b"k", b"1")
    leader = cluster.region_of(b"k").leader
    assert leader is not None
    await cluster.stop_store(leader.store_id)

    assert await client.compare_and_swap(b"k", b"1", b"2") == CasResult(swapped=True, previous=b"1")


async def test_calls_wait_for_stores_to_come_back(cluster: EmbeddedCluster, client: RawClient) -> None:
    await use_everything(client, b"0")
    for store in cluster.stores():
        await cluster.stop_store(store.id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use_everything, client, b"1")
        await anyio.sleep(0.3)
        for store in cluster.stores():
            await cluster.start_store(store.id)


async def test_writes_go_on_while_stores_die_and_come_back(cluster: EmbeddedCluster, client: RawClient) -> None:
    written: dict[bytes, bytes] = {}
    done = anyio.Event()

    async def keep_writing(key: bytes) -> None:
        number = 0
        while not done.is_set():
            number += 1
            await client.put(key, b"%d" % number)
            written[key] = b"%d" % number

    async with anyio.create_task_group() as tasks:
        for key in KEYS:
            tasks.start_soon(keep_writing, key)
        for store in cluster.stores():
            await anyio.sleep(0.2)
            await cluster.stop_store(store.id)
            await anyio.sleep(0.2)
            await cluster.start_store(store.id)
        await anyio.sleep(0.2)
        done.set()

    assert await client.batch_get(KEYS) == written
    assert min(int(value) for value in written.values()) > 3


READS: dict[str, Callable[[RawClient, float], Awaitable[object]]] = {
    "get": lambda client, timeout: client.get(b"01", timeout=timeout),
    "batch_get": lambda client, timeout: client.batch_get(KEYS, timeout=timeout),
    "scan": lambda client, timeout: anext(client.scan(timeout=timeout)),
    "ttl": lambda client, timeout: client.ttl(b"01", timeout=timeout),
    "checksum": lambda client, timeout: client.checksum(timeout=timeout),
}
WRITES: dict[str, Callable[[RawClient, float], Awaitable[object]]] = {
    "put": lambda client, timeout: client.put(b"01", b"v", timeout=timeout),
    "batch_put": lambda client, timeout: client.batch_put(dict.fromkeys(KEYS, b"v"), timeout=timeout),
    "delete": lambda client, timeout: client.delete(b"01", timeout=timeout),
    "batch_delete": lambda client, timeout: client.batch_delete(KEYS, timeout=timeout),
    "delete_range": lambda client, timeout: client.delete_range(b"0", b"2", timeout=timeout),
    "compare_and_swap": lambda client, timeout: client.compare_and_swap(b"01", b"v", b"w", timeout=timeout),
}


@contextmanager
def takes(seconds: float) -> Iterator[None]:
    """Assert that the block ends on time, within 10 % and what a busy machine needs."""
    started = time.monotonic()
    yield
    elapsed = time.monotonic() - started
    assert seconds * 0.9 <= elapsed <= seconds * 1.1 + 0.1


async def test_without_any_store_every_call_fails_on_time_and_did_nothing(
    cluster: EmbeddedCluster, client: RawClient
) -> None:
    await use_everything(client, b"0")
    for store in cluster.stores():
        await cluster.stop_store(store.id)

    async def fail(operation: Callable[[RawClient, float], Awaitable[object]]) -> None:
        with takes(1.0), pytest.raises(DeadlineExceeded) as caught:
            await operation(client, 1.0)
        assert isinstance(caught.value.__cause__, TikvError)

    # Reads first: a write on a stream whose end the client has not noticed yet may rightly be undetermined.
    for operations in (READS, WRITES):
        async with anyio.create_task_group() as tasks:
            for operation in operations.values():
                tasks.start_soon(fail, operation)


async def test_a_pd_leader_that_moves_is_followed(
    cluster: EmbeddedCluster, client: RawClient, shaken: Callable[..., Any]
) -> None:
    async def keep_moving() -> None:
        while True:
            for member in (2, 0, 1):
                cluster.transfer_pd_leader(member)
                await anyio.sleep(0.05)

    async with anyio.create_task_group() as tasks, shaken(cluster, KEYS, seed=9):
        tasks.start_soon(keep_moving)
        for number in range(5):
            await use_everything(client, b"%d" % number)
            async with RawClient(cluster.url, api_version="v1ttl") as another:
                await use_everything(another, b"%d" % number)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("member", [0, 1, 2])
async def test_a_pd_member_that_dies_is_not_missed(cluster: EmbeddedCluster, client: RawClient, member: int) -> None:
    await cluster.stop_pd_member(member)

    await use_everything(client, b"1")
    async with RawClient(cluster.url, api_version="v1ttl") as another:
        await use_everything(another, b"2")


async def test_without_pd_known_regions_work_and_others_fail_on_time(
    cluster: EmbeddedCluster, client: RawClient
) -> None:
    await client.put(b"01", b"v")
    for member in range(3):
        await cluster.stop_pd_member(member)

    found = await client.get(b"01")
    with takes(1.0), pytest.raises(DeadlineExceeded):
        await client.get(b"19", timeout=1.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.put, b"19", b"w")
        await anyio.sleep(0.2)
        await cluster.start_pd_member(1)

    assert found == b"v"
    assert await client.get(b"19") == b"w"


class LossyTransport(GrpcTransport):
    """gRPC whose unary answers are lost on demand, after the server has done its work."""

    def __init__(self) -> None:
        super().__init__()
        self.losses = 0
        """How many of the next answers are lost."""

    def connect(self, address: str, *, channel: int = 0) -> Any:
        return LossyConnection(super().connect(address, channel=channel), self)


class LossyConnection:
    def __init__(self, inner: Connection, transport: LossyTransport) -> None:
        self.address = inner.address
        self._inner = inner
        self._transport = transport

    async def ready(self, *, timeout: float) -> None:
        await self._inner.ready(timeout=timeout)

    async def unary(
        self, rpc: Rpc[Req, Resp], request: Req | bytes, *, timeout: float, metadata: Metadata = ()
    ) -> Resp:
        response = await self._inner.unary(rpc, request, timeout=timeout, metadata=metadata)
        if self._transport.losses:
            self._transport.losses -= 1
            raise RpcError(self.address, rpc.name, "UNAVAILABLE", "the answer was lost")
        return response

    def stream(self, rpc: Rpc[Req, Resp], *, metadata: Metadata = ()) -> Stream[Req, Resp]:
        return self._inner.stream(rpc, metadata=metadata)

    async def aclose(self) -> None:
        await self._inner.aclose()


async def test_a_swap_whose_answer_is_lost_is_undetermined_and_made_once(cluster: EmbeddedCluster) -> None:
    transport = LossyTransport()
    async with RawClient(cluster.url, api_version="v1ttl", transport=transport) as client:
        await client.put(b"k", b"1")
        transport.losses = 1

        with pytest.raises(UndeterminedError) as caught:
            await client.compare_and_swap(b"k", b"1", b"2")

        assert isinstance(caught.value.__cause__, RpcError)
        assert caught.value.undetermined
        assert not caught.value.retryable
        assert await client.get(b"k") == b"2"


async def test_a_read_whose_answers_are_lost_is_asked_again(cluster: EmbeddedCluster) -> None:
    transport = LossyTransport()
    async with RawClient(cluster.url, api_version="v1ttl", transport=transport) as client:
        await client.put(b"k", b"1", ttl=1000)
        transport.losses = 3

        assert await client.ttl(b"k")
        transport.losses = 3
        assert (await client.checksum()).total_kvs == 1


@contextmanager
def server_process(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve a cluster from a process of its own, which can be stopped or killed in the middle of anything."""
    command = [sys.executable, "-m", "tikv_embedded", "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[1], server
        finally:
            server.send_signal(signal.SIGCONT)
            server.terminate()


@pytest.fixture
def frozen() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with server_process("--api-version", "v1ttl", "--split-keys", "05,10,15") as served:
        yield served


async def test_a_cluster_that_hangs_makes_calls_fail_on_time(frozen: tuple[str, subprocess.Popen[str]]) -> None:
    url, server = frozen
    async with RawClient(url, api_version="v1ttl") as client:
        await use_everything(client, b"0")
        await client.put(b"01", b"v")
        server.send_signal(signal.SIGSTOP)

        async def fail(operation: Callable[[RawClient, float], Awaitable[object]], error: type[TikvError]) -> None:
            with takes(1.0), pytest.raises(error):
                await operation(client, 1.0)

        async with anyio.create_task_group() as tasks:
            for operation in READS.values():
                tasks.start_soon(fail, operation, DeadlineExceeded)
            for operation in WRITES.values():
                tasks.start_soon(fail, operation, UndeterminedError)
        server.send_signal(signal.SIGCONT)

        await use_everything(client, b"1")


async def test_opening_a_cluster_that_hangs_fails_on_time(frozen: tuple[str, subprocess.Popen[str]]) -> None:
    url, server = frozen
    server.send_signal(signal.SIGSTOP)
    config = RawConfig(pd=PdConfig(open_timeout=1.0))

    with takes(1.0), pytest.raises(PdUnavailable):
        async with RawClient(url, api_version="v1ttl", config=config):
            pass


@pytest.mark.parametrize("api_version", ["v1", "v1ttl", "v2"])
async def test_what_was_written_is_there_after_the_cluster_was_killed(tmp_path: Any, api_version: ApiVersion) -> None:
    options = ["--path", str(tmp_path / "data"), "--api-version", api_version]
    pairs = {b"%04d" % number: b"v" * number for number in range(300)}
    for round_number in range(2):
        with server_process(*options) as (url, server):
            async with RawClient(url, api_version=api_version) as client:
                if round_number == 0:
                    await client.batch_put(pairs)
                assert [pair async for pair in client.scan()] == list(pairs.items())
                server.kill()
