"""What can be chosen about an embedded cluster, checked before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import attrs

from tikv_embedded.errors import OptionError
from tikv_embedded.security import ServerSecurity
from tikv_embedded.store.api_mode import ApiMode

_T = TypeVar("_T")

MAX_STORES = 100
"""More would be no cluster for one process."""

MAX_SERVERS_APART = 5
"""Of each service that is served apart from PD; all but one of them only wait."""


@attrs.frozen(kw_only=True)
class ClusterOptions:
    """Options of `EmbeddedCluster`, which documents them; here they have the right types and ranges."""

    stores: int
    path: Path | None
    mode: ApiMode
    pd_members: int
    tso_servers: int = 0
    router_servers: int = 0
    resource_managers: int = 0
    http: bool = False
    security: ServerSecurity | None = None
    network_faults: bool = False
    split_keys: tuple[bytes, ...]
    host: str
    pd_port: int
    keyspaces: tuple[str, ...]
    max_peer_count: int
    sync: bool


def check_options(
    *,
    stores: int,
    path: str | os.PathLike[str] | None,
    api_version: str,
    pd_members: int,
    tso_servers: int,
    router_servers: int,
    resource_managers: int,
    http: bool,
    security: ServerSecurity | None,
    network_faults: bool,
    split_keys: Iterable[bytes],
    host: str,
    pd_port: int,
    keyspaces: Iterable[str],
    max_peer_count: int,
    sync: bool,
) -> ClusterOptions:
    """Return the options as values.

    Raises:
        OptionError: one of them is out of range or of the wrong type, or two contradict each other.
    """
    _check_int("stores", stores, 1, MAX_STORES)
    _check_int("max_peer_count", max_peer_count, 1, MAX_STORES)
    _check_int("tso_servers", tso_servers, 0, MAX_SERVERS_APART)
    _check_int("router_servers", router_servers, 0, MAX_SERVERS_APART)
    _check_int("resource_managers", resource_managers, 0, MAX_SERVERS_APART)
    _check_int("pd_port", pd_port, 0, 65535)
    if pd_members not in (1, 3):
        raise OptionError(f"pd_members must be 1 or 3, not {pd_members!r}")
    if pd_port + pd_members > 65536:
        raise OptionError(f"{pd_members} PD members do not fit behind port {pd_port}")
    modes = {mode.value: mode for mode in ApiMode}
    if api_version not in modes:
        raise OptionError(f"api_version must be one of {', '.join(modes)}, not {api_version!r}")
    keys, names = _items("split_keys", split_keys, bytes), _items("keyspaces", keyspaces, str)
    if names and modes[api_version] is not ApiMode.V2:
        raise OptionError("keyspaces need api_version='v2'")
    if security is not None:
        security.check()
    if not host:
        raise OptionError("host must be an address to listen on")
    return ClusterOptions(
        stores=stores,
        path=None if path is None else Path(path),
        mode=modes[api_version],
        pd_members=pd_members,
        tso_servers=tso_servers,
        router_servers=router_servers,
        resource_managers=resource_managers,
        http=http,
        security=security,
        network_faults=network_faults,
        split_keys=keys,
        host=host,
        pd_port=pd_port,
        keyspaces=names,
        max_peer_count=max_peer_count,
        sync=sync,
    )


def _items(name: str, values: object, kind: type[_T]) -> tuple[_T, ...]:
    """Return the values of a collection option; one string alone is the likeliest mistake."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise OptionError(f"{name} is a collection, not {values!r}")
    items = tuple(values)
    for item in items:
        if not isinstance(item, kind) or not item:
            raise OptionError(f"{name} holds non-empty {kind.__name__}, not {item!r}")
    return items


def _check_int(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise OptionError(f"{name} must be an integer from {least} to {most}, not {value!r}")
