"""The stores of a cluster, and the way to a Region's leader."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from tikv_pd import ClosedError
from tikv_pd.lowlevel import BackgroundTasks, Transport
from tikv_region import InvalidReason, KeyCodec, RegionCache, RegionEntry, StoreEntry

from tikv_rpc.batch import BatchStats
from tikv_rpc.call import Call
from tikv_rpc.config import RpcConfig
from tikv_rpc.errors import RelocateError
from tikv_rpc.request import context_field
from tikv_rpc.store import StoreClient


class Route:
    """The way to a replica of a Region: built when first needed, kept on the Region's entry."""

    __slots__ = ("client", "context", "store")

    def __init__(self, store: StoreEntry, client: StoreClient, context: bytes) -> None:
        self.store = store
        """The store it leads to, as the cache knows it."""
        self.client = client
        """The connection to that store."""
        self.context = context
        """The Context of requests to it, as bytes."""


class RpcClient:
    """Connections to the stores of one cluster. Use inside `async with`: the connections' tasks live in it.

    Args:
        cache: Knows the Regions; shared with the plans built on this client.
        codec: The key codec of the cache.
        cluster_id: Which cluster; stores refuse requests for another.
        transport: Makes connections.
        config: Limits.
    """

    def __init__(
        self,
        cache: RegionCache,
        codec: KeyCodec,
        cluster_id: int,
        transport: Transport,
        config: RpcConfig | None = None,
    ) -> None:
        self.cache = cache
        """Knows the Regions."""
        self.config = config if config is not None else RpcConfig()
        """Limits."""
        self.closed = True
        """Whether it cannot send, being closed or not opened yet."""
        self._codec = codec
        self._cluster_id = cluster_id
        self._transport = transport
        self._stores: dict[str, StoreClient] = {}
        self.tasks = BackgroundTasks()
        """Where tasks of the layers above may run until the client is closed; they must not raise."""

    async def __aenter__(self) -> Self:
        await self.tasks.__aenter__()
        self.closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self.closed = True
        # Each connection is closed by its own task.
        return await self.tasks.__aexit__(kind, error, traceback)

    def call(self, operation: str, timeout: float) -> Call:
        """Return what a new operation carries through its plans.

        Raises:
            ClosedError: the client is not open.
        """
        if self.closed:
            raise ClosedError("client")
        return Call(operation, timeout, self._transport.now, self.config.backoff_budget)

    def known_route(self, entry: RegionEntry) -> Route | None:
        """Return the way to the Region's leader if it is built and still open."""
        route = entry.attachment
        return route if isinstance(route, Route) and not route.client.closed else None

    async def find_route(self, entry: RegionEntry, call: Call) -> Route:
        """Build the way to the Region's leader, asking PD for the store's address if need be.

        Raises:
            RelocateError: the leader's store has left the cluster.
            ClosedError: this client is not open.
        """
        store = entry.leader_store
        address = await self.cache.resolve(store, call.backoffer)
        if not address:
            self.cache.invalidate(entry, InvalidReason.STORE_NOT_FOUND)
            raise RelocateError
        if entry.leader_store is not store:
            # Another call moved the leader while this one asked PD.
            return await self.find_route(entry, call)
        context = context_field(self._cluster_id, self._codec, entry, self.config.attempt_timeout)
        route = entry.attachment = Route(store, self.store(address), context)
        return route

    def store(self, address: str) -> StoreClient:
        """Return the client of the store at an address, made when first asked for.

        Raises:
            ClosedError: this client is not open.
        """
        if self.closed:
            raise ClosedError("client")
        store = self._stores.get(address)
        if store is None or store.closed:
            store = self._stores[address] = StoreClient(self._transport, address, self.config, self.tasks)
        return store

    def stats(self) -> dict[str, BatchStats]:
        """Return the counters of each store's stream, by address."""
        return {address: store.stats() for address, store in self._stores.items() if not store.closed}
