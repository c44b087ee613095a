"""The stores of a FakeCluster answer as TiKV does, and misbehave as told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from google.protobuf.message import Message
from tikv_pd.errors import RpcError
from tikv_pd.testing import virtual_time
from tikv_proto import errorpb, kvrpcpb, tikvpb
from tikv_proto.healthpb import HealthCheckRequest, HealthCheckResponse
from tikv_proto.services import Health, Rpc, Tikv
from tikv_region import KeyspaceCodec
from tikv_rpc.testing import FakeCluster, RawMap, crc64

EVERYTHING = (b"", b"")


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_time() if request.param == "trio" else "asyncio"


def context(cluster: FakeCluster, key: bytes, store_id: int = 1) -> kvrpcpb.Context:
    """Return the Context of a request for a key, as a client that knows everything would send it."""
    region = cluster.map.region(key)
    return kvrpcpb.Context(
        region_id=region.id,
        region_epoch=region.epoch.to_pb(),
        peer=next(peer for peer in region.peers if peer.store_id == store_id).to_pb(),
        cluster_id=cluster.pd.cluster_id,
    )


async def unary(cluster: FakeCluster, rpc: Rpc[Any, Any], request: Message, store_id: int = 1) -> Any:
    connection = cluster.transport.connect(cluster.store(store_id).address)
    return await connection.unary(rpc, request, timeout=5)


async def batched(cluster: FakeCluster, *commands: tikvpb.BatchCommandsRequest.Request) -> dict[int, Any]:
    """Send commands under the ids 0, 1, … in one message, and return the answers by id."""
    stream = cluster.transport.connect(cluster.store(1).address).stream(Tikv.BatchCommands)
    await stream.send(tikvpb.BatchCommandsRequest(requests=commands, request_ids=range(len(commands))))
    answers: dict[int, Any] = {}
    with anyio.fail_after(5):
        while len(answers) < len(commands):
            message = await stream.receive()
            answers.update(zip(message.request_ids, message.responses, strict=True))
    stream.cancel()
    return answers


def get(cluster: FakeCluster, key: bytes) -> kvrpcpb.RawGetRequest:
    return kvrpcpb.RawGetRequest(context=context(cluster, key), key=key)


def put(cluster: FakeCluster, key: bytes, value: bytes) -> kvrpcpb.RawPutRequest:
    return kvrpcpb.RawPutRequest(context=context(cluster, key), key=key, value=value)


class TestServing:
    async def test_requests_are_served_one_by_one_and_batched(self, cluster: FakeCluster) -> None:
        await unary(cluster, Tikv.RawPut, put(cluster, b"a", b"1"))

        answers = await batched(
            cluster,
            tikvpb.BatchCommandsRequest.Request(RawGet=get(cluster, b"a")),
            tikvpb.BatchCommandsRequest.Request(RawGet=get(cluster, b"z")),
        )

        assert answers[0].RawGet.value == b"1"
        assert answers[1].RawGet.not_found
        assert cluster.store(1).batch_sizes == [2]

    async def test_what_arrived_is_remembered(self, cluster: FakeCluster) -> None:
        await unary(cluster, Tikv.RawPut, put(cluster, b"a", b"1"))
        await batched(cluster, tikvpb.BatchCommandsRequest.Request(RawGet=get(cluster, b"a")))

        assert [(r.store_id, r.rpc, r.batched) for r in cluster.log] == [
            (1, Tikv.RawPut, False),
            (1, Tikv.RawGet, True),
        ]
        assert [message.key for message in cluster.requests(Tikv.RawGet)] == [b"a"]
        assert cluster.requests(Tikv.RawGet, store_id=2) == []

    async def test_what_nobody_serves_is_unimplemented_and_unanswered(self, cluster: FakeCluster) -> None:
        request = kvrpcpb.GetRequest(key=b"a")

        with pytest.raises(RpcError, match="UNIMPLEMENTED"):
            await unary(cluster, Tikv.KvGet, request)
        answers = await batched(
            cluster, tikvpb.BatchCommandsRequest.Request(Get=request), tikvpb.BatchCommandsRequest.Request()
        )

        assert [answer.WhichOneof("cmd") for answer in answers.values()] == [None, None]

    async def test_a_handler_serves_what_raw_key_value_does_not(self, cluster: FakeCluster) -> None:
        async def kv_get(request: kvrpcpb.GetRequest) -> kvrpcpb.GetResponse:
            return kvrpcpb.GetResponse(value=request.key * 2)

        cluster.handlers[Tikv.KvGet] = kv_get
        request = kvrpcpb.GetRequest(context=context(cluster, b"a"), key=b"a")

        assert (await unary(cluster, Tikv.KvGet, request)).value == b"aa"

    async def test_a_request_to_a_store_as_a_whole_is_not_checked(self, cluster: FakeCluster) -> None:
        async def health(_request: Any) -> kvrpcpb.GetHealthFeedbackResponse:
            return kvrpcpb.GetHealthFeedbackResponse(health_feedback=kvrpcpb.HealthFeedback(slow_score=80))

        cluster.handlers[Tikv.GetHealthFeedback] = health

        answer = await unary(cluster, Tikv.GetHealthFeedback, kvrpcpb.GetHealthFeedbackRequest(), store_id=3)

        assert answer.health_feedback.slow_score == 80

    @pytest.mark.parametrize(
        ("rpc", "request_of"),
        [
            (Tikv.KvPrewrite, lambda key: {"mutations": [kvrpcpb.Mutation(key=key)]}),
            (Tikv.KvCheckTxnStatus, lambda key: {"primary_key": key}),
            (Tikv.KvTxnHeartBeat, lambda key: {"primary_lock": key}),
        ],
    )
    async def test_a_request_of_a_transaction_is_checked_by_its_keys(
        self, cluster: FakeCluster, rpc: Rpc[Any, Any], request_of: Callable[[bytes], dict[str, Any]]
    ) -> None:
        async def serve(_request: Any) -> Any:
            return rpc.response()

        cluster.handlers[rpc] = serve
        there, elsewhere = (rpc.request(context=context(cluster, b"a"), **request_of(key)) for key in (b"a", b"z"))

        assert not (await unary(cluster, rpc, there)).HasField("region_error")
        assert (await unary(cluster, rpc, elsewhere)).region_error.HasField("key_not_in_region")

    async def test_a_request_to_a_region_without_a_key_is_checked(self, cluster: FakeCluster) -> None:
        async def resolve(_request: Any) -> kvrpcpb.ResolveLockResponse:
            return kvrpcpb.ResolveLockResponse()

        cluster.handlers[Tikv.KvResolveLock] = resolve
        request = kvrpcpb.ResolveLockRequest(context=context(cluster, b"a"))

        before = await unary(cluster, Tikv.KvResolveLock, request)
        cluster.move_leader(b"a", 2)
        after = await unary(cluster, Tikv.KvResolveLock, request)

        assert not before.HasField("region_error")
        assert after.region_error.HasField("not_leader")

    async def test_the_url_and_the_data_are_at_hand(self, cluster: FakeCluster) -> None:
        await unary(cluster, Tikv.RawPut, put(cluster, b"a", b"1"))

        assert cluster.url == "tikv://pd1:2379"
        assert cluster.data == {b"a": b"1"}


class TestChecks:
    async def error(self, cluster: FakeCluster, request: Any, store_id: int = 1) -> errorpb.Error:
        response = await unary(cluster, Tikv.RawGet, request, store_id)
        assert isinstance(response.region_error, errorpb.Error)
        return response.region_error

    async def test_another_cluster(self, cluster: FakeCluster) -> None:
        request = get(cluster, b"a")
        request.context.cluster_id = 8

        with pytest.raises(RpcError, match="INVALID_ARGUMENT"):
            await unary(cluster, Tikv.RawGet, request)

    async def test_another_store(self, cluster: FakeCluster) -> None:
        error = await self.error(cluster, get(cluster, b"a"), store_id=2)

        assert (error.store_not_match.request_store_id, error.store_not_match.actual_store_id) == (1, 2)

    async def test_another_leader(self, cluster: FakeCluster) -> None:
        request = get(cluster, b"a")
        cluster.move_leader(b"a", 3)

        error = await self.error(cluster, request)

        assert error.not_leader.leader.store_id == 3

    async def test_another_epoch(self, cluster: FakeCluster) -> None:
        request = get(cluster, b"a")
        cluster.split(b"c")

        error = await self.error(cluster, request)

        assert len(error.epoch_not_match.current_regions) == 2

    async def test_a_region_that_is_gone(self, cluster: FakeCluster) -> None:
        request = get(cluster, b"a")
        cluster.merge(b"a")

        assert (await self.error(cluster, request)).HasField("region_not_found")

    async def test_a_peer_that_is_gone(self) -> None:
        async with FakeCluster(stores=2) as cluster:
            request = get(cluster, b"a")
            cluster.move_peer(b"a", 1, 2)

            assert (await self.error(cluster, request)).HasField("region_not_found")

    @pytest.mark.parametrize(
        ("rpc", "message"),
        [
            (Tikv.RawGet, kvrpcpb.RawGetRequest(key=b"z")),
            (Tikv.RawBatchGet, kvrpcpb.RawBatchGetRequest(keys=[b"a", b"z"])),
            (Tikv.RawBatchPut, kvrpcpb.RawBatchPutRequest(pairs=[kvrpcpb.KvPair(key=b"z")])),
            (Tikv.RawScan, kvrpcpb.RawScanRequest(start_key=b"z", limit=1)),
            (Tikv.RawScan, kvrpcpb.RawScanRequest(start_key=b"z", end_key=b"q", reverse=True, limit=1)),
            (Tikv.RawDeleteRange, kvrpcpb.RawDeleteRangeRequest(start_key=b"z")),
            (Tikv.RawChecksum, kvrpcpb.RawChecksumRequest(ranges=[kvrpcpb.KeyRange(start_key=b"z")])),
        ],
        ids=lambda value: getattr(value, "name", ""),
    )
    async def test_a_key_of_another_region(self, cluster: FakeCluster, rpc: Rpc[Any, Any], message: Any) -> None:
        message.context.CopyFrom(context(cluster, b"a"))

        response = await unary(cluster, rpc, message)

        assert response.region_error.HasField("key_not_in_region")

    async def test_keys_of_a_keyspace_are_understood(self) -> None:
        codec = KeyspaceCodec(b"r", 3, "users")
        async with FakeCluster([b"m"], codec=codec) as cluster:
            request = put(cluster, b"a", b"1")
            request.key = codec.encode_key(b"a")

            response = await unary(cluster, Tikv.RawPut, request)

            assert not response.HasField("region_error")
            assert cluster.data == {codec.encode_key(b"a"): b"1"}


class TestScripts:
    async def test_an_answer_comes_without_anything_done(self, cluster: FakeCluster) -> None:
        cluster.store(1).answer_next(Tikv.RawPut, kvrpcpb.RawPutResponse(error="no"))

        first = await unary(cluster, Tikv.RawPut, put(cluster, b"a", b"1"))
        second = await unary(cluster, Tikv.RawPut, put(cluster, b"b", b"2"))

        assert (first.error, second.error) == ("no", "")
        assert cluster.data == {b"b": b"2"}

    async def test_an_error_of_the_region_is_short_to_write(self, cluster: FakeCluster) -> None:
        error = errorpb.Error(message="said", stale_command=errorpb.StaleCommand())
        cluster.store(1).answer_next(Tikv.RawGet, region_error=error, times=2)

        answers = [await unary(cluster, Tikv.RawGet, get(cluster, b"a")) for _ in range(3)]

        assert [answer.region_error.message for answer in answers] == ["said", "said", ""]

    async def test_a_script_is_for_its_rpc_or_for_any(self, cluster: FakeCluster) -> None:
        cluster.store(1).answer_next(Tikv.RawPut, kvrpcpb.RawPutResponse(error="put"))
        cluster.store(1).fail_next(None, "UNAVAILABLE", "any")

        with pytest.raises(RpcError, match="any"):
            await unary(cluster, Tikv.RawGet, get(cluster, b"a"))
        assert (await unary(cluster, Tikv.RawPut, put(cluster, b"a", b"1"))).error == "put"

    async def test_a_status_ends_a_batched_stream_and_what_waits_on_it(self, cluster: FakeCluster) -> None:
        cluster.store(1).fail_next(Tikv.RawPut, "UNAVAILABLE", "overloaded")
        cluster.store(1).hang_next(Tikv.RawGet)

        with pytest.raises(RpcError, match="overloaded"):
            await batched(
                cluster,
                tikvpb.BatchCommandsRequest.Request(RawGet=get(cluster, b"a")),
                tikvpb.BatchCommandsRequest.Request(RawPut=put(cluster, b"a", b"1")),
            )

    @pytest.mark.parametrize("hang", [False, True])
    async def test_an_answer_can_be_lost_after_the_work_was_done(self, cluster: FakeCluster, hang: bool) -> None:
        cluster.store(1).drop_reply_next(Tikv.RawPut, hang=hang)
        connection = cluster.transport.connect(cluster.store(1).address)

        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED" if hang else "UNAVAILABLE"):
            await connection.unary(Tikv.RawPut, put(cluster, b"a", b"1"), timeout=0.1)

        assert cluster.data == {b"a": b"1"}

    async def test_a_request_that_hangs_holds_up_no_other(self, cluster: FakeCluster) -> None:
        cluster.store(1).delay_next(Tikv.RawPut, 0.05)

        answers = await batched(
            cluster,
            tikvpb.BatchCommandsRequest.Request(RawPut=put(cluster, b"a", b"1")),
            tikvpb.BatchCommandsRequest.Request(RawGet=get(cluster, b"z")),
        )

        assert list(answers) == [1, 0]

    async def test_the_cluster_can_move_before_a_request_is_served(self, cluster: FakeCluster) -> None:
        cluster.store(1).before_next(Tikv.RawGet, lambda: cluster.move_leader(b"a", 2))

        response = await unary(cluster, Tikv.RawGet, get(cluster, b"a"))

        assert response.region_error.not_leader.leader.store_id == 2

    async def test_healing_drops_what_was_scripted(self, cluster: FakeCluster) -> None:
        cluster.store(1).fail_next(None, "UNAVAILABLE", times=1000)

        cluster.store(1).heal()

        assert (await unary(cluster, Tikv.RawGet, get(cluster, b"a"))).not_found

    async def test_a_stopped_store_refuses_and_a_started_one_has_kept_everything(self, cluster: FakeCluster) -> None:
        await unary(cluster, Tikv.RawPut, put(cluster, b"a", b"1"))
        cluster.store(1).stop()

        with pytest.raises(RpcError, match="refused"):
            await unary(cluster, Tikv.RawGet, get(cluster, b"a"))
        cluster.store(1).start()

        assert (await unary(cluster, Tikv.RawGet, get(cluster, b"a"))).value == b"1"


class TestPd:
    async def test_pd_learns_of_moves_at_once_or_when_told(self, cluster: FakeCluster) -> None:
        cluster.split(b"c")
        known = list(cluster.pd.regions)
        cluster.pd_lags = True
        cluster.merge(b"c")

        lagging = list(cluster.pd.regions)
        cluster.update_pd()

        assert (len(known), lagging, len(cluster.pd.regions)) == (4, known, 3)

    async def test_pd_knows_where_stores_are_and_which_left(self, cluster: FakeCluster) -> None:
        cluster.move_store(1, "elsewhere:20160")
        cluster.remove_store(3)

        assert cluster.pd.stores[1].address == cluster.store(1).address == "elsewhere:20160"
        assert cluster.pd.stores[3].is_tombstone


def answer(raw: RawMap, rpc: Rpc[Any, Any], bounds: tuple[bytes, bytes] = EVERYTHING, **fields: Any) -> Any:
    return raw.answer(rpc, rpc.request(**fields), bounds)


class TestRawMap:
    @pytest.fixture
    async def raw(self) -> RawMap:
        raw = RawMap()
        for key in (b"a", b"c", b"e", b"g"):
            raw.put(key, key * 2)
        return raw

    async def test_deleting(self, raw: RawMap) -> None:
        answer(raw, Tikv.RawDelete, key=b"a")
        answer(raw, Tikv.RawDelete, key=b"missing")
        answer(raw, Tikv.RawBatchDelete, keys=[b"c", b"e"])

        assert raw.pairs() == {b"g": b"gg"}

    async def test_deleting_a_range_stays_within_the_region(self, raw: RawMap) -> None:
        answer(raw, Tikv.RawDeleteRange, (b"b", b"f"), start_key=b"a", end_key=b"z")

        assert list(raw.pairs()) == [b"a", b"g"]

    async def test_scanning_both_ways_within_the_region(self, raw: RawMap) -> None:
        bounds = (b"b", b"f")

        up = answer(raw, Tikv.RawScan, bounds, start_key=b"", limit=10)
        down = answer(raw, Tikv.RawScan, bounds, start_key=b"f", limit=1, reverse=True, key_only=True)

        assert [(pair.key, pair.value) for pair in up.kvs] == [(b"c", b"cc"), (b"e", b"ee")]
        assert [(pair.key, pair.value) for pair in down.kvs] == [(b"e", b"")]

    async def test_comparing_and_swapping(self, raw: RawMap) -> None:
        wrong = answer(raw, Tikv.RawCompareAndSwap, key=b"a", previous_value=b"?", value=b"1")
        right = answer(raw, Tikv.RawCompareAndSwap, key=b"a", previous_value=b"aa", value=b"1")
        new = answer(raw, Tikv.RawCompareAndSwap, key=b"n", previous_not_exist=True, value=b"2")
        gone = answer(raw, Tikv.RawCompareAndSwap, key=b"c", previous_value=b"cc", delete=True)

        assert [(a.succeed, a.previous_value) for a in (wrong, right, gone)] == [
            (False, b"aa"),
            (True, b"aa"),
            (True, b"cc"),
        ]
        assert (new.succeed, new.previous_not_exist) == (True, True)
        assert raw.pairs() == {b"a": b"1", b"e": b"ee", b"g": b"gg", b"n": b"2"}

    async def test_pairs_vanish_when_their_time_is_over(self, raw: RawMap) -> None:
        answer(raw, Tikv.RawPut, key=b"t", value=b"1", ttl=1)
        left = answer(raw, Tikv.RawGetKeyTTL, key=b"t").ttl

        await anyio.sleep(1.1)

        assert left == 1
        assert answer(raw, Tikv.RawGetKeyTTL, key=b"t").not_found
        assert answer(raw, Tikv.RawGetKeyTTL, key=b"a").ttl == 0
        assert b"t" not in raw.pairs()

    async def test_one_ttl_goes_for_all_pairs_and_several_for_each(self, raw: RawMap) -> None:
        pairs = [kvrpcpb.KvPair(key=b"x", value=b"1"), kvrpcpb.KvPair(key=b"y", value=b"2")]

        answer(raw, Tikv.RawBatchPut, pairs=pairs, ttls=[100])
        same = [answer(raw, Tikv.RawGetKeyTTL, key=key).ttl > 90 for key in (b"x", b"y")]
        answer(raw, Tikv.RawBatchPut, pairs=pairs, ttls=[0, 100])
        each = [answer(raw, Tikv.RawGetKeyTTL, key=key).ttl > 90 for key in (b"x", b"y")]

        assert (same, each) == ([True, True], [False, True])

    async def test_column_families_are_apart(self, raw: RawMap) -> None:
        answer(raw, Tikv.RawPut, key=b"a", value=b"w", cf="write")

        assert raw.pairs("write") == {b"a": b"w"}
        assert answer(raw, Tikv.RawGet, key=b"a").value == b"aa"
        assert answer(raw, Tikv.RawGet, key=b"c", cf="write").not_found

    async def test_checksums_are_tikvs(self, raw: RawMap) -> None:
        checksum = answer(raw, Tikv.RawChecksum, (b"b", b"f"), ranges=[kvrpcpb.KeyRange()])

        assert checksum.checksum == crc64(b"ccc") ^ crc64(b"eee")
        assert (checksum.total_kvs, checksum.total_bytes) == (2, 6)

    def test_the_crc_is_that_of_xz(self) -> None:
        # The check value of CRC-64/XZ.
        assert crc64(b"123456789") == 0x995DC9BBDF1939FA


async def test_a_store_says_whether_it_serves_and_how_slow_it_is() -> None:
    async with FakeCluster() as cluster:
        store = cluster.store(1)
        store.serving_status, store.slow_score = HealthCheckResponse.NOT_SERVING, 80

        health = await unary(cluster, Health.Check, HealthCheckRequest())
        reports = [await unary(cluster, Tikv.GetHealthFeedback, kvrpcpb.GetHealthFeedbackRequest()) for _ in range(2)]

        assert health.status == HealthCheckResponse.NOT_SERVING
        assert [(r.health_feedback.store_id, r.health_feedback.slow_score) for r in reports] == [(1, 80)] * 2
        assert reports[0].health_feedback.feedback_seq_no < reports[1].health_feedback.feedback_seq_no


async def test_scripts_for_any_request_leave_health_checks_alone() -> None:
    async with FakeCluster() as cluster:
        cluster.store(1).fail_next(None, "UNAVAILABLE")
        cluster.store(1).fail_next(Health.Check, "INTERNAL")

        with pytest.raises(RpcError, match="INTERNAL"):
            await unary(cluster, Health.Check, HealthCheckRequest())
        assert (await unary(cluster, Health.Check, HealthCheckRequest())).status == HealthCheckResponse.SERVING
        with pytest.raises(RpcError, match="UNAVAILABLE"):
            await unary(cluster, Tikv.RawGet, get(cluster, b"a"))
