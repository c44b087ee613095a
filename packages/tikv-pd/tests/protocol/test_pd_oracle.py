from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from tikv_pd import (
    LATEST,
    ConfigError,
    DeadlineExceeded,
    FutureTimestamp,
    PdClient,
    PdConfig,
    PdError,
    Timestamp,
)
from tikv_pd.testing import FakePd
from tikv_proto.services import PD


@pytest.fixture
async def client(pd: FakePd) -> AsyncIterator[PdClient]:
    async with PdClient("pd1:2379", transport=pd.transport) as client:
        yield client


async def test_timestamps_of_low_resolution_cost_one_message_in_an_interval(client: PdClient, pd: FakePd) -> None:
    first = [await client.get_low_resolution_ts() for _ in range(10)]
    await anyio.sleep(2.1)
    second = [await client.get_low_resolution_ts() for _ in range(10)]

    assert pd.tso_counts == [1, 1]
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] < second[0]


async def test_nothing_is_fetched_before_anybody_wants_timestamps_of_low_resolution(
    client: PdClient, pd: FakePd
) -> None:
    await client.get_stores()
    await anyio.sleep(60)

    assert pd.tso_counts == []


async def test_nothing_is_fetched_while_others_keep_the_latest_one_fresh(client: PdClient, pd: FakePd) -> None:
    await client.get_low_resolution_ts()

    for _ in range(10):
        await anyio.sleep(1)
        assert await client.get_ts() == await client.get_low_resolution_ts()

    assert pd.tso_counts == [1] * 11


async def test_a_timestamp_of_low_resolution_is_never_older_than_two_intervals(client: PdClient, pd: FakePd) -> None:
    await client.get_low_resolution_ts()
    pd.stop()
    await anyio.sleep(3.9)
    old = await client.get_low_resolution_ts(timeout=1)
    await anyio.sleep(0.2)

    with pytest.raises(DeadlineExceeded, match="get_low_resolution_ts"):
        await client.get_low_resolution_ts(timeout=1)

    for address in pd.members:
        pd.start(address)
    assert await client.get_low_resolution_ts() > old


async def test_stale_reads_less_far_back_than_the_interval_shorten_it(client: PdClient, pd: FakePd) -> None:
    latest = await client.get_low_resolution_ts()

    await client.validate_read_ts(Timestamp(latest.physical - 1000, 0).ts, stale=True)
    await anyio.sleep(1)

    assert len(pd.tso_counts) == 2


async def test_normal_reads_do_not_shorten_the_interval(client: PdClient, pd: FakePd) -> None:
    latest = await client.get_low_resolution_ts()

    await client.validate_read_ts(Timestamp(latest.physical - 1000, 0).ts)
    await anyio.sleep(1)

    assert len(pd.tso_counts) == 1


async def test_a_stale_timestamp_lies_in_the_past_by_pds_clock(client: PdClient, pd: FakePd) -> None:
    first = await client.get_stale_ts(10)
    await anyio.sleep(1)
    second = await client.get_stale_ts(10)

    assert first == Timestamp(pd.timestamp.physical - 10_000, 0)
    assert second.physical == first.physical + 1000


async def test_a_stale_timestamp_is_never_ahead_of_pd_though_its_clock_stands_still(
    client: PdClient, pd: FakePd
) -> None:
    await client.get_ts()
    await anyio.sleep(0.04)

    stale = await client.get_stale_ts(0.001)

    assert stale < pd.timestamp


@pytest.mark.parametrize("staleness", [0, -1, 1e12, float("nan"), float("inf")])
async def test_a_staleness_that_cannot_be_is_refused(client: PdClient, staleness: float) -> None:
    with pytest.raises(ConfigError, match="staleness"):
        await client.get_stale_ts(staleness)


async def test_a_timestamp_that_was_granted_is_valid_without_asking(client: PdClient, pd: FakePd) -> None:
    granted = await client.get_ts()

    await client.validate_read_ts(granted.ts)
    await client.validate_read_ts(granted.ts, stale=True)

    assert pd.tso_counts == [1]


async def test_a_timestamp_granted_to_another_client_is_valid(client: PdClient, pd: FakePd) -> None:
    await client.get_ts()
    async with PdClient("pd1:2379", transport=pd.transport) as other:
        granted = await other.get_ts()

    await client.validate_read_ts(granted.ts)


async def test_a_timestamp_that_pd_has_not_reached_is_in_the_future(client: PdClient) -> None:
    granted = await client.get_ts()

    with pytest.raises(FutureTimestamp) as raised:
        await client.validate_read_ts(granted.ts + 2)

    assert (raised.value.ts, raised.value.current) == (granted.ts + 2, granted.ts + 1)


async def test_cancelling_one_check_leaves_the_others_alone(client: PdClient, pd: FakePd) -> None:
    granted = await client.get_ts()
    pd.hang(PD.Tso, times=1)
    valid: list[int] = []

    async def check(offset: int) -> None:
        try:
            await client.validate_read_ts(granted.ts + offset)
        except FutureTimestamp:
            return
        valid.append(offset)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.get_ts)
        await anyio.wait_all_tasks_blocked()
        for offset in (-2, 2, -1, 60, 0):
            tasks.start_soon(check, offset)
        with anyio.move_on_after(0):
            await client.validate_read_ts(granted.ts + 1)
        pd.heal()

    assert sorted(valid) == [-2, -1, 0, 2]
    assert len(pd.tso_counts) <= 4


