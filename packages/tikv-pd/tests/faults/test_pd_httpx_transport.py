"""HTTP over real sockets, on both event loops: answers, failures, cancellation, TLS and its rotation."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest
import trustme
from anyio.streams.tls import TLSListener
from tikv_pd import ConfigError, HttpAnswer, RpcError, SecurityConfig
from tikv_pd.httpx_transport import HttpxTransport

Serve = Callable[[anyio.abc.ByteStream], Awaitable[None]]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    return trustme.CA()


class Server:
    """Answers each request with its target and the header by which callers are told apart."""

    def __init__(self) -> None:
        self.address = ""
        self.connections = 0
        self.open = 0
        self.hears = anyio.Event()
        """Set when a request came."""
        self.answers = anyio.Event()
        """Nothing is answered before it is set."""
        self.answers.set()
        self.raw: bytes | None = None
        """What is sent in place of an answer; the connection ends with it."""
        self._left = anyio.Event()

    async def serve(self, stream: anyio.abc.ByteStream) -> None:
        self.connections += 1
        self.open += 1
        try:
            async with stream:
                while True:
                    head = await self._head(stream)
                    self.hears.set()
                    await self.answers.wait()
                    if self.raw is not None:
                        await stream.send(self.raw)
                        return
                    body = b" ".join([head[0].split()[1], *(line for line in head if line.lower().startswith(b"x-"))])
                    await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError):
            pass
        finally:
            self.open -= 1
            self._left.set()
            self._left = anyio.Event()

    async def is_left(self) -> None:
        """Wait until no connection is open."""
        with anyio.fail_after(5):
            while self.open:
                await self._left.wait()

    async def _head(self, stream: anyio.abc.ByteStream) -> list[bytes]:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive()
        return head.split(b"\r\n")


@asynccontextmanager
async def listening(context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server()
    listener: anyio.abc.Listener[anyio.abc.ByteStream]
    multi = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server.address = f"127.0.0.1:{multi.extra(anyio.abc.SocketAttribute.local_port)}"
    listener = multi if context is None else TLSListener(multi, context, standard_compatible=False)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.serve)
        yield server
        tasks.cancel_scope.cancel()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with listening() as server:
        yield server


async def get(transport: HttpxTransport, server: Server, target: str = "/a", timeout: float = 5) -> HttpAnswer:
    return await transport.get(server.address, target, headers={"X-Caller-ID": "me"}, timeout=timeout)


async def test_requests_share_a_connection_and_keep_their_target(server: Server) -> None:
    transport = HttpxTransport()

    answers = [await get(transport, server, target) for target in ("/a?b=%FF", "/region/key/%2E%2E", "/x%2Fy%20")]
    await transport.aclose()

    assert [answer.status for answer in answers] == [200, 200, 200]
    assert answers[0].body == b"/a?b=%FF X-Caller-ID: me"
    assert [answer.body.split()[0] for answer in answers[1:]] == [b"/region/key/%2E%2E", b"/x%2Fy%20"]
    assert server.connections == 1
    await server.is_left()


async def test_proxies_of_the_environment_are_not_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    transport = HttpxTransport()

    assert (await get(transport, server)).status == 200
    await transport.aclose()


async def test_nobody_there_is_an_error() -> None:
    transport = HttpxTransport()

    with pytest.raises(RpcError) as caught:
        await transport.get("127.0.0.1:1", "/a", headers={}, timeout=5)
    await transport.aclose()

    assert (caught.value.code, caught.value.method) == ("UNAVAILABLE", "GET /a")


@pytest.mark.parametrize("raw", [b"", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"])
async def test_what_is_no_answer_is_an_error_and_the_next_request_works(server: Server, raw: bytes) -> None:
    transport = HttpxTransport()
    server.raw = raw

    with pytest.raises(RpcError, match="UNAVAILABLE"):
        await get(transport, server)
    server.raw = None

    assert (await get(transport, server)).status == 200
    await transport.aclose()


async def test_a_server_that_says_nothing_is_left_in_time(server: Server) -> None:
    transport = HttpxTransport()
    server.answers = anyio.Event()

    with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
        await get(transport, server, timeout=0.05)
    server.answers.set()

    assert (await get(transport, server)).status == 200
    await transport.aclose()


async def test_a_cancelled_request_leaves_nothing(server: Server) -> None:
    transport = HttpxTransport()
    server.answers = anyio.Event()

    with anyio.move_on_after(0.05) as scope:
        await get(transport, server)
    server.answers.set()

    assert scope.cancelled_caught
    assert (await get(transport, server)).status == 200
    await transport.aclose()


async def test_closing_ends_requests_under_way(server: Server) -> None:
    transport = HttpxTransport()
    server.answers = anyio.Event()
    ends: list[str] = []

    async def ask() -> None:
        with pytest.raises(RpcError) as caught:
            await get(transport, server)
        ends.append(caught.value.code)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(ask)
            await server.hears.wait()
            await transport.aclose()
    with pytest.raises(RpcError, match="CANCELLED"):
        await get(transport, server)

    assert ends == ["CANCELLED", "CANCELLED"]


class TestByTheEventLoop:
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_a_cancelled_request_leaves_nothing(self, server: Server) -> None:
        transport = HttpxTransport()
        server.answers = anyio.Event()
        task = asyncio.ensure_future(get(transport, server))
        await server.hears.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.answers.set()

        assert (await get(transport, server)).status == 200
        await transport.aclose()


class TestOverTls:
    @pytest.fixture
    def security(self, tmp_path: Path, authority: trustme.CA) -> SecurityConfig:
        security = SecurityConfig(
            ca_path=tmp_path / "ca.pem", cert_path=tmp_path / "client.pem", key_path=tmp_path / "client.key"
        )
        self.give(security, authority)
        return security

    def give(self, security: SecurityConfig, authority: trustme.CA) -> None:
        """Write the client's material, each file by renaming."""
        assert security.cert_path is not None
        assert security.key_path is not None
        leaf = authority.issue_cert("client@pd.example")
        files = {
            security.ca_path: authority.cert_pem,
            security.cert_path: leaf.cert_chain_pems[0],
            security.key_path: leaf.private_key_pem,
        }
        for path, content in files.items():
            fresh = path.with_suffix(".new")
            fresh.write_bytes(content.bytes())
            fresh.rename(path)

    def context(self, authority: trustme.CA, host: str = "127.0.0.1") -> ssl.SSLContext:
        """Prove itself by a certificate for `host`, and want one of the client."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(host).configure_cert(context)
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def test_both_sides_prove_themselves(self, authority: trustme.CA, security: SecurityConfig) -> None:
        async with listening(self.context(authority)) as server:
            transport = HttpxTransport(security)

            assert (await get(transport, server)).status == 200
            await transport.aclose()

    async def test_a_name_may_be_expected(self, authority: trustme.CA, security: SecurityConfig) -> None:
        named = SecurityConfig(
            ca_path=security.ca_path,
            cert_path=security.cert_path,
            key_path=security.key_path,
            server_name="pd.example",
        )
        async with listening(self.context(authority, "pd.example")) as server:
            wrong, right = HttpxTransport(security), HttpxTransport(named)

            with pytest.raises(RpcError, match="CERTIFICATE_VERIFY_FAILED"):
                await get(wrong, server)
            assert (await get(right, server)).status == 200
            await wrong.aclose()
            await right.aclose()

    async def test_a_stranger_is_not_trusted(self, stranger: trustme.CA, security: SecurityConfig) -> None:
        async with listening(self.context(stranger)) as server:
            transport = HttpxTransport(security)

            with pytest.raises(RpcError, match="CERTIFICATE_VERIFY_FAILED"):
                await get(transport, server)
            await transport.aclose()

    async def test_rotated_files_are_followed_and_half_rotated_ones_are_not(
        self, authority: trustme.CA, stranger: trustme.CA, security: SecurityConfig
    ) -> None:
        transport = HttpxTransport(security)
        async with listening(self.context(authority)) as old, listening(self.context(stranger)) as new:
            assert (await get(transport, old)).status == 200
            old.answers, old.hears = anyio.Event(), anyio.Event()
            under_way: list[int] = []

            async def ask() -> None:
                under_way.append((await get(transport, old)).status)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                await old.hears.wait()
                assert security.key_path is not None
                whole = security.key_path.read_bytes()
                security.key_path.write_bytes(b"")
                with pytest.raises(RpcError):
                    await get(transport, new)
                security.key_path.write_bytes(whole)
                self.give(security, stranger)
                assert (await get(transport, new)).status == 200
                old.answers.set()

            assert under_way == [200]
            assert new.open == 1
            await old.is_left()
        await transport.aclose()

    async def test_material_that_cannot_be_used_is_refused(self, security: SecurityConfig) -> None:
        security.ca_path.write_bytes(b"")

        with pytest.raises(ConfigError):
            HttpxTransport(security)
