"""The way of blocking code into a client that awaits: an event loop in a thread of its own, where the client is open.

A call crosses threads twice. Its thread queues it and wakes the loop, unless the loop is to wake up anyway: calls of
many threads share a wake-up, and whatever they ask of one store shares a message. The loop runs it in a task, which
stores the outcome and releases the lock that the calling thread waits for; a lock costs a fraction of the condition
and the callbacks of a `concurrent.futures.Future`. While the thread waits, the task may have it run what its caller
passed, such as a generator: see `in_callers_thread`.

    thread        queued -> waits, does errands -> has its outcome, or was interrupted: the task is cancelled, nobody
                  waits for it
    loop          opening -> serving -> closing -> over: what is queued from now on is refused

A process that forks keeps neither thread nor sockets in the child, which is told so; and gRPC, once it runs, does not
survive a fork at all (seen with 1.85: the child crashes or hangs), so the child cannot open another either. A process
that exits ends the loop once its own threads have ended, before the interpreter takes itself apart under a running
thread.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar
from weakref import WeakSet, ref

from tikv_pd import ClosedError, ConfigError, TikvError

from tikv_rpc.frontend.callers import CALLER
from tikv_rpc.frontend.crossing import Crossing

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_CALLS_END_WITHIN: Final = 1.0
"""Seconds that calls under way are given to fail in their own way once the client is closed."""
_EXIT_WITHIN: Final = 5.0
"""Seconds that the exit of a program waits for a client that was not closed."""
_SIGNALS_WITHIN: Final = 0.5
"""Seconds after which a waiting thread looks for signals: one that comes just before a thread begins to wait for a lock
does not wake it (seen with 3.11: one Ctrl-C in 300 on a busy machine)."""
_FORKED: Final = "was opened before this process was forked, and works in the parent only; open it after the fork"
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
        self._loop: _LoopThread | None = None

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
            if _PROCESS.is_orphaned:
                raise ClosedError(self._name, _ORPHANED)
            loop = _LoopThread(self._client, self._name)
            _PROCESS.use(loop)
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


class _LoopThread:
    """One opening of a client, from its beginning to its end."""

    def __init__(self, client: AbstractAsyncContextManager[Any], name: str) -> None:
        self.is_over = False
        """Whether nothing can be called any more."""
        self.is_lost = False
        """Whether this process is a child of the one that has the thread."""
        # A thread that is no daemon would be waited for before anybody could tell it to end.
        self.thread = threading.Thread(target=self._run, name=f"{name} loop", daemon=True)
        """Where the loop runs."""
        self._client = client
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[Crossing[Any]] = deque()
        self._is_woken = True  # Until the client is open, and the queue looked into for the first time.
        self._under_way: set[Crossing[Any]] = set()
        self._halt: asyncio.Future[None] | None = None
        self._opening: asyncio.Task[Any] | None = None
        self._is_stopping = False
        self._is_open = False
        self._settled = threading.Event()
        self._failure: BaseException | None = None

    def begin(self) -> None:
        """Return once the client is open; raise what opening it raised, or ClosedError if it was closed meanwhile."""
        try:
            self.thread.start()
            while not self._settled.wait(_SIGNALS_WITHIN):
                pass
        except BaseException:
            self.stop()
            self._join()
            self.is_over = True
            raise
        if not self._is_open:
            self._join()
            self._raise_failure()
            raise ClosedError(self._name)

    def end(self) -> None:
        """Close the client and wait for the end of the thread; raise what closing it raised, the first time."""
        if self.is_lost:
            return
        self._check_thread()
        self.stop()
        self._join()
        self._raise_failure()

    def stop(self) -> None:
        """Have the client closed soon."""
        self._is_stopping = True
        self._in_loop(self._stop)

    def exit(self) -> None:
        """Close the client at the end of the program, whatever state it is in."""
        if not self.is_lost:
            self.stop()
            self._join(_EXIT_WITHIN)

    def lose(self) -> None:
        """Give up: this is a child process, which has no such thread."""
        self.is_lost = self.is_over = True

    def call(self, function: Callable[..., Coroutine[Any, Any, R]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        """Run a coroutine function in the loop and return what it returns."""
        self._check_thread()
        if self._is_stopping or self.is_over:
            raise self._closed()
        crossing = Crossing(function, args, kwargs)
        try:
            self._queue.append(crossing)
            if self.is_over:  # It is over before it refuses what is queued, so either side sees the other.
                raise self._closed()
            if not self._is_woken:
                self._is_woken = True
                self._in_loop(self._take_queue)
            while not crossing.is_over:
                if crossing.signal.acquire(timeout=_SIGNALS_WITHIN) and crossing.errands:
                    self._do_errands(crossing)
        except BaseException:
            self._in_loop(self._give_up, crossing)
            raise
        error, crossing.error = crossing.error, None
        if error is None:
            return crossing.result
        try:
            raise error
        finally:
            # The traceback holds this frame, and those of errands that hold the crossing.
            del error, crossing

    def _do_errands(self, crossing: Crossing[Any]) -> None:
        """Do what a call has its thread do, as far as it has asked by now."""
        errands = crossing.errands
        while errands and not crossing.is_over:
            errand = errands.popleft()
            errand.run()
            if self.is_lost:  # The process was forked by it, and nobody here ends the call.
                raise self._closed()
            self._in_loop(errand.settle)

    def _join(self, timeout: float | None = None) -> None:
        with suppress(RuntimeError):  # It was interrupted before it started, and ends as soon as it does.
            self.thread.join(timeout)

    def _check_thread(self) -> None:
        if threading.get_ident() == self.thread.ident:
            raise ConfigError(
                f"{self._name} was called in its own event loop, which cannot wait for itself; "
                "an interceptor or observer that needs a client uses another one, or another thread"
            )

    def _closed(self) -> ClosedError:
        return ClosedError(self._name, _FORKED) if self.is_lost else ClosedError(self._name)

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure

    def _in_loop(self, function: Callable[..., None], *args: Any) -> None:
        """Have something done in the loop, if there still is one."""
        if self._loop is not None and not self.is_over:
            with suppress(RuntimeError):  # It was closed in this very moment.
                self._loop.call_soon_threadsafe(function, *args)

    def _run(self) -> None:
        _mark_as_asyncio()
        try:
            # Not uvloop: behind many threads it was a third slower, and for one thread 40 µs of 350 faster.
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
                runner.run(self._serve())
        except asyncio.CancelledError as error:
            if not self._is_stopping:
                self._failure = error
        except BaseException as error:
            self._failure = error
        finally:
            self.is_over = True
            for crossing in self._under_way:
                crossing.end(self._closed())
            while self._queue:
                self._queue.popleft().end(self._closed())
            self._settled.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._halt = self._loop.create_future()
        self._opening = asyncio.current_task()
        if self._is_stopping:  # Nobody could tell the loop.
            return
        try:
            async with self._client:
                self._opening = None
                self._is_open = True
                self._settled.set()
                self._take_queue()
                await self._halt
        finally:
            await self._end_calls()

    async def _end_calls(self) -> None:
        """Let the calls under way fail, as they do once the client is closed, and cancel those that do not."""
        tasks = [crossing.task for crossing in self._under_way if crossing.task is not None]
        if tasks:
            _, unfinished = await asyncio.wait(tasks, timeout=_CALLS_END_WITHIN)
            for task in unfinished:
                task.cancel()

    def _stop(self) -> None:
        if self._halt is not None and not self._halt.done():
            self._halt.set_result(None)
            if self._opening is not None:
                self._opening.cancel()

    def _take_queue(self) -> None:
        assert self._loop is not None
        self._is_woken = False
        queue = self._queue
        while queue:
            crossing = queue.popleft()
            if not crossing.is_given_up:
                self._under_way.add(crossing)
                crossing.task = self._loop.create_task(self._answer(crossing), context=crossing.context)

    def _give_up(self, crossing: Crossing[Any]) -> None:
        crossing.give_up()
        # A task that is cancelled before its first step does nothing of what it should, not even in the end.
        self._under_way.discard(crossing)
        # The interruption may have come between the decision to wake the loop and the deed.
        self._take_queue()

    async def _answer(self, crossing: Crossing[Any]) -> None:
        outcome: BaseException | None = None
        try:
            # Tasks that outlive the call may inherit its context: they do not keep what it was about.
            CALLER.set(ref(crossing))
            crossing.result = await crossing.function(*crossing.args, **crossing.kwargs)
        except asyncio.CancelledError:
            outcome = self._closed()
        except BaseException as error:
            outcome = error
        finally:
            self._under_way.discard(crossing)
            crossing.end(outcome)
            # The error's traceback holds this frame.
            del crossing, outcome


def _note_loop(error: TikvError) -> None:
    """Tell of an event loop that stood still while a call failed: perhaps what did not answer is served by it."""
    if not (error.retryable or error.undetermined):
        return
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        error.add_note(_HELD_UP)


def _mark_as_asyncio() -> None:
    """Have anyio find asyncio in this thread, also when a call brings the context of a thread that runs trio."""
    with suppress(ImportError):
        from sniffio import thread_local  # noqa: PLC0415  # it is there if trio is

        thread_local.name = "asyncio"


class _Process:
    """What this process has opened."""

    def __init__(self) -> None:
        self.threads: WeakSet[_LoopThread] = WeakSet()
        self.is_orphaned = False
        self._is_used = False

    def use(self, thread: _LoopThread) -> None:
        self._is_used = True
        self.threads.add(thread)

    def fork(self) -> None:
        """Go on as a child."""
        self.is_orphaned = self._is_used
        for thread in list(self.threads):
            thread.lose()

    def exit(self) -> None:
        for thread in list(self.threads):
            if not thread.is_over:
                thread.exit()


_PROCESS: Final = _Process()
# After all threads have ended that are no daemons, and after whatever a program registered later.
atexit.register(_PROCESS.exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PROCESS.fork)
