"""Transfers between accounts while answers are lost and Regions move: each happens as a whole, and as was reported."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any, Final

import anyio
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tikv_pd import TikvError, Timestamp
from tikv_pd.testing import virtual_time
from tikv_proto import errorpb
from tikv_proto.services import Tikv
from tikv_region import TxnV1Codec
from tikv_rpc.testing import FakeCluster
from tikv_txn import TransactionClient, TransactionOptions
from tikv_txn.testing import FakeMvcc

ACCOUNTS: Final = (b"a", b"f", b"h", b"m", b"q", b"w")
START: Final = 100
WRITES: Final = (Tikv.KvPrewrite, Tikv.KvCommit, Tikv.KvBatchRollback, Tikv.KvResolveLock)
MODES: Final = (
    TransactionOptions(one_pc=False, async_commit=False),
    TransactionOptions(one_pc=False),
    TransactionOptions(async_commit=False),
    TransactionOptions(),
    TransactionOptions(causal_consistency=True),
)


class Bank:
    """Clients that transfer, on a cluster that misbehaves."""

    def __init__(self, random: Random, cluster: FakeCluster, mvcc: FakeMvcc) -> None:
        self.random = random
        self.cluster = cluster
        self.mvcc = mvcc
        self.reports: dict[bytes, bool | None] = {}
        """What was reported of each transfer, by the key it leaves behind; None if it may have happened."""

    async def transfer(self, client: TransactionClient, number: int) -> None:
        source, target = self.random.sample(ACCOUNTS, 2)
        trace = b"%ctrace%04d" % (self.random.choice(b"bgrz"), number)
        self.reports[trace] = False
        try:
            async with client.begin(self.random.choice(MODES), timeout=8.0) as txn:
                found = await txn.batch_get([source, target])
                txn.put(source, b"%d" % (int(found[source]) - 1))
                txn.put(target, b"%d" % (int(found[target]) + 1))
                txn.insert(trace, source + target)
                self.reports[trace] = None
            self.reports[trace] = True
        except TikvError as error:
            self.reports[trace] = None if error.undetermined else False

    async def work(self, client: TransactionClient, first: int) -> None:
        for number in range(first, first + 6):
            patience = self.random.choice([0.1, 1.0, 5.0, 60.0, 60.0, 60.0, 60.0, 60.0])
            with anyio.move_on_after(patience):
                await self.transfer(client, number)
            await anyio.sleep(self.random.random())

    async def tick(self) -> None:
        """Have PD's clock follow the one of the test."""
        while True:
            await anyio.sleep(0.05)
            physical = 1_000_000 + int(anyio.current_time() * 1000)
            self.cluster.pd.timestamp = max(self.cluster.pd.timestamp, Timestamp(physical, 0))

    async def disturb(self) -> None:
        mischief: tuple[Callable[[], object], ...] = (
            lambda: self.store().drop_reply_next(self.random.choice(WRITES)),
            lambda: self.store().drop_reply_next(self.random.choice(WRITES)),
            lambda: self.store().drop_reply_next(self.random.choice(WRITES), hang=True),
            lambda: self.store().fail_next(self.random.choice(WRITES), "UNAVAILABLE"),
            lambda: self.store().delay_next(self.random.choice(WRITES), self.random.random() * 12),
            lambda: self.store().answer_next(self.random.choice(WRITES), region_error=self.region_error()),
            lambda: self.cluster.split(
                b"%c%d" % (self.random.choice(b"abcdefghijklmnopqrstuvwxyz"), self.random.randrange(99))
            ),
            lambda: self.cluster.merge(self.random.choice(ACCOUNTS[:-2])),
            lambda: self.cluster.move_leader(self.random.choice(ACCOUNTS), self.random.randint(1, 3)),
            lambda: setattr(self.mvcc, "refuses_async_commit", self.random.random() < 0.3),
            lambda: setattr(self.mvcc, "refuses_one_pc", self.random.random() < 0.3),
        )
        while True:
            await anyio.sleep(self.random.random() * 0.5)
            with suppress(ValueError):
                # Where there is a border already, or none.
                self.random.choice(mischief)()

    def store(self) -> Any:
        return self.cluster.store(self.random.randint(1, 3))

    def region_error(self) -> errorpb.Error:
        unknown = errorpb.Error(undetermined_result=errorpb.UndeterminedResult())
        return self.random.choice([unknown, errorpb.Error(stale_command=errorpb.StaleCommand())])

    def check(self) -> None:
        happened = {key for key in self.reports if self.mvcc.at(key) is not None}
        for key, reported in self.reports.items():
            assert reported is None or reported is (key in happened), key
        moments = sorted({version.commit_ts for versions in self.mvcc.versions.values() for version in versions})
        for ts in moments:
            # At every moment, all of a transfer can be seen or nothing of it.
            assert sum(int(self.mvcc.at(account, ts) or b"") for account in ACCOUNTS) == START * len(ACCOUNTS)
        net = dict.fromkeys(ACCOUNTS, START)
        for key in happened:
            source, target = (self.mvcc.at(key) or b"")[:1], (self.mvcc.at(key) or b"")[1:]
            net[source] -= 1
            net[target] += 1
        assert {account: int(self.mvcc.at(account) or b"") for account in ACCOUNTS} == net


async def run(seed: int) -> Bank:
    async with FakeCluster([b"g", b"p"], codec=TxnV1Codec()) as cluster:
        mvcc = FakeMvcc(cluster)
        cluster.pd.timestamp = Timestamp(1_000_000, 0)
        for account in ACCOUNTS:
            mvcc.write(account, b"%d" % START, 2)
        bank = Bank(Random(seed), cluster, mvcc)
        async with (
            TransactionClient(cluster.url, transport=cluster.transport) as first,
            TransactionClient(cluster.url, transport=cluster.transport) as second,
            anyio.create_task_group() as world,
        ):
            world.start_soon(bank.tick)
            async with anyio.create_task_group() as mischief:
                mischief.start_soon(bank.disturb)
                async with anyio.create_task_group() as tasks:
                    for number in range(4):
                        tasks.start_soon(bank.work, (first, second)[number % 2], number * 100)
                mischief.cancel_scope.cancel()
            for store in cluster.stores.values():
                store.heal()
            # Once locks have expired, readers find out what became of their transactions; each for itself, as a
            # snapshot that knows passes by the other locks.
            await anyio.sleep(100.0)
            for key in (*ACCOUNTS, *bank.reports):
                await first.snapshot().get(key)
            await anyio.sleep(50.0)
            world.cancel_scope.cancel()
        return bank


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 32))
def test_transfers_happen_as_a_whole_and_as_reported(seed: int) -> None:
    backend, options = virtual_time()

    bank = anyio.run(run, seed, backend=backend, backend_options=options)

    bank.check()
    assert not bank.mvcc.locks


def test_most_of_them_happen() -> None:
    backend, options = virtual_time()

    bank = anyio.run(run, 1, backend=backend, backend_options=options)

    reported = list(bank.reports.values())
    assert reported.count(True) > len(reported) / 4


@pytest.mark.parametrize("reported", [True, False])
def test_the_check_finds_what_was_reported_wrongly(reported: bool) -> None:
    backend, options = virtual_time()
    bank = anyio.run(run, 1, backend=backend, backend_options=options)
    key = next(key for key, report in bank.reports.items() if report is reported)

    bank.reports[key] = not reported

    with pytest.raises(AssertionError):
        bank.check()
