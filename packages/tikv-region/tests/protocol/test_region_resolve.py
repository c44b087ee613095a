"""RegionCache against a scripted PD: addresses of stores."""

from __future__ import annotations

import anyio
import attrs
import pytest
from tikv_pd import Backoffer, Deadline, DeadlineExceeded, PdError, RpcError, Store
from tikv_region import RegionCache, RegionEntry, StoreUnavailable
from tikv_region.testing import MapSource


@pytest.fixture
async def entry(cache: RegionCache, pd: MapSource, backoffer: Backoffer) -> RegionEntry:
    located = await cache.locate(b"h", backoffer)
    pd.calls.clear()
    return located


async def test_an_address_is_asked_for_when_first_used(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    pd.map.stores[1] = Store(1, "tikv1:20160", (("zone", "a"),))
    assert entry.leader_store.address == ""

    for _ in range(3):
        assert await cache.resolve(entry.leader_store, backoffer) == "tikv1:20160"

    assert entry.leader_store.labels == (("zone", "a"),)
    assert pd.calls == ["get_stores"]


async def test_one_question_tells_of_all_stores(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    await cache.resolve(entry.leader_store, backoffer)

    assert all(store.address for store in entry.stores)
    assert pd.calls == ["get_stores"]


async def test_a_store_that_is_not_in_the_list_is_asked_for_by_its_id(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    del pd.map.stores[1]

    assert await cache.resolve(entry.leader_store, backoffer) == ""

    assert entry.leader_store.is_tombstone
    assert pd.calls == ["get_stores", "get_store"]


async def test_tasks_that_need_addresses_share_one_answer(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    pd.delay = 1.0

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(cache.resolve, entry.stores[number % 3], backoffer.fork())

    assert pd.calls == ["get_stores"]


async def test_an_address_in_doubt_is_asked_for_again_and_changed_in_place(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    store = entry.leader_store
    await cache.resolve(store, backoffer)
    pd.map.stores[1] = attrs.evolve(pd.map.stores[1], address="elsewhere:20160")
    store.needs_check = True

    assert await cache.resolve(store, backoffer) == "elsewhere:20160"
    assert not store.needs_check
    assert entry.is_valid()


async def test_an_address_in_doubt_is_used_when_pd_is_away(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    store = entry.leader_store
    await cache.resolve(store, backoffer)
    store.needs_check = True
    pd.delay = 30.0

    assert await cache.resolve(store, backoffer) == "tikv1:20160"

    assert anyio.current_time() == 1.0
    assert not store.needs_check
    assert backoffer.attempts == 0


async def test_an_unknown_address_is_waited_for(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    pd.failures.append(RpcError("pd1", "GetStore", "UNAVAILABLE", "gone"))

    assert await cache.resolve(entry.leader_store, backoffer) == "tikv1:20160"
    assert backoffer.attempts == 1


async def test_a_store_without_an_address_is_waited_for(cache: RegionCache, pd: MapSource, entry: RegionEntry) -> None:
    pd.map.stores[1] = attrs.evolve(pd.map.stores[1], address="")

    with pytest.raises(DeadlineExceeded) as raised:
        await cache.resolve(entry.leader_store, Backoffer(Deadline("test", 5.0, anyio.current_time)))

    assert isinstance(raised.value.__cause__, StoreUnavailable)


async def test_what_pd_refuses_for_good_is_raised_at_once(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    pd.failures.append(PdError("GetStore", "UNKNOWN", "no"))

    with pytest.raises(PdError):
        await cache.resolve(entry.leader_store, backoffer)


@pytest.mark.parametrize("known", [Store(1, "tikv1:20160", is_tombstone=True), None])
async def test_a_store_that_left_has_no_address_and_its_regions_are_stale(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer, known: Store | None
) -> None:
    store = entry.leader_store
    await cache.resolve(store, backoffer)
    store.needs_check = True
    if known is None:
        del pd.map.stores[1]
    else:
        pd.map.stores[1] = known
    pd.calls.clear()

    assert await cache.resolve(store, backoffer) == ""
    assert await cache.resolve(store, backoffer) == ""

    assert store.is_tombstone
    assert cache.find(b"h") is None
    assert pd.calls == ["get_store"]
    again = await cache.locate(b"h", backoffer)
    assert [peer.store_id for peer in again.peers] == [2, 3]


async def test_a_tombstone_stays_one(
    cache: RegionCache, pd: MapSource, entry: RegionEntry, backoffer: Backoffer
) -> None:
    alive = pd.map.stores[1]
    cache.insert(pd.map.region(b"h"), [attrs.evolve(alive, is_tombstone=True)])

    cache.insert(pd.map.region(b"h"), [alive])

    assert await cache.resolve(entry.leader_store, backoffer) == ""
