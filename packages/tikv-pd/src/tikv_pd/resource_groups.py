"""Resource groups: how many request units each may use. Source: resource_manager.ResourceManager."""

from __future__ import annotations

import attrs
from tikv_proto import resource_manager as rmpb, services

from tikv_pd._calls import Calls
from tikv_pd.errors import ConfigError


@attrs.frozen
class ResourceGroup:
    """A group of users that share request units (RU). Source: resource_manager.ResourceGroup."""

    name: str
    """Unique name; `default` is there always."""
    fill_rate: int
    """Request units the group is given a second."""
    burst_limit: int = 0
    """Request units it may save up; 0 for as many as `fill_rate`, negative for whatever others leave."""
    priority: int = 8
    """Who comes first when units are short: 0 to 16, higher is sooner."""
    job_types: tuple[str, ...] = ()
    """Kinds of its jobs that run in the background."""

    @classmethod
    def from_pb(cls, group: rmpb.ResourceGroup) -> ResourceGroup:
        """Make the value from the message."""
        settings = group.r_u_settings.r_u.settings
        return cls(
            group.name,
            settings.fill_rate,
            settings.burst_limit,
            group.priority,
            tuple(group.background_settings.job_types),
        )

    def to_pb(self) -> rmpb.ResourceGroup:
        """Make the message from the value."""
        settings = rmpb.TokenLimitSettings(fill_rate=self.fill_rate, burst_limit=self.burst_limit)
        background = rmpb.BackgroundSettings(job_types=self.job_types) if self.job_types else None
        return rmpb.ResourceGroup(
            name=self.name,
            mode=rmpb.GroupMode.RUMode,
            r_u_settings=rmpb.GroupRequestUnitSettings(r_u=rmpb.TokenBucket(settings=settings)),
            priority=self.priority,
            background_settings=background,
        )


class ResourceGroups:
    """Resource groups, as `PdClient.resource_groups`. Errors and cancellation as there."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def get_all(self, *, timeout: float | None = None) -> list[ResourceGroup]:
        """Return every group, in no given order. Source: ListResourceGroups."""
        request = rmpb.ListResourceGroupsRequest()
        answer = await self._calls.call("get_all", services.ResourceManager.ListResourceGroups, request, timeout)
        return [ResourceGroup.from_pb(group) for group in answer.groups]

    async def get(self, name: str, *, timeout: float | None = None) -> ResourceGroup | None:
        """Return the group of this name, None when there is none.

        PD has no kind of error for a group that is not there, only words, so the list of all groups is asked for.

        Source: ListResourceGroups.
        """
        groups = await self.get_all(timeout=timeout)
        return next((group for group in groups if group.name == name), None)

    async def add(self, group: ResourceGroup, *, timeout: float | None = None) -> None:
        """Make a group.

        Raises:
            PdError: PD does not accept it.

        Source: AddResourceGroup.
        """
        request = rmpb.PutResourceGroupRequest(group=_checked(group).to_pb())
        await self._calls.call("add", services.ResourceManager.AddResourceGroup, request, timeout)

    async def modify(self, group: ResourceGroup, *, timeout: float | None = None) -> None:
        """Change the group of this name to what is given.

        Raises:
            PdError: there is none, or PD does not accept it.

        Source: ModifyResourceGroup.
        """
        request = rmpb.PutResourceGroupRequest(group=_checked(group).to_pb())
        await self._calls.call("modify", services.ResourceManager.ModifyResourceGroup, request, timeout)

    async def delete(self, name: str, *, timeout: float | None = None) -> None:
        """Remove a group.

        Raises:
            PdError: there is none, or it is the default one.

        Source: DeleteResourceGroup.
        """
        request = rmpb.DeleteResourceGroupRequest(resource_group_name=name)
        await self._calls.call("delete", services.ResourceManager.DeleteResourceGroup, request, timeout)


def _checked(group: ResourceGroup) -> ResourceGroup:
    if not group.name:
        raise ConfigError("a resource group needs a name")
    if not 0 <= group.fill_rate < 1 << 64:
        raise ConfigError(f"fill_rate must be between 0 and 2**64 - 1, got {group.fill_rate}")
    if not 0 <= group.priority <= 16:
        raise ConfigError(f"priority must be between 0 and 16, got {group.priority}")
    return group
