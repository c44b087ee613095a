"""The stream on which clients get tokens: one request under way, the next one when it was answered.

Whoever asks sends and receives in its own task, in the order of coming, so that there is nobody to lose a waiter: each
gets the answer to its own request, or its own failure. A stream that failed, or was left in the middle of a request, is
dropped, and the next request opens another.
"""

from __future__ import annotations

import math
from typing import Any, Final

import anyio
from tikv_proto import resource_manager as rmpb, services

from tikv_pd._routing.calls import Calls
from tikv_pd._routing.pursuit import Pursuit
from tikv_pd.backoff import Backoffer
from tikv_pd.deadline import Deadline
from tikv_pd.errors import DeadlineExceeded, PdError, RpcError
from tikv_pd.lowlevel import Stream

_RPC: Final = services.ResourceManager.AcquireTokenBuckets


class TokenStream:
    """The stream; made when first used.

    Args:
        calls: Who grants them, the clock, how patient to be.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._turn = anyio.Lock()
        self._stream: Stream[Any, Any] | None = None
        self._address = ""

    async def ask(self, request: rmpb.TokenBucketsRequest, deadline: Deadline) -> rmpb.TokenBucketsResponse:
        """Return the answer to a request."""
        await self._calls.ready(_RPC, deadline)
        pursuit = Pursuit(self._calls.route(_RPC), Backoffer(deadline, budget=math.inf))
        with anyio.move_on_after(deadline.check()):
            async with self._turn:
                while True:
                    try:
                        return await self._exchange(request, min(self._calls.config.timeout, deadline.remaining()))
                    except RpcError as error:
                        with self._calls.members.while_open():
                            await pursuit.recover(self._address, error)
        raise DeadlineExceeded(deadline.operation, deadline.timeout) from pursuit.failure

    async def _exchange(self, request: rmpb.TokenBucketsRequest, limit: float) -> rmpb.TokenBucketsResponse:
        route = self._calls.route(_RPC)
        if self._address != route.leader:
            self._drop()
        is_answered = False
        try:
            stream = self._stream
            if stream is None:
                self._address = route.leader
                self._stream = stream = route.connection(self._address).stream(_RPC)
            with anyio.move_on_after(limit):
                await stream.send(request)
                answer: rmpb.TokenBucketsResponse = await stream.receive()
                is_answered = True
        finally:
            if not is_answered:
                self._drop()
        if not is_answered:
            raise RpcError(self._address, _RPC.name, "DEADLINE_EXCEEDED", f"no answer within {limit:g} s")
        if answer.HasField("error"):
            raise PdError(_RPC.name, "UNKNOWN", answer.error.message)
        return answer

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()
