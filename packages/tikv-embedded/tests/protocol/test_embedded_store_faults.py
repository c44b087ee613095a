"""What can go wrong with stores, over real gRPC: `cluster.faults`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from tikv_embedded import EmbeddedCluster, TopologyError
from tikv_embedded.region import peer_to_pb, region_to_pb
from tikv_embedded.testing import BareClient, context_for
from tikv_proto import errorpb, kvrpcpb, tikvpb
from tikv_proto.services import Tikv

Request = tikvpb.BatchCommandsRequest.Request
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


class Calls:
    """Raw requests to the store that leads the first Region, each by itself or on one BatchCommands stream."""

    def __init__(self, cluster: EmbeddedCluster, client: BareClient, *, batched: bool) -> None:
        self._cluster = cluster
        self._client = client
        self._stream = client.stream(self.address(), Tikv.BatchCommands) if batched else None
        self._ids = 0

    def address(self, store_id: int | None = None) -> str:
        leader = self._cluster.regions()[0].leader
        assert leader is not None
        return self._cluster.store_addresses[store_id or leader.store_id]

    async def get(self, key: bytes = b"a", **context: Any) -> kvrpcpb.RawGetResponse:
        request = kvrpcpb.RawGetRequest(context=context_for(self._cluster.regions()[0], **context), key=key)
        if self._stream is None:
            return await self._client.call(self.address(), Tikv.RawGet, request)
        return (await self._batched(Request(RawGet=request))).RawGet

    async def put(self, key: bytes = b"a", value: bytes = b"1") -> kvrpcpb.RawPutResponse:
        context = context_for(self._cluster.regions()[0])
        request = kvrpcpb.RawPutRequest(context=context, key=key, value=value)
        if self._stream is None:
            return await self._client.call(self.address(), Tikv.RawPut, request)
        return (await self._batched(Request(RawPut=request))).RawPut

    async def _batched(self, request: Request) -> tikvpb.BatchCommandsResponse.Response:
        assert self._stream is not None
        self._ids += 1
        await self._stream.write(tikvpb.BatchCommandsRequest(request_ids=[self._ids], requests=[request]))
        answer = await self._stream.read()
        assert self._ids in answer.request_ids
        return answer.responses[0]


@pytest.fixture(params=["by_itself", "batched"])
async def calls(cluster: EmbeddedCluster, client: BareClient, request: pytest.FixtureRequest) -> Calls:
    return Calls(cluster, client, batched=request.param == "batched")


def get_request(cluster: EmbeddedCluster, key: bytes = b"a", **context: Any) -> Request:
    return Request(RawGet=kvrpcpb.RawGetRequest(context=context_for(cluster.region_of(key), **context), key=key))


# What becomes of a call.


async def test_a_delayed_call_is_answered_later(cluster: EmbeddedCluster, calls: Calls) -> None:
    cluster.faults.on("RawGet", times=1).delay(0.1)

    began = time.monotonic()
    await calls.get()
    slow = time.monotonic() - began
    await calls.get()
    fast = time.monotonic() - began - slow

    assert slow >= 0.1 > fast


async def test_an_answer_can_be_delayed_while_the_write_is_done(cluster: EmbeddedCluster, client: BareClient) -> None:
    calls = Calls(cluster, client, batched=False)
    fault = cluster.faults.on("RawPut").delay_answer(60)

    written = asyncio.create_task(calls.put())
    await fault.struck()
    value = (await calls.get()).value
    fault.lift()

    assert value == b"1"
    assert await written == kvrpcpb.RawPutResponse()


async def test_calls_are_held_until_the_fault_is_lifted(cluster: EmbeddedCluster, client: BareClient) -> None:
    calls = Calls(cluster, client, batched=False)
    with cluster.faults.on("RawPut").hold() as fault:
        written = [asyncio.create_task(calls.put(b"%d" % n)) for n in range(3)]
        await fault.struck(3)
        before = [(await calls.get(b"%d" % n)).not_found for n in range(3)]
        waiting = fault.waiting

    await asyncio.gather(*written)

    assert (before, waiting) == ([True] * 3, 3)
    assert [(await calls.get(b"%d" % n)).not_found for n in range(3)] == [False] * 3
    assert fault.waiting == 0
    assert fault.is_over


async def test_an_answer_is_held_while_the_write_is_done(cluster: EmbeddedCluster, client: BareClient) -> None:
    calls = Calls(cluster, client, batched=False)
    fault = cluster.faults.on("RawPut").hold_answer()
    written = asyncio.create_task(calls.put())
    await fault.struck()

    value = (await calls.get()).value
    assert not written.done()
    fault.lift()
    await written

    assert value == b"1"


@pytest.mark.parametrize("is_done", [False, True])
async def test_a_call_is_lost_before_or_after_it_was_served(
    cluster: EmbeddedCluster, calls: Calls, client: BareClient, is_done: bool
) -> None:
    chosen = cluster.faults.on("RawPut", times=1)
    fault = chosen.lose_answer() if is_done else chosen.lose_request()

    written = asyncio.create_task(calls.put())
    await fault.struck()
    done, _ = await asyncio.wait([written], timeout=0.05)
    written.cancel()
    with pytest.raises(asyncio.CancelledError):
        await written
    found = await Calls(cluster, client, batched=False).get()

    assert not done
    assert found.not_found is not is_done


async def test_a_duplicated_call_is_served_twice(cluster: EmbeddedCluster, client: BareClient) -> None:
    stream = client.stream(Calls(cluster, client, batched=False).address(), Tikv.BatchCommands)
    cluster.faults.on("RawGet").duplicate()

    await stream.write(tikvpb.BatchCommandsRequest(request_ids=[5], requests=[get_request(cluster)]))
    answer = await stream.read()

    assert list(answer.request_ids) == [5, 5]
    assert [response.RawGet.not_found for response in answer.responses] == [True, True]


async def test_a_call_is_refused_with_a_status(cluster: EmbeddedCluster, calls: Calls) -> None:
    cluster.faults.on("RawGet", times=1).refuse("RESOURCE_EXHAUSTED", "too much")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await calls.get()

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "too much"


async def test_answers_can_be_changed(cluster: EmbeddedCluster, calls: Calls) -> None:
    def change(response: kvrpcpb.RawGetResponse) -> None:
        response.Clear()
        response.error = "changed"

    cluster.faults.on("RawGet").edit(change)

    assert (await calls.get()).error == "changed"


async def test_what_is_not_served_can_be_answered_with_the_time_it_took(
    cluster: EmbeddedCluster, client: BareClient
) -> None:
    address = cluster.store_addresses[1]
    cluster.faults.on("KvGet").answer(kvrpcpb.GetResponse(value=b"scripted"))

    by_itself = await client.call(address, Tikv.KvGet, kvrpcpb.GetRequest(key=b"a"))
    stream = client.stream(address, Tikv.BatchCommands)
    request = Request(Get=kvrpcpb.GetRequest(key=b"a"))
    await stream.write(tikvpb.BatchCommandsRequest(request_ids=[1], requests=[request]))
    batched = (await stream.read()).responses[0].Get

    for response in (by_itself, batched):
        assert response.value == b"scripted"
        assert response.exec_details_v2.time_detail.total_rpc_wall_time_ns > 0
        assert response.exec_details_v2.time_detail_v2.total_rpc_wall_time_ns > 0


async def test_answers_can_depend_on_the_call(cluster: EmbeddedCluster, calls: Calls) -> None:
    cluster.faults.on("RawGet").answer(lambda call: kvrpcpb.RawGetResponse(value=call.request.key * 2))

    assert (await calls.get(b"ab")).value == b"abab"


async def test_an_answer_is_misdirected_or_holds_no_command(cluster: EmbeddedCluster, client: BareClient) -> None:
    stream = client.stream(cluster.store_addresses[1], Tikv.BatchCommands)
    cluster.faults.on("RawGet", times=1).misdirect_answer()
    cluster.faults.on("RawGet", times=1).empty_answer()
    answers = []

    for request_id in (1, 2, 3):
        request = tikvpb.BatchCommandsRequest(request_ids=[request_id], requests=[get_request(cluster)])
        await stream.write(request)
        answers.append(await stream.read())

    assert [answer.responses[0].WhichOneof("cmd") for answer in answers] == ["RawGet", None, "RawGet"]
    assert answers[0].request_ids[0] not in (1, 2, 3)
    assert [answer.request_ids[0] for answer in answers[1:]] == [2, 3]


# Region errors.

FILLED = {
    "not_leader": errorpb.NotLeader(region_id=4),
    "region_not_found": errorpb.RegionNotFound(region_id=4),
    "key_not_in_region": errorpb.KeyNotInRegion(region_id=4, key=b"a"),
    "epoch_not_match": errorpb.EpochNotMatch(),
    "server_is_busy": errorpb.ServerIsBusy(reason="scheduler is busy"),
    "stale_command": errorpb.StaleCommand(),
    "store_not_match": errorpb.StoreNotMatch(request_store_id=1, actual_store_id=1),
    "raft_entry_too_large": None,
    "max_timestamp_not_synced": errorpb.MaxTimestampNotSynced(),
    "read_index_not_ready": errorpb.ReadIndexNotReady(region_id=4, reason="can not read index due to split"),
    "proposal_in_merging_mode": errorpb.ProposalInMergingMode(region_id=4),
    "data_is_not_ready": errorpb.DataIsNotReady(region_id=4, peer_id=5),
    "region_not_initialized": errorpb.RegionNotInitialized(region_id=4),
    "disk_full": errorpb.DiskFull(store_id=[1], reason="disk full"),
    "RecoveryInProgress": errorpb.RecoveryInProgress(region_id=4),
    "FlashbackInProgress": errorpb.FlashbackInProgress(region_id=4),
    "FlashbackNotPrepared": errorpb.FlashbackNotPrepared(region_id=4),
    "is_witness": errorpb.IsWitness(region_id=4),
    "mismatch_peer_id": errorpb.MismatchPeerId(request_peer_id=5),
    "bucket_version_not_match": errorpb.BucketVersionNotMatch(),
    "undetermined_result": errorpb.UndeterminedResult(message="raft result is unknown"),
}


def in_small_letters(field: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in field).lstrip("_")


def test_every_region_error_of_the_wire_can_be_injected() -> None:
    assert set(FILLED) == {field.name for field in errorpb.Error.DESCRIPTOR.fields} - {"message"}


@pytest.mark.parametrize("field", FILLED)
async def test_a_region_error_is_filled_as_a_store_would(cluster: EmbeddedCluster, calls: Calls, field: str) -> None:
    cluster.faults.on("RawGet", times=1).region_error(in_small_letters(field))

    answer = await calls.get()
    after = await calls.get()

    assert [set_field.name for set_field, _ in answer.region_error.ListFields()] == ["message", field]
    assert FILLED[field] in (None, getattr(answer.region_error, field))
    assert after.not_found


async def test_an_error_may_have_no_more_than_a_message(cluster: EmbeddedCluster, calls: Calls) -> None:
    cluster.faults.on("RawGet").region_error("message_only", message="TiKV is Closing")

    assert (await calls.get()).region_error == errorpb.Error(message="TiKV is Closing")


async def test_fields_of_an_error_can_be_chosen(cluster: EmbeddedCluster, calls: Calls) -> None:
    region = cluster.regions()[0]
    script = cluster.faults
    script.on("RawGet", times=1).region_error("server_is_busy", estimated_wait_ms=10, applied_index=5)
    script.on("RawGet", times=1).region_error("not_leader", leader=region.peers[2])
    script.on("RawGet", times=1).region_error("epoch_not_match", current_regions=[region])

    errors = [(await calls.get()).region_error for _ in range(3)]

    assert (errors[0].server_is_busy.estimated_wait_ms, errors[0].server_is_busy.applied_index) == (10, 5)
    assert errors[1].not_leader.leader == peer_to_pb(region.peers[2])
    assert list(errors[2].epoch_not_match.current_regions) == [region_to_pb(region)]


async def test_a_write_that_got_a_region_error_was_not_done(cluster: EmbeddedCluster, calls: Calls) -> None:
    with cluster.faults.on().region_error("server_is_busy"):
        refused = await calls.put()

    assert refused.HasField("region_error")
    assert (await calls.get()).not_found


# Which calls.


async def test_faults_are_a_script_in_the_order_they_were_made(cluster: EmbeddedCluster, calls: Calls) -> None:
    cluster.faults.on("RawGet", times=2).region_error("server_is_busy")
    cluster.faults.on("RawGet", times=1, after=1).region_error("not_leader")

    answers = [(await calls.get()).region_error for _ in range(5)]

    assert [error.ByteSize() and error.ListFields()[1][0].name for error in answers] == [
        "server_is_busy",
        "server_is_busy",
        0,
        "not_leader",
        0,
    ]


async def test_a_fault_strikes_one_store_or_one_region_alone(client: BareClient) -> None:
    async with EmbeddedCluster(stores=2, split_keys=[b"m"], max_peer_count=1) as cluster:
        left, right = cluster.regions()
        calls = [(region, cluster.store_addresses[region.peers[0].store_id]) for region in (left, right)]

        async def struck() -> list[bool]:
            answers = [
                await client.call(
                    address,
                    Tikv.RawGet,
                    kvrpcpb.RawGetRequest(context=context_for(region), key=region.start_key or b"a"),
                )
                for region, address in calls
            ]
            return [answer.HasField("region_error") for answer in answers]

        with cluster.faults.on(store=right.peers[0].store_id).region_error("server_is_busy"):
            by_store = await struck()
        with cluster.faults.on(region=left.id).region_error("server_is_busy"):
            by_region = await struck()
        after = await struck()

    assert (by_store, by_region, after) == ([False, True], [True, False], [False, False])


async def test_a_fault_can_look_at_the_call(cluster: EmbeddedCluster, calls: Calls) -> None:
    cluster.faults.on(when=lambda call: call.context.stale_read).region_error("data_is_not_ready")

    assert (await calls.get(stale_read=True)).region_error.HasField("data_is_not_ready")
    assert not (await calls.get(replica_read=True)).HasField("region_error")


async def test_the_rest_of_a_message_is_answered_as_ever(cluster: EmbeddedCluster, client: BareClient) -> None:
    stream = client.stream(cluster.store_addresses[1], Tikv.BatchCommands)
    cluster.faults.on("RawGet", after=1, times=1).lose_request()

    await stream.write(tikvpb.BatchCommandsRequest(request_ids=[1, 2, 3], requests=[get_request(cluster)] * 3))
    answer = await stream.read()

    assert list(answer.request_ids) == [1, 3]


async def test_chances_are_drawn_alike_from_the_same_seed(cluster: EmbeddedCluster, client: BareClient) -> None:
    calls = Calls(cluster, client, batched=True)
    cluster.faults.on("RawGet", chance=0.5).region_error("server_is_busy")

    async def draw() -> list[bool]:
        cluster.faults.seed(7)
        return [(await calls.get()).HasField("region_error") for _ in range(40)]

    first, second = await draw(), await draw()

    assert first == second
    assert 5 < sum(first) < 35


@pytest.mark.parametrize(
    "choose",
    [
        lambda faults: faults.on("RawGit"),
        lambda faults: faults.on(times=0),
        lambda faults: faults.on(after=-1),
        lambda faults: faults.on(chance=1.5),
        lambda faults: faults.on().region_error("not_a_leader"),
        lambda faults: faults.on().region_error("not_leader", nobody=1),
        lambda faults: faults.on().region_error("message_only", nobody=1),
        lambda faults: faults.on("GetStoreSafeTS").region_error("not_leader"),
    ],
)
async def test_a_fault_that_could_never_strike_is_refused(cluster: EmbeddedCluster, choose: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the texts differ
        choose(cluster.faults)


async def test_an_answer_of_another_rpc_is_refused(cluster: EmbeddedCluster) -> None:
    with pytest.raises(TypeError, match="RawGet is not answered with RawPutResponse"):
        cluster.faults.on("RawGet").answer(kvrpcpb.RawPutResponse())


# Stores.


async def test_a_hung_store_answers_nothing_until_it_is_let_go(cluster: EmbeddedCluster, client: BareClient) -> None:
    fault = cluster.faults.hang(1)
    address, region = cluster.store_addresses[1], cluster.regions()[0]
    request = kvrpcpb.RawGetRequest(context=context_for(region), key=b"a")
    through = [("tikv-forwarded-host", cluster.store_addresses[2])]

    waiting: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(call)
        for call in (
            client.call(address, Tikv.RawGet, request),
            client.health(address),
            client.call(address, Tikv.GetStoreSafeTS, kvrpcpb.StoreSafeTSRequest(), through),
        )
    ]
    await fault.struck(3)
    others = await client.health(cluster.store_addresses[2])
    done = [call.done() for call in waiting]
    fault.lift()
    answers = await asyncio.gather(*waiting)

    assert (others, done) == (SERVING, [False] * 3)
    assert answers[0].not_found
    assert answers[1] == SERVING


async def test_streams_are_cut_with_their_answers_outstanding(cluster: EmbeddedCluster, client: BareClient) -> None:
    faults, address = cluster.faults, cluster.store_addresses[1]
    streams = [client.stream(address, Tikv.BatchCommands) for _ in range(3)]
    held = faults.on("RawGet").hold()
    for stream in streams:
        await stream.write(tikvpb.BatchCommandsRequest(request_ids=[1], requests=[get_request(cluster)]))
    await held.struck(3)

    open_before = faults.open_streams(1)
    cut = faults.cut_streams(1, "ABORTED", "cut")
    statuses = [await stream.status() for stream in streams]

    assert (open_before, cut) == (3, 3)
    assert statuses == [(grpc.StatusCode.ABORTED, "cut")] * 3
    assert faults.open_streams(1) == 0
    assert held.waiting == 0


async def test_streams_can_be_ended_without_an_error(cluster: EmbeddedCluster, client: BareClient) -> None:
    stream = client.stream(cluster.store_addresses[1], Tikv.BatchCommands)
    held = cluster.faults.on("RawGet").hold()
    await stream.write(tikvpb.BatchCommandsRequest(request_ids=[1], requests=[get_request(cluster)]))
    await held.struck()

    cluster.faults.cut_streams(1, "OK")

    assert (await stream.status())[0] is grpc.StatusCode.OK


async def test_a_request_cuts_its_own_stream_and_no_other(cluster: EmbeddedCluster, client: BareClient) -> None:
    streams = [client.stream(cluster.store_addresses[1], Tikv.BatchCommands) for _ in range(2)]
    request = tikvpb.BatchCommandsRequest(request_ids=[1], requests=[get_request(cluster)])
    cluster.faults.on("RawGet", times=1).refuse()

    await streams[0].write(request)
    status = await streams[0].status()
    await streams[1].write(request)
    answer = await streams[1].read()

    assert status[0] is grpc.StatusCode.UNAVAILABLE
    assert answer.responses[0].RawGet.not_found


async def test_a_store_may_lack_batch_commands(cluster: EmbeddedCluster, client: BareClient) -> None:
    cluster.faults.on("BatchCommands", store=1).refuse("UNIMPLEMENTED")

    refused = client.stream(cluster.store_addresses[1], Tikv.BatchCommands)
    fine = client.stream(cluster.store_addresses[2], Tikv.BatchCommands)
    await fine.write(tikvpb.BatchCommandsRequest(request_ids=[1], requests=[Request()]))

    assert (await refused.status())[0] is grpc.StatusCode.UNIMPLEMENTED
    assert list((await fine.read()).request_ids) == [1]
    assert (await Calls(cluster, client, batched=False).get()).not_found


async def test_the_health_service_says_what_it_is_told(cluster: EmbeddedCluster, client: BareClient) -> None:
    address = cluster.store_addresses[1]

    cluster.faults.set_health(1, "NOT_SERVING")
    checked, watched = await client.health(address), await client.watch_health(address)
    other = await client.health(cluster.store_addresses[2])
    cluster.faults.clear()

    assert (checked, watched, other) == (NOT_SERVING, NOT_SERVING, SERVING)
    assert await client.health(address) == SERVING


async def test_health_checks_hang_and_fail_by_themselves(cluster: EmbeddedCluster, client: BareClient) -> None:
    address = cluster.store_addresses[1]
    held = cluster.faults.on("Check", store=1, times=1).hold()
    cluster.faults.on("Check", store=1).refuse("UNAVAILABLE")

    hung = asyncio.ensure_future(client.health(address))
    await held.struck()
    with pytest.raises(grpc.aio.AioRpcError):
        await client.health(address)
    served = await Calls(cluster, client, batched=False).get()
    held.lift()

    assert served.not_found
    assert await hung == SERVING


async def test_a_slow_score_and_a_load_show_on_streams_at_once(cluster: EmbeddedCluster, client: BareClient) -> None:
    stream = client.stream(cluster.store_addresses[1], Tikv.BatchCommands)
    empty = tikvpb.BatchCommandsRequest(
        request_ids=[1], requests=[Request(Empty=tikvpb.BatchCommandsEmptyRequest(test_id=1))]
    )
    await stream.write(empty)
    await stream.read()

    cluster.faults.set_slow_score(1, 80, sequence=1000)
    cluster.faults.set_load(1, 250)
    await stream.write(empty)
    told = await stream.read()
    asked = await client.call(cluster.store_addresses[1], Tikv.GetHealthFeedback, kvrpcpb.GetHealthFeedbackRequest())

    assert told.health_feedback == kvrpcpb.HealthFeedback(store_id=1, slow_score=80, feedback_seq_no=1000)
    assert told.transport_layer_load == 250
    assert (asked.health_feedback.slow_score, asked.health_feedback.feedback_seq_no) == (80, 1001)


async def test_stale_reads_above_a_lagging_safe_timestamp_are_refused(
    cluster: EmbeddedCluster, client: BareClient
) -> None:
    region, address = cluster.regions()[0], cluster.store_addresses[2]
    context = context_for(region, 2, stale_read=True)
    cluster.faults.set_safe_ts_lag(2, 3600)
    cluster.faults.on("KvGet", after=0).answer(kvrpcpb.GetResponse(value=b"1"))

    safe_ts = (await client.call(address, Tikv.GetStoreSafeTS, kvrpcpb.StoreSafeTSRequest())).safe_ts
    fresh = (await client.call(cluster.store_addresses[1], Tikv.GetStoreSafeTS, kvrpcpb.StoreSafeTSRequest())).safe_ts
    old = await client.call(address, Tikv.KvGet, kvrpcpb.GetRequest(context=context, key=b"a", version=safe_ts))
    new = await client.call(address, Tikv.KvGet, kvrpcpb.GetRequest(context=context, key=b"a", version=fresh))
    cluster.faults.set_safe_ts_lag(2, 0)
    now = await client.call(address, Tikv.KvGet, kvrpcpb.GetRequest(context=context, key=b"a", version=fresh))

    assert (fresh - safe_ts) >> 18 >= 3_599_000
    assert (old.value, now.value) == (b"1", b"1")
    assert new.region_error.data_is_not_ready.peer_id == context.peer.id
    assert safe_ts <= new.region_error.data_is_not_ready.safe_ts < fresh


@pytest.mark.parametrize("flag", ["replica_read", "stale_read"])
async def test_followers_and_learners_serve_reads_that_may_go_there(client: BareClient, flag: str) -> None:
    async with EmbeddedCluster(stores=4) as cluster:
        region = cluster.add_peer(cluster.regions()[0].id, 4, is_learner=True)

        answers = [
            await client.call(
                cluster.store_addresses[store_id],
                Tikv.RawGet,
                kvrpcpb.RawGetRequest(context=context_for(region, store_id, **{flag: True}), key=b"a"),
            )
            for store_id in (2, 4)
        ]

    assert [answer.not_found for answer in answers] == [True, True]


async def test_clearing_makes_stores_well_again(cluster: EmbeddedCluster, calls: Calls) -> None:
    faults = cluster.faults
    faults.on().region_error("server_is_busy")
    faults.set_slow_score(1, 80)

    faults.clear()

    assert (await calls.get()).not_found


async def test_an_unknown_store_cannot_break(cluster: EmbeddedCluster) -> None:
    for act in (
        lambda: cluster.faults.hang(9),
        lambda: cluster.faults.cut_streams(9),
        lambda: cluster.faults.set_health(9, "SERVING"),
    ):
        with pytest.raises(TopologyError):
            act()


# What stores receive.


async def test_a_recording_keeps_what_stores_receive(cluster: EmbeddedCluster, client: BareClient) -> None:
    context: dict[str, Any] = {
        "priority": kvrpcpb.CommandPri.High,
        "request_source": "leader_external_raw",
        "resource_control_context": kvrpcpb.ResourceControlContext(resource_group_name="rg1", override_priority=9),
        "task_id": 7,
        "max_execution_duration_ms": 500,
        "busy_threshold_ms": 10,
        "trace_id": b"trace",
        "replica_read": True,
    }
    unary = Calls(cluster, client, batched=False)
    with cluster.faults.record() as recording:
        await unary.get(**context)
        await Calls(cluster, client, batched=True).get(b"b", **context)
    await unary.get()

    calls = recording.of("RawGet")

    assert [(call.request.key, call.is_batched, call.store_id) for call in calls] == [
        (b"a", False, 1),
        (b"b", True, 1),
    ]
    for call in calls:
        assert call.context == context_for(cluster.regions()[0], **context)
    assert [call.rpc for call in recording.calls] == ["RawGet", "BatchCommands", "RawGet"]


async def test_a_recording_shows_which_requests_travelled_together(
    cluster: EmbeddedCluster, client: BareClient
) -> None:
    streams = [client.stream(cluster.store_addresses[1], Tikv.BatchCommands) for _ in range(2)]
    recording = cluster.faults.record()

    for stream, count in ((streams[0], 2), (streams[1], 1), (streams[0], 1)):
        requests = [get_request(cluster)] * count
        await stream.write(tikvpb.BatchCommandsRequest(request_ids=range(count), requests=requests))
        await stream.read()
    recording.stop()
    recording.stop()

    numbers = [(call.stream, call.message) for call in recording.of(store=1) if call.is_batched and call.message]
    first, second = numbers[0][0], numbers[2][0]
    assert first != second
    assert numbers == [(first, 1), (first, 1), (second, 1), (first, 2)]


async def test_a_recording_shows_who_passed_a_call_on(cluster: EmbeddedCluster, client: BareClient) -> None:
    through = [("tikv-forwarded-host", cluster.store_addresses[1])]
    request = kvrpcpb.RawGetRequest(context=context_for(cluster.regions()[0]), key=b"a")
    stream = client.stream(cluster.store_addresses[3], Tikv.BatchCommands, through)

    with cluster.faults.record() as recording:
        await client.call(cluster.store_addresses[2], Tikv.RawGet, request, through)
        await stream.write(tikvpb.BatchCommandsRequest(request_ids=[1], requests=[Request(RawGet=request)]))
        await stream.read()

    assert [(call.store_id, call.proxy) for call in recording.of("RawGet")] == [(1, 2), (1, 3)]
    assert all(call.metadata["tikv-forwarded-host"] == through[0][1] for call in recording.of("RawGet"))


async def test_a_busy_store_refuses_reads_that_would_not_wait(cluster: EmbeddedCluster, calls: Calls) -> None:
    busy = cluster.faults.set_read_wait(1, 100, applied_index=7)

    impatient = await calls.get(busy_threshold_ms=50)
    patient = [await calls.get(busy_threshold_ms=threshold) for threshold in (0, 100)]
    busy.lift()

    error = impatient.region_error.server_is_busy
    assert (error.estimated_wait_ms, error.applied_index) == (100, 7)
    assert [answer.not_found for answer in patient] == [True, True]
    assert (await calls.get(busy_threshold_ms=50)).not_found


async def test_pairs_expire_when_the_clock_of_stores_moves_ahead(client: BareClient) -> None:
    async with EmbeddedCluster(api_version="v1ttl") as cluster:
        context, address = context_for(cluster.regions()[0]), cluster.store_addresses[1]
        await client.call(address, Tikv.RawPut, kvrpcpb.RawPutRequest(context=context, key=b"a", value=b"1", ttl=60))
        get = kvrpcpb.RawGetRequest(context=context, key=b"a")

        before = await client.call(address, Tikv.RawGet, get)
        cluster.faults.advance_clock(61)
        after = await client.call(address, Tikv.RawGet, get)

    assert before.value == b"1"
    assert after.not_found


async def test_the_clock_of_stores_does_not_go_back(cluster: EmbeddedCluster) -> None:
    with pytest.raises(ValueError, match="does not go back"):
        cluster.faults.advance_clock(-1)


async def test_a_cluster_closes_at_once_while_calls_are_held_and_lost(
    client: BareClient, caplog: pytest.LogCaptureFixture
) -> None:
    async with EmbeddedCluster() as cluster:
        lost = cluster.faults.on("RawPut").lose_answer()
        hung = cluster.faults.hang(1)
        request = tikvpb.BatchCommandsRequest(request_ids=[1], requests=[get_request(cluster)])
        stream = client.stream(cluster.store_addresses[1], Tikv.BatchCommands)
        await stream.write(request)
        calls = [
            asyncio.ensure_future(Calls(cluster, client, batched=False).put()),
            asyncio.ensure_future(Calls(cluster, client, batched=False).get()),
        ]
        await asyncio.gather(lost.struck(), hung.struck(2))
        began = time.monotonic()
    took = time.monotonic() - began

    answers = await asyncio.gather(*calls, return_exceptions=True)

    assert took < 1
    assert all(isinstance(answer, grpc.aio.AioRpcError) for answer in answers)
    assert not caplog.records
