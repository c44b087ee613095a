"""What callers pass to be called: it runs in their thread, and what it raises comes out as it is.

An error of a callback says nothing about any request, whatever its class: on its way through plans, which look for
failures of requests, it travels in an exception that none of them knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar

import attrs
from tikv_pd.lowlevel import Resp
from tikv_proto.services import Rpc
from tikv_region import RegionEntry
from tikv_rpc import Call, Effect, Plan, RegionPlan, Request
from tikv_rpc.frontend.callers import in_callers_thread

Result = TypeVar("Result")
T = TypeVar("T")
Work = TypeVar("Work")

Progress: TypeAlias = Callable[[int], object]
"""Is told how much of a call is done by now."""


class CallbackError(Exception):
    """Carries what a callback raised."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


async def called(callback: Callable[[], T]) -> T:
    """Return what a callback returns in its caller's thread; what it raises is carried by a CallbackError."""
    try:
        return await in_callers_thread(callback)
    except Exception as error:
        raise CallbackError(error) from error


@attrs.frozen
class WithCallbacks(Generic[Work, Result]):
    """Do what calls callbacks, and raise what they raise."""

    inner: Plan[Work, Result]

    async def execute(self, work: Work, call: Call) -> Result:
        """Do the work."""
        try:
            return await self.inner.execute(work, call)
        except CallbackError as carrier:
            error = carrier.error
        try:
            # Outside of the handler, where nothing is added to it.
            raise error
        finally:
            # The traceback holds this frame.
            del error


class Reported:
    """Tells of each answer."""

    def __init__(self, inner: RegionPlan, progress: Progress) -> None:
        self._inner = inner
        self._progress = progress
        self._done = 0
        self._has_failed = False

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Send a request, and count its answer."""
        response = await self._inner.execute(entry, request, call)
        self._done += 1
        done = self._done
        if not self._has_failed:  # Then the operation ends, and nobody wants to know more.
            try:
                await called(lambda: self._progress(done))
            except CallbackError:
                self._has_failed = True
                raise
        return response


class Unmade(Request[Resp]):
    """A request that its caller has a part in.

    Args:
        rpc: Which RPC it is.
        effect: What a lost answer means.
        make: Returns what is to be sent.
    """

    __slots__ = ("make",)

    def __init__(self, rpc: Rpc[Any, Resp], effect: Effect, make: Callable[[], Request[Resp]]) -> None:
        super().__init__(rpc, b"", effect)
        self.make = make
        """Returns what is to be sent."""


@attrs.frozen
class Made:
    """Have requests made before they are sent."""

    inner: RegionPlan

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Send a request."""
        if isinstance(request, Unmade):
            request = await called(request.make)
        return await self.inner.execute(entry, request, call)
