"""What a commit sends, and what it makes of the answers."""

from __future__ import annotations

from typing import Any

import anyio
import attrs
import pytest
from anyio import wait_all_tasks_blocked
from tikv_pd import DeadlineExceeded, Timestamp
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import PD, Tikv
from tikv_rpc import Operation, Priority, RequestOptions
from tikv_rpc.testing import FakeCluster
from tikv_txn import TransactionClient
from tikv_txn._buffer import Assertion, Entry
from tikv_txn._commit.committer import Committer
from tikv_txn._commit.mutations import Mutations
from tikv_txn._locks.resolver import LockResolver
from tikv_txn._store import TxnStore
from tikv_txn.config import TxnConfig
from tikv_txn.errors import (
    AlreadyExists,
    AssertionFailed,
    CommitTsExpired,
    CommitTsLag,
    CommitTsTooLarge,
    KeyLocked,
    TransactionAborted,
    TransactionExpired,
    TransactionRefused,
    WriteConflict,
)
from tikv_txn.options import AssertionLevel, TransactionOptions
from tikv_txn.testing import FakeMvcc

TWO_PHASES = TransactionOptions(one_pc=False, async_commit=False)
ASYNC = TransactionOptions(one_pc=False)
ANY = TransactionOptions()

NOW_MS = 1_000_000


@attrs.frozen
class World:
    """A cluster, and a committer on it."""

    cluster: FakeCluster
    mvcc: FakeMvcc
    store: TxnStore
    committer: Committer

    async def begin(self) -> int:
        return await self.store.get_ts(self.store.rpc.call("begin", 5.0))

    async def commit(
        self,
        *entries: Entry,
        options: TransactionOptions = TWO_PHASES,
        start_ts: int | None = None,
        timeout: float = 10.0,
        elapsed: float = 0.0,
    ) -> int:
        if start_ts is None:
            start_ts = await self.begin()
        call = self.store.rpc.call("commit", timeout, options.requests)
        began = self.store.rpc.now() - elapsed
        return await self.committer.commit(Mutations(entries), start_ts, options, call, began=began)

    def count(self, *rpcs: Any) -> list[int]:
        return [len(self.cluster.requests(rpc)) for rpc in rpcs]

    @property
    def timestamps(self) -> int:
        return sum(self.cluster.pd.tso_counts)

    def push_clock(self, milliseconds: int) -> None:
        granted = self.cluster.pd.timestamp
        self.cluster.pd.timestamp = Timestamp(granted.physical + milliseconds, granted.logical)


@pytest.fixture
def world(cluster: FakeCluster, store: TxnStore) -> World:
    cluster.pd.timestamp = Timestamp(NOW_MS, 0)
    return World(cluster, FakeMvcc(cluster), store, Committer(store, LockResolver(store)))


def put(key: bytes, value: bytes = b"v") -> Entry:
    return Entry(key, value)


SENT = (Tikv.KvPrewrite, Tikv.KvCommit, Tikv.KvBatchRollback, Tikv.KvTxnHeartBeat)


# --- what the modes cost ----------------------------------------------------------------------------------------------


async def test_one_phase_takes_one_timestamp_and_one_request(world: World) -> None:
    start_ts = await world.begin()
    before = world.timestamps

    commit_ts = await world.commit(put(b"a"), put(b"b"), options=ANY, start_ts=start_ts)
    await wait_all_tasks_blocked()

    assert world.count(*SENT) == [1, 0, 0, 0]
    assert world.timestamps - before == 1
    assert commit_ts > start_ts
    assert world.mvcc.at(b"a", commit_ts) == b"v"
    assert world.mvcc.at(b"a", commit_ts - 1) is None
    assert not world.mvcc.locks


async def test_reading_a_key_and_writing_it_back_takes_two_timestamps_and_two_requests(world: World) -> None:
    world.mvcc.write(b"a", b"1", 5)
    async with (
        TransactionClient(world.cluster.url, transport=world.cluster.transport) as client,
        client.begin() as txn,
    ):
        txn.put(b"a", b"%d" % (int(await txn.get(b"a") or 0) + 1))

    assert world.count(Tikv.KvGet, *SENT) == [1, 1, 0, 0, 0]
    assert world.timestamps == 2
    assert world.mvcc.at(b"a") == b"2"


