"""Faults of PD: calls that are delayed, lost, refused or answered wrongly, so many times or until cleared.

A fault lies between the port and the service, so the services know nothing of it. On a stream it strikes single
requests; on a stream of one request, such as a watch, it strikes when that begins.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import grpc
from tikv_proto import pdpb, services
from tikv_proto.services import Rpc

from tikv_embedded.rpc_handlers import Handler, ServicerContext


class Loss(enum.Enum):
    """What of a call is lost; its caller waits until it gives up."""

    REQUEST = enum.auto()
    """Nothing happens."""
    ANSWER = enum.auto()
    """What was asked for happens, and nobody hears of it."""


@attrs.define
class Fault:
    """What happens to the calls it matches; all fields together, the delay first."""

    rpc: str
    """Method name, such as `GetRegion`; empty matches all."""
    member: int | None = None
    """Index of the member whose calls it matches; None matches all."""
    times: int | None = None
    """How many calls it still strikes; None is until it is cleared."""
    delay: float = 0.0
    """Seconds."""
    loss: Loss | None = None
    refusal: tuple[grpc.StatusCode, str] | None = None
    header_error: pdpb.Error | None = None
    """Answered instead of doing what was asked for; on a stream, instead of the answer."""
    edit: Callable[[Any], None] | None = None
    """Changes the answer in place."""


class PdFaults:
    """The faults of one cluster's PD, first come, first served: the first that matches strikes, alone."""

    def __init__(self, cluster_id: int) -> None:
        self._cluster_id = cluster_id
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Let `fault` strike once those before it are used up."""
        self._faults.append(fault)

    def clear(self, rpc: str) -> None:
        """Forget the faults of one RPC; an empty name forgets all."""
        self._faults = [fault for fault in self._faults if rpc not in ("", fault.rpc)]

    def take(self, rpc: str, member: int) -> Fault | None:
        """Return the fault that strikes this call, None for none; it counts as used."""
        for fault in self._faults:
            if fault.rpc in ("", rpc) and fault.member in (None, member):
                if fault.times is not None:
                    fault.times -= 1
                    if not fault.times:
                        self._faults.remove(fault)
                return fault
        return None

    def around(self, handler: Handler, member: int) -> Handler:
        """Return the handler with the faults of its RPC on that member in front of it."""
        path, method = handler
        name = path.rpartition("/")[2]
        serialize = {
            "request_deserializer": method.request_deserializer,
            "response_serializer": method.response_serializer,
        }
        if method.stream_stream is not None:
            streamed = self._streamed(name, member, method.stream_stream)
            return path, grpc.stream_stream_rpc_method_handler(streamed, **serialize)
        if method.stream_unary is not None:
            # Stores alone call these.
            return handler
        if method.unary_stream is not None:
            watched = self._watched(name, member, method.unary_stream)
            return path, grpc.unary_stream_rpc_method_handler(watched, **serialize)
        return path, grpc.unary_unary_rpc_method_handler(self._asked(path, member, method.unary_unary), **serialize)

    def _asked(self, path: str, member: int, answer: Any) -> Any:
        name = path.rpartition("/")[2]

        async def handle(request: Any, context: ServicerContext) -> Any:
            fault = self.take(name, member)
            if fault is None:
                return await answer(request, context)
            await _strike(fault, context)
            if fault.header_error is not None:
                return self._refusal(_rpc(path).response, fault.header_error)
            response = await answer(request, context)
            if fault.loss is Loss.ANSWER:
                await _for_ever()
            if fault.edit is not None:
                fault.edit(response)
            return response

        return handle

    def _watched(self, name: str, member: int, answer: Any) -> Any:
        async def handle(request: Any, context: ServicerContext) -> AsyncIterator[Any]:
            fault = self.take(name, member)
            if fault is not None:
                await _strike(fault, context)
                if fault.loss is Loss.ANSWER:
                    await _for_ever()
            async for response in answer(request, context):
                yield response

        return handle

    def _streamed(self, name: str, member: int, answer: Any) -> Any:
        """PD's streams answer every request once and in order, which is how a fault finds the answer it is for."""

        async def handle(requests: AsyncIterator[Any], context: ServicerContext) -> AsyncIterator[Any]:
            struck: deque[Fault | None] = deque()

            async def admitted() -> AsyncIterator[Any]:
                async for request in requests:
                    fault = self.take(name, member)
                    if fault is not None and fault.loss is Loss.REQUEST:
                        continue
                    if fault is not None:
                        await _strike(fault, context)
                    struck.append(fault)
                    yield request

            async for response in answer(admitted(), context):
                fault = struck.popleft()
                if fault is None:
                    yield response
                elif fault.loss is not Loss.ANSWER:
                    if fault.edit is not None:
                        fault.edit(response)
                    error = fault.header_error
                    yield response if error is None else self._refusal(type(response), error)

        return handle

    def _refusal(self, response: Any, error: pdpb.Error) -> Any:
        # The headers of PD, TSO and meta storage look alike.
        fields = {"type": error.type, "message": error.message}
        return response(header={"cluster_id": self._cluster_id, "error": fields})


async def _strike(fault: Fault, context: ServicerContext) -> None:
    """Do what comes before the service hears of the call."""
    if fault.delay:
        await asyncio.sleep(fault.delay)
    if fault.refusal is not None:
        await context.abort(*fault.refusal)
    if fault.loss is Loss.REQUEST:
        await _for_ever()


async def _for_ever() -> None:
    """Wait until the caller or the port gives up."""
    await asyncio.Event().wait()


def _rpc(path: str) -> Rpc[Any, Any]:
    return next(rpc for rpc in services.all_rpcs() if rpc.path == path)
