"""Limits of the request engine."""

from __future__ import annotations

import math
from typing import Any, get_args

import attrs
from attrs import validators
from tikv_pd import ChannelConfig, ConfigError
from tikv_pd.config import positive
from tikv_region import Redaction


def _finite(_instance: Any, attribute: attrs.Attribute[Any], value: float) -> None:
    if value == math.inf:
        raise ConfigError(f"{attribute.name} must be finite, or a store that never answers would never be given up")


def _redaction(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value not in get_args(Redaction):
        raise ConfigError(f"{attribute.name} must be one of {get_args(Redaction)}, got {value!r}")


@attrs.frozen(kw_only=True)
class RpcConfig:
    """How requests travel to stores. Durations in seconds."""

    attempt_timeout: float = attrs.field(
        default=10.0, validator=[validators.instance_of((int, float)), positive, _finite]
    )
    """Longest that one attempt at a store may take before another is made.

    The store is told to drop requests it has not begun after two thirds of that.
    """
    connect_timeout: float = attrs.field(default=5.0, validator=[validators.instance_of((int, float)), positive])
    """Longest wait for a connection before the attempt counts as failed. Source: client-go dialTimeout."""
    connections: int = attrs.field(default=1, validator=[validators.instance_of(int), positive])
    """Connections to each store.

    More of them cost CPU time, as answers arrive in more and smaller messages, and help where one connection is the
    limit: large values over a distance, or answers that are held up behind larger ones.
    """
    idle_timeout: float = attrs.field(default=180.0, validator=[validators.instance_of((int, float)), positive])
    """Seconds without a call after which a connection is closed; the next call opens another.

    Up to a quarter longer. Source: client-go, batch client idleTimeout.
    """
    channel: ChannelConfig | None = attrs.field(
        default=None, validator=validators.optional(validators.instance_of(ChannelConfig))
    )
    """Options of each connection; None for the defaults. Heeded by clients that make their transport themselves."""
    max_in_flight: int | None = attrs.field(
        default=None, validator=validators.optional([validators.instance_of(int), positive])
    )
    """Requests on one stream that may wait for an answer, those given up meanwhile included; others wait in the client.

    None for no limit. Requests of priority 10 or more ignore it. Source: client-go max-concurrency-request-limit.
    """
    max_batch_size: int = attrs.field(default=128, validator=[validators.instance_of(int), positive])
    """Requests in one BatchCommands message at most. Source: client-go tikv-client.max-batch-size."""
    max_batch_bytes: int = attrs.field(default=4 << 20, validator=[validators.instance_of(int), positive])
    """Bytes after which a BatchCommands message is closed; one larger request still travels, alone."""
    concurrency: int = attrs.field(default=16, validator=[validators.instance_of(int), positive])
    """Requests that one operation over many Regions keeps under way."""
    backoff_budget: float = attrs.field(default=math.inf, validator=[validators.instance_of((int, float)), positive])
    """Seconds one operation may spend waiting between attempts; by default its deadline alone decides."""
    liveness_timeout: float = attrs.field(
        default=1.0, validator=[validators.instance_of((int, float)), positive, _finite]
    )
    """Longest wait for a store to say that it serves, connecting included, before it counts as unreachable.

    Source: client-go SetStoreLivenessTimeout.
    """
    liveness_interval: float = attrs.field(default=1.0, validator=[validators.instance_of((int, float)), positive])
    """Seconds between two looks at a store that did not serve at the last one. Source: client-go store_cache.go."""
    forwarding: bool = attrs.field(default=False, validator=validators.instance_of(bool))
    """Whether a request may reach a leader that this client cannot connect to through another store of its Region.

    For networks that are cut between client and stores only. Source: client-go config EnableForwarding.
    """
    slow_threshold: float | None = attrs.field(
        default=None, validator=validators.optional([validators.instance_of((int, float)), positive])
    )
    """Seconds from which on an operation is logged to `tikv_rpc.slow` with all its attempts and waits; None for never.

    With a threshold every operation is observed, which takes time of all of them.
    """
    exec_details: bool = attrs.field(default=False, validator=validators.instance_of(bool))
    """Whether `collect_exec_details` has something to tell of this client; takes time of all operations."""
    redact: Redaction = attrs.field(default="off", validator=_redaction)
    """How keys print in errors and in the log of slow operations: "off", as they are, "on", as `?`, or "marker",
    between two marks; see `tikv_region.Redaction`."""

    @property
    def is_observing(self) -> bool:
        """Whether it has operations observed: `slow_threshold` or `exec_details` are set."""
        return self.exec_details or self.slow_threshold is not None
