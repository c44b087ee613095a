"""The TiKV service of one store: unary raw requests, BatchCommands, SplitRegion and a store's own state.

Every other RPC of the service is UNIMPLEMENTED.
Source: TiKV server/service/kv.rs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import grpc
import grpc.aio
from tikv_proto import errorpb, kvrpcpb, tikvpb
from tikv_proto.services import Rpc, Tikv, all_rpcs

from tikv_embedded import memcomparable
from tikv_embedded.engine import Engine
from tikv_embedded.pd.tso import TimestampOracle
from tikv_embedded.region import region_to_pb
from tikv_embedded.rpc_handlers import Handler, ServicerContext, stream, unary
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.store.batch_commands import answer_message
from tikv_embedded.store.health_feedback import INTERVAL, CpuLoad, HealthReporter
from tikv_embedded.store.raw_requests import RAW_RULES, ClusterIdMismatchError, RawStore
from tikv_embedded.store.region_checks import check_split
from tikv_embedded.topology import Topology

FORWARDED_HOST = "tikv-forwarded-host"
"""Request metadata: the address of the store to which this one shall pass the call on."""


@attrs.frozen
class TikvState:
    """What the stores of one cluster share."""

    mode: ApiMode
    topology: Topology
    engine: Engine
    oracle: TimestampOracle
    find_service: Callable[[str], TikvService | None]
    """Finds the service of the running store with an address, None when there is none."""


class TikvService:
    """Handlers of one store.

    Args:
        state: Shared with the other stores.
        store_id: Which of them this is.
    """

    def __init__(self, state: TikvState, store_id: int) -> None:
        self._state = state
        self._store_id = store_id
        self._raw = RawStore(state.topology, state.mode, state.oracle.next_ts, store_id)
        self._health = HealthReporter(store_id)

    def handlers(self) -> list[Handler]:
        """Return what this store answers."""
        return [
            *(self._raw_handler(rpc) for rpc in all_rpcs() if rpc.request in RAW_RULES),
            unary(Tikv.SplitRegion, self._split_region),
            unary(Tikv.GetStoreSafeTS, self._get_store_safe_ts),
            unary(Tikv.GetHealthFeedback, self._get_health_feedback),
            stream(Tikv.BatchCommands, self._batch_commands),
        ]

    def _raw_handler(self, rpc: Rpc[Any, Any]) -> Handler:
        rule = RAW_RULES[rpc.request]

        async def handle(request: Any, context: ServicerContext) -> Any:
            target = await self._target(context)
            with self._state.engine.snapshot() as snapshot:
                try:
                    response, batch = target._raw.session(snapshot).run(rule, request)
                except ClusterIdMismatchError as error:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            if batch is not None:
                self._state.engine.write(batch)
            return response

        return unary(rpc, handle)

    async def _split_region(
        self, request: kvrpcpb.SplitRegionRequest, context: ServicerContext
    ) -> kvrpcpb.SplitRegionResponse:
        target = await self._target(context)
        is_plain = request.is_raw_kv and self._state.mode is not ApiMode.V2
        sent = [request.split_key] if request.split_key else request.split_keys
        keys = sorted(key if is_plain else memcomparable.encode(key) for key in sent)
        checked = check_split(self._state.topology, target._store_id, request.context, keys)
        if isinstance(checked, errorpb.Error):
            return kvrpcpb.SplitRegionResponse(region_error=checked)
        pieces = list(map(region_to_pb, self._state.topology.split(keys)))
        response = kvrpcpb.SplitRegionResponse(regions=pieces)
        if len(pieces) == 2:
            response.left.CopyFrom(pieces[0])
            response.right.CopyFrom(pieces[1])
        return response

    async def _get_store_safe_ts(
        self, _request: kvrpcpb.StoreSafeTSRequest, context: ServicerContext
    ) -> kvrpcpb.StoreSafeTSResponse:
        """Replicas never lag and nothing is locked, so all that was written up to now can be read everywhere."""
        await self._target(context)
        return kvrpcpb.StoreSafeTSResponse(safe_ts=self._state.oracle.next_ts())

    async def _get_health_feedback(
        self, _request: kvrpcpb.GetHealthFeedbackRequest, context: ServicerContext
    ) -> kvrpcpb.GetHealthFeedbackResponse:
        target = await self._target(context)
        return kvrpcpb.GetHealthFeedbackResponse(health_feedback=target._health.report())

    async def _batch_commands(
        self, requests: AsyncIterator[tikvpb.BatchCommandsRequest], context: ServicerContext
    ) -> None:
        target = await self._target(context)
        await _BatchStream(target._state.engine, target._raw, target._health, context).serve(requests)

    async def _target(self, context: ServicerContext) -> TikvService:
        """Return the service that answers: this store's, or that of the store the caller wants to reach through it."""
        metadata = dict(context.invocation_metadata() or ())
        address = metadata.get(FORWARDED_HOST)
        if not address:
            return self
        target = self._state.find_service(str(address))
        if target is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"cannot forward to {address!r}")
        return target


class _BatchStream:
    """One BatchCommands stream: messages in turn, delayed answers beside them."""

    def __init__(self, engine: Engine, raw: RawStore, health: HealthReporter, context: ServicerContext) -> None:
        self._engine = engine
        self._raw = raw
        self._health = health
        self._context = context
        # gRPC takes one outgoing message of a stream at a time.
        self._sending = asyncio.Lock()
        self._reported = 0.0
        self._load = CpuLoad()

    async def serve(self, requests: AsyncIterator[tikvpb.BatchCommandsRequest]) -> None:
        """Answer until the client is done, or names another cluster."""
        refusal: ClusterIdMismatchError | None = None
        async with asyncio.TaskGroup() as delayed:
            tasks: set[asyncio.Task[None]] = set()
            async for message in requests:
                try:
                    answers = answer_message(message, self._engine, self._raw, self._health)
                except ClusterIdMismatchError as error:
                    refusal = error
                    break
                for request_id, empty in answers.delayed:
                    task = delayed.create_task(self._answer_later(request_id, empty))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                for group in answers.groups:
                    await self._send(group, wants_feedback=answers.has_feedback)
            if refusal is not None:
                for task in tasks:
                    task.cancel()
        if refusal is not None:
            await self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(refusal))

    async def _answer_later(self, request_id: int, empty: tikvpb.BatchCommandsEmptyRequest) -> None:
        await asyncio.sleep(empty.delay_time / 1000)
        group = tikvpb.BatchCommandsResponse(request_ids=[request_id])
        group.responses.add().Empty.test_id = empty.test_id
        await self._send(group, wants_feedback=False)

    async def _send(self, group: tikvpb.BatchCommandsResponse, *, wants_feedback: bool) -> None:
        now = time.monotonic()
        if wants_feedback or now - self._reported >= INTERVAL:
            self._reported = now
            self._load.refresh(now)
            group.health_feedback.CopyFrom(self._health.report())
        group.transport_layer_load = self._load.percent
        group.tikv_send_time_ns = time.time_ns()
        # A client that is gone needs no answer; gRPC ends this stream's task when it has noticed.
        with contextlib.suppress(grpc.aio.BaseError):
            async with self._sending:
                await self._context.write(group)
