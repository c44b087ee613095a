"""Options of a gRPC connection, as values; `tikv_pd.grpc_transport` makes channels of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal

import attrs
from attrs import validators

from tikv_pd.errors import ConfigError


def _at_least(minimum: float) -> Callable[[Any, attrs.Attribute[Any], float], None]:
    def validate(_instance: Any, attribute: attrs.Attribute[Any], value: float) -> None:
        # Not a number is no limit either.
        if not minimum <= value < math.inf:
            raise ConfigError(f"{attribute.name} must be at least {minimum:g} and finite, got {value!r}")

    return validate


def _known_compression(_instance: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    if value not in {"none", "gzip"}:
        raise ConfigError(f"{attribute.name} must be 'none' or 'gzip', got {value!r}")


_SECONDS: Final = [validators.instance_of((int, float)), _at_least(0.001)]


@attrs.frozen(kw_only=True)
class ChannelConfig:
    """How gRPC keeps one connection. Durations in seconds; gRPC counts in milliseconds.

    Source of the defaults: client-go config/client.go and internal/client/conn_pool.go.
    """

    keepalive_time: float = attrs.field(default=10.0, validator=_SECONDS)
    """How long nothing may arrive, while a call is under way, until a ping asks whether the server is still there."""
    keepalive_timeout: float = attrs.field(default=3.0, validator=[_SECONDS[0], _at_least(0.05)])
    """How long the answer to a ping may take until the connection counts as dead and its calls fail."""
    window_bytes: int | None = attrs.field(
        default=None, validator=validators.optional([validators.instance_of(int), _at_least(65_535)])
    )
    """Bytes a server may send ahead of their being read, on each stream and on the connection.

    With None gRPC begins with 4 MiB and follows what it measures; a number holds it fixed.
    """
    reconnect_backoff: float = attrs.field(default=0.1, validator=[_SECONDS[0], _at_least(0.1)])
    """Wait before the second attempt to connect; each further one is 1.6 times as long, give or take a fifth."""
    max_reconnect_backoff: float = attrs.field(default=3.0, validator=[_SECONDS[0], _at_least(0.1)])
    """Longest wait between two attempts to connect."""
    connect_attempt_timeout: float = attrs.field(default=5.0, validator=_SECONDS)
    """How long one attempt to connect may take, handshakes included: a distant server needs several round trips."""
    compression: Literal["none", "gzip"] = attrs.field(default="none", validator=_known_compression)
    """What is done to requests on their way; a server answers compressed or not as it likes."""


def channel_arguments(config: ChannelConfig) -> list[tuple[str, int]]:
    """Return the arguments that make gRPC's C core do what `config` says."""
    arguments = [
        # gRPC would merge channels to one address into one socket, which then outlives the first of them.
        ("grpc.use_local_subchannel_pool", 1),
        # TiKV answers with whatever the request asks for; limits belong to requests, not to frames.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", _ms(config.keepalive_time)),
        ("grpc.keepalive_timeout_ms", _ms(config.keepalive_timeout)),
        # The one above alone has no effect: a ping without an answer then breaks nothing for a minute (seen with grpcio
        # 1.85).
        ("grpc.http2.ping_timeout_ms", _ms(config.keepalive_timeout)),
        # Otherwise pings end after two, though calls still wait for answers. TiKV takes any number of them.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", _ms(config.reconnect_backoff)),
        # In spite of its name, the time one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", _ms(config.connect_attempt_timeout)),
        ("grpc.max_reconnect_backoff_ms", _ms(config.max_reconnect_backoff)),
    ]
    if config.window_bytes is not None:
        # Only while gRPC does not measure for itself.
        arguments += [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", config.window_bytes)]
    return arguments


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
