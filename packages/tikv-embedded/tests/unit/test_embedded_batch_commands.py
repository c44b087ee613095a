"""One message of a BatchCommands stream: every request is answered, writes are committed together, nothing waits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tikv_embedded import meta
from tikv_embedded.engine import MemoryEngine, WriteBatch
from tikv_embedded.mvcc.max_ts import MaxTs
from tikv_embedded.pd.tso import TimestampOracle
from tikv_embedded.region import Peer, Region, RegionEpoch, Store
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.store.batch_commands import MAX_GROUP, BatchAnswers, RequestStores, answer_message
from tikv_embedded.store.health_feedback import HealthReporter
from tikv_embedded.store.raw_requests import ClusterIdMismatchError, RawStore
from tikv_embedded.store.safe_ts import SafeTs
from tikv_embedded.store.txn_requests import TxnStore
from tikv_embedded.testing import context_for
from tikv_embedded.topology import Topology
from tikv_proto import coprocessor, kvrpcpb, tikvpb

REGION = Region(1, b"", b"y", RegionEpoch(), (Peer(2, 1),), leader=Peer(2, 1))
CONTEXT = context_for(REGION)
STATE = meta.ClusterState(
    cluster_id=7, mode=ApiMode.V1, max_peer_count=1, next_id=10, stores=(Store(1, ""),), regions=(REGION,)
)


class CountingEngine(MemoryEngine):
    """Remembers how often it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, batch: WriteBatch) -> None:
        self.writes += 1
        super().write(batch)


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


def answer(engine: MemoryEngine, requests: Mapping[int, Any]) -> BatchAnswers:
    """Send the requests under their ids; None stands for a request without a command."""
    message = tikvpb.BatchCommandsRequest(request_ids=requests, requests=map(wrap, requests.values()))
    topology = Topology(engine, STATE)
    next_ts = TimestampOracle(MemoryEngine()).next_ts
    max_ts = MaxTs(next_ts)
    raw = RawStore(topology, ApiMode.V1, next_ts, 1)
    txn = TxnStore(topology, ApiMode.V1, 1, lambda _store_id: max_ts, SafeTs(next_ts))
    return answer_message(message, engine, RequestStores(raw, txn), HealthReporter(1))


def wrap(request: Any) -> tikvpb.BatchCommandsRequest.Request:
    wrapped = tikvpb.BatchCommandsRequest.Request()
    for field in wrapped.DESCRIPTOR.fields if request is not None else ():
        if field.message_type is request.DESCRIPTOR:
            getattr(wrapped, field.name).CopyFrom(request)
    return wrapped


def by_id(answers: BatchAnswers) -> dict[int, tikvpb.BatchCommandsResponse.Response]:
    found: dict[int, tikvpb.BatchCommandsResponse.Response] = {}
    for group in answers.groups:
        assert len(group.request_ids) == len(group.responses) <= MAX_GROUP
        found.update(zip(group.request_ids, group.responses, strict=True))
    return found


def put(key: bytes, value: bytes) -> kvrpcpb.RawPutRequest:
    return kvrpcpb.RawPutRequest(context=CONTEXT, key=key, value=value)


def get(key: bytes, context: kvrpcpb.Context = CONTEXT) -> kvrpcpb.RawGetRequest:
    return kvrpcpb.RawGetRequest(context=context, key=key)


def test_each_answer_carries_the_id_of_its_request(engine: CountingEngine) -> None:
    answer(engine, {1: put(b"a", b"1"), 2: put(b"b", b"2")})

    answers = by_id(answer(engine, {30: get(b"b"), 10: get(b"a"), 20: get(b"c")}))

    assert answers[10].RawGet.value == b"1"
    assert answers[30].RawGet.value == b"2"
    assert answers[20].RawGet.not_found


def test_all_writes_of_a_message_are_one_write_of_the_engine(engine: CountingEngine) -> None:
    before = engine.writes

    answers = answer(engine, {number: put(b"k%d" % number, b"v") for number in range(300)})

    assert len(by_id(answers)) == 300
    assert engine.writes == before + 1


def test_a_read_sees_the_writes_of_its_own_message_wherever_it_stands(engine: CountingEngine) -> None:
    answers = by_id(answer(engine, {1: get(b"a"), 2: put(b"a", b"1"), 3: get(b"a"), 4: put(b"a", b"2")}))

    assert answers[1].RawGet.value == b"2"
    assert answers[3].RawGet.value == b"2"


