"""Where the cluster is, how to secure the way there, and how patient to be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

import attrs
from attrs import validators

from tikv_pd.errors import ConfigError

Address: TypeAlias = str | Iterable[str]
"""`tikv://pd1:2379,pd2:2379?keyspaceName=…`, one `host:port`, or several of those."""

HostMapping: TypeAlias = Mapping[str, str] | Callable[[str], str]
"""Where to dial a server that advertises an address, `host:port` both: a mapping, or a function of the address."""


KeyspaceRef: TypeAlias = str | int
"""A keyspace by its name, or by its id."""


@attrs.frozen
class ClusterAddress:
    """A parsed address."""

    endpoints: tuple[str, ...]
    """PD members to begin with, `host:port` each."""
    keyspace: str | None = None
    """Keyspace named in the URL."""


def parse_address(address: Address) -> ClusterAddress:
    """Parse an address as users write it.

    Raises:
        ConfigError: there is no host, a port is not a number, or the scheme or a parameter is unknown.
    """
    if isinstance(address, str):
        return _parse_one(address)
    if not isinstance(address, Iterable):
        raise ConfigError(f"a PD address is a str or several of them, not {type(address).__name__}")
    parts = [_parse_one(part) for part in address]
    if not parts:
        raise ConfigError("no PD address given; pass 'tikv://host:port' or a list of 'host:port'")
    keyspaces = {part.keyspace for part in parts if part.keyspace is not None}
    if len(keyspaces) > 1:
        raise ConfigError(f"the addresses name different keyspaces: {', '.join(sorted(keyspaces))}")
    endpoints = dict.fromkeys(endpoint for part in parts for endpoint in part.endpoints)
    return ClusterAddress(tuple(endpoints), next(iter(keyspaces), None))


def parse_keyspace(keyspace: KeyspaceRef | None, address: ClusterAddress) -> KeyspaceRef | None:
    """Return which keyspace is meant by an argument and an address, of which one may name it, or both the same.

    Raises:
        ConfigError: they name different ones, or there can be none of this name or id.
        TypeError: the argument is neither a name nor an id.
    """
    if keyspace is None:
        return address.keyspace
    if isinstance(keyspace, bool) or not isinstance(keyspace, (str, int)):
        raise TypeError(f"keyspace must be a name or an id, not {type(keyspace).__name__}")
    if isinstance(keyspace, int) and not 0 <= keyspace < 1 << 24:
        raise ConfigError(f"a keyspace id must be between 0 and 2**24 - 1, got {keyspace}")
    if keyspace == "":
        raise ConfigError("the name of a keyspace is not empty; that of the default one is DEFAULT")
    if address.keyspace is not None and keyspace != address.keyspace:
        raise ConfigError(f"the address names keyspace {address.keyspace!r}, the argument {keyspace!r}")
    return keyspace


def _parse_one(address: str) -> ClusterAddress:
    if not isinstance(address, str):
        raise ConfigError(f"a PD address is a str, not {type(address).__name__}")
    text = address if "://" in address else f"tikv://{address}"
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ConfigError(f"{address!r} is not host:port: {error}") from error
    if parts.scheme.lower() not in {"tikv", "http", "https"}:
        raise ConfigError(f"unknown scheme in {address!r}; use 'tikv://host:port' or 'host:port'")
    if parts.path not in {"", "/"} or parts.fragment or "@" in parts.netloc:
        raise ConfigError(f"{address!r} has more than hosts and parameters; use 'tikv://host:port[,host:port]'")
    endpoints = tuple(_endpoint(part, address) for part in parts.netloc.split(","))
    parameters = parse_qs(parts.query, keep_blank_values=True)
    unknown = sorted(parameters.keys() - {"keyspaceName"})
    if unknown:
        raise ConfigError(f"unknown parameter {unknown[0]!r} in {address!r}; known is keyspaceName")
    names = parameters.get("keyspaceName", [])
    return ClusterAddress(endpoints, names[-1] if names and names[-1] else None)


def _endpoint(text: str, address: str) -> str:
    host, separator, port = text.strip().rpartition(":")
    if not separator or not host or (":" in host and not host.startswith("[")):
        raise ConfigError(f"{text.strip()!r} in {address!r} is not host:port; PD's client port is usually 2379")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{port!r} in {address!r} is not a port between 1 and 65535")
    return f"{host}:{port}"


def strip_scheme(url: str) -> str:
    """Return the `host:port` of a member's client URL."""
    return url.rpartition("://")[2].rstrip("/")


