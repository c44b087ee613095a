"""Every error of a Region: how the request goes on, and that the caller never notices when it can."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from tikv_pd import DeadlineExceeded, TikvError, UndeterminedError
from tikv_proto import errorpb, kvrpcpb, metapb
from tikv_proto.services import PD, Tikv
from tikv_region import EntryTooLarge, FlashbackInProgress, FlashbackNotPrepared, RegionError
from tikv_region.health import TICK
from tikv_rpc import Effect
from tikv_rpc.testing import FakeCluster

if TYPE_CHECKING:
    from tests.conftest import AskedPd, Kv


def peer_on(cluster: FakeCluster, store_id: int, key: bytes = b"a") -> metapb.Peer:
    return next(peer for peer in cluster.map.region(key).peers if peer.store_id == store_id).to_pb()


# A field of errorpb.Error, the least and most seconds until the next attempt, and whether PD is asked in between.
GOES_ON = [
    (errorpb.Error(not_leader=errorpb.NotLeader()), 0, 0, False),
    (errorpb.Error(disk_full=errorpb.DiskFull()), 0.4, 0.6, False),
    (errorpb.Error(RecoveryInProgress=errorpb.RecoveryInProgress()), 0.04, 0.11, True),
    (errorpb.Error(is_witness=errorpb.IsWitness()), 0.4, 1.1, True),
    (errorpb.Error(region_not_found=errorpb.RegionNotFound()), 0.001, 0.003, True),
    (errorpb.Error(key_not_in_region=errorpb.KeyNotInRegion()), 0.001, 0.003, True),
    (errorpb.Error(epoch_not_match=errorpb.EpochNotMatch()), 0.001, 0.003, True),
    (errorpb.Error(bucket_version_not_match=errorpb.BucketVersionNotMatch()), 0.001, 0.003, False),
    (errorpb.Error(server_is_busy=errorpb.ServerIsBusy(reason="scheduler is busy")), 0.9, 2.1, False),
    (errorpb.Error(stale_command=errorpb.StaleCommand()), 0.001, 0.003, False),
    (errorpb.Error(store_not_match=errorpb.StoreNotMatch()), 0.001, 0.003, True),
    (errorpb.Error(max_timestamp_not_synced=errorpb.MaxTimestampNotSynced()), 0.001, 0.003, False),
    (errorpb.Error(region_not_initialized=errorpb.RegionNotInitialized()), 0.001, 0.003, False),
    (errorpb.Error(read_index_not_ready=errorpb.ReadIndexNotReady()), 0.001, 0.003, False),
    (errorpb.Error(proposal_in_merging_mode=errorpb.ProposalInMergingMode()), 0.001, 0.003, False),
    (errorpb.Error(data_is_not_ready=errorpb.DataIsNotReady()), 0, 0, False),
    (errorpb.Error(mismatch_peer_id=errorpb.MismatchPeerId()), 0.001, 0.003, True),
    (errorpb.Error(message="TiKV is closing"), 0.001, 0.006, False),
]
ENDS = [
    (errorpb.Error(raft_entry_too_large=errorpb.RaftEntryTooLarge(entry_size=9)), EntryTooLarge),
    (errorpb.Error(FlashbackInProgress=errorpb.FlashbackInProgress(flashback_start_ts=5)), FlashbackInProgress),
    (errorpb.Error(FlashbackNotPrepared=errorpb.FlashbackNotPrepared()), FlashbackNotPrepared),
]


def name(error: object) -> str | None:
    if not isinstance(error, errorpb.Error):
        return None
    return next((field.name for field, _ in error.ListFields() if field.name != "message"), "unknown")


def test_every_error_has_a_row_here() -> None:
    # What a hint or a list of Regions changes has tests of its own below, as has undetermined_result.
    fields = {field.name for field in errorpb.Error.DESCRIPTOR.fields} - {"message", "undetermined_result"}

    assert {name(error) for error, *_ in GOES_ON + ENDS} - {"unknown"} == fields


@pytest.mark.parametrize(("error", "least", "most", "asks_pd"), GOES_ON, ids=name)
async def test_a_request_goes_on_after(
    cluster: FakeCluster, pd: AskedPd, kv: Kv, error: errorpb.Error, least: float, most: float, asks_pd: bool
) -> None:
    await kv.put(b"a", b"1")
    pd.asked.clear()
    began = anyio.current_time()
    cluster.store(1).answer_next(Tikv.RawGet, region_error=error)

    value = await kv.get(b"a")

    assert value == b"1"
    assert least <= anyio.current_time() - began <= most
    assert ("Region" in pd.asked) == asks_pd


@pytest.mark.parametrize(("error", "expected"), ENDS, ids=name)
async def test_a_request_ends_after(
    cluster: FakeCluster, kv: Kv, error: errorpb.Error, expected: type[TikvError]
) -> None:
    cluster.store(1).answer_next(Tikv.RawPut, region_error=error)

    with pytest.raises(expected) as raised:
        await kv.put(b"a", b"1")

    assert isinstance(raised.value.__cause__, RegionError)
    assert len(cluster.requests(Tikv.RawPut)) == 1


@pytest.mark.parametrize("effect", [Effect.WRITE, Effect.ONCE])
async def test_a_write_is_undetermined_when_the_store_says_so(cluster: FakeCluster, kv: Kv, effect: Effect) -> None:
    error = errorpb.Error(undetermined_result=errorpb.UndeterminedResult(message="lost leadership"))
    cluster.store(1).answer_next(Tikv.RawPut, region_error=error)

    with pytest.raises(UndeterminedError) as raised:
        await kv.put(b"a", b"1", effect=effect)

    assert isinstance(raised.value.__cause__, RegionError)


async def test_a_read_has_no_outcome_to_be_undetermined(cluster: FakeCluster, kv: Kv) -> None:
    await kv.put(b"a", b"1")
    error = errorpb.Error(undetermined_result=errorpb.UndeterminedResult())
    cluster.store(1).answer_next(Tikv.RawGet, region_error=error, times=20)

    assert await kv.get(b"a") == b"1"


async def test_a_refusal_for_good_after_a_lost_answer_is_undetermined(cluster: FakeCluster, kv: Kv) -> None:
    flashback = errorpb.Error(FlashbackInProgress=errorpb.FlashbackInProgress())
    cluster.store(1).drop_reply_next(Tikv.RawPut)
    for store in cluster.stores.values():
        store.answer_next(Tikv.RawPut, region_error=flashback)

    with pytest.raises(UndeterminedError) as raised:
        await kv.put(b"a", b"1")

    assert isinstance(raised.value.__cause__, FlashbackInProgress)
    assert cluster.data == {b"a": b"1"}


async def test_what_is_too_large_was_so_in_the_attempt_before_too(cluster: FakeCluster, kv: Kv) -> None:
    too_large = errorpb.Error(raft_entry_too_large=errorpb.RaftEntryTooLarge(entry_size=9))
    cluster.store(1).hang_next(Tikv.RawPut)
    for store in cluster.stores.values():
        store.answer_next(Tikv.RawPut, region_error=too_large)

    with pytest.raises(EntryTooLarge):
        await kv.put(b"a", b"1")


class TestLeader:
    async def test_a_named_leader_is_asked_at_once_and_without_pd(
        self, cluster: FakeCluster, pd: AskedPd, kv: Kv
    ) -> None:
        await kv.put(b"a", b"1")
        cluster.pd_lags = True
        cluster.move_leader(b"a", 3)
        pd.asked.clear()
        began = anyio.current_time()

        value = await kv.get(b"a")

        assert value == b"1"
        assert anyio.current_time() == began
        assert [received.store_id for received in cluster.log if received.rpc is Tikv.RawGet] == [1, 3]
        assert pd.asked == []

    async def test_the_new_leader_is_remembered(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.get(b"a")
        cluster.move_leader(b"a", 2)
        await kv.get(b"a")
        cluster.log.clear()

        await kv.get(b"b")

        assert [received.store_id for received in cluster.log] == [2]

    async def test_without_a_name_the_next_replica_is_asked(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        cluster.pd_lags = True
        cluster.move_leader(b"a", 2)
        no_hint = errorpb.Error(not_leader=errorpb.NotLeader())
        cluster.store(1).answer_next(Tikv.RawGet, region_error=no_hint)

        assert await kv.get(b"a") == b"1"

        assert [received.store_id for received in cluster.log if received.rpc is Tikv.RawGet] == [1, 2]

    async def test_a_leader_unknown_here_has_the_region_loaded_again(
        self, cluster: FakeCluster, pd: AskedPd, kv: Kv
    ) -> None:
        await kv.put(b"a", b"1")
        stranger = errorpb.NotLeader(leader=metapb.Peer(id=999, store_id=9))
        cluster.store(1).answer_next(Tikv.RawGet, region_error=errorpb.Error(not_leader=stranger))

        assert await kv.get(b"a") == b"1"

        assert pd.asked.count("Region") == 2

    async def test_stores_that_name_each_other_are_asked_a_bounded_number_of_times(
        self, cluster: FakeCluster, kv: Kv
    ) -> None:
        for store_id, other in ((1, 2), (2, 1)):
            hint = errorpb.NotLeader(leader=peer_on(cluster, other))
            cluster.store(store_id).answer_next(Tikv.RawGet, region_error=errorpb.Error(not_leader=hint), times=10_000)

        with pytest.raises(DeadlineExceeded) as raised:
            await kv.get(b"a", timeout=10)

        assert isinstance(raised.value.__cause__, RegionError)
        assert raised.value.__cause__.kind == "not_leader"
        assert len(cluster.requests(Tikv.RawGet)) < 60

    async def test_many_requests_refused_at_once_find_the_leader_each(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        cluster.pd_lags = True
        cluster.move_leader(b"a", 2)
        cluster.store(1).answer_next(Tikv.RawGet, region_error=errorpb.Error(not_leader=errorpb.NotLeader()), times=10)

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(kv.get, b"a")

        assert [len(cluster.requests(Tikv.RawGet, store_id=number)) for number in (1, 2)] == [10, 10]

    async def test_the_leader_may_move_while_its_address_is_asked_for(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.cache.locate(b"a", kv.rpc.call("locate", 30).backoffer)
        entry = kv.cache.find(b"a")
        assert entry is not None
        cluster.pd.hang(PD.GetAllStores, times=1)
        values = []

        async def get() -> None:
            values.append(await kv.get(b"a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await anyio.wait_all_tasks_blocked()
            cluster.move_leader(b"a", 2)
            entry.switch_leader(1)
            cluster.pd.heal()

        assert values == [None]
        assert cluster.log[-1].store_id == 2


class TestEpoch:
    async def test_the_regions_in_the_error_are_used_at_once_and_without_pd(
        self, cluster: FakeCluster, pd: AskedPd, kv: Kv
    ) -> None:
        await kv.put(b"a", b"1")
        cluster.pd_lags = True
        cluster.split(b"c")
        began = anyio.current_time()

        assert await kv.get(b"a") == b"1"

        assert anyio.current_time() == began
        assert pd.asked.count("Region") == 1

    async def test_a_store_behind_is_given_time(self, cluster: FakeCluster, pd: AskedPd, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        before = cluster.map.region(b"a")
        cluster.split(b"c")
        await kv.get(b"a")
        old = errorpb.EpochNotMatch(current_regions=[before.to_pb()])
        old.current_regions[0].id = cluster.map.region(b"a").id
        cluster.store(1).answer_next(Tikv.RawGet, region_error=errorpb.Error(epoch_not_match=old), times=3)
        pd.asked.clear()
        began = anyio.current_time()

        assert await kv.get(b"a") == b"1"

        assert anyio.current_time() - began == pytest.approx(0.002 + 0.004 + 0.008)
        assert pd.asked == []


class TestStore:
    async def test_a_busy_store_is_waited_for(self, cluster: FakeCluster, kv: Kv) -> None:
        busy = errorpb.Error(server_is_busy=errorpb.ServerIsBusy(reason="busy"))
        cluster.store(1).answer_next(Tikv.RawPut, region_error=busy, times=3)
        began = anyio.current_time()

        await kv.put(b"a", b"1", timeout=60)

        assert 1 + 2 + 4 <= anyio.current_time() - began <= 2 + 4 + 8
        assert len(cluster.requests(Tikv.RawPut, store_id=1)) == 4

    async def test_a_store_that_is_busy_for_too_long_is_the_cause(self, cluster: FakeCluster, kv: Kv) -> None:
        busy = errorpb.Error(server_is_busy=errorpb.ServerIsBusy(reason="busy"))
        cluster.store(1).answer_next(Tikv.RawPut, region_error=busy, times=1000)
        began = anyio.current_time()

        with pytest.raises(DeadlineExceeded) as raised:
            await kv.put(b"a", b"1", timeout=10)

        assert anyio.current_time() - began == pytest.approx(10)
        assert isinstance(raised.value.__cause__, RegionError)
        assert raised.value.__cause__.kind == "server_is_busy"

    async def test_another_store_at_the_address_has_its_connection_closed(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        (before,) = kv.rpc.stats().stores.values()
        error = errorpb.Error(store_not_match=errorpb.StoreNotMatch(request_store_id=1, actual_store_id=9))
        cluster.store(1).answer_next(Tikv.RawGet, region_error=error)

        assert await kv.get(b"a") == b"1"

        (after,) = kv.rpc.stats().stores.values()
        assert (before.batch.requests, after.batch.requests) == (1, 1)

    async def test_stores_that_swapped_addresses_are_found(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        cluster.move_store(1, "tikv1:20161")
        cluster.move_store(2, "tikv1:20160")

        assert await kv.get(b"a") == b"1"

        assert [received.store_id for received in cluster.log if received.rpc is Tikv.RawGet][-1] == 1

    async def test_a_store_that_moved_is_found_at_its_new_address(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        cluster.move_store(1, "elsewhere:20160")

        assert await kv.get(b"a") == b"1"

        assert "elsewhere:20160" in kv.rpc.stats().stores

    async def test_what_leads_to_where_no_store_is_any_more_is_closed(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        cluster.move_store(1, "elsewhere:20160")
        await kv.get(b"a")
        both = set(kv.rpc.stats().stores)

        await anyio.sleep(TICK + 1)

        assert both >= {"tikv1:20160", "elsewhere:20160"}
        assert set(kv.rpc.stats().stores) == both - {"tikv1:20160"}
        assert {each.address for each in cluster.transport.open_connections()} >= {"elsewhere:20160"}
        assert "tikv1:20160" not in {each.address for each in cluster.transport.open_connections()}
        assert await kv.get(b"a") == b"1"

    async def test_but_not_before_those_who_wait_there_have_their_answers(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        entry = kv.cache.find(b"a")
        assert entry is not None
        cluster.store(1).delay_next(Tikv.RawGetKeyTTL, 9)

        async with anyio.create_task_group() as tasks:
            await anyio.sleep(TICK - 5)
            tasks.start_soon(kv.ttl, b"a")
            await anyio.wait_all_tasks_blocked()
            entry.leader_store.address = "elsewhere:20160"
            await anyio.sleep(6)
            meanwhile = set(kv.rpc.stats().stores)
        await anyio.sleep(TICK)

        assert meanwhile == {"tikv1:20160"}
        assert set(kv.rpc.stats().stores) == set()

    async def test_a_store_that_left_the_cluster_is_asked_no_more(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.put(b"a", b"1")
        cluster.move_leader(b"a", 2)
        cluster.remove_store(1)

        assert await kv.get(b"a") == b"1"

    async def test_a_leader_said_to_be_on_a_store_that_left_is_not_believed_forever(
        self, cluster: FakeCluster, kv: Kv
    ) -> None:
        await kv.put(b"a", b"1")
        hint = errorpb.NotLeader(leader=peer_on(cluster, 3))
        cluster.remove_store(3)
        cluster.store(1).answer_next(Tikv.RawGet, region_error=errorpb.Error(not_leader=hint), times=2)

        assert await kv.get(b"a") == b"1"


async def test_an_answer_other_than_a_region_error_is_returned_as_it_is(cluster: FakeCluster, kv: Kv) -> None:
    cluster.store(1).answer_next(Tikv.RawGet, kvrpcpb.RawGetResponse(value=b"scripted"))

    assert await kv.get(b"a") == b"scripted"
