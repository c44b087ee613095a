"""What resource control needs of PD, as a protocol, and the values that pass."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import attrs
from tikv_pd.resource_groups import ResourceGroup

from tikv_rpc.resource_control.cost import Consumption


@attrs.frozen
class TokenRequest:
    """What one group of this client used since its last request, and what it wants."""

    group: str
    """Name of the group."""
    wanted: float
    """Tokens, not below 0."""
    consumption: Consumption
    """What was used."""


@attrs.frozen
class TokenGrant:
    """What PD granted to one group of this client."""

    group: str
    """Name of the group."""
    tokens: float
    """Tokens (request units)."""
    burst_limit: int = 0
    """Tokens the client may save up; 0 for any number, below 0 when it need not count."""
    trickle: float = 0.0
    """Seconds over which they become usable; 0 is at once."""
    fill_rate: float = 0.0
    """Tokens a second that the client may take besides; PD says 0, its grants are all there is."""


@attrs.frozen
class GroupChange:
    """That a group was made, changed or deleted."""

    name: str
    """Name of the group."""
    group: ResourceGroup | None
    """Its settings now; None when it was deleted."""


class TokenSource(Protocol):
    """Where groups and tokens come from: PD, or a script in tests. Failures are TikvErrors."""

    async def get_group(self, name: str, *, timeout: float) -> ResourceGroup | None:
        """Return a group's settings, None when there is no such group."""
        ...

    async def acquire(
        self, requests: Sequence[TokenRequest], *, target_period: float, timeout: float
    ) -> Sequence[TokenGrant]:
        """Report what was used and ask for tokens; groups PD does not know get no answer."""
        ...

    async def get_settings(self, *, timeout: float) -> bytes | None:
        """Return the settings of all clients, JSON; None when there are none."""
        ...

    def watch_groups(self) -> AbstractAsyncContextManager[AsyncIterator[GroupChange]]:
        """Return what tells the changes of groups: all since it was entered, until that fails or ends."""
        ...

    def watch_settings(self) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Return the same for the settings of all clients."""
        ...