async def test_causal_consistency_saves_the_timestamp(world: World) -> None:
    start_ts = await world.begin()
    before = world.timestamps

    await world.commit(put(b"a"), options=attrs.evolve(ANY, causal_consistency=True), start_ts=start_ts)

    assert world.timestamps == before


async def test_an_async_commit_ends_for_its_caller_with_the_prewrites(world: World) -> None:
    world.cluster.store(1).hang_next(Tikv.KvCommit)

    commit_ts = await world.commit(*(put(b"a%d" % number) for number in range(20)), options=ASYNC)
    await wait_all_tasks_blocked()

    assert world.count(*SENT) == [1, 1, 0, 0]
    assert world.cluster.requests(Tikv.KvCommit)[0].commit_version == commit_ts


async def test_the_locks_of_an_async_commit_are_committed_in_the_background(world: World) -> None:
    commit_ts = await world.commit(put(b"a"), put(b"h"), put(b"q"), options=ASYNC)
    await wait_all_tasks_blocked()

    assert world.count(*SENT) == [3, 3, 0, 0]
    assert not world.mvcc.locks
    assert [world.mvcc.at(key, commit_ts) for key in (b"a", b"h", b"q")] == [b"v"] * 3


async def test_two_phases_prewrite_each_region_and_wait_for_one_commit(world: World) -> None:
    world.cluster.store(1).script(Tikv.KvCommit, _hang_unless_primary, times=3)

    commit_ts = await world.commit(put(b"a"), put(b"h"), put(b"q"))
    await wait_all_tasks_blocked()

    assert world.count(*SENT) == [3, 3, 0, 0]
    assert world.mvcc.at(b"a", commit_ts) == b"v"
    assert sorted(world.mvcc.locks) == [b"h", b"q"]
    assert [(request.commit_role, list(request.keys)) for request in world.cluster.requests(Tikv.KvCommit)[:1]] == [
        (kvrpcpb.CommitRole.Primary, [b"a"])
    ]


async def _hang_unless_primary(request: Any, serve: Any) -> Any:
    if request.commit_role != kvrpcpb.CommitRole.Primary:
        await anyio.sleep_forever()
    return await serve()


async def test_two_phases_in_one_region_leave_nothing_to_the_background(world: World) -> None:
    await world.commit(put(b"a"), put(b"b"))

    assert world.count(*SENT) == [1, 1, 0, 0]
    assert not world.mvcc.locks


async def test_a_transaction_over_several_regions_commits_async_instead_of_in_one_phase(world: World) -> None:
    await world.commit(put(b"a"), put(b"h"), options=ANY)

    assert [request.try_one_pc for request in world.cluster.requests(Tikv.KvPrewrite)] == [False, False]
    assert all(request.use_async_commit for request in world.cluster.requests(Tikv.KvPrewrite))


async def test_plain_two_phases_take_their_timestamp_after_the_prewrites(world: World) -> None:
    start_ts = await world.begin()
    before = world.timestamps

    await world.commit(put(b"a"), start_ts=start_ts)

    assert world.timestamps - before == 1
    (request,) = world.cluster.requests(Tikv.KvPrewrite)
    assert request.min_commit_ts == start_ts + 1
    assert request.max_commit_ts == 0


# --- what requests say ------------------------------------------------------------------------------------------------


async def test_a_prewrite_carries_all_that_stores_need(world: World) -> None:
    start_ts = await world.begin()
    options = attrs.evolve(ASYNC, requests=RequestOptions(priority=Priority.HIGH))

    await world.commit(
        put(b"a", b"1"),
        Entry(b"b", b"2", must_not_exist=True),
        Entry(b"c", is_deleted=True),
        Entry(b"d", is_locked=True, assertion=Assertion.NOT_EXIST),
        options=options,
        start_ts=start_ts,
        elapsed=1.5,
    )

    (request,) = world.cluster.requests(Tikv.KvPrewrite)
    assert [(each.op, each.key, each.value, each.assertion) for each in request.mutations] == [
        (kvrpcpb.Op.Put, b"a", b"1", 0),
        (kvrpcpb.Op.Insert, b"b", b"2", 0),
        (kvrpcpb.Op.Del, b"c", b"", 0),
        (kvrpcpb.Op.Lock, b"d", b"", kvrpcpb.Assertion.NotExist),
    ]
    assert (request.primary_lock, request.start_version, request.txn_size) == (b"a", start_ts, 4)
    assert request.lock_ttl == 4500
    assert request.assertion_level == kvrpcpb.AssertionLevel.Strict
    assert list(request.secondaries) == [b"b", b"c", b"d"]
    assert request.use_async_commit
    assert not request.try_one_pc
    assert start_ts + 1 < request.min_commit_ts < request.max_commit_ts
    assert Timestamp.from_ts(request.max_commit_ts).physical == NOW_MS + 2000
    assert request.context.priority == kvrpcpb.CommandPri.High
    assert not request.context.is_retry_request


