"""Resource groups: how many request units each may use, and tokens for those who keep to it.

Source: resource_manager.ResourceManager; pd client resource_manager_client.go.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from google.protobuf.message import DecodeError
from tikv_proto import meta_storagepb, resource_manager as rmpb, services

from tikv_pd._routing.calls import Calls
from tikv_pd._services.gc import NULL_KEYSPACE
from tikv_pd._services.meta_storage import MetaEvent, prefix_end, watch_prefix
from tikv_pd._services.resource_groups import ResourceGroup, keyspace_pb
from tikv_pd._services.tokens import TokenGrant, TokenRequest
from tikv_pd._streams.token_stream import TokenStream
from tikv_pd._streams.watch import Watch
from tikv_pd.errors import ConfigError, PdError


@attrs.frozen
class ResourceGroupSettings:
    """The settings of all groups."""

    groups: tuple[ResourceGroup, ...]
    """The groups by name; `default` is missing while nobody changed its settings."""
    revision: int
    """Revision of PD's storage when they were read: watch from one above it."""


@attrs.frozen
class ResourceGroupChange:
    """A change of one group's settings."""

    name: str
    """The group."""
    group: ResourceGroup | None
    """Its settings since; None when it was removed."""
    revision: int
    """Revision of PD's storage the change made."""


