"""Errors of the raw client; everything else comes from the layers below."""

from __future__ import annotations

import attrs
from tikv_pd import ConfigError, TikvError


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


@attrs.define(eq=False)
class KeyTooLarge(ConfigError):
    """A key is longer than stores take. Nothing was sent."""

    key: bytes
    """The key."""
    size: int
    """Its bytes, with the prefix that API v2 puts before each key."""
    limit: int
    """`RawConfig.max_key_bytes`."""

    def __str__(self) -> str:
        return f"a key of {self.size} bytes exceeds the limit of {self.limit}: storage.max-key-size of the stores"


@attrs.define(eq=False)
class ValueTooLarge(ConfigError):
    """A value is larger than stores take. Nothing was sent."""

    key: bytes
    """The key it was to be stored under."""
    size: int
    """Its bytes."""
    limit: int
    """`RawConfig.max_value_bytes`."""

    def __str__(self) -> str:
        return f"a value of {self.size} bytes exceeds the limit of {self.limit}; split it over several keys"
