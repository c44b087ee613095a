"""What resource control needs of PD, as a protocol, and PD as that."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from tikv_pd import (
    MetaEvent,
    PdClient,
    ResourceGroup,
    ResourceGroupChange,
    ResourceGroups,
    TokenGrant,
    TokenRequest,
)

SETTINGS_KEY: Final = b"resource_group/controller"
"""Where PD keeps the settings of all clients."""


class TokenSource(Protocol):
    """Where groups and tokens come from: PD, or a script in tests. Failures are TikvErrors."""

    @property
    def keyspace_id(self) -> int | None:
        """The keyspace whose groups these are; None for none."""
        ...

    async def get_group(self, name: str, *, timeout: float) -> ResourceGroup | None:
        """Return a group's settings, None when there is no such group."""
        ...

    async def acquire(self, requests: Sequence[TokenRequest], *, period: float, timeout: float) -> Sequence[TokenGrant]:
        """Report what was used and ask for tokens; groups PD does not know get no answer."""
        ...

    async def get_settings(self, *, timeout: float) -> bytes | None:
        """Return the settings of all clients, JSON; None when there are none."""
        ...

    def watch_groups(self) -> AbstractAsyncContextManager[AsyncIterator[ResourceGroupChange]]:
        """Return what tells the changes of groups: all since it was entered, until that fails or ends."""
        ...

    def watch_settings(self) -> AbstractAsyncContextManager[AsyncIterator[MetaEvent]]:
        """Return the same for the settings of all clients."""
        ...


class PdTokens:
    """The groups and tokens of a cluster: PD as a `TokenSource`.

    Args:
        pd: The client to ask; open as long as this is used.
        keyspace_id: The keyspace whose groups are meant; None for those of no keyspace.
    """

    def __init__(self, pd: PdClient, keyspace_id: int | None = None) -> None:
        self._pd = pd
        self.keyspace_id = keyspace_id
        """The keyspace whose groups these are."""
        self._client_id = secrets.randbits(63)
        self._of_keyspace: ResourceGroups | None = None

    @property
    def _groups(self) -> ResourceGroups:
        if self.keyspace_id is None:
            return self._pd.resource_groups
        if self._of_keyspace is None:
            self._of_keyspace = self._pd.resource_groups.of_keyspace(self.keyspace_id)
        return self._of_keyspace

    async def get_group(self, name: str, *, timeout: float) -> ResourceGroup | None:
        """Return a group's settings, None when there is no such group."""
        return await self._groups.get(name, timeout=timeout)

    async def acquire(self, requests: Sequence[TokenRequest], *, period: float, timeout: float) -> Sequence[TokenGrant]:
        """Report what was used and ask for tokens."""
        return await self._groups.acquire_token_buckets(
            requests, client_id=self._client_id, period=period, timeout=timeout
        )

    async def get_settings(self, *, timeout: float) -> bytes | None:
        """Return the settings of all clients."""
        return await self._pd.meta.get(SETTINGS_KEY, timeout=timeout)

    def watch_groups(self) -> AbstractAsyncContextManager[AsyncIterator[ResourceGroupChange]]:
        """Return a watch of all groups."""
        return self._groups.watch()

    def watch_settings(self) -> AbstractAsyncContextManager[AsyncIterator[MetaEvent]]:
        """Return a watch of the settings of all clients."""
        return self._pd.meta.watch(SETTINGS_KEY)
