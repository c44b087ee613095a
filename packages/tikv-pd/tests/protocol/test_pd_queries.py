from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import attrs
import pytest
from tikv_pd import ConfigError, Keyspace, KeyspaceNotFound, PdClient, PdError, PdUnavailable, Peer
from tikv_pd.testing import FakePd
from tikv_proto.services import PD, Keyspace as KeyspaceService


@pytest.fixture
async def client(pd: FakePd) -> AsyncIterator[PdClient]:
    async with PdClient("pd1:2379", transport=pd.transport) as client:
        yield client


def before(pd: FakePd, act: Callable[[Any], Awaitable[None]], *rpcs: Any) -> None:
    """Have something happen before the leader answers some RPCs."""
    handlers: dict[Any, Any] = dict(pd.handlers("pd1:2379"))

    def preceded(handle: Any) -> Any:
        async def answer(request: Any) -> Any:
            await act(request)
            return await handle(request)

        return answer

    pd.transport.serve("pd1:2379", handlers | {rpc: preceded(handlers[rpc]) for rpc in rpcs})


@pytest.mark.parametrize(("key", "region_id"), [(b"", 2), (b"f", 2), (b"g", 3), (b"p", 4), (b"\xff", 4)])
async def test_a_key_is_in_one_region(client: PdClient, key: bytes, region_id: int) -> None:
    region = await client.get_region(key)

    assert region is not None
    assert region.id == region_id
    assert region.leader == Peer(region_id * 10, 1)


async def test_no_region_is_none(client: PdClient, pd: FakePd) -> None:
    pd.regions.clear()

    assert await client.get_region(b"k") is None
    assert await client.get_prev_region(b"k") is None
    assert await client.get_region_by_id(2) is None
    assert await client.scan_regions(b"") == []


async def test_the_previous_region_ends_where_the_one_of_the_key_starts(client: PdClient) -> None:
    region = await client.get_prev_region(b"k")

    assert region is not None
    assert region.id == 2
    assert await client.get_prev_region(b"a") is None


async def test_a_region_is_found_by_its_id(client: PdClient) -> None:
    region = await client.get_region_by_id(4)

    assert region is not None
    assert region.start_key == b"p"


async def test_a_region_tells_which_peers_are_down_or_lag_behind(client: PdClient, pd: FakePd) -> None:
    pd.regions[0] = attrs.evolve(pd.regions[0], down_peers=(21,), pending_peers=(20,))

    assert await client.get_region(b"a") == pd.regions[0]
    assert await client.scan_regions(b"", limit=1) == [pd.regions[0]]


@pytest.mark.parametrize(
    ("start", "end", "limit", "ids"),
    [
        (b"", b"", 128, [2, 3, 4]),
        (b"h", b"", 128, [3, 4]),
        (b"h", b"p", 128, [3]),
        (b"h", b"p\x00", 128, [3, 4]),
        (b"", b"", 2, [2, 3]),
        (b"h", b"h", 128, []),
    ],
)
async def test_a_range_is_scanned_in_order(
    client: PdClient, start: bytes, end: bytes, limit: int, ids: list[int]
) -> None:
    regions = await client.scan_regions(start, end, limit=limit)

    assert [region.id for region in regions] == ids


async def test_a_store_that_left_is_still_known(client: PdClient, pd: FakePd) -> None:
    assert await client.get_store(1) == pd.stores[1]
    assert await client.get_store(2) == pd.stores[2]
    assert await client.get_stores() == list(pd.stores.values())


async def test_a_store_that_never_was_is_none(client: PdClient) -> None:
    assert await client.get_store(3) is None


async def test_a_store_that_pd_fails_to_read_is_not_taken_for_unknown(client: PdClient, pd: FakePd) -> None:
    pd.answer_error(PD.GetStore, "UNKNOWN", "disk failure")

    with pytest.raises(PdError, match="disk failure"):
        await client.get_store(1)


