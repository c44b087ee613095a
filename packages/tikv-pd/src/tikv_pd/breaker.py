"""A circuit breaker: calls fail at once while a server that others overload has no time for them.

Closed, it counts the calls of a window of time. When enough of them failed, which the first call after the window finds
out, it opens and lets nobody through for a while. Then it is half open: a few calls may try, and all others fail at
once, until those have succeeded, which closes it, or one has failed, which opens it again. Calls that began in an
earlier window or state count for nothing.

Source: pd client pkg/circuitbreaker.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import attrs
from attrs import validators

from tikv_pd.config import BreakerConfig
from tikv_pd.errors import CircuitOpen, DeadlineExceeded, RpcError

_OVERLOAD: Final = frozenset({"DEADLINE_EXCEEDED", "UNAVAILABLE", "RESOURCE_EXHAUSTED"})
"""gRPC codes of a server that has no time. Source: pd client pkg/circuitbreaker, IsOverloaded."""


class BreakerState(enum.Enum):
    """What a breaker lets through."""

    CLOSED = enum.auto()
    """Everybody."""
    OPEN = enum.auto()
    """Nobody."""
    HALF_OPEN = enum.auto()
    """A few."""


@attrs.define
class CircuitBreaker:
    """The decision, as a value that changes: `admit` before a call, `settle` after it."""

    config: BreakerConfig = attrs.field(validator=validators.instance_of(BreakerConfig))
    """When to open, and for how long; another one counts from the end of the window or the rest under way."""
    state: BreakerState = attrs.field(init=False, default=BreakerState.CLOSED)
    """What it lets through."""
    _period: int = attrs.field(init=False, default=0)
    _until: float = attrs.field(init=False, default=0.0)
    _under_way: int = attrs.field(init=False, default=0)
    _good: int = attrs.field(init=False, default=0)
    _bad: int = attrs.field(init=False, default=0)

    def admit(self, now: float) -> int | None:
        """Return what to `settle` with when a call may go through, None when it must fail."""
        if self.state is BreakerState.CLOSED and now >= self._until:
            self._enter(BreakerState.OPEN if self._is_overloaded() else BreakerState.CLOSED, now)
        elif self.state is BreakerState.OPEN and now >= self._until:
            self._enter(BreakerState.HALF_OPEN, now)
        elif self.state is BreakerState.HALF_OPEN and self._bad:
            self._enter(BreakerState.OPEN, now)
        elif self.state is BreakerState.HALF_OPEN and self._good >= self.config.trials:
            self._enter(BreakerState.CLOSED, now)
        if self.state is BreakerState.OPEN:
            return None
        if self.state is BreakerState.HALF_OPEN and self._under_way + self._good >= self.config.trials:
            return None
        self._under_way += 1
        return self._period

    def settle(self, period: int, outcome: bool | None) -> None:
        """Take note of how an admitted call ended: well, overloaded, or (None) in a way that says nothing."""
        if period != self._period:
            return
        self._under_way -= 1
        self._good += outcome is True
        self._bad += outcome is False

    def _is_overloaded(self) -> bool:
        total = self._good + self._bad
        return total >= self.config.window * self.config.min_rate and self._bad * 100 >= total * self.config.threshold

    def _enter(self, state: BreakerState, now: float) -> None:
        self.state = state
        self._period += 1
        self._until = now + (self.config.cooldown if state is BreakerState.OPEN else self.config.window)
        self._under_way = self._good = self._bad = 0

    @contextmanager
    def guard(self, operation: str, now: Callable[[], float]) -> Iterator[None]:
        """Let a block through that makes one attempt, or raise CircuitOpen; how it ends tells whether PD has time."""
        period = self.admit(now())
        if period is None:
            raise CircuitOpen(operation)
        outcome: bool | None = None
        try:
            yield
            outcome = True
        except DeadlineExceeded:
            outcome = False
            raise
        except RpcError as error:
            outcome = error.code not in _OVERLOAD
            raise
        except Exception:
            # PD answered: it has time.
            outcome = True
            raise
        finally:
            self.settle(period, outcome)
