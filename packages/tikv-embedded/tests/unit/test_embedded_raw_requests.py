"""What a store checks around the raw actions: Region, deadline, keys against encoded bounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from tikv_embedded import meta
from tikv_embedded.engine import MemoryEngine
from tikv_embedded.pd.keyspaces import raw_key
from tikv_embedded.pd.tso import TimestampOracle
from tikv_embedded.region import Peer, Region, RegionEpoch, Store
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.store.raw_requests import RAW_RULES, RawStore
from tikv_embedded.testing import context_for
from tikv_embedded.topology import Topology
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv, all_rpcs

PEERS = (Peer(11, 1), Peer(12, 2))


def region(mode: ApiMode) -> Region:
    """Return a Region from key b to key y, in the given mode."""
    start, end = (raw_key(0, b"b"), raw_key(0, b"y")) if mode is ApiMode.V2 else (b"b", b"y")
    return Region(1, start, end, RegionEpoch(), PEERS, leader=PEERS[0])


def run(
    request: Any, *, mode: ApiMode = ApiMode.V1, store_id: int = 1, clock: Callable[[], float] = lambda: 0.0
) -> Any:
    """Answer one request on an empty cluster, and carry out what it writes."""
    engine = MemoryEngine()
    state = meta.ClusterState(
        cluster_id=1, mode=mode, max_peer_count=2, next_id=100, stores=(Store(1, ""),), regions=(region(mode),)
    )
    store = RawStore(Topology(engine, state), mode, TimestampOracle(engine).next_ts, store_id, clock)
    with engine.snapshot() as snapshot:
        response, batch = store.session(snapshot).run(RAW_RULES[type(request)], request)
    if batch is not None:
        engine.write(batch)
    return response


V1 = context_for(region(ApiMode.V1))
V2 = context_for(region(ApiMode.V2), api_version=kvrpcpb.APIVersion.V2)


def ranges(*bounds: bytes) -> list[kvrpcpb.KeyRange]:
    return [kvrpcpb.KeyRange(start_key=start, end_key=end) for start, end in itertools.pairwise(bounds)]


def test_every_raw_rpc_but_the_coprocessor_is_served() -> None:
    raw = {rpc.request for rpc in all_rpcs() if rpc.name.startswith("Raw")}

    assert raw - set(RAW_RULES) == {Tikv.RawCoprocessor.request}
    for rpc in all_rpcs():
        if rpc.request in RAW_RULES:
            assert RAW_RULES[rpc.request].response is rpc.response


@pytest.mark.parametrize(
    "request_",
    [
        kvrpcpb.RawGetRequest(context=V1, key=b"a"),
        kvrpcpb.RawBatchGetRequest(context=V1, keys=[b"c", b"a"]),
        kvrpcpb.RawGetKeyTTLRequest(context=V1, key=b"a"),
        kvrpcpb.RawPutRequest(context=V1, key=b"a"),
        kvrpcpb.RawBatchPutRequest(context=V1, pairs=[kvrpcpb.KvPair(key=b"c"), kvrpcpb.KvPair(key=b"a")]),
        kvrpcpb.RawDeleteRequest(context=V1, key=b"a"),
        kvrpcpb.RawBatchDeleteRequest(context=V1, keys=[b"c", b"a"]),
        kvrpcpb.RawDeleteRangeRequest(context=V1, start_key=b"a", end_key=b"c"),
        kvrpcpb.RawCASRequest(context=V1, key=b"a"),
        kvrpcpb.RawScanRequest(context=V1, start_key=b"a", limit=1),
        kvrpcpb.RawBatchScanRequest(context=V1, ranges=ranges(b"a", b"c"), each_limit=1),
        kvrpcpb.RawChecksumRequest(context=V1, ranges=ranges(b"a", b"c")),
    ],
    ids=lambda request_: type(request_).__name__,
)
def test_a_key_outside_the_region_is_refused_by_every_request(request_: Any) -> None:
    response = run(request_)

    assert response.region_error.key_not_in_region.key == b"a"
    assert response.region_error.key_not_in_region.start_key == b"b"


@pytest.mark.parametrize(
    "request_",
    [
        kvrpcpb.RawScanRequest(context=V1, start_key=b"c", end_key=b"zz", limit=1),
        kvrpcpb.RawScanRequest(context=V1, limit=1),
        kvrpcpb.RawScanRequest(context=V1, start_key=b"y", reverse=True, limit=1),
        kvrpcpb.RawChecksumRequest(context=V1, ranges=[kvrpcpb.KeyRange(start_key=b"c")]),
        kvrpcpb.RawDeleteRangeRequest(context=V1, start_key=b"b", end_key=b"y"),
    ],
)
def test_a_range_is_cut_to_the_region_where_that_loses_nothing(request_: Any) -> None:
    assert not run(request_).HasField("region_error")


@pytest.mark.parametrize("end_key", [b"", b"z"])
def test_a_range_is_not_deleted_in_part(end_key: bytes) -> None:
    response = run(kvrpcpb.RawDeleteRangeRequest(context=V1, start_key=b"c", end_key=end_key))

    assert response.region_error.key_not_in_region.key == end_key


def test_in_v2_keys_are_compared_and_named_in_memcomparable_form() -> None:
    inside = run(kvrpcpb.RawGetRequest(context=V2, key=b"r\x00\x00\x00c"), mode=ApiMode.V2)
    outside = run(kvrpcpb.RawGetRequest(context=V2, key=b"r\x00\x00\x00a"), mode=ApiMode.V2)

    assert inside.not_found
    assert outside.region_error.key_not_in_region.key == raw_key(0, b"a")


@pytest.mark.parametrize(
    ("context", "mode"), [(V1, ApiMode.V2), (V2, ApiMode.V1)], ids=["V1 request to V2", "V2 request to V1"]
)
def test_a_request_of_another_api_version_is_told_that_and_not_that_its_key_is_elsewhere(
    context: kvrpcpb.Context, mode: ApiMode
) -> None:
    response = run(kvrpcpb.RawGetRequest(context=context, key=b"a"), mode=mode)

    assert "Api version" in response.error
    assert not response.HasField("region_error")


def test_in_v2_a_key_that_is_no_raw_key_is_told_that() -> None:
    response = run(kvrpcpb.RawGetRequest(context=V2, key=b"t1"), mode=ApiMode.V2)

    assert "Key mode mismatched" in response.error


def test_a_replica_answers_reads_that_allow_it() -> None:
    context = context_for(region(ApiMode.V1), 2, replica_read=True)

    read = run(kvrpcpb.RawGetRequest(context=context, key=b"c"), store_id=2)
    write = run(kvrpcpb.RawPutRequest(context=context, key=b"c"), store_id=2)

    assert read.not_found
    assert write.region_error.HasField("not_leader")


def test_a_request_that_waited_longer_than_it_wants_to_is_given_up() -> None:
    patient = context_for(region(ApiMode.V1), max_execution_duration_ms=3000)
    hasty = context_for(region(ApiMode.V1), max_execution_duration_ms=2000)

    def run_two_seconds_late(context: kvrpcpb.Context) -> Any:
        clock = itertools.count(0.0, 2.0)
        return run(kvrpcpb.RawGetRequest(context=context, key=b"c"), clock=lambda: next(clock))

    assert run_two_seconds_late(patient).not_found
    assert run_two_seconds_late(hasty).region_error.server_is_busy.reason == "deadline is exceeded"
