"""How the cluster's own state lies in CF_META, and how it is read back at a start.

cluster          JSON: cluster id, storage mode
max_peer_count   8 bytes, big-endian
next_id          8 bytes, big-endian: no id at or above it was ever given
tso              8 bytes, big-endian: no timestamp at or above this physical time (ms) was ever given
region/ID        pdpb.RegionHeartbeatRequest: Region, leader, term, pending peers
store/ID         metapb.Store
keyspace/ID      keyspacepb.KeyspaceMeta
"""

from __future__ import annotations

import json

import attrs
from tikv_proto import keyspacepb, metapb, pdpb

from tikv_embedded.engine import CF_META, Engine, WriteBatch
from tikv_embedded.region import Peer, Region, RegionEpoch, Store, StoreState, peer_to_pb, region_to_pb
from tikv_embedded.store.api_mode import ApiMode

TIKV_VERSION = "9.0.0"
"""What stores and PD members say they run."""

_CLUSTER, _MAX_PEER_COUNT, _NEXT_ID, _TSO = b"cluster", b"max_peer_count", b"next_id", b"tso"
_STATES = {
    StoreState.UP: (metapb.StoreState.Up, metapb.NodeState.Serving),
    StoreState.OFFLINE: (metapb.StoreState.Offline, metapb.NodeState.Removing),
    StoreState.TOMBSTONE: (metapb.StoreState.Tombstone, metapb.NodeState.Removed),
}
_REGION, _STORE, _KEYSPACE = b"region/", b"store/", b"keyspace/"


@attrs.frozen(kw_only=True)
class ClusterState:
    """Everything that outlives a restart, except timestamps."""

    cluster_id: int
    mode: ApiMode
    """The stored bytes make sense in this one only."""
    max_peer_count: int
    next_id: int
    stores: tuple[Store, ...]
    regions: tuple[Region, ...]


def load(engine: Engine) -> ClusterState | None:
    """Return what an earlier start left; None when the engine is new."""
    identity = engine.get(CF_META, _CLUSTER)
    if identity is None:
        return None
    fields = json.loads(identity)
    with engine.snapshot() as snapshot:
        regions = [value for _, value in snapshot.scan(CF_META, _REGION, _after(_REGION))]
        stores = [value for _, value in snapshot.scan(CF_META, _STORE, _after(_STORE))]
    return ClusterState(
        cluster_id=fields["cluster_id"],
        mode=ApiMode(fields["api_version"]),
        max_peer_count=_number(engine, _MAX_PEER_COUNT),
        next_id=_number(engine, _NEXT_ID),
        stores=tuple(map(_store_from_bytes, stores)),
        regions=tuple(map(_region_from_bytes, regions)),
    )


def put_cluster(batch: WriteBatch, state: ClusterState) -> None:
    """Write all of a new cluster's state."""
    identity = {"cluster_id": state.cluster_id, "api_version": state.mode.value}
    batch.put(CF_META, _CLUSTER, json.dumps(identity).encode())
    put_max_peer_count(batch, state.max_peer_count)
    put_next_id(batch, state.next_id)
    for store in state.stores:
        put_store(batch, store)
    for region in state.regions:
        put_region(batch, region)


def put_max_peer_count(batch: WriteBatch, count: int) -> None:
    """Write the wanted number of replicas."""
    batch.put(CF_META, _MAX_PEER_COUNT, count.to_bytes(8, "big"))


def put_next_id(batch: WriteBatch, next_id: int) -> None:
    """Write the id from which on none was given."""
    batch.put(CF_META, _NEXT_ID, next_id.to_bytes(8, "big"))


def put_region(batch: WriteBatch, region: Region) -> None:
    """Write a Region with its leader and term."""
    message = pdpb.RegionHeartbeatRequest(
        region=region_to_pb(region),
        leader=None if region.leader is None else peer_to_pb(region.leader),
        pending_peers=[peer_to_pb(peer) for peer in region.peers if peer.is_pending],
        term=region.term,
    )
    batch.put(CF_META, _REGION + region.id.to_bytes(8, "big"), message.SerializeToString())


def delete_region(batch: WriteBatch, region_id: int) -> None:
    """Forget a Region that was merged away."""
    batch.delete(CF_META, _REGION + region_id.to_bytes(8, "big"))


def put_store(batch: WriteBatch, store: Store) -> None:
    """Write a store."""
    batch.put(CF_META, _STORE + store.id.to_bytes(8, "big"), store_to_pb(store).SerializeToString())


def put_keyspace(batch: WriteBatch, keyspace: keyspacepb.KeyspaceMeta) -> None:
    """Write a keyspace."""
    batch.put(CF_META, _KEYSPACE + keyspace.id.to_bytes(4, "big"), keyspace.SerializeToString())


def load_keyspaces(engine: Engine) -> list[keyspacepb.KeyspaceMeta]:
    """Return all keyspaces, by id."""
    with engine.snapshot() as snapshot:
        values = [value for _, value in snapshot.scan(CF_META, _KEYSPACE, _after(_KEYSPACE))]
    return [keyspacepb.KeyspaceMeta.FromString(value) for value in values]


def put_tso_bound(batch: WriteBatch, physical: int) -> None:
    """Write the physical time, in ms, that timestamps stay below."""
    batch.put(CF_META, _TSO, physical.to_bytes(8, "big"))


def load_tso_bound(engine: Engine) -> int:
    """Return the physical time, in ms, that earlier timestamps stayed below; 0 when there were none."""
    return _number(engine, _TSO)


def store_to_pb(store: Store) -> metapb.Store:
    """Return the wire form of a store, as PD tells it."""
    state, node_state = _STATES[store.state]
    return metapb.Store(
        id=store.id,
        address=store.address,
        peer_address=store.address,
        state=state,
        node_state=node_state,
        labels=[metapb.StoreLabel(key=key, value=value) for key, value in store.labels],
        version=TIKV_VERSION,
        start_timestamp=store.start_timestamp,
    )


def _store_from_bytes(value: bytes) -> Store:
    message = metapb.Store.FromString(value)
    labels = tuple((label.key, label.value) for label in message.labels)
    return Store(message.id, message.address, labels, message.start_timestamp, StoreState(message.state))


def _region_from_bytes(value: bytes) -> Region:
    message = pdpb.RegionHeartbeatRequest.FromString(value)
    pending = {peer.id for peer in message.pending_peers}
    peers = tuple(
        Peer(peer.id, peer.store_id, peer.role == metapb.PeerRole.Learner, peer.is_witness, peer.id in pending)
        for peer in message.region.peers
    )
    return Region(
        id=message.region.id,
        start_key=message.region.start_key,
        end_key=message.region.end_key,
        epoch=RegionEpoch(message.region.region_epoch.conf_ver, message.region.region_epoch.version),
        peers=peers,
        leader=next((peer for peer in peers if peer.id == message.leader.id), None),
        term=message.term,
    )


def _number(engine: Engine, key: bytes) -> int:
    return int.from_bytes(engine.get(CF_META, key) or b"", "big")


def _after(prefix: bytes) -> bytes:
    """Return the end of the keys that start with `prefix`, whose last byte is below 0xFF."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
