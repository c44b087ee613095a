"""What the lock resolver asks the stores, and what it does about what they say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from tikv_pd import LATEST, DeadlineExceeded, Timestamp
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import Tikv
from tikv_rpc import Call, RequestOptions
from tikv_rpc.testing import FakeCluster
from tikv_txn._locks.locks import Lock
from tikv_txn._locks.resolver import LockResolver, ReadOutcome
from tikv_txn._store import TxnStore
from tikv_txn.config import TxnConfig
from tikv_txn.errors import InconsistentLocks, PrimaryMismatch, TransactionNotFound, TransactionRefused

Action = kvrpcpb.Action
Status = kvrpcpb.CheckTxnStatusResponse

NOW_MS = 1_000_000
"""What PD's clock says."""
START = Timestamp(NOW_MS - 1000, 0).ts
"""A second ago."""
NOW = Timestamp(NOW_MS, 0).ts
COMMIT = Timestamp(NOW_MS - 500, 0).ts


def lock(key: bytes = b"k", primary: bytes = b"a", start_ts: int = START, **fields: Any) -> Lock:
    return Lock(key, primary, start_ts, **{"ttl_ms": 3000, **fields})


def lock_info(key: bytes, start_ts: int = START, **fields: Any) -> kvrpcpb.LockInfo:
    return kvrpcpb.LockInfo(**{"key": key, "primary_lock": b"a", "lock_version": start_ts, "lock_ttl": 3000, **fields})


def async_primary(*secondaries: bytes, ttl: int = 500, min_commit_ts: int = START + 5) -> Status:
    """An async commit as its primary key tells of it."""
    info = lock_info(b"a", use_async_commit=True, min_commit_ts=min_commit_ts, secondaries=secondaries, lock_ttl=ttl)
    return Status(lock_ttl=ttl, lock_info=info)


NOT_FOUND = Status(error=kvrpcpb.KeyError(txn_not_found=kvrpcpb.TxnNotFound(start_ts=START, primary_key=b"a")))
MISMATCH = Status(error=kvrpcpb.KeyError(primary_mismatch=kvrpcpb.PrimaryMismatch(lock_info=lock_info(b"a"))))


@pytest.fixture(autouse=True)
def stores_put_locks_away(cluster: FakeCluster) -> None:
    async def resolve(_request: Any) -> kvrpcpb.ResolveLockResponse:
        return kvrpcpb.ResolveLockResponse()

    async def roll_back(_request: Any) -> kvrpcpb.PessimisticRollbackResponse:
        return kvrpcpb.PessimisticRollbackResponse()

    cluster.handlers[Tikv.KvResolveLock] = resolve
    cluster.handlers[Tikv.KVPessimisticRollback] = roll_back


@pytest.fixture
def resolver(store: TxnStore) -> LockResolver:
    return LockResolver(store)


@pytest.fixture
def call(store: TxnStore) -> Call:
    return store.rpc.call("get", 10.0)


def says(cluster: FakeCluster, *statuses: Status, times: float = 1) -> None:
    """Script what primary keys say next."""
    for status in statuses:
        cluster.store(1).answer_next(Tikv.KvCheckTxnStatus, status, times=times)


def secondaries_say(cluster: FakeCluster, *answers: kvrpcpb.CheckSecondaryLocksResponse) -> None:
    for answer in answers:
        cluster.store(1).answer_next(Tikv.KvCheckSecondaryLocks, answer)


def asked(cluster: FakeCluster) -> list[kvrpcpb.CheckTxnStatusRequest]:
    found: list[kvrpcpb.CheckTxnStatusRequest] = cluster.requests(Tikv.KvCheckTxnStatus)
    return found


def resolved(cluster: FakeCluster) -> list[tuple[int, int, list[bytes]]]:
    """Start and commit timestamp and keys of each request that put locks away."""
    requests = cluster.requests(Tikv.KvResolveLock)
    return sorted((each.start_version, each.commit_version, sorted(each.keys)) for each in requests)


def rolled_back(cluster: FakeCluster) -> list[tuple[int, int, list[bytes]]]:
    """Start timestamp, timestamp of locking and keys of each request that took pessimistic locks away."""
    requests = cluster.requests(Tikv.KVPessimisticRollback)
    return sorted((each.start_version, each.for_update_ts, sorted(each.keys)) for each in requests)


