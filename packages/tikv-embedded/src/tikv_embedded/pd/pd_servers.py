"""The PD members of a cluster as servers: their ports, and which of them leads."""

from __future__ import annotations

from tikv_embedded.endpoint import Endpoint
from tikv_embedded.errors import TopologyError
from tikv_embedded.pd.http import PdHttp
from tikv_embedded.pd.http_endpoint import HttpEndpoint
from tikv_embedded.pd.port_servers import PortServers
from tikv_embedded.pd.services import pd_handlers
from tikv_embedded.pd.state import PdState
from tikv_embedded.rpc_handlers import Handler


class PdServers(PortServers):
    """One server for each member.

    Args:
        state: What the members share.
        endpoints: Their ports, bound and not started.
    """

    def __init__(self, state: PdState, endpoints: list[Endpoint]) -> None:
        super().__init__(endpoints, "PD member")
        self._state = state

    @property
    def endpoints(self) -> list[Endpoint]:
        """The ports, by position."""
        return list(self._endpoints)

    async def serve(self) -> None:
        """Start all members; once."""
        answers = PdHttp(self._state, lambda member: self._endpoints[member.id - 1].is_running)
        for index, endpoint in enumerate(self._endpoints):
            if isinstance(endpoint, HttpEndpoint):
                endpoint.answer = answers.answer
            await endpoint.start(self._handlers(index))

    def transfer_leader(self, member: int | str) -> None:
        """Let another member lead, by position or name."""
        members = self._state.members
        names = [each.name for each in members.members]
        index = names.index(member) if member in names else member
        if not isinstance(index, int):
            raise TopologyError(f"there is no PD member {member!r}")
        if not self._endpoint(index).is_running:
            raise TopologyError(f"PD member {member!r} does not run, so it cannot lead")
        members.leader = members.members[index]

    def _handlers(self, server: int) -> list[Handler]:
        return pd_handlers(self._state, self._state.members.members[server])

    def _adjust(self) -> None:
        """Let a member that runs lead, as long as there is one."""
        members = self._state.members
        pairs = zip(members.members, self._endpoints, strict=True)
        running = [member for member, endpoint in pairs if endpoint.is_running]
        if running and members.leader not in running:
            members.leader = running[0]
