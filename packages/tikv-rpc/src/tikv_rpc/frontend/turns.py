"""Turns of the event loop that somebody takes on purpose."""

from __future__ import annotations

from typing import Final

import anyio.lowlevel

_TURNS: Final = 2
"""The task that writes requests runs in the turn after the one that made them; loops that take tasks in any order need
one more."""


async def until_sent(requests: int = 1) -> None:
    """Let other tasks run until so many requests that they are about to make are on their way, one in each turn.

    Whoever is about to work for long without waiting does this first, so that stores work meanwhile.
    """
    for _ in range(requests + _TURNS):
        await anyio.lowlevel.checkpoint()
