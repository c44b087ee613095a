"""The wall clock of PD, which can be moved ahead."""

from __future__ import annotations

import time

import attrs


@attrs.define
class Clock:
    """The machine's clock plus an offset: timestamps, barriers and token buckets go by it."""

    offset: float = 0.0
    """Seconds ahead of the machine's clock."""

    def seconds(self) -> float:
        """Return Unix seconds."""
        return time.time() + self.offset

    def milliseconds(self) -> int:
        """Return whole Unix milliseconds."""
        return int(self.seconds() * 1000)
