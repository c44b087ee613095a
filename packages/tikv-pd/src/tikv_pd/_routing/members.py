"""PD's members: who they are, who leads, and connections to them.

A `Search` is one round of asking, as a value: it says whom to ask next and what an answer or a failure changes. The
loop in `Members` only does what it says. The addresses given by the user are never forgotten, so a PD that was down as
a whole is found again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Final

import attrs
from tikv_proto import pdpb, services
from tikv_proto.services import Rpc

from tikv_pd._routing.connections import Connections
from tikv_pd._routing.pursuit import end_of_attempts
from tikv_pd._routing.rounds import Rounds
from tikv_pd.backoff import PD_RPC, Backoffer
from tikv_pd.config import PdConfig, strip_scheme
from tikv_pd.deadline import Deadline
from tikv_pd.errors import (
    PD_ERRORS,
    ClusterMismatch,
    DeadlineExceeded,
    PdError,
    PdUnavailable,
    RpcError,
    TikvError,
)
from tikv_pd.lowlevel import Connection, Transport

MEMBERS_TIMEOUT: Final = 1.0
"""Seconds one GetMembers may take. Source: pd client, memberTimeout."""
TLS_HINT: Final = (
    "Does PD serve TLS at this address, does ca_path hold the authority of its certificate, which must name the host "
    "(or server_name), and does PD trust that of the client's?"
)
"""What to look at when PD is not found over TLS: gRPC's words about a failed handshake differ from case to case."""


@attrs.frozen
class Membership:
    """What is known of PD's members."""

    seeds: tuple[str, ...]
    """Addresses the user gave."""
    cluster_id: int = 0
    """Identity of the cluster; 0 until a member told."""
    members: tuple[str, ...] = ()
    """Address of each member."""
    leader: str = ""
    """Address of the leader; empty until a member told."""

    def everyone(self, suspect: str) -> Iterator[str]:
        """Yield each address once, the leader first and the suspect, which probably has no news, last."""
        known = dict.fromkeys(filter(None, (self.leader, *self.members, *self.seeds)))
        yield from (address for address in known if address != suspect)
        if suspect in known:
            yield suspect


@attrs.frozen
class Search:
    """One round of asking members about the members."""

    known: Membership
    """What is known by now."""
    suspect: str = ""
    """The leader that failed somebody: a member that names another one is believed first."""
    is_thorough: bool = False
    """Whether to ask every seed that is not a known member, to learn whether it belongs to another cluster."""
    asked: tuple[str, ...] = ()
    """Who was asked."""
    named: str = ""
    """The leader named in this round."""
    failures: tuple[tuple[str, TikvError], ...] = ()
    """Who had no good answer, and why."""

    def next(self) -> str | None:
        """Return whom to ask next; None when the round is over."""
        if not self.named:
            rest = self.known.everyone(self.suspect)
        elif self.named == self.suspect:
            # What it says of itself when others name it is no news, and it may take long to fail.
            rest = (address for address in self.known.everyone("") if address != self.suspect)
        elif self.is_thorough:
            rest = (seed for seed in self.known.seeds if seed not in self.known.members)
        else:
            return None
        return next((address for address in rest if address not in self.asked), None)

    def answered(self, address: str, answer: pdpb.GetMembersResponse, *, tls: bool) -> Search:
        """Return the round after an answer from `address`."""
        found = answer.header.cluster_id
        if answer.header.HasField("error"):
            return self.failed(address, header_error("GetMembers", answer.header))
        if self.known.cluster_id and found != self.known.cluster_id:
            return self.failed(address, ClusterMismatch(self.known.cluster_id, found, address))
        if not found:
            return self.failed(address, PdError("GetMembers", "UNKNOWN", "the member has no cluster id"))
        members = tuple(sorted(filter(None, (client_address(member, tls=tls) for member in answer.members))))
        leader = client_address(answer.leader, tls=tls)
        keeps = not leader or self.named not in {"", self.suspect}
        search = attrs.evolve(
            self,
            known=attrs.evolve(
                self.known,
                cluster_id=found,
                members=members or self.known.members,
                leader=self.known.leader if keeps else leader,
            ),
            named=self.named if keeps else leader,
        )
        if not leader:
            return search.failed(address, PdError("GetMembers", "UNKNOWN", "the member knows no leader"))
        return attrs.evolve(search, asked=(*self.asked, address))

    def failed(self, address: str, error: TikvError) -> Search:
        """Return the round after `address` had no good answer."""
        return attrs.evolve(self, asked=(*self.asked, address), failures=(*self.failures, (address, error)))

    def outcome(self) -> ClusterMismatch | PdUnavailable | None:
        """Return why the round failed; None when it found a leader."""
        mismatch = next((error for _, error in self.failures if isinstance(error, ClusterMismatch)), None)
        if mismatch is not None and (self.is_thorough or not self.named):
            return mismatch
        if self.named:
            return None
        unasked = [
            (address, "not asked before the time ran out")
            for address in self.known.everyone(self.suspect)
            if address not in self.asked
        ]
        return PdUnavailable((*((address, why(error)) for address, error in self.failures), *unasked))

    def is_hopeless(self) -> bool:
        """Tell whether everybody answered that it is no PD."""
        return bool(self.failures) and all(
            isinstance(error, RpcError) and error.code == "UNIMPLEMENTED" for _, error in self.failures
        )


