from __future__ import annotations

from typing import Any

import anyio
import pytest
from tikv_pd import RpcError
from tikv_pd.testing import EventWaiter, FakePd, MemoryTransport, ServerStream
from tikv_proto import pdpb
from tikv_proto.services import PD

HEADER = pdpb.RequestHeader(cluster_id=7)
REQUEST = pdpb.GetAllStoresRequest(header=HEADER)


async def test_a_request_may_be_serialized_already(pd: FakePd) -> None:
    connection = pd.transport.connect("pd1:2379")

    answer = await connection.unary(PD.GetAllStores, REQUEST.SerializeToString(), timeout=1)

    assert len(answer.stores) == 2


async def test_a_connection_is_ready_while_its_address_is_served(pd: FakePd) -> None:
    connection = pd.transport.connect("pd1:2379")
    await connection.ready(timeout=1)
    pd.stop()

    with pytest.raises(RpcError) as raised:
        await connection.ready(timeout=1)

    assert not raised.value.sent


async def test_a_closed_connection_refuses_calls_and_streams(pd: FakePd) -> None:
    connection = pd.transport.connect("pd1:2379")
    stream = connection.stream(PD.Tso)
    await connection.aclose()

    with pytest.raises(RpcError, match="CANCELLED"):
        await connection.unary(PD.GetAllStores, REQUEST, timeout=1)
    with pytest.raises(RpcError, match="closed"):
        await stream.receive()
    with pytest.raises(RpcError, match="closed"):
        await stream.send(pdpb.TsoRequest(header=HEADER, count=1))


async def test_a_server_that_stops_breaks_what_is_under_way(pd: FakePd) -> None:
    pd.hang(PD.GetAllStores)
    connection = pd.transport.connect("pd1:2379")

    async def stop() -> None:
        await anyio.wait_all_tasks_blocked()
        pd.stop()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop)
        with pytest.raises(RpcError, match="the server stopped"):
            await connection.unary(PD.GetAllStores, REQUEST, timeout=100)


async def test_what_was_sent_before_a_stream_ended_is_still_read(network: MemoryTransport) -> None:
    async def answer_twice(stream: ServerStream) -> None:
        await stream.send(pdpb.TsoResponse(count=1))
        await stream.send(pdpb.TsoResponse(count=2))

    network.serve("pd1:2379", {PD.Tso: answer_twice})
    stream = network.connect("pd1:2379").stream(PD.Tso)
    await anyio.wait_all_tasks_blocked()

    counts = [(await stream.receive()).count for _ in range(2)]

    assert counts == [1, 2]
    with pytest.raises(RpcError, match="the server ended the stream"):
        await stream.receive()


async def test_a_waiter_hands_over_a_result_or_an_exception() -> None:
    happy: EventWaiter[Any] = EventWaiter()
    sad: EventWaiter[Any] = EventWaiter()
    happy.set_result(1)
    sad.set_exception(KeyError("on purpose"))

    assert happy.done()
    assert await happy == 1
    with pytest.raises(KeyError):
        await sad


async def test_a_waiter_whose_wait_was_cancelled_is_done() -> None:
    waiter: EventWaiter[Any] = EventWaiter()

    with anyio.move_on_after(1):
        await waiter

    assert waiter.done()
