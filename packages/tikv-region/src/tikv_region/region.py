"""What the cache holds: stores and Regions as one client knows them.

Both are mutable and compared by identity: requests hold on to them while the cluster changes, and learn from them
whether what they were built on still holds.
"""

from __future__ import annotations

import enum
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from tikv_pd import Buckets, Peer, Region, RegionEpoch

from tikv_region.health import Liveness, StoreHealth
from tikv_region.ranges import KeyRange


class InvalidReason(enum.Enum):
    """Why a Region must be loaded again."""

    NO_LEADER = enum.auto()
    """None of its peers led; the next load begins with the peer after the one PD names, should that be the same."""
    REGION_NOT_FOUND = enum.auto()
    """A store has no peer of it any more."""
    EPOCH_NOT_MATCH = enum.auto()
    """It changed its range or its peers."""
    STORE_NOT_FOUND = enum.auto()
    """Its leader, or the address of its leader, is not where it was thought to be."""
    REPLACED = enum.auto()
    """The cache learned of a newer Region in its range."""
    OTHER = enum.auto()
    """Anything else."""


class EngineKind(enum.Enum):
    """What a store is made for; the value is its label `engine`. Any other store, also without the label, is TiKV."""

    TIKV = "tikv"
    """Rows: every request of this SDK."""
    TIFLASH = "tiflash"
    """Columns: learners for analytical requests."""
    TIFLASH_COMPUTE = "tiflash_compute"
    """Analytical requests on data elsewhere."""


class StoreEntry:
    """A store as the cache knows it: one object per id for the life of the cache, changed in place."""

    __slots__ = ("address", "epoch", "health", "id", "is_tombstone", "labels", "needs_check")

    def __init__(self, store_id: int) -> None:
        self.id = store_id
        """Id of the store."""
        self.address = ""
        """Where it is reached, `host:port`; empty while unknown, and for a tombstone."""
        self.labels: tuple[tuple[str, str], ...] = ()
        """(key, value) pairs such as ("zone", "a")."""
        self.epoch = 0
        """Counts failures: Regions that remember a lower one for their leader's store are stale."""
        self.needs_check = False
        """Whether PD must be asked for the address before it is used again."""
        self.is_tombstone = False
        """Whether it left the cluster for good."""
        self.health = StoreHealth()
        """How well it does; for those who send requests to feed and to ask."""

    @property
    def engine(self) -> EngineKind:
        """What it is made for."""
        named = self._label("engine")
        return next((kind for kind in EngineKind if kind.value == named), EngineKind.TIKV)

    @property
    def zone(self) -> str:
        """Where it stands, its label `zone`; empty without one."""
        return self._label("zone")

    def _label(self, wanted: str) -> str:
        return next((value for key, value in self.labels if key == wanted), "")

    def __repr__(self) -> str:
        return f"<store {self.id} at {self.address or '?'}>"


