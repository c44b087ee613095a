"""Every public option says what it means, refuses what it cannot be, and shows: a field that is new has to be named
here, together with a test that fails when nothing comes of it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

PACKAGES = Path(__file__).parents[2] / "packages"
MODULES = ["tikv_pd", "tikv_region", "tikv_rpc", "tikv_rpc.resource_control", "tikv_raw", "tikv_txn"]
NEEDED: Final[Mapping[str, dict[str, Any]]] = {
    "SecurityConfig": {"ca_path": "ca.pem"},
    "BreakerConfig": {"threshold": 50},
}
"""What some of them cannot be made without."""
NO_OPTIONS: Final = {"GlobalConfig"}
"""What has a name like theirs and is none: a part of `PdClient`."""
COMPOSED: Final = {"pd", "region", "rpc"}
"""Fields that hold the options of the layers below."""

CHECKED: Final[Mapping[str, str]] = {
    "PdConfig": "tikv-pd/tests/protocol/test_pd_every_option.py::test_every_field_is_checked",
    "BreakerConfig": "tikv-pd/tests/protocol/test_pd_every_option.py::test_every_field_of_the_breaker_is_checked",
    "RegionConfig": "tikv-region/tests/protocol/test_region_every_option.py::test_every_field_is_checked",
    "RpcConfig": "tikv-rpc/tests/protocol/test_rpc_every_option.py::test_every_field_of_the_configuration_is_checked",
    "RequestOptions": "tikv-rpc/tests/protocol/test_rpc_every_option.py::test_every_option_of_requests_is_checked",
    "RawConfig": "tikv-raw/tests/protocol/test_raw_every_option.py::test_every_field_is_checked",
    "TxnConfig": "tikv-txn/tests/protocol/test_txn_every_option.py::test_every_field_is_checked",
    "TransactionOptions": "tikv-txn/tests/protocol/test_txn_every_option.py::test_every_option_is_checked",
}
"""Classes with a table of their own, which has a check for each field, and the test that fails when one has none."""

_CHANNEL = "tikv-pd/tests/faults/test_pd_channel_options.py::"
_TLS = "tikv-pd/tests/faults/test_pd_tls.py::"
_CONTROL = "tikv-rpc/tests/protocol/test_rpc_resource_control.py::"
_COST = "tikv-rpc/tests/unit/test_rpc_ru_cost.py::"
_MODEL = _COST + "test_the_model_of_a_cluster_replaces_each_cost"
_WEIGHTS = _COST + "test_each_weight_counts"
SHOWN: Final[Mapping[str, Mapping[str, str]]] = {
    "ChannelConfig": {
        "keepalive_time": _CHANNEL + "test_a_quiet_connection_is_pinged_after_the_keepalive_time",
        "keepalive_timeout": _CHANNEL + "test_a_shorter_keepalive_timeout_finds_it_earlier",
        "window_bytes": _CHANNEL + "test_the_window_is_what_the_server_may_send_ahead",
        "reconnect_backoff": _CHANNEL + "test_the_second_attempt_to_connect_comes_after_the_backoff",
        "max_reconnect_backoff": _CHANNEL + "test_waits_between_attempts_grow_up_to_a_limit",
        "connect_attempt_timeout": _CHANNEL + "test_an_attempt_to_connect_is_given_up_in_time",
        "compression": _CHANNEL + "test_requests_are_compressed_when_asked_for",
    },
    "SecurityConfig": {
        "ca_path": _TLS + "test_a_server_of_an_unknown_authority_is_not_trusted_and_the_error_says_where_to_look",
        "cert_path": _TLS + "test_both_sides_prove_who_they_are",
        "key_path": _TLS + "test_both_sides_prove_who_they_are",
        "server_name": _TLS + "test_a_certificate_for_another_name_needs_that_name",
    },
    "ResourceControlConfig": {
        "model": _CONTROL + "test_both_models_can_be_set",
        "max_wait": _CONTROL + "test_the_longest_wait_can_be_set",
        "retry_interval": _CONTROL + "test_how_long_to_look_for_tokens_can_be_set",
        "retry_times": _CONTROL + "test_how_long_to_look_for_tokens_can_be_set",
        "degraded_wait": _CONTROL + "test_groups_fill_themselves_while_pd_is_silent_and_stop_when_it_is_back",
        "degraded_fill_rate": _CONTROL + "test_a_group_that_cannot_be_loaded_may_go_by_a_rate_of_this_client",
        "token_timeout": _CONTROL + "test_how_long_pd_may_take_can_be_set",
        "zone": _CONTROL + "test_zones_are_compared",
        "ru_v2_weights": _CONTROL + "test_both_models_can_be_set",
    },
    "RuModel": {
        "read_base_cost": _MODEL,
        "read_per_batch_base_cost": _MODEL,
        "read_cost_per_byte": _MODEL,
        "write_base_cost": _MODEL,
        "write_per_batch_base_cost": _MODEL,
        "write_cost_per_byte": _MODEL,
        "read_cpu_ms_cost": _MODEL,
    },
    "RuV2Weights": {
        "scale": _WEIGHTS,
        "engine_cache_miss": _WEIGHTS,
        "executor_inputs": _WEIGHTS,
        "executor_iterations": _WEIGHTS,
        "coprocessor_response_bytes": _WEIGHTS,
        "raftstore_write_bytes": _WEIGHTS,
        "batch_get_keys": _WEIGHTS,
        "get_keys": _WEIGHTS,
        "write_rpcs": _WEIGHTS,
    },
}
"""The other classes: for each field a test that fails when it is ignored."""


def options() -> dict[str, type]:
    """Return the classes by which users set something, wherever they are exported."""
    exported = {
        name: value
        for module in MODULES
        for name, value in vars(importlib.import_module(module)).items()
        if isinstance(value, type) and attrs.has(value) and name not in NO_OPTIONS
    }
    return {name: value for name, value in exported.items() if name.endswith(("Config", "Options")) or name in SHOWN}


OPTIONS: Final = options()
NAMED: Final = sorted({*CHECKED.values(), *(test for tests in SHOWN.values() for test in tests.values())})


def fields() -> Iterator[Any]:
    for name, cls in OPTIONS.items():
        for field in attrs.fields(cls):
            if field.init:
                yield pytest.param(cls, field, id=f"{name}.{field.name}")


FIELDS: Final = list(fields())


@cache
def documented(cls: type) -> set[str]:
    """Return the fields of a class that are followed by a docstring."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    pairs = zip(definition.body, definition.body[1:], strict=False)
    return {
        before.target.id
        for before, after in pairs
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }


