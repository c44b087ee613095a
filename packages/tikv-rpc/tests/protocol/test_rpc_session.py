"""How a client's connection is opened and closed, by whichever task, shown with one that only waits and counts."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked
from tikv_pd import ClosedError, ConfigError
from tikv_pd.lowlevel import BackgroundTasks
from tikv_pd.testing import virtual_time
from tikv_rpc.frontend.session import Endpoint, Session

ENDPOINT = Endpoint.of("127.0.0.1:2379", None, None, versions=("v1", "v2"))
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


class BrokenError(Exception):
    """What goes wrong in a connection."""


class Line(Session[str]):
    """Connects within a second, and has a second's work to do before it disconnects."""

    def __init__(self) -> None:
        super().__init__("Line", ENDPOINT)
        self.events: list[str] = []
        self.variable = ""
        self.opening: Callable[[], Awaitable[object]] = lambda: anyio.sleep(1)
        self.closing: Callable[[], Awaitable[object]] = lambda: anyio.sleep(1)
        self._broken = anyio.Event()

    def break_down(self) -> None:
        """Have a task of the connection fail."""
        self._broken.set()

    async def connect(self, stack: AsyncExitStack) -> str:
        stack.callback(self.events.append, "gone")
        tasks = await stack.enter_async_context(BackgroundTasks())
        tasks.start_soon(self._work)
        self.variable = VARIABLE.get()
        await self.opening()
        stack.push_async_callback(self._last_words)
        self.events.append("open")
        return "line"

    async def _work(self) -> None:
        await self._broken.wait()
        self._broken = anyio.Event()
        raise BrokenError

    async def _last_words(self) -> None:
        self.events.append("closing")
        await self.closing()
        self.events.append("closed")


def fails(error: Exception) -> Callable[[], Awaitable[object]]:
    async def fail() -> None:
        raise error

    return fail


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_time() if request.param == "trio" else "asyncio"


@pytest.fixture
async def line() -> Line:
    made = Line()
    # Asyncio's clock does not jump.
    made.opening = made.closing = lambda: anyio.sleep(0.01)
    return made


async def in_a_task(function: Callable[[], Awaitable[object]]) -> None:
    """Run something to its end in a task that is not the caller's."""

    async def run() -> None:
        await function()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)


async def gather(line: Line, number: int) -> list[str]:
    """Close it from so many tasks at once; return what each of them had raised."""
    outcomes: list[str] = []

    async def close() -> None:
        try:
            await line.aclose()
        except BrokenError:
            outcomes.append("BrokenError")
        else:
            outcomes.append("closed")

    async with anyio.create_task_group() as tasks:
        for _ in range(number):
            tasks.start_soon(close)
    return sorted(outcomes)


# --- whoever opens, whoever closes ------------------------------------------------------------------------------------


async def test_the_task_that_opened_it_closes_it(line: Line) -> None:
    await line.open()

    await line.aclose()

    assert line.opened is None
    assert line.events == ["open", "closing", "closed", "gone"]


async def test_another_task_closes_it(line: Line) -> None:
    await line.open()

    await in_a_task(line.aclose)

    assert line.events == ["open", "closing", "closed", "gone"]
    await anyio.sleep(0.001)


async def test_it_outlives_the_task_that_opened_it(line: Line) -> None:
    await in_a_task(line.open)
    await wait_all_tasks_blocked()
    assert line.opened == "line"

    await in_a_task(line.aclose)

    assert line.events == ["open", "closing", "closed", "gone"]


async def test_it_outlives_the_scope_that_it_was_opened_in(line: Line) -> None:
    with anyio.fail_after(5) as scope:
        await line.open()
    scope.cancel()
    await wait_all_tasks_blocked()
    assert line.opened == "line"

    await line.aclose()

    assert line.events == ["open", "closing", "closed", "gone"]


async def test_all_who_close_it_at_once_return_when_it_is_closed(line: Line) -> None:
    await line.open()

    async def close() -> None:
        await line.aclose()
        assert line.events == ["open", "closing", "closed", "gone"]

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(close)


async def test_closing_what_is_not_open_is_fine(line: Line) -> None:
    await line.aclose()
    await line.open()
    await line.aclose()

    await line.aclose()

    assert line.events == ["open", "closing", "closed", "gone"]


