"""What is known of a commit while it is under way, and what follows from it. Pure: a commit tells it what happened.

A commit prewrites all keys, which locks them, and then says when they are committed. Who says so depends on the mode:

    one phase       the prewrite itself, when one request holds all keys: nothing is ever locked
    async commit    the locks themselves: as soon as all keys are locked, the transaction is committed at the greatest
                    min_commit_ts among them, as every other client can find out from the locks
    two phases      the primary key: the transaction is committed once its lock is, and rolled back once that is

A commit begins in the first mode it may use; stores turn each down as they see fit, and two phases remain. An answer
that was lost hides something only in a request that decides: any prewrite of the first two modes, and the commit of the
primary key. Then the outcome is unknown unless another answer shows it; then nothing may be cleaned up either, since
others may have seen the transaction committed.

When two phases remain after an answer of the other modes was lost, the primary key is asked before it is committed: a
store that is told to commit what is committed says yes, whatever the timestamps.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence


class Outcome(enum.Enum):
    """What is known of a transaction."""

    COMMITTED = enum.auto()
    """It is committed, and nobody can undo it."""
    NOT_COMMITTED = enum.auto()
    """It is not committed, and nobody but this client can commit it."""
    UNKNOWN = enum.auto()
    """It may be committed, or may be so later, without this client."""


class CommitState:
    """One commit. Parts are positions of mutations.

    Args:
        count: How many mutations there are.
        locking: Positions of those that lock their key.
        primary: Position of the one whose lock decides.
        start_ts: When the transaction started.
        one_pc: Whether one phase may be tried.
        async_commit: Whether async commit may be tried.
    """

    def __init__(
        self, count: int, locking: Sequence[int], primary: int, start_ts: int, *, one_pc: bool, async_commit: bool
    ) -> None:
        self.one_pc = one_pc
        """Whether prewrites ask to commit in one phase."""
        self.async_commit = async_commit
        """Whether prewrites ask for async commit; false for good once a store fell back to two phases."""
        self.min_commit_ts = start_ts + 1
        """The transaction commits no earlier; what the locks say raises it."""
        self.commit_ts = 0
        """When it committed; 0 while it has not, as far as known."""
        self._count = count
        self._locking = frozenset(locking)
        self._primary = primary
        self._locked: set[int] = set()
        # Parts of which an attempt was not answered that may have locked them, or may do so later.
        self._doubtful: set[int] = set()
        self._is_refused = False
        self._is_one_pc_doubtful = False
        self._is_commit_doubtful = False
        self._is_status_doubtful = False

    @property
    def is_prewritten(self) -> bool:
        """Whether every mutation has been prewritten."""
        return len(self._locked) == self._count

    @property
    def is_primary_locked(self) -> bool:
        """Whether the primary key was locked."""
        return self._primary in self._locked and self._primary in self._locking

    @property
    def is_in_doubt(self) -> bool:
        """Whether, once all is prewritten, only the primary key can tell if an attempt in another mode committed."""
        return self._is_status_doubtful and not self.commit_ts

    @property
    def outcome(self) -> Outcome:
        """What is known now: what the caller is to hear if nothing else happens."""
        if self.commit_ts:
            return Outcome.COMMITTED
        if self._is_commit_doubtful:
            return Outcome.UNKNOWN
        if self._is_refused:
            # A part that can never be prewritten rules out all modes, whatever was not answered.
            return Outcome.NOT_COMMITTED
        if self._is_one_pc_doubtful:
            return Outcome.UNKNOWN
        if self.async_commit and len(self._locked | self._doubtful) == self._count:
            return Outcome.UNKNOWN
        return Outcome.NOT_COMMITTED

    @property
    def to_clean_up(self) -> list[int]:
        """Positions of what is to be rolled back, ascending, the primary one among them; empty when nothing is.

        Only of a transaction that is not committed.
        """
        if self.outcome is not Outcome.NOT_COMMITTED:
            return []
        touched = (self._locked | self._doubtful) & self._locking
        return sorted(touched | {self._primary}) if touched else []

    def is_doubtful(self, part: Iterable[int]) -> bool:
        """Tell whether what became of a part in earlier requests may decide the outcome."""
        return (self.one_pc or self.async_commit) and not self._doubtful.isdisjoint(part)

    def commit_after(self, ts: int) -> None:
        """Have it commit after a timestamp."""
        self.min_commit_ts = max(self.min_commit_ts, ts + 1)

    def split_into(self, requests: int) -> None:
        """Learn how many requests prewrite what one was to: only a single one for all can commit in one phase."""
        self.one_pc = self.one_pc and requests == 1

    def on_prewritten(self, part: Iterable[int], min_commit_ts: int, one_pc_commit_ts: int) -> None:
        """A prewrite succeeded, with these timestamps in its answer; 0 for what the store did not do."""
        positions = set(part)
        self._locked |= positions
        self._doubtful -= positions
        if one_pc_commit_ts:
            self.commit_ts = one_pc_commit_ts
            return
        if self.one_pc:
            # Sent for all keys and answered with locks: an attempt before it did not commit either.
            self.one_pc = self._is_one_pc_doubtful = False
        self.min_commit_ts = max(self.min_commit_ts, min_commit_ts)
        self.async_commit = self.async_commit and min_commit_ts > 0
        if self.async_commit and self.is_prewritten:
            self.commit_ts = self.min_commit_ts

    def on_refused(self, part: Iterable[int]) -> None:
        """A prewrite failed in a way that every attempt of it will."""
        self._doubtful -= set(part)
        self._is_refused = True

    def on_lost(self, part: Iterable[int]) -> None:
        """A prewrite was sent, and whether it was applied may never be learned."""
        self._doubtful |= set(part) - self._locked
        self._is_one_pc_doubtful = self._is_one_pc_doubtful or self.one_pc
        self._is_status_doubtful = self._is_status_doubtful or self.one_pc or self.async_commit

    def on_status(self, commit_ts: int) -> None:
        """The primary key said, after all was prewritten, when the transaction committed; 0 when it has not."""
        self._is_one_pc_doubtful = self._is_status_doubtful = False
        self.commit_ts = commit_ts

    def on_committed(self, commit_ts: int) -> None:
        """The primary key was committed."""
        self._is_commit_doubtful = False
        self.commit_ts = commit_ts

    def on_commit_refused(self) -> None:
        """The commit of the primary key was refused as it is only if no attempt of it was or will be applied."""
        self._is_commit_doubtful = False

    def on_commit_lost(self) -> None:
        """The commit of the primary key was sent, and whether it was applied may never be learned."""
        self._is_commit_doubtful = not self.commit_ts
