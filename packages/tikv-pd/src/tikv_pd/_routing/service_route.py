"""Servers that take work over from PD's leader, as PD's storage tells of them: resource managers and routers.

They register there while they run. Whoever has work for them asks one of them, the same one until it fails; then it
rests for a while, in which another one is asked, or PD's leader when there is no other, and the storage is looked at
again.

Source: pd client servicediscovery/resource_manager_service_discovery.go, router_service_discovery.go. Differences on
purpose: a server that fails is passed over at once, not after a health check found it; the storage is looked at from
the first use on, in whatever mode PD is, as nobody is registered where PD does everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio
import attrs
from google.protobuf.message import DecodeError
from tikv_proto import meta_storagepb, resource_manager as rmpb, services
from tikv_proto.services import Rpc

from tikv_pd._routing.connections import Connections
from tikv_pd._routing.members import MEMBERS_TIMEOUT, Members
from tikv_pd.config import PdConfig, strip_scheme
from tikv_pd.errors import PdError, RpcError, TikvError
from tikv_pd.lowlevel import Connection

REST: Final = 10.0
"""Seconds a server that failed is passed over."""
PAUSE: Final = 3.0
"""Seconds between two looks at the storage at least. Source: pd client, serviceURLUpdateInterval."""


@attrs.frozen
class Registry:
    """Where servers of a service are registered, and what they do."""

    path: str
    """Key in PD's storage, below the cluster's own; one that ends in `/` is a prefix."""
    parse: Callable[[bytes], str]
    """Makes an address of a value; empty when there is none in it."""
    rpcs: Mapping[Rpc[Any, Any], Rpc[Any, Any]]
    """PD's RPC → the one of the service in its place."""

    def request(self, cluster_id: int) -> meta_storagepb.GetRequest:
        """Return what asks for all of it."""
        key = f"/ms/{cluster_id}/{self.path}".encode()
        return meta_storagepb.GetRequest(key=key, range_end=key[:-1] + b"0" if key.endswith(b"/") else b"")

    def addresses(self, answer: meta_storagepb.GetResponse) -> tuple[str, ...]:
        """Return who is registered, sorted."""
        return tuple(sorted({address for pair in answer.kvs if (address := self.parse(pair.value))}))


def _primary(value: bytes) -> str:
    try:
        participant = rmpb.Participant.FromString(value)
    except DecodeError:
        return ""
    return strip_scheme(next(iter(participant.listen_urls), ""))


def _entry(value: bytes) -> str:
    try:
        entry = json.loads(value)
    except ValueError:
        return ""
    address = entry.get("service-addr") if isinstance(entry, dict) else None
    return strip_scheme(address) if isinstance(address, str) else ""


RESOURCE_MANAGERS: Final = Registry(
    "resource_manager/primary",
    _primary,
    {
        rpc: rpc
        for rpc in (
            services.ResourceManager.ListResourceGroups,
            services.ResourceManager.GetResourceGroup,
            services.ResourceManager.AcquireTokenBuckets,
        )
    },
)
"""The primary of the resource managers, which answers reads and grants tokens; changes go to PD's leader."""
ROUTERS: Final = Registry(
    "router/registry/",
    _entry,
    {
        services.PD.GetRegion: services.Router.GetRegion,
        services.PD.GetPrevRegion: services.Router.GetPrevRegion,
        services.PD.GetRegionByID: services.Router.GetRegionByID,
        services.PD.QueryRegion: services.Router.QueryRegion,
        services.PD.BatchScanRegions: services.Router.BatchScanRegions,
        services.PD.GetStore: services.Router.GetStore,
        services.PD.GetAllStores: services.Router.GetAllStores,
    },
)
"""The routers, which answer queries of Regions and stores from copies of what PD knows."""


@attrs.frozen
class Choice:
    """Which server is asked, as a value."""

    addresses: tuple[str, ...] = ()
    """Who is registered, sorted."""
    resting: tuple[tuple[str, float], ...] = ()
    """(address, until when) of those that failed."""
    current: str = ""
    """Who is asked; empty for PD's leader."""

    def told(self, addresses: tuple[str, ...], now: float) -> Choice:
        """Return the choice after the storage told who is registered."""
        return attrs.evolve(self, addresses=addresses).chosen(now)

    def failed(self, address: str, now: float) -> Choice:
        """Return the choice after a server failed."""
        resting = dict(self.resting) | {address: now + REST}
        return attrs.evolve(self, resting=tuple(resting.items())).chosen(now)

    def chosen(self, now: float) -> Choice:
        """Return the choice at a moment: the same server while it may be asked, else the one after it that may."""
        resting = tuple((address, until) for address, until in self.resting if until > now)
        passed_over = {address for address, _ in resting}
        free = [address for address in self.addresses if address not in passed_over]
        after = [address for address in free if address >= self.current]
        return attrs.evolve(self, resting=resting, current=next(iter(after or free), ""))


