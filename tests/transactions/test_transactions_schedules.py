"""Transactions of several clients under every kind of fault, in virtual time, are what snapshot isolation allows.

The client is the real one, and so are TiKV's actions, which the embedded cluster carries out; between them lies a
network in memory that hypothesis disturbs. `TRANSACTIONS_EXAMPLES=10000 pytest --timeout=0 tests/transactions -k every`
looks for longer.
"""

from __future__ import annotations

import os
import random

import anyio
import pytest
import tikv_pd.backoff
import tikv_rpc._stores.batch
from hypothesis import HealthCheck, given, register_random, settings
from tikv_pd.testing import virtual_time

from tests.transactions.history import Outcome, Read, check
from tests.transactions.schedules import (
    KEYS,
    MODES,
    UNDETERMINED_RESULT,
    Change,
    Result,
    Schedule,
    Script,
    run,
    schedules,
)
from tests.transactions.virtual_cluster import Fault

EXAMPLES = int(os.environ.get("TRANSACTIONS_EXAMPLES", "150"))

# Jitter is a part of the schedule; hypothesis repeats it like everything else.
_JITTER: list[random.Random] = [tikv_pd.backoff._RNG, tikv_rpc._stores.batch._RNG]
for _rng in _JITTER:
    register_random(_rng)


def outcome_of(schedule: Schedule) -> Result:
    name, options = virtual_time()
    result: Result = anyio.run(run, schedule, backend=name, backend_options=options)
    return result


def assert_right(result: Result) -> None:
    assert result.cluster.locks() == []
    assert check(result.history, result.latest) == []
    assert check(result.settled(), result.latest) == []


@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(schedules)
def test_every_schedule_keeps_snapshot_isolation(schedule: Schedule) -> None:
    assert_right(outcome_of(schedule))


@pytest.mark.parametrize("mode", MODES)
def test_a_schedule_without_faults_commits_what_does_not_conflict(mode: str) -> None:
    scripts = tuple(
        Script(number % 2, mode, (("get", KEYS[0]), ("put", KEYS[number])), start=0.1 * number) for number in range(4)
    )

    result = outcome_of(Schedule(scripts))

    assert [txn.outcome for txn in result.history] == [Outcome.COMMITTED] * 6
    assert_right(result)


def test_a_new_leader_commits_nothing_below_what_the_old_one_let_others_read() -> None:
    writer = Script(0, "causal", (("put", KEYS[0]),), pause=0.1)
    reader = Script(1, "2pc", (("get", KEYS[0]), ("get", KEYS[0])), start=0.05, pause=0.02)
    later = Script(1, "2pc", (("get", KEYS[0]),), start=1.0)

    result = outcome_of(Schedule((writer, reader, later), changes=(Change(0.15, "move leader", KEYS[0], 2),)))

    assert [txn.outcome for txn in result.history] == [Outcome.COMMITTED] * 5
    assert_right(result)


def test_nothing_is_committed_below_a_stale_read() -> None:
    primer = Script(0, "causal", (("put", KEYS[0]),))
    writer = Script(0, "causal", (("put", KEYS[0]),), start=0.1, pause=0.2)
    reader = Script(1, "stale", (), start=0.3, pause=0.01)

    result = outcome_of(Schedule((primer, writer, reader)))

    assert [txn.outcome for txn in result.history] == [Outcome.COMMITTED] * 5
    assert result.history[1].steps[0] == Read(KEYS[0], result.history[0].writes[KEYS[0]])
    assert_right(result)


@pytest.mark.parametrize("mode", ["2pc", "async commit"])
def test_what_is_newest_is_seen_before_the_locks_on_it_are_put_away(mode: str) -> None:
    writer = Script(0, mode, (("put", KEYS[0]), ("put", KEYS[3])))
    reader = Script(1, "latest", tuple(("get", key) for key in KEYS), start=0.1)
    slow = tuple([Fault()] * number + [Fault(before=1.0)] * 2 for number in (2, 3))

    for faults in slow:
        result = outcome_of(Schedule((writer, reader), faults=(*faults,)))

        assert len(result.latest) == 4
        assert_right(result)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "fault",
    [Fault(is_answer_lost=True), Fault(late=5.0), Fault(denial=UNDETERMINED_RESULT), Fault(after=30.0)],
    ids=["lost", "late", "undetermined", "slow"],
)
@pytest.mark.parametrize("number", range(6))
def test_a_request_whose_answer_is_lost_leaves_nothing_half_done(mode: str, fault: Fault, number: int) -> None:
    writer = Script(0, mode, (("put", KEYS[0]), ("insert", KEYS[1]), ("lock", KEYS[3])))
    readers = tuple(
        Script(1, mode, (("scan", KEYS[0]), ("get", KEYS[1]), ("put", KEYS[0])), start=start) for start in (0.0, 0.3, 9)
    )

    result = outcome_of(Schedule((writer, *readers), faults=(*[Fault(after=0.05)] * number, fault)))

    assert_right(result)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("life", [0.01, 0.03, 0.05, 0.07, 0.09, 0.11])
def test_what_a_client_that_vanished_left_behind_is_put_right_by_others(mode: str, life: float) -> None:
    left = Script(0, mode, tuple(("put", key) for key in KEYS))
    others = tuple(Script(1, mode, (("scan", KEYS[0]), ("put", KEYS[1])), start=start) for start in (0.05, 2.0, 5.0))
    faults = (Fault(before=0.02, after=0.02),) * 30

    result = outcome_of(Schedule((left, *others), faults, lives=(life, 300.0)))

    assert_right(result)
