"""What the errors of stores teach about Regions. No I/O; see `RegionCache.on_region_error`."""

from __future__ import annotations

import attrs
from tikv_pd import Region
from tikv_pd.backoff import REGION_MISS
from tikv_proto import errorpb

from tikv_region._known import KnownRegions
from tikv_region.errors import CacheAction, Decision, Next, decide, leader_index, set_field
from tikv_region.region import InvalidReason, RegionEntry, StoreEntry

_REASONS = {
    "not_leader": InvalidReason.STORE_NOT_FOUND,
    "region_not_found": InvalidReason.REGION_NOT_FOUND,
    "epoch_not_match": InvalidReason.EPOCH_NOT_MATCH,
}


def learn_from_error(
    known: KnownRegions, entry: RegionEntry, error: errorpb.Error, store: StoreEntry, patience: float
) -> Decision:
    """Change what is known by an error that `store` answered for `entry`, and say what to do with the request.

    Args:
        known: What is known.
        entry: The Region the request was sent to.
        error: The error, its keys still encoded.
        store: The store that answered.
        patience: Seconds a store may take to apply what is known of the Region already.
    """
    decision = _lose_patience(decide(error, entry, store.id), known.now(), entry, error, patience)
    match decision.action:
        case CacheAction.SWITCH_LEADER:
            leader = leader_index(entry.peers, error.not_leader.leader)
            assert leader is not None
            entry.switch_leader(leader)
        case CacheAction.INVALIDATE:
            entry.invalidate(_REASONS.get(set_field(error), InvalidReason.OTHER))
        case CacheAction.REPLACE:
            entry.invalidate(InvalidReason.EPOCH_NOT_MATCH)
            if not _replace(known, error.epoch_not_match, store):
                # All lie outside the keyspace, or are outdated: PD must be asked, and may not know yet either.
                return attrs.evolve(decision, action=CacheAction.INVALIDATE, backoff=REGION_MISS)
        case CacheAction.REPLACE_BUCKETS:
            entry.learn_buckets(known.decode_buckets(error.bucket_version_not_match))
        case CacheAction.CHECK_STORE:
            store.needs_check = True
            entry.invalidate(InvalidReason.STORE_NOT_FOUND)
    return decision


def learn_from_failure(entry: RegionEntry, store: StoreEntry) -> None:
    """Change what is known of `store` and `entry` by a request that could not be sent."""
    for index, known in enumerate(entry.stores):
        if known is store and entry.is_fresh(index):
            store.epoch += 1
            store.needs_check = True


def _lose_patience(
    decision: Decision, now: float, entry: RegionEntry, error: errorpb.Error, patience: float
) -> Decision:
    # A store that lags behind catches up within milliseconds; one of a cluster restored from a backup never does.
    if decision.action is not CacheAction.NONE or set_field(error) != "epoch_not_match":
        return decision
    if entry.behind_since is None:
        entry.behind_since = now
    if now - entry.behind_since < patience:
        return decision
    return attrs.evolve(decision, action=CacheAction.INVALIDATE, next=Next.RELOCATE)


def _replace(known: KnownRegions, error: errorpb.EpochNotMatch, store: StoreEntry) -> bool:
    inserted = False
    for pb in error.current_regions:
        region = Region.from_pb(pb)
        # The error names no leader. The store that answered led the Region before, and so leads its pieces.
        leader = next((peer for peer in region.peers if peer.store_id == store.id), None)
        inserted |= known.insert(attrs.evolve(region, leader=leader)) is not None
    return inserted
