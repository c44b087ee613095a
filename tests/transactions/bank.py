"""A bank: money moves between accounts while everything goes wrong, and none is made or lost.

The tests run it for a few seconds. The whole of it, 64 tasks and 1,000 accounts for a minute in each commit mode:

    python -m tests.transactions.bank

from the root of the tree; `--seconds`, `--tasks`, `--accounts`, `--seed` and `--modes` change that.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

import anyio
import attrs
from tikv_embedded import EmbeddedCluster
from tikv_txn import (
    DeadlineExceeded,
    RpcConfig,
    Snapshot,
    Transaction,
    TransactionClient,
    TransactionOptions,
    TxnConfig,
    UndeterminedError,
)

from tests.transactions.turmoil import turmoil, unlocked

MODES: Final = {
    "2pc": TransactionOptions(async_commit=False, one_pc=False),
    "async": TransactionOptions(one_pc=False),
    "1pc": TransactionOptions(async_commit=False),
    "fastest": TransactionOptions(),
    "causal": TransactionOptions(causal_consistency=True),
}
CONFIG: Final = TxnConfig(
    # Short, so that what was lost is noticed within the run.
    lock_ttl=0.5,
    managed_lock_ttl=1.0,
    timeout=10.0,
    run_timeout=10.0,
    rpc=RpcConfig(attempt_timeout=0.5, connect_timeout=0.5, liveness_timeout=0.2, liveness_interval=0.1),
)
OPENING: Final = 100
"""What is in each account at first."""


@attrs.frozen(kw_only=True)
class Load:
    mode: str
    tasks: int = 8
    accounts: int = 60
    seconds: float = 3.0
    seed: int = 1


@attrs.frozen
class Books:
    """What one snapshot says."""

    balances: dict[bytes, int]
    transfers: dict[int, tuple[bytes, bytes, int]]
    """By number: from where, to where, and how much."""

    @classmethod
    def of(cls, pairs: Mapping[bytes, bytes]) -> Books:
        books = cls({}, {})
        for key, value in pairs.items():
            account, _, number = key.partition(b"/")
            if number:
                target, amount = value.split(b":")
                books.transfers[int(number)] = account, target, int(amount)
            else:
                books.balances[account] = int(value)
        return books

    def audit(self, accounts: Iterable[bytes]) -> None:
        """Fail unless all money is there, and each account holds what the transfers have left it."""
        expected = dict.fromkeys(accounts, OPENING)
        for source, target, amount in self.transfers.values():
            expected[source] -= amount
            expected[target] += amount
        assert self.balances == expected


@attrs.define
class Bank:
    """Accounts, and beside each the transfers from it, so that one Region may hold all that a transfer writes."""

    load: Load
    committed: set[int] = attrs.field(factory=set)
    """Transfers that happened."""
    unknown: set[int] = attrs.field(factory=set)
    """Transfers of which their task did not learn whether they happened."""
    audits: int = 0
    """Snapshots in which everything was right."""
    failures: Counter[str] = attrs.field(factory=Counter)
    """Transfers that did not happen, by reason."""
    _numbers: int = 0

    @property
    def accounts(self) -> list[bytes]:
        return [b"a%04d" % number for number in range(self.load.accounts)]

    async def run(self, cluster: EmbeddedCluster) -> None:
        """Open the accounts, move money while everything goes wrong, and audit."""
        options = MODES[self.load.mode]
        config = attrs.evolve(CONFIG, transaction=options)
        async with TransactionClient(cluster.url, config=config) as client:
            async with client.begin() as txn:
                txn.put_many(dict.fromkeys(self.accounts, b"%d" % OPENING))
            async with turmoil(cluster, self.accounts, self.load.seed) as disturbing:
                with anyio.move_on_after(self.load.seconds):
                    await self._work(cluster, config)
            assert disturbing.changes
            assert disturbing.restarts
            await self._close(cluster, client)

    async def _work(self, cluster: EmbeddedCluster, config: TxnConfig) -> None:
        async with (
            TransactionClient(cluster.url, config=config) as one,
            TransactionClient(cluster.url, config=config) as other,
            anyio.create_task_group() as tasks,
        ):
            for number in range(self.load.tasks):
                choices = random.Random(f"{self.load.seed}.{number}")
                tasks.start_soon(self._move_money, (one, other)[number % 2], choices)
            tasks.start_soon(self._audit, one)
            tasks.start_soon(self._vanish, cluster, config)

    async def _move_money(self, client: TransactionClient, choices: random.Random) -> None:
        while True:
            await self._transfer(client, choices)

    async def _transfer(self, client: TransactionClient, choices: random.Random) -> None:
        number = self._numbers = self._numbers + 1
        position = choices.randrange(len(self.accounts))
        # Neighbors are mostly in one Region, which one-phase commits need.
        distance = choices.choice([1, 1, choices.randrange(1, len(self.accounts))])
        source, target = self.accounts[position], self.accounts[(position + distance) % len(self.accounts)]
        amount = choices.randrange(1, 10)

        async def move(txn: Transaction) -> None:
            found = await txn.batch_get([source, target])
            txn.put(source, b"%d" % (int(found[source]) - amount))
            txn.put(target, b"%d" % (int(found[target]) + amount))
            txn.insert(b"%s/%08d" % (source, number), b"%s:%d" % (target, amount))

        # Until its end is known.
        self.unknown.add(number)
        try:
            await client.run(move, timeout=choices.choice([0.03, 0.1, None, None, None]))
        except UndeterminedError:
            return
        except DeadlineExceeded as error:
            self.failures[type(error.__cause__).__name__] += 1
        else:
            self.committed.add(number)
        self.unknown.discard(number)

    async def _audit(self, client: TransactionClient) -> None:
        """Look at everything over and over."""
        while True:
            await self._audit_once(client.snapshot())

    async def _audit_once(self, snapshot: Snapshot) -> None:
        try:
            found = await snapshot.batch_get(self.accounts)
            assert sum(map(int, found.values())) == OPENING * len(self.accounts)
            pairs = dict([pair async for pair in snapshot.scan(reverse=self.audits % 2 == 1)])
        except DeadlineExceeded:
            return
        assert found == {key: pairs[key] for key in self.accounts}
        Books.of(pairs).audit(self.accounts)
        self.audits += 1

    async def _vanish(self, cluster: EmbeddedCluster, config: TxnConfig) -> None:
        """Let one client after the other vanish in the middle of what it does."""
        choices = random.Random(self.load.seed)
        while True:
            with anyio.move_on_after(choices.uniform(0.1, 0.5)):
                async with TransactionClient(cluster.url, config=config) as client:
                    await self._move_money(client, choices)

    async def _close(self, cluster: EmbeddedCluster, client: TransactionClient) -> None:
        """Audit for the last time, count each transfer, and see that no lock stays behind."""
        await unlocked(cluster, client)
        pairs = dict([pair async for pair in client.snapshot().scan()])
        books = Books.of(pairs)
        books.audit(self.accounts)
        happened = books.transfers.keys()
        assert self.committed <= happened
        assert happened <= self.committed | self.unknown


async def run(load: Load) -> Bank:
    """Run a bank on a cluster of its own."""
    bank = Bank(load)
    async with EmbeddedCluster(stores=3, pd_members=3) as cluster:
        await bank.run(cluster)
    return bank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--accounts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--modes", nargs="*", default=[*MODES], choices=[*MODES])
    options = parser.parse_args()
    for mode in options.modes:
        load = Load(
            mode=mode, tasks=options.tasks, accounts=options.accounts, seconds=options.seconds, seed=options.seed
        )
        bank = anyio.run(run, load)
        print(
            f"{mode}: {len(bank.committed)} transfers, {len(bank.unknown)} of unknown outcome,"
            f" {bank.failures.total()} failed, {bank.audits} audits"
        )


if __name__ == "__main__":
    main()
