"""Locks of other transactions: what they are, and what is to be done about them. Values and decisions, no I/O.

A lock stands for a transaction that may have committed, rolled back, or be under way. Its primary key knows, and is
asked by CheckTxnStatus; of an async commit, whose primary lock stays behind, the other keys know together, and are
asked by CheckSecondaryLocks. Then the lock is committed, rolled back, passed by, or waited for:

    TxnStatus.of        what the primary key says
    when_not_found      what to do when it has not heard of the transaction
    recover             what the other keys of an async commit say together
    remedy              what is to be done about a lock, once its transaction's status is known
    passage             how a read gets past it
    seconds_blocked     how long it is in the way

Source: client-go txnkv/txnlock.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import attrs
from tikv_pd import Timestamp
from tikv_proto import kvrpcpb
from tikv_region import KeyCodec

from tikv_txn.errors import InconsistentLocks

_PESSIMISTIC = frozenset({kvrpcpb.Op.PessimisticLock, kvrpcpb.Op.SharedPessimisticLock})
_ENDED = frozenset({kvrpcpb.Action.NoAction, kvrpcpb.Action.LockNotExistRollback, kvrpcpb.Action.TTLExpireRollback})


@attrs.frozen
class Lock:
    """A lock on a key. Source: kvrpcpb.LockInfo."""

    key: bytes
    """The locked key."""
    primary: bytes
    """The key that knows what became of the transaction."""
    start_ts: int
    """When the transaction started, which is its identity."""
    ttl_ms: int = 0
    """Milliseconds after `start_ts` for which the lock is to be respected; 0 says that it is not."""
    txn_size: int = 0
    """Keys the transaction has in the Region, as far as it told."""
    is_pessimistic: bool = False
    """Whether it only keeps others from writing: there is nothing to commit."""
    for_update_ts: int = 0
    """Of a pessimistic lock, when it was taken."""
    use_async_commit: bool = False
    """Whether the transaction is committed as soon as all its keys are locked so."""
    min_commit_ts: int = 0
    """The transaction commits no earlier."""
    secondaries: tuple[bytes, ...] = ()
    """On the primary key of an async commit, the other keys."""

    @classmethod
    def of(cls, info: kvrpcpb.LockInfo, codec: KeyCodec) -> list[Lock]:
        """Return the lock that a store tells of, or each of those that share a key."""
        if info.shared_lock_infos:
            return [cls._of(inner, codec, info.key) for inner in info.shared_lock_infos]
        return [cls._of(info, codec, info.key)]

    @classmethod
    def _of(cls, info: kvrpcpb.LockInfo, codec: KeyCodec, key: bytes) -> Lock:
        decode = codec.decode_key
        return cls(
            decode(key),
            decode(info.primary_lock),
            info.lock_version,
            info.lock_ttl,
            info.txn_size,
            info.lock_type in _PESSIMISTIC,
            info.lock_for_update_ts,
            info.use_async_commit,
            info.min_commit_ts,
            tuple(map(decode, info.secondaries)),
        )

    def seconds_left(self, now_ts: int) -> float:
        """Return how much longer it is to be respected; zero or below when its time is over."""
        return seconds_left(self.start_ts, self.ttl_ms, now_ts)


def seconds_left(start_ts: int, ttl_ms: int, now_ts: int) -> float:
    """Return the seconds until what started at a timestamp has expired; zero or below when it has."""
    return Timestamp.from_ts(now_ts).until_expired(Timestamp.from_ts(start_ts), ttl_ms)


class Fate(enum.Enum):
    """What became of a transaction."""

    ALIVE = enum.auto()
    """Nothing yet: it is under way, or its client is gone."""
    COMMITTED = enum.auto()
    """It committed."""
    ROLLED_BACK = enum.auto()
    """It did not, and never will."""
    UNKNOWN = enum.auto()
    """The primary key holds no trace of it, or is none. Only its pessimistic locks may go."""


@attrs.frozen
class TxnStatus:
    """What is known of a transaction."""

    fate: Fate
    """What became of it."""
    commit_ts: int = 0
    """When it committed."""
    ttl_ms: int = 0
    """Of one that is alive: milliseconds after its start for which it is to be respected."""
    is_pushed: bool = False
    """Of one that is alive: whether it will commit after the timestamp of who asked."""
    primary: Lock | None = None
    """Of one that is alive: its primary lock."""
    is_primary_clear: bool = False
    """Whether its primary key is known to be locked by it no more."""

    @property
    def is_ended(self) -> bool:
        """Whether this is how it stays."""
        return self.fate is Fate.COMMITTED or self.fate is Fate.ROLLED_BACK

    @classmethod
    def of(cls, response: kvrpcpb.CheckTxnStatusResponse, codec: KeyCodec) -> TxnStatus:
        """Return what the primary key says."""
        # A lock without any time left is a lock nevertheless; client-go goes by the time alone.
        if response.lock_ttl or response.HasField("lock_info"):
            primary = Lock.of(response.lock_info, codec)[0] if response.HasField("lock_info") else None
            is_pushed = response.action == kvrpcpb.Action.MinCommitTSPushed
            return cls(Fate.ALIVE, ttl_ms=response.lock_ttl, is_pushed=is_pushed, primary=primary)
        if response.commit_version:
            return cls(Fate.COMMITTED, response.commit_version, is_primary_clear=True)
        if response.action in _ENDED:
            return cls(Fate.ROLLED_BACK, is_primary_clear=True)
        return cls(Fate.UNKNOWN, is_primary_clear=True)


MISPLACED = TxnStatus(Fate.UNKNOWN)
"""The status by a key that is not the primary one: pessimistic locks whose transaction chose another one since."""


class NotFound(enum.Enum):
    """What to do when the primary key of a lock's transaction has not heard of it."""

    ROLL_BACK = enum.auto()
    """Ask again, and have it rolled back if there is still nothing."""
    IS_ALIVE = enum.auto()
    """Take it for alive as long as the lock is."""
    WAIT = enum.auto()
    """Ask again in a moment: the lock was made before the primary one."""


