"""BatchClient against the other end of its stream: what it writes, what it makes of answers, deadlines and breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import Metadata, Req, Resp, Waiter
from tikv_pd.testing import MemoryConnection, MemoryStream, MemoryTransport, ServerStream, fail, virtual_time
from tikv_proto import kvrpcpb, tikvpb
from tikv_proto.services import Rpc, Tikv
from tikv_rpc import RpcConfig
from tikv_rpc._stores.batch import BatchClient

ADDRESS = "tikv1:20160"


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_time() if request.param == "trio" else "asyncio"


async def settle() -> None:
    """Let all tasks run until they wait for something."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        await anyio.wait_all_tasks_blocked()
    else:
        # anyio's own way takes a tenth of a second there.
        for _ in range(20):
            await anyio.lowlevel.checkpoint()


def is_about(seconds: float, expected: float) -> bool:
    """Tell whether something took as long as it should; on a real clock the machine may be busy."""
    return expected - 0.001 <= seconds < expected + 0.5


class Asked:
    """One call in a task of its own, and how it ended."""

    def __init__(
        self,
        tasks: anyio.abc.TaskGroup,
        client: BatchClient,
        key: bytes,
        timeout: float,
        field: str,
        priority: int = 0,
    ) -> None:
        self.answer: Any = None
        self.error: RpcError | None = None
        self.seconds = 0.0
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        tasks.start_soon(self._run, client, key, timeout, field, priority)

    async def _run(self, client: BatchClient, key: bytes, timeout: float, field: str, priority: int) -> None:
        began = anyio.current_time()
        payload = kvrpcpb.RawGetRequest(key=key).SerializeToString()
        with self.scope:
            try:
                self.answer = await client.call(field, b"", payload, began + timeout, timeout, priority)
            except RpcError as error:
                self.error = error
        self.seconds = anyio.current_time() - began
        self.ended.set()

    async def failure(self) -> tuple[str, bool]:
        """Return the status it ends with, and whether the store may have seen the request."""
        with anyio.fail_after(5):
            await self.ended.wait()
        assert self.error is not None
        return self.error.code, self.error.sent

    async def value(self) -> bytes:
        """Return the value it is answered with."""
        with anyio.fail_after(5):
            await self.ended.wait()
        assert self.error is None
        return bytes(self.answer.value)


class FutureTransport(MemoryTransport):
    """On asyncio: waiters are what they are over gRPC, done as soon as their task is cancelled."""

    def waiters(self) -> Callable[[], Waiter[Any]]:
        return asyncio.get_running_loop().create_future


class Line:
    """A client on a line to a store that the test plays."""

    def __init__(self, network: MemoryTransport, tasks: anyio.abc.TaskGroup) -> None:
        self.network = network
        self.tasks = tasks
        self.messages: list[tikvpb.BatchCommandsRequest] = []
        self.streams: list[ServerStream] = []
        self.failure: RpcError | None = None
        self.start()

    def start(self) -> None:
        self.network.serve(ADDRESS, {Tikv.BatchCommands: self._serve})

    def stop(self) -> None:
        self.network.stop(ADDRESS)

    async def _serve(self, stream: ServerStream) -> None:
        self.streams.append(stream)
        while True:
            message = await stream.receive()
            self.messages.append(message)
            if self.failure is not None:
                raise self.failure

    def open(self, config: RpcConfig | None = None) -> BatchClient:
        return self.serve(BatchClient(self.network, self.network.connect(ADDRESS), config or RpcConfig()))

    def serve(self, client: BatchClient) -> BatchClient:
        self.tasks.start_soon(client.run)
        return client

    async def ask(
        self, client: BatchClient, *keys: bytes, timeout: float = 10, field: str = "RawGet", priority: int = 0
    ) -> list[Asked]:
        """Make a call for each key, all in one tick, and wait until they were taken up."""
        asked = [Asked(self.tasks, client, key, timeout, field, priority) for key in keys]
        await settle()
        return asked

    async def answer(self, *answers: tuple[int, bytes]) -> None:
        """Answer ids with values, in one message on the latest stream."""
        responses = [
            tikvpb.BatchCommandsResponse.Response(RawGet=kvrpcpb.RawGetResponse(value=value)) for _, value in answers
        ]
        await self.send(
            tikvpb.BatchCommandsResponse(request_ids=[number for number, _ in answers], responses=responses)
        )

    async def send(self, message: Any) -> None:
        await self.streams[-1].send(message)
        await settle()

    def written(self) -> list[list[bytes]]:
        return [[request.RawGet.key for request in message.requests] for message in self.messages]

    def id_of(self, key: bytes) -> int:
        """Return the id a key was asked for under; tasks of one tick run in any order."""
        numbers = {
            request.RawGet.key: number
            for message in self.messages
            for request, number in zip(message.requests, message.request_ids, strict=True)
        }
        return numbers[key]

    def ids(self) -> list[list[int]]:
        return [list(message.request_ids) for message in self.messages]


