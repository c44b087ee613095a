"""Which way requests take to PD's leader, and which members can be asked at all.

Straight, as a rule. To a leader that cannot be reached from here a follower passes them on, if that is wanted, until
the leader is well again. A member that left somebody without an answer is not asked again before a probe of its health
says that it is well; and while followers are asked for anything, all members are probed, so that one that hangs costs
those who ask just then, and nobody after them.

Source: pd client servicediscovery/service_discovery.go, clients/tso/tso_client.go. Differences on purpose: nobody is
probed while only the leader is asked and all is well; the way changes with the first failure, not after six in a row;
the follower that passes requests on stays the same while it is well.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import anyio
import attrs
from tikv_proto import services
from tikv_proto.healthpb import HealthCheckRequest, HealthCheckResponse

from tikv_pd._routing.members import Members
from tikv_pd.config import PdConfig
from tikv_pd.errors import RpcError, TikvError
from tikv_pd.lowlevel import Metadata

PROBE_INTERVAL: Final = 1.0
"""Seconds between two rounds of probes. Source: pd client, MemberHealthCheckInterval."""
FOLLOWER_TIMEOUT: Final = 1 / 3
"""Seconds a follower has to say that it is well; the leader has `PdConfig.timeout`. Source: updateServiceClient."""
REST: Final = 10.0
"""Seconds a follower that answers, but not well, is passed over. Source: pd client, regionAPIErrorFn."""
_FORWARDED_HOST: Final = "pd-forwarded-host"
"""Metadata that has a follower pass a request on to the leader of this URL."""
_SILENCE: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})
"""gRPC codes of a member that cannot be reached, among other things."""


@attrs.frozen
class Way:
    """Where to send what is meant for a server."""

    target: str
    """Address of the server it is meant for."""
    address: str
    """Whom to send it to."""
    metadata: Metadata = ()
    """What to send along."""

    @property
    def is_straight(self) -> bool:
        """Whether nobody passes it on."""
        return self.address == self.target


class Ways:
    """The ways to the members, kept up to date while `run` runs.

    Args:
        members: Who they are.
        config: Whether followers pass requests on.
        now: The clock.
    """

    def __init__(self, members: Members, config: PdConfig, now: Callable[[], float]) -> None:
        self._members = members
        self._config = config
        self._now = now
        self._silent: set[str] = set()
        self._resting: dict[str, float] = {}
        self._turn = 0
        self._proxy = ""
        self._failed_proxy = ""
        self._straight_until = 0.0
        self._wanted = anyio.Event()

    def to_leader(self, *, prefer_follower: bool = False) -> Way:
        """Return the way to the leader: through a follower while it cannot be reached, or if that is preferred.

        Where it is only preferred, the way is straight for a while after it failed.
        """
        leader = self._members.leader
        if self.is_forwarding() or (prefer_follower and self._now() >= self._straight_until):
            followers = self.followers()
            if followers:
                self._wanted.set()
                if self._proxy not in followers:
                    others = [each for each in followers if each != self._failed_proxy]
                    # At random, so that many clients spread over the followers.
                    self._proxy = random.choice(others or followers)
                return Way(leader, self._proxy, ((_FORWARDED_HOST, self._members.url(leader)),))
        return Way(leader, leader)

    def is_forwarding(self) -> bool:
        """Tell whether followers are to pass requests on, because the leader did not answer of late."""
        return self._config.forwarding and self._members.leader in self._silent

    def follower(self) -> str | None:
        """Return a follower to be asked, each in turn; None when there is none that is well."""
        followers = self.followers()
        if not followers:
            return None
        self._wanted.set()
        self._turn += 1
        return followers[self._turn % len(followers)]

    def followers(self) -> list[str]:
        """Return the followers that are well as far as known."""
        known, now = self._members.known, self._now()
        return [
            each
            for each in known.members
            if each != known.leader and each not in self._silent and self._resting.get(each, 0.0) <= now
        ]

    def failed(self, way: Way, error: TikvError) -> TikvError:
        """Take note of a failure on a way, and return it as that of whom the request was meant for."""
        if not way.is_straight:
            self._proxy, self._failed_proxy = "", way.address
            self._straight_until = self._now() + REST
        if self._config.forwarding or not way.is_straight:
            self._note(way.address, error)
        if not way.is_straight and isinstance(error, RpcError) and error.code == "INVALID_ARGUMENT":
            # A follower passes nothing on to a member that does not lead any longer, and says so in this way. Source:
            # tikv/pd server/forward.go validatePDForwardedHost.
            return RpcError(error.address, error.method, "UNAVAILABLE", error.details)
        return error

    def follower_failed(self, follower: str, error: TikvError) -> None:
        """Take note that a follower has no good answer of its own, which a probe cannot tell: it is left in peace."""
        self._note(follower, error)
        if not isinstance(error, RpcError) or error.code != "UNAVAILABLE":
            self._resting[follower] = self._now() + REST

    def _note(self, address: str, error: TikvError) -> None:
        known = self._members.known
        # It may be a server that does PD's work, which is passed over in another way.
        if is_silence(error) and (address == known.leader or address in known.members):
            self._silent.add(address)
            self._wanted.set()

    async def run(self) -> None:
        """Probe the members at intervals while followers are asked, or a member was silent, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            members = self._members.known.members
            self._silent.intersection_update(members)
            async with anyio.create_task_group() as tasks:
                for address in members:
                    tasks.start_soon(self._probe, address)
            await anyio.sleep(PROBE_INTERVAL)
            if self._silent:
                self._wanted.set()

    async def _probe(self, address: str) -> None:
        limit = self._config.timeout
        if address != self._members.known.leader:
            limit = min(limit, FOLLOWER_TIMEOUT)
        connection = self._members.connection(address)
        try:
            answer = await connection.unary(services.Health.Check, HealthCheckRequest(), timeout=limit)
        except RpcError as error:
            # One without a health service answers as well.
            is_well = not is_silence(error)
        else:
            is_well = answer.status == HealthCheckResponse.ServingStatus.SERVING
        if is_well:
            self._silent.discard(address)
        else:
            self._silent.add(address)
            # This is why it failed, and probes will tell when that is over.
            self._resting.pop(address, None)


def is_silence(error: TikvError) -> bool:
    """Tell whether a failure is that of a member that cannot be reached, as far as one can tell."""
    return isinstance(error, RpcError) and error.code in _SILENCE
