"""The keyspace service of one PD member.

Source: tikv/pd server/keyspace_service.go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import islice

from tikv_proto import keyspacepb, pdpb
from tikv_proto.services import Keyspace

from tikv_embedded.pd.keyspaces import StateChangeRefusedError, txn_bounds
from tikv_embedded.pd.members import PdMember, Refusal
from tikv_embedded.pd.state import PdState, guarded
from tikv_embedded.rpc_handlers import Handler, ServicerContext, server_stream
from tikv_embedded.store.api_mode import ApiMode


class PdKeyspaceService:
    """Handlers of one PD member.

    Args:
        state: Shared with the other members.
        member: Which of them this is.
    """

    def __init__(self, state: PdState, member: PdMember) -> None:
        self._state = state
        self._member = member

    def handlers(self) -> list[Handler]:
        """Return what this member answers; other RPCs of the service are UNIMPLEMENTED."""
        return [
            guarded(self._state, self._member, Keyspace.LoadKeyspace, self._load_by_name),
            guarded(self._state, self._member, Keyspace.LoadKeyspaceByID, self._load_by_id),
            guarded(self._state, self._member, Keyspace.GetAllKeyspaces, self._get_all),
            guarded(self._state, self._member, Keyspace.UpdateKeyspaceState, self._update_state),
            server_stream(Keyspace.WatchKeyspaces, self._watch),
        ]

    def _load_by_name(
        self, request: keyspacepb.LoadKeyspaceRequest, _follower: bool
    ) -> keyspacepb.LoadKeyspaceResponse:
        """A keyspace whose Regions are not cut out yet is not there yet, in this RPC alone."""
        keyspace = self._state.keyspaces.by_name(request.name)
        if keyspace is None or not self._has_own_regions(keyspace):
            return keyspacepb.LoadKeyspaceResponse(header=self._not_found())
        return keyspacepb.LoadKeyspaceResponse(header=self._state.header, keyspace=keyspace)

    def _load_by_id(
        self, request: keyspacepb.LoadKeyspaceByIDRequest, _follower: bool
    ) -> keyspacepb.LoadKeyspaceResponse:
        keyspace = self._state.keyspaces.by_id(request.id)
        if keyspace is None:
            return keyspacepb.LoadKeyspaceResponse(header=self._not_found())
        return keyspacepb.LoadKeyspaceResponse(header=self._state.header, keyspace=keyspace)

    def _get_all(
        self, request: keyspacepb.GetAllKeyspacesRequest, _follower: bool
    ) -> keyspacepb.GetAllKeyspacesResponse:
        found = islice(self._state.keyspaces.since(request.start_id), request.limit or None)
        return keyspacepb.GetAllKeyspacesResponse(header=self._state.header, keyspaces=found)

    def _update_state(
        self, request: keyspacepb.UpdateKeyspaceStateRequest, _follower: bool
    ) -> keyspacepb.UpdateKeyspaceStateResponse:
        keyspace = self._state.keyspaces.by_id(request.id)
        if keyspace is None:
            return keyspacepb.UpdateKeyspaceStateResponse(header=self._not_found())
        try:
            changed = self._state.keyspaces.set_state(keyspace, request.state)
        except StateChangeRefusedError as error:
            refusal = self._state.error(pdpb.ErrorType.UNKNOWN, str(error))
            return keyspacepb.UpdateKeyspaceStateResponse(header=refusal)
        return keyspacepb.UpdateKeyspaceStateResponse(header=self._state.header, keyspace=changed)

    async def _watch(
        self, request: keyspacepb.WatchKeyspacesRequest, context: ServicerContext
    ) -> AsyncIterator[keyspacepb.WatchKeyspacesResponse]:
        role = self._state.admit(self._member, request, context)
        if isinstance(role, Refusal):
            await context.abort(role.code, role.details)
        async for keyspaces in self._state.keyspaces.watch():
            yield keyspacepb.WatchKeyspacesResponse(header=self._state.header, keyspaces=keyspaces)

    def _has_own_regions(self, keyspace: keyspacepb.KeyspaceMeta) -> bool:
        """Whether Regions begin at both transactional bounds; V1 clusters cut nothing out."""
        if self._state.mode is not ApiMode.V2:
            return True
        topology = self._state.topology
        return all(topology.find(bound).start_key == bound for bound in txn_bounds(keyspace.id))

    def _not_found(self) -> pdpb.ResponseHeader:
        return self._state.error(pdpb.ErrorType.ENTRY_NOT_FOUND, "keyspace does not exist")