@pytest.fixture
async def line(anyio_backend_name: str) -> AsyncIterator[Line]:
    transport = FutureTransport() if anyio_backend_name == "asyncio" else MemoryTransport()
    async with transport as network, anyio.create_task_group() as tasks:
        yield Line(network, tasks)
        tasks.cancel_scope.cancel()


class GatedConnection(MemoryConnection):
    """Its streams take messages, and it gets ready, only while the gate is open."""

    def __init__(self, network: MemoryTransport) -> None:
        super().__init__(network, ADDRESS)
        self.ready_gate = anyio.Event()
        self.ready_gate.set()
        self.send_gate = anyio.Event()
        self.send_gate.set()

    async def ready(self, *, timeout: float) -> None:
        with anyio.move_on_after(timeout):
            await self.ready_gate.wait()
            return await super().ready(timeout=timeout)
        raise RpcError(ADDRESS, "connect", "UNAVAILABLE", "not connected", sent=False)

    def stream(self, rpc: Rpc[Req, Resp], *, metadata: Metadata = ()) -> MemoryStream[Req, Resp]:
        connection, stream = self, super().stream(rpc, metadata=metadata)
        send = stream.send

        async def gated(request: Any) -> None:
            await connection.send_gate.wait()
            await send(request)

        stream.send = gated  # type: ignore[method-assign]  # what a full pipe does to a writer
        return stream


class TestMessages:
    async def test_requests_of_one_tick_travel_in_one_message(self, line: Line) -> None:
        client = line.open()
        await settle()

        await line.ask(client, b"a", b"b", b"c")

        assert [sorted(keys) for keys in line.written()] == [[b"a", b"b", b"c"]]

    async def test_a_message_holds_no_more_requests_than_allowed(self, line: Line) -> None:
        client = line.open(RpcConfig(max_batch_size=2))

        await line.ask(client, b"a", b"b", b"c", b"d", b"e")

        assert [len(keys) for keys in line.written()] == [2, 2, 1]

    async def test_a_message_is_closed_once_it_is_large_enough(self, line: Line) -> None:
        client = line.open(RpcConfig(max_batch_bytes=100))

        await line.ask(client, *[bytes([number]) * 60 for number in range(5)])

        assert [len(keys) for keys in line.written()] == [2, 2, 1]

    async def test_a_larger_request_still_travels(self, line: Line) -> None:
        client = line.open(RpcConfig(max_batch_bytes=100))

        await line.ask(client, b"x" * 5000)

        assert line.written() == [[b"x" * 5000]]

    async def test_answers_reach_their_callers_in_any_order(self, line: Line) -> None:
        client = line.open()
        first, second, third = await line.ask(client, b"a", b"b", b"c")

        await line.answer((line.id_of(b"c"), b"3"), (line.id_of(b"a"), b"1"))
        await line.answer((line.id_of(b"b"), b"2"))

        assert [await asked.value() for asked in (first, second, third)] == [b"1", b"2", b"3"]

    async def test_what_is_asked_while_a_message_is_written_goes_into_the_next(self, line: Line) -> None:
        connection = GatedConnection(line.network)
        connection.send_gate = anyio.Event()
        client = line.serve(BatchClient(line.network, connection, RpcConfig()))
        await line.ask(client, b"a")
        await line.ask(client, b"b", b"c")

        connection.send_gate.set()
        await settle()

        assert [sorted(keys) for keys in line.written()] == [[b"a"], [b"b", b"c"]]

    async def test_the_counters_tell_messages_requests_and_what_is_under_way(self, line: Line) -> None:
        client = line.open()
        await line.ask(client, b"a", b"b")
        await line.ask(client, b"c")

        await line.answer((1, b""))

        stats = client.stats()
        assert (stats.messages, stats.requests, stats.in_flight, stats.late) == (2, 3, 2, 0)


