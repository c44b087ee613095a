"""A port whose connections pass through this process byte by byte, and can be frozen and cut there.

gRPC lets nobody touch its connections. So it listens on a port of its own, behind this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct

from tikv_embedded.endpoint import Endpoint
from tikv_embedded.errors import PortInUseError
from tikv_embedded.rpc_handlers import Handler
from tikv_embedded.security import ServerSecurity

_CHUNK = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER, on, for no time."""


class RelayEndpoint(Endpoint):
    """An `Endpoint` whose connections can be frozen and cut.

    Args:
        host: Address to listen on.
        port: 0 takes a free one when first bound; later it is the same one again.
        security: TLS, which passes through untouched; None is none.
    """

    def __init__(self, host: str, port: int = 0, security: ServerSecurity | None = None) -> None:
        super().__init__(host, port, security)
        self._grpc = Endpoint(host, 0, security)
        self._socket: socket.socket | None = None
        self._listener: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._flowing = asyncio.Event()
        self._flowing.set()

    @property
    def open_connections(self) -> int:
        """How many connections clients have."""
        return len(self._connections)

    def freeze(self) -> None:
        """Let no byte through, in either direction; connections are accepted and stay open."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Let bytes through again, those that wait first."""
        self._flowing.set()

    def reset(self) -> int:
        """Cut all connections with a reset, and return how many."""
        for task, writer in self._connections.items():
            peer = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()
            task.cancel()
        return len(self._connections)

    def bind(self) -> None:
        """Take the port.

        Raises:
            PortInUseError: something else listens there, or the address is not of this machine.
            OptionError: the certificates cannot be used.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            self._socket = socket.create_server((self._host, self.port), family=family)
        except OSError as error:
            raise PortInUseError(f"cannot listen on {self.address}: {error.strerror}") from error
        self.port = self._socket.getsockname()[1]
        self._grpc.bind()

    async def start(self, handlers: list[Handler]) -> None:
        """Answer calls with `handlers`, and with a health service if none is among them; the port is bound already."""
        await self._grpc.start(handlers)
        self._listener = await asyncio.start_server(self._accept, sock=self._socket, ssl=self._tls())
        self.is_running = True

    async def stop(self, *, grace: float | None = None) -> None:
        """Refuse connections and cut those that are open, calls after `grace` seconds; harmless when stopped."""
        self.is_running = False
        if self._listener is not None:
            self._listener.close()
        elif self._socket is not None:
            self._socket.close()
        self._listener = self._socket = None
        await self._grpc.stop(grace=grace)
        for connection in self._connections:
            connection.cancel()
        while self._connections:
            await asyncio.wait(self._connections)

    def _tls(self) -> ssl.SSLContext | None:
        """Return TLS that ends at this port."""
        return None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        task.add_done_callback(self._connections.pop)
        try:
            # Whoever goes away, or sends what nobody understands, is not told why.
            with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError, ValueError):
                await self._flowing.wait()
                await self._serve(reader, writer)
        except asyncio.CancelledError:
            # `reset` and `stop` alone cancel this task, and asyncio 3.11 logs a connection that ends in this way.
            pass
        finally:
            await _close(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Deal with one connection."""
        await self._pass_on(b"", reader, writer)

    async def _pass_on(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect to gRPC, and copy `first` and all that follows, in both directions."""
        inner_reader, inner_writer = await asyncio.open_connection(self._host, self._grpc.port)
        try:
            inner_writer.write(first)
            copies = [
                asyncio.ensure_future(self._copy(reader, inner_writer)),
                asyncio.ensure_future(self._copy(inner_reader, writer)),
            ]
            try:
                # HTTP/2 has no half-closed connections: one end gone is both.
                await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for copy in copies:
                    copy.cancel()
                await asyncio.gather(*copies, return_exceptions=True)
        finally:
            await _close(inner_writer)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
