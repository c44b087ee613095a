"""What PD can be made to believe of Regions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tikv_embedded import EmbeddedCluster
from tikv_embedded.region import peer_to_pb
from tikv_embedded.testing import BareClient
from tikv_proto import pdpb
from tikv_proto.services import PD


@pytest.fixture
async def split() -> AsyncIterator[EmbeddedCluster]:
    """Four Regions, which begin at nothing, g, n and t."""
    async with EmbeddedCluster(split_keys=[b"g", b"n", b"t"]) as running:
        yield running


async def starts(cluster: EmbeddedCluster, client: BareClient, limit: int = 0) -> list[bytes]:
    answer = await client.ask_pd(cluster, PD.ScanRegions, limit=limit)
    return [region.region.start_key for region in answer.regions]


async def test_pd_lags_behind_until_it_is_told_otherwise(split: EmbeddedCluster, client: BareClient) -> None:
    old = split.region_of(b"a")
    split.pd.freeze_regions()
    split.split(b"c")
    split.merge(split.region_of(b"n").id, split.region_of(b"t").id)

    stale = await starts(split, client)
    asked = await client.ask_pd(split, PD.GetRegion, region_key=b"d")
    split.pd.clear_regions()

    assert stale == [b"", b"g", b"n", b"t"]
    assert asked.region.region_epoch.version == old.epoch.version
    assert await starts(split, client) == [b"", b"c", b"g", b"n"]


async def test_a_hidden_region_is_a_hole(split: EmbeddedCluster, client: BareClient) -> None:
    hidden = split.region_of(b"h")
    split.pd.hide_regions(hidden.id)
    everything = [pdpb.KeyRange()]

    by_key = await client.ask_pd(split, PD.GetRegion, region_key=b"h")
    by_id = await client.ask_pd(split, PD.GetRegionByID, region_id=hidden.id)
    behind_it = await client.ask_pd(split, PD.GetPrevRegion, region_key=b"n")
    before_it = await client.ask_pd(split, PD.GetPrevRegion, region_key=b"h")
    all_of_it = await client.ask_pd(split, PD.BatchScanRegions, ranges=everything, contain_all_key_range=True)
    what_is_there = await client.ask_pd(split, PD.BatchScanRegions, ranges=everything)

    assert not any(answer.HasField("region") for answer in (by_key, by_id, behind_it, before_it))
    assert not by_key.header.HasField("error")
    assert await starts(split, client) == [b"", b"n", b"t"]
    assert await starts(split, client, limit=2) == [b"", b"n"]
    assert all_of_it.header.error.type == pdpb.ErrorType.REGIONS_NOT_CONTAIN_ALL_KEY_RANGE
    assert len(what_is_there.regions) == 3


@pytest.mark.parametrize(
    ("span", "limit", "is_covered"),
    [
        (pdpb.KeyRange(start_key=b"a", end_key=b"g"), 0, True),
        (pdpb.KeyRange(start_key=b"a", end_key=b"h"), 0, False),
        (pdpb.KeyRange(start_key=b"h", end_key=b"i"), 0, False),
        (pdpb.KeyRange(start_key=b"h", end_key=b"o"), 0, False),
        (pdpb.KeyRange(start_key=b"o", end_key=b""), 0, True),
        (pdpb.KeyRange(start_key=b"a", end_key=b""), 1, True),
        (pdpb.KeyRange(start_key=b"a", end_key=b""), 2, False),
    ],
)
async def test_ranges_that_touch_no_hole_are_covered(
    split: EmbeddedCluster, client: BareClient, span: pdpb.KeyRange, limit: int, is_covered: bool
) -> None:
    split.pd.hide_regions(split.region_of(b"h").id)

    answer = await client.ask_pd(split, PD.BatchScanRegions, ranges=[span], contain_all_key_range=True, limit=limit)

    assert answer.header.HasField("error") is not is_covered


async def test_the_stream_of_queries_has_the_same_holes(split: EmbeddedCluster, client: BareClient) -> None:
    hidden = split.region_of(b"h")
    split.pd.hide_regions(hidden.id)
    stream = client.stream(split.pd_addresses[0], PD.QueryRegion)

    header = pdpb.RequestHeader(cluster_id=split.cluster_id)
    await stream.write(pdpb.QueryRegionRequest(header=header, keys=[b"a", b"h"], prev_keys=[b"n"], ids=[hidden.id]))
    answer = await stream.read()

    assert list(answer.key_id_map) == [split.region_of(b"a").id, 0]
    assert list(answer.prev_key_id_map) == [0]
    assert list(answer.regions_by_id) == [split.region_of(b"a").id]


async def test_pd_may_know_no_leader(split: EmbeddedCluster, client: BareClient) -> None:
    region = split.region_of(b"a")
    split.pd.forget_leaders(region.id)

    one = await client.ask_pd(split, PD.GetRegion, region_key=b"a")
    scanned = await client.ask_pd(split, PD.ScanRegions)

    assert not one.HasField("leader")
    assert [bool(each.leader.id) for each in scanned.regions] == [False, True, True, True]


async def test_pd_tells_which_peers_are_down(split: EmbeddedCluster, client: BareClient) -> None:
    region = split.region_of(b"a")
    split.pd.set_down_peers(region.id, 2, 9)

    one = await client.ask_pd(split, PD.GetRegion, region_key=b"a")
    scanned = await client.ask_pd(split, PD.ScanRegions)

    peer = region.peer_on(2)
    assert peer is not None
    assert [down.peer for down in one.down_peers] == [peer_to_pb(peer)]
    assert [len(each.down_peers) for each in scanned.regions] == [1, 0, 0, 0]
