"""Plans: how an operation becomes requests to Regions, one concern per class.

A plan turns a piece of work into a result. Those for one request to one Region are in `attempts`, what sends equal ones
once in `collapse`; every plan here holds an inner one and knows one thing more:

    AtKey         find the Region of a key, and find it anew when it moved        (single-key requests)
    AtEdge        the same for the first or last Region of a range                (pages of a scan)
    FanOut        split work over many Regions, some at a time, and split again what moved
    Collect       the same, with an outcome for each piece
    ResolveLocks  have the layer above look at what was answered, and send again what it says
    Merge         make one result of many
    Settle        tell a write that failed from one whose outcome is unknown

Plans are frozen and shared by all calls; what belongs to one call is in its `Call`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

import anyio
import attrs
from tikv_pd import TikvError, UndeterminedError
from tikv_pd.lowlevel import Resp
from tikv_region import EntryTooLarge, KeyRange, RegionCache, RegionEntry

from tikv_rpc._plans.attempts import RegionPlan
from tikv_rpc._plans.branches import Branches
from tikv_rpc.call import Call
from tikv_rpc.errors import RelocateError
from tikv_rpc.request import Effect, Request

Work_contra = TypeVar("Work_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)
Part = TypeVar("Part")
Work = TypeVar("Work")
Result = TypeVar("Result")
Merged = TypeVar("Merged")


class Plan(Protocol[Work_contra, Result_co]):
    """Turns work into a result, within one call."""

    async def execute(self, work: Work_contra, call: Call) -> Result_co:
        """Do it."""
        ...


class LockResolver(Protocol):
    """What the layer above does about locks that stand in a request's way."""

    async def resolve(
        self, entry: RegionEntry, request: Request[Resp], response: Resp, call: Call
    ) -> Request[Resp] | None:
        """Return None if a response is final, or the request to send next, after waiting as long as is right.

        It waits by `call.backoffer`, which ends the operation in time.
        """
        ...


