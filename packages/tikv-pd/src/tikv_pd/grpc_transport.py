"""The transport over grpc.aio: the only client module that touches gRPC.

grpc.aio runs on asyncio alone, and it breaks anyio's rules of cancellation in two ways that are healed here: it drops
the message by which a cancel scope knows its own cancellation, and it reports a call that died with its channel as a
cancellation of the task that awaits it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic
from weakref import WeakSet

import anyio
import anyio.lowlevel
import grpc
import grpc.aio
from google.protobuf.message import Message
from tikv_proto.services import Rpc

from tikv_pd._tls import MaterialOnDisk
from tikv_pd.channel import ChannelConfig, channel_arguments
from tikv_pd.config import SecurityConfig
from tikv_pd.errors import ConfigError, RpcError
from tikv_pd.lowlevel import Metadata, Req, Resp, Waiter

_SETTLED: Final = (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.SHUTDOWN)
"""A connected channel needs no handshake, a closed one gets none."""


class GrpcTransport:
    """Connections over grpc.aio.

    Args:
        security: TLS material; None for plain text. Its files are read again for each new connection, and when one
            is used that is not connected: replace them by renaming, and no restart is needed.
        config: Options of each connection; None for the defaults.

    Raises:
        ConfigError: the TLS material cannot be used.
    """

    def __init__(self, security: SecurityConfig | None = None, config: ChannelConfig | None = None) -> None:
        self._config = config or ChannelConfig()
        self._material = MaterialOnDisk(security) if security is not None else None
        self._streams: WeakSet[GrpcStream[Any, Any]] = WeakSet()

    def connect(self, address: str, *, channel: int = 0) -> GrpcConnection:
        """Return a connection to `address`. Nothing is dialed before its first use.

        Raises:
            ConfigError: asyncio does not run here.
        """
        del channel
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError(
                "gRPC knows no event loop but asyncio's; under trio use the blocking client, in a thread"
            ) from None
        return GrpcConnection(address, self._config, self._material, self._streams)

    now = staticmethod(time.monotonic)
    """The clock that asyncio's timers follow."""

    def waiters(self) -> Callable[[], Waiter[Any]]:
        """Return what makes futures of the running loop."""
        return asyncio.get_running_loop().create_future


# A call that is cancelled ends for its caller at once, and a moment later on the wire. If the event loop is closed in
# between, gRPC reports the end to a closed loop, from the next loop of the process: an exception there, or a crash
# (seen with grpcio 1.85). So a connection, once closed, waits for the ends of its calls. Those of streams show as
# tasks that end, until there are no more than streams running on other connections; those of another transport are not
# known, and not waited for long. The ends of unary calls do not show at all.
_STREAM_ENDS_WITHIN: Final = 0.1
"""Seconds."""
_CALL_ENDS_WITHIN: Final = 0.02
"""Seconds."""


def _awaited_ends() -> list[asyncio.Task[Any]]:
    """Return gRPC's tasks that wait for the end of a stream."""
    tasks = asyncio.all_tasks()
    return [task for task in tasks if "_status_once_received" in getattr(task.get_coro(), "__name__", "")]


