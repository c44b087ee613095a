"""The way of blocking code into a client that awaits, shown with a client that only waits and counts."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel
import pytest
from tikv_pd import ClosedError, ConfigError, DeadlineExceeded, TikvError, UndeterminedError
from tikv_rpc.frontend.callers import in_callers_thread, while_reading
from tikv_rpc.frontend.portal import Pages, Portal

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


class MineError(Exception):
    """What a call fails with."""


class Client:
    """Counts what happens to it."""

    def __init__(self, *, hangs_in: str = "", fails_in: str = "") -> None:
        self.events: list[str] = []
        self.waiting = threading.Event()
        self.portal = Portal(self, "Client")
        self._hangs_in = hangs_in
        self._fails_in = fails_in

    async def __aenter__(self) -> Self:
        await self._pass("open")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._pass("close")

    async def _pass(self, event: str) -> None:
        self.events.append(event)
        if self._hangs_in == event:
            await self.hang()
        if self._fails_in == event:
            raise OSError(event)

    async def echo(self, value: int) -> int:
        await anyio.lowlevel.checkpoint()
        return value

    async def fail(self) -> None:
        await anyio.lowlevel.checkpoint()
        raise MineError

    async def hang(self) -> None:
        self.waiting.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.events.append("cancelled")

    async def call_itself(self) -> int:
        return self.portal.call(self.echo, 1)

    async def close_itself(self) -> None:
        self.portal.close()

    async def read_variable(self) -> str:
        with anyio.CancelScope():
            await anyio.lowlevel.checkpoint()
        return VARIABLE.get()


class Opened:
    """A client, open in a `with` block."""

    def __init__(self) -> None:
        self.client = Client()

    def __enter__(self) -> Client:
        self.client.portal.open()
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.portal.close()


def loop_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "Client loop"]


def test_a_call_returns_what_the_coroutine_returns() -> None:
    with Opened() as client:
        assert client.portal.call(client.echo, 5) == 5
        assert client.portal.call(client.echo, value=6) == 6
        assert client.portal.run(len, "four") == 4


def test_a_call_raises_what_the_coroutine_raises_and_keeps_nothing_of_it() -> None:
    with Opened() as client:
        gc.disable()
        try:
            with pytest.raises(MineError) as caught:
                client.portal.call(client.fail)
            error = weakref.ref(caught.value)
            del caught
            client.portal.call(client.echo, 1)  # Behind it the failed call has ended for the loop, too.
            assert error() is None
        finally:
            gc.enable()


def test_many_threads_share_a_portal() -> None:
    with Opened() as client, ThreadPoolExecutor(64) as threads:
        results = list(threads.map(lambda number: client.portal.call(client.echo, number), range(5_000)))

    assert results == list(range(5_000))


def test_a_portal_works_beside_a_running_loop() -> None:
    async def cell() -> int:
        with Opened() as client:
            return client.portal.call(client.echo, 7)

    assert asyncio.run(cell()) == 7


@pytest.mark.parametrize(
    ("error", "is_noted"),
    [(DeadlineExceeded("get", 1), True), (UndeterminedError("put"), True), (ConfigError("no"), False)],
)
def test_a_failure_beside_a_running_loop_tells_that_it_was_held_up(error: TikvError, is_noted: bool) -> None:
    async def fail() -> None:
        raise error

    async def cell() -> list[str]:
        with Opened() as client, pytest.raises(type(error)) as caught:
            client.portal.call(fail)
        return getattr(caught.value, "__notes__", [])

    notes = asyncio.run(cell())

    assert ["held it up" in note for note in notes] == [True] * is_noted


def test_a_failure_where_no_loop_runs_has_no_note() -> None:
    async def fail() -> None:
        raise DeadlineExceeded("get", 1)

    with Opened() as client, pytest.raises(DeadlineExceeded) as caught:
        client.portal.call(fail)

    assert not hasattr(caught.value, "__notes__")


def test_a_portal_works_in_a_program_that_runs_trio() -> None:
    async def program() -> str:
        with Opened() as client:
            return client.portal.call(client.read_variable)

    assert anyio.run(program, backend="trio") == "unset"


def test_a_call_sees_the_context_of_its_thread() -> None:
    def call(client: Client) -> str:
        VARIABLE.set("here")
        return client.portal.call(client.read_variable)

    with Opened() as client:
        assert contextvars.copy_context().run(call, client) == "here"
        assert client.portal.call(client.read_variable) == "unset"


def test_a_call_from_the_own_loop_is_refused() -> None:
    with Opened() as client:
        with pytest.raises(ConfigError, match="own event loop"):
            client.portal.call(client.call_itself)
        with pytest.raises(ConfigError, match="own event loop"):
            client.portal.call(client.close_itself)

        assert client.portal.call(client.echo, 1) == 1


def test_a_portal_that_is_not_open_refuses() -> None:
    client = Client()

    with pytest.raises(ClosedError):
        client.portal.call(client.echo, 1)
    client.portal.close()


def test_a_closed_portal_refuses_and_has_no_thread() -> None:
    with Opened() as client:
        assert loop_threads()

    with pytest.raises(ClosedError):
        client.portal.call(client.echo, 1)
    client.portal.close()
    assert client.events == ["open", "close"]
    assert loop_threads() == []


def test_a_closed_portal_opens_again() -> None:
    client = Client()
    for number in range(3):
        client.portal.open()
        assert client.portal.call(client.echo, number) == number
        client.portal.close()

    assert client.events == ["open", "close"] * 3


def test_a_portal_opens_once() -> None:
    with Opened() as client:
        with pytest.raises(ConfigError, match="open already"):
            client.portal.open()

        assert client.portal.call(client.echo, 1) == 1


def test_what_opening_raises_is_raised() -> None:
    client = Client(fails_in="open")

    with pytest.raises(OSError, match="open"):
        client.portal.open()
    with pytest.raises(ClosedError):
        client.portal.call(client.echo, 1)
    assert loop_threads() == []


def test_what_closing_raises_is_raised_once() -> None:
    client = Client(fails_in="close")
    client.portal.open()

    with pytest.raises(OSError, match="close"):
        client.portal.close()
    client.portal.close()
    assert loop_threads() == []


def test_a_call_under_way_fails_when_the_portal_is_closed() -> None:
    with ThreadPoolExecutor(1) as thread:
        with Opened() as client:
            outcome = thread.submit(client.portal.call, client.hang)
            assert client.waiting.wait(10)

        with pytest.raises(ClosedError):
            outcome.result(10)
    assert client.events == ["open", "close", "cancelled"]


def test_threads_that_call_while_a_portal_is_closed_all_hear_of_it() -> None:
    def call_until_closed(client: Client) -> int:
        for number in range(1_000_000):
            try:
                client.portal.call(client.echo, number)
            except ClosedError:
                return number
        raise AssertionError("never closed")

    for _ in range(10):
        with ThreadPoolExecutor(8) as threads:
            with Opened() as client:
                outcomes = [threads.submit(call_until_closed, client) for _ in range(8)]
                client.portal.call(client.echo, 1)
            for outcome in outcomes:
                outcome.result(10)


def interrupt_when(ready: threading.Event) -> threading.Thread:
    """Press Ctrl-C once something is ready."""

    def press() -> None:
        assert ready.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def test_ctrl_c_cancels_the_call_and_leaves_the_portal_usable() -> None:
    with Opened() as client:
        thread = interrupt_when(client.waiting)
        with pytest.raises(KeyboardInterrupt):
            client.portal.call(client.hang)
        thread.join()

        assert client.portal.call(client.echo, 3) == 3
        assert client.events == ["open", "cancelled"]


def test_ctrl_c_while_opening_leaves_nothing() -> None:
    client = Client(hangs_in="open")
    thread = interrupt_when(client.waiting)

    with pytest.raises(KeyboardInterrupt):
        client.portal.open()
    thread.join()

    assert client.events == ["open", "cancelled"]
    assert loop_threads() == []


def test_closing_while_it_opens_ends_both() -> None:
    client = Client(hangs_in="open")
    with ThreadPoolExecutor(1) as thread:
        opening = thread.submit(client.portal.open)
        assert client.waiting.wait(10)

        client.portal.close()

        with pytest.raises(ClosedError):
            opening.result(10)
    assert loop_threads() == []


def test_a_portal_that_is_dropped_while_open_warns_and_closes() -> None:
    client = Client()
    client.portal.open()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "Client loop"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        client.portal = Portal(client, "another")
        gc.collect()

    thread.join(10)
    assert [str(warning.message) for warning in caught] == ["Client was not closed"]
    assert client.events == ["open", "close"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")
def test_the_child_of_a_fork_is_told_that_the_client_lives_in_its_parent() -> None:
    program = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside threads.
from tikv_pd import ClosedError
sys.path.insert(0, sys.argv[1])
from test_rpc_portal import Client

client = Client()
client.portal.open()
child = os.fork()
if child == 0:
    for action in (lambda: client.portal.call(client.echo, 1), client.portal.open, Client().portal.open):
        try:
            action()
        except ClosedError as error:
            print("fork" in str(error))
    client.portal.close()
    sys.exit()
os.waitpid(child, 0)
print(client.portal.call(client.echo, 2))
client.portal.close()
"""

    assert run(program) == "True\nTrue\nTrue\n2\n"


