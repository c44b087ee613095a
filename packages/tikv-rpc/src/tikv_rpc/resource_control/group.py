"""One resource group on this client as a state machine: what it used, what it holds, what to ask PD for.

Pure: every method takes the time, none waits. The controller around it calls `tick` each second, `ask` when a request
may go to PD, `apply` with what PD granted, and for each request of the group `before`, `settle` and the bucket.

Source: tikv/pd client/resource_group/controller/group_controller.go.
"""

from __future__ import annotations

import math
from typing import Final

import attrs
from tikv_pd import ResourceGroup, TokenGrant, TokenRequest

from tikv_rpc.resource_control.bucket import TokenBucket
from tikv_rpc.resource_control.cost import RequestInfo, ResponseInfo, RuModel, Usage
from tikv_rpc.resource_control.stats import GroupTally

TARGET_PERIOD: Final = 5.0
"""Seconds for which a request to PD asks for tokens."""
TICK: Final = 1.0
"""Seconds between two looks at what a group used."""

_SMOOTHING: Final = 0.5
"""Weight of the past in the average use."""
_AMPLIFICATION: Final = 1.1
"""How much more than the average is asked for, so that a group can grow."""
_REPORT_RU: Final = 100.0
"""Request units that are worth a report."""
_LONGEST_SILENCE: Final = 4 * TARGET_PERIOD
"""Seconds after which a group reports whatever it used."""
_INITIAL_LOW: Final = 0.8
"""Part of a second's tokens below which a new group asks for more."""
_LOW: Final = 0.1
"""Part of a grant below which more is asked for."""
_TRICKLE_RESERVE: Final = 1.25
"""Seconds before the end of a trickle at which the next request is due."""
_BIG_RESPONSE: Final = 4 << 20
"""Bytes of a response for which a throttled group waits rather than go into debt."""


