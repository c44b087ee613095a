"""Answers that are lost, calls that are cancelled, clients that are closed: what a commit may say then, and do."""

from __future__ import annotations

from typing import Any

import anyio
import attrs
import pytest
from anyio import wait_all_tasks_blocked
from google.protobuf.message import Message
from tikv_pd import BackoffExceeded, ClosedError, DeadlineExceeded, TikvError, Timestamp, UndeterminedError
from tikv_pd.errors import RpcError
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import PD, Tikv
from tikv_region import EntryTooLarge
from tikv_rpc import Attempt, Proceed
from tikv_rpc.testing import FakeCluster
from tikv_txn import Transaction, TransactionClient, TransactionState
from tikv_txn._buffer import Entry
from tikv_txn._commit.committer import Committer
from tikv_txn._commit.mutations import Mutations
from tikv_txn._locks.resolver import LockResolver
from tikv_txn._store import TxnStore
from tikv_txn.config import TxnConfig
from tikv_txn.errors import KeyLocked, TransactionAborted, TransactionRefused, WriteConflict
from tikv_txn.options import TransactionOptions
from tikv_txn.testing import FakeMvcc

TWO_PHASES = TransactionOptions(one_pc=False, async_commit=False)
ASYNC = TransactionOptions(one_pc=False)
ONE_PHASE = TransactionOptions(async_commit=False)
ANY = TransactionOptions()

START = Timestamp(1_000_000, 0).ts

A, H, Q = (Entry(key, b"v") for key in (b"a", b"h", b"q"))
"""A key in each Region."""


@pytest.fixture(autouse=True)
def mvcc(cluster: FakeCluster) -> FakeMvcc:
    cluster.pd.timestamp = Timestamp.from_ts(START + 10)
    return FakeMvcc(cluster)


@attrs.frozen
class Client:
    store: TxnStore
    committer: Committer

    async def commit(self, *entries: Entry, options: TransactionOptions = TWO_PHASES, timeout: float = 10.0) -> int:
        call = self.store.rpc.call("commit", timeout, options.requests)
        return await self.committer.commit(Mutations(entries), START, options, call, began=self.store.rpc.now())


@pytest.fixture
def client(store: TxnStore) -> Client:
    return Client(store, Committer(store, LockResolver(store)))


def region_error(**fields: Any) -> errorpb.Error:
    return errorpb.Error(**fields)


def not_found() -> kvrpcpb.CommitResponse:
    gone = kvrpcpb.TxnLockNotFound(key=b"a")
    return kvrpcpb.CommitResponse(error=kvrpcpb.KeyError(txn_lock_not_found=gone, retryable="gone"))


BUSY = region_error(stale_command=errorpb.StaleCommand())
UNDETERMINED = region_error(undetermined_result=errorpb.UndeterminedResult(message="leader changed"))


# --- the commit of the primary key ------------------------------------------------------------------------------------


@pytest.mark.parametrize("applied", [False, True])
async def test_a_commit_that_nobody_answers_is_undetermined_and_not_cleaned_up(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc, applied: bool
) -> None:
    store = cluster.store(1)
    if applied:
        store.drop_reply_next(Tikv.KvCommit)
    store.fail_next(Tikv.KvCommit, "UNAVAILABLE", times=1000)

    with pytest.raises(UndeterminedError) as caught:
        await client.commit(A, H)
    await anyio.sleep(30.0)

    assert isinstance(caught.value.__cause__, (DeadlineExceeded, BackoffExceeded))
    assert caught.value.operation == "commit"
    assert not cluster.requests(Tikv.KvBatchRollback)
    assert (mvcc.at(b"a") == b"v") is applied


