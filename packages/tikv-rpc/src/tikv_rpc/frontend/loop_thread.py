"""An event loop in a thread of its own, for as long as a client is open in it.

    thread        queued -> waits, does errands -> has its outcome, or was interrupted: the task is cancelled, nobody
                  waits for it
    loop          opening -> serving -> closing -> over: what is queued from now on is refused

A call crosses threads twice. Its thread queues it and wakes the loop, unless the loop is to wake up anyway: calls of
many threads share a wake-up, and whatever they ask of one store shares a message. The loop runs it in a task, which
stores the outcome and releases the lock that the calling thread waits for; a lock costs a fraction of the condition
and the callbacks of a `concurrent.futures.Future`.

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
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final, TypeVar
from weakref import WeakSet, ref

from tikv_pd import ClosedError, ConfigError

from tikv_rpc.frontend.callers import CALLER
from tikv_rpc.frontend.crossing import Crossing

R = TypeVar("R")

_CALLS_END_WITHIN: Final = 1.0
"""Seconds that calls under way are given to fail in their own way once the client is closed."""
_EXIT_WITHIN: Final = 5.0
"""Seconds that the exit of a program waits for a client that was not closed."""
_SIGNALS_WITHIN: Final = 0.5
"""Seconds after which a waiting thread looks for signals: one that comes just before a thread begins to wait for a lock
does not wake it (seen with 3.11: one Ctrl-C in 300 on a busy machine)."""
_CUT_OFF: Final = "was closed before the call had ended; what it was to write may have been written"
_FORKED: Final = "was opened before this process was forked, and works in the parent only; open it after the fork"


class LoopThread:
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

    def _cut_off(self) -> ClosedError:
        """Return the error of a call that had begun, and did not end by itself when the client was closed."""
        return ClosedError(self._name, _CUT_OFF, may_have_written=True)

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
                crossing.end(self._cut_off())
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
            outcome = self._cut_off()
        except BaseException as error:
            outcome = error
        finally:
            self._under_way.discard(crossing)
            crossing.end(outcome)
            # The error's traceback holds this frame.
            del crossing, outcome


def _mark_as_asyncio() -> None:
    """Have anyio find asyncio in this thread, also when a call brings the context of a thread that runs trio."""
    with suppress(ImportError):
        from sniffio import thread_local  # noqa: PLC0415  # it is there if trio is

        thread_local.name = "asyncio"


class _Process:
    """What this process has opened."""

    def __init__(self) -> None:
        self.threads: WeakSet[LoopThread] = WeakSet()
        """Those that somebody still has."""
        self.is_orphaned = False
        """Whether it was forked from one that had opened something."""
        self._is_used = False

    def use(self, thread: LoopThread) -> None:
        """Take note of a thread that is to begin."""
        self._is_used = True
        self.threads.add(thread)

    def fork(self) -> None:
        """Go on as a child."""
        self.is_orphaned = self._is_used
        for thread in list(self.threads):
            thread.lose()

    def exit(self) -> None:
        """End what is left."""
        for thread in list(self.threads):
            if not thread.is_over:
                thread.exit()


PROCESS: Final = _Process()
"""This one."""
# After all threads have ended that are no daemons, and after whatever a program registered later.
atexit.register(PROCESS.exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESS.fork)
