"""Servers of one kind on ports of their own, which close and open again."""

from __future__ import annotations

from collections.abc import Sequence

from tikv_embedded.endpoint import Endpoint
from tikv_embedded.errors import TopologyError
from tikv_embedded.rpc_handlers import Handler


class PortServers:
    """What PD members, TSO servers, routers and resource managers have in common.

    Args:
        endpoints: Their ports, bound and not started.
        kind: What one of them is called in errors.
    """

    def __init__(self, endpoints: Sequence[Endpoint], kind: str) -> None:
        self._endpoints = endpoints
        self._kind = kind

    @property
    def addresses(self) -> list[str]:
        """host:port of each server; empty when there are none, and PD does all."""
        return [endpoint.address for endpoint in self._endpoints]

    async def stop(self, server: int) -> None:
        """Close a server's port, and let the others take over what it did; harmless when stopped.

        Raises:
            TopologyError: there is no such server.
        """
        await self._endpoint(server).stop()
        self._adjust()

    async def start(self, server: int) -> None:
        """Open a server's port again, the same one; harmless when it runs.

        Raises:
            TopologyError: there is no such server.
            PortInUseError: something else took the port meanwhile.
        """
        endpoint = self._endpoint(server)
        if not endpoint.is_running:
            endpoint.bind()
            await endpoint.start(self._handlers(server))
            self._adjust()

    def _handlers(self, server: int) -> list[Handler]:
        """Return what a server answers."""
        raise NotImplementedError

    def _adjust(self) -> None:
        """Bring what depends on which servers run up to date."""
        raise NotImplementedError

    def _endpoint(self, server: int) -> Endpoint:
        if not 0 <= server < len(self._endpoints):
            raise TopologyError(f"there is no {self._kind} {server}")
        return self._endpoints[server]