class GrpcConnection:
    """One channel at a time. Callables are made once per RPC: making one costs more than using it."""

    def __init__(
        self,
        address: str,
        config: ChannelConfig,
        material: MaterialOnDisk | None,
        streams: WeakSet[GrpcStream[Any, Any]],
    ) -> None:
        self._address = address
        self._streams = streams
        self._own_streams: WeakSet[GrpcStream[Any, Any]] = WeakSet()
        self._options: list[tuple[str, Any]] = list(channel_arguments(config))
        self._compression = grpc.Compression.Gzip if config.compression == "gzip" else None
        self._on_disk = material
        self._material = material.current() if material is not None else None
        self._channel = self._dial()
        self._outdated: list[grpc.aio.Channel] = []
        self._unary: dict[str, grpc.aio.UnaryUnaryMultiCallable[Any, Any]] = {}
        self._cut_at = -math.inf
        self._waited_in_vain = False

    @property
    def address(self) -> str:
        """Where it leads."""
        return self._address

    def _dial(self) -> grpc.aio.Channel:
        if self._on_disk is None or self._material is None:
            return grpc.aio.insecure_channel(self._address, options=self._options, compression=self._compression)
        options, name = self._options, self._on_disk.security.server_name
        if name is not None:
            options = [*options, ("grpc.ssl_target_name_override", name)]
        credentials = grpc.ssl_channel_credentials(self._material.ca, self._material.key, self._material.cert)
        return grpc.aio.secure_channel(self._address, credentials, options=options, compression=self._compression)

    def _follow_rotation(self) -> None:
        """Change over to a new channel if this one is not connected and there is newer TLS material."""
        if self._on_disk is None or self._channel.get_state() in _SETTLED:
            return
        material = self._on_disk.current()
        if material != self._material:
            self._material = material
            self._outdated.append(self._channel)
            self._channel = self._dial()
            self._unary.clear()

    async def _close_outdated(self) -> None:
        while self._outdated:
            with anyio.CancelScope(shield=True):
                await self._outdated.pop().close()

    async def ready(self, *, timeout: float) -> None:
        """Wait until connected."""
        self._follow_rotation()
        await self._close_outdated()
        with anyio.move_on_after(timeout):
            while True:
                state = self._channel.get_state(try_to_connect=True)
                if state is grpc.ChannelConnectivity.READY:
                    return
                if state is grpc.ChannelConnectivity.SHUTDOWN:
                    raise RpcError(self._address, "connect", "CANCELLED", "the connection was closed", sent=False)
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    raise RpcError(self._address, "connect", "UNAVAILABLE", "cannot connect", sent=False)
                await self._state_other_than(state)
        raise RpcError(self._address, "connect", "UNAVAILABLE", f"not connected within {timeout:g} s", sent=False)

    async def _state_other_than(self, state: grpc.ChannelConnectivity) -> None:
        try:
            await self._channel.wait_for_state_change(state)
        except asyncio.CancelledError:
            self._waited_in_vain = True
            await anyio.lowlevel.checkpoint_if_cancelled()
            raise

    async def unary(
        self, rpc: Rpc[Req, Resp], request: Req | bytes, *, timeout: float, metadata: Metadata = ()
    ) -> Resp:
        """Send one request and return its response."""
        self._follow_rotation()
        await self._close_outdated()
        method = self._unary.get(rpc.path)
        if method is None:
            method = self._unary[rpc.path] = self._channel.unary_unary(
                rpc.path,
                request_serializer=_serialize,
                response_deserializer=rpc.response.FromString,
            )
        with _translated(self._address, rpc.name):
            # gRPC would take an infinite deadline for one that has passed.
            limit = timeout if timeout < math.inf else None
            call = method(request, timeout=limit, metadata=tuple(metadata))
            try:
                response: Resp = await call
            except asyncio.CancelledError:
                self._cut_at = time.monotonic()
                await _heal_cancellation(call, self._address, rpc.name)
                raise
            return response

    def stream(self, rpc: Rpc[Req, Resp], *, metadata: Metadata = ()) -> GrpcStream[Req, Resp]:
        """Open a bidirectional stream."""
        self._follow_rotation()
        with _translated(self._address, rpc.name):
            call = self._channel.stream_stream(
                rpc.path,
                request_serializer=_serialize,
                response_deserializer=rpc.response.FromString,
            )(metadata=tuple(metadata))
        stream: GrpcStream[Req, Resp] = GrpcStream(self._address, rpc.name, call, is_single=not rpc.client_streaming)
        self._streams.add(stream)
        self._own_streams.add(stream)
        return stream

    async def aclose(self) -> None:
        """Close the channel; calls under way fail."""
        await self._close_outdated()
        for stream in list(self._own_streams):
            # One that nobody uses just now would hold its socket.
            stream.cancel()
        await self._channel.close()
        if self._waited_in_vain:
            # What watched the channel's state ends with the channel.
            self._cut_at = time.monotonic()
        with anyio.CancelScope(shield=True):
            await self._own_ends()
            await anyio.sleep(max(self._cut_at + _CALL_ENDS_WITHIN - time.monotonic(), 0))

    async def _own_ends(self) -> None:
        until = time.monotonic() + _STREAM_ENDS_WITHIN
        while (left := until - time.monotonic()) > 0:
            ends = _awaited_ends()
            elsewhere = sum(stream.is_running for stream in self._streams if stream not in self._own_streams)
            if len(ends) <= elsewhere:
                return
            await asyncio.wait(ends, timeout=left, return_when=asyncio.FIRST_COMPLETED)


