"""The store ports, over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_embedded.pd.keyspaces import raw_key
from tikv_embedded.region import region_to_pb
from tikv_embedded.testing import BareClient, context_for
from tikv_proto import kvrpcpb, metapb, tikvpb
from tikv_proto.services import Tikv

Request = tikvpb.BatchCommandsRequest.Request


def address_of(cluster: EmbeddedCluster, key: bytes) -> str:
    """Return the address of the store that leads the Region of `key`."""
    leader = cluster.region_of(key).leader
    assert leader is not None
    return cluster.store_addresses[leader.store_id]


def context(cluster: EmbeddedCluster, key: bytes = b"", **fields: Any) -> kvrpcpb.Context:
    return context_for(cluster.region_of(key), **fields)


class Stream:
    """A BatchCommands stream to the store that leads the first Region."""

    def __init__(self, cluster: EmbeddedCluster, client: BareClient, address: str | None = None) -> None:
        self.call = client.stream(address or address_of(cluster, b""), Tikv.BatchCommands)

    async def send(self, requests: Mapping[int, Request]) -> None:
        await self.call.write(tikvpb.BatchCommandsRequest(request_ids=requests, requests=requests.values()))

    async def receive(self, count: int) -> dict[int, tikvpb.BatchCommandsResponse.Response]:
        """Return the next `count` responses or more, in the order of their arrival."""
        found: dict[int, tikvpb.BatchCommandsResponse.Response] = {}
        while len(found) < count:
            group = await self.call.read()
            found.update(zip(group.request_ids, group.responses, strict=True))
        return found


@pytest.fixture
def stream(cluster: EmbeddedCluster, client: BareClient) -> Stream:
    return Stream(cluster, client)


def empty(delay_time: int, test_id: int = 1) -> Request:
    return Request(Empty=tikvpb.BatchCommandsEmptyRequest(test_id=test_id, delay_time=delay_time))


# BatchCommands.


async def test_a_batch_of_writes_can_be_read_back(cluster: EmbeddedCluster, stream: Stream) -> None:
    ctx = context(cluster)

    await stream.send({n: Request(RawPut=kvrpcpb.RawPutRequest(context=ctx, key=b"%d" % n)) for n in range(500)})
    written = await stream.receive(500)
    await stream.send({n: Request(RawGet=kvrpcpb.RawGetRequest(context=ctx, key=b"%d" % n)) for n in range(501)})
    read = await stream.receive(501)

    assert all(response.RawPut == kvrpcpb.RawPutResponse() for response in written.values())
    assert [n for n, response in read.items() if response.RawGet.not_found] == [500]


async def test_a_request_that_waits_holds_nothing_up(cluster: EmbeddedCluster, stream: Stream) -> None:
    get = Request(RawGet=kvrpcpb.RawGetRequest(context=context(cluster), key=b"a"))

    await stream.send({1: empty(60_000), 2: empty(30, test_id=7), 3: get})
    first = await stream.receive(1)
    await stream.send({4: get})
    rest = await stream.receive(2)

    assert list(first) == [3]
    assert list(rest) == [4, 2]
    assert rest[2].Empty.test_id == 7
    stream.call.cancel()


async def test_a_client_that_is_done_still_gets_what_waits(stream: Stream) -> None:
    await stream.send({1: empty(30, test_id=7)})

    await stream.call.done_writing()

    assert (await stream.receive(1))[1].Empty.test_id == 7
    with pytest.raises(EOFError):
        await stream.call.read()
    assert (await stream.call.status())[0] is grpc.StatusCode.OK


async def test_a_client_that_goes_away_leaves_no_error_behind(
    cluster: EmbeddedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    for delay_time in range(10, 40, 3):
        async with BareClient() as client:
            streams = [Stream(cluster, client) for _ in range(5)]
            for stream in streams:
                await stream.send({n: empty(delay_time) for n in range(20)})
            await streams[0].receive(1)
    async with BareClient() as client:
        await Stream(cluster, client).send({1: empty(0)})

    assert not caplog.records


async def test_messages_say_how_the_store_is_once_a_second_and_when_asked(
    cluster: EmbeddedCluster, stream: Stream
) -> None:
    groups = []
    for request in (empty(0), empty(0), Request(GetHealthFeedback=kvrpcpb.GetHealthFeedbackRequest())):
        await stream.send({1: request})
        groups.append(await stream.call.read())

    assert [group.HasField("health_feedback") for group in groups] == [True, False, True]
    first, last = groups[0].health_feedback, groups[2].health_feedback
    assert first.store_id == last.store_id == cluster.stores()[0].id
    assert first.slow_score == last.slow_score == 1
    assert 0 < first.feedback_seq_no < groups[2].responses[0].GetHealthFeedback.health_feedback.feedback_seq_no
    assert all(group.tikv_send_time_ns for group in groups)


async def test_a_request_for_another_cluster_ends_the_whole_stream(cluster: EmbeddedCluster, stream: Stream) -> None:
    lost = context(cluster, cluster_id=1)

    await stream.send({1: empty(60_000), 2: empty(0)})
    await stream.receive(1)
    await stream.send({3: Request(RawGet=kvrpcpb.RawGetRequest(context=lost, key=b"a"))})

    assert (await stream.call.status())[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_values_above_grpcs_own_limit_pass(cluster: EmbeddedCluster, stream: Stream) -> None:
    ctx, value = context(cluster), bytes(7 * 1024 * 1024)

    await stream.send({1: Request(RawPut=kvrpcpb.RawPutRequest(context=ctx, key=b"a", value=value))})
    written = await stream.receive(1)
    await stream.send({2: Request(RawGet=kvrpcpb.RawGetRequest(context=ctx, key=b"a"))})
    read = await stream.receive(1)

    assert written[1].RawPut == kvrpcpb.RawPutResponse()
    assert read[2].RawGet.value == value


async def test_streams_are_independent(cluster: EmbeddedCluster, client: BareClient) -> None:
    streams = [Stream(cluster, client) for _ in range(5)]

    await asyncio.gather(*(each.send({n: empty(10 + n, test_id=n)}) for n, each in enumerate(streams)))
    answers = await asyncio.gather(*(each.receive(1) for each in streams))

    assert [answer[n].Empty.test_id for n, answer in enumerate(answers)] == [0, 1, 2, 3, 4]


# Unary requests.


async def test_what_cannot_be_batched_is_answered_by_itself(client: BareClient) -> None:
    async with EmbeddedCluster(api_version="v1ttl") as cluster:
        address, ctx = address_of(cluster, b"a"), context(cluster)
        swap = kvrpcpb.RawCASRequest(context=ctx, key=b"a", value=b"1", previous_not_exist=True, ttl=60)

        swapped = await client.call(address, Tikv.RawCompareAndSwap, swap)
        refused = await client.call(address, Tikv.RawCompareAndSwap, swap)
        ttl = await client.call(address, Tikv.RawGetKeyTTL, kvrpcpb.RawGetKeyTTLRequest(context=ctx, key=b"a"))
        everything = kvrpcpb.RawChecksumRequest(context=ctx, ranges=[kvrpcpb.KeyRange()])
        checksum = await client.call(address, Tikv.RawChecksum, everything)

    assert (swapped.succeed, swapped.previous_not_exist) == (True, True)
    assert (refused.succeed, refused.previous_value) == (False, b"1")
    assert 0 < ttl.ttl <= 60
    assert (checksum.total_kvs, checksum.total_bytes) == (1, 2)


async def test_a_unary_request_for_another_cluster_is_an_invalid_argument(
    cluster: EmbeddedCluster, client: BareClient
) -> None:
    request = kvrpcpb.RawPutRequest(context=context(cluster, cluster_id=1), key=b"a")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.call(address_of(cluster, b"a"), Tikv.RawPut, request)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_wrong_store_says_which_one_it_is(cluster: EmbeddedCluster, client: BareClient) -> None:
    request = kvrpcpb.RawGetRequest(context=context(cluster), key=b"a")

    answer = await client.call(cluster.store_addresses[2], Tikv.RawGet, request)

    assert answer.region_error.store_not_match.actual_store_id == 2


@pytest.mark.parametrize("rpc", [Tikv.KvPessimisticLock, Tikv.KvGC, Tikv.ReadIndex, Tikv.RawCoprocessor])
async def test_what_is_not_served_is_unimplemented(cluster: EmbeddedCluster, client: BareClient, rpc: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.call(address_of(cluster, b""), rpc, rpc.request())

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_state_of_a_store_is_told(cluster: EmbeddedCluster, client: BareClient) -> None:
    address = cluster.store_addresses[3]

    safe = await client.call(address, Tikv.GetStoreSafeTS, kvrpcpb.StoreSafeTSRequest())
    health = await client.call(address, Tikv.GetHealthFeedback, kvrpcpb.GetHealthFeedbackRequest())

    assert safe.safe_ts > 0
    assert health.health_feedback.store_id == 3


# Forwarding.


async def test_a_store_passes_calls_on_to_another(cluster: EmbeddedCluster, client: BareClient) -> None:
    proxy, leader = cluster.store_addresses[2], address_of(cluster, b"a")
    to_leader = [("tikv-forwarded-host", leader)]
    put = kvrpcpb.RawPutRequest(context=context(cluster), key=b"a", value=b"1")

    written = await client.call(proxy, Tikv.RawPut, put, to_leader)
    stream = client.stream(proxy, Tikv.BatchCommands, to_leader)
    get = Request(RawGet=kvrpcpb.RawGetRequest(context=context(cluster), key=b"a"))
    await stream.write(tikvpb.BatchCommandsRequest(request_ids=[1], requests=[get]))
    read = await stream.read()

    assert not written.HasField("region_error")
    assert read.responses[0].RawGet.value == b"1"


async def test_a_store_cannot_pass_calls_on_to_one_that_is_down(cluster: EmbeddedCluster, client: BareClient) -> None:
    down = cluster.store_addresses[1]
    await cluster.stop_store(1)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.call(
            cluster.store_addresses[2],
            Tikv.RawGet,
            kvrpcpb.RawGetRequest(context=context(cluster), key=b"a"),
            [("tikv-forwarded-host", down)],
        )

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


# Splits.


async def test_a_split_answers_with_all_pieces_ascending(cluster: EmbeddedCluster, client: BareClient) -> None:
    old = cluster.region_of(b"a")
    request = kvrpcpb.SplitRegionRequest(context=context(cluster), split_keys=[b"p", b"g"], is_raw_kv=True)

    answer = await client.call(address_of(cluster, b""), Tikv.SplitRegion, request)

    assert list(answer.regions) == list(map(region_to_pb, cluster.regions()))
    assert [region.start_key for region in answer.regions] == [b"", b"g", b"p"]
    assert answer.regions[-1].id == old.id
    assert not answer.HasField("left")


async def test_a_split_in_two_names_left_and_right(cluster: EmbeddedCluster, client: BareClient) -> None:
    request = kvrpcpb.SplitRegionRequest(context=context(cluster), split_key=b"g", is_raw_kv=True)

    answer = await client.call(address_of(cluster, b""), Tikv.SplitRegion, request)

    assert [answer.left, answer.right] == list(answer.regions)


async def test_keys_of_transactions_are_encoded_before_they_split(cluster: EmbeddedCluster, client: BareClient) -> None:
    request = kvrpcpb.SplitRegionRequest(context=context(cluster), split_keys=[b"g"])

    answer = await client.call(address_of(cluster, b""), Tikv.SplitRegion, request)

    assert answer.right.start_key == b"g\x00\x00\x00\x00\x00\x00\x00\xf8"


async def test_in_v2_raw_keys_are_encoded_before_they_split(client: BareClient) -> None:
    async with EmbeddedCluster(api_version="v2") as cluster:
        request = kvrpcpb.SplitRegionRequest(
            context=context(cluster, b"g"), split_keys=[b"r\x00\x00\x00g"], is_raw_kv=True
        )

        answer = await client.call(address_of(cluster, b"g"), Tikv.SplitRegion, request)

    assert answer.right.start_key == raw_key(0, b"g")


async def test_a_split_with_an_old_epoch_is_refused(cluster: EmbeddedCluster, client: BareClient) -> None:
    old = context(cluster)
    cluster.split(b"m")

    answer = await client.call(
        address_of(cluster, b"z"),
        Tikv.SplitRegion,
        kvrpcpb.SplitRegionRequest(context=old, split_keys=[b"p"], is_raw_kv=True),
    )

    assert [region.start_key for region in answer.region_error.epoch_not_match.current_regions] == [b"m"]
    assert len(cluster.regions()) == 2


async def test_what_changes_between_two_requests_is_seen_by_the_second(
    cluster: EmbeddedCluster, client: BareClient
) -> None:
    old, address = context(cluster), address_of(cluster, b"")

    cluster.split(b"m")
    after_split = await client.call(address, Tikv.RawGet, kvrpcpb.RawGetRequest(context=old, key=b"z"))
    fresh = context(cluster, b"z")
    cluster.transfer_leader(fresh.region_id, 2)
    after_transfer = await client.call(address, Tikv.RawGet, kvrpcpb.RawGetRequest(context=fresh, key=b"z"))
    left, right = cluster.regions()
    cluster.merge(left.id, right.id)
    gone = context_for(left)
    after_merge = await client.call(address, Tikv.RawGet, kvrpcpb.RawGetRequest(context=gone, key=b"a"))

    assert [region.start_key for region in after_split.region_error.epoch_not_match.current_regions] == [b"m", b""]
    assert after_transfer.region_error.not_leader.leader == metapb.Peer(id=right.peers[1].id, store_id=2)
    assert after_merge.region_error.region_not_found.region_id == left.id


# API V2.


@pytest.fixture
async def v2() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(api_version="v2", split_keys=[b"m"]) as running:
        yield running


async def test_v2_regions_split_raw_user_keys(v2: EmbeddedCluster, client: BareClient) -> None:
    def put(key: bytes, region_of: bytes) -> Any:
        ctx = context(v2, region_of, api_version=kvrpcpb.APIVersion.V2)
        request = kvrpcpb.RawPutRequest(context=ctx, key=b"r\x00\x00\x00" + key, value=b"1")
        return client.call(address_of(v2, region_of), Tikv.RawPut, request)

    inside, outside = await put(b"a", region_of=b"a"), await put(b"z", region_of=b"a")

    assert inside == kvrpcpb.RawPutResponse()
    assert outside.region_error.key_not_in_region.end_key == raw_key(0, b"m")
