"""One store: its connection, its BatchCommands stream, and unary calls for what cannot be batched."""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import anyio
from google.protobuf.message import DecodeError
from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import BackgroundTasks, Resp, Transport

from tikv_rpc.batch import BatchClient, BatchStats
from tikv_rpc.config import RpcConfig
from tikv_rpc.request import Request


class StoreClient:
    """The way to one store address.

    Args:
        transport: Makes the connection.
        address: Where the store listens.
        config: Limits.
        tasks: Where the task lives that serves the stream and closes the connection in the end.
    """

    def __init__(self, transport: Transport, address: str, config: RpcConfig, tasks: BackgroundTasks) -> None:
        self.closed = False
        """Whether it is closed, or its task ended; then it is replaced, never used again."""
        self._transport = transport
        self._connection = transport.connect(address)
        self._connect_timeout = config.connect_timeout
        self._batch = BatchClient(transport, self._connection, config)
        self._scope = anyio.CancelScope()
        tasks.start_soon(self._run)

    @property
    def address(self) -> str:
        """Where it leads."""
        return self._connection.address

    def call(
        self, request: Request[Resp], context: bytes, deadline: float, timeout: float
    ) -> Coroutine[Any, Any, Resp]:
        """Send a request with a Context and return its response, once awaited.

        A plain function, as a coroutine of its own would cost each request 5 % more.

        Args:
            request: What to send.
            context: Its Context, as bytes.
            deadline: When to give up, on the transport's clock.
            timeout: The seconds until then.

        Raises:
            RpcError: see `BatchClient.call`.
        """
        batch_field = request.rpc.batch_field
        if batch_field is not None:
            return self._batch.call(batch_field, context, request.payload, deadline, timeout)
        return self._unary(request, context, deadline)

    def stats(self) -> BatchStats:
        """Return the counters of its stream."""
        return self._batch.stats()

    def close(self) -> None:
        """Have the connection closed; calls under way fail with RpcError."""
        self.closed = True
        self._scope.cancel()

    async def _unary(self, request: Request[Resp], context: bytes, deadline: float) -> Resp:
        connection, now = self._connection, self._transport.now
        # gRPC does not tell a request that found no connection from one that was lost on its way.
        await connection.ready(timeout=min(self._connect_timeout, deadline - now()))
        response = None
        with suppress(DecodeError):
            response = await connection.unary(
                request.rpc, context + request.payload, timeout=max(deadline - now(), 0.0)
            )
        # grpc.aio returns None for what it cannot parse.
        if response is None:
            raise RpcError(connection.address, request.rpc.name, "INTERNAL", "the answer cannot be read")
        return response

    async def _run(self) -> None:
        try:
            with self._scope:
                await self._batch.run()
        finally:
            self.closed = True
            with anyio.CancelScope(shield=True):
                await self._connection.aclose()
