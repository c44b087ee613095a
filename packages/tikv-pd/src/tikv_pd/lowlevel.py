"""The transport seam: what every layer needs of gRPC, of the clock and of the event loop, and nothing more.

Above it, code is plain anyio and knows no gRPC; `tikv_pd.grpc_transport` is the real thing, `tikv_pd.testing` holds one
in memory that also runs on trio's virtual clock.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar

import anyio
import anyio.abc
from google.protobuf.message import Message
from tikv_proto.services import Rpc

from tikv_pd.config import HostMapping

Metadata: TypeAlias = Sequence[tuple[str, str]]
"""Key-value pairs sent along with an RPC."""

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)
Req_contra = TypeVar("Req_contra", bound=Message, contravariant=True)
Resp_co = TypeVar("Resp_co", bound=Message, covariant=True)
T = TypeVar("T")


def as_bytes(value: object, what: str) -> bytes:
    """Return bytes, a bytearray or a memoryview as bytes; TypeError, which says what to do, for anything else."""
    if type(value) is bytes:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    hint = f"; use {what}.encode()" if isinstance(value, str) else ""
    raise TypeError(f"{what} must be bytes, not {type(value).__name__}{hint}")


class Waiter(Protocol[T]):
    """A result that one task awaits and another sets; `asyncio.Future` is one."""

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the result; cancelling the wait makes the waiter done."""
        ...

    def done(self) -> bool:
        """Tell whether it has a result, an exception, or nobody waiting any more."""
        ...

    def set_result(self, result: T, /) -> None:
        """Wake the waiting task with a result."""
        ...

    def set_exception(self, exception: BaseException, /) -> None:
        """Wake the waiting task with an exception."""
        ...


class Stream(Protocol[Req_contra, Resp_co]):
    """Both ends of a bidirectional stream. One task sends, one receives."""

    async def send(self, request: Req_contra | bytes) -> None:
        """Write one message, or its serialized bytes; raises RpcError when the stream is broken."""
        ...

    async def receive(self) -> Resp_co:
        """Read one message; raises RpcError when the stream is broken or ended."""
        ...

    def cancel(self) -> None:
        """End the stream at once; sending and receiving fail from now on."""
        ...


class Connection(Protocol):
    """One connection to one server, made when first used."""

    @property
    def address(self) -> str:
        """Where it leads, `host:port`."""
        ...

    async def ready(self, *, timeout: float) -> None:
        """Wait until connected; raises RpcError as soon as connecting fails, or after `timeout` seconds."""
        ...

    async def unary(
        self, rpc: Rpc[Req, Resp], request: Req | bytes, *, timeout: float, metadata: Metadata = ()
    ) -> Resp:
        """Send one request, or its serialized bytes, and return the response.

        Raises RpcError when the call fails, also when `timeout` seconds pass.
        """
        ...

    def stream(self, rpc: Rpc[Req, Resp], *, metadata: Metadata = ()) -> Stream[Req, Resp]:
        """Open a stream; a failure to connect shows when it is used.

        An RPC that takes a single request is sent one, and nothing after it.
        """
        ...

    async def aclose(self) -> None:
        """Close the connection; what is under way on it fails with RpcError."""
        ...


class Transport(Protocol):
    """Makes connections, and knows the clock and how tasks wait for each other."""

    def connect(self, address: str, *, channel: int = 0) -> Connection:
        """Return a connection to `address`; different `channel` numbers never share a socket."""
        ...

    def now(self) -> float:
        """Return the time in seconds on a monotonic clock, the one waits follow."""
        ...

    def waiters(self) -> Callable[[], Waiter[Any]]:
        """Return what makes unset waiters for the event loop that runs now."""
        ...


class MappedTransport:
    """A transport that dials other addresses than servers advertise, as behind Docker or NAT.

    Args:
        inner: What to connect with.
        mapping: Advertised `host:port` → `host:port` to dial, as a mapping, in which addresses that are dialed as they
            are may be missing, or as a function.
    """

    def __init__(self, inner: Transport, mapping: HostMapping) -> None:
        self.inner = inner
        """What it connects with."""
        self.mapping = mapping
        """Where it leads."""

    def connect(self, address: str, *, channel: int = 0) -> Connection:
        """Return a connection to what `address` is mapped to; that is also the address in its errors."""
        return self.inner.connect(dialed(address, self.mapping), channel=channel)

    def now(self) -> float:
        """Return the inner transport's clock."""
        return self.inner.now()

    def waiters(self) -> Callable[[], Waiter[Any]]:
        """Return what makes waiters of the inner transport."""
        return self.inner.waiters()


def dialed(address: str, mapping: HostMapping | None) -> str:
    """Return where to dial a server that advertises `address`."""
    if mapping is None:
        return address
    return mapping(address) if callable(mapping) else mapping.get(address, address)


def map_hosts(transport: Transport, mapping: HostMapping | None) -> Transport:
    """Return a transport that follows `mapping`: the same one when there is none, or it does already.

    For every layer that makes connections: what a layer below wraps as well is mapped once.
    """
    if mapping is None or (isinstance(transport, MappedTransport) and transport.mapping is mapping):
        return transport
    return MappedTransport(transport, mapping)


class BackgroundTasks:
    """Tasks that live as long as an `async with` block and are cancelled when it ends.

    A task group for the inside of a client: what the block raises leaves it as it is, not wrapped in an ExceptionGroup,
    and so does the first failure of a task, which also ends the block.
    """

    def __init__(self) -> None:
        self._group: anyio.abc.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        return self

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """Run `function(*args)` in a task; only inside the block."""
        assert self._group is not None
        self._group.start_soon(function, *args)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        group, self._group = self._group, None
        assert group is not None
        group.cancel_scope.cancel()
        try:
            return await group.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as failures:
            # The block's own exception comes first: the caller can know nothing of the tasks.
            if error in failures.exceptions:
                return False
            raise failures.exceptions[0] from None
        except BaseException as raised:
            # Raised anew, it could become its own context: an AsyncExitStack that is left while another exception is
            # handled, as by a client that closes after it was cancelled, mends contexts so; anyio follows them forever.
            if raised is error:
                return False
            raise
