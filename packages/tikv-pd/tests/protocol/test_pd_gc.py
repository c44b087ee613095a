from __future__ import annotations

import math
from collections.abc import AsyncIterator

import anyio
import pytest
from tikv_pd import (
    ConfigError,
    DeadlineExceeded,
    GcBarrier,
    GcBarrierTooOld,
    GcState,
    PdClient,
    PdError,
    SafePointAdvance,
)
from tikv_pd.testing import FakePd
from tikv_proto.services import PD


@pytest.fixture
async def client(pd: FakePd) -> AsyncIterator[PdClient]:
    async with PdClient("pd1:2379", transport=pd.transport) as client:
        yield client


async def test_a_barrier_holds_the_txn_safe_point_back(client: PdClient) -> None:
    await client.gc.set_barrier("backup", 50)

    assert await client.gc.advance_txn_safe_point(40) == SafePointAdvance(0, 40)
    assert await client.gc.advance_txn_safe_point(60) == SafePointAdvance(40, 50, "backup")
    assert await client.gc.delete_barrier("backup") == GcBarrier("backup", 50, math.inf)
    assert await client.gc.advance_txn_safe_point(60) == SafePointAdvance(50, 60)


async def test_a_global_barrier_holds_the_txn_safe_point_back(client: PdClient) -> None:
    assert await client.gc.set_global_barrier("backup", 50, ttl=3) == GcBarrier("backup", 50, 3.0)

    assert (await client.gc.advance_txn_safe_point(60)).blocker == "backup"
    assert await client.gc.delete_global_barrier("backup") == GcBarrier("backup", 50, 3.0)
    assert await client.gc.delete_global_barrier("backup") is None


async def test_the_gc_safe_point_follows_the_txn_safe_point(client: PdClient) -> None:
    await client.gc.advance_txn_safe_point(40)

    assert await client.gc.advance_gc_safe_point(30) == SafePointAdvance(0, 30)
    with pytest.raises(PdError):
        await client.gc.advance_gc_safe_point(41)
    with pytest.raises(PdError):
        await client.gc.advance_gc_safe_point(29)
    with pytest.raises(PdError):
        await client.gc.advance_txn_safe_point(39)


async def test_barriers_that_were_not_asked_for_are_not_taken_for_none(client: PdClient, pd: FakePd) -> None:
    pd.gc.txn_safe_point, pd.gc.gc_safe_point = 20, 10

    assert await client.gc.get_state() == GcState(None, False, 20, 10)
    assert await client.gc.get_state(barriers=True, global_barriers=True) == GcState(None, False, 20, 10, (), ())


async def test_barriers_are_told_when_asked_for(client: PdClient, pd: FakePd) -> None:
    pd.gc.barriers["a"] = GcBarrier("a", 7, math.inf)
    pd.gc.global_barriers["b"] = GcBarrier("b", 8, 5.0)

    state = await client.gc.get_state(barriers=True, global_barriers=True)

    assert (state.barriers, state.global_barriers) == ((GcBarrier("a", 7, math.inf),), (GcBarrier("b", 8, 5.0),))
    assert (await client.gc.get_state(global_barriers=True)).barriers is None


async def test_the_states_of_all_keyspaces_are_told(client: PdClient, pd: FakePd) -> None:
    pd.gc.barriers["a"] = GcBarrier("a", 7, math.inf)

    states = await client.gc.get_all_states()
    with_barriers = await client.gc.get_all_states(barriers=True)

    assert states == [GcState(None, False, 0, 0), GcState(4, True, 0, 0)]
    assert [state.barriers for state in with_barriers] == [(GcBarrier("a", 7, math.inf),), ()]


async def test_a_barrier_behind_the_txn_safe_point_comes_too_late(client: PdClient, pd: FakePd) -> None:
    await client.gc.set_barrier("backup", 30, ttl=9)
    pd.gc.txn_safe_point = 20

    with pytest.raises(GcBarrierTooOld, match="a barrier at 10 comes too late: the txn safe point is 20"):
        await client.gc.set_barrier("backup", 10)
    with pytest.raises(GcBarrierTooOld):
        await client.gc.set_global_barrier("backup", 10)
    assert pd.gc.barriers["backup"] == GcBarrier("backup", 30, 9.0)


async def test_another_error_about_a_barrier_stays_what_it_is(client: PdClient, pd: FakePd) -> None:
    with pytest.raises(PdError, match="refused"):
        await client.gc.set_barrier("gc_worker", 10)

    pd.answer_error(PD.SetGCBarrier, "INVALID_VALUE")
    with pytest.raises(PdError, match="INVALID_VALUE"):
        await client.gc.set_barrier("backup", 10)


async def test_a_barrier_has_one_deadline_with_the_look_at_why_it_failed(client: PdClient, pd: FakePd) -> None:
    pd.answer_error(PD.SetGCBarrier, "NOT_BOOTSTRAPPED", times=1)
    pd.answer_error(PD.SetGCBarrier, "UNKNOWN", "words")
    pd.hang(PD.GetGCState)

    with pytest.raises(DeadlineExceeded, match="set_barrier did not finish within 2 s"):
        await client.gc.set_barrier("backup", 5, timeout=2)

    assert anyio.current_time() == 2


async def test_a_keyspace_may_be_named(client: PdClient, pd: FakePd) -> None:
    await client.gc.get_state(4)
    await client.gc.set_barrier("backup", 1, keyspace_id=0)
    await client.gc.get_state()

    assert pd.gc.scopes == [4, 0, 0xFFFFFFFF]
    with pytest.raises(ConfigError, match="keyspace_id must be between"):
        await client.gc.get_state(2**24)


@pytest.mark.parametrize(
    ("ttl", "seconds"), [(0.001, 1), (1, 1), (3600, 3600), (3600.001, 3601), (math.inf, math.inf), (1e30, math.inf)]
)
async def test_a_time_to_live_is_rounded_up_to_seconds(client: PdClient, ttl: float, seconds: float) -> None:
    assert (await client.gc.set_barrier("backup", 1, ttl=ttl)).ttl == seconds


@pytest.mark.parametrize("ttl", [0, -1, math.nan])
async def test_a_time_to_live_that_cannot_be_is_refused(client: PdClient, ttl: float) -> None:
    with pytest.raises(ConfigError, match="ttl must be above 0"):
        await client.gc.set_barrier("backup", 1, ttl=ttl)