async def test_it_counts_as_closed_from_the_moment_closing_begins(line: Line) -> None:
    may_close = anyio.Event()
    line.closing = may_close.wait
    await line.open()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(line.aclose)
        await wait_all_tasks_blocked()

        assert line.opened is None
        with pytest.raises(ClosedError, match="Line is not open"):
            line.not_open()
        with pytest.raises(ConfigError, match="this Line is open already"):
            await line.open()
        may_close.set()

    assert line.events == ["open", "closing", "closed", "gone"]


async def test_it_is_not_opened_twice(line: Line) -> None:
    await line.open()
    with pytest.raises(ConfigError, match="this Line is open already; share it, or make another"):
        await line.open()

    assert line.opened == "line"
    await line.aclose()


async def test_it_can_be_opened_again(line: Line) -> None:
    for _ in range(3):
        await in_a_task(line.open)
        assert line.opened == "line"
        await in_a_task(line.aclose)

    assert line.events == ["open", "closing", "closed", "gone"] * 3


async def test_its_tasks_have_the_context_of_whoever_opened_it(line: Line) -> None:
    token = VARIABLE.set("the opener's")
    await line.open()
    VARIABLE.reset(token)

    await line.aclose()

    assert line.variable == "the opener's"


# --- opening that does not succeed ------------------------------------------------------------------------------------


async def test_what_connecting_raises_is_raised_as_it_is(line: Line) -> None:
    error, cause = BrokenError(), OSError()
    error.__cause__ = cause
    line.opening = fails(error)

    with pytest.raises(BrokenError) as raised:
        await line.open()

    assert raised.value is error
    assert error.__cause__ is cause
    assert error.__context__ is None
    assert line.events == ["gone"]


async def test_after_a_failure_to_open_it_can_be_opened(line: Line) -> None:
    opening, line.opening = line.opening, fails(BrokenError())
    with pytest.raises(BrokenError):
        await line.open()
    await line.aclose()

    line.opening = opening
    await line.open()

    assert line.opened == "line"
    await line.aclose()


async def test_a_task_that_fails_while_it_opens_fails_the_opening(line: Line) -> None:
    line.opening = anyio.sleep_forever
    line.break_down()

    with pytest.raises(BrokenError):
        await line.open()

    assert line.opened is None


async def test_cancelled_while_it_opens_it_leaves_nothing(line: Line) -> None:
    opening, line.opening = line.opening, anyio.sleep_forever
    with anyio.move_on_after(0.01) as scope:
        await line.open()
    assert scope.cancelled_caught
    assert line.events == ["gone"]

    line.opening = opening
    await line.open()

    assert line.opened == "line"
    await line.aclose()


@pytest.mark.parametrize("steps", range(8))
async def test_cancelled_at_any_step_it_leaves_nothing(line: Line, steps: int) -> None:
    line.opening = line.closing = anyio.lowlevel.checkpoint
    scope = anyio.CancelScope()

    async def use() -> None:
        with scope:
            await line.open()
            try:
                await anyio.lowlevel.checkpoint()
            finally:
                await line.aclose()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    assert line.opened is None
    assert line.events.count("gone") <= 1
    assert line.events[-1:] in ([], ["gone"])
    await line.open()
    await line.aclose()
    assert line.events[-4:] == ["open", "closing", "closed", "gone"]


async def test_closing_it_while_it_opens_ends_both(line: Line) -> None:
    line.opening = anyio.sleep_forever
    outcomes: list[str] = []

    async def open_it() -> None:
        with pytest.raises(ClosedError, match="Line was closed while it was opened"):
            await line.open()
        outcomes.append("refused")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_it)
        await wait_all_tasks_blocked()
        await line.aclose()
        outcomes.append("closed")

    assert sorted(outcomes) == ["closed", "refused"]
    assert line.events == ["gone"]
    assert line.opened is None


async def test_a_failure_to_open_is_the_openers_also_when_somebody_closes(line: Line) -> None:
    async def refuse() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise BrokenError

    line.opening = refuse

    async def open_it() -> None:
        with pytest.raises(BrokenError):
            await line.open()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(open_it)
        await wait_all_tasks_blocked()

        await line.aclose()


# --- closing that does not succeed ------------------------------------------------------------------------------------


