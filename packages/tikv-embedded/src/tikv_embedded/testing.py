"""For tests: RPCs on the ports of a cluster with no client in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc.aio
from google.protobuf.message import Message
from tikv_proto import kvrpcpb, metapb
from tikv_proto.services import Rpc

from tikv_embedded.region import Region, peer_to_pb

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


class BareClient:
    """Sends requests as they are, to the address it is told: no cache, no retry, no codec.

    An async context manager; leaving it cancels its streams and cuts its connections.
    """

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._streams: list[grpc.aio.StreamStreamCall[Any, Any]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await _cancel(self._streams)
        for channel in self._channels.values():
            await channel.close()

    async def call(
        self, address: str, rpc: Rpc[Req, Resp], request: Req, metadata: Sequence[tuple[str, str]] = ()
    ) -> Resp:
        """Return the response of a unary RPC; whatever gRPC raises is raised."""
        method = self.channel(address).unary_unary(rpc.path, rpc.request.SerializeToString, rpc.response.FromString)
        response: Resp = await method(request, metadata=metadata or None)
        return response

    def stream(
        self, address: str, rpc: Rpc[Req, Resp], metadata: Sequence[tuple[str, str]] = ()
    ) -> grpc.aio.StreamStreamCall[Any, Any]:
        """Open the stream of a bidirectional RPC; its `write` and `read` take and give whole messages."""
        method = self.channel(address).stream_stream(rpc.path, rpc.request.SerializeToString, rpc.response.FromString)
        call = method(metadata=metadata or None)
        self._streams.append(call)
        return call

    def channel(self, address: str) -> grpc.aio.Channel:
        """Return the one connection to that address."""
        if address not in self._channels:
            unlimited = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
            self._channels[address] = grpc.aio.insecure_channel(address, options=unlimited)
        return self._channels[address]


async def _cancel(calls: list[grpc.aio.StreamStreamCall[Any, Any]]) -> None:
    """Cancel `calls`, and wait until gRPC has heard of their end.

    Cancelling ends a call for its caller at once and on the wire later. If the loop is closed in between, gRPC reports
    that end to a closed loop, from the next loop of the process: an exception there, or a crash (grpcio 1.85).
    """
    waiting = {
        task for task in asyncio.all_tasks() if "_status_once_received" in getattr(task.get_coro(), "__name__", "")
    }
    missing = len([call for call in calls if not call.done()])
    for call in calls:
        call.cancel()
    while missing > 0 and waiting:
        # Calls of other clients wait in the same way, and go on.
        done, waiting = await asyncio.wait(waiting, timeout=1, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            break
        missing -= len(done)


def context_for(region: Region, store_id: int | None = None, **fields: Any) -> kvrpcpb.Context:
    """Return the Context of a request to the leader of `region`, or to its peer on `store_id`, plus further fields."""
    peer = region.leader if store_id is None else region.peer_on(store_id)
    context = kvrpcpb.Context(
        region_id=region.id,
        region_epoch=metapb.RegionEpoch(conf_ver=region.epoch.conf_ver, version=region.epoch.version),
        peer=None if peer is None else peer_to_pb(peer),
    )
    context.MergeFrom(kvrpcpb.Context(**fields))
    return context
