"""Scripted TSO servers in memory: they grant the timestamps of a `FakePd` in its place."""

from __future__ import annotations

from collections.abc import Iterable

from tikv_proto import pdpb, tsopb
from tikv_proto.services import TSO

from tikv_pd._fakes.fake_pd import FakePd
from tikv_pd._fakes.memory_transport import ServerStream, fail


class FakeTso:
    """TSO servers on the transport of a `FakePd`, all started, which says from now on that they grant timestamps.

    Its attributes are the servers: change them at any time, the next answer follows. Faults are those of the `FakePd`:
    `pd.refuse(TSO.Tso, at="tso1:3379")`.

    Args:
        pd: Whose timestamps they grant.
        servers: Address of each server; the first one is primary of every group.
    """

    def __init__(self, pd: FakePd, servers: Iterable[str] = ("tso1:3379", "tso2:3379")) -> None:
        self.pd = pd
        """Whose timestamps they grant."""
        self.servers = list(servers)
        """Address of each member of each group."""
        self.primary: str | None = self.servers[0]
        """Address of the primary; None while there is none."""
        self.groups: dict[int, int] = {}
        """Keyspace → group, where that is not 0."""
        self.revision = 1
        """Revision of the groups that every server has heard of."""
        self.believed: dict[str, str] = {}
        """Server → the primary that it names, where that is not the one there is."""
        self.revisions: dict[str, int] = {}
        """Server → the revision it has heard of, where that is not the latest."""
        self.identities: dict[str, str] = {}
        """Address → the one of the server that really is there."""
        self.headers: list[tsopb.RequestHeader] = []
        """Header of each request for timestamps."""
        self.questions: list[tsopb.FindGroupByKeyspaceIDRequest] = []
        """Each request for a group."""
        for address in self.servers:
            self.start(address)
        self.publish()

    def publish(self) -> None:
        """Let PD say that these servers grant timestamps."""
        self.pd.tso_urls = [f"http://{address}" for address in self.servers]

    def withdraw(self) -> None:
        """Let PD say that it grants timestamps itself."""
        self.pd.tso_urls = None

    def start(self, address: str) -> None:
        """Let a server serve, again or for the first time."""

        async def find_group(request: tsopb.FindGroupByKeyspaceIDRequest) -> tsopb.FindGroupByKeyspaceIDResponse:
            return await self._find_group(address, request)

        self.pd.transport.serve(
            address,
            {TSO.Tso: lambda stream: self._tso(address, stream), TSO.FindGroupByKeyspaceID: find_group},
        )

    def stop(self, address: str) -> None:
        """Stop a server: calls under way break, new ones are refused. The primary stays what it is."""
        self.pd.transport.stop(address)

    async def _tso(self, address: str, stream: ServerStream) -> None:
        while True:
            request: tsopb.TsoRequest = await stream.receive()
            self.headers.append(request.header)
            error = await self.pd.strike(address, TSO.Tso, request)
            if error is not None:
                await stream.send(tsopb.TsoResponse(header=_header(self.pd.cluster_id, error)))
                continue
            refusal = self._refusal(address, request.header)
            if refusal is not None:
                raise fail("FAILED_PRECONDITION", refusal)
            if address != self.primary:
                raise fail("UNKNOWN", "not leader of the keyspace group")
            last = self.pd.grant(request.count)
            header = _header(self.pd.cluster_id)
            await stream.send(tsopb.TsoResponse(header=header, count=request.count, timestamp=last))

    async def _find_group(
        self, address: str, request: tsopb.FindGroupByKeyspaceIDRequest
    ) -> tsopb.FindGroupByKeyspaceIDResponse:
        self.questions.append(request)
        error = await self.pd.strike(address, TSO.FindGroupByKeyspaceID, request)
        refusal = self._refusal(address, request.header)
        if error is None and refusal is not None:
            error = pdpb.Error(type=pdpb.ErrorType.UNKNOWN, message=refusal)
        if error is not None:
            return tsopb.FindGroupByKeyspaceIDResponse(header=_header(self.pd.cluster_id, error))
        primary = self.believed.get(address, self.primary)
        return tsopb.FindGroupByKeyspaceIDResponse(
            header=_header(self.pd.cluster_id),
            keyspace_group=tsopb.KeyspaceGroup(
                id=self.groups.get(request.keyspace_id, 0),
                members=[
                    tsopb.KeyspaceGroupMember(address=f"http://{each}", is_primary=each == primary)
                    for each in self.servers
                ],
            ),
            mod_revision=self.revisions.get(address, self.revision),
        )

    def _refusal(self, address: str, header: tsopb.RequestHeader) -> str | None:
        """Return why a call is refused: it is meant for another cluster, or for another server."""
        if header.cluster_id != self.pd.cluster_id:
            return f"mismatch cluster id, need {self.pd.cluster_id} but got {header.cluster_id}"
        name = self.identities.get(address, address)
        return None if header.callee_id == name else f"mismatch callee id, need {name} but got {header.callee_id}"


def _header(cluster_id: int, error: pdpb.Error | None = None) -> tsopb.ResponseHeader:
    refusal = tsopb.Error(type=tsopb.ErrorType.UNKNOWN, message=error.message) if error is not None else None
    return tsopb.ResponseHeader(cluster_id=cluster_id, error=refusal)
