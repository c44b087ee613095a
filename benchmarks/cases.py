"""The runs of each case, round by round, and ratios between cases of the same round."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from measure import Measurement

Figure = Callable[[Measurement], float]
"""What is told of a run: `rate`, `cpu` or `p50`."""


def rate(run: Measurement) -> float:
    """Return the operations a second."""
    return run.rate


def cpu(run: Measurement) -> float:
    """Return the CPU seconds of the client for one operation."""
    return run.cpu


def p50(run: Measurement) -> float:
    """Return the median of the seconds that one operation took."""
    return run.p50


@dataclass
class Case:
    """All runs of one case; none if it failed."""

    runs: list[Measurement] = field(default_factory=list)
    failure: str = ""
    """Why there are no figures."""

    def fail(self, reason: str) -> None:
        """Give up; a case that fails in one round has no figures."""
        self.runs.clear()
        self.failure = reason


@dataclass(frozen=True)
class Values:
    """One figure of each round."""

    values: tuple[float, ...]
    failure: str = ""
    """Why there are none."""

    @property
    def median(self) -> float:
        """The median, which counts."""
        return statistics.median(self.values)

    def scaled(self, factor: float) -> Values:
        """Return the figures in another unit."""
        return Values(tuple(value * factor for value in self.values), self.failure)


def of(case: Case, figure: Figure) -> Values:
    """Return a figure of each run of a case."""
    return Values(tuple(figure(run) for run in case.runs), case.failure)


def ratio(over: Case, under: Case, figure: Figure) -> Values:
    """Return how many times the figure of `under` that of `over` is, in each round."""
    failure = over.failure or under.failure
    if failure:
        return Values((), failure)
    return Values(tuple(figure(top) / figure(bottom) for top, bottom in zip(over.runs, under.runs, strict=True)))


async def run_rounds(cases: Mapping[str, Callable[[], Awaitable[Measurement]]], rounds: int) -> dict[str, Case]:
    """Run every case in turn, so many rounds of them, so that noise falls on all alike."""
    measured = {name: Case() for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            measured[name].runs.append(await run())
    return measured
