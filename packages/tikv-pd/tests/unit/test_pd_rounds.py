from __future__ import annotations

import anyio
import pytest
from tikv_pd import ClosedError, PdUnavailable, TikvError
from tikv_pd._routing.rounds import Rounds

NOBODY = PdUnavailable(())


class Looks:
    """Rounds that end when they are told to."""

    def __init__(self) -> None:
        self.about: list[str] = []
        self.ends: list[anyio.Event] = []
        self.outcome: TikvError | None = None

    async def look(self, suspect: str) -> TikvError | None:
        self.about.append(suspect)
        self.ends.append(end := anyio.Event())
        await end.wait()
        return self.outcome


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def rounds(looks: Looks) -> Rounds:
    return Rounds(looks.look, lambda: 60)


async def test_they_are_made_at_intervals(rounds: Rounds, looks: Looks) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rounds.run)
        for number in (1, 2):
            await anyio.sleep(60)
            await anyio.wait_all_tasks_blocked()
            looks.ends[-1].set()

            assert looks.about == [""] * number
        tasks.cancel_scope.cancel()


async def test_those_who_doubt_the_same_share_one(rounds: Rounds, looks: Looks) -> None:
    looks.outcome = NOBODY
    told: list[TikvError | None] = []

    async def wait() -> None:
        rounds.want("pd1:2379")
        told.append(await rounds.wait())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rounds.run)
        for _ in range(3):
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
        looks.ends[0].set()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert told == [NOBODY] * 3
    assert looks.about == ["pd1:2379"]


async def test_a_doubt_is_not_settled_by_a_round_about_somebody_else(rounds: Rounds, looks: Looks) -> None:
    told: list[TikvError | None] = []

    async def wait() -> None:
        rounds.want("pd1:2379")
        told.append(await rounds.wait())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rounds.run)
        rounds.want()
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        looks.ends[0].set()
        await anyio.wait_all_tasks_blocked()
        told_early = list(told)
        looks.ends[1].set()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert told_early == []
    assert told == [None]
    assert looks.about == ["", "pd1:2379"]


async def test_those_who_wait_are_told_when_they_end(rounds: Rounds, looks: Looks) -> None:
    told: list[TikvError | None] = []

    async def wait() -> None:
        told.append(await rounds.wait())

    async with anyio.create_task_group() as outer:
        outer.start_soon(wait)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rounds.run)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()

    assert looks.about == []
    assert isinstance(told[0], ClosedError)