def test_reads_and_refused_writes_write_nothing(engine: CountingEngine) -> None:
    before = engine.writes

    answer(engine, {1: get(b"a"), 2: None, 3: put(b"z", b"outside")})

    assert engine.writes == before


def test_a_refused_request_spoils_none_of_the_others(engine: CountingEngine) -> None:
    stale = kvrpcpb.Context()
    stale.CopyFrom(CONTEXT)
    stale.region_epoch.version = 9

    answers = by_id(answer(engine, {1: put(b"a", b"1"), 2: put(b"z", b"1"), 3: get(b"a", stale), 4: get(b"a")}))

    assert not answers[1].RawPut.HasField("region_error")
    assert answers[2].RawPut.region_error.key_not_in_region.key == b"z"
    assert answers[3].RawGet.region_error.HasField("epoch_not_match")
    assert answers[4].RawGet.value == b"1"


def test_answers_come_in_groups_of_128(engine: CountingEngine) -> None:
    answers = answer(engine, {number: get(b"a") for number in range(300)})

    assert [len(group.responses) for group in answers.groups] == [128, 128, 44]


def test_an_empty_request_is_echoed_and_a_long_one_is_handed_back(engine: CountingEngine) -> None:
    answers = answer(
        engine,
        {
            1: tikvpb.BatchCommandsEmptyRequest(test_id=5, delay_time=9),
            2: tikvpb.BatchCommandsEmptyRequest(test_id=6, delay_time=10),
        },
    )

    assert by_id(answers)[1].Empty.test_id == 5
    assert [(request_id, empty.test_id) for request_id, empty in answers.delayed] == [(2, 6)]


def test_a_request_without_a_command_gets_an_empty_response(engine: CountingEngine) -> None:
    answers = by_id(answer(engine, {1: None}))

    assert answers[1].WhichOneof("cmd") is None


def test_the_health_of_the_store_is_told_when_asked_for(engine: CountingEngine) -> None:
    answers = answer(engine, {1: kvrpcpb.GetHealthFeedbackRequest(context=CONTEXT)})

    health = by_id(answers)[1].GetHealthFeedback.health_feedback
    assert answers.has_feedback
    assert (health.store_id, health.slow_score) == (1, 1)
    assert health.feedback_seq_no > 0


@pytest.mark.parametrize(
    ("request_", "field", "error"),
    [
        (kvrpcpb.PessimisticLockRequest(), "PessimisticLock", lambda response: response.errors[0].abort),
        (kvrpcpb.RawCoprocessorRequest(), "RawCoprocessor", lambda response: response.error),
        (kvrpcpb.BufferBatchGetRequest(), "BufferBatchGet", lambda response: response.error.abort),
        (coprocessor.Request(tp=103), "Coprocessor", lambda response: response.other_error),
    ],
)
def test_a_command_that_is_not_served_says_so_instead_of_nothing(
    engine: CountingEngine, request_: Any, field: str, error: Any
) -> None:
    answers = by_id(answer(engine, {1: request_}))

    assert f"{field} is not served" in error(getattr(answers[1], field))


def test_a_hint_that_is_not_served_is_ignored(engine: CountingEngine) -> None:
    answers = by_id(answer(engine, {1: kvrpcpb.BroadcastTxnStatusRequest()}))

    assert answers[1].BroadcastTxnStatus == kvrpcpb.BroadcastTxnStatusResponse()


def test_a_request_for_another_cluster_ends_it_all_and_writes_nothing(engine: CountingEngine) -> None:
    lost = kvrpcpb.Context()
    lost.CopyFrom(CONTEXT)
    lost.cluster_id = 8
    before = engine.writes

    with pytest.raises(ClusterIdMismatchError, match="need 7 but got 8"):
        answer(engine, {1: put(b"a", b"1"), 2: kvrpcpb.RawPutRequest(context=lost, key=b"b")})

    assert engine.writes == before


@pytest.mark.parametrize("cluster_id", [0, 7])
def test_its_own_cluster_id_or_none_is_fine(engine: CountingEngine, cluster_id: int) -> None:
    own = kvrpcpb.Context()
    own.CopyFrom(CONTEXT)
    own.cluster_id = cluster_id

    answers = by_id(answer(engine, {1: get(b"a", own)}))

    assert answers[1].RawGet.not_found
