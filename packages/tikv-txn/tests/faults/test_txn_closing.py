"""A client is closed by whichever task; what commits left to be done has its time all the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from tikv_pd.testing import virtual_time
from tikv_proto.services import Tikv
from tikv_region import TxnV1Codec
from tikv_rpc.testing import FakeCluster
from tikv_txn import ClosedError, TransactionClient, TxnConfig
from tikv_txn.testing import FakeMvcc

FAR = {b"a": b"1", b"h": b"2", b"q": b"3"}
"""In three Regions, so that those but the first are committed in the background."""


@pytest.fixture
async def client(cluster: FakeCluster, mvcc: FakeMvcc) -> TransactionClient:  # noqa: ARG001  # serves it
    return TransactionClient(cluster.url, config=TxnConfig(close_timeout=3), transport=cluster.transport)


async def in_a_task(function: Callable[[], Awaitable[object]]) -> None:
    async def run() -> None:
        await function()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)


async def commit_with_something_left(cluster: FakeCluster, client: TransactionClient, seconds: float) -> None:
    """Open the client and commit; committing what nobody waits for takes so long."""
    await client.open()
    store = cluster.store(1)
    store.before_next(Tikv.KvCommit, lambda: store.delay_next(Tikv.KvCommit, seconds, times=2))
    async with client.begin() as txn:
        for key, value in FAR.items():
            txn.put(key, value)


async def test_another_task_closes_it_and_waits_for_what_commits_left(
    cluster: FakeCluster, mvcc: FakeMvcc, client: TransactionClient
) -> None:
    await commit_with_something_left(cluster, client, 2)
    assert mvcc.locks
    began = anyio.current_time()

    await in_a_task(client.aclose)

    assert anyio.current_time() - began == pytest.approx(2)
    assert mvcc.locks == {}
    assert cluster.transport.open_connections() == []
    with pytest.raises(ClosedError):
        await client.get_ts()


async def test_what_commits_left_is_waited_for_no_longer_than_it_may_take(
    cluster: FakeCluster, mvcc: FakeMvcc, client: TransactionClient
) -> None:
    await commit_with_something_left(cluster, client, 60)
    began = anyio.current_time()

    await in_a_task(client.aclose)

    assert anyio.current_time() - began == pytest.approx(3)
    assert mvcc.locks
    assert cluster.transport.open_connections() == []


async def test_cancelled_while_it_closes_it_waits_for_nothing(
    cluster: FakeCluster, mvcc: FakeMvcc, client: TransactionClient
) -> None:
    await commit_with_something_left(cluster, client, 60)
    began = anyio.current_time()

    with anyio.move_on_after(1) as scope:
        await client.aclose()

    assert scope.cancelled_caught
    assert anyio.current_time() - began == pytest.approx(1)
    assert mvcc.locks
    assert cluster.transport.open_connections() == []


async def test_nothing_new_is_begun_while_it_closes(cluster: FakeCluster, client: TransactionClient) -> None:
    await commit_with_something_left(cluster, client, 2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.aclose)
        await anyio.sleep(1)

        with pytest.raises(ClosedError):
            client.begin()
        with pytest.raises(ClosedError):
            await client.get_ts()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_forgotten_it_ends_with_its_loop_and_waits_for_nothing(backend: str) -> None:
    async def forget() -> None:
        async with FakeCluster([b"g", b"p"], codec=TxnV1Codec()) as cluster:
            FakeMvcc(cluster)
            client = TransactionClient(cluster.url, config=TxnConfig(close_timeout=30), transport=cluster.transport)
            kept.append(client)
            await commit_with_something_left(cluster, client, 60)

    kept: list[TransactionClient] = []
    options: dict[str, Any] = virtual_time()[1] if backend == "trio" else {}

    anyio.run(forget, backend=backend, backend_options=options)

    assert kept[0]._session.opened is None