# --- reads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "outcome", "commit_version"),
    [
        (Status(commit_version=COMMIT), ReadOutcome(0.0, frozenset(), frozenset({START})), COMMIT),
        (Status(commit_version=NOW), ReadOutcome(0.0, frozenset(), frozenset({START})), NOW),
        (Status(commit_version=NOW + 1), ReadOutcome(0.0, frozenset({START}), frozenset()), NOW + 1),
        (Status(), ReadOutcome(0.0, frozenset({START}), frozenset()), 0),
        (Status(action=Action.TTLExpireRollback), ReadOutcome(0.0, frozenset({START}), frozenset()), 0),
        (
            Status(lock_ttl=3000, action=Action.MinCommitTSPushed),
            ReadOutcome(0.0, frozenset({START}), frozenset()),
            None,
        ),
        (Status(lock_ttl=3000), ReadOutcome(2.0, frozenset(), frozenset()), None),
        (async_primary(b"k", ttl=3000), ReadOutcome(2.0, frozenset(), frozenset()), None),
        (Status(action=Action.LockNotExistDoNothing), ReadOutcome(0.0, frozenset(), frozenset()), None),
    ],
)
async def test_how_a_read_goes_on(
    cluster: FakeCluster,
    resolver: LockResolver,
    call: Call,
    status: Status,
    outcome: ReadOutcome,
    commit_version: int | None,
) -> None:
    says(cluster, status)

    found = await resolver.resolve_for_read([lock()], NOW, call)
    await wait_all_tasks_blocked()

    assert found == outcome
    assert resolved(cluster) == ([] if commit_version is None else [(START, commit_version, [b"k"])])
    assert resolver.in_background == 0


async def test_what_is_asked(cluster: FakeCluster, resolver: LockResolver, call: Call) -> None:
    says(cluster, Status(lock_ttl=3000))

    await resolver.resolve_for_read([lock()], NOW + 7, call)

    [request] = asked(cluster)
    request.ClearField("context")
    assert request == kvrpcpb.CheckTxnStatusRequest(
        primary_key=b"a", lock_ts=START, caller_start_ts=NOW + 7, current_ts=request.current_ts, verify_is_primary=True
    )
    assert request.current_ts >= NOW


async def test_a_read_does_not_wait_until_locks_are_put_away(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, Status(commit_version=COMMIT))
    cluster.store(1).hang_next(Tikv.KvResolveLock)

    outcome = await resolver.resolve_for_read([lock()], NOW, call)
    await wait_all_tasks_blocked()

    assert outcome.access == {START}
    assert (resolver.in_background, len(resolved(cluster))) == (1, 1)