@attrs.frozen(kw_only=True)
class SecurityConfig:
    """TLS, mutual when a client certificate is given. Server certificates are always verified."""

    ca_path: Path = attrs.field(converter=Path)
    """PEM file of the authorities to trust."""
    cert_path: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    """PEM file of the client's certificate chain; needs `key_path`."""
    key_path: Path | None = attrs.field(default=None, converter=attrs.converters.optional(Path))
    """PEM file of the client's private key; needs `cert_path`."""
    server_name: str | None = attrs.field(default=None, validator=validators.optional(validators.instance_of(str)))
    """Name to expect in server certificates instead of the host dialed."""

    def __attrs_post_init__(self) -> None:
        if (self.cert_path is None) != (self.key_path is None):
            raise ConfigError("a client certificate needs both cert_path and key_path")

    def load(self) -> tuple[bytes, bytes | None, bytes | None]:
        """Return (authorities, certificate chain, private key) as they are on disk now.

        Raises:
            ConfigError: a file cannot be read.
        """
        try:
            return (
                self.ca_path.read_bytes(),
                self.cert_path.read_bytes() if self.cert_path is not None else None,
                self.key_path.read_bytes() if self.key_path is not None else None,
            )
        except OSError as error:
            raise ConfigError(f"TLS material cannot be read: {error}") from error


