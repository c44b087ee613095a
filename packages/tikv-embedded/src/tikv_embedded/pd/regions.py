"""What PD answers about Regions and stores, computed from the topology.

Source: tikv/pd pkg/utils/grpcutil/cluster.go, pkg/core/region.go, pkg/schedule/splitter/region_splitter.go.
"""

from __future__ import annotations

from collections.abc import Sequence

from tikv_proto import metapb, pdpb

from tikv_embedded.meta import store_to_pb
from tikv_embedded.pd.buckets import Buckets
from tikv_embedded.pd.header import error_header, header
from tikv_embedded.region import Region, StoreState, peer_to_pb, region_to_pb
from tikv_embedded.topology import Topology


def region_response(
    region: Region | None, cluster_id: int, *, is_follower: bool, buckets: Buckets | None
) -> pdpb.GetRegionResponse:
    """Return the answer of GetRegion and its relatives; a leader says nothing about a Region that is not there."""
    if region is None:
        return pdpb.GetRegionResponse(header=_not_found(cluster_id) if is_follower else header(cluster_id))
    found = region_to_pd(region, buckets)
    return pdpb.GetRegionResponse(
        header=header(cluster_id),
        region=found.region,
        leader=found.leader if region.leader is not None else None,
        pending_peers=found.pending_peers,
        buckets=found.buckets if found.HasField("buckets") else None,
    )


def region_to_pd(region: Region, buckets: Buckets | None = None) -> pdpb.Region:
    """Return a Region with its leader (an empty peer while there is none), its pending peers, and its buckets."""
    return pdpb.Region(
        buckets=None if buckets is None else buckets.of(region),
        region=region_to_pb(region),
        leader=metapb.Peer() if region.leader is None else peer_to_pb(region.leader),
        pending_peers=[peer_to_pb(peer) for peer in region.peers if peer.is_pending],
    )


def scan_regions(topology: Topology, request: pdpb.ScanRegionsRequest) -> pdpb.ScanRegionsResponse:
    """Return the Regions of one range, both in today's form and in the older pair of lists."""
    regions = list(map(region_to_pd, topology.scan(request.start_key, request.end_key, request.limit)))
    return pdpb.ScanRegionsResponse(
        header=header(topology.cluster_id),
        region_metas=[region.region for region in regions],
        leaders=[region.leader for region in regions],
        regions=regions,
    )


def batch_scan_regions(
    topology: Topology, request: pdpb.BatchScanRegionsRequest, buckets: Buckets
) -> pdpb.BatchScanRegionsResponse:
    """Return the Regions of several ascending ranges, each Region once, `limit` in all.

    The Regions of this cluster have no holes, so `contain_all_key_range` always holds.
    """
    refusal = _invalid_ranges(request.ranges)
    if refusal is not None:
        return pdpb.BatchScanRegionsResponse(
            header=error_header(topology.cluster_id, pdpb.ErrorType.UNKNOWN, refusal),
        )
    found: list[Region] = []
    for span in request.ranges:
        regions = topology.scan(span.start_key, span.end_key, request.limit)
        found += regions[1:] if found and regions and found[-1].id == regions[0].id else regions
        if 0 < request.limit <= len(found):
            del found[request.limit :]
            break
    shown = buckets if request.need_buckets else None
    return pdpb.BatchScanRegionsResponse(
        header=header(topology.cluster_id), regions=[region_to_pd(region, shown) for region in found]
    )


def query_region(topology: Topology, request: pdpb.QueryRegionRequest, buckets: Buckets) -> pdpb.QueryRegionResponse:
    """Return the Regions of many keys, of the keys after them, and of ids, each Region once; 0 stands for none."""
    by_key = [topology.find(key) for key in request.keys]
    by_next_key = [topology.previous(key) for key in request.prev_keys]
    by_id = [topology.regions.get(region_id) for region_id in request.ids]
    response = pdpb.QueryRegionResponse(
        header=header(topology.cluster_id),
        key_id_map=[region.id for region in by_key],
        prev_key_id_map=[region.id if region is not None else 0 for region in by_next_key],
    )
    for region in {region.id: region for region in (*by_key, *by_next_key, *by_id) if region is not None}.values():
        found = region_to_pd(region, buckets if request.need_buckets else None)
        response.regions_by_id[region.id].CopyFrom(
            pdpb.RegionResponse(
                region=found.region,
                leader=found.leader,
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


def _not_found(cluster_id: int) -> pdpb.ResponseHeader:
    return error_header(cluster_id, pdpb.ErrorType.REGION_NOT_FOUND, "region not found")


def _invalid_ranges(ranges: Sequence[pdpb.KeyRange]) -> str | None:
    for index, span in enumerate(ranges):
        if index and span.start_key < ranges[index - 1].end_key:
            return "invalid key range, ranges overlapped"
        if span.end_key and span.start_key > span.end_key:
            return "invalid key range, start key > end key"
    return None
