"""Stores in memory: they check Regions as TiKV does, answer from handlers, and misbehave on request."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import anyio
import attrs
from google.protobuf.message import Message
from tikv_pd import PdClient, Peer, RegionEpoch
from tikv_pd.errors import RpcError
from tikv_pd.testing import FakePd, Handlers, MemoryTransport, ServerStream, StreamHandler, UnaryHandler, fail
from tikv_proto import errorpb, kvrpcpb, tikvpb
from tikv_proto.healthpb import HealthCheckResponse
from tikv_proto.services import Health, Rpc, Tikv, all_rpcs
from tikv_region import KeyCodec, RegionCache, RegionConfig
from tikv_region.testing import RegionMap

from tikv_rpc._fakes.fake_raw import Bounds, RawMap
from tikv_rpc.client import RpcClient
from tikv_rpc.config import RpcConfig

AnyRpc: TypeAlias = Rpc[Any, Any]
Handler: TypeAlias = Callable[[Any], Awaitable[Message]]
"""Takes a request message, returns its response; raises `tikv_pd.testing.fail(code)` to end with a gRPC status."""
Serve: TypeAlias = Callable[[], Awaitable[Message]]
"""Serves the request at hand as if nothing were scripted."""
Act: TypeAlias = Callable[[Any, Serve], Awaitable[Message]]
"""Takes a request message and what would serve it, returns the response to give instead."""

_UNARY: Final = [
    rpc
    for rpc in all_rpcs()
    if rpc.path.startswith("/tikvpb.Tikv/") and not rpc.client_streaming and not rpc.server_streaming
]
_BY_FIELD: Final[dict[str, AnyRpc]] = {rpc.batch_field: rpc for rpc in _UNARY if rpc.batch_field is not None}


@attrs.frozen
class Received:
    """A request that reached a store."""

    store_id: int
    """The store."""
    rpc: AnyRpc
    """Which RPC it is."""
    message: Any
    """The request."""
    batched: bool
    """Whether it came in a BatchCommands message."""


@attrs.define(eq=False)
class _Script:
    """What becomes of the next `left` requests of an RPC, of any without one."""

    rpc: AnyRpc | None
    act: Act
    left: float


class FakeStore:
    """One store of a `FakeCluster`, serving. Scripts apply to one request each, in the order they were given.

    `rpc` of the methods below says which requests are meant; None means any but health checks, `Health.Check`.
    """

    def __init__(self, cluster: FakeCluster, store_id: int, address: str) -> None:
        self.id = store_id
        """Id of the store."""
        self.address = address
        """Where it serves; `FakeCluster.move_store` changes it."""
        self.batch_sizes: list[int] = []
        """How many requests each BatchCommands message brought."""
        self.serving_status: HealthCheckResponse.ServingStatus.ValueType = HealthCheckResponse.SERVING
        """What its health service says."""
        self.slow_score = 1
        """How slow it believes to be, from 1 to 100."""
        self._reports = 0
        self._cluster = cluster
        self._scripts: list[_Script] = []
        self.start()

    def start(self) -> None:
        """Serve, again or for the first time."""
        unary: dict[AnyRpc, UnaryHandler] = {rpc: self._unary(rpc) for rpc in _UNARY}
        unary[Health.Check] = self._unary(Health.Check)
        streams: dict[AnyRpc, StreamHandler] = {Tikv.BatchCommands: self._batch_commands}
        handlers: Handlers = {**unary, **streams}
        self._cluster.transport.serve(self.address, handlers)

    def stop(self) -> None:
        """Stop serving: what is under way breaks, new connections are refused."""
        self._cluster.transport.stop(self.address)

    def script(self, rpc: AnyRpc | None, act: Act, *, times: float = 1) -> None:
        """Let `act` decide what becomes of the next `times` requests."""
        self._scripts.append(_Script(rpc, act, times))

    def heal(self) -> None:
        """Drop all scripts; requests that hang already go on hanging."""
        self._scripts.clear()

    def answer_next(
        self,
        rpc: AnyRpc,
        response: Message | None = None,
        *,
        region_error: errorpb.Error | None = None,
        times: float = 1,
    ) -> None:
        """Answer without doing anything: with `response`, or with an error of the Region."""
        answer: Message = response if response is not None else rpc.response(region_error=region_error)

        async def act(_request: Any, _serve: Serve) -> Message:
            return answer

        self.script(rpc, act, times=times)

    def fail_next(self, rpc: AnyRpc | None, code: str, details: str = "", *, times: float = 1) -> None:
        """Do nothing and answer with a gRPC status by name; for a batched request that ends the stream."""

        async def act(_request: Any, _serve: Serve) -> Message:
            raise fail(code, details)

        self.script(rpc, act, times=times)

    def hang_next(self, rpc: AnyRpc | None, *, times: float = 1) -> None:
        """Do nothing and never answer."""
        self.delay_next(rpc, math.inf, times=times)

    def delay_next(self, rpc: AnyRpc | None, seconds: float, *, times: float = 1) -> None:
        """Serve after a while."""

        async def act(_request: Any, serve: Serve) -> Message:
            await anyio.sleep(seconds)
            return await serve()

        self.script(rpc, act, times=times)

    def drop_reply_next(self, rpc: AnyRpc | None, *, hang: bool = False, times: float = 1) -> None:
        """Serve, but lose the answer: break the stream or call, or with `hang` never answer."""

        async def act(_request: Any, serve: Serve) -> Message:
            await serve()
            if hang:
                await anyio.sleep_forever()
            raise fail("UNAVAILABLE", "the connection broke")

        self.script(rpc, act, times=times)

    def before_next(self, rpc: AnyRpc | None, change: Callable[[], object], *, times: float = 1) -> None:
        """Call `change` when the request arrives, then serve it: the cluster moves while a request travels."""

        async def act(_request: Any, serve: Serve) -> Message:
            change()
            return await serve()

        self.script(rpc, act, times=times)

    async def _serve(self, rpc: AnyRpc, request: Any, *, batched: bool) -> Message | None:
        """Return the response, None when nobody serves the RPC."""
        self._cluster.log.append(Received(self.id, rpc, request, batched))

        report = _HEALTH.get(rpc) if rpc not in self._cluster.handlers else None

        async def serve() -> Message:
            return await self._cluster.answer(self, rpc, request) if report is None else report(self)

        meant = {rpc} if rpc is Health.Check else {None, rpc}
        script = next((script for script in self._scripts if script.rpc in meant), None)
        if script is None:
            return await serve() if report is not None or self._cluster.serves(rpc) else None
        script.left -= 1
        if script.left <= 0:
            self._scripts.remove(script)
        return await script.act(request, serve)

    def health_check(self) -> HealthCheckResponse:
        """Return the answer to a health check."""
        return HealthCheckResponse(status=self.serving_status)

    def health_feedback(self) -> kvrpcpb.HealthFeedback:
        """Return another report of its health."""
        self._reports += 1
        return kvrpcpb.HealthFeedback(store_id=self.id, feedback_seq_no=self._reports, slow_score=self.slow_score)

    def _unary(self, rpc: AnyRpc) -> UnaryHandler:
        async def handle(request: Any) -> Message:
            response = await self._serve(rpc, request, batched=False)
            if response is None:
                raise fail("UNIMPLEMENTED")
            return response

        return handle

    async def _batch_commands(self, stream: ServerStream) -> None:
        failures: list[RpcError] = []

        async def answer(number: int, command: tikvpb.BatchCommandsRequest.Request) -> None:
            field = command.WhichOneof("cmd") or ""
            rpc = _BY_FIELD.get(field)
            response = tikvpb.BatchCommandsResponse.Response()
            try:
                served = None if rpc is None else await self._serve(rpc, getattr(command, field), batched=True)
            except RpcError as error:
                failures.append(error)
                tasks.cancel_scope.cancel()
                return
            if served is not None:
                getattr(response, field).CopyFrom(served)
            await stream.send(tikvpb.BatchCommandsResponse(request_ids=[number], responses=[response]))

        async with anyio.create_task_group() as tasks:
            # Until the stream breaks, which cancels this task, or a status ends it.
            while True:
                message = await stream.receive()
                self.batch_sizes.append(len(message.requests))
                for number, command in zip(message.request_ids, message.requests, strict=True):
                    tasks.start_soon(answer, number, command)
        raise failures[0]


_HEALTH: Final[dict[AnyRpc, Callable[[FakeStore], Message]]] = {
    Health.Check: FakeStore.health_check,
    Tikv.GetHealthFeedback: lambda store: kvrpcpb.GetHealthFeedbackResponse(health_feedback=store.health_feedback()),
}


class FakeCluster:
    """Stores and a PD on a network in memory. Use inside `async with`; it lives on any anyio backend.

    All stores share one map of pairs, as if replication took no time. Requests with keys are checked as TiKV checks
    them: cluster, store, Region, peer, leader, epoch, keys. Moves take effect at once, and PD learns of them at once
    unless `pd_lags`.

    Args:
        splits: Keys at which Regions begin, apart from the first.
        stores: How many stores there are; their ids count from 1, each Region is led from store 1 at first.
        codec: How keys are encoded.
        cluster_id: Identity of the cluster.
    """

    def __init__(
        self,
        splits: Iterable[bytes] = (),
        *,
        stores: int = 3,
        codec: KeyCodec | None = None,
        cluster_id: int = 7,
    ) -> None:
        self.map = RegionMap(splits, stores=stores, codec=codec)
        """The Regions as they are. Change them through the methods of the cluster, which tell PD."""
        self.transport = MemoryTransport()
        """The network, for clients."""
        self.pd = FakePd(self.transport, cluster_id=cluster_id)
        """PD; it has faults of its own."""
        self.pd_lags = False
        """Whether PD learns of moves only when told by `update_pd`."""
        self.raw = RawMap()
        """The pairs."""
        self.handlers: dict[AnyRpc, Handler] = {}
        """What serves an RPC that raw key-value does not, or in its place; requests are checked before."""
        self.log: list[Received] = []
        """Every request that reached a store, in order."""
        self.stores = {store.id: FakeStore(self, store.id, store.address) for store in self.map.stores.values()}
        """The stores by id."""
        self.pd.stores = self.map.stores
        self.update_pd()

    async def __aenter__(self) -> Self:
        await self.transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self.transport.__aexit__(kind, error, traceback)

    @property
    def url(self) -> str:
        """Address for clients, such as `tikv://pd1:2379`."""
        return f"tikv://{','.join(self.pd.members)}"

    @property
    def data(self) -> dict[bytes, bytes]:
        """The pairs of the default column family, as keys travel."""
        return self.raw.pairs()

    def store(self, store_id: int) -> FakeStore:
        """Return a store."""
        return self.stores[store_id]

    def requests(self, rpc: AnyRpc, *, store_id: int | None = None) -> list[Any]:
        """Return the messages of an RPC that reached one store, or any."""
        return [
            received.message for received in self.log if received.rpc is rpc and store_id in {None, received.store_id}
        ]

    def update_pd(self) -> None:
        """Tell PD of the Regions as they are now."""
        self.pd.regions = list(self.map.regions)

    def split(self, *keys: bytes) -> None:
        """Split Regions at keys; the right piece keeps the id."""
        for key in keys:
            self.map.split(key)
        self._moved()

    def merge(self, key: bytes) -> None:
        """Merge the Region that holds `key` into its right neighbor."""
        self.map.merge(key)
        self._moved()

    def move_leader(self, key: bytes, store_id: int) -> None:
        """Have the Region that holds `key` led from another store."""
        self.map.move_leader(key, store_id)
        self._moved()

    def move_peer(self, key: bytes, source: int, target: int) -> None:
        """Replace a Region's peer on one store by one on another, which leads if the old one did."""
        self.map.move_peer(key, source, target)
        self._moved()

    def move_store(self, store_id: int, address: str) -> None:
        """Have a store serve at another address, as after a restart elsewhere; PD knows at once."""
        store = self.stores[store_id]
        store.stop()
        store.address = address
        store.start()
        self.map.stores[store_id] = attrs.evolve(self.map.stores[store_id], address=address)

    def remove_store(self, store_id: int) -> None:
        """Stop a store for good; to PD it is a tombstone. Move its peers and leaders away first."""
        self.stores[store_id].stop()
        self.map.stores[store_id] = attrs.evolve(self.map.stores[store_id], is_tombstone=True)

    def serves(self, rpc: AnyRpc) -> bool:
        """Tell whether an RPC is served, unless scripted."""
        return rpc in self.handlers or self.raw.serves(rpc)

    async def answer(self, store: FakeStore, rpc: AnyRpc, request: Any) -> Message:
        """Serve a request at a store: refuse it as TiKV would, or hand it to its handler."""
        bounds: Bounds = (b"", b"")
        keys = _keys(request)
        if keys or _has_region(request):
            if request.context.cluster_id != self.pd.cluster_id:
                raise fail("INVALID_ARGUMENT", f"cluster id mismatch, needs {self.pd.cluster_id}")
            refusal = self._refusal(store, request.context, keys)
            if refusal is not None:
                refused: Message = rpc.response(region_error=refusal)
                return refused
            bounds = self.bounds(request.context.region_id)
        handler = self.handlers.get(rpc)
        if handler is not None:
            return await handler(request)
        return self.raw.answer(rpc, request, bounds)

    def bounds(self, region_id: int) -> Bounds:
        """Return the first key and the end of a Region, as keys travel; an empty end is unbounded."""
        region = next(region for region in self.map.regions if region.id == region_id)
        keys = self.map.codec.decode_region_range(region.start_key, region.end_key)
        assert keys is not None
        return self.map.codec.encode_range(*keys)

    @asynccontextmanager
    async def connect(
        self, config: RpcConfig | None = None, *, region_config: RegionConfig | None = None, **options: Any
    ) -> AsyncIterator[RpcClient]:
        """Open an `RpcClient` on this cluster, with a PD client and a Region cache of its own.

        Args:
            config: Of the client.
            region_config: Of its cache.
            options: Further arguments of `RpcClient`.
        """
        async with PdClient(self.url, transport=self.transport) as pd:
            cache = RegionCache(pd, self.map.codec, config=region_config, now=self.transport.now)
            client = RpcClient(cache, self.map.codec, self.pd.cluster_id, self.transport, config, **options)
            async with client as rpc:
                yield rpc

    def _moved(self) -> None:
        if not self.pd_lags:
            self.update_pd()

    def _refusal(self, store: FakeStore, context: kvrpcpb.Context, keys: Iterable[bytes]) -> errorpb.Error | None:
        if context.peer.store_id != store.id:
            mismatch = errorpb.StoreNotMatch(request_store_id=context.peer.store_id, actual_store_id=store.id)
            return errorpb.Error(message="store not match", store_not_match=mismatch)
        peer = Peer.from_pb(context.peer)
        epoch = RegionEpoch(context.region_epoch.conf_ver, context.region_epoch.version)
        decoded: list[bytes | None] = [self.map.codec.decode_key(key) for key in keys]
        for key in decoded or [None]:
            refusal = self.map.refusal(context.region_id, epoch, peer, key)
            if refusal is not None:
                return refusal
        return None


def _has_region(request: Any) -> bool:
    """Tell whether a request is to a Region, not to a store as a whole."""
    return "context" in request.DESCRIPTOR.fields_by_name and bool(request.context.region_id)


def _keys(request: Any) -> list[bytes]:
    """Return the keys by which TiKV tells whether the Region is right; none for one without keys."""
    fields = request.DESCRIPTOR.fields_by_name
    if "key" in fields:
        return [request.key]
    if "keys" in fields:
        return list(request.keys)
    if "pairs" in fields:
        return [pair.key for pair in request.pairs]
    if "mutations" in fields:
        return [mutation.key for mutation in request.mutations]
    if "primary_key" in fields:
        return [request.primary_key]
    if "primary_lock" in fields:
        return [request.primary_lock]
    if "ranges" in fields:
        is_reverse = getattr(request, "reverse", False)
        return [span.end_key if is_reverse else span.start_key for span in request.ranges]
    if "start_key" in fields:
        return [request.end_key if getattr(request, "reverse", False) else request.start_key]
    return []
