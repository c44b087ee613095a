"""One store: its connections, their BatchCommands streams, and unary calls for what cannot be batched.

There are `RpcConfig.connections` of them, each with a stream to the store itself and one to each store it forwards to.
Requests that become runnable in one tick of the loop go out in one message, so they take the same stream, and the next
message takes the next: what is small does not wait behind what is large on all of them. Unary calls go round in turn.
"""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final

import anyio
from google.protobuf.message import DecodeError
from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import BackgroundTasks, Metadata, Resp, Transport, Waiter
from tikv_proto.services import Rpc

from tikv_rpc._reports.stats import BatchStats
from tikv_rpc._stores.batch import BatchClient, OnFeedback
from tikv_rpc._stores.connection import RecycledConnection
from tikv_rpc.config import RpcConfig
from tikv_rpc.request import Request

_FORWARDED_HOST: Final = "tikv-forwarded-host"
"""Metadata by which a store passes a request on to another. Source: TiKV server/service/kv.rs, client-go forwarding."""
_CONN_INDEX: Final = "tikv-batch-conn-index"
"""Metadata that tells streams of one client apart. Source: client-go client_batch.go."""
_LOOKS: Final = 4
"""How often connections are looked at within the time after which they are idle."""


class _Lane:
    """One connection and its streams."""

    def __init__(self, connection: RecycledConnection, batch: BatchClient) -> None:
        self.connection = connection
        self.batch = batch
        self.forwarded: dict[str, BatchClient] = {}
        self._seen = -1
        self._idle_since = 0.0

    def batches(self) -> list[BatchClient]:
        return [self.batch, *self.forwarded.values()]

    def idle_seconds(self, now: float) -> float:
        """Return for how long nothing has happened, as far as these looks tell."""
        batches = self.batches()
        connection = self.connection
        activity = connection.connects + connection.unary_calls + sum(batch.activity for batch in batches)
        if activity != self._seen or connection.is_busy or any(batch.is_busy for batch in batches):
            self._seen, self._idle_since = activity, now
        return now - self._idle_since

    async def recycle(self) -> None:
        """Close the connection; whatever is called meanwhile makes another."""
        retired = self.connection.detach()
        ended = [batch.rest() for batch in self.batches()]
        with anyio.CancelScope(shield=True):
            for event in ended:
                await event.wait()
            if retired is not None:
                await retired.aclose()