async def test_an_error_about_a_store_other_than_unknown_is_raised(client: PdClient, pd: FakePd) -> None:
    pd.answer_error(PD.GetStore, "STORE_TOMBSTONE", "gone")

    with pytest.raises(PdError, match="gone"):
        await client.get_store(2)


async def test_an_enabled_keyspace_is_loaded(client: PdClient, pd: FakePd) -> None:
    pd.keyspaces["orders"] = Keyspace(4, "orders", "ENABLED")

    assert await client.load_keyspace("orders") == Keyspace(4, "orders", "ENABLED")


async def test_a_keyspace_that_cannot_be_used_is_not_found(client: PdClient, pd: FakePd) -> None:
    pd.keyspaces["orders"] = Keyspace(4, "orders", "DISABLED")

    with pytest.raises(KeyspaceNotFound, match="'orders' cannot be used: it is DISABLED"):
        await client.load_keyspace("orders")
    with pytest.raises(KeyspaceNotFound, match="'bills' cannot be used: keyspace does not exist"):
        await client.load_keyspace("bills")


async def test_another_error_about_a_keyspace_is_raised(client: PdClient, pd: FakePd) -> None:
    pd.answer_error(KeyspaceService.LoadKeyspace, "UNKNOWN", "etcd is away")

    with pytest.raises(PdError, match="etcd is away"):
        await client.load_keyspace("orders")


async def test_splitting_returns_the_new_regions(client: PdClient) -> None:
    made = await client.split_regions([b"c", b"g", b"t"])

    regions = await client.scan_regions(b"")
    assert [region.start_key for region in regions] == [b"", b"c", b"g", b"p", b"t"]
    assert {region.id for region in regions} - {2, 3, 4} == set(made)


async def test_a_split_may_take_longer_than_one_attempt_of_other_calls(client: PdClient, pd: FakePd) -> None:
    pd.hang(PD.SplitRegions, times=1)

    async def finish_late() -> None:
        await anyio.sleep(8)
        pd.heal()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(finish_late)
        assert len(await client.split_regions([b"c"])) == 1

    assert pd.calls(PD.SplitRegions) == 1


async def test_a_scan_that_takes_longer_than_one_attempt_of_other_calls_ends_in_time(
    client: PdClient, pd: FakePd
) -> None:
    async def take_long(_request: Any) -> None:
        await anyio.sleep(5)

    before(pd, take_long, PD.BatchScanRegions)

    assert len(await client.scan_regions(b"", timeout=30)) == 3
    assert pd.calls(PD.BatchScanRegions) == 2


async def test_stores_that_left_may_be_left_out(client: PdClient) -> None:
    assert [store.id for store in await client.get_stores(exclude_tombstone=True)] == [1]
    assert [store.id for store in await client.get_stores()] == [1, 2]


async def test_limits_of_splitting_and_scattering_are_told_to_pd(client: PdClient, pd: FakePd) -> None:
    told: list[Any] = []

    async def note(request: Any) -> None:
        told.append(request)

    before(pd, note, PD.SplitRegions, PD.ScatterRegion, PD.SplitAndScatterRegions)

    await client.split_regions([b"c"], retry_limit=3)
    await client.scatter_regions([2, 3], group="orders", retry_limit=4, skip_store_limit=True)
    await client.split_and_scatter_regions([b"d"], retry_limit=5)

    assert [request.retry_limit for request in told] == [3, 4, 5]
    assert told[1].skip_store_limit


async def test_there_is_nothing_to_scatter(client: PdClient, pd: FakePd) -> None:
    assert await client.scatter_regions([]) == []
    assert pd.calls(PD.ScatterRegion) == 0


@pytest.mark.parametrize("limit", [-1, 2**64])
async def test_a_retry_limit_that_cannot_be_is_refused(client: PdClient, limit: int) -> None:
    with pytest.raises(ConfigError, match="retry_limit"):
        await client.split_regions([b"c"], retry_limit=limit)


