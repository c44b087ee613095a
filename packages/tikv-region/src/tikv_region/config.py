"""How long to trust what is known of Regions, and how much to ask for at once."""

from __future__ import annotations

import math
from typing import Any

import attrs
from tikv_pd import ConfigError


def _seconds(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"{attribute.name} must be a finite number of seconds above 0, got {value!r}")


def _jitter(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ConfigError(f"{attribute.name} must be a finite number of seconds, at least 0, got {value!r}")


def _at_least(lowest: int) -> Any:
    def validate(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, int) or value < lowest:
            raise ConfigError(f"{attribute.name} must be an int of at least {lowest}, got {value!r}")

    return validate


def _flag(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{attribute.name} must be a bool, got {value!r}")


def _interval(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None:
        _seconds(instance, attribute, value)


@attrs.frozen(kw_only=True)
class RegionConfig:
    """Options of a `RegionCache`."""

    ttl: float = attrs.field(default=600.0, validator=_seconds)
    """Seconds a Region is kept that nobody asks for, up to a full second; each use starts them anew.

    Source: client-go region_cache.go.
    """
    ttl_jitter: float = attrs.field(default=60.0, validator=_jitter)
    """Seconds added to `ttl` at most, by chance, so that Regions loaded together are not reloaded together."""
    need_buckets: bool = attrs.field(default=False, validator=_flag)
    """Whether to learn of each Region's buckets; for those who cut work on a Region into parts of like size."""
    allow_follower: bool = attrs.field(default=False, validator=_flag)
    """Whether to ask a follower of PD first, to spare its leader. What it knows may be old: the leader is asked at once
    when something is missing from its answer, or older than what is known. Without effect with `need_buckets`, since
    followers know none. Source: client-go opt.WithAllowFollowerHandle."""
    scan_page: int = attrs.field(default=128, validator=_at_least(1))
    """Regions asked of PD in one request at most. Source: client-go defaultRegionsPerBatch."""
    stale_answers: int = attrs.field(default=3, validator=_at_least(0))
    """How often to ask PD again when its answer is older than what is known, before making do with it."""
    epoch_patience: float = attrs.field(default=1.0, validator=_seconds)
    """Seconds a store may take to apply what is known of a Region already. When they pass, PD is asked: the cluster may
    have been restored to an earlier state."""
    store_check_timeout: float = attrs.field(default=1.0, validator=_seconds)
    """Seconds PD is given to confirm an address in doubt; when they pass, it is used as it is."""
    reload_timeout: float = attrs.field(default=1.0, validator=_seconds)
    """Seconds PD is given to load a Region again that is still in use; when they pass, it is used as it is."""
    sweep_interval: float | None = attrs.field(default=1.0, validator=_interval)
    """Seconds between sweeps, which forget Regions out of use; None for none. Source: client-go region_cache.go."""
    sweep_regions: int = attrs.field(default=50, validator=_at_least(1))
    """Regions looked at in one sweep, going round. Source: client-go region_cache.go."""
    stores_interval: float | None = attrs.field(default=10.0, validator=_interval)
    """Seconds between looks at PD's list of stores; None for none.

    Source: client-go store_cache.go, which also asks for each known store every 15 s; the list tells the same.
    """
    refresh_interval: float | None = attrs.field(default=None, validator=_interval)
    """Seconds between pages of `scan_page` Regions that are loaded again, going round all of them, so that splits and
    merges are known before requests meet them; None for none. Nothing is forgotten then that PD still knows.

    Source: client-go RegionsRefreshInterval, which loads all of them in one go.
    """
