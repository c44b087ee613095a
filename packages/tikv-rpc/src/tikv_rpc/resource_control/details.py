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


class RuCollector:
    """Adds up what requests cost.

    A plain slotted class, and numbers rather than values: each request is added twice.
    """

    __slots__ = ("_read_ru", "_ru_v2", "_wait", "_write_ru")

    def __init__(self) -> None:
        self._read_ru = self._write_ru = self._wait = self._ru_v2 = 0.0

    @property
    def details(self) -> RuDetails:
        """What they cost so far."""
        return RuDetails(self._read_ru, self._write_ru, self._wait, self._ru_v2)

    def add(self, read_ru: float = 0.0, write_ru: float = 0.0, wait: float = 0.0, ru_v2: float = 0.0) -> None:
        """Add what one of them cost; see `RuDetails`."""
        self._read_ru += read_ru
        self._write_ru += write_ru
        self._wait += wait
        self._ru_v2 += ru_v2


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


def collectors() -> tuple[RuCollector, ...]:
    """Return those under which a request is made."""
    return _COLLECTORS.get()