async def test_a_read_of_many_transactions_asks_each_once(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    async def status(request: kvrpcpb.CheckTxnStatusRequest) -> Status:
        return Status(lock_ttl=3000) if request.lock_ts == START + 2 else Status(commit_version=COMMIT)

    cluster.handlers[Tikv.KvCheckTxnStatus] = status
    locks = [lock(b"%d" % number, start_ts=START + number % 3) for number in range(9)]

    outcome = await resolver.resolve_for_read(locks, NOW, call)
    await wait_all_tasks_blocked()

    assert sorted(request.lock_ts for request in asked(cluster)) == [START, START + 1, START + 2]
    assert outcome.access == {START, START + 1}
    assert not outcome.ignore
    assert outcome.wait == pytest.approx(2.0)
    assert resolved(cluster) == [(START, COMMIT, [b"0", b"3", b"6"]), (START + 1, COMMIT, [b"1", b"4", b"7"])]


async def test_locks_are_put_away_with_one_request_for_each_region(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, Status(commit_version=COMMIT))

    await resolver.resolve_for_read([lock(key) for key in (b"b", b"c", b"h", b"x", b"y")], NOW, call)
    await wait_all_tasks_blocked()

    assert resolved(cluster) == [(START, COMMIT, [b"b", b"c"]), (START, COMMIT, [b"h"]), (START, COMMIT, [b"x", b"y"])]


async def test_locks_of_a_large_transaction_are_put_away_by_region(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, Status(commit_version=COMMIT))
    locks = [lock(key, txn_size=512) for key in (b"b", b"c", b"h")]

    await resolver.resolve_for_read(locks, NOW, call)
    await wait_all_tasks_blocked()

    assert resolved(cluster) == [(START, COMMIT, []), (START, COMMIT, [])]
    assert len({request.context.region_id for request in cluster.requests(Tikv.KvResolveLock)}) == 2


async def test_a_read_of_one_key_puts_only_that_away(cluster: FakeCluster, resolver: LockResolver, call: Call) -> None:
    says(cluster, Status(commit_version=COMMIT))

    await resolver.resolve_for_read([lock(txn_size=LATEST)], NOW, call, lite=True)
    await wait_all_tasks_blocked()

    assert resolved(cluster) == [(START, COMMIT, [b"k"])]


async def test_a_primary_key_that_was_asked_is_clear_already(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, Status())

    assert (await resolver.resolve_for_read([lock(b"a")], NOW, call)).ignore == {START}
    await wait_all_tasks_blocked()

    assert resolved(cluster) == []


async def test_a_failure_to_put_locks_away_does_not_concern_the_read(
    cluster: FakeCluster, store: TxnStore, resolver: LockResolver, call: Call
) -> None:
    says(cluster, Status(commit_version=COMMIT))
    refused = kvrpcpb.ResolveLockResponse(error=kvrpcpb.KeyError(abort="no"))
    cluster.store(1).answer_next(Tikv.KvResolveLock, refused)

    assert (await resolver.resolve_for_read([lock()], NOW, call)).access == {START}
    await wait_all_tasks_blocked()

    assert not store.rpc.closed
    assert resolver.in_background == 0


async def test_a_read_that_cannot_read_through_locks_waits_until_they_are_gone(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, Status(commit_version=COMMIT))

    outcome = await resolver.resolve_for_read([lock()], NOW, call, clean=True)

    assert outcome.access == {START}
    assert resolved(cluster) == [(START, COMMIT, [b"k"])]


class TestOneTaskInBackground:
    @pytest.fixture
    def config(self) -> TxnConfig:
        return TxnConfig(background_tasks=1)

    async def test_what_is_too_much_for_the_background_is_done_by_the_read(
        self, cluster: FakeCluster, resolver: LockResolver, call: Call
    ) -> None:
        says(cluster, Status(commit_version=COMMIT))
        cluster.store(1).hang_next(Tikv.KvResolveLock)
        await resolver.resolve_for_read([lock(b"k")], NOW, call)
        await wait_all_tasks_blocked()

        await resolver.resolve_for_read([lock(b"l")], NOW, call)

        assert resolver.in_background == 1
        assert resolved(cluster) == [(START, COMMIT, [b"k"]), (START, COMMIT, [b"l"])]

    async def test_its_failure_does_not_concern_the_read(
        self, cluster: FakeCluster, resolver: LockResolver, call: Call
    ) -> None:
        says(cluster, Status(commit_version=COMMIT))
        cluster.store(1).hang_next(Tikv.KvResolveLock)
        await resolver.resolve_for_read([lock(b"k")], NOW, call)
        await wait_all_tasks_blocked()
        refused = kvrpcpb.ResolveLockResponse(error=kvrpcpb.KeyError(abort="no"))
        cluster.store(1).answer_next(Tikv.KvResolveLock, refused)

        outcome = await resolver.resolve_for_read([lock(b"l")], NOW, call)

        assert outcome.access == {START}


async def test_readers_of_one_lock_put_it_away_once(cluster: FakeCluster, resolver: LockResolver, call: Call) -> None:
    says(cluster, Status(commit_version=COMMIT))
    cluster.store(1).delay_next(Tikv.KvResolveLock, 1.0)

    for _ in range(5):
        await resolver.resolve_for_read([lock()], NOW, call)
    await wait_all_tasks_blocked()

    assert len(resolved(cluster)) == 1


async def test_putting_away_keeps_the_callers_options(
    cluster: FakeCluster, store: TxnStore, resolver: LockResolver
) -> None:
    says(cluster, Status(commit_version=COMMIT))
    options = RequestOptions(request_source="test", resource_group="some", stale_read=True)

    await resolver.resolve_for_read([lock()], NOW, store.rpc.call("get", 10.0, options))
    await wait_all_tasks_blocked()

    for request in (*asked(cluster), *cluster.requests(Tikv.KvResolveLock)):
        assert request.context.request_source == "leader_test"
        assert request.context.resource_control_context.resource_group_name == "some"
        assert not request.context.stale_read


async def test_closing_the_client_ends_what_runs_in_background(
    cluster: FakeCluster, store: TxnStore, resolver: LockResolver, call: Call
) -> None:
    says(cluster, Status(commit_version=COMMIT))
    cluster.store(1).hang_next(Tikv.KvResolveLock)
    await resolver.resolve_for_read([lock()], NOW, call)
    await wait_all_tasks_blocked()

    await store.rpc.__aexit__(None, None, None)

    assert resolver.in_background == 0
    await store.rpc.__aenter__()


# --- writes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "seconds", "commit_version"),
    [
        (Status(commit_version=COMMIT), 0.0, COMMIT),
        (Status(commit_version=NOW + 1), 0.0, NOW + 1),
        (Status(), 0.0, 0),
        (Status(lock_ttl=3000), 2.0, None),
        (Status(lock_ttl=3000, action=Action.MinCommitTSPushed), 2.0, None),
        (Status(lock_ttl=500), 0.0, None),
    ],
)
async def test_a_write_waits_until_locks_are_put_away(
    cluster: FakeCluster,
    resolver: LockResolver,
    call: Call,
    status: Status,
    seconds: float,
    commit_version: int | None,
) -> None:
    says(cluster, status)

    assert await resolver.resolve([lock()], NOW, call) == pytest.approx(seconds)

    assert resolved(cluster) == ([] if commit_version is None else [(START, commit_version, [b"k"])])


