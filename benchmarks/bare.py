"""What gRPC itself costs: unary calls, and a BatchCommands stream without a client around it.

There are two yardsticks on the stream. The bare pump is a loop that fills and drains it: no task and no future for a
request, a new request whenever an answer is there. The pump of tasks is what any client needs whose callers are tasks:
each task puts a request into a queue and awaits a future of its own, one task sends what is queued, another wakes the
callers; it knows no Regions, deadlines, retries or limits. Both make messages of up to 128 requests, fill in each as a
protobuf message in place, with the same Context as the SDK's, look at each answer, and check for errors.

The plain pump of tasks is no yardstick, but shows what care for messages saves: it makes each request and its Context
by constructors, as one writes them down, and sends whatever is queued in one message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from measure import Measurement, Meter
from tasks import in_tasks
from tikv_proto import kvrpcpb, metapb, tikvpb
from tikv_proto.services import Rpc, Tikv

_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_MOST = 128
"""Requests in one message, as the SDK has it. Without a limit 256 tasks go in step with the server, a third slower."""

Fill = Callable[[Any, int], None]
"""Given an empty BatchCommandsRequest.Request and a number, makes it a command."""
Batch = Callable[[list[int]], tikvpb.BatchCommandsRequest]
"""Takes numbers out of the queue and returns a message of as many commands."""


class BareStore:
    """A channel to one store.

    Args:
        address: The store's.
        context: Of every request.
        server: The store's process id.
    """

    def __init__(self, address: str, context: kvrpcpb.Context, server: int) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._context = context
        self._server = server

    async def aclose(self) -> None:
        """Close the channel."""
        await self._channel.close()

    def get_request(self, key: bytes) -> kvrpcpb.RawGetRequest:
        """Return the request of a get."""
        return kvrpcpb.RawGetRequest(context=self._context, key=key)

    def unary(self, rpc: Rpc[Any, Any]) -> Callable[[Message], Awaitable[Any]]:
        """Return a callable for one RPC."""
        return self._channel.unary_unary(
            rpc.path, request_serializer=rpc.request.SerializeToString, response_deserializer=rpc.response.FromString
        )

    async def pump(self, window: int, operations: int, fill: Fill, field: str) -> Measurement:
        """Keep `window` requests under way on one stream until `operations` are answered.

        Args:
            window: Requests under way.
            operations: How many in all.
            fill: Makes requests.
            field: The command's field, for reading the answers.
        """
        stream = self._stream()
        sent = done = 0
        meter = Meter(self._server)
        while done < operations:
            count = min(window - (sent - done), operations - sent, _MOST)
            if count:
                message = tikvpb.BatchCommandsRequest(request_ids=range(sent, sent + count))
                for number in range(sent, sent + count):
                    fill(message.requests.add(), number)
                await stream.write(message)
                sent += count
                if sent - done < window and sent < operations:
                    continue
            answer: Any = await stream.read()
            for response in answer.responses:
                _check(getattr(response, field))
                done += 1
        measurement = meter.read(operations)
        stream.cancel()
        return measurement

    async def pump_of_tasks(self, tasks: int, operations: int, batch: Batch, field: str) -> Measurement:
        """Let so many tasks send one request after another on one stream, each awaiting a future for each request.

        Args:
            tasks: How many.
            operations: How many requests in all.
            batch: Makes messages of what is queued.
            field: The command's field, for reading the answers.
        """
        stream = self._stream()
        loop = asyncio.get_running_loop()
        queued: list[int] = []
        waiting: dict[int, asyncio.Future[Any]] = {}
        idle: asyncio.Future[None] | None = None

        async def operate(number: int) -> None:
            nonlocal idle
            waiting[number] = future = loop.create_future()
            queued.append(number)
            if idle is not None:
                idle.set_result(None)
                idle = None
            _check(await future)

        async def send() -> None:
            nonlocal idle
            while True:
                if not queued:
                    idle = loop.create_future()
                    await idle
                await stream.write(batch(queued))

        async def receive() -> None:
            while True:
                answer: Any = await stream.read()
                for number, response in zip(answer.request_ids, answer.responses, strict=True):
                    waiting.pop(number).set_result(getattr(response, field))

        loops = [asyncio.create_task(send()), asyncio.create_task(receive())]
        try:
            return await in_tasks(self._server, tasks, operations, operate)
        finally:
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            stream.cancel()

    def get_filler(self, keys: list[bytes]) -> Fill:
        """Return a `fill` for gets."""
        context = self._context

        def fill(request: Any, number: int) -> None:
            get = request.RawGet
            get.context.CopyFrom(context)
            get.key = keys[number % len(keys)]

        return fill

    def put_filler(self, keys: list[bytes], value: bytes) -> Fill:
        """Return a `fill` for puts."""
        context = self._context

        def fill(request: Any, number: int) -> None:
            put = request.RawPut
            put.context.CopyFrom(context)
            put.key = keys[number % len(keys)]
            put.value = value

        return fill

    def plain_gets(self, keys: list[bytes]) -> Batch:
        """Return what makes messages of gets, each written down as one would."""
        own = self._context
        epoch, peer = own.region_epoch, own.peer

        def get(number: int) -> tikvpb.BatchCommandsRequest.Request:
            context = kvrpcpb.Context(
                region_id=own.region_id,
                region_epoch=metapb.RegionEpoch(conf_ver=epoch.conf_ver, version=epoch.version),
                peer=metapb.Peer(id=peer.id, store_id=peer.store_id),
                cluster_id=own.cluster_id,
            )
            request = kvrpcpb.RawGetRequest(context=context, key=keys[number % len(keys)])
            return tikvpb.BatchCommandsRequest.Request(RawGet=request)

        def batch(queued: list[int]) -> tikvpb.BatchCommandsRequest:
            message = tikvpb.BatchCommandsRequest(request_ids=queued, requests=map(get, queued))
            queued.clear()
            return message

        return batch

    def _stream(self) -> Any:
        """Open a BatchCommands stream."""
        return self._channel.stream_stream(
            Tikv.BatchCommands.path,
            request_serializer=tikvpb.BatchCommandsRequest.SerializeToString,
            response_deserializer=tikvpb.BatchCommandsResponse.FromString,
        )()


def in_place(fill: Fill) -> Batch:
    """Return what makes messages of up to 128 commands, each filled in where it is."""

    def batch(queued: list[int]) -> tikvpb.BatchCommandsRequest:
        taken = queued[:_MOST]
        del queued[:_MOST]
        message = tikvpb.BatchCommandsRequest(request_ids=taken)
        for number in taken:
            fill(message.requests.add(), number)
        return message

    return batch


def _check(body: Any) -> None:
    if body.error or body.HasField("region_error"):
        raise RuntimeError(f"the server answered {body}")
