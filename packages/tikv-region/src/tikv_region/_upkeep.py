"""Work that is done again and again while a cache is in use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
from tikv_pd import TikvError


async def every(interval: float, step: Callable[[], Awaitable[None]]) -> None:
    """Take a step each time an interval has passed, until cancelled.

    A step that fails because PD does not answer is left to the next turn.
    """
    while True:
        await anyio.sleep(interval)
        with suppress(TikvError):
            await step()
