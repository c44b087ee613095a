from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import attrs
import pytest
from tikv_pd import (
    Buckets,
    ConfigError,
    NotBootstrapped,
    PdClient,
    PdConfig,
    PdError,
    Region,
    RegionsIncomplete,
)
from tikv_pd.testing import FakePd, MemoryTransport, ServerStream
from tikv_proto import pdpb
from tikv_proto.services import PD

BUCKETS = Buckets(3, (b"g", b"k", b"p"))
FOLLOWERS = {"pd2:2379", "pd3:2379"}


@pytest.fixture
async def client(pd: FakePd) -> AsyncIterator[PdClient]:
    pd.regions[1] = attrs.evolve(pd.regions[1], buckets=BUCKETS)
    async with PdClient("pd1:2379", transport=pd.transport) as client:
        yield client


async def test_queries_of_the_same_moment_share_one_message(client: PdClient, pd: FakePd) -> None:
    found: dict[str, int | None] = {}

    def note(name: str, region: Region | None) -> None:
        found[name] = region.id if region is not None else None

    async def by_key(key: bytes) -> None:
        note(f"key {key!r}", await client.get_region(key))

    async def by_prev_key(key: bytes) -> None:
        note(f"before {key!r}", await client.get_prev_region(key))

    async def by_id(region_id: int) -> None:
        note(f"id {region_id}", await client.get_region_by_id(region_id))

    async with anyio.create_task_group() as tasks:
        for key in (b"k", b"a", b""):
            tasks.start_soon(by_key, key)
            tasks.start_soon(by_prev_key, key)
        for region_id in (4, 99):
            tasks.start_soon(by_id, region_id)

    assert found == {
        "key b'k'": 3,
        "key b'a'": 2,
        "key b''": 2,
        "before b'k'": 2,
        "before b'a'": None,
        "before b''": None,
        "id 4": 4,
        "id 99": None,
    }
    assert len(pd.region_queries) == 1


async def test_all_queries_share_one_stream(client: PdClient, pd: FakePd) -> None:
    for key in (b"a", b"k", b"z"):
        await client.get_region(key)

    assert pd.calls(PD.QueryRegion) == 1
    assert pd.calls(PD.GetRegion) == 0


async def test_one_message_is_under_way_at_a_time_and_the_next_one_gathers_everybody(
    client: PdClient, pd: FakePd
) -> None:
    pd.hang(PD.QueryRegion, times=1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.get_region, b"a")
        await anyio.wait_all_tasks_blocked()
        for _ in range(20):
            tasks.start_soon(client.get_region, b"k")
        await anyio.wait_all_tasks_blocked()
        pd.heal()

    assert [len(query.keys) for query in pd.region_queries] == [1, 20]


async def test_buckets_are_for_those_who_asked_for_them(client: PdClient, pd: FakePd) -> None:
    found: dict[bool, Region | None] = {}

    async def get(need_buckets: bool) -> None:
        found[need_buckets] = await client.get_region(b"k", need_buckets=need_buckets)

    async with anyio.create_task_group() as tasks:
        for need_buckets in (True, False):
            tasks.start_soon(get, need_buckets)

    with_buckets, without = found[True], found[False]
    assert with_buckets is not None
    assert with_buckets.buckets == BUCKETS
    assert without == attrs.evolve(with_buckets, buckets=None)
    assert len(pd.region_queries) == 1


async def test_the_queue_follows_the_leader(client: PdClient, pd: FakePd) -> None:
    await client.get_region(b"k")
    pd.leader = "pd2:2379"

    assert await client.get_region(b"k") is not None
    assert client.leader == "pd2:2379"


async def test_a_pd_without_stores_is_waited_for(client: PdClient, pd: FakePd) -> None:
    pd.answer_error(PD.QueryRegion, "NOT_BOOTSTRAPPED", "cluster is not bootstrapped", times=2)

    assert await client.get_region(b"k") is not None


async def test_the_cause_of_a_timeout_is_the_error_in_the_header(client: PdClient, pd: FakePd) -> None:
    pd.answer_error(PD.QueryRegion, "NOT_BOOTSTRAPPED", "cluster is not bootstrapped")

    with pytest.raises(TimeoutError) as raised:
        await client.get_region(b"k", timeout=2)

    assert isinstance(raised.value.__cause__, NotBootstrapped)