async def test_scattering_returns_those_that_could_not_be(client: PdClient) -> None:
    assert await client.scatter_regions([2, 3, 99], group="orders") == [99]


@pytest.mark.parametrize("method", ["get_region", "get_prev_region", "scan_regions", "split_regions"])
async def test_a_str_key_is_a_type_error_that_says_what_to_do(client: PdClient, method: str) -> None:
    with pytest.raises(TypeError, match=r"must be bytes, not str; use \w+\.encode\(\)"):
        await getattr(client, method)("key")


async def test_none_as_key_is_a_type_error(client: PdClient) -> None:
    with pytest.raises(TypeError, match="key must be bytes, not NoneType"):
        await client.get_region(None)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("value", [0, -1, 2**64])
async def test_an_id_that_cannot_be_is_refused(client: PdClient, value: int) -> None:
    with pytest.raises(ConfigError, match="store_id must be between"):
        await client.get_store(value)
    with pytest.raises(ConfigError, match="region_id must be between"):
        await client.get_region_by_id(value)
    with pytest.raises(ConfigError, match="region_id must be between"):
        await client.scatter_regions([value])


@pytest.mark.parametrize("limit", [0, -1, 2**31])
async def test_a_limit_that_cannot_be_is_refused(client: PdClient, limit: int) -> None:
    with pytest.raises(ConfigError, match="limit must be between"):
        await client.scan_regions(b"", limit=limit)


async def test_a_range_that_runs_backwards_is_refused(client: PdClient) -> None:
    with pytest.raises(ConfigError, match="start must not be above end"):
        await client.scan_regions(b"b", b"a")


class TestARegionAsOneMemberKnowsIt:
    async def test_the_first_member_that_answers_is_believed(self, client: PdClient, pd: FakePd) -> None:
        pd.stop("pd3:2379")
        pd.answer_error(PD.GetRegion, "REGION_NOT_FOUND", "not loaded", at="pd2:2379", times=1)

        region = await client.get_region_from_member(b"k", ["pd3:2379", "http://pd2:2379", "pd1:2379"])

        assert region == pd.regions[1]
        assert [address for address, rpc in pd.transport.log if rpc == "GetRegion"] == [
            "pd3:2379",
            "pd2:2379",
            "pd1:2379",
        ]

    async def test_a_follower_answers_by_itself(self, client: PdClient, pd: FakePd) -> None:
        assert await client.get_region_from_member(b"k", "pd2:2379") == pd.regions[1]
        assert pd.calls(PD.GetRegion, at="pd1:2379") == 0

    async def test_a_member_that_hangs_takes_the_time_of_one_attempt(self, client: PdClient, pd: FakePd) -> None:
        pd.hang(PD.GetRegion, at="pd2:2379")

        await client.get_region_from_member(b"k", ["pd2:2379", "pd3:2379"])

        assert anyio.current_time() == 3

    async def test_each_member_is_named_when_none_answers(self, client: PdClient, pd: FakePd) -> None:
        pd.stop("pd2:2379")
        pd.refuse(PD.GetRegion, "UNKNOWN", "words", at="pd3:2379")

        with pytest.raises(PdUnavailable, match=r"pd2:2379: .*refused.*; pd3:2379: UNKNOWN \(words\)"):
            await client.get_region_from_member(b"k", ["pd2:2379", "pd3:2379"])

    async def test_a_key_that_pd_knows_no_region_of_has_none(self, client: PdClient, pd: FakePd) -> None:
        pd.regions.clear()

        assert await client.get_region_from_member(b"k", "pd2:2379") is None

    @pytest.mark.parametrize("addresses", [[], "pd2", "pd2:port"])
    async def test_what_is_no_address_is_refused(self, client: PdClient, addresses: str | list[str]) -> None:
        with pytest.raises(ConfigError):
            await client.get_region_from_member(b"k", addresses)
