"""How long to wait before trying again: one table of named kinds, one budget for an operation.

Source: client-go config/retry/config.go (bases, caps and jitters) and backoff.go (budget). Differences on purpose: a
wait never lasts past the operation's deadline, and an interrupted wait is never taken for a finished one.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Iterable
from typing import Final

import anyio
import attrs

from tikv_pd.deadline import Deadline
from tikv_pd.errors import BackoffExceeded


class Jitter(enum.Enum):
    """How chance enters a wait."""

    NONE = enum.auto()
    """The full exponential value."""
    EQUAL = enum.auto()
    """Half of it, plus a random part of the other half."""


@attrs.frozen
class BackoffKind:
    """One reason to wait."""

    name: str
    """For logs and statistics."""
    base: float
    """Seconds of the first wait."""
    cap: float
    """Seconds no wait exceeds."""
    jitter: Jitter
    """How chance enters."""
    excluded: bool = False
    """Whether waits of this kind leave the budget alone (they then have `EXCLUDED_BUDGET` of their own)."""

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Return the seconds to wait before retry number `attempt`, counted from 0."""
        # 2**64 times any base is beyond any cap; larger exponents would overflow a float.
        value = min(self.cap, self.base * 2.0 ** min(attempt, 64))
        if self.jitter is Jitter.EQUAL:
            return value / 2 + rng.random() * value / 2
        return value


TIKV_RPC: Final = BackoffKind("tikvRPC", 0.1, 2.0, Jitter.EQUAL)
"""The store could not be reached."""
PD_RPC: Final = BackoffKind("pdRPC", 0.5, 3.0, Jitter.EQUAL)
"""PD could not be reached or had no answer."""
PD_TSO: Final = BackoffKind("pdTSO", 0.1, 0.5, Jitter.EQUAL)
"""The stream of timestamps broke. Short, as newcomers share the wait. Source: pd client, sendTSORetryInterval."""
REGION_MISS: Final = BackoffKind("regionMiss", 0.002, 0.5, Jitter.NONE)
"""The Region must be located anew."""
REGION_SCHEDULING: Final = BackoffKind("regionScheduling", 0.002, 0.5, Jitter.NONE)
"""The Region has no leader, or is between two states."""
SERVER_BUSY: Final = BackoffKind("tikvServerBusy", 2.0, 10.0, Jitter.EQUAL, excluded=True)
"""The store sheds load."""
DISK_FULL: Final = BackoffKind("tikvDiskFull", 0.5, 5.0, Jitter.NONE)
"""The store has no room."""
RECOVERY_IN_PROGRESS: Final = BackoffKind("regionRecoveryInProgress", 0.1, 10.0, Jitter.EQUAL)
"""The cluster is being restored."""
MAX_TS_NOT_SYNCED: Final = BackoffKind("maxTsNotSynced", 0.002, 0.5, Jitter.NONE)
"""A new leader has not fetched a timestamp yet."""
REGION_NOT_INITIALIZED: Final = BackoffKind("regionNotInitialized", 0.002, 1.0, Jitter.NONE)
"""The peer has not received its snapshot yet."""
IS_WITNESS: Final = BackoffKind("isWitness", 1.0, 10.0, Jitter.EQUAL)
"""The peer holds no data."""
TXN_LOCK: Final = BackoffKind("txnLock", 0.1, 3.0, Jitter.EQUAL)
"""A lock of another transaction stands in the way of a write."""
TXN_LOCK_FAST: Final = BackoffKind("txnLockFast", 0.01, 3.0, Jitter.EQUAL)
"""A lock of another transaction stands in the way of a read."""
TXN_NOT_FOUND: Final = BackoffKind("txnNotFound", 0.002, 0.5, Jitter.NONE)
"""The primary lock of a transaction is not there yet."""
COMMIT_TS_LAG: Final = BackoffKind("commitTSLag", 0.002, 0.5, Jitter.NONE)
"""PD's timestamps are not as far yet as a commit is to be."""

EXCLUDED_BUDGET: Final = 600.0
"""Seconds that waits of an excluded kind may take. Source: client-go retry, tikvServerBusy."""
DEFAULT_BUDGET: Final = 40.0
"""Seconds of waiting in one operation. Source: client-go's 20 s times its BackOffWeight of 2."""


class Backoffer:
    """The waits of one operation: a counter per kind, one budget, one deadline.

    Args:
        deadline: No wait lasts beyond it.
        budget: Seconds of waiting in all, `inf` to let the deadline decide alone.
        rng: Source of jitter.
    """

    __slots__ = ("_attempts", "_rng", "budget", "deadline", "excluded", "waited")

    def __init__(self, deadline: Deadline, *, budget: float = DEFAULT_BUDGET, rng: random.Random | None = None) -> None:
        self.deadline = deadline
        self.budget = budget
        self.waited = 0.0
        """Seconds waited that count against the budget."""
        self.excluded = 0.0
        """Seconds waited that do not."""
        self._attempts: dict[str, int] = {}
        self._rng = rng if rng is not None else _RNG

    @property
    def attempts(self) -> int:
        """How many waits were taken."""
        return sum(self._attempts.values())

    @property
    def waits(self) -> dict[str, int]:
        """How many waits of each kind were taken, by its name."""
        return dict(self._attempts)

    async def backoff(self, kind: BackoffKind, cause: BaseException, *, at_most: float = math.inf) -> None:
        """Wait before trying again, because of `cause`; no longer than `at_most` seconds.

        The last wait before the deadline is cut to end at it, so that one more attempt is possible just before only if
        time is left.

        Raises:
            DeadlineExceeded: no time is left; `__cause__` is `cause`.
            BackoffExceeded: the budget is used up; `__cause__` is `cause`.

        Cancellation: ends the wait at once.
        """
        left = self.deadline.check(cause)
        spent, budget = self.waited, self.budget
        if kind.excluded:
            spent, budget = self.excluded, max(EXCLUDED_BUDGET, self.budget)
        if spent >= budget:
            raise BackoffExceeded(self.deadline.operation, self.waited + self.excluded, self.attempts) from cause
        attempt = self._attempts.get(kind.name, 0)
        self._attempts[kind.name] = attempt + 1
        delay = min(kind.delay(attempt, self._rng), left, at_most)
        await anyio.sleep(delay)
        if kind.excluded:
            self.excluded += delay
        else:
            self.waited += delay
        self.deadline.check(cause)

    def fork(self) -> Backoffer:
        """Return a backoffer for a parallel branch: the same deadline, waits that go on growing from where they are."""
        branch = Backoffer(self.deadline, budget=self.budget, rng=self._rng)
        branch.go_on_after(self)
        return branch

    def go_on_after(self, other: Backoffer) -> None:
        """Take over what another one went through, where that is more: how long it waited, and how often."""
        self.waited = max(self.waited, other.waited)
        self.excluded = max(self.excluded, other.excluded)
        for kind, attempts in other.waits.items():
            self._attempts[kind] = max(self._attempts.get(kind, 0), attempts)

    def join(self, branches: Iterable[Backoffer]) -> None:
        """Take over the waits of parallel branches: the longest counts, not their sum."""
        for branch in branches:
            self.go_on_after(branch)


_RNG = random.Random()
