"""Every place where an operation waits for more than its first answer: hang, cancel, fail, close there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import attrs
import pytest
from tikv_pd import (
    ClosedError,
    DeadlineExceeded,
    Keyspace as KeyspaceOf,
    Operator,
    PdClient,
    PdConfig,
    PdUnavailable,
    TikvError,
    Timestamp,
)
from tikv_pd.testing import FakePd, virtual_time
from tikv_proto.services import PD, Keyspace

FOLLOWERS = ("pd2:2379", "pd3:2379")


@attrs.frozen
class Place:
    """Where an operation waits."""

    name: str
    """What for."""
    prepare: Callable[[FakePd], None]
    """Makes it wait there."""
    call: Callable[[PdClient], Awaitable[object]]
    """The operation."""
    forwarding: bool = False
    """Whether followers pass requests on."""

    def config(self, operation_timeout: float = 1000) -> PdConfig:
        return PdConfig(timeout=1000, operation_timeout=operation_timeout, forwarding=self.forwarding)


def hang(*rpcs: Any, at: str | None = None, unknown: Any = None, unimplemented: Any = None) -> Callable[[FakePd], None]:
    def prepare(pd: FakePd) -> None:
        if unknown is not None:
            pd.answer_error(unknown, "UNKNOWN", "words")
        if unimplemented is not None:
            pd.refuse(unimplemented, "UNIMPLEMENTED")
        for rpc in rpcs:
            pd.hang(rpc, at=at)

    return prepare


def leader_is_cut_off(*rpcs: Any) -> Callable[[FakePd], None]:
    def prepare(pd: FakePd) -> None:
        pd.transport.stop("pd1:2379")
        for address in FOLLOWERS:
            for rpc in rpcs:
                pd.hang(rpc, at=address)

    return prepare


def scatters(pd: FakePd) -> None:
    pd.operators[3] = Operator(3, "scatter-region", "RUNNING", "region")


def leader_refuses(pd: FakePd) -> None:
    pd.refuse(PD.GetStore)
    pd.refuse(PD.Tso)
    pd.refuse(PD.QueryRegion)


PLACES = [
    Place("a follower", hang(PD.GetRegion), lambda client: client.get_region(b"k", allow_follower=True)),
    Place(
        "a follower, for a scan",
        hang(PD.BatchScanRegions),
        lambda client: client.batch_scan_regions([(b"", b"")], allow_follower=True),
    ),
    Place("a proxy", leader_is_cut_off(PD.GetStore), lambda client: client.get_store(1), forwarding=True),
    Place(
        "a proxy, for a query", leader_is_cut_off(PD.GetRegion), lambda client: client.get_region(b"k"), forwarding=True
    ),
    Place("a proxy, for a timestamp", leader_is_cut_off(PD.Tso), lambda client: client.get_ts(), forwarding=True),
    Place("one member of several", hang(PD.GetRegion), lambda client: client.get_region_from_member(b"k", FOLLOWERS)),
    Place("the end of scattering", scatters, lambda client: client.wait_for_scatter(3)),
    Place("the list of stores", hang(PD.GetAllStores, unknown=PD.GetStore), lambda client: client.get_store(1)),
    Place(
        "a query by itself", hang(PD.GetRegion, unimplemented=PD.QueryRegion), lambda client: client.get_region(b"k")
    ),
    Place(
        "a timestamp in place of the smallest",
        hang(PD.Tso, unimplemented=PD.GetMinTS),
        lambda client: client.get_min_ts(),
    ),
    Place("a timestamp of low resolution", hang(PD.Tso), lambda client: client.get_low_resolution_ts()),
    Place("a stale timestamp", hang(PD.Tso), lambda client: client.get_stale_ts(1)),
    Place("a timestamp to compare with", hang(PD.Tso), lambda client: client.validate_read_ts(1)),
    Place("the time between two attempts", leader_refuses, lambda client: client.get_store(1)),
    Place("the time between two streams", leader_refuses, lambda client: client.get_ts()),
    Place("the time between two streams of queries", leader_refuses, lambda client: client.get_region(b"k")),
    Place("time to pass", lambda _: None, lambda client: client.wait_for(Timestamp(1_000_000 + 60_000, 0).ts)),
    Place(
        "the state of garbage collection",
        hang(PD.GetGCState, unknown=PD.SetGCBarrier),
        lambda client: client.gc.set_barrier("b", 5),
    ),
    Place("a keyspace", hang(Keyspace.LoadKeyspace), lambda client: client.load_keyspace("DEFAULT")),
    Place("a split", hang(PD.SplitRegions), lambda client: client.split_regions([b"c"])),
]


@pytest.fixture(params=PLACES, ids=lambda place: place.name)
def place(request: pytest.FixtureRequest) -> Place:
    return request.param  # type: ignore[no-any-return]  # one of the above


async def still_works(client: PdClient, pd: FakePd) -> None:
    pd.heal()
    for address in pd.members:
        pd.start(address)
    with anyio.fail_after(20):
        assert await client.get_store(1) is not None
        assert await client.get_region(b"k") is not None
        assert await client.get_ts() is not None


def no_leader(pd: FakePd) -> None:
    pd.leader = None


OPENINGS = {
    "the members": hang(PD.GetMembers),
    "an election": no_leader,
    "a keyspace": hang(Keyspace.LoadKeyspace),
    "the services": hang(PD.GetClusterInfo),
}


@pytest.fixture(params=list(OPENINGS.values()), ids=list(OPENINGS))
def opening(request: pytest.FixtureRequest) -> Callable[[FakePd], None]:
    return request.param  # type: ignore[no-any-return]  # one of the above


class TestByScope:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str | tuple[str, dict[str, Any]]:
        return virtual_time() if request.param == "trio" else "asyncio"

    async def test_an_operation_cancelled_there_ends_at_once_and_the_next_one_works(
        self, pd: FakePd, place: Place, anyio_backend_name: str
    ) -> None:
        async with PdClient(pd.members, config=place.config(), transport=pd.transport) as client:
            place.prepare(pd)
            with anyio.move_on_after(1 if anyio_backend_name == "trio" else 0.05) as scope:
                await place.call(client)

            assert scope.cancelled_caught
            await still_works(client, pd)

        assert pd.transport.open_connections() == []

    async def test_an_opening_cancelled_there_leaves_nothing(
        self, pd: FakePd, opening: Callable[[FakePd], None]
    ) -> None:
        pd.keyspaces["orders"] = KeyspaceOf(3, "orders", "ENABLED")
        opening(pd)

        with anyio.move_on_after(0.05) as scope:
            await PdClient(pd.members, keyspace="orders", transport=pd.transport).__aenter__()

        assert scope.cancelled_caught
        assert pd.transport.open_connections() == []


class TestByTheEventLoop:
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_an_operation_cancelled_there_ends_at_once_and_the_next_one_works(
        self, pd: FakePd, place: Place
    ) -> None:
        async with PdClient(pd.members, config=place.config(), transport=pd.transport) as client:
            place.prepare(pd)
            task = asyncio.ensure_future(place.call(client))
            await anyio.wait_all_tasks_blocked()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

            await still_works(client, pd)

        assert pd.transport.open_connections() == []


async def test_an_opening_whose_pd_stops_there_fails_as_ours_and_leaves_nothing(
    pd: FakePd, opening: Callable[[FakePd], None]
) -> None:
    pd.keyspaces["orders"] = KeyspaceOf(3, "orders", "ENABLED")
    opening(pd)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pd_stops, pd)
        # Who grants timestamps is not needed to open.
        with contextlib.suppress(PdUnavailable, DeadlineExceeded):
            async with PdClient(pd.members, keyspace="orders", transport=pd.transport):
                pass

    assert anyio.current_time() <= 10
    assert pd.transport.open_connections() == []


async def test_nobody_waits_for_a_timestamp_of_a_closed_client(pd: FakePd) -> None:
    async with PdClient("pd1:2379", transport=pd.transport) as client:
        tso = client._open_session().tso

    with pytest.raises(ClosedError):
        await tso.ask(None, "get_ts", 5)


async def test_an_operation_that_hangs_there_ends_in_time_and_the_next_one_works(pd: FakePd, place: Place) -> None:
    async with PdClient(pd.members, config=place.config(2), transport=pd.transport) as client:
        place.prepare(pd)

        with pytest.raises(DeadlineExceeded):
            await place.call(client)

        assert anyio.current_time() == 2
        await still_works(client, pd)


async def test_an_operation_whose_member_stops_there_fails_as_ours_and_the_next_one_works(
    pd: FakePd, place: Place
) -> None:
    async with PdClient(pd.members, config=place.config(2), transport=pd.transport) as client:
        place.prepare(pd)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pd_stops, pd)
            with pytest.raises(TikvError):
                await place.call(client)

        await still_works(client, pd)


async def pd_stops(pd: FakePd) -> None:
    await anyio.wait_all_tasks_blocked()
    pd.stop()


async def test_closing_the_client_ends_an_operation_there_at_once(pd: FakePd, place: Place) -> None:
    ended: list[str] = []

    async def use() -> None:
        with pytest.raises(ClosedError):
            await place.call(client)
        ended.append(place.name)

    async with anyio.create_task_group() as tasks:
        async with PdClient(pd.members, config=place.config(), transport=pd.transport) as client:
            place.prepare(pd)
            tasks.start_soon(use)
            await anyio.sleep(1)
            before = anyio.current_time()
        await anyio.wait_all_tasks_blocked()
        assert (ended, anyio.current_time()) == ([place.name], before)
        tasks.cancel_scope.cancel()

    assert pd.transport.open_connections() == []
