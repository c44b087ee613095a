"""PD and its microservices while they crash, move and hand over: timestamps grow, none comes twice, no caller fails."""

from __future__ import annotations

import functools
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import anyio
import anyio.abc
import attrs
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_pd import DeadlineExceeded, PdClient, PdConfig

TASKS = 500
"""Callers of each client at the same time."""
CONFIG = PdConfig(timeout=0.5, service_interval=0.2)
"""Less patient than by default, so that lost messages and new modes are noticed while the test lasts."""

Change = Callable[[], Awaitable[None]]


class Draws:
    """Timestamps that many tasks draw from several clients, checked as they come.

    Args:
        total: How many.
    """

    def __init__(self, total: int) -> None:
        self.left = total
        self.granted: list[list[int]] = []
        """What each client was granted, in the order in which its callers were told."""
        self._highest = 0

    def begin(self, tasks: anyio.abc.TaskGroup, clients: list[PdClient]) -> None:
        """Start to draw from all clients."""
        for client in clients:
            granted: list[int] = []
            self.granted.append(granted)
            for _ in range(TASKS):
                tasks.start_soon(self._draw, client, granted)

    async def _draw(self, client: PdClient, granted: list[int]) -> None:
        while self.left > 0:
            self.left -= 1
            told_before = self._highest
            ts = (await client.get_ts(timeout=20)).ts
            # Whichever client was told: PD promises it across clients, and so for each one.
            assert ts > told_before
            granted.append(ts)
            self._highest = max(self._highest, ts)

    def check(self, total: int) -> None:
        """Check that there are so many and no two are equal."""
        everything = [ts for granted in self.granted for ts in granted]
        assert len(everything) == total
        assert len(set(everything)) == total
        assert all(len(granted) > total // 10 for granted in self.granted)


@attrs.define
class Asked:
    """Who granted timestamps; an observer."""

    addresses: set[str] = attrs.field(factory=set)
    """Address of each."""
    failures: int = 0
    """How many messages were answered otherwise."""

    def observe(self, rpc: str, address: str, seconds: float, outcome: str) -> None:
        """Take note of an RPC."""
        del seconds
        if rpc == "Tso" and outcome == "OK":
            self.addresses.add(address)
        elif rpc == "Tso":
            self.failures += 1


SERVICES = {"QueryRegion", "GetAllStores", "ListResourceGroups"}
"""What routers and resource managers answer in PD's place."""


@attrs.define
class Calls:
    """Who answered what; an observer."""

    answered: set[tuple[str, str]] = attrs.field(factory=set)
    """(RPC, address) of each."""

    def observe(self, rpc: str, address: str, seconds: float, outcome: str) -> None:
        """Take note of an RPC."""
        del seconds
        if outcome == "OK":
            self.answered.add((rpc, address))


async def draw(cluster: EmbeddedCluster, total: int, changes: Iterator[Change], config: PdConfig = CONFIG) -> Asked:
    """Draw timestamps with two clients while a change happens every now and then; return who granted them."""
    draws, asked = Draws(total), Asked()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(PdClient(cluster.url, config=config, observer=asked)) for _ in range(2)
        ]
        async with anyio.create_task_group() as tasks:
            draws.begin(tasks, clients)
            while draws.left > 0:
                await next(changes)()
                await anyio.sleep(0.05)
    draws.check(total)
    return asked


