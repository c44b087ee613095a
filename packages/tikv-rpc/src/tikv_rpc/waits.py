"""How the operations of a client wait between attempts, and what all of them went through."""

from __future__ import annotations

import math
import random
from collections import Counter

from tikv_pd import Backoffer, BackoffKind, Deadline


class Totals:
    """What attempts and waits of a client came to, counted where nothing is fast any more: after the first failure."""

    __slots__ = ("region_errors", "rpc_errors", "wait_counts", "wait_seconds")

    def __init__(self) -> None:
        self.region_errors: Counter[str] = Counter()
        """Region errors by kind; see `tikv_region.RegionError.kind`."""
        self.rpc_errors: Counter[str] = Counter()
        """Attempts without an answer by gRPC status code."""
        self.wait_counts: Counter[str] = Counter()
        """Waits by name of their kind."""
        self.wait_seconds: dict[str, float] = {}
        """Seconds spent in them."""


class Waits:
    """The waits of one operation, or of all that nobody observes.

    Args:
        budget: Seconds one operation may wait.
        totals: Where waits are counted.
    """

    __slots__ = ("budget", "totals")

    def __init__(self, budget: float, totals: Totals) -> None:
        self.budget = budget
        self.totals = totals

    def took(self, kind: str, _began: float, seconds: float, /) -> None:
        """Count a wait that was taken, also one that was cut short."""
        totals = self.totals
        totals.wait_counts[kind] += 1
        totals.wait_seconds[kind] = totals.wait_seconds.get(kind, 0.0) + seconds

    def fork(self) -> Waits:
        """Return those of a parallel branch."""
        return self


class CountedBackoffer(Backoffer):
    """A backoffer whose waits are counted.

    Args:
        deadline: No wait lasts beyond it.
        listener: Whom to tell.
        rng: Source of jitter.
    """

    __slots__ = ("listener",)

    def __init__(self, deadline: Deadline, listener: Waits, *, rng: random.Random | None = None) -> None:
        super().__init__(deadline, budget=listener.budget, rng=rng)
        self.listener = listener
        """Whom it tells."""

    async def backoff(self, kind: BackoffKind, cause: BaseException, *, at_most: float = math.inf) -> None:
        """Wait; see `Backoffer.backoff`."""
        now, taken = self.deadline.now, self.attempts
        began = now()
        try:
            await super().backoff(kind, cause, at_most=at_most)
        finally:
            if self.attempts > taken:
                self.listener.took(kind.name, began, now() - began)

    def fork(self) -> CountedBackoffer:
        """Return a backoffer for a parallel branch."""
        return self.fork_into(self.listener)

    def fork_into(self, listener: Waits) -> CountedBackoffer:
        """Return one that tells others of its waits."""
        branch = CountedBackoffer(self.deadline, listener, rng=self._rng)
        branch.go_on_after(self)
        return branch
