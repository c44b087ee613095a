"""What is known of Regions: how long it stands, and what is made of what PD and stores report."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from tikv_pd import Buckets, Region
from tikv_proto import errorpb

from tikv_region._index import RegionIndex
from tikv_region._inquiry import Point
from tikv_region._stores import StoreTable
from tikv_region.codec import KeyCodec
from tikv_region.config import RegionConfig
from tikv_region.region import RegionEntry


class KnownRegions:
    """The entries of a cache, and the clock they live by."""

    def __init__(
        self, codec: KeyCodec, stores: StoreTable, config: RegionConfig, now: Callable[[], float], rng: random.Random
    ) -> None:
        self.index = RegionIndex()
        """The entries; always the same object."""
        self.now = now
        """The clock."""
        self._codec = codec
        self._stores = stores
        self._ttl = config.ttl
        self._jitter = config.ttl_jitter
        self._rng = rng
        self._moments: dict[int, float] = {}

    def use(self, entry: RegionEntry) -> bool:
        """Tell whether an entry is valid; if it is, its time starts anew."""
        now = self.now()
        expires_at = entry.expires_at
        if expires_at <= now or entry.leader_store.epoch != entry.leader_store_epoch:
            return False
        if expires_at - now <= self._ttl and entry.is_renewable:
            entry.expires_at = self._expiry(now)
        return True

    def at(self, point: Point) -> RegionEntry | None:
        """Return the entry at a point, valid or not."""
        return self.index.at_end(point.key) if point.is_end else self.index.at(point.key)

    def use_at(self, point: Point) -> RegionEntry | None:
        """Return the valid entry at a point; its time starts anew."""
        entry = self.at(point)
        return entry if entry is not None and self.use(entry) else None

    def build(self, region: Region) -> RegionEntry | None:
        """Make an entry of a Region; None when it lies outside the keyspace or has no usable peer."""
        keys = self._codec.decode_region_range(region.start_key, region.end_key)
        leader = region.leader.id if region.leader is not None else 0
        replicas = [
            (peer, store)
            for peer, store in ((peer, self._stores.entry(peer.store_id)) for peer in region.peers)
            if peer.id not in region.down_peers
            and not store.is_tombstone
            and (not peer.is_witness or peer.id == leader)
        ]
        if keys is None or not replicas:
            return None
        buckets = self.decode_buckets(region.buckets) if region.buckets is not None else None
        return RegionEntry(region, keys, replicas, self._expiry(self.now()), self.now, buckets)

    def insert(self, region: Region) -> RegionEntry | None:
        """Let a Region in unless something newer is known, and return the entry that stands for it now."""
        entry = self.build(region)
        return None if entry is None else self.index.put(entry)

    def decode_buckets(self, buckets: Buckets | errorpb.BucketVersionNotMatch) -> Buckets:
        """Return buckets whose keys are the user's."""
        return Buckets(buckets.version, self._codec.decode_bucket_keys(buckets.keys))

    def _expiry(self, now: float) -> float:
        second = math.ceil(now + self._ttl + self._rng.random() * self._jitter)
        # One float for all entries of a second, not one for each: a lookup among 100,000 Regions would find its own
        # outside the processor's cache, which costs a fifth of the lookup.
        if len(self._moments) > 4096:
            self._moments.clear()
        return self._moments.setdefault(second, float(second))