def pd_changes(cluster: EmbeddedCluster, rng: random.Random) -> Iterator[Change]:
    """Yield what may happen to three PD members: messages are lost, all are down once, then one at a time."""
    down: list[int] = []

    def running() -> int:
        return rng.choice([index for index in range(3) if index not in down])

    async def lose() -> None:
        rng.choice([cluster.pd.lose_answers, cluster.pd.lose_requests])("Tso")

    async def outage() -> None:
        for index in range(3):
            await cluster.stop_pd_member(index)
        for index in rng.sample(range(3), 3):
            await cluster.start_pd_member(index)

    async def move() -> None:
        cluster.transfer_pd_leader(running())

    async def crash_the_leader() -> None:
        index = running()
        cluster.transfer_pd_leader(index)
        await anyio.sleep(0.05)
        await cluster.stop_pd_member(index)
        await cluster.start_pd_member(index)

    async def crash_or_restart() -> None:
        if down:
            await cluster.start_pd_member(down.pop())
        else:
            down.append(running())
            await cluster.stop_pd_member(down[0])

    async def cut() -> None:
        cluster.pd.refuse("Tso", rng.choice(["UNAVAILABLE", "UNKNOWN", "CANCELLED", "RESOURCE_EXHAUSTED"]))

    yield lose
    yield outage
    while True:
        yield rng.choice([move, move, crash_the_leader, crash_or_restart, crash_or_restart, cut, cut])


def road_changes(cluster: EmbeddedCluster, rng: random.Random) -> Iterator[Change]:
    """Yield what may happen between clients and three PD members: each is out of reach for a while, then up to two."""
    members = cluster.pd_addresses
    blocked: list[str] = []

    async def block() -> None:
        free = [address for address in members if address not in blocked]
        if len(free) > 1:
            blocked.append(rng.choice(free))
            cluster.network.partition(blocked[-1])

    async def clear() -> None:
        if blocked:
            cluster.network.heal(blocked.pop(rng.randrange(len(blocked))))

    async def move() -> None:
        cluster.transfer_pd_leader(rng.randrange(3))

    async def wait() -> None:
        await anyio.sleep(0.8)

    for member in members:
        yield functools.partial(_cut, cluster, member)
        yield wait
        yield functools.partial(_mend, cluster, member)
    while True:
        yield rng.choice([block, clear, clear, move, wait, wait])


async def _cut(cluster: EmbeddedCluster, address: str) -> None:
    cluster.network.partition(address)


async def _mend(cluster: EmbeddedCluster, address: str) -> None:
    cluster.network.heal(address)


def tso_changes(cluster: EmbeddedCluster, rng: random.Random) -> Iterator[Change]:
    """Yield what may happen to three TSO servers, and to the PD that points at them."""
    down: list[int] = []
    tso = cluster.tso

    def running() -> int:
        return rng.choice([server for server in range(3) if server not in down])

    async def lose() -> None:
        cluster.pd.lose_answers("FindGroupByKeyspaceID")
        cluster.pd.lose_requests("Tso")

    async def outage() -> None:
        for server in range(3):
            await tso.stop(server)
        for server in rng.sample(range(3), 3):
            await tso.start(server)

    async def move() -> None:
        tso.transfer_primary(running())

    async def crash_the_primary() -> None:
        server = tso.keyspace_groups[0]
        await tso.stop(server)
        await tso.start(server)

    async def crash_or_restart() -> None:
        if down:
            await tso.start(down.pop())
        else:
            down.append(running())
            await tso.stop(down[0])

    async def crash_pd() -> None:
        await cluster.stop_pd_member(0)
        move_on = rng.choice([move, crash_the_primary])
        await move_on()
        await anyio.sleep(0.05)
        await cluster.start_pd_member(0)

    async def mislead() -> None:
        cluster.pd.answer_error("FindGroupByKeyspaceID", "UNKNOWN")
        cluster.pd.refuse("Tso", "UNKNOWN")

    yield lose
    yield outage
    while True:
        yield rng.choice([move, move, crash_the_primary, crash_or_restart, crash_or_restart, crash_pd, mislead])


def mode_changes(cluster: EmbeddedCluster, rng: random.Random) -> Iterator[Change]:
    """Yield changes of the mode, with time to notice, and moves of those who grant timestamps on either side."""

    async def to_pd() -> None:
        cluster.tso.withdraw()

    async def to_servers() -> None:
        cluster.tso.announce()

    async def move() -> None:
        cluster.tso.transfer_primary(rng.randrange(2))
        cluster.transfer_pd_leader(rng.randrange(3))

    async def wait() -> None:
        await anyio.sleep(2 * CONFIG.service_interval)

    async def abandon() -> None:
        """Let the servers die once PD has taken over."""
        cluster.tso.withdraw()
        for server in range(2):
            await cluster.tso.stop(server)
        await anyio.sleep(0.1)
        for server in range(2):
            await cluster.tso.start(server)

    while True:
        yield from (to_pd, wait, move, to_servers, wait, move, abandon)