class TestAnswers:
    async def test_an_answer_nobody_asked_for_is_dropped_and_counted(self, line: Line) -> None:
        client = line.open()
        (asked,) = await line.ask(client, b"a")

        await line.answer((99, b"?"), (1, b"1"))

        assert await asked.value() == b"1"
        assert client.stats().late == 1

    async def test_a_second_answer_is_dropped_and_counted(self, line: Line) -> None:
        client = line.open()
        (asked,) = await line.ask(client, b"a")

        await line.answer((1, b"1"), (1, b"2"))

        assert await asked.value() == b"1"
        assert client.stats().late == 1

    async def test_an_answer_after_the_deadline_is_late(self, line: Line) -> None:
        client = line.open()
        (asked,) = await line.ask(client, b"a", timeout=0.01)
        await anyio.sleep(0.02)

        await line.answer((1, b"1"))

        assert await asked.failure() == ("DEADLINE_EXCEEDED", True)
        assert client.stats().late == 1

    async def test_a_command_the_store_does_not_know_is_unimplemented(self, line: Line) -> None:
        client = line.open()
        (asked,) = await line.ask(client, b"a")

        await line.send(
            tikvpb.BatchCommandsResponse(request_ids=[1], responses=[tikvpb.BatchCommandsResponse.Response()])
        )

        assert await asked.failure() == ("UNIMPLEMENTED", True)

    async def test_an_answer_of_another_kind_fails_its_call_and_no_other(self, line: Line) -> None:
        client = line.open()
        asked, other = await line.ask(client, b"a", b"b")
        wrong = tikvpb.BatchCommandsResponse.Response(RawPut=kvrpcpb.RawPutResponse())

        await line.send(tikvpb.BatchCommandsResponse(request_ids=[line.id_of(b"a")], responses=[wrong]))
        await line.answer((line.id_of(b"b"), b"2"))

        assert await asked.failure() == ("INTERNAL", True)
        assert "RawPut" in str(asked.error)
        assert await other.value() == b"2"

    @pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x12\x01\x01"], ids=["no message", "ids without answers"])
    async def test_garbage_fails_what_was_asked_and_the_next_call_works(self, line: Line, garbage: bytes) -> None:
        class Garbage:
            def SerializeToString(self) -> bytes:
                return garbage

        client = line.open()
        (asked,) = await line.ask(client, b"a")

        await line.send(Garbage())
        (again,) = await line.ask(client, b"b")
        await line.answer((2, b"2"))

        assert await asked.failure() == ("INTERNAL", True)
        assert asked.error is not None
        assert asked.error.__cause__ is not None
        assert await again.value() == b"2"


