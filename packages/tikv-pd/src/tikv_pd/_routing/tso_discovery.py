"""Which servers grant timestamps: decided from what PD and TSO servers tell, without asking anybody.

PD grants timestamps itself, or lists TSO servers that do. Each of those knows the group a keyspace is in and which
server is primary of that, though it may hear late of changes: revisions tell old news of groups, nothing tells old news
of primaries.

Source: pd client inner_client.go, servicediscovery/tso_service_discovery.go. Differences on purpose: all TSO servers
are asked in one round until one names a primary that is not under suspicion; a PD that lists none, as early ones with
microservices did, passes requests for timestamps on, so nobody looks for the primary in its storage.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
from tikv_proto import pdpb, tsopb

from tikv_pd._routing.members import header_error
from tikv_pd.config import strip_scheme
from tikv_pd.errors import PdError, TikvError


@attrs.frozen
class Group:
    """The keyspace group that a keyspace is in, as far as known."""

    id: int = 0
    """Its id; 0 is the default group, which keyspaces are in that are in no other."""
    primary: str = ""
    """Address of the server that grants its timestamps; empty until one was named."""
    members: tuple[str, ...] = ()
    """Address of each server that may become primary."""
    revision: int = 0
    """Grows with each change but that of the primary."""


@attrs.frozen
class Provider:
    """Where timestamps come from, as far as known: PD, until a primary of the group is known."""

    servers: tuple[str, ...] = ()
    """Address of each TSO server, sorted; empty while PD grants timestamps itself."""
    group: Group = Group()
    """The group of the keyspace in question."""

    def told(self, answer: pdpb.GetClusterInfoResponse) -> Provider:
        """Return what is known after PD told in which mode it is; the same when it did not."""
        mode = next(iter(answer.serviceModes), pdpb.ServiceMode.UNKNOWN_SVC_MODE)
        if answer.header.HasField("error") or mode == pdpb.ServiceMode.UNKNOWN_SVC_MODE:
            return self
        if mode == pdpb.ServiceMode.PD_SVC_MODE:
            return Provider()
        servers = tuple(sorted({strip_scheme(url) for url in answer.tso_urls}))
        return attrs.evolve(self, servers=servers or self.servers)


@attrs.frozen
class GroupSearch:
    """One round of asking TSO servers about the group of a keyspace."""

    group: Group
    """What is known by now."""
    servers: tuple[str, ...]
    """Whom to ask, in this order, before members of the group that are not among them."""
    suspect: str = ""
    """The primary that failed somebody: a server that names another one is believed first."""
    asked: tuple[str, ...] = ()
    """Who was asked."""
    named: str = ""
    """The primary named in this round."""
    failure: TikvError | None = None
    """The last failure."""

    def next(self) -> str | None:
        """Return whom to ask next; None when the round is over."""
        if self.named and self.named != self.suspect:
            return None
        return next((address for address in self._everyone() if address not in self.asked), None)

    def answered(self, address: str, answer: tsopb.FindGroupByKeyspaceIDResponse) -> GroupSearch:
        """Return the round after an answer from `address`."""
        if answer.header.HasField("error"):
            return self.failed(address, header_error("FindGroupByKeyspaceID", answer.header))
        if not answer.HasField("keyspace_group"):
            return self._useless(address, "the server knows no group of the keyspace")
        if answer.mod_revision < self.group.revision:
            return self._useless(address, f"the server is behind: {answer.mod_revision} < {self.group.revision}")
        found = answer.keyspace_group
        primary = next((strip_scheme(member.address) for member in found.members if member.is_primary), "")
        is_better = bool(primary) and self.named in {"", self.suspect}
        search = attrs.evolve(
            self,
            group=Group(
                found.id,
                primary if is_better else self.group.primary,
                tuple(strip_scheme(member.address) for member in found.members),
                answer.mod_revision,
            ),
            named=primary if is_better else self.named,
        )
        if not primary:
            return search._useless(address, "the group has no primary")
        return attrs.evolve(search, asked=(*self.asked, address))

    def failed(self, address: str, error: TikvError) -> GroupSearch:
        """Return the round after `address` had no good answer."""
        return attrs.evolve(self, asked=(*self.asked, address), failure=error)

    def outcome(self) -> TikvError | None:
        """Return why the round failed; None when it found a primary."""
        if self.named:
            return None
        return self.failure or PdError("FindGroupByKeyspaceID", "UNAVAILABLE", "PD lists no TSO server")

    def _useless(self, address: str, why: str) -> GroupSearch:
        return self.failed(address, PdError("FindGroupByKeyspaceID", "UNAVAILABLE", f"{address}: {why}"))

    def _everyone(self) -> Iterator[str]:
        """Yield each address once, the suspect, which probably has no news, last."""
        known = dict.fromkeys((*self.servers, *self.group.members))
        yield from (address for address in known if address != self.suspect)
        if self.suspect in known:
            yield self.suspect
