"""Servers that do part of PD's work on ports of their own, and that clients find in PD's meta storage.

`EmbeddedCluster.routers` and `EmbeddedCluster.resource_managers`.
Source: tikv/pd pkg/mcs/discovery, pkg/mcs/utils/expected_primary.go, pkg/utils/keypath.
"""

from __future__ import annotations

import json

from tikv_proto import resource_manager as rm

from tikv_embedded.endpoint import Endpoint
from tikv_embedded.errors import TopologyError
from tikv_embedded.meta import TIKV_VERSION
from tikv_embedded.pd.port_servers import PortServers
from tikv_embedded.pd.resource_manager_service import ResourceManagerService
from tikv_embedded.pd.revisions import Change, Selection
from tikv_embedded.pd.router_service import RouterService
from tikv_embedded.pd.state import PdState
from tikv_embedded.rpc_handlers import Handler


class RegisteredServers(PortServers):
    """Servers of one service, which are registered while they run.

    Args:
        state: What they share with PD.
        endpoints: Their ports, bound and not started.
        service: Its name in meta storage.
    """

    def __init__(self, state: PdState, endpoints: list[Endpoint], service: str) -> None:
        super().__init__(endpoints, "server")
        self._state = state
        self._prefix = f"/ms/{state.topology.cluster_id}/{service}/"

    async def serve(self) -> None:
        """Start all servers; once."""
        for server, endpoint in enumerate(self._endpoints):
            await endpoint.start(self._handlers(server))
        self._adjust()

    def _entries(self) -> dict[str, bytes]:
        """Return what meta storage should hold below the prefix."""
        raise NotImplementedError

    def _adjust(self) -> None:
        """Let meta storage, where clients watch, hold what it should."""
        pairs = self._state.pairs
        wanted = {(self._prefix + key).encode(): value for key, value in self._entries().items()}
        present = {pair.key: pair.value for pair in pairs.select(Selection.prefix(self._prefix.encode()))}
        changes = [Change(key, None) for key in present.keys() - wanted.keys()]
        changes += [Change(key, value) for key, value in wanted.items() if present.get(key) != value]
        if changes:
            pairs.apply(changes)


class RouterServers(RegisteredServers):
    """Routers: any of them answers queries of Regions and stores.

    Args:
        state: What they share with PD.
        endpoints: Their ports, bound and not started.
    """

    def __init__(self, state: PdState, endpoints: list[Endpoint]) -> None:
        super().__init__(state, endpoints, "router")

    def _handlers(self, server: int) -> list[Handler]:
        return [self._state.faults.around(handler, server) for handler in RouterService(self._state).handlers()]

    def _entries(self) -> dict[str, bytes]:
        return {
            f"registry/{endpoint.url}": json.dumps(
                {"name": f"router-{number}", "service-addr": endpoint.url, "version": TIKV_VERSION}
            ).encode()
            for number, endpoint in enumerate(self._endpoints, 1)
            if endpoint.is_running
        }


class ResourceManagerServers(RegisteredServers):
    """Resource managers, of which the primary grants tokens; PD goes on to do the same.

    Args:
        state: What they share with PD.
        endpoints: Their ports, bound and not started.
    """

    def __init__(self, state: PdState, endpoints: list[Endpoint]) -> None:
        super().__init__(state, endpoints, "resource_manager")
        self._primary = 0

    @property
    def primary(self) -> int:
        """Index in `addresses` of the one that answers; of no meaning while none runs."""
        return self._primary

    def transfer_primary(self, server: int) -> None:
        """Let another server answer; the old one refuses from now on.

        Raises:
            TopologyError: no such server, or it does not run.
        """
        if not self._endpoint(server).is_running:
            raise TopologyError(f"resource manager {server} does not run, so it cannot be primary")
        self._primary = server
        self._adjust()

    def _handlers(self, server: int) -> list[Handler]:
        service = ResourceManagerService(self._state, lambda: self._primary == server)
        return [self._state.faults.around(handler, server) for handler in service.handlers()]

    def _entries(self) -> dict[str, bytes]:
        running = [server for server, endpoint in enumerate(self._endpoints) if endpoint.is_running]
        if not running:
            return {}
        if self._primary not in running:
            self._primary = running[0]
        url, number = self._endpoints[self._primary].url, self._primary + 1
        participant = rm.Participant(name=f"resource-manager-{number}", id=number, listen_urls=[url])
        return {"primary": participant.SerializeToString()}
