"""The way of blocking code into a client that awaits: any thread calls, and waits for what becomes of it in the loop.

While a thread waits, the call may have it run what its caller passed, such as a generator: see `in_callers_thread`.
"""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

from tikv_pd import ClosedError, ConfigError, TikvError

from tikv_rpc.frontend.loop_thread import PROCESS, LoopThread

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_ORPHANED: Final = (
    "cannot be opened: this process was forked from one that had opened a client, and gRPC does not survive that; "
    "fork before the first client is opened, or start processes by `spawn` or `forkserver`"
)
_HELD_UP: Final = (
    "An event loop runs in the thread of this blocking call, which held it up meanwhile: nothing that the loop serves "
    "could answer. In a coroutine use the async client, or asyncio.to_thread."
)


class Portal:
    """Keeps a client open in the event loop of another thread, and calls it from there. Any thread may use it.

    A portal that is dropped while open warns, and closes.

    Args:
        client: The client, which nobody else opens.
        name: What it is called in errors.
    """

    def __init__(self, client: AbstractAsyncContextManager[Any], name: str) -> None:
        self._client = client
        self._name = name
        self._changing = threading.Lock()
        self._loop: LoopThread | None = None

    def open(self) -> None:
        """Open the client.

        Raises:
            ConfigError: it is open already.
            ClosedError: this process was forked from one that had opened a client.

        Whatever opening the client raises is raised. Interrupted, it is not open.
        """
        with self._changing:
            if self._loop is not None and not self._loop.is_over:
                raise ConfigError(f"this {self._name} is open already; share it, or make another")
            if PROCESS.is_orphaned:
                raise ClosedError(self._name, _ORPHANED)
            loop = LoopThread(self._client, self._name)
            PROCESS.use(loop)
            self._loop = loop
        try:
            loop.begin()
        except TikvError as error:
            _note_loop(error)
            raise

    def close(self) -> None:
        """Close the client; calls under way fail. Closing twice, or in the child of a fork, is fine.

        Raises:
            ConfigError: it is called in the client's own event loop.
        """
        if self._loop is not None:
            self._loop.end()

    def call(self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Await `function(*args, **kwargs)` in the client's loop, in a copy of this thread's context.

        What the function has done by `in_callers_thread` runs in this thread, which may call the portal again there.
        Interrupted, by Ctrl-C for example, it cancels the call and does not wait for its end.

        Raises:
            ClosedError: the client is not open.
            ConfigError: it is called in the client's own event loop, which would wait for itself.
        """
        if self._loop is None:
            raise ClosedError(self._name)
        try:
            return self._loop.call(function, args, kwargs)
        except TikvError as error:
            _note_loop(error)
            raise

    def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function that does not await, as `call` does: nothing else happens in the loop meanwhile."""

        async def run() -> R:
            return function(*args, **kwargs)

        return self.call(run)

    def __del__(self) -> None:
        # In whatever thread the collector runs, be it the loop's own: nothing is waited for.
        loop = getattr(self, "_loop", None)
        if loop is not None and not loop.is_over:
            warnings.warn(f"{self._name} was not closed", ResourceWarning, source=self, stacklevel=2)
            loop.stop()


class Pages(Iterator[T]):
    """Items of a portal's client that cross threads a page at a time. Several threads may share it.

    Args:
        portal: Where pages come from.
        turn: Returns the next page, and an empty one at the end.
        end: Ends what pages come from, also while a page is waited for.
    """

    def __init__(
        self,
        portal: Portal,
        turn: Callable[[], Coroutine[Any, Any, Sequence[T]]],
        end: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._portal = portal
        self._turn = turn
        self._end = end
        self._page: Iterator[T] = iter(())
        self._is_closed = False
        self._turning = threading.Lock()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while True:
            page = self._page
            for item in page:
                return item
            with self._turning:
                # No other thread turned the page meanwhile.
                if self._page is page and (self._is_closed or not self._portal.call(self._turn_from, page)):
                    raise StopIteration

    def close(self) -> None:
        """End it: nothing is fetched any more, iterating ends, also for a thread that waits for a page now."""
        self._is_closed = True
        self._page = iter(())
        with suppress(ClosedError):  # Then it has ended already.
            self._portal.call(self._end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _turn_from(self, page: Iterator[T]) -> bool:
        """Take the page after `page`; tell whether there may be one. In the loop, where no interruption loses it."""
        if self._page is page:
            following = await self._turn()
            if not following or self._is_closed:
                return False
            self._page = iter(following)
        return True


def _note_loop(error: TikvError) -> None:
    """Tell of an event loop that stood still while a call failed: perhaps what did not answer is served by it."""
    if not (error.retryable or error.undetermined):
        return
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        error.add_note(_HELD_UP)