async def test_an_answer_that_does_not_fit_kills_the_stream(client: PdClient, pd: FakePd) -> None:
    async def serve(stream: ServerStream) -> None:
        await stream.receive()
        pd.start("pd1:2379")
        await stream.send(pdpb.QueryRegionResponse())

    pd.transport.serve("pd1:2379", {**pd.handlers("pd1:2379"), PD.QueryRegion: serve})

    region = await client.get_region(b"k")

    assert region is not None
    assert region.id == 3
    assert pd.calls(PD.QueryRegion) == 2


class TestWithoutStream:
    @pytest.fixture(autouse=True)
    def old(self, pd: FakePd) -> None:
        for address in pd.members:
            handlers = dict(pd.handlers(address))
            del handlers[PD.QueryRegion]
            pd.transport.serve(address, handlers)

    async def test_each_query_is_an_rpc_and_the_stream_is_tried_once(self, client: PdClient, pd: FakePd) -> None:
        for _ in range(2):
            by_key, by_id = await client.get_region(b"k", need_buckets=True), await client.get_region_by_id(4)
            before = await client.get_prev_region(b"k")

        assert by_key is not None
        assert by_key.buckets == BUCKETS
        assert (by_id, before) == (pd.regions[2], pd.regions[0])
        assert pd.calls(PD.QueryRegion) == 1

    async def test_an_error_that_no_retry_cures_is_raised(self, client: PdClient, pd: FakePd) -> None:
        pd.refuse(PD.GetRegion, "PERMISSION_DENIED")

        with pytest.raises(PdError, match="PERMISSION_DENIED"):
            await client.get_region(b"k")


async def test_a_stream_that_is_refused_for_good_is_an_error(client: PdClient, pd: FakePd) -> None:
    pd.refuse(PD.QueryRegion, "PERMISSION_DENIED")

    with pytest.raises(PdError, match="PERMISSION_DENIED"):
        await client.get_region(b"k")


async def test_followers_are_asked_in_turn_when_they_may_answer(client: PdClient, pd: FakePd) -> None:
    for _ in range(4):
        assert await client.get_region(b"k", allow_follower=True) is not None

    assert [pd.calls(PD.GetRegion, at=address) for address in pd.members] == [0, 2, 2]


async def test_without_a_follower_the_stream_is_used(network: MemoryTransport, pd: FakePd) -> None:
    alone = FakePd(network, members=("alone:2379",))
    alone.regions, alone.stores = pd.regions, pd.stores
    async with PdClient("alone:2379", transport=network) as client:
        assert await client.get_region(b"k", allow_follower=True) is not None

    assert (alone.calls(PD.GetRegion), alone.calls(PD.QueryRegion)) == (0, 1)


async def test_followers_answer_scans_too(client: PdClient, pd: FakePd) -> None:
    regions = await client.batch_scan_regions([(b"", b"")], allow_follower=True)

    assert [region.id for region in regions] == [2, 3, 4]
    assert pd.calls(PD.BatchScanRegions, at="pd1:2379") == 0


async def test_the_leader_is_asked_once_when_a_follower_has_not_loaded_the_regions(
    client: PdClient, pd: FakePd
) -> None:
    for address in FOLLOWERS:
        pd.answer_error(PD.GetRegion, "REGION_NOT_FOUND", at=address)
    started = anyio.current_time()

    found = [await client.get_region(b"k", allow_follower=True) for _ in range(5)]

    assert None not in found
    assert anyio.current_time() == started
    assert [pd.calls(PD.GetRegion, at=address) for address in pd.members] == [2, 1, 1]
    # Once no follower is left to try, queries take the stream.
    assert pd.calls(PD.QueryRegion) == 1


async def test_a_follower_that_failed_is_asked_again_after_a_rest(client: PdClient, pd: FakePd) -> None:
    for address in FOLLOWERS:
        pd.refuse(PD.GetRegion, at=address, times=1)
    for _ in range(2):
        await client.get_region(b"k", allow_follower=True)
    await anyio.sleep(10.1)

    await client.get_region(b"k", allow_follower=True)

    assert pd.calls(PD.GetRegion, at="pd1:2379") == 2


async def test_a_pd_of_one_member_has_no_followers_to_ask(pd: FakePd) -> None:
    pd.members = ["pd1:2379"]

    async with PdClient("pd1:2379", transport=pd.transport) as client:
        assert await client.get_region(b"k", allow_follower=True) is not None