async def test_only_the_prewrite_of_the_primary_key_names_the_others(world: World) -> None:
    await world.commit(put(b"a"), put(b"b"), put(b"h"), put(b"q"), options=ASYNC)

    named = {request.mutations[0].key: list(request.secondaries) for request in world.cluster.requests(Tikv.KvPrewrite)}
    assert named == {b"a": [b"b", b"h", b"q"], b"h": [], b"q": []}


async def test_assertions_stay_at_home_when_they_are_off(world: World) -> None:
    options = attrs.evolve(TWO_PHASES, assertion_level=AssertionLevel.OFF)

    await world.commit(Entry(b"a", b"v", assertion=Assertion.EXIST), options=options)

    (request,) = world.cluster.requests(Tikv.KvPrewrite)
    assert request.mutations[0].assertion == kvrpcpb.Assertion.NotExist - kvrpcpb.Assertion.NotExist
    assert request.assertion_level == kvrpcpb.AssertionLevel.Off


async def test_txn_size_counts_the_keys_of_each_region(world: World) -> None:
    keys = [b"a%d" % number for number in range(50)] + [b"h%d" % number for number in range(20)]

    await world.commit(*(put(key, b"v" * 1000) for key in sorted(keys)))

    sizes = {(request.mutations[0].key[:1], request.txn_size) for request in world.cluster.requests(Tikv.KvPrewrite)}
    assert sizes == {(b"a", 50), (b"h", 20)}


async def test_requests_are_closed_at_the_batch_limit_of_keys_and_values(world: World) -> None:
    await world.commit(*(put(b"a%d" % number, b"v" * 6000) for number in range(5)), options=ANY)
    await wait_all_tasks_blocked()

    assert sorted(len(request.mutations) for request in world.cluster.requests(Tikv.KvPrewrite)) == [1, 2, 2]
    assert not any(request.try_one_pc for request in world.cluster.requests(Tikv.KvPrewrite))
    # Commits carry keys alone.
    assert [len(request.keys) for request in world.cluster.requests(Tikv.KvCommit)] == [5]


async def test_prewrites_that_are_sent_anew_say_so_and_hide_their_size(world: World) -> None:
    world.cluster.store(1).before_next(Tikv.KvPrewrite, lambda: world.cluster.split(b"c"))

    await world.commit(put(b"a"), put(b"d"))

    requests = world.cluster.requests(Tikv.KvPrewrite)
    assert [len(request.mutations) for request in requests] == [2, 1, 1]
    assert [request.context.is_retry_request for request in requests] == [False, True, True]
    assert [request.txn_size for request in requests] == [2, (1 << 64) - 1, (1 << 64) - 1]


async def test_a_prewrite_is_marked_as_sent_again_after_a_region_error(world: World) -> None:
    stale = errorpb.Error(stale_command=errorpb.StaleCommand())
    world.cluster.store(1).answer_next(Tikv.KvPrewrite, region_error=stale, times=3)

    await world.commit(put(b"a"), timeout=60.0)

    flags = [request.context.is_retry_request for request in world.cluster.requests(Tikv.KvPrewrite)]
    assert flags == [False, True, True, True]


async def test_one_phase_is_given_up_when_its_region_splits(world: World) -> None:
    world.cluster.store(1).before_next(Tikv.KvPrewrite, lambda: world.cluster.split(b"c"))

    await world.commit(put(b"a"), put(b"d"), options=attrs.evolve(ANY, async_commit=False))
    await wait_all_tasks_blocked()

    assert [request.try_one_pc for request in world.cluster.requests(Tikv.KvPrewrite)] == [True, False, False]
    assert not world.mvcc.locks


