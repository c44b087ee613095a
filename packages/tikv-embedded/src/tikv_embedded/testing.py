"""For tests: RPCs on the ports of a cluster with no client in between."""

from __future__ import annotations

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

    An async context manager; leaving it cuts its connections.
    """

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
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
        return method(metadata=metadata or None)

    def channel(self, address: str) -> grpc.aio.Channel:
        """Return the one connection to that address."""
        if address not in self._channels:
            unlimited = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
            self._channels[address] = grpc.aio.insecure_channel(address, options=unlimited)
        return self._channels[address]


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
