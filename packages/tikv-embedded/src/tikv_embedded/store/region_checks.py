"""Whether a store serves a request: TiKV's checks in TiKV's order, and the region error of the first that fails.

    store id, Region on this store, peer id, leader, witness, initialized, term, epoch (version alone), then key range

Source: TiKV raftstore fsm/peer.rs pre_propose_raft_command, store/util.rs; errors.rs for what each error carries.
"""

from __future__ import annotations

from collections.abc import Iterable

from tikv_proto import errorpb, kvrpcpb, metapb

from tikv_embedded.region import Region, RegionEpoch, peer_to_pb, region_to_pb
from tikv_embedded.topology import Topology

MAX_REGIONS_IN_ERROR = 10
"""How many neighbors EpochNotMatch names at most, besides the Region itself."""
DEFAULT_MAX_EXECUTION_MS = 24 * 60 * 60 * 1000
"""Deadline of a request that names none."""


def check_region(
    topology: Topology, store_id: int, context: kvrpcpb.Context, *, is_read: bool
) -> Region | errorpb.Error:
    """Return the Region that `context` asks for if this store serves it to this caller, else the region error.

    Args:
        topology: The cluster as it is.
        store_id: The store that was asked.
        context: Of the request.
        is_read: Whether a replica may answer when `replica_read` or `stale_read` is set.
    """
    if context.peer.store_id != store_id:
        return store_not_match(context.peer.store_id, store_id)
    region = topology.regions.get(context.region_id)
    peer = None if region is None else region.peer_on(store_id)
    if region is None or peer is None:
        return region_not_found(context.region_id)
    if context.peer.id != peer.id:
        return _error(
            f"mismatched peer id {context.peer.id}, this store has {peer.id}",
            mismatch_peer_id=errorpb.MismatchPeerId(request_peer_id=context.peer.id, store_peer_id=peer.id),
        )
    if peer != region.leader and not (is_read and (context.replica_read or context.stale_read)):
        return not_leader(region)
    if peer.is_witness:
        return _error(
            f"peer {peer.id} is a witness of region {region.id}", is_witness=errorpb.IsWitness(region_id=region.id)
        )
    if peer.is_pending:
        return _error(
            f"region {region.id} is not initialized yet",
            region_not_initialized=errorpb.RegionNotInitialized(region_id=region.id),
        )
    if context.term and region.term > context.term + 1:
        return _error("stale command", stale_command=errorpb.StaleCommand())
    if not context.HasField("region_epoch"):
        return _error("missing epoch!")
    if context.region_epoch.version != region.epoch.version:
        return epoch_not_match(topology, region, context.region_epoch)
    return region


def check_split(
    topology: Topology, store_id: int, context: kvrpcpb.Context, keys: list[bytes]
) -> Region | errorpb.Error:
    """Return the Region to cut at `keys` (encoded like the bounds), or the region error.

    Unlike data requests this looks at neither store id nor peer id of the context.
    Source: TiKV on_prepare_split_region, validate_split_region; SplitObserver drops keys that would cut nothing.
    """
    region = topology.regions.get(context.region_id)
    if region is None or region.peer_on(store_id) is None:
        return region_not_found(context.region_id)
    if region.leader is None or region.leader.store_id != store_id:
        return not_leader(region)
    if not keys:
        return _error(f"region {region.id}: no split key is specified")
    if context.region_epoch.version != region.epoch.version:
        # Only the Region itself here: TiKV attaches its split siblings to data requests alone.
        return _epoch_error(region, context.region_epoch, [region])
    for key in keys:
        if not key:
            return _error(f"region {region.id}: split key should not be empty")
        if not region.contains(key):
            return key_not_in_region(key, region)
    if all(key == region.start_key for key in keys):
        return _error(f"region {region.id}: no valid key found for split.")
    return region


def check_keys(region: Region, keys: Iterable[bytes]) -> errorpb.Error | None:
    """Return KeyNotInRegion for the first of `keys` (encoded like the bounds) outside the range, else None."""
    start, end = region.start_key, region.end_key
    for key in keys:
        if key < start or (end and key >= end):
            return key_not_in_region(key, region)
    return None


def check_seeks(region: Region, keys: Iterable[bytes]) -> errorpb.Error | None:
    """Return KeyNotInRegion if a scan from one of `keys` begins outside; the end of the Region is not outside."""
    for key in keys:
        if key < region.start_key or (region.end_key and key > region.end_key):
            return key_not_in_region(key, region)
    return None