async def test_the_primary_key_is_committed_first_when_its_region_has_split(world: World) -> None:
    world.cluster.store(1).before_next(Tikv.KvCommit, lambda: world.cluster.split(b"c"))
    world.cluster.store(1).script(Tikv.KvCommit, _hang_unless_primary, times=3)

    await world.commit(put(b"a"), put(b"d"), put(b"h"))
    await wait_all_tasks_blocked()

    assert [list(request.keys) for request in world.cluster.requests(Tikv.KvCommit)][:2] == [[b"a", b"d"], [b"a"]]
    assert sorted(world.mvcc.locks) == [b"d", b"h"]


async def test_observers_hear_of_a_commit_by_its_primary_key(cluster: FakeCluster) -> None:
    FakeMvcc(cluster)
    heard: list[Operation] = []

    class Listener:
        def begin(self, operation: Operation) -> None:
            heard.append(operation)

    async with (
        TransactionClient(cluster.url, transport=cluster.transport, observers=[Listener()]) as client,
        client.begin() as txn,
    ):
        txn.put_many({b"h": b"v", b"b": b"v"})

    assert [(each.name, each.key, each.keys) for each in heard] == [("commit", b"b", 2)]


# --- falling back -----------------------------------------------------------------------------------------------------


async def test_a_store_that_refuses_one_phase_leads_to_two(world: World) -> None:
    world.mvcc.refuses_one_pc = True

    commit_ts = await world.commit(put(b"a"), options=ANY)
    await wait_all_tasks_blocked()

    assert world.count(*SENT) == [1, 1, 0, 0]
    assert world.mvcc.at(b"a", commit_ts) == b"v"


async def test_a_store_that_refuses_async_commit_leads_to_two_phases(world: World) -> None:
    world.mvcc.refuses_async_commit = True

    commit_ts = await world.commit(put(b"a"), put(b"h"), options=ASYNC)
    await wait_all_tasks_blocked()

    assert world.count(*SENT) == [2, 2, 0, 0]
    assert world.mvcc.at(b"h", commit_ts) == b"v"


async def test_an_async_commit_takes_the_greatest_timestamp_among_its_locks(world: World) -> None:
    def read() -> None:
        world.mvcc.max_ts = Timestamp(NOW_MS + 500, 0).ts

    world.cluster.store(1).before_next(Tikv.KvPrewrite, read)

    commit_ts = await world.commit(put(b"a"), put(b"h"), options=ASYNC)

    assert commit_ts == Timestamp(NOW_MS + 500, 1).ts


async def test_keys_that_are_only_checked_are_prewritten_and_nothing_else(world: World) -> None:
    start_ts = await world.begin()

    commit_ts = await world.commit(Entry(b"a", is_deleted=True, must_not_exist=True), options=ANY, start_ts=start_ts)
    await wait_all_tasks_blocked()

    assert commit_ts > start_ts
    assert world.count(*SENT) == [1, 0, 0, 0]
    assert not world.mvcc.locks


async def test_keys_that_are_only_checked_are_neither_primary_nor_committed(world: World) -> None:
    await world.commit(Entry(b"a", is_deleted=True, must_not_exist=True), put(b"b"), put(b"h"), options=ANY)
    await wait_all_tasks_blocked()

    assert {request.primary_lock for request in world.cluster.requests(Tikv.KvPrewrite)} == {b"b"}
    assert sorted(key for request in world.cluster.requests(Tikv.KvCommit) for key in request.keys) == [b"b", b"h"]
    assert not any(request.use_async_commit for request in world.cluster.requests(Tikv.KvPrewrite))


# --- conflicts, assertions, clean-up ----------------------------------------------------------------------------------


async def test_a_conflict_is_told_and_what_was_locked_is_cleaned_up(world: World) -> None:
    start_ts = await world.begin()
    world.mvcc.write(b"h", b"theirs", start_ts + 5)

    with pytest.raises(WriteConflict) as caught:
        await world.commit(put(b"a"), put(b"h"), start_ts=start_ts)
    await wait_all_tasks_blocked()

    conflict = caught.value
    assert (conflict.key, conflict.start_ts, conflict.conflict_commit_ts) == (b"h", start_ts, start_ts + 5)
    assert world.mvcc.at(b"a") is None
    assert not world.mvcc.locks
    assert (b"a", start_ts) in world.mvcc.rolled_back


