from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, strategies as st
from tikv_raw import ConfigError
from tikv_raw._arguments import as_keys, as_pairs, check_cf, check_limit, check_timeout, check_ttl


def test_keys_keep_their_order_and_lose_their_duplicates() -> None:
    assert as_keys([b"b", b"a", bytearray(b"b"), memoryview(b"c"), b"a"]) == [b"b", b"a", b"c"]


def test_keys_may_come_from_any_iterable() -> None:
    assert as_keys(key for key in (b"a", b"b")) == [b"a", b"b"]
    assert as_keys({b"a": b"value"}) == [b"a"]
    assert as_keys(()) == []


@pytest.mark.parametrize("keys", [b"key", bytearray(b"key"), memoryview(b"key"), "key"])
def test_one_key_is_not_many(keys: Any) -> None:
    with pytest.raises(TypeError, match=r"pass \[key\]"):
        as_keys(keys)


@pytest.mark.parametrize("keys", [None, 1, object()])
def test_what_cannot_be_iterated_is_not_keys(keys: Any) -> None:
    with pytest.raises(TypeError, match="keys must be an iterable of keys, not"):
        as_keys(keys)


@pytest.mark.parametrize("key", ["a", None, 1, [b"a"], (b"a", b"b")])
def test_each_key_must_be_bytes(key: Any) -> None:
    with pytest.raises(TypeError, match="key must be bytes, not"):
        as_keys([b"fine", key])


@pytest.mark.parametrize(
    "pairs",
    [
        {b"a": b"1", b"b": b"2"},
        MappingProxyType({b"a": b"1", b"b": b"2"}),
        [(b"a", b"1"), (b"b", b"2")],
        [[bytearray(b"a"), memoryview(b"1")], (b"b", b"2")],
        (pair for pair in [(b"a", b"1"), (b"b", b"2")]),
        {b"a": b"1", b"b": b"2"}.items(),
        [(b"b", b"1"), (b"a", b"1"), (b"b", b"2")],
    ],
)
def test_pairs_may_be_a_mapping_or_tuples_of_which_the_last_counts(pairs: Any) -> None:
    assert as_pairs(pairs) == {b"a": b"1", b"b": b"2"}


@pytest.mark.parametrize("pairs", ["ab", b"ab", bytearray(b"ab"), None, 5])
def test_what_is_no_collection_of_pairs_is_refused_as_a_whole(pairs: Any) -> None:
    with pytest.raises(TypeError, match="pairs must be a mapping or an iterable of"):
        as_pairs(pairs)


@pytest.mark.parametrize("pair", [b"ab", "ab", {b"a", b"b"}, {b"a": 1, b"b": 2}, None, 7, (), (b"a",), (b"a", b"b", 9)])
def test_what_is_no_pair_is_refused_even_if_it_has_two_parts(pair: Any) -> None:
    with pytest.raises(TypeError, match=r"a pair must be a \(key, value\) tuple, not"):
        as_pairs([(b"k", b"v"), pair])


def test_a_mapping_of_text_is_refused() -> None:
    with pytest.raises(TypeError, match="key must be bytes, not str"):
        as_pairs({"a": b"1"})
    with pytest.raises(TypeError, match="value must be bytes, not str"):
        as_pairs({b"a": "1"})


@given(st.integers(1, 2**63 - 1))
def test_a_ttl_is_whole_seconds(ttl: int) -> None:
    assert check_ttl(ttl, enabled=True) == ttl


def test_no_ttl_is_zero_on_the_wire() -> None:
    assert check_ttl(None, enabled=True) == 0
    assert check_ttl(None, enabled=False) == 0


@pytest.mark.parametrize(("ttl", "error"), [(0, ConfigError), (-1, ConfigError), (2**63, ConfigError)])
@pytest.mark.parametrize("enabled", [True, False])
def test_a_ttl_out_of_range_is_refused(ttl: int, error: type[Exception], enabled: bool) -> None:
    with pytest.raises(error, match=r"ttl must be .*; leave it out for a key that never expires"):
        check_ttl(ttl, enabled=enabled)


@pytest.mark.parametrize("ttl", [True, 1.0, "1", b"1"])
def test_a_ttl_of_another_type_is_refused(ttl: Any) -> None:
    with pytest.raises(TypeError, match="ttl must be whole seconds as an int, not"):
        check_ttl(ttl, enabled=True)


def test_a_ttl_where_there_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="api_version='v1ttl' or 'v2'"):
        check_ttl(1, enabled=False)


@pytest.mark.parametrize("limit", [None, 0, 1, 10**30])
def test_a_limit_may_be_any_count(limit: int | None) -> None:
    assert check_limit(limit) == limit


@pytest.mark.parametrize(
    ("limit", "error"), [(-1, ConfigError), (False, TypeError), (1.0, TypeError), ("1", TypeError)]
)
def test_another_limit_is_refused(limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="limit must"):
        check_limit(limit)


def test_a_timeout_has_a_default() -> None:
    assert check_timeout(None, 30.0) == 30.0


@pytest.mark.parametrize("timeout", [1, 0.001, math.inf, 10**300])
def test_a_timeout_is_any_time_above_zero(timeout: float) -> None:
    assert check_timeout(timeout, 30.0) == float(timeout)


@pytest.mark.parametrize("timeout", [0, -1, 0.0, -0.0, math.nan, -math.inf, 10**400])
def test_a_timeout_that_is_no_time_is_refused(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout must be"):
        check_timeout(timeout, 30.0)


@pytest.mark.parametrize("timeout", [True, "1", b"1", 1j, [1]])
def test_a_timeout_of_another_type_is_refused(timeout: Any) -> None:
    with pytest.raises(TypeError, match="timeout must be seconds as a number, not"):
        check_timeout(timeout, 30.0)


@pytest.mark.parametrize("several", [True, False])
def test_the_default_column_family_has_no_name_on_the_wire(several: bool) -> None:
    assert check_cf("default", several=several) == ""


@pytest.mark.parametrize("cf", ["lock", "write"])
def test_other_column_families_exist_where_there_are_several(cf: str) -> None:
    assert check_cf(cf, several=True) == cf
    with pytest.raises(ConfigError, match="API v2 has no column family"):
        check_cf(cf, several=False)


@pytest.mark.parametrize("cf", ["", "Default", "raft"])
def test_an_unknown_column_family_is_refused_and_the_known_are_named(cf: str) -> None:
    with pytest.raises(ConfigError, match="known are default, lock, write"):
        check_cf(cf, several=True)


@pytest.mark.parametrize("cf", [b"default", 1, ["default"]])
def test_a_column_family_is_named_by_a_str(cf: Any) -> None:
    with pytest.raises(TypeError, match="cf must be a str, not"):
        check_cf(cf, several=True)