def run(program: str) -> str:
    """Run a program that ends by itself and has nothing to complain of, and return what it prints."""
    command = [sys.executable, "-u", "-c", program, os.path.dirname(__file__)]  # noqa: PTH120
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def test_a_program_that_does_not_close_ends_and_closes() -> None:
    program = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from test_rpc_portal import Client

class Loud(Client):
    async def __aexit__(self, *args):
        print("closed")

client = Loud()
client.portal.open()

def work():
    for number in range(2000):
        client.portal.call(client.echo, number)
    print("worked")

threading.Thread(target=work).start()
threading.Thread(target=lambda: client.portal.call(client.hang), daemon=True).start()
"""

    assert "worked\nclosed\n" in run_ignoring_threads(program)


def run_ignoring_threads(program: str) -> str:
    """Like `run`; a daemon thread may report that it could not go on."""
    command = [sys.executable, "-u", "-c", program, os.path.dirname(__file__)]  # noqa: PTH120
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0
    return done.stdout


# --- what the calling thread does -------------------------------------------------------------------------------------


def test_what_a_caller_passed_runs_in_the_thread_that_called() -> None:
    local = threading.local()
    local.name = "mine"

    async def call(client: Client) -> list[object]:
        await client.echo(1)
        return [await in_callers_thread(lambda: local.name), await in_callers_thread(threading.get_ident)]

    with Opened() as client:
        assert client.portal.call(call, client) == ["mine", threading.get_ident()]
        assert client.portal.call(call, client) == ["mine", threading.get_ident()]


def test_without_a_portal_it_runs_in_the_task() -> None:
    async def call() -> int:
        return await in_callers_thread(lambda: id(asyncio.current_task())) - id(asyncio.current_task())

    assert asyncio.run(call()) == 0


def test_plain_collections_are_read_at_once_and_all_else_in_the_thread_that_called() -> None:
    class Rows(list[int]):
        """What may do anything when it is read."""

    async def call(items: object) -> int:
        return await while_reading(items, threading.get_ident)

    with Opened() as client:
        sources: list[object] = [[], (), {}, set(), {"a": 1}.keys(), Rows(), iter([])]
        threads = [client.portal.call(call, items) for items in sources]

    here = threading.get_ident()
    assert [thread == here for thread in threads] == [False, False, False, False, False, True, True]


def test_errands_of_several_tasks_run_one_after_the_other() -> None:
    ran: list[int] = []

    async def ask(number: int) -> None:
        for turn in range(3):
            await in_callers_thread(partial(ran.append, 10 * turn + number))

    async def call() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(ask, number)

    with Opened() as client:
        client.portal.call(call)

    assert ran == [10 * turn + number for turn in range(3) for number in range(4)]


def test_an_errand_may_call_the_portal_again_and_again() -> None:
    with Opened() as client:

        async def call(depth: int) -> int:
            await anyio.lowlevel.checkpoint()
            if depth == 0:
                return 0
            below: int = await in_callers_thread(lambda: client.portal.call(call, depth - 1))
            return below + 1

        assert client.portal.call(call, 4) == 4


def test_the_loop_serves_other_threads_during_an_errand() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> bool:
        begun.set()
        return go_on.wait(10)

    with Opened() as client, ThreadPoolExecutor(1) as thread:
        slow = thread.submit(client.portal.call, in_callers_thread, wait)
        assert begun.wait(10)

        assert client.portal.call(client.echo, 5) == 5

        assert not slow.done()
        go_on.set()
        assert slow.result(10)


def test_many_threads_do_errands_at_once() -> None:
    def call(number: int) -> bool:
        async def ask() -> int:
            thread: int = await in_callers_thread(lambda: client.portal.call(in_callers_thread, threading.get_ident))
            return thread + number

        return client.portal.call(ask) == threading.get_ident() + number

    with Opened() as client, ThreadPoolExecutor(16) as threads:
        assert all(threads.map(call, range(2_000)))


def test_an_errand_that_fails_fails_where_it_was_asked_for() -> None:
    def fail() -> None:
        raise MineError("kept", 7)

    async def call() -> tuple[object, ...]:
        with pytest.raises(MineError) as caught:
            await in_callers_thread(fail)
        return caught.value.args

    with Opened() as client:
        assert client.portal.call(call) == ("kept", 7)


def test_an_errand_that_fails_leaves_nothing_behind() -> None:
    def fail() -> None:
        raise MineError

    with Opened() as client:
        gc.disable()
        try:
            with pytest.raises(MineError) as caught:
                client.portal.call(in_callers_thread, fail)
            error = weakref.ref(caught.value)
            del caught
            client.portal.call(client.echo, 1)
            assert error() is None
        finally:
            gc.enable()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_an_errand_that_ends_its_thread_ends_the_call(kind: type[BaseException]) -> None:
    def leave() -> None:
        raise kind

    async def call(client: Client) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.hang)
            await anyio.to_thread.run_sync(client.waiting.wait)
            try:
                await in_callers_thread(leave)
            finally:
                client.events.append("asker cancelled")

    with Opened() as client:
        with pytest.raises(kind):
            client.portal.call(call, client)

        assert client.portal.call(client.echo, 3) == 3
        assert sorted(client.events) == ["asker cancelled", "cancelled", "open"]


def test_ctrl_c_in_an_errand_leaves_the_portal_usable() -> None:
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        while not threading.Event().wait(0.01):  # A signal that comes just before the wait does not end it.
            pass

    with Opened() as client:
        thread = interrupt_when(begun)
        with pytest.raises(KeyboardInterrupt):
            client.portal.call(in_callers_thread, wait)
        thread.join()

        assert client.portal.call(client.echo, 3) == 3


def test_who_asks_a_thread_that_has_gone_is_cancelled() -> None:
    async def ask_in_the_end(events: list[str]) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await in_callers_thread(lambda: events.append("asked"))
                except asyncio.CancelledError:
                    events.append("cancelled")

    async def call(client: Client) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_in_the_end, client.events)
            tasks.start_soon(client.hang)

    with Opened() as client:
        thread = interrupt_when(client.waiting)
        with pytest.raises(KeyboardInterrupt):
            client.portal.call(call, client)
        thread.join()

        client.portal.call(client.echo, 3)
        assert client.events == ["open", "cancelled", "cancelled"]


def test_who_asks_where_no_cancellation_comes_does_not_wait_for_a_thread_that_has_gone() -> None:
    def leave() -> None:
        raise KeyboardInterrupt

    async def shielded(events: list[str]) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await in_callers_thread(leave)
            finally:
                events.append("done")

    async def call(events: list[str]) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shielded, events)

    with Opened() as client:
        with pytest.raises(KeyboardInterrupt):
            client.portal.call(call, client.events)

        client.portal.call(client.echo, 3)
        assert client.events == ["open", "done"]


def test_a_task_that_is_cancelled_does_not_wait_for_its_errand() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        go_on.wait(10)
        raise MineError

    async def call(events: list[str]) -> str:
        async with anyio.create_task_group() as tasks:
            for name, errand in (("slow", wait), ("late", lambda: events.append("late"))):
                tasks.start_soon(in_callers_thread, errand, name=name)
            await anyio.to_thread.run_sync(begun.wait)
            tasks.cancel_scope.cancel()
        events.append("left")
        go_on.set()
        return await in_callers_thread(lambda: "next")

    with Opened() as client:
        assert client.portal.call(call, client.events) == "next"
        assert client.events == ["open", "left"]


def test_a_call_that_ends_during_an_errand_is_over_when_that_ends() -> None:
    begun, go_on = threading.Event(), threading.Event()
    ran: list[str] = []

    def wait() -> None:
        begun.set()
        go_on.wait(10)
        ran.append("slow")

    async def call() -> str:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_callers_thread, wait)
            await anyio.to_thread.run_sync(begun.wait)
            tasks.start_soon(in_callers_thread, lambda: ran.append("late"))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        asyncio.get_running_loop().call_soon(go_on.set)
        return "result"

    with Opened() as client:
        assert client.portal.call(call) == "result"
        assert client.portal.call(client.echo, 1) == 1

    assert ran == ["slow"]


@pytest.mark.parametrize("ends_by", ["thread", "itself"])
def test_a_portal_that_is_closed_during_an_errand_does_not_wait_for_it(ends_by: str) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait(client: Client) -> None:
        begun.set()
        if ends_by == "itself":
            client.portal.close()
        else:
            assert go_on.wait(10)

    async def call(client: Client) -> None:
        await in_callers_thread(lambda: wait(client))

    with ThreadPoolExecutor(1) as thread:
        with Opened() as client:
            outcome = thread.submit(client.portal.call, call, client)
            assert begun.wait(10)

        assert loop_threads() == []
        go_on.set()
        with pytest.raises(ClosedError, match="what it was to write may have been written") as caught:
            outcome.result(10)
        assert caught.value.undetermined


def test_a_task_that_outlives_its_call_cannot_ask_and_keeps_nothing_of_it() -> None:
    class Argument:
        """What a call is about."""

    go_on = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def ask_later() -> None:
        await go_on.wait()
        await in_callers_thread(lambda: None)

    async def call(_: Argument) -> None:
        tasks.append(asyncio.create_task(ask_later()))

    async def last() -> None:
        go_on.set()
        await tasks[0]

    with Opened() as client:
        argument = Argument()
        kept = weakref.ref(argument)
        client.portal.call(call, argument)
        del argument
        client.portal.call(client.echo, 1)

        assert kept() is None
        with pytest.raises(RuntimeError, match="the call is over"):
            client.portal.call(last)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")
def test_the_child_of_a_fork_within_an_errand_is_told_so() -> None:
    program = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from tikv_pd import ClosedError
from tikv_rpc.frontend.callers import in_callers_thread
sys.path.insert(0, sys.argv[1])
from test_rpc_portal import Client

client = Client()
client.portal.open()
try:
    child = client.portal.call(in_callers_thread, os.fork)
except ClosedError as error:
    print("fork" in str(error))
    sys.exit()
os.waitpid(child, 0)
print(client.portal.call(client.echo, 2))
client.portal.close()
"""

    assert run(program) == "True\n2\n"