class TestDeadlines:
    async def test_a_call_without_an_answer_fails_on_time(self, line: Line) -> None:
        client = line.open()

        (asked,) = await line.ask(client, b"a", timeout=0.05)
        await anyio.sleep(0.1)

        assert await asked.failure() == ("DEADLINE_EXCEEDED", True)
        assert is_about(asked.seconds, 0.05)
        assert "0.05 s" in str(asked.error)

    async def test_an_earlier_deadline_is_met_while_a_later_one_is_awaited(self, line: Line) -> None:
        client = line.open()
        (long,) = await line.ask(client, b"a", timeout=5)

        (short,) = await line.ask(client, b"b", timeout=0.05)
        await anyio.sleep(0.1)

        assert await short.failure() == ("DEADLINE_EXCEEDED", True)
        assert is_about(short.seconds, 0.05)
        assert long.error is None

    async def test_a_later_deadline_is_met_after_an_earlier_one_passed(self, line: Line) -> None:
        client = line.open()
        await line.ask(client, b"a", timeout=0.02)

        (long,) = await line.ask(client, b"b", timeout=0.1)
        await anyio.sleep(0.2)

        assert is_about(long.seconds, 0.1)

    async def test_deadlines_are_met_after_a_time_of_rest(self, line: Line) -> None:
        client = line.open()
        await line.ask(client, b"a", timeout=0.02)
        await line.answer((1, b"1"))
        await anyio.sleep(0.1)

        (asked,) = await line.ask(client, b"b", timeout=0.02)
        await anyio.sleep(0.1)

        assert is_about(asked.seconds, 0.02)

    async def test_a_call_that_waits_for_a_connection_was_not_sent(self, line: Line) -> None:
        connection = GatedConnection(line.network)
        connection.ready_gate = anyio.Event()
        client = line.serve(BatchClient(line.network, connection, RpcConfig()))

        (asked,) = await line.ask(client, b"a", timeout=0.05)
        await anyio.sleep(0.1)

        assert await asked.failure() == ("DEADLINE_EXCEEDED", False)

    async def test_a_call_queued_behind_a_write_that_blocks_was_not_sent(self, line: Line) -> None:
        connection = GatedConnection(line.network)
        connection.send_gate = anyio.Event()
        client = line.serve(BatchClient(line.network, connection, RpcConfig()))
        (written,) = await line.ask(client, b"a", timeout=0.05)

        (queued,) = await line.ask(client, b"b", timeout=0.05)
        await anyio.sleep(0.1)

        assert await written.failure() == ("DEADLINE_EXCEEDED", True)
        assert await queued.failure() == ("DEADLINE_EXCEEDED", False)

    async def test_an_expired_call_is_never_written(self, line: Line) -> None:
        connection = GatedConnection(line.network)
        connection.ready_gate = anyio.Event()
        client = line.serve(BatchClient(line.network, connection, RpcConfig()))
        await line.ask(client, b"a", timeout=0.02)
        await line.ask(client, b"b")
        await anyio.sleep(0.05)

        connection.ready_gate.set()
        await settle()

        assert line.written() == [[b"b"]]

    async def test_many_deadlines_are_met_though_they_are_looked_through_together(self, line: Line) -> None:
        client = line.open()
        asked = [Asked(line.tasks, client, b"a", 2 + number * 1e-5, "RawGet") for number in range(500)]

        await anyio.sleep(3)

        assert {await call.failure() for call in asked} == {("DEADLINE_EXCEEDED", True)}
        assert is_about(max(call.seconds for call in asked), 2.005)

    async def test_a_stream_that_takes_nothing_does_not_collect_calls_that_are_gone(self, line: Line) -> None:
        connection = GatedConnection(line.network)
        connection.send_gate = anyio.Event()
        client = line.serve(BatchClient(line.network, connection, RpcConfig()))
        await line.ask(client, b"first")

        for _ in range(20):
            for asked in await line.ask(client, *[b"x"] * 20):
                asked.scope.cancel()
            await line.ask(client, *[b"x"] * 20, timeout=0.001)
            await anyio.sleep(0.005)

        assert client.stats().in_flight == 1
        assert len(client._queued) < 100


