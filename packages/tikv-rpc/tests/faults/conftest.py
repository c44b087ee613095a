from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest


def tasks_of_the_test() -> list[str]:
    names = [str(getattr(task.get_coro(), "__qualname__", task)) for task in asyncio.all_tasks()]
    return [name for name in names if not name.startswith("TestRunner.")]


@pytest.fixture(autouse=True)
async def no_task_is_left(anyio_backend_name: str) -> AsyncIterator[None]:
    """Fail when a test leaves a task behind; trio sees to that by itself."""
    yield
    if anyio_backend_name != "asyncio":
        return
    with anyio.move_on_after(5):
        while tasks_of_the_test():
            await anyio.lowlevel.checkpoint()
    assert tasks_of_the_test() == []
