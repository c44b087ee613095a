"""Metrics: what a client reports of its RPCs to whoever wants to count them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol

from tikv_proto.services import Rpc

from tikv_pd._routing.members import header_error
from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import Connection, Metadata, Req, Resp, Stream, Transport, Waiter


class PdObserver(Protocol):
    """Hears of every RPC to PD once it ended. Without one, RPCs are not measured at all."""

    def observe(self, rpc: str, address: str, seconds: float, outcome: str) -> None:
        """Take note of an RPC; called in the client's event loop, must be quick and must not raise.

        Args:
            rpc: Its name, such as `GetStore`. Each message of a stream, such as Tso, counts as one.
            address: Which member.
            seconds: How long it took. One that was cancelled is not reported.
            outcome: `OK`, the gRPC status code by name, or the kind of error that PD's answer carries.
        """
        ...


class ObservedTransport:
    """A transport that reports what its connections do.

    Args:
        inner: What to connect with.
        observer: Whom to report to.
    """

    def __init__(self, inner: Transport, observer: PdObserver) -> None:
        self._inner = inner
        self._observer = observer

    def connect(self, address: str, *, channel: int = 0) -> Connection:
        """Return a connection to `address` that reports."""
        return _ObservedConnection(self._inner.connect(address, channel=channel), self, self._observer)

    def now(self) -> float:
        """Return the inner transport's clock."""
        return self._inner.now()

    def waiters(self) -> Callable[[], Waiter[Any]]:
        """Return what makes waiters of the inner transport."""
        return self._inner.waiters()


class _ObservedConnection:
    """A connection that reports."""

    def __init__(self, inner: Connection, transport: ObservedTransport, observer: PdObserver) -> None:
        self._inner = inner
        self._now = transport.now
        self._observer = observer

    @property
    def address(self) -> str:
        """Where it leads."""
        return self._inner.address

    async def ready(self, *, timeout: float) -> None:
        """Wait until connected."""
        await self._inner.ready(timeout=timeout)

    async def unary(
        self, rpc: Rpc[Req, Resp], request: Req | bytes, *, timeout: float, metadata: Metadata = ()
    ) -> Resp:
        """Send one request and report how it went."""
        started = self._now()
        try:
            answer = await self._inner.unary(rpc, request, timeout=timeout, metadata=metadata)
        except RpcError as error:
            self._observer.observe(rpc.name, self.address, self._now() - started, error.code)
            raise
        self._observer.observe(rpc.name, self.address, self._now() - started, _outcome(rpc, answer))
        return answer

    def stream(self, rpc: Rpc[Req, Resp], *, metadata: Metadata = ()) -> Stream[Req, Resp]:
        """Open a stream that reports."""
        return _ObservedStream(self._inner.stream(rpc, metadata=metadata), rpc, self, self._now, self._observer)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._inner.aclose()


class _ObservedStream(Generic[Req, Resp]):
    """A stream whose answers come in the order of the requests, as all of PD's do, that reports each."""

    def __init__(
        self,
        inner: Stream[Req, Resp],
        rpc: Rpc[Req, Resp],
        connection: _ObservedConnection,
        now: Callable[[], float],
        observer: PdObserver,
    ) -> None:
        self._inner = inner
        self._rpc = rpc
        self._address = connection.address
        self._now = now
        self._observer = observer
        self._sent: deque[float] = deque()

    async def send(self, request: Req | bytes) -> None:
        """Write one message."""
        self._sent.append(self._now())
        await self._inner.send(request)

    async def receive(self) -> Resp:
        """Read one message, and report the request it answers; a break is reported for each that has no answer."""
        try:
            answer = await self._inner.receive()
        except RpcError as error:
            while self._sent:
                self._report(error.code)
            raise
        if self._sent:
            self._report(_outcome(self._rpc, answer))
        return answer

    def cancel(self) -> None:
        """End the stream."""
        self._inner.cancel()

    def _report(self, outcome: str) -> None:
        seconds = self._now() - self._sent.popleft()
        self._observer.observe(self._rpc.name, self._address, seconds, outcome)


def _outcome(rpc: Rpc[Any, Any], answer: Any) -> str:
    """Return `OK` or the kind of error in an answer."""
    fields = rpc.response.DESCRIPTOR.fields_by_name
    if "header" in fields and answer.header.HasField("error"):
        return header_error(rpc.name, answer.header).kind
    return "OK"
