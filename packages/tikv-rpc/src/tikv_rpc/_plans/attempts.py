"""One request to one Region: an attempt, what stands around it, and the attempts after it.

Dispatch      send once, along a route
Intercepted   the same, through interceptors
RetryRegion   choose the replica, send, and send again while the Region is right but its leader or store is not
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final, Protocol

import anyio
import attrs
from google.protobuf.message import Message
from tikv_pd import ClosedError, UndeterminedError
from tikv_pd.backoff import TIKV_RPC
from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import Resp
from tikv_proto import errorpb
from tikv_region import CacheAction, FlashbackInProgress, Liveness, Next, RegionEntry, RegionError, StoreEntry

from tikv_rpc._stores.replicas import Access, Selector
from tikv_rpc._stores.route import Route, framed, manner
from tikv_rpc.call import Call
from tikv_rpc.client import RpcClient
from tikv_rpc.errors import RelocateError, given_up
from tikv_rpc.intercept import Attempt, Interceptor, Proceed
from tikv_rpc.options import ReplicaRead
from tikv_rpc.request import Effect, Request

_WRONG_CLUSTER: Final = "INVALID_ARGUMENT"
"""The store belongs to another cluster: its address was given away. It refuses all this client sends, before it looks
at anything else. Source: TiKV server/service/kv.rs, the check of Context.cluster_id."""
_TIMER_SLACK: Final = 0.01
"""Seconds by which gRPC's timer may be ahead of the deadline's own clock."""
_TOO_LATE: Final = "deadline is exceeded"
"""What a store says, in any case of letters, that found no time for a request any more. Source: client-go."""


class RegionPlan(Protocol):
    """A plan for one request to one Region."""

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Do it."""
        ...


class RoutePlan(Protocol):
    """A plan for one attempt along a route; `Dispatch`, or what wraps it."""

    def execute(
        self, entry: RegionEntry, route: Route, request: Request[Resp], call: Call, /
    ) -> Coroutine[Any, Any, Resp]:
        """Do it, once awaited. The response may carry a region error; RpcError when there is none."""
        ...


@attrs.frozen
class Dispatch:
    """Send a request once. It may take `RpcConfig.attempt_timeout`, and never longer than the call's deadline."""

    rpc: RpcClient

    def execute(
        self,
        _entry: RegionEntry,
        route: Route,
        request: Request[Resp],
        call: Call,
        fields: bytes = b"",
        priority: int = 0,
        /,
    ) -> Coroutine[Any, Any, Resp]:
        """Send it, once awaited; `fields` are further ones of its Context."""
        context = route.context
        if request.context or fields:
            context = framed(route.fields + request.context + fields)
        timeout = self.rpc.config.attempt_timeout
        read_timeout = call.options.read_timeout
        if read_timeout is not None and read_timeout < timeout and request.effect is Effect.READ:
            timeout = read_timeout
        at = call.at
        if call.timeout > timeout:
            now = call.now()
            at = min(at, now + timeout)
            timeout = at - now
        else:
            # Its own deadline comes first in any case; to look at the clock takes a while.
            timeout = call.timeout
        return route.client.call(request, context, at, timeout, priority, route.forward)


@attrs.frozen
class Intercepted:
    """Send a request once, through interceptors."""

    inner: Dispatch
    interceptors: tuple[Interceptor, ...]

    async def execute(self, entry: RegionEntry, route: Route, request: Request[Resp], call: Call) -> Resp:
        """Send it."""
        attempt = Attempt(call.operation, request, entry, route.store, call.options, call)
        was_sent = False

        async def send() -> Message:
            nonlocal was_sent
            was_sent = True
            return await self.inner.execute(entry, route, request, call, attempt.fields, attempt.priority)

        proceed: Proceed = send
        for interceptor in reversed(self.interceptors):
            proceed = _around(interceptor, attempt, proceed)
        try:
            response = await proceed()
        except RpcError:
            raise
        except Exception as error:
            if was_sent and request.effect is not Effect.READ:
                # What an interceptor raises of its own says nothing of what the store did before.
                call.lost = RpcError(route.client.address, request.rpc.name, "UNKNOWN", type(error).__name__)
            raise
        if not isinstance(response, request.rpc.response):
            raise TypeError(f"an interceptor answered {request.rpc.name} with {type(response).__name__}")
        return response


