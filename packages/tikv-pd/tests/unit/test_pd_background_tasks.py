from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from tikv_pd.lowlevel import BackgroundTasks
from tikv_pd.testing import virtual_time


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str | tuple[str, dict[str, Any]]:
    return virtual_time() if request.param == "trio" else "asyncio"


async def fail() -> None:
    raise RuntimeError("the task failed")


async def fail_when_cancelled() -> None:
    try:
        await anyio.sleep_forever()
    finally:
        await fail()


async def run_block(task: Callable[[], Coroutine[Any, Any, None]], *, seconds: float, error: Exception | None) -> None:
    async with BackgroundTasks() as tasks:
        tasks.start_soon(task)
        await anyio.sleep(seconds)
        if error is not None:
            raise error


async def test_the_block_ends_its_tasks() -> None:
    await run_block(anyio.sleep_forever, seconds=0.01, error=None)


async def test_an_error_of_the_block_leaves_it_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        await run_block(anyio.sleep_forever, seconds=0.01, error=KeyError("mine"))


async def test_an_error_of_a_task_ends_the_block_and_leaves_it_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="the task failed"):
        await run_block(fail, seconds=1000, error=None)


async def test_an_error_of_the_block_comes_before_one_of_a_task() -> None:
    with pytest.raises(KeyError, match="mine"):
        await run_block(fail_when_cancelled, seconds=0.01, error=KeyError("mine"))


async def test_a_cancelled_block_is_caught_by_the_scope_around_it() -> None:
    with anyio.move_on_after(0.01) as scope:
        await run_block(anyio.sleep_forever, seconds=1000, error=None)

    assert scope.cancelled_caught


async def test_after_a_cancelled_block_the_task_can_wait_again() -> None:
    with anyio.move_on_after(0.01):
        await run_block(anyio.sleep_forever, seconds=1000, error=None)

    with anyio.fail_after(1):
        await anyio.sleep(0.01)


async def test_a_cancellation_that_ends_several_on_one_stack_is_not_its_own_context() -> None:
    cycles: list[bool] = []

    async def close_while_cancelled() -> None:
        stack = AsyncExitStack()
        for _ in range(2):
            tasks = await stack.enter_async_context(BackgroundTasks())
            tasks.start_soon(anyio.sleep_forever)
        try:
            await anyio.sleep_forever()
        finally:
            try:
                await stack.aclose()
            except BaseException as error:
                cycles.append(error.__context__ is error)
                # Else anyio would follow it forever.
                error.__context__ = None
                raise

    async with anyio.create_task_group() as group:
        group.start_soon(close_while_cancelled)
        await anyio.sleep(0.01)
        group.cancel_scope.cancel()

    assert cycles == [False]
