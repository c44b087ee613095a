"""Which requests put locks away: a decision about values, without I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
from tikv_rpc import KeyWork

from tikv_txn._locks.locks import Lock, Remedy, TxnStatus, remedy
from tikv_txn._locks.requests import LockRequests


@attrs.frozen
class Chore:
    """Something to be done about locks of one transaction. Equal ones have the same effect."""

    remedy: Remedy
    """What."""
    start_ts: int
    """Whose locks."""
    ts: int
    """The commit timestamp, 0 to roll back; of pessimistic locks the timestamp by which they were taken, 0 for any."""
    keys: tuple[bytes, ...]
    """The locked keys."""

    def work(self, requests: LockRequests) -> KeyWork[Any]:
        """Return the requests that do it."""
        match self.remedy:
            case Remedy.RESOLVE_REGION:
                return requests.resolve_regions(self.start_ts, self.ts, self.keys)
            case Remedy.ROLL_BACK_PESSIMISTIC:
                return requests.roll_back_pessimistic(self.start_ts, self.ts, self.keys)
            case _:
                return requests.resolve_keys(self.start_ts, self.ts, self.keys)


def chores(
    met: Iterable[tuple[Lock, TxnStatus]], recovered: Iterable[tuple[Lock, TxnStatus]], lite_below: float
) -> list[Chore]:
    """Return what is to be done about locks.

    Args:
        met: The locks, and the status of their transactions.
        recovered: Primary locks of async commits whose other keys were asked: all their keys are put away.
        lite_below: See `remedy`.
    """
    keys: dict[tuple[Remedy, int, int], dict[bytes, None]] = {}
    for primary, status in recovered:
        own = dict.fromkeys((*primary.secondaries, primary.key))
        keys.setdefault((Remedy.RESOLVE_KEY, primary.start_ts, status.commit_ts), {}).update(own)
    for lock, status in met:
        what = remedy(lock, status, lite_below=lite_below)
        if what is not Remedy.NOTHING:
            ts = lock.for_update_ts if what is Remedy.ROLL_BACK_PESSIMISTIC else status.commit_ts
            keys.setdefault((what, lock.start_ts, ts), {})[lock.key] = None
    return [Chore(what, start_ts, ts, tuple(locked)) for (what, start_ts, ts), locked in keys.items()]
