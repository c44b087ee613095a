"""What a client does is cancelled at each of its steps: all or nothing is written, and the client stays usable."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import wait_all_tasks_blocked
from tikv_pd.testing import virtual_time
from tikv_proto.services import PD, Tikv
from tikv_rpc.testing import FakeCluster
from tikv_txn import Transaction, TransactionClient, TransactionOptions, TransactionState
from tikv_txn.testing import FakeMvcc

PAIRS = {b"a": b"1", b"b": b"1", b"h": b"1", b"q": b"1"}
MODES = {
    "2pc": TransactionOptions(one_pc=False, async_commit=False),
    "async commit": TransactionOptions(one_pc=False),
    "1pc": TransactionOptions(),
}
Work = Callable[[TransactionClient, TransactionOptions, list[Transaction]], Awaitable[object]]


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_time() if request.param == "trio" else "asyncio"


@pytest.fixture
async def client(cluster: FakeCluster, mvcc: FakeMvcc) -> AsyncIterator[TransactionClient]:  # noqa: ARG001  # serves it
    async with TransactionClient(cluster.url, transport=cluster.transport) as opened:
        yield opened


async def block(client: TransactionClient, options: TransactionOptions, begun: list[Transaction]) -> None:
    async with client.begin(options) as txn:
        begun.append(txn)
        await txn.batch_get(PAIRS)
        txn.put_many(PAIRS)


async def run(client: TransactionClient, options: TransactionOptions, begun: list[Transaction]) -> None:
    async def work(txn: Transaction) -> None:
        begun.append(txn)
        await txn.get(b"a")
        txn.put_many(PAIRS)

    await client.run(work, options=options)


async def by_hand(client: TransactionClient, options: TransactionOptions, begun: list[Transaction]) -> None:
    txn = client.begin(options)
    begun.append(txn)
    await txn
    txn.put_many(PAIRS)
    await txn.commit()


async def is_cancelled_after(steps: int, work: Callable[[], Awaitable[object]]) -> bool:
    scope = anyio.CancelScope()

    async def cancellable() -> None:
        with scope:
            await work()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancellable)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        scope.cancel()
    return scope.cancelled_caught


@pytest.mark.filterwarnings("ignore:.*neither committed nor rolled back:ResourceWarning")
@pytest.mark.parametrize("options", MODES.values(), ids=list(MODES))
@pytest.mark.parametrize("work", [block, run, by_hand])
async def test_whenever_it_is_cancelled_all_is_written_or_nothing(
    mvcc: FakeMvcc, client: TransactionClient, anyio_backend_name: str, options: TransactionOptions, work: Work
) -> None:
    # On asyncio's real clock it takes a while to see that nothing goes on any more.
    stride = 1 if anyio_backend_name == "trio" else 5
    await client.snapshot().batch_get(PAIRS)
    seen = set()
    for steps in range(0, 500, stride):
        begun: list[Transaction] = []

        was_cancelled = await is_cancelled_after(steps, lambda begun=begun: work(client, options, begun))  # type: ignore[misc]

        states = {txn.state for txn in begun}
        seen |= states
        assert TransactionState.COMMITTING not in states
        await wait_all_tasks_blocked()
        assert client.stats().in_flight == 0
        found = {key: value for key in PAIRS if (value := mvcc.at(key)) is not None and key not in mvcc.locks}
        if TransactionState.COMMITTED in states:
            assert await client.snapshot().batch_get(PAIRS) == PAIRS
        elif TransactionState.UNDETERMINED not in states:
            assert found == {}
            assert mvcc.locks == {}
        if not was_cancelled:
            break
        mvcc.versions.clear()
        mvcc.locks.clear()

    assert seen >= {TransactionState.COMMITTED, TransactionState.UNDETERMINED}
    assert not was_cancelled
    assert await client.snapshot().batch_get(PAIRS) == PAIRS


async def test_opening_may_be_cancelled(cluster: FakeCluster, mvcc: FakeMvcc) -> None:
    client = TransactionClient(cluster.url, transport=cluster.transport)
    cluster.pd.hang(PD.GetMembers)
    with anyio.move_on_after(0.1):
        await client.__aenter__()
    cluster.pd.heal()

    async with client, client.begin() as txn:
        txn.put(b"a", b"1")
    assert mvcc.at(b"a") == b"1"


async def test_closing_ends_what_is_under_way(cluster: FakeCluster, mvcc: FakeMvcc) -> None:
    cluster.store(1).hang_next(Tikv.KvGet, times=10)
    errors: list[type[BaseException]] = []

    async def read(client: TransactionClient) -> None:
        try:
            async with client.begin() as txn:
                await txn.get(b"a")
        except Exception as error:
            errors.append(type(error))

    async with (
        anyio.create_task_group() as tasks,
        TransactionClient(cluster.url, transport=cluster.transport) as client,
    ):
        for _ in range(3):
            tasks.start_soon(read, client)
        await wait_all_tasks_blocked()

    assert [error.__name__ for error in errors] == ["ClosedError"] * 3
    assert mvcc.locks == {}