async def test_a_million_timestamps_while_members_crash_and_leaders_move_grow_and_differ() -> None:
    async with EmbeddedCluster(stores=1, pd_members=3) as cluster:
        members = cluster.pd_addresses
        asked = await draw(cluster, 1_000_000, pd_changes(cluster, random.Random(1)))

    assert len(asked.addresses & set(members)) > 1
    assert asked.failures


@pytest.mark.parametrize("through_follower", [False, True])
async def test_timestamps_grow_and_differ_while_roads_to_members_are_blocked(through_follower: bool) -> None:
    config = attrs.evolve(CONFIG, forwarding=True, tso_through_follower=through_follower)
    async with EmbeddedCluster(stores=1, pd_members=3, network_faults=True) as cluster:
        members = cluster.pd_addresses
        asked = await draw(cluster, 800_000, road_changes(cluster, random.Random(1)), config)

    assert len(asked.addresses & set(members)) > 1


async def test_timestamps_of_tso_servers_grow_and_differ_while_primaries_move_and_servers_die() -> None:
    async with EmbeddedCluster(stores=1, tso_servers=3) as cluster:
        servers = cluster.tso.addresses
        asked = await draw(cluster, 500_000, tso_changes(cluster, random.Random(1)))

    assert len(asked.addresses & set(servers)) > 1
    assert asked.failures


async def test_timestamps_grow_and_differ_while_pd_and_tso_servers_take_turns() -> None:
    async with EmbeddedCluster(stores=1, pd_members=3, tso_servers=2) as cluster:
        members, servers = cluster.pd_addresses, cluster.tso.addresses
        asked = await draw(cluster, 500_000, mode_changes(cluster, random.Random(1)))

    assert asked.addresses & set(members)
    assert asked.addresses & set(servers)


class TestALeaderThatIsCutOff:
    """Followers pass requests on to it: what members do among themselves goes on undisturbed."""

    CONFIG = PdConfig(forwarding=True, timeout=0.5, service_interval=0.2)

    async def test_timestamps_grow_through_a_follower_and_straight_again_when_it_is_back(self) -> None:
        asked = Asked()
        async with (
            EmbeddedCluster(stores=1, pd_members=3, network_faults=True) as cluster,
            PdClient(cluster.url, config=self.CONFIG, observer=asked) as client,
        ):
            members, leader = set(cluster.pd_addresses), client.leader
            granted = [await client.get_ts()]
            cluster.network.partition(leader)
            granted += [await client.get_ts() for _ in range(100)]
            through = asked.addresses - {leader}
            cluster.network.heal(leader)
            asked.addresses.clear()
            with anyio.fail_after(15):
                while leader not in asked.addresses:
                    granted.append(await client.get_ts())
            asked.addresses.clear()
            granted += [await client.get_ts() for _ in range(100)]

        assert granted == sorted(set(granted))
        assert through
        assert through < members
        assert asked.addresses == {leader}

    async def test_timestamps_grow_over_moves_of_the_leader_meanwhile(self) -> None:
        asked = Asked()
        async with (
            EmbeddedCluster(stores=1, pd_members=3, network_faults=True) as cluster,
            PdClient(cluster.url, config=self.CONFIG, observer=asked) as client,
        ):
            cut_off = cluster.pd_addresses[0]
            cluster.network.partition(cut_off)
            granted = [await client.get_ts()]
            for member in (1, 2, 0, 2, 1, 0):
                cluster.transfer_pd_leader(member)
                granted += [await client.get_ts() for _ in range(20)]
                assert await client.get_region(b"k") is not None
                assert await client.get_stores()
            asked_through = asked.addresses - {cut_off}

        assert granted == sorted(set(granted))
        assert len(asked_through) == 2

    async def test_a_thousand_callers_notice_nothing_but_the_wait(self) -> None:
        async with (
            EmbeddedCluster(stores=1, pd_members=3, network_faults=True) as cluster,
            PdClient(cluster.url, config=self.CONFIG) as client,
        ):
            draws = Draws(20_000)
            async with anyio.create_task_group() as tasks:
                draws.begin(tasks, [client])
                await anyio.sleep(0.05)
                cluster.network.partition(client.leader)
                await anyio.sleep(1.5)
                cluster.network.heal(client.leader)
            draws.check(20_000)

    async def test_without_forwarding_it_is_waited_for(self) -> None:
        async with (
            EmbeddedCluster(stores=1, pd_members=3, network_faults=True) as cluster,
            PdClient(cluster.url, config=PdConfig(timeout=0.5)) as client,
        ):
            leader = client.leader
            cluster.network.partition(leader)
            with pytest.raises(DeadlineExceeded):
                await client.get_ts(timeout=1)
            cluster.network.heal(leader)

            assert (await client.get_ts(timeout=20)).physical


