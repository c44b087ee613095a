"""Options of the cluster: what is accepted, and how the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tikv_embedded import EmbeddedCluster, OptionError
from tikv_embedded.options import ClusterOptions, check_options
from tikv_embedded.store.api_mode import ApiMode

DEFAULTS: dict[str, Any] = {
    "stores": 3,
    "path": None,
    "api_version": "v1",
    "pd_members": 1,
    "tso_servers": 0,
    "router_servers": 0,
    "resource_managers": 0,
    "http": False,
    "security": None,
    "network_faults": False,
    "split_keys": (),
    "host": "127.0.0.1",
    "pd_port": 0,
    "keyspaces": (),
    "max_peer_count": 3,
    "sync": True,
}


def options(**changes: Any) -> ClusterOptions:
    return check_options(**{**DEFAULTS, **changes})


def test_options_become_values_of_their_own_types() -> None:
    checked = options(path="data", api_version="v2", split_keys=iter([b"a", b"b"]), keyspaces=["blue"])

    assert checked.path == Path("data")
    assert checked.mode is ApiMode.V2
    assert checked.split_keys == (b"a", b"b")
    assert checked.keyspaces == ("blue",)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"stores": 0}, "stores"),
        ({"stores": 101}, "stores"),
        ({"stores": True}, "stores"),
        ({"stores": "3"}, "stores"),
        ({"max_peer_count": 0}, "max_peer_count"),
        ({"pd_port": -1}, "pd_port"),
        ({"pd_port": 65536}, "pd_port"),
        ({"pd_port": 65535, "pd_members": 3}, "do not fit"),
        ({"pd_members": 2}, "pd_members"),
        ({"tso_servers": 6}, "tso_servers"),
        ({"api_version": "v3"}, "api_version"),
        ({"split_keys": b"abc"}, "split_keys"),
        ({"split_keys": 5}, "split_keys"),
        ({"split_keys": ["a"]}, "split_keys"),
        ({"split_keys": [b""]}, "split_keys"),
        ({"keyspaces": "blue", "api_version": "v2"}, "keyspaces"),
        ({"keyspaces": ["blue"]}, "v2"),
        ({"host": ""}, "host"),
    ],
)
def test_an_option_out_of_range_is_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        options(**changes)


def test_the_cluster_checks_its_options_before_it_starts() -> None:
    with pytest.raises(OptionError):
        EmbeddedCluster(stores=0)
