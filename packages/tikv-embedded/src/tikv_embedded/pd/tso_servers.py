"""The TSO servers of a cluster whose timestamps are served apart from PD: `EmbeddedCluster.tso`."""

from __future__ import annotations

from tikv_embedded.endpoint import Endpoint
from tikv_embedded.errors import TopologyError
from tikv_embedded.pd.port_servers import PortServers
from tikv_embedded.pd.state import PdState
from tikv_embedded.pd.tso_service import DEFAULT_GROUP, TsoGroups, TsoService
from tikv_embedded.rpc_handlers import Handler


class TsoServers(PortServers):
    """Servers on ports of their own, any of which may be primary of a keyspace group.

    Args:
        state: What they share with PD.
        endpoints: Their ports, bound and not started.
    """

    def __init__(self, state: PdState, endpoints: list[Endpoint]) -> None:
        super().__init__(endpoints, "TSO server")
        self._state = state
        urls = tuple(endpoint.url for endpoint in endpoints)
        self._groups = TsoGroups(state.topology.cluster_id, state.oracle, state.pairs, urls)

    @property
    def keyspace_groups(self) -> dict[int, int]:
        """Keyspace group → index of its primary in `addresses`."""
        return dict(self._groups.primaries)

    async def serve(self) -> None:
        """Start all servers, the first one as primary, and let PD point at them; once."""
        self._groups.forget_primaries()
        if self._endpoints:
            self._groups.set_primary(DEFAULT_GROUP, 0)
            self.announce()
        for server, endpoint in enumerate(self._endpoints):
            await endpoint.start(self._handlers(server))

    def announce(self) -> None:
        """Let PD point at all servers, as it does from the start."""
        self._state.tso_urls[:] = [endpoint.url for endpoint in self._endpoints]

    def withdraw(self) -> None:
        """Let PD say that it gives out timestamps itself, until `announce`. Servers that run go on as before."""
        self._state.tso_urls.clear()

    def move_keyspace(self, keyspace_id: int, group: int) -> None:
        """Put a keyspace in a keyspace group, which is made if it is new.

        Raises:
            TopologyError: there are no TSO servers.
        """
        self._endpoint(0)
        self._groups.move_keyspace(keyspace_id, group)

    def transfer_primary(self, server: int, group: int = DEFAULT_GROUP) -> None:
        """Let another server serve a keyspace group; the old one refuses from now on.

        Raises:
            TopologyError: no such server or group, or the server does not run.
        """
        if not self._endpoint(server).is_running:
            raise TopologyError(f"TSO server {server} does not run, so it cannot be primary")
        self._groups.check_group(group)
        self._groups.set_primary(group, server)

    def _adjust(self) -> None:
        """Give groups whose primary is stopped to the first server that runs, if one does."""
        running = [server for server, endpoint in enumerate(self._endpoints) if endpoint.is_running]
        for group, primary in self.keyspace_groups.items():
            if running and primary not in running:
                self._groups.set_primary(group, running[0])

    def _handlers(self, server: int) -> list[Handler]:
        service = TsoService(self._groups, server)
        return [self._state.faults.around(handler, server) for handler in service.handlers()]
