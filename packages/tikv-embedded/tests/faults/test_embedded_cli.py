"""The command as a process of its own: how it starts, stops, refuses and survives being killed."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import itertools
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
import pytest
import trustme
from tikv_embedded.engine import RocksEngine
from tikv_proto import keyspacepb, kvrpcpb, metapb, pdpb
from tikv_proto.services import PD, Keyspace, Rpc, Tikv

COMMAND = [sys.executable, "-m", "tikv_embedded"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Server:
    """A running `tikv-embedded serve`."""

    def __init__(self, *options: str) -> None:
        command = [*COMMAND, "serve", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        self.pd_addresses = self.ready.strip().removeprefix("ready tikv://").split(",")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Send the signal; return the exit status and what else came out of stdout and stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
            self.process.communicate()


def refused(*options: str) -> tuple[int, str]:
    """Run the command, which must refuse; return its exit status and what it said."""
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def call(channel: grpc.aio.Channel, rpc: Rpc[Any, Any]) -> Any:
    make = channel.stream_stream if rpc.client_streaming else channel.unary_unary
    return make(
        rpc.path, request_serializer=rpc.request.SerializeToString, response_deserializer=rpc.response.FromString
    )


class Client:
    """What a client must know to reach the right store: the Regions and the stores' addresses, from PD."""

    def __init__(self, pd: grpc.aio.Channel, stack: contextlib.AsyncExitStack) -> None:
        self.pd = pd
        self.stack = stack
        self.header = pdpb.RequestHeader()
        self.regions: list[pdpb.Region] = []
        self.stores: dict[int, grpc.aio.Channel] = {}

    @property
    def cluster_id(self) -> int:
        return int(self.header.cluster_id)

    async def refresh(self) -> None:
        members = await call(self.pd, PD.GetMembers)(pdpb.GetMembersRequest())
        self.header = pdpb.RequestHeader(cluster_id=members.header.cluster_id)
        scanned = await call(self.pd, PD.ScanRegions)(pdpb.ScanRegionsRequest(header=self.header))
        self.regions = list(scanned.regions)
        listed = await call(self.pd, PD.GetAllStores)(pdpb.GetAllStoresRequest(header=self.header))
        for store in listed.stores:
            if store.id not in self.stores:
                channel = grpc.aio.insecure_channel(store.address)
                self.stores[store.id] = await self.stack.enter_async_context(channel)

    def shape(self) -> list[metapb.Region]:
        return [region.region for region in self.regions]

    def region_of(self, key: bytes) -> pdpb.Region:
        return next(
            each
            for each in self.regions
            if each.region.start_key <= key and (not each.region.end_key or key < each.region.end_key)
        )

    async def ask(self, rpc: Rpc[Any, Any], key: bytes, /, **fields: Any) -> Any:
        found = self.region_of(key)
        context = kvrpcpb.Context(
            region_id=found.region.id,
            region_epoch=found.region.region_epoch,
            peer=found.leader,
            cluster_id=self.cluster_id,
        )
        response = await call(self.stores[found.leader.store_id], rpc)(rpc.request(context=context, **fields))
        assert not response.HasField("region_error"), response.region_error
        return response

    async def put(self, key: bytes, value: bytes) -> None:
        response = await self.ask(Tikv.RawPut, key, key=key, value=value)
        assert not response.error

    async def get(self, key: bytes) -> bytes | None:
        response = await self.ask(Tikv.RawGet, key, key=key)
        assert not response.error
        return None if response.not_found else response.value

    async def timestamps(self) -> AsyncGenerator[tuple[int, int], None]:
        """Yield timestamps as they come, in batches of one."""
        stream = call(self.pd, PD.Tso)()
        try:
            while True:
                await stream.write(pdpb.TsoRequest(header=self.header, count=1))
                answer = await stream.read()
                yield answer.timestamp.physical, answer.timestamp.logical
        finally:
            stream.cancel()


@contextlib.asynccontextmanager
async def connect(server: Server) -> AsyncIterator[Client]:
    async with contextlib.AsyncExitStack() as stack:
        pd = await stack.enter_async_context(grpc.aio.insecure_channel(server.pd_addresses[0]))
        client = Client(pd, stack)
        await client.refresh()
        yield client


async def one_timestamp(client: Client) -> tuple[int, int]:
    async with contextlib.aclosing(client.timestamps()) as timestamps:
        return await anext(timestamps)


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


# Starting and stopping.


async def test_every_port_answers_once_the_ready_line_is_out() -> None:
    with Server("--stores", "2") as server:
        assert server.ready.startswith("ready tikv://127.0.0.1:")

        async with connect(server) as client:
            await client.put(b"k", b"v")

            assert await client.get(b"k") == b"v"
            assert len(client.stores) == 2
            for channel in client.stores.values():
                check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
                assert await check(b"") == b"\x08\x01"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_server_quietly_with_status_zero(number: signal.Signals, tmp_path: Path) -> None:
    with Server("--path", str(tmp_path)) as server:
        assert server.stop(number) == (0, "", "")

    RocksEngine(tmp_path).close()


