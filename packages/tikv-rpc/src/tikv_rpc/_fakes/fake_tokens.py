"""A source of resource groups and tokens in memory, for tests of what is limited by `ResourceControl`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
from tikv_pd import MetaEvent, ResourceGroup, ResourceGroupChange, TokenGrant, TokenRequest
from tikv_pd.errors import DeadlineExceeded, TikvError

from tikv_rpc.resource_control.source import SETTINGS_KEY


class FakeTokens:
    """Stands for PD's resource manager: a `TokenSource` that grants what it is told to.

    Args:
        *groups: The groups there are.
    """

    def __init__(self, *groups: ResourceGroup) -> None:
        self.groups = {group.name: group for group in groups}
        """The groups by name; see `put` and `delete`."""
        self.keyspace_id: int | None = None
        """The keyspace whose groups these are."""
        self.settings: bytes | None = None
        """The settings of all clients; see `change_settings`."""
        self.grants: dict[str, TokenGrant] = {}
        """What every request for tokens of a group is answered with, by its name; others get no answer."""
        self.log: list[tuple[float, Sequence[TokenRequest]]] = []
        """When requests for tokens came, and what they were."""
        self.loads: list[str] = []
        """The names of the groups that were asked for."""
        self.failure: TikvError | None = None
        """What every request fails with, while it is set."""
        self.is_silent = False
        """Whether no request is answered."""
        self.under_way = 0
        """Requests for tokens that were not answered yet."""
        self.most_under_way = 0
        """How many there ever were at a time."""
        self.delay = 0.0
        """Seconds until a request for tokens is answered."""
        self._watchers: list[tuple[str, Any]] = []

    def put(self, group: ResourceGroup) -> None:
        """Make or change a group."""
        self.groups[group.name] = group
        self._tell("groups", ResourceGroupChange(group.name, group, 0))

    def delete(self, name: str) -> None:
        """Delete a group."""
        del self.groups[name]
        self._tell("groups", ResourceGroupChange(name, None, 0))

    def change_settings(self, stored: bytes | None) -> None:
        """Change the settings of all clients."""
        self.settings = stored
        self._tell("settings", MetaEvent(SETTINGS_KEY, stored, 0))

    def break_watches(self) -> None:
        """End all watches."""
        for _, send in self._watchers:
            send.close()
        self._watchers.clear()

    async def get_group(self, name: str, *, timeout: float) -> ResourceGroup | None:
        """Return a group. Source: `TokenSource`."""
        self.loads.append(name)
        await self._pass("get_group", timeout)
        return self.groups.get(name)

    async def get_settings(self, *, timeout: float) -> bytes | None:
        """Return the settings of all clients. Source: `TokenSource`."""
        await self._pass("get_settings", timeout)
        return self.settings

    async def acquire(self, requests: Sequence[TokenRequest], *, period: float, timeout: float) -> Sequence[TokenGrant]:
        """Grant what was told. Source: `TokenSource`."""
        del period
        self.log.append((anyio.current_time(), requests))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await anyio.sleep(self.delay)
            await self._pass("acquire", timeout)
        finally:
            self.under_way -= 1
        return [self.grants[request.group] for request in requests if request.group in self.grants]

    def watch_groups(self) -> AbstractAsyncContextManager[AsyncIterator[ResourceGroupChange]]:
        """Return the changes of groups. Source: `TokenSource`."""
        return self._watch("groups")

    def watch_settings(self) -> AbstractAsyncContextManager[AsyncIterator[MetaEvent]]:
        """Return the changes of settings. Source: `TokenSource`."""
        return self._watch("settings")

    def _tell(self, what: str, change: Any) -> None:
        for watched, send in self._watchers:
            if watched == what:
                send.send_nowait(change)

    @asynccontextmanager
    async def _watch(self, what: str) -> AsyncIterator[Any]:
        await self._pass("watch", 3.0)
        send, receive = anyio.create_memory_object_stream[Any](100)
        self._watchers.append((what, send))
        try:
            yield receive
        finally:
            send.close()
            receive.close()
            self._watchers = [each for each in self._watchers if each[1] is not send]

    async def _pass(self, operation: str, timeout: float) -> None:
        await anyio.lowlevel.checkpoint()
        if self.is_silent:
            await anyio.sleep(timeout)
            raise DeadlineExceeded(operation, timeout)
        if self.failure is not None:
            raise self.failure
