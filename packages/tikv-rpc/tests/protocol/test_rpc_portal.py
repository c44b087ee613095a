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
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel
import pytest
from tikv_pd import ClosedError, ConfigError
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
