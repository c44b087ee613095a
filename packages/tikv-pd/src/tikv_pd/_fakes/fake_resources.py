"""The resource groups of a `FakePd`, and the tokens it grants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import Message
from tikv_proto import resource_manager as rmpb
from tikv_proto.services import ResourceManager, Rpc

from tikv_pd._fakes.fake_meta import FakeMeta
from tikv_pd._fakes.memory_transport import fail
from tikv_pd._services.gc import NULL_KEYSPACE
from tikv_pd._services.resource_groups import Consumption, ResourceGroup
from tikv_pd._services.tokens import TokenGrant

_SETTINGS = b"resource_group/settings/"


class FakeResources:
    """Resource groups, which all keyspaces share here, to be changed at any time.

    Args:
        meta: Where what clients change is kept too, for watches.
    """

    def __init__(self, meta: FakeMeta) -> None:
        self._meta = meta
        self.groups = {"default": ResourceGroup("default", 2**31 - 1, -1)}
        """The groups by name."""
        self.consumption: dict[str, Consumption] = {}
        """What each group consumed, as told with its statistics."""
        self.grants: dict[str, TokenGrant] = {}
        """What groups get; the others get what they ask for."""
        self.token_requests: list[rmpb.TokenBucketsRequest] = []
        """The requests for tokens that were answered."""
        self.token_keyspace: int | None = None
        """The keyspace that grants name; None for the one that was asked for."""

    def answers(self) -> Mapping[Rpc[Any, Any], Callable[[Any], Message]]:
        """Return what answers each RPC."""
        return {
            ResourceManager.GetResourceGroup: self._get,
            ResourceManager.ListResourceGroups: self._list,
            ResourceManager.AddResourceGroup: self._put,
            ResourceManager.ModifyResourceGroup: self._modify,
            ResourceManager.DeleteResourceGroup: self._delete,
        }

    def grant(self, request: rmpb.TokenBucketsRequest) -> rmpb.TokenBucketsResponse:
        """Answer a request for tokens: groups that are not there, and work in the background, get no answer."""
        self.token_requests.append(request)
        return rmpb.TokenBucketsResponse(
            responses=[
                self._granted(each)
                for each in request.requests
                if each.resource_group_name in self.groups and not each.is_background
            ]
        )

    def _granted(self, request: rmpb.TokenBucketRequest) -> rmpb.TokenBucketResponse:
        name = request.resource_group_name
        grant = self.grants.get(name) or TokenGrant(name, request.ru_items.request_r_u[0].value)
        asked = request.keyspace_id.value if request.HasField("keyspace_id") else NULL_KEYSPACE
        keyspace = self.token_keyspace if self.token_keyspace is not None else asked
        limits = rmpb.TokenLimitSettings(burst_limit=grant.burst_limit, fill_rate=grant.fill_rate)
        bucket = rmpb.GrantedRUTokenBucket(
            type=rmpb.RequestUnitType.RU,
            granted_tokens=rmpb.TokenBucket(settings=limits, tokens=grant.tokens),
            trickle_time_ms=round(grant.trickle * 1000),
        )
        return rmpb.TokenBucketResponse(
            resource_group_name=name, granted_r_u_tokens=[bucket], keyspace_id=rmpb.KeyspaceIDValue(value=keyspace)
        )

    def _show(self, group: ResourceGroup, *, with_stats: bool) -> rmpb.ResourceGroup:
        shown = group.to_pb()
        if with_stats:
            shown.RUStats.CopyFrom(self.consumption.get(group.name, Consumption()).to_pb())
        return shown

    def _get(self, request: rmpb.GetResourceGroupRequest) -> rmpb.GetResourceGroupResponse:
        group = self.groups.get(request.resource_group_name)
        if group is None:
            raise _missing(request.resource_group_name)
        return rmpb.GetResourceGroupResponse(group=self._show(group, with_stats=request.with_ru_stats))

    def _list(self, request: rmpb.ListResourceGroupsRequest) -> rmpb.ListResourceGroupsResponse:
        shown = [self._show(group, with_stats=request.with_ru_stats) for group in self.groups.values()]
        return rmpb.ListResourceGroupsResponse(groups=shown)

    def _put(self, request: rmpb.PutResourceGroupRequest) -> rmpb.PutResourceGroupResponse:
        group = self.groups[request.group.name] = ResourceGroup.from_pb(request.group)
        self._meta.put(_key(group.name, group.keyspace_id), request.group.SerializeToString())
        return rmpb.PutResourceGroupResponse(body="Success!")

    def _modify(self, request: rmpb.PutResourceGroupRequest) -> rmpb.PutResourceGroupResponse:
        if request.group.name not in self.groups:
            raise _missing(request.group.name)
        return self._put(request)

    def _delete(self, request: rmpb.DeleteResourceGroupRequest) -> rmpb.DeleteResourceGroupResponse:
        group = self.groups.pop(request.resource_group_name, None)
        if group is None:
            raise _missing(request.resource_group_name)
        self._meta.delete(_key(group.name, group.keyspace_id))
        return rmpb.DeleteResourceGroupResponse(body="Success!")


def _key(name: str, keyspace_id: int | None) -> bytes:
    own = b"resource_group/keyspace/settings/%d/" % keyspace_id if keyspace_id is not None else _SETTINGS
    return own + name.encode()


def _missing(name: str) -> Exception:
    return fail("UNKNOWN", f"the {name} resource group does not exist")
