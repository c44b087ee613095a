"""Rounds of finding out who is in charge: at intervals, and whenever somebody doubts it, shared by all who wait."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from tikv_pd.errors import ClosedError, TikvError


class Rounds:
    """Runs the rounds, in `run`, and tells those who wait how they end.

    Args:
        look: Makes one round, given who failed somebody, or an empty text; returns why it found nobody.
        pause: Returns the seconds until the next one when nobody has doubts.
    """

    def __init__(self, look: Callable[[str], Awaitable[TikvError | None]], pause: Callable[[], float]) -> None:
        self._look = look
        self._pause = pause
        self._suspect = ""
        self._about = ""
        self._wanted = anyio.Event()
        self._done = anyio.Event()
        self._outcome: TikvError | None = None

    def want(self, suspect: str = "") -> None:
        """Have a round made soon, about `suspect`; one about the same that is under way will do."""
        if suspect and suspect == self._about:
            return
        self._suspect = suspect or self._suspect
        self._wanted.set()

    async def wait(self) -> TikvError | None:
        """Return how the round under way ends, or the next one; when it is about another suspect, the one after it."""
        await self._done.wait()
        return self._outcome

    async def run(self) -> None:
        """Make rounds until cancelled."""
        try:
            while True:
                with anyio.move_on_after(self._pause()):
                    await self._wanted.wait()
                self._wanted = anyio.Event()
                self._about, self._suspect = self._suspect, ""
                outcome = await self._look(self._about)
                self._about = ""
                if not self._suspect:
                    # Otherwise this round was none about whoever failed those who wait now.
                    self._finish(outcome)
        finally:
            self._finish(ClosedError("PdClient"))

    def _finish(self, outcome: TikvError | None) -> None:
        self._outcome = outcome
        done, self._done = self._done, anyio.Event()
        done.set()