async def test_a_conflict_of_the_only_request_needs_no_clean_up(world: World) -> None:
    start_ts = await world.begin()
    world.mvcc.write(b"a", b"theirs", start_ts + 5)

    with pytest.raises(WriteConflict):
        await world.commit(put(b"a"), start_ts=start_ts)
    await wait_all_tasks_blocked()

    assert world.count(*SENT) == [1, 0, 0, 0]


async def test_one_failure_ends_the_other_prewrites_at_once(world: World) -> None:
    start_ts = await world.begin()
    world.mvcc.write(b"h", b"theirs", start_ts + 5)

    async def hang_but_for_h(request: Any, serve: Any) -> Any:
        if request.mutations[0].key != b"h":
            await serve()
            await anyio.sleep_forever()
        return await serve()

    world.cluster.store(1).script(Tikv.KvPrewrite, hang_but_for_h, times=3)
    began = anyio.current_time()

    with pytest.raises(WriteConflict):
        await world.commit(put(b"a"), put(b"h"), put(b"q"), start_ts=start_ts)
    await wait_all_tasks_blocked()

    assert anyio.current_time() - began < 1.0
    assert not world.mvcc.locks


async def test_the_primary_key_is_rolled_back_before_the_others(world: World) -> None:
    start_ts = await world.begin()
    world.mvcc.write(b"h", b"theirs", start_ts + 5)
    world.cluster.store(1).delay_next(Tikv.KvBatchRollback, 1.0)

    async def last(_request: Any, serve: Any) -> Any:
        await anyio.sleep(1.0)
        return await serve()

    world.cluster.store(1).script(Tikv.KvPrewrite, _only_h_later(last), times=3)
    with pytest.raises(WriteConflict):
        await world.commit(put(b"a"), put(b"h"), put(b"q"), start_ts=start_ts)
    await anyio.sleep(0.5)
    first = [list(request.keys) for request in world.cluster.requests(Tikv.KvBatchRollback)]
    await anyio.sleep(2.0)

    assert first == [[b"a"]]
    assert [list(request.keys) for request in world.cluster.requests(Tikv.KvBatchRollback)] == [[b"a"], [b"q"]]


def _only_h_later(later: Any) -> Any:
    async def act(request: Any, serve: Any) -> Any:
        return await (later(request, serve) if request.mutations[0].key == b"h" else serve())

    return act


async def test_nothing_else_is_rolled_back_when_the_primary_key_cannot_be(world: World) -> None:
    start_ts = await world.begin()
    world.mvcc.write(b"h", b"theirs", start_ts + 5)
    refusal = kvrpcpb.BatchRollbackResponse(error=kvrpcpb.KeyError(abort="Committed"))
    world.cluster.store(1).answer_next(Tikv.KvBatchRollback, refusal)

    with pytest.raises(WriteConflict):
        await world.commit(put(b"a"), put(b"h"), put(b"q"), start_ts=start_ts)
    await wait_all_tasks_blocked()

    assert world.count(Tikv.KvBatchRollback) == [1]


async def test_an_insert_of_a_key_that_exists_fails(world: World) -> None:
    world.mvcc.write(b"a", b"theirs", 5)

    with pytest.raises(AlreadyExists) as caught:
        await world.commit(Entry(b"a", b"v", must_not_exist=True), options=ANY)

    assert caught.value.key == b"a"


async def test_an_assertion_that_does_not_hold_is_told(world: World) -> None:
    world.mvcc.write(b"a", b"theirs", 5, 4)

    with pytest.raises(AssertionFailed) as caught:
        await world.commit(Entry(b"a", b"v", assertion=Assertion.NOT_EXIST), put(b"h"), options=ANY)
    await wait_all_tasks_blocked()

    failed = caught.value
    assert (failed.should_exist, failed.existing_start_ts, failed.existing_commit_ts) == (False, 4, 5)
    assert not world.mvcc.locks


async def test_a_failed_assertion_never_hides_another_failure(world: World) -> None:
    start_ts = await world.begin()
    world.mvcc.write(b"q", b"theirs", start_ts + 5)

    async def last(_request: Any, serve: Any) -> Any:
        await anyio.sleep(1.0)
        return await serve()

    def act(request: Any, serve: Any) -> Any:
        return last(request, serve) if request.mutations[0].key == b"q" else serve()

    world.cluster.store(1).script(Tikv.KvPrewrite, act, times=2)
    with pytest.raises(WriteConflict):
        await world.commit(Entry(b"a", b"v", assertion=Assertion.EXIST), put(b"q"), start_ts=start_ts)


