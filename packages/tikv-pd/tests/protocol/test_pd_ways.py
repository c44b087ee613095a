"""Which members are asked, and how the leader is reached, while some cannot be."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from tikv_pd import DeadlineExceeded, PdClient, PdConfig, Timestamp
from tikv_pd.testing import FakePd, FakeTso
from tikv_proto.services import PD, TSO, Health


async def ask_for(client: PdClient, seconds: float) -> list[float]:
    """Ask a follower about a Region five times a second, and return how long each answer took."""
    took = []
    end = anyio.current_time() + seconds
    while anyio.current_time() < end:
        started = anyio.current_time()
        assert await client.get_region(b"k", allow_follower=True) is not None
        took.append(anyio.current_time() - started)
        await anyio.sleep(0.2)
    return took


class TestFollowers:
    @pytest.fixture
    async def client(self, pd: FakePd) -> AsyncIterator[PdClient]:
        async with PdClient("pd1:2379", transport=pd.transport) as client:
            yield client

    async def test_one_that_hangs_costs_one_caller_and_nobody_after_that(self, client: PdClient, pd: FakePd) -> None:
        pd.hang(None, at="pd2:2379")

        took = await ask_for(client, 60)

        assert sorted(took)[-2:] == [0, 3]

    async def test_one_that_hangs_is_found_out_before_anybody_asks_it(self, client: PdClient, pd: FakePd) -> None:
        await client.get_region(b"k", allow_follower=True)
        pd.hang(None, at="pd2:2379")
        await anyio.sleep(1.5)

        assert set(await ask_for(client, 60)) == {0}

    @pytest.mark.parametrize("failure", ["hangs", "stops", "does not serve"])
    async def test_one_that_failed_is_asked_again_once_it_is_well(
        self, client: PdClient, pd: FakePd, failure: str
    ) -> None:
        if failure == "hangs":
            pd.hang(None, at="pd2:2379")
        elif failure == "stops":
            pd.stop("pd2:2379")
        else:
            pd.unwell.add("pd2:2379")
        await ask_for(client, 20)
        pd.heal()
        pd.unwell.clear()
        pd.start("pd2:2379")
        await anyio.sleep(2.5)
        before = pd.calls(PD.GetRegion, at="pd2:2379")

        await ask_for(client, 2)

        assert pd.calls(PD.GetRegion, at="pd2:2379") - before >= 5

    async def test_one_that_is_well_but_has_no_good_answer_rests(self, client: PdClient, pd: FakePd) -> None:
        pd.answer_error(PD.GetRegion, "REGION_NOT_FOUND", at="pd2:2379")

        await ask_for(client, 29)

        assert pd.calls(PD.GetRegion, at="pd2:2379") == 3

    @pytest.mark.parametrize("away", ["pd1:2379", "pd2:2379"])
    async def test_regions_are_told_while_a_member_is_down(self, client: PdClient, pd: FakePd, away: str) -> None:
        pd.stop(away)

        assert set(await ask_for(client, 20)) == {0}

    async def test_one_without_a_health_service_is_well(self, client: PdClient, pd: FakePd) -> None:
        pd.refuse(Health.Check, "UNIMPLEMENTED")

        await ask_for(client, 2)

        assert min(pd.calls(PD.GetRegion, at=address) for address in ("pd2:2379", "pd3:2379")) >= 5

    async def test_nobody_is_probed_while_the_leader_alone_is_asked(self, client: PdClient, pd: FakePd) -> None:
        await client.get_ts()
        await client.get_region(b"k")
        await anyio.sleep(100)

        assert pd.calls(Health.Check) == 0

    async def test_probes_end_with_the_use_of_followers(self, client: PdClient, pd: FakePd) -> None:
        await client.get_region(b"k", allow_follower=True)
        await anyio.sleep(100)

        assert pd.calls(Health.Check) == 3


class TestTimestampsOfALeaderThatIsCutOff:
    @pytest.fixture
    async def client(self, pd: FakePd) -> AsyncIterator[PdClient]:
        config = PdConfig(forwarding=True)
        async with PdClient(["pd1:2379", "pd2:2379"], config=config, transport=pd.transport) as client:
            yield client

    async def test_they_come_through_a_follower_and_grow(self, client: PdClient, pd: FakePd) -> None:
        granted = [await client.get_ts()]
        pd.hang(None, at="pd1:2379")
        granted.append(await client.get_ts())
        cut_off_at = anyio.current_time()

        granted += [await client.get_ts() for _ in range(20)]

        assert granted == sorted(set(granted))
        assert cut_off_at <= 3.5
        assert anyio.current_time() == cut_off_at
        assert client.leader == "pd1:2379"

    async def test_a_leader_that_refuses_connections_costs_no_timeout(self, client: PdClient, pd: FakePd) -> None:
        await client.get_ts()
        pd.transport.stop("pd1:2379")

        assert await client.get_ts() > Timestamp(1_000_000, 1)
        assert anyio.current_time() <= 0.5

    async def test_they_come_straight_again_once_the_leader_is_well(self, client: PdClient, pd: FakePd) -> None:
        pd.hang(None, at="pd1:2379")
        before = await client.get_ts()
        pd.heal()
        await anyio.sleep(4.1)
        streams = pd.calls(PD.Tso, at="pd1:2379")

        assert await client.get_ts() > before
        assert pd.calls(PD.Tso, at="pd1:2379") == streams + 1
        assert pd.transport.log[-1] == ("pd1:2379", "Tso")

    async def test_a_leader_that_does_not_serve_is_not_gone_back_to(self, client: PdClient, pd: FakePd) -> None:
        pd.hang(PD.Tso, at="pd1:2379")
        pd.unwell.add("pd1:2379")
        await client.get_ts()
        await anyio.sleep(10)
        started = anyio.current_time()

        await client.get_ts()

        assert anyio.current_time() == started

    @pytest.mark.parametrize("heir", ["pd2:2379", "pd3:2379"])
    async def test_a_leader_that_moves_while_it_is_cut_off_is_followed(
        self, client: PdClient, pd: FakePd, heir: str
    ) -> None:
        pd.hang(None, at="pd1:2379")
        granted = [await client.get_ts()]
        pd.leader = heir
        started = anyio.current_time()

        granted += [await client.get_ts() for _ in range(3)]

        assert granted == sorted(set(granted))
        assert client.leader == heir
        assert anyio.current_time() == started

    async def test_another_follower_steps_in_for_one_that_fails(self, client: PdClient, pd: FakePd) -> None:
        pd.hang(None, at="pd1:2379")
        granted = [await client.get_ts()]
        proxy = pd.transport.log[max(index for index, (_, rpc) in enumerate(pd.transport.log) if rpc == "Tso")][0]
        pd.transport.stop(proxy)

        granted.append(await client.get_ts())

        assert granted == sorted(set(granted))
        assert {address for address, rpc in pd.transport.log if rpc == "Tso"} == set(pd.members)

    async def test_callers_of_one_moment_share_a_message_there_too(self, client: PdClient, pd: FakePd) -> None:
        pd.transport.stop("pd1:2379")
        await client.get_ts()
        pd.tso_counts.clear()

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(client.get_ts)

        assert pd.tso_counts == [50]

    async def test_without_any_follower_the_leader_is_waited_for(self, client: PdClient, pd: FakePd) -> None:
        pd.stop()

        with pytest.raises(DeadlineExceeded):
            await client.get_ts(timeout=5)
        for address in pd.members:
            pd.start(address)

        assert (await client.get_ts(timeout=3)).logical

    async def test_it_is_off_unless_asked_for(self, pd: FakePd) -> None:
        async with PdClient(["pd1:2379", "pd2:2379"], transport=pd.transport) as client:
            pd.transport.stop("pd1:2379")

            with pytest.raises(DeadlineExceeded):
                await client.get_ts(timeout=5)


class TestOtherRequestsToALeaderThatIsCutOff:
    @pytest.mark.parametrize("heir", ["pd2:2379", "pd3:2379"])
    async def test_a_leader_that_moves_is_followed(self, pd: FakePd, heir: str) -> None:
        async with PdClient("pd2:2379", config=PdConfig(forwarding=True), transport=pd.transport) as client:
            pd.hang(None, at="pd1:2379")
            await client.get_store(1)
            pd.leader = heir

            assert await client.get_store(1) == pd.stores[1]
            assert client.leader == heir


class TestTimestampsThroughFollowers:
    @pytest.fixture
    async def client(self, pd: FakePd) -> AsyncIterator[PdClient]:
        config = PdConfig(tso_through_follower=True)
        async with PdClient("pd1:2379", config=config, transport=pd.transport) as client:
            yield client

    async def test_the_leader_has_no_stream_of_this_client(self, client: PdClient, pd: FakePd) -> None:
        granted = [await client.get_ts() for _ in range(10)]

        assert granted == sorted(set(granted))
        assert pd.calls(PD.Tso, at="pd1:2379") == 0
        assert pd.calls(PD.Tso) == 1

    async def test_they_grow_together_with_those_of_a_client_of_the_leader(self, client: PdClient, pd: FakePd) -> None:
        async with PdClient("pd1:2379", transport=pd.transport) as straight:
            granted = [await each.get_ts() for _ in range(10) for each in (client, straight)]

        assert granted == sorted(set(granted))

    async def test_clients_spread_over_the_followers(self, pd: FakePd) -> None:
        config = PdConfig(tso_through_follower=True)
        for _ in range(30):
            async with PdClient("pd1:2379", config=config, transport=pd.transport) as client:
                await client.get_ts()

        assert pd.calls(PD.Tso, at="pd2:2379") > 0 < pd.calls(PD.Tso, at="pd3:2379")

    async def test_a_follower_that_is_not_well_is_left(self, client: PdClient, pd: FakePd) -> None:
        await client.get_ts()
        proxy, other = sorted(["pd2:2379", "pd3:2379"], key=lambda address: -pd.calls(PD.Tso, at=address))
        pd.unwell.add(proxy)
        await anyio.sleep(1.1)
        await client.get_ts()
        await anyio.sleep(1.1)

        await client.get_ts()

        assert pd.calls(PD.Tso, at=other) == 1

    async def test_the_leader_is_asked_straight_when_a_follower_cannot_pass_them_on(
        self, client: PdClient, pd: FakePd
    ) -> None:
        for address in ("pd2:2379", "pd3:2379"):
            pd.refuse(PD.Tso, "UNKNOWN", "too many streams", at=address)

        await client.get_ts()

        assert (pd.calls(PD.Tso, at="pd1:2379"), pd.calls(PD.Tso)) == (1, 2)

    async def test_a_pd_without_followers_is_asked_straight(self, pd: FakePd) -> None:
        pd.members = ["pd1:2379"]
        config = PdConfig(tso_through_follower=True)
        async with PdClient("pd1:2379", config=config, transport=pd.transport) as client:
            assert (await client.get_ts()).logical

    async def test_tso_servers_are_asked_themselves(self, pd: FakePd) -> None:
        FakeTso(pd)
        config = PdConfig(tso_through_follower=True)
        async with PdClient("pd1:2379", config=config, transport=pd.transport) as client:
            await client.get_ts()

        assert (pd.calls(TSO.Tso, at="tso1:3379"), pd.calls(Health.Check)) == (1, 0)
