"""What snapshots, commits and the lock resolver of one client work with while it is open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from tikv_pd import DeadlineExceeded, PdClient, Timestamp
from tikv_region import KeyCodec, RegionCache
from tikv_rpc import AtEdge, AtKey, Call, FanOut, Plan, RegionPlan, RetryRegion, RpcClient, dispatch, operation

from tikv_txn.config import TxnConfig

Work = TypeVar("Work")
Result = TypeVar("Result")


async def in_time_of(call: Call, ask: Callable[[float], Awaitable[Result]]) -> Result:
    """Ask PD, which may take the seconds that a call has left; when they run out, the error is the call's own."""
    try:
        return await ask(call.check())
    except DeadlineExceeded as error:
        raise DeadlineExceeded(call.operation, call.timeout) from error.__cause__


class TxnStore:
    """A cluster as transactions see it: timestamps, and plans for requests to its stores.

    Args:
        rpc: Sends requests, and knows the Regions.
        pd: Grants timestamps.
        codec: Turns keys into those on the wire.
        config: Limits.
    """

    def __init__(self, rpc: RpcClient, pd: PdClient, codec: KeyCodec, config: TxnConfig) -> None:
        self.rpc = rpc
        """Sends requests. Its `tasks` are where work in the background runs, its `call` begins an operation."""
        self.pd = pd
        """Grants timestamps."""
        self.codec = codec
        """Turns keys into those on the wire, and back."""
        self.cache: RegionCache = rpc.cache
        """Knows the Regions."""
        self.config = config
        """Limits."""
        self.regions: RegionPlan = RetryRegion(dispatch(rpc), rpc)
        """Sends a request to a Region, and again while that may help."""
        self.at_key: AtKey[Any] = AtKey(self.regions, self.cache)
        """Sends a request to the Region of a key; locks that it answers are the caller's concern."""

    def at_key_by(self, regions: RegionPlan) -> AtKey[Any]:
        """Return the plan that sends requests to the Region of a key through `regions`, such as `ResolveLocks`."""
        return AtKey(regions, self.cache)

    def at_edge_by(self, regions: RegionPlan) -> AtEdge[Any]:
        """Return the plan for the first or the last Region of a range."""
        return AtEdge(regions, self.cache)

    def fan_out_by(self, regions: RegionPlan, concurrency: int | None = None) -> FanOut[Any, Any]:
        """Return the plan that splits work over Regions, with `RpcConfig.concurrency` requests under way by default."""
        return FanOut(regions, self.cache, self.rpc.config.concurrency if concurrency is None else concurrency)

    def operation(self, plan: Plan[Work, Result]) -> Plan[Work, Result]:
        """Return `plan` as a whole operation of the user's, which observers hear of; to be put around everything."""
        return operation(self.rpc, plan)

    async def get_ts(self, call: Call) -> int:
        """Return a composed timestamp above every one granted before, within a call's time.

        Raises:
            DeadlineExceeded: the time ran out; named after the call.
            PdError, ClusterMismatch, TimestampFallback: PD refused for good.
        """
        return await self._granted(call, self.pd.get_ts)

    async def low_resolution_ts(self, call: Call) -> int:
        """Return a composed timestamp granted not long ago, mostly without asking PD; see `PdClient`."""
        return await self._granted(call, self.pd.get_low_resolution_ts)

    async def _granted(self, call: Call, grant: Callable[..., Awaitable[Timestamp]]) -> int:
        return (await in_time_of(call, lambda left: grant(timeout=left))).ts