class TestBreaks:
    async def test_a_broken_stream_fails_what_was_written(self, line: Line) -> None:
        client = line.open()
        asked = await line.ask(client, b"a", b"b")

        line.stop()
        await settle()

        assert [await call.failure() for call in asked] == [("UNAVAILABLE", True)] * 2
        assert {call.error.method for call in asked if call.error is not None} == {"RawGet"}

    async def test_what_was_queued_goes_out_on_the_next_stream(self, line: Line) -> None:
        connection = GatedConnection(line.network)
        client = line.serve(BatchClient(line.network, connection, RpcConfig()))
        (written,) = await line.ask(client, b"a")
        connection.send_gate = anyio.Event()
        (writing,) = await line.ask(client, b"b")
        (queued,) = await line.ask(client, b"c")

        connection.break_all("the line was cut")
        await settle()
        connection.send_gate.set()
        await settle()
        await line.answer((3, b"3"))

        assert await written.failure() == ("UNAVAILABLE", True)
        # Nobody knows how much of it went out.
        assert await writing.failure() == ("UNAVAILABLE", True)
        assert await queued.value() == b"3"
        assert len(line.streams) == 2

    async def test_calls_made_at_any_moment_of_a_break_come_to_an_end(self, line: Line) -> None:
        client = line.open()
        await line.ask(client, b"a")
        await line.answer((1, b"1"))

        line.stop()
        line.start()
        asked = []
        for _ in range(20):
            asked.append(Asked(line.tasks, client, b"b", 10, "RawGet"))
            await anyio.lowlevel.checkpoint()
        await settle()
        await line.answer(*[(number, b"2") for number in line.ids()[-1]])
        for numbers in line.ids():
            await line.answer(*[(number, b"2") for number in numbers])

        with anyio.fail_after(5):
            for call in asked:
                await call.ended.wait()
        assert asked[-1].error is None

    async def test_a_stream_that_broke_at_rest_is_replaced_unnoticed(self, line: Line) -> None:
        client = line.open()
        await line.ask(client, b"a")
        await line.answer((1, b"1"))
        line.stop()
        line.start()
        await settle()

        (asked,) = await line.ask(client, b"b")
        await line.answer((2, b"2"))

        assert await asked.value() == b"2"

    async def test_an_id_is_never_used_again(self, line: Line) -> None:
        client = line.open()
        await line.ask(client, b"a")
        line.stop()
        line.start()
        await settle()

        (asked,) = await line.ask(client, b"b")
        await line.answer((1, b"of the stream before"), (2, b"2"))

        assert line.ids() == [[1], [2]]
        assert await asked.value() == b"2"
        assert client.stats().late == 1

    async def test_the_status_of_the_stream_is_that_of_its_calls(self, line: Line) -> None:
        client = line.open()
        line.failure = fail("INVALID_ARGUMENT", "wrong cluster")

        (asked,) = await line.ask(client, b"a")

        assert await asked.failure() == ("INVALID_ARGUMENT", True)
        assert "wrong cluster" in str(asked.error)

    async def test_without_a_connection_calls_fail_at_once_as_not_sent(self, line: Line) -> None:
        line.stop()
        client = line.open()

        asked = await line.ask(client, b"a", b"b")

        assert [await call.failure() for call in asked] == [("UNAVAILABLE", False)] * 2
        assert client.stats().in_flight == 0

    async def test_a_connection_that_takes_too_long_fails_its_calls_as_not_sent(self, line: Line) -> None:
        connection = GatedConnection(line.network)
        connection.ready_gate = anyio.Event()
        client = line.serve(BatchClient(line.network, connection, RpcConfig(connect_timeout=0.05)))

        (asked,) = await line.ask(client, b"a")
        await anyio.sleep(0.1)

        assert await asked.failure() == ("UNAVAILABLE", False)
        assert is_about(asked.seconds, 0.05)

    async def test_the_next_call_tries_to_connect_again(self, line: Line) -> None:
        line.stop()
        client = line.open()
        await line.ask(client, b"a")
        line.start()

        (asked,) = await line.ask(client, b"b")
        await line.answer((2, b"2"))

        assert await asked.value() == b"2"

    async def test_a_stream_that_cannot_be_opened_fails_its_calls_as_not_sent(self, line: Line) -> None:
        class Refusing(MemoryConnection):
            def stream(self, rpc: Rpc[Req, Resp], *, metadata: Metadata = ()) -> MemoryStream[Req, Resp]:
                raise RpcError(ADDRESS, rpc.name, "CANCELLED", f"the connection was closed {metadata}")

        client = line.serve(BatchClient(line.network, Refusing(line.network, ADDRESS), RpcConfig()))

        (asked,) = await line.ask(client, b"a")

        assert await asked.failure() == ("CANCELLED", False)

    async def test_whatever_connecting_raises_fails_calls_and_not_the_task(self, line: Line) -> None:
        class Surprising(MemoryConnection):
            async def ready(self, *, timeout: float) -> None:
                await anyio.lowlevel.checkpoint()
                raise ValueError(f"no connection within {timeout}")

        client = line.serve(BatchClient(line.network, Surprising(line.network, ADDRESS), RpcConfig()))

        first = await line.ask(client, b"a")
        second = await line.ask(client, b"b")

        assert [await call.failure() for call in first + second] == [("INTERNAL", False)] * 2

    async def test_a_store_that_refuses_streams_fails_each_call_once(self, line: Line) -> None:
        line.network.serve(ADDRESS, {})
        client = line.open()

        first = await line.ask(client, b"a")
        second = await line.ask(client, b"b")

        assert [await call.failure() for call in first + second] == [("UNIMPLEMENTED", True)] * 2


