"""BatchCommands: many requests and answers on one stream.

A call registers itself under a fresh id, queues it and waits. One task sends: whatever was queued while it slept or
wrote goes out in the next message, so requests that become runnable in the same tick of the loop travel together
without any artificial wait. Another task receives and wakes the callers by id. A third fails the calls whose time ran
out; it sleeps until the earliest deadline, and calls that end in time cost it nothing.

A broken stream fails exactly the calls that were written to it; those still queued go out on the next one. Without a
connection everything queued fails at once, as certainly not sent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import attrs
from google.protobuf.message import Message
from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import Connection, Stream, Transport, Waiter
from tikv_proto import services, tikvpb

from tikv_rpc.config import RpcConfig
from tikv_rpc.errors import expired
from tikv_rpc.request import batch_head

_Stream = Stream[tikvpb.BatchCommandsRequest, tikvpb.BatchCommandsResponse]
_Entry = tuple[Waiter[Any], str, float, float, bytes, bytes]
# Waiter, command field, deadline, seconds given, Context, payload.

_SCAN_PAUSE: Final = 2e-6
"""Seconds for each call in flight until the deadlines are looked through again: that takes a few percent of them."""


@attrs.frozen
class BatchStats:
    """Counters of one stream since it was made."""

    messages: int
    """Messages sent."""
    requests: int
    """Requests in them."""
    late: int
    """Answers that came after their caller had gone."""
    in_flight: int
    """Calls waiting for an answer now."""


class BatchClient:
    """The BatchCommands stream of one connection. `run` must be running for calls to be answered."""

    def __init__(self, transport: Transport, connection: Connection, config: RpcConfig) -> None:
        self._transport = transport
        self._connection = connection
        self._config = config
        self._next_id = 1
        self._entries: dict[int, _Entry] = {}
        self._queue: deque[int] = deque()
        self._last_written = 0
        self._earliest = math.inf
        self._sender_idle: Waiter[None] | None = None
        self._expirer_idle: Waiter[None] | None = None
        self._messages = self._requests = self._late = 0

    async def call(self, batch_field: str, context: bytes, payload: bytes, deadline: float, timeout: float) -> Any:
        """Send one command and return its response message.

        Args:
            batch_field: Field of BatchCommandsRequest.Request that carries it.
            context: Field 1 of the request, as bytes.
            payload: The rest of the request, as bytes.
            deadline: When to give up, on the transport's clock.
            timeout: The seconds until then, for the error.

        Raises:
            RpcError: the stream broke or the deadline passed; `sent` says whether the store may have seen the request.

        Cancellation: the answer, should one come, is dropped; a request not written yet never is.
        """
        number = self._next_id
        self._next_id = number + 1
        waiter: Waiter[Any] = self._transport.waiter()
        self._entries[number] = (waiter, batch_field, deadline, timeout, context, payload)
        self._queue.append(number)
        if self._sender_idle is not None:
            _wake(self._sender_idle)
            self._sender_idle = None
        if deadline < self._earliest:
            self._earliest = deadline
            if self._expirer_idle is not None:
                _wake(self._expirer_idle)
                self._expirer_idle = None
        try:
            return await waiter
        except BaseException:
            self._entries.pop(number, None)
            self._tidy()
            raise

    def stats(self) -> BatchStats:
        """Return the counters."""
        return BatchStats(self._messages, self._requests, self._late, len(self._entries))

    async def run(self) -> None:
        """Serve calls until cancelled; then every call still waiting fails. Whatever a store does raises nothing."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._expire)
                while True:
                    await self._queued()
                    try:
                        await self._connection.ready(timeout=self._config.connect_timeout)
                        stream = self._connection.stream(services.Tikv.BatchCommands)
                    except Exception as error:
                        self._fail(self._failure(error), everything=True)
                    else:
                        self._fail(await self._serve(stream), everything=False)
        finally:
            closed = RpcError(self._connection.address, "BatchCommands", "CANCELLED", "the connection was closed")
            self._fail(closed, everything=True)

    async def _serve(self, stream: _Stream) -> RpcError:
        """Send and receive on one stream until it breaks, and return why."""
        reasons: list[RpcError] = []

        async def until_broken(loop: Callable[[_Stream], Awaitable[None]], scope: anyio.CancelScope) -> None:
            try:
                await loop(stream)
            except Exception as error:
                reasons.append(self._failure(error))
                scope.cancel()

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(until_broken, self._send, tasks.cancel_scope)
                tasks.start_soon(until_broken, self._receive, tasks.cancel_scope)
        finally:
            stream.cancel()
        return reasons[0]

    def _failure(self, error: Exception) -> RpcError:
        """Return why a stream broke, also when it was by an answer that makes no sense."""
        if isinstance(error, RpcError):
            return error
        failure = RpcError(self._connection.address, "BatchCommands", "INTERNAL", f"{type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure

    async def _queued(self) -> None:
        """Wait until something is queued."""
        while not self._queue:
            self._sender_idle = self._transport.waiter()
            await self._sender_idle

    async def _send(self, stream: _Stream) -> None:
        while True:
            await self._queued()
            message = self._next_message()
            if message:
                await stream.send(message)

    def _next_message(self) -> bytes:
        """Take what fits from the queue, less what was cancelled or expired there, as one serialized message."""
        parts: list[bytes] = []
        numbers: list[int] = []
        size = 0
        queue, entries = self._queue, self._entries
        while queue and len(numbers) < self._config.max_batch_size and size < self._config.max_batch_bytes:
            number = queue.popleft()
            entry = entries.get(number)
            if entry is not None:
                _, batch_field, _, _, context, payload = entry
                length = len(context) + len(payload)
                parts += (batch_head(batch_field, length), context, payload)
                numbers.append(number)
                size += length
        if not numbers:
            return b""
        # From here on the store may have seen them, whatever comes of the write.
        self._last_written = numbers[-1]
        self._messages += 1
        self._requests += len(numbers)
        parts.append(tikvpb.BatchCommandsRequest(request_ids=numbers).SerializeToString())
        return b"".join(parts)

    async def _receive(self, stream: _Stream) -> None:
        entries = self._entries
        while True:
            answer = await stream.receive()
            for number, response in zip(answer.request_ids, answer.responses, strict=True):
                entry = entries.pop(number, None)
                if entry is None:
                    self._late += 1
                    continue
                waiter, batch_field, _, _, _, _ = entry
                if waiter.done():
                    self._late += 1
                elif response.HasField(batch_field):  # type: ignore[arg-type]  # any name of the oneof
                    waiter.set_result(getattr(response, batch_field))
                else:
                    waiter.set_exception(self._unanswered(batch_field, response))

    def _unanswered(self, batch_field: str, response: Message) -> RpcError:
        """Return the error for an answer of another kind than the question.

        A store that does not know a command answers it with nothing. Source: TiKV server/service/kv.rs.
        """
        address, found = self._connection.address, response.WhichOneof("cmd")
        if found is None:
            return RpcError(address, batch_field, "UNIMPLEMENTED", "the store does not know this command")
        return RpcError(address, batch_field, "INTERNAL", f"the store answered a batched {batch_field} with {found}")

    async def _expire(self) -> None:
        """Fail the calls whose deadline has passed, each on time."""
        while True:
            wait = self._earliest - self._transport.now()
            if wait > 0:
                self._expirer_idle = self._transport.waiter()
                with anyio.move_on_after(None if wait == math.inf else wait):
                    await self._expirer_idle
                self._expirer_idle = None
                continue
            now = self._transport.now()
            over = [number for number, entry in self._entries.items() if entry[2] <= now]
            for number in over:
                waiter, batch_field, _, timeout = self._entries.pop(number)[:4]
                sent = number <= self._last_written
                _throw(waiter, expired(self._connection.address, batch_field, timeout, sent=sent))
            self._tidy()
            earliest = min((entry[2] for entry in self._entries.values()), default=math.inf)
            self._earliest = max(earliest, now + len(self._entries) * _SCAN_PAUSE)

    def _tidy(self) -> None:
        """Keep the queue of a stream that takes nothing from filling up with calls that are gone."""
        if len(self._queue) > 2 * len(self._entries) + 64:
            self._queue = deque(number for number in self._queue if number in self._entries)

    def _fail(self, error: RpcError, *, everything: bool) -> None:
        """Fail the calls written so far, or all."""
        for number in [number for number in self._entries if everything or number <= self._last_written]:
            waiter, batch_field = self._entries.pop(number)[:2]
            sent = number <= self._last_written
            failure = RpcError(error.address, batch_field, error.code, error.details, sent=sent)
            failure.__cause__ = error.__cause__
            _throw(waiter, failure)
        if everything:
            self._queue.clear()


def _wake(waiter: Waiter[None]) -> None:
    """Wake a task that waits; one that was cancelled in this tick is left alone."""
    if not waiter.done():
        waiter.set_result(None)


def _throw(waiter: Waiter[Any], error: RpcError) -> None:
    """Wake a task with an error; one that was cancelled in this tick is left alone."""
    if not waiter.done():
        waiter.set_exception(error)
