"""The calls that stores receive, as values: what faults choose by, and what a recording keeps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import attrs
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv, all_rpcs

OPENING = Tikv.BatchCommands.name
"""Name of the call that opens a BatchCommands stream; the requests on it are calls of their own."""
HEALTH_CALLS = frozenset(("Check", "Watch"))
"""Methods of the health service."""
EMPTY = "Empty"
"""Name of the request that does nothing; it exists on BatchCommands streams alone."""

BATCHED_NAMES: dict[str, str] = {rpc.batch_field: rpc.name for rpc in all_rpcs() if rpc.batch_field} | {EMPTY: EMPTY}
"""Field of a BatchCommands request → name of the call that it stands for."""

_NO_CONTEXT = kvrpcpb.Context()


@attrs.frozen
class ReceivedCall:
    """One request that a store received, by itself or on a BatchCommands stream."""

    store_id: int
    """The store that serves it."""
    rpc: str
    """Method name, such as `RawGet`, the same for a batched request; `Empty`; `BatchCommands` for a stream that opens;
    `Check` and `Watch` for the health service."""
    request: Any
    """The message as it arrived (the health service's as bytes, None for a stream that opens); not to be changed."""
    metadata: Mapping[str, str | bytes]
    """What came with the call, or with the opening of its stream."""
    proxy: int | None = None
    """The store that the call was sent to, when that passed it on to this one."""
    stream: int = 0
    """Which BatchCommands stream of the store it was sent to, counted from 1; 0 for a call by itself."""
    message: int = 0
    """Which message of that stream, counted from 1: requests of one message travelled together."""
    received: float = attrs.field(factory=time.monotonic)
    """`time.monotonic()` at its arrival."""

    @property
    def context(self) -> kvrpcpb.Context:
        """The Context of the request; empty for requests without one."""
        context = getattr(self.request, "context", _NO_CONTEXT)
        return context if isinstance(context, kvrpcpb.Context) else _NO_CONTEXT

    @property
    def is_batched(self) -> bool:
        """Whether it came on a BatchCommands stream."""
        return bool(self.stream)


class Recording:
    """The calls that stores receive, kept in order of arrival until `stop`; also a context manager that stops.

    Attributes:
        calls: What was received so far.
    """

    def __init__(self, stop: Callable[[Recording], None]) -> None:
        self.calls: list[ReceivedCall] = []
        self._stop = stop

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def of(self, *rpcs: str, store: int | None = None) -> list[ReceivedCall]:
        """Return the calls of these RPCs (of all, when none is named) that `store` (any, when None) served."""
        return [call for call in self.calls if (not rpcs or call.rpc in rpcs) and store in (None, call.store_id)]

    def stop(self) -> None:
        """Keep what was recorded, and record no more; harmless when stopped."""
        with contextlib.suppress(ValueError):
            self._stop(self)