class TestCancellation:
    async def test_a_request_cancelled_in_the_queue_is_never_written(self, line: Line) -> None:
        connection = GatedConnection(line.network)
        connection.ready_gate = anyio.Event()
        client = line.serve(BatchClient(line.network, connection, RpcConfig()))
        cancelled, kept = await line.ask(client, b"a", b"b")

        cancelled.scope.cancel()
        await settle()
        connection.ready_gate.set()
        await settle()

        assert line.written() == [[b"b"]]
        assert kept.error is None

    async def test_nothing_is_written_when_all_in_the_queue_were_cancelled(self, line: Line) -> None:
        connection = GatedConnection(line.network)
        connection.send_gate = anyio.Event()
        client = line.serve(BatchClient(line.network, connection, RpcConfig()))
        await line.ask(client, b"a")
        for call in await line.ask(client, b"b", b"c"):
            call.scope.cancel()
        await settle()
        connection.send_gate.set()
        await settle()

        (last,) = await line.ask(client, b"d")

        assert line.written() == [[b"a"], [b"d"]]
        assert last.error is None

    async def test_a_request_cancelled_after_the_write_leaves_nothing_behind(self, line: Line) -> None:
        client = line.open()
        (asked,) = await line.ask(client, b"a")

        asked.scope.cancel()
        await settle()
        await line.answer((1, b"1"))

        assert client.stats().in_flight == 0
        assert client.stats().late == 1

    async def test_the_end_of_the_client_fails_everything(self, line: Line) -> None:
        connection = GatedConnection(line.network)
        client = BatchClient(line.network, connection, RpcConfig())
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await client.run()

        line.tasks.start_soon(run)
        (written,) = await line.ask(client, b"a")
        connection.send_gate = anyio.Event()
        (writing,) = await line.ask(client, b"b")
        (queued,) = await line.ask(client, b"c")

        scope.cancel()
        await settle()

        assert [await call.failure() for call in (written, writing, queued)] == [
            ("CANCELLED", True),
            ("CANCELLED", True),
            ("CANCELLED", False),
        ]
        assert client.stats().in_flight == 0


class TestNativeCancellation:
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_calls_fail_when_the_task_of_the_client_is_cancelled(self, line: Line) -> None:
        client = BatchClient(line.network, line.network.connect(ADDRESS), RpcConfig())
        running = asyncio.create_task(client.run())
        (asked,) = await line.ask(client, b"a")

        running.cancel()
        await asyncio.wait([running])

        await settle()
        assert running.cancelled()
        assert await asked.failure() == ("CANCELLED", True)

    async def test_a_caller_that_is_cancelled_leaves_nothing_behind(self, line: Line) -> None:
        client = line.open()
        payload = kvrpcpb.RawGetRequest(key=b"a").SerializeToString()
        caller = asyncio.create_task(client.call("RawGet", b"", payload, anyio.current_time() + 10, 10))
        await settle()

        caller.cancel()
        await asyncio.wait([caller])

        assert client.stats().in_flight == 0

    async def test_the_cancellation_wins_over_an_answer_of_the_same_tick(self, line: Line) -> None:
        client = line.open()
        payload = kvrpcpb.RawGetRequest(key=b"a").SerializeToString()
        caller = asyncio.create_task(client.call("RawGet", b"", payload, anyio.current_time() + 10, 10))
        await settle()
        entry = client._sent.pop(1)
        entry[0].set_result(kvrpcpb.RawGetResponse())

        caller.cancel()
        await asyncio.wait([caller])

        assert caller.cancelled()

    @pytest.mark.parametrize("ticks", range(5))
    async def test_an_answer_around_a_cancellation_is_taken_or_late(self, line: Line, ticks: int) -> None:
        client = line.open()
        caller = asyncio.create_task(client.call("RawGet", b"", b"", anyio.current_time() + 10, 10))
        await settle()
        response = tikvpb.BatchCommandsResponse.Response(RawGet=kvrpcpb.RawGetResponse())
        answer = tikvpb.BatchCommandsResponse(request_ids=[1], responses=[response])

        line.streams[-1]._responses.send_nowait(answer.SerializeToString())  # type: ignore[attr-defined]
        for _ in range(ticks):
            await asyncio.sleep(0)
        caller.cancel()
        await settle()

        stats = client.stats()
        assert (caller.cancelled(), stats.late, stats.in_flight) in {(True, 1, 0), (True, 0, 0), (False, 0, 0)}

    async def test_a_failure_of_the_tick_of_a_cancellation_does_no_harm(self, line: Line) -> None:
        fails = anyio.Event()

        class Failing(MemoryConnection):
            async def ready(self, *, timeout: float) -> None:
                await fails.wait()
                raise RpcError(ADDRESS, "connect", "UNAVAILABLE", f"not within {timeout}", sent=False)

        client = line.serve(BatchClient(line.network, Failing(line.network, ADDRESS), RpcConfig()))
        cancelled, other = await line.ask(client, b"a", b"b")

        fails.set()
        cancelled.scope.cancel()

        assert await other.failure() == ("UNAVAILABLE", False)
        assert cancelled.error is None


