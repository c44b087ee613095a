"""One bidirectional stream to who is in charge, shared by everybody who asks the same kind of question.

Callers wait in a queue. A sender takes all of them at once and asks in one message; a receiver matches answers to
batches in order and hands them out. When the stream breaks, those still waiting go back to the front of the queue and
are served by the next stream, at who is in charge then: a caller sees a failure only when its own time is up, or
when no attempt could ever help. One task ends the calls whose time is up; it sleeps until the earliest deadline, and
calls that end in time cost it nothing.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

import anyio
import attrs
from google.protobuf.message import Message
from tikv_proto.services import Rpc

from tikv_pd._routing.members import header_error
from tikv_pd._routing.pursuit import Pursuit, Route
from tikv_pd._routing.ways import Way
from tikv_pd.backoff import PD_TSO, Backoffer
from tikv_pd.config import PdConfig
from tikv_pd.deadline import Deadline
from tikv_pd.errors import ClosedError, DeadlineExceeded, RpcError, TikvError
from tikv_pd.lowlevel import Stream, Transport, Waiter

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Question_contra = TypeVar("Question_contra", contravariant=True)
Answer_co = TypeVar("Answer_co", covariant=True)

_SCAN_PAUSE: Final = 2e-6
"""Seconds for each caller until the deadlines are looked through again: that takes a few percent of them."""

_Entry: TypeAlias = tuple[Waiter[Any], Any, float, str, float]
# Waiter, question, deadline, operation and seconds it was given: a tuple, as one is made for each call.


class Exchange(Protocol[Question_contra, Answer_co]):
    """What messages of a stream say: the part that differs from stream to stream."""

    @property
    def name(self) -> str:
        """Name of the RPC."""
        ...

    def begin(self, address: str) -> tuple[Rpc[Any, Any], Any]:
        """Return the RPC to call at an address, and the header of its requests; the answers have headers too."""
        ...

    def ask(
        self, questions: Sequence[Question_contra], header: Any
    ) -> tuple[Message, Callable[[Any], Sequence[Answer_co]]]:
        """Return a message that asks all of them, and what makes the answers, in their order, of what comes back.

        The latter raises ValueError when that message does not fit, TikvError when it is an answer nobody can use.
        """
        ...


class StreamRoute(Route, Protocol):
    """Who is in charge, and the way there, which may change while a stream runs."""

    def way(self) -> Way:
        """Return the way to who is in charge."""
        ...

    def failed(self, way: Way, error: TikvError) -> TikvError:
        """Take note of how a stream on a way ended, and return that as the failure of who is in charge."""
        ...


@attrs.define(eq=False)
class _Batch:
    """Those whose questions one message asks."""

    entries: list[_Entry]
    answers: Callable[[Any], Sequence[Any]]
    sent_at: float


class SharedStream(Generic[Question, Answer]):
    """The shared stream; `run` serves those who `ask`.

    Args:
        exchange: What the messages say.
        route: Who is in charge, and the way there.
        transport: The clock and the waiters.
        config: How patient to be.
        max_batch: Questions in one message at most.
        in_flight: Messages sent and not answered at most; meanwhile callers gather for the next one.
    """

    def __init__(
        self,
        exchange: Exchange[Question, Answer],
        route: StreamRoute,
        transport: Transport,
        config: PdConfig,
        *,
        max_batch: int,
        in_flight: int,
    ) -> None:
        self._exchange = exchange
        self._route = route
        self._transport = transport
        self._waiter = transport.waiters()
        self._now = transport.now
        self._config = config
        self._max_batch = max_batch
        self._max_in_flight = in_flight
        self._waiting: list[_Entry] = []
        self._in_flight: deque[_Batch] = deque()
        self._abandoned = 0
        self._earliest = math.inf
        self._pursuit = self._new_pursuit()
        self._sleeper: Waiter[None] | None = None
        self._expirer: Waiter[None] | None = None
        self._scope = anyio.CancelScope()
        self._has_ended = False

    async def ask(self, question: Question, operation: str, timeout: float, *, of: float | None = None) -> Answer:
        """Return the answer to a question that is sent after this call began.

        Args:
            question: The question.
            operation: What it is asked for.
            timeout: Seconds until the answer must be there.
            of: Seconds the whole operation was given, for the error; `timeout` if this is all there is of it.

        Raises:
            DeadlineExceeded: none came within `timeout` seconds; `__cause__` is the last failure.
            ClosedError: the client was closed.
            PdError: PD refused it for good.
        """
        now = self._now()
        at = now + timeout
        if not at > now:  # Also when it is not a number.
            raise DeadlineExceeded(operation, timeout if of is None else of)
        if self._has_ended:
            raise ClosedError("PdClient")
        waiter = self._waiter()
        self._waiting.append((waiter, question, at, operation, timeout if of is None else of))
        if self._sleeper is not None:
            self._wake()
        if at < self._earliest:
            self._earliest = at
            _wake(self._expirer)
            self._expirer = None
        try:
            outcome: Answer | TikvError = await waiter
        except BaseException:
            self._tidy()
            raise
        if isinstance(outcome, TikvError):
            raise outcome
        return outcome

    async def run(self) -> None:
        """Serve the callers until cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._expire)
                while True:
                    while not self._waiting:
                        await self._sleep()
                    way = self._route.way()
                    error = await self._serve(way)
                    self._take_back()
                    if error is not None:
                        try:
                            await self._pursuit.recover(way.target, self._route.failed(way, error))
                        except TikvError as end:
                            self._end_all(end)
        finally:
            self._has_ended = True
            self._take_back()
            self._end_all(ClosedError("PdClient"))

    def _new_pursuit(self) -> Pursuit:
        forever = Deadline(self._exchange.name, math.inf, self._transport.now)
        return Pursuit(self._route, Backoffer(forever, budget=math.inf), PD_TSO)

    async def _serve(self, way: Way) -> TikvError | None:
        """Run one stream until it fails; return why, None when there is a better way."""
        rpc, header = self._exchange.begin(way.target)
        stream = self._route.connection(way.address).stream(rpc, metadata=way.metadata)
        ends: list[TikvError | None] = []

        async def run_half(half: Callable[..., Awaitable[None]], *args: Any) -> None:
            try:
                await half(way, stream, *args)
            except TikvError as error:
                ends.append(error)
            else:
                ends.append(None)
            tasks.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                tasks.start_soon(run_half, self._receive)
                tasks.start_soon(run_half, self._send, header)
        finally:
            stream.cancel()
        if not ends:
            timeout = self._config.timeout
            return RpcError(way.address, rpc.name, "DEADLINE_EXCEEDED", f"no answer within {timeout:g} s")
        return ends[0]

    async def _send(self, way: Way, stream: Stream[Any, Any], header: Any) -> None:
        while self._route.way() == way:
            if not self._waiting or len(self._in_flight) >= self._max_in_flight:
                await self._sleep()
                continue
            entries, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            entries = [entry for entry in entries if not entry[0].done()]
            if entries:
                message, answers = self._exchange.ask([entry[1] for entry in entries], header)
                self._in_flight.append(_Batch(entries, answers, self._now()))
                self._watch()
                await stream.send(message)

    async def _receive(self, way: Way, stream: Stream[Any, Any]) -> None:
        name, address = self._exchange.name, way.address
        while True:
            answer = await stream.receive()
            if answer.header.HasField("error"):
                raise header_error(name, answer.header)
            if not self._in_flight:
                raise RpcError(address, name, "INTERNAL", "an answer came that nobody asked for")
            batch = self._in_flight[0]
            try:
                answers = batch.answers(answer)
            except ValueError as error:
                raise RpcError(address, name, "INTERNAL", str(error)) from error
            del self._in_flight[0]
            self._watch()
            self._wake()
            if self._pursuit.failure is not None:
                self._pursuit = self._new_pursuit()
            for entry, each in zip(batch.entries, answers, strict=True):
                waiter = entry[0]
                if not waiter.done():
                    waiter.set_result(each)

    async def _expire(self) -> None:
        """End the calls whose time is up, each on time."""
        while True:
            wait = self._earliest - self._now()
            if wait > 0:
                self._expirer = self._waiter()
                with anyio.move_on_after(None if wait == math.inf else wait):
                    await self._expirer
                self._expirer = None
                continue
            now = self._now()
            count, earliest = 0, math.inf
            for waiter, _, at, operation, timeout in self._entries():
                if waiter.done():
                    continue
                if at <= now:
                    error = DeadlineExceeded(operation, timeout)
                    error.__cause__ = self._pursuit.failure
                    waiter.set_result(error)
                else:
                    count, earliest = count + 1, min(earliest, at)
            self._drop_done()
            self._earliest = max(earliest, now + count * _SCAN_PAUSE)

    def _entries(self) -> Iterator[_Entry]:
        for batch in self._in_flight:
            yield from batch.entries
        yield from self._waiting

    def _tidy(self) -> None:
        """Keep the queue of a stream that takes nothing from filling up with calls that are gone."""
        self._abandoned += 1
        if self._abandoned > 64 + len(self._waiting) // 2:
            self._drop_done()

    def _drop_done(self) -> None:
        self._abandoned = 0
        self._waiting = [entry for entry in self._waiting if not entry[0].done()]

    def _watch(self) -> None:
        """End the stream when the oldest message gets no answer in time."""
        oldest = self._in_flight[0].sent_at if self._in_flight else math.inf
        # The scope counts on anyio's clock, which is the transport's up to its origin.
        self._scope.deadline = oldest + self._config.timeout - self._now() + anyio.current_time()

    def _take_back(self) -> None:
        """Put those whose messages got no answer in front of those who were not served yet."""
        entries = list(self._entries())
        self._in_flight.clear()
        self._waiting = entries
        self._drop_done()

    def _end_all(self, error: TikvError) -> None:
        waiting, self._waiting = self._waiting, []
        for entry in waiting:
            # Several callers share the outcome; each raises one of its own.
            own = copy.copy(error)
            own.__cause__ = error.__cause__
            if not entry[0].done():
                entry[0].set_result(own)

    async def _sleep(self) -> None:
        self._sleeper = self._waiter()
        try:
            await self._sleeper
        finally:
            self._sleeper = None

    def _wake(self) -> None:
        _wake(self._sleeper)
        self._sleeper = None


def _wake(waiter: Waiter[None] | None) -> None:
    """Wake a task that waits; one that was cancelled meanwhile is left alone."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
