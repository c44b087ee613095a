"""The PD members of a cluster as servers: their ports, and which of them leads."""

from __future__ import annotations

from tikv_embedded.endpoint import Endpoint
from tikv_embedded.errors import TopologyError
from tikv_embedded.pd.http import PdHttp
from tikv_embedded.pd.http_endpoint import HttpEndpoint
from tikv_embedded.pd.services import pd_handlers
from tikv_embedded.pd.state import PdState


class PdServers:
    """One server for each member.

    Args:
        state: What the members share.
        endpoints: Their ports, bound and not started.
    """

    def __init__(self, state: PdState, endpoints: list[Endpoint]) -> None:
        self._state = state
        self.endpoints = endpoints
        """By position."""

    async def serve(self) -> None:
        """Start all members; once."""
        answers = PdHttp(self._state, lambda member: self.endpoints[member.id - 1].is_running)
        for index, endpoint in enumerate(self.endpoints):
            if isinstance(endpoint, HttpEndpoint):
                endpoint.answer = answers.answer
            await self._start(index)

    async def start(self, index: int) -> None:
        """Open a member's port again, the same one; harmless when it runs."""
        endpoint = self._endpoint(index)
        if not endpoint.is_running:
            endpoint.bind()
            await self._start(index)
            self._elect()

    async def stop(self, index: int) -> None:
        """Close a member's port; if it led, another one does now. Harmless when stopped."""
        await self._endpoint(index).stop()
        self._elect()

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

    async def _start(self, index: int) -> None:
        await self.endpoints[index].start(pd_handlers(self._state, self._state.members.members[index]))

    def _elect(self) -> None:
        """Let a member that runs lead, as long as there is one."""
        members = self._state.members
        pairs = zip(members.members, self.endpoints, strict=True)
        running = [member for member, endpoint in pairs if endpoint.is_running]
        if running and members.leader not in running:
            members.leader = running[0]

    def _endpoint(self, index: int) -> Endpoint:
        if not 0 <= index < len(self.endpoints):
            raise TopologyError(f"there is no PD member {index}")
        return self.endpoints[index]
