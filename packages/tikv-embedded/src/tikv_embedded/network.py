"""The connections between clients and the cluster's ports: `EmbeddedCluster.network`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tikv_embedded.endpoint import Endpoint
from tikv_embedded.errors import TopologyError
from tikv_embedded.relay import RelayEndpoint


class Network:
    """What can happen between clients and ports, by address, for PD members, stores and TSO servers alike.

    It needs `EmbeddedCluster(network_faults=True)`. What servers do among themselves goes on undisturbed: stores pass
    calls on to a store that is partitioned from clients.

    Args:
        endpoints: Returns all ports.
    """

    def __init__(self, endpoints: Callable[[], Iterable[Endpoint]]) -> None:
        self._endpoints = endpoints

    def partition(self, address: str) -> None:
        """Let nothing through between clients and this port: connections hang, those that are made anew too.

        Nobody is told: no connection is refused or reset.

        Raises:
            TopologyError: no such port, or the cluster was made without `network_faults`.
        """
        self._relay(address).freeze()

    def heal(self, address: str) -> None:
        """Let everything through again; what waited arrives now.

        Raises:
            TopologyError: no such port, or the cluster was made without `network_faults`.
        """
        self._relay(address).thaw()

    def reset(self, address: str) -> int:
        """Cut the connections of this port with a reset, and return how many; new ones can be made.

        Raises:
            TopologyError: no such port, or the cluster was made without `network_faults`.
        """
        return self._relay(address).reset()

    def connections(self, address: str) -> int:
        """Return how many connections this port has.

        Raises:
            TopologyError: no such port, or the cluster was made without `network_faults`.
        """
        return self._relay(address).open_connections

    def _relay(self, address: str) -> RelayEndpoint:
        endpoint = next((each for each in self._endpoints() if each.address == address), None)
        if endpoint is None:
            raise TopologyError(f"the cluster has no port {address!r}")
        if not isinstance(endpoint, RelayEndpoint):
            raise TopologyError("connections can be touched with EmbeddedCluster(network_faults=True) alone")
        return endpoint
