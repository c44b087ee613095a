"""How slow stores are: the time requests take there, and the slow score that stores report of themselves.

The scores themselves are values, `tikv_region.health`; here is who feeds them, and whose report is due.
"""

from __future__ import annotations

from collections.abc import Callable

from tikv_region import StoreEntry
from tikv_region.health import TICK, Liveness

_HEALTHY = 1.0


class Slowness:
    """Feeds the slow scores of the stores that requests go to. Plain calls; `tick` is due every `TICK` seconds.

    Args:
        now: The clock: seconds, monotonic.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._stores: dict[int, StoreEntry] = {}
        self._reports: dict[int, tuple[int, float]] = {}

    def include(self, store: StoreEntry) -> None:
        """Follow what a store reports of itself from now on."""
        self._stores[store.id] = store

    def stores(self) -> list[StoreEntry]:
        """Return the stores that requests went to."""
        return list(self._stores.values())

    def record(self, store: StoreEntry, seconds: float) -> None:
        """Count an answered request and the seconds it took."""
        self._stores[store.id] = store
        store.health.timed.record(seconds)

    def mark_slow(self, store: StoreEntry) -> None:
        """Take a store for as slow as can be: it is busy and says not for how long, or cannot be reached."""
        self._stores[store.id] = store
        store.health.timed.mark_slow()

    def on_feedback(self, store_id: int, seq_no: int, slow_score: int) -> None:
        """Take over what a store reports of itself. Source: kvrpcpb.HealthFeedback.

        Args:
            store_id: The store; a report of one that no request went to is left out.
            seq_no: Number of the report. It grows, but a store has several streams that may overtake each other: one
                that is lower than the last is left out, unless that is old. The clock a store counts from may have
                been set back before it was started again.
            slow_score: From 1, healthy, to 100.
        """
        store = self._stores.get(store_id)
        if store is None:
            return
        now = self._now()
        latest, at = self._reports.get(store_id, (seq_no, now))
        if seq_no >= latest or now - at >= TICK:
            self._reports[store_id] = (seq_no, now)
            store.health.report(slow_score, now)

    def tick(self) -> list[StoreEntry]:
        """Judge the requests since the last tick, and return the stores to be asked for a report.

        Those are the ones that did not report well at last, and that was long ago: stores report along with answers,
        and one that is avoided for being slow answers nothing.
        """
        now = self._now()
        for store in list(self._stores.values()):
            if store.is_tombstone:
                del self._stores[store.id]
                self._reports.pop(store.id, None)
            else:
                store.health.timed.tick()
        return [store for store in self._stores.values() if _is_due(store, now)]


def _is_due(store: StoreEntry, now: float) -> bool:
    health = store.health
    if not store.address or health.liveness is Liveness.UNREACHABLE:
        return False
    # A store that reports nothing any more is asked until its last report has lost its meaning.
    return health.needs_report(now) and health.reported_score(now) > _HEALTHY
