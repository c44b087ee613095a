"""The PD members of a cluster, which of them leads, and who may answer what.

Source: tikv/pd server/grpc_service.go unaryFollowerMiddleware, validateRoleInRequest; server/forward.go.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import grpc
from tikv_proto import pdpb

from tikv_embedded.meta import TIKV_VERSION

FORWARDED_HOST = "pd-forwarded-host"
"""Request metadata: the client URL of the leader to which a member shall pass the call on."""
ALLOW_FOLLOWER = "pd-allow-follower-handle"
"""Request metadata whose presence lets a follower answer a Region query itself."""


@attrs.frozen
class PdMember:
    """One PD server."""

    id: int
    name: str
    url: str
    """`http://host:port`, what clients dial."""

    def to_pb(self) -> pdpb.Member:
        """Return the wire form."""
        return pdpb.Member(
            name=self.name,
            member_id=self.id,
            client_urls=[self.url],
            peer_urls=[self.url],
            binary_version=TIKV_VERSION,
        )


@attrs.frozen
class Refusal:
    """The gRPC status with which a member turns a call away."""

    code: grpc.StatusCode
    details: str


@attrs.define
class PdMembers:
    """All members, and the leader among them; shared by their services."""

    members: tuple[PdMember, ...]
    """In order of their names; fixed while the cluster runs."""
    leader: PdMember

    def admit(
        self,
        member: PdMember,
        cluster_id: int,
        requested_cluster_id: int,
        metadata: Mapping[str, str | bytes],
        *,
        follower_may: bool = False,
    ) -> PdMember | Refusal:
        """Decide who answers a call that reached `member`.

        Args:
            member: Which port was called.
            cluster_id: Of this cluster.
            requested_cluster_id: Of the request's header.
            metadata: Of the call: `pd-forwarded-host`, `pd-allow-follower-handle`.
            follower_may: Whether the RPC is a Region query, which followers may answer when the caller allows it.

        Returns:
            The member in whose role to answer (the leader, or a follower that may), or how to refuse.
        """
        forwarded_host = metadata.get(FORWARDED_HOST)
        if forwarded_host:
            if not _is_same(str(forwarded_host), self.leader.url):
                return Refusal(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"forwarded host {forwarded_host!r} is not that of the PD leader: pd is not leader of cluster",
                )
            member = self.leader
        if member != self.leader:
            if not follower_may:
                return Refusal(grpc.StatusCode.UNAVAILABLE, "not leader")
            if ALLOW_FOLLOWER not in metadata:
                return Refusal(grpc.StatusCode.UNAVAILABLE, "not leader and follower handling not allowed")
        if requested_cluster_id != cluster_id:
            return Refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"mismatch cluster id, need {cluster_id} but got {requested_cluster_id}",
            )
        return member


def _is_same(url: str, other: str) -> bool:
    """Tell whether two http or https URLs differ in no more than that. Source: server/forward.go isSamePDClientURL."""
    schemes = ("http", "https")
    (one, _, address), (two, _, other_address) = url.partition("://"), other.partition("://")
    return one in schemes and two in schemes and address == other_address
