"""Interceptors: what sees, changes or answers every attempt at a store, in an order of its own choosing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeAlias

from google.protobuf.message import Message
from tikv_pd import Deadline
from tikv_proto import kvrpcpb
from tikv_proto.services import Rpc
from tikv_region import RegionEntry, StoreEntry

from tikv_rpc.options import RequestOptions
from tikv_rpc.request import Request

Proceed: TypeAlias = Callable[[], Awaitable[Message]]
"""Sends the attempt on, through the interceptors that follow, and returns the response; at most once."""


class Attempt:
    """One attempt of a request, as interceptors see it."""

    __slots__ = ("deadline", "entry", "fields", "operation", "options", "priority", "request", "store")

    def __init__(
        self,
        operation: str,
        request: Request[Any],
        entry: RegionEntry,
        store: StoreEntry,
        options: RequestOptions,
        deadline: Deadline,
    ) -> None:
        self.operation = operation
        """What the user called."""
        self.request = request
        """What is sent, without its Context."""
        self.entry = entry
        """The Region."""
        self.store = store
        """The store it goes to."""
        self.options = options
        """What the caller wants."""
        self.deadline = deadline
        """When the operation must have ended."""
        self.priority = 0
        """Its place in the queue to the store: 10 and more goes first. Source: client-go high priority."""
        self.fields = b""
        """What was patched into its Context, serialized."""

    @property
    def rpc(self) -> Rpc[Any, Any]:
        """Which RPC it is."""
        return self.request.rpc

    @property
    def is_retry(self) -> bool:
        """Whether the request was sent before."""
        return bool(self.request.first)

    def patch(self, context: kvrpcpb.Context) -> None:
        """Add fields to the Context of this attempt, in place of those set before."""
        self.fields += context.SerializeToString()


class Interceptor(Protocol):
    """Runs around every attempt: before it is sent, and after it was answered or failed.

    It may wait, patch the Context, answer in the stores' place by not proceeding, replace the answer, or raise. What
    it raises ends the operation, unless it is the RpcError that proceeding raised: then the attempt has failed.
    """

    @property
    def name(self) -> str:
        """Its name, by which it is replaced."""
        ...

    async def __call__(self, attempt: Attempt, proceed: Proceed) -> Message:
        """Return the response of an attempt, by default `await proceed()`."""
        ...


def chain(interceptors: Iterable[Interceptor]) -> tuple[Interceptor, ...]:
    """Return interceptors in their order, the first outermost; of several with one name the last one stays."""
    chained: dict[str, Interceptor] = {}
    for interceptor in interceptors:
        chained.pop(interceptor.name, None)
        chained[interceptor.name] = interceptor
    return tuple(chained.values())
