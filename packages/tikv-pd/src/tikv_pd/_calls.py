"""Unary RPCs to PD: header, deadline, attempts at the leader."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from google.protobuf.message import Message
from tikv_proto.services import Rpc

from tikv_pd._members import Members, header_error
from tikv_pd._pursuit import Pursuit
from tikv_pd.backoff import Backoffer
from tikv_pd.config import PdConfig
from tikv_pd.deadline import Deadline
from tikv_pd.errors import RpcError, TikvError
from tikv_pd.lowlevel import Transport

Resp = TypeVar("Resp", bound=Message)


class Calls:
    """What every operation of an open client goes through.

    Args:
        members: Who leads.
        transport: The clock.
        config: How patient to be.
    """

    def __init__(self, members: Members, transport: Transport, config: PdConfig) -> None:
        self.members = members
        """Who leads."""
        self.transport = transport
        """The clock."""
        self.config = config
        """How patient to be."""

    def deadline(self, operation: str, timeout: float | None) -> Deadline:
        """Return the deadline of an operation that begins now."""
        return Deadline(operation, self.seconds(timeout), self.transport.now)

    def seconds(self, timeout: float | None) -> float:
        """Return the seconds an operation may take."""
        return self.config.operation_timeout if timeout is None else timeout

    async def call(
        self, operation: str, rpc: Rpc[Any, Resp], request: Any, timeout: float | None, *, is_patient: bool = False
    ) -> Resp:
        """Send a request until it is answered, as an operation of its own."""
        return await self.attempt(rpc, request, self.deadline(operation, timeout), is_patient=is_patient)

    async def attempt(self, rpc: Rpc[Any, Resp], request: Any, deadline: Deadline, *, is_patient: bool = False) -> Resp:
        """Send a request to the leader until it answers; patiently when the answer may rightly take long."""
        members = self.members
        limit = math.inf if is_patient else self.config.timeout
        pursuit = Pursuit(members, Backoffer(deadline, budget=math.inf))
        error: TikvError | None = None
        while True:
            address = members.leader
            self.sign(request)
            try:
                answer: Any = await members.connection(address).unary(
                    rpc, request, timeout=min(limit, deadline.check(error))
                )
            except RpcError as failure:
                error = failure
            else:
                if not answer.header.HasField("error"):
                    return answer  # type: ignore[no-any-return]  # every response of PD has a header, no type says so
                error = header_error(rpc.name, answer.header)
            await pursuit.recover(address, error)

    def sign(self, request: Any) -> None:
        """Say in a request's header who asks, and which cluster."""
        request.header.cluster_id = self.members.known.cluster_id
        request.header.caller_component = self.config.caller_component