async def test_a_signal_stops_the_server_while_clients_are_connected() -> None:
    with Server("--stores", "1") as server:
        async with connect(server) as client, contextlib.aclosing(client.timestamps()) as timestamps:
            await anext(timestamps)

            assert await asyncio.to_thread(server.stop) == (0, "", "")


async def test_the_options_decide_members_stores_mode_and_regions() -> None:
    options = ("--pd-members", "3", "--stores", "4", "--api-version", "v1ttl", "--split-keys", r"b,d\x2c\x00")
    with Server(*options) as server:
        assert len(server.pd_addresses) == 3

        async with connect(server) as client:
            assert [region.start_key for region in client.shape()] == [b"", b"b", b"d,\x00"]
            assert len(client.stores) == 4
            response = await client.ask(Tikv.RawPut, b"k", key=b"k", value=b"v", ttl=100)
            assert not response.error
            left = await client.ask(Tikv.RawGetKeyTTL, b"k", key=b"k")
            assert 98 <= left.ttl <= 100


async def test_keyspaces_are_there_from_the_beginning() -> None:
    with Server("--api-version", "v2", "--keyspaces", "users,orders", "--stores", "1") as server:
        async with connect(server) as client:
            for name in ("DEFAULT", "users", "orders"):
                request = keyspacepb.LoadKeyspaceRequest(header=client.header, name=name)
                response = await call(client.pd, Keyspace.LoadKeyspace)(request)
                assert (response.keyspace.name, response.keyspace.state) == (name, keyspacepb.ENABLED)


def test_the_pd_address_may_be_chosen() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    with Server("--pd", f"localhost:{port}", "--stores", "1") as server:
        assert server.ready == f"ready tikv://localhost:{port}\n"


def test_the_version_is_the_packages() -> None:
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, timeout=20, check=True)

    assert done.stdout == f"tikv-embedded {importlib.metadata.version('tikv-embedded')}\n"


# Refusing.


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "COMMAND"),
        (["start"], "start"),
        (["serve", "--stores", "0"], "stores"),
        (["serve", "--stores", "three"], "--stores"),
        (["serve", "--api-version", "v3"], "v3"),
        (["serve", "--pd-members", "2"], "--pd-members"),
        (["serve", "--pd", "127.0.0.1"], "HOST:PORT"),
        (["serve", "--pd", "127.0.0.1:65536"], "HOST:PORT"),
        (["serve", "--pd", "tikv://127.0.0.1:1"], "HOST:PORT"),
        (["serve", "--pd", "127.0.0.1:65535", "--pd-members", "3"], "65535"),
        (["serve", "--split-keys", "a,,b"], "empty key"),
        (["serve", "--keyspaces", "users"], "keyspaces"),
        (["serve", "--api-version", "v2", "--keyspaces", "users,,orders"], "keyspace"),
        (["serve", "--tls-cert", "server.pem"], "--tls-key"),
        (["serve", "--tls-cert", "missing.pem", "--tls-key", "missing.key"], "missing.pem"),
        (["serve", "--colour"], "--colour"),
    ],
    ids=" ".join,
)
def test_a_bad_option_is_refused_in_one_line(options: list[str], reason: str) -> None:
    status, said = refused(*options)

    assert status == 2
    assert said.startswith("tikv-embedded")
    assert said.count("\n") == 1
    assert reason in said


def assert_cannot_serve(reason: str, *options: str) -> None:
    status, said = refused("serve", *options)

    assert status == 1
    assert said.startswith("tikv-embedded: ")
    assert said.count("\n") == 1
    assert reason in said


def test_a_busy_port_is_refused(busy_port: int) -> None:
    assert_cannot_serve(f"127.0.0.1:{busy_port}", "--pd", f"127.0.0.1:{busy_port}")


def test_the_port_of_another_server_is_refused() -> None:
    with Server("--stores", "1") as server:
        assert_cannot_serve(server.pd_addresses[0], "--pd", server.pd_addresses[0])


@pytest.mark.parametrize("address", ["host.invalid:2379", "host.invalid:0", "192.0.2.1:0"])
def test_a_host_that_is_not_here_is_refused(address: str) -> None:
    assert_cannot_serve(address, "--pd", address)


def test_a_locked_data_directory_is_refused_and_its_holder_goes_on(tmp_path: Path) -> None:
    with Server("--path", str(tmp_path)) as holder:
        assert_cannot_serve("locked", "--path", str(tmp_path))

        assert holder.stop() == (0, "", "")


def test_a_foreign_data_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")

    assert_cannot_serve("foreign", "--path", str(tmp_path))

    assert [entry.name for entry in tmp_path.iterdir()] == ["letter.txt"]