def client_address(member: pdpb.Member, *, tls: bool) -> str:
    """Return where clients reach a member: its first URL of the scheme in use, or its first; empty when it has none.

    Source: pd client, pickMatchedURL.
    """
    scheme = "https://" if tls else "http://"
    matching = [url for url in member.client_urls if url.startswith(scheme)]
    return strip_scheme(next(iter(matching or member.client_urls), ""))


def header_error(method: str, header: Any) -> PdError:
    """Return the error that a header, or what stands in its place, carries."""
    # Services of PD number the kinds of errors on their own; those of one know none.
    error = header.error
    field = error.DESCRIPTOR.fields_by_name.get("type")
    if field is None:
        return PdError(method, "UNKNOWN", error.message)
    kinds = field.enum_type.values_by_number
    name = kinds[error.type].name if error.type in kinds else str(error.type)
    return PD_ERRORS.get(name, PdError)(method, name, error.message)


def why(error: TikvError) -> str:
    """Return a failure in words that do not repeat whom it came from."""
    return f"{error.code} ({error.details})" if isinstance(error, RpcError) else str(error)


class Members:
    """What is known of the members, kept up to date, and one connection to each."""

    def __init__(self, seeds: tuple[str, ...], transport: Transport, config: PdConfig, *, tls: bool) -> None:
        self.known = Membership(seeds)
        self._transport = transport
        self._tls = tls
        self._connections = Connections(transport)
        self._rounds = Rounds(self._look, lambda: config.member_interval)

    @property
    def leader(self) -> str:
        """Address of the leader; raises ClosedError after `aclose`."""
        self._connections.check_open()
        return self.known.leader

    def url(self, address: str) -> str:
        """Return a member's address as other members know it."""
        return f"{'https' if self._tls else 'http'}://{address}"

    def connection(self, address: str) -> Connection:
        """Return the connection to an address, made when first asked for."""
        return self._connections.to(address)

    def while_open(self) -> AbstractContextManager[None]:
        """Leave a block that waits, with ClosedError, as soon as the client is closed."""
        return self._connections.while_open()

    def rpc(self, rpc: Rpc[Any, Any], _address: str) -> Rpc[Any, Any]:
        """Return what to call at an address for an RPC of PD: that one."""
        return rpc

    def verdict(self, _address: str, error: TikvError, *, is_confirmed: bool) -> TikvError | None:
        """Return what to raise because of a failure at the leader; None when another attempt may help."""
        return end_of_attempts(error, is_confirmed=is_confirmed)

    async def discover(self, deadline: Deadline) -> None:
        """Learn about the members for the first time.

        Raises:
            PdUnavailable: no leader was found in time.
            ClusterMismatch: the addresses belong to different clusters.
        """
        backoffer = Backoffer(deadline, budget=math.inf)
        while True:
            search = await self._search(Search(self.known, is_thorough=True), deadline)
            error = search.outcome()
            if error is None:
                return
            if isinstance(error, PdUnavailable) and self._tls:
                error = PdUnavailable(error.failures, TLS_HINT)
            if isinstance(error, ClusterMismatch) or search.is_hopeless():
                raise error
            try:
                await backoffer.backoff(PD_RPC, error)
            except DeadlineExceeded:
                raise error from None

    async def run(self) -> None:
        """Learn anew at intervals and whenever somebody has doubts, until cancelled."""
        await self._rounds.run()

    def doubt(self, suspect: str) -> None:
        """Have the members asked again soon, because the leader `suspect` failed; do not wait for it."""
        if self.known.leader == suspect:
            self._rounds.want(suspect)

    async def refresh(self, suspect: str) -> TikvError | None:
        """Wait until the members were asked again, unless `suspect` leads no longer; return why that failed.

        Whoever comes while a round is under way shares it.
        """
        if self.leader != suspect:
            return None
        self.doubt(suspect)
        return await self._rounds.wait()

    async def aclose(self) -> None:
        """Close every connection; using the members raises ClosedError from now on."""
        await self._connections.aclose()

    async def _look(self, suspect: str) -> TikvError | None:
        forever = Deadline("GetMembers", math.inf, self._transport.now)
        return (await self._search(Search(self.known, suspect), forever)).outcome()

    async def _search(self, search: Search, deadline: Deadline) -> Search:
        while (address := search.next()) is not None and (left := deadline.remaining()) > 0:
            try:
                answer = await self.connection(address).unary(
                    services.PD.GetMembers, pdpb.GetMembersRequest(), timeout=min(MEMBERS_TIMEOUT, left)
                )
            except RpcError as error:
                search = search.failed(address, error)
            else:
                search = search.answered(address, answer, tls=self._tls)
        self.known = search.known
        if search.named:
            await self._connections.keep({*self.known.members, self.known.leader})
        return search
