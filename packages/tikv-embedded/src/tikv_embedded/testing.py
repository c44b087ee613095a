"""For tests: RPCs on the ports of a cluster with no client in between, and a store without a port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message
from tikv_proto import kvrpcpb, metapb
from tikv_proto.services import Rpc

from tikv_embedded import memcomparable, meta
from tikv_embedded.cluster import EmbeddedCluster
from tikv_embedded.engine import Engine, MemoryEngine
from tikv_embedded.mvcc.max_ts import MaxTs
from tikv_embedded.region import Peer, Region, RegionEpoch, Store, peer_to_pb
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.store.safe_ts import SafeTs
from tikv_embedded.store.txn_requests import TXN_RULES, TxnStore
from tikv_embedded.topology import Topology

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)
NO_FIELDS: Mapping[str, Any] = {}
"""No further fields of a Context."""


class BareStream(Generic[Req, Resp]):
    """One bidirectional stream: whole messages out and in."""

    def __init__(self, call: grpc.aio.StreamStreamCall[Req, Resp]) -> None:
        self._call = call

    async def write(self, request: Req) -> None:
        """Send one message."""
        await self._call.write(request)

    async def done_writing(self) -> None:
        """Say that nothing more will be sent."""
        await self._call.done_writing()

    async def read(self) -> Resp:
        """Return the next message; EOFError when the server is done, and gRPC's own error when the stream failed."""
        message = await self._call.read()
        if message is grpc.aio.EOF:
            raise EOFError
        return cast(Resp, message)

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """Return how the stream ended, once it has: code and details."""
        return await self._call.code(), await self._call.details() or ""

    def cancel(self) -> None:
        """End it from this side; harmless when it has ended."""
        self._call.cancel()


class BareClient:
    """Sends requests as they are, to the address it is told: no cache, no retry, no codec.

    An async context manager; leaving it cancels its streams and cuts its connections.

    Args:
        credentials: For a cluster with TLS; None is for one without.
    """

    def __init__(self, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._credentials = credentials
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._calls: list[grpc.aio.Call] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await _cancel(self._calls)
        for channel in self._channels.values():
            await channel.close()

    async def call(
        self, address: str, rpc: Rpc[Req, Resp], request: Req, metadata: Sequence[tuple[str, str]] = ()
    ) -> Resp:
        """Return the response of a unary RPC; whatever gRPC raises is raised."""
        method = self._channel(address).unary_unary(rpc.path, rpc.request.SerializeToString, rpc.response.FromString)
        response: Resp = await method(request, metadata=metadata or None)
        return response

    async def ask_pd(self, cluster: EmbeddedCluster, rpc: Rpc[Any, Resp], *, member: int = 0, **fields: Any) -> Resp:
        """Return what a PD member answers to a request with these fields, the cluster's id in its header.

        Args:
            cluster: Whose PD.
            rpc: A unary RPC with a header.
            member: Index in `cluster.pd_addresses`.
            **fields: Of the request.
        """
        header = {"cluster_id": cluster.cluster_id}
        return await self.call(cluster.pd_addresses[member], rpc, rpc.request(header=header, **fields))

    def stream(
        self, address: str, rpc: Rpc[Req, Resp], metadata: Sequence[tuple[str, str]] = ()
    ) -> BareStream[Req, Resp]:
        """Open the stream of a bidirectional RPC."""
        method = self._channel(address).stream_stream(rpc.path, rpc.request.SerializeToString, rpc.response.FromString)
        call = method(metadata=metadata or None)
        self._calls.append(call)
        return BareStream(cast("grpc.aio.StreamStreamCall[Req, Resp]", call))

    def server_stream(self, address: str, rpc: Rpc[Req, Resp], request: Req) -> BareStream[Req, Resp]:
        """Send the one request of a server-streaming RPC; only `read`, `status` and `cancel` of it are of use."""
        method = self._channel(address).unary_stream(rpc.path, rpc.request.SerializeToString, rpc.response.FromString)
        call = method(request)
        self._calls.append(call)
        return BareStream(cast("grpc.aio.StreamStreamCall[Req, Resp]", call))

    async def health(self, address: str, request: bytes = b"") -> bytes:
        """Return the answer of the health service's Check, both as they are on the wire."""
        method = self._channel(address).unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
        return await method(request)

    async def watch_health(self, address: str, request: bytes = b"") -> bytes:
        """Return the first answer of the health service's Watch, as `health` does."""
        call = self._channel(address).unary_stream("/grpc.health.v1.Health/Watch", bytes, bytes)(request)
        self._calls.append(call)
        return cast(bytes, await call.read())

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            unlimited = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
            self._channels[address] = (
                grpc.aio.insecure_channel(address, options=unlimited)
                if self._credentials is None
                else grpc.aio.secure_channel(address, self._credentials, options=unlimited)
            )
        return self._channels[address]


async def _cancel(calls: list[grpc.aio.Call]) -> None:
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


class DirectStore:
    """Serves transactional requests without a network: one store that leads one Region.

    Args:
        mode: How the store keeps keys.
        start_key: First user key of the Region.
        end_key: User key behind it; empty = unbounded.
        engine: Where the data lies; in memory unless given.
        next_ts: PD's clock.

    Attributes:
        engine: The data.
        region: The Region; its leader is on store 1, a follower on store 2.
        max_ts: How far the store was read.
        safe_ts: How far stale reads can go.
    """

    def __init__(
        self,
        *,
        mode: ApiMode = ApiMode.V1,
        start_key: bytes = b"",
        end_key: bytes = b"",
        engine: Engine | None = None,
        next_ts: Callable[[], int] = lambda: 1,
    ) -> None:
        lower, upper = (memcomparable.encode(key) if key else b"" for key in (start_key, end_key))
        peers = (Peer(11, 1), Peer(12, 2))
        self.engine = MemoryEngine() if engine is None else engine
        self.region = Region(1, lower, upper, RegionEpoch(), peers, leader=peers[0])
        self.max_ts = MaxTs(next_ts)
        self.safe_ts = SafeTs(next_ts)
        state = meta.ClusterState(
            cluster_id=1, mode=mode, max_peer_count=2, next_id=100, stores=(Store(1, ""),), regions=(self.region,)
        )
        topology = Topology(self.engine, state)
        self._stores = {
            store_id: TxnStore(topology, mode, store_id, lambda _store_id: self.max_ts, self.safe_ts)
            for store_id in (1, 2)
        }

    def ask(
        self, rpc: Rpc[Req, Resp], *, store_id: int = 1, context: Mapping[str, Any] = NO_FIELDS, **fields: Any
    ) -> Resp:
        """Return the answer to a request with these fields, and write what it wants written.

        Args:
            rpc: A transactional RPC that belongs to a Region.
            store_id: 1 or 2.
            context: Further fields of the Context.
            **fields: Of the request.
        """
        request = rpc.request(context=context_for(self.region, store_id, **context), **fields)
        with self.engine.snapshot() as snapshot:
            response, batch = self._stores[store_id].session(snapshot).run(TXN_RULES[rpc.request], request)
        if batch is not None:
            self.engine.write(batch)
        return cast("Resp", response)
