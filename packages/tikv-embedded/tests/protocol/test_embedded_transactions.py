"""Transactions over real gRPC: by themselves and on streams, through splits, new leaders and restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf.message import Message
from tikv_embedded import EmbeddedCluster
from tikv_embedded.memcomparable import encode
from tikv_embedded.testing import BareClient, context_for
from tikv_proto import kvrpcpb, pdpb, tikvpb
from tikv_proto.services import PD, Rpc, Tikv

Resp = TypeVar("Resp", bound=Message)
Request = tikvpb.BatchCommandsRequest.Request


async def ask(
    cluster: EmbeddedCluster, client: BareClient, rpc: Rpc[Any, Resp], key: bytes = b"", **fields: Any
) -> Resp:
    """Send a request to the leader of the Region of `key`, a user key."""
    region = cluster.region_of(encode(key) if key else b"")
    assert region.leader is not None
    request = rpc.request(context=context_for(region, **fields.pop("context", {})), **fields)
    return await client.call(cluster.store_addresses[region.leader.store_id], rpc, request)


async def timestamp(cluster: EmbeddedCluster, client: BareClient) -> int:
    stream = client.stream(cluster.pd_addresses[0], PD.Tso)
    await stream.write(pdpb.TsoRequest(header=pdpb.RequestHeader(cluster_id=cluster.cluster_id), count=1))
    found: pdpb.Timestamp = (await stream.read()).timestamp
    return found.physical << 18 | found.logical


def put(key: bytes, value: bytes) -> kvrpcpb.Mutation:
    return kvrpcpb.Mutation(op=kvrpcpb.Op.Put, key=key, value=value)


async def test_a_transaction_is_prewritten_committed_and_read(cluster: EmbeddedCluster, client: BareClient) -> None:
    start_ts = await timestamp(cluster, client)
    mutations = [put(b"a", b"1"), put(b"b", b"2")]

    prewritten = await ask(
        cluster, client, Tikv.KvPrewrite, mutations=mutations, primary_lock=b"a", start_version=start_ts, lock_ttl=3000
    )
    blocked = await ask(cluster, client, Tikv.KvScan, limit=9, version=await timestamp(cluster, client))
    commit_ts = await timestamp(cluster, client)
    committed = await ask(
        cluster, client, Tikv.KvCommit, start_version=start_ts, commit_version=commit_ts, keys=[b"a", b"b"]
    )
    pairs = (await ask(cluster, client, Tikv.KvScan, limit=9, version=commit_ts)).pairs

    assert not prewritten.errors
    assert [pair.error.locked.key for pair in blocked.pairs] == [b"a", b"b"]
    assert committed.commit_version == commit_ts
    assert [(pair.key, pair.value) for pair in pairs] == [(b"a", b"1"), (b"b", b"2")]


@pytest.mark.parametrize("fields", [{"use_async_commit": True}, {"try_one_pc": True}])
async def test_a_commit_that_the_store_times_comes_after_reads_on_every_replica(
    cluster: EmbeddedCluster, client: BareClient, fields: dict[str, Any]
) -> None:
    start_ts = await timestamp(cluster, client)
    (follower, *_) = (store.id for store in cluster.stores() if store.id != 1)
    read_ts = await timestamp(cluster, client)
    context = context_for(cluster.region_of(b""), follower, replica_read=True)
    read = await client.call(
        cluster.store_addresses[follower], Tikv.KvGet, kvrpcpb.GetRequest(context=context, key=b"a", version=read_ts)
    )

    answer = await ask(
        cluster,
        client,
        Tikv.KvPrewrite,
        mutations=[put(b"a", b"1")],
        primary_lock=b"a",
        start_version=start_ts,
        **fields,
    )

    assert read.not_found
    assert max(answer.min_commit_ts, answer.one_pc_commit_ts) > read_ts


async def test_a_new_leader_knows_that_the_old_one_was_read(cluster: EmbeddedCluster, client: BareClient) -> None:
    start_ts = await timestamp(cluster, client)
    read_ts = await timestamp(cluster, client)
    await ask(cluster, client, Tikv.KvScan, limit=1, version=read_ts)
    cluster.transfer_leader(cluster.region_of(b"").id, 2)

    answer = await ask(
        cluster,
        client,
        Tikv.KvPrewrite,
        mutations=[put(b"a", b"1")],
        primary_lock=b"a",
        start_version=start_ts,
        try_one_pc=True,
    )

    assert answer.one_pc_commit_ts > read_ts


async def test_requests_of_one_message_that_share_a_key_see_each_other(
    cluster: EmbeddedCluster, client: BareClient
) -> None:
    context = context_for(cluster.region_of(b""))
    start_ts = await timestamp(cluster, client)

    def prewrite(ts: int, *keys: bytes) -> Request:
        return Request(
            Prewrite=kvrpcpb.PrewriteRequest(
                context=context, mutations=[put(key, b"v") for key in keys], primary_lock=keys[0], start_version=ts
            )
        )

    stream = client.stream(cluster.store_addresses[1], Tikv.BatchCommands)
    requests = {
        1: prewrite(start_ts, b"a", b"b"),
        2: prewrite(start_ts + 1, b"b", b"c"),
        3: prewrite(start_ts + 2, b"d"),
        4: Request(Scan=kvrpcpb.ScanRequest(context=context, limit=9, version=start_ts + 9)),
        5: Request(
            Commit=kvrpcpb.CommitRequest(
                context=context, start_version=start_ts, commit_version=start_ts + 5, keys=[b"a", b"b"]
            )
        ),
    }

    await stream.write(tikvpb.BatchCommandsRequest(request_ids=requests, requests=requests.values()))
    found: dict[int, tikvpb.BatchCommandsResponse.Response] = {}
    while len(found) < len(requests):
        group = await stream.read()
        found.update(zip(group.request_ids, group.responses, strict=True))

    assert not found[1].Prewrite.errors
    assert [error.locked.lock_version for error in found[2].Prewrite.errors] == [start_ts]
    assert not found[3].Prewrite.errors
    assert found[5].Commit.commit_version == start_ts + 5
    assert [pair.key or pair.error.locked.key for pair in found[4].Scan.pairs] == [b"a", b"b", b"d"]


async def test_locks_and_records_stay_where_regions_split(cluster: EmbeddedCluster, client: BareClient) -> None:
    start_ts = await timestamp(cluster, client)
    mutations = [put(b"a", b"1"), put(b"z", b"2")]
    await ask(cluster, client, Tikv.KvPrewrite, mutations=mutations, primary_lock=b"a", start_version=start_ts)

    old = context_for(cluster.region_of(b""))
    cluster.split(encode(b"m"))
    stale = await client.call(
        cluster.store_addresses[1], Tikv.KvScan, kvrpcpb.ScanRequest(context=old, limit=9, version=start_ts)
    )
    commit_ts = await timestamp(cluster, client)
    for key in (b"a", b"z"):
        answer = await ask(
            cluster, client, Tikv.KvCommit, key, start_version=start_ts, commit_version=commit_ts, keys=[key]
        )
        assert answer.commit_version == commit_ts
    outside = await ask(cluster, client, Tikv.KvPrewrite, b"z", mutations=[put(b"b", b"")], start_version=commit_ts + 1)
    left = await ask(cluster, client, Tikv.KvScan, limit=9, version=commit_ts)
    right = await ask(cluster, client, Tikv.KvScan, b"z", start_key=b"m", limit=9, version=commit_ts)

    assert stale.region_error.HasField("epoch_not_match")
    assert outside.region_error.HasField("key_not_in_region")
    assert [[pair.key for pair in answer.pairs] for answer in (left, right)] == [[b"a"], [b"z"]]


async def test_a_store_destroys_a_range_whatever_its_regions(cluster: EmbeddedCluster, client: BareClient) -> None:
    start_ts = await timestamp(cluster, client)
    mutations = [put(key, b"v") for key in (b"a", b"n", b"z")]
    await ask(cluster, client, Tikv.KvPrewrite, mutations=mutations, start_version=start_ts, try_one_pc=True)
    cluster.split(encode(b"m"))
    address = cluster.store_addresses[2]

    refused = await client.call(address, Tikv.UnsafeDestroyRange, kvrpcpb.UnsafeDestroyRangeRequest(start_key=b"a"))
    done = await client.call(
        address, Tikv.UnsafeDestroyRange, kvrpcpb.UnsafeDestroyRangeRequest(start_key=b"a", end_key=b"z")
    )

    version = await timestamp(cluster, client)
    left = await ask(cluster, client, Tikv.KvScan, limit=9, version=version)
    right = await ask(cluster, client, Tikv.KvScan, b"z", start_key=b"m", limit=9, version=version)
    assert refused.error
    assert done == kvrpcpb.UnsafeDestroyRangeResponse()
    assert [pair.key for pair in (*left.pairs, *right.pairs)] == [b"z"]


async def test_transactions_outlive_the_cluster(tmp_path: Path, client: BareClient) -> None:
    async with EmbeddedCluster(path=tmp_path) as cluster:
        start_ts = await timestamp(cluster, client)
        mutations = [put(b"a", b"1"), put(b"b", bytes(300))]
        await ask(cluster, client, Tikv.KvPrewrite, mutations=mutations, primary_lock=b"a", start_version=start_ts)
        commit_ts = await timestamp(cluster, client)
        await ask(cluster, client, Tikv.KvCommit, start_version=start_ts, commit_version=commit_ts, keys=[b"a"])

    async with EmbeddedCluster(path=tmp_path) as cluster:
        version = await timestamp(cluster, client)
        pairs = (await ask(cluster, client, Tikv.KvScan, limit=9, version=version)).pairs
        resolved = await ask(cluster, client, Tikv.KvResolveLock, start_version=start_ts, commit_version=commit_ts)
        late = await ask(
            cluster,
            client,
            Tikv.KvPrewrite,
            mutations=[put(b"c", b"3")],
            start_version=start_ts,
            try_one_pc=True,
        )
        again = (await ask(cluster, client, Tikv.KvScan, limit=9, version=version)).pairs

    assert [(pair.key, pair.error.locked.key) for pair in pairs] == [(b"a", b""), (b"", b"b")]
    assert not resolved.HasField("error")
    assert late.one_pc_commit_ts > version
    assert [(pair.key, pair.value) for pair in again] == [(b"a", b"1"), (b"b", bytes(300))]


async def test_garbage_goes_when_the_safe_point_allows_it(client: BareClient) -> None:
    async with EmbeddedCluster(api_version="v2") as cluster:
        own = cluster.create_keyspace("own", {"gc_management_type": "keyspace_level"})
        keys = [b"x" + keyspace.to_bytes(3, "big") + b"k" for keyspace in (0, own)]
        for key in keys:
            for value in (b"1", b"2", b"3"):
                start_ts = await timestamp(cluster, client)
                region = next(region for region in cluster.regions() if region.contains(encode(key)))
                assert region.leader is not None
                request = kvrpcpb.PrewriteRequest(
                    context=context_for(region, api_version=kvrpcpb.APIVersion.V2),
                    mutations=[put(key, value)],
                    primary_lock=key,
                    start_version=start_ts,
                    try_one_pc=True,
                )
                address = cluster.store_addresses[region.leader.store_id]
                assert (await client.call(address, Tikv.KvPrewrite, request)).one_pc_commit_ts

        unmoved = cluster.collect_garbage()
        target = await timestamp(cluster, client)
        for keyspace_id in (own, 0xFFFFFFFF):
            scope = pdpb.KeyspaceScope(keyspace_id=keyspace_id)
            await client.ask_pd(cluster, PD.AdvanceTxnSafePoint, keyspace_scope=scope, target=target)
            await client.ask_pd(cluster, PD.AdvanceGCSafePoint, keyspace_scope=scope, target=target)
            if keyspace_id == own:
                first = cluster.collect_garbage()
        second = cluster.collect_garbage()

    assert (unmoved, first, second) == (0, 2, 2)


async def test_a_lock_holds_the_safe_timestamp_of_a_store_back(cluster: EmbeddedCluster, client: BareClient) -> None:
    address, context = cluster.store_addresses[2], context_for(cluster.region_of(b""))
    raw = kvrpcpb.RawPutRequest(context=context, cf="lock", key=b"no lock", value=b"v")
    await client.call(cluster.store_addresses[1], Tikv.RawPut, raw)
    start_ts = await timestamp(cluster, client)

    before = (await client.call(address, Tikv.GetStoreSafeTS, kvrpcpb.StoreSafeTSRequest())).safe_ts
    await ask(cluster, client, Tikv.KvPrewrite, mutations=[put(b"a", b"1")], primary_lock=b"a", start_version=start_ts)
    locked = (await client.call(address, Tikv.GetStoreSafeTS, kvrpcpb.StoreSafeTSRequest())).safe_ts
    locks = (await ask(cluster, client, Tikv.KvScanLock, max_version=start_ts)).locks

    assert before > start_ts
    assert locked == start_ts
    assert [lock.key for lock in locks] == [b"a"]
