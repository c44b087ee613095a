"""The checker of histories finds each kind of anomaly in a history made by hand, and no other."""

from __future__ import annotations

import random

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from tests.transactions.history import (
    Anomaly,
    Kind,
    LatestRead,
    Lock,
    Outcome,
    Read,
    Step,
    Txn,
    Write,
    check,
    external_reads,
)

ABORTED, UNDETERMINED = Outcome.ABORTED, Outcome.UNDETERMINED


def wrote(name: str, start_ts: int, commit_ts: int, *steps: Step) -> Txn:
    return Txn(name=name, start_ts=start_ts, commit_ts=commit_ts, steps=steps)


def read(name: str, start_ts: int, **found: bytes | None) -> Txn:
    steps = tuple(Read(key.encode(), value) for key, value in found.items())
    return Txn(name=name, start_ts=start_ts, commit_ts=start_ts, steps=steps)


def ended(outcome: Outcome, name: str, start_ts: int, *steps: Step) -> Txn:
    return Txn(name=name, start_ts=start_ts, steps=steps, outcome=outcome)


FIRST = wrote("first", 1, 2, Write(b"x", b"x1"), Write(b"y", b"y1"))


def test_a_serial_history_is_right() -> None:
    second = wrote("second", 3, 4, Read(b"x", b"x1"), Write(b"x", b"x2"), Read(b"x", b"x2"), Write(b"y", None))

    assert check([read("before", 1, x=None), FIRST, second, read("after", 5, x=b"x2", y=None, z=None)]) == []


def test_a_snapshot_shows_what_was_committed_at_its_own_timestamp() -> None:
    assert check([FIRST, read("reader", 2, x=b"x1", y=b"y1")]) == []
    assert check([FIRST, wrote("next", 2, 3, Write(b"x", b"x2"))]) == []


def test_write_skew_is_allowed() -> None:
    left = wrote("left", 3, 6, Read(b"x", b"x1"), Read(b"y", b"y1"), Write(b"x", b"x2"))
    right = wrote("right", 4, 5, Read(b"x", b"x1"), Read(b"y", b"y1"), Write(b"y", b"y2"))

    assert check([FIRST, left, right, read("after", 7, x=b"x2", y=b"y2")]) == []


def test_a_dirty_read_is_found() -> None:
    writer = wrote("writer", 3, 6, Write(b"x", b"x2"))

    found = check([FIRST, writer, read("reader", 5, x=b"x2")])

    assert found == [Anomaly(Kind.DIRTY_READ, "reader", "writer", b"x")]


def test_a_read_of_a_value_that_was_replaced_before_its_commit_is_found() -> None:
    writer = wrote("writer", 3, 4, Write(b"x", b"x2"), Write(b"x", b"x3"))

    found = check([FIRST, writer, read("reader", 5, x=b"x2")])

    assert found == [Anomaly(Kind.DIRTY_READ, "reader", "writer", b"x")]


def test_an_aborted_read_is_found() -> None:
    writer = ended(ABORTED, "writer", 3, Write(b"x", b"x2"))

    found = check([FIRST, writer, read("reader", 5, x=b"x2")])

    assert found == [Anomaly(Kind.ABORTED_READ, "reader", "writer", b"x")]


def test_what_nobody_wrote_is_found() -> None:
    assert check([FIRST, read("reader", 5, x=b"?")]) == [Anomaly(Kind.UNKNOWN_VALUE, "reader", key=b"x")]


def test_what_an_aborted_transaction_read_counts_as_well() -> None:
    reader = ended(ABORTED, "reader", 5, Read(b"x", None))

    assert check([FIRST, reader]) == [Anomaly(Kind.LOST_WRITE, "reader", "first", b"x")]


def test_a_non_repeatable_read_is_found() -> None:
    second = wrote("second", 4, 5, Write(b"x", b"x2"))
    reader = wrote("reader", 3, 3, Read(b"x", b"x1"), Read(b"x", b"x2"))

    assert check([FIRST, second, reader]) == [Anomaly(Kind.NON_REPEATABLE_READ, "reader", key=b"x")]


def test_own_writes_that_are_not_read_are_found() -> None:
    txn = wrote("txn", 3, 4, Write(b"x", b"x2"), Read(b"x", b"x1"), Write(b"y", None), Read(b"y", b"y1"))

    assert check([FIRST, txn]) == [Anomaly(Kind.OWN_WRITE, "txn", key=key) for key in (b"x", b"y")]