@attrs.define(eq=False)
class GroupState:
    """The state of one group. `settings` may be replaced at any time."""

    name: str
    """Name under which requests name it; a deleted group keeps it with the settings of `default`."""
    settings: ResourceGroup
    """Its settings."""
    bucket: TokenBucket
    """Its tokens here."""
    now: float
    """When `tick` was called last."""
    is_tombstone: bool = False
    """Whether it was deleted; it lives on as if it were `default`."""
    is_stand_in: bool = False
    """Whether PD could not tell its settings, and it goes by some of this client's own."""
    used: Usage = attrs.field(factory=Usage)
    """What was used since it is known here, without charges in advance."""
    average: float = 0.0
    """Request units a second, smoothed."""
    is_throttled: bool = False
    """Whether PD granted less than it was asked for: the last grant trickles."""
    is_degraded: bool = False
    """Whether it fills itself, since PD does not answer."""
    has_grant: bool = False
    """Whether PD ever answered."""
    alarm_at: float = math.inf
    """When the bucket is to ask for more as soon as it is used: shortly before a trickle ends."""
    tally: GroupTally = attrs.field(factory=GroupTally)
    """What became of its requests, for its statistics; the same however often the group is deleted and made anew."""
    _average_ru: float = 0.0
    _average_at: float = 0.0
    _reported: Usage = attrs.field(factory=Usage)
    _asked: Usage | None = None
    """What was used when the request under way, or the one that failed last, was made."""
    _asked_at: float = 0.0
    _idle_ru: float = -1.0
    _trickle_until: float = -math.inf
    _trickle_rate: float = 0.0
    _store_used: dict[int, Usage] = attrs.field(factory=dict)
    _all_used: Usage = attrs.field(factory=Usage)

    @classmethod
    def new(cls, name: str, settings: ResourceGroup, now: float, *, is_tombstone: bool = False) -> GroupState:
        """Return a group that has a second's worth of tokens, and gets no more until PD says so."""
        tokens = float(settings.fill_rate)
        bucket = TokenBucket(
            rate=0.0,
            burst=min(settings.burst_limit, 0),
            tokens=tokens,
            updated_at=now,
            threshold=max(tokens * _INITIAL_LOW, 1.0),
        )
        state = cls(name, settings, bucket, now, is_tombstone)
        state._average_at = now
        state._asked_at = now - TARGET_PERIOD
        return state

    def before(self, model: RuModel, request: RequestInfo) -> Usage:
        """Count a request that is about to be sent; return what it takes from the tokens."""
        cost = model.before(request)
        self.used.add(_without_precharge(cost, model, request, -1.0))
        return cost

    def withdraw(self, model: RuModel, request: RequestInfo, cost: Usage) -> None:
        """Take back what `before` counted: the request was not sent."""
        self.used.subtract(_without_precharge(cost, model, request, -1.0))

    def penalty(self, store_id: int) -> Usage:
        """Return what the group used on other stores since the last request to this one.

        Stores schedule a group by what it uses of the whole cluster, not of one store.
        """
        known = self._store_used.get(store_id)
        penalty = Usage()
        if known is not None:
            penalty = self._all_used.copy()
            penalty.subtract(known)
        # At once, not when the request succeeded: all that travel at the same time would carry the same penalty.
        self._store_used[store_id] = self._all_used.copy()
        return penalty

    def settle(self, model: RuModel, request: RequestInfo, response: ResponseInfo) -> Usage:
        """Count what an answered request cost on top; return what it takes from the tokens, or gives back."""
        cost = model.after(request, response)
        self.used.add(_without_precharge(cost, model, request, 1.0))
        whole = model.before(request)
        whole.add(cost)
        self._store_used.setdefault(request.store_id, Usage()).add(whole)
        self._all_used.add(whole)
        return cost

    def may_owe(self, request: RequestInfo, cost: Usage) -> bool:
        """Tell whether what was settled may be a debt, so that the answered request need not wait for tokens.

        A write never waits: its outcome is known, and would be lost if no tokens came in time.
        """
        is_big = cost.read_bytes + cost.write_bytes >= _BIG_RESPONSE
        return request.is_write or request.predicted_read_bytes > 0 or not is_big or not self.is_throttled

    def tick(self, now: float) -> None:
        """Look at what was used since the last tick."""
        elapsed = now - self._average_at
        self.now = now
        if elapsed > 0:
            speed = (self.used.ru - self._average_ru) / elapsed
            self.average = _SMOOTHING * self.average + (1 - _SMOOTHING) * speed
            self._average_at, self._average_ru = now, self.used.ru

    def ring(self, now: float) -> None:
        """Let the bucket ask for more with its next use, if the alarm is due."""
        if now >= self.alarm_at:
            self.alarm_at = math.inf
            self.bucket.threshold = 1.0

    def ask(self, *, is_report: bool) -> TokenRequest | None:
        """Return what to ask PD for, None when nothing needs to be asked or reported.

        It stays due until `apply` is called: what was reported counts as reported only then.

        Args:
            is_report: Whether it is time for reports; groups that are low ask at any time.
        """
        due = self._asked is not None or self.bucket.is_low or (is_report and self._is_report_due())
        if not due:
            return None
        self._asked = self.used.copy()
        self._asked_at = self.now
        wanted = self.average * TARGET_PERIOD * _AMPLIFICATION - self.bucket.available(self.now)
        return TokenRequest(self.name, max(wanted, 0.0), self._asked.growth_since(self._reported).to_consumption())

    def apply(self, grant: TokenGrant, now: float) -> None:
        """Take what PD granted."""
        if self._asked is not None:
            self._reported = Usage.highest(self._reported, self._asked)
            self._asked = None
        self.now = now
        self.has_grant = True
        self._reconfigure(grant, now)

    def degrade(self, now: float) -> bool:
        """Let a group that is low fill itself at its own rate, as PD does not answer; tell whether that is new."""
        if self.is_degraded or not self.bucket.is_low:
            return False
        self.is_degraded = True
        self.alarm_at = math.inf
        rate = self.settings.fill_rate
        self.bucket.reconfigure(now, tokens=0.0, rate=float(rate), burst=rate, threshold=0.0)
        return True

    def is_idle(self) -> bool:
        """Tell whether nothing was used since the last call, and everything was reported."""
        used, self._idle_ru = self._idle_ru, self.used.ru
        return used == self._idle_ru and self._asked is None

    def _is_report_due(self) -> bool:
        if not self.has_grant:
            return True
        silence = self.now - self._asked_at
        # Half a tick early, or it would be a whole one late.
        if silence + TICK / 2 < TARGET_PERIOD:
            return False
        return silence >= _LONGEST_SILENCE or self.used.ru - self._reported.ru >= _REPORT_RU

    def _reconfigure(self, grant: TokenGrant, now: float) -> None:
        # What a trickle did not deliver yet comes with the new grant.
        tokens = grant.tokens + self._trickle_rate * max(self._trickle_until - now, 0.0)
        self.is_degraded = False
        self.alarm_at = math.inf
        self.is_throttled = grant.trickle > 0
        burst, rate, threshold = grant.burst_limit, float(grant.fill_rate), 0.0
        if grant.trickle > 0:
            rate += tokens / grant.trickle
            early = grant.trickle - _TRICKLE_RESERVE
            self.alarm_at = now + (early if early > 0 else (grant.trickle + _TRICKLE_RESERVE) / 2)
            self._trickle_until = now + grant.trickle
            tokens = 0.0
        else:
            self._trickle_until = -math.inf
            threshold = min(tokens + self.bucket.available(now), self.average * TARGET_PERIOD) * _LOW
            if burst < 0:
                tokens = float(self.settings.fill_rate)
        self._trickle_rate = rate
        self.bucket.reconfigure(now, tokens=tokens, rate=rate, burst=burst, threshold=threshold)


def _without_precharge(cost: Usage, model: RuModel, request: RequestInfo, sign: float) -> Usage:
    """Return what a cost means for reports, which know nothing of charges in advance."""
    if request.predicted_read_bytes == 0:
        return cost
    return attrs.evolve(cost, read_ru=cost.read_ru + sign * model.precharge(request))