def _around(interceptor: Interceptor, attempt: Attempt, proceed: Proceed) -> Proceed:
    return lambda: interceptor(attempt, proceed)


@attrs.frozen
class RetryRegion:
    """Send again as long as that can help without locating anew.

    Raises:
        RelocateError: the Region is not the right one any more, or no replica of it serves.
        UndeterminedError: a request that must not be applied twice may have been applied.
        DeadlineExceeded, BackoffExceeded: trying took too long.
        RpcError: the store refused the request for good.
        TikvError: what the region error stands for, when it is final.
    """

    inner: RoutePlan
    rpc: RpcClient

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Send it until it is answered."""
        rpc, options = self.rpc, call.options
        selector: Selector | None = None
        began = 0.0
        outcome: Resp | RpcError
        route = rpc.known_route(entry, options) if options.is_plain and not request.first else None
        if call.tried is not None:
            tried, call.tried, route = call.tried, None, None
            if tried.entry is entry:
                selector = rpc.selector(entry, request, call)
                selector.begin(tried.route.target)
                await self._after(entry, selector, tried.route, request, tried.outcome, call)
        while True:
            if route is None:
                if selector is None:
                    selector = rpc.selector(entry, request, call)
                route = await rpc.find_route(entry, selector, request, call)
                began = call.now()
            try:
                outcome = await self.inner.execute(entry, route, request, call)
            except RpcError as error:
                outcome = error
            except anyio.get_cancelled_exc_class():
                # Perhaps because another part of the same write failed; what this one wrote, nobody will learn.
                if request.effect is not Effect.READ:
                    call.lost = given_up(route.client.address, request.rpc.name)
                raise
            else:
                if not outcome.HasField("region_error"):
                    if selector is not None:
                        self._after_success(entry, route, call, call.now() - began)
                    return outcome
            if selector is None:
                selector = rpc.selector(entry, request, call)
                selector.begin(route.target)
            else:
                selector.spend(route.target, call.now() - began)
            await self._after(entry, selector, route, request, outcome, call)
            route = None

    async def _after(
        self,
        entry: RegionEntry,
        selector: Selector,
        route: Route,
        request: Request[Resp],
        outcome: Resp | RpcError,
        call: Call,
    ) -> None:
        """Decide what an attempt that was not answered, or with a region error, means; return to try again."""
        if not request.first:
            request.first = manner(route.target, is_leader=route.target.index == entry.leader)
        if isinstance(outcome, RpcError):
            await self._after_failure(entry, selector, route, request.effect, outcome, call)
        else:
            await self._after_region_error(entry, selector, route, request.effect, outcome, call)

    def _after_success(self, entry: RegionEntry, route: Route, call: Call, seconds: float) -> None:
        """Learn from an answer."""
        if route.target.access is Access.LEADER and route.target.index != entry.leader:
            # Who serves as the leader is it.
            entry.switch_leader(route.target.index)
        if call.options.replica_read is ReplicaRead.PREFER_LEADER:
            self.rpc.watch.slowness.record(route.store, seconds)

    async def _after_failure(
        self, entry: RegionEntry, selector: Selector, route: Route, effect: Effect, error: RpcError, call: Call
    ) -> None:
        """Decide what an attempt without an answer means; return to try again."""
        call.cause = error
        self.rpc.totals.rpc_errors[error.code] += 1
        if error.code == _WRONG_CLUSTER:
            route.client.close()
        if hides_outcome(error, effect):
            call.lost = error
            if effect is Effect.ONCE:
                raise UndeterminedError(call.operation) from error
        if not error.retryable:
            raise error
        if self.rpc.closed:
            raise ClosedError("client") from error
        # Before the store is blamed: the caller's own deadline says nothing about it.
        left = call.check(error)
        if error.code == "DEADLINE_EXCEEDED":
            if left <= _TIMER_SLACK:
                await call.pause(TIKV_RPC, error)
                return
            if effect is Effect.READ and call.options.read_timeout is not None:
                selector.on_timeout(route.target)
                await call.pause(None, error)
                return
        if error.code == _WRONG_CLUSTER:
            liveness = Liveness.UNREACHABLE
        else:
            liveness = await self.rpc.watch.probe(route.store, call)
            # A look that was cut short by the deadline says nothing either.
            call.check(error)
        selector.owe(route.store, TIKV_RPC, error)
        if liveness is not Liveness.REACHABLE and not selector.passes_on(route.target):
            self.rpc.watch.slowness.mark_slow(route.store)
            self.rpc.cache.on_send_failure(entry, route.store)
        _check_valid(entry, error)

    async def _after_region_error(
        self, entry: RegionEntry, selector: Selector, route: Route, effect: Effect, response: Any, call: Call
    ) -> None:
        """Decide what a region error means; return to try again."""
        error: errorpb.Error = response.region_error
        target, store = route.target, entry.stores[route.target.index]
        call.cause = cause = RegionError.from_pb(error, entry.id, store.id)
        self.rpc.totals.region_errors[cause.kind] += 1
        if _is_late(error) and effect is Effect.READ and call.options.read_timeout is not None:
            selector.on_timeout(target)
            await call.pause(None, cause)
            return
        named = _named_leader(entry, error)
        if named is not None and not await self._is_back(named, call):
            error.not_leader.ClearField("leader")
        decision = self.rpc.cache.on_region_error(entry, error, store)
        match decision.action:
            case CacheAction.CHECK_STORE:
                # Another store answers there, perhaps of another cluster; nothing else that goes there is right either.
                route.client.close()
            case CacheAction.SWITCH_LEADER:
                selector.on_leader(target)
            case CacheAction.NEXT_PEER if error.HasField("not_leader"):
                selector.on_no_leader(target)
            case CacheAction.NEXT_PEER:
                selector.on_doubt(target)
        if error.HasField("data_is_not_ready"):
            selector.on_stale_replica(target)
        if error.HasField("server_is_busy"):
            self._learn_load(selector, route, error.server_is_busy)
        if decision.error is not None:
            if isinstance(decision.error, FlashbackInProgress) and selector.ask_leader(target):
                return
            if not decision.undetermined:
                raise decision.error from cause
            if effect is not Effect.READ:
                raise UndeterminedError(call.operation) from cause
        if error.HasField("region_not_found") and selector.ask_leader_at_last():
            return
        if decision.next is Next.RELOCATE or entry.invalid_reason is not None:
            await call.pause(decision.backoff, cause)
            raise RelocateError from cause
        if decision.backoff is not None:
            selector.owe(store, decision.backoff, cause)
        else:
            await call.pause(None, cause)

    async def _is_back(self, store: StoreEntry, call: Call) -> bool:
        """Tell whether a store can be reached, also if it could not when it was last looked at."""
        if store.health.liveness is not Liveness.UNREACHABLE:
            return True
        return await self.rpc.watch.probe(store, call) is Liveness.REACHABLE

    def _learn_load(self, selector: Selector, route: Route, busy: errorpb.ServerIsBusy) -> None:
        store = selector.entry.stores[route.target.index]
        wait = busy.estimated_wait_ms / 1000
        if wait:
            store.health.expect_wait(wait, self.rpc.now())
        else:
            self.rpc.watch.slowness.mark_slow(store)
        selector.on_busy(route.target, wait)


def hides_outcome(error: RpcError, effect: Effect) -> bool:
    """Tell whether an attempt that failed may have been applied."""
    return error.sent and effect is not Effect.READ and error.code != _WRONG_CLUSTER


def _check_valid(entry: RegionEntry, cause: RpcError) -> None:
    if entry.invalid_reason is not None:
        raise RelocateError from cause


def _is_late(error: errorpb.Error) -> bool:
    said = error.server_is_busy.reason if error.HasField("server_is_busy") else error.message
    return _TOO_LATE in said.lower()


def _named_leader(entry: RegionEntry, error: errorpb.Error) -> StoreEntry | None:
    """Return the store of the leader that an error names, if it is one of the Region's."""
    if not error.HasField("not_leader"):
        return None
    named = error.not_leader.leader
    stores = (store for peer, store in zip(entry.peers, entry.stores, strict=True) if peer.id == named.id)
    return next(stores, None)
