"""Options of single calls, and of views that share a client's connection."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_raw import (
    ClosedError,
    ConfigError,
    DeadlineExceeded,
    Priority,
    RawClient,
    RawConfig,
    ReplicaRead,
    RequestOptions,
)
from tikv_rpc.testing import FakeCluster

HIGH, LOW = kvrpcpb.CommandPri.High, kvrpcpb.CommandPri.Low


def contexts(cluster: FakeCluster) -> list[kvrpcpb.Context]:
    return [received.message.context for received in cluster.log]


async def use_all(client: RawClient, **options: Any) -> None:
    """Make every call that a store is asked for."""
    await client.get(b"a", **options)
    await client.put(b"a", b"1", **options)
    await client.delete(b"a", **options)
    await client.ttl(b"a", **options)
    await client.put_if_absent(b"a", b"1", **options)
    await client.compare_and_swap(b"a", b"1", b"2", **options)
    await client.batch_get([b"a"], **options)
    await client.batch_put({b"a": b"1"}, **options)
    await client.batch_delete([b"a"], **options)
    await client.batch_scan([(b"a", b"b")], **options)
    await client.delete_range(b"a", b"b", **options)
    await client.delete_prefix(b"a", **options)
    await client.checksum(b"a", b"b", **options)
    await client.count(b"a", b"b", **options)
    await client.count(b"a", b"b", cf="lock", **options)
    async for _ in client.scan(b"a", b"b", **options):
        pass


async def test_every_call_may_have_a_priority_of_its_own(cluster: FakeCluster, client: RawClient) -> None:
    await use_all(client, priority=Priority.HIGH)
    asked = contexts(cluster)
    cluster.log.clear()
    await use_all(client)

    assert len(asked) == 16
    assert {context.priority for context in asked} == {HIGH}
    assert {context.priority for context in contexts(cluster)} == {kvrpcpb.CommandPri.Normal}


async def test_every_read_may_choose_its_replica(cluster: FakeCluster, client: RawClient) -> None:
    cluster.map.refusal = lambda *_: None  # type: ignore[method-assign]  # followers serve in this cluster
    follower: Any = {"replica_read": ReplicaRead.FOLLOWER}

    await client.get(b"a", **follower)
    await client.ttl(b"a", **follower)
    await client.batch_get([b"a"], **follower)
    await client.batch_scan([(b"a", b"b")], **follower)
    await client.checksum(b"a", b"b", **follower)
    await client.count(b"a", b"b", **follower)
    async for _ in client.scan(b"a", b"b", **follower):
        pass

    assert [context.replica_read for context in contexts(cluster)] == [True] * 7
    assert {received.store_id for received in cluster.log} <= {2, 3}


async def test_a_view_has_options_of_its_own_and_changes_nothing(cluster: FakeCluster, client: RawClient) -> None:
    view = client.with_options(
        priority=Priority.LOW, request_source="report", resource_group="batch", cf="lock", timeout=7.0, atomic=True
    )

    await view.put(b"a", b"locked")
    await client.put(b"a", b"plain")

    locked, plain = cluster.requests(Tikv.RawPut)
    assert (locked.cf, locked.for_cas, plain.cf, plain.for_cas) == ("lock", True, "", False)
    assert locked.context.priority == LOW
    assert locked.context.request_source.endswith("report")
    assert locked.context.resource_control_context.resource_group_name == "batch"
    assert plain.context.request_source == plain.context.resource_control_context.resource_group_name == ""
    assert cluster.data == {b"a": b"plain"}
    assert cluster.raw.pairs("lock") == {b"a": b"locked"}


async def test_a_view_of_a_view_adds_to_it(cluster: FakeCluster, client: RawClient) -> None:
    view = client.with_options(priority=Priority.HIGH, cf="lock").with_options(request_source="web")

    await view.get(b"a")
    await view.get(b"a", priority=Priority.LOW, cf="default")

    first, second = cluster.requests(Tikv.RawGet)
    assert (first.context.priority, first.cf) == (HIGH, "lock")
    assert (second.context.priority, second.cf) == (LOW, "")
    assert first.context.request_source == second.context.request_source != ""


async def test_options_of_requests_are_given_at_once_and_single_ones_go_on_top(
    cluster: FakeCluster, client: RawClient
) -> None:
    requests = RequestOptions(priority=Priority.LOW, not_fill_cache=True, task_id=9)

    await client.with_options(requests=requests, priority=Priority.HIGH).get(b"a")

    (context,) = contexts(cluster)
    assert (context.priority, context.not_fill_cache, context.task_id) == (HIGH, True, 9)


async def test_the_time_of_a_view_is_that_of_its_calls(cluster: FakeCluster, client: RawClient) -> None:
    cluster.store(1).hang_next(Tikv.RawGet, times=9)
    view = client.with_options(timeout=0.5)
    started = anyio.current_time()

    with pytest.raises(DeadlineExceeded, match=r"get did not finish within 0\.5 s"):
        await view.get(b"a")

    assert anyio.current_time() == pytest.approx(started + 0.5)


async def test_a_view_lives_with_its_client(cluster: FakeCluster) -> None:
    client = RawClient(cluster.url, config=RawConfig(), transport=cluster.transport)
    view = client.with_options(cf="lock")

    with pytest.raises(ClosedError):
        await view.get(b"a")
    async with client:
        assert await view.get(b"a") is None
        assert view.stats() == client.stats()
    with pytest.raises(ClosedError):
        await view.get(b"a")
    async with view:
        assert await client.get(b"a") is None
    with pytest.raises(ClosedError):
        await client.get(b"a")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"timeout": 0}, ConfigError, "timeout must be above 0"),
        ({"cf": "data"}, ConfigError, "unknown column family 'data'"),
        ({"atomic": 1}, TypeError, "atomic must be a bool, not int"),
        ({"priority": 1}, ConfigError, "priority must be Priority"),
        ({"replica_read": "follower"}, ConfigError, "replica_read must be ReplicaRead"),
        ({"request_source": b"web"}, ConfigError, "request_source must be str"),
        ({"match_labels": "zone"}, TypeError, "match_labels must be a mapping, not str"),
        ({"match_labels": {"zone": 1}}, ConfigError, "match_labels must be pairs"),
        ({"requests": {}}, TypeError, "requests must be RequestOptions, not dict"),
    ],
)
def test_options_that_can_never_work_are_refused(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RawClient("pd:2379").with_options(**options)


async def test_options_of_a_call_that_can_never_work_are_refused(cluster: FakeCluster, client: RawClient) -> None:
    with pytest.raises(ConfigError, match="priority must be Priority"):
        await client.get(b"a", priority=1)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ConfigError, match="replica_read must be ReplicaRead"):
        await client.get(b"a", replica_read=True)  # type: ignore[arg-type]  # on purpose

    assert cluster.log == []


async def test_replicas_are_preferred_by_the_labels_of_their_stores(client: RawClient) -> None:
    view = client.with_options(replica_read=ReplicaRead.MIXED, match_labels={"zone": "a"})

    assert view._defaults.options.match_labels == (("zone", "a"),)
    assert client._defaults.options == RequestOptions()
