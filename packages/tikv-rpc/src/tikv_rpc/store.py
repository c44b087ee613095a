"""One store: its connection, its BatchCommands stream, and unary calls for what cannot be batched."""

from __future__ import annotations

from typing import Any, cast

import anyio
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
        tasks: Where the stream's task runs; it ends with `aclose`.
    """

    def __init__(self, transport: Transport, address: str, config: RpcConfig, tasks: BackgroundTasks) -> None:
        self.closed = False
        """Whether `aclose` was called; a closed one is replaced, never used again."""
        self._transport = transport
        self._connection = transport.connect(address)
        self._batch = BatchClient(transport, self._connection, config)
        self._scope = anyio.CancelScope()
        tasks.start_soon(self._run)

    @property
    def address(self) -> str:
        """Where it leads."""
        return self._connection.address

    async def call(self, request: Request[Resp], context: bytes, deadline: float) -> Resp:
        """Send a request with a Context and return its response.

        Raises:
            RpcError: see `BatchClient.call`.
        """
        batch_field = request.rpc.batch_field
        if batch_field is not None:
            return cast(Resp, await self._batch.call(batch_field, context, request.payload, deadline))
        timeout = max(deadline - self._transport.now(), 0.0)
        return await self._connection.unary(request.rpc, context + request.payload, timeout=timeout)

    def stats(self) -> BatchStats:
        """Return the counters of its stream."""
        return self._batch.stats()

    async def aclose(self) -> None:
        """Close the connection; calls under way fail with RpcError."""
        self.closed = True
        self._scope.cancel()
        await self._connection.aclose()

    async def _run(self) -> Any:
        with self._scope:
            await self._batch.run()