@cache
def functions_in(file: str) -> set[str]:
    tree = ast.parse((PACKAGES / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


def make(cls: type, field: attrs.Attribute[Any], value: Any) -> Any:
    return cls(**{**NEEDED.get(cls.__name__, {}), field.name: value})


def is_number(cls: type, field: attrs.Attribute[Any]) -> bool:
    kind = typing.get_type_hints(cls)[field.name]
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return int in kinds or float in kinds


def test_each_class_of_options_is_in_one_of_the_tables() -> None:
    assert CHECKED.keys() | SHOWN.keys() == OPTIONS.keys()
    assert not CHECKED.keys() & SHOWN.keys()


@pytest.mark.parametrize("name", SHOWN)
def test_each_field_has_a_test_that_shows_it(name: str) -> None:
    assert list(SHOWN[name]) == [field.name for field in attrs.fields(OPTIONS[name])]


@pytest.mark.parametrize("named", NAMED)
def test_what_the_tables_name_is_a_test(named: str) -> None:
    file, _, test = named.partition("::")

    assert test.startswith("test_")
    assert test in functions_in(file)


@pytest.mark.parametrize("cls", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_are_values_given_by_name(cls: type) -> None:
    assert all(field.kw_only for field in attrs.fields(cls) if field.init)
    made = cls(**NEEDED.get(cls.__name__, {}))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(made, attrs.fields(cls)[0].name, None)


@pytest.mark.parametrize(("cls", "field"), FIELDS)
def test_a_field_says_what_it_means(cls: type, field: attrs.Attribute[Any]) -> None:
    assert field.name in documented(cls)


@pytest.mark.parametrize(("cls", "field"), [each for each in FIELDS if each.values[1].name not in COMPOSED])
def test_a_field_refuses_what_it_cannot_be(cls: type, field: attrs.Attribute[Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        make(cls, field, object())


@pytest.mark.parametrize(("cls", "field"), [each for each in FIELDS if is_number(*each.values)])
def test_what_counts_something_is_a_number(cls: type, field: attrs.Attribute[Any]) -> None:
    for value in (math.nan, -math.inf, "1"):
        with pytest.raises((TypeError, ValueError)):
            make(cls, field, value)
