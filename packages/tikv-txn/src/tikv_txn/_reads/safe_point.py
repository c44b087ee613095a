"""Whether what a snapshot reads is still there: the txn safe point of the cluster, as one client knows it."""

from __future__ import annotations

import math
from typing import Final

from tikv_pd import DeadlineExceeded, TikvError
from tikv_region.flight import SingleFlight
from tikv_rpc import Call

from tikv_txn._store import TxnStore
from tikv_txn.errors import SnapshotTooOld

VALID_SECONDS: Final = 90.0
"""Age from which a known safe point says nothing any more. Source: client-go, 100 s less 10 s; the cluster collects
nothing below a new safe point until every client that keeps to this must have heard of it."""
REFRESH_SECONDS: Final = 10.0
"""Age from which it is asked for anew while reads go on. Source: client-go pollTxnSafePointInterval."""
_RETRY_SECONDS: Final = 1.0
"""Time between such questions when PD does not answer. Source: client-go pollTxnSafePointQuickRepeatInterval."""


class SafePoint:
    """The txn safe point: nothing below it can be read. One for each client; asked for only while there are reads.

    Args:
        store: The cluster.
    """

    def __init__(self, store: TxnStore) -> None:
        self._store = store
        self._known = 0
        self._known_at = -math.inf
        self._refresh_at = -math.inf
        self._flights: SingleFlight[None] = SingleFlight()

    def refresh_soon(self) -> None:
        """Have PD asked in the background when what is known is no longer new; for the beginning of a read."""
        now = self._store.rpc.now()
        if now >= self._refresh_at:
            # Whatever comes of it: the next read must not ask as well.
            self._refresh_at = now + _RETRY_SECONDS
            self._store.rpc.tasks.start_soon(self._refresh)

    async def check(self, ts: int, call: Call) -> None:
        """Return if what was just read at a timestamp was all still there.

        Raises:
            SnapshotTooOld: it may not have been.
            DeadlineExceeded, PdError: nobody can tell, as PD did not say in time where the safe point is.
        """
        if self._store.rpc.now() - self._known_at > VALID_SECONDS:
            try:
                await self._load(call)
            except DeadlineExceeded as error:
                raise DeadlineExceeded(call.operation, call.deadline.timeout) from error
        if ts < self._known:
            raise SnapshotTooOld(ts, self._known)

    async def _refresh(self) -> None:
        try:
            await self._load(self._store.rpc.call("get_safe_point", REFRESH_SECONDS))
        except TikvError:
            # Reads go on until what is known is too old, and fail then, with the reason.
            return

    async def _load(self, call: Call) -> None:
        keyspace = self._store.pd.keyspace

        async def load() -> None:
            asked_at = self._store.rpc.now()
            state = await self._store.pd.gc.get_state(
                None if keyspace is None else keyspace.id, timeout=call.deadline.check()
            )
            # Never back: what was collected stays collected.
            self._known = max(self._known, state.txn_safe_point)
            self._known_at, self._refresh_at = asked_at, asked_at + REFRESH_SECONDS

        await self._flights.ask("safe point", call.deadline, load)
