"""A request for one key, without the engine: what nearly every call of such an operation is.

The Region of the key is known, its leader is connected, and it answers. Then a request passes through all plans and
changes nothing: making what they need, a Call and a Request, and awaiting each of them takes as long as everything else
that a client does for it. Here all of that is one coroutine. Whatever is not as usual is left to the plans, which go on
from there: the attempt that failed is their first one.
"""

from __future__ import annotations

from typing import Any, Generic

import attrs
from tikv_pd import ClosedError, UndeterminedError
from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import Resp
from tikv_proto.services import Rpc

from tikv_rpc._plans.attempts import hides_outcome
from tikv_rpc._plans.over_regions import Plan
from tikv_rpc.call import Tried
from tikv_rpc.client import RpcClient
from tikv_rpc.options import RequestOptions
from tikv_rpc.request import Effect, Request


@attrs.frozen
class Express(Generic[Resp]):
    """Sends the requests of one operation on single keys.

    Nothing may stand around its attempts: of a client that intercepts, observes or redacts, the plans do all.
    """

    rpc: RpcClient
    method: Rpc[Any, Resp]
    """What is sent, by BatchCommands."""
    effect: Effect
    """What a lost answer means; `Effect.ONCE` is not for this."""
    operation: str
    """Its name, for errors."""
    plan: Plan[tuple[bytes, Request[Resp]], Resp]
    """What does it when anything is unusual."""
    is_direct: bool = attrs.field(init=False)
    """Whether requests may go without the plans."""
    _field: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        rpc, field = self.rpc, self.method.batch_field
        is_watched = bool(rpc.interceptors or rpc.observers) or rpc.config.redact != "off"
        object.__setattr__(self, "is_direct", field is not None and not is_watched)
        object.__setattr__(self, "_field", field or "")

    async def execute(self, key: bytes, payload: bytes, timeout: float, options: RequestOptions) -> Resp:
        """Send a request and return its answer.

        Args:
            key: Where to, as users know it.
            payload: The request without its Context, serialized.
            timeout: Seconds, for all attempts.
            options: What is wanted of the stores.

        Raises:
            TikvError: as the plans raise it.
        """
        tried: Tried | None = None
        rpc = self.rpc
        if self.is_direct and options.is_plain:
            entry = rpc.cache.find(key)
            route = None if entry is None else rpc.known_route(entry, options)
            if route is not None and entry is not None:
                now, limit = rpc.now(), rpc.config.attempt_timeout
                seconds = min(limit, timeout)
                sending = route.client.batched(self._field, route.context, payload, now + seconds, seconds)
                try:
                    response: Resp = await sending
                except RpcError as error:
                    tried = Tried(entry, route, error, now + timeout)
                else:
                    if not response.HasField("region_error"):
                        return response
                    tried = Tried(entry, route, response, now + timeout)
        return await self._at_length(key, payload, timeout, options, tried)

    async def _at_length(
        self, key: bytes, payload: bytes, timeout: float, options: RequestOptions, tried: Tried | None
    ) -> Resp:
        """Have the plans do it, or go on after an attempt."""
        failure = tried.outcome if tried is not None and isinstance(tried.outcome, RpcError) else None
        lost = failure if failure is not None and hides_outcome(failure, self.effect) else None
        try:
            call = self.rpc.call(self.operation, timeout, options)
        except ClosedError as error:
            if lost is None:
                raise
            raise UndeterminedError(self.operation) from error
        call.go_on(tried, lost)
        return await self.plan.execute((key, Request(self.method, payload, self.effect)), call)
