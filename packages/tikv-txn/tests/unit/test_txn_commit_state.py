from __future__ import annotations

import pytest
from tikv_txn._commit.state import CommitState, Outcome

START = 100


def of(
    count: int, *, one_pc: bool = False, async_commit: bool = False, locking: list[int] | None = None, primary: int = 0
) -> CommitState:
    return CommitState(
        count,
        list(range(count)) if locking is None else locking,
        primary,
        START,
        one_pc=one_pc,
        async_commit=async_commit,
    )


def known_of(state: CommitState) -> Outcome:
    return state.outcome


def test_two_phases_are_committed_by_the_primary_key_alone() -> None:
    state = of(3)

    state.on_prewritten([0, 1], 0, 0)
    state.on_prewritten([2], 0, 0)

    assert state.is_prewritten
    assert state.is_primary_locked
    assert known_of(state) is Outcome.NOT_COMMITTED
    state.on_committed(120)
    assert known_of(state) is Outcome.COMMITTED
    assert state.commit_ts == 120
    assert state.to_clean_up == []


def test_an_async_commit_is_committed_by_its_last_lock_at_the_greatest_timestamp() -> None:
    state = of(3, async_commit=True)

    state.on_prewritten([2], 130, 0)
    state.on_prewritten([0], 120, 0)
    assert known_of(state) is Outcome.NOT_COMMITTED
    state.on_prewritten([1], 125, 0)

    assert known_of(state) is Outcome.COMMITTED
    assert state.commit_ts == 130


def test_one_phase_is_committed_by_its_answer() -> None:
    state = of(2, one_pc=True)

    state.on_prewritten([0, 1], 0, 120)

    assert known_of(state) is Outcome.COMMITTED
    assert state.commit_ts == 120


def test_a_store_that_takes_neither_of_the_short_ways_leaves_two_phases() -> None:
    state = of(2, one_pc=True, async_commit=True)

    state.on_prewritten([0, 1], 0, 0)

    assert state.is_prewritten
    assert not state.one_pc
    assert not state.async_commit
    assert known_of(state) is Outcome.NOT_COMMITTED


def test_a_store_that_takes_async_commit_instead_of_one_phase_commits() -> None:
    state = of(2, one_pc=True, async_commit=True)

    state.on_prewritten([0, 1], 120, 0)

    assert state.commit_ts == 120


def test_one_store_that_falls_back_turns_async_commit_off_for_all() -> None:
    state = of(2, async_commit=True)

    state.on_prewritten([0], 130, 0)
    state.on_prewritten([1], 0, 0)

    assert known_of(state) is Outcome.NOT_COMMITTED
    assert not state.async_commit
    assert state.min_commit_ts == 130


@pytest.mark.parametrize(("requests", "is_possible"), [(1, True), (2, False)])
def test_only_one_request_for_all_may_commit_in_one_phase(requests: int, is_possible: bool) -> None:
    state = of(2, one_pc=True, async_commit=True)

    state.split_into(requests)

    assert state.one_pc is is_possible
    assert state.async_commit


def test_it_commits_after_what_it_is_told_to_commit_after() -> None:
    state = of(1)

    state.commit_after(150)
    state.commit_after(140)

    assert state.min_commit_ts == 151


def test_a_lost_prewrite_of_two_phases_hides_nothing() -> None:
    state = of(2)

    state.on_prewritten([0], 0, 0)
    state.on_lost([1])

    assert known_of(state) is Outcome.NOT_COMMITTED
    assert state.to_clean_up == [0, 1]


def test_a_lost_prewrite_of_one_phase_hides_the_outcome() -> None:
    state = of(2, one_pc=True)

    state.on_lost([0, 1])

    assert known_of(state) is Outcome.UNKNOWN
    assert state.to_clean_up == []


def test_a_lost_prewrite_of_an_async_commit_hides_the_outcome_when_all_others_are_locked() -> None:
    state = of(3, async_commit=True)

    state.on_prewritten([0], 120, 0)
    state.on_lost([1])
    assert known_of(state) is Outcome.NOT_COMMITTED
    assert state.to_clean_up == [0, 1]
    state.on_prewritten([2], 120, 0)

    assert known_of(state) is Outcome.UNKNOWN
    assert state.to_clean_up == []


