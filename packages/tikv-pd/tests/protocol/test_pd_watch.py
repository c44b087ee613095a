from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from anyio.lowlevel import checkpoint
from tikv_pd import (
    ClosedError,
    ClusterMismatch,
    ConfigError,
    DataCompacted,
    DeadlineExceeded,
    GlobalConfigChange,
    Keyspace,
    MetaEvent,
    PdClient,
    PdError,
    Watch,
)
from tikv_pd.testing import FakePd
from tikv_proto.services import Keyspace as KeyspaceService, MetaStorage


@pytest.fixture
async def client(pd: FakePd) -> AsyncIterator[PdClient]:
    async with PdClient("pd1:2379", transport=pd.transport) as client:
        yield client


async def take(watch: Watch[MetaEvent], count: int) -> list[MetaEvent]:
    with anyio.fail_after(600):
        return [await anext(watch) for _ in range(count)]


async def test_what_happens_after_entering_is_told(client: PdClient, pd: FakePd) -> None:
    pd.meta.put(b"k", b"before")

    async with client.meta.watch(b"k") as watch:
        pd.meta.put(b"k", b"1")
        pd.meta.put(b"other", b"x")
        pd.meta.delete(b"k")

        told = await take(watch, 2)

    assert told == [MetaEvent(b"k", b"1", 3), MetaEvent(b"k", None, 5)]


async def test_the_values_before_are_told_if_asked_for(client: PdClient, pd: FakePd) -> None:
    async with client.meta.watch(b"k", prev_kv=True) as watch:
        pd.meta.put(b"k", b"1")
        pd.meta.put(b"k", b"2")
        pd.meta.delete(b"k")

        told = await take(watch, 3)

    assert [(event.value, event.previous) for event in told] == [(b"1", None), (b"2", b"1"), (None, b"2")]


async def test_a_prefix_is_watched_from_what_was_found(client: PdClient, pd: FakePd) -> None:
    pd.meta.put(b"a/1", b"found")
    found = await client.meta.get_prefix(b"a/")
    pd.meta.put(b"a/2", b"new")
    pd.meta.put(b"b", b"x")

    async with client.meta.watch_prefix(b"a/", revision=found.revision + 1) as watch:
        pd.meta.delete(b"a/1", b"a/2")
        told = await take(watch, 3)

    assert [(event.key, event.value) for event in told] == [(b"a/2", b"new"), (b"a/1", None), (b"a/2", None)]
    assert told[1].revision == told[2].revision
    assert pd.calls(MetaStorage.Get) == 1


async def test_everything_is_watched(client: PdClient, pd: FakePd) -> None:
    async with client.meta.watch_prefix(b"") as watch:
        pd.meta.put(b"\xff", b"1")

        assert (await take(watch, 1))[0].key == b"\xff"


async def test_a_watch_that_is_not_entered_begins_with_the_first_step(client: PdClient, pd: FakePd) -> None:
    watch = client.meta.watch(b"k")
    pd.meta.put(b"k", b"missed")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take, watch, 1)
        await anyio.wait_all_tasks_blocked()
        pd.meta.put(b"k", b"told")
    await watch.aclose()

    assert [request.start_revision for request in pd.meta.watches] == [3]


async def test_a_broken_stream_is_replaced_where_it_was(client: PdClient, pd: FakePd) -> None:
    async with client.meta.watch(b"k") as watch:
        pd.meta.put(b"k", b"1")
        first = await take(watch, 1)
        pd.stop()
        pd.meta.put(b"k", b"2")
        pd.meta.put(b"k", b"3")
        for address in pd.members:
            pd.start(address)

        rest = await take(watch, 2)

    assert [event.value for event in first + rest] == [b"1", b"2", b"3"]


async def test_nothing_is_lost_when_a_stream_breaks_before_the_first_change(client: PdClient, pd: FakePd) -> None:
    async with client.meta.watch(b"k") as watch, anyio.create_task_group() as tasks:
        told: list[MetaEvent] = []

        async def follow() -> None:
            told.extend(await take(watch, 1))

        tasks.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        pd.stop()
        pd.meta.put(b"k", b"1")
        await anyio.sleep(30)
        for address in pd.members:
            pd.start(address)

    assert [event.value for event in told] == [b"1"]


async def test_a_watch_goes_on_after_the_last_change_told_however_far_the_storage_is(
    client: PdClient, pd: FakePd
) -> None:
    async with client.meta.watch(b"k") as watch:
        pd.meta.put(b"k", b"1")
        for number in range(5):
            pd.meta.put(b"other", b"%d" % number)
        await take(watch, 1)
        pd.stop("pd1:2379")
        pd.leader = "pd2:2379"
        pd.meta.put(b"k", b"2")

        await take(watch, 1)

    # The header of the first message told revision 7.
    assert [request.start_revision for request in pd.meta.watches] == [2, 3]


async def test_a_watch_follows_the_leader_though_its_stream_stands(client: PdClient, pd: FakePd) -> None:
    async with client.meta.watch(b"k") as watch, anyio.create_task_group() as tasks:
        tasks.start_soon(take, watch, 1)
        await anyio.wait_all_tasks_blocked()
        pd.leader = "pd2:2379"
        await client.get_stores()
        await anyio.sleep(2)

        assert pd.calls(MetaStorage.Watch, at="pd2:2379") == 1
        pd.meta.put(b"k", b"1")


async def test_a_silent_watch_keeps_its_stream(client: PdClient, pd: FakePd) -> None:
    async with client.meta.watch(b"k") as watch:
        with anyio.move_on_after(500):
            await anext(watch)

    assert pd.calls(MetaStorage.Watch) == 1


