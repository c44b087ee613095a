"""Regions, peers and stores as immutable values, and the changes a Region can go through.

Every function returns new values and touches nothing. Bounds are as the store keeps them: plain keys in V1 and V1TTL,
memcomparable in V2. A range is half-open, `[start_key, end_key)`, and an empty `end_key` is unbounded.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import attrs
from tikv_proto import metapb

from tikv_embedded.errors import TopologyError


@attrs.frozen(order=True)
class RegionEpoch:
    """How often a Region changed its peers (`conf_ver`) and its range (`version`)."""

    conf_ver: int = 1
    version: int = 1


@attrs.frozen
class Peer:
    """One replica of a Region on one store."""

    id: int
    store_id: int
    is_learner: bool = False
    """Holds data and answers replica reads, but never leads."""
    is_witness: bool = False
    """Votes without data, so it answers every request with IsWitness."""
    is_pending: bool = False
    """Has not received its first snapshot: answers RegionNotInitialized, PD lists it as pending."""

    @property
    def can_lead(self) -> bool:
        """Whether leadership may move to this peer."""
        return not (self.is_learner or self.is_witness or self.is_pending)


@attrs.frozen
class Region:
    """A contiguous range of keys with its replicas."""

    id: int
    start_key: bytes
    end_key: bytes
    epoch: RegionEpoch
    peers: tuple[Peer, ...]
    leader: Peer | None
    """The leading peer, one of `peers`; None while no majority of the peers is on running stores."""
    term: int = 6
    """Raft term; grows by one with every election. TiKV creates Regions in term 6 or above."""

    def contains(self, key: bytes) -> bool:
        """Whether `key` (encoded like the bounds) lies in the range."""
        return self.start_key <= key and (not self.end_key or key < self.end_key)

    def peer_on(self, store_id: int) -> Peer | None:
        """Return the replica on that store, None when there is none."""
        return next((peer for peer in self.peers if peer.store_id == store_id), None)


class StoreState(enum.Enum):
    """How far a store is from its end; the values are those of metapb.StoreState."""

    UP = 0
    OFFLINE = 1
    """Being emptied; meanwhile it still serves."""
    TOMBSTONE = 2
    """Removed for good."""


@attrs.frozen
class Store:
    """One TiKV process of the cluster."""

    id: int
    address: str
    """host:port that clients dial; empty before the store first started."""
    labels: tuple[tuple[str, str], ...] = ()
    start_timestamp: int = 0
    """Unix seconds of the last start."""
    state: StoreState = StoreState.UP


def split(region: Region, keys: Sequence[bytes], ids: Sequence[tuple[int, Sequence[int]]]) -> list[Region]:
    """Return the pieces of `region` cut at `keys`, ascending; the last one keeps the id (right-derive).

    Args:
        region: What to cut.
        keys: Strictly ascending, each strictly inside the range.
        ids: For each key the id of the new Region on its left, and the ids of that Region's peers in the order of
            `region.peers`.

    Source: TiKV apply.rs exec_batch_split: every piece gets version + number of new Regions, conf_ver stays.
    """
    epoch = attrs.evolve(region.epoch, version=region.epoch.version + len(keys))
    starts = [region.start_key, *keys]
    pieces = []
    for start, end, (region_id, peer_ids) in zip(starts, keys, ids, strict=False):
        peers = tuple(attrs.evolve(peer, id=new_id) for peer, new_id in zip(region.peers, peer_ids, strict=True))
        leader = None if region.leader is None else next(p for p in peers if p.store_id == region.leader.store_id)
        pieces.append(Region(region_id, start, end, epoch, peers, leader))
    return [*pieces, attrs.evolve(region, start_key=starts[-1], epoch=epoch)]


def merge(source: Region, target: Region) -> Region:
    """Return `target` grown by the range of its neighbor `source`, whose id is gone afterwards.

    Raises:
        TopologyError: the two are not adjacent, or their peers are not on the same stores.

    Source: TiKV exec_prepare_merge (source: version + 1) and exec_commit_merge (target: the larger version + 1).
    """
    if {peer.store_id for peer in source.peers} != {peer.store_id for peer in target.peers}:
        raise TopologyError(f"regions {source.id} and {target.id} have peers on different stores")
    epoch = attrs.evolve(target.epoch, version=max(source.epoch.version + 1, target.epoch.version) + 1)
    if source.end_key and source.end_key == target.start_key:
        return attrs.evolve(target, start_key=source.start_key, epoch=epoch)
    if target.end_key and target.end_key == source.start_key:
        return attrs.evolve(target, end_key=source.end_key, epoch=epoch)
    raise TopologyError(f"regions {source.id} and {target.id} are not neighbors")


def transfer_leader(region: Region, store_id: int) -> Region:
    """Return `region` led by its peer on that store, one term later; unchanged when that peer leads already.

    Raises:
        TopologyError: no peer there, or one that cannot lead.
    """
    peer = region.peer_on(store_id)
    if peer is None:
        raise TopologyError(f"region {region.id} has no peer on store {store_id}")
    if not peer.can_lead:
        raise TopologyError(f"peer {peer.id} of region {region.id} cannot lead: {peer}")
    return region if peer == region.leader else attrs.evolve(region, leader=peer, term=region.term + 1)


def drop_leader(region: Region) -> Region:
    """Return `region` without a leader, as during an election that nobody wins."""
    return attrs.evolve(region, leader=None)


def add_peer(region: Region, peer: Peer) -> Region:
    """Return `region` with one more peer and conf_ver + 1.

    Raises:
        TopologyError: the store holds a peer already.
    """
    if region.peer_on(peer.store_id) is not None:
        raise TopologyError(f"region {region.id} has a peer on store {peer.store_id} already")
    epoch = attrs.evolve(region.epoch, conf_ver=region.epoch.conf_ver + 1)
    return attrs.evolve(region, peers=(*region.peers, peer), epoch=epoch)


def remove_peer(region: Region, store_id: int) -> Region:
    """Return `region` without its peer on that store, with conf_ver + 1; a leader hands over first.

    Raises:
        TopologyError: no peer there, or no other peer that could lead.
    """
    peer = region.peer_on(store_id)
    if peer is None:
        raise TopologyError(f"region {region.id} has no peer on store {store_id}")
    successor = next((other for other in region.peers if other != peer and other.can_lead), None)
    if successor is None:
        raise TopologyError(f"region {region.id} would be left without a peer that can lead")
    if peer == region.leader:
        region = transfer_leader(region, successor.store_id)
    epoch = attrs.evolve(region.epoch, conf_ver=region.epoch.conf_ver + 1)
    return attrs.evolve(region, peers=tuple(other for other in region.peers if other != peer), epoch=epoch)


def move_peer(region: Region, store_id: int, replacement: Peer | None) -> Region:
    """Return `region` with `replacement` instead of its peer on that store, or without it when that is None.

    Raises:
        TopologyError: no peer there, `replacement` is where another peer is, or no other peer could lead.
    """
    return remove_peer(region if replacement is None else add_peer(region, replacement), store_id)


def peer_to_pb(peer: Peer) -> metapb.Peer:
    """Return the wire form of a peer."""
    role = metapb.PeerRole.Learner if peer.is_learner else metapb.PeerRole.Voter
    return metapb.Peer(id=peer.id, store_id=peer.store_id, role=role, is_witness=peer.is_witness)


def region_to_pb(region: Region) -> metapb.Region:
    """Return the wire form of a Region (which names neither leader nor term)."""
    return metapb.Region(
        id=region.id,
        start_key=region.start_key,
        end_key=region.end_key,
        region_epoch=metapb.RegionEpoch(conf_ver=region.epoch.conf_ver, version=region.epoch.version),
        peers=[peer_to_pb(peer) for peer in region.peers],
    )
