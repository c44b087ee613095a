"""Plans: how an operation becomes requests to Regions, one concern per class.

A plan turns a piece of work into a result. `Dispatch` sends one request to one Region; every other plan holds an
inner one and knows one thing more:

    Dispatch      send once, to the Region's leader
    RetryRegion   send again while the Region is right but its leader, state or store is not
    AtKey         find the Region of a key, and find it anew when it moved        (single-key requests)
    AtEdge        the same for the first or last Region of a range                (pages of a scan)
    FanOut        split work over many Regions, some at a time, and split again what moved
    Merge         make one result of many
    Settle        tell a write that failed from one whose outcome is unknown

Plans are frozen and shared by all calls; what belongs to one call is in its `Call`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

import anyio
import attrs
from tikv_pd import BackoffExceeded, ClosedError, DeadlineExceeded, UndeterminedError
from tikv_pd.backoff import TIKV_RPC
from tikv_pd.errors import RpcError, TikvError
from tikv_pd.lowlevel import Resp
from tikv_region import CacheAction, KeyRange, Next, RegionCache, RegionEntry, RegionError, StoreEntry

from tikv_rpc.call import Call
from tikv_rpc.client import RpcClient
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


class RegionPlan(Protocol):
    """A plan for one request to one Region."""

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Do it."""
        ...


@attrs.frozen
class Dispatch:
    """Send a request once, to the leader of the Region as the cache knows it.

    The response may carry a region error. Raises RpcError when there is no response.
    """

    rpc: RpcClient

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Send it."""
        rpc = self.rpc
        route = rpc.known_route(entry)
        if route is None:
            route = await rpc.find_route(entry, call)
        deadline = call.deadline
        limit = deadline.now() + rpc.config.attempt_timeout
        return await route.store.call(request, route.context, min(deadline.at, limit))


_FINAL_CODES: Final = frozenset(
    {"INVALID_ARGUMENT", "UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED", "FAILED_PRECONDITION"}
)
"""Statuses that another attempt will meet as well."""


@attrs.frozen
class RetryRegion:
    """Send again as long as that can help without locating anew.

    Raises:
        RelocateError: the Region is not the right one any more.
        UndeterminedError: a request that must not be applied twice may have been applied.
        DeadlineExceeded, BackoffExceeded: trying took too long.
        RpcError: the store refused the request for good.
        TikvError: what the region error stands for, when it is final.
    """

    inner: RegionPlan
    rpc: RpcClient

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Send it until it is answered."""
        while True:
            store = entry.leader_store
            try:
                response = await self.inner.execute(entry, request, call)
            except RpcError as error:
                await self._after_failure(entry, store, request.effect, error, call)
            else:
                if not response.HasField("region_error"):
                    return response
                await self._after_region_error(entry, store, response, call)

    async def _after_failure(
        self, entry: RegionEntry, store: StoreEntry, effect: Effect, error: RpcError, call: Call
    ) -> None:
        """Decide what an attempt without an answer means; return to try again."""
        if error.sent and effect is not Effect.READ:
            call.lost = error
            if effect is Effect.ONCE:
                raise UndeterminedError(call.operation) from error
        if error.code in _FINAL_CODES:
            raise error
        if self.rpc.closed:
            raise ClosedError("client") from error
        # Before the store is blamed: the caller's own deadline says nothing about it.
        call.deadline.check(error)
        self.rpc.cache.on_send_failure(entry, store)
        await call.pause(TIKV_RPC, error)
        if not entry.is_valid():
            raise RelocateError from error

    async def _after_region_error(self, entry: RegionEntry, store: StoreEntry, response: Any, call: Call) -> None:
        """Decide what a region error means; return to try again."""
        decision = self.rpc.cache.on_region_error(entry, response.region_error, store)
        cause = RegionError.from_pb(response.region_error, entry.id, store.id)
        if decision.action is CacheAction.CHECK_STORE:
            await self.rpc.disconnect(store.address)
        if decision.next is Next.FAIL:
            if decision.undetermined:
                raise UndeterminedError(call.operation) from cause
            assert decision.error is not None
            raise decision.error from cause
        await call.pause(decision.backoff, cause)
        if decision.next is Next.RELOCATE or not entry.is_valid():
            raise RelocateError from cause


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

    async def split(self, part: Part, cache: RegionCache, call: Call) -> list[tuple[RegionEntry, Part]]:
        """Return the pieces of `part`, each within one Region."""
        ...

    def request(self, part: Part) -> Request[Resp]:
        """Return the request for one piece."""
        ...


@attrs.frozen
class FanOut(Generic[Part, Resp]):
    """Split work over Regions, keep some requests under way, split again whatever moved meanwhile.

    The first failure cancels the rest and is raised, never within a group.
    """

    inner: RegionPlan
    cache: RegionCache
    concurrency: int

    async def execute(self, work: Splittable[Part, Resp], call: Call) -> list[tuple[Part, Resp]]:
        """Return the (piece, response) pairs, in no given order; the pieces make up the whole exactly once."""
        pieces = deque(await work.split(work.whole, self.cache, call))
        answers: list[tuple[Part, Resp]] = []
        workers = min(self.concurrency, len(pieces))
        if workers <= 1:
            await self._work_off(pieces, answers, work, call)
            return answers
        branches = [call.fork() for _ in range(workers)]
        failures: list[TikvError] = []

        async def branch_out(branch: Call, scope: anyio.CancelScope) -> None:
            try:
                await self._work_off(pieces, answers, work, branch)
            except TikvError as error:
                failures.append(error)
                scope.cancel()

        async with anyio.create_task_group() as tasks:
            for branch in branches:
                tasks.start_soon(branch_out, branch, tasks.cancel_scope)
        call.join(branches)
        if failures:
            raise failures[0]
        return answers

    async def _work_off(
        self,
        pieces: deque[tuple[RegionEntry, Part]],
        answers: list[tuple[Part, Resp]],
        work: Splittable[Part, Resp],
        call: Call,
    ) -> None:
        while pieces:
            entry, part = pieces.popleft()
            if not entry.is_valid():
                # What moved this Region has often moved those of the pieces behind, too: learn it once, not from each.
                pieces.extend(await work.split(part, self.cache, call))
                continue
            request = work.request(part)
            try:
                answers.append((part, await self.inner.execute(entry, request, call)))
                call.wrote = call.wrote or request.effect is not Effect.READ
            except RelocateError:
                pieces.extend(await work.split(part, self.cache, call))
            except anyio.get_cancelled_exc_class():
                # Another piece failed first; what this one wrote, nobody will learn.
                if request.effect is not Effect.READ:
                    call.lost = call.lost or RpcError("", request.rpc.name, "CANCELLED", "another part failed first")
                raise


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
        except (DeadlineExceeded, BackoffExceeded, ClosedError, RpcError) as error:
            if call.lost is None and not call.wrote:
                raise
            raise UndeterminedError(call.operation) from error