class TestForwarding:
    @pytest.fixture
    async def client(self, pd: FakePd) -> AsyncIterator[PdClient]:
        async with PdClient(
            ["pd1:2379", "pd2:2379"], config=PdConfig(forwarding=True), transport=pd.transport
        ) as client:
            yield client

    async def test_followers_pass_requests_on_to_a_leader_that_cannot_be_reached(
        self, client: PdClient, pd: FakePd
    ) -> None:
        pd.transport.stop("pd1:2379")

        for _ in range(3):
            assert await client.get_store(1) == pd.stores[1]

        assert pd.calls(PD.GetStore, at="pd1:2379") == 1
        assert client.leader == "pd1:2379"

    async def test_followers_pass_queries_of_regions_on_to_a_leader_that_cannot_be_reached(
        self, client: PdClient, pd: FakePd
    ) -> None:
        await client.get_region(b"k")
        pd.transport.stop("pd1:2379")

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(client.get_region, b"k")

        assert await client.get_region(b"k") == pd.regions[1]
        assert (await client.get_prev_region(b"k"), await client.get_region_by_id(4)) == (pd.regions[0], pd.regions[2])
        assert anyio.current_time() <= 0.5
        assert client.leader == "pd1:2379"

    async def test_a_leader_that_hangs_is_given_up_for_followers_that_pass_queries_on(
        self, client: PdClient, pd: FakePd
    ) -> None:
        pd.hang(None, at="pd1:2379")

        assert await client.get_region(b"k") == pd.regions[1]
        assert anyio.current_time() <= 3.5

    async def test_queries_share_a_stream_again_when_the_leader_is_back(self, client: PdClient, pd: FakePd) -> None:
        pd.transport.stop("pd1:2379")
        await client.get_region(b"k")
        pd.start("pd1:2379")
        await anyio.sleep(10.1)

        await client.get_region(b"k")

        assert pd.transport.log[-1] == ("pd1:2379", "QueryRegion")

    async def test_the_leader_is_tried_again_after_a_rest(self, client: PdClient, pd: FakePd) -> None:
        pd.transport.stop("pd1:2379")
        await client.get_store(1)
        pd.start("pd1:2379")
        await anyio.sleep(10.1)

        await client.get_store(1)

        assert pd.transport.log[-1] == ("pd1:2379", "GetStore")

    async def test_a_new_leader_is_followed(self, client: PdClient, pd: FakePd) -> None:
        pd.transport.stop("pd1:2379")
        await client.get_store(1)
        pd.leader = "pd3:2379"

        assert await client.get_store(1) == pd.stores[1]
        assert client.leader == "pd3:2379"

    async def test_it_is_off_unless_asked_for(self, pd: FakePd) -> None:
        async with PdClient(["pd1:2379", "pd2:2379"], transport=pd.transport) as client:
            pd.transport.stop("pd1:2379")

            with pytest.raises(TimeoutError):
                await client.get_store(1, timeout=5)


async def test_ranges_are_scanned_together_and_each_region_is_told_once(client: PdClient, pd: FakePd) -> None:
    regions = await client.batch_scan_regions([(b"a", b"b"), (b"c", b"d"), (b"q", b"")])

    assert [region.id for region in regions] == [2, 4]
    assert pd.calls(PD.BatchScanRegions) == 1
    assert await client.batch_scan_regions([]) == []
    assert [region.id for region in await client.batch_scan_regions([(b"", b"")], limit=2)] == [2, 3]


async def test_a_hole_is_an_error_when_all_must_be_there(client: PdClient, pd: FakePd) -> None:
    del pd.regions[1]

    assert len(await client.batch_scan_regions([(b"", b"")])) == 2
    with pytest.raises(RegionsIncomplete):
        await client.batch_scan_regions([(b"", b"")], contain_all=True)


async def test_a_scan_tells_buckets_when_asked(client: PdClient) -> None:
    assert [region.buckets for region in await client.batch_scan_regions([(b"h", b"i")], need_buckets=True)] == [
        BUCKETS
    ]
    assert [region.buckets for region in await client.batch_scan_regions([(b"h", b"i")])] == [None]


@pytest.mark.parametrize(
    "ranges",
    [
        [(b"b", b"a")],
        [(b"a", b"a")],
        [(b"c", b"d"), (b"a", b"b")],
        [(b"a", b"c"), (b"b", b"d")],
        [(b"a", b""), (b"b", b"")],
    ],
)
async def test_ranges_that_cannot_be_scanned_together_are_refused(
    client: PdClient, ranges: list[tuple[bytes, bytes]]
) -> None:
    with pytest.raises(ConfigError, match="range"):
        await client.batch_scan_regions(ranges)
