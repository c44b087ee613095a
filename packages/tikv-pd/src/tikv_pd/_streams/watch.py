"""Watches: changes told as they happen, over a stream that is replaced whenever it breaks.

A feed knows what to ask for and what the answers mean; a `Watch` keeps a stream to the leader open for whoever iterates
over it. There is no task behind it: it reads when it is iterated over, one message at a time, and leaves the rest to
gRPC's flow control, so what PD tells never piles up here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

import anyio
from tikv_proto.services import Rpc

from tikv_pd._routing.calls import Calls
from tikv_pd._routing.members import header_error
from tikv_pd._routing.pursuit import Pursuit
from tikv_pd.backoff import Backoffer
from tikv_pd.deadline import Deadline
from tikv_pd.errors import ClosedError, PdError, RpcError
from tikv_pd.lowlevel import Stream

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_LOOK: Final = 1.0
"""Seconds between two looks at who leads: a member that was cut off from the others may stay silent for ever."""


class Feed(Protocol[T_co]):
    """What is watched, and how far it was told."""

    @property
    def rpc(self) -> Rpc[Any, Any]:
        """The RPC, which takes one request and answers with a stream of messages that have headers."""
        ...

    async def begin(self) -> None:
        """Settle from where on changes are told; called once."""
        ...

    def request(self) -> Any:
        """Return a request for what was not told yet."""
        ...

    def take(self, answer: Any) -> Iterable[T_co]:
        """Return what an answer tells, and remember that it was told."""
        ...


class Watch(AsyncIterator[T]):
    """Changes, as they happen, for ever: iterate over it, best inside `async with`, which begins and ends it.

    What happens after `async with` was entered is told; without it, what happens after the first step. When the stream
    breaks, or PD's leader moves, the watch goes on where it was, at the leader, as soon as there is one. It waits for
    that as long as it takes; a timeout is the caller's: `anyio.move_on_after`. Nothing is read ahead but one message.

    Several tasks may iterate over one watch: each change goes to one of them. A watch that is not used any more is to
    be closed, by `async with` or `aclose`; closing the client ends it, too.

    Raises, while iterating:
        DataCompacted: what comes next is gone from PD, because the watch began too far back or PD was away for too
            long. Load what there is, and watch from there.
        PdError: PD refused for good.
        ClusterMismatch: another cluster answers.
        ClosedError: the client was closed.

    Raises, on entering or at the first step:
        DeadlineExceeded: PD did not tell where it is within `PdConfig.operation_timeout`.

    Cancellation: safe. Iterating on goes on with the change after the last one returned.
    """

    def __init__(self, calls: Calls, feed: Feed[T]) -> None:
        self._calls = calls
        self._members = calls.members
        self._feed = feed
        self._has_begun = False
        self._is_closed = False
        self._told: deque[T] = deque()
        self._stream: Stream[Any, Any] | None = None
        self._address = ""
        self._opened_at = -math.inf
        self._pursuit: Pursuit | None = None
        self._reading = anyio.Lock(fast_acquire=True)
        self._scope: anyio.CancelScope | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Return the next change; ends once the watch was closed."""
        if self._told:
            return self._told.popleft()
        async with self._reading:
            while not self._told:
                if self._is_closed:
                    raise StopAsyncIteration
                with anyio.CancelScope() as self._scope:
                    await self._begin()
                    await self._read()
            return self._told.popleft()

    async def aclose(self) -> None:
        """End it: iterating ends, also for a task that waits for a change now. Harmless when it was closed before."""
        self._is_closed = True
        self._told.clear()
        self._drop()
        if self._scope is not None:
            self._scope.cancel()

    async def __aenter__(self) -> Self:
        async with self._reading:
            await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _begin(self) -> None:
        if not self._has_begun:
            await self._feed.begin()
            self._has_begun = True

    async def _read(self) -> None:
        """Take one message of the stream, or get over its end."""
        try:
            outcome = await self._receive(self._stream or await self._open())
        except RpcError as error:
            outcome = error
        except BaseException:
            # What was under way may be lost, and is asked for again.
            self._drop()
            raise
        if outcome is not None and not isinstance(outcome, RpcError):
            if not outcome.header.HasField("error"):
                self._pursuit = None
                self._told.extend(self._feed.take(outcome))
                return
            outcome = self._failure(header_error(self._feed.rpc.name, outcome.header))
        address = self._address
        self._drop()
        if outcome is not None and not self._is_closed:
            await self._pursue(address, outcome)

    async def _open(self) -> Stream[Any, Any]:
        self._address = self._members.leader
        self._stream = stream = self._members.connection(self._address).stream(self._feed.rpc)
        self._opened_at = self._calls.transport.now()
        request = self._feed.request()
        self._calls.sign(request)
        await stream.send(request)
        return stream

    async def _receive(self, stream: Stream[Any, Any]) -> Any:
        """Return a message, an RpcError when the stream broke, None when somebody else leads."""
        outcome: Any = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._leave_with_the_leader, tasks.cancel_scope)
            try:
                outcome = await stream.receive()
            except RpcError as error:
                outcome = error
            tasks.cancel_scope.cancel()
        return outcome

    async def _leave_with_the_leader(self, scope: anyio.CancelScope) -> None:
        try:
            while self._members.leader == self._address:  # noqa: ASYNC110  # moves of the leader have no event
                await anyio.sleep(_LOOK)
        except ClosedError:
            pass  # Whoever opens the next stream is told.
        scope.cancel()

    def _failure(self, error: PdError) -> PdError | RpcError:
        """Return what an error in a message means: of the kind without a name are those that pass."""
        if error.kind != "UNKNOWN":
            return error
        return RpcError(self._address, error.method, error.kind, error.message)

    async def _pursue(self, address: str, error: PdError | RpcError) -> None:
        now = self._calls.transport.now
        if self._pursuit is None or now() - self._opened_at > self._calls.config.timeout:
            # It worked until a moment ago, though there was nothing to tell.
            forever = Deadline(self._feed.rpc.name, math.inf, now)
            self._pursuit = Pursuit(self._members, Backoffer(forever, budget=math.inf))
        await self._pursuit.recover(address, error)

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()
