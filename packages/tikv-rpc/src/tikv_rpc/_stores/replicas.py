"""Which replica each attempt of a request goes to: a decision about values, without I/O.

A `Selector` belongs to one request to one Region. It is made when something speaks against simply asking the leader:
the caller's options, or an attempt that failed. It remembers what every replica said, and names the next one to ask
until none is left that might help.

What was told to wait for is only waited for when there is nothing better to do: a wait is owed to a store, and paid
when that store is asked again, or when no replica is left.

Source: client-go internal/locate replica_selector.go. There, most waits are taken at once, and a replica that names
no leader is waited for; the order in which replicas are asked is the same.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Sequence
from typing import Final

import attrs
from tikv_pd import BackoffKind
from tikv_pd.backoff import REGION_SCHEDULING
from tikv_pd.errors import TikvError
from tikv_region import EngineKind, InvalidReason, Liveness, RegionEntry, StoreEntry

from tikv_rpc.options import ReplicaRead, RequestOptions

_LEADER_ATTEMPTS: Final = 10
"""Attempts at a leader until it is given up. Source: client-go maxReplicaAttempt."""
_LEADER_SECONDS: Final = 50.0
"""Seconds spent in them until it is given up. Source: client-go maxReplicaAttemptTime."""
_BUSY_BEFORE_PROBE: Final = 2
"""Times a leader may say that it is busy, without saying for how long, until a follower is asked who leads.

A store too busy to answer may have lost its leaderships without a way to say so.
"""

_NOT_SLOW, _LABELS_MATCH, _PREFERRED, _NORMAL, _UNTRIED = 16, 8, 4, 2, 1


class Access(enum.Enum):
    """How a request asks a replica."""

    LEADER = enum.auto()
    """As the leader, which it has to be."""
    REPLICA = enum.auto()
    """As any replica, which asks the leader how far it must be. Source: kvrpcpb.Context.replica_read."""
    STALE = enum.auto()
    """As any replica that has come as far as the read's timestamp. Source: kvrpcpb.Context.stale_read."""


@attrs.frozen
class Target:
    """Where an attempt goes."""

    index: int
    """Position of the replica in the Region's peers."""
    access: Access
    """How it is asked."""
    proxy: int | None = None
    """Position of the replica whose store passes the request on, if its own cannot be reached."""

    @property
    def via(self) -> int:
        """Position of the replica whose store the attempt is sent to."""
        return self.index if self.proxy is None else self.proxy


class _Replica:
    """What one request has learned of a replica."""

    __slots__ = ("attempts", "is_busy", "lags", "leads_not", "seconds", "suspect", "timed_out")

    def __init__(self) -> None:
        self.attempts = 0
        self.seconds = 0.0
        self.timed_out = False
        """It took longer than the read may."""
        self.lags = False
        """It had not come as far as a stale read wants."""
        self.leads_not = False
        """It said that it does not lead."""
        self.is_busy = False
        """It said that it is busy."""
        self.suspect = False
        """It may not lead any more: see `_BUSY_BEFORE_PROBE`."""


