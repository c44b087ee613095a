"""One of the connections to a store: closed when nobody used it for a while, and another one when needed again."""

from __future__ import annotations

from collections.abc import Callable

from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import Connection, Metadata, Req, Resp, Stream
from tikv_proto.services import Rpc


class RecycledConnection:
    """A connection that is replaced after each `detach`, unnoticed by those who use it.

    Args:
        connect: Makes a connection, which is not dialed before its first use.
        on_connect: Called whenever one was made in place of one that was detached.
    """

    def __init__(self, connect: Callable[[], Connection], on_connect: Callable[[], None]) -> None:
        self._connect = connect
        self._on_connect = on_connect
        first = connect()
        self._inner: Connection | None = first
        self._address = first.address
        self._is_closed = False
        self.connects = 1
        """Connections made."""
        self.unary_calls = 0
        """Unary calls made."""
        self.unary_under_way = 0
        """Unary calls under way."""
        self._awaited = 0

    @property
    def address(self) -> str:
        """Where it leads."""
        return self._address

    @property
    def is_made(self) -> bool:
        """Whether there is a connection, which needs not be dialed yet."""
        return self._inner is not None

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for it to be connected, or a unary call is under way."""
        return self._awaited > 0 or self.unary_under_way > 0

    async def ready(self, *, timeout: float) -> None:
        """Wait until connected."""
        self._awaited += 1
        try:
            await self._current().ready(timeout=timeout)
        finally:
            self._awaited -= 1

    async def unary(
        self, rpc: Rpc[Req, Resp], request: Req | bytes, *, timeout: float, metadata: Metadata = ()
    ) -> Resp:
        """Send one request and return the response."""
        self.unary_calls += 1
        self.unary_under_way += 1
        try:
            return await self._current().unary(rpc, request, timeout=timeout, metadata=metadata)
        finally:
            self.unary_under_way -= 1

    def stream(self, rpc: Rpc[Req, Resp], *, metadata: Metadata = ()) -> Stream[Req, Resp]:
        """Open a stream. Only what is not used may be detached: the caller knows of its streams."""
        return self._current().stream(rpc, metadata=metadata)

    def detach(self) -> Connection | None:
        """Return the connection, to be closed; the next use makes another."""
        inner, self._inner = self._inner, None
        return inner

    async def aclose(self) -> None:
        """Close it for good; what is under way fails, and so does every later call."""
        self._is_closed = True
        if self._inner is not None:
            await self._inner.aclose()

    def _current(self) -> Connection:
        if self._inner is None:
            if self._is_closed:
                raise RpcError(self._address, "connect", "CANCELLED", "the connection was closed", sent=False)
            self._inner = self._connect()
            self.connects += 1
            self._on_connect()
        return self._inner
