"""BatchCommands: many requests and answers on one stream.

A call registers itself under a fresh id, queues it and waits. One task sends: whatever was queued while it slept or
wrote goes out in the next message, so requests that become runnable in the same tick of the loop travel together
without any artificial wait. Another task receives and wakes the callers by id. A third fails the calls whose time ran
out; it sleeps until the earliest deadline, and calls that end in time cost it nothing.

A request is in one of two maps: queued, or sent once it is part of a message. A broken stream fails exactly what was
sent; what is queued goes out on the next one. Without a connection everything queued fails at once, as certainly not
sent. A stream that breaks again before it answered anything is not opened anew at once, and meanwhile calls fail
without one. To a store that does not offer BatchCommands, calls go one by one.

At most one message is in gRPC's hands; what waits for its turn belongs to callers, who wait with it, each until its own
deadline. So the memory for requests is bounded by how many calls a program makes at once.
"""

from __future__ import annotations

import functools
import math
import random
import sys
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any, Final, TypeAlias

import anyio
from google.protobuf.message import Message
from tikv_pd.backoff import TIKV_RPC
from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import Connection, Metadata, Stream, Transport, Waiter
from tikv_proto import services, tikvpb

from tikv_rpc._reports.stats import BatchStats as BatchStats
from tikv_rpc.config import RpcConfig
from tikv_rpc.errors import expired
from tikv_rpc.request import batch_head

OnFeedback: TypeAlias = Callable[[int, int, int], None]
"""Takes what a store says of its own health: its id, the number of the message, its slow score from 1 to 100."""
Unary: TypeAlias = Callable[[services.Rpc[Any, Any], bytes, float], Awaitable[Any]]
"""Sends one request without BatchCommands: the RPC, the serialized request, the deadline."""

_Stream = Stream[tikvpb.BatchCommandsRequest, tikvpb.BatchCommandsResponse]
_Entry = tuple[Waiter[Any], str, float, float, bytes, bytes]
# Waiter, command field, deadline, seconds given, Context, payload.

URGENT: Final = 10
"""Priority from which on requests ignore the limit of those in flight. Source: client-go highTaskPriority."""
_SCAN_PAUSE: Final = 2e-6
"""Seconds for each call in flight until the deadlines are looked through again: that takes a few percent of them."""
_DOWN_FOR: Final = 1.0
"""Seconds for which other connections are preferred to one that could not be made."""
_RNG: Final = random.Random()


class _NotOfferedError(Exception):
    """The store offers no BatchCommands."""


