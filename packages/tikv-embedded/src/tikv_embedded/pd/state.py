"""What the PD members of one cluster share, and who of them answers.

Source: tikv/pd server/grpc_service.go unaryMiddleware.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
from google.protobuf.message import Message
from tikv_proto import keyspacepb, pdpb
from tikv_proto.services import Rpc

from tikv_embedded.engine import Engine
from tikv_embedded.errors import OptionError
from tikv_embedded.health import ServerHealth
from tikv_embedded.pd.buckets import Buckets
from tikv_embedded.pd.clock import Clock
from tikv_embedded.pd.faults import PdFaults
from tikv_embedded.pd.gc_store import GcStates
from tikv_embedded.pd.header import error_header, header
from tikv_embedded.pd.keyspaces import Keyspaces, txn_bounds
from tikv_embedded.pd.members import PdMember, PdMembers, Refusal
from tikv_embedded.pd.region_view import RegionView
from tikv_embedded.pd.resource_groups import ResourceGroups
from tikv_embedded.pd.revisions import RevisionedStore
from tikv_embedded.pd.scattering import Scattering
from tikv_embedded.pd.ts_marks import TimestampMarks
from tikv_embedded.pd.tso import TimestampOracle
from tikv_embedded.rpc_handlers import Handler, ServicerContext, unary
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.topology import Topology

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


@attrs.frozen
class PdState:
    """What the members of one cluster share."""

    mode: ApiMode
    topology: Topology
    oracle: TimestampOracle
    keyspaces: Keyspaces
    members: PdMembers
    clock: Clock
    pairs: RevisionedStore
    gc: GcStates
    marks: TimestampMarks
    resource_groups: ResourceGroups
    scattering: Scattering
    buckets: Buckets
    view: RegionView
    faults: PdFaults
    health: tuple[ServerHealth, ...]
    """Of each member."""
    tso_urls: list[str] = attrs.field(factory=list)
    """Where timestamps are served apart from PD; empty when PD does."""

    @classmethod
    def open(
        cls,
        mode: ApiMode,
        engine: Engine,
        topology: Topology,
        oracle: TimestampOracle,
        keyspaces: Keyspaces,
        members: PdMembers,
        clock: Clock,
    ) -> PdState:
        """Return the state of a cluster whose Regions, timestamps and keyspaces are open already."""
        pairs, cluster_id = RevisionedStore(engine), topology.cluster_id
        return cls(
            mode=mode,
            topology=topology,
            oracle=oracle,
            keyspaces=keyspaces,
            members=members,
            clock=clock,
            pairs=pairs,
            gc=GcStates(pairs, keyspaces, cluster_id, clock.seconds),
            marks=TimestampMarks(pairs, cluster_id),
            resource_groups=ResourceGroups(pairs, keyspaces),
            scattering=Scattering(topology),
            buckets=Buckets(),
            view=RegionView(topology),
            faults=PdFaults(cluster_id),
            health=tuple(ServerHealth() for _ in members.members),
        )

    def create_keyspace(self, name: str, config: Mapping[str, str] | None) -> keyspacepb.KeyspaceMeta:
        """Make a keyspace with Regions of its own, and return it.

        Raises:
            OptionError: another storage mode than V2, not a name, or one that is taken.
        """
        if self.mode is not ApiMode.V2:
            raise OptionError("keyspaces need api_version='v2'")
        if self.keyspaces.by_name(name) is not None:
            raise OptionError(f"there is a keyspace {name!r} already")
        keyspace = self.keyspaces.ensure(name, config)
        self.topology.split(txn_bounds(keyspace.id))
        return keyspace

    @property
    def header(self) -> pdpb.ResponseHeader:
        """The header of an answer without an error."""
        return header(self.topology.cluster_id)

    def error(self, kind: pdpb.ErrorType.ValueType, message: str) -> pdpb.ResponseHeader:
        """Return the header of a refusal."""
        return error_header(self.topology.cluster_id, kind, message)

    def admit(
        self, member: PdMember, request: Any, context: ServicerContext, *, follower_may: bool = False
    ) -> PdMember | Refusal:
        """Decide in whose role to answer a call; see `PdMembers.admit`."""
        metadata = dict(context.invocation_metadata() or ())
        own, asked = self.topology.cluster_id, request.header.cluster_id
        return self.members.admit(member, own, asked, metadata, follower_may=follower_may)


def guarded(
    state: PdState,
    member: PdMember,
    rpc: Rpc[Req, Resp],
    answer: Callable[[Req, bool], Resp],
    *,
    follower_may: bool = False,
) -> Handler:
    """Return a handler that answers as `answer(request, is_follower)` once the call is admitted."""

    async def handle(request: Req, context: ServicerContext) -> Resp:
        role = state.admit(member, request, context, follower_may=follower_may)
        if isinstance(role, Refusal):
            await context.abort(role.code, role.details)
        return answer(request, role != state.members.leader)

    return unary(rpc, handle)
