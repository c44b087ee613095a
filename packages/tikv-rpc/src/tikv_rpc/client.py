"""The stores of a cluster, and the ways to the replicas of its Regions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from tikv_pd import ClosedError
from tikv_pd.backoff import REGION_MISS
from tikv_pd.lowlevel import BackgroundTasks, Transport
from tikv_region import InvalidReason, KeyCodec, Liveness, RegionCache, RegionEntry, RegionUnavailable

from tikv_rpc._reports.exec_details import ExecDetailsObserver
from tikv_rpc._reports.observer import RpcObserver
from tikv_rpc._reports.slow_log import SlowLog
from tikv_rpc._reports.stats import RpcStats, store_stats
from tikv_rpc._stores.replicas import Access, Selector, Target
from tikv_rpc._stores.route import Route, Routes, attempt_context, replica_context
from tikv_rpc._stores.store import StoreClient
from tikv_rpc._stores.watch import StoreWatch
from tikv_rpc.call import Call
from tikv_rpc.config import RpcConfig
from tikv_rpc.errors import RelocateError
from tikv_rpc.intercept import Interceptor, chain
from tikv_rpc.options import DEFAULT_OPTIONS, RequestOptions
from tikv_rpc.request import Effect, Request
from tikv_rpc.waits import Totals, Waits

_REACHABLE: Final = Liveness.REACHABLE


class RpcClient:
    """Connections to the stores of one cluster. Use inside `async with`: the connections' tasks live in it.

    Args:
        cache: Knows the Regions; shared with the plans built on this client.
        codec: The key codec of the cache.
        cluster_id: Which cluster; stores refuse requests for another.
        transport: Makes connections.
        config: Limits.
        interceptors: What runs around every attempt, the first outermost; of several with one name, the last is used.
        observers: Who hears of every operation, each nested in those before it.
        choose: Returns one of several replicas that are as good.
    """

    def __init__(
        self,
        cache: RegionCache,
        codec: KeyCodec,
        cluster_id: int,
        transport: Transport,
        config: RpcConfig | None = None,
        *,
        interceptors: Iterable[Interceptor] = (),
        observers: Iterable[RpcObserver] = (),
        choose: Callable[[Sequence[int]], int] = random.choice,
    ) -> None:
        self.cache = cache
        """Knows the Regions."""
        self.config = config if config is not None else RpcConfig()
        """Limits."""
        self.closed = True
        """Whether it cannot send, being closed or not opened yet."""
        self.interceptors = chain(interceptors)
        """What runs around every attempt."""
        self.observers = (*observers, *_own_observers(self.config))
        """Who hears of every operation; empty when nobody does."""
        self.totals = Totals()
        """Counts what goes wrong."""
        self.watch = StoreWatch(cache, transport, self.config, self._forget_stores)
        """Knows how the stores do."""
        self.now = transport.now
        """The clock."""
        self._waits = Waits(self.config.backoff_budget, self.totals)
        self._choose = choose
        self._codec = codec
        self._cluster_id = cluster_id
        self._transport = transport
        self._stores: dict[str, StoreClient] = {}
        self.tasks = BackgroundTasks()
        """Where tasks of the layers above may run until the client is closed; they must not raise."""

    async def __aenter__(self) -> Self:
        await self.tasks.__aenter__()
        self.tasks.start_soon(self.watch.run)
        self.closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self.closed = True
        # Each connection is closed by its own task.
        return await self.tasks.__aexit__(kind, error, traceback)

    def call(self, operation: str, timeout: float, options: RequestOptions = DEFAULT_OPTIONS) -> Call:
        """Return what a new operation carries through its plans.

        Raises:
            ClosedError: the client is not open.
        """
        if self.closed:
            raise ClosedError("client")
        return Call(operation, timeout, self.now, self._waits, options)

    def known_route(self, entry: RegionEntry, options: RequestOptions) -> Route | None:
        """Return the way of a plain request to the Region's leader if it is built, open, and leads somewhere."""
        routes = entry.attachment
        if not isinstance(routes, Routes):
            return None
        route = routes.leader
        if route is None or route.client.closed or route.store.health.liveness is not _REACHABLE:
            return None
        if route.options is not options:
            route.serve(options)
        return route

    async def find_route(self, entry: RegionEntry, selector: Selector, request: Request[Any], call: Call) -> Route:
        """Build the way of the next attempt, asking PD for the store's address if need be.

        Waits before it returns what the store is owed.

        Raises:
            RelocateError: no replica is left to ask, or the store has left the cluster.
            ClosedError: this client is not open.
        """
        if not entry.leader_store.address:
            # PD tells of all stores at once, also of the labels by which replicas are chosen.
            await self.cache.resolve(entry.leader_store, call.backoffer)
        target = selector.next()
        if target is None:
            cause = call.cause or RegionUnavailable(entry.start, "none of its stores can be reached")
            kind, cause = selector.settle() or (REGION_MISS, cause)
            await call.pause(kind, cause)
            raise RelocateError from cause
        store = entry.stores[target.via]
        owed = selector.pay(store)
        if owed is not None:
            await call.pause(*owed)
        address = await self.cache.resolve(store, call.backoffer)
        forward = ""
        if address and target.proxy is not None:
            forward = await self.cache.resolve(entry.stores[target.index], call.backoffer)
        if not address or (target.proxy is not None and not forward):
            self.cache.invalidate(entry, InvalidReason.STORE_NOT_FOUND)
            raise RelocateError
        self.watch.slowness.include(store)
        return self._route(entry, selector, target, request, call.options, self.store(address), forward)

    def _route(
        self,
        entry: RegionEntry,
        selector: Selector,
        target: Target,
        request: Request[Any],
        options: RequestOptions,
        client: StoreClient,
        forward: str,
    ) -> Route:
        routes, index = Routes.of(entry), target.index
        base = routes.bases.get(index)
        if base is None:
            base = replica_context(self._cluster_id, self._codec, entry, index, self.config.attempt_timeout)
            routes.bases[index] = base
        store = entry.stores[target.via]
        is_leader = index == entry.leader
        if is_leader and target.access is Access.LEADER and not forward and options.is_plain and not request.first:
            routes.leader = Route(target, store, client, base, options)
            return routes.leader
        fields = attempt_context(options, target, request, is_leader=is_leader, busy_threshold=selector.busy_threshold)
        return Route(target, store, client, base, options, fields, forward)

    def selector(self, entry: RegionEntry, request: Request[Any], call: Call) -> Selector:
        """Return what chooses the replicas for a request."""
        return Selector(
            entry,
            call.options,
            is_read=request.effect is Effect.READ,
            forwarding=self.config.forwarding,
            now=self.now,
            choose=self._choose,
        )

    def store(self, address: str) -> StoreClient:
        """Return the client of the store at an address, made when first asked for.

        Raises:
            ClosedError: this client is not open.
        """
        if self.closed:
            raise ClosedError("client")
        store = self._stores.get(address)
        if store is None or store.closed:
            store = self._stores[address] = StoreClient(
                self._transport, address, self.config, self.tasks, self.watch.slowness.on_feedback
            )
        return store

    def _forget_stores(self) -> None:
        """Close what leads to where no store is any more, once nobody waits there."""
        known = {store.address for store in self.watch.slowness.stores()}
        for address, client in list(self._stores.items()):
            if client.closed or (address not in known and not client.stats().in_flight):
                client.close()
                del self._stores[address]

    def stats(self) -> RpcStats:
        """Return how the client and its stores do."""
        now, totals = self.now(), self.totals
        entries = {entry.address: entry for entry in self.watch.slowness.stores()}
        return RpcStats(
            stores=MappingProxyType(
                {
                    address: store_stats(client.stats(), entries.get(address), now)
                    for address, client in list(self._stores.items())
                    if not client.closed
                }
            ),
            region_errors=MappingProxyType(dict(totals.region_errors)),
            rpc_errors=MappingProxyType(dict(totals.rpc_errors)),
            waits=MappingProxyType(dict(totals.wait_counts)),
            wait_seconds=MappingProxyType(dict(totals.wait_seconds)),
        )


def _own_observers(config: RpcConfig) -> Iterator[RpcObserver]:
    if config.exec_details:
        yield ExecDetailsObserver()
    if config.slow_threshold is not None:
        yield SlowLog(config.slow_threshold, config.redact)
