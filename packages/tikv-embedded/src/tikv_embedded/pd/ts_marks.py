"""Timestamps that others leave with PD: the external one, and how far each store has resolved locks.

Source: tikv/pd server/server.go SetExternalTS, server/cluster/cluster.go CheckAndUpdateMinResolvedTS.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tikv_embedded.pd.revisions import Change, RevisionedStore

UNKNOWN_TS = (1 << 64) - 1
"""What PD tells about a store that does not count."""


class TimestampRefusedError(Exception):
    """The timestamp is outside its bounds; the text is what PD says."""


class TimestampMarks:
    """The marks of one cluster; durable when the method returns, except what the single stores report.

    Args:
        store: Where the marks lie.
        cluster_id: A part of their keys.
    """

    def __init__(self, store: RevisionedStore, cluster_id: int) -> None:
        self._store = store
        self._root = f"/pd/{cluster_id}/raft/"
        self._reported: dict[int, int] = {}

    @property
    def external(self) -> int:
        """The external timestamp; 0 until one is set."""
        return self._load("external_timestamp")

    @property
    def min_resolved(self) -> int:
        """What the whole cluster has resolved, as far as its stores reported; 0 until then. It never goes back."""
        return self._load("min_resolved_ts")

    def set_external(self, ts: int, now_ts: int) -> None:
        """Move the external timestamp up to `ts`.

        Raises:
            TimestampRefusedError: `ts` is above `now_ts`, a fresh timestamp, or not above the present one.
        """
        if ts > now_ts:
            raise TimestampRefusedError("the external timestamp should not be larger than global ts")
        if ts <= self.external:
            raise TimestampRefusedError("the external timestamp should be larger than current external timestamp")
        self._save("external_timestamp", ts)

    def report_resolved(self, store_id: int, ts: int, leading: Iterable[int]) -> None:
        """Take the report of a store; the least of the `leading` stores is the cluster's, unless that went back."""
        self._reported[store_id] = ts
        least = min((self.resolved_by(each) for each in leading), default=0)
        if least > self.min_resolved:
            self._save("min_resolved_ts", least)

    def resolved_by(self, store_id: int) -> int:
        """Return the last report of a store since the start; 0 when there was none."""
        return self._reported.get(store_id, 0)

    def _load(self, name: str) -> int:
        value = self._store.get((self._root + name).encode())
        return 0 if value is None else int(json.loads(value)[name])

    def _save(self, name: str, ts: int) -> None:
        self._store.apply([Change((self._root + name).encode(), json.dumps({name: ts}).encode())])
