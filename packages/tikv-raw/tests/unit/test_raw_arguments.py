from __future__ import annotations

import math
import pickle
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from hypothesis import given, strategies as st
from tikv_raw import CasResult, ConfigError, KeyTooLarge, RawClient, ValueTooLarge
from tikv_raw._arguments import Limits, as_ranges, check_cf, check_on_error, check_progress, check_ttl
from tikv_raw._windows import Span, key_windows, pair_windows
from tikv_region import KeyRange
from tikv_rpc.frontend.arguments import as_key, as_range, check_flag, check_limit, check_timeout

SPAN = Span(request_keys=100, request_bytes=1000, concurrency=1)
LIMITS = Limits(max_key=8, key_prefix=0, max_value=16, has_ttl=True)


def as_keys(keys: Any) -> list[bytes]:
    """Return the keys of the only window."""
    return [key for window in key_windows(keys, SPAN, as_key, int) for key in window.keys]


def as_pairs(pairs: Any) -> dict[bytes, bytes]:
    """Return the pairs of the only window."""
    return {
        key: value
        for window in pair_windows(pairs, 0, SPAN, LIMITS)
        for key, value in zip(window.keys, window.values, strict=True)
    }


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


@pytest.mark.parametrize(
    "pair", [b"ab", "ab", {b"a", b"b"}, {b"a": 1, b"b": 2}, None, 7, (), (b"a",), (b"a", b"b", 9, 9)]
)
def test_what_is_no_pair_is_refused_even_if_it_has_two_parts(pair: Any) -> None:
    with pytest.raises(TypeError, match=r"a pair must be a \(key, value\) or \(key, value, ttl\) tuple, not"):
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


@pytest.mark.parametrize("timeout", [1, 0.001, math.inf, 10**300])
def test_a_timeout_is_any_time_above_zero(timeout: float) -> None:
    assert check_timeout(timeout) == float(timeout)


@pytest.mark.parametrize("timeout", [0, -1, 0.0, -0.0, math.nan, -math.inf, 10**400])
def test_a_timeout_that_is_no_time_is_refused(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout must be"):
        check_timeout(timeout)


@pytest.mark.parametrize("timeout", [True, "1", b"1", 1j, [1]])
def test_a_timeout_of_another_type_is_refused(timeout: Any) -> None:
    with pytest.raises(TypeError, match="timeout must be seconds as a number, not"):
        check_timeout(timeout)


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


# --- limits, ranges, choices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 8])
def test_a_key_is_written_up_to_the_limit(size: int) -> None:
    assert LIMITS.key(bytearray(size)) == bytes(size)


def test_a_longer_key_is_named_with_what_is_put_before_it() -> None:
    with pytest.raises(KeyTooLarge, match="a key of 13 bytes exceeds the limit of 12: storage") as caught:
        attrs.evolve(LIMITS, key_prefix=4).key(b"123456789")

    assert (caught.value.key, caught.value.size, caught.value.limit) == (b"123456789", 13, 12)
    assert isinstance(caught.value, ValueError)


def test_a_larger_value_is_named_with_its_key() -> None:
    assert LIMITS.value(b"k", memoryview(bytes(16))) == bytes(16)

    with pytest.raises(ValueTooLarge, match="a value of 17 bytes exceeds the limit of 16; split it") as caught:
        LIMITS.value(b"k", bytes(17))

    assert (caught.value.key, caught.value.size, caught.value.limit) == (b"k", 17, 16)


@pytest.mark.parametrize("error", [KeyTooLarge(b"k", 2, 1), ValueTooLarge(b"k", 2, 1)])
def test_errors_of_size_survive_pickling(error: KeyTooLarge | ValueTooLarge) -> None:
    copied = pickle.loads(pickle.dumps(error))

    assert type(copied) is type(error)
    assert (copied.key, copied.size, copied.limit, str(copied)) == (b"k", 2, 1, str(error))


def test_a_range_is_given_by_bounds_or_by_a_prefix() -> None:
    assert as_range(b"a", bytearray(b"b")) == KeyRange(b"a", b"b")
    assert as_range(b"", b"", b"a") == KeyRange(b"a", b"b")
    assert as_range(b"", b"", b"") == KeyRange()
    with pytest.raises(ConfigError, match="either a prefix or start and end"):
        as_range(b"a", b"", b"a")
    with pytest.raises(ConfigError, match="either a prefix or start and end"):
        as_range(b"", b"b", b"")


def test_ranges_are_tuples_or_ranges() -> None:
    assert as_ranges([(b"a", b"b"), [b"c", memoryview(b"")], KeyRange(b"x", b"y")]) == [
        KeyRange(b"a", b"b"),
        KeyRange(b"c"),
        KeyRange(b"x", b"y"),
    ]


@pytest.mark.parametrize("ranges", [b"ab", "ab", None, 3, KeyRange()])
def test_one_range_is_not_many(ranges: Any) -> None:
    with pytest.raises(TypeError, match="ranges must be an iterable of"):
        as_ranges(ranges)


@pytest.mark.parametrize("key_range", [b"ab", "ab", None, (b"a",), (b"a", b"b", b"c"), {b"a", b"b"}])
def test_what_is_no_range_is_refused(key_range: Any) -> None:
    with pytest.raises(TypeError, match=r"a range must be a \(start, end\) tuple, not"):
        as_ranges([key_range])


def test_errors_are_raised_or_returned() -> None:
    assert check_on_error("return")
    assert not check_on_error("raise")
    with pytest.raises(ConfigError, match="on_error must be 'raise' or 'return', not 'ignore'"):
        check_on_error("ignore")


def test_progress_is_told_to_a_function() -> None:
    check_progress(None)
    check_progress(print)
    with pytest.raises(TypeError, match="progress must be a function, not int"):
        check_progress(1)


@pytest.mark.parametrize("value", ["no", 1, None])
def test_a_flag_is_true_or_false(value: Any) -> None:
    with pytest.raises(TypeError, match="reverse must be True or False"):
        check_flag(value, "reverse")


def test_a_swap_is_true_if_it_swapped() -> None:
    assert CasResult(swapped=True, previous=None)
    assert not CasResult(swapped=False, previous=b"other")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"config": {}}, TypeError, "config must be a RawConfig, not dict"),
        ({"security": "ca.pem"}, TypeError, "security must be a SecurityConfig, not str"),
        ({"observers": [5]}, TypeError, "an observer must have a method `begin`"),
        ({"keyspace": ""}, ConfigError, "keyspace must be a name"),
    ],
)
def test_what_a_client_cannot_work_with_is_refused_at_once(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        RawClient("127.0.0.1:2379", **options)