def test_a_lost_update_is_found() -> None:
    left = wrote("left", 3, 5, Read(b"x", b"x1"), Write(b"x", b"x2"))
    right = wrote("right", 4, 6, Read(b"x", b"x1"), Write(b"x", b"x3"))

    assert check([FIRST, left, right]) == [Anomaly(Kind.LOST_UPDATE, "right", "left", b"x")]


def test_an_update_is_lost_between_two_that_overlap_no_neighbor_in_order_of_starts() -> None:
    around = wrote("around", 3, 9, Write(b"x", b"x2"))
    within = [wrote("a", 4, 5, Write(b"x", b"x3")), wrote("b", 6, 7, Write(b"x", b"x4"))]

    assert check([FIRST, around, *within]) == [Anomaly(Kind.LOST_UPDATE, "around", "b", b"x")]


def test_a_locked_key_conflicts_as_a_written_one_does() -> None:
    locker = wrote("locker", 3, 6, Lock(b"x"), Write(b"z", b"z1"))
    writer = wrote("writer", 4, 5, Write(b"x", b"x2"))

    found = check([FIRST, locker, writer, read("reader", 7, x=b"x2")])

    assert found == [Anomaly(Kind.LOST_UPDATE, "locker", "writer", b"x")]


def test_a_committed_write_that_is_missing_later_is_found() -> None:
    second = wrote("second", 3, 4, Write(b"x", b"x2"))

    found = check([FIRST, second, read("reader", 5, x=b"x1", y=b"y1")])

    assert found == [Anomaly(Kind.LOST_WRITE, "reader", "second", b"x")]


def test_a_deletion_that_is_missing_later_is_found() -> None:
    second = wrote("second", 3, 4, Write(b"x", None))

    assert check([FIRST, second, read("reader", 5, x=b"x1")]) == [Anomaly(Kind.LOST_WRITE, "reader", "second", b"x")]


def test_a_transaction_that_is_seen_in_part_is_found() -> None:
    second = wrote("second", 3, 4, Write(b"x", b"x2"), Write(b"y", b"y2"))

    found = check([FIRST, second, read("reader", 5, x=b"x2", y=b"y1")])

    assert found == [Anomaly(Kind.FRACTURED_READ, "reader", "second", b"y")]


def test_a_long_fork_is_found() -> None:
    left = wrote("left", 3, 5, Write(b"x", b"x2"))
    right = wrote("right", 4, 6, Write(b"y", b"y2"))
    readers = [read("reader", 7, x=b"x2", y=b"y1"), read("other", 8, x=b"x1", y=b"y2")]

    found = check([FIRST, left, right, *readers])

    assert found == [
        Anomaly(Kind.LONG_FORK, "reader", "right", b"y"),
        Anomaly(Kind.LONG_FORK, "other", "left", b"x"),
    ]


def test_a_long_fork_of_commits_of_unknown_outcome_is_found() -> None:
    left = ended(UNDETERMINED, "left", 3, Write(b"x", b"x2"))
    right = ended(UNDETERMINED, "right", 4, Write(b"y", b"y2"))
    readers = [read("reader", 7, x=b"x2", y=b"y1"), read("other", 8, x=b"x1", y=b"y2")]

    found = check([FIRST, left, right, *readers])

    assert found == [Anomaly(Kind.HALF_VISIBLE, "other", "left", b"x")]


def test_a_commit_of_unknown_outcome_may_have_happened_or_not() -> None:
    unknown = ended(UNDETERMINED, "unknown", 3, Write(b"x", b"x2"), Write(b"y", b"y2"))

    assert check([FIRST, unknown, read("reader", 7, x=b"x1", y=b"y1")]) == []
    assert check([FIRST, unknown, read("reader", 7, x=b"x2", y=b"y2")]) == []
    assert check([FIRST, unknown, read("early", 5, x=b"x1"), read("late", 7, x=b"x2", y=b"y2")]) == []


def test_a_commit_of_unknown_outcome_that_is_seen_in_part_is_found() -> None:
    unknown = ended(UNDETERMINED, "unknown", 3, Write(b"x", b"x2"), Write(b"y", b"y2"))

    within_one = check([FIRST, unknown, read("reader", 7, x=b"x2", y=b"y1")])
    by_two = check([FIRST, unknown, read("early", 7, x=b"x2"), read("late", 8, y=b"y1")])

    assert within_one == [Anomaly(Kind.HALF_VISIBLE, "reader", "unknown", b"y")]
    assert by_two == [Anomaly(Kind.HALF_VISIBLE, "late", "unknown", b"y")]


