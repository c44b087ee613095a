"""What PD answers about Regions and stores, computed from the topology.

Source: tikv/pd pkg/utils/grpcutil/cluster.go, pkg/core/region.go, pkg/schedule/splitter/region_splitter.go.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from tikv_proto import metapb, pdpb

from tikv_embedded.meta import store_to_pb
from tikv_embedded.pd.buckets import Buckets
from tikv_embedded.pd.header import error_header, header
from tikv_embedded.pd.region_view import RegionView
from tikv_embedded.region import Region, StoreState, peer_to_pb, region_to_pb
from tikv_embedded.topology import Topology

DOWN_SECONDS = 600
"""For how long a peer that is down has not answered, as PD is told."""


def region_response(
    view: RegionView, region: Region | None, *, is_follower: bool, buckets: Buckets | None
) -> pdpb.GetRegionResponse:
    """Return the answer of GetRegion and its relatives; a leader says nothing about a Region that is not there."""
    if region is None:
        return pdpb.GetRegionResponse(header=_not_found(view.cluster_id) if is_follower else header(view.cluster_id))
    found = _to_pd(view, region, buckets)
    return pdpb.GetRegionResponse(
        header=header(view.cluster_id),
        region=found.region,
        leader=found.leader if region.leader is not None else None,
        down_peers=found.down_peers,
        pending_peers=found.pending_peers,
        buckets=found.buckets if found.HasField("buckets") else None,
    )


def scan_regions(view: RegionView, request: pdpb.ScanRegionsRequest) -> pdpb.ScanRegionsResponse:
    """Return the Regions of one range, both in today's form and in the older pair of lists."""
    regions = [_to_pd(view, each) for each in view.scan(request.start_key, request.end_key, request.limit)]
    return pdpb.ScanRegionsResponse(
        header=header(view.cluster_id),
        region_metas=[region.region for region in regions],
        leaders=[region.leader for region in regions],
        regions=regions,
    )


def batch_scan_regions(
    view: RegionView, request: pdpb.BatchScanRegionsRequest, buckets: Buckets
) -> pdpb.BatchScanRegionsResponse:
    """Return the Regions of several ascending ranges, each Region once, `limit` in all.

    There are no holes between Regions, so `contain_all_key_range` holds unless PD was made to miss some.
    """
    refusal = _invalid_ranges(request.ranges)
    if refusal is not None:
        return pdpb.BatchScanRegionsResponse(header=error_header(view.cluster_id, pdpb.ErrorType.UNKNOWN, refusal))
    found: list[Region] = []
    for span in request.ranges:
        regions = view.scan(span.start_key, span.end_key, request.limit)
        if request.contain_all_key_range and not _cover(regions, span, request.limit):
            kind = pdpb.ErrorType.REGIONS_NOT_CONTAIN_ALL_KEY_RANGE
            message = "found regions do not contain all given key ranges"
            return pdpb.BatchScanRegionsResponse(header=error_header(view.cluster_id, kind, message))
        found += regions[1:] if found and regions and found[-1].id == regions[0].id else regions
        if 0 < request.limit <= len(found):
            del found[request.limit :]
            break
    shown = buckets if request.need_buckets else None
    return pdpb.BatchScanRegionsResponse(
        header=header(view.cluster_id), regions=[_to_pd(view, region, shown) for region in found]
    )


def query_region(view: RegionView, request: pdpb.QueryRegionRequest, buckets: Buckets) -> pdpb.QueryRegionResponse:
    """Return the Regions of many keys, of the keys after them, and of ids, each Region once; 0 stands for none."""
    by_key = [view.find(key) for key in request.keys]
    by_next_key = [view.previous(key) for key in request.prev_keys]
    by_id = [view.by_id(region_id) for region_id in request.ids]
    response = pdpb.QueryRegionResponse(
        header=header(view.cluster_id),
        key_id_map=[region.id if region is not None else 0 for region in by_key],
        prev_key_id_map=[region.id if region is not None else 0 for region in by_next_key],
    )
    for region in {region.id: region for region in (*by_key, *by_next_key, *by_id) if region is not None}.values():
        found = _to_pd(view, region, buckets if request.need_buckets else None)
        response.regions_by_id[region.id].CopyFrom(
            pdpb.RegionResponse(
                region=found.region,
                leader=found.leader,
                down_peers=found.down_peers,
                pending_peers=found.pending_peers,
                buckets=found.buckets if found.HasField("buckets") else None,
            )
        )
    return response