async def test_history_that_is_gone_is_an_error_every_time(client: PdClient, pd: FakePd) -> None:
    for number in range(5):
        pd.meta.put(b"k", b"%d" % number)
    pd.meta.compact()

    watch = client.meta.watch(b"k", revision=2)
    for _ in range(2):
        with pytest.raises(DataCompacted, match="revision 2 is gone"):
            await anext(watch)
    await watch.aclose()


async def test_a_watch_that_was_away_for_too_long_says_so(client: PdClient, pd: FakePd) -> None:
    async with client.meta.watch(b"k") as watch:
        pd.meta.put(b"k", b"1")
        await take(watch, 1)
        pd.stop()
        pd.meta.put(b"k", b"2")
        pd.meta.put(b"k", b"3")
        pd.meta.compact()
        for address in pd.members:
            pd.start(address)

        with pytest.raises(DataCompacted):
            await anext(watch)


@pytest.mark.parametrize("kind", ["UNKNOWN", "NOT_BOOTSTRAPPED"])
async def test_an_error_without_a_name_passes(client: PdClient, pd: FakePd, kind: str) -> None:
    pd.answer_error(MetaStorage.Watch, kind, "etcd has no leader", times=2)

    async with client.meta.watch(b"k") as watch:
        pd.meta.put(b"k", b"1")
        told = await take(watch, 1)

    assert [event.value for event in told] == [b"1"]
    assert pd.calls(MetaStorage.Watch) == 3


async def test_what_pd_does_not_have_is_an_error(client: PdClient, pd: FakePd) -> None:
    pd.refuse(MetaStorage.Watch, "UNIMPLEMENTED")

    async with client.meta.watch(b"k") as watch:
        with pytest.raises(PdError, match="UNIMPLEMENTED"):
            await anext(watch)


async def test_another_cluster_is_an_error(client: PdClient, pd: FakePd) -> None:
    async with client.meta.watch(b"k") as watch:
        pd.cluster_id = 8
        pd.refuse(MetaStorage.Watch)

        with pytest.raises(ClusterMismatch):
            await anext(watch)


async def test_beginning_has_a_time_limit(client: PdClient, pd: FakePd) -> None:
    pd.stop()

    with pytest.raises(DeadlineExceeded):
        async with client.meta.watch(b"k"):
            pass


async def test_several_tasks_share_a_watch(client: PdClient, pd: FakePd) -> None:
    told: list[MetaEvent] = []

    async def follow() -> None:
        told.extend(await take(watch, 2))

    async with client.meta.watch(b"k") as watch, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(follow)
        for number in range(6):
            await checkpoint()
            pd.meta.put(b"k", b"%d" % number)

    assert sorted(event.value or b"" for event in told) == [b"0", b"1", b"2", b"3", b"4", b"5"]


async def test_a_closed_watch_ends(client: PdClient, pd: FakePd) -> None:
    async with client.meta.watch(b"k") as watch:
        pd.meta.put(b"k", b"1")
        pd.meta.put(b"k", b"2")
        await take(watch, 1)

    assert [event async for event in watch] == []
    await watch.aclose()


async def test_a_closed_client_ends_its_watches(pd: FakePd) -> None:
    async with PdClient("pd1:2379", transport=pd.transport) as client:
        watch = client.meta.watch(b"k")
        await watch.__aenter__()

    with pytest.raises(ClosedError):
        await anext(watch)


async def test_configuration_is_watched(client: PdClient) -> None:
    await client.global_config.store({"a": b"0"})
    loaded = await client.global_config.load()

    async with client.global_config.watch(revision=loaded.revision + 1) as watch:
        await client.global_config.store({"a": b"1"})
        await client.global_config.store({"a": None})
        told = [await anext(watch), await anext(watch)]

    assert told == [
        GlobalConfigChange("a", b"1", loaded.revision + 1),
        GlobalConfigChange("a", None, loaded.revision + 2),
    ]


async def test_configuration_is_watched_below_a_path(client: PdClient) -> None:
    async with client.global_config.watch(path="/global/config/orders/") as watch:
        await client.global_config.store({"a": b"1"}, path="/global/config/orders2")
        await client.global_config.store({"a": b"2"}, path="/global/config/orders")

        told = await anext(watch)

    assert (told.name, told.value) == ("a", b"2")


async def test_what_cannot_be_watched_is_refused(client: PdClient) -> None:
    with pytest.raises(ConfigError, match="path must be"):
        client.global_config.watch(path="/elsewhere")
    with pytest.raises(ConfigError, match="revision must be"):
        client.meta.watch(b"k", revision=-1)
    with pytest.raises(ConfigError, match="key must not be empty"):
        client.meta.watch(b"")


async def test_keyspaces_are_watched(client: PdClient, pd: FakePd) -> None:
    pd.keyspaces = {name: Keyspace(number, name, "ENABLED") for number, name in enumerate(["DEFAULT", "orders"])}

    async with client.keyspaces.watch() as watch:
        first = [await anext(watch), await anext(watch)]
        await client.keyspaces.update_state(1, "DISABLED")
        changed = await anext(watch)

    assert [each.name for each in first] == ["DEFAULT", "orders"]
    assert changed == Keyspace(1, "orders", "DISABLED")


async def test_all_keyspaces_are_told_again_by_the_next_leader(client: PdClient, pd: FakePd) -> None:
    pd.keyspaces = {"orders": Keyspace(1, "orders", "ENABLED")}
    pd.answer_error(KeyspaceService.WatchKeyspaces, "NOT_BOOTSTRAPPED", times=1)

    async with client.keyspaces.watch() as watch:
        told = [await anext(watch)]
        pd.stop("pd1:2379")
        pd.leader = "pd2:2379"
        told.append(await anext(watch))

    assert [each.name for each in told] == ["orders", "orders"]
