"""What the cluster is made of, in one place for PD and all stores, durable with every change.

A change is computed as values first (`tikv_embedded.region`), then written with one atomic batch to CF_META, then made
visible. A crash leaves either all of it or nothing, and PD and the stores never disagree.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence

import attrs

from tikv_embedded import meta, region
from tikv_embedded.engine import Engine, WriteBatch
from tikv_embedded.errors import TopologyError
from tikv_embedded.region import Peer, Region, Store, StoreState

ID_STEP = 1000
"""How many ids are persisted ahead (PD: allocStep)."""


class Topology:
    """The Regions and stores of one cluster: look-ups, changes and ids.

    Attributes:
        cluster_id: What GetMembers tells and every header must carry.
        regions: id → Region of all Regions; read it, never write to it.
        stores: id → Store, likewise.
    """

    def __init__(self, engine: Engine, state: meta.ClusterState) -> None:
        self._engine = engine
        self.cluster_id = state.cluster_id
        self.max_peer_count = state.max_peer_count
        self.stores: dict[int, Store] = {store.id: store for store in state.stores}
        self.regions: dict[int, Region] = {}
        self._starts: list[bytes] = []
        self._ids: list[int] = []
        self._next_id = self._persisted_id = state.next_id
        self._running: Callable[[int], bool] = lambda _store_id: True
        self._install(state.regions, ())

    def find(self, key: bytes) -> Region:
        """Return the Region that holds `key` (encoded like the bounds); there is always one."""
        return self.regions[self._ids[bisect_right(self._starts, key) - 1]]

    def previous(self, key: bytes) -> Region | None:
        """Return the Region before the one that holds `key`; None at the very start."""
        position = bisect_right(self._starts, key) - 2
        return self.regions[self._ids[position]] if position >= 0 else None

    def scan(self, start_key: bytes, end_key: bytes, limit: int) -> list[Region]:
        """Return the Regions that overlap `[start_key, end_key)`, ascending.

        Args:
            start_key: Encoded like the bounds.
            end_key: Exclusive; empty is unbounded.
            limit: At most this many; zero or less is no limit.
        """
        first = bisect_right(self._starts, start_key) - 1
        last = bisect_left(self._starts, end_key) if end_key else len(self._starts)
        if limit > 0:
            last = min(last, first + limit)
        return [self.regions[region_id] for region_id in self._ids[first:last]]

    def left_of(self, start_key: bytes, limit: int) -> list[Region]:
        """Return up to `limit` Regions left of that bound, the nearest first."""
        position = bisect_left(self._starts, start_key)
        return [self.regions[region_id] for region_id in reversed(self._ids[max(0, position - limit) : position])]

    def snapshot(self) -> Topology:
        """Return a copy to look things up in, whose Regions stay as they are now; never change it."""
        frozen = copy.copy(self)
        frozen.regions = dict(self.regions)
        return frozen

    def allocate_ids(self, count: int) -> range:
        """Return `count` fresh ids in a row; stores, Regions and peers share one sequence.

        Ids are persisted `ID_STEP` ahead, so few calls write, and an id is never given twice.
        """
        ids = range(self._next_id, self._next_id + count)
        if ids.stop > self._persisted_id:
            persisted, batch = ids.start + max(count, ID_STEP), WriteBatch()
            meta.put_next_id(batch, persisted)
            self._engine.write(batch)
            self._persisted_id = persisted
        self._next_id = ids.stop
        return ids

    def split(self, keys: Iterable[bytes]) -> list[Region]:
        """Cut Regions at `keys` (encoded like the bounds) and return all pieces, ascending.

        Keys that are bounds already are passed over; so nothing is returned when all of them are.
        """
        grouped: dict[int, list[bytes]] = {}
        for key in sorted(set(keys)):
            owner = self.find(key)
            if key != owner.start_key:
                grouped.setdefault(owner.id, []).append(key)
        pieces = [piece for region_id, cuts in grouped.items() for piece in self._cut(self.regions[region_id], cuts)]
        self._commit(pieces)
        return pieces

    def merge(self, source_id: int, target_id: int) -> Region:
        """Let the neighbor `target_id` take over the range of `source_id`, and return it; the source id is gone."""
        source, target = self.region(source_id), self.region(target_id)
        return self._replace(region.merge(source, target), removed=(source_id,))

    def transfer_leader(self, region_id: int, store_id: int) -> Region:
        """Let the peer on that store lead, and return the Region."""
        if not self._running(self.store(store_id).id):
            raise TopologyError(f"store {store_id} does not run, so it cannot lead")
        return self._replace(region.transfer_leader(self.region(region_id), store_id))

    def add_peer(
        self, region_id: int, store_id: int, *, is_learner: bool, is_witness: bool, is_pending: bool
    ) -> Region:
        """Add a replica of the Region on that store, and return the Region."""
        current, store = self.region(region_id), self.store(store_id)
        if store.state is not StoreState.UP:
            raise TopologyError(f"store {store_id} is {store.state.name}, so it gets no peers")
        (peer_id,) = self.allocate_ids(1)
        return self._replace(region.add_peer(current, Peer(peer_id, store.id, is_learner, is_witness, is_pending)))

    def remove_peer(self, region_id: int, store_id: int) -> Region:
        """Remove the Region's replica from that store, and return the Region; a leader hands over first."""
        return self._replace(region.remove_peer(self.region(region_id), store_id))

    def vacate(self, store_id: int) -> None:
        """Move all peers away from that store: to one that is UP and has none of the Region, else nowhere.

        TopologyError when a Region would be left without a peer that can lead; then nothing has changed.
        """
        changed: list[Region] = []
        for current in self.regions.values():
            peer = current.peer_on(store_id)
            if peer is None:
                continue
            free = [
                store.id
                for store in self.stores.values()
                if store.state is StoreState.UP and current.peer_on(store.id) is None
            ]
            replacement = None
            if free:
                load = {each: self._peer_count(each, changed) for each in free}
                (peer_id,) = self.allocate_ids(1)
                replacement = attrs.evolve(peer, id=peer_id, store_id=min(free, key=lambda each: load[each]))
            changed.append(region.move_peer(current, store_id, replacement))
        self._commit(changed)

    def _peer_count(self, store_id: int, moved: Sequence[Region]) -> int:
        regions = {**self.regions, **{current.id: current for current in moved}}
        return sum(current.peer_on(store_id) is not None for current in regions.values())

    def leading_stores(self) -> set[int]:
        """Return the ids of the stores that lead a Region."""
        return {current.leader.store_id for current in self.regions.values() if current.leader is not None}

    def put_store(self, store: Store) -> None:
        """Add a store, or replace what is known of one."""
        batch = WriteBatch()
        meta.put_store(batch, store)
        self._engine.write(batch)
        self.stores[store.id] = store

    def set_max_peer_count(self, count: int) -> None:
        """Change how many replicas PD wants of each Region; present Regions stay as they are."""
        batch = WriteBatch()
        meta.put_max_peer_count(batch, count)
        self._engine.write(batch)
        self.max_peer_count = count

    def watch_stores(self, is_running: Callable[[int], bool]) -> None:
        """Ask `is_running` from now on which stores can lead."""
        self._running = is_running

    def elect(self) -> None:
        """Move leaders from stores that do not run to those that do, as raft's election timeout would.

        A Region whose voters are not in their majority on running stores is left without a leader.
        """
        changed = [elected for current in self.regions.values() if (elected := self._election(current)) != current]
        self._commit(changed)

    def region(self, region_id: int) -> Region:
        """Return the Region of that id; TopologyError when there is none."""
        found = self.regions.get(region_id)
        if found is None:
            raise TopologyError(f"there is no region {region_id}")
        return found

    def store(self, store_id: int) -> Store:
        """Return the store of that id; TopologyError when there is none."""
        found = self.stores.get(store_id)
        if found is None:
            raise TopologyError(f"there is no store {store_id}")
        return found

    def balance_leaders(self, region_ids: Iterable[int]) -> None:
        """Move the leaders of these Regions to the stores that lead the fewest; unknown ids are passed over."""
        load = dict.fromkeys(self.stores, 0)
        for current in self.regions.values():
            if current.leader is not None:
                load[current.leader.store_id] += 1
        changed = []
        for current in filter(None, map(self.regions.get, dict.fromkeys(region_ids))):
            able = [peer for peer in current.peers if peer.can_lead and self._running(peer.store_id)]
            if current.leader is None or not able:
                continue
            best = min(able, key=lambda peer: load[peer.store_id])
            if load[best.store_id] + 1 < load[current.leader.store_id]:
                load[current.leader.store_id] -= 1
                load[best.store_id] += 1
                changed.append(region.transfer_leader(current, best.store_id))
        self._commit(changed)

    def _cut(self, current: Region, keys: Sequence[bytes]) -> list[Region]:
        """Allocate ids and compute the pieces."""
        ids = iter(self.allocate_ids(len(keys) * (1 + len(current.peers))))
        return region.split(current, keys, [(next(ids), [next(ids) for _ in current.peers]) for _ in keys])

    def _election(self, current: Region) -> Region:
        """Return the Region as it is after an election among the running stores; a leader needs a majority too."""
        voters = [peer for peer in current.peers if not peer.is_learner]
        alive = [peer for peer in voters if self._running(peer.store_id)]
        if 2 * len(alive) <= len(voters):
            return region.drop_leader(current)
        if current.leader in alive:
            return current
        candidate = next((peer for peer in alive if peer.can_lead), None)
        if candidate is None:
            return region.drop_leader(current)
        return region.transfer_leader(current, candidate.store_id)

    def _replace(self, changed: Region, removed: Sequence[int] = ()) -> Region:
        self._commit([changed], removed)
        return changed

    def _commit(self, changed: Sequence[Region], removed: Sequence[int] = ()) -> None:
        """Write, then show: a write that fails changes nothing in memory."""
        batch = WriteBatch()
        for current in changed:
            meta.put_region(batch, current)
        for region_id in removed:
            meta.delete_region(batch, region_id)
        if batch:
            self._engine.write(batch)
        self._install(changed, removed)

    def _install(self, changed: Iterable[Region], removed: Iterable[int]) -> None:
        for region_id in removed:
            del self.regions[region_id]
        self.regions.update((current.id, current) for current in changed)
        ordered = sorted(self.regions.values(), key=lambda current: current.start_key)
        self._starts = [current.start_key for current in ordered]
        self._ids = [current.id for current in ordered]
