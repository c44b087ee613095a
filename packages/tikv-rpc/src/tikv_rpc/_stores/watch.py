"""Watching over stores in the background: whether they answer, and how slow they are.

A store counts as reachable until somebody probes it, as a request to it failed. It is asked then whether it serves,
once for all who want to know meanwhile and with a time limit of its own; so no caller's deadline or cancellation says
anything about a store. One that does not serve is asked again and again until it does, and PD now and then whether it
has moved. While every store serves, there is one task, which wakes every 15 s to judge how slow they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio
import anyio.abc
from tikv_pd import Backoffer, Deadline, TikvError
from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import Transport
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import RegionCache, StoreEntry
from tikv_region.health import TICK, Liveness

from tikv_rpc._stores.liveness import ask_once, check
from tikv_rpc._stores.slowness import Slowness
from tikv_rpc.config import RpcConfig

RESOLVE_INTERVAL: Final = 30.0
"""Seconds between two questions to PD for the address of a store that does not serve. Source: client-go."""
FEEDBACK_TIMEOUT: Final = 2.0
"""Seconds a store may take to report its health when asked. Source: client-go."""


class _Look:
    """One question to a store whether it serves."""

    __slots__ = ("done", "liveness")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.liveness = Liveness.UNKNOWN


class StoreWatch:
    """Keeps the health of stores up to date while `run` is running; else nothing is learned of them.

    Args:
        cache: Asks PD for addresses.
        transport: Makes connections.
        config: Limits.
        on_tick: Called every 15 s, after stores that have left the cluster were forgotten.
    """

    def __init__(
        self, cache: RegionCache, transport: Transport, config: RpcConfig, on_tick: Callable[[], None]
    ) -> None:
        self.slowness = Slowness(transport.now)
        """How slow stores are; for those who send requests to feed."""
        self._cache = cache
        self._transport = transport
        self._config = config
        self._on_tick = on_tick
        self._looks: dict[tuple[int, str], _Look] = {}
        self._recovering: set[int] = set()
        self._tasks: anyio.abc.TaskGroup | None = None
        # Connections that carry requests count up from 0.
        self._channels = itertools.count(-1, -1)

    async def run(self) -> None:
        """Watch until cancelled. Whatever stores and PD do raises nothing.

        Tasks at most: three for each store, each with a time limit but the one that waits for a store to come back.
        """
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                while True:
                    await anyio.sleep(TICK)
                    for store in self.slowness.tick():
                        tasks.start_soon(self._ask_feedback, store)
                    self._on_tick()
            finally:
                self._tasks = None

    async def probe(self, store: StoreEntry, deadline: Deadline) -> Liveness:
        """Return whether a store serves, by a look at it that begins now or is under way.

        The look takes `RpcConfig.liveness_timeout` at most. What it shows is also in `StoreEntry.health`.

        Returns:
            UNKNOWN also if there is no time left to wait for it, which says nothing about the store; if the store's
            address is unknown; and if nobody runs this watch.

        Cancellation: safe; the look goes on.
        """
        look = self._begin_look(store)
        if look is None:
            return Liveness.UNKNOWN
        with anyio.move_on_after(max(deadline.remaining(), 0.0)):
            await look.done.wait()
        return look.liveness

    def _begin_look(self, store: StoreEntry) -> _Look | None:
        """Return the look at a store that is under way, or a new one; None when there can be none."""
        if self._tasks is None or not store.address:
            return None
        look = self._looks.get((store.id, store.address))
        if look is None:
            look = self._looks[store.id, store.address] = _Look()
            self._tasks.start_soon(self._look, self._tasks, store, store.address, look)
        return look

    async def _look(self, tasks: anyio.abc.TaskGroup, store: StoreEntry, address: str, look: _Look) -> None:
        timeout = self._config.liveness_timeout
        try:
            look.liveness = await check(self._transport, address, channel=next(self._channels), timeout=timeout)
            # What was looked at may be another store by now.
            if store.address == address:
                self._learn(tasks, store, look.liveness)
        finally:
            del self._looks[store.id, address]
            look.done.set()

    def _learn(self, tasks: anyio.abc.TaskGroup, store: StoreEntry, liveness: Liveness) -> None:
        before, store.health.liveness = store.health.liveness, liveness
        if before is Liveness.REACHABLE and liveness is not Liveness.REACHABLE:
            self.slowness.mark_slow(store)
        if liveness is not Liveness.REACHABLE and store.id not in self._recovering:
            self._recovering.add(store.id)
            tasks.start_soon(self._recover, store)

    async def _recover(self, store: StoreEntry) -> None:
        """Look at a store until it serves or has left the cluster."""
        now = self._transport.now
        resolved_at = -math.inf
        try:
            while store.health.liveness is not Liveness.REACHABLE and not store.is_tombstone:
                has_moved = False
                if now() - resolved_at >= RESOLVE_INTERVAL:
                    resolved_at = now()
                    has_moved = await self._resolve(store)
                if not has_moved:
                    await anyio.sleep(self._config.liveness_interval)
                look = self._begin_look(store)
                if look is not None:
                    await look.done.wait()
        finally:
            self._recovering.discard(store.id)
            # Others may go on using the store when this watch ends: nobody must take it for lost whom nobody corrects.
            store.health.liveness = Liveness.REACHABLE

    async def _resolve(self, store: StoreEntry) -> bool:
        """Ask PD for a store's address and tell whether it is another; without an answer the known one stays."""
        address, store.needs_check = store.address, True
        with suppress(TikvError):
            await self._cache.resolve(store, Backoffer(Deadline("resolve", RESOLVE_INTERVAL, self._transport.now)))
        has_moved = store.address not in {"", address}
        if has_moved:
            # What is cached of its Regions leads to the old address.
            store.epoch += 1
        return has_moved

    async def _ask_feedback(self, store: StoreEntry) -> None:
        request, channel = kvrpcpb.GetHealthFeedbackRequest(), next(self._channels)
        with suppress(RpcError):
            response = await ask_once(
                self._transport, store.address, Tikv.GetHealthFeedback, request, channel, FEEDBACK_TIMEOUT
            )
            report = response.health_feedback
            self.slowness.on_feedback(report.store_id, report.feedback_seq_no, report.slow_score)