async def test_a_commit_that_its_region_refuses_to_the_end_did_not_happen(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    cluster.store(1).answer_next(Tikv.KvCommit, region_error=BUSY, times=1000)

    with pytest.raises(DeadlineExceeded):
        await client.commit(A, H)
    await wait_all_tasks_blocked()

    assert not mvcc.locks
    assert mvcc.at(b"a") is None


async def test_a_lost_answer_that_region_errors_follow_is_undetermined(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    cluster.store(1).fail_next(Tikv.KvCommit, "UNAVAILABLE")
    cluster.store(1).answer_next(Tikv.KvCommit, region_error=BUSY, times=1000)

    with pytest.raises(UndeterminedError):
        await client.commit(A, H)
    await wait_all_tasks_blocked()

    assert sorted(mvcc.locks) == [b"a", b"h"]
    assert not cluster.requests(Tikv.KvBatchRollback)


@pytest.mark.parametrize("is_lost_first", [False, True])
async def test_an_error_about_the_key_shows_that_the_commit_did_not_happen(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc, is_lost_first: bool
) -> None:
    if is_lost_first:
        cluster.store(1).fail_next(Tikv.KvCommit, "UNAVAILABLE")
    cluster.store(1).answer_next(Tikv.KvCommit, not_found())

    with pytest.raises(TransactionAborted):
        await client.commit(A, H)
    await wait_all_tasks_blocked()

    assert not mvcc.locks


async def test_an_error_of_another_kind_says_nothing_of_a_lost_commit(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    refusal = kvrpcpb.CommitResponse(error=kvrpcpb.KeyError(abort="the engine is closing"))
    cluster.store(1).drop_reply_next(Tikv.KvCommit)
    cluster.store(1).answer_next(Tikv.KvCommit, refusal)

    with pytest.raises(UndeterminedError) as caught:
        await client.commit(A, H)
    await wait_all_tasks_blocked()

    assert isinstance(caught.value.__cause__, TransactionRefused)
    assert mvcc.at(b"a") == b"v"
    assert not cluster.requests(Tikv.KvBatchRollback)


async def test_a_lost_answer_that_success_follows_is_none(cluster: FakeCluster, client: Client, mvcc: FakeMvcc) -> None:
    cluster.store(1).drop_reply_next(Tikv.KvCommit)

    commit_ts = await client.commit(A, H)
    await wait_all_tasks_blocked()

    assert mvcc.at(b"a", commit_ts) == mvcc.at(b"h", commit_ts) == b"v"
    assert not mvcc.locks


async def test_a_lost_answer_is_made_up_for_where_the_region_is_now(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    store = cluster.store(1)
    store.drop_reply_next(Tikv.KvCommit)
    store.before_next(Tikv.KvCommit, lambda: cluster.split(b"b"))

    commit_ts = await client.commit(A, Entry(b"c", b"v"))
    await wait_all_tasks_blocked()

    assert mvcc.at(b"a", commit_ts) == mvcc.at(b"c", commit_ts) == b"v"


async def test_a_store_that_does_not_know_what_became_of_the_commit_makes_it_undetermined(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    cluster.store(1).answer_next(Tikv.KvCommit, region_error=UNDETERMINED)

    with pytest.raises(UndeterminedError):
        await client.commit(A, H)
    await wait_all_tasks_blocked()

    assert len(cluster.requests(Tikv.KvCommit)) == 1
    assert sorted(mvcc.locks) == [b"a", b"h"]


async def test_no_timestamp_for_a_second_try_of_a_commit_is_no_doubt(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    def push() -> None:
        mvcc.locks[b"a"].min_commit_ts = START + 1000
        cluster.pd.hang(PD.Tso)

    cluster.store(1).fail_next(Tikv.KvCommit, "UNAVAILABLE")
    cluster.store(1).before_next(Tikv.KvCommit, push)

    with pytest.raises(DeadlineExceeded):
        await client.commit(A, H)
    await wait_all_tasks_blocked()

    assert not mvcc.locks


async def test_a_cancelled_commit_is_left_alone(cluster: FakeCluster, client: Client, mvcc: FakeMvcc) -> None:
    cluster.store(1).drop_reply_next(Tikv.KvCommit, hang=True)

    with anyio.move_on_after(1.0) as scope:
        await client.commit(A, H)
    await wait_all_tasks_blocked()

    assert scope.cancelled_caught
    assert not cluster.requests(Tikv.KvBatchRollback)
    assert mvcc.at(b"a") == b"v"


async def test_a_caller_that_is_cancelled_after_the_commit_does_not_stop_the_secondaries(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    cluster.store(1).delay_next(Tikv.KvCommit, 0.0)
    cluster.store(1).delay_next(Tikv.KvCommit, 5.0, times=2)

    with anyio.CancelScope() as scope:
        await client.commit(A, H, Q)
        scope.cancel()
        await anyio.sleep(1.0)
    locked = sorted(mvcc.locks)
    await anyio.sleep(10.0)

    assert locked == [b"h", b"q"]
    assert not mvcc.locks


async def test_secondaries_that_cannot_be_committed_are_left_to_readers(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    async def refuse_secondaries(request: Any, serve: Any) -> Any:
        if request.commit_role == kvrpcpb.CommitRole.Primary:
            return await serve()
        return kvrpcpb.CommitResponse(region_error=BUSY)

    cluster.store(1).script(Tikv.KvCommit, refuse_secondaries, times=10_000)

    commit_ts = await client.commit(A, H)
    await anyio.sleep(60.0)

    assert mvcc.at(b"a", commit_ts) == b"v"
    assert sorted(mvcc.locks) == [b"h"]


# --- prewrites --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [ONE_PHASE, ASYNC, ANY])
@pytest.mark.parametrize("applied", [False, True])
async def test_a_prewrite_that_decides_and_is_not_answered_is_undetermined(
    cluster: FakeCluster, client: Client, options: TransactionOptions, applied: bool
) -> None:
    if applied:
        cluster.store(1).drop_reply_next(Tikv.KvPrewrite)
    cluster.store(1).fail_next(Tikv.KvPrewrite, "UNAVAILABLE", times=1000)

    with pytest.raises(UndeterminedError):
        await client.commit(A, options=options)
    await anyio.sleep(30.0)

    assert not cluster.requests(Tikv.KvBatchRollback)
    assert not cluster.requests(Tikv.KvCommit)


async def test_a_prewrite_of_two_phases_that_is_not_answered_is_cleaned_up(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    cluster.store(1).drop_reply_next(Tikv.KvPrewrite)
    cluster.store(1).fail_next(Tikv.KvPrewrite, "UNAVAILABLE", times=1000)

    with pytest.raises(TikvError) as caught:
        await client.commit(A)
    await anyio.sleep(30.0)

    assert not caught.value.undetermined
    assert not mvcc.locks
    assert mvcc.rolled_back == {(b"a", START)}


@pytest.mark.parametrize("options", [ONE_PHASE, ASYNC, ANY, TWO_PHASES])
async def test_a_prewrite_whose_answer_was_lost_succeeds_when_it_is_sent_again(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc, options: TransactionOptions
) -> None:
    cluster.store(1).drop_reply_next(Tikv.KvPrewrite)

    commit_ts = await client.commit(A, Entry(b"b", b"v"), options=options)
    await wait_all_tasks_blocked()

    assert mvcc.at(b"a", commit_ts) == mvcc.at(b"b", commit_ts) == b"v"
    assert mvcc.at(b"a", commit_ts - 1) is None
    assert not mvcc.locks


@pytest.mark.parametrize("options", [ONE_PHASE, ASYNC, ANY])
async def test_a_store_that_does_not_know_what_became_of_a_prewrite_makes_it_undetermined(
    cluster: FakeCluster, client: Client, options: TransactionOptions
) -> None:
    cluster.store(1).answer_next(Tikv.KvPrewrite, region_error=UNDETERMINED)

    with pytest.raises(UndeterminedError):
        await client.commit(A, options=options)
    await wait_all_tasks_blocked()

    assert not cluster.requests(Tikv.KvBatchRollback)


async def test_in_two_phases_a_prewrite_of_which_the_store_knows_nothing_is_sent_again(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    cluster.store(1).answer_next(Tikv.KvPrewrite, region_error=UNDETERMINED, times=20)

    commit_ts = await client.commit(A)

    assert mvcc.at(b"a", commit_ts) == b"v"


async def test_a_conflict_elsewhere_settles_an_async_commit_whose_other_answers_are_lost(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    mvcc.write(b"h", b"theirs", START + 5)

    async def lose(request: Any, serve: Any) -> Any:
        if request.mutations[0].key == b"h":
            await anyio.sleep(0.5)
            return await serve()
        await serve()
        return await anyio.sleep_forever()

    cluster.store(1).script(Tikv.KvPrewrite, lose, times=3)

    with pytest.raises(WriteConflict):
        await client.commit(A, H, Q, options=ASYNC)
    await wait_all_tasks_blocked()

    assert not mvcc.locks


async def test_one_unknown_prewrite_settles_nothing_while_another_was_never_sent(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    mvcc.lock(b"h", START - 1, ttl_ms=100_000)

    async def confuse(request: Any, serve: Any) -> Any:
        if request.mutations[0].key != b"a":
            return await serve()
        await anyio.sleep(0.5)
        return kvrpcpb.PrewriteResponse(region_error=UNDETERMINED)

    cluster.store(1).script(Tikv.KvPrewrite, confuse, times=1000)

    with pytest.raises(TransactionAborted, match="undetermined_result") as caught:
        await client.commit(A, H, options=ASYNC)
    await wait_all_tasks_blocked()

    # What became of one request is unknown; without the lock of the other nothing can be committed.
    assert isinstance(caught.value.__cause__, UndeterminedError)
    assert sorted(mvcc.locks) == [b"h"]


async def test_a_lost_prewrite_stays_in_doubt_while_locks_of_others_keep_it_from_being_sent_again(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    cluster.store(1).fail_next(Tikv.KvPrewrite, "UNAVAILABLE")
    mvcc.lock(b"a", START - 1, ttl_ms=100_000)

    with pytest.raises(UndeterminedError) as caught:
        await client.commit(A, options=ASYNC)
    await wait_all_tasks_blocked()

    # The first request may still arrive, once the lock is gone.
    assert isinstance(caught.value.__cause__, KeyLocked)
    assert not cluster.requests(Tikv.KvBatchRollback)


@pytest.mark.parametrize("options", [ONE_PHASE, ASYNC])
@pytest.mark.parametrize("commits", [False, True])
async def test_after_a_lost_prewrite_the_store_has_the_word_about_a_later_lock(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc, options: TransactionOptions, commits: bool
) -> None:
    cluster.store(1).fail_next(Tikv.KvPrewrite, "UNAVAILABLE")
    mvcc.lock(b"a", START + 1, ttl_ms=100_000)

    async with anyio.create_task_group() as tasks:

        async def end() -> None:
            await anyio.sleep(2.0)
            mvcc.roll_back(b"a", START + 1)
            if commits:
                mvcc.write(b"a", b"theirs", START + 2)

        tasks.start_soon(end)
        if commits:
            with pytest.raises(WriteConflict):
                await client.commit(A, options=options)
        else:
            await client.commit(A, options=options)
    await wait_all_tasks_blocked()

    assert mvcc.at(b"a") == (b"theirs" if commits else b"v")


async def test_a_commit_that_checks_keys_is_not_taken_for_failed_because_one_was_inserted_after_it(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    check = Entry(b"a", is_deleted=True, must_not_exist=True)

    def insert() -> None:
        # Where the transaction checked a key it left no trace by which a store could tell that it has committed.
        mvcc.write(b"a", b"theirs", START + 500)

    cluster.store(1).drop_reply_next(Tikv.KvPrewrite)
    cluster.store(1).before_next(Tikv.KvPrewrite, insert)

    with pytest.raises(WriteConflict):
        await client.commit(check, Entry(b"b", b"v"), options=ANY)
    await wait_all_tasks_blocked()

    assert mvcc.at(b"b") is None


@pytest.mark.parametrize("options", [ONE_PHASE, ANY])
async def test_a_one_phase_commit_whose_region_split_meanwhile_is_found_to_have_happened(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc, options: TransactionOptions
) -> None:
    def split() -> None:
        cluster.split(b"c")
        cluster.pd.timestamp = Timestamp.from_ts(START + 1000)

    cluster.store(1).drop_reply_next(Tikv.KvPrewrite)
    cluster.store(1).before_next(Tikv.KvPrewrite, split)

    commit_ts = await client.commit(A, Entry(b"d", b"v"), options=options)
    await wait_all_tasks_blocked()

    assert mvcc.versions[b"a"][0].commit_ts == mvcc.versions[b"d"][0].commit_ts == commit_ts
    assert not mvcc.locks


async def test_a_one_phase_commit_that_did_not_happen_before_its_region_split_commits_in_two(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    cluster.store(1).fail_next(Tikv.KvPrewrite, "UNAVAILABLE")
    cluster.store(1).before_next(Tikv.KvPrewrite, lambda: cluster.split(b"c"))

    commit_ts = await client.commit(A, Entry(b"d", b"v"), options=ONE_PHASE)
    await wait_all_tasks_blocked()

    assert mvcc.versions[b"a"][0].commit_ts == mvcc.versions[b"d"][0].commit_ts == commit_ts
    assert not mvcc.locks


async def test_a_one_phase_commit_of_which_the_primary_key_does_not_tell_is_undetermined(
    cluster: FakeCluster, client: Client
) -> None:
    cluster.store(1).drop_reply_next(Tikv.KvPrewrite)
    cluster.store(1).before_next(Tikv.KvPrewrite, lambda: cluster.split(b"c"))
    refusal = kvrpcpb.CheckTxnStatusResponse(error=kvrpcpb.KeyError(abort="something is wrong"))
    cluster.store(1).answer_next(Tikv.KvCheckTxnStatus, refusal)

    with pytest.raises(UndeterminedError) as caught:
        await client.commit(A, Entry(b"d", b"v"), options=ONE_PHASE)
    await wait_all_tasks_blocked()

    assert isinstance(caught.value.__cause__, TransactionRefused)
    assert not cluster.requests(Tikv.KvBatchRollback)


async def test_what_others_rolled_back_after_a_lost_one_phase_commit_is_known_not_to_have_happened(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    cluster.store(1).fail_next(Tikv.KvPrewrite, "UNAVAILABLE")
    cluster.store(1).before_next(Tikv.KvPrewrite, lambda: cluster.split(b"c"))
    cluster.store(1).before_next(Tikv.KvCheckTxnStatus, lambda: mvcc.roll_back(b"a", START))

    with pytest.raises(TransactionAborted):
        await client.commit(A, Entry(b"d", b"v"), options=ONE_PHASE)
    await wait_all_tasks_blocked()

    assert not mvcc.locks


@pytest.mark.parametrize("options", [TWO_PHASES, ASYNC, ANY])
async def test_a_cancelled_prewrite_is_cleaned_up_unless_it_decides(
    cluster: FakeCluster, client: Client, options: TransactionOptions
) -> None:
    cluster.store(1).drop_reply_next(Tikv.KvPrewrite, hang=True)

    with anyio.move_on_after(1.0) as scope:
        await client.commit(A, options=options)
    await wait_all_tasks_blocked()

    assert scope.cancelled_caught
    assert len(cluster.requests(Tikv.KvBatchRollback)) == (1 if options is TWO_PHASES else 0)


async def test_a_prewrite_that_is_too_large_is_told_and_cleaned_up(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    async def refuse(request: Any, serve: Any) -> Any:
        if request.mutations[0].key == b"a":
            return await serve()
        await anyio.sleep(0.5)
        too_large = region_error(raft_entry_too_large=errorpb.RaftEntryTooLarge(entry_size=9 << 20))
        return kvrpcpb.PrewriteResponse(region_error=too_large)

    cluster.store(1).script(Tikv.KvPrewrite, refuse, times=2)

    with pytest.raises(EntryTooLarge):
        await client.commit(A, H, options=ASYNC)
    await wait_all_tasks_blocked()

    assert not mvcc.locks


async def test_a_refusal_after_a_lost_answer_proves_nothing_about_an_async_commit(
    cluster: FakeCluster, client: Client
) -> None:
    cluster.store(1).fail_next(Tikv.KvPrewrite, "UNAVAILABLE")
    refusal = kvrpcpb.PrewriteResponse(errors=[kvrpcpb.KeyError(abort="something is wrong")])
    cluster.store(1).answer_next(Tikv.KvPrewrite, refusal)

    with pytest.raises(UndeterminedError) as caught:
        await client.commit(A, options=ASYNC)

    assert isinstance(caught.value.__cause__, TransactionRefused)


@pytest.mark.parametrize(
    ("options", "rpc", "state"),
    [
        (TWO_PHASES, Tikv.KvPrewrite, TransactionState.ROLLED_BACK),
        (TWO_PHASES, Tikv.KvCommit, TransactionState.UNDETERMINED),
        (ASYNC, Tikv.KvPrewrite, TransactionState.UNDETERMINED),
    ],
)
async def test_a_cancelled_transaction_is_of_unknown_outcome_only_where_that_is_not_known(
    cluster: FakeCluster, options: TransactionOptions, rpc: Any, state: TransactionState
) -> None:
    cluster.store(1).hang_next(rpc)

    async with TransactionClient(cluster.url, transport=cluster.transport) as client:
        txn = await client.begin(options)
        txn.put(b"a", b"v")
        with anyio.move_on_after(1.0) as scope:
            await txn.commit()

    assert scope.cancelled_caught
    assert txn.state is state
    assert txn.commit_ts is None


class CancelAtTheLastAnswer:
    """Cancels a scope when all of two prewrites have been answered."""

    name = "cancel"

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self._answered = 0

    async def __call__(self, attempt: Attempt, proceed: Proceed) -> Message:
        response = await proceed()
        self._answered += attempt.rpc is Tikv.KvPrewrite
        if self._answered == 2:
            self.scope.cancel()
        return response


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_transaction_that_is_cancelled_when_it_has_committed_says_so(
    cluster: FakeCluster, mvcc: FakeMvcc
) -> None:
    interceptor = CancelAtTheLastAnswer()

    async with TransactionClient(cluster.url, transport=cluster.transport, interceptors=[interceptor]) as client:
        txn = await client.begin(ASYNC)
        txn.put_many({b"a": b"v", b"h": b"v"})
        with interceptor.scope:
            await txn.commit()

    assert interceptor.scope.cancelled_caught
    assert txn.state is TransactionState.COMMITTED
    assert txn.commit_ts is not None
    assert mvcc.at(b"a", txn.commit_ts.ts) == mvcc.at(b"h", txn.commit_ts.ts) == b"v"


# --- everywhere -------------------------------------------------------------------------------------------------------


async def test_a_store_that_refuses_for_good_is_told(cluster: FakeCluster, client: Client, mvcc: FakeMvcc) -> None:
    cluster.store(1).fail_next(Tikv.KvPrewrite, "PERMISSION_DENIED", times=100)

    with pytest.raises(RpcError):
        await client.commit(A)
    await wait_all_tasks_blocked()

    assert not mvcc.locks


@pytest.mark.parametrize(
    ("options", "rpc", "error"),
    [
        (TWO_PHASES, Tikv.KvPrewrite, ClosedError),
        (TWO_PHASES, Tikv.KvCommit, UndeterminedError),
        (ASYNC, Tikv.KvPrewrite, UndeterminedError),
        (ONE_PHASE, Tikv.KvPrewrite, UndeterminedError),
    ],
)
async def test_closing_the_client_ends_a_commit(
    cluster: FakeCluster, options: TransactionOptions, rpc: Any, error: type[TikvError]
) -> None:
    cluster.store(1).hang_next(rpc)
    raised: list[TikvError] = []

    async def commit(txn: Transaction) -> None:
        try:
            await txn.commit()
        except TikvError as ended:
            raised.append(ended)

    async with (
        anyio.create_task_group() as tasks,
        TransactionClient(cluster.url, transport=cluster.transport) as client,
    ):
        txn = await client.begin(options)
        txn.put(b"a", b"v")
        tasks.start_soon(commit, txn)
        await wait_all_tasks_blocked()

    assert [type(each) for each in raised] == [error]
    assert (txn.state is TransactionState.UNDETERMINED) is (error is UndeterminedError)


@pytest.mark.parametrize("options", [TWO_PHASES, ASYNC])
async def test_closing_the_client_waits_until_the_locks_of_its_commits_are_gone(
    cluster: FakeCluster, mvcc: FakeMvcc, options: TransactionOptions
) -> None:
    cluster.store(1).delay_next(Tikv.KvCommit, 0.5, times=10)

    async with TransactionClient(cluster.url, transport=cluster.transport) as client, client.begin(options) as txn:
        txn.put_many({b"a": b"v", b"h": b"v", b"q": b"v"})

    assert not mvcc.locks


@pytest.mark.parametrize("options", [TWO_PHASES, ASYNC])
async def test_closing_the_client_does_not_wait_for_long(
    cluster: FakeCluster, mvcc: FakeMvcc, options: TransactionOptions
) -> None:
    async def hang_but_for_the_primary_key(request: Any, serve: Any) -> Any:
        return await (serve() if b"a" in request.keys else anyio.sleep_forever())

    cluster.store(1).script(Tikv.KvCommit, hang_but_for_the_primary_key, times=100)

    async with TransactionClient(cluster.url, transport=cluster.transport) as client:
        async with client.begin(options) as txn:
            txn.put_many({b"a": b"v", b"h": b"v", b"q": b"v"})
        began = anyio.current_time()

    assert 1.9 < anyio.current_time() - began < 2.1
    assert sorted(mvcc.locks) == [b"h", b"q"]


async def test_a_client_that_is_closed_right_after_a_commit_leaves_the_rest_to_readers(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    async def close_then_serve(_request: Any, serve: Any) -> Any:
        client.store.rpc.closed = True
        return await serve()

    cluster.store(1).script(Tikv.KvCommit, close_then_serve)

    commit_ts = await client.commit(A, H)
    await wait_all_tasks_blocked()

    assert mvcc.at(b"a", commit_ts) == b"v"
    assert sorted(mvcc.locks) == [b"h"]


async def test_the_next_commit_after_an_undetermined_one_works(
    cluster: FakeCluster, client: Client, mvcc: FakeMvcc
) -> None:
    cluster.store(1).answer_next(Tikv.KvCommit, region_error=UNDETERMINED)
    with pytest.raises(UndeterminedError):
        await client.commit(A)
    cluster.pd.timestamp = Timestamp(1_010_000, 0)
    call = client.store.rpc.call("commit", 10.0)
    start_ts = await client.store.get_ts(call)

    commit_ts = await client.committer.commit(
        Mutations([Entry(b"a", b"new")]), start_ts, ANY, call, began=client.store.rpc.now()
    )

    assert mvcc.at(b"a", commit_ts) == b"new"


class Failing:
    """Raises errors of its own, in place of answers to requests of some operations."""

    name = "failing"

    def __init__(self, error: Exception, *operations: str) -> None:
        self._error = error
        self._operations = operations

    async def __call__(self, attempt: Attempt, proceed: Proceed) -> Message:
        response = await proceed()
        if attempt.operation in self._operations and attempt.rpc is not Tikv.KvPrewrite:
            raise self._error
        return response


@pytest.mark.parametrize("error", [LookupError("mine"), ClosedError("mine")])
async def test_an_interceptor_that_fails_after_a_commit_was_applied_leaves_it_undetermined(
    cluster: FakeCluster, mvcc: FakeMvcc, error: Exception
) -> None:
    interceptor = Failing(error, "commit")

    async with TransactionClient(cluster.url, transport=cluster.transport, interceptors=[interceptor]) as client:
        txn = await client.begin(TWO_PHASES)
        txn.put_many({b"a": b"v", b"h": b"v"})
        with pytest.raises(UndeterminedError) as caught:
            await txn.commit()

    assert caught.value.__cause__ is error
    assert mvcc.at(b"a") == b"v"
    assert not cluster.requests(Tikv.KvBatchRollback)


async def test_an_interceptor_that_fails_in_the_background_does_no_harm_to_the_client(
    cluster: FakeCluster, mvcc: FakeMvcc
) -> None:
    interceptor = Failing(LookupError("mine"), "commit_secondaries", "clean_up", "heartbeat", "resolve_locks")
    config = TxnConfig(heartbeat_bytes=1)
    cluster.store(1).delay_next(Tikv.KvCommit, 60.0)

    async with TransactionClient(
        cluster.url, config=config, transport=cluster.transport, interceptors=[interceptor]
    ) as client:
        async with client.begin(attrs.evolve(TWO_PHASES, timeout=100.0)) as txn:
            txn.put_many({b"a": b"v", b"h": b"v"})
        mvcc.lock(b"q", START - 5, primary=b"p", ttl_ms=1)
        mvcc.roll_back(b"p", START - 5)
        found = await client.snapshot().batch_get([b"a", b"h", b"q"])
        conflicting = await client.begin(TWO_PHASES)
        conflicting.put_many({b"a": b"w", b"h": b"w"})
        mvcc.write(b"h", b"theirs", conflicting.start_ts.ts + 5)
        with pytest.raises(WriteConflict):
            await conflicting.commit()
        await wait_all_tasks_blocked()

    assert found == {b"a": b"v", b"h": b"v"}
