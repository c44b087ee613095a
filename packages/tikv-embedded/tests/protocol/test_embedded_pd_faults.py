"""PD that delays, loses, refuses or garbles; buckets and operators as told to it."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_embedded.testing import BareClient, BareStream
from tikv_proto import meta_storagepb, pdpb
from tikv_proto.services import PD, MetaStorage, Rpc


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def is_lost(cluster: EmbeddedCluster, rpc: Rpc[Any, Any], **fields: Any) -> bool:
    """Whether a call is still without an answer when its deadline comes."""
    async with grpc.aio.insecure_channel(cluster.pd_addresses[0]) as channel:
        method = channel.unary_unary(rpc.path, rpc.request.SerializeToString, rpc.response.FromString)
        try:
            await method(rpc.request(header={"cluster_id": cluster.cluster_id}, **fields), timeout=0.2)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return False


async def last_id(cluster: EmbeddedCluster, client: BareClient) -> int:
    return (await client.ask_pd(cluster, PD.AllocID)).id


def tso(
    cluster: EmbeddedCluster, client: BareClient
) -> tuple[BareStream[pdpb.TsoRequest, pdpb.TsoResponse], pdpb.TsoRequest]:
    request = pdpb.TsoRequest(header=pdpb.RequestHeader(cluster_id=cluster.cluster_id), count=1)
    return client.stream(cluster.pd_addresses[0], PD.Tso), request


# Calls of one request.


async def test_a_refused_call_fails_so_many_times(cluster: EmbeddedCluster, client: BareClient) -> None:
    cluster.pd.refuse("GetAllStores", "RESOURCE_EXHAUSTED", "no", times=2)

    errors = [await failure(client.ask_pd(cluster, PD.GetAllStores)) for _ in range(2)]

    assert {(error.code(), error.details()) for error in errors} == {(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")}
    assert len((await client.ask_pd(cluster, PD.GetAllStores)).stores) == 3


async def test_a_fault_without_a_number_lasts_until_it_is_cleared(cluster: EmbeddedCluster, client: BareClient) -> None:
    cluster.pd.refuse("", times=None)
    cluster.pd.refuse("AllocID", times=None)

    for _ in range(3):
        await failure(client.ask_pd(cluster, PD.GetAllStores))
    cluster.pd.clear_faults("AllocID")
    await failure(client.ask_pd(cluster, PD.AllocID))
    cluster.pd.clear_faults()

    assert await last_id(cluster, client) > 0


async def test_faults_strike_one_after_the_other(cluster: EmbeddedCluster, client: BareClient) -> None:
    cluster.pd.answer_error("GetRegion", "REGION_NOT_FOUND", "gone")
    cluster.pd.refuse("GetRegion")

    first = await client.ask_pd(cluster, PD.GetRegion)
    second = await failure(client.ask_pd(cluster, PD.GetRegion))
    third = await client.ask_pd(cluster, PD.GetRegion)

    assert (first.header.error.type, first.header.error.message) == (pdpb.ErrorType.REGION_NOT_FOUND, "gone")
    assert (first.header.cluster_id, first.HasField("region")) == (cluster.cluster_id, False)
    assert second.code() is grpc.StatusCode.UNAVAILABLE
    assert third.region.id


async def test_a_fault_may_be_of_one_member(client: BareClient) -> None:
    async with EmbeddedCluster(pd_members=3) as cluster:
        cluster.pd.refuse("GetMembers", member=1, times=None)

        refused = []
        for address in cluster.pd_addresses:
            try:
                await client.call(address, PD.GetMembers, pdpb.GetMembersRequest())
            except grpc.aio.AioRpcError:
                refused.append(address)

        assert refused == [cluster.pd_addresses[1]]


async def test_a_delayed_call_waits(cluster: EmbeddedCluster, client: BareClient) -> None:
    cluster.pd.delay("GetAllStores", 0.1, times=1)
    began = time.monotonic()

    answer = await client.ask_pd(cluster, PD.GetAllStores)

    assert len(answer.stores) == 3
    assert time.monotonic() - began >= 0.1


async def test_a_lost_request_does_nothing(cluster: EmbeddedCluster, client: BareClient) -> None:
    before = await last_id(cluster, client)
    cluster.pd.lose_requests("AllocID")

    assert await is_lost(cluster, PD.AllocID, count=100)
    assert await last_id(cluster, client) == before + 1


async def test_a_lost_answer_is_of_something_done(cluster: EmbeddedCluster, client: BareClient) -> None:
    before = await last_id(cluster, client)
    cluster.pd.lose_answers("AllocID")

    assert await is_lost(cluster, PD.AllocID, count=100)
    assert await last_id(cluster, client) == before + 101


async def test_an_unknown_status_or_error_is_refused(cluster: EmbeddedCluster) -> None:
    with pytest.raises(KeyError):
        cluster.pd.refuse("GetRegion", "NO_SUCH_STATUS")
    with pytest.raises(ValueError, match="NO_SUCH_ERROR"):
        cluster.pd.answer_error("GetRegion", "NO_SUCH_ERROR")


async def test_a_cluster_closes_while_calls_are_held(client: BareClient) -> None:
    async with EmbeddedCluster() as cluster:
        cluster.pd.lose_answers("Watch", times=None)
        watch = client.server_stream(cluster.pd_addresses[0], MetaStorage.Watch, meta_storagepb.WatchRequest(key=b"a"))
        await client.ask_pd(cluster, PD.AllocID)

    assert (await watch.status())[0] is not grpc.StatusCode.OK


# Streams.


async def test_timestamps_fall_back_so_many_times_and_pd_goes_on_unharmed(
    cluster: EmbeddedCluster, client: BareClient
) -> None:
    stream, request = tso(cluster, client)
    cluster.pd.tso_falls_back(60, times=2)

    seen = []
    for _ in range(3):
        await stream.write(request)
        seen.append((await stream.read()).timestamp.physical)

    assert seen[0] <= seen[2] - 59_000
    assert seen[1] <= seen[2] - 59_000
    assert (await client.ask_pd(cluster, PD.GetMinTS)).timestamp.physical >= seen[2]


async def test_single_requests_of_a_stream_are_lost(cluster: EmbeddedCluster, client: BareClient) -> None:
    stream, request = tso(cluster, client)
    cluster.pd.lose_requests("Tso")
    cluster.pd.lose_answers("Tso")
    cluster.pd.answer_error("Tso", "UNKNOWN", "third")

    for count in (1, 2, 3, 4):
        request.count = count
        await stream.write(request)
    third, fourth = await stream.read(), await stream.read()

    assert (third.header.error.message, third.count) == ("third", 0)
    assert fourth.count == 4


async def test_a_refused_request_ends_its_stream(cluster: EmbeddedCluster, client: BareClient) -> None:
    stream, request = tso(cluster, client)
    cluster.pd.refuse("Tso")

    await stream.write(request)

    assert await stream.status() == (grpc.StatusCode.UNAVAILABLE, "injected")


async def test_a_delayed_request_delays_those_behind_it(cluster: EmbeddedCluster, client: BareClient) -> None:
    stream, request = tso(cluster, client)
    cluster.pd.delay("Tso", 0.1, times=1)
    began = time.monotonic()

    for _ in range(2):
        await stream.write(request)
    await stream.read()

    assert time.monotonic() - began >= 0.1
    assert (await stream.read()).count == 1


async def test_a_watch_is_struck_when_it_begins(cluster: EmbeddedCluster, client: BareClient) -> None:
    cluster.pd.refuse("Watch")
    cluster.pd.lose_answers("Watch")
    address, request = cluster.pd_addresses[0], meta_storagepb.WatchRequest(key=b"a", start_revision=1)

    refused = client.server_stream(address, MetaStorage.Watch, request)
    code, _ = await refused.status()
    silent = client.server_stream(address, MetaStorage.Watch, request)
    await client.ask_pd(cluster, MetaStorage.Put, key=b"a", value=b"1")
    working = client.server_stream(address, MetaStorage.Watch, request)

    assert code is grpc.StatusCode.UNAVAILABLE
    assert len((await working.read()).events) == 1
    silent.cancel()


# Buckets and operators.


async def test_buckets_are_told_when_asked_for(client: BareClient) -> None:
    async with EmbeddedCluster(split_keys=[b"m"], pd_members=3) as cluster:
        region = cluster.region_of(b"a")
        unset = await client.ask_pd(cluster, PD.GetRegion, region_key=b"a", need_buckets=True)
        cluster.pd.cut_buckets(b"c", b"f", b"p", b"m")

        asked = await client.ask_pd(cluster, PD.GetRegion, region_key=b"a", need_buckets=True)
        by_id = await client.ask_pd(cluster, PD.GetRegionByID, region_id=region.id, need_buckets=True)
        unasked = await client.ask_pd(cluster, PD.GetRegion, region_key=b"a")
        ranges = [pdpb.KeyRange()]
        scanned = await client.ask_pd(cluster, PD.BatchScanRegions, ranges=ranges, need_buckets=True)
        stream = client.stream(cluster.pd_addresses[1], PD.QueryRegion)
        header = pdpb.RequestHeader(cluster_id=cluster.cluster_id)
        await stream.write(pdpb.QueryRegionRequest(header=header, keys=[b"z"], need_buckets=True))
        queried = await stream.read()

    assert not unset.HasField("buckets")
    assert (asked.buckets.region_id, asked.buckets.version) == (region.id, 1)
    assert list(asked.buckets.keys) == [b"", b"c", b"f", b"m"]
    assert by_id.buckets == asked.buckets
    assert not unasked.HasField("buckets")
    assert [list(each.buckets.keys) for each in scanned.regions] == [[b"", b"c", b"f", b"m"], [b"m", b"p", b""]]
    assert [list(each.buckets.keys) for each in queried.regions_by_id.values()] == [[b"m", b"p", b""]]


async def test_an_operator_runs_until_it_is_finished(client: BareClient) -> None:
    async with EmbeddedCluster(split_keys=[b"g", b"p"]) as cluster:
        region = cluster.regions()[0]
        for other in cluster.regions()[1:]:
            cluster.transfer_leader(other.id, region.leader.store_id if region.leader is not None else 0)
        never = await client.ask_pd(cluster, PD.GetOperator, region_id=region.id)
        statuses = []
        for outcome in ("TIMEOUT", "SUCCESS"):
            cluster.pd.hold_scattering()
            await client.ask_pd(cluster, PD.ScatterRegion, regions_id=[each.id for each in cluster.regions()])
            statuses.append((await client.ask_pd(cluster, PD.GetOperator, region_id=region.id)).status)
            led = {each.leader.store_id for each in cluster.regions() if each.leader is not None}
            cluster.pd.finish_scattering(outcome)
            statuses.append((await client.ask_pd(cluster, PD.GetOperator, region_id=region.id)).status)
            assert len(led) == 1

        status = pdpb.OperatorStatus
        assert never.header.error.type == pdpb.ErrorType.REGION_NOT_FOUND
        assert statuses == [status.RUNNING, status.TIMEOUT, status.RUNNING, status.SUCCESS]
        assert len({each.leader.store_id for each in cluster.regions() if each.leader is not None}) == 3


async def test_the_health_of_a_member_can_be_chosen_and_its_checks_can_fail(client: BareClient) -> None:
    async with EmbeddedCluster(pd_members=3) as cluster:
        cluster.pd.set_health(1, "NOT_SERVING")
        cluster.pd.refuse("Check", member=2)

        assert [await client.health(cluster.pd_addresses[member]) for member in (0, 1)] == [b"\x08\x01", b"\x08\x02"]
        with pytest.raises(grpc.aio.AioRpcError):
            await client.health(cluster.pd_addresses[2])
        assert await client.health(cluster.pd_addresses[2]) == b"\x08\x01"
        assert await client.watch_health(cluster.pd_addresses[1]) == b"\x08\x02"


async def test_answers_can_be_changed(cluster: EmbeddedCluster, client: BareClient) -> None:
    def without_leader(answer: pdpb.GetMembersResponse) -> None:
        answer.ClearField("leader")

    cluster.pd.edit_answers("GetMembers", without_leader)

    changed = await client.call(cluster.pd_addresses[0], PD.GetMembers, pdpb.GetMembersRequest())
    after = await client.call(cluster.pd_addresses[0], PD.GetMembers, pdpb.GetMembersRequest())

    assert not changed.HasField("leader")
    assert after.HasField("leader")
