"""Every operation meets every error of a Region once, and no caller notices."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import attrs
import pytest
from tikv_proto import errorpb, metapb
from tikv_proto.services import Rpc, Tikv
from tikv_raw import CasResult, EntryTooLarge, RawClient, TikvError, UndeterminedError
from tikv_region import FlashbackInProgress
from tikv_rpc.testing import FakeCluster, crc64

PAIRS = {key: b"value of " + key for key in (b"a", b"b", b"h", b"q", b"r")}


@attrs.frozen
class Operation:
    name: str
    rpc: Rpc[Any, Any]
    call: Callable[[RawClient], Coroutine[Any, Any, object]]
    result: object
    left: dict[bytes, bytes] = attrs.field(factory=lambda: PAIRS)
    """The pairs after it."""


def scanning(**options: Any) -> Callable[[RawClient], Coroutine[Any, Any, object]]:
    async def scan(client: RawClient) -> object:
        return [pair async for pair in client.scan(**options)]

    return scan


def without(*keys: bytes) -> dict[bytes, bytes]:
    return {key: value for key, value in PAIRS.items() if key not in keys}


async def checksum(client: RawClient) -> object:
    found = await client.checksum()
    return found.crc64_xor, found.total_kvs


def checksum_of(pairs: dict[bytes, bytes]) -> tuple[int, int]:
    total = 0
    for key, value in pairs.items():
        total ^= crc64(key + value)
    return total, len(pairs)


READS = [
    Operation("get", Tikv.RawGet, lambda c: c.get(b"h"), PAIRS[b"h"]),
    Operation("batch_get", Tikv.RawBatchGet, lambda c: c.batch_get([*PAIRS, b"missing"]), PAIRS),
    Operation("scan", Tikv.RawScan, scanning(), list(PAIRS.items())),
    Operation("scan in reverse", Tikv.RawScan, scanning(reverse=True), list(PAIRS.items())[::-1]),
    Operation("ttl", Tikv.RawGetKeyTTL, lambda c: c.ttl(b"h"), 0),
    Operation("checksum", Tikv.RawChecksum, checksum, checksum_of(PAIRS)),
]
NEW, EMPTY = {**PAIRS, b"h": b"new"}, dict.fromkeys(PAIRS, b"")
WRITES = [
    Operation("put", Tikv.RawPut, lambda c: c.put(b"h", b"new"), None, NEW),
    Operation("batch_put", Tikv.RawBatchPut, lambda c: c.batch_put(EMPTY), None, EMPTY),
    Operation("delete", Tikv.RawDelete, lambda c: c.delete(b"h"), None, without(b"h")),
    Operation("batch_delete", Tikv.RawBatchDelete, lambda c: c.batch_delete([b"a", b"r"]), None, without(b"a", b"r")),
    Operation(
        "delete_range", Tikv.RawDeleteRange, lambda c: c.delete_range(b"b", b"r"), None, without(b"b", b"h", b"q")
    ),
    Operation(
        "compare_and_swap",
        Tikv.RawCompareAndSwap,
        lambda c: c.compare_and_swap(b"h", PAIRS[b"h"], b"new"),
        CasResult(True, PAIRS[b"h"]),
        NEW,
    ),
]
SINGLE = [operation for operation in WRITES if operation.name in {"put", "delete", "compare_and_swap"}]
every_operation = pytest.mark.parametrize("operation", [*READS, *WRITES], ids=lambda operation: operation.name)

ERRORS = {
    "not_leader": errorpb.Error(not_leader=errorpb.NotLeader()),
    "region_not_found": errorpb.Error(region_not_found=errorpb.RegionNotFound()),
    "key_not_in_region": errorpb.Error(key_not_in_region=errorpb.KeyNotInRegion()),
    "epoch_not_match": errorpb.Error(epoch_not_match=errorpb.EpochNotMatch()),
    "server_is_busy": errorpb.Error(server_is_busy=errorpb.ServerIsBusy(reason="scheduler is busy")),
    "stale_command": errorpb.Error(stale_command=errorpb.StaleCommand()),
    "store_not_match": errorpb.Error(store_not_match=errorpb.StoreNotMatch()),
    "max_timestamp_not_synced": errorpb.Error(max_timestamp_not_synced=errorpb.MaxTimestampNotSynced()),
    "read_index_not_ready": errorpb.Error(read_index_not_ready=errorpb.ReadIndexNotReady()),
    "proposal_in_merging_mode": errorpb.Error(proposal_in_merging_mode=errorpb.ProposalInMergingMode()),
    "data_is_not_ready": errorpb.Error(data_is_not_ready=errorpb.DataIsNotReady()),
    "region_not_initialized": errorpb.Error(region_not_initialized=errorpb.RegionNotInitialized()),
    "disk_full": errorpb.Error(disk_full=errorpb.DiskFull()),
    "recovery_in_progress": errorpb.Error(RecoveryInProgress=errorpb.RecoveryInProgress()),
    "is_witness": errorpb.Error(is_witness=errorpb.IsWitness()),
    "mismatch_peer_id": errorpb.Error(mismatch_peer_id=errorpb.MismatchPeerId()),
    "bucket_version_not_match": errorpb.Error(bucket_version_not_match=errorpb.BucketVersionNotMatch()),
    "in words alone": errorpb.Error(message="TiKV is Closing"),
}


async def prepare(cluster: FakeCluster, client: RawClient) -> None:
    """Have the pairs there and all Regions known."""
    for key, value in PAIRS.items():
        cluster.raw.put(key, value)
    await client.batch_get([b"a", b"h", b"q"])
    cluster.log.clear()


@every_operation
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("times", [1, 3])
async def test_an_operation_survives_an_error_of_a_region(
    cluster: FakeCluster, client: RawClient, operation: Operation, error: str, times: int
) -> None:
    await prepare(cluster, client)
    for store in cluster.stores.values():
        store.answer_next(operation.rpc, region_error=ERRORS[error], times=times)

    result = await operation.call(client)

    assert result == operation.result
    assert cluster.data == operation.left
    assert len(cluster.requests(operation.rpc)) > times


@every_operation
@pytest.mark.parametrize(
    "move",
    [
        lambda cluster: cluster.split(b"b", b"c", b"h", b"i", b"r"),
        lambda cluster: cluster.merge(b"a"),
        lambda cluster: [cluster.merge(b"a"), cluster.merge(b"a"), cluster.split(b"b\0", b"m")],
        lambda cluster: [cluster.move_leader(key, 2) for key in (b"a", b"h", b"q")],
        lambda cluster: [cluster.move_peer(key, 1, 3) for key in (b"a", b"h", b"q")],
        lambda cluster: cluster.move_store(1, "tikv9:20160"),
    ],
    ids=["split", "merge", "other borders", "new leaders", "new peers", "new address"],
)
@pytest.mark.parametrize("pd_lags", [False, True])
async def test_an_operation_follows_a_region_that_moves_while_the_request_travels(
    cluster: FakeCluster,
    client: RawClient,
    operation: Operation,
    move: Callable[[FakeCluster], object],
    pd_lags: bool,
) -> None:
    await prepare(cluster, client)
    cluster.pd_lags = pd_lags
    cluster.store(1).before_next(operation.rpc, lambda: move(cluster))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(update_pd_later, cluster)
        result = await operation.call(client)

    assert result == operation.result
    assert cluster.data == operation.left


async def update_pd_later(cluster: FakeCluster) -> None:
    await anyio.sleep(1)
    cluster.update_pd()


async def test_a_leader_that_is_named_is_asked_at_once(cluster: FakeCluster, client: RawClient) -> None:
    await prepare(cluster, client)
    cluster.move_leader(b"h", 3)
    started = anyio.current_time()

    await client.get(b"h")

    assert anyio.current_time() == started
    assert [received.store_id for received in cluster.log] == [1, 3]


async def test_regions_merged_by_the_hundred_are_learned_at_once(cluster: FakeCluster, client: RawClient) -> None:
    keys = [b"%03d" % number for number in range(200)]
    cluster.split(*keys[1:])
    for key in keys:
        cluster.raw.put(key, b"v")
    await client.batch_get(keys)
    for _ in range(201):
        cluster.merge(b"")
    started = anyio.current_time()

    assert len(await client.batch_get(keys)) == 200
    assert anyio.current_time() < started + 0.2


@pytest.mark.parametrize("operation", SINGLE, ids=lambda operation: operation.name)
@pytest.mark.parametrize(
    ("error", "raised", "retryable"),
    [
        (errorpb.Error(raft_entry_too_large=errorpb.RaftEntryTooLarge(entry_size=9)), EntryTooLarge, False),
        (errorpb.Error(FlashbackInProgress=errorpb.FlashbackInProgress()), FlashbackInProgress, True),
        (errorpb.Error(undetermined_result=errorpb.UndeterminedResult()), UndeterminedError, False),
    ],
    ids=["too large", "flashback", "undetermined"],
)
async def test_an_error_that_no_retry_cures_is_raised_at_once(
    cluster: FakeCluster,
    client: RawClient,
    operation: Operation,
    error: errorpb.Error,
    raised: type[TikvError],
    retryable: bool,
) -> None:
    await prepare(cluster, client)
    cluster.store(1).answer_next(operation.rpc, region_error=error, times=99)
    started = anyio.current_time()

    with pytest.raises(raised) as caught:
        await operation.call(client)

    assert anyio.current_time() == started
    assert caught.value.retryable is retryable
    assert caught.value.undetermined is (raised is UndeterminedError)
    assert cluster.data == PAIRS


async def test_the_context_of_a_request_names_region_peer_and_cluster(cluster: FakeCluster, client: RawClient) -> None:
    await client.get(b"h")

    region = cluster.map.region(b"h")
    context = cluster.requests(Tikv.RawGet)[0].context
    assert region.leader is not None
    assert (context.region_id, context.region_epoch) == (region.id, metapb.RegionEpoch(conf_ver=1, version=1))
    assert context.peer == metapb.Peer(id=region.leader.id, store_id=1)
    assert (context.cluster_id, context.api_version, context.keyspace_id) == (7, 0, 0xFFFFFFFF)
    assert context.max_execution_duration_ms > 0