class GrpcStream(Generic[Req, Resp]):
    """A bidirectional call."""

    def __init__(
        self, address: str, name: str, call: grpc.aio.StreamStreamCall[Any, Resp], *, is_single: bool = False
    ) -> None:
        self._address = address
        self._name = name
        self._running: grpc.aio.StreamStreamCall[Any, Resp] | None = call
        self._is_single = is_single

    @property
    def is_running(self) -> bool:
        """Whether it was not cancelled."""
        return self._running is not None

    async def send(self, request: Req | bytes) -> None:
        """Write one message."""
        try:
            await self._call.write(request)
            if self._is_single:
                # grpc-go hands a single request on when no other can follow.
                await self._call.done_writing()
        except asyncio.CancelledError:
            await _heal_cancellation(self._call, self._address, self._name)
            raise
        except asyncio.InvalidStateError:
            # The call ended already: its status says why.
            raise await self._status() from None
        except grpc.aio.AioRpcError as error:
            raise _rpc_error(error, self._address, self._name) from error

    async def receive(self) -> Resp:
        """Read one message."""
        try:
            response = await self._call.read()
        except asyncio.CancelledError:
            await _heal_cancellation(self._call, self._address, self._name)
            raise
        except asyncio.InvalidStateError:
            raise await self._status() from None
        except grpc.aio.AioRpcError as error:
            raise _rpc_error(error, self._address, self._name) from error
        if response is grpc.aio.EOF:
            raise await self._status()
        return response  # type: ignore[return-value]  # the stubs do not narrow EOF away

    def cancel(self) -> None:
        """End the call."""
        if self._running is not None:
            self._running.cancel()
            # Whoever holds the call keeps its socket open, even when its channel is closed; and this stream may be held
            # for long, by the frames of a task that was cancelled, which anyio leaves in a cycle of references.
            self._running = None

    @property
    def _call(self) -> grpc.aio.StreamStreamCall[Any, Resp]:
        if self._running is None:
            raise RpcError(self._address, self._name, "CANCELLED", "the connection was closed")
        return self._running

    async def _status(self) -> RpcError:
        """Return why the stream ended, also when it ended well."""
        try:
            code, details = await self._call.code(), await self._call.details()
        except asyncio.CancelledError:
            await _heal_cancellation(self._call, self._address, self._name)
            raise
        if code is grpc.StatusCode.OK:
            return RpcError(self._address, self._name, "UNAVAILABLE", "the server ended the stream")
        return RpcError(self._address, self._name, code.name, details or "")


def _serialize(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


async def _heal_cancellation(call: grpc.aio.Call, address: str, name: str) -> None:
    """Raise what a CancelledError out of grpc.aio really means; return when this task was cancelled natively."""
    task = asyncio.current_task()
    if task is not None and task.cancelling() == 0 and call.cancelled():
        raise RpcError(address, name, "CANCELLED", "the connection was closed") from None
    await anyio.lowlevel.checkpoint_if_cancelled()


@contextmanager
def _translated(address: str, name: str) -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _rpc_error(error, address, name) from error
    except grpc.aio.UsageError as error:
        raise RpcError(address, name, "CANCELLED", "the connection was closed") from error
    except grpc.aio.InternalError as error:
        raise RpcError(address, name, "INTERNAL", str(error)) from error


def _rpc_error(error: grpc.aio.AioRpcError, address: str, name: str) -> RpcError:
    return RpcError(address, name, error.code().name, error.details() or "")
