"""The blocking client where no cluster is needed; against one it is tested across packages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tikv_pd import ClosedError, ConfigError, PdConfig, PdUnavailable
from tikv_txn import TxnConfig
from tikv_txn.sync import Transaction, TransactionClient, transactional

NOWHERE = "127.0.0.1:1"


@transactional
def touch(txn: Transaction, key: bytes) -> None:
    txn.put(key, b"")


@pytest.mark.parametrize(
    "use",
    [
        TransactionClient.begin,
        TransactionClient.snapshot,
        TransactionClient.get_ts,
        TransactionClient.stats,
        lambda client: client.run(lambda txn: txn.put(b"k", b"v")),
        lambda client: touch(client, b"k"),
        lambda client: client.transactional(lambda txn: txn.put(b"k", b"v"))(),
    ],
)
def test_a_client_that_is_not_open_refuses(use: Callable[[TransactionClient], object]) -> None:
    client = TransactionClient(NOWHERE)

    with pytest.raises(ClosedError):
        use(client)

    client.close()


def test_arguments_are_checked_as_those_of_the_async_client() -> None:
    with pytest.raises(ConfigError):
        TransactionClient(NOWHERE, api_version="v1ttl")  # type: ignore[arg-type]  # the mistake
    with pytest.raises(ConfigError):
        TransactionClient(NOWHERE, api_version="v1", keyspace="users")


def test_an_address_without_a_cluster_is_an_error_and_leaves_nothing_open() -> None:
    client = TransactionClient(NOWHERE, config=TxnConfig(pd=PdConfig(open_timeout=0.3)))

    with pytest.raises(PdUnavailable), client:
        pytest.fail("it opened")

    with pytest.raises(ClosedError):
        client.get_ts()
