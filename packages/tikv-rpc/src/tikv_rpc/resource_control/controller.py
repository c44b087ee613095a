"""The resource groups of one client, at work: who waits for tokens, and the one task that gets them from PD.

Requests take tokens from their group's bucket without any I/O as long as there are some. One task looks at all groups
each second, asks PD for tokens and hands them out; a group that runs low wakes it. There is never more than one
request to PD under way, for all groups together.

Source: tikv/pd client/resource_group/controller/global_controller.go.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

import anyio
import anyio.abc
import attrs
from tikv_pd import ClosedError, ConfigError, Deadline, ResourceGroup, ResourceGroupChange, TokenRequest
from tikv_pd.errors import TikvError

from tikv_rpc._reports.observer import CANCELLED, OK, TokenObserver, TokenRequestReport, TokenWaitReport
from tikv_rpc.resource_control.group import TARGET_PERIOD, TICK, GroupState
from tikv_rpc.resource_control.settings import ControllerSettings, ResourceControlConfig, parse_settings
from tikv_rpc.resource_control.source import TokenSource
from tikv_rpc.resource_errors import ResourceGroupNotFound, ResourceGroupThrottled, ResourceGroupUnavailable

DEFAULT_GROUP: Final = "default"
"""The group whose settings hold where a group has none of its own."""
_CLEANUP: Final = 300.0
"""Seconds between two looks for groups that are not used any more."""
_WATCH_RETRY: Final = 30.0
"""Seconds until a watch that failed is begun again."""
_CLOSED: Final = "ResourceControl"


@attrs.define(eq=False)
class _Load:
    """A group that is being loaded, for all that wait for it."""

    done: anyio.Event = attrs.field(factory=anyio.Event)
    error: TikvError | None = None
    is_missing: bool = False


class TokenController:
    """Serves requests while `run` runs.

    Args:
        source: Where groups and tokens come from.
        now: The clock, in seconds; the one deadlines of requests are on.
        config: What this client sets for itself.
        observers: Who hears of waits for tokens and of requests for them.
    """

    def __init__(
        self,
        source: TokenSource,
        now: Callable[[], float],
        config: ResourceControlConfig,
        observers: Iterable[TokenObserver] = (),
    ) -> None:
        self._source = source
        self._now = now
        self._config = config
        self._observers = tuple(observers)
        self.settings = ControllerSettings().overridden(config)
        """What counts now."""
        self.groups: dict[str, GroupState] = {}
        """The groups in use, by the name requests have for them."""
        self.is_degraded = False
        """Whether PD left requests for tokens without an answer for too long."""
        self._tasks: anyio.abc.TaskGroup | None = None
        self._loads: dict[str, _Load] = {}
        self._changed: dict[str, anyio.Event] = {}
        self._closed = anyio.Event()
        self._wake = anyio.Event()
        self._is_low = False
        self._is_asking = False
        self._answer_due = math.inf

    async def run(self, started: anyio.Event | None = None) -> None:
        """Serve until cancelled, and set `started` when that begins; those who wait by then get ClosedError."""
        self._closed = anyio.Event()
        try:
            async with anyio.create_task_group() as self._tasks:
                if started is not None:
                    started.set()
                self._tasks.start_soon(self._keep_up, self._follow_groups)
                self._tasks.start_soon(self._keep_up, self._follow_settings)
                await self._look_after_groups()
        finally:
            self._tasks = None
            self._is_asking = False
            self._closed.set()
            for name in list(self._changed):
                self._wake_waiters(name)
            for load in self._loads.values():
                load.done.set()
            self._loads.clear()

    async def group(self, name: str, deadline: Deadline) -> GroupState:
        """Return a group, loaded from PD when first asked for.

        Raises:
            ResourceGroupNotFound: there is no such group.
            ResourceGroupUnavailable: PD did not tell.
            DeadlineExceeded: it did not tell in time.
            ClosedError: this is not running.
        """
        self._check_open()
        while (group := self.groups.get(name)) is None:
            load = self._load(name)
            left = deadline.check()
            with anyio.move_on_after(None if left == math.inf else left):
                await load.done.wait()
            self._check_open()
            if load.error is not None:
                raise ResourceGroupUnavailable(name) from load.error
            if load.is_missing:
                raise ResourceGroupNotFound(name)
        return group

    async def is_background(self, group: GroupState, job_type: str, deadline: Deadline) -> bool:
        """Tell whether a kind of job runs in the background, where stores alone count what it uses.

        A group without kinds of its own goes by those of `default`.
        """
        if group.is_tombstone:
            return False
        job_types = group.settings.job_types
        if not job_types and group.name != DEFAULT_GROUP:
            try:
                job_types = (await self.group(DEFAULT_GROUP, deadline)).settings.job_types
            except (ResourceGroupNotFound, ResourceGroupUnavailable):
                return False
        return job_type in job_types

    async def acquire(self, group: GroupState, amount: float, deadline: Deadline) -> float:
        """Take tokens, waiting for them if need be, and return the seconds that took.

        Raises:
            ResourceGroupThrottled: there will not be enough soon enough.
            DeadlineExceeded: the deadline came first.
            ClosedError: this was closed meanwhile.

        Cancellation: safe; tokens that were taken are given back.
        """
        tally, began = group.tally, self._now()
        outcome = CANCELLED
        tally.waiting += 1
        try:
            waited = await self._reserve(group, amount, deadline)
            outcome = OK
        except Exception as error:
            outcome = type(error).__name__
            if isinstance(error, ResourceGroupThrottled):
                tally.throttled_seconds += self._now() - began
            raise
        finally:
            tally.waiting -= 1
            if outcome != OK:
                waited = self._now() - began
                tally.failures[outcome] += 1
            for observer in self._observers:
                observer.waited(TokenWaitReport(group.name, waited, outcome))
        tally.wait_seconds += waited
        return waited

    async def _reserve(self, group: GroupState, amount: float, deadline: Deadline) -> float:
        """Take tokens and return the seconds waited for them."""
        began = now = self._now()
        throttled: ResourceGroupThrottled | None = None
        for _ in range(self.settings.retry_times):
            # The group may have been deleted, or made anew, since.
            group = self.groups.get(group.name, group)
            left = deadline.check(throttled)
            reservation = group.bucket.reserve(now, amount, min(self.settings.max_wait, left))
            self.look_at(group)
            if reservation.granted:
                if reservation.wait > 0:
                    await self._sit_out(group, amount, reservation.wait)
                elif throttled is None:
                    return 0.0
                return self._now() - began
            group.tally.retries += 1
            throttled = ResourceGroupThrottled(group.name, reservation.wait, reservation.rate, reservation.remaining)
            with anyio.move_on_after(min(self.settings.retry_interval, left)):
                await self._changed.setdefault(group.name, anyio.Event()).wait()
            self._check_open()
            now = self._now()
        deadline.check(throttled)
        assert throttled is not None
        raise throttled

    def look_at(self, group: GroupState) -> None:
        """Wake the task that asks PD if the group's bucket runs low; to be called whenever tokens were taken."""
        if group.bucket.take_notice():
            group.tally.low_notices += 1
            self._is_low = True
            self._wake.set()

    def _check_open(self) -> None:
        if self._tasks is None:
            raise ClosedError(_CLOSED)

    async def _sit_out(self, group: GroupState, amount: float, wait: float) -> None:
        """Wait until tokens that were taken are there."""
        try:
            with anyio.move_on_after(wait):
                await self._closed.wait()
            self._check_open()
        except BaseException:
            group.bucket.give_back(self._now(), amount)
            raise

    def _wake_waiters(self, name: str) -> None:
        """Have those who wait for tokens of a group look again."""
        changed = self._changed.pop(name, None)
        if changed is not None:
            changed.set()

    def _load(self, name: str) -> _Load:
        """Return the load of a group that is under way, or a new one."""
        load = self._loads.get(name)
        if load is None:
            assert self._tasks is not None
            load = self._loads[name] = _Load()
            self._tasks.start_soon(self._get, name, load)
        return load

    async def _get(self, name: str, load: _Load) -> None:
        try:
            settings = await self._source.get_group(name, timeout=self._config.token_timeout)
        except TikvError as error:
            rate = self._config.degraded_fill_rate
            if rate is None or not error.retryable:
                load.error = error
            elif name not in self.groups:
                self._stand_in(name, rate)
        else:
            load.is_missing = settings is None
            known = self.groups.get(name)
            if settings is not None and (known is None or known.is_stand_in):
                self._replace(GroupState.new(name, settings, self._now()))
        # When cancelled, this is left to `run`: who waits must not find it running.
        del self._loads[name]
        load.done.set()

    def _stand_in(self, name: str, rate: int) -> None:
        group = GroupState.new(name, ResourceGroup(name, rate), self._now())
        group.is_stand_in = group.is_degraded = True
        group.bucket.reconfigure(self._now(), tokens=0.0, rate=float(rate), burst=rate, threshold=0.0)
        self._replace(group)

    def _replace(self, group: GroupState) -> None:
        known = self.groups.get(group.name)
        if known is not None:
            group.tally = known.tally
        self.groups[group.name] = group
        self._wake_waiters(group.name)

    async def _look_after_groups(self) -> None:
        now = self._now()
        tick_at, restore_at, cleanup_at = now + TICK, now + TARGET_PERIOD, now + _CLEANUP
        while True:
            alarms = [group.alarm_at for group in self.groups.values()]
            await self._sleep_until(min(tick_at, restore_at, cleanup_at, self._answer_due, *alarms))
            now = self._now()
            for group in self.groups.values():
                group.ring(now)
            if now >= self._answer_due:
                self._answer_due = math.inf
                self.is_degraded = True
            if now >= restore_at:
                restore_at = now + TARGET_PERIOD
                self._restore()
            if now >= cleanup_at:
                cleanup_at = now + _CLEANUP
                self._drop_idle()
            is_tick = now >= tick_at
            if is_tick or self._is_low:
                self._ask(now, is_report=is_tick)
            if is_tick:
                tick_at = now + TICK
            if self.is_degraded:
                self._degrade(now)

    async def _sleep_until(self, moment: float) -> None:
        with anyio.move_on_after(max(moment - self._now(), 0.0)):
            await self._wake.wait()
        self._wake = anyio.Event()

    def _restore(self) -> None:
        for group in self.groups.values():
            group.bucket.restore_notices()
            if group.is_stand_in:
                self._load(group.name)

    def _drop_idle(self) -> None:
        for name in [name for name, group in self.groups.items() if group.is_idle()]:
            del self.groups[name]

    def _ask(self, now: float, *, is_report: bool) -> None:
        """Send a request to PD if there is something to ask and none is under way."""
        for group in self.groups.values():
            group.tick(now)
        if self._is_asking:
            return
        self._is_low = False
        asked = [group.ask(is_report=is_report) for group in self.groups.values()]
        requests = [request for request in asked if request is not None]
        if requests and self._tasks is not None:
            self._is_asking = True
            for request in requests:
                self.groups[request.group].tally.token_requests += 1
            if self.settings.degraded_wait > 0:
                self._answer_due = min(self._answer_due, now + self.settings.degraded_wait)
            self._tasks.start_soon(self._exchange, requests)

    async def _exchange(self, requests: Sequence[TokenRequest]) -> None:
        outcome, began = CANCELLED, self._now()
        try:
            timeout = self._config.token_timeout
            grants = await self._source.acquire(requests, period=TARGET_PERIOD, timeout=timeout)
            outcome = OK
        except TikvError as error:
            # What was asked stays due: the next tick asks again.
            outcome = type(error).__name__
            return
        finally:
            self._is_asking = False
            for observer in self._observers:
                observer.asked(TokenRequestReport(self._now() - began, outcome, len(requests)))
            if self._is_low:
                self._wake.set()
        self._answer_due = math.inf
        self.is_degraded = False
        now = self._now()
        told = {request.group: request.consumption for request in requests}
        for grant in grants:
            group = self.groups.get(grant.group)
            if group is not None:
                used = told[grant.group]
                group.tally.reported_ru += used.read_ru + used.write_ru
                group.apply(grant, now)
                self._wake_waiters(group.name)
                self.look_at(group)
        # The alarm of a trickle may be sooner than what the task sleeps for.
        self._wake.set()

    def _degrade(self, now: float) -> None:
        for group in self.groups.values():
            if group.degrade(now):
                self._wake_waiters(group.name)

    async def _keep_up(self, follow: Callable[[], Awaitable[None]]) -> None:
        while True:
            with suppress(TikvError):
                await follow()
            await anyio.sleep(_WATCH_RETRY)

    async def _follow_groups(self) -> None:
        async with self._source.watch_groups() as changes:
            # What changed before is not told.
            for name in list(self.groups):
                settings = await self._source.get_group(name, timeout=self._config.token_timeout)
                await self._take(ResourceGroupChange(name, settings, 0))
            async for change in changes:
                await self._take(change)

    async def _take(self, change: ResourceGroupChange) -> None:
        known = self.groups.get(change.name)
        if known is None:
            return
        if change.group is None:
            if not known.is_tombstone and change.name != DEFAULT_GROUP:
                await self._bury(change.name)
        elif known.is_tombstone or known.is_stand_in:
            self._replace(GroupState.new(change.name, change.group, self._now()))
        else:
            known.settings = change.group

    async def _bury(self, name: str) -> None:
        """Let a deleted group live on with the settings of `default`, for requests that still name it."""
        default = self.groups.get(DEFAULT_GROUP)
        settings = default.settings if default is not None else None
        if settings is None:
            try:
                settings = await self._source.get_group(DEFAULT_GROUP, timeout=self._config.token_timeout)
            except TikvError:
                settings = None
        if settings is None:
            self.groups.pop(name, None)
            self._wake_waiters(name)
        else:
            self._replace(GroupState.new(name, settings, self._now(), is_tombstone=True))

    async def _follow_settings(self) -> None:
        async with self._source.watch_settings() as changes:
            stored = await self._source.get_settings(timeout=self._config.token_timeout)
            if stored is not None:
                self._adopt(stored)
            async for change in changes:
                self._adopt(change.value or b"{}")

    def _adopt(self, stored: bytes) -> None:
        try:
            settings = parse_settings(stored)
        except ConfigError:
            # Those from before hold on.
            return
        self.settings = settings.overridden(self._config)
