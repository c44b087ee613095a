from __future__ import annotations

import math
import random

import anyio
import pytest
from hypothesis import given, strategies as st
from tikv_pd import Backoffer, BackoffExceeded, BackoffKind, Deadline, DeadlineExceeded, Jitter, backoff

KINDS = [kind for kind in vars(backoff).values() if isinstance(kind, BackoffKind)]
STEADY = BackoffKind("steady", 1.0, 4.0, Jitter.NONE)
BUSY = BackoffKind("busy", 100.0, 400.0, Jitter.NONE, excluded=True)
CAUSE = RuntimeError("the last failure")


def backoffer(timeout: float = math.inf, budget: float = 10.0) -> Backoffer:
    return Backoffer(Deadline("get", timeout, anyio.current_time), budget=budget, rng=random.Random(1))


async def wait_ten_times(waits: Backoffer, kind: BackoffKind) -> None:
    for _ in range(10):
        await waits.backoff(kind, CAUSE)


@pytest.mark.parametrize(
    ("kind", "name", "base", "cap", "jitter"),
    [
        (backoff.TIKV_RPC, "tikvRPC", 0.1, 2.0, Jitter.EQUAL),
        (backoff.PD_RPC, "pdRPC", 0.5, 3.0, Jitter.EQUAL),
        (backoff.PD_TSO, "pdTSO", 0.1, 0.5, Jitter.EQUAL),
        (backoff.REGION_MISS, "regionMiss", 0.002, 0.5, Jitter.NONE),
        (backoff.REGION_SCHEDULING, "regionScheduling", 0.002, 0.5, Jitter.NONE),
        (backoff.SERVER_BUSY, "tikvServerBusy", 2.0, 10.0, Jitter.EQUAL),
        (backoff.DISK_FULL, "tikvDiskFull", 0.5, 5.0, Jitter.NONE),
        (backoff.RECOVERY_IN_PROGRESS, "regionRecoveryInProgress", 0.1, 10.0, Jitter.EQUAL),
        (backoff.MAX_TS_NOT_SYNCED, "maxTsNotSynced", 0.002, 0.5, Jitter.NONE),
        (backoff.REGION_NOT_INITIALIZED, "regionNotInitialized", 0.002, 1.0, Jitter.NONE),
        (backoff.IS_WITNESS, "isWitness", 1.0, 10.0, Jitter.EQUAL),
        (backoff.TXN_LOCK, "txnLock", 0.1, 3.0, Jitter.EQUAL),
        (backoff.TXN_LOCK_FAST, "txnLockFast", 0.01, 3.0, Jitter.EQUAL),
        (backoff.TXN_NOT_FOUND, "txnNotFound", 0.002, 0.5, Jitter.NONE),
        (backoff.COMMIT_TS_LAG, "commitTSLag", 0.002, 0.5, Jitter.NONE),
    ],
    ids=lambda value: value.name if isinstance(value, BackoffKind) else "",
)
def test_the_table_of_kinds(kind: BackoffKind, name: str, base: float, cap: float, jitter: Jitter) -> None:
    assert (kind.name, kind.base, kind.cap, kind.jitter) == (name, base, cap, jitter)


def test_every_kind_has_a_name_of_its_own() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS) == 15


def test_only_a_busy_store_leaves_the_budget_alone() -> None:
    assert [kind for kind in KINDS if kind.excluded] == [backoff.SERVER_BUSY]


def test_waits_double_up_to_the_cap() -> None:
    delays = [STEADY.delay(attempt, random.Random(1)) for attempt in range(5)]

    assert delays == [1, 2, 4, 4, 4]


@given(st.sampled_from(KINDS), st.integers(0, 5000), st.integers())
def test_a_wait_is_at_least_half_of_the_full_value_and_never_above_the_cap(
    kind: BackoffKind, attempt: int, seed: int
) -> None:
    full = min(kind.cap, kind.base * 2.0 ** min(attempt, 60))

    delay = kind.delay(attempt, random.Random(seed))

    assert full / 2 <= delay <= full


async def test_each_kind_counts_its_own_attempts() -> None:
    waits = backoffer()
    other = BackoffKind("other", 0.25, 1.0, Jitter.NONE)

    await waits.backoff(STEADY, CAUSE)
    await waits.backoff(other, CAUSE)
    await waits.backoff(STEADY, CAUSE)

    assert (waits.waited, waits.attempts, anyio.current_time()) == (3.25, 3, 3.25)


async def test_the_budget_ends_the_waits_with_the_last_failure_as_cause() -> None:
    waits = backoffer(budget=5)

    with pytest.raises(BackoffExceeded) as raised:
        await wait_ten_times(waits, STEADY)

    assert (raised.value.waited, raised.value.attempts, raised.value.__cause__) == (7, 3, CAUSE)
    assert anyio.current_time() == 7


async def test_waits_of_an_excluded_kind_have_a_budget_of_their_own() -> None:
    waits = backoffer(budget=5)

    with pytest.raises(BackoffExceeded) as raised:
        await wait_ten_times(waits, BUSY)

    assert (waits.waited, waits.excluded, raised.value.attempts) == (0, 700, 3)


async def test_the_last_wait_ends_at_the_deadline() -> None:
    waits = backoffer(timeout=2.5)
    await waits.backoff(STEADY, CAUSE)

    with pytest.raises(DeadlineExceeded) as raised:
        await waits.backoff(STEADY, CAUSE)

    assert raised.value.__cause__ is CAUSE
    assert anyio.current_time() == 2.5


async def test_a_wait_may_be_limited() -> None:
    waits = backoffer()
    await waits.backoff(STEADY, CAUSE)

    await waits.backoff(STEADY, CAUSE, at_most=0.25)

    assert (waits.waited, waits.waits, anyio.current_time()) == (1.25, {"steady": 2}, 1.25)


async def test_no_wait_begins_after_the_deadline() -> None:
    waits = backoffer(timeout=1)
    await anyio.sleep(1)

    with pytest.raises(DeadlineExceeded):
        await waits.backoff(STEADY, CAUSE)

    assert waits.attempts == 0


async def test_an_interrupted_wait_is_not_counted_as_waited() -> None:
    waits = backoffer()

    with anyio.move_on_after(0.5):
        await waits.backoff(STEADY, CAUSE)

    assert waits.waited == 0


async def test_parallel_branches_count_the_longest_wait_not_the_sum() -> None:
    waits = backoffer()
    await waits.backoff(STEADY, CAUSE)
    branches = [waits.fork(), waits.fork()]

    for branch in branches:
        await branch.backoff(STEADY, CAUSE)
    await branches[1].backoff(BUSY, CAUSE)
    waits.join(branches)

    assert (waits.waited, waits.excluded) == (3, 100)


async def test_a_branch_has_the_deadline_and_the_budget_of_its_origin() -> None:
    waits = backoffer(timeout=50, budget=2)
    await waits.backoff(STEADY, CAUSE)

    branch = waits.fork()

    assert (branch.deadline, branch.budget, branch.waited, branch.attempts) == (waits.deadline, 2, 1, 1)


async def test_waits_of_a_branch_go_on_growing_and_so_do_those_after_it() -> None:
    waits = backoffer(budget=math.inf)
    await waits.backoff(STEADY, CAUSE)
    branch = waits.fork()
    began = anyio.current_time()

    await branch.backoff(STEADY, CAUSE)
    waits.join([branch])
    await waits.backoff(STEADY, CAUSE)

    assert anyio.current_time() - began == 2 + 4
