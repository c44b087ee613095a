"""Timestamps served apart from PD: keyspace groups, which server is primary of each, and what a server answers.

All servers are members of all groups, and all groups draw from one oracle, so timestamps are unique and grow across
groups too, which a real cluster does not promise. Keyspaces are in group 0 unless they were moved.

Source: tikv/pd pkg/mcs/tso/server/grpc_service.go, pkg/tso/keyspace_group_manager.go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import attrs
import grpc
from tikv_proto import pdpb, tsopb
from tikv_proto.services import TSO

from tikv_embedded.errors import TopologyError
from tikv_embedded.pd.revisions import Change, RevisionedStore, Selection
from tikv_embedded.pd.tso import TimestampOracle
from tikv_embedded.rpc_handlers import Handler, ServicerContext, stream, unary

DEFAULT_GROUP = 0
"""The group of every keyspace that is in no other."""


@attrs.define
class TsoGroups:
    """The keyspace groups of one cluster; kept in memory, except where their primaries are."""

    cluster_id: int
    oracle: TimestampOracle
    pairs: RevisionedStore
    urls: tuple[str, ...]
    """`http://host:port` of each server, https with TLS."""
    primaries: dict[int, int] = attrs.field(factory=dict, init=False)
    """Group → index of the server that serves it."""
    moved: dict[int, int] = attrs.field(factory=dict, init=False)
    """Keyspace → group, where that is not `DEFAULT_GROUP`."""
    revision: int = attrs.field(default=1, init=False)
    """Grows when keyspaces move."""

    @property
    def _prefix(self) -> bytes:
        return f"/ms/{self.cluster_id}/tso/".encode()

    def group_of(self, keyspace_id: int) -> int:
        """Return the group that a keyspace is in."""
        return self.moved.get(keyspace_id, DEFAULT_GROUP)

    def move_keyspace(self, keyspace_id: int, group: int) -> None:
        """Put a keyspace in a group, which comes to be if it is new: its primary is that of the default group."""
        self.moved[keyspace_id] = group
        self.revision += 1
        if group not in self.primaries:
            self.set_primary(group, self.primaries[DEFAULT_GROUP])

    def set_primary(self, group: int, server: int) -> None:
        """Let a server serve a group, and tell so where clients of older PDs look."""
        self.primaries[group] = server
        name = f"tso-{server + 1}"
        participant = tsopb.Participant(name=name, id=server + 1, listen_urls=[self.urls[server]])
        self.pairs.apply([Change(self._prefix + f"{group:05d}/primary".encode(), participant.SerializeToString())])

    def forget_primaries(self) -> None:
        """Delete what an earlier start told about primaries."""
        self.pairs.apply([Change(pair.key, None) for pair in self.pairs.select(Selection.prefix(self._prefix))])

    def check_group(self, group: int) -> None:
        """Raise TopologyError when there is no such group."""
        if group not in self.primaries:
            raise TopologyError(f"there is no keyspace group {group}")


class TsoService:
    """Handlers of one TSO server.

    Args:
        groups: Shared with the other servers.
        server: Its index in `groups.urls`.
    """

    def __init__(self, groups: TsoGroups, server: int) -> None:
        self._groups = groups
        self._server = server
        self._address = groups.urls[server].partition("//")[2]

    def handlers(self) -> list[Handler]:
        """Return what this server answers."""
        return [
            stream(TSO.Tso, self._tso),
            unary(TSO.FindGroupByKeyspaceID, self._find_group),
            unary(TSO.GetMinTS, self._get_min_ts),
        ]

    async def _tso(
        self, requests: AsyncIterator[tsopb.TsoRequest], context: ServicerContext
    ) -> AsyncIterator[tsopb.TsoResponse]:
        """The keyspace decides over the group, whatever group the caller believes in."""
        async for request in requests:
            refusal = self._refusal(request.header)
            if refusal is not None:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal.message)
            group = self._groups.group_of(request.header.keyspace_id)
            if self._groups.primaries[group] != self._server:
                message = f"generate timestamp failed, {self._address} is not leader of keyspace group {group}"
                await context.abort(grpc.StatusCode.UNKNOWN, message)
            try:
                physical, logical = self._groups.oracle.allocate(request.count)
            except ValueError as error:
                await context.abort(grpc.StatusCode.UNKNOWN, f"generate timestamp failed, {error}")
            yield tsopb.TsoResponse(
                header=self._header(group),
                count=request.count,
                timestamp=pdpb.Timestamp(physical=physical, logical=logical),
            )

    async def _find_group(
        self, request: tsopb.FindGroupByKeyspaceIDRequest, _context: ServicerContext
    ) -> tsopb.FindGroupByKeyspaceIDResponse:
        """Every server answers for every group."""
        groups, refusal = self._groups, self._refusal(request.header)
        if refusal is None and request.mod_revision > groups.revision:
            message = "keyspace group mod revision is stale"
            refusal = tsopb.Error(type=tsopb.ErrorType.INVALID_VALUE, message=message)
        if refusal is not None:
            return tsopb.FindGroupByKeyspaceIDResponse(header=self._header(request.header.keyspace_group_id, refusal))
        group = groups.group_of(request.keyspace_id)
        members = [
            tsopb.KeyspaceGroupMember(address=url, is_primary=groups.primaries[group] == server)
            for server, url in enumerate(groups.urls)
        ]
        return tsopb.FindGroupByKeyspaceIDResponse(
            header=self._header(group),
            keyspace_group=tsopb.KeyspaceGroup(id=group, user_kind="basic", members=members),
            mod_revision=groups.revision,
        )

    async def _get_min_ts(self, request: tsopb.GetMinTSRequest, _context: ServicerContext) -> tsopb.GetMinTSResponse:
        refusal = self._refusal(request.header)
        if refusal is not None:
            return tsopb.GetMinTSResponse(header=self._header(request.header.keyspace_group_id, refusal))
        physical, logical = self._groups.oracle.allocate(1)
        return tsopb.GetMinTSResponse(
            header=self._header(request.header.keyspace_group_id),
            timestamp=pdpb.Timestamp(physical=physical, logical=logical),
            keyspace_groups_serving=sum(primary == self._server for primary in self._groups.primaries.values()),
            keyspace_groups_total=len(self._groups.primaries),
        )

    def _refusal(self, header: tsopb.RequestHeader) -> tsopb.Error | None:
        """Return why a call is refused: it is meant for another cluster, or for another server."""
        cluster_id = self._groups.cluster_id
        if header.cluster_id != cluster_id:
            message = f"mismatch cluster id, need {cluster_id} but got {header.cluster_id}"
            return tsopb.Error(type=tsopb.ErrorType.CLUSTER_MISMATCHED, message=message)
        if header.callee_id not in ("", self._address):
            message = f"mismatch callee id, need {self._address} but got {header.callee_id}"
            return tsopb.Error(type=tsopb.ErrorType.INVALID_VALUE, message=message)
        return None

    def _header(self, group: int, error: tsopb.Error | None = None) -> tsopb.ResponseHeader:
        return tsopb.ResponseHeader(cluster_id=self._groups.cluster_id, keyspace_group_id=group, error=error)