class TestPriorities:
    async def ask_behind_a_write(self, line: Line, config: RpcConfig, *asked: tuple[bytes, int]) -> list[list[bytes]]:
        """Queue calls of several priorities while a message is written, and return what is written then."""
        connection = GatedConnection(line.network)
        connection.send_gate = anyio.Event()
        client = line.serve(BatchClient(line.network, connection, config))
        await line.ask(client, b"first")
        for key, priority in asked:
            await line.ask(client, key, priority=priority)

        connection.send_gate.set()
        await settle()

        return line.written()[1:]

    async def test_what_has_priority_is_written_first(self, line: Line) -> None:
        config = RpcConfig(max_batch_size=2)

        written = await self.ask_behind_a_write(
            line, config, (b"low", 0), (b"middle", 8), (b"high", 16), (b"low 2", 0), (b"high 2", 16)
        )

        assert written == [[b"high", b"high 2"], [b"middle", b"low"], [b"low 2"]]

    async def test_a_request_of_any_priority_is_answered(self, line: Line) -> None:
        client = line.open()
        (asked,) = await line.ask(client, b"a", priority=8)

        await line.answer((1, b"1"))

        assert await asked.value() == b"1"

    async def test_one_cancelled_in_its_queue_is_never_written(self, line: Line) -> None:
        connection = GatedConnection(line.network)
        connection.send_gate = anyio.Event()
        client = line.serve(BatchClient(line.network, connection, RpcConfig()))
        await line.ask(client, b"a")
        (cancelled,) = await line.ask(client, b"b", priority=8)
        cancelled.scope.cancel()
        await line.ask(client, b"c", priority=8)

        connection.send_gate.set()
        await settle()

        assert line.written() == [[b"a"], [b"c"]]

    async def test_deadlines_hold_whatever_the_priority(self, line: Line) -> None:
        connection = GatedConnection(line.network)
        connection.ready_gate = anyio.Event()
        client = line.serve(BatchClient(line.network, connection, RpcConfig()))

        (asked,) = await line.ask(client, b"a", timeout=0.05, priority=8)
        await anyio.sleep(0.1)

        assert await asked.failure() == ("DEADLINE_EXCEEDED", False)
        assert is_about(asked.seconds, 0.05)


class TestLimit:
    LIMIT = RpcConfig(max_in_flight=2)

    async def test_no_more_than_the_limit_is_in_flight(self, line: Line) -> None:
        client = line.open(self.LIMIT)

        await line.ask(client, b"a", b"b", b"c", b"d", b"e")

        assert [len(keys) for keys in line.written()] == [2]
        assert (client.stats().in_flight, client.stats().queued) == (5, 3)

    async def test_what_is_left_over_leaves_as_answers_arrive(self, line: Line) -> None:
        client = line.open(self.LIMIT)
        asked = await line.ask(client, b"a", b"b", b"c", b"d", b"e")

        for _ in range(5):
            answered = {number for numbers in line.ids() for number in numbers}
            await line.answer(*[(number, b"1") for number in answered])

        assert [await call.value() for call in asked] == [b"1"] * 5
        assert [len(keys) for keys in line.written()] == [2, 2, 1]

    async def test_an_urgent_request_ignores_the_limit(self, line: Line) -> None:
        client = line.open(self.LIMIT)
        await line.ask(client, b"a", b"b", b"c")

        await line.ask(client, b"urgent", priority=10)
        await line.ask(client, b"preferred", priority=9)

        assert line.written()[1:] == [[b"urgent"]]

    async def test_what_was_given_up_is_in_flight_until_it_is_answered(self, line: Line) -> None:
        client = line.open(self.LIMIT)
        cancelled, expired = (await line.ask(client, b"a"))[0], (await line.ask(client, b"b", timeout=0.02))[0]
        cancelled.scope.cancel()
        await expired.failure()
        (waiting,) = await line.ask(client, b"c")
        assert line.written() == [[b"a"], [b"b"]]

        await line.answer((1, b"late"))

        assert line.written() == [[b"a"], [b"b"], [b"c"]]
        assert waiting.error is None

    async def test_a_broken_stream_makes_room(self, line: Line) -> None:
        client = line.open(self.LIMIT)
        asked = await line.ask(client, b"a", b"b")
        await line.ask(client, b"c")
        for call in asked:
            call.scope.cancel()

        line.stop()
        line.start()
        await settle()

        assert sum(len(keys) for keys in line.written()) == 3

    async def test_one_that_waits_for_room_fails_at_its_deadline_as_not_sent(self, line: Line) -> None:
        client = line.open(self.LIMIT)
        await line.ask(client, b"a", b"b")

        (asked,) = await line.ask(client, b"c", timeout=0.05)
        await anyio.sleep(0.1)

        assert await asked.failure() == ("DEADLINE_EXCEEDED", False)
        assert is_about(asked.seconds, 0.05)