def number(_instance: Any, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate that a value is a number; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{attribute.name} must be a number, not {type(value).__name__}")


def whole_number(_instance: Any, attribute: attrs.Attribute[Any], value: object) -> None:
    """Validate that a value is an int; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{attribute.name} must be an int, not {type(value).__name__}")


def positive(_instance: Any, attribute: attrs.Attribute[Any], value: float) -> None:
    """Validate that a number is above zero."""
    if not value > 0:
        raise ConfigError(f"{attribute.name} must be above 0, got {value!r}")


def not_negative(_instance: Any, attribute: attrs.Attribute[Any], value: float) -> None:
    """Validate that a number is zero or above."""
    if not value >= 0:
        raise ConfigError(f"{attribute.name} must not be negative, got {value!r}")


def _mapping_or_callable(_instance: Any, attribute: attrs.Attribute[Any], value: object) -> None:
    if not (isinstance(value, Mapping) or callable(value)):
        raise TypeError(f"{attribute.name} must be a mapping or a function of addresses, not {type(value).__name__}")
    if isinstance(value, Mapping):
        for address in (*value, *value.values()):
            _endpoint(address, attribute.name)


def _readable(_instance: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    if not value.strip() or not value.isascii() or not value.isprintable():
        raise ConfigError(f"{attribute.name} must be text that can be read in a log, got {value!r}")


def at_most(limit: int) -> Callable[[Any, attrs.Attribute[Any], float], None]:
    """Return what validates that a number is no greater than `limit`."""

    def check(_instance: Any, attribute: attrs.Attribute[Any], value: float) -> None:
        if value > limit:
            raise ConfigError(f"{attribute.name} must be {limit} at most, got {value!r}")

    return check


@attrs.frozen(kw_only=True)
class BreakerConfig:
    """When calls fail at once because PD had no time for too many before them. Source: pd client circuitbreaker.

    Each attempt counts, also one that nobody hears of because a later one succeeded.
    """

    threshold: float = attrs.field(validator=[number, positive, at_most(100)])
    """Percent of the attempts in a window that must have failed, 100 at most."""
    window: float = attrs.field(default=30.0, validator=[number, positive])
    """Seconds in which attempts are counted together."""
    min_rate: float = attrs.field(default=10.0, validator=[number, positive])
    """Attempts a second below which a window says nothing."""
    cooldown: float = attrs.field(default=10.0, validator=[number, positive])
    """Seconds for which calls fail at once."""
    trials: int = attrs.field(default=1, validator=[whole_number, positive])
    """Attempts that must succeed afterwards until everybody may call again."""


@attrs.frozen(kw_only=True)
class PdConfig:
    """How to talk to PD."""

    timeout: float = attrs.field(default=3.0, validator=[number, positive])
    """Seconds one RPC to PD may take. Source: client-go PDServerTimeout."""
    operation_timeout: float = attrs.field(default=10.0, validator=[number, positive])
    """Seconds one operation may take with all its attempts and waits, unless the call says otherwise."""
    open_timeout: float = attrs.field(default=10.0, validator=[number, positive])
    """Seconds in which the first member must have answered when the client is opened."""
    member_interval: float = attrs.field(default=60.0, validator=[number, positive])
    """Seconds between two looks at the members when nothing fails. Source: pd client, memberUpdateInterval."""
    service_interval: float = attrs.field(default=3.0, validator=[number, positive])
    """Seconds between two looks at whether PD or TSO servers grant timestamps. Source: serviceModeUpdateInterval."""
    tso_from_pd: bool = attrs.field(default=False, validator=validators.instance_of(bool))
    """Whether to ask PD for timestamps even where TSO servers grant them, which are then never looked for.

    For clients that reach PD alone: it passes the requests on. Source: pd client, UseTSOServerProxy.
    """
    use_routers: bool = attrs.field(default=False, validator=validators.instance_of(bool))
    """Whether routers, where there are any, are asked about Regions and stores, PD when they fail.

    They answer from copies that lag behind a little. Source: pd client, EnableRouterServiceHandler.
    """
    max_tso_batch: int = attrs.field(default=10_000, validator=[whole_number, positive, at_most((1 << 18) - 1)])
    """Timestamps asked for in one message at most; a millisecond has less than 2**18.

    Source: pd client, defaultMaxTSOBatchSize.
    """
    low_resolution_interval: float = attrs.field(default=2.0, validator=[number, positive])
    """Seconds between two timestamps of low resolution. Source: client-go defaultOracleUpdateInterval."""
    forwarding: bool = attrs.field(default=False, validator=validators.instance_of(bool))
    """Whether followers pass requests on to a leader that cannot be reached from here, those for timestamps included.

    Watches wait for the leader, and so do requests for tokens of resource groups. Source: client-go EnableForwarding.
    """
    tso_through_follower: bool = attrs.field(default=False, validator=validators.instance_of(bool))
    """Whether a follower passes requests for timestamps on even to a leader that can be reached, to spare it streams.

    It asks for those of many clients in one message, at the cost of a hop. Of no effect where TSO servers grant them.
    Source: pd client, EnableTSOFollowerProxy.
    """
    region_breaker: BreakerConfig | None = attrs.field(
        default=None, validator=validators.optional(validators.instance_of(BreakerConfig))
    )
    """When queries of Regions fail at once for a while, because PD is overloaded; None for never."""
    caller_component: str = attrs.field(default="tikv-sdk-python", validator=[validators.instance_of(str), _readable])
    """Name that PD logs and counts requests under; printable ASCII."""
    host_mapping: HostMapping | None = attrs.field(
        default=None, hash=False, validator=validators.optional(_mapping_or_callable)
    )
    """Where to dial members that advertise an address that cannot be reached from here; None dials as advertised.

    The clients that speak to stores as well dial those in the same way.

    Over TLS a certificate must name the host dialed, or `SecurityConfig.server_name`.
    """