@attrs.frozen
class ResolveLocks:
    """Send a request until the layer above is content with the answer."""

    inner: RegionPlan
    resolver: LockResolver

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Send it."""
        while True:
            response = await self.inner.execute(entry, request, call)
            again = await self.resolver.resolve(entry, request, response, call)
            if again is None:
                return response
            request = again


@attrs.frozen
class AtKey(Generic[Resp]):
    """Send a request to the Region that holds a key, wherever it is by then."""

    inner: RegionPlan
    cache: RegionCache

    async def execute(self, work: tuple[bytes, Request[Resp]], call: Call) -> Resp:
        """Send the request of a (key, request) pair."""
        key, request = work
        while True:
            entry = self.cache.find(key)
            if entry is None:
                entry = await self.cache.locate(key, call.backoffer)
            try:
                return await self.inner.execute(entry, request, call)
            except RelocateError:
                continue


@attrs.frozen
class Edge(Generic[Resp]):
    """Work at one edge of a range: its first Region, or its last one."""

    key_range: KeyRange
    """The range."""
    at_end: bool
    """Whether the last Region is meant."""
    request: Callable[[KeyRange], Request[Resp]]
    """Returns the request for the part of the range that lies in that Region."""

    @property
    def subject(self) -> tuple[bytes, None]:
        """What observers hear it is about: the lower end of the range."""
        return self.key_range.start, None


@attrs.frozen
class AtEdge(Generic[Resp]):
    """Send a request to the Region at one edge of a range, whichever it is by then."""

    inner: RegionPlan
    cache: RegionCache

    async def execute(self, work: Edge[Resp], call: Call) -> tuple[KeyRange, Resp]:
        """Send it, and return the part of the range it was about together with the response."""
        key_range = work.key_range
        while True:
            if work.at_end:
                entry = await self.cache.locate_end(key_range.end, call.backoffer)
            else:
                entry = await self.cache.locate(key_range.start, call.backoffer)
            part = key_range.intersect(entry.range)
            try:
                return part, await self.inner.execute(entry, work.request(part), call)
            except RelocateError:
                continue


class Splittable(Protocol[Part, Resp]):
    """Work that can be split over Regions, again and again as they move."""

    @property
    def whole(self) -> Part:
        """All of it."""
        ...

    async def begin(self, cache: RegionCache, call: Call) -> Sequence[tuple[RegionEntry, Part]]:
        """Return the pieces of the whole, each within one Region."""
        ...

    async def split(self, part: Part, cache: RegionCache, call: Call) -> Sequence[tuple[RegionEntry, Part]]:
        """Return the pieces of `part`, which moved, each within one Region."""
        ...

    def request(self, part: Part) -> Request[Resp]:
        """Return the request for one piece."""
        ...


@attrs.frozen
class _InPieces(Generic[Part, Resp]):
    """Base of what splits work over Regions."""

    inner: RegionPlan
    """Sends the request of a piece."""
    cache: RegionCache
    """Knows the Regions."""
    concurrency: int
    """Requests under way at a time."""
    take: Callable[[Part, Resp], None] | None = None
    """Is given each answer as it comes; then none is returned."""
    slots: anyio.Semaphore | None = None
    """One is held while a piece is worked off: bounds what several executions have under way together."""


@attrs.frozen
class FanOut(_InPieces[Part, Resp]):
    """Split work over Regions, keep some requests under way, split again whatever moved meanwhile.

    The first failure cancels the rest and is raised, never within a group.
    """

    async def execute(self, work: Splittable[Part, Resp], call: Call) -> list[tuple[Part, Resp]]:
        """Return the (piece, response) pairs, in no given order; the pieces make up the whole exactly once."""
        run = _Run(self, work)
        await run.go(call)
        return run.answers


@attrs.frozen
class Collected(Generic[Part, Resp]):
    """What became of each piece of a work; together they make up the whole exactly once."""

    answers: list[tuple[Part, Resp]]
    """(piece, response) pairs, in no given order."""
    failures: list[tuple[Part, TikvError]]
    """(piece, error) pairs; UndeterminedError for a write that may have been applied."""


@attrs.frozen
class Collect(_InPieces[Part, Resp]):
    """Like `FanOut`, but each piece succeeds or fails by itself: no failure stops the others or is raised."""

    async def execute(self, work: Splittable[Part, Resp], call: Call) -> Collected[Part, Resp]:
        """Return what became of each piece."""
        failures: list[tuple[Part, TikvError]] = []
        run = _Run(self, work, failures)
        try:
            await run.go(call)
        except TikvError as error:
            # Nothing was sent: the work could not even be split.
            failures.append((work.whole, error))
        return Collected(run.answers, failures)


class _Run(Generic[Part, Resp]):
    """One execution of a `FanOut`, or of a `Collect` when there is a list for failures."""

    def __init__(
        self,
        plan: _InPieces[Part, Resp],
        work: Splittable[Part, Resp],
        failures: list[tuple[Part, TikvError]] | None = None,
    ) -> None:
        self.answers: list[tuple[Part, Resp]] = []
        self._plan = plan
        self._work = work
        self._failures = failures
        self._running = 0
        # With the call of each piece that became of another one, where pieces are settled one by one.
        self._pieces: deque[tuple[RegionEntry, Part, Call | None]] = deque()

    async def go(self, call: Call) -> None:
        """Work everything off."""
        self._pieces.extend((entry, part, None) for entry, part in await self._work.begin(self._plan.cache, call))
        while len(self._pieces) == 1 or (self._pieces and self._plan.concurrency == 1):
            await self._take(self._pieces.popleft(), call)
        if self._pieces:
            await self._branch_out(call)

    async def _branch_out(self, call: Call) -> None:
        """Work the pieces off in as many tasks as there are pieces, up to the limit."""
        async with Branches(call) as branches:
            self._recruit(branches)

    def _recruit(self, branches: Branches) -> None:
        # Not a function within a function: such ones refer to each other, and what they know, values of batches, would
        # be freed by the cyclic collector only.
        if self._pieces and self._running < self._plan.concurrency:
            self._running += 1
            branches.start(partial(self._work_pieces_off, branches))

    async def _work_pieces_off(self, branches: Branches, branch: Call) -> None:
        try:
            while self._pieces and not branches.failures:
                piece = self._pieces.popleft()
                # One task starts the next, so that the first requests are on their way while others are made.
                self._recruit(branches)
                await self._take(piece, branch)
        finally:
            self._running -= 1

    async def _take(self, piece: tuple[RegionEntry, Part, Call | None], call: Call) -> None:
        """Work one piece off, or put others in its place."""
        entry, part, inherited = piece
        if self._failures is None:
            await self._work_off(entry, part, call)
            return
        # Whether a write may have been applied is a matter of each piece.
        branch = call.fork() if inherited is None else inherited
        try:
            await self._work_off(entry, part, branch)
        except TikvError as error:
            self._failures.append((part, settled(error, branch)))

    async def _work_off(self, entry: RegionEntry, part: Part, call: Call) -> None:
        if self._plan.slots is None:
            await self._ask(entry, part, call)
            return
        # What waits for its turn has no request yet: those of large values take memory, and the Region may move.
        async with self._plan.slots:
            await self._ask(entry, part, call)

    async def _ask(self, entry: RegionEntry, part: Part, call: Call) -> None:
        call.check(call.cause)
        if not entry.is_valid():
            # What moved this Region has often moved those of the pieces behind, too: learn it once, not from each.
            await self._split(part, call)
            return
        request = self._work.request(part)
        try:
            response = await self._plan.inner.execute(entry, request, call)
        except RelocateError:
            await self._split(part, call)
            return
        call.wrote = call.wrote or request.effect is not Effect.READ
        if self._plan.take is None:
            self.answers.append((part, response))
        else:
            self._plan.take(part, response)

    async def _split(self, part: Part, call: Call) -> None:
        for entry, piece in await self._work.split(part, self._plan.cache, call):
            heir = None
            if self._failures is not None:
                heir = call.fork()
                # An answer that was lost about the whole was lost about each part of it.
                heir.lost = call.lost
            self._pieces.append((entry, piece, heir))


@attrs.frozen
class Merge(Generic[Work, Result, Merged]):
    """Make one result of what the inner plan returns."""

    inner: Plan[Work, Result]
    merge: Callable[[Result], Merged]

    async def execute(self, work: Work, call: Call) -> Merged:
        """Do the work and merge its result."""
        return self.merge(await self.inner.execute(work, call))


@attrs.frozen
class Settle(Generic[Work, Result]):
    """Raise UndeterminedError instead of a failure when a write may have been applied, in all or in part."""

    inner: Plan[Work, Result]

    async def execute(self, work: Work, call: Call) -> Result:
        """Do the work."""
        try:
            return await self.inner.execute(work, call)
        except TikvError as error:
            cause = settled(error, call)
            if cause is error:
                raise
            raise cause from error


def settled(error: TikvError, call: Call) -> TikvError:
    """Return what a failed operation raises: UndeterminedError if it may have been applied, in all or in part."""
    # What is too large was too large in every attempt.
    if isinstance(error, (UndeterminedError, EntryTooLarge)) or (call.lost is None and not call.wrote):
        return error
    undetermined = UndeterminedError(call.operation)
    undetermined.__cause__ = error
    return undetermined
