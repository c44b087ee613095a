"""The embedded cluster: PD members and stores on loopback ports, over one engine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from tikv_embedded.bootstrap import user_bound
from tikv_embedded.errors import ClusterNotRunningError, TopologyError
from tikv_embedded.network import Network
from tikv_embedded.options import ClusterOptions, check_options
from tikv_embedded.pd.controls import PdControls
from tikv_embedded.pd.registered_servers import ResourceManagerServers, RouterServers
from tikv_embedded.pd.tso_servers import TsoServers
from tikv_embedded.region import Region, Store, StoreState
from tikv_embedded.running import RunningCluster
from tikv_embedded.security import ServerSecurity
from tikv_embedded.store.fault_controls import StoreFaults


class EmbeddedCluster:
    """A TiKV-compatible cluster inside this process, on real gRPC ports.

    Use it as an async context manager, or call `start` and `aclose`. It lives on the event loop that started it, and
    its methods are for that loop's thread. Replication is virtual: one engine below all stores, while Regions, peers,
    epochs, terms and leaders behave as in TiKV. A change of them is visible through PD and all stores when its method
    returns, and durable if the cluster is.

    Args:
        stores: TiKV stores. A data directory that has more keeps them; one that has fewer gets new, empty ones.
        path: Data directory, made if needed; None keeps everything in memory. What was acknowledged survives a kill.
        api_version: Storage mode: `v1`, `v1ttl` or `v2`. Fixed once a data directory is written.
        pd_members: 1 or 3 PD servers.
        tso_servers: 0 to 5 servers that give out timestamps in PD's place, on free ports; 0 lets PD do it.
        router_servers: 0 to 5 servers that answer queries of Regions and stores beside PD, on free ports.
        resource_managers: 0 to 5 servers that grant tokens of resource groups beside PD, on free ports.
        http: Whether PD's ports answer HTTP too. Every byte of gRPC with PD is then passed on once more.
        security: TLS of all ports; None is none.
        network_faults: Whether connections to all ports can be frozen and cut (`network`). Every byte is then passed
            on once more.
        split_keys: Raw user keys at which Regions begin (in `v2` keys of keyspace DEFAULT). A new cluster spreads the
            Regions over its stores; an existing one is split where it is not yet.
        host: Address to listen on.
        pd_port: Port of the first PD member, the others follow; 0 takes free ones. Stores always take free ones.
        keyspaces: Names of keyspaces that shall exist besides DEFAULT; `v2` alone.
        max_peer_count: Replicas of each Region of a new cluster, as far as there are stores.
        sync: Whether each write of a durable cluster is flushed to the disk; without, power loss may undo the last
            writes.

    Raises:
        OptionError: an option is out of range.
    """

    def __init__(
        self,
        *,
        stores: int = 3,
        path: str | os.PathLike[str] | None = None,
        api_version: str = "v1",
        pd_members: int = 1,
        tso_servers: int = 0,
        router_servers: int = 0,
        resource_managers: int = 0,
        http: bool = False,
        security: ServerSecurity | None = None,
        network_faults: bool = False,
        split_keys: Iterable[bytes] = (),
        host: str = "127.0.0.1",
        pd_port: int = 0,
        keyspaces: Iterable[str] = (),
        max_peer_count: int = 3,
        sync: bool = True,
    ) -> None:
        self._options: ClusterOptions = check_options(
            stores=stores,
            path=path,
            api_version=api_version,
            pd_members=pd_members,
            tso_servers=tso_servers,
            router_servers=router_servers,
            resource_managers=resource_managers,
            http=http,
            security=security,
            network_faults=network_faults,
            split_keys=split_keys,
            host=host,
            pd_port=pd_port,
            keyspaces=keyspaces,
            max_peer_count=max_peer_count,
            sync=sync,
        )
        self._running: RunningCluster | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Open the data and all ports; returns once every port answers. A failed start leaves nothing behind.

        Raises:
            DataDirectoryError: the directory is locked, foreign or damaged.
            OptionError: the directory holds a cluster of another storage mode.
            PortInUseError: a PD port is taken.
        """
        if self._running is not None:
            raise RuntimeError("the cluster runs already")
        self._running = await RunningCluster.open(self._options)

    async def aclose(self) -> None:
        """Stop all ports and close the data; harmless when not running. Calls under way are cut off."""
        running, self._running = self._running, None
        if running is not None:
            await running.aclose()

    @property
    def url(self) -> str:
        """`tikv://HOST:PORT[,HOST:PORT…]`, the address of all PD members, for a client."""
        return "tikv://" + ",".join(self.pd_addresses)

    @property
    def pd_addresses(self) -> list[str]:
        """host:port of each PD member."""
        return self._state.pd_servers.addresses

    @property
    def store_addresses(self) -> dict[int, str]:
        """Store id → host:port."""
        return {store.id: store.address for store in self.stores()}

    @property
    def cluster_id(self) -> int:
        """What every request must carry; kept in the data directory."""
        return self._state.topology.cluster_id

    @property
    def pd(self) -> PdControls:
        """What can be done to PD: its clock, its settings, its faults."""
        return self._state.pd_controls

    @property
    def faults(self) -> StoreFaults:
        """What can go wrong with the stores: delays, losses, Region errors, health; and what they receive."""
        return self._state.faults

    @property
    def network(self) -> Network:
        """What can happen between clients and ports, if the cluster was made with `network_faults`."""
        return Network(lambda: self._state.endpoints)

    @property
    def tso(self) -> TsoServers:
        """The servers that give out timestamps in PD's place; none unless asked for."""
        return self._state.tso

    @property
    def routers(self) -> RouterServers:
        """The servers that answer queries of Regions and stores beside PD; none unless asked for."""
        return self._state.routers

    @property
    def resource_managers(self) -> ResourceManagerServers:
        """The servers that grant tokens of resource groups beside PD; none unless asked for."""
        return self._state.resource_managers

    def regions(self) -> list[Region]:
        """Return all Regions, ascending by range."""
        return self._state.topology.scan(b"", b"", 0)

    def region_of(self, key: bytes) -> Region:
        """Return the Region of a raw user key (in V2 one of keyspace DEFAULT)."""
        return self._state.topology.find(user_bound(self._options.mode, key))

    def stores(self) -> list[Store]:
        """Return all stores, running or not, by id; removed ones are left out."""
        stores = self._state.topology.stores.values()
        return sorted(
            (store for store in stores if store.state is not StoreState.TOMBSTONE), key=lambda store: store.id
        )

    def split(self, *keys: bytes) -> list[Region]:
        """Split Regions at raw user keys and return the pieces, ascending; keys that are bounds already do nothing.

        The rightmost piece of a Region keeps its id; leaders stay on their stores.
        """
        return self._state.topology.split(user_bound(self._options.mode, key) for key in keys)

    def merge(self, source_id: int, target_id: int) -> Region:
        """Merge a Region into a neighbor with peers on the same stores, and return that neighbor.

        Raises:
            TopologyError: they are not neighbors, their stores differ, or one does not exist.
        """
        return self._state.topology.merge(source_id, target_id)

    def transfer_leader(self, region_id: int, store_id: int) -> Region:
        """Let the Region's peer on that store lead, and return the Region.

        Raises:
            TopologyError: no such Region or peer, the peer cannot lead, or its store does not run.
        """
        return self._state.topology.transfer_leader(region_id, store_id)

    def add_peer(
        self,
        region_id: int,
        store_id: int,
        *,
        is_learner: bool = False,
        is_witness: bool = False,
        is_pending: bool = False,
    ) -> Region:
        """Give the Region a replica on one more store, and return the Region.

        Args:
            region_id: Which Region.
            store_id: A store without a peer of it.
            is_learner: The peer has no vote and never leads.
            is_witness: The peer has a vote and no data; it answers IsWitness.
            is_pending: The peer waits for its first snapshot; it answers RegionNotInitialized until it is removed.

        Raises:
            TopologyError: no such Region or store, or a peer is there already.
        """
        return self._state.topology.add_peer(
            region_id, store_id, is_learner=is_learner, is_witness=is_witness, is_pending=is_pending
        )

    def remove_peer(self, region_id: int, store_id: int) -> Region:
        """Take the Region's replica from that store, and return the Region; a leader hands over first.

        Raises:
            TopologyError: no such Region or peer, or no other peer could lead.
        """
        return self._state.topology.remove_peer(region_id, store_id)

    def create_keyspace(self, name: str, config: Mapping[str, str] | None = None) -> int:
        """Make an ENABLED keyspace with Regions of its own, and return its id; `v2` alone.

        Args:
            name: 1 to 20 letters, digits, `-` or `_`.
            config: Free settings; `gc_management_type: keyspace_level` gives it safe points of its own.

        Raises:
            OptionError: another storage mode, not a name, or one that is taken.
        """
        return self._state.pd.create_keyspace(name, config).id

    def collect_garbage(self) -> int:
        """Remove the versions of transactional keys that PD's GC safe points allow to, and return how many went.

        TiKV does this by itself some time after a safe point has advanced; here it happens when asked for. Raw pairs
        are not touched.
        """
        return self._state.collect_garbage()

    def transfer_pd_leader(self, member: int | str) -> None:
        """Let another PD member lead: its index in `pd_addresses`, or its name (`pd-1` and so on).

        Raises:
            TopologyError: there is no such member, or it does not run.
        """
        self._state.pd_servers.transfer_leader(member)

    async def stop_pd_member(self, index: int) -> None:
        """Close a PD member's port: connections are refused and calls cut off. If it leads, another one does now.

        Args:
            index: Which member, by its position in `pd_addresses`; harmless when stopped.

        Raises:
            TopologyError: there is no such member.
        """
        await self._state.pd_servers.stop(index)

    async def start_pd_member(self, index: int) -> None:
        """Open a PD member's port again, the same one; harmless when it runs.

        Raises:
            TopologyError: there is no such member.
            PortInUseError: something else took the port meanwhile.
        """
        await self._state.pd_servers.start(index)

    async def stop_store(self, store_id: int, *, elect: bool = True) -> None:
        """Close the store's port: connections are refused and calls cut off. PD goes on to list the store.

        Args:
            store_id: Which store; harmless when stopped.
            elect: Whether raft's elections happen at once: Regions led there get another leader where a majority of
                their peers still runs, and Regions without one have no leader. Otherwise leaders stay as they are.

        Raises:
            TopologyError: there is no such store.
        """
        await self._state.store_servers.stop(store_id, elect=elect)

    async def start_store(self, store_id: int) -> None:
        """Open the store's port again, the same one; harmless when it runs.

        Raises:
            TopologyError: there is no such store.
            PortInUseError: something else took the port meanwhile.
        """
        await self._state.store_servers.start(store_id)

    async def add_store(self, labels: Mapping[str, str] | None = None) -> Store:
        """Add a running store without peers and with these labels, and return it."""
        return await self._state.store_servers.add(labels or {})

    async def move_store(self, store_id: int, *, port: int = 0) -> Store:
        """Let the store listen on another port from now on, and return it; calls on the old one are cut off.

        PD tells the new address at once. A store that moves to the port of another one, which moved before, is how
        clients come to ask the wrong store.

        Args:
            store_id: Which store; it runs afterwards.
            port: 0 takes a free one.

        Raises:
            TopologyError: there is no such store.
            PortInUseError: something else has the port; the store is stopped then.
        """
        return await self._state.store_servers.move(store_id, port)

    async def remove_store(self, store_id: int) -> Store:
        """Take the store out of the cluster for good, and return what PD still knows of it, a tombstone.

        Its peers move to stores that are UP and have none of the Region; where there is no such store, Regions have
        a peer less. Its id is never used again.

        Raises:
            TopologyError: no such store, or a Region would be left without a peer that can lead.
        """
        return await self._state.store_servers.remove(store_id)

    def set_store_offline(self, store_id: int, offline: bool = True) -> Store:
        """Let PD say that the store is being removed, or that it is up after all, and return it; it goes on serving.

        Raises:
            TopologyError: there is no such store, or it is removed.
        """
        servers = self._state.store_servers
        if store_id not in servers.services:
            raise TopologyError(f"there is no store {store_id}")
        return servers.set_state(store_id, StoreState.OFFLINE if offline else StoreState.UP)

    def set_store_labels(self, store_id: int, labels: Mapping[str, str]) -> Store:
        """Replace the labels of a store, such as `{"zone": "z1"}` or `{"engine": "tiflash"}`, and return it.

        Raises:
            TopologyError: there is no such store.
        """
        return self._state.store_servers.set_labels(store_id, labels)

    @property
    def _state(self) -> RunningCluster:
        if self._running is None:
            raise ClusterNotRunningError("the cluster does not run")
        return self._running
