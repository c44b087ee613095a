"""A resource manager, a PD member or a server of its own: resource groups, and tokens for those who keep to them.

Requests have no header: the leading one answers whoever asks, and refusals are gRPC errors.
Source: tikv/pd pkg/mcs/resourcemanager/server/grpc_service.go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from tikv_proto import resource_manager as rm
from tikv_proto.services import ResourceManager, Rpc

from tikv_embedded.pd.gc_store import NULL_KEYSPACE
from tikv_embedded.pd.resource_groups import GroupRefusedError
from tikv_embedded.pd.state import PdState
from tikv_embedded.rpc_handlers import Handler, ServicerContext, stream, unary

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)

_DONE = "Success!"


class ResourceManagerService:
    """Handlers of one server.

    Args:
        state: Shared with the others.
        leads: Tells whether this one answers.
    """

    def __init__(self, state: PdState, leads: Callable[[], bool]) -> None:
        self._state = state
        self._leads = leads
        self._groups = state.resource_groups

    def handlers(self) -> list[Handler]:
        """Return what this server answers."""
        return [
            self._handler(ResourceManager.GetResourceGroup, self._get),
            self._handler(ResourceManager.ListResourceGroups, self._list),
            self._handler(ResourceManager.AddResourceGroup, self._add),
            self._handler(ResourceManager.ModifyResourceGroup, self._modify),
            self._handler(ResourceManager.DeleteResourceGroup, self._delete),
            stream(ResourceManager.AcquireTokenBuckets, self._acquire),
        ]

    def _handler(self, rpc: Rpc[Req, Resp], answer: Callable[[Req], Resp]) -> Handler:
        async def handle(request: Req, context: ServicerContext) -> Resp:
            await self._check_leading(context)
            try:
                return answer(request)
            except GroupRefusedError as error:
                await context.abort(grpc.StatusCode.UNKNOWN, str(error))

        return unary(rpc, handle)

    def _get(self, request: rm.GetResourceGroupRequest) -> rm.GetResourceGroupResponse:
        group = self._groups.get(_keyspace_id(request), request.resource_group_name, with_stats=request.with_ru_stats)
        return rm.GetResourceGroupResponse(group=group)

    def _list(self, request: rm.ListResourceGroupsRequest) -> rm.ListResourceGroupsResponse:
        groups = self._groups.list(_keyspace_id(request), with_stats=request.with_ru_stats)
        return rm.ListResourceGroupsResponse(groups=groups)

    def _add(self, request: rm.PutResourceGroupRequest) -> rm.PutResourceGroupResponse:
        self._groups.add(request.group)
        return rm.PutResourceGroupResponse(body=_DONE)

    def _modify(self, request: rm.PutResourceGroupRequest) -> rm.PutResourceGroupResponse:
        self._groups.modify(request.group)
        return rm.PutResourceGroupResponse(body=_DONE)

    def _delete(self, request: rm.DeleteResourceGroupRequest) -> rm.DeleteResourceGroupResponse:
        self._groups.delete(_keyspace_id(request), request.resource_group_name)
        return rm.DeleteResourceGroupResponse(body=_DONE)

    async def _acquire(
        self, requests: AsyncIterator[rm.TokenBucketsRequest], context: ServicerContext
    ) -> AsyncIterator[rm.TokenBucketsResponse]:
        """Groups that are not there, and work in the background, get no answer of their own."""
        async for request in requests:
            await self._check_leading(context)
            response = rm.TokenBucketsResponse()
            for each in request.requests:
                try:
                    granted = self._grant(each, request.client_unique_id, request.target_request_period_ms / 1000)
                except GroupRefusedError:
                    continue
                if not each.is_background:
                    response.responses.append(granted)
            yield response

    def _grant(self, request: rm.TokenBucketRequest, client_id: int, period: float) -> rm.TokenBucketResponse:
        keyspace_id, name = _keyspace_id(request), request.resource_group_name
        self._groups.consume(keyspace_id, name, request.consumption_since_last_request)
        response = rm.TokenBucketResponse(resource_group_name=name, keyspace_id=rm.KeyspaceIDValue(value=keyspace_id))
        if request.is_background:
            return response
        for item in request.ru_items.request_r_u:
            now = self._state.clock.seconds()
            grant = self._groups.request(keyspace_id, name, client_id, item.value, period, now)
            limits = rm.TokenLimitSettings(burst_limit=grant.burst_limit)
            response.granted_r_u_tokens.append(
                rm.GrantedRUTokenBucket(
                    type=item.type,
                    granted_tokens=rm.TokenBucket(tokens=grant.tokens, settings=limits),
                    trickle_time_ms=int(grant.trickle * 1000),
                )
            )
        return response

    async def _check_leading(self, context: ServicerContext) -> None:
        if not self._leads():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not leader")


def _keyspace_id(
    request: rm.GetResourceGroupRequest
    | rm.ListResourceGroupsRequest
    | rm.DeleteResourceGroupRequest
    | rm.TokenBucketRequest,
) -> int:
    return request.keyspace_id.value if request.HasField("keyspace_id") else NULL_KEYSPACE
