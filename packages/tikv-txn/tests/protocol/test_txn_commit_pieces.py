"""How the work of a commit is cut into pieces."""

from __future__ import annotations

import pytest
from tikv_rpc import Call
from tikv_rpc.testing import FakeCluster
from tikv_txn._buffer import Entry
from tikv_txn._commit.mutations import Mutations
from tikv_txn._commit.requests import CommitOrder, CommitRequests, PrewriteWork, PrimaryFirst, rollback_work
from tikv_txn._commit.state import CommitState
from tikv_txn._store import TxnStore
from tikv_txn.options import TransactionOptions

KEYS = (b"a", b"b", b"h", b"q")


@pytest.fixture
def requests(store: TxnStore) -> CommitRequests:
    mutations = Mutations([Entry(key, b"v") for key in KEYS])
    return CommitRequests(CommitOrder(mutations, 100, 0.0, TransactionOptions()), store.codec, 3.0)


@pytest.fixture
def call(store: TxnStore) -> Call:
    return store.rpc.call("commit", 10.0)


async def test_prewrites_together_make_up_the_whole(store: TxnStore, requests: CommitRequests, call: Call) -> None:
    state = CommitState(4, range(4), 0, 100, one_pc=True, async_commit=True)
    work = PrewriteWork(requests, state, 1000)

    pieces = await work.begin(store.cache, call)

    assert [list(part) for _, part in pieces] == [[0, 1], [2], [3]]
    assert sorted(position for _, part in pieces for position in part) == list(work.whole)
    assert not state.one_pc


async def test_the_piece_of_the_primary_key_stays_ahead_when_it_is_split(
    cluster: FakeCluster, store: TxnStore, requests: CommitRequests, call: Call
) -> None:
    work = rollback_work(requests, [0, 1, 3], 1000)
    first = PrimaryFirst(work, await work.begin(store.cache, call))
    assert list(first.whole) == [0, 1]
    cluster.split(b"b")
    store.cache.clear()

    pieces = await first.split(first.whole, store.cache, call)

    assert [list(part) for _, part in pieces] == [[0]]
    assert [list(part) for _, part in first.rest] == [[2], [1]]
