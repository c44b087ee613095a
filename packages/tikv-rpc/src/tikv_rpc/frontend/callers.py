"""The thread that calls: where what a caller passes, such as a generator or a callback, is at home.

An async client runs it in the task of the call. A blocking one does so in the thread that waits for the call: there its
thread-local things are, it may call the client again, and while it takes its time the event loop serves other threads.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final, Protocol, TypeVar

T = TypeVar("T")

_EMPTY: Final[dict[object, object]] = {}
_VIEWS: Final = tuple(type(view) for view in (_EMPTY.keys(), _EMPTY.values(), _EMPTY.items()))
_ANYWHERE: Final = frozenset({list, tuple, dict, set, frozenset, *_VIEWS})
"""Collections that are the same in each thread; iterating over one of a subclass may run anything."""


class Caller(Protocol):
    """A thread that waits for the end of a call, and does something meanwhile."""

    def ask(self, function: Callable[[], T]) -> Awaitable[T]:
        """Have it call a function, and return what is to be awaited for what becomes of that."""
        ...


CALLER: Final[ContextVar[Callable[[], Caller | None] | None]] = ContextVar("CALLER", default=None)
"""Returns the thread that waits for the current call; None where a call is awaited in the thread it is made in."""


async def in_callers_thread(function: Callable[[], T]) -> T:
    """Return what a function returns in the thread that called, or raise what it raises.

    Functions of one call run one after the other, in the order they are asked for.

    Cancellation: a function that has begun goes on to its end, and what becomes of it is lost.
    """
    caller = CALLER.get()
    if caller is None:
        return function()
    # Not kept here: what the function raises holds this frame, and is in turn held by the call.
    return await _present(caller()).ask(function)


async def while_reading(items: object, function: Callable[[], T]) -> T:
    """Return what a function that reads some items returns: as `in_callers_thread`, or at once where they allow it."""
    return function() if type(items) in _ANYWHERE else await in_callers_thread(function)


def _present(caller: Caller | None) -> Caller:
    if caller is None:
        raise RuntimeError("the call is over, and its thread waits no more")
    return caller