class ResourceGroups:
    """Resource groups, as `PdClient.resource_groups`. Errors and cancellation as there.

    Those are the groups of the client's keyspace; of a client that is in none, those that belong to none. `of_keyspace`
    leads to the others.
    """

    def __init__(self, calls: Calls, keyspace_id: int | None = None) -> None:
        self._calls = calls
        self._keyspace_id = keyspace_id
        self._tokens = TokenStream(calls)

    def of_keyspace(self, keyspace_id: int | None) -> ResourceGroups:
        """Return the groups of a keyspace, or of none, with a stream for tokens of their own: keep them."""
        if keyspace_id is not None and not 0 <= keyspace_id < 1 << 24:
            raise ConfigError(f"keyspace_id must be between 0 and 2**24 - 1, got {keyspace_id}")
        return ResourceGroups(self._calls, keyspace_id)

    async def get_all(self, *, with_ru_stats: bool = False, timeout: float | None = None) -> list[ResourceGroup]:
        """Return every group, in no given order, with what it consumed if asked for. Source: ListResourceGroups."""
        request = rmpb.ListResourceGroupsRequest(with_ru_stats=with_ru_stats, keyspace_id=self._keyspace())
        answer = await self._calls.call("get_all", services.ResourceManager.ListResourceGroups, request, timeout)
        return [ResourceGroup.from_pb(group) for group in answer.groups]

    async def get(
        self, name: str, *, with_ru_stats: bool = False, timeout: float | None = None
    ) -> ResourceGroup | None:
        """Return the group of this name, with what it consumed if asked for; None when there is none.

        Source: GetResourceGroup.
        """
        deadline = self._calls.deadline("get", timeout)
        request = rmpb.GetResourceGroupRequest(
            resource_group_name=name, with_ru_stats=with_ru_stats, keyspace_id=self._keyspace()
        )
        try:
            answer = await self._calls.attempt(services.ResourceManager.GetResourceGroup, request, deadline)
        except PdError as error:
            # PD has no kind of error for a group that is not there, only words: the list of groups tells for certain.
            if error.kind != "UNKNOWN":
                raise
            everything = rmpb.ListResourceGroupsRequest(keyspace_id=self._keyspace())
            listed = await self._calls.attempt(services.ResourceManager.ListResourceGroups, everything, deadline)
            if all(group.name != name for group in listed.groups):
                return None
            raise
        return ResourceGroup.from_pb(answer.group)

    async def add(self, group: ResourceGroup, *, timeout: float | None = None) -> None:
        """Make a group.

        Raises:
            ConfigError: it cannot be, or says that it is of another keyspace.
            PdError: PD does not accept it.

        Source: AddResourceGroup.
        """
        request = rmpb.PutResourceGroupRequest(group=self._own(group).to_pb())
        await self._calls.call("add", services.ResourceManager.AddResourceGroup, request, timeout)

    async def modify(self, group: ResourceGroup, *, timeout: float | None = None) -> None:
        """Change the group of this name to what is given, all of it: best what `get` returned, evolved.

        Raises:
            ConfigError: it cannot be, or says that it is of another keyspace.
            PdError: there is none, or PD does not accept it.

        Source: ModifyResourceGroup.
        """
        request = rmpb.PutResourceGroupRequest(group=self._own(group).to_pb())
        await self._calls.call("modify", services.ResourceManager.ModifyResourceGroup, request, timeout)

    async def delete(self, name: str, *, timeout: float | None = None) -> None:
        """Remove a group.

        Raises:
            PdError: there is none, or it is the default one.

        Source: DeleteResourceGroup.
        """
        request = rmpb.DeleteResourceGroupRequest(resource_group_name=name, keyspace_id=self._keyspace())
        await self._calls.call("delete", services.ResourceManager.DeleteResourceGroup, request, timeout)

    async def load(self, *, timeout: float | None = None) -> ResourceGroupSettings:
        """Return the settings of all groups as PD's storage holds them, and its revision to watch from.

        Source: meta_storagepb.MetaStorage.Get; pd client LoadResourceGroups.
        """
        prefix = self._prefix()
        request = meta_storagepb.GetRequest(key=prefix, range_end=prefix_end(prefix))
        answer = await self._calls.call("load", services.MetaStorage.Get, request, timeout)
        groups = [_settings(pair.value) for pair in answer.kvs]
        return ResourceGroupSettings(tuple(each for each in groups if each is not None), answer.header.revision)

    def watch(self, *, revision: int = 0) -> Watch[ResourceGroupChange]:
        """Return a watch of the settings of all groups.

        Args:
            revision: The first revision whose changes are told, one above that of `load`; 0 for those from now on.

        Source: meta_storagepb.MetaStorage.Watch.
        """
        prefix = self._prefix()

        def change(event: MetaEvent) -> ResourceGroupChange:
            name = event.key.removeprefix(prefix).decode(errors="replace")
            group = _settings(event.value) if event.value is not None else None
            return ResourceGroupChange(name, group, event.revision)

        return watch_prefix(self._calls, prefix, revision, change)

    async def acquire_token_buckets(
        self,
        requests: Iterable[TokenRequest],
        *,
        client_id: int,
        period: float = 5.0,
        timeout: float | None = None,
    ) -> list[TokenGrant]:
        """Report what groups consumed, ask for tokens for them, and return what PD grants.

        All callers share one stream to the leader, on which one request is under way; the others wait in line.

        Args:
            requests: One for each group.
            client_id: A number of this client alone, by which PD shares tokens out: 64 random bits will do.
            period: Seconds until the client will ask again, for which the tokens are to last.
            timeout: Seconds, the wait in line included.

        Returns:
            A grant for each group that PD knows, background work excepted, in the order of the requests.

        Raises:
            DeadlineExceeded: no answer came in time. PD may have counted the report, and granted tokens to nobody.
            PdError: PD refused the request, or granted tokens of another keyspace.

        An attempt that failed after PD took it is repeated, and may count what was consumed twice. Cancellation: safe;
        a request that is under way may be counted.
        Source: resource_manager.ResourceManager.AcquireTokenBuckets.
        """
        if not 0 <= client_id < 1 << 64:
            raise ConfigError(f"client_id must be between 0 and 2**64 - 1, got {client_id}")
        if not 0 < period < 1 << 53:
            raise ConfigError(f"period must be above 0 s, got {period!r}")
        message = rmpb.TokenBucketsRequest(
            requests=[each.to_pb(self._keyspace()) for each in requests],
            target_request_period_ms=round(period * 1000),
            client_unique_id=client_id,
        )
        if not message.requests:
            return []
        answer = await self._tokens.ask(message, self._calls.deadline("acquire_token_buckets", timeout))
        wanted = NULL_KEYSPACE if self._keyspace_id is None else self._keyspace_id
        for each in answer.responses:
            if each.HasField("keyspace_id") and each.keyspace_id.value != wanted:
                words = f"tokens of group {each.resource_group_name!r} are of keyspace {each.keyspace_id.value}"
                raise PdError("AcquireTokenBuckets", "UNKNOWN", f"{words}, not {wanted}")
        return [grant for each in answer.responses for grant in TokenGrant.from_pb(each)]

    def _keyspace(self) -> rmpb.KeyspaceIDValue | None:
        return keyspace_pb(self._keyspace_id)

    def _prefix(self) -> bytes:
        if self._keyspace_id is None:
            return b"resource_group/settings/"
        return b"resource_group/keyspace/settings/%d/" % self._keyspace_id

    def _own(self, group: ResourceGroup) -> ResourceGroup:
        """Return a group that is of this keyspace and can be."""
        if group.keyspace_id not in {None, self._keyspace_id}:
            own = f"those of keyspace {self._keyspace_id}" if self._keyspace_id is not None else "of no keyspace"
            raise ConfigError(f"group {group.name!r} is of keyspace {group.keyspace_id}, the groups here are {own}")
        if not group.name:
            raise ConfigError("a resource group needs a name")
        if not 0 <= group.fill_rate < 1 << 64:
            raise ConfigError(f"fill_rate must be between 0 and 2**64 - 1, got {group.fill_rate}")
        if not 0 <= group.priority <= 16:
            raise ConfigError(f"priority must be between 0 and 16, got {group.priority}")
        return attrs.evolve(group, keyspace_id=self._keyspace_id)


def _settings(value: bytes) -> ResourceGroup | None:
    """Return stored settings; None when they are no such message, which concerns nobody but who wrote it."""
    try:
        return ResourceGroup.from_pb(rmpb.ResourceGroup.FromString(value))
    except DecodeError:
        return None
