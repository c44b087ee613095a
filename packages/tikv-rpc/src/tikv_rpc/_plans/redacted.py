"""Redaction, as plans: composed only for clients whose `RpcConfig.redact` asks for it."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import attrs
from tikv_pd import TikvError
from tikv_pd.lowlevel import Resp
from tikv_region import Redaction, RegionEntry, redact
from tikv_region.redaction import redact_words

from tikv_rpc._plans.attempts import RoutePlan
from tikv_rpc._plans.over_regions import Plan
from tikv_rpc._stores.route import Route
from tikv_rpc.call import Call
from tikv_rpc.request import Request

Work = TypeVar("Work")
Result = TypeVar("Result")


@attrs.frozen
class RedactedOperation(Generic[Work, Result]):
    """Have the keys in an operation's error, and in all that led to it, print redacted."""

    inner: Plan[Work, Result]
    redaction: Redaction

    async def execute(self, work: Work, call: Call) -> Result:
        """Do the work."""
        try:
            return await self.inner.execute(work, call)
        except TikvError as error:
            redact(error, self.redaction)
            raise


@attrs.frozen
class RedactedAnswers:
    """Redact the words with which stores refuse requests, which may quote keys. No plan goes by them."""

    inner: RoutePlan
    redaction: Redaction

    async def execute(self, entry: RegionEntry, route: Route, request: Request[Resp], call: Call, /) -> Resp:
        """Send it."""
        response = await self.inner.execute(entry, route, request, call)
        said: Any = response
        # Those to transactional requests have a message there.
        if isinstance(getattr(said, "error", None), str):
            said.error = redact_words(said.error, self.redaction)
        return response