def when_not_found(lock: Lock, now_ts: int) -> NotFound:
    """Return what to do when the primary key has not heard of a lock's transaction."""
    if lock.seconds_left(now_ts) <= 0:
        return NotFound.ROLL_BACK
    return NotFound.IS_ALIVE if lock.is_pessimistic else NotFound.WAIT


def needs_recovery(lock: Lock, status: TxnStatus, now_ts: int) -> bool:
    """Tell whether a transaction's other keys must say what became of it.

    Stores never take back an async commit that has expired, as it may have committed. So it is the client that says
    when its time is over.
    """
    if status.fate is not Fate.ALIVE or status.primary is None or not status.primary.use_async_commit:
        return False
    return seconds_left(lock.start_ts, status.ttl_ms, now_ts) <= 0


@attrs.frozen
class SecondariesAnswer:
    """What one Region says of the secondary keys of an async commit. Source: kvrpcpb.CheckSecondaryLocksResponse."""

    asked: int
    """Keys it was asked about."""
    locks: tuple[Lock, ...] = ()
    """Their locks; less than one for each key says that it has ended."""
    commit_ts: int = 0
    """When it committed, if it has ended; 0 when it was rolled back."""

    @classmethod
    def of(cls, asked: int, response: kvrpcpb.CheckSecondaryLocksResponse, codec: KeyCodec) -> SecondariesAnswer:
        """Return an answer about so many keys."""
        locks = tuple(lock for info in response.locks for lock in Lock.of(info, codec))
        return cls(asked, locks, response.commit_ts)


def recover(primary: Lock, answers: Iterable[SecondariesAnswer]) -> TxnStatus | None:
    """Return what became of an async commit, by its primary lock and by what is said of all other keys, in any order.

    It committed if all its keys are locked: at the greatest timestamp among the locks. A key without its lock tells,
    and where it was not even locked, the store has seen to it that it never will be.

    Returns:
        The status; None if it is no async commit after all, so that its primary key decides.

    Raises:
        InconsistentLocks: the answers contradict each other.
    """
    answers = list(answers)
    locks = [primary, *(lock for answer in answers for lock in answer.locks)]
    if any(lock.start_ts != primary.start_ts for lock in locks):
        raise InconsistentLocks(primary.primary, primary.start_ts, "locks of another transaction were counted as its")
    if not all(lock.use_async_commit for lock in locks):
        return None
    earliest = max(lock.min_commit_ts for lock in locks)
    said = {answer.commit_ts for answer in answers if len(answer.locks) < answer.asked}
    if not said:
        return TxnStatus(Fate.COMMITTED, earliest)
    if len(said) > 1:
        raise InconsistentLocks(
            primary.primary, primary.start_ts, f"its keys ended differently, at {', '.join(map(str, sorted(said)))}"
        )
    commit_ts = said.pop()
    if not commit_ts:
        return TxnStatus(Fate.ROLLED_BACK)
    if commit_ts < earliest:
        raise InconsistentLocks(
            primary.primary, primary.start_ts, f"it committed at {commit_ts}, below a lock's {earliest}"
        )
    return TxnStatus(Fate.COMMITTED, commit_ts)


