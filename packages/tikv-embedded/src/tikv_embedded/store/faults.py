"""Faults of stores: which calls they strike and what becomes of those. The services know nothing of them but `suffer`.

A fault is made by `StoreFaults` (`fault_controls.py`), found by `CallWatch.receive` and carried out by `suffer`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import attrs
import grpc
from google.protobuf.message import Message

from tikv_embedded.store.calls import HEALTH_CALLS, OPENING, ReceivedCall, Recording
from tikv_embedded.store.exec_details import fill_times

_ONLY_BY_NAME = HEALTH_CALLS | {OPENING}


class CallRefusedError(Exception):
    """The call ends with a gRPC status; on a stream, that ends the stream."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(code, details)
        self.code = code
        self.details = details


class CallLostError(Exception):
    """The call is never answered."""


@attrs.frozen(kw_only=True)
class Selection:
    """Which calls a fault strikes: those that fit all of its fields."""

    rpcs: frozenset[str] = frozenset()
    """Names as in `ReceivedCall.rpc`; none stands for every request, but neither for streams nor for health checks."""
    store_id: int | None = None
    region_id: int | None = None
    when: Callable[[ReceivedCall], bool] | None = None
    after: int = 0
    """So many that fit are let through first."""
    times: int | None = None
    """So many are struck; None is until the fault is lifted."""
    chance: float = 1.0
    """How likely each is struck; those that are not count neither for `after` nor for `times`."""

    def fits(self, call: ReceivedCall) -> bool:
        """Whether the call is of the kind that was chosen."""
        return (
            (call.rpc in self.rpcs if self.rpcs else call.rpc not in _ONLY_BY_NAME)
            and self.store_id in (None, call.store_id)
            and self.region_id in (None, call.context.region_id)
            and (self.when is None or self.when(call))
        )


@attrs.frozen(kw_only=True)
class Effect:
    """What becomes of a call."""

    wait: float | None = 0.0
    """Seconds before it is served; None waits until the fault is lifted."""
    waits_after: bool = False
    """Wait after it was served instead, before it is answered."""
    loses_request: bool = False
    loses_answer: bool = False
    refusal: tuple[grpc.StatusCode, str] | None = None
    answer: Callable[[ReceivedCall], Any] | None = None
    """Makes the answer instead of serving the call."""
    edit: Callable[[Any], None] | None = None
    """Changes the answer in place."""
    copies: int = 1
    """How often it is served, and on a stream also answered."""
    misses_caller: bool = False
    """On a stream, answer under an id that nobody asked with."""
    loses_command: bool = False
    """On a stream, answer with a response that holds no command."""


class StoreFault:
    """What strikes calls, until it is lifted or has struck as often as it should; also a context manager that lifts it.

    Attributes:
        strikes: How many calls it has struck.
        waiting: How many calls it holds up right now.
        effect: What becomes of them.
    """

    def __init__(self, selection: Selection, effect: Effect) -> None:
        self._selection = selection
        self.effect = effect
        self.strikes = 0
        self.waiting = 0
        self._passed = 0
        self._lifted = asyncio.Event()
        self._next_strike = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.lift()

    @property
    def is_over(self) -> bool:
        """Whether it will never strike again: lifted, or used up."""
        return self._lifted.is_set() or self.strikes == self._selection.times

    def lift(self) -> None:
        """Strike no more, and let the calls that it holds go on; what is lost stays lost. Harmless when lifted."""
        self._lifted.set()

    async def struck(self, count: int = 1) -> None:
        """Return once it has struck `count` calls in all."""
        while self.strikes < count:
            await self._next_strike.wait()

    def take(self, call: ReceivedCall, chance: Callable[[], float]) -> bool:
        """Return whether it strikes this call, which counts; `chance` draws from 0 to 1."""
        selection = self._selection
        if self.is_over or not selection.fits(call) or (selection.chance < 1 and chance() >= selection.chance):
            return False
        if self._passed < selection.after:
            self._passed += 1
            return False
        self.strikes += 1
        self._next_strike.set()
        self._next_strike = asyncio.Event()
        return True

    async def wait(self) -> None:
        """Hold a call up for as long as its effect says; being lifted ends it early."""
        if self.effect.wait == 0:
            return
        self.waiting += 1
        try:
            async with asyncio.timeout(self.effect.wait):
                await self._lifted.wait()
        except TimeoutError:
            pass
        finally:
            self.waiting -= 1


class CallWatch:
    """What looks at every call that the stores of a cluster receive: their faults and the recordings.

    Of several faults that fit, the one made first strikes, alone.
    """

    def __init__(self) -> None:
        self._faults: list[StoreFault] = []
        self._recordings: list[Recording] = []
        self.random = random.Random(0)

    @property
    def is_idle(self) -> bool:
        """Whether nobody is interested in calls, so that none has to be described."""
        return not self._faults and not self._recordings

    def add(self, fault: StoreFault) -> StoreFault:
        """Let a fault strike, after those before it."""
        self._faults.append(fault)
        return fault

    def lift_all(self) -> None:
        """Lift all faults."""
        for fault in self._faults:
            fault.lift()
        self._faults.clear()

    def record(self) -> Recording:
        """Return a recording that begins now."""
        recording = Recording(self._recordings.remove)
        self._recordings.append(recording)
        return recording

    def receive(self, call: ReceivedCall) -> StoreFault | None:
        """Take note of a call and return the fault that strikes it, None for none."""
        for recording in self._recordings:
            recording.calls.append(call)
        self._faults = [fault for fault in self._faults if not fault.is_over]
        return next((fault for fault in self._faults if fault.take(call, self.random.random)), None)


async def suffer(fault: StoreFault, call: ReceivedCall, serve: Callable[[], Awaitable[Any]]) -> Any:
    """Let `fault` have its effect on a call, and return the answer.

    Args:
        fault: What `CallWatch.receive` returned for it.
        call: Which call.
        serve: Does what was asked for and returns its answer.

    Raises:
        CallRefusedError: the call ends with a gRPC status.
        CallLostError: it is never answered.
    """
    effect = fault.effect
    if effect.loses_request:
        raise CallLostError
    if not effect.waits_after:
        await fault.wait()
    if effect.refusal is not None:
        raise CallRefusedError(*effect.refusal)
    if effect.answer is not None:
        response = effect.answer(call)
    else:
        for _ in range(effect.copies):
            response = await serve()
    if effect.waits_after:
        await fault.wait()
    if effect.loses_answer:
        raise CallLostError
    if isinstance(response, Message):
        fill_times(response, time.monotonic() - call.received)
    if effect.edit is not None:
        effect.edit(response)
    return response
