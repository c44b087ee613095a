"""How resource control behaves: what PD tells all clients, and what this client sets for itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import attrs
from attrs import validators
from tikv_pd import ConfigError
from tikv_pd.config import number, positive, whole_number

from tikv_rpc.resource_control.cost import RuModel, not_negative
from tikv_rpc.resource_control.ru_v2 import RuV2Weights

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")

_optional_positive: Final = validators.optional((number, positive))
_optional_count: Final = validators.optional((whole_number, positive))


@attrs.frozen(kw_only=True)
class ResourceControlConfig:
    """What one client sets for itself. Durations in seconds; None leaves it to what PD tells all clients."""

    model: RuModel | None = attrs.field(default=None, validator=validators.optional(validators.instance_of(RuModel)))
    """What requests cost. Source of PD's: `request-unit`."""
    max_wait: float | None = attrs.field(default=None, validator=_optional_positive)
    """Longest that one request waits for tokens it can count on; its deadline may be sooner.

    PD's is 30, `ltb-max-wait-duration`.
    """
    retry_interval: float | None = attrs.field(default=None, validator=_optional_positive)
    """Seconds until a request that found too few tokens looks again, unless some are granted sooner. PD's is 0.05."""
    retry_times: int | None = attrs.field(default=None, validator=_optional_count)
    """How often it looks until it is throttled. PD's is 20, from `ltb-token-rpc-max-delay` and the interval."""
    degraded_wait: float | None = attrs.field(default=None, validator=validators.optional((number, not_negative)))
    """Seconds without any answer from PD after which groups that need tokens fill themselves at their own rate.

    0 is never. PD's is 0, `degraded-mode-wait-duration`.
    """
    degraded_fill_rate: int | None = attrs.field(default=None, validator=_optional_count)
    """Tokens a second of a group that could not be loaded because PD is away; with None its requests fail."""
    token_timeout: float = attrs.field(default=5.0, validator=[number, positive])
    """Longest wait for PD's answer to a request for tokens, and for the settings of a group."""
    zone: str = attrs.field(default="", validator=validators.instance_of(str))
    """Zone this client is in, to count bytes that travel between zones; compared with the stores' label `zone`."""
    ru_v2_weights: RuV2Weights = attrs.field(factory=RuV2Weights, validator=validators.instance_of(RuV2Weights))
    """What things cost in the second model."""


@attrs.frozen(kw_only=True)
class ControllerSettings:
    """What counts: `ResourceControlConfig`, PD's settings where that is silent, and defaults."""

    model: RuModel = attrs.field(factory=RuModel)
    """What requests cost."""
    max_wait: float = 30.0
    """See `ResourceControlConfig`."""
    retry_interval: float = 0.05
    """See `ResourceControlConfig`."""
    retry_times: int = 20
    """See `ResourceControlConfig`."""
    degraded_wait: float = 0.0
    """See `ResourceControlConfig`."""
    ru_versions: tuple[tuple[int, int], ...] = ()
    """(keyspace id, version) of those keyspaces that do not have `ru_version`."""
    ru_version: int = 1
    """Which model of request units holds: 1, or 2, which is observed besides."""

    def version_of(self, keyspace_id: int | None) -> int:
        """Return which model holds for a keyspace."""
        return next((version for each, version in self.ru_versions if each == keyspace_id), self.ru_version)

    def overridden(self, config: ResourceControlConfig) -> ControllerSettings:
        """Return these with what a client set for itself."""
        own = {name: getattr(config, name) for name in _OVERRIDABLE}
        return attrs.evolve(self, **{name: value for name, value in own.items() if value is not None})


_OVERRIDABLE: Final = ("model", "max_wait", "retry_interval", "retry_times", "degraded_wait")


def parse_settings(text: bytes) -> ControllerSettings:
    """Return PD's settings of all clients, with defaults for what they leave out.

    Args:
        text: JSON; durations are strings such as `30s`.

    Raises:
        ConfigError: it is something else.

    Source: tikv/pd client/resource_group/controller/config.go, Config; kept at `resource_group/controller`.
    """
    try:
        stored = json.loads(text)
        units = stored.get("request-unit", {})
        policy = stored.get("ru-version-policy") or {}
        default = ControllerSettings()
        # 0 stands for the default in these two, and for never in the third.
        max_wait = _duration(stored, "ltb-max-wait-duration") or default.max_wait
        interval = _duration(stored, "wait-retry-interval") or default.retry_interval
        delay = _duration(stored, "ltb-token-rpc-max-delay")
        return ControllerSettings(
            model=RuModel(**{name: float(units[key]) for name, key in _MODEL_KEYS.items() if key in units}),
            max_wait=max_wait,
            retry_interval=interval,
            # 1 s is 20 intervals of 50 ms, in spite of binary fractions. Once at least, or nothing were limited.
            retry_times=max(int((1.0 if delay is None else delay) / interval + 1e-9), 1),
            degraded_wait=_duration(stored, "degraded-mode-wait-duration") or 0.0,
            ru_versions=tuple((int(key), int(value)) for key, value in policy.get("overrides", {}).items()),
            ru_version=int(policy.get("default", 0)) or 1,
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"PD's settings of resource control make no sense: {error}") from error


_MODEL_KEYS: Final = {field.name: field.name.replace("_", "-") for field in attrs.fields(RuModel)}


def _duration(stored: Mapping[str, Any], key: str) -> float | None:
    text = stored.get(key)
    return None if text is None else parse_duration(text)


def parse_duration(text: str) -> float:
    """Return a duration as Go writes it, such as `1m30s`, in seconds; ValueError for anything else."""
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is no duration")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