async def test_a_refusal_in_words_is_told(world: World) -> None:
    refusal = kvrpcpb.PrewriteResponse(errors=[kvrpcpb.KeyError(abort="KeyTooLarge")])
    world.cluster.store(1).answer_next(Tikv.KvPrewrite, refusal)

    with pytest.raises(TransactionRefused, match="prewrite: KeyTooLarge"):
        await world.commit(put(b"a"))


async def test_a_transaction_that_others_have_rolled_back_is_aborted(world: World) -> None:
    start_ts = await world.begin()
    world.cluster.store(1).before_next(Tikv.KvCommit, lambda: world.mvcc.roll_back(b"a", start_ts))

    with pytest.raises(TransactionAborted) as caught:
        await world.commit(put(b"a"), put(b"h"), start_ts=start_ts)
    await wait_all_tasks_blocked()

    assert caught.value.key == b"a"
    assert caught.value.retryable
    assert not world.mvcc.locks


# --- locks of others --------------------------------------------------------------------------------------------------


async def test_a_lock_whose_time_is_over_is_put_away(world: World) -> None:
    world.mvcc.lock(b"a", Timestamp(NOW_MS - 10_000, 0).ts)

    commit_ts = await world.commit(put(b"a"))

    assert world.mvcc.at(b"a", commit_ts) == b"v"


async def test_a_lock_that_is_alive_is_waited_for(world: World) -> None:
    lock_ts = await world.begin()
    world.mvcc.lock(b"a", lock_ts, ttl_ms=100_000)

    async with anyio.create_task_group() as tasks:

        async def end() -> None:
            await anyio.sleep(2.0)
            world.mvcc.roll_back(b"a", lock_ts)

        tasks.start_soon(end)
        began = anyio.current_time()
        commit_ts = await world.commit(put(b"a"))

    assert world.mvcc.at(b"a", commit_ts) == b"v"
    assert 2.0 <= anyio.current_time() - began < 6.0


async def test_a_lock_that_outlives_the_call_is_told(world: World) -> None:
    lock_ts = await world.begin()
    world.mvcc.lock(b"a", lock_ts, ttl_ms=100_000)

    with pytest.raises(KeyLocked) as caught:
        await world.commit(put(b"a"), timeout=3.0)

    locked = caught.value
    assert (locked.key, locked.lock_ts, locked.lock_ttl) == (b"a", lock_ts, 100.0)
    assert isinstance(locked.__cause__, DeadlineExceeded)


async def test_a_lock_of_a_later_transaction_is_a_conflict_at_once(world: World) -> None:
    start_ts = await world.begin()
    lock_ts = await world.begin()
    world.mvcc.lock(b"a", lock_ts, ttl_ms=100_000)
    began = anyio.current_time()

    with pytest.raises(WriteConflict) as caught:
        await world.commit(put(b"a"), start_ts=start_ts)

    assert (caught.value.conflict_ts, caught.value.conflict_commit_ts) == (lock_ts, 0)
    assert anyio.current_time() == began
    assert world.count(Tikv.KvCheckTxnStatus) == [0]


# --- timestamps -------------------------------------------------------------------------------------------------------


async def test_a_commit_timestamp_that_readers_pushed_away_is_replaced(world: World) -> None:
    def push() -> None:
        world.mvcc.locks[b"a"].min_commit_ts = Timestamp(NOW_MS, 50).ts
        world.cluster.pd.timestamp = Timestamp(NOW_MS, 60)

    world.cluster.store(1).before_next(Tikv.KvCommit, push)

    commit_ts = await world.commit(put(b"a"), put(b"h"))
    await wait_all_tasks_blocked()

    assert commit_ts > Timestamp(NOW_MS, 60).ts
    assert world.mvcc.at(b"h", commit_ts) == b"v"
    assert not world.mvcc.locks