class StoreClient:
    """The way to one store address.

    Args:
        transport: Makes the connections.
        address: Where the store listens.
        config: Limits.
        tasks: Where the task lives that serves the streams and closes the connections in the end.
        on_feedback: Told what the store says of its health: store id, number of the message, slow score.
    """

    def __init__(
        self,
        transport: Transport,
        address: str,
        config: RpcConfig,
        tasks: BackgroundTasks,
        on_feedback: OnFeedback | None = None,
    ) -> None:
        self.closed = False
        """Whether it is closed, or its task ended; then it is replaced, never used again."""
        self._transport = transport
        self._waiter = transport.waiters()
        self._config = config
        self._on_feedback = on_feedback
        self._news: Waiter[None] | None = None
        self._unserved: list[BatchClient] = []
        self._lanes = [self._lane(address, number) for number in range(config.connections)]
        self._turn = self._unary_turn = 0
        self._batch = self._lanes[0].batch
        self._scope = anyio.CancelScope()
        tasks.start_soon(self._run)

    @property
    def address(self) -> str:
        """Where it leads."""
        return self._lanes[0].connection.address

    def call(
        self,
        request: Request[Resp],
        context: bytes,
        deadline: float,
        timeout: float,
        priority: int = 0,
        forward: str = "",
    ) -> Coroutine[Any, Any, Resp]:
        """Send a request with a Context and return its response, once awaited.

        A plain function, as a coroutine of its own would cost each request 5 % more.

        Args:
            request: What to send.
            context: Its Context, as bytes.
            deadline: When to give up, on the transport's clock.
            timeout: The seconds until then.
            priority: The higher, the earlier it is sent; from 10 on also beyond `RpcConfig.max_in_flight`.
            forward: Address of the store that this one is to pass it on to; empty for itself.

        Raises:
            RpcError: see `BatchClient.call`.
        """
        batch_field = request.rpc.batch_field
        if batch_field is None:
            lane = self._lanes[self._unary_turn]
            self._unary_turn = (self._unary_turn + 1) % len(self._lanes)
            return self._unary(lane.connection, forward, request.rpc, context + request.payload, deadline)
        batch = self._forwarded(forward) if forward else self._batch
        return batch.call(batch_field, context, request.payload, deadline, timeout, priority)

    def batched(
        self, batch_field: str, context: bytes, payload: bytes, deadline: float, timeout: float
    ) -> Coroutine[Any, Any, Any]:
        """Send a request by BatchCommands and return its response, once awaited; see `BatchClient.call`."""
        return self._batch.call(batch_field, context, payload, deadline, timeout)

    def stats(self) -> BatchStats:
        """Return the counters of all its connections together."""
        return BatchStats.total(
            [batch.stats() for lane in self._lanes for batch in lane.batches()]
            + [
                BatchStats.of_unary(lane.connection.unary_calls, in_flight=lane.connection.unary_under_way)
                for lane in self._lanes
            ]
        )

    def close(self) -> None:
        """Have the connections closed; calls under way fail with RpcError."""
        self.closed = True
        self._scope.cancel()

    def _lane(self, address: str, number: int) -> _Lane:
        connection = RecycledConnection(partial(self._transport.connect, address, channel=number), self._look_again)
        return _Lane(connection, self._stream(connection, number, ""))

    def _stream(self, connection: RecycledConnection, number: int, forward: str) -> BatchClient:
        batch = BatchClient(
            self._transport,
            connection,
            self._config,
            metadata=((_CONN_INDEX, str(number)), *_forwarding(forward)),
            unary=partial(self._unary, connection, forward),
            on_feedback=self._on_feedback,
            on_message=None if forward or self._config.connections == 1 else self._take_turns,
        )
        self._unserved.append(batch)
        return batch

    def _forwarded(self, forward: str) -> BatchClient:
        """Return the stream for another store: of the lane that has the turn, as the direct ones."""
        lane = self._lanes[self._turn]
        batch = lane.forwarded.get(forward)
        if batch is None:
            batch = lane.forwarded[forward] = self._stream(lane.connection, self._turn, forward)
            self._look_again()
        return batch

    def _take_turns(self) -> None:
        """Have the next message go out on the next connection that works."""
        count = len(self._lanes)
        turns = [(self._turn + step) % count for step in range(1, count + 1)]
        self._turn = next((turn for turn in turns if not self._lanes[turn].batch.is_down), turns[0])
        self._batch = self._lanes[self._turn].batch

    async def _unary(
        self, connection: RecycledConnection, forward: str, rpc: Rpc[Any, Any], request: bytes, deadline: float
    ) -> Any:
        now = self._transport.now
        # gRPC does not tell a request that found no connection from one that was lost on its way.
        await connection.ready(timeout=min(self._config.connect_timeout, deadline - now()))
        response = None
        with suppress(DecodeError):
            response = await connection.unary(
                rpc, request, timeout=max(deadline - now(), 0.0), metadata=_forwarding(forward)
            )
        # grpc.aio returns None for what it cannot parse.
        if response is None:
            raise RpcError(connection.address, rpc.name, "INTERNAL", "the answer cannot be read")
        return response

    def _look_again(self) -> None:
        """Wake the task: there is a stream to serve, or a connection to look after."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _run(self) -> None:
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    while True:
                        while self._unserved:
                            tasks.start_soon(self._unserved.pop().run)
                        await self._recycle()
                        await self._pause()
        finally:
            self.closed = True
            with anyio.CancelScope(shield=True):
                for lane in self._lanes:
                    await lane.connection.aclose()

    async def _recycle(self) -> None:
        """Close what nobody uses."""
        for lane in self._lanes:
            if lane.connection.is_made and lane.idle_seconds(self._transport.now()) >= self._config.idle_timeout:
                await lane.recycle()

    async def _pause(self) -> None:
        """Wait until there is something to do; while no connection is made, nothing becomes idle."""
        is_made = any(lane.connection.is_made for lane in self._lanes)
        if not self._unserved:
            self._news = self._waiter()
            with anyio.move_on_after(self._config.idle_timeout / _LOOKS if is_made else None):
                await self._news
            self._news = None


def _forwarding(forward: str) -> Metadata:
    return ((_FORWARDED_HOST, forward),) if forward else ()
