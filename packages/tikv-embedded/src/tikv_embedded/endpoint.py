"""A gRPC server on one port, which can be stopped and started again."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from tikv_embedded.errors import PortInUseError
from tikv_embedded.health import ServerHealth
from tikv_embedded.rpc_handlers import Handler, generic_handlers
from tikv_embedded.security import ServerSecurity

_OPTIONS = (
    # TiKV limits neither side; grpcio would refuse requests above 4 MiB.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Otherwise two servers share a port silently, and each gets some of the connections.
    ("grpc.so_reuseport", 0),
    # Clients of TiKV ping every few seconds, idle ones too; gRPC would cut them off for pinging too much.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
)


_SETTLE = 0.02
"""Seconds that gRPC may take to report the last operation of a call whose task has ended."""


class _Calls(grpc.aio.ServerInterceptor):
    """Knows the tasks that answer calls: gRPC's `stop` returns while they are still being cancelled.

    A report that comes after the event loop was closed is an exception in the next loop of the process, or worse.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last_end = -_SETTLE

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Remember the task of a call that begins; gRPC runs this in it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return await continuation(handler_call_details)

    async def ended(self) -> None:
        """Return when no call is left, nor anything of it."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(self._last_end + _SETTLE - time.monotonic())

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._last_end = time.monotonic()


class Endpoint:
    """One port: bound first, so that its number is known, then served. It can be stopped and started again.

    Args:
        host: Address to listen on.
        port: 0 takes a free one when first bound; later it is the same one again.
        security: TLS; None is none.
    """

    def __init__(self, host: str, port: int = 0, security: ServerSecurity | None = None) -> None:
        self._host = host
        self._security = security
        self._server: grpc.aio.Server | None = None
        self._calls = _Calls()
        self.port = port
        self.is_running = False
        """Whether calls are answered."""

    @property
    def address(self) -> str:
        """host:port, with the brackets of an IPv6 host."""
        return f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"

    @property
    def url(self) -> str:
        """The address as an http or https URL, which is how PD tells addresses of its own."""
        return f"{'http' if self._security is None else 'https'}://{self.address}"

    def bind(self) -> None:
        """Take the port.

        Raises:
            PortInUseError: something else listens there, or the address is not of this machine.
            OptionError: the certificates cannot be used.
        """
        _probe(self._host, self.port)
        credentials = None if self._security is None else self._security.credentials()
        server = grpc.aio.server(options=_OPTIONS, interceptors=(self._calls,))
        try:
            self.port = (
                server.add_insecure_port(self.address)
                if credentials is None
                else server.add_secure_port(self.address, credentials)
            )
        except RuntimeError as error:
            raise PortInUseError(f"cannot listen on {self.address}") from error
        self._server = server

    async def start(self, handlers: list[Handler]) -> None:
        """Answer calls with `handlers`, and with a health service if none is among them; the port is bound already."""
        assert self._server is not None
        self._server.add_generic_rpc_handlers(generic_handlers([*ServerHealth().handlers(), *handlers]))
        await self._server.start()
        self.is_running = True

    async def stop(self, *, grace: float | None = None) -> None:
        """Refuse connections and cut the calls that are under way, after `grace` seconds; harmless when stopped."""
        server, self._server = self._server, None
        self.is_running = False
        if server is not None:
            await server.stop(grace=grace)
            await self._calls.ended()


def _probe(host: str, port: int) -> None:
    """Find a busy port out first: gRPC would also write a page about it to stderr."""
    if not port:
        return
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen()
        except OSError as error:
            raise PortInUseError(f"cannot listen on {host}:{port}: {error.strerror}") from error
