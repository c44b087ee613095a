from __future__ import annotations

from typing import Any

import attrs
import pytest
from tikv_raw import ConfigError, PdConfig, RawClient, RawConfig, RpcConfig


def test_options_of_each_layer_are_composed() -> None:
    config = RawConfig(timeout=5, pd=PdConfig(timeout=1), rpc=RpcConfig(concurrency=2))

    changed = attrs.evolve(config, atomic=True)

    assert (changed.timeout, changed.pd.timeout, changed.rpc.concurrency, changed.atomic) == (5, 1, 2, True)


@pytest.mark.parametrize("name", ["timeout", "batch_keys", "batch_bytes", "scan_page"])
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_are_above_zero(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be above 0"):
        RawConfig(**{name: value})  # type: ignore[arg-type]  # the names are those of numbers


@pytest.mark.parametrize(
    "options", [{"timeout": "1"}, {"atomic": 1}, {"batch_keys": 1.5}, {"batch_bytes": None}, {"scan_page": "all"}]
)
def test_options_of_another_type_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        RawConfig(**options)


def test_a_page_fits_its_field_on_the_wire() -> None:
    RawConfig(scan_page=2**32 - 1)

    with pytest.raises(ConfigError, match=r"scan_page must be 4294967295 at most"):
        RawConfig(scan_page=2**32)


def test_options_cannot_be_changed_in_place() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        RawConfig().timeout = 1  # type: ignore[misc]  # on purpose


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api_version": "V1"}, "unknown api_version 'V1'; known are 'v1', 'v1ttl' and 'v2'"),
        ({"api_version": ""}, "unknown api_version ''"),
        ({"api_version": "v1", "keyspace": "a"}, "a keyspace needs api_version='v2', not 'v1'"),
        ({"api_version": "v2", "cf": "lock"}, "API v2 has no column family 'lock', only 'default'"),
        ({"keyspace": "a", "cf": "write"}, "API v2 has no column family 'write', only 'default'"),
        ({"cf": "data"}, "unknown column family 'data'; known are default, lock, write"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RawClient("pd:2379", **options)


def test_a_keyspace_may_be_named_once_in_the_address_or_the_arguments() -> None:
    RawClient("tikv://pd:2379?keyspaceName=a", keyspace="a")

    with pytest.raises(ConfigError, match="names keyspace 'a', the argument 'b'"):
        RawClient("tikv://pd:2379?keyspaceName=a", keyspace="b")
    with pytest.raises(TypeError, match="keyspace must be a str, not bytes"):
        RawClient("pd:2379", keyspace=b"a")  # type: ignore[arg-type]  # on purpose