async def test_a_write_that_is_refused_to_put_a_lock_away_fails(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, Status(commit_version=COMMIT))
    refused = kvrpcpb.ResolveLockResponse(error=kvrpcpb.KeyError(abort="no"))
    cluster.store(1).answer_next(Tikv.KvResolveLock, refused)

    with pytest.raises(TransactionRefused, match="the store refused resolve_locks: no"):
        await resolver.resolve([lock()], NOW, call)


async def test_a_write_waits_for_the_lock_that_expires_first(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    async def status(request: kvrpcpb.CheckTxnStatusRequest) -> Status:
        ttls = {START: 5000, START + 1: 3000}
        return Status(lock_ttl=ttls[request.lock_ts]) if request.lock_ts in ttls else Status()

    cluster.handlers[Tikv.KvCheckTxnStatus] = status

    seconds = await resolver.resolve([lock(start_ts=START + number) for number in range(3)], NOW, call)

    assert seconds == pytest.approx(2.0)


async def test_no_locks_are_no_trouble(cluster: FakeCluster, resolver: LockResolver, call: Call) -> None:
    assert await resolver.resolve([], NOW, call) == 0.0
    assert await resolver.resolve_for_read([], NOW, call) == ReadOutcome(0.0, frozenset(), frozenset())

    assert cluster.log == []


async def test_writers_of_large_transactions_put_a_region_away_once(
    cluster: FakeCluster, store: TxnStore, resolver: LockResolver
) -> None:
    says(cluster, Status(commit_version=COMMIT), times=math.inf)
    cluster.store(1).delay_next(Tikv.KvResolveLock, 1.0)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            large = lock(b"k%d" % number, txn_size=512)
            tasks.start_soon(resolver.resolve, [large], NOW, store.rpc.call("commit", 10.0))

    assert resolved(cluster) == [(START, COMMIT, [])]


async def test_a_lost_answer_about_others_locks_says_nothing_of_the_own_write(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    cluster.store(1).fail_next(Tikv.KvCheckTxnStatus, "UNAVAILABLE")
    says(cluster, Status(commit_version=COMMIT))
    cluster.store(1).fail_next(Tikv.KvResolveLock, "UNAVAILABLE")

    assert await resolver.resolve([lock()], NOW, call) == 0.0

    assert (call.lost, call.wrote) == (None, False)
    assert call.backoffer.waited > 0


async def test_an_outcome_that_a_store_cannot_tell_is_asked_for_again(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    unknown = errorpb.Error(undetermined_result=errorpb.UndeterminedResult())
    cluster.store(1).answer_next(Tikv.KvCheckTxnStatus, region_error=unknown)
    says(cluster, Status(commit_version=COMMIT))

    assert await resolver.resolve([lock()], NOW, call) == 0.0

    assert len(asked(cluster)) == 2


async def test_time_runs_out(cluster: FakeCluster, resolver: LockResolver, call: Call) -> None:
    cluster.store(1).hang_next(Tikv.KvCheckTxnStatus, times=math.inf)

    with pytest.raises(DeadlineExceeded, match="get did not finish within 10 s"):
        await resolver.resolve([lock()], NOW, call)


# --- Regions that move ------------------------------------------------------------------------------------------------


async def test_a_primary_key_is_found_where_it_moved(cluster: FakeCluster, resolver: LockResolver, call: Call) -> None:
    cluster.store(1).answer_next(
        Tikv.KvCheckTxnStatus, region_error=errorpb.Error(epoch_not_match=errorpb.EpochNotMatch())
    )
    says(cluster, Status(commit_version=COMMIT))

    await resolver.resolve([lock()], NOW, call)

    assert len(asked(cluster)) == 2
    assert resolved(cluster) == [(START, COMMIT, [b"k"])]


async def test_locks_are_put_away_where_they_moved(cluster: FakeCluster, resolver: LockResolver, call: Call) -> None:
    says(cluster, Status(commit_version=COMMIT))
    cluster.store(1).before_next(Tikv.KvResolveLock, lambda: cluster.split(b"c"))

    await resolver.resolve([lock(b"b"), lock(b"d")], NOW, call)

    assert resolved(cluster) == [(START, COMMIT, [b"b"]), (START, COMMIT, [b"b", b"d"]), (START, COMMIT, [b"d"])]


# --- what is remembered -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status(commit_version=COMMIT), Status()])
async def test_what_has_ended_is_not_asked_again(
    cluster: FakeCluster, resolver: LockResolver, call: Call, status: Status
) -> None:
    says(cluster, status)
    await resolver.resolve([lock(b"k")], NOW, call)

    await resolver.resolve([lock(b"l")], NOW, call)

    assert len(asked(cluster)) == 1
    assert [keys for _, _, keys in resolved(cluster)] == [[b"k"], [b"l"]]


@pytest.mark.parametrize("status", [Status(lock_ttl=3000), Status(action=Action.LockNotExistDoNothing)])
async def test_what_may_change_is_asked_again(
    cluster: FakeCluster, resolver: LockResolver, call: Call, status: Status
) -> None:
    says(cluster, status, status)

    for _ in range(2):
        await resolver.resolve([lock()], NOW, call)

    assert len(asked(cluster)) == 2


class TestTwoAreRemembered:
    @pytest.fixture
    def config(self) -> TxnConfig:
        return TxnConfig(resolved_transactions=2)

    async def test_the_first_is_forgotten_first(self, cluster: FakeCluster, resolver: LockResolver, call: Call) -> None:
        says(cluster, Status(), times=math.inf)
        for number in (0, 1, 0, 2, 1, 2, 0):
            await resolver.resolve([lock(start_ts=START + number)], NOW, call)

        assert [request.lock_ts - START for request in asked(cluster)] == [0, 1, 2, 0]


# --- transactions the primary key does not know -----------------------------------------------------------------------


async def test_a_lock_made_before_the_primary_one_is_waited_for(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, NOT_FOUND, NOT_FOUND, NOT_FOUND, Status(lock_ttl=3000))

    assert await resolver.resolve([lock()], NOW, call) == pytest.approx(2.0)

    assert [request.rollback_if_not_exist for request in asked(cluster)] == [False] * 4
    assert call.backoffer.waited == pytest.approx(0.002 + 0.004 + 0.008)


async def test_one_whose_time_is_over_is_rolled_back_where_nothing_is_known(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, NOT_FOUND, Status(action=Action.LockNotExistRollback))

    assert await resolver.resolve([lock(ttl_ms=1000)], NOW, call) == 0.0

    assert [request.rollback_if_not_exist for request in asked(cluster)] == [False, True]
    assert resolved(cluster) == [(START, 0, [b"k"])]
    assert call.backoffer.waited == 0


async def test_a_store_that_does_not_roll_back_is_believed(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, NOT_FOUND, NOT_FOUND)

    with pytest.raises(TransactionNotFound):
        await resolver.resolve([lock(ttl_ms=1000)], NOW, call)


async def test_a_lock_without_time_left_must_go(cluster: FakeCluster, resolver: LockResolver, call: Call) -> None:
    says(cluster, Status(action=Action.TTLExpireRollback))

    await resolver.resolve([lock(ttl_ms=0)], NOW, call)

    assert [request.current_ts for request in asked(cluster)] == [LATEST]
    assert resolved(cluster) == [(START, 0, [b"k"])]


# --- pessimistic locks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status(action=Action.TTLExpirePessimisticRollback), Status(), MISMATCH])
async def test_pessimistic_locks_of_who_is_gone_are_taken_away(
    cluster: FakeCluster, resolver: LockResolver, call: Call, status: Status
) -> None:
    says(cluster, status)
    locks = [
        lock(key, is_pessimistic=True, for_update_ts=ts)
        for key, ts in ((b"b", 7), (b"c", 7), (b"d", 8), (b"h", 7), (b"x", 0))
    ]

    assert await resolver.resolve(locks, NOW, call) == 0.0

    assert [request.resolving_pessimistic_lock for request in asked(cluster)] == [True]
    assert rolled_back(cluster) == [
        (START, 7, [b"b", b"c"]),
        (START, 7, [b"h"]),
        (START, 8, [b"d"]),
        (START, LATEST, [b"x"]),
    ]
    assert resolved(cluster) == []


@pytest.mark.parametrize(("status", "requests"), [(Status(action=Action.LockNotExistDoNothing), 0), (MISMATCH, 1)])
async def test_a_pessimistic_primary_lock_goes_when_it_is_asked(
    cluster: FakeCluster, resolver: LockResolver, call: Call, status: Status, requests: int
) -> None:
    says(cluster, status)

    assert await resolver.resolve([lock(b"a", is_pessimistic=True)], NOW, call) == 0.0

    assert len(rolled_back(cluster)) == requests


async def test_pessimistic_locks_of_who_is_alive_stay(cluster: FakeCluster, resolver: LockResolver, call: Call) -> None:
    says(cluster, Status(lock_ttl=3000), NOT_FOUND)

    for _ in range(2):
        assert await resolver.resolve([lock(is_pessimistic=True)], NOW, call) == pytest.approx(2.0)

    assert rolled_back(cluster) == []


async def test_one_whose_time_is_over_and_that_nobody_knows(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, NOT_FOUND, Status(action=Action.LockNotExistDoNothing))

    assert await resolver.resolve([lock(is_pessimistic=True, ttl_ms=1000)], NOW, call) == 0.0

    assert [request.rollback_if_not_exist for request in asked(cluster)] == [False, True]
    assert rolled_back(cluster) == [(START, LATEST, [b"k"])]


async def test_a_refusal_to_take_a_pessimistic_lock_away(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, Status())
    refused = kvrpcpb.PessimisticRollbackResponse(errors=[kvrpcpb.KeyError(abort="no")])
    cluster.store(1).answer_next(Tikv.KVPessimisticRollback, refused)

    with pytest.raises(TransactionRefused, match="no"):
        await resolver.resolve([lock(is_pessimistic=True)], NOW, call)


async def test_both_kinds_of_locks_of_a_transaction_are_asked_about(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    async def status(request: kvrpcpb.CheckTxnStatusRequest) -> Status:
        return MISMATCH if request.resolving_pessimistic_lock else Status(commit_version=COMMIT)

    cluster.handlers[Tikv.KvCheckTxnStatus] = status

    await resolver.resolve([lock(b"b"), lock(b"c", is_pessimistic=True, primary=b"z")], NOW, call)

    assert resolved(cluster) == [(START, COMMIT, [b"b"])]
    assert rolled_back(cluster) == [(START, LATEST, [b"c"])]


@pytest.mark.parametrize("for_read", [False, True])
async def test_a_committed_lock_that_names_a_wrong_primary_key_is_an_error(
    cluster: FakeCluster, resolver: LockResolver, call: Call, for_read: bool
) -> None:
    says(cluster, MISMATCH)
    resolve: Callable[..., Any] = resolver.resolve_for_read if for_read else resolver.resolve

    with pytest.raises(PrimaryMismatch):
        await resolve([lock()], NOW, call)


async def test_any_other_answer_is_an_error(cluster: FakeCluster, resolver: LockResolver, call: Call) -> None:
    says(cluster, Status(error=kvrpcpb.KeyError(abort="no")))

    with pytest.raises(TransactionRefused, match="no"):
        await resolver.resolve([lock()], NOW, call)


# --- async commit -----------------------------------------------------------------------------------------------------


def secondaries(*keys: bytes, min_commit_ts: int = START + 9, is_async: bool = True) -> Any:
    locks = [lock_info(key, use_async_commit=is_async, min_commit_ts=min_commit_ts) for key in keys]
    return kvrpcpb.CheckSecondaryLocksResponse(locks=locks)


async def test_an_async_commit_whose_keys_are_all_locked_is_committed(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, async_primary(b"b", b"c", b"k"))

    async def check(request: kvrpcpb.CheckSecondaryLocksRequest) -> Any:
        return secondaries(*request.keys, min_commit_ts=START + (9 if b"k" in request.keys else 3))

    cluster.handlers[Tikv.KvCheckSecondaryLocks] = check

    outcome = await resolver.resolve_for_read([lock()], NOW, call)
    await wait_all_tasks_blocked()

    requests = cluster.requests(Tikv.KvCheckSecondaryLocks)
    assert sorted((request.start_version, list(request.keys)) for request in requests) == [
        (START, [b"b", b"c"]),
        (START, [b"k"]),
    ]
    assert outcome == ReadOutcome(0.0, frozenset(), frozenset({START}))
    assert resolved(cluster) == [(START, START + 9, [b"a", b"b", b"c"]), (START, START + 9, [b"k"])]


async def test_an_async_commit_that_lacks_a_lock_is_rolled_back(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, async_primary(b"b", b"c"))
    secondaries_say(cluster, secondaries(b"b"))

    assert await resolver.resolve([lock(b"b")], NOW, call) == 0.0

    assert resolved(cluster) == [(START, 0, [b"a", b"b", b"c"])]


async def test_an_async_commit_that_others_put_away_meanwhile(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, async_primary(b"b", b"c"))
    secondaries_say(cluster, kvrpcpb.CheckSecondaryLocksResponse(commit_ts=COMMIT))

    outcome = await resolver.resolve_for_read([lock(b"b")], COMMIT - 1, call)
    await wait_all_tasks_blocked()

    assert outcome.ignore == {START}
    assert resolved(cluster) == [(START, COMMIT, [b"a", b"b", b"c"])]


async def test_an_async_commit_of_one_key(cluster: FakeCluster, resolver: LockResolver, call: Call) -> None:
    says(cluster, async_primary())

    await resolver.resolve([lock(b"a")], NOW, call)

    assert resolved(cluster) == [(START, START + 5, [b"a"])]


async def test_what_was_recovered_is_remembered(cluster: FakeCluster, resolver: LockResolver, call: Call) -> None:
    says(cluster, async_primary(b"b"))
    secondaries_say(cluster, secondaries(b"b"))
    await resolver.resolve([lock(b"b")], NOW, call)

    await resolver.resolve([lock(b"a"), lock(b"d")], NOW, call)

    assert len(asked(cluster)) == 1
    assert resolved(cluster) == [(START, START + 9, [b"a", b"b"]), (START, START + 9, [b"a", b"d"])]


@pytest.mark.parametrize(
    ("again", "wait", "access", "commit_version"),
    [
        (Status(commit_version=COMMIT), 0.0, {START}, COMMIT),
        (Status(action=Action.TTLExpireRollback), 0.0, set(), 0),
        (async_primary(b"b", ttl=4000), 3.0, set(), None),
    ],
)
async def test_an_async_commit_that_fell_back_is_decided_by_its_primary_key(
    cluster: FakeCluster,
    resolver: LockResolver,
    call: Call,
    again: Status,
    wait: float,
    access: set[int],
    commit_version: int | None,
) -> None:
    says(cluster, async_primary(b"b"), again)
    secondaries_say(cluster, secondaries(b"b", is_async=False))

    outcome = await resolver.resolve_for_read([lock(b"b")], NOW, call)
    await wait_all_tasks_blocked()

    assert [request.force_sync_commit for request in asked(cluster)] == [False, True]
    assert outcome.wait == pytest.approx(wait)
    assert outcome.access == access
    assert resolved(cluster) == ([] if commit_version is None else [(START, commit_version, [b"b"])])


async def test_keys_of_an_async_commit_that_contradict_each_other(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, async_primary(b"b"))
    secondaries_say(cluster, kvrpcpb.CheckSecondaryLocksResponse(commit_ts=START + 1))

    with pytest.raises(InconsistentLocks, match="below a lock's"):
        await resolver.resolve([lock(b"b")], NOW, call)

    assert resolved(cluster) == []


async def test_a_store_that_does_not_say_what_became_of_a_key(
    cluster: FakeCluster, resolver: LockResolver, call: Call
) -> None:
    says(cluster, async_primary(b"b"))
    secondaries_say(cluster, kvrpcpb.CheckSecondaryLocksResponse(error=kvrpcpb.KeyError(abort="no")))

    with pytest.raises(TransactionRefused, match="no"):
        await resolver.resolve([lock(b"b")], NOW, call)
