"""One call on its way from a thread into an event loop, and what the call has its thread do meanwhile.

The thread waits for a lock. The loop says what there is, an errand or the end, and then releases the lock, unless it is
released already; the thread takes the lock, and then looks. Whoever speaks need not know what the thread does now, and
nothing that is said is missed: what is said while the thread is busy, it finds when it waits again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from typing import Any, Generic, TypeVar

R = TypeVar("R")
T = TypeVar("T")


class Crossing(Generic[R]):
    """One call on its way. What the thread does is marked; everything else is done in the loop.

    Args:
        function: What is awaited in the loop, in a copy of the calling thread's context.
        args: Its positional arguments.
        kwargs: Its others.
    """

    __slots__ = (
        "__weakref__",
        "_asked",
        "args",
        "context",
        "errands",
        "error",
        "function",
        "is_given_up",
        "is_over",
        "kwargs",
        "result",
        "signal",
        "task",
    )

    result: R

    def __init__(
        self, function: Callable[..., Coroutine[Any, Any, R]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.context = copy_context()
        self.error: BaseException | None = None
        self.is_over = False
        """Whether there is a result or an error. The thread reads it."""
        self.is_given_up = False
        """Whether the thread has gone away."""
        self.task: asyncio.Task[None] | None = None
        self.errands: deque[Errand[Any]] | None = None
        """What the thread is to do next. It takes from it."""
        self._asked: set[asyncio.Future[None]] = set()
        # Taken by the thread, released by the loop.
        self.signal = threading.Lock()
        self.signal.acquire()

    def end(self, error: BaseException | None) -> None:
        """Let the thread go on, with the result or an error."""
        self.error = error
        self.is_over = True
        self._tell()

    def give_up(self) -> None:
        """End it for a thread that has gone away."""
        self.is_given_up = True
        if self.task is not None:
            self.task.cancel()
        for settled in self._asked:
            settled.cancel()

    def ask(self, function: Callable[[], T]) -> Awaitable[T]:
        """Have the thread call a function."""
        if self.errands is None:
            self.errands = deque()
        errand = Errand(function)
        if self.is_given_up:
            errand.settled.cancel()
        else:
            self._asked.add(errand.settled)
            errand.settled.add_done_callback(self._asked.discard)
            self.errands.append(errand)
            self._tell()
        return errand.outcome()

    def _tell(self) -> None:
        # Only the loop releases it, so nobody else does between the two.
        if self.signal.locked():
            self.signal.release()


class Errand(Generic[T]):
    """A function that the thread of a call is to run."""

    __slots__ = ("_error", "_function", "_result", "settled")

    _result: T

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._error: Exception | None = None
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once it is known in the loop what became of it, or that nobody wants to know."""

    def run(self) -> None:
        """Run the function, in the thread. What is no `Exception` means the thread, and ends its call."""
        if not self.settled.done():
            try:
                self._result = self._function()
            except Exception as error:
                self._error = error

    def settle(self) -> None:
        """Take what became of it."""
        if self.settled.done():
            self._error = None  # Its traceback holds this errand.
        else:
            self.settled.set_result(None)

    async def outcome(self) -> T:
        """Return what the function returned, or raise what it raised."""
        await self.settled
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            # The traceback holds this frame.
            del error