async def test_a_commit_waits_for_the_timestamp_that_readers_pushed_it_to(world: World) -> None:
    def push() -> None:
        world.mvcc.locks[b"a"].min_commit_ts = Timestamp(NOW_MS + 100, 0).ts

    world.cluster.store(1).before_next(Tikv.KvCommit, push)

    async with anyio.create_task_group() as tasks:

        async def tick() -> None:
            await anyio.sleep(0.1)
            world.push_clock(200)

        tasks.start_soon(tick)
        commit_ts = await world.commit(put(b"a"))

    assert Timestamp.from_ts(commit_ts).physical == NOW_MS + 200


async def test_a_commit_that_is_pushed_by_more_than_an_hour_is_given_up(world: World) -> None:
    def push() -> None:
        world.mvcc.locks[b"a"].min_commit_ts = Timestamp(NOW_MS + 3_600_001, 0).ts

    world.cluster.store(1).before_next(Tikv.KvCommit, push)

    with pytest.raises(CommitTsTooLarge):
        await world.commit(put(b"a"))
    await wait_all_tasks_blocked()

    assert not world.mvcc.locks


async def test_that_another_key_was_pushed_away_is_an_error(world: World) -> None:
    def push() -> None:
        world.mvcc.locks[b"b"].min_commit_ts = Timestamp(NOW_MS + 1000, 0).ts

    world.cluster.store(1).before_next(Tikv.KvCommit, push)

    with pytest.raises(CommitTsExpired):
        await world.commit(put(b"a"), put(b"b"))
    await wait_all_tasks_blocked()

    assert not world.mvcc.locks


@pytest.mark.parametrize("options", [TWO_PHASES, ASYNC, ANY, attrs.evolve(ANY, causal_consistency=True)])
async def test_a_commit_may_have_to_come_after_a_timestamp(world: World, options: TransactionOptions) -> None:
    target = Timestamp(NOW_MS + 300, 7).ts

    async with anyio.create_task_group() as tasks:

        async def tick() -> None:
            await anyio.sleep(0.2)
            world.push_clock(400)

        tasks.start_soon(tick)
        commit_ts = await world.commit(put(b"a"), options=attrs.evolve(options, commit_after=target))

    assert commit_ts > target


@pytest.mark.parametrize(
    ("lag_ms", "timeout", "waits"), [(300, 0.0, False), (300, 0.2, False), (300, 0.5, True), (2000, 1.0, False)]
)
@pytest.mark.parametrize("options", [TWO_PHASES, ANY])
async def test_a_commit_does_not_wait_longer_than_it_may(
    world: World, options: TransactionOptions, lag_ms: int, timeout: float, waits: bool
) -> None:
    target = Timestamp(NOW_MS + lag_ms, 0).ts
    began = anyio.current_time()

    with pytest.raises(CommitTsLag) as caught:
        await world.commit(put(b"a"), options=attrs.evolve(options, commit_after=target, commit_after_timeout=timeout))
    await wait_all_tasks_blocked()

    assert caught.value.target == target
    assert (anyio.current_time() - began >= 0.19) is waits
    assert not world.mvcc.locks


@pytest.mark.parametrize("options", [TWO_PHASES, ASYNC, ANY])
async def test_a_transaction_of_more_than_a_day_does_not_commit(world: World, options: TransactionOptions) -> None:
    start_ts = await world.begin()
    world.push_clock(86_400_001)

    with pytest.raises(TransactionExpired):
        await world.commit(put(b"a"), start_ts=start_ts, options=options)
    await wait_all_tasks_blocked()

    assert world.mvcc.at(b"a") is None
    assert not world.mvcc.locks


async def test_a_transaction_that_asks_for_no_timestamp_goes_by_its_own_clock(world: World) -> None:
    with pytest.raises(TransactionExpired):
        await world.commit(put(b"a"), options=attrs.evolve(ANY, causal_consistency=True), elapsed=86_401.0)

    assert world.count(*SENT) == [0, 0, 0, 0]


# --- heartbeats -------------------------------------------------------------------------------------------------------


@pytest.fixture
def config() -> TxnConfig:
    return TxnConfig(heartbeat_bytes=10_000)