class BatchClient:
    """The BatchCommands stream of one connection. `run` must be running for calls to be answered.

    Args:
        transport: Knows the clock and how to wait.
        connection: Where streams are opened, one at a time.
        config: Limits.
        metadata: Sent along with each stream.
        unary: How to send requests to a store that does not offer BatchCommands; None lets them fail.
        on_feedback: Told what a store says of its own health.
        on_message: Called whenever a message is complete, before it is written.
    """

    def __init__(
        self,
        transport: Transport,
        connection: Connection,
        config: RpcConfig,
        *,
        metadata: Metadata = (),
        unary: Unary | None = None,
        on_feedback: OnFeedback | None = None,
        on_message: Callable[[], None] | None = None,
    ) -> None:
        self._transport = transport
        self._connection = connection
        self._config = config
        self._metadata = metadata
        self._unary = unary
        self._on_feedback = on_feedback
        self._on_message = on_message
        self._waiter = transport.waiters()
        self._limit = sys.maxsize if config.max_in_flight is None else config.max_in_flight
        self._next_id = 1
        self._queued: dict[int, _Entry] = {}
        self._preferred: dict[int, dict[int, _Entry]] = {}
        self._sent: dict[int, _Entry] = {}
        self._abandoned: set[int] = set()
        self._earliest = math.inf
        self._sender_idle: Waiter[None] | None = None
        self._expirer_idle: Waiter[None] | None = None
        self._serving: anyio.CancelScope | None = None
        self._ended = anyio.Event()
        self._ended.set()
        self._detour: Callable[[str, bytes, float], Awaitable[Any]] | None = None
        self._fruitless = 0
        self._down_until = -math.inf
        self._messages = self._requests = self._bytes = self._late = self._broken = 0

    async def call(
        self, batch_field: str, context: bytes, payload: bytes, deadline: float, timeout: float, priority: int = 0
    ) -> Any:
        """Send one command and return its response message.

        Args:
            batch_field: Field of BatchCommandsRequest.Request that carries it.
            context: Field 1 of the request, as bytes.
            payload: The rest of the request, as bytes.
            deadline: When to give up, on the transport's clock.
            timeout: The seconds until then, for the error.
            priority: The higher, the earlier it is sent; from `URGENT` on also beyond `RpcConfig.max_in_flight`.

        Raises:
            RpcError: the stream broke or the deadline passed; `sent` says whether the store may have seen the request.

        Cancellation: the answer, should one come, is dropped; a request not written yet never is.
        """
        if self._detour is not None:
            return await self._detour(batch_field, context + payload, deadline)
        number = self._next_id
        self._next_id = number + 1
        waiter = self._waiter()
        entry = (waiter, batch_field, deadline, timeout, context, payload)
        if priority:
            self._preferred.setdefault(priority, {})[number] = entry
        else:
            self._queued[number] = entry
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
        except _NotOfferedError:
            return await self._one_by_one(batch_field, context + payload, deadline)
        except BaseException:
            self._forget(number)
            raise

    @property
    def activity(self) -> int:
        """A number that changes with each call."""
        return self._next_id

    @property
    def is_busy(self) -> bool:
        """Whether calls wait, in the queue or for an answer."""
        return bool(self._sent or self._queued or any(self._preferred.values()))

    @property
    def is_down(self) -> bool:
        """Whether it could not reach the store a moment ago."""
        return self._transport.now() < self._down_until

    def stats(self) -> BatchStats:
        """Return the counters."""
        queued = len(self._queued) + sum(len(queue) for queue in self._preferred.values())
        return BatchStats(
            messages=self._messages,
            requests=self._requests,
            bytes_sent=self._bytes,
            late=self._late,
            in_flight=queued + len(self._sent),
            queued=queued,
            streams=int(self._serving is not None),
            reconnects=self._broken,
            unary=0,
        )

    def rest(self) -> anyio.Event:
        """End the stream, which nobody uses just now; the next call opens another.

        Returns:
            What is set once the stream has ended.
        """
        if self._detour == self._one_by_one:
            self._detour = None
        if self._serving is not None:
            self._serving.cancel()
        return self._ended

    async def run(self) -> None:
        """Serve calls until cancelled; then every call still waiting fails. Whatever a store does raises nothing."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._expire)
                while True:
                    await self._sendable()
                    try:
                        await self._connection.ready(timeout=self._config.connect_timeout)
                        stream = self._connection.stream(services.Tikv.BatchCommands, metadata=self._metadata)
                    except Exception as error:
                        self._down_until = self._transport.now() + _DOWN_FOR
                        self._fail_all(self._failure(error))
                    else:
                        await self._recover(await self._serve(stream))
        finally:
            self._detour = self._refuse
            self._fail_all(self._closed("BatchCommands"))

    async def _serve(self, stream: _Stream) -> RpcError | None:
        """Send and receive on one stream until it breaks, and return why; None when it was not used any more."""
        reasons: list[RpcError] = []

        async def until_broken(loop: Callable[[_Stream], Awaitable[None]], scope: anyio.CancelScope) -> None:
            try:
                await loop(stream)
            except Exception as error:
                reasons.append(self._failure(error))
                scope.cancel()

        self._fruitless += 1
        self._ended = anyio.Event()
        try:
            async with anyio.create_task_group() as tasks:
                self._serving = tasks.cancel_scope
                tasks.start_soon(until_broken, self._send, tasks.cancel_scope)
                tasks.start_soon(until_broken, self._receive, tasks.cancel_scope)
        finally:
            self._serving = None
            stream.cancel()
            self._ended.set()
        self._abandoned.clear()
        return reasons[0] if reasons else None

    async def _recover(self, failure: RpcError | None) -> None:
        """Fail what was sent on a stream that broke, and see to it that the next one does better."""
        if failure is None:
            self._fruitless = 0
            return
        self._broken += 1
        if failure.code == "UNIMPLEMENTED" and self._fruitless and self._unary is not None:
            self._fruitless = 0
            self._detour = self._one_by_one
            for entry in self._take_all():
                _throw(entry[0], _NotOfferedError())
            return
        self._fail_sent(failure)
        if self._fruitless > 1:
            # The layers above may know another store; this one is not asked for a while.
            until = self._transport.now() + TIKV_RPC.delay(self._fruitless - 2, _RNG)
            self._down_until = until
            if not failure.retryable:
                # What the store refused to others is no answer to calls that it has not seen.
                refused, failure = failure, RpcError(failure.address, failure.method, "UNAVAILABLE", str(failure))
                failure.__cause__ = refused
            while (left := until - self._transport.now()) > 0:
                self._fail_all(failure)
                with anyio.move_on_after(left):
                    await self._sendable()

    async def _one_by_one(self, batch_field: str, request: bytes, deadline: float) -> Any:
        """Send a request without a stream. When the connection is lost, the store may have learned of streams."""
        assert self._unary is not None
        try:
            return await self._unary(_rpc_of(batch_field), request, deadline)
        except RpcError as error:
            if error.code == "UNAVAILABLE" and self._detour == self._one_by_one:
                self._detour = None
            raise

    async def _refuse(self, batch_field: str, _request: bytes, _deadline: float) -> Any:
        raise self._closed(batch_field)

    def _closed(self, method: str) -> RpcError:
        return RpcError(self._connection.address, method, "CANCELLED", "the connection was closed", sent=False)

    def _failure(self, error: Exception) -> RpcError:
        """Return why a stream broke, also when it was by an answer that makes no sense."""
        # Frames would hold gRPC's call, and the call its socket, for as long as somebody keeps the error.
        error.__traceback__ = error.__context__ = None
        if error.__cause__ is not None:
            error.__cause__.__traceback__ = None
        if isinstance(error, RpcError):
            return error
        failure = RpcError(self._connection.address, "BatchCommands", "INTERNAL", f"{type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure

    async def _sendable(self) -> None:
        """Wait until something is queued that may be sent now."""
        while not self._may_send():
            self._sender_idle = self._waiter()
            await self._sender_idle

    def _may_send(self) -> bool:
        if len(self._sent) + len(self._abandoned) < self._limit:
            return bool(self._queued) or any(self._preferred.values())
        return any(queue for priority, queue in self._preferred.items() if priority >= URGENT)

    async def _send(self, stream: _Stream) -> None:
        while True:
            await self._sendable()
            if self._serving is None or self._serving.cancel_called:
                # This stream has ended in the same tick: what is queued goes out on the next one.
                return
            message = self._next_message()
            if self._on_message is not None:
                self._on_message()
            await stream.send(message)

    def _next_message(self) -> bytes:
        """Take from the queues what fits, the highest priority first, and return it as one serialized message."""
        parts: list[bytes] = []
        numbers: list[int] = []
        size = 0
        sent = self._sent
        room = self._limit - len(sent) - len(self._abandoned)
        most, most_bytes = self._config.max_batch_size, self._config.max_batch_bytes
        for priority in (*sorted(self._preferred, reverse=True), 0):
            queue = self._preferred[priority] if priority else self._queued
            first = len(numbers)
            limit = most - first if priority >= URGENT else min(most - first, max(room, 0))
            for number, (_, batch_field, _, _, context, payload) in islice(queue.items(), limit):
                if size >= most_bytes:
                    break
                length = len(context) + len(payload)
                parts += (batch_head(batch_field, length), context, payload)
                numbers.append(number)
                size += length
            # From here on the store may have seen them, whatever comes of the write.
            taken = len(numbers) - first
            room -= taken
            if taken == len(queue):
                sent.update(queue)
                queue.clear()
            else:
                for number in numbers[first:]:
                    sent[number] = queue.pop(number)
        parts.append(tikvpb.BatchCommandsRequest(request_ids=numbers).SerializeToString())
        message = b"".join(parts)
        self._messages += 1
        self._requests += len(numbers)
        self._bytes += len(message)
        return message

    async def _receive(self, stream: _Stream) -> None:
        sent = self._sent
        while True:
            answer = await stream.receive()
            self._fruitless = 0
            for number, response in zip(answer.request_ids, answer.responses, strict=True):
                entry = sent.pop(number, None)
                if entry is None:
                    self._late += 1
                    self._abandoned.discard(number)
                    continue
                waiter, batch_field, _, _, _, _ = entry
                if waiter.done():
                    self._late += 1
                elif response.HasField(batch_field):  # type: ignore[arg-type]  # any name of the oneof
                    waiter.set_result(getattr(response, batch_field))
                else:
                    waiter.set_exception(self._unanswered(batch_field, response))
            if self._sender_idle is not None and self._may_send():
                # What the limit held back.
                _wake(self._sender_idle)
                self._sender_idle = None
            if self._on_feedback is not None and answer.HasField("health_feedback"):
                feedback = answer.health_feedback
                self._on_feedback(feedback.store_id, feedback.feedback_seq_no, feedback.slow_score)

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
                self._expirer_idle = self._waiter()
                with anyio.move_on_after(None if wait == math.inf else wait):
                    await self._expirer_idle
                self._expirer_idle = None
                continue
            now = self._transport.now()
            earliest, waiting = math.inf, 0
            for entries in (self._sent, self._queued, *self._preferred.values()):
                over = [number for number, entry in entries.items() if entry[2] <= now]
                for number in over:
                    waiter, batch_field, _, timeout = entries[number][:4]
                    self._forget(number)
                    sent = entries is self._sent
                    _throw(waiter, expired(self._connection.address, batch_field, timeout, sent=sent))
                earliest = min((entry[2] for entry in entries.values()), default=earliest)
                waiting += len(entries)
            self._earliest = max(earliest, now + waiting * _SCAN_PAUSE)

    def _forget(self, number: int) -> None:
        """Drop a call that ended without an answer. A store goes on with what was sent: it counts as in flight."""
        if self._sent.pop(number, None) is not None:
            if self._limit != sys.maxsize:
                self._abandoned.add(number)
        elif self._queued.pop(number, None) is None:
            for queue in self._preferred.values():
                queue.pop(number, None)

    def _fail_sent(self, error: RpcError) -> None:
        entries = list(self._sent.values())
        self._sent.clear()
        for entry in entries:
            _fail(entry, error, sent=True)

    def _fail_all(self, error: RpcError) -> None:
        self._fail_sent(error)
        for entry in self._take_all():
            _fail(entry, error, sent=False)

    def _take_all(self) -> list[_Entry]:
        """Take every call out of the maps."""
        entries: list[_Entry] = []
        for queue in (self._sent, *self._preferred.values(), self._queued):
            entries += queue.values()
            queue.clear()
        return entries


@functools.cache
def _rpc_of(batch_field: str) -> services.Rpc[Any, Any]:
    return next(rpc for rpc in services.all_rpcs() if rpc.batch_field == batch_field)


def _fail(entry: _Entry, error: RpcError, *, sent: bool) -> None:
    failure = RpcError(error.address, entry[1], error.code, error.details, sent=sent)
    failure.__cause__ = error.__cause__
    _throw(entry[0], failure)


def _wake(waiter: Waiter[None]) -> None:
    """Wake a task that waits; one that was cancelled in this tick is left alone."""
    if not waiter.done():
        waiter.set_result(None)


def _throw(waiter: Waiter[Any], error: Exception) -> None:
    """Wake a task with an error; one that was cancelled in this tick is left alone."""
    if not waiter.done():
        waiter.set_exception(error)
