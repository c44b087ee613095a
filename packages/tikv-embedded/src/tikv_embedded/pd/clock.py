"""A wall clock that can be moved ahead: PD has one, the stores another."""

from __future__ import annotations

import time

import attrs


@attrs.define
class Clock:
    """The machine's clock plus an offset: timestamps, barriers and token buckets go by PD's, TTLs by the stores'."""

    offset: float = 0.0
    """Seconds ahead of the machine's clock."""

    def advance(self, seconds: float) -> None:
        """Move it ahead for good.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"the clock does not go back: {seconds} s")
        self.offset += seconds

    def seconds(self) -> float:
        """Return Unix seconds."""
        return time.time() + self.offset

    def milliseconds(self) -> int:
        """Return whole Unix milliseconds."""
        return int(self.seconds() * 1000)
