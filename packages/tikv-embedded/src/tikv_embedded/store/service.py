"""The services of one store: unary requests, BatchCommands, SplitRegion, a store's own state, and health.

Every other RPC of the Tikv service is UNIMPLEMENTED, unless a fault answers it. Faults lie between the ports and what
is here: only `_handle`, `_batch_commands` and `_check` know of them.
Source: TiKV server/service/kv.rs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import attrs
import grpc
import grpc.aio
from tikv_proto import errorpb, kvrpcpb, tikvpb
from tikv_proto.services import Rpc, Tikv, all_rpcs

from tikv_embedded import memcomparable
from tikv_embedded.engine import Engine
from tikv_embedded.health import CHECK, WATCH, ServerHealth
from tikv_embedded.mvcc.max_ts import MaxTs
from tikv_embedded.pd.clock import Clock
from tikv_embedded.pd.tso import TimestampOracle
from tikv_embedded.region import region_to_pb
from tikv_embedded.rpc_handlers import Handler, ServicerContext, stream, unary
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.store.batch_commands import RequestStores
from tikv_embedded.store.batch_stream import BatchStream, StreamOrigin
from tikv_embedded.store.calls import OPENING, ReceivedCall
from tikv_embedded.store.faults import CallLostError, CallRefusedError, CallWatch, suffer
from tikv_embedded.store.health_feedback import HealthReporter
from tikv_embedded.store.raw_requests import RAW_RULES, ClusterIdMismatchError, RawRule, RawStore
from tikv_embedded.store.region_checks import check_split
from tikv_embedded.store.safe_ts import SafeTs
from tikv_embedded.store.txn_requests import TXN_RULES, TxnRule, TxnStore
from tikv_embedded.topology import Topology

UNARY = tuple(
    rpc
    for rpc in all_rpcs()
    if rpc.path.startswith("/tikvpb.Tikv/") and not (rpc.client_streaming or rpc.server_streaming)
)
"""The unary RPCs of the Tikv service."""
FORWARDED_HOST = "tikv-forwarded-host"
"""Request metadata: the address of the store to which this one shall pass the call on."""

_Answer = Callable[["TikvService", Any], Any]
"""Serves a request, in one step of the loop."""


@attrs.frozen
class TikvState:
    """What the stores of one cluster share."""

    mode: ApiMode
    topology: Topology
    engine: Engine
    oracle: TimestampOracle
    find_service: Callable[[str], TikvService | None]
    """Finds the service of the running store with an address, None when there is none."""
    watch: CallWatch = attrs.field(factory=CallWatch)
    clock: Clock = attrs.field(factory=Clock)
    """By which pairs expire."""
    max_ts: dict[int, MaxTs] = attrs.field(factory=dict)
    """Store id → how far it was read."""

    def max_ts_of(self, store_id: int) -> MaxTs:
        """Return how far that store was read."""
        known = self.max_ts.get(store_id)
        if known is None:
            known = self.max_ts[store_id] = MaxTs(self.oracle.next_ts)
        return known


class TikvService:
    """Handlers of one store.

    Args:
        state: Shared with the other stores.
        store_id: Which of them this is.

    Attributes:
        health: What its health service says.
        feedback: What it reports of its health.
        safe_ts: How far stale reads can go.
        streams: The BatchCommands streams that were sent to it and are open.
    """

    def __init__(self, state: TikvState, store_id: int) -> None:
        self._state = state
        self._store_id = store_id
        self._raw = RawStore(state.topology, state.mode, state.oracle.next_ts, store_id, wall_clock=state.clock.seconds)
        self._opened = 0
        self.health = ServerHealth()
        self.feedback = HealthReporter(store_id)
        self.safe_ts = SafeTs(state.oracle.next_ts)
        self._txn = TxnStore(state.topology, state.mode, store_id, state.max_ts_of, self.safe_ts)
        self._stores = RequestStores(self._raw, self._txn)
        self.streams: set[BatchStream] = set()

    def handlers(self) -> list[Handler]:
        """Return what this store answers."""
        served: dict[Any, _Answer] = {
            Tikv.SplitRegion: TikvService._split_region,
            Tikv.GetStoreSafeTS: TikvService._get_store_safe_ts,
            Tikv.GetHealthFeedback: TikvService._get_health_feedback,
            Tikv.UnsafeDestroyRange: TikvService._unsafe_destroy_range,
        }
        return [
            *(self._handler(rpc, served.get(rpc) or _answer_of(rpc)) for rpc in UNARY),
            stream(Tikv.BatchCommands, self._batch_commands),
            (CHECK, grpc.unary_unary_rpc_method_handler(self._check)),
            (WATCH, grpc.unary_stream_rpc_method_handler(self._watch)),
        ]

    def _handler(self, rpc: Rpc[Any, Any], answer: _Answer) -> Handler:
        async def handle(request: Any, context: ServicerContext) -> Any:
            return await self._handle(rpc.name, answer, request, context)

        return unary(rpc, handle)

    async def _handle(self, rpc: str, answer: _Answer, request: Any, context: ServicerContext) -> Any:
        """Answer one request by itself, with the faults in front of it."""
        metadata = _metadata(context)
        try:
            target = self._target(metadata)
            if self._state.watch.is_idle:
                return answer(target, request)

            async def serve() -> Any:
                return answer(target, request)

            call = ReceivedCall(target._store_id, rpc, request, metadata, self._proxy_of(target))
            return await self._watched(call, serve)
        except ClusterIdMismatchError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except CallRefusedError as error:
            await context.abort(error.code, error.details)

    async def _watched(self, call: ReceivedCall, serve: Callable[[], Any]) -> Any:
        """Serve a call unless a fault strikes it; one that is lost waits until its caller or the port gives up."""
        fault = self._state.watch.receive(call)
        if fault is None:
            return await serve()
        try:
            return await suffer(fault, call, serve)
        except CallLostError:
            await asyncio.Event().wait()

    def _answer_raw(self, rule: RawRule, request: Any) -> Any:
        with self._state.engine.snapshot() as snapshot:
            response, batch = self._raw.session(snapshot).run(rule, request)
        if batch is not None:
            self._state.engine.write(batch)
        return response

    def _answer_txn(self, rule: TxnRule, request: Any) -> Any:
        """Read, decide and write in one step of the loop, which no other request enters: a latch on every key."""
        with self._state.engine.snapshot() as snapshot:
            response, batch = self._txn.session(snapshot).run(rule, request)
        if batch is not None:
            self._state.engine.write(batch)
        return response

    def _unsafe_destroy_range(self, request: kvrpcpb.UnsafeDestroyRangeRequest) -> kvrpcpb.UnsafeDestroyRangeResponse:
        response, batch = self._txn.destroy_range(request)
        if batch is not None:
            self._state.engine.write(batch)
        return response

    def _split_region(self, request: kvrpcpb.SplitRegionRequest) -> kvrpcpb.SplitRegionResponse:
        is_plain = request.is_raw_kv and self._state.mode is not ApiMode.V2
        sent = [request.split_key] if request.split_key else request.split_keys
        keys = sorted(key if is_plain else memcomparable.encode(key) for key in sent)
        checked = check_split(self._state.topology, self._store_id, request.context, keys)
        if isinstance(checked, errorpb.Error):
            return kvrpcpb.SplitRegionResponse(region_error=checked)
        pieces = list(map(region_to_pb, self._state.topology.split(keys)))
        response = kvrpcpb.SplitRegionResponse(regions=pieces)
        if len(pieces) == 2:
            response.left.CopyFrom(pieces[0])
            response.right.CopyFrom(pieces[1])
        return response

    def _get_store_safe_ts(self, _request: kvrpcpb.StoreSafeTSRequest) -> kvrpcpb.StoreSafeTSResponse:
        with self._state.engine.snapshot() as snapshot:
            return kvrpcpb.StoreSafeTSResponse(safe_ts=self._txn.resolved_ts(snapshot))

    def _get_health_feedback(self, _request: kvrpcpb.GetHealthFeedbackRequest) -> kvrpcpb.GetHealthFeedbackResponse:
        return kvrpcpb.GetHealthFeedbackResponse(health_feedback=self.feedback.report())

    async def _batch_commands(
        self, requests: AsyncIterator[tikvpb.BatchCommandsRequest], context: ServicerContext
    ) -> None:
        metadata, watch = _metadata(context), self._state.watch
        try:
            target = self._target(metadata)
            self._opened += 1
            origin = StreamOrigin(self._opened, self._proxy_of(target), metadata)
            if not watch.is_idle:
                call = ReceivedCall(target._store_id, OPENING, None, metadata, origin.proxy, origin.number)
                await self._watched(call, _nothing)
        except CallRefusedError as error:
            await context.abort(error.code, error.details)
        opened = BatchStream(self._state.engine, target._stores, target.feedback, watch, origin, context)
        self.streams.add(opened)
        try:
            await opened.serve(requests)
        finally:
            self.streams.discard(opened)

    async def _check(self, request: bytes, context: ServicerContext) -> bytes:
        async def serve() -> bytes:
            return await self.health.check(request, context)

        try:
            call = ReceivedCall(self._store_id, "Check", request, _metadata(context))
            answer: bytes = await self._watched(call, serve)
        except CallRefusedError as error:
            await context.abort(error.code, error.details)
        return answer

    async def _watch(self, request: bytes, context: ServicerContext) -> AsyncIterator[bytes]:
        try:
            await self._watched(ReceivedCall(self._store_id, "Watch", request, _metadata(context)), _nothing)
        except CallRefusedError as error:
            await context.abort(error.code, error.details)
        async for status in self.health.watch(request, context):
            yield status

    def _target(self, metadata: Mapping[str, str | bytes]) -> TikvService:
        """Return the service that answers: this store's, or that of the store the caller wants to reach through it."""
        address = metadata.get(FORWARDED_HOST)
        if not address:
            return self
        target = self._state.find_service(str(address))
        if target is None:
            raise CallRefusedError(grpc.StatusCode.UNAVAILABLE, f"cannot forward to {address!r}")
        return target

    def _proxy_of(self, target: TikvService) -> int | None:
        return None if target is self else self._store_id


def _answer_of(rpc: Rpc[Any, Any]) -> _Answer:
    """Return what serves an RPC by the rule for its requests, or refuses it."""
    if raw_rule := RAW_RULES.get(rpc.request):
        return lambda target, request: target._answer_raw(raw_rule, request)
    if txn_rule := TXN_RULES.get(rpc.request):
        return lambda target, request: target._answer_txn(txn_rule, request)
    return _refusal(rpc)


def _refusal(rpc: Rpc[Any, Any]) -> _Answer:
    def refuse(_target: TikvService, _request: Any) -> Any:
        raise CallRefusedError(grpc.StatusCode.UNIMPLEMENTED, f"{rpc.name} is not served by the embedded cluster")

    return refuse


def _metadata(context: ServicerContext) -> Mapping[str, str | bytes]:
    return dict(context.invocation_metadata() or ())


async def _nothing() -> None:
    """What there is to serve when a stream opens."""
