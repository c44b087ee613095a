"""Parts of one operation that run at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import anyio
from tikv_pd import DeadlineExceeded

from tikv_rpc.call import Call


class Branches:
    """Parallel parts of an operation, each with a call of its own. Leaving `async with` waits for all of them.

    The first failure cancels the others and is raised, never within a group; at the deadline the others end by
    themselves, and know better whether what they wrote was sent.

    Args:
        call: The operation's; it takes over what they went through.
    """

    def __init__(self, call: Call) -> None:
        self.failures: list[Exception] = []
        """What failed so far."""
        self._call = call
        self._calls: list[Call] = []
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self._fail(error)
            # A task group would wrap it.
            kind = error = traceback = None
        try:
            await self._tasks.__aexit__(kind, error, traceback)
        finally:
            # Also of a cancelled operation, which may be a branch of another one, that still needs to know.
            self._call.join(self._calls)
        if self.failures:
            raise self.failures[0]

    def start(self, work: Callable[[Call], Awaitable[None]]) -> None:
        """Have another part run."""
        branch = self._call.fork()
        self._calls.append(branch)
        self._tasks.start_soon(self._run, work, branch)

    async def _run(self, work: Callable[[Call], Awaitable[None]], branch: Call) -> None:
        try:
            await work(branch)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failures.append(error)
        if not isinstance(error, DeadlineExceeded):
            self._tasks.cancel_scope.cancel()
