"""What PD knows of Regions: all there is, unless it is made to lag behind, to miss some, or to hear of trouble."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from tikv_embedded.region import Peer, Region
from tikv_embedded.topology import Topology


class RegionView:
    """Answers queries of Regions in the place of the topology.

    Args:
        topology: The truth.
    """

    def __init__(self, topology: Topology) -> None:
        self.cluster_id = topology.cluster_id
        """Of the cluster."""
        self._truth = topology
        self.clear()

    def freeze(self) -> None:
        """Know Regions as they are now, whatever happens to them."""
        self._known = self._truth.snapshot()

    def hide(self, region_ids: Iterable[int]) -> None:
        """Know nothing of these Regions."""
        self._hidden |= set(region_ids)

    def forget_leaders(self, region_ids: Iterable[int]) -> None:
        """Know nobody who leads these Regions."""
        self._leaderless |= set(region_ids)

    def set_down(self, region_id: int, store_ids: Iterable[int]) -> None:
        """Know that these peers of a Region do not answer, and no others."""
        self._down[region_id] = frozenset(store_ids)

    def clear(self) -> None:
        """Know the truth again."""
        self._known = self._truth
        self._hidden: set[int] = set()
        self._leaderless: set[int] = set()
        self._down: dict[int, frozenset[int]] = {}

    def find(self, key: bytes) -> Region | None:
        """Return the Region that holds a key."""
        return self._shown(self._known.find(key))

    def previous(self, key: bytes) -> Region | None:
        """Return the Region before the one that holds a key; None too when that one is not known."""
        return self._shown(self._known.previous(key)) if self.find(key) is not None else None

    def by_id(self, region_id: int) -> Region | None:
        """Return the Region of an id."""
        return self._shown(self._known.regions.get(region_id))

    def scan(self, start_key: bytes, end_key: bytes, limit: int) -> list[Region]:
        """Return the Regions that overlap a range, ascending, `limit` at most if that is positive."""
        if not self._hidden and not self._leaderless:
            return self._known.scan(start_key, end_key, limit)
        shown = [found for each in self._known.scan(start_key, end_key, 0) if (found := self._shown(each)) is not None]
        return shown[:limit] if limit > 0 else shown

    def down_peers(self, region: Region) -> list[Peer]:
        """Return the peers that do not answer."""
        stores = self._down.get(region.id, frozenset())
        return [peer for peer in region.peers if peer.store_id in stores]

    def _shown(self, region: Region | None) -> Region | None:
        if region is None or region.id in self._hidden:
            return None
        return attrs.evolve(region, leader=None) if region.id in self._leaderless else region