@pytest.mark.parametrize(("size", "beats"), [(4_990, 0), (5_000, 4)])
async def test_a_large_commit_keeps_its_primary_lock_alive_until_it_is_committed(
    world: World, size: int, beats: int
) -> None:
    start_ts = await world.begin()
    world.cluster.store(1).script(Tikv.KvPrewrite, _h_after(32.0), times=100)

    await world.commit(
        put(b"a", b"v" * size), put(b"h", b"v" * size), start_ts=start_ts, timeout=60.0, options=TWO_PHASES
    )
    await anyio.sleep(60.0)

    requests = world.cluster.requests(Tikv.KvTxnHeartBeat)
    assert len(requests) == beats
    assert {(each.primary_lock, each.start_version, each.advise_lock_ttl) for each in requests} <= {
        (b"a", start_ts, 20_000)
    }


def _h_after(seconds: float) -> Any:
    """Have the Region of b"h" serve after a while."""
    until = anyio.current_time() + seconds

    async def act(request: Any, serve: Any) -> Any:
        if request.mutations[0].key == b"h" and anyio.current_time() < until:
            await anyio.sleep(1.0)
            return kvrpcpb.PrewriteResponse(region_error=errorpb.Error(stale_command=errorpb.StaleCommand()))
        return await serve()

    return act


async def test_a_commit_that_waits_for_others_keeps_its_primary_lock_alive(world: World) -> None:
    lock_ts = await world.begin()
    world.mvcc.lock(b"h", lock_ts, ttl_ms=100_000)

    with pytest.raises(KeyLocked):
        await world.commit(put(b"a"), put(b"h"), timeout=25.0)
    await anyio.sleep(60.0)

    assert world.count(Tikv.KvTxnHeartBeat) == [3]


async def test_a_primary_lock_that_others_held_up_is_kept_alive_at_once(world: World) -> None:
    lock_ts = await world.begin()
    world.mvcc.lock(b"a", lock_ts, ttl_ms=100_000)
    world.cluster.store(1).delay_next(Tikv.KvCommit, 1.0)

    async with anyio.create_task_group() as tasks:

        async def end() -> None:
            await anyio.sleep(4.0)
            world.mvcc.roll_back(b"a", lock_ts)

        tasks.start_soon(end)
        await world.commit(put(b"a"))

    # How long it lasts is counted from the start of the transaction, and is over by then.
    assert world.count(Tikv.KvTxnHeartBeat) == [1]


async def test_one_phase_needs_no_heartbeat(world: World) -> None:
    await world.commit(put(b"a", b"v" * 12_000), options=ANY)
    await anyio.sleep(60.0)

    assert world.count(Tikv.KvTxnHeartBeat) == [0]


async def test_a_heartbeat_ends_when_the_lock_is_gone(world: World) -> None:
    start_ts = await world.begin()
    world.cluster.store(1).script(Tikv.KvPrewrite, _h_after(29.0), times=100)
    world.cluster.store(1).before_next(Tikv.KvTxnHeartBeat, lambda: world.mvcc.roll_back(b"a", start_ts))

    with pytest.raises(TransactionAborted):
        await world.commit(put(b"a", b"v" * 12_000), put(b"h"), start_ts=start_ts, timeout=60.0)

    assert world.count(Tikv.KvTxnHeartBeat) == [1]


async def test_a_heartbeat_ends_when_the_transaction_has_lived_too_long(world: World) -> None:
    start_ts = await world.begin()
    world.cluster.store(1).script(Tikv.KvPrewrite, _h_after(29.0), times=100)
    world.push_clock(3_600_001)

    await world.commit(put(b"a", b"v" * 12_000), put(b"h"), start_ts=start_ts, timeout=60.0)

    assert world.count(Tikv.KvTxnHeartBeat) == [0]


async def test_a_heartbeat_that_fails_is_tried_again(world: World) -> None:
    world.cluster.store(1).script(Tikv.KvPrewrite, _h_after(29.0), times=100)
    too_large = errorpb.Error(raft_entry_too_large=errorpb.RaftEntryTooLarge())
    world.cluster.store(1).answer_next(Tikv.KvTxnHeartBeat, region_error=too_large)

    await world.commit(put(b"a", b"v" * 12_000), put(b"h"), timeout=60.0)

    assert world.count(Tikv.KvTxnHeartBeat) == [3]


async def test_a_commit_without_timestamps_locks_nothing_for_long(world: World) -> None:
    world.cluster.pd.hang(PD.Tso)

    with pytest.raises(DeadlineExceeded):
        await world.commit(put(b"a"), start_ts=Timestamp(NOW_MS, 0).ts, timeout=5.0)
    await wait_all_tasks_blocked()

    assert not world.mvcc.locks
