"""The state a cluster starts with: what is on disk, or a new one; then what the options ask for beyond that."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Sequence

from tikv_embedded import meta
from tikv_embedded.engine import Engine, WriteBatch
from tikv_embedded.errors import OptionError
from tikv_embedded.options import ClusterOptions
from tikv_embedded.pd.keyspaces import DEFAULT_ID, DEFAULT_NAME, Keyspaces, raw_key, txn_bounds
from tikv_embedded.region import Peer, Region, RegionEpoch, Store, StoreState
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.topology import Topology


def open_state(engine: Engine, options: ClusterOptions) -> tuple[Topology, Keyspaces]:
    """Return the cluster that `engine` holds, or a new one, with the stores, keyspaces and bounds that were asked for.

    Raises:
        OptionError: the engine holds a cluster of another storage mode, or a keyspace name is not one.
    """
    found = meta.load(engine)
    if found is not None and found.mode is not options.mode:
        raise OptionError(f"the data is of api_version {found.mode.value!r}, not {options.mode.value!r}")
    keyspaces = Keyspaces(engine)
    for name in (DEFAULT_NAME, *options.keyspaces):
        keyspaces.ensure(name)
    bounds = [user_bound(options.mode, key) for key in options.split_keys]
    if options.mode is ApiMode.V2:
        bounds += itertools.chain.from_iterable(txn_bounds(keyspace.id) for keyspace in keyspaces.since(0))
    if found is None:
        found = new_cluster(options, sorted(set(bounds)))
        batch = WriteBatch()
        meta.put_cluster(batch, found)
        engine.write(batch)
    topology = Topology(engine, found)
    topology.split(bounds)
    kept = sum(store.state is not StoreState.TOMBSTONE for store in topology.stores.values())
    for _ in range(options.stores - kept):
        (store_id,) = topology.allocate_ids(1)
        topology.put_store(Store(store_id, ""))
    return topology, keyspaces


def user_bound(mode: ApiMode, key: bytes) -> bytes:
    """Return a raw client's key as Region bounds have it; in V2 it is a key of keyspace DEFAULT."""
    return raw_key(DEFAULT_ID, key) if mode is ApiMode.V2 else key


def new_cluster(options: ClusterOptions, bounds: Sequence[bytes]) -> meta.ClusterState:
    """Return the state of a cluster that was split at `bounds` and then balanced.

    Neighbors have their peers on the next stores in turn and are led from there, as PD's schedulers would have it.
    """
    ids = itertools.count(1)
    stores = tuple(Store(next(ids), "") for _ in range(options.stores))
    epoch = RegionEpoch(version=1 + len(bounds))
    regions = []
    for position, (start_key, end_key) in enumerate(itertools.pairwise([b"", *bounds, b""])):
        region_id = next(ids)
        peers = tuple(
            Peer(next(ids), stores[(position + offset) % len(stores)].id)
            for offset in range(min(options.max_peer_count, len(stores)))
        )
        regions.append(Region(region_id, start_key, end_key, epoch, peers, leader=peers[0]))
    return meta.ClusterState(
        # PD's own form: seconds above, random bits below.
        cluster_id=int(time.time()) << 32 | secrets.randbits(32),
        mode=options.mode,
        max_peer_count=options.max_peer_count,
        next_id=next(ids),
        stores=stores,
        regions=tuple(regions),
    )
