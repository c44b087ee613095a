"""A task of its own for what a client keeps open: whichever task opened it, any other may close it.

Task groups and cancel scopes have to be left by the task that entered them, and may not outlive a scope around that. A
client's user knows neither: fixtures, lifespans and notebooks close in another task than they open in. So a task that
does nothing else enters what the client is made of, waits, and leaves it.

    opening -> open -> closing -> over        any of them -> over: its loop ends, or a task of the client fails
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.lowlevel import current_token
from tikv_pd import ClosedError, ConfigError

if TYPE_CHECKING:
    import asyncio

_TASKS: Final[set[asyncio.Task[None]]] = set()
"""Those that run: asyncio itself remembers a task no longer than somebody else does."""


class Host:
    """Keeps something open, once. To be made in the event loop that it is used in.

    Args:
        name: Of whom it is; what its task and its errors are called by.
        enter: Opens it; closing it is left to the stack.
    """

    def __init__(self, name: str, enter: Callable[[AsyncExitStack], Awaitable[None]]) -> None:
        self.failure: BaseException | None = None
        """What ended it or came up when it was closed, until it is raised."""
        self._name = name
        self._enter = enter
        self._loop = current_token().native_token
        self._scope = anyio.CancelScope()
        self._was_open = False
        self._settled = anyio.Event()
        self._closing = anyio.Event()
        self._over = anyio.Event()

    @property
    def is_over(self) -> bool:
        """Whether nothing is left of it, be it closed or not."""
        return self._over.is_set()

    def check_loop(self) -> None:
        """Raise ConfigError if another event loop than its own runs here: it would wait forever."""
        if not self.is_over and current_token().native_token is not self._loop:
            raise ConfigError(f"this {self._name} was opened in another event loop; close it in that one")

    async def open(self) -> None:
        """Return when it is open; raise what opening it raised, then nothing is left.

        Raises:
            ClosedError: it was closed meanwhile.

        Cancellation: nothing is left.
        """
        _start(self._run, self._end, self._name)
        try:
            await self._wait(self._settled)
            if self._was_open and not self._closing.is_set():
                return
            await self._wait(self._over)
        finally:
            if not self._was_open:
                self._raise_failure()
        raise ClosedError(self._name, "was closed while it was opened")

    async def close(self) -> None:
        """Return when it is closed, by whomever; the first to close it has raised what ended it, or closing it raised.

        Cancellation: ends what closing waits for. It is closed all the same.
        """
        is_first = self.is_over or not self._closing.is_set()
        self._closing.set()
        try:
            if not self.is_over:
                if not self._settled.is_set():
                    self._scope.cancel()
                await self._wait(self._over)
        finally:
            if is_first and self._was_open:
                self._raise_failure()

    async def _wait(self, event: anyio.Event) -> None:
        try:
            await event.wait()
        except anyio.get_cancelled_exc_class():
            self._scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._over.wait()
            raise

    def _raise_failure(self) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                # The traceback holds this frame.
                del failure

    async def _run(self) -> None:
        try:
            with self._scope:
                async with AsyncExitStack() as stack:
                    await self._enter(stack)
                    self._was_open = True
                    self._settled.set()
                    await self._closing.wait()
        except anyio.get_cancelled_exc_class():
            # The loop ends.
            raise
        except BaseException as error:
            self.failure = error

    def _end(self) -> None:
        self._settled.set()
        self._over.set()


def _start(function: Callable[[], Coroutine[Any, Any, None]], end: Callable[[], None], name: str) -> None:
    """Run a function in a task that belongs to the event loop alone, and call `end` after it, whatever becomes of it.

    The task has the caller's context. anyio has no such thing: each of its tasks belongs to a task group.
    """
    if type(current_token().native_token).__module__.partition(".")[0] == "trio":
        import trio  # noqa: PLC0415  # whoever runs it has it

        async def run() -> None:
            try:
                await function()
            finally:
                end()

        trio.lowlevel.spawn_system_task(run, name=name, context=copy_context())
        return
    import asyncio  # noqa: PLC0415  # it takes most of the time of an import

    def forget(task: asyncio.Task[None]) -> None:
        _TASKS.discard(task)
        end()

    task = asyncio.create_task(function(), name=name)
    _TASKS.add(task)
    # Not by the function itself: of a task that is cancelled before its first step, nothing runs.
    task.add_done_callback(forget)
