"""How long to trust what is known of Regions, and how much to ask for at once."""

from __future__ import annotations

import attrs
from attrs import validators


@attrs.frozen(kw_only=True)
class RegionConfig:
    """Options of a `RegionCache`."""

    ttl: float = attrs.field(default=600.0, validator=[validators.instance_of((int, float)), validators.gt(0)])
    """Seconds a Region is kept that nobody asks for, up to a full second; each use starts them anew.

    Source: client-go region_cache.go.
    """
    ttl_jitter: float = attrs.field(default=60.0, validator=[validators.instance_of((int, float)), validators.ge(0)])
    """Seconds added to `ttl` at most, by chance, so that Regions loaded together are not reloaded together."""
    scan_page: int = attrs.field(default=128, validator=[validators.instance_of(int), validators.ge(1)])
    """Regions asked of PD in one request at most. Source: client-go defaultRegionsPerBatch."""
    stale_answers: int = attrs.field(default=3, validator=[validators.instance_of(int), validators.ge(0)])
    """How often to ask PD again when its answer is older than what is known, before making do with it."""
    store_check_timeout: float = attrs.field(
        default=1.0, validator=[validators.instance_of((int, float)), validators.gt(0)]
    )
    """Seconds PD is given to confirm an address in doubt; when they pass, it is used as it is."""