def test_parts_are_doubtful_only_where_they_may_decide() -> None:
    state, two_phases = of(3, async_commit=True), of(3)

    for each in (state, two_phases):
        each.on_prewritten([0], 120, 0)
        each.on_lost([0, 1])

    assert [state.is_doubtful([position]) for position in range(3)] == [False, True, False]
    assert not two_phases.is_doubtful([1])


def test_an_answer_to_a_later_attempt_shows_what_a_lost_one_hid() -> None:
    state = of(2, async_commit=True)

    state.on_lost([0, 1])
    state.on_prewritten([0, 1], 120, 0)

    assert known_of(state) is Outcome.COMMITTED


def test_a_later_fallback_shows_that_a_lost_attempt_did_not_commit() -> None:
    state = of(2, one_pc=True)

    state.on_lost([0, 1])
    state.on_prewritten([0, 1], 0, 0)

    assert known_of(state) is Outcome.NOT_COMMITTED
    assert state.to_clean_up == [0, 1]


def test_a_part_that_is_refused_for_good_rules_a_commit_out_whatever_was_lost() -> None:
    state = of(3, async_commit=True)

    state.on_lost([0, 1, 2])
    state.on_prewritten([0], 120, 0)
    state.on_refused([2])

    assert known_of(state) is Outcome.NOT_COMMITTED
    assert state.to_clean_up == [0, 1]


def test_the_primary_key_is_rolled_back_too_when_only_others_were_locked() -> None:
    state = of(3)

    state.on_prewritten([2], 0, 0)
    state.on_refused([0, 1])

    assert state.to_clean_up == [0, 2]


def test_what_was_never_locked_needs_no_clean_up() -> None:
    state = of(2, one_pc=True)

    state.on_refused([0, 1])

    assert state.to_clean_up == []


def test_keys_that_are_only_checked_are_not_cleaned_up() -> None:
    state = of(3, locking=[1], primary=1)

    state.on_prewritten([0, 1, 2], 0, 0)

    assert state.to_clean_up == [1]


def test_of_nothing_but_checks_no_primary_key_is_locked() -> None:
    state = of(2, locking=[])

    state.on_prewritten([0, 1], 0, 0)

    assert state.is_prewritten
    assert not state.is_primary_locked
    assert state.to_clean_up == []


def test_a_lost_one_phase_prewrite_stays_in_doubt_when_its_parts_are_sent_anew() -> None:
    state = of(2, one_pc=True)

    state.on_lost([0, 1])
    state.split_into(2)
    state.on_prewritten([0], 0, 0)

    assert known_of(state) is Outcome.UNKNOWN
    assert state.to_clean_up == []


@pytest.mark.parametrize("refused", [False, True])
def test_a_lost_commit_hides_the_outcome_until_it_is_refused(refused: bool) -> None:
    state = of(1)

    state.on_prewritten([0], 0, 0)
    state.on_commit_lost()
    if refused:
        state.on_commit_refused()

    assert known_of(state) is (Outcome.NOT_COMMITTED if refused else Outcome.UNKNOWN)
    assert state.to_clean_up == ([0] if refused else [])


def test_a_commit_that_was_answered_is_not_in_doubt_again() -> None:
    state = of(1)

    state.on_prewritten([0], 0, 0)
    state.on_commit_lost()
    state.on_committed(120)
    state.on_commit_lost()

    assert known_of(state) is Outcome.COMMITTED


@pytest.mark.parametrize("commit_ts", [0, 120])
def test_the_primary_key_tells_whether_a_lost_attempt_committed(commit_ts: int) -> None:
    state = of(2, one_pc=True)

    state.on_lost([0, 1])
    state.split_into(2)
    state.on_prewritten([0], 0, 0)
    state.on_prewritten([1], 0, 0)
    before = state.is_in_doubt, state.outcome
    state.on_status(commit_ts)

    assert before == (True, Outcome.UNKNOWN)
    assert not state.is_in_doubt
    assert known_of(state) is (Outcome.COMMITTED if commit_ts else Outcome.NOT_COMMITTED)


def test_in_two_phases_a_lost_prewrite_is_nothing_to_ask_about() -> None:
    state = of(2)

    state.on_lost([0, 1])
    state.on_prewritten([0, 1], 0, 0)

    assert not state.is_in_doubt
