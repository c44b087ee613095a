"""Unary RPCs to PD: header, deadline, attempts at the leader."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import PurePath
from typing import Any, Final, TypeVar

import anyio
from google.protobuf.message import Message
from tikv_proto import services
from tikv_proto.services import Rpc

from tikv_pd._routing.members import Members, header_error
from tikv_pd._routing.pursuit import Pursuit
from tikv_pd._routing.service_route import ServiceRoute
from tikv_pd._routing.ways import Way, Ways
from tikv_pd.backoff import Backoffer
from tikv_pd.breaker import CircuitBreaker
from tikv_pd.config import BreakerConfig, PdConfig
from tikv_pd.deadline import Deadline
from tikv_pd.errors import RpcError, TikvError
from tikv_pd.lowlevel import Metadata, Transport

Resp = TypeVar("Resp", bound=Message)

_REGION_RPCS: Final = frozenset(
    {
        services.PD.GetRegion,
        services.PD.GetPrevRegion,
        services.PD.GetRegionByID,
        services.PD.QueryRegion,
        services.PD.BatchScanRegions,
    }
)
"""What the breaker guards. Source: client-go region_cache.go, withPDCircuitBreaker."""
_PROGRAM: Final = PurePath("".join(sys.argv[:1]) or "python").name.encode("ascii", "replace").decode()
"""Name of the program that asks, as PD logs it. Source: pd client GetCallerID."""
_FOLLOWER_MAY: Final = (("pd-allow-follower-handle", ""),)
"""Metadata that lets a follower answer a query by itself."""


class Calls:
    """What every operation of an open client goes through.

    Args:
        members: Who leads.
        ways: How to reach them.
        transport: The clock.
        config: How patient to be.
        routes: Who does the work of services that may run apart from PD.
    """

    def __init__(
        self,
        members: Members,
        ways: Ways,
        transport: Transport,
        config: PdConfig,
        routes: Iterable[ServiceRoute] = (),
    ) -> None:
        self.members = members
        """Who leads."""
        self.ways = ways
        """How to reach them."""
        self.transport = transport
        """The clock."""
        self.config = config
        """How patient to be."""
        self.region_breaker = CircuitBreaker(config.region_breaker) if config.region_breaker is not None else None
        """What keeps queries of Regions from a PD that has no time for them; None for nothing."""
        self._routes = {rpc: route for route in routes for rpc in route.registry.rpcs}

    def route(self, rpc: Rpc[Any, Any]) -> ServiceRoute | Members:
        """Return who does the work of an RPC."""
        return self._routes.get(rpc, self.members)

    async def ready(self, rpc: Rpc[Any, Any], deadline: Deadline) -> None:
        """Return when it is known who does the work of an RPC, or the time is up."""
        route = self._routes.get(rpc)
        if route is not None:
            with self.members.while_open(), anyio.move_on_after(deadline.check()):
                await route.ready()

    def change_region_breaker(self, config: BreakerConfig | None) -> None:
        """Change when queries of Regions fail at once; None for never."""
        if config is None:
            self.region_breaker = None
        elif self.region_breaker is None:
            self.region_breaker = CircuitBreaker(config)
        else:
            self.region_breaker.config = config

    def guard(self, rpc: Rpc[Any, Any], operation: str) -> AbstractContextManager[None]:
        """Let a block make an attempt of an RPC, unless the breaker is open for it: CircuitOpen."""
        breaker = self.region_breaker
        if breaker is None or rpc not in _REGION_RPCS:
            return nullcontext()
        return breaker.guard(operation, self.transport.now)

    def deadline(self, operation: str, timeout: float | None) -> Deadline:
        """Return the deadline of an operation that begins now."""
        return Deadline(operation, self.seconds(timeout), self.transport.now)

    def seconds(self, timeout: float | None) -> float:
        """Return the seconds an operation may take."""
        return self.config.operation_timeout if timeout is None else timeout

    async def call(
        self,
        operation: str,
        rpc: Rpc[Any, Resp],
        request: Any,
        timeout: float | None,
        *,
        is_patient: bool = False,
        allow_follower: bool = False,
    ) -> Resp:
        """Send a request until it is answered, as an operation of its own."""
        deadline = self.deadline(operation, timeout)
        return await self.attempt(rpc, request, deadline, is_patient=is_patient, allow_follower=allow_follower)

    async def attempt(
        self,
        rpc: Rpc[Any, Resp],
        request: Any,
        deadline: Deadline,
        *,
        is_patient: bool = False,
        allow_follower: bool = False,
    ) -> Resp:
        """Send a request to the leader, or whoever does its work, until it is answered.

        Args:
            rpc: Which RPC.
            request: Its request; the header is filled in here.
            deadline: When to give up.
            is_patient: Whether one answer may rightly take long.
            allow_follower: Whether a follower may be tried first, once.

        With `PdConfig.forwarding` followers pass requests on to a leader that did not answer of late.
        """
        limit = math.inf if is_patient else self.config.timeout
        await self.ready(rpc, deadline)
        route = self.route(rpc)
        follower = self.ways.follower() if allow_follower and route.leader == self.members.leader else None
        if follower is not None:
            seconds = min(limit, deadline.check())
            answer = await self._send(self.members, follower, rpc, request, deadline.operation, seconds, _FOLLOWER_MAY)
            if not isinstance(answer, TikvError):
                return answer
            self.ways.follower_failed(follower, answer)
        pursuit = Pursuit(route, Backoffer(deadline, budget=math.inf))
        error: TikvError | None = None
        while True:
            leader = route.leader
            way = self.ways.to_leader() if leader == self.members.leader else Way(leader, leader)
            seconds = min(limit, deadline.check(error))
            answer = await self._send(route, way.address, rpc, request, deadline.operation, seconds, way.metadata)
            if not isinstance(answer, TikvError):
                return answer
            error = self.ways.failed(way, answer)
            if isinstance(answer, RpcError) and answer.code == "DEADLINE_EXCEEDED":
                # It may be the request that takes long, as a scan of many Regions does, and not the member.
                limit *= 2
            with self.members.while_open():
                await pursuit.recover(leader, error)

    async def ask_member(self, address: str, rpc: Rpc[Any, Resp], request: Any, deadline: Deadline) -> Resp | TikvError:
        """Return what the member at an address answers by itself, leader or not, or why it does not."""
        seconds = min(self.config.timeout, deadline.check())
        with self.members.while_open():
            return await self._send(self.members, address, rpc, request, deadline.operation, seconds, _FOLLOWER_MAY)

    async def _send(
        self,
        route: ServiceRoute | Members,
        address: str,
        rpc: Rpc[Any, Resp],
        request: Any,
        operation: str,
        timeout: float,
        metadata: Metadata = (),
    ) -> Resp | TikvError:
        """Return the answer of one server, or why there is none."""
        if rpc is not services.PD.GetMembers:
            # Members tell who they are to clients that do not know the cluster's id yet.
            self.sign(request)
        try:
            connection, called = route.connection(address), route.rpc(rpc, address)
            with self.guard(rpc, operation):
                answer: Any = await connection.unary(called, request, timeout=timeout, metadata=metadata)
        except RpcError as error:
            return error
        # Most responses have a header, which has an error; a few have the error, or nothing, in its place.
        fields = rpc.response.DESCRIPTOR.fields_by_name
        source = answer.header if "header" in fields else answer
        if ("header" in fields or "error" in fields) and source.HasField("error"):
            return header_error(rpc.name, source)
        return answer  # type: ignore[no-any-return]  # no type says what the responses of PD have in common

    def sign(self, request: Any) -> None:
        """Say in a request's header, if it has one, who asks, and which cluster."""
        if "header" not in request.DESCRIPTOR.fields_by_name:
            return
        header = request.header
        header.cluster_id = self.members.known.cluster_id
        if "caller_component" in header.DESCRIPTOR.fields_by_name:
            header.caller_id, header.caller_component = _PROGRAM, self.config.caller_component
        else:
            header.source = self.config.caller_component
