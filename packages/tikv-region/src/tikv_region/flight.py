"""Questions that several tasks ask at once, asked only once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import anyio
from tikv_pd import Deadline

T = TypeVar("T")


class _Flight(Generic[T]):
    __slots__ = ("answers", "done")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.answers: list[T] = []


class SingleFlight(Generic[T]):
    """Shares the answer to a question among all tasks that ask it while it is under way.

    The first task asks, within its own scope and deadline; the others wait. If it is cancelled, fails or runs out of
    its own time, one of the others asks again: nobody suffers from another's deadline.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}

    def __contains__(self, question: Hashable) -> bool:
        """Tell whether somebody asks a question just now."""
        return question in self._flights

    async def ask(self, question: Hashable, deadline: Deadline, ask: Callable[[], Awaitable[T]]) -> T:
        """Return the answer to `question`, from `ask` or from another task's.

        Raises:
            DeadlineExceeded: this task's time ran out while another was asking.

        Cancellation: safe; another waiting task takes over.
        """
        while (flight := self._flights.get(question)) is not None:
            with anyio.move_on_after(deadline.check()):
                await flight.done.wait()
            if flight.answers:
                return flight.answers[0]
        flight = self._flights[question] = _Flight()
        try:
            answer = await ask()
            if deadline.remaining() > 0:
                flight.answers.append(answer)
            return answer
        finally:
            del self._flights[question]
            flight.done.set()
