from typing import Any

import attrs
import pytest
from tikv_pd import LATEST, ConfigError
from tikv_rpc import Priority, RequestOptions
from tikv_txn.config import TxnConfig
from tikv_txn.options import AssertionLevel, TransactionOptions


def test_transactions_commit_the_fast_way_unless_told_otherwise() -> None:
    options = TransactionOptions()

    assert options.async_commit
    assert options.one_pc
    assert not options.causal_consistency
    assert options.assertion_level is AssertionLevel.STRICT
    assert options.commit_after == 0


def test_the_defaults_are_those_of_client_go() -> None:
    config = TxnConfig()

    assert (config.commit_batch_bytes, config.commit_concurrency) == (16 << 10, 128)
    assert (config.lock_ttl, config.managed_lock_ttl, config.heartbeat_bytes) == (3.0, 20.0, 32 << 20)
    assert (config.async_commit_keys, config.async_commit_key_bytes, config.async_commit_window) == (256, 4096, 2.0)
    assert (config.resolved_transactions, config.resolve_lite_keys) == (2048, 512)
    assert (config.scan_page, config.batch_get_keys) == (256, 5120)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("async_commit", 1),
        ("one_pc", None),
        ("causal_consistency", "yes"),
        ("assertion_level", "strict"),
        ("commit_after", -1),
        ("commit_after", LATEST),
        ("commit_after", 1.5),
        ("commit_after", True),
        ("commit_after_timeout", -0.1),
        ("commit_after_timeout", float("nan")),
        ("timeout", 0),
        ("timeout", "soon"),
        ("requests", Priority.HIGH),
        ("max_entry_bytes", 0),
        ("max_bytes", 1.5),
    ],
)
def test_an_option_that_can_never_work_is_refused(name: str, value: Any) -> None:
    with pytest.raises((ConfigError, TypeError), match=name):
        TransactionOptions(**{name: value})


@pytest.mark.parametrize("value", [0, -1, float("nan")])
@pytest.mark.parametrize(
    "name", ["timeout", "run_timeout", "scan_page", "scan_bytes", "commit_batch_bytes", "lock_ttl"]
)
def test_a_limit_of_the_client_must_be_above_zero(name: str, value: Any) -> None:
    with pytest.raises((ConfigError, TypeError), match=name):
        TxnConfig(**{name: value})


def test_a_snapshot_may_keep_nothing() -> None:
    TxnConfig(snapshot_cache_bytes=0)

    with pytest.raises(ConfigError, match="snapshot_cache_bytes"):
        TxnConfig(snapshot_cache_bytes=-1)


def test_a_page_must_fit_its_field_on_the_wire() -> None:
    with pytest.raises(ConfigError, match="scan_page"):
        TxnConfig(scan_page=1 << 32)


def test_options_are_changed_by_making_others() -> None:
    options = TransactionOptions()

    changed = attrs.evolve(options, requests=RequestOptions(priority=Priority.HIGH), commit_after_timeout=0)

    assert changed.requests.priority is Priority.HIGH
    assert options.requests == RequestOptions()
