"""What requests of resource groups cost, for those who want to know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import attrs

_COLLECTORS: ContextVar[tuple[RuCollector, ...]] = ContextVar("ru_collectors", default=())


@attrs.frozen
class RuDetails:
    """What some requests cost. Source: client-go util.RUDetails."""

    read_ru: float = 0.0
    """Request units of reads."""
    write_ru: float = 0.0
    """Request units of writes."""
    wait: float = 0.0
    """Seconds they waited for tokens."""
    ru_v2: float = 0.0
    """Request units of the second model; see `RuV2Weights`."""

    def __add__(self, other: RuDetails) -> RuDetails:
        return RuDetails(
            self.read_ru + other.read_ru,
            self.write_ru + other.write_ru,
            self.wait + other.wait,
            self.ru_v2 + other.ru_v2,
        )


class RuCollector:
    """Adds up what requests cost."""

    __slots__ = ("details",)

    def __init__(self) -> None:
        self.details = RuDetails()
        """What they cost so far."""

    def add(self, details: RuDetails) -> None:
        """Add what one of them cost."""
        self.details += details


@contextmanager
def collect_ru() -> Iterator[RuCollector]:
    """Collect what the requests of all calls made inside the block cost, also of tasks started there.

        with collect_ru() as ru:
            await client.put(b"k", b"v")
        print(ru.details.write_ru)

    Blocks may be nested: each counts what happens inside of it. Requests without a resource group, of background jobs
    and those that are not subject to resource control cost nothing. What tasks still do after the block is added, too.
    """
    collector = RuCollector()
    token = _COLLECTORS.set((*_COLLECTORS.get(), collector))
    try:
        yield collector
    finally:
        _COLLECTORS.reset(token)


def report(details: RuDetails) -> None:
    """Add what a request cost to the collectors it was made under."""
    for collector in _COLLECTORS.get():
        collector.add(details)
