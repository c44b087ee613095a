"""Keeping the primary lock of a commit alive, so that others wait for a large or slow one instead of ending it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
from tikv_pd import Timestamp
from tikv_proto import kvrpcpb
from tikv_rpc import Request, RequestOptions

from tikv_txn._store import TxnStore

_SECONDS: Final = 20.0
"""Time for one beat with all its retries. Source: client-go, keepAlive."""
_FAILURES: Final = 10
"""Beats that may fail in a row. Source: client-go maxConsecutiveFailure."""


class Heartbeat:
    """Extends the lock of one transaction's primary key, in the background, from its start until it is stopped.

    It ends by itself when the lock is gone, when the transaction has been under way for `TxnConfig.max_heartbeat`, or
    when too many beats failed in a row.

    Args:
        store: The cluster.
        key: The primary key.
        start_ts: When the transaction started.
        request: Returns the request by which the lock lasts for so many milliseconds after that.
        until: When the lock expires without it, by the clock of `RpcClient.now`.
        options: What the transaction asks of stores.
    """

    def __init__(
        self,
        store: TxnStore,
        key: bytes,
        start_ts: int,
        request: Callable[[int], Request[kvrpcpb.TxnHeartBeatResponse]],
        until: float,
        options: RequestOptions,
    ) -> None:
        self._store = store
        self._key = key
        self._start = Timestamp.from_ts(start_ts)
        self._request = request
        self._until = until
        self._options = options
        self._scope: anyio.CancelScope | None = None

    def start(self) -> None:
        """Begin; without effect when it has begun before."""
        rpc = self._store.rpc
        if self._scope is None and not rpc.closed:
            self._scope = anyio.CancelScope()
            rpc.tasks.start_soon(self._run, self._scope)

    def stop(self) -> None:
        """End; a beat that was sent may still arrive."""
        if self._scope is not None:
            self._scope.cancel()

    async def _run(self, scope: anyio.CancelScope) -> None:
        interval = self._store.config.managed_lock_ttl / 2
        failures = 0
        with scope:
            # The lock of a small transaction lasts less long than one that is kept alive; of one that had to wait for
            # others, that may be over.
            left = max(self._until - self._store.rpc.now(), 0.0)
            await anyio.sleep(min(left / 2, interval))
            while failures <= _FAILURES:
                try:
                    if not await self._beat():
                        return
                    failures = 0
                except Exception:
                    # An interceptor's own error among them: nobody is there to hear of it.
                    failures += 1
                await anyio.sleep(interval)

    async def _beat(self) -> bool:
        """Extend the lock once; return whether there is reason to go on."""
        store, config = self._store, self._store.config
        call = store.rpc.call("heartbeat", _SECONDS, self._options)
        now = Timestamp.from_ts(await store.get_ts(call))
        uptime_ms = now.physical - self._start.physical
        if uptime_ms > config.max_heartbeat * 1000:
            return False
        request = self._request(uptime_ms + int(config.managed_lock_ttl * 1000))
        response: kvrpcpb.TxnHeartBeatResponse = await store.at_key.execute((self._key, request), call)
        return not response.HasField("error")
