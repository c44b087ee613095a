"""What became of the calls to one store, as values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import attrs


@attrs.frozen(kw_only=True)
class BatchStats:
    """Counters of one stream, or of all that lead to one store, since they were made."""

    messages: int
    """BatchCommands messages sent."""
    requests: int
    """Requests in them."""
    bytes_sent: int
    """Bytes of them, before compression."""
    late: int
    """Answers that came after their caller had gone, or that nobody had asked for."""
    in_flight: int
    """Calls that wait now, for their turn or for an answer, the unary ones included."""
    queued: int
    """Those of them that wait for their turn."""
    streams: int
    """BatchCommands streams open now."""
    reconnects: int
    """Streams that broke."""
    unary: int
    """Unary calls made: what BatchCommands cannot carry, and everything where a store does not offer it."""

    @property
    def average_batch(self) -> float:
        """Requests in a message, on average; 0 before the first."""
        return self.requests / self.messages if self.messages else 0.0

    @classmethod
    def of_unary(cls, unary: int, *, in_flight: int) -> Self:
        """Return the counters of unary calls alone."""
        return attrs.evolve(cls.total([]), unary=unary, in_flight=in_flight)

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """Return the sums."""
        values = list(parts)
        return cls(**{name: sum(getattr(part, name) for part in values) for name in attrs.fields_dict(cls)})
