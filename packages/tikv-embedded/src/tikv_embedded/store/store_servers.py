"""The store servers of a cluster: each with a port, a service and an entry of PD, from its start to its removal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import attrs

from tikv_embedded.endpoint import Endpoint
from tikv_embedded.engine import Engine
from tikv_embedded.errors import TopologyError
from tikv_embedded.pd.tso import TimestampOracle
from tikv_embedded.region import Store, StoreState
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.store.service import TikvService, TikvState
from tikv_embedded.topology import Topology


class StoreServers:
    """Servers of the stores that are not removed.

    Args:
        mode: How they keep keys and values.
        topology: Of the cluster.
        engine: Below all of them.
        oracle: Gives them timestamps.
        new_endpoint: Makes a port, given its number or 0.
    """

    def __init__(
        self,
        mode: ApiMode,
        topology: Topology,
        engine: Engine,
        oracle: TimestampOracle,
        new_endpoint: Callable[[int], Endpoint],
    ) -> None:
        self.tikv = TikvState(mode, topology, engine, oracle, self.find_service)
        """What they share."""
        self._topology = topology
        self._new_endpoint = new_endpoint
        self.services: dict[int, TikvService] = {}
        """By store id; those of removed stores are gone."""
        self.endpoints: dict[int, Endpoint] = {}
        """Likewise."""
        for store in self._topology.stores.values():
            if store.state is not StoreState.TOMBSTONE:
                self._prepare(store.id)

    def is_running(self, store_id: int) -> bool:
        """Whether the store's port answers."""
        endpoint = self.endpoints.get(store_id)
        return endpoint is not None and endpoint.is_running

    def find_service(self, address: str) -> TikvService | None:
        """Return the service of the running store with that address, None when there is none."""
        for store_id, endpoint in self.endpoints.items():
            if endpoint.is_running and endpoint.address == address:
                return self.services[store_id]
        return None

    async def serve(self) -> None:
        """Start all, whose ports are bound, and tell PD where they listen; once."""
        for store_id, endpoint in self.endpoints.items():
            await endpoint.start(self.services[store_id].handlers())
            self._publish(store_id)

    async def start(self, store_id: int) -> None:
        """Open the port again, the same one; harmless when it runs."""
        endpoint = self._endpoint(store_id)
        if not endpoint.is_running:
            endpoint.bind()
            await endpoint.start(self.services[store_id].handlers())
            self._publish(store_id)
            self._topology.elect()

    async def stop(self, store_id: int, *, elect: bool) -> None:
        """Close the port; harmless when closed."""
        await self._endpoint(store_id).stop()
        if elect:
            self._topology.elect()

    async def add(self, labels: Mapping[str, str]) -> Store:
        """Add a running store, and return it."""
        (store_id,) = self._topology.allocate_ids(1)
        self._prepare(store_id)
        endpoint = self.endpoints[store_id]
        try:
            endpoint.bind()
            await endpoint.start(self.services[store_id].handlers())
        except BaseException:
            del self.services[store_id], self.endpoints[store_id]
            raise
        self._topology.put_store(Store(store_id, endpoint.address, labels=tuple(labels.items())))
        return self._publish(store_id)

    async def move(self, store_id: int, port: int) -> Store:
        """Let a store, stopped if it runs, listen elsewhere from now on, and return it."""
        await self._endpoint(store_id).stop()
        endpoint = self._new_endpoint(port)
        endpoint.bind()
        self.endpoints[store_id] = endpoint
        await endpoint.start(self.services[store_id].handlers())
        self._topology.elect()
        return self._publish(store_id)

    async def remove(self, store_id: int) -> Store:
        """Take the store out of the cluster for good, and return what is left of it."""
        endpoint = self._endpoint(store_id)
        self._topology.vacate(store_id)
        await endpoint.stop()
        del self.services[store_id], self.endpoints[store_id]
        return self.set_state(store_id, StoreState.TOMBSTONE)

    def set_state(self, store_id: int, state: StoreState) -> Store:
        """Change what PD says about a store, and return it."""
        return self._put(attrs.evolve(self._topology.store(store_id), state=state))

    def set_labels(self, store_id: int, labels: Mapping[str, str]) -> Store:
        """Replace the labels of a store, and return it."""
        return self._put(attrs.evolve(self._topology.store(store_id), labels=tuple(labels.items())))

    def _prepare(self, store_id: int) -> None:
        self.services[store_id] = TikvService(self.tikv, store_id)
        self.endpoints[store_id] = self._new_endpoint(0)

    def _publish(self, store_id: int) -> Store:
        """Tell PD where the store listens, and since when."""
        address = self.endpoints[store_id].address
        known = self._topology.store(store_id)
        return self._put(attrs.evolve(known, address=address, start_timestamp=int(time.time())))

    def _put(self, store: Store) -> Store:
        self._topology.put_store(store)
        return store

    def _endpoint(self, store_id: int) -> Endpoint:
        endpoint = self.endpoints.get(store_id)
        if endpoint is None:
            raise TopologyError(f"there is no store {store_id}")
        return endpoint
