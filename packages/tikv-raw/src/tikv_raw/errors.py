"""Errors of the raw client; everything else comes from the layers below."""

from __future__ import annotations

import attrs
from tikv_pd import TikvError


@attrs.define(eq=False)
class RawError(TikvError):
    """The store refused the request and did nothing, for example because a key is too long or it has no TTL support.

    Source: the `error` field of kvrpcpb's raw responses.
    """

    operation: str
    """What was refused."""
    message: str
    """The store's own words."""

    def __str__(self) -> str:
        return f"the store refused {self.operation}: {self.message}"