class Selector:
    """The replicas of a Region as one request sees them.

    Args:
        entry: The Region.
        options: What the caller wants.
        is_read: Whether replicas other than the leader may serve it.
        forwarding: Whether stores may pass requests on to a leader that cannot be reached.
        now: The clock.
        choose: Returns one of several replicas that are as good.
    """

    def __init__(
        self,
        entry: RegionEntry,
        options: RequestOptions,
        *,
        is_read: bool,
        forwarding: bool,
        now: Callable[[], float],
        choose: Callable[[Sequence[int]], int] = random.choice,
    ) -> None:
        self.entry = entry
        """The Region."""
        self.ignores_invalidation = False
        """Whether the Region's invalidity ends the request: not when its leader is asked as a last resort."""
        self._options = options
        self._is_read = is_read
        self._is_stale = is_read and options.stale_read
        self._mode = options.replica_read if is_read else ReplicaRead.LEADER
        if self._is_stale and self._mode is ReplicaRead.LEADER:
            self._mode = ReplicaRead.MIXED
        self.busy_threshold = (options.busy_threshold or 0.0) if is_read else 0.0
        """The wait above which stores are to refuse, in seconds; 0 once all are too busy."""
        self._is_forwarding = forwarding
        self._now = now
        self._choose = choose
        self._replicas = [_Replica() for _ in entry.peers]
        self._rounds = 0
        self._owed: dict[int, tuple[BackoffKind, TikvError]] = {}
        self._was_probed = False
        self._busy_leader = -1
        self._busy_count = 0

    def next(self) -> Target | None:
        """Return where the next attempt goes; None when no replica is left. The Region may be invalidated by that."""
        target = self._next_leader() if self._mode is ReplicaRead.LEADER else self._next_replica()
        if target is not None:
            self.begin(target)
        return target

    def begin(self, target: Target) -> None:
        """Count an attempt: one that `next` named, or one made before there was a selector."""
        self._rounds += 1
        self._replicas[target.index].attempts += 1
        if target.proxy is not None:
            self._replicas[target.proxy].attempts += 1

    def spend(self, target: Target, seconds: float) -> None:
        """Count the time an attempt took."""
        self._replicas[target.index].seconds += seconds

    def owe(self, store: StoreEntry, kind: BackoffKind, cause: TikvError) -> None:
        """Have a wait taken before the store is asked again."""
        self._owed[store.id] = (kind, cause)

    def pay(self, store: StoreEntry) -> tuple[BackoffKind, TikvError] | None:
        """Return the wait that a store is owed, once."""
        return self._owed.pop(store.id, None)

    def settle(self) -> tuple[BackoffKind, TikvError] | None:
        """Return the longest wait owed to any store, when no replica is left."""
        return max(self._owed.values(), key=lambda owed: owed[0].base, default=None)

    def on_timeout(self, target: Target) -> None:
        """Learn that a replica took longer than a read may."""
        self._replicas[target.index].timed_out = True

    def on_stale_replica(self, target: Target) -> None:
        """Learn that a replica has not come as far as a stale read wants."""
        self._replicas[target.index].lags = True

    def on_no_leader(self, target: Target) -> None:
        """Learn that a replica does not lead and knows no leader that can be reached."""
        self._replicas[target.index].leads_not = True

    def on_doubt(self, target: Target) -> None:
        """Learn that a replica cannot serve, for a reason that has no name."""
        self._replicas[target.index].suspect = True

    def on_leader(self, target: Target) -> None:
        """Learn that a replica named the leader, which `entry.leader` is now."""
        if target.index != self.entry.leader:
            self._replicas[target.index].leads_not = True
        leader = self._replicas[self.entry.leader]
        leader.leads_not = leader.suspect = False
        owed = self._owed.get(self.entry.leader_store.id)
        if owed is not None and owed[0] is REGION_SCHEDULING:
            # It had no leader, which is settled.
            del self._owed[self.entry.leader_store.id]
        if leader.attempts >= _LEADER_ATTEMPTS or leader.seconds >= _LEADER_SECONDS:
            # Whoever was named gets one more chance.
            leader.attempts, leader.seconds = _LEADER_ATTEMPTS - 1, 0.0
        if self._is_leader_usable():
            self._mode = ReplicaRead.LEADER

    def on_busy(self, target: Target, wait: float) -> None:
        """Learn that a replica is busy, for `wait` seconds by its own estimate, or 0 without one."""
        index = target.index
        if not wait:
            self._count_busy(target)
        elif self.busy_threshold:
            self._replicas[index].is_busy = True
        is_leader_next = self._mode is ReplicaRead.LEADER and self._is_leader_usable()
        if not is_leader_next or self._replicas[self.entry.leader].is_busy:
            self._replicas[index].is_busy = True

    def ask_leader(self, target: Target) -> bool:
        """Turn to the leader although a replica could not serve; tell whether that may help.

        Args:
            target: The replica: not the leader, or it would not help.
        """
        if target.index == self.entry.leader or target.access is Access.LEADER:
            return False
        self._mode, self.busy_threshold = ReplicaRead.LEADER, 0.0
        return True

    def ask_leader_at_last(self) -> bool:
        """Turn to the leader, unless it was asked, although the Region is invalid; tell whether that may help."""
        if self._replicas[self.entry.leader].attempts or self.ignores_invalidation:
            return False
        self._mode, self.busy_threshold, self._is_stale = ReplicaRead.LEADER, 0.0, False
        self.ignores_invalidation = True
        return True

    def passes_on(self, target: Target) -> bool:
        """Tell whether another store may pass on what could not be sent to this target."""
        is_direct = target.proxy is None and target.index == self.entry.leader
        return self._is_forwarding and self._mode is ReplicaRead.LEADER and is_direct and len(self._replicas) > 1

    def _count_busy(self, target: Target) -> None:
        leader = self.entry.leader
        if self._was_probed or self._mode is not ReplicaRead.LEADER or target.index != leader:
            return
        if self._busy_leader != leader:
            self._busy_leader, self._busy_count = leader, 0
        self._busy_count += 1
        if self._busy_count == _BUSY_BEFORE_PROBE and len(self._replicas) > 1:
            self._replicas[leader].suspect = self._was_probed = True

    def _next_leader(self) -> Target | None:
        leader = self.entry.leader
        if self._is_forwarding and self._needs_proxy(leader):
            return self._through_proxy(leader)
        if self._is_leader_usable():
            if self._is_over_threshold(leader):
                idle = self._pick(ReplicaRead.MIXED, threshold=self.busy_threshold)
                if idle is not None:
                    return Target(idle, Access.REPLICA)
                self.busy_threshold = 0.0
            return Target(leader, Access.LEADER)
        index = self._pick_or_give_up(ReplicaRead.MIXED)
        if index is None:
            return None
        # Replicas that are no leader are asked all the same: one of them may have become it, or know who has.
        was_slow = self._is_read and self._replicas[leader].timed_out
        return Target(index, Access.REPLICA if was_slow else Access.LEADER)

    def _next_replica(self) -> Target | None:
        leader = self._replicas[self.entry.leader]
        if self._is_stale and self._rounds and not leader.attempts and self._is_leader_usable():
            return Target(self.entry.leader, Access.LEADER)
        index = self._pick_or_give_up(self._mode)
        if index is None:
            return None
        is_leader = index == self.entry.leader
        if not self._is_stale:
            return Target(index, Access.LEADER if is_leader else Access.REPLICA)
        if not self._rounds and (is_leader or self._matches(self.entry.stores[index])):
            return Target(index, Access.STALE)
        can_ask_leader = leader.attempts and not leader.timed_out and not leader.is_busy
        return Target(index, Access.REPLICA if can_ask_leader else Access.STALE)

    def _needs_proxy(self, leader: int) -> bool:
        is_reachable = self.entry.stores[leader].health.liveness is Liveness.REACHABLE
        return not is_reachable and not self._replicas[leader].leads_not

    def _through_proxy(self, leader: int) -> Target | None:
        stores = self.entry.stores
        for index, replica in enumerate(self._replicas):
            if index == leader or replica.attempts or not self.entry.is_fresh(index):
                continue
            if stores[index].health.liveness is Liveness.REACHABLE:
                return Target(leader, Access.LEADER, proxy=index)
        self.entry.invalidate(InvalidReason.NO_LEADER)
        return None

    def _is_leader_usable(self) -> bool:
        index = self.entry.leader
        leader = self._replicas[index]
        if self.entry.stores[index].health.liveness is not Liveness.REACHABLE or not self.entry.is_fresh(index):
            return False
        if leader.timed_out or leader.leads_not or leader.suspect:
            return False
        return leader.attempts < _LEADER_ATTEMPTS and leader.seconds < _LEADER_SECONDS

    def _is_over_threshold(self, leader: int) -> bool:
        if not self.busy_threshold:
            return False
        return self._replicas[leader].is_busy or self._wait_at(leader) > self.busy_threshold

    def _wait_at(self, index: int) -> float:
        return self.entry.stores[index].health.estimated_wait(self._now())

    def _matches(self, store: StoreEntry) -> bool:
        options = self._options
        if options.match_stores and store.id not in options.match_stores:
            return False
        return all(label in store.labels for label in options.match_labels)

    def _pick_or_give_up(self, mode: ReplicaRead) -> int | None:
        index = self._pick(mode, threshold=0.0)
        if index is not None:
            return index
        leader = self._replicas[self.entry.leader]
        if leader.suspect:
            leader.suspect = False
            if self._is_leader_usable():
                return self.entry.leader
        if not any(replica.timed_out for replica in self._replicas):
            self.entry.invalidate(InvalidReason.NO_LEADER)
        return None

    def _pick(self, mode: ReplicaRead, *, threshold: float) -> int | None:
        """Return one of the best replicas not asked yet; with a threshold only those idle, and not the leader."""
        best: list[int] = []
        best_score = -1
        for index in range(len(self._replicas)):
            if not self._is_candidate(index, mode, threshold):
                continue
            score = self._score(index, mode)
            if score > best_score:
                best, best_score = [index], score
            elif score == best_score:
                best.append(index)
        return self._choose(best) if best else None

    def _is_candidate(self, index: int, mode: ReplicaRead, threshold: float) -> bool:
        entry, replica, store = self.entry, self._replicas[index], self.entry.stores[index]
        is_leader = index == entry.leader
        if store.engine is not EngineKind.TIKV or store.health.liveness is Liveness.UNREACHABLE:
            return False
        if not entry.is_fresh(index):
            if is_leader or store.health.liveness is Liveness.REACHABLE:
                # It failed once and is back: the next load makes it one to ask again.
                entry.needs_reload = True
            return False
        if replica.attempts >= (2 if replica.lags and not is_leader else 1):
            return False
        if threshold and (is_leader or replica.is_busy or self._wait_at(index) > threshold):
            return False
        is_slow = store.health.is_slow(self._now())
        return is_leader or not (mode is ReplicaRead.PREFER_LEADER and is_slow)

    def _score(self, index: int, mode: ReplicaRead) -> int:
        entry, store = self.entry, self.entry.stores[index]
        is_slow = store.health.is_slow(self._now())
        score = 0 if is_slow else _NOT_SLOW
        if self._matches(store):
            score += _LABELS_MATCH
        if index == entry.leader:
            if mode is ReplicaRead.PREFER_LEADER:
                score += _NORMAL if is_slow else _PREFERRED
            elif mode is ReplicaRead.MIXED:
                score += _PREFERRED if self._options.match_labels else _NORMAL
        elif mode is not ReplicaRead.LEARNER or entry.peers[index].is_learner:
            score += _NORMAL
        return score if self._replicas[index].attempts else score + _UNTRIED
