"""`ResourceControl`: keeps requests to what their resource group may use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Self

import anyio
from google.protobuf.message import Message
from tikv_pd.lowlevel import BackgroundTasks
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv

from tikv_rpc._reports.observer import TokenObserver
from tikv_rpc.intercept import Attempt, Proceed
from tikv_rpc.resource_control.charge import counters_of, response_info, written_bytes
from tikv_rpc.resource_control.controller import TokenController
from tikv_rpc.resource_control.cost import Access, RequestInfo
from tikv_rpc.resource_control.details import RuCollector, RuDetails, collectors
from tikv_rpc.resource_control.group import GroupState
from tikv_rpc.resource_control.settings import ResourceControlConfig
from tikv_rpc.resource_control.source import TokenSource
from tikv_rpc.resource_control.stats import GroupStats

_BYPASS: Final = "internal_others"
"""Part of the source of requests that are not limited: few and small, and users would notice. Source: client-go."""


class ResourceControl:
    """An interceptor that charges requests to their resource group and has them wait for its tokens.

    Active for requests whose options name a resource group, but for those of background jobs, which stores limit by
    themselves, and those whose request source contains `internal_others`. Before a request is sent it takes what it is
    sure to cost, and afterwards what it cost on top. It tells the store the group, its priority, and what the group
    used on other stores meanwhile.

    Use inside `async with`, or run `run` in a task: in it lives the task that gets tokens from PD.

    Args:
        source: Where groups and tokens come from.
        config: What this client sets for itself.
        predict_read_bytes: Returns the bytes that a coprocessor request is expected to read, 0 for no idea; they are
            charged in advance and settled with what was read.
        observers: Who hears of waits for tokens and of requests for them.
        now: The clock, in seconds; the one anyio's waits follow.

    Raises, from calls:
        ResourceGroupThrottled: the group's tokens do not suffice, also not after waiting for some. Nothing was sent; or
            it was a read, and what it returned cost too much.
        ResourceGroupNotFound: there is no such group.
        ResourceGroupUnavailable: PD did not tell its settings.
        ClosedError: this is not open.

    Source: client-go internal/client/client_interceptor.go.
    """

    name: Final = "resource_control"
    """The interceptor's name."""

    def __init__(
        self,
        source: TokenSource,
        config: ResourceControlConfig | None = None,
        *,
        predict_read_bytes: Callable[[Attempt], int] | None = None,
        observers: Iterable[TokenObserver] = (),
        now: Callable[[], float] = anyio.current_time,
    ) -> None:
        self.config = config if config is not None else ResourceControlConfig()
        """What this client sets for itself."""
        self._controller = TokenController(source, now, self.config, observers)
        self._predict = predict_read_bytes
        self._keyspace_id = source.keyspace_id
        self._now = now
        self._totals: dict[str, RuCollector] = {}
        self._background = BackgroundTasks()

    async def __aenter__(self) -> Self:
        await self._background.__aenter__()
        started = anyio.Event()
        self._background.start_soon(self.run, started)
        await started.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._background.__aexit__(kind, error, traceback)

    async def run(self, started: anyio.Event | None = None) -> None:
        """Serve until cancelled; requests of groups that wait by then get ClosedError.

        Args:
            started: Set as soon as requests are served.
        """
        await self._controller.run(started)

    async def __call__(self, attempt: Attempt, proceed: Proceed) -> Message:
        """Charge one attempt."""
        name, source = attempt.options.resource_group, attempt.options.request_source
        if not name or _BYPASS in source:
            return await proceed()
        controller = self._controller
        group = await controller.group(name, attempt.deadline)
        _, separator, job_type = source.rpartition("_")
        if separator and await controller.is_background(group, job_type, attempt.deadline):
            return await proceed()
        request = self._describe(attempt)
        await self._admit(group, request, attempt)
        try:
            response = await proceed()
        except BaseException:
            self._refund(name, source, request)
            raise
        await self._settle(name, request, response, attempt)
        return response

    def stats(self) -> dict[str, GroupStats]:
        """Return how each group does that was used, by name; one that was not used for minutes tells its cost alone."""
        # Whoever exports it may call from another thread.
        totals, groups = self._totals.copy(), self._controller.groups.copy()
        details = {name: RuDetails() for name, group in groups.items() if group.tally.is_used}
        details |= {name: total.details for name, total in totals.items()}
        return {name: self._stats_of(groups.get(name), cost) for name, cost in details.items()}

    def _stats_of(self, group: GroupState | None, details: RuDetails) -> GroupStats:
        if group is None:
            return GroupStats(details)
        bucket = group.bucket
        return GroupStats(
            details,
            bucket.available(self._now()),
            bucket.rate,
            bucket.burst,
            group.average,
            group.is_throttled,
            group.is_degraded,
            group.is_tombstone,
            group.tally.counts(),
        )

    def _describe(self, attempt: Attempt) -> RequestInfo:
        payload, store = attempt.request.payload, attempt.store
        written = written_bytes(attempt.rpc, payload)
        own, other = self.config.zone, store.zone
        access = Access.UNKNOWN
        if own and other:
            access = Access.LOCAL_ZONE if own == other else Access.CROSS_ZONE
        predicted = 0
        if self._predict is not None and attempt.rpc is Tikv.Coprocessor:
            predicted = self._predict(attempt)
        return RequestInfo(
            is_write=written is not None,
            store_id=store.id,
            write_bytes=written or 0,
            replica_count=attempt.entry.replica_count,
            size=len(payload),
            access=access,
            predicted_read_bytes=predicted,
        )

    async def _admit(self, group: GroupState, request: RequestInfo, attempt: Attempt) -> None:
        """Take what a request costs before it is sent, and tell the store whose it is."""
        controller, model = self._controller, self._controller.settings.model
        cost = group.before(model, request)
        wait = 0.0
        if not group.bucket.is_unlimited:
            try:
                wait = await controller.acquire(group, cost.ru, attempt.deadline)
            except BaseException:
                group.withdraw(model, request, cost)
                raise
        self._add(group.name, cost.read_ru, cost.write_ru, wait)
        tally = group.tally
        tally.requests += 1
        tally.charge(attempt.options.request_source, cost.read_ru, cost.write_ru)
        if attempt.rpc is Tikv.Coprocessor:
            tally.expect(request.predicted_read_bytes)
        penalty = group.penalty(request.store_id)
        told = kvrpcpb.ResourceControlContext(resource_group_name=group.name, penalty=penalty.to_consumption().to_pb())
        patched = kvrpcpb.Context.FromString(attempt.fields) if attempt.fields else None
        if patched is None or not patched.resource_control_context.override_priority:
            told.override_priority = group.settings.priority
        attempt.patch(kvrpcpb.Context(resource_control_context=told))
        # The queue to the store goes by it as well. Source: client-go client.go, sendBatchRequest.
        attempt.priority = attempt.priority or group.settings.priority

    def _refund(self, name: str, source: str, request: RequestInfo) -> None:
        """Give back what was charged for bytes that were not read."""
        ahead = self._controller.settings.model.precharge(request)
        group = self._controller.groups.get(name)
        if ahead > 0 and group is not None:
            group.bucket.give_back(self._now(), ahead)
            group.tally.charge(source, -ahead, 0.0)
            self._add(name, -ahead)

    async def _settle(self, name: str, request: RequestInfo, response: Any, attempt: Attempt) -> None:
        """Take what an answered request cost on top."""
        controller = self._controller
        group = controller.groups.get(name)
        if group is None:
            return
        info = response_info(attempt.rpc, response)
        cost = group.settle(controller.settings.model, request, info)
        group.tally.charge(attempt.options.request_source, cost.read_ru, cost.write_ru)
        if request.predicted_read_bytes > 0:
            group.tally.actual_bytes += info.read_bytes
        ru_v2 = 0.0
        counters = counters_of(response)
        if counters is not None:
            ru_v2 = self.config.ru_v2_weights.cost(counters, is_write=request.is_write)
            if controller.settings.version_of(self._keyspace_id) == 2:
                group.used.ru_v2 += ru_v2
        self._add(name, cost.read_ru, cost.write_ru, ru_v2=ru_v2)
        if group.bucket.is_unlimited:
            return
        if cost.ru < 0:
            group.bucket.give_back(self._now(), -cost.ru)
        elif group.may_owe(request, cost):
            group.bucket.remove(self._now(), cost.ru)
            controller.look_at(group)
        else:
            self._add(name, wait=await controller.acquire(group, cost.ru, attempt.deadline))

    def _add(
        self, name: str, read_ru: float = 0.0, write_ru: float = 0.0, wait: float = 0.0, ru_v2: float = 0.0
    ) -> None:
        total = self._totals.get(name)
        if total is None:
            total = self._totals[name] = RuCollector()
        total.add(read_ru, write_ru, wait, ru_v2)
        for collector in collectors():
            collector.add(read_ru, write_ru, wait, ru_v2)
