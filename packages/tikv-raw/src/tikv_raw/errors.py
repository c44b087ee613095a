"""Errors of the raw client; everything else comes from the layers below."""

from __future__ import annotations

import attrs
from tikv_pd import TikvError


@attrs.define(eq=False)
class RawError(TikvError):
    """A store refused a request and did nothing, for example because a key is too long or it has no TTL support.

    Of a batch or range, other requests may have been carried out. When the store's words speak of API versions, open
    the client with the cluster's: `api_version=`.

    Source: the `error` field of kvrpcpb's raw responses.
    """

    operation: str
    """What was refused."""
    message: str
    """The store's own words."""

    def __str__(self) -> str:
        return f"the store refused {self.operation}: {self.message}"
