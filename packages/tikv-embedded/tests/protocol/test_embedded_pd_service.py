"""The PD ports, over real gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from tikv_embedded import EmbeddedCluster, Region
from tikv_embedded.pd.keyspaces import raw_key, txn_bounds
from tikv_embedded.region import peer_to_pb, region_to_pb
from tikv_embedded.testing import BareClient
from tikv_proto import keyspacepb, metapb, pdpb
from tikv_proto.services import PD, Keyspace, Rpc

Resp = TypeVar("Resp", bound=Message)


class Pd:
    """Asks one member of a cluster, with the right cluster id."""

    def __init__(self, cluster: EmbeddedCluster, client: BareClient, member: int = 0) -> None:
        self.cluster = cluster
        self.client = client
        self.address = cluster.pd_addresses[member]

    def header(self) -> pdpb.RequestHeader:
        return pdpb.RequestHeader(cluster_id=self.cluster.cluster_id)

    async def ask(self, rpc: Rpc[Any, Resp], metadata: dict[str, str] | None = None, **fields: Any) -> Resp:
        request = rpc.request(header=self.header(), **fields)
        return await self.client.call(self.address, rpc, request, list((metadata or {}).items()))


@pytest.fixture
async def split() -> AsyncIterator[EmbeddedCluster]:
    """Three Regions, cut at g and p, led from stores 1, 2 and 3."""
    async with EmbeddedCluster(split_keys=[b"g", b"p"]) as running:
        yield running


@pytest.fixture
def pd(split: EmbeddedCluster, client: BareClient) -> Pd:
    return Pd(split, client)


@pytest.fixture
async def three_members() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(pd_members=3, split_keys=[b"g"]) as running:
        yield running


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def ids(regions: list[Region]) -> list[int]:
    return [region.id for region in regions]


# Members and the cluster.


async def test_members_are_told_to_callers_that_know_nothing_yet(
    three_members: EmbeddedCluster, client: BareClient
) -> None:
    answers = [
        await client.call(address, PD.GetMembers, pdpb.GetMembersRequest()) for address in three_members.pd_addresses
    ]

    urls = [f"http://{address}" for address in three_members.pd_addresses]
    for answer in answers:
        assert answer.header.cluster_id == three_members.cluster_id
        assert [url for member in answer.members for url in member.client_urls] == urls
        assert answer.leader == answer.members[0] == answer.etcd_leader
    assert three_members.url == "tikv://" + ",".join(three_members.pd_addresses)


async def test_pd_serves_timestamps_itself(pd: Pd) -> None:
    info = await pd.client.call(pd.address, PD.GetClusterInfo, pdpb.GetClusterInfoRequest())

    assert list(info.serviceModes) == [pdpb.ServiceMode.PD_SVC_MODE]
    assert not info.tso_urls


async def test_the_cluster_is_bootstrapped_and_configured(pd: Pd) -> None:
    bootstrapped = await pd.ask(PD.IsBootstrapped)
    refused = await pd.ask(PD.PutClusterConfig, cluster=metapb.Cluster(id=1, max_peer_count=5))
    accepted = await pd.ask(PD.PutClusterConfig, cluster=metapb.Cluster(id=pd.cluster.cluster_id, max_peer_count=5))
    config = await pd.ask(PD.GetClusterConfig)

    assert bootstrapped.bootstrapped
    assert refused.header.error.type == pdpb.ErrorType.UNKNOWN
    assert not accepted.header.HasField("error")
    assert config.cluster == metapb.Cluster(id=pd.cluster.cluster_id, max_peer_count=5)


@pytest.mark.parametrize("rpc", [PD.GetRegion, PD.GetAllStores, PD.AllocID, Keyspace.GetAllKeyspaces])
async def test_another_cluster_id_is_a_failed_precondition(pd: Pd, rpc: Rpc[Any, Any]) -> None:
    request = rpc.request(header=pdpb.RequestHeader(cluster_id=1))

    error = await failure(pd.client.call(pd.address, rpc, request))

    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == f"mismatch cluster id, need {pd.cluster.cluster_id} but got 1"


async def test_what_is_not_served_is_unimplemented(pd: Pd) -> None:
    error = await failure(pd.ask(PD.AskSplit))

    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_what_stores_and_old_clients_call_changes_nothing(pd: Pd) -> None:
    bootstrap = await pd.ask(PD.Bootstrap)
    heartbeats = [await pd.ask(PD.StoreHeartbeat, stats=pdpb.StoreStats(store_id=each)) for each in (1, 99)]
    recovering = await pd.ask(PD.IsSnapshotRecovering)
    old: list[Any] = [await pd.ask(PD.SyncMaxTS), await pd.ask(PD.GetDCLocationInfo)]

    assert bootstrap.header.error.type == pdpb.ErrorType.ALREADY_BOOTSTRAPPED
    assert [each.header.error.message for each in heartbeats] == ["", "store 99 not found"]
    assert not recovering.marked
    assert not any(each.header.HasField("error") for each in old)


async def test_ids_come_in_batches_named_by_their_last(pd: Pd) -> None:
    one = await pd.ask(PD.AllocID)
    many = await pd.ask(PD.AllocID, count=10)
    next_one = await pd.ask(PD.AllocID, count=1)

    assert (one.count, many.count, next_one.count) == (0, 10, 0)
    assert many.id == one.id + 10
    assert next_one.id == many.id + 1


# The leader among members.


async def test_the_leader_can_be_moved_and_the_old_one_says_so(
    three_members: EmbeddedCluster, client: BareClient
) -> None:
    old, new = Pd(three_members, client, 0), Pd(three_members, client, 2)

    three_members.transfer_pd_leader(2)

    error = await failure(old.ask(PD.GetAllStores))
    members = await client.call(old.address, PD.GetMembers, pdpb.GetMembersRequest())
    stores = await new.ask(PD.GetAllStores)
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "not leader")
    assert members.leader.name == "pd-3"
    assert len(stores.stores) == 3


async def test_a_follower_answers_region_queries_when_allowed(
    three_members: EmbeddedCluster, client: BareClient
) -> None:
    follower = Pd(three_members, client, 1)
    allowed = {"pd-allow-follower-handle": ""}

    refused = await failure(follower.ask(PD.GetRegion, region_key=b"a"))
    region = await follower.ask(PD.GetRegion, allowed, region_key=b"a")
    scanned = await follower.ask(PD.BatchScanRegions, allowed, ranges=[pdpb.KeyRange()])
    missing = await follower.ask(PD.GetRegionByID, allowed, region_id=12345)
    stores = await failure(follower.ask(PD.GetAllStores, allowed))

    assert refused.code() is grpc.StatusCode.UNAVAILABLE
    assert region.region.end_key == b"g"
    assert len(scanned.regions) == 2
    assert missing.header.error.type == pdpb.ErrorType.REGION_NOT_FOUND
    assert stores.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_follower_passes_a_call_on_to_the_leader(three_members: EmbeddedCluster, client: BareClient) -> None:
    follower = Pd(three_members, client, 1)
    to_leader = {"pd-forwarded-host": f"http://{three_members.pd_addresses[0]}"}
    to_other = {"pd-forwarded-host": f"http://{three_members.pd_addresses[2]}"}

    stores = await follower.ask(PD.GetAllStores, to_leader)
    refused = await failure(follower.ask(PD.GetAllStores, to_other))

    assert len(stores.stores) == 3
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT


# Timestamps.


async def test_a_follower_passes_requests_for_timestamps_on_to_the_leader_as_long_as_it_leads(
    three_members: EmbeddedCluster, client: BareClient
) -> None:
    leader, follower, _ = three_members.pd_addresses
    straight, through = (
        client.stream(leader, PD.Tso),
        client.stream(follower, PD.Tso, [("pd-forwarded-host", f"http://{leader}")]),
    )
    request = pdpb.TsoRequest(header=pdpb.RequestHeader(cluster_id=three_members.cluster_id), count=5)

    granted = []
    for stream in (straight, through, straight, through):
        await stream.write(request)
        last = (await stream.read()).timestamp
        granted.append((last.physical, last.logical))
    three_members.transfer_pd_leader(2)
    await through.write(request)
    code, details = await through.status()

    assert granted == sorted(set(granted))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "is not leader" in details


async def test_timestamps_come_in_order_and_never_twice(pd: Pd) -> None:
    stream = pd.client.stream(pd.address, PD.Tso)
    counts = [1, 10, 1000, 1]

    last = (0, 0)
    for count in counts:
        await stream.write(pdpb.TsoRequest(header=pd.header(), count=count))
        response = await stream.read()
        first = (response.timestamp.physical, response.timestamp.logical - count + 1)

        assert response.count == count
        assert first > last
        last = (response.timestamp.physical, response.timestamp.logical)
    await stream.done_writing()

    assert (await stream.status())[0] is grpc.StatusCode.OK
    minimum = await pd.ask(PD.GetMinTS)
    assert (minimum.timestamp.physical, minimum.timestamp.logical) > last


@pytest.mark.parametrize(
    ("cluster_id", "count", "code"),
    [
        (0, 0, grpc.StatusCode.UNKNOWN),
        (1, 1, grpc.StatusCode.FAILED_PRECONDITION),
        (0, 1 << 18, grpc.StatusCode.UNKNOWN),
    ],
)
async def test_a_senseless_request_for_timestamps_ends_its_stream(
    pd: Pd, cluster_id: int, count: int, code: grpc.StatusCode
) -> None:
    stream = pd.client.stream(pd.address, PD.Tso)
    header = pdpb.RequestHeader(cluster_id=cluster_id or pd.cluster.cluster_id)

    await stream.write(pdpb.TsoRequest(header=header, count=count))

    assert (await stream.status())[0] is code


async def test_a_stream_of_timestamps_ends_when_its_member_no_longer_leads(
    three_members: EmbeddedCluster, client: BareClient
) -> None:
    pd = Pd(three_members, client)
    stream = client.stream(pd.address, PD.Tso)
    await stream.write(pdpb.TsoRequest(header=pd.header(), count=1))
    first = await stream.read()

    three_members.transfer_pd_leader("pd-2")
    await stream.write(pdpb.TsoRequest(header=pd.header(), count=1))

    assert first.count == 1
    code, details = await stream.status()
    assert code is grpc.StatusCode.UNKNOWN
    assert "is not leader" in details


# Regions.


async def test_a_region_is_found_by_key_by_the_key_after_it_and_by_id(split: EmbeddedCluster, pd: Pd) -> None:
    left, middle, _ = split.regions()

    by_key = await pd.ask(PD.GetRegion, region_key=b"g")
    before = await pd.ask(PD.GetPrevRegion, region_key=b"g")
    by_id = await pd.ask(PD.GetRegionByID, region_id=left.id)

    assert by_key.region == region_to_pb(middle)
    assert middle.leader is not None
    assert by_key.leader == peer_to_pb(middle.leader)
    assert before.region == by_id.region == region_to_pb(left)


async def test_a_region_that_is_not_there_is_no_error(pd: Pd) -> None:
    before_the_first = await pd.ask(PD.GetPrevRegion, region_key=b"a")
    unknown = await pd.ask(PD.GetRegionByID, region_id=12345)

    for response in (before_the_first, unknown):
        assert not response.HasField("region")
        assert not response.header.HasField("error")


async def test_a_region_in_election_has_no_leader(split: EmbeddedCluster, pd: Pd) -> None:
    await split.stop_store(2)
    await split.stop_store(3)

    found = await pd.ask(PD.GetRegion, region_key=b"a")
    scanned = await pd.ask(PD.ScanRegions)

    assert not found.HasField("leader")
    assert scanned.leaders[0] == metapb.Peer()


async def test_pending_peers_are_told(split: EmbeddedCluster, pd: Pd) -> None:
    store = await split.add_store()
    region = split.add_peer(split.region_of(b"a").id, store.id, is_pending=True)

    found = await pd.ask(PD.GetRegion, region_key=b"a")

    assert list(found.pending_peers) == [peer_to_pb(region.peers[-1])]


async def test_a_scan_tells_regions_in_both_forms(split: EmbeddedCluster, pd: Pd) -> None:
    found = await pd.ask(PD.ScanRegions, start_key=b"a", end_key=b"p", limit=5)

    expected = list(map(region_to_pb, split.regions()[:2]))
    assert list(found.region_metas) == expected
    assert [region.region for region in found.regions] == expected
    assert [region.leader for region in found.regions] == list(found.leaders)
    assert [leader.store_id for leader in found.leaders] == [1, 2]


@pytest.mark.parametrize(
    ("bounds", "limit", "positions"),
    [
        ([(b"", b"")], 0, [0, 1, 2]),
        ([(b"a", b"b"), (b"c", b"d"), (b"q", b"")], 0, [0, 2]),
        ([(b"a", b"h"), (b"h", b"q")], 0, [0, 1, 2]),
        ([(b"a", b"h"), (b"h", b"q")], 2, [0, 1]),
        ([], 0, []),
    ],
)
async def test_a_scan_of_several_ranges_tells_each_region_once(
    split: EmbeddedCluster, pd: Pd, bounds: list[tuple[bytes, bytes]], limit: int, positions: list[int]
) -> None:
    spans = [pdpb.KeyRange(start_key=start, end_key=end) for start, end in bounds]

    found = await pd.ask(PD.BatchScanRegions, ranges=spans, limit=limit, contain_all_key_range=True)

    regions = split.regions()
    assert [region.region.id for region in found.regions] == [regions[position].id for position in positions]


@pytest.mark.parametrize(
    ("bounds", "text"),
    [([(b"a", b"m"), (b"l", b"z")], "overlapped"), ([(b"m", b"a")], "start key > end key")],
)
async def test_ranges_that_overlap_or_run_backwards_are_refused(
    pd: Pd, bounds: list[tuple[bytes, bytes]], text: str
) -> None:
    spans = [pdpb.KeyRange(start_key=start, end_key=end) for start, end in bounds]

    found = await pd.ask(PD.BatchScanRegions, ranges=spans)

    assert found.header.error.type == pdpb.ErrorType.UNKNOWN
    assert text in found.header.error.message


async def test_one_query_asks_for_many_regions(split: EmbeddedCluster, pd: Pd) -> None:
    left, middle, right = split.regions()
    stream = pd.client.stream(pd.address, PD.QueryRegion)

    query = pdpb.QueryRegionRequest(
        header=pd.header(), keys=[b"a", b"z", b"b"], prev_keys=[b"h", b"a"], ids=[middle.id, 12345]
    )
    await stream.write(query)
    found = await stream.read()
    await stream.done_writing()

    assert list(found.key_id_map) == [left.id, right.id, left.id]
    assert list(found.prev_key_id_map) == [left.id, 0]
    assert {region_id: each.region for region_id, each in found.regions_by_id.items()} == {
        region.id: region_to_pb(region) for region in (left, middle, right)
    }
    assert (await stream.status())[0] is grpc.StatusCode.OK


async def test_a_query_stream_for_another_cluster_is_refused(pd: Pd) -> None:
    stream = pd.client.stream(pd.address, PD.QueryRegion)

    await stream.write(pdpb.QueryRegionRequest(header=pdpb.RequestHeader(cluster_id=1)))

    assert (await stream.status())[0] is grpc.StatusCode.FAILED_PRECONDITION


# Stores.


async def test_stores_are_told_with_their_addresses(split: EmbeddedCluster, pd: Pd) -> None:
    stores = await pd.ask(PD.GetAllStores, exclude_tombstone_stores=True)
    one = await pd.ask(PD.GetStore, store_id=2)

    assert {store.id: store.address for store in stores.stores} == split.store_addresses
    assert one.store == stores.stores[1]
    assert one.store.node_state == metapb.NodeState.Serving
    assert one.stats.region_count == 3


async def test_an_unknown_store_is_a_header_error(pd: Pd) -> None:
    found = await pd.ask(PD.GetStore, store_id=99)

    assert found.header.error.type == pdpb.ErrorType.UNKNOWN
    assert found.header.error.message == "invalid store ID 99, not found"


# Splitting and scattering.


async def test_a_split_names_the_regions_that_begin_at_its_keys(split: EmbeddedCluster, pd: Pd) -> None:
    old = split.region_of(b"a")

    done = await pd.ask(PD.SplitRegions, split_keys=[b"d", b"b"])

    assert done.finished_percentage == 100
    assert sorted(done.regions_id) == sorted([split.region_of(b"b").id, old.id])
    assert [region.start_key for region in split.regions()] == [b"", b"b", b"d", b"g", b"p"]


async def test_keys_that_split_nothing_lower_the_percentage(pd: Pd) -> None:
    half = await pd.ask(PD.SplitRegions, split_keys=[b"g", b"d"])
    none = await pd.ask(PD.SplitRegions)

    assert half.finished_percentage == 50
    assert len(half.regions_id) == 1
    assert none.finished_percentage == 0


async def test_scattered_regions_are_led_from_other_stores_at_once(split: EmbeddedCluster, pd: Pd) -> None:
    done = await pd.ask(PD.SplitAndScatterRegions, split_keys=[b"a", b"b", b"c", b"d", b"e", b"f"])
    operator = await pd.ask(PD.GetOperator, region_id=done.regions_id[0])

    led = [region.leader.store_id for region in split.regions() if region.leader is not None]
    assert (done.split_finished_percentage, done.scatter_finished_percentage) == (100, 100)
    assert sorted(led.count(store_id) for store_id in (1, 2, 3)) == [3, 3, 3]
    assert operator.status == pdpb.OperatorStatus.SUCCESS
    assert operator.desc == b"scatter-region"


async def test_a_scatter_names_the_regions_it_does_not_know(split: EmbeddedCluster, pd: Pd) -> None:
    known = split.regions()[0].id

    some = await pd.ask(PD.ScatterRegion, regions_id=[known, 12345])
    one = await pd.ask(PD.ScatterRegion, region_id=known)
    none = await pd.ask(PD.ScatterRegion, region_id=12345)
    operator = await pd.ask(PD.GetOperator, region_id=12345)

    assert (some.finished_percentage, list(some.failed_regions_id)) == (50, [12345])
    assert one.finished_percentage == 100
    assert none.header.error.type == operator.header.error.type == pdpb.ErrorType.REGION_NOT_FOUND


# Keyspaces.


@pytest.fixture
async def v2(client: BareClient) -> AsyncIterator[Pd]:
    async with EmbeddedCluster(api_version="v2", keyspaces=["blue"], split_keys=[b"m"]) as running:
        yield Pd(running, client)


async def test_keyspaces_are_found_by_name_and_by_id(v2: Pd) -> None:
    default = await v2.ask(Keyspace.LoadKeyspace, name="DEFAULT")
    blue = await v2.ask(Keyspace.LoadKeyspaceByID, id=1)
    everything = await v2.ask(Keyspace.GetAllKeyspaces)
    later = await v2.ask(Keyspace.GetAllKeyspaces, start_id=1, limit=1)

    assert (default.keyspace.id, default.keyspace.state) == (0, keyspacepb.KeyspaceState.ENABLED)
    assert blue.keyspace.name == "blue"
    assert list(everything.keyspaces) == [default.keyspace, blue.keyspace]
    assert list(later.keyspaces) == [blue.keyspace]


async def test_unknown_keyspaces_are_entries_not_found(v2: Pd) -> None:
    for response in (
        await v2.ask(Keyspace.LoadKeyspace, name="red"),
        await v2.ask(Keyspace.LoadKeyspaceByID, id=9),
        await v2.ask(Keyspace.UpdateKeyspaceState, id=9, state=keyspacepb.KeyspaceState.DISABLED),
    ):
        assert response.header.error.type == pdpb.ErrorType.ENTRY_NOT_FOUND
        assert response.header.error.message == "keyspace does not exist"


async def test_the_regions_of_a_keyspace_begin_at_its_bounds(v2: Pd) -> None:
    found = await v2.ask(PD.ScanRegions)

    starts = [region.start_key for region in found.region_metas]
    assert starts == [b"", raw_key(0, b"m"), *txn_bounds(0), txn_bounds(1)[1]]


async def test_a_keyspace_without_regions_of_its_own_is_not_found_by_name(v2: Pd) -> None:
    regions = v2.cluster.regions()
    v2.cluster.merge(regions[-1].id, regions[-2].id)

    by_name = await v2.ask(Keyspace.LoadKeyspace, name="blue")
    by_id = await v2.ask(Keyspace.LoadKeyspaceByID, id=1)

    assert by_name.header.error.type == pdpb.ErrorType.ENTRY_NOT_FOUND
    assert by_id.keyspace.name == "blue"


async def test_the_state_of_a_keyspace_changes_except_that_of_default(v2: Pd) -> None:
    disabled = keyspacepb.KeyspaceState.DISABLED

    blue = await v2.ask(Keyspace.UpdateKeyspaceState, id=1, state=disabled)
    default = await v2.ask(Keyspace.UpdateKeyspaceState, id=0, state=disabled)

    assert blue.keyspace.state == disabled
    assert default.header.error.type == pdpb.ErrorType.UNKNOWN


async def test_a_v1_cluster_has_default_without_regions_of_its_own(pd: Pd) -> None:
    default = await pd.ask(Keyspace.LoadKeyspace, name="DEFAULT")

    assert default.keyspace.name == "DEFAULT"