class TestRecovery:
    async def break_twice(self, line: Line, client: BatchClient) -> None:
        """Let two streams end that answered nothing."""
        line.failure = fail("UNAVAILABLE", "overloaded")
        for _ in range(2):
            (asked,) = await line.ask(client, b"a")
            assert await asked.failure() == ("UNAVAILABLE", True)

    async def test_a_store_that_breaks_every_stream_is_left_alone_for_a_while(self, line: Line) -> None:
        client = line.open()
        await self.break_twice(line, client)

        asked = await line.ask(client, b"b", b"c")

        assert [await call.failure() for call in asked] == [("UNAVAILABLE", False)] * 2
        assert max(call.seconds for call in asked) < 0.05
        assert len(line.streams) == 2
        assert client.is_down

    async def test_what_it_refused_to_others_is_no_answer_to_calls_it_has_not_seen(self, line: Line) -> None:
        client = line.open()
        line.failure = fail("PERMISSION_DENIED", "who are you?")
        for _ in range(2):
            (refused,) = await line.ask(client, b"a")
            assert await refused.failure() == ("PERMISSION_DENIED", True)

        (asked,) = await line.ask(client, b"b")

        assert await asked.failure() == ("UNAVAILABLE", False)
        assert "who are you?" in str(asked.error)

    async def test_and_asked_again_after_it(self, line: Line) -> None:
        client = line.open()
        await self.break_twice(line, client)
        line.failure = None

        await anyio.sleep(0.11)
        (asked,) = await line.ask(client, b"b")
        await line.answer((3, b"2"))

        assert await asked.value() == b"2"
        assert not client.is_down
        assert client.stats().reconnects == 2

    async def test_answers_in_between_make_a_stream_a_good_one(self, line: Line) -> None:
        client = line.open()

        for number in range(1, 6):
            (asked,) = await line.ask(client, b"a")
            await line.answer((number, b"1"))
            assert await asked.value() == b"1"
            line.stop()
            line.start()
            await settle()

        assert len(line.streams) == 5
        assert not client.is_down

    async def test_a_connection_that_cannot_be_made_is_down(self, line: Line) -> None:
        line.stop()
        client = line.open()

        (asked,) = await line.ask(client, b"a")

        assert await asked.failure() == ("UNAVAILABLE", False)
        assert client.is_down


class TestFeedback:
    async def test_what_a_store_says_of_its_health_is_handed_on(self, line: Line) -> None:
        heard: list[tuple[int, int, int]] = []

        def hear(store_id: int, number: int, slow_score: int) -> None:
            heard.append((store_id, number, slow_score))

        client = line.serve(BatchClient(line.network, line.network.connect(ADDRESS), RpcConfig(), on_feedback=hear))
        await line.ask(client, b"a")
        feedback = kvrpcpb.HealthFeedback(store_id=3, feedback_seq_no=7, slow_score=80)

        await line.send(tikvpb.BatchCommandsResponse(health_feedback=feedback))
        await line.answer((1, b"1"))

        assert heard == [(3, 7, 80)]


class TestRest:
    async def test_a_stream_at_rest_ends_and_the_next_call_opens_another(self, line: Line) -> None:
        client = line.open()
        await line.ask(client, b"a")
        await line.answer((1, b"1"))

        client.rest()
        await settle()
        at_rest = client.stats().streams
        (asked,) = await line.ask(client, b"b")
        await line.answer((2, b"2"))

        assert await asked.value() == b"2"
        assert at_rest == 0
        assert (client.stats().streams, client.stats().reconnects) == (1, 0)

    async def test_a_call_of_the_same_tick_goes_out_on_the_next_stream(self, line: Line) -> None:
        client = line.open()
        await line.ask(client, b"a")
        await line.answer((1, b"1"))

        client.rest()
        (asked,) = await line.ask(client, b"b")
        await line.answer((2, b"2"))

        assert await asked.value() == b"2"

    async def test_a_call_after_the_end_fails_at_once(self, line: Line) -> None:
        client = BatchClient(line.network, line.network.connect(ADDRESS), RpcConfig())
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await client.run()

        line.tasks.start_soon(run)
        await settle()
        scope.cancel()
        await settle()

        (asked,) = await line.ask(client, b"a")

        assert await asked.failure() == ("CANCELLED", False)