async def test_clients_that_ask_through_followers_get_timestamps_in_order_with_those_that_do_not() -> None:
    asked = Asked()
    async with (
        EmbeddedCluster(stores=1, pd_members=3) as cluster,
        PdClient(cluster.url, config=PdConfig(tso_through_follower=True), observer=asked) as through,
        PdClient(cluster.url) as straight,
    ):
        granted = [await client.get_ts() for _ in range(100) for client in (through, straight)]
        leader, proxies = through.leader, set(asked.addresses)
        for address in proxies:
            await cluster.stop_pd_member(cluster.pd_addresses.index(address))
        granted += [await client.get_ts() for _ in range(100) for client in (through, straight)]

    assert granted == sorted(set(granted))
    assert leader not in proxies
    assert len(asked.addresses) == 2


async def test_a_follower_that_hangs_costs_one_caller_a_timeout() -> None:
    async with (
        EmbeddedCluster(stores=1, pd_members=3, network_faults=True) as cluster,
        PdClient(cluster.url, config=PdConfig(timeout=1.5)) as client,
    ):
        follower = next(address for address in cluster.pd_addresses if address != client.leader)
        await client.get_region(b"k", allow_follower=True)
        cluster.network.partition(follower)
        slow = 0
        for _ in range(50):
            started = anyio.current_time()
            assert await client.get_region(b"k", allow_follower=True) is not None
            slow += anyio.current_time() - started > 1.4
            await anyio.sleep(0.05)
        cluster.network.heal(follower)

    assert slow <= 1


async def test_servers_are_asked_where_there_are_any_and_pd_where_that_is_wanted() -> None:
    async with (
        EmbeddedCluster(stores=1, tso_servers=1) as cluster,
        PdClient(cluster.url) as client,
        PdClient(cluster.url, config=PdConfig(tso_from_pd=True)) as pinned,
    ):
        await client.get_ts()
        await cluster.tso.stop(0)

        assert (await pinned.get_ts()).physical
        with pytest.raises(DeadlineExceeded):
            await client.get_ts(timeout=0.3)


async def test_routers_and_resource_managers_do_the_work_of_pd_until_they_die() -> None:
    asked = Calls()
    async with (
        EmbeddedCluster(stores=1, router_servers=2, resource_managers=2) as cluster,
        PdClient(cluster.url, config=PdConfig(use_routers=True), observer=asked) as client,
    ):
        assert await client.get_region(b"k") is not None
        assert await client.get_stores()
        assert await client.resource_groups.get_all()
        apart = {address for rpc, address in asked.answered if rpc in SERVICES}
        for server in range(2):
            await cluster.routers.stop(server)
            await cluster.resource_managers.stop(server)
        asked.answered.clear()

        assert await client.get_region(b"k") is not None
        assert await client.get_stores()
        assert await client.resource_groups.get_all()

        assert apart <= {*cluster.routers.addresses, *cluster.resource_managers.addresses}
        assert {address for rpc, address in asked.answered if rpc in SERVICES} == set(cluster.pd_addresses)
