"""Whom to ask for timestamps: PD's leader, or the primary of a keyspace group where TSO servers grant them.

PD says which, every few seconds. A change counts once it is known whom to ask: until then timestamps come from where
they came from before, which in the beginning is PD, as that passes requests on to its TSO servers. What PD and TSO
servers tell is judged in `_tso_discovery`; here is who asks them, and when.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
from tikv_proto import pdpb, services, tsopb
from tikv_proto.services import Rpc

from tikv_pd._routing.connections import Connections
from tikv_pd._routing.members import MEMBERS_TIMEOUT, Members
from tikv_pd._routing.rounds import Rounds
from tikv_pd._routing.tso_discovery import GroupSearch, Provider
from tikv_pd._routing.ways import Way, Ways
from tikv_pd.config import PdConfig
from tikv_pd.errors import RpcError, TikvError
from tikv_pd.lowlevel import Connection

NO_KEYSPACE: Final = 0xFFFF_FFFF
"""Id that TSO servers know clients by which are in no keyspace. Source: pd client, NullKeyspaceID."""
_RETRY: Final = 1.0
"""Seconds between two looks for the first primary. Source: pd client, initRetryInterval."""


class TsoSource:
    """Who grants timestamps, kept up to date while `run` runs; a `StreamRoute`.

    Args:
        members: PD's members.
        ways: How to reach their leader.
        servers: Connections to TSO servers.
        config: How often to look.
        keyspace_id: Whose timestamps; `NO_KEYSPACE` for those of nobody in particular.
        now: The clock.
    """

    def __init__(
        self,
        members: Members,
        ways: Ways,
        servers: Connections,
        config: PdConfig,
        keyspace_id: int,
        now: Callable[[], float],
    ) -> None:
        self._members = members
        self._ways = ways
        self._connections = servers
        self._config = config
        self._keyspace_id = keyspace_id
        self._now = now
        self._provider = Provider()
        self._searched: tuple[str, ...] = ()
        self._found_at = 0.0
        self._turn = 0
        self._rounds = Rounds(self._round, self._pause)

    @property
    def leader(self) -> str:
        """Address of who grants timestamps; raises ClosedError once the client is closed."""
        self._connections.check_open()
        return self._provider.group.primary or self._members.leader

    def way(self) -> Way:
        """Return the way to who grants timestamps: followers of PD may be on it, nobody is on that to TSO servers."""
        leader = self.leader
        if not self._is_pd(leader):
            return Way(leader, leader)
        return self._ways.to_leader(prefer_follower=self._config.tso_through_follower)

    def failed(self, way: Way, error: TikvError) -> TikvError:
        """Take note of how a stream of timestamps ended, and return that as the failure of who grants them."""
        return self._ways.failed(way, error) if self._is_pd(way.target) else error

    def connection(self, address: str) -> Connection:
        """Return the connection to an address."""
        return self._members.connection(address) if self._is_pd(address) else self._connections.to(address)

    def begin(self, address: str) -> tuple[Rpc[Any, Any], Any]:
        """Return the RPC that grants timestamps at an address, and the header of its requests."""
        if self._is_pd(address):
            return services.PD.Tso, pdpb.RequestHeader(cluster_id=self._members.known.cluster_id)
        return services.TSO.Tso, self._header(address, self._provider.group.id)

    def verdict(self, address: str, error: TikvError, *, is_confirmed: bool) -> TikvError | None:
        """Return what to raise because of a failure at an address; None when another attempt may help.

        That is always so after a failure at a TSO server: other servers come to its address when it is gone.
        """
        if isinstance(error, RpcError) and not self._is_pd(address):
            return None
        return self._members.verdict(address, error, is_confirmed=is_confirmed)

    def doubt(self, suspect: str) -> None:
        """Have it looked into soon, because `suspect`, who grants timestamps, failed; do not wait for it."""
        if self._is_pd(suspect):
            self._members.doubt(suspect)
        elif self._provider.group.primary == suspect:
            self._rounds.want(suspect)

    async def refresh(self, suspect: str) -> TikvError | None:
        """Wait until it was looked into, unless `suspect` does not grant timestamps any longer; return why that failed.

        When PD fails, whether TSO servers took over is looked into as well, but not waited for.
        """
        if self.leader != suspect:
            return None
        if self._is_pd(suspect):
            outcome = await self._members.refresh(suspect)
            self._rounds.want()
            return outcome
        self.doubt(suspect)
        return await self._rounds.wait()

    async def look(self) -> None:
        """Look once who grants timestamps; when that cannot be found out, it is PD."""
        if not self._config.tso_from_pd:
            await self._round("")

    async def run(self) -> None:
        """Look again at intervals and whenever somebody has doubts, until cancelled."""
        if not self._config.tso_from_pd:
            await self._rounds.run()

    def _is_pd(self, address: str) -> bool:
        known = self._members.known
        return address != self._provider.group.primary and (address == known.leader or address in known.members)

    def _pause(self) -> float:
        provider = self._provider
        interval = self._config.service_interval
        return min(_RETRY, interval) if provider.servers and not provider.group.primary else interval

    async def _round(self, suspect: str) -> TikvError | None:
        """Bring up to date what is known; return why it was not possible to find a primary, if there is one."""
        error: TikvError | None = None
        if suspect:
            # The servers that are known come first: they may do well while PD is away.
            error = await self._search(suspect)
            if error is None:
                return None
        await self._ask_pd()
        if not self._provider.servers:
            return None
        return await self._search(suspect) if self._is_due() else error

    def _is_due(self) -> bool:
        """Tell whether TSO servers have to be asked although none failed."""
        provider = self._provider
        is_old = self._now() >= self._found_at + self._config.member_interval
        return not provider.group.primary or provider.servers != self._searched or is_old

    async def _ask_pd(self) -> None:
        """Learn from PD's leader who grants timestamps."""
        leader = self._members.leader
        request = pdpb.GetClusterInfoRequest()
        provider = Provider()
        try:
            answer = await self._members.connection(leader).unary(
                services.PD.GetClusterInfo, request, timeout=MEMBERS_TIMEOUT
            )
        except RpcError as error:
            # A PD that does not know the question knows no TSO servers either.
            if error.code != "UNIMPLEMENTED":
                self._members.doubt(leader)
                return
        else:
            provider = self._provider.told(answer)
        self._provider = provider
        await self._connections.keep((*provider.servers, *provider.group.members))

    async def _search(self, suspect: str) -> TikvError | None:
        """Ask TSO servers for the primary; return why there is none."""
        if suspect:
            # Another server may have its address by now, and gRPC would wait before it connects again.
            await self._connections.drop(suspect)
        servers = self._provider.servers
        self._turn += 1
        first = self._turn % len(servers) if servers else 0
        search = GroupSearch(self._provider.group, (*servers[first:], *servers[:first]), suspect)
        while (address := search.next()) is not None:
            request = tsopb.FindGroupByKeyspaceIDRequest(
                header=self._header(address, 0), keyspace_id=self._keyspace_id, mod_revision=search.group.revision
            )
            try:
                answer = await self._connections.to(address).unary(
                    services.TSO.FindGroupByKeyspaceID, request, timeout=MEMBERS_TIMEOUT
                )
            except RpcError as error:
                search = search.failed(address, error)
            else:
                search = search.answered(address, answer)
                if answer.header.HasField("error"):
                    await self._connections.drop(address)
        self._provider = attrs.evolve(self._provider, group=search.group)
        outcome = search.outcome()
        if outcome is None:
            self._searched, self._found_at = servers, self._now()
            await self._connections.keep((*servers, *search.group.members))
        return outcome

    def _header(self, address: str, group_id: int) -> tsopb.RequestHeader:
        return tsopb.RequestHeader(
            cluster_id=self._members.known.cluster_id,
            keyspace_id=self._keyspace_id,
            keyspace_group_id=group_id,
            callee_id=address,
        )