class ServiceRoute:
    """Who does the work of a service, kept up to date while `run` runs; a `Route`.

    Args:
        registry: Which service.
        members: PD's members.
        servers: Connections to servers of the service.
        config: How often to look.
        now: The clock.
    """

    def __init__(
        self, registry: Registry, members: Members, servers: Connections, config: PdConfig, now: Callable[[], float]
    ) -> None:
        self.registry = registry
        """Which service."""
        self._members = members
        self._connections = servers
        self._interval = config.member_interval
        self._now = now
        self._choice = Choice()
        self._wanted = anyio.Event()
        self._looked = anyio.Event()

    @property
    def leader(self) -> str:
        """Address of whom to ask; raises ClosedError once the client is closed."""
        self._connections.check_open()
        if self._choice.resting:
            self._choice = self._choice.chosen(self._now())
        return self._choice.current or self._members.leader

    def connection(self, address: str) -> Connection:
        """Return the connection to an address."""
        return self._connections.to(address) if self.is_apart(address) else self._members.connection(address)

    def is_apart(self, address: str) -> bool:
        """Tell whether a server of the service is at an address, not a member of PD."""
        return address in self._choice.addresses

    def rpc(self, rpc: Rpc[Any, Any], address: str) -> Rpc[Any, Any]:
        """Return what to call at an address in place of an RPC of PD."""
        return self.registry.rpcs[rpc] if self.is_apart(address) else rpc

    def verdict(self, address: str, error: TikvError, *, is_confirmed: bool) -> TikvError | None:
        """Return what to raise because of a failure at an address; None when another attempt may help.

        What a server refuses is asked of PD. Resource managers have no other status than UNKNOWN to refuse for good.
        """
        is_refusal = isinstance(error, PdError) or (isinstance(error, RpcError) and error.code != "UNKNOWN")
        if is_refusal and not self._is_pd(address):
            return None
        return self._members.verdict(address, error, is_confirmed=is_confirmed)

    def doubt(self, suspect: str) -> None:
        """Pass over a server that failed, for a while, and have the storage looked at soon; do not wait for it."""
        if self._is_pd(suspect):
            self._members.doubt(suspect)
        else:
            self._choice = self._choice.failed(suspect, self._now())
            self._wanted.set()

    async def refresh(self, suspect: str) -> TikvError | None:
        """Wait until PD's members were asked, when it is their leader that failed: then as `Members.refresh`."""
        return await self._members.refresh(suspect) if self.leader == suspect else None

    async def ready(self) -> None:
        """Return when the storage was looked at once."""
        if not self._looked.is_set():
            self._wanted.set()
            await self._looked.wait()

    async def run(self) -> None:
        """Look at the storage from the first use on, at intervals and whenever a server failed, until cancelled."""
        await self._wanted.wait()
        while True:
            self._wanted = anyio.Event()
            await self._look()
            self._looked.set()
            await anyio.sleep(min(PAUSE, self._interval))
            with anyio.move_on_after(max(0, self._interval - PAUSE)):
                await self._wanted.wait()

    async def _look(self) -> None:
        leader, cluster_id = self._members.leader, self._members.known.cluster_id
        request = self.registry.request(cluster_id)
        request.header.cluster_id = cluster_id
        try:
            answer = await self._members.connection(leader).unary(
                services.MetaStorage.Get, request, timeout=MEMBERS_TIMEOUT
            )
        except RpcError as error:
            # A PD without such a storage has no such servers either.
            if error.code != "UNIMPLEMENTED":
                self._members.doubt(leader)
            return
        if answer.header.HasField("error"):
            return
        self._choice = self._choice.told(self.registry.addresses(answer), self._now())
        await self._connections.keep(self._choice.addresses)

    def _is_pd(self, address: str) -> bool:
        known = self._members.known
        return address == known.leader or address in known.members
