"""The tokens of one resource group on this client: a bucket that fills at a rate, on a clock its caller brings.

Unlike a usual token bucket it goes into debt: a request that finds too few tokens takes them all the same when waiting
for them is short enough, and its caller sleeps that long. Its rate is 0 until PD granted something.

    burst < 0     unlimited: nothing is counted
    burst == 0    fills without a limit
    burst > 0     fills up to the burst limit

Source: tikv/pd client/resource_group/controller/limiter.go.
"""

from __future__ import annotations

import math
from typing import Final

import attrs

_NOTICES: Final = 3
"""How often refused requests may ask for more tokens until `restore_notices`, while the rate is above 0.

At a rate above 0 PD gave all it could, so asking again rarely helps; but see tikv/pd#6300.
"""


@attrs.frozen
class Reservation:
    """What a bucket says to a request for tokens."""

    granted: bool
    """Whether they were taken."""
    wait: float
    """Seconds until they are there; `inf` when the bucket does not fill."""
    rate: float
    """Tokens a second at which it fills."""
    remaining: float
    """What the bucket holds once they are taken; negative for a debt."""


@attrs.define
class TokenBucket:
    """The bucket. `now` is in seconds and may run backwards: a moment before the latest one counts as that one."""

    rate: float
    """Tokens a second."""
    burst: int
    """Tokens it holds at most, if above 0; below 0 it is unlimited."""
    tokens: float
    """What it held at `updated_at`."""
    updated_at: float
    """The latest moment it was told."""
    threshold: float = 0.0
    """It is low with fewer tokens than this; 0 while nothing is to be done about it."""
    is_asking: bool = False
    """Whether it was low and more was asked for, with no grant since."""
    _notice: bool = attrs.field(default=False, init=False)
    _notices_left: int = attrs.field(default=0, init=False)

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing is counted."""
        return self.burst < 0

    @property
    def is_low(self) -> bool:
        """Whether more tokens are needed."""
        return not self.is_unlimited and (self.is_asking or (self.threshold > 0 and self.tokens < self.threshold))

    def available(self, now: float) -> float:
        """Return what it holds; negative for a debt."""
        if self.is_unlimited:
            return self.tokens
        tokens = self.tokens + self.rate * max(now - self.updated_at, 0.0)
        return min(tokens, float(self.burst)) if self.burst > 0 else tokens

    def reserve(self, now: float, amount: float, limit: float) -> Reservation:
        """Take tokens if they are there within `limit` seconds, else none."""
        if self.is_unlimited:
            return Reservation(True, 0.0, self.rate, self.tokens)
        available = self.available(now)
        remaining = available - amount
        wait = 0.0 if remaining >= 0 else -remaining / self.rate if self.rate > 0 else math.inf
        granted = wait <= limit and wait < math.inf
        if granted:
            self._set(now, remaining)
            self._look()
            return Reservation(granted, wait, self.rate, remaining)
        # What flowed in until now did so at this rate, also if the next moment is an earlier one with another.
        self._set(now, available)
        if self.rate == 0:
            self._ask()
        elif self._notices_left > 0:
            self._notices_left -= 1
            self._ask()
        return Reservation(granted, wait, self.rate, remaining)

    def remove(self, now: float, amount: float) -> None:
        """Take tokens whether they are there or not."""
        if not self.is_unlimited:
            self._set(now, self.available(now) - amount)
            self._look()

    def give_back(self, now: float, amount: float) -> None:
        """Return tokens that were taken and not used."""
        if not self.is_unlimited:
            self._set(now, self.available(now) + amount)

    def reconfigure(self, now: float, *, tokens: float, rate: float, burst: int, threshold: float) -> None:
        """Go on as PD says: with `tokens` more, or exactly so many if it is unlimited from now on."""
        self._set(now, tokens if burst < 0 else self.available(now) + tokens)
        self.rate, self.burst, self.threshold = rate, burst, threshold
        self.is_asking = False
        self._look()

    def restore_notices(self) -> None:
        """Let refused requests ask for more tokens again, a few times."""
        self._notices_left = _NOTICES

    def take_notice(self) -> bool:
        """Tell, once, that more tokens must be asked for now."""
        notice, self._notice = self._notice, False
        return notice

    def _set(self, now: float, tokens: float) -> None:
        self.tokens = tokens
        self.updated_at = max(now, self.updated_at)

    def _look(self) -> None:
        if self.is_low:
            self._ask()

    def _ask(self) -> None:
        if not self.is_asking:
            self.threshold, self.is_asking, self._notice = 0.0, True, True
