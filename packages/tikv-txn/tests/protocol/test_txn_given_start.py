"""Transactions that start at a timestamp of their user's, or long before they commit."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from tikv_pd import ConfigError, Timestamp
from tikv_proto.services import PD, Tikv
from tikv_rpc.testing import FakeCluster
from tikv_txn import SnapshotTooOld, TransactionClient, TransactionOptions, TransactionState
from tikv_txn.testing import FakeMvcc

NOW = Timestamp(1_000_000, 0)
TWO_PC = TransactionOptions(one_pc=False, async_commit=False)


@pytest.fixture
async def client(cluster: FakeCluster, mvcc: FakeMvcc) -> AsyncIterator[TransactionClient]:  # noqa: ARG001  # serves it
    cluster.pd.timestamp = NOW
    async with TransactionClient(cluster.url, transport=cluster.transport) as opened:
        yield opened


async def test_locks_of_a_transaction_that_starts_in_the_past_last_as_long_as_others(
    cluster: FakeCluster, client: TransactionClient
) -> None:
    async with client.begin(TWO_PC, start_ts=Timestamp(NOW.physical - 60_000, 0)) as txn:
        txn.put(b"a", b"1")

    (prewrite,) = cluster.requests(Tikv.KvPrewrite)
    assert 62_999 <= prewrite.lock_ttl <= 63_001


async def test_no_two_transactions_of_a_client_commit_with_one_start_timestamp(
    client: TransactionClient, mvcc: FakeMvcc
) -> None:
    async with client.begin() as first:
        first.put(b"a", b"1")
    second = await client.begin(start_ts=first.start_ts)
    second.put(b"a", b"2")

    # Stores take both for one transaction, and its second commit for one that was sent twice.
    with pytest.raises(ConfigError, match="another transaction"):
        await second.commit()

    assert second.state is TransactionState.ROLLED_BACK
    assert mvcc.at(b"a") == b"1"


async def test_transactions_that_only_read_may_share_a_start_timestamp(client: TransactionClient) -> None:
    async with client.begin() as first:
        first.put(b"a", b"1")

    for _ in range(2):
        async with client.begin(start_ts=first.commit_ts) as txn:
            assert await txn.get(b"a") == b"1"


async def test_a_transaction_from_before_the_safe_point_does_not_commit(
    cluster: FakeCluster, client: TransactionClient, mvcc: FakeMvcc
) -> None:
    txn = await client.begin()
    txn.put(b"a", b"1")
    await anyio.sleep(20.0)
    # What was deleted since, and is gone without a trace, may be in conflict with it.
    cluster.pd.gc.txn_safe_point = txn.start_ts.ts + 1

    with pytest.raises(SnapshotTooOld):
        await txn.commit()

    assert mvcc.at(b"a") is None
    assert not cluster.requests(Tikv.KvPrewrite)


async def test_a_commit_that_is_cancelled_before_anything_was_sent_is_rolled_back(
    cluster: FakeCluster, client: TransactionClient
) -> None:
    txn = await client.begin()
    txn.put(b"a", b"1")
    await anyio.sleep(20.0)
    cluster.pd.hang(PD.GetGCState)

    with anyio.move_on_after(1.0):
        await txn.commit()

    assert txn.state is TransactionState.ROLLED_BACK


async def test_a_young_transaction_asks_for_no_safe_point(cluster: FakeCluster, client: TransactionClient) -> None:
    async with client.begin() as txn:
        txn.put(b"a", b"1")

    assert cluster.pd.gc.scopes == []
