"""Meta storage, global config, and timestamps that others set, over the PD ports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_embedded.pd.tso import compose
from tikv_embedded.testing import BareClient
from tikv_proto import meta_storagepb, pdpb
from tikv_proto.services import PD, MetaStorage

PUT, DELETE = meta_storagepb.Event.EventType.PUT, meta_storagepb.Event.EventType.DELETE


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


# Meta storage.


async def test_pairs_are_put_found_and_deleted(cluster: EmbeddedCluster, client: BareClient) -> None:
    first = await client.ask_pd(cluster, MetaStorage.Put, key=b"/x/a", value=b"1", prev_kv=True)
    second = await client.ask_pd(cluster, MetaStorage.Put, key=b"/x/a", value=b"2", prev_kv=True)
    await client.ask_pd(cluster, MetaStorage.Put, key=b"/x/b", value=b"3")
    one = await client.ask_pd(cluster, MetaStorage.Get, key=b"/x/a")
    some = await client.ask_pd(cluster, MetaStorage.Get, key=b"/x/", range_end=b"/x0", limit=1)
    past = await client.ask_pd(cluster, MetaStorage.Get, key=b"/x/a", revision=first.header.revision)
    gone = await client.ask_pd(cluster, MetaStorage.Delete, key=b"/x/a", prev_kv=True)
    none = await client.ask_pd(cluster, MetaStorage.Get, key=b"/x/a")

    assert not first.HasField("prev_kv")
    assert second.prev_kv == meta_storagepb.KeyValue(key=b"/x/a", value=b"1")
    assert list(one.kvs) == [meta_storagepb.KeyValue(key=b"/x/a", value=b"2")]
    assert (len(some.kvs), some.count, some.more) == (1, 2, True)
    assert [pair.value for pair in past.kvs] == [b"1"]
    assert [pair.value for pair in gone.prev_kvs] == [b"2"]
    assert (none.count, none.header.cluster_id) == (0, cluster.cluster_id)
    assert gone.header.revision == none.header.revision == first.header.revision + 3


async def test_a_watch_of_pairs_tells_what_was_before(cluster: EmbeddedCluster, client: BareClient) -> None:
    made = await client.ask_pd(cluster, MetaStorage.Put, key=b"/x/a", value=b"1")
    request = meta_storagepb.WatchRequest(
        key=b"/x/", range_end=b"/x0", start_revision=made.header.revision, prev_kv=True
    )

    watch = client.server_stream(cluster.pd_addresses[0], MetaStorage.Watch, request)
    past = await watch.read()
    await client.ask_pd(cluster, MetaStorage.Delete, key=b"/x/a")
    present = await watch.read()

    assert [(event.type, event.kv.value, event.kv.mod_revision) for event in past.events] == [
        (PUT, b"1", made.header.revision)
    ]
    (event,) = present.events
    assert (event.type, event.kv.key, event.prev_kv.value) == (DELETE, b"/x/a", b"1")
    assert present.header.revision == made.header.revision + 1


async def test_bad_requests_for_pairs_are_errors_in_the_header(cluster: EmbeddedCluster, client: BareClient) -> None:
    answers: list[Any] = [
        await client.ask_pd(cluster, MetaStorage.Put, value=b"1"),
        await client.ask_pd(cluster, MetaStorage.Put, key=b"a", lease=5),
        await client.ask_pd(cluster, MetaStorage.Get, key=b"a", revision=1 << 40),
    ]

    assert [answer.header.error.message for answer in answers] == [
        "etcdserver: key is not provided",
        "etcdserver: requested lease not found",
        "etcdserver: mvcc: required revision is a future revision",
    ]


@pytest.fixture
async def compacted(cluster: EmbeddedCluster, client: BareClient) -> int:
    """The revision from which on events are left."""
    for value in (b"1", b"2", b"3"):
        await client.ask_pd(cluster, MetaStorage.Put, key=b"/global/config/a", value=value)
    return cluster.pd.compact()


async def test_a_watch_of_what_is_compacted_is_told_where_to_go_on(
    cluster: EmbeddedCluster, client: BareClient, compacted: int
) -> None:
    request = meta_storagepb.WatchRequest(key=b"/global/config/a", start_revision=2)

    watch = client.server_stream(cluster.pd_addresses[0], MetaStorage.Watch, request)
    answer = await watch.read()

    assert answer.header.error.type == meta_storagepb.ErrorType.DATA_COMPACTED
    assert answer.compact_revision == compacted
    assert await watch.status() == (
        grpc.StatusCode.UNKNOWN,
        "etcdserver: mvcc: required revision has been compacted",
    )


async def test_followers_keep_no_pairs(client: BareClient) -> None:
    async with EmbeddedCluster(pd_members=3) as cluster:
        refused = await failure(client.ask_pd(cluster, MetaStorage.Get, member=1, key=b"a"))
        watch = client.server_stream(cluster.pd_addresses[1], MetaStorage.Watch, meta_storagepb.WatchRequest(key=b"a"))

        assert (refused.code(), refused.details()) == (grpc.StatusCode.UNAVAILABLE, "not leader")
        assert await watch.status() == (grpc.StatusCode.UNAVAILABLE, "not leader")


# Global config.


def item(name: str, **fields: Any) -> pdpb.GlobalConfigItem:
    return pdpb.GlobalConfigItem(name=name, **fields)


async def store(cluster: EmbeddedCluster, client: BareClient, path: str, *changes: pdpb.GlobalConfigItem) -> None:
    request = pdpb.StoreGlobalConfigRequest(config_path=path, changes=changes)
    await client.call(cluster.pd_addresses[0], PD.StoreGlobalConfig, request)


async def load(cluster: EmbeddedCluster, client: BareClient, path: str, *names: str) -> pdpb.LoadGlobalConfigResponse:
    request = pdpb.LoadGlobalConfigRequest(config_path=path, names=names)
    return await client.call(cluster.pd_addresses[0], PD.LoadGlobalConfig, request)


async def test_settings_are_stored_and_loaded_by_name_or_all(cluster: EmbeddedCluster, client: BareClient) -> None:
    await store(cluster, client, "", item("a", value="1"), item("b", payload=b"\xff"))
    await store(cluster, client, "/global/config/deep", item("c", payload=b"3"), item("", payload=b"itself"))

    named = await load(cluster, client, "/global/config", "a", "none")
    everything = await load(cluster, client, "")
    deep = await load(cluster, client, "/global/config/deep/")

    assert named.items[0] == item("a", payload=b"1", kind=pdpb.EventType.PUT)
    assert named.items[1].error.type == pdpb.ErrorType.GLOBAL_CONFIG_NOT_FOUND
    assert named.items[1].error.message == "key none not found"
    assert {each.name: each.payload for each in everything.items} == {
        "/global/config/a": b"1",
        "/global/config/b": b"\xff",
        "/global/config/deep": b"itself",
        "/global/config/deep/c": b"3",
    }
    assert [each.name for each in deep.items] == ["/global/config/deep/c"]
    assert everything.revision > 0


async def test_settings_outside_their_root_are_refused(cluster: EmbeddedCluster, client: BareClient) -> None:
    errors = [
        await failure(store(cluster, client, "/elsewhere", item("a", value="1"))),
        await failure(load(cluster, client, "resource_group/controller", "a")),
        await failure(store(cluster, client, "", item("a", value="1"), item("a", value="2"))),
    ]
    await client.ask_pd(cluster, MetaStorage.Put, key=b"resource_group/controller", value=b"{}")
    controller = await load(cluster, client, "resource_group/controller")

    assert {error.code() for error in errors} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert [each.payload for each in controller.items] == [b"{}"]


async def test_a_watch_of_settings_tells_changes_by_revision(cluster: EmbeddedCluster, client: BareClient) -> None:
    revision = (await load(cluster, client, "")).revision
    request = pdpb.WatchGlobalConfigRequest(revision=revision + 1)

    watch = client.server_stream(cluster.pd_addresses[0], PD.WatchGlobalConfig, request)
    await store(cluster, client, "", item("a", value="1"), item("b", value="2"))
    await store(cluster, client, "", item("a", kind=pdpb.EventType.DELETE))
    first, second = await watch.read(), await watch.read()

    assert [(each.name, each.payload) for each in first.changes] == [
        ("/global/config/a", b"1"),
        ("/global/config/b", b"2"),
    ]
    assert list(second.changes) == [item("/global/config/a", payload=b"1", kind=pdpb.EventType.DELETE)]
    assert (first.revision, second.revision) == (revision + 1, revision + 2)


async def test_a_watch_of_compacted_settings_is_told_so(
    cluster: EmbeddedCluster, client: BareClient, compacted: int
) -> None:
    request = pdpb.WatchGlobalConfigRequest(revision=compacted - 1)

    watch = client.server_stream(cluster.pd_addresses[0], PD.WatchGlobalConfig, request)
    answer = await watch.read()

    assert answer.header.error.type == pdpb.ErrorType.DATA_COMPACTED
    assert (await watch.status())[0] is grpc.StatusCode.UNKNOWN


async def test_pairs_and_settings_outlive_a_restart(client: BareClient, tmp_path: Path) -> None:
    async with EmbeddedCluster(path=tmp_path / "data") as cluster:
        await store(cluster, client, "", item("a", value="1"))
        before = await load(cluster, client, "")
    async with EmbeddedCluster(path=tmp_path / "data") as cluster:
        after = await load(cluster, client, "")

    assert after == before


# Timestamps.


async def test_the_external_timestamp_grows_up_to_now(cluster: EmbeddedCluster, client: BareClient) -> None:
    now = (await client.ask_pd(cluster, PD.GetMinTS)).timestamp
    ts = compose(now.physical, now.logical)

    unset = await client.ask_pd(cluster, PD.GetExternalTimestamp)
    accepted = await client.ask_pd(cluster, PD.SetExternalTimestamp, timestamp=ts)
    again = await client.ask_pd(cluster, PD.SetExternalTimestamp, timestamp=ts)
    ahead = await client.ask_pd(cluster, PD.SetExternalTimestamp, timestamp=ts + (3_600_000 << 18))
    present = await client.ask_pd(cluster, PD.GetExternalTimestamp)

    assert unset.timestamp == 0
    assert not accepted.header.HasField("error")
    assert {each.header.error.type for each in (again, ahead)} == {pdpb.ErrorType.INVALID_VALUE}
    assert present.timestamp == ts


async def test_the_least_report_of_the_stores_that_lead_counts_and_never_goes_back(client: BareClient) -> None:
    async with EmbeddedCluster(stores=3, split_keys=[b"m"]) as cluster:
        leading = sorted({region.leader.store_id for region in cluster.regions() if region.leader is not None})
        seen = []
        for store_id, ts in ((leading[0], 50), (leading[1], 70), (leading[0], 60), (leading[1], 10)):
            await client.ask_pd(cluster, PD.ReportMinResolvedTS, store_id=store_id, min_resolved_ts=ts)
            seen.append(cluster.pd.min_resolved_ts)
        unknown = await failure(client.ask_pd(cluster, PD.ReportMinResolvedTS, store_id=99))

    assert seen == [0, 50, 60, 60]
    assert unknown.details() == "store 99 not found"


async def test_only_the_leader_takes_reports(client: BareClient) -> None:
    async with EmbeddedCluster(pd_members=3) as cluster:
        error = await failure(client.ask_pd(cluster, PD.ReportMinResolvedTS, member=1, store_id=1))

    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_clock_moves_ahead_for_good(cluster: EmbeddedCluster, client: BareClient) -> None:
    await client.ask_pd(cluster, PD.SetGCBarrier, barrier_id="backup", barrier_ts=5, ttl_seconds=3600)
    before = (await client.ask_pd(cluster, PD.GetMinTS)).timestamp

    cluster.pd.advance_clock(3700)

    after = (await client.ask_pd(cluster, PD.GetMinTS)).timestamp
    advanced = await client.ask_pd(cluster, PD.AdvanceTxnSafePoint, target=9)
    assert 3_700_000 <= after.physical - before.physical < 3_760_000
    assert advanced.new_txn_safe_point == 9
    with pytest.raises(ValueError, match="does not go back"):
        cluster.pd.advance_clock(-1)


async def test_compacting_twice_changes_nothing(cluster: EmbeddedCluster, compacted: int) -> None:
    assert cluster.pd.compact() == compacted
