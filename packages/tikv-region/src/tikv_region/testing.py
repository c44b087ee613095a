"""A cluster of Regions for tests: it moves, it refuses requests as TiKV does, and PD may lag behind it."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

import anyio
import attrs
from tikv_pd import Buckets, DeadlineExceeded, Peer, Region, RegionEpoch, Store, TikvError
from tikv_proto import errorpb

from tikv_region.codec import NULL_KEYSPACE_ID, KeyCodec, PlainCodec

_FIRST_EPOCH = RegionEpoch(1, 1)


class RegionMap:
    """Contiguous Regions and their stores, as values.

    Every Region has a peer on each store, and is led from the first one. Methods take keys of users; `regions` and
    `stores` fit the attributes of `tikv_pd.testing.FakePd`.

    Args:
        splits: Keys at which Regions begin, apart from the first.
        stores: How many stores there are; their ids count from 1, their addresses are `tikv1:20160` and so on.
        codec: How bounds are encoded. Under a keyspace there is a Region on either side that lies outside it.
    """

    def __init__(self, splits: Iterable[bytes] = (), *, stores: int = 3, codec: KeyCodec | None = None) -> None:
        self.codec: KeyCodec = codec if codec is not None else PlainCodec()
        """How bounds are encoded."""
        self.stores = {number: Store(number, f"tikv{number}:20160") for number in range(1, stores + 1)}
        """The stores by id."""
        self._last_id = 100
        bounds = {b"", *(self.codec.encode_region_key(key) for key in splits)}
        if self.codec.keyspace_id != NULL_KEYSPACE_ID:
            bounds.update(self.codec.encode_region_range(b"", b""))
        starts = sorted(bounds)
        self.regions = [self._new(start, end) for start, end in zip(starts, [*starts[1:], b""], strict=True)]
        """The Regions, ascending; a list of its own after every change, so that an earlier one stays as it was."""

    def region(self, key: bytes) -> Region:
        """Return the Region that holds `key`."""
        return self.regions[self._position(key)]

    def split(self, key: bytes) -> Region:
        """Split a Region so that one starts at `key`, and return the new, left piece; the right one keeps the id."""
        position = self._position(key)
        old = self.regions[position]
        bound = self.codec.encode_region_key(key)
        if bound == old.start_key:
            raise ValueError(f"a Region starts at {key!r} already")
        epoch = attrs.evolve(old.epoch, version=old.epoch.version + 1)
        leader_store = old.leader.store_id if old.leader is not None else 0
        left = self._new(old.start_key, bound, [peer.store_id for peer in old.peers], leader_store, epoch)
        self._change(position, 1, [left, attrs.evolve(old, start_key=bound, epoch=epoch)])
        return left

    def merge(self, key: bytes, *, into_left: bool = False) -> Region:
        """Merge the Region that holds `key` into its right or left neighbor and return what that has become."""
        left = self._position(key) - into_left
        if left < 0 or left + 1 == len(self.regions):
            raise ValueError(f"the Region of {key!r} has no {'left' if into_left else 'right'} neighbor")
        below, above = self.regions[left : left + 2]
        target = below if into_left else above
        epoch = attrs.evolve(target.epoch, version=max(below.epoch.version, above.epoch.version) + 1)
        merged = attrs.evolve(target, start_key=below.start_key, end_key=above.end_key, epoch=epoch)
        self._change(left, 2, [merged])
        return merged

    def move_leader(self, key: bytes, store_id: int) -> Region:
        """Have the Region that holds `key` led from another store."""
        position = self._position(key)
        old = self.regions[position]
        new = attrs.evolve(old, leader=next(peer for peer in old.peers if peer.store_id == store_id))
        self._change(position, 1, [new])
        return new

    def move_peer(self, key: bytes, source: int, target: int) -> Region:
        """Replace a Region's peer on one store by one on another, which leads if the old one did."""
        position = self._position(key)
        old = self.regions[position]
        self._last_id += 1
        new = Peer(self._last_id, target)
        peers = tuple(new if peer.store_id == source else peer for peer in old.peers)
        leader = new if old.leader is not None and old.leader.store_id == source else old.leader
        # Adding and removing a peer are two changes.
        epoch = attrs.evolve(old.epoch, conf_ver=old.epoch.conf_ver + 2)
        moved = attrs.evolve(old, peers=peers, leader=leader, epoch=epoch)
        self._change(position, 1, [moved])
        return moved

    def set_buckets(self, key: bytes, bounds: Iterable[bytes], version: int) -> Region:
        """Divide the Region that holds `key` into buckets at the given keys."""
        position = self._position(key)
        old = self.regions[position]
        inner = (self.codec.encode_region_key(bound) for bound in bounds)
        new = attrs.evolve(old, buckets=Buckets(version, (old.start_key, *inner, old.end_key)))
        self._change(position, 1, [new])
        return new

    def refusal(self, region_id: int, epoch: RegionEpoch, peer: Peer, key: bytes | None) -> errorpb.Error | None:
        """Return what the store of `peer` answers to a request for `key`; None when it serves it.

        Without a key, to one that is about the Region as a whole.
        The checks and their order are TiKV's: Region, peer, leader, epoch, key.
        """
        region = next((region for region in self.regions if region.id == region_id), None)
        here = next((p for p in region.peers if p.store_id == peer.store_id), None) if region is not None else None
        if region is None or here is None:
            return errorpb.Error(message="not found", region_not_found=errorpb.RegionNotFound(region_id=region_id))
        if here.id != peer.id:
            mismatch = errorpb.MismatchPeerId(request_peer_id=peer.id, store_peer_id=here.id)
            return errorpb.Error(message="mismatch", mismatch_peer_id=mismatch)
        if region.leader is None or region.leader.id != peer.id:
            leader = region.leader.to_pb() if region.leader is not None else None
            return errorpb.Error(message="not leader", not_leader=errorpb.NotLeader(region_id=region_id, leader=leader))
        if region.epoch != epoch:
            return self.epoch_not_match(region)
        if key is not None and not _holds(region, self.codec.encode_region_key(key)):
            return errorpb.Error(message="key not in Region", key_not_in_region=errorpb.KeyNotInRegion(key=key))
        return None

    def epoch_not_match(self, *regions: Region) -> errorpb.Error:
        """Return the error that tells of these Regions and, as TiKV does, of each one's left neighbor."""
        current: dict[int, Region] = {}
        for region in regions:
            position = self.regions.index(region)
            current |= {known.id: known for known in reversed(self.regions[max(position - 1, 0) : position + 1])}
        messages = [region.to_pb() for region in current.values()]
        return errorpb.Error(message="epoch not match", epoch_not_match=errorpb.EpochNotMatch(current_regions=messages))

    def _position(self, key: bytes) -> int:
        encoded = self.codec.encode_region_key(key)
        return bisect_right(self.regions, encoded, key=lambda region: region.start_key) - 1

    def _change(self, position: int, count: int, regions: list[Region]) -> None:
        self.regions = [*self.regions[:position], *regions, *self.regions[position + count :]]

    def _new(
        self,
        start: bytes,
        end: bytes,
        stores: Iterable[int] | None = None,
        leader_store: int = 1,
        epoch: RegionEpoch = _FIRST_EPOCH,
    ) -> Region:
        self._last_id += 1
        region_id = self._last_id
        on = list(stores if stores is not None else self.stores)
        peers = tuple(Peer(peer_id, store_id) for peer_id, store_id in enumerate(on, start=region_id + 1))
        self._last_id += len(on)
        leader = next((peer for peer in peers if peer.store_id == leader_store), None)
        return Region(region_id, start, end, epoch, peers, leader)