async def test_what_closing_raises_reaches_the_first_who_closes(line: Line) -> None:
    error = BrokenError()
    line.closing = fails(error)
    await line.open()

    assert await gather(line, 3) == ["BrokenError", "closed", "closed"]

    await line.aclose()
    line.closing = anyio.lowlevel.checkpoint
    await line.open()
    await line.aclose()


@pytest.mark.parametrize("closers", [1, 2])
async def test_cancelled_while_it_closes_it_is_closed_at_once(line: Line, closers: int) -> None:
    line.closing = anyio.sleep_forever
    await line.open()

    with anyio.move_on_after(0.01) as scope:
        await gather(line, closers)

    assert scope.cancelled_caught
    assert line.events == ["open", "closing", "gone"]
    line.closing = anyio.lowlevel.checkpoint
    await line.open()
    await line.aclose()


async def test_in_a_cancelled_scope_it_is_closed_at_once(line: Line) -> None:
    line.closing = anyio.sleep_forever
    await line.open()

    with anyio.CancelScope() as scope:
        scope.cancel()
        await line.aclose()

    assert line.events[-1] == "gone"
    await anyio.sleep(0.001)


async def test_a_failure_of_closing_comes_before_a_cancellation(line: Line) -> None:
    async def refuse() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise BrokenError

    line.closing = refuse
    await line.open()

    with pytest.raises(BrokenError), anyio.move_on_after(0.01):
        await line.aclose()

    assert line.events[-1] == "gone"


# --- a task of the connection that fails ------------------------------------------------------------------------------


async def test_a_task_that_fails_closes_it_and_whoever_closes_is_told(line: Line) -> None:
    await line.open()

    line.break_down()
    await anyio.sleep(0.01)

    assert line.opened is None
    assert line.events[-1] == "gone"
    with pytest.raises(ClosedError) as refused:
        line.not_open()
    assert isinstance(refused.value.__cause__, BrokenError)
    with pytest.raises(ConfigError, match="this Line failed; close it before it is opened again"):
        await line.open()
    assert await gather(line, 3) == ["BrokenError", "closed", "closed"]
    await line.open()
    await line.aclose()


async def test_a_task_that_fails_cancels_nobody_else(line: Line) -> None:
    await line.open()

    line.break_down()
    await anyio.sleep(0.01)

    with pytest.raises(BrokenError):
        await line.aclose()
    await anyio.sleep(0.001)


# --- event loops ------------------------------------------------------------------------------------------------------


async def test_it_is_closed_in_the_event_loop_that_it_was_opened_in(line: Line) -> None:
    await line.open()
    outcomes: list[str] = []

    def close_elsewhere() -> None:
        try:
            anyio.run(line.aclose)
        except ConfigError as error:
            outcomes.append(str(error))

    thread = threading.Thread(target=close_elsewhere)
    thread.start()
    thread.join()

    assert outcomes == ["this Line was opened in another event loop; close it in that one"]
    assert line.opened == "line"
    await line.aclose()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_end_of_its_loop_closes_what_was_forgotten(backend: str) -> None:
    lines: list[Line] = []

    async def forget() -> None:
        line = Line()
        line.opening = line.closing = anyio.lowlevel.checkpoint
        lines.append(line)
        await line.open()

    async def use() -> None:
        lines[0]._broken = anyio.Event()
        await lines[0].aclose()
        await lines[0].open()
        await lines[0].aclose()

    anyio.run(forget, backend=backend)
    assert lines[0].opened is None
    assert lines[0].events[-1] == "gone"

    anyio.run(use, backend=backend)

    assert lines[0].events[-4:] == ["open", "closing", "closed", "gone"]


class Endless(Session[str]):
    """Never gets to connect."""

    async def connect(self, stack: AsyncExitStack) -> str:  # noqa: ARG002
        await anyio.sleep_forever()
        return "unreachable"


@pytest.mark.parametrize("steps", range(4))
def test_a_loop_that_ends_while_it_opens_does_not_hang(steps: int) -> None:
    async def forget() -> None:
        forgotten = asyncio.create_task(Endless("Endless", ENDPOINT).open())
        for _ in range(steps):
            await asyncio.sleep(0)
        assert not forgotten.done()

    asyncio.run(forget())


