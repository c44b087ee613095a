"""A commit is cancelled at each of its steps: it happens as a whole or not at all, and the next one works."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from tikv_pd import Timestamp
from tikv_pd.testing import virtual_time
from tikv_rpc.testing import FakeCluster
from tikv_txn._buffer import Entry
from tikv_txn._commit.committer import Committer
from tikv_txn._commit.mutations import Mutations
from tikv_txn._locks.resolver import LockResolver
from tikv_txn._store import TxnStore
from tikv_txn.options import TransactionOptions
from tikv_txn.testing import FakeMvcc

MODES = {
    "two phases": TransactionOptions(one_pc=False, async_commit=False),
    "async commit": TransactionOptions(one_pc=False),
    "one phase": TransactionOptions(async_commit=False),
}


# Both ways in which anyio cancels, and the clock of one of them jumps.
@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_time() if request.param == "trio" else "asyncio"


@attrs.frozen
class Client:
    store: TxnStore
    committer: Committer
    options: TransactionOptions

    async def commit(self, *entries: Entry) -> int:
        call = self.store.rpc.call("commit", 10.0)
        start_ts = await self.store.get_ts(call)
        return await self.committer.commit(Mutations(entries), start_ts, self.options, call, began=self.store.rpc.now())


async def cancelled_after(steps: int, client: Client, *entries: Entry) -> bool:
    """Commit for so many steps of the scheduler, then cancel it; tell whether it was still running."""
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await client.commit(*entries)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        scope.cancel()
    return scope.cancelled_caught


async def settle() -> None:
    """Let the background do its work; asyncio takes long to find that all tasks are blocked."""
    for _ in range(200):
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("letters", [b"a", b"ahq"], ids=["one Region", "three Regions"])
async def test_a_commit_that_is_cancelled_anywhere_happens_as_a_whole_or_not_at_all(
    cluster: FakeCluster, store: TxnStore, mode: str, letters: bytes
) -> None:
    mvcc = FakeMvcc(cluster)
    client = Client(store, Committer(store, LockResolver(store)), MODES[mode])
    fates = set()
    steps = 0
    was_cancelled = True

    while was_cancelled:
        cluster.pd.timestamp = Timestamp(1_000_000 + steps * 100_000, 0)
        keys = [b"%c%03d" % (letter, steps) for letter in letters] + [b"%c%03dx" % (letters[0], steps)]
        was_cancelled = await cancelled_after(steps, client, *(Entry(key, b"1") for key in sorted(keys)))
        await settle()
        cluster.pd.timestamp = Timestamp(1_050_000 + steps * 100_000, 0)
        await client.commit(*(Entry(key, b"2") for key in sorted(keys)))
        await settle()

        found = {sum(version.value == b"1" for version in mvcc.versions[key]) for key in keys}
        assert len(found) == 1
        fates |= found
        assert [mvcc.at(key) for key in keys] == [b"2"] * len(keys)
        steps += 1

    assert not mvcc.locks
    assert fates == {0, 1}
