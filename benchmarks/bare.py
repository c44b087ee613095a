"""What gRPC itself costs: unary calls, and a BatchCommands stream that is filled and drained with no client logic.

The bare pump is the limit that the SDK is measured against: it builds each request and reads each value, and does
nothing else. Requests carry the same Context as the SDK's, in a cluster of one Region.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from measure import Measurement
from tikv_proto import kvrpcpb, tikvpb
from tikv_proto.services import Rpc, Tikv

_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class BareStore:
    """A channel to one store."""

    def __init__(self, address: str, context: kvrpcpb.Context) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._context = context

    def get_request(self, key: bytes) -> kvrpcpb.RawGetRequest:
        """Return the request of a get."""
        return kvrpcpb.RawGetRequest(context=self._context, key=key)

    def put_request(self, key: bytes, value: bytes) -> kvrpcpb.RawPutRequest:
        """Return the request of a put."""
        return kvrpcpb.RawPutRequest(context=self._context, key=key, value=value)

    def unary(self, rpc: Rpc[Any, Any]) -> Callable[[Message], Awaitable[Any]]:
        """Return a callable for one RPC."""
        return self._channel.unary_unary(
            rpc.path, request_serializer=rpc.request.SerializeToString, response_deserializer=rpc.response.FromString
        )

    async def pump(self, window: int, operations: int, fill: Callable[[Any, int], None], field: str) -> Measurement:
        """Keep `window` requests under way on one stream until `operations` are answered.

        Args:
            window: Requests under way.
            operations: How many in all.
            fill: Given an empty BatchCommandsRequest.Request and a number, makes it a command.
            field: The command's field, for reading the answers.
        """
        stream = self._channel.stream_stream(
            Tikv.BatchCommands.path,
            request_serializer=tikvpb.BatchCommandsRequest.SerializeToString,
            response_deserializer=tikvpb.BatchCommandsResponse.FromString,
        )()
        sent = done = 0
        started, cpu_started = time.perf_counter(), time.process_time()
        while done < operations:
            count = min(window - (sent - done), operations - sent, 128)
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
                body = getattr(response, field)
                if body.error or body.HasField("region_error"):
                    raise RuntimeError(f"the pump got {body}")
                done += 1
        measurement = Measurement(operations, time.perf_counter() - started, time.process_time() - cpu_started)
        stream.cancel()
        return measurement

    def get_filler(self, keys: list[bytes]) -> Callable[[Any, int], None]:
        """Return a `fill` for gets."""
        context = self._context

        def fill(request: Any, number: int) -> None:
            get = request.RawGet
            get.context.CopyFrom(context)
            get.key = keys[number % len(keys)]

        return fill

    def put_filler(self, keys: list[bytes], value: bytes) -> Callable[[Any, int], None]:
        """Return a `fill` for puts."""
        context = self._context

        def fill(request: Any, number: int) -> None:
            put = request.RawPut
            put.context.CopyFrom(context)
            put.key = keys[number % len(keys)]
            put.value = value

        return fill

    async def aclose(self) -> None:
        """Close the channel."""
        await self._channel.close()
