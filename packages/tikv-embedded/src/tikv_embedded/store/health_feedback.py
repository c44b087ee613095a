"""What a store tells its clients about its health, on BatchCommands streams and when asked."""

from __future__ import annotations

import time

from tikv_proto import kvrpcpb

INTERVAL = 1.0
"""Seconds between two unasked reports on one stream (TiKV: health-feedback-interval)."""
HEALTHY = 1
"""Slow score of a store that is well; the worst is 100."""


class HealthReporter:
    """Numbers the reports of one store.

    Args:
        store_id: Whose health it is.

    Attributes:
        slow_score: What it reports; `set_slow_score` changes it.
        changes: How often that was changed: streams report a change with their next message.
        load_percent: What streams say about how busy the store is; None is what was measured.
    """

    def __init__(self, store_id: int) -> None:
        self._store_id = store_id
        self._sequence = time.time_ns() // 1_000_000
        self.slow_score = HEALTHY
        self.changes = 0
        self.load_percent: int | None = None

    def report(self) -> kvrpcpb.HealthFeedback:
        """Return a report; numbers grow, over restarts too, since they count from the boot time in ms."""
        self._sequence += 1
        return kvrpcpb.HealthFeedback(
            store_id=self._store_id, feedback_seq_no=self._sequence, slow_score=self.slow_score
        )

    def set_slow_score(self, slow_score: int, sequence: int | None = None) -> None:
        """Report another score from now on; the next report has the number `sequence` if that is given."""
        self.slow_score = slow_score
        self.changes += 1
        if sequence is not None:
            self._sequence = sequence - 1


class CpuLoad:
    """How busy this process was lately, as TiKV counts its gRPC threads: 100 is one core."""

    def __init__(self) -> None:
        self._wall = time.monotonic()
        self._cpu = time.process_time()
        self.percent = 0

    def refresh(self, now: float) -> None:
        """Measure again, over the time since the last call; `now` is `time.monotonic()`."""
        cpu = time.process_time()
        # Two measurements may fall on one tick of the clock.
        self.percent = round(100 * (cpu - self._cpu) / max(now - self._wall, 1e-3))
        self._wall, self._cpu = now, cpu