class MapSource:
    """A `RegionSource` that answers from a `RegionMap`, and misbehaves on request.

    Args:
        region_map: The cluster.
    """

    def __init__(self, region_map: RegionMap) -> None:
        self.map = region_map
        """The cluster."""
        self.view: list[Region] | None = None
        """What it answers instead of the cluster's Regions: earlier ones, or with gaps."""
        self.follower_view: list[Region] | None = None
        """What its followers answer instead of what it knows itself."""
        self.failures: deque[TikvError] = deque()
        """What the next calls raise, one each."""
        self.delay = 0.0
        """Seconds each answer takes."""
        self.calls: list[str] = []
        """Names of the methods called; those a follower answered end in `@follower`."""

    @property
    def regions(self) -> list[Region]:
        """What it knows."""
        return self.view if self.view is not None else self.map.regions

    @property
    def follower_regions(self) -> list[Region]:
        """What its followers know."""
        return self.follower_view if self.follower_view is not None else self.regions

    async def get_region(
        self, key: bytes, *, need_buckets: bool = False, allow_follower: bool = False, timeout: float
    ) -> Region | None:
        """Return the Region that holds `key`."""
        regions = await self._ask("get_region", need_buckets, allow_follower, timeout)
        return next((region for region in regions if _holds(region, key)), None)

    async def get_prev_region(
        self, key: bytes, *, need_buckets: bool = False, allow_follower: bool = False, timeout: float
    ) -> Region | None:
        """Return the Region before the one that holds `key`."""
        regions = await self._ask("get_prev_region", need_buckets, allow_follower, timeout)
        start = next((region.start_key for region in regions if _holds(region, key)), b"")
        return next((region for region in regions if start and region.end_key == start), None)

    async def get_region_by_id(self, region_id: int, *, need_buckets: bool = False, timeout: float) -> Region | None:
        """Return the Region of an id."""
        regions = await self._ask("get_region_by_id", need_buckets, False, timeout)
        return next((region for region in regions if region.id == region_id), None)

    async def batch_scan_regions(
        self,
        ranges: Sequence[tuple[bytes, bytes]],
        *,
        limit: int,
        need_buckets: bool = False,
        allow_follower: bool = False,
        timeout: float,
    ) -> list[Region]:
        """Return the Regions that overlap any of the ranges."""
        regions = await self._ask("batch_scan_regions", need_buckets, allow_follower, timeout)
        overlapping = (
            region
            for region in regions
            if any(
                (not region.end_key or start < region.end_key) and (not end or region.start_key < end)
                for start, end in ranges
            )
        )
        return list(islice(overlapping, limit))

    async def get_store(self, store_id: int, *, timeout: float) -> Store | None:
        """Return a store."""
        await self._answer("get_store", timeout)
        return self.map.stores.get(store_id)

    async def get_stores(self, *, timeout: float) -> list[Store]:
        """Return all stores."""
        await self._answer("get_stores", timeout)
        return list(self.map.stores.values())

    async def _ask(self, name: str, need_buckets: bool, follower: bool, timeout: float) -> list[Region]:
        await self._answer(f"{name}@follower" if follower else name, timeout)
        regions = self.follower_regions if follower else self.regions
        hide = not need_buckets or follower
        return [_without_buckets(region) if hide else region for region in regions]

    async def _answer(self, name: str, timeout: float) -> None:
        self.calls.append(name)
        if self.failures:
            raise self.failures.popleft()
        if self.delay > timeout:
            await anyio.sleep(timeout)
            raise DeadlineExceeded(name, timeout)
        await anyio.sleep(self.delay)


def _without_buckets(region: Region) -> Region:
    return region if region.buckets is None else attrs.evolve(region, buckets=None)


def _holds(region: Region, key: bytes) -> bool:
    return region.start_key <= key and (not region.end_key or key < region.end_key)
