"""Equal requests that several callers make at once, sent once.

Many readers that run into the locks of one transaction all want the same done about them. What is sent for one of them
serves the others as well; each of them still goes by its own deadline, and may be cancelled without harm to the rest.
"""

from __future__ import annotations

import copy
from typing import Final

import attrs
from tikv_pd import BackoffExceeded, DeadlineExceeded, TikvError
from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import Resp
from tikv_region import RegionEntry
from tikv_region.flight import SingleFlight

from tikv_rpc._plans.attempts import RegionPlan
from tikv_rpc.call import Call
from tikv_rpc.errors import RelocateError, given_up
from tikv_rpc.request import Effect, Request
from tikv_rpc.resource_errors import (
    ResourceGroupNotFound,
    ResourceGroupThrottled,
    ResourceGroupUnavailable,
)

_OWN: Final = (
    DeadlineExceeded,
    BackoffExceeded,
    ResourceGroupNotFound,
    ResourceGroupThrottled,
    ResourceGroupUnavailable,
)
"""Failures that come of what one caller brought along: its time, or its account."""


@attrs.frozen
class _Failed:
    """Why a flight failed, for all who waited for it."""

    error: TikvError | RelocateError
    lost: RpcError | None
    """`Call.lost` of who flew."""


@attrs.frozen
class Collapse:
    """Send a request once for all who ask for the same of the same Region meanwhile, and give each the answer.

    The same is what has the same RPC and the same bytes, for a `ResolveLock` its start and commit version, and goes to
    the same version of a Region: an answer says nothing of what a Region has become since. The first caller sends, in
    its own task, by its own options and its own call; the others wait, and what they get may have been done before they
    asked. If it is cancelled, runs out of time or is refused by its resource group, one of the others sends anew. Other
    failures, a Region that moved among them, reach all who waited. After that, nothing is remembered.

    Compose it only for requests that mean the same whenever they are executed, and however often, since nobody but the
    transaction's own outcome decides what they do: resolving the locks of one that has ended, say. A put is none, as
    another may come between. Reads always go by themselves, as they must see what was written before they were made;
    so do requests that must not be applied twice.

    Cancellation: safe; if others wait, one of them takes over.
    Source: client-go client_collapse.go, where a request goes on by itself for 30 s, and where neither the Region's
    version nor the commit version tells requests apart.
    """

    inner: RegionPlan
    _flights: SingleFlight[bytes | _Failed] = attrs.field(factory=SingleFlight, init=False, eq=False, repr=False)

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Send it, or wait for who does."""
        if request.effect is not Effect.WRITE:
            return await self.inner.execute(entry, request, call)
        flew = False

        async def fly() -> bytes | _Failed:
            nonlocal flew
            flew = True
            try:
                response = await self.inner.execute(entry, request, call)
            except _OWN:
                raise
            except (TikvError, RelocateError) as error:
                return _Failed(error, call.lost)
            # As bytes: whoever gets an answer may do with it as they like.
            return response.SerializeToString()

        question = (entry.id, entry.epoch, request.rpc.name, request.payload)
        # What another's flight wrote, it wrote for this caller too, which will not learn of it if it leaves.
        doubt = call.lost
        if doubt is None and question in self._flights:
            doubt = given_up(entry.leader_store.address, request.rpc.name)
        try:
            outcome = await self._flights.ask(question, call.deadline, fly)
        except BaseException:
            call.lost = call.lost or doubt
            raise
        if not isinstance(outcome, _Failed):
            return request.rpc.response.FromString(outcome)
        call.lost = call.lost or outcome.lost or (doubt if flew else None)
        if flew:
            raise outcome.error
        error = copy.copy(outcome.error)
        error.__cause__ = outcome.error.__cause__
        raise error
