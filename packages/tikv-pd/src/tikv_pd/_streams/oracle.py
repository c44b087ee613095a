"""What is known of PD's time without asking, and what follows from it.

The latest timestamp is remembered with the moment it came. While somebody wants timestamps of low resolution, one is
fetched whenever none came for an interval, which shrinks for those who read less far in the past than it is long, and
grows back when they are gone.

Source: client-go oracle/oracles/pd.go. Differences on purpose: nothing is fetched while other callers keep the latest
timestamp fresh; a timestamp of low resolution is never older than twice the interval; a timestamp in question is
compared with one granted after the question, so that one look is enough.
"""

from __future__ import annotations

from typing import Final

import anyio
import attrs

from tikv_pd._routing.calls import Calls
from tikv_pd._streams.tso import Tso
from tikv_pd.deadline import Deadline
from tikv_pd.errors import ConfigError, FutureTimestamp, TikvError
from tikv_pd.timestamp import LATEST, Timestamp

SHORTEST: Final = 0.5
"""Seconds; no read makes the interval shorter. Source: pd.go, minAllowedAdaptiveUpdateTSInterval."""
_SHRINK_BY: Final = 0.1
"""Seconds that a shrunk interval stays below what is required."""
_KEEP: Final = 300.0
"""Seconds after the last demanding read until the interval begins to grow back."""
_GROWTH: Final = 0.02
"""Seconds the interval grows in each second."""
_NEAR: Final = 0.2
"""A read this many seconds less demanding than the interval still keeps it from growing."""
_TICK: Final = 0.05
"""Seconds for which PD's physical time stands still. Source: PD tso-update-physical-interval."""


@attrs.define
class RefreshInterval:
    """How often to fetch a timestamp."""

    configured: float
    """Seconds, what it grows back to."""
    current: float = attrs.field(init=False)
    """Seconds, now."""
    _demanded_at: float = attrs.field(init=False, default=0.0)
    _ticked_at: float = attrs.field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        self.current = self.configured

    def change(self, configured: float) -> None:
        """Take another configured interval over; one that demanding reads made shorter stays as it is."""
        if self.current == self.configured or configured < self.current:
            self.current = configured
        self.configured = configured

    def demand(self, staleness: float, now: float) -> bool:
        """Take note of a read `staleness` seconds in the past; tell whether the interval became shorter."""
        if self.configured <= SHORTEST:
            return False
        if staleness <= self.current + _NEAR:
            self._demanded_at = now
        wanted = max(staleness - _SHRINK_BY, SHORTEST)
        if staleness >= self.current or wanted >= self.current:
            return False
        self.current = wanted
        return True

    def tick(self, now: float) -> None:
        """Grow back when nobody demanded anything for long."""
        if self.current < self.configured and now - self._demanded_at > _KEEP:
            self.current = min(self.configured, self.current + _GROWTH * (now - self._ticked_at))
        self._ticked_at = now


class Oracle:
    """PD's time as far as it is known; `run` keeps it fresh once it is asked for."""

    def __init__(self, calls: Calls, tso: Tso) -> None:
        self._calls = calls
        self._tso = tso
        self._now = calls.transport.now
        self._interval = RefreshInterval(calls.config.low_resolution_interval)
        self._wanted = anyio.Event()
        self._shrunk = anyio.Event()

    async def run(self) -> None:
        """Fetch a timestamp whenever none came for an interval, from the first use on, until cancelled."""
        await self._wanted.wait()
        while True:
            now = self._now()
            self._interval.tick(now)
            due = self._tso.grants.latest_at + self._interval.current
            if due > now:
                self._shrunk = anyio.Event()
                with anyio.move_on_after(due - now):
                    await self._shrunk.wait()
                continue
            try:
                await self._tso.ask(None, "refreshing the timestamp of low resolution", self._interval.current)
            except TikvError:
                # PD is away: whoever needs a timestamp meanwhile asks for one, and hears why.
                await anyio.sleep(SHORTEST)

    def change_interval(self, seconds: float) -> None:
        """Change the configured interval."""
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise TypeError(f"an interval must be a number of seconds, not {type(seconds).__name__}")
        if not seconds > 0:
            raise ConfigError(f"an interval must be above 0 s, got {seconds!r}")
        self._interval.change(seconds)
        self._shrunk.set()

    async def recent(self, operation: str, timeout: float | None) -> Timestamp:
        """Return the latest timestamp known, unless it is old; then a new one."""
        self._wanted.set()
        grants = self._tso.grants
        if grants.latest.physical and self._now() - grants.latest_at <= 2 * self._interval.current:
            return grants.latest
        return await self._tso.ask(None, operation, self._calls.seconds(timeout))

    async def stale(self, staleness: float, timeout: float | None) -> Timestamp:
        """Return a timestamp that lies `staleness` seconds in the past by PD's clock, never less.

        client-go estimates alone, and may read ahead of PD when that is not far in the past.
        """
        if not staleness > 0:
            raise ConfigError(f"staleness must be above 0 s, got {staleness!r}")
        latest = await self.recent("get_stale_ts", timeout)
        physical = self._estimate(latest) - staleness * 1000
        if not physical > 0:
            raise ConfigError(f"staleness of {staleness:g} s reaches back before all time")
        if physical > latest.physical:
            # PD's clock goes in ticks: by an estimate alone this may lie ahead of it, where commits are still to come.
            granted = await self._tso.ask(None, "get_stale_ts", self._calls.seconds(timeout))
            physical = min(physical, granted.physical - staleness * 1000)
        return Timestamp(int(physical), 0)

    async def wait_for(self, ts: int, deadline: Deadline) -> Timestamp:
        """Return a timestamp not below `ts` once PD grants one."""
        if not 0 <= ts < 1 << 63:
            raise ConfigError(f"cannot wait for {ts}: a timestamp is below 2**63")
        wanted = Timestamp.from_ts(ts)
        while True:
            granted = await self._tso.ask(None, deadline.operation, deadline.check(), of=deadline.timeout)
            if granted >= wanted:
                return granted
            gap = (wanted.physical - granted.physical) / 1000
            with self._calls.members.while_open():
                await anyio.sleep(min(max(gap, _TICK), deadline.check()))

    async def validate(self, ts: int, *, is_stale: bool, timeout: float | None) -> None:
        """Raise unless PD has granted a timestamp that is not below `ts`."""
        if ts == LATEST and not is_stale:
            return
        if not 0 <= ts < 1 << 63:
            what = "a stale read needs a moment to read at" if ts == LATEST else "a timestamp is below 2**63"
            raise ConfigError(f"cannot read at {ts}: {what}")
        if is_stale:
            self._demand(ts)
        if ts <= self._tso.grants.latest.ts:
            return
        granted = await self._tso.ask(None, "validate_read_ts", self._calls.seconds(timeout))
        if ts > granted.ts:
            raise FutureTimestamp(ts, granted.ts)

    def _demand(self, ts: int) -> None:
        """Refresh more often for reads less stale than what is known."""
        grants = self._tso.grants
        if not grants.latest.physical:
            return
        staleness = (self._estimate(grants.latest) - Timestamp.from_ts(ts).physical) / 1000
        if self._interval.demand(staleness, self._now()):
            self._shrunk.set()

    def _estimate(self, latest: Timestamp) -> float:
        """Return PD's physical time now, in milliseconds, given its latest timestamp."""
        return latest.physical + (self._now() - self._tso.grants.latest_at) * 1000
