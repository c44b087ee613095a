"""Transfers in every commit mode while Regions move and answers are lost: none is lost, and none happens twice."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import anyio
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_region import TxnV1Codec
from tikv_txn import RpcConfig, TikvError, TransactionClient, TransactionOptions, TxnConfig

ACCOUNTS = [b"account%03d" % number for number in range(60)]
START = 100
TASKS = 24
SECONDS = 3.0
FAULTS = ("lose_answer", "lose_request", "duplicate")
STRUCK = ("KvPrewrite", "KvCommit", "KvBatchRollback", "KvResolveLock", "KvCheckTxnStatus", "KvCheckSecondaryLocks")

Context = AbstractAsyncContextManager[Any]


class Shake(Protocol):
    def __call__(self, cluster: EmbeddedCluster, keys: list[bytes], seed: int = 1) -> Context: ...


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(stores=3) as running:
        yield running


class Clerk:
    """Transfers, and remembers what was reported of each.

    Args:
        client: Whose transactions.
        options: How they commit.
        seed: Makes what is transferred repeatable.
    """

    def __init__(self, client: TransactionClient, options: TransactionOptions, seed: int) -> None:
        self.reports: dict[bytes, bool | None] = {}
        """By the key that a transfer leaves behind; None if it may have happened."""
        self._client = client
        self._options = options
        self._random = random.Random(seed)

    async def work(self, number: int) -> None:
        count = 0
        until = anyio.current_time() + SECONDS
        while anyio.current_time() < until:
            count += 1
            await self._transfer(b"trace%02d-%05d" % (number, count))

    async def _transfer(self, trace: bytes) -> None:
        source, target = self._random.sample(ACCOUNTS, 2)
        self.reports[trace] = False
        try:
            async with self._client.begin(self._options, timeout=20.0) as txn:
                found = await txn.batch_get([source, target])
                txn.put(source, b"%d" % (int(found[source]) - 1))
                txn.put(target, b"%d" % (int(found[target]) + 1))
                txn.insert(trace, source + target)
                self.reports[trace] = None
            self.reports[trace] = True
        except TikvError as error:
            self.reports[trace] = None if error.undetermined else False

    async def audit(self) -> None:
        """Read everything again and again: at every moment it adds up."""
        until = anyio.current_time() + SECONDS
        while anyio.current_time() < until:
            found = await self._client.snapshot(timeout=20.0).batch_get(ACCOUNTS)
            assert sum(map(int, found.values())) == START * len(ACCOUNTS)
            await anyio.sleep(0.05)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(TransactionOptions(one_pc=False, async_commit=False), id="two phases"),
        pytest.param(TransactionOptions(one_pc=False), id="async commit"),
        pytest.param(TransactionOptions(async_commit=False), id="one phase"),
        pytest.param(TransactionOptions(causal_consistency=True), id="causal"),
    ],
)
async def test_transfers_happen_as_reported_and_as_a_whole(
    cluster: EmbeddedCluster, shaken: Shake, options: TransactionOptions
) -> None:
    encode = TxnV1Codec().encode_region_key
    # A request that was lost is not waited for very long.
    config = TxnConfig(rpc=RpcConfig(attempt_timeout=1.0))
    async with TransactionClient(cluster.url, config=config) as client:
        async with client.begin() as txn:
            txn.put_many(dict.fromkeys(ACCOUNTS, b"%d" % START))
        clerk = Clerk(client, options, seed=5)
        for rpc in STRUCK:
            for fault in FAULTS:
                getattr(cluster.faults.on(rpc, chance=0.01), fault)()

        async with shaken(cluster, [encode(key) for key in ACCOUNTS]), anyio.create_task_group() as tasks:
            tasks.start_soon(clerk.audit)
            for number in range(TASKS):
                tasks.start_soon(clerk.work, number)
        cluster.faults.clear()

        snapshot = client.snapshot()
        happened = {key: value async for key, value in snapshot.scan(prefix=b"trace")}
        balances = await snapshot.batch_get(ACCOUNTS)

    for key, reported in clerk.reports.items():
        assert reported is None or reported is (key in happened), key
    expected = dict.fromkeys(ACCOUNTS, START)
    for value in happened.values():
        expected[value[:10]] -= 1
        expected[value[10:]] += 1
    assert {key: int(value) for key, value in balances.items()} == expected
    assert len(happened) > TASKS
