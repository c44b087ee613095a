"""Timestamps: one stream to PD's leader, shared by everybody who wants one.

Callers wait in a queue. A sender takes all of them at once and asks for that many timestamps in one message; a receiver
matches answers to batches in order and hands the timestamps out. When the stream breaks, those still waiting go back to
the front of the queue and are served by the next stream, at the leader of that moment: a caller sees a failure only
when its own time is up, or when no attempt could ever help.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Final

import anyio
import attrs
from tikv_proto import pdpb, services

from tikv_pd._members import Members, header_error
from tikv_pd._pursuit import Pursuit
from tikv_pd.backoff import PD_TSO, Backoffer
from tikv_pd.config import PdConfig
from tikv_pd.deadline import Deadline
from tikv_pd.errors import ClosedError, DeadlineExceeded, RpcError, TikvError, TimestampFallback
from tikv_pd.lowlevel import Stream, Transport, Waiter
from tikv_pd.timestamp import LOGICAL_BITS, Timestamp

IN_FLIGHT: Final = 4
"""Messages sent and not answered at most; while there are so many, callers gather for the next one."""


@attrs.define(eq=False)
class _Batch:
    """Those whose timestamps one message asks for."""

    waiters: list[Waiter[Timestamp | TikvError]]
    floor: int
    """The largest timestamp known when it was sent: messages that overlap are not ordered among each other."""
    sent_at: float


def first_of(answer: pdpb.TsoResponse, count: int, floor: int) -> Timestamp:
    """Return the first of the `count` timestamps that an answer grants. PD names the last one.

    Raises:
        ValueError: the answer does not fit the request.
        TimestampFallback: they are not above `floor`.
    """
    last = answer.timestamp
    if answer.count != count:
        raise ValueError(f"asked for {count} timestamps, was granted {answer.count}")
    if not count <= last.logical + 1 <= 1 << LOGICAL_BITS:
        raise ValueError(f"the last of {count} timestamps cannot have logical part {last.logical}")
    first = Timestamp(last.physical, last.logical - count + 1)
    if first.ts <= floor:
        raise TimestampFallback(floor, first.ts)
    return first


class Tso:
    """The shared stream of timestamps; `run` serves those who `get`."""

    def __init__(self, members: Members, transport: Transport, config: PdConfig) -> None:
        self._members = members
        self._transport = transport
        self._config = config
        self._waiting: dict[Waiter[Timestamp | TikvError], None] = {}
        self._in_flight: deque[_Batch] = deque()
        self._latest = 0
        self._pursuit = self._new_pursuit()
        self._sleeper: Waiter[None] | None = None
        self._scope = anyio.CancelScope()

    async def get(self, deadline: Deadline) -> Timestamp:
        """Return a timestamp granted after this call began."""
        left = deadline.check()
        waiter: Waiter[Timestamp | TikvError] = self._transport.waiter()
        self._waiting[waiter] = None
        self._wake()
        outcome: Timestamp | TikvError | None = None
        try:
            with anyio.move_on_after(left):
                outcome = await waiter
        finally:
            self._waiting.pop(waiter, None)
        if isinstance(outcome, Timestamp):
            return outcome
        if outcome is None:
            raise DeadlineExceeded(deadline.operation, deadline.timeout) from self._pursuit.failure
        # Several callers share the outcome; each raises one of its own.
        raise copy.copy(outcome) from outcome.__cause__

    async def run(self) -> None:
        """Serve the callers until cancelled."""
        try:
            while True:
                while not self._waiting:
                    await self._sleep()
                address = self._members.leader
                error = await self._serve(address)
                self._take_back()
                if error is not None:
                    try:
                        await self._pursuit.recover(address, error)
                    except TikvError as end:
                        self._end_all(end)
        finally:
            self._take_back()
            self._end_all(ClosedError("PdClient"))

    def _new_pursuit(self) -> Pursuit:
        forever = Deadline("Tso", math.inf, self._transport.now)
        return Pursuit(self._members, Backoffer(forever, budget=math.inf), PD_TSO)

    async def _serve(self, address: str) -> TikvError | None:
        """Run one stream until it fails; return why, None when the leader moved."""
        stream = self._members.connection(address).stream(services.PD.Tso)
        ends: list[TikvError | None] = []

        async def run_half(half: Callable[[str, Stream[pdpb.TsoRequest, pdpb.TsoResponse]], Awaitable[None]]) -> None:
            try:
                await half(address, stream)
            except TikvError as error:
                ends.append(error)
            else:
                ends.append(None)
            tasks.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                tasks.start_soon(run_half, self._receive)
                tasks.start_soon(run_half, self._send)
        finally:
            stream.cancel()
        if not ends:
            timeout = self._config.timeout
            return RpcError(address, "Tso", "DEADLINE_EXCEEDED", f"no answer within {timeout:g} s")
        return ends[0]

    async def _send(self, address: str, stream: Stream[pdpb.TsoRequest, pdpb.TsoResponse]) -> None:
        header = pdpb.RequestHeader(cluster_id=self._members.known.cluster_id)
        while self._members.leader == address:
            if not self._waiting or len(self._in_flight) >= IN_FLIGHT:
                await self._sleep()
                continue
            waiters = list(islice(self._waiting, self._config.max_tso_batch))
            for waiter in waiters:
                del self._waiting[waiter]
            self._in_flight.append(_Batch(waiters, self._latest, anyio.current_time()))
            self._watch()
            await stream.send(pdpb.TsoRequest(header=header, count=len(waiters)))

    async def _receive(self, address: str, stream: Stream[pdpb.TsoRequest, pdpb.TsoResponse]) -> None:
        while True:
            answer = await stream.receive()
            if answer.header.HasField("error"):
                raise header_error("Tso", answer.header)
            if not self._in_flight:
                raise RpcError(address, "Tso", "INTERNAL", "an answer came that nobody asked for")
            batch = self._in_flight[0]
            try:
                first = first_of(answer, len(batch.waiters), batch.floor)
            except ValueError as error:
                raise RpcError(address, "Tso", "INTERNAL", str(error)) from error
            del self._in_flight[0]
            self._watch()
            self._wake()
            if self._pursuit.failure is not None:
                self._pursuit = self._new_pursuit()
            self._latest = max(self._latest, first.ts + len(batch.waiters) - 1)
            for logical, waiter in enumerate(batch.waiters, start=first.logical):
                if not waiter.done():
                    waiter.set_result(Timestamp(first.physical, logical))

    def _watch(self) -> None:
        """End the stream when the oldest message gets no answer in time."""
        oldest = self._in_flight[0].sent_at if self._in_flight else math.inf
        self._scope.deadline = oldest + self._config.timeout

    def _take_back(self) -> None:
        """Put those whose messages got no answer in front of those who were not served yet."""
        unanswered = [waiter for batch in self._in_flight for waiter in batch.waiters if not waiter.done()]
        self._in_flight.clear()
        self._waiting = dict.fromkeys([*unanswered, *self._waiting])

    def _end_all(self, error: TikvError) -> None:
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(error)

    async def _sleep(self) -> None:
        self._sleeper = self._transport.waiter()
        try:
            await self._sleeper
        finally:
            self._sleeper = None

    def _wake(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)