def get_store(topology: Topology, store_id: int) -> pdpb.GetStoreResponse:
    """Return one store with its statistics, or the header error of an unknown id."""
    store = topology.stores.get(store_id)
    region_count = sum(region.peer_on(store_id) is not None for region in topology.regions.values())
    if store is None:
        message = f"invalid store ID {store_id}, not found"
        return pdpb.GetStoreResponse(header=error_header(topology.cluster_id, pdpb.ErrorType.UNKNOWN, message))
    return pdpb.GetStoreResponse(
        header=header(topology.cluster_id),
        store=store_to_pb(store),
        stats=pdpb.StoreStats(store_id=store_id, region_count=region_count, start_time=store.start_timestamp),
    )


def get_all_stores(topology: Topology, request: pdpb.GetAllStoresRequest) -> pdpb.GetAllStoresResponse:
    """Return all stores, those that are removed only if they are not excluded."""
    shown = [
        store
        for store in topology.stores.values()
        if store.state is not StoreState.TOMBSTONE or not request.exclude_tombstone_stores
    ]
    return pdpb.GetAllStoresResponse(header=header(topology.cluster_id), stores=map(store_to_pb, shown))


def split_regions(topology: Topology, keys: Sequence[bytes]) -> tuple[int, list[int]]:
    """Cut at `keys` and return (percentage of the keys that cut something, ids of the Regions that begin at them).

    With right-derive the last piece keeps the old id, so that id is among them and the leftmost, new one is not.
    """
    pieces = topology.split(key for key in keys if key)
    wanted = set(keys)
    started = {piece.start_key: piece.id for piece in pieces if piece.start_key in wanted}
    done = sum(key in started for key in keys)
    return (100 - (len(keys) - done) * 100 // len(keys) if keys else 0), list(started.values())


def _to_pd(view: RegionView, region: Region, buckets: Buckets | None = None) -> pdpb.Region:
    """Return a Region with its leader (an empty peer while there is none), its peers in trouble, and its buckets."""
    down = view.down_peers(region)
    return pdpb.Region(
        buckets=None if buckets is None else buckets.of(region),
        region=region_to_pb(region),
        leader=metapb.Peer() if region.leader is None else peer_to_pb(region.leader),
        down_peers=[pdpb.PeerStats(peer=peer_to_pb(peer), down_seconds=DOWN_SECONDS) for peer in down],
        pending_peers=[peer_to_pb(peer) for peer in region.peers if peer.is_pending],
    )


def _cover(regions: Sequence[Region], span: pdpb.KeyRange, limit: int) -> bool:
    """Whether Regions of a scan leave no hole in the range, as far as the limit let them go."""
    if not regions or regions[0].start_key > span.start_key:
        return False
    if any(left.end_key != right.start_key for left, right in itertools.pairwise(regions)):
        return False
    end = regions[-1].end_key
    return not end or bool(span.end_key and end >= span.end_key) or 0 < limit <= len(regions)


def _not_found(cluster_id: int) -> pdpb.ResponseHeader:
    return error_header(cluster_id, pdpb.ErrorType.REGION_NOT_FOUND, "region not found")


def _invalid_ranges(ranges: Sequence[pdpb.KeyRange]) -> str | None:
    for index, span in enumerate(ranges):
        if index and span.start_key < ranges[index - 1].end_key:
            return "invalid key range, ranges overlapped"
        if span.end_key and span.start_key > span.end_key:
            return "invalid key range, start key > end key"
    return None
