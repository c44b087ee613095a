"""How resource control refuses a request. None of these is a store's fault, and none leaves an outcome unknown."""

from __future__ import annotations

from typing import ClassVar

import attrs
from tikv_pd.errors import TikvError


@attrs.define(eq=False)
class ResourceGroupThrottled(TikvError):
    """The resource group has used up what it may use: nothing was sent, or what was read is withheld.

    Try again later; the engine does not.
    """

    retryable: ClassVar[bool] = True

    group: str
    """The group."""
    wait: float
    """Seconds until enough tokens (request units) are there, as far as this client knows; `inf` when it cannot tell."""
    rate: float
    """Tokens a second the group gets on this client."""
    tokens: float
    """Tokens it would have after the request; negative, what it lacks."""

    def __str__(self) -> str:
        return (
            f"resource group {self.group!r} is throttled: estimated wait {self.wait:.3g} s, "
            f"{self.tokens:.2f} tokens left at {self.rate:.2f} a second"
        )


@attrs.define(eq=False)
class ResourceGroupNotFound(TikvError):
    """There is no resource group of this name."""

    group: str
    """The name."""

    def __str__(self) -> str:
        return f"there is no resource group {self.group!r}"


@attrs.define(eq=False)
class ResourceGroupUnavailable(TikvError):
    """The settings of a resource group could not be had from PD; the failure is the `__cause__`."""

    retryable: ClassVar[bool] = True

    group: str
    """Its name."""

    def __str__(self) -> str:
        because = f": {self.__cause__}" if self.__cause__ is not None else ""
        return f"the settings of resource group {self.group!r} could not be loaded{because}"