class Remedy(enum.Enum):
    """What is to be done about a lock."""

    NOTHING = enum.auto()
    """Nothing: its transaction is alive, or the lock is gone already, or it is to be met again."""
    RESOLVE_KEY = enum.auto()
    """Commit it or roll it back, as its transaction has been."""
    RESOLVE_REGION = enum.auto()
    """The same, with all other locks of the transaction in the Region."""
    ROLL_BACK_PESSIMISTIC = enum.auto()
    """Take the pessimistic lock away."""


def remedy(lock: Lock, status: TxnStatus, *, lite_below: float) -> Remedy:
    """Return what is to be done about a lock.

    Args:
        lock: The lock.
        status: Of its transaction.
        lite_below: Keys of a transaction in a Region from which on all are resolved at once; infinity for never.
    """
    is_gone = status.is_primary_clear and lock.key == lock.primary
    if status.fate is Fate.ALIVE:
        return Remedy.NOTHING
    if lock.is_pessimistic:
        return Remedy.NOTHING if is_gone else Remedy.ROLL_BACK_PESSIMISTIC
    if not status.is_ended:
        return Remedy.NOTHING
    if lock.txn_size >= lite_below:
        return Remedy.RESOLVE_REGION
    return Remedy.NOTHING if is_gone else Remedy.RESOLVE_KEY


class Passage(enum.Enum):
    """How a read gets past a lock."""

    IGNORE = enum.auto()
    """As if it were not there: its transaction is not committed at the read's timestamp, and never will be."""
    ACCESS = enum.auto()
    """By reading what it holds: its transaction is committed at the read's timestamp."""
    WAIT = enum.auto()
    """Not yet."""


def passage(status: TxnStatus, read_ts: int) -> Passage:
    """Return how a read gets past a lock of a transaction."""
    if status.fate is Fate.COMMITTED:
        return Passage.ACCESS if status.commit_ts <= read_ts else Passage.IGNORE
    return Passage.IGNORE if status.is_pushed or status.fate is Fate.ROLLED_BACK else Passage.WAIT


def seconds_blocked(lock: Lock, status: TxnStatus, now_ts: int) -> float | None:
    """Return how long a lock is in the way at most; 0 for one that is to be met again, None for one that is not."""
    if status.is_ended:
        return None
    if status.fate is Fate.ALIVE:
        return max(seconds_left(lock.start_ts, status.ttl_ms, now_ts), 0.0)
    return 0.0


class EndedTransactions:
    """What became of the transactions whose locks were met last, so that no one is asked twice.

    Args:
        limit: How many; the one that was learned of first is forgotten first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._statuses: dict[int, TxnStatus] = {}

    def __len__(self) -> int:
        return len(self._statuses)

    def get(self, start_ts: int) -> TxnStatus | None:
        """Return what became of a transaction, None if that is not known."""
        return self._statuses.get(start_ts)

    def add(self, lock: Lock, status: TxnStatus) -> None:
        """Remember what became of a lock's transaction, if it has ended.

        Raises:
            InconsistentLocks: it was known to have ended differently.
        """
        if not status.is_ended:
            return
        known = self._statuses.get(lock.start_ts)
        if known is not None:
            if (known.fate, known.commit_ts) != (status.fate, status.commit_ts):
                message = f"it ended twice, at {known.commit_ts} and at {status.commit_ts} (0: rolled back)"
                raise InconsistentLocks(lock.primary, lock.start_ts, message)
            return
        self._statuses[lock.start_ts] = status
        if len(self._statuses) > self._limit:
            del self._statuses[next(iter(self._statuses))]
