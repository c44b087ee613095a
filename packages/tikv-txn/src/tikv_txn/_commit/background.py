"""What commits leave to be done while nobody waits for it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from tikv_rpc import RpcClient


class Background:
    """Runs what nobody waits for, until the client is closed.

    Args:
        rpc: Where it runs.
    """

    def __init__(self, rpc: RpcClient) -> None:
        self._rpc = rpc
        self._running = 0
        self._ended = anyio.Event()

    def start(self, function: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        """Run `function(*args)`, unless the client is closed: then those have to do it who find it undone.

        So they have when it fails.
        """
        if not self._rpc.closed:
            self._running += 1
            self._rpc.tasks.start_soon(self._run, function, args)

    async def finish(self, seconds: float) -> None:
        """Wait until everything that runs has ended, but not for long.

        Cancellation: ends the wait; what runs goes on.
        """
        with anyio.move_on_after(seconds):
            while self._running:
                self._ended = anyio.Event()
                await self._ended.wait()

    async def _run(self, function: Callable[..., Coroutine[Any, Any, None]], args: tuple[object, ...]) -> None:
        try:
            await function(*args)
        except Exception:
            # Readers do it, also where an interceptor raises an error of its own: nobody is there to hear of it, and
            # other work of the client must not end by it.
            return
        finally:
            self._running -= 1
            self._ended.set()