def check_range(region: Region, start_key: bytes, end_key: bytes) -> errorpb.Error | None:
    """Return KeyNotInRegion if `[start_key, end_key)` sticks out of the Region, None if it lies inside."""
    if not region.contains(start_key):
        return key_not_in_region(start_key, region)
    if region.end_key and (not end_key or end_key > region.end_key):
        return key_not_in_region(end_key, region)
    return None


def deadline_error(context: kvrpcpb.Context, waited_ms: float) -> errorpb.Error | None:
    """Return the error of a request that waited longer than its `max_execution_duration_ms`, None in time."""
    if waited_ms < (context.max_execution_duration_ms or DEFAULT_MAX_EXECUTION_MS):
        return None
    return _error("Deadline is exceeded", server_is_busy=errorpb.ServerIsBusy(reason="deadline is exceeded"))


def store_not_match(request_store_id: int, store_id: int) -> errorpb.Error:
    """Return the error for an address that leads to another store than the caller thinks."""
    return _error(
        f"to store id {request_store_id}, mine {store_id}",
        store_not_match=errorpb.StoreNotMatch(request_store_id=request_store_id, actual_store_id=store_id),
    )


def region_not_found(region_id: int) -> errorpb.Error:
    """Return the error for a Region that has no peer on the store."""
    return _error(f"region {region_id} not found", region_not_found=errorpb.RegionNotFound(region_id=region_id))


def not_leader(region: Region) -> errorpb.Error:
    """Return the error of a follower, which names the leader when there is one."""
    leader = None if region.leader is None else peer_to_pb(region.leader)
    where = "unknown" if region.leader is None else f"peer {region.leader.id} on store {region.leader.store_id}"
    return _error(
        f"peer is not leader for region {region.id}, leader may be {where}",
        not_leader=errorpb.NotLeader(region_id=region.id, leader=leader),
    )


def epoch_not_match(topology: Topology, region: Region, requested: metapb.RegionEpoch) -> errorpb.Error:
    """Return the error for a Region whose range changed, with the Regions that hold its old range now.

    The Region itself always comes first. When the caller is behind, the neighbors on the left follow which splits left
    there (right-derive); a caller that is ahead gets the Region alone, as old as the store knows it.
    Source: TiKV fsm/peer.rs collect_sibling_region, store/util.rs compare_region_epoch.
    """
    return _epoch_error(region, requested, [region, *_split_siblings(topology, region, requested.version)])


def key_not_in_region(key: bytes, region: Region) -> errorpb.Error:
    """Return the error for a key outside the Region; all keys in it are encoded."""
    return _error(
        f"key {key.hex()} is not in region key range [{region.start_key.hex()}, {region.end_key.hex()})"
        f" for region {region.id}",
        key_not_in_region=errorpb.KeyNotInRegion(
            key=key, region_id=region.id, start_key=region.start_key, end_key=region.end_key
        ),
    )


def data_is_not_ready(region_id: int, peer_id: int, safe_ts: int) -> errorpb.Error:
    """Return the error of a stale read of what is not safe from change yet."""
    return _error(
        f"data is not ready for region {region_id}, safe ts is {safe_ts}",
        data_is_not_ready=errorpb.DataIsNotReady(region_id=region_id, peer_id=peer_id, safe_ts=safe_ts),
    )


def _split_siblings(topology: Topology, region: Region, requested_version: int) -> list[Region]:
    newest = region.epoch.version
    missing = newest - requested_version
    siblings: list[Region] = []
    if missing <= 0:
        return siblings
    for neighbor in topology.left_of(region.start_key, MAX_REGIONS_IN_ERROR):
        # A neighbor that was split later itself stands for more of the pieces the caller has not seen.
        missing += max(0, neighbor.epoch.version - newest) - 1
        newest = max(newest, neighbor.epoch.version)
        siblings.append(neighbor)
        if missing == 0:
            break
    return siblings


def _epoch_error(region: Region, requested: metapb.RegionEpoch, current: list[Region]) -> errorpb.Error:
    sent = RegionEpoch(requested.conf_ver, requested.version)
    return _error(
        f"current epoch of region {region.id} is {region.epoch}, but you sent {sent}",
        epoch_not_match=errorpb.EpochNotMatch(current_regions=map(region_to_pb, current)),
    )


def _error(message: str, **fields: object) -> errorpb.Error:
    return errorpb.Error(message=message, **fields)  # type: ignore[arg-type]  # one of the fields of errorpb.Error
