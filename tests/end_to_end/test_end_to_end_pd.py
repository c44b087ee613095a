"""What PD tells over streams, against the embedded cluster: leaders move and members die under them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_pd import (
    Consumption,
    DataCompacted,
    KeyspaceNotFound,
    MetaEvent,
    PdClient,
    PdConfig,
    ResourceGroup,
    Runaway,
    TokenRequest,
    Watch,
)


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(stores=1, pd_members=3) as cluster:
        yield cluster


@pytest.fixture
async def pd(cluster: EmbeddedCluster) -> AsyncIterator[PdClient]:
    async with PdClient(cluster.url, config=PdConfig(member_interval=0.2)) as pd:
        yield pd


async def take(watch: Watch[MetaEvent], count: int) -> list[bytes | None]:
    with anyio.fail_after(20):
        return [(await anext(watch)).value for _ in range(count)]


async def test_a_watch_tells_each_change_once_in_order_while_leaders_move_and_members_die(
    cluster: EmbeddedCluster, pd: PdClient
) -> None:
    written = [b"%d" % number for number in range(60)]

    async def write() -> None:
        for number, value in enumerate(written):
            if number % 10 == 5:
                cluster.transfer_pd_leader(number // 10 % 3)
            await pd.meta.put(b"k", value)

    async with pd.meta.watch(b"k") as watch, anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        told = await take(watch, len(written))

    assert told == written


async def test_a_watch_goes_on_after_the_member_it_read_from_died(cluster: EmbeddedCluster, pd: PdClient) -> None:
    async with pd.meta.watch_prefix(b"k/", prev_kv=True) as watch:
        await pd.meta.put(b"k/1", b"1")
        told = await take(watch, 1)
        dead = cluster.pd_addresses.index(pd.leader)
        await cluster.stop_pd_member(dead)
        await pd.meta.put(b"k/2", b"2")
        await cluster.start_pd_member(dead)
        await pd.meta.delete(b"k/1")
        told += await take(watch, 2)

    assert told == [b"1", b"2", None]


async def test_a_watch_from_a_revision_that_is_gone_says_so(cluster: EmbeddedCluster, pd: PdClient) -> None:
    first = await pd.meta.put(b"k", b"1")
    await pd.meta.put(b"k", b"2")
    cluster.pd.compact()

    async with pd.meta.watch(b"k", revision=first) as watch:
        with pytest.raises(DataCompacted):
            await anext(watch)


async def test_a_watch_that_was_cancelled_goes_on_where_it_was(pd: PdClient) -> None:
    async with pd.meta.watch(b"k") as watch:
        with anyio.move_on_after(0.05) as scope:
            await anext(watch)
        await pd.meta.put(b"k", b"1")
        await pd.meta.put(b"k", b"2")

        assert scope.cancelled_caught
        assert await take(watch, 2) == [b"1", b"2"]


async def test_configuration_is_watched(pd: PdClient) -> None:
    async with pd.global_config.watch() as watch:
        await pd.global_config.store({"a": b"1", "b": b"2"})
        await pd.global_config.store({"a": None})
        with anyio.fail_after(20):
            told = [await anext(watch) for _ in range(3)]

    assert [(change.name, change.value) for change in told] == [("a", b"1"), ("b", b"2"), ("a", None)]


async def test_keyspaces_are_watched() -> None:
    async with (
        EmbeddedCluster(stores=1, api_version="v2", keyspaces=["orders"]) as cluster,
        PdClient(cluster.url) as pd,
        pd.keyspaces.watch() as watch,
    ):
        with anyio.fail_after(20):
            first = [await anext(watch), await anext(watch)]
            orders = next(each for each in first if each.name == "orders")
            await pd.keyspaces.update_state(orders.id, "DISABLED")
            changed = await anext(watch)

    assert (changed.name, changed.state) == ("orders", "DISABLED")


async def test_the_streams_of_watches_end_with_the_client(cluster: EmbeddedCluster) -> None:
    async with PdClient(cluster.url) as pd:
        watches = [pd.meta.watch(b"%d" % number) for number in range(3)]
        for watch in watches:
            with anyio.move_on_after(0.02):
                await anext(watch)
        idle = pd.meta.watch(b"idle")
        await idle.__aenter__()
        await pd.meta.put(b"idle", b"1")
        await anext(idle)


async def test_settings_of_resource_groups_are_watched(pd: PdClient) -> None:
    loaded = await pd.resource_groups.load()
    async with pd.resource_groups.watch(revision=loaded.revision + 1) as watch:
        await pd.resource_groups.add(ResourceGroup("reports", 100, 200, runaway=Runaway("Kill", max_elapsed=1.5)))
        await pd.resource_groups.delete("reports")
        with anyio.fail_after(20):
            told = [await anext(watch), await anext(watch)]

    assert [(change.name, change.group and change.group.runaway) for change in told] == [
        ("reports", Runaway("Kill", max_elapsed=1.5)),
        ("reports", None),
    ]


async def test_tokens_are_granted_while_leaders_move_and_members_die(cluster: EmbeddedCluster, pd: PdClient) -> None:
    await pd.resource_groups.add(ResourceGroup("reports", 1000, 2000))
    answered = 0

    async def acquire(number: int) -> None:
        nonlocal answered
        for _ in range(10):
            requests = [TokenRequest("reports", 5, Consumption(read_ru=2)), TokenRequest("default", 1)]
            granted = await pd.resource_groups.acquire_token_buckets(requests, client_id=number, period=1)
            assert [grant.group for grant in granted] == ["reports", "default"]
            assert all(grant.tokens > 0 for grant in granted)
            answered += 1

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(acquire, number)
        for member in (1, 2):
            await anyio.sleep(0.02)
            cluster.transfer_pd_leader(member)
        await cluster.stop_pd_member(2)
        await anyio.sleep(0.1)
        await cluster.start_pd_member(2)

    group = await pd.resource_groups.get("reports", with_ru_stats=True)
    assert answered == 40
    assert group is not None
    assert group.consumption is not None
    # What was reported by an attempt without an answer counts as often as it arrived.
    assert group.consumption.read_ru >= 80


async def test_tokens_of_a_keyspace() -> None:
    async with (
        EmbeddedCluster(stores=1, api_version="v2", keyspaces=["orders"]) as cluster,
        PdClient(cluster.url) as pd,
    ):
        orders = await pd.keyspaces.get("orders")
        groups = pd.resource_groups.of_keyspace(orders.id)
        await groups.add(ResourceGroup("reports", 1000, 2000))
        granted = await groups.acquire_token_buckets([TokenRequest("reports", 5)], client_id=1)

        assert [grant.group for grant in granted] == ["reports"]
        assert await pd.resource_groups.get("reports") is None


async def test_a_lost_answer_to_a_request_for_tokens_is_asked_for_again(cluster: EmbeddedCluster) -> None:
    async with PdClient(cluster.url, config=PdConfig(timeout=0.2)) as pd:
        cluster.pd.lose_answers("AcquireTokenBuckets")
        cluster.pd.refuse("AcquireTokenBuckets")

        with anyio.fail_after(20):
            granted = await pd.resource_groups.acquire_token_buckets([TokenRequest("default", 1)], client_id=1)

    assert [grant.tokens for grant in granted] == [1]


@pytest.fixture
async def web() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(stores=2, pd_members=3, http=True, split_keys=[b"g"]) as cluster:
        yield cluster


async def test_the_http_api_tells_what_the_rpcs_tell(web: EmbeddedCluster) -> None:
    async with PdClient(web.url) as pd:
        regions = await pd.http.get_regions()
        stores = await pd.http.get_stores()

        assert [each.region for each in regions] == await pd.scan_regions(b"")
        assert sorted(each.store.id for each in stores) == sorted(each.id for each in await pd.get_stores())
        assert await pd.http.get_region(b"k") == regions[1]
        assert await pd.http.get_region(b"") == regions[0]
        assert await pd.http.get_region_by_id(regions[0].region.id) == regions[0]
        assert await pd.http.get_region_by_id(10**6) is None
        assert await pd.http.get_regions(b"a", b"b") == [regions[0]]
        assert await pd.http.get_regions(limit=1) == [regions[0]]
        assert await pd.http.get_store(stores[0].store.id) == stores[0]
        assert await pd.http.get_store(10**6) is None
        assert sum(each.leader_count for each in stores) == len(regions)
        assert sorted(each.name for each in await pd.http.get_members()) == sorted(
            each.name for each in await pd.get_members()
        )
        assert (await pd.http.get_leader()).client_urls == (f"http://{pd.leader}",)
        assert await pd.http.get_version()
        assert await pd.http.get_min_resolved_ts() == web.pd.min_resolved_ts
        by_store = await pd.http.get_min_resolved_ts_by_store([stores[0].store.id])
        assert [store_id for store_id, _ in by_store.stores] == [stores[0].store.id]
        everything = await pd.http.get_min_resolved_ts_by_store()
        assert [store_id for store_id, _ in everything.stores] == sorted(each.store.id for each in stores)


async def test_the_http_api_is_there_while_members_die_and_leaders_move(web: EmbeddedCluster) -> None:
    async with PdClient(web.url) as pd:
        for index in (0, 1, 2, 0):
            await web.stop_pd_member(index)
            with anyio.fail_after(20):
                health = await pd.http.get_health()
            assert [each.is_healthy for each in sorted(health, key=lambda each: each.id)].count(False) == 1
            await web.start_pd_member(index)
            web.transfer_pd_leader((index + 2) % 3)

        assert all(each.is_healthy for each in await pd.http.get_health())


async def test_keyspaces_over_http() -> None:
    async with (
        EmbeddedCluster(stores=1, http=True, api_version="v2", keyspaces=["orders"]) as cluster,
        PdClient(cluster.url) as pd,
    ):
        orders = await pd.http.get_keyspace("orders")

        assert orders == await pd.keyspaces.get("orders")
        assert await pd.http.get_keyspace_by_id(orders.id) == orders
        with pytest.raises(KeyspaceNotFound):
            await pd.http.get_keyspace("users")


async def test_the_end_of_scattering_is_waited_for(cluster: EmbeddedCluster, pd: PdClient) -> None:
    cluster.pd.hold_scattering()
    made = await pd.split_and_scatter_regions([b"g", b"p"])
    ended: list[str] = []

    async def wait(region_id: int) -> None:
        operator = await pd.wait_for_scatter(region_id, timeout=20)
        ended.append(operator.status if operator is not None else "unknown")

    async with anyio.create_task_group() as tasks:
        for region_id in made:
            tasks.start_soon(wait, region_id)
        await anyio.sleep(0.1)
        told_early = list(ended)
        cluster.pd.finish_scattering()

    assert told_early == []
    assert ended == ["SUCCESS"] * 2


async def test_each_member_tells_what_it_knows_of_a_region(cluster: EmbeddedCluster, pd: PdClient) -> None:
    known = [await pd.get_region_from_member(b"k", address) for address in cluster.pd_addresses]
    await cluster.stop_pd_member(0)
    known.append(await pd.get_region_from_member(b"k", cluster.pd_addresses))

    assert known == [await pd.get_region(b"k")] * 4
