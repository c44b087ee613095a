"""How well a store does, as one client sees it: values that whoever sends requests feeds, without a clock of their own.

Source: client-go internal/locate slow_score.go and store_cache.go. There, a store marked slow that was never timed is
taken for healthy again at the next tick or the one after; here it recovers as any other does.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from typing import Final

SLOW_SCORE: Final = 80.0
"""A store with at least this score, of 1 to 100, is slow."""
TICK: Final = 15.0
"""Seconds between ticks of `SlowScore`, and how long a score that a store reported stands without another."""

_LOWEST, _HIGHEST = 1.0, 100.0
_WINDOW = 10
_TOO_SLOW = 30.0
_STEEPEST_RISE = 5.43
_STEEPEST_FALL = 2.71
_TREND = 0.1
_RECOVERY = 20 / 60
_REPORT_INTERVAL = 0.1


class Liveness(enum.Enum):
    """Whether a store answers, by the last look at it."""

    REACHABLE = enum.auto()
    """It does, or was never looked at."""
    UNREACHABLE = enum.auto()
    """It does not."""
    UNKNOWN = enum.auto()
    """It answers, but does not say that it serves."""


class SlowScore:
    """Judges a store by the time its requests take: slow is one whose requests grow fewer and take longer."""

    def __init__(self) -> None:
        self.score = _LOWEST
        """From 1 to 100."""
        self._spent = 0.0
        self._count = 0
        self._times = _Window()
        self._counts = _Window()

    def record(self, seconds: float) -> None:
        """Count a request; a single one of 30 s or more is as slow as can be."""
        self._count += 1
        if seconds >= _TOO_SLOW:
            self.mark_slow()
        else:
            self._spent += seconds

    def mark_slow(self) -> None:
        """Take the store for as slow as can be: it says it is busy, or cannot be reached."""
        self.score = _HIGHEST

    def tick(self) -> None:
        """Judge the requests since the last tick; call it every `TICK` seconds."""
        count_trend = time_trend = 1.0
        if self._count:
            time_trend = self._times.add(self._spent / self._count)
            count_trend = self._counts.add(self._count)
        if count_trend <= -_TREND and time_trend >= _TREND:
            rise = min(_STEEPEST_RISE, abs(time_trend / count_trend))
            self.score = math.ceil(min(self.score * rise + 1, _HIGHEST))
        else:
            self.score = max(self.score - math.ceil(min(_STEEPEST_FALL, 1 + abs(count_trend))), _LOWEST)
        self._spent, self._count = 0.0, 0


class StoreHealth:
    """All that is known of how well a store does."""

    def __init__(self) -> None:
        self.liveness = Liveness.REACHABLE
        """Whether it answers."""
        self.timed = SlowScore()
        """What the time of requests tells."""
        self._reported = _LOWEST
        self._reported_at = -math.inf
        self._wait = 0.0
        self._wait_at = -math.inf

    def report(self, score: float, now: float) -> None:
        """Take over the slow score a store reported of itself, of 1 to 100.

        Another one within 100 ms is left out. Source: kvrpcpb.HealthFeedback.
        """
        if score == self._reported or now - self._reported_at >= _REPORT_INTERVAL:
            self._reported, self._reported_at = score, now

    def reported_score(self, now: float) -> float:
        """Return what the store reported of itself; without another report for `TICK` seconds it falls 20 a minute."""
        age = now - self._reported_at
        return self._reported if age < TICK else max(self._reported - age * _RECOVERY, _LOWEST)

    def needs_report(self, now: float) -> bool:
        """Tell whether the store should be asked for its score: it is not the best and old."""
        return self._reported > _LOWEST and now - self._reported_at >= TICK

    def is_slow(self, now: float) -> bool:
        """Tell whether another replica is to be preferred."""
        return max(self.timed.score, self.reported_score(now)) >= SLOW_SCORE

    def expect_wait(self, seconds: float, now: float) -> None:
        """Take over how long the store says requests wait there. Source: errorpb.ServerIsBusy.estimated_wait_ms."""
        self._wait, self._wait_at = seconds, now

    def estimated_wait(self, now: float) -> float:
        """Return how many seconds a request would wait there, as far as is known."""
        return max(self._wait - (now - self._wait_at), 0.0)


class _Window:
    """The average of the last few values."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_WINDOW)

    def add(self, value: float) -> float:
        """Add a value and return by which part of the average before it differs from that."""
        before = sum(self._values) / len(self._values) if self._values else 0.0
        self._values.append(value)
        return (value - before) / before if before else 0.0