async def test_the_latest_is_no_timestamp_for_a_stale_read(client: PdClient, pd: FakePd) -> None:
    await client.validate_read_ts(LATEST)

    with pytest.raises(ConfigError, match="a stale read needs a moment"):
        await client.validate_read_ts(LATEST, stale=True)
    assert pd.tso_counts == []


@pytest.mark.parametrize("ts", [-1, 2**63, 2**64 - 2, 2**64])
async def test_a_number_that_is_no_timestamp_is_refused(client: PdClient, ts: int) -> None:
    with pytest.raises(ConfigError, match="below 2\\*\\*63"):
        await client.validate_read_ts(ts)


async def test_waiting_for_a_timestamp_ends_when_pd_has_reached_it(client: PdClient, pd: FakePd) -> None:
    target = Timestamp(pd.timestamp.physical + 500, 0)

    async def let_time_pass() -> None:
        await anyio.sleep(0.4)
        pd.timestamp = Timestamp(target.physical, 7)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(let_time_pass)
        reached = await client.wait_for(target.ts)

    assert reached == Timestamp(target.physical, 8)
    assert len(pd.tso_counts) == 2


async def test_waiting_for_a_timestamp_of_the_past_does_not_wait(client: PdClient, pd: FakePd) -> None:
    started = anyio.current_time()

    assert await client.wait_for(pd.timestamp.ts) > pd.timestamp.from_ts(0)
    assert anyio.current_time() == started


@pytest.mark.parametrize("ts", [-1, 2**63, LATEST])
async def test_a_timestamp_that_never_comes_is_not_waited_for(client: PdClient, ts: int) -> None:
    with pytest.raises(ConfigError, match="below 2\\*\\*63"):
        await client.wait_for(ts)


async def test_the_smallest_timestamp_has_one_deadline_however_it_is_found(client: PdClient, pd: FakePd) -> None:
    pd.refuse(PD.GetMinTS, "UNAVAILABLE", times=1)
    pd.refuse(PD.GetMinTS, "UNIMPLEMENTED")
    pd.hang(PD.Tso)

    with pytest.raises(DeadlineExceeded, match="get_min_ts did not finish within 2 s"):
        await client.get_min_ts(timeout=2)

    assert anyio.current_time() == 2


async def test_waiting_for_a_timestamp_ends_in_time(client: PdClient, pd: FakePd) -> None:
    with pytest.raises(DeadlineExceeded, match="wait_for did not finish within 2 s"):
        await client.wait_for(Timestamp(pd.timestamp.physical + 60_000, 0).ts, timeout=2)


async def test_the_smallest_timestamp_comes_from_a_pd_that_knows(client: PdClient, pd: FakePd) -> None:
    assert await client.get_min_ts() == pd.timestamp
    assert pd.tso_counts == []

    pd.refuse(PD.GetMinTS, "UNIMPLEMENTED")
    assert await client.get_min_ts() == pd.timestamp
    assert pd.tso_counts == [1]


async def test_an_error_about_the_smallest_timestamp_is_raised(client: PdClient, pd: FakePd) -> None:
    pd.answer_error(PD.GetMinTS, "UNKNOWN", "no keyspace group")

    with pytest.raises(PdError, match="no keyspace group"):
        await client.get_min_ts()


async def test_an_external_timestamp_is_kept(client: PdClient, pd: FakePd) -> None:
    assert await client.get_external_timestamp() == Timestamp(0, 0)

    await client.set_external_timestamp(Timestamp(5, 1))

    assert await client.get_external_timestamp() == Timestamp(5, 1)
    with pytest.raises(PdError, match="INVALID_VALUE"):
        await client.set_external_timestamp(Timestamp(5, 0))
    with pytest.raises(PdError, match="INVALID_VALUE"):
        await client.set_external_timestamp(Timestamp(pd.timestamp.physical + 1, 0))


async def test_the_interval_is_an_option(pd: FakePd) -> None:
    config = PdConfig(low_resolution_interval=30)

    async with PdClient("pd1:2379", config=config, transport=pd.transport) as client:
        await client.get_low_resolution_ts()
        await anyio.sleep(29)

    assert pd.tso_counts == [1]


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.5, 5.0])
async def test_another_interval_counts_without_a_restart(client: PdClient, pd: FakePd, seconds: float) -> None:
    await client.get_low_resolution_ts()
    client.change_low_resolution_interval(seconds)

    await anyio.sleep(10 * seconds + 0.01)

    assert len(pd.tso_counts) in {10, 11}


async def test_an_interval_that_cannot_be_is_refused(client: PdClient) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        client.change_low_resolution_interval(0)
    with pytest.raises(TypeError):
        client.change_low_resolution_interval("2 s")  # type: ignore[arg-type]