class RegionEntry:
    """A Region as the cache knows it. Keys are the user's.

    Args:
        region: As PD or a store reported it.
        keys: Its range, decoded.
        replicas: Its usable peers and the stores they live on, at least one.
        expires_at: When it must be loaded again, on the clock `now`.
        now: The clock, in seconds.
        buckets: Its buckets, their keys decoded.
    """

    __slots__ = (
        "_epochs",
        "_now",
        "_resumes_until",
        "attachment",
        "behind_since",
        "buckets",
        "down_peers",
        "end",
        "epoch",
        "expires_at",
        "id",
        "invalid_reason",
        "is_renewable",
        "leader",
        "leader_peer",
        "leader_store",
        "leader_store_epoch",
        "needs_reload",
        "peers",
        "pending_peers",
        "replica_count",
        "start",
        "stores",
    )

    def __init__(
        self,
        region: Region,
        keys: tuple[bytes, bytes],
        replicas: Sequence[tuple[Peer, StoreEntry]],
        expires_at: float,
        now: Callable[[], float],
        buckets: Buckets | None = None,
    ) -> None:
        self.id = region.id
        """Id of the Region."""
        self.epoch: RegionEpoch = region.epoch
        """Incarnation."""
        self.start, self.end = keys
        self.peers = tuple(peer for peer, _ in replicas)
        """Its usable replicas: without those that are down, on tombstones, or hold no data."""
        self.stores = tuple(store for _, store in replicas)
        """The store of each peer."""
        self.down_peers = tuple(peer for peer in region.peers if peer.id in region.down_peers)
        """Peers PD had not heard of for a while when it was loaded; none of them is in `peers`."""
        self.pending_peers = tuple(peer for peer in self.peers if peer.id in region.pending_peers)
        """Those of `peers` that lagged far behind when it was loaded."""
        self.replica_count = sum(not peer.is_witness for peer in region.peers)
        """How many copies of its data there are, those on peers that are down included."""
        self.buckets = buckets
        """Its buckets if known, keys as the user's; perhaps those of an earlier range of it. See `bucket`."""
        self.expires_at = expires_at
        """When it must be loaded again; minus infinity once it is invalid."""
        self.is_renewable = not region.down_peers
        """Whether use prolongs its life; not when a replica is missing, which may be back at any time."""
        self.invalid_reason: InvalidReason | None = None
        """Why it was invalidated."""
        self.behind_since: float | None = None
        """When a store first answered that it knows only an earlier incarnation."""
        self.needs_reload = False
        """Whether it is to be loaded again before long, and used until then. Set it to ask for that."""
        self.attachment: object | None = None
        """Whatever the layer above keeps with it; dropped when the leader changes."""
        self._epochs = tuple(store.epoch for store in self.stores)
        self._now = now
        self._resumes_until = -math.inf
        self._lead(self._first_leader(region.leader))

    @property
    def range(self) -> KeyRange:
        """The keys it holds."""
        return KeyRange(self.start, self.end)

    def contains(self, key: bytes) -> bool:
        """Tell whether it holds `key`."""
        return self.start <= key and (not self.end or key < self.end)

    def bucket(self, key: bytes) -> KeyRange | None:
        """Return the part of the Region's range that the bucket around `key` covers; None when it does not hold `key`.

        The whole range when no buckets are known. Buckets may be out of date, so what lies outside the Region is cut
        off, and what lies before the first bound or after the last one counts as a bucket.

        Source: client-go region_cache.go, KeyLocation.LocateBucket.
        """
        if not self.contains(key):
            return None
        bounds = self.buckets.keys if self.buckets is not None else ()
        count = len(bounds) - 1 if bounds and not bounds[-1] else len(bounds)
        above = bisect_right(bounds, key, 0, count)
        start = bounds[above - 1] if above else b""
        return KeyRange(start, bounds[above] if above < count else b"").intersect(self.range)

    def learn_buckets(self, buckets: Buckets | None) -> None:
        """Take over buckets unless those known are as new."""
        if buckets is not None and (self.buckets is None or self.buckets.version < buckets.version):
            self.buckets = buckets

    def is_valid(self) -> bool:
        """Tell whether it may be used: not invalidated, not too old, and its leader's store did not fail since."""
        return self.expires_at > self._now() and self.leader_store.epoch == self.leader_store_epoch

    def is_due(self) -> bool:
        """Tell whether it is hidden from lookups only so that the next one loads it again."""
        return self._resumes_until > self._now()

    def resume(self) -> None:
        """Show it to lookups again, while it is loaded."""
        self.needs_reload = False
        self.expires_at, self._resumes_until = self._resumes_until, -math.inf

    def grow_old(self) -> bool:
        """Take one step, at a sweep, from needing to be loaded again to being due; tell whether it is still of use.

        One with a replica that cannot be used is not renewed any more: so it notices when that is back.
        """
        now = self._now()
        if self.needs_reload and self.expires_at > now:
            self.expires_at, self._resumes_until = -math.inf, self.expires_at
        for index, store in enumerate(self.stores):
            if not self.is_fresh(index) or store.health.liveness is Liveness.UNREACHABLE:
                self.is_renewable = False
        return max(self.expires_at, self._resumes_until) > now

    def is_fresh(self, index: int) -> bool:
        """Tell whether the store of the peer at `index` has not failed since this was loaded, or since it led."""
        return self.stores[index].epoch == self._epochs[index]

    def invalidate(self, reason: InvalidReason) -> None:
        """Make it unusable; only the first reason is kept."""
        if self.invalid_reason is None:
            self.invalid_reason = reason
            self.expires_at = self._resumes_until = -math.inf

    def switch_leader(self, index: int) -> None:
        """Take the peer at `index` for the leader, and its store for healthy."""
        self._epochs = (*self._epochs[:index], self.stores[index].epoch, *self._epochs[index + 1 :])
        if index != self.leader:
            self.attachment = None
        self._lead(index)

    def next_leader(self) -> None:
        """Try the next voter for the leader: the next whose store has not failed, if there is one."""
        count = len(self.peers)
        others = [(self.leader + step) % count for step in range(1, count)]
        voters = [index for index in others if not self.peers[index].is_learner]
        candidates = [index for index in voters if self.is_fresh(index)] or voters
        if candidates:
            self.attachment = None
            self._lead(candidates[0])

    def _lead(self, index: int) -> None:
        self.leader = index
        self.leader_peer = self.peers[index]
        self.leader_store = self.stores[index]
        self.leader_store_epoch = self._epochs[index]

    def _first_leader(self, leader: Peer | None) -> int:
        wanted = leader.id if leader is not None else 0
        named = (index for index, peer in enumerate(self.peers) if peer.id == wanted)
        voters = (index for index, peer in enumerate(self.peers) if not peer.is_learner)
        return next(named, next(voters, 0))

    def __repr__(self) -> str:
        state = "valid" if self.is_valid() else "invalid"
        epoch = f"{self.epoch.conf_ver}.{self.epoch.version}"
        return f"<Region {self.id} epoch {epoch} [{self.start!r}, {self.end!r}) led by {self.leader_store!r}, {state}>"
