from typing import Any

import pytest
from tikv_pd import LATEST, ConfigError, Timestamp
from tikv_txn._arguments import as_start_ts, as_ts, check_options
from tikv_txn.options import TransactionOptions


def test_a_timestamp_is_taken_in_either_form() -> None:
    assert as_ts(Timestamp(3, 4), "ts") == Timestamp(3, 4).ts
    assert as_ts(Timestamp(3, 4).ts, "ts") == Timestamp(3, 4).ts


@pytest.mark.parametrize("value", ["1", 1.0, None, True])
def test_nothing_else_is_a_timestamp(value: Any) -> None:
    with pytest.raises(TypeError, match="ts must be a Timestamp"):
        as_ts(value, "ts")


@pytest.mark.parametrize("value", [-1, LATEST + 1])
def test_a_timestamp_has_64_bits(value: int) -> None:
    with pytest.raises(ConfigError, match="timestamp"):
        as_ts(value, "ts")


@pytest.mark.parametrize("value", [0, LATEST])
def test_no_transaction_starts_at_a_timestamp_that_stands_for_something_else(value: int) -> None:
    with pytest.raises(ConfigError, match="no transaction starts"):
        as_start_ts(value)


def test_options_are_transaction_options() -> None:
    options = TransactionOptions()

    assert check_options(options) is options
    with pytest.raises(TypeError, match="options must be TransactionOptions, not dict"):
        check_options({})