def test_a_commit_of_unknown_outcome_is_not_seen_before_it_began() -> None:
    unknown = ended(UNDETERMINED, "unknown", 3, Write(b"x", b"x2"))

    found = check([FIRST, unknown, read("reader", 3, x=b"x2")])

    assert found == [Anomaly(Kind.DIRTY_READ, "reader", "unknown", b"x")]


def test_a_commit_of_unknown_outcome_comes_before_those_that_replaced_it() -> None:
    unknown = ended(UNDETERMINED, "unknown", 3, Write(b"x", b"x2"), Write(b"y", b"y2"))
    later = wrote("later", 6, 7, Read(b"x", b"x2"), Write(b"x", b"x3"))
    unaware = wrote("unaware", 6, 7, Read(b"x", b"x1"), Write(b"x", b"x3"))
    after = read("after", 9, x=b"x3", y=b"y2")

    assert check([FIRST, unknown, later, after]) == []
    assert check([FIRST, unknown, unaware, after]) == [Anomaly(Kind.HALF_VISIBLE, "unaware", "unknown", b"x")]


def test_a_deletion_of_unknown_outcome_explains_that_nothing_is_there() -> None:
    unknown = [ended(UNDETERMINED, name, ts, Write(b"x", None)) for name, ts in (("a", 3), ("b", 5))]

    assert check([FIRST, *unknown, read("early", 4, x=b"x1"), read("late", 9, x=None)]) == []
    assert check([FIRST, *unknown, read("early", 5, x=None), read("late", 9, x=None)]) == []
    assert len(check([FIRST, *unknown, read("early", 8, x=None), read("late", 9, x=b"x1")])) == 1


def test_an_insert_over_a_value_is_found() -> None:
    def inserter(outcome: Outcome) -> Txn:
        return attrs.evolve(wrote("txn", 3, 4, Write(b"x", b"x2", is_insert=True)), outcome=outcome)

    own = wrote("own", 5, 6, Write(b"x", None), Write(b"x", b"x3", is_insert=True))

    assert check([FIRST, inserter(Outcome.COMMITTED), own]) == [Anomaly(Kind.INSERTED_TWICE, "txn", "first", b"x")]
    assert check([FIRST, inserter(ABORTED)]) == []
    assert check([FIRST, inserter(UNDETERMINED)]) == []
    assert check([FIRST, inserter(UNDETERMINED), read("reader", 9, x=b"x2")]) == [
        Anomaly(Kind.INSERTED_TWICE, "txn", "first", b"x")
    ]


def test_what_is_inserted_and_deleted_again_is_only_checked() -> None:
    steps = (Write(b"x", b"x2", is_insert=True), Read(b"x", b"x2"), Write(b"x", None))
    writer = wrote("writer", 4, 5, Write(b"x", b"x3"))

    assert check([wrote("txn", 3, 6, *steps), writer, read("reader", 7, x=b"x3")]) == []
    assert check([FIRST, wrote("txn", 3, 4, *steps)]) == [Anomaly(Kind.INSERTED_TWICE, "txn", "first", b"x")]


def at(txn: Txn, began: float, committing: float, done: float) -> Txn:
    return attrs.evolve(txn, began=began, started=began + 1, committing=committing, ended=done)


def test_what_begins_after_a_commit_starts_after_it() -> None:
    writer = at(wrote("writer", 3, 9, Write(b"x", b"x2")), 10, 12, 15)
    early, late = at(read("early", 8, x=b"x1"), 14, 16, 17), at(read("late", 8, x=b"x1"), 16, 18, 19)
    causal = attrs.evolve(writer, is_causal=True)

    assert check([FIRST, writer, early]) == []
    assert check([FIRST, writer, late]) == [Anomaly(Kind.REAL_TIME, "late", "writer")]
    assert check([FIRST, causal, late]) == []


def test_start_timestamps_follow_real_time() -> None:
    first, second = at(read("a", 8, x=b"x1"), 1, 3, 4), at(read("b", 7, x=b"x1"), 3, 4, 5)

    assert check([FIRST, first, second]) == [Anomaly(Kind.REAL_TIME, "b", "a")]


def test_what_is_committed_after_others_started_has_a_later_timestamp() -> None:
    reader = at(read("reader", 8, x=b"x1"), 10, 16, 17)
    writer = at(wrote("writer", 3, 7, Write(b"z", b"z2")), 1, 12, 13)

    assert check([FIRST, reader, writer]) == [Anomaly(Kind.REAL_TIME, "writer", "reader")]


