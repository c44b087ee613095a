"""One BatchCommands stream: messages in turn; what is delayed or struck by a fault beside them.

Source: TiKV server/service/kv.rs batch_commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import attrs
import grpc
import grpc.aio
from tikv_proto import tikvpb

from tikv_embedded.engine import Engine
from tikv_embedded.rpc_handlers import ServicerContext
from tikv_embedded.store.batch_commands import BatchAnswers, RequestStores, answer_message
from tikv_embedded.store.calls import BATCHED_NAMES, ReceivedCall
from tikv_embedded.store.faults import CallLostError, CallRefusedError, CallWatch, StoreFault, suffer
from tikv_embedded.store.health_feedback import INTERVAL, CpuLoad, HealthReporter
from tikv_embedded.store.raw_requests import ClusterIdMismatchError

_NOBODYS_ID = (1 << 64) - 1
"""A request id that no client uses: they count from 1."""


@attrs.frozen
class StreamOrigin:
    """Where a stream came from."""

    number: int
    """Which stream of the store that it was sent to, from 1."""
    proxy: int | None
    """That store, when another one serves it."""
    metadata: Mapping[str, str | bytes]


class BatchStream:
    """Serves one stream.

    Args:
        engine: Written to once for a message.
        stores: Serve the requests.
        health: Reports on the stream.
        watch: Looks at each request.
        origin: Where the stream came from.
        context: Of the call.
    """

    def __init__(
        self,
        engine: Engine,
        stores: RequestStores,
        health: HealthReporter,
        watch: CallWatch,
        origin: StreamOrigin,
        context: ServicerContext,
    ) -> None:
        self._engine = engine
        self._stores = stores
        self._health = health
        self._watch = watch
        self._origin = origin
        self._context = context
        # gRPC takes one outgoing message of a stream at a time.
        self._sending = asyncio.Lock()
        self._messages = 0
        self._reported = 0.0
        self._changes = health.changes
        self._load = CpuLoad()
        self._task: asyncio.Task[Any] | None = None
        self._ending: tuple[grpc.StatusCode, str] | None = None

    async def serve(self, requests: AsyncIterator[tikvpb.BatchCommandsRequest]) -> None:
        """Answer until the client is done, names another cluster, or `end` is called."""
        self._task = task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.TaskGroup() as beside:
                async for message in requests:
                    self._messages += 1
                    await self._answer(message, beside)
        except asyncio.CancelledError:
            if self._ending is None:
                raise
            task.uncancel()
        if self._ending is not None and self._ending[0] is not grpc.StatusCode.OK:
            await self._context.abort(*self._ending)

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """End the stream with that status; what is outstanding on it is never answered."""
        if self._ending is None and self._task is not None:
            self._ending = code, details
            # The status cannot be sent while a message is on its way, and a cancelled one stays on its way.
            if not self._sending.locked():
                self._task.cancel()

    async def _answer(self, message: tikvpb.BatchCommandsRequest, beside: asyncio.TaskGroup) -> None:
        if not self._watch.is_idle:
            message = self._set_struck_aside(message, beside)
        try:
            answers = answer_message(message, self._engine, self._stores, self._health)
        except ClusterIdMismatchError as error:
            self.end(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            return
        for request_id, empty in answers.delayed:
            beside.create_task(self._answer_later(request_id, empty))
        for group in answers.groups:
            await self._send(group, wants_feedback=answers.has_feedback)

    def _set_struck_aside(
        self, message: tikvpb.BatchCommandsRequest, beside: asyncio.TaskGroup
    ) -> tikvpb.BatchCommandsRequest:
        """Let the requests that a fault strikes go their own ways, and return the rest of the message."""
        rest = tikvpb.BatchCommandsRequest()
        for request_id, request in zip(message.request_ids, message.requests, strict=False):
            field = request.WhichOneof("cmd")
            fault = None
            if field is not None:
                call = ReceivedCall(
                    store_id=self._stores.raw.store_id,
                    rpc=BATCHED_NAMES[field],
                    request=getattr(request, field),
                    metadata=self._origin.metadata,
                    proxy=self._origin.proxy,
                    stream=self._origin.number,
                    message=self._messages,
                )
                fault = self._watch.receive(call)
            if fault is None:
                rest.request_ids.append(request_id)
                rest.requests.append(request)
            else:
                beside.create_task(self._answer_struck(fault, call, request_id, request))
        return rest

    async def _answer_struck(
        self, fault: StoreFault, call: ReceivedCall, request_id: int, request: tikvpb.BatchCommandsRequest.Request
    ) -> None:
        field = request.WhichOneof("cmd")
        assert field is not None
        answers = BatchAnswers()

        async def serve() -> Any:
            nonlocal answers
            message = tikvpb.BatchCommandsRequest(request_ids=[request_id], requests=[request])
            answers = answer_message(message, self._engine, self._stores, self._health)
            for _, empty in answers.delayed:
                await _delay(empty)
                answers.add(request_id).Empty.test_id = empty.test_id
            return getattr(answers.groups[0].responses[0], field)

        try:
            response = await suffer(fault, call, serve)
        except CallLostError:
            return
        except CallRefusedError as error:
            self.end(error.code, error.details)
            return
        except ClusterIdMismatchError as error:
            self.end(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            return
        effect, group = fault.effect, tikvpb.BatchCommandsResponse()
        for _ in range(effect.copies):
            group.request_ids.append(_NOBODYS_ID if effect.misses_caller else request_id)
            answer = group.responses.add()
            if not effect.loses_command:
                getattr(answer, field).CopyFrom(response)
        await self._send(group, wants_feedback=answers.has_feedback)

    async def _answer_later(self, request_id: int, empty: tikvpb.BatchCommandsEmptyRequest) -> None:
        await _delay(empty)
        group = tikvpb.BatchCommandsResponse(request_ids=[request_id])
        group.responses.add().Empty.test_id = empty.test_id
        await self._send(group, wants_feedback=False)

    async def _send(self, group: tikvpb.BatchCommandsResponse, *, wants_feedback: bool) -> None:
        now, health = time.monotonic(), self._health
        if wants_feedback or now - self._reported >= INTERVAL or self._changes != health.changes:
            self._reported, self._changes = now, health.changes
            self._load.refresh(now)
            group.health_feedback.CopyFrom(health.report())
        group.transport_layer_load = self._load.percent if health.load_percent is None else health.load_percent
        group.tikv_send_time_ns = time.time_ns()
        async with self._sending:
            if self._is_ending():
                return
            # A client that is gone needs no answer; gRPC ends this stream's task when it has noticed.
            with contextlib.suppress(grpc.aio.BaseError):
                await self._context.write(group)
        if self._is_ending() and self._task is not None:
            self._task.cancel()

    def _is_ending(self) -> bool:
        return self._ending is not None


async def _delay(empty: tikvpb.BatchCommandsEmptyRequest) -> None:
    await asyncio.sleep(empty.delay_time / 1000)
