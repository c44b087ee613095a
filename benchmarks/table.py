"""The one table: what was measured beside its target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cases import Case, Figure, Values, cpu, of, p50, rate, ratio

HEADINGS = ("what", "measured", "lowest to highest", "target", "met", "per second", "CPUs: client + server")

BEGIN, END = "<!-- written by nox -s bench -->", "<!-- until here -->"


@dataclass(frozen=True)
class Target:
    """What a row is held to."""

    bound: float
    at_least: bool
    """Whether more is better."""

    def met_by(self, value: float) -> bool:
        """Return whether a figure is good enough."""
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    values: Values
    unit: str
    """What follows the figure: `x` for ratios, `µs`, `/s`."""
    target: Target | None = None
    """None for what is stated only."""
    case: Case | None = None
    """The case it is about, for its rate and the load of both processes."""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target. What failed meets none."""
        if self.target is None:
            return None
        return bool(self.values.values) and self.target.met_by(self.values.median)

    @property
    def failed(self) -> bool:
        """Whether there is no figure."""
        return not self.values.values

    def cells(self) -> tuple[str, ...]:
        """Return the text of each column."""
        values = self.values.values
        measured = f"{number(self.values.median)} {self.unit}" if values else "failed"
        spread = f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else ""
        bound = f"{'≥' if self.target.at_least else '≤'} {self.target.bound:,g} {self.unit}" if self.target else ""
        met = {None: "", True: "yes", False: "**NO**"}[self.met]
        return (self.what, measured, spread, bound, met, per_second(self.case), load(self.case))


@dataclass(frozen=True)
class Section:
    """Rows that were measured in the same way."""

    title: str
    rows: list[Row]


def rate_of(what: str, case: Case, target: Target | None = None) -> Row:
    """Return a row of the operations a second."""
    return Row(what, of(case, rate), "/s", target, case)


def cost_of(what: str, case: Case, target: Target | None = None) -> Row:
    """Return a row of the client's CPU time for one operation."""
    return Row(what, of(case, cpu).scaled(1e6), "µs", target, case)


def p50_of(what: str, case: Case) -> Row:
    """Return a row of the median time of one operation."""
    return Row(what, of(case, p50).scaled(1e6), "µs", None, case)


def times(what: str, over: Case, under: Case, figure: Figure, target: Target | None = None) -> Row:
    """Return a row that tells how many times the figure of `under` that of `over` is."""
    return Row(what, ratio(over, under, figure), "x", target)


def at_most(bound: float) -> Target:
    """Return a target that less is better for."""
    return Target(bound, at_least=False)


def at_least(bound: float) -> Target:
    """Return a target that more is better for."""
    return Target(bound, at_least=True)


def number(value: float) -> str:
    """Return a number as short as it still tells something."""
    magnitude = abs(value)
    digits = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2 if magnitude >= 1 else 3
    return f"{value:,.{digits}f}"


def per_second(case: Case | None) -> str:
    """Return how many operations a second there were."""
    return number(of(case, rate).median) if case is not None and case.runs else ""


def load(case: Case | None) -> str:
    """Return how many CPUs client and server kept busy."""
    if case is None or not case.runs:
        return ""
    client, server = of(case, lambda run: run.client_load).median, of(case, lambda run: run.server_load).median
    return f"{client:.2f} + {server:.2f}"


def render(sections: Sequence[Section]) -> str:
    """Return the table as Markdown, aligned to be read as it is, too."""
    lines: list[tuple[str, ...]] = [HEADINGS]
    for section in sections:
        lines.append((f"**{section.title}**", *[""] * (len(HEADINGS) - 1)))
        lines += [row.cells() for row in section.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(
        f" {'-' * width} " if not column else f" {'-' * (width - 1)}: " for column, width in enumerate(widths)
    )
    return "\n".join([line(lines[0]), f"|{rule}|", *map(line, lines[1:])])


def verdict(sections: Sequence[Section]) -> str:
    """Return how many targets are met, which are not, and what failed."""
    rows = [(section, row) for section in sections for row in section.rows]
    judged = [(section, row) for section, row in rows if row.met is not None]
    missed = [f"- missed: {section.title}: {row.what}" for section, row in judged if not row.met]
    # A ratio to what failed says nothing new.
    reasons = {(section.title, row.values.failure): row.what for section, row in reversed(rows) if row.failed}
    failed = [f"- failed: {title}: {what}: {reason}" for (title, reason), what in reversed(reasons.items())]
    return "\n".join([f"{len(judged) - len(missed)} of {len(judged)} targets met.", "", *missed, *failed]).rstrip()


def quoted(document: str, text: str) -> str:
    """Return a document with the text in the place of what it quoted before, between two comments."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"it has no {BEGIN} and {END}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"