def test_a_data_directory_of_another_storage_mode_is_refused(tmp_path: Path) -> None:
    with Server("--path", str(tmp_path)) as server:
        server.stop()

    status, said = refused("serve", "--path", str(tmp_path), "--api-version", "v2")

    assert status == 2
    assert "'v1'" in said
    assert said.count("\n") == 1


# Being killed.


class Load:
    """Writers and a reader of timestamps that go on until the server is gone, and what they were promised."""

    def __init__(self, client: Client, round_number: int) -> None:
        self.client = client
        self.round_number = round_number
        self.acknowledged: dict[bytes, bytes] = {}
        self.attempted: dict[bytes, bytes] = {}
        self.timestamps: list[tuple[int, int]] = []
        self.enough = asyncio.Event()
        self.limit = random.randint(1, 400)

    async def write(self, writer: int) -> None:
        try:
            for number in itertools.count():
                key = b"%c/%d/%d/%d" % (random.choice(b"amz"), self.round_number, writer, number)
                value = random.randbytes(random.choice((1, 100, 5000)))
                self.attempted[key] = value
                await self.client.put(key, value)
                self.acknowledged[key] = value
                if len(self.acknowledged) >= self.limit:
                    self.enough.set()
        finally:
            self.enough.set()

    async def read_timestamps(self) -> None:
        async with contextlib.aclosing(self.client.timestamps()) as timestamps:
            async for timestamp in timestamps:
                self.timestamps.append(timestamp)

    async def kill(self, server: Server) -> None:
        await self.enough.wait()
        server.process.kill()

    async def run_until_killed(self, server: Server) -> None:
        tasks = [asyncio.create_task(self.write(writer)) for writer in range(16)]
        tasks += [asyncio.create_task(self.read_timestamps()), asyncio.create_task(self.kill(server))]
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, (grpc.aio.AioRpcError, asyncio.InvalidStateError)) or outcome is None, outcome
        await asyncio.to_thread(server.process.communicate)


async def test_a_killed_server_comes_back_with_all_it_promised(tmp_path: Path) -> None:
    options = ("--path", str(tmp_path), "--stores", "3", "--split-keys", "k,t")
    acknowledged: dict[bytes, bytes] = {}
    attempted: dict[bytes, bytes] = {}
    newest = (0, 0)
    cluster_ids: set[int] = set()
    shape: list[metapb.Region] = []

    for round_number in range(3):
        with Server(*options) as server:
            async with connect(server) as client:
                cluster_ids.add(client.cluster_id)
                assert await one_timestamp(client) > newest
                assert client.shape() == shape or not round_number
                for key, value in attempted.items():
                    assert await client.get(key) in ([value] if key in acknowledged else [None, value])

                split = b"m/%d" % round_number
                await client.ask(Tikv.SplitRegion, split, split_keys=[split], is_raw_kv=True)
                await client.refresh()
                shape = client.shape()
                load = Load(client, round_number)
                await load.run_until_killed(server)

        assert len(load.acknowledged) >= load.limit
        assert load.timestamps == sorted(set(load.timestamps))
        newest = max([newest, *load.timestamps])
        acknowledged.update(load.acknowledged)
        attempted.update(load.attempted)

    with Server(*options) as server:
        async with connect(server) as client:
            assert await one_timestamp(client) > newest
            assert client.shape() == shape
            assert len(shape) == 6
            for key, value in acknowledged.items():
                assert await client.get(key) == value
            cluster_ids.add(client.cluster_id)
        assert server.stop() == (0, "", "")
    assert len(cluster_ids) == 1


async def test_timestamps_apart_from_pd_and_http_can_be_asked_for() -> None:
    with Server("--tso-servers", "2", "--http") as server:
        host, port = server.pd_addresses[0].rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"GET /ping HTTP/1.1\r\n\r\n")
            pong = connection.makefile("rb").read()
        async with grpc.aio.insecure_channel(server.pd_addresses[0]) as channel:
            info = await call(channel, PD.GetClusterInfo)(pdpb.GetClusterInfoRequest())

        assert pong.startswith(b"HTTP/1.1 200 OK\r\n")
        assert list(info.serviceModes) == [pdpb.ServiceMode.API_SVC_MODE]
        assert len(info.tso_urls) == 2
        assert server.stop() == (0, "", "")


async def test_ports_speak_tls_if_asked_to(tmp_path: Path) -> None:
    authority, cert, key = trustme.CA(), tmp_path / "server.pem", tmp_path / "server.key"
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())

    with Server("--tls-cert", str(cert), "--tls-key", str(key)) as server:
        async with grpc.aio.secure_channel(server.pd_addresses[0], credentials) as channel:
            members = await call(channel, PD.GetMembers)(pdpb.GetMembersRequest())

        assert list(members.leader.client_urls) == [f"https://{server.pd_addresses[0]}"]
        assert server.stop() == (0, "", "")
