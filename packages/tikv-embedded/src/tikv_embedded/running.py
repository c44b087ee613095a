"""All that a cluster has while it runs: how it comes up, in which order, and how it goes down."""

from __future__ import annotations

import asyncio
from typing import Self

import attrs

from tikv_embedded.bootstrap import open_state
from tikv_embedded.endpoint import Endpoint
from tikv_embedded.engine import CF_WRITE, Engine, MemoryEngine, RocksEngine
from tikv_embedded.mvcc.garbage import collect
from tikv_embedded.options import ClusterOptions
from tikv_embedded.pd.clock import Clock
from tikv_embedded.pd.controls import PdControls
from tikv_embedded.pd.garbage_ranges import safe_ranges
from tikv_embedded.pd.http_endpoint import HttpEndpoint
from tikv_embedded.pd.members import PdMember, PdMembers
from tikv_embedded.pd.pd_servers import PdServers
from tikv_embedded.pd.registered_servers import ResourceManagerServers, RouterServers
from tikv_embedded.pd.state import PdState
from tikv_embedded.pd.tso import TimestampOracle
from tikv_embedded.pd.tso_servers import TsoServers
from tikv_embedded.relay import RelayEndpoint
from tikv_embedded.store.fault_controls import StoreFaults
from tikv_embedded.store.store_servers import StoreServers
from tikv_embedded.topology import Topology

_GRACE = 0.05
"""Seconds that calls under way get when the cluster is closed; a client gone by then sees no broken connection."""


@attrs.frozen(kw_only=True)
class RunningCluster:
    """The parts of one cluster; `EmbeddedCluster` documents those that users reach."""

    engine: Engine
    topology: Topology
    pd: PdState
    pd_controls: PdControls
    pd_servers: PdServers
    tso: TsoServers
    routers: RouterServers
    resource_managers: ResourceManagerServers
    apart: list[Endpoint]
    """The ports of those three."""
    store_servers: StoreServers
    faults: StoreFaults

    @classmethod
    async def open(cls, options: ClusterOptions) -> Self:
        """Open the data and all ports; a failure leaves nothing behind."""
        engine: Engine = MemoryEngine() if options.path is None else RocksEngine(options.path, sync=options.sync)
        endpoints: list[Endpoint] = []
        try:
            return await cls._serve(options, engine, endpoints)
        except BaseException:
            await _close(engine, endpoints)
            raise

    @property
    def endpoints(self) -> list[Endpoint]:
        """All ports."""
        return [*self.pd_servers.endpoints, *self.apart, *self.store_servers.endpoints.values()]

    def collect_garbage(self) -> int:
        """Remove what PD's GC safe points allow to, and return how many versions went."""
        removed = 0
        for lower, upper, safe_point in safe_ranges(self.pd.gc):
            with self.engine.snapshot() as snapshot:
                for batch in collect(snapshot, lower, upper, safe_point):
                    self.engine.write(batch)
                    removed += sum(1 for _, cf, _, _ in batch if cf == CF_WRITE)
        return removed

    async def aclose(self) -> None:
        """Stop all ports and close the data."""
        await _close(self.engine, self.endpoints)

    @classmethod
    async def _serve(cls, options: ClusterOptions, engine: Engine, started: list[Endpoint]) -> Self:
        """Start everything, PD last; each port is put on `started` before anything can fail behind it."""

        def new_endpoint(port: int = 0) -> Endpoint:
            return (RelayEndpoint if options.network_faults else Endpoint)(options.host, port, options.security)

        def new_pd_endpoint(index: int) -> Endpoint:
            port = options.pd_port + index if options.pd_port else 0
            return HttpEndpoint(options.host, port, options.security) if options.http else new_endpoint(port)

        topology, keyspaces = open_state(engine, options)
        clock = Clock()
        oracle = TimestampOracle(engine, clock.milliseconds)
        stores = StoreServers(options.mode, topology, engine, oracle, new_endpoint)
        pd_endpoints = [new_pd_endpoint(index) for index in range(options.pd_members)]
        tso_endpoints = [new_endpoint() for _ in range(options.tso_servers)]
        router_endpoints = [new_endpoint() for _ in range(options.router_servers)]
        manager_endpoints = [new_endpoint() for _ in range(options.resource_managers)]
        apart = [*tso_endpoints, *router_endpoints, *manager_endpoints]
        for endpoint in (*pd_endpoints, *apart, *stores.endpoints.values()):
            started.append(endpoint)
            endpoint.bind()
        await stores.serve()
        topology.watch_stores(stores.is_running)
        topology.elect()
        members = tuple(PdMember(index, f"pd-{index}", endpoint.url) for index, endpoint in enumerate(pd_endpoints, 1))
        pd = PdState.open(options.mode, engine, topology, oracle, keyspaces, PdMembers(members, members[0]), clock)
        tso, pd_servers = TsoServers(pd, tso_endpoints), PdServers(pd, pd_endpoints)
        routers, managers = RouterServers(pd, router_endpoints), ResourceManagerServers(pd, manager_endpoints)
        for servers in (tso, routers, managers, pd_servers):
            await servers.serve()
        return cls(
            engine=engine,
            topology=topology,
            pd=pd,
            pd_controls=PdControls(pd),
            pd_servers=pd_servers,
            tso=tso,
            routers=routers,
            resource_managers=managers,
            apart=apart,
            store_servers=stores,
            faults=StoreFaults(stores.tikv.watch, stores.services, stores.tikv.clock),
        )


async def _close(engine: Engine, endpoints: list[Endpoint]) -> None:
    try:
        await asyncio.gather(*(endpoint.stop(grace=_GRACE) for endpoint in endpoints))
    finally:
        engine.close()