def test_a_task_cancelled_natively_while_it_closes_ends_and_it_is_closed() -> None:
    async def main() -> None:
        line = Line()
        line.opening, line.closing = anyio.lowlevel.checkpoint, anyio.sleep_forever
        await line.open()

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(line.aclose(), 0.01)

        assert line.events == ["open", "closing", "gone"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_a_task_cancelled_natively_while_it_opens_ends_and_nothing_is_left() -> None:
    async def main() -> None:
        line = Line()
        line.opening = anyio.sleep_forever

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(line.open(), 0.01)

        assert line.events == ["gone"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_an_opener_that_does_not_wait_for_the_end_leaves_it_to_end_by_itself() -> None:
    async def main() -> None:
        line = Line()
        may_end = asyncio.Event()

        async def open_and_end_slowly() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await may_end.wait()

        line.opening = open_and_end_slowly
        opener = asyncio.create_task(line.open())
        for _ in range(2):
            await asyncio.sleep(0.01)
            opener.cancel()
        await asyncio.wait([opener])

        with pytest.raises(ConfigError, match="open already"):
            await line.open()
        may_end.set()
        await line.aclose()

        assert line.events == ["gone"]
        line.opening = line.closing = anyio.lowlevel.checkpoint
        await line.open()
        await line.aclose()

    asyncio.run(main())


def test_closed_in_the_moment_that_it_is_open_it_was_not_opened() -> None:
    async def main() -> None:
        line = Line()
        line.closing = anyio.lowlevel.checkpoint
        is_about_to_open = asyncio.Event()

        async def connect_at_once() -> None:
            is_about_to_open.set()

        async def close() -> None:
            await is_about_to_open.wait()
            await line.aclose()

        line.opening = connect_at_once
        closer = asyncio.create_task(close())
        await asyncio.sleep(0)

        with pytest.raises(ClosedError, match="was closed while it was opened"):
            await line.open()

        await closer
        assert line.events == ["open", "closing", "closed", "gone"]

    asyncio.run(main())


def test_all_tasks_cancelled_at_once_close_it() -> None:
    async def main() -> None:
        line = Line()
        line.opening = anyio.lowlevel.checkpoint
        await line.open()
        others = asyncio.all_tasks() - {asyncio.current_task()}

        for task in others:
            task.cancel()
        await asyncio.wait(others)

        assert line.opened is None
        await line.aclose()
        line.closing = anyio.lowlevel.checkpoint
        await line.open()
        await line.aclose()

    asyncio.run(main())


def test_its_task_is_named_after_it_and_kept_though_nobody_else_does() -> None:
    async def main() -> None:
        line = Line()
        line.opening = line.closing = anyio.lowlevel.checkpoint
        await line.open()
        events = line.events
        del line

        gc.collect()
        await asyncio.sleep(0.01)

        assert "Line" in [task.get_name() for task in asyncio.all_tasks()]
        assert events == ["open"]

    asyncio.run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="no eager tasks before Python 3.12")
def test_tasks_that_begin_at_once_make_no_difference() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(vars(asyncio)["eager_task_factory"])
        line = Line()
        line.opening = line.closing = anyio.lowlevel.checkpoint

        await line.open()
        await asyncio.wait_for(line.aclose(), 5)

        assert line.events == ["open", "closing", "closed", "gone"]

    asyncio.run(main())


FORGETFUL = """
import anyio, sys
from contextlib import AsyncExitStack
from tikv_pd.lowlevel import BackgroundTasks
from tikv_rpc.frontend.session import Endpoint, Session

class Line(Session[str]):
    async def connect(self, stack: AsyncExitStack) -> str:
        stack.callback(print, "gone")
        tasks = await stack.enter_async_context(BackgroundTasks())
        tasks.start_soon(anyio.sleep_forever)
        return "line"

async def main():
    await Line("Line", Endpoint.of("127.0.0.1:2379", None, None, versions=("v1", "v2"))).open()

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_program_that_forgets_to_close_ends_quietly(backend: str) -> None:
    command = [sys.executable, "-X", "dev", "-c", FORGETFUL, backend]

    program = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert (program.stdout, program.stderr) == ("gone\n", "")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_importing_it_imports_no_event_loop(backend: str) -> None:
    code = f"import sys, tikv_rpc.frontend.session; sys.exit({backend!r} in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], check=False)

    assert done.returncode == 0
