"""The router service: queries of Regions and stores, answered apart from PD.

It never says more than PD would: a Region that is not there is REGION_NOT_FOUND, as from a follower.
Source: tikv/pd pkg/mcs/router/server/grpc_service.go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from google.protobuf.message import Message
from tikv_proto import pdpb
from tikv_proto.services import Router, Rpc

from tikv_embedded.pd import regions as pd_regions
from tikv_embedded.pd.members import Refusal
from tikv_embedded.pd.state import PdState
from tikv_embedded.region import Region
from tikv_embedded.rpc_handlers import Handler, ServicerContext, stream, unary

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


class RouterService:
    """Handlers of one router.

    Args:
        state: Of PD.
    """

    def __init__(self, state: PdState) -> None:
        self._state = state
        self._topology = state.topology
        self._view = state.view

    def handlers(self) -> list[Handler]:
        """Return what this router answers."""
        return [
            self._handler(Router.GetRegion, lambda asked: self._region(self._view.find(asked.region_key), asked)),
            self._handler(
                Router.GetPrevRegion, lambda asked: self._region(self._view.previous(asked.region_key), asked)
            ),
            self._handler(Router.GetRegionByID, lambda asked: self._region(self._view.by_id(asked.region_id), asked)),
            self._handler(Router.BatchScanRegions, self._batch_scan),
            self._handler(Router.GetStore, lambda asked: pd_regions.get_store(self._topology, asked.store_id)),
            self._handler(Router.GetAllStores, lambda asked: pd_regions.get_all_stores(self._topology, asked)),
            stream(Router.QueryRegion, self._query_region),
        ]

    def _handler(self, rpc: Rpc[Req, Resp], answer: Callable[[Req], Resp]) -> Handler:
        async def handle(request: Req, context: ServicerContext) -> Resp:
            await self._check(request, context)
            return answer(request)

        return unary(rpc, handle)

    async def _query_region(
        self, requests: AsyncIterator[pdpb.QueryRegionRequest], context: ServicerContext
    ) -> AsyncIterator[pdpb.QueryRegionResponse]:
        async for request in requests:
            await self._check(request, context)
            yield pd_regions.query_region(self._view, request, self._state.buckets)

    def _region(
        self, region: Region | None, request: pdpb.GetRegionRequest | pdpb.GetRegionByIDRequest
    ) -> pdpb.GetRegionResponse:
        buckets = self._state.buckets if request.need_buckets else None
        return pd_regions.region_response(self._view, region, is_follower=True, buckets=buckets)

    def _batch_scan(self, request: pdpb.BatchScanRegionsRequest) -> pdpb.BatchScanRegionsResponse:
        return pd_regions.batch_scan_regions(self._view, request, self._state.buckets)

    async def _check(self, request: Message, context: ServicerContext) -> None:
        """End a call that is meant for another cluster."""
        role = self._state.admit(self._state.members.leader, request, context)
        if isinstance(role, Refusal):
            await context.abort(role.code, role.details)
