"""Is a recorded history of transactions one that snapshot isolation allows?

A history is what clients know: when each transaction started and committed, in TiKV's timestamps, what it read and
wrote, and in which order of real time. Since timestamps are known, nothing has to be searched for: each read returns
the newest version that was committed at or before the start of its transaction, or what the transaction wrote itself,
and no two transactions that overlap write the same key. Write skew is allowed.

Of some commits the client does not know whether they happened. One whose writes nobody has seen may as well not have
happened. One that was seen did happen, and the latest moment that it can have is the best: before the earliest start
of those who saw it, and of those who wrote one of its keys later. What must be seen at that moment must be seen at
every earlier one. A deletion that was seen has no name; where it may be one of several, each of them is tried.
"""

from __future__ import annotations

import enum
import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Final, TypeAlias

import attrs


class Outcome(enum.Enum):
    """What the client knows of the end of a transaction."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    UNDETERMINED = "undetermined"


@attrs.frozen
class Read:
    key: bytes
    value: bytes | None
    commit_ts: int = 0
    """When that was committed, if the store has told; else 0."""


@attrs.frozen
class Write:
    key: bytes
    value: bytes | None
    """Another one in every write to the key, so that it tells who wrote it; None to delete."""
    is_insert: bool = False
    """Whether committing claims that the key did not exist."""


@attrs.frozen
class Lock:
    """Conflicts as a write does, and changes nothing."""

    key: bytes


Step: TypeAlias = Read | Write | Lock


@attrs.frozen(kw_only=True)
class Txn:
    name: str
    start_ts: int
    steps: tuple[Step, ...] = ()
    outcome: Outcome = Outcome.COMMITTED
    commit_ts: int = 0
    """0 if it is not known."""
    began: float = -math.inf
    """When its start timestamp was asked for, by any clock that all transactions share."""
    started: float = math.inf
    """When that was known."""
    committing: float = -math.inf
    """When its commit was asked for."""
    ended: float = math.inf
    """When that was known to be done."""
    is_causal: bool = False
    """Whether it gave up having its commit ordered by real time."""

    @property
    def writes(self) -> dict[bytes, bytes | None]:
        """What it leaves behind."""
        checked = self._checked
        return {step.key: step.value for step in self.steps if isinstance(step, Write) and step.key not in checked}

    @property
    def touched(self) -> set[bytes]:
        """The keys on which it conflicts."""
        return {step.key for step in self.steps if not isinstance(step, Read)} - self._checked

    @property
    def _checked(self) -> set[bytes]:
        """The keys that it inserted and deleted again: stores check that they did not exist, and that is all."""
        first: dict[bytes, bool] = {}
        last: dict[bytes, bytes | None] = {}
        for step in self.steps:
            if isinstance(step, Write):
                first.setdefault(step.key, step.is_insert)
                last[step.key] = step.value
        return {key for key, is_insert in first.items() if is_insert and last[key] is None}


@attrs.frozen
class LatestRead:
    """A read of whatever is newest, in no transaction."""

    key: bytes
    value: bytes | None
    began: float
    """When it was asked for, as in `Txn`."""


class Kind(enum.Enum):
    """What snapshot isolation forbids."""

    DIRTY_READ = "read what was not committed when it started"
    ABORTED_READ = "read what was rolled back"
    UNKNOWN_VALUE = "read what nobody wrote"
    OWN_WRITE = "did not read its own write"
    NON_REPEATABLE_READ = "read a key twice, and different values"
    FRACTURED_READ = "saw one write of a transaction, and not another"
    HALF_VISIBLE = "a commit of unknown outcome was seen, and was not"
    LONG_FORK = "did not see what others had seen before"
    LOST_WRITE = "did not see a committed write"
    OUTDATED_READ = "asked for what is newest and got something older"
    WRONG_COMMIT_TS = "was told a wrong commit timestamp"
    INSERTED_TWICE = "inserted a key that existed"
    LOST_UPDATE = "wrote a key that another wrote meanwhile"
    REAL_TIME = "its timestamps contradict the order of events"


@attrs.frozen
class Anomaly:
    kind: Kind
    txn: str
    """Who found it out."""
    other: str = ""
    """With whom; empty for nobody."""
    key: bytes | None = None
    detail: str = attrs.field(default="", eq=False)


@attrs.frozen
class Version:
    commit_ts: int
    value: bytes | None
    writer: Txn | None
    """None for what was there before all."""

    def ended_before(self, txn: Txn) -> bool:
        """Whether a transaction that writes the same key may have replaced it."""
        if self.writer is None or self.writer.outcome is Outcome.COMMITTED:
            return self.commit_ts <= txn.start_ts
        return self.writer.start_ts < txn.start_ts


_NOTHING: Final = Version(0, None, None)


def check(history: Iterable[Txn], latest: Iterable[LatestRead] = ()) -> list[Anomaly]:
    """Return what snapshot isolation does not allow in `history`; nothing is a history that it allows.

    Args:
        history: All that ever wrote, and in no given order; there is nothing before it. Those of unknown outcome may
            have happened or not.
        latest: Reads of what is newest.

    Raises:
        ValueError: two transactions write the same value to a key, or have the same name.
    """
    txns = sorted(history, key=lambda txn: txn.start_ts)
    claims = _Claims.of(txns)
    return [*_against_real_time(txns), *_outdated(txns, latest), *_explained(claims, dict(claims.seen))]


@attrs.frozen
class _Claims:
    """What there is to agree with."""

    txns: list[Txn]
    by_name: dict[str, Txn]
    writers: dict[tuple[bytes, bytes], Txn]
    """Who wrote a value that stayed."""
    passing: dict[tuple[bytes, bytes], Txn]
    """Who wrote a value that the same transaction replaced."""
    readers: dict[str, list[Txn]]
    """By writer: who saw one of its values, the earliest start first."""
    deleters: dict[bytes, list[Txn]]
    """By key: those of unknown outcome that may have deleted it."""

    @classmethod
    def of(cls, txns: list[Txn]) -> _Claims:
        claims = cls(txns, {txn.name: txn for txn in txns}, {}, {}, defaultdict(list), defaultdict(list))
        if len(claims.by_name) != len(txns):
            raise ValueError("two transactions have the same name")
        for txn in txns:
            stays = txn.writes
            if txn.outcome is Outcome.UNDETERMINED:
                for key, value in stays.items():
                    if value is None:
                        claims.deleters[key].append(txn)
            for step in txn.steps:
                if not isinstance(step, Write) or step.value is None:
                    continue
                place = step.key, step.value
                if claims.writers.get(place, claims.passing.get(place, txn)) is not txn:
                    raise ValueError(f"two transactions write {step.value!r} to {step.key!r}")
                (claims.writers if stays.get(step.key) == step.value else claims.passing)[place] = txn
        for txn in txns:
            for read in external_reads(txn):
                writer = claims.writers.get((read.key, read.value)) if read.value is not None else None
                if writer is not None and writer is not txn:
                    claims.readers[writer.name].append(txn)
        return claims

    @property
    def seen(self) -> Iterator[tuple[str, int]]:
        """Those of unknown outcome of which somebody saw a value, and the earliest start of those."""
        for name, readers in self.readers.items():
            if self.by_name[name].outcome is Outcome.UNDETERMINED:
                yield name, readers[0].start_ts


def external_reads(txn: Txn) -> Iterator[Read]:
    """Yield what a transaction read of others."""
    own: set[bytes] = set()
    for step in txn.steps:
        if isinstance(step, Write):
            own.add(step.key)
        elif isinstance(step, Read) and step.key not in own:
            yield step


def _explained(claims: _Claims, seen: dict[str, int]) -> list[Anomaly]:
    """Return what is left when those in `seen` have committed: of all ways to explain deletions, in the best one.

    Args:
        claims: The history.
        seen: By name, of unknown outcome and seen: the earliest start of those who saw it.
    """
    world = _World.of(claims, seen)
    best = list(world.anomalies())
    # Whatever explains the others, the first one has to be explained as well.
    for txn, read in world.unexplained[:1]:
        replaced = world.at(read.key, txn.start_ts)
        for deleter in claims.deleters.get(read.key, ()):
            if (
                replaced.ended_before(deleter)
                and deleter is not txn
                and deleter.start_ts < txn.start_ts < seen.get(deleter.name, math.inf)
            ):
                best = min(best, _explained(claims, {**seen, deleter.name: txn.start_ts}), key=len)
            if not best:
                break
    return best


@attrs.define
class _World:
    """What there was to be seen, if those happened that are said to."""

    claims: _Claims
    commits: dict[str, int]
    """By name: when it committed."""
    versions: dict[bytes, list[Version]]
    """By key: its versions, the oldest first."""
    unexplained: list[tuple[Txn, Read]] = attrs.field(factory=list)
    """Reads of nothing where there was something."""

    @classmethod
    def of(cls, claims: _Claims, seen: Mapping[str, int]) -> _World:
        happened = [txn for txn in claims.txns if txn.outcome is Outcome.COMMITTED or txn.name in seen]
        starts: dict[bytes, list[int]] = defaultdict(list)
        for txn in happened:
            for key in txn.touched:
                starts[key].append(txn.start_ts)
        commits = {}
        for txn in happened:
            if txn.outcome is Outcome.COMMITTED:
                commits[txn.name] = txn.commit_ts
                continue
            followed = (starts[key][bisect_right(starts[key], txn.start_ts) :][:1] for key in txn.touched)
            latest = min([seen[txn.name], *(ts for each in followed for ts in each)])
            commits[txn.name] = max(latest, txn.start_ts + 1)
        versions: dict[bytes, list[Version]] = defaultdict(list)
        for txn in happened:
            for key, value in txn.writes.items():
                versions[key].append(Version(commits[txn.name], value, txn))
        for of_key in versions.values():
            of_key.sort(key=lambda version: version.commit_ts)
        return cls(claims, commits, versions)

    def anomalies(self) -> Iterator[Anomaly]:
        yield from self._lost_updates()
        for txn in self.claims.txns:
            yield from self._of_reads(txn)

    def at(self, key: bytes, ts: int) -> Version:
        """Return the newest version of a key at a timestamp."""
        versions = self.versions.get(key, [])
        position = bisect_right(versions, ts, key=lambda version: version.commit_ts)
        return versions[position - 1] if position else _NOTHING

    def _lost_updates(self) -> Iterator[Anomaly]:
        by_key: dict[bytes, list[tuple[int, Txn]]] = defaultdict(list)
        for name, commit_ts in self.commits.items():
            txn = self.claims.by_name[name]
            for key in txn.touched:
                by_key[key].append((commit_ts, txn))
        for key, commits in by_key.items():
            commits.sort(key=lambda commit: commit[0])
            # If one overlaps with any that committed before, it overlaps with the last of those.
            for (commit_ts, before), (_, after) in pairwise(commits):
                if after.start_ts < commit_ts:
                    yield Anomaly(Kind.LOST_UPDATE, after.name, before.name, key, f"{after.start_ts} < {commit_ts}")

    def _of_reads(self, txn: Txn) -> Iterator[Anomaly]:
        own: dict[bytes, bytes | None] = {}
        before: dict[bytes, bytes | None] = {}
        for step in txn.steps:
            if isinstance(step, Write):
                if step.is_insert and step.key not in own and txn.name in self.commits:
                    found = self.at(step.key, txn.start_ts)
                    if found.value is not None:
                        yield Anomaly(Kind.INSERTED_TWICE, txn.name, _name(found.writer), step.key)
                own[step.key] = step.value
            elif not isinstance(step, Read):
                continue
            elif step.key in own:
                if step.value != own[step.key]:
                    detail = f"{step.value!r} instead of {own[step.key]!r}"
                    yield Anomaly(Kind.OWN_WRITE, txn.name, key=step.key, detail=detail)
            elif before.setdefault(step.key, step.value) != step.value:
                detail = f"{before[step.key]!r}, then {step.value!r}"
                yield Anomaly(Kind.NON_REPEATABLE_READ, txn.name, key=step.key, detail=detail)
            else:
                yield from self._of_read(txn, step)

    def _of_read(self, txn: Txn, read: Read) -> Iterator[Anomaly]:
        expected = self.at(read.key, txn.start_ts)
        if read.value == expected.value:
            is_known = expected.writer is not None and expected.writer.outcome is Outcome.COMMITTED
            if read.commit_ts and is_known and read.commit_ts != expected.commit_ts:
                detail = f"{read.commit_ts} instead of {expected.commit_ts}"
                yield Anomaly(Kind.WRONG_COMMIT_TS, txn.name, _name(expected.writer), read.key, detail)
            return
        if read.value is None:
            self.unexplained.append((txn, read))
        detail = f"at {txn.start_ts} read {read.value!r}, expected {expected.value!r} of {expected.commit_ts}"
        kind, other = self._wrong(txn, read, expected)
        yield Anomaly(kind, txn.name, _name(other), read.key, detail)

    def _wrong(self, txn: Txn, read: Read, expected: Version) -> tuple[Kind, Txn | None]:
        """Tell what is wrong with a read that did not return what was expected."""
        if read.value is not None:
            place = read.key, read.value
            if place in self.claims.passing:
                return Kind.DIRTY_READ, self.claims.passing[place]
            writer = self.claims.writers.get(place)
            if writer is None:
                return Kind.UNKNOWN_VALUE, None
            if writer.name not in self.commits:
                return Kind.ABORTED_READ, writer
            if self.commits[writer.name] > txn.start_ts or writer.start_ts >= txn.start_ts:
                return Kind.DIRTY_READ, writer
        missed = expected.writer
        if missed is None:
            return Kind.LOST_WRITE, None
        if missed.outcome is Outcome.UNDETERMINED:
            return Kind.HALF_VISIBLE, missed
        readers = self.claims.readers.get(missed.name, [])
        if txn in readers:
            return Kind.FRACTURED_READ, missed
        return (Kind.LONG_FORK if readers else Kind.LOST_WRITE), missed


def _against_real_time(txns: Iterable[Txn]) -> Iterator[Anomaly]:
    """Yield transactions that began after others had started or committed, and have no greater timestamps."""
    txns = list(txns)
    writers = [txn for txn in txns if txn.outcome is Outcome.COMMITTED and txn.touched]
    for txn in writers:
        if txn.commit_ts <= txn.start_ts:
            detail = f"commits at {txn.commit_ts}, starts at {txn.start_ts}"
            yield Anomaly(Kind.REAL_TIME, txn.name, detail=detail)
    linearizable = [txn for txn in writers if not txn.is_causal]
    started = _Latest((txn.started, txn.start_ts, txn) for txn in txns)
    committed = _Latest((txn.ended, txn.commit_ts, txn) for txn in linearizable)
    for txn in txns:
        ts, other = started.before(txn.began)
        if other is not None and ts >= txn.start_ts:
            yield Anomaly(Kind.REAL_TIME, txn.name, other.name, detail=f"starts at {txn.start_ts} after {ts}")
        ts, other = committed.before(txn.began)
        if other is not None and ts > txn.start_ts:
            yield Anomaly(Kind.REAL_TIME, txn.name, other.name, detail=f"starts at {txn.start_ts} after {ts}")
    for txn in linearizable:
        ts, other = started.before(txn.committing)
        if other is not None and ts >= txn.commit_ts and other is not txn:
            yield Anomaly(Kind.REAL_TIME, txn.name, other.name, detail=f"commits at {txn.commit_ts} after {ts}")


def _outdated(txns: Iterable[Txn], latest: Iterable[LatestRead]) -> Iterator[Anomaly]:
    """Yield reads of what is newest that returned nothing that was so after they began."""
    writers: dict[bytes, list[Txn]] = defaultdict(list)
    for txn in txns:
        if txn.outcome is not Outcome.ABORTED:
            for key in txn.writes:
                writers[key].append(txn)
    for read in latest:
        done = [txn for txn in writers[read.key] if txn.outcome is Outcome.COMMITTED and txn.ended < read.began]
        newest = max(done, key=lambda txn: txn.commit_ts, default=None)
        bound = newest.commit_ts if newest is not None else 0
        possible = {
            txn.writes[read.key]
            for txn in writers[read.key]
            if txn.commit_ts >= bound or txn.outcome is Outcome.UNDETERMINED
        }
        if newest is None:
            possible.add(None)
        if read.value not in possible:
            detail = f"read {read.value!r} instead of {possible}"
            yield Anomaly(Kind.OUTDATED_READ, "", _name(newest), read.key, detail)


class _Latest:
    """The greatest timestamp that was known before a moment.

    Args:
        events: Moment, timestamp and whose it is.
    """

    def __init__(self, events: Iterable[tuple[float, int, Txn]]) -> None:
        self._moments: list[float] = []
        self._greatest: list[tuple[int, Txn]] = []
        for moment, ts, txn in sorted(events, key=lambda event: event[0]):
            self._moments.append(moment)
            last = self._greatest[-1] if self._greatest else (-1, txn)
            self._greatest.append((ts, txn) if ts > last[0] else last)

    def before(self, moment: float) -> tuple[int, Txn | None]:
        # What ends at the very moment is not before it.
        position = bisect_left(self._moments, moment)
        return self._greatest[position - 1] if position else (0, None)


def _name(txn: Txn | None) -> str:
    return "" if txn is None else txn.name
