"""The tokens (request units) of one resource group, and how much of them a client gets at a time.

A bucket fills at its rate up to its burst limit. Who asks for more than there is borrows from the future: at up to
twice the rate first, then at the rate, then nothing but a minimum, and has to spread what it got over the period it
asked for. Clients that ask within ten minutes share the bucket evenly (PD weighs them by what they used).

Source: tikv/pd pkg/mcs/resourcemanager/server/token_buckets.go.
"""

from __future__ import annotations

import attrs
from tikv_proto import resource_manager as rm

DEFAULT_RATE = 10_000
"""Tokens a second of a group that was made without a rate, and how much a moderated group may exceed its own."""
INITIAL_TOKENS = 100_000
"""What a bucket with a burst limit holds at least when it is first asked."""
UNLIMITED_RATE = (1 << 31) - 1
UNLIMITED, MODERATED = -1, -2
"""Burst limits with a meaning of their own: everything is granted; a little more than the rate is granted."""
CLIENT_EXPIRY = 600.0
"""Seconds after which a client that does not ask has no share any more."""
MINIMUM_SHARE = 0.5
"""Of what the rate gives in a period: granted even to who has borrowed all."""


@attrs.frozen
class Grant:
    """What a client gets."""

    tokens: float
    trickle: float
    """Seconds over which they are to be spent; 0 is at once."""
    burst_limit: int
    """The client's share of it."""


@attrs.define
class TokenBucket:
    """One group's tokens: present ones, or as a negative number those that are borrowed."""

    settings: rm.TokenLimitSettings
    tokens: float = 0.0
    _updated: float | None = attrs.field(default=None, init=False)
    _clients: dict[int, float] = attrs.field(factory=dict, init=False)
    """Client id → when it asked last."""

    def reconfigure(self, settings: rm.TokenLimitSettings, extra: float) -> None:
        """Go on with other settings and `extra` tokens; what is borrowed is forgiven."""
        self.settings = settings
        self.tokens = max(0.0, self.tokens + extra)

    def request(self, client_id: int, wanted: float, period: float, now: float) -> Grant:
        """Return what the client gets of the tokens it wants.

        Args:
            client_id: Who asks.
            wanted: Tokens; 0 gives its share up.
            period: Seconds until it asks again.
            now: Seconds of a clock that does not go back.
        """
        rate, limit = self._fill(now)
        self._clients = {each: asked for each, asked in self._clients.items() if now - asked < CLIENT_EXPIRY}
        self._clients.pop(client_id, None)
        if limit == UNLIMITED:
            return Grant(max(0.0, wanted), 0.0, UNLIMITED)
        if wanted <= 0:
            return Grant(0.0, 0.0, limit)
        self._clients[client_id] = now
        clients = len(self._clients)
        grant = share_out(rate / clients, limit // clients, self.tokens / clients, wanted, period)
        self.tokens -= grant.tokens
        return grant

    def _fill(self, now: float) -> tuple[float, int]:
        """Put in what came since the last call, and return (rate, burst limit) as they count."""
        rate, limit = float(self.settings.fill_rate or DEFAULT_RATE), self.settings.burst_limit
        if limit == MODERATED:
            rate = min(rate + DEFAULT_RATE, UNLIMITED_RATE)
            limit = int(rate)
        if self._updated is None:
            if limit > 0:
                self.tokens = max(self.tokens, INITIAL_TOKENS)
        elif limit != UNLIMITED:
            self.tokens += rate * max(0.0, now - self._updated)
            # Without a limit a bucket saves nothing up, it only pays back.
            self.tokens = min(self.tokens, max(0, limit))
        self._updated = now
        return rate, limit


def share_out(rate: float, limit: int, tokens: float, wanted: float, period: float) -> Grant:
    """Return what one client gets.

    Args:
        rate: Tokens a second that it may count on.
        limit: Its burst limit; one that is not above the rate leaves less to borrow.
        tokens: There for it; negative when they are borrowed.
        wanted: Positive.
        period: Seconds it has to get along.
    """
    present = max(0.0, tokens)
    if present >= wanted:
        return Grant(wanted, 0.0, limit)
    borrowed, seconds = borrow(rate, 1 if 0 < limit <= rate else 2, max(0.0, -tokens), wanted - present, period)
    granted = max(present + borrowed, min(wanted, MINIMUM_SHARE * rate * period))
    return Grant(granted, seconds if present > 0 else period, limit)


def borrow(rate: float, steps: int, loan: float, wanted: float, period: float) -> tuple[float, float]:
    """Return (tokens, seconds that they stand for), at most `period`.

    The first of `steps` gives `steps` times the rate until one period's worth of that is borrowed, the next ones each
    a rate less on top of it.
    """
    granted = seconds = ceiling = 0.0
    for step in range(steps, 0, -1):
        speed = step * rate
        ceiling += speed * period
        taken = max(0.0, min(wanted - granted, ceiling - loan - granted, speed * (period - seconds)))
        granted += taken
        seconds += taken / speed
    return granted, seconds
