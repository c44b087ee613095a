"""What one operation carries: its deadline, its waits, a write that may have been applied."""

from __future__ import annotations

import anyio
import pytest
from tikv_pd import BackoffExceeded, DeadlineExceeded
from tikv_pd.backoff import REGION_MISS, TIKV_RPC
from tikv_pd.errors import RpcError
from tikv_rpc import Branches, Call, Totals, Waits
from tikv_rpc.call import FREE_RETRIES

CAUSE = RpcError("tikv1:20160", "RawPut", "UNAVAILABLE", "")


def call(timeout: float = 60, budget: float = 60) -> Call:
    return Call("put", timeout, anyio.current_time, Waits(budget, Totals()))


async def pause_forever(operation: Call) -> None:
    while True:
        await operation.pause(TIKV_RPC, CAUSE)


async def test_a_pause_waits_as_its_kind_says() -> None:
    operation, began = call(), anyio.current_time()

    await operation.pause(REGION_MISS, CAUSE)
    await operation.pause(REGION_MISS, CAUSE)

    assert anyio.current_time() - began == pytest.approx(0.002 + 0.004)


async def test_a_pause_of_no_kind_takes_no_time_until_there_were_too_many() -> None:
    operation, began = call(), anyio.current_time()

    for _ in range(FREE_RETRIES):
        await operation.pause(None, CAUSE)
    free = anyio.current_time() - began
    await operation.pause(None, CAUSE)

    assert free == 0
    assert anyio.current_time() > began


async def test_no_pause_outlasts_the_deadline() -> None:
    operation, began = call(timeout=1), anyio.current_time()

    with pytest.raises(DeadlineExceeded) as raised:
        await pause_forever(operation)

    assert anyio.current_time() - began == pytest.approx(1)
    assert raised.value.__cause__ is CAUSE


async def test_a_pause_of_no_kind_ends_at_the_deadline_too() -> None:
    operation = call(timeout=1)
    await anyio.sleep(1)

    with pytest.raises(DeadlineExceeded):
        await operation.pause(None, CAUSE)


async def test_a_budget_of_waiting_ends_the_operation() -> None:
    operation = call(timeout=1000, budget=1)

    with pytest.raises(BackoffExceeded) as raised:
        await pause_forever(operation)

    assert raised.value.__cause__ is CAUSE


async def test_branches_inherit_what_was_waited_and_the_longest_counts() -> None:
    operation = call()
    await operation.pause(REGION_MISS, CAUSE)
    short, long = operation.fork(), operation.fork()
    await long.pause(REGION_MISS, CAUSE)

    operation.join([short, long])

    assert short.backoffer.waited == pytest.approx(0.002)
    assert operation.backoffer.waited == pytest.approx(0.006)
    assert (long.at, long.timeout) == (operation.at, operation.timeout)


async def test_branches_inherit_the_budget() -> None:
    branch = call(timeout=1000, budget=1).fork()

    with pytest.raises(BackoffExceeded):
        await pause_forever(branch)


async def test_a_branch_may_hide_the_outcome_of_the_whole() -> None:
    operation = call()
    clean, lossy, writing = operation.fork(), operation.fork(), operation.fork()
    lossy.lost = CAUSE
    writing.wrote = True

    operation.join([clean, lossy, writing])

    assert operation.lost is CAUSE
    assert operation.wrote


async def test_a_cancelled_operation_still_learns_what_its_branches_wrote() -> None:
    operation = call()

    async def write(branch: Call) -> None:
        branch.wrote = True
        await anyio.sleep_forever()

    with anyio.move_on_after(1):
        async with Branches(operation) as branches:
            branches.start(write)

    assert operation.wrote