# --- pages ------------------------------------------------------------------------------------------------------------


class Source:
    """Pages of numbers."""

    def __init__(self, pages: list[list[int]]) -> None:
        self.pages = pages
        self.is_ended = False

    async def turn(self) -> list[int]:
        await anyio.lowlevel.checkpoint()
        return self.pages.pop(0) if self.pages and not self.is_ended else []

    async def end(self) -> None:
        self.is_ended = True


def test_pages_are_iterated_item_by_item_and_cross_threads_one_by_one() -> None:
    with Opened() as client:
        source = Source([[1, 2], [3], [4, 5]])
        pages = Pages(client.portal, source.turn, source.end)

        assert next(pages) == 1
        assert len(source.pages) == 2
        assert list(pages) == [2, 3, 4, 5]
        assert list(pages) == []


def test_several_threads_share_pages() -> None:
    with Opened() as client, ThreadPoolExecutor(8) as threads:
        source = Source([[number] for number in range(2_000)])
        pages = Pages(client.portal, source.turn, source.end)

        found = [outcome.result() for outcome in [threads.submit(list, pages) for _ in range(8)]]

    assert sorted(number for numbers in found for number in numbers) == list(range(2_000))


def test_a_page_that_came_when_its_thread_was_interrupted_is_not_lost() -> None:
    class Interrupting(Source):
        async def turn(self) -> list[int]:
            page = await super().turn()
            if page == [3]:
                signal.raise_signal(signal.SIGINT)
            return page

    with Opened() as client:
        source = Interrupting([[1, 2], [3], [4, 5]])
        pages = Pages(client.portal, source.turn, source.end)
        assert [next(pages), next(pages)] == [1, 2]

        with pytest.raises(KeyboardInterrupt):
            next(pages)

        assert list(pages) == [3, 4, 5]


def test_pages_that_are_closed_end() -> None:
    with Opened() as client:
        source = Source([[1, 2], [3]])
        with Pages(client.portal, source.turn, source.end) as pages:
            assert next(pages) == 1

        assert list(pages) == []
        assert source.is_ended
    pages.close()


def test_pages_of_a_closed_portal_end_with_an_error_after_those_at_hand() -> None:
    with Opened() as client:
        source = Source([[1, 2], [3]])
        pages = Pages(client.portal, source.turn, source.end)
        assert next(pages) == 1

    assert next(pages) == 2
    with pytest.raises(ClosedError):
        next(pages)