def test_a_commit_comes_after_its_start() -> None:
    assert check([wrote("txn", 3, 3, Write(b"x", b"x2"))]) == [Anomaly(Kind.REAL_TIME, "txn")]


def test_a_read_of_what_is_newest_sees_all_that_was_committed_before() -> None:
    first = at(wrote("first", 1, 2, Write(b"x", b"x1")), 1, 2, 3)
    second = at(wrote("second", 4, 5, Write(b"x", None)), 4, 6, 9)
    unknown = ended(UNDETERMINED, "unknown", 6, Write(b"x", b"x3"))

    def found(value: bytes | None, began: float) -> list[Anomaly]:
        return check([first, second, unknown], [LatestRead(b"x", value, began)])

    assert found(None, 2) == found(b"x1", 2) == found(b"x1", 8) == found(None, 8) == found(None, 10) == []
    assert found(b"x3", 10) == []
    assert found(b"x1", 10) == [Anomaly(Kind.OUTDATED_READ, "", "second", b"x")]
    assert check([first], [LatestRead(b"x", None, 8)]) == [Anomaly(Kind.OUTDATED_READ, "", "first", b"x")]


def test_a_wrong_commit_timestamp_is_found() -> None:
    right, wrong = (Txn(name=f"at {ts}", start_ts=9, steps=(Read(b"x", b"x1", ts),)) for ts in (2, 3))

    assert check([FIRST, right, wrong]) == [Anomaly(Kind.WRONG_COMMIT_TS, "at 3", "first", b"x")]


def test_a_history_whose_writers_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(ValueError, match="two transactions write"):
        check([FIRST, wrote("other", 3, 4, Write(b"x", b"x1"))])
    with pytest.raises(ValueError, match="the same name"):
        check([FIRST, FIRST])


KEYS = (b"x", b"y", b"z")


def simulated(choices: random.Random, count: int, unknown: float = 0.4) -> list[Txn]:
    """Return a history of a database that keeps snapshot isolation, a share of whose outcomes are not known."""
    versions: dict[bytes, list[tuple[int, bytes | None]]] = {key: [(0, None)] for key in KEYS}
    clock, open_txns, history = 0, dict[int, list[Step]](), list[Txn]()

    def tick() -> int:
        nonlocal clock
        clock += 1
        return clock

    while len(history) < count:
        if len(open_txns) < 4:
            open_txns[tick()] = []
        start_ts, steps = choices.choice(list(open_txns.items()))
        key = choices.choice(KEYS)
        own = [step for step in steps if isinstance(step, Write) and step.key == key]
        if choices.random() < 0.4:
            value = max((each for each in versions[key] if each[0] <= start_ts), key=lambda each: each[0])[1]
            steps.append(Read(key, own[-1].value if own else value))
        elif choices.random() < 0.6:
            steps.append(Write(key, None if choices.random() < 0.4 else b"%d.%d" % (start_ts, len(steps))))
        elif steps:
            del open_txns[start_ts]
            txn = Txn(name=str(start_ts), start_ts=start_ts, steps=tuple(steps))
            conflicts = any(ts > start_ts for touched in txn.touched for ts, _ in versions[touched])
            if conflicts or choices.random() < 0.2:
                txn = attrs.evolve(txn, outcome=ABORTED)
            else:
                txn = attrs.evolve(txn, commit_ts=tick())
                for written, value in txn.writes.items():
                    versions[written].append((txn.commit_ts, value))
            if choices.random() < unknown:
                txn = attrs.evolve(txn, outcome=UNDETERMINED, commit_ts=0)
            history.append(txn)
    return history


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32), st.integers(1, 14))
def test_nothing_is_found_in_histories_of_a_database_that_keeps_snapshot_isolation(seed: int, count: int) -> None:
    assert check(simulated(random.Random(seed), count)) == []


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32), st.data())
def test_a_single_value_that_is_read_wrongly_is_found(seed: int, data: st.DataObject) -> None:
    history = simulated(random.Random(seed), 12, unknown=0)
    values = {(read.key, read.value) for txn in history for read in external_reads(txn)}
    wrong = [
        (number, position, value)
        for number, txn in enumerate(history)
        for position, step in enumerate(txn.steps)
        if isinstance(step, Read)
        for key, value in sorted(values, key=str)
        if key == step.key and value != step.value
    ]
    if not wrong:
        return
    number, position, value = data.draw(st.sampled_from(wrong))
    steps = list(history[number].steps)
    steps[position] = Read(steps[position].key, value)

    history[number] = attrs.evolve(history[number], steps=tuple(steps))

    assert check(history)
