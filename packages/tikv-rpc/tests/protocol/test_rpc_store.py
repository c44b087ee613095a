"""StoreClient against a store in memory: connections, turns, forwarding, idleness, stores without BatchCommands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from tikv_pd.errors import RpcError
from tikv_pd.lowlevel import BackgroundTasks
from tikv_pd.testing import MemoryConnection, MemoryTransport, ServerStream, fail, request_metadata, virtual_time
from tikv_proto import kvrpcpb, tikvpb
from tikv_proto.services import Tikv
from tikv_rpc import Effect, Request, RpcConfig
from tikv_rpc._stores.store import StoreClient

ADDRESS = "tikv1:20160"
OTHER = "tikv2:20160"


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
        for _ in range(30):
            await anyio.lowlevel.checkpoint()


class Network(MemoryTransport):
    """Remembers the number of each connection, and has one store, which answers gets with the key."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []
        self.messages: list[tuple[dict[str, str], list[bytes]]] = []
        self.unary: list[tuple[dict[str, str], str]] = []
        self.hangs = False
        self.breaks: str | None = None
        self.feedback: kvrpcpb.HealthFeedback | None = None
        self.start()

    def connect(self, address: str, *, channel: int = 0) -> MemoryConnection:
        self.made.append(channel)
        return super().connect(address, channel=channel)

    def start(self, *, with_batches: bool = True) -> None:
        unary: dict[Any, Callable[[Any], Awaitable[Any]]] = {Tikv.RawGet: self._get, Tikv.RawGetKeyTTL: self._ttl}
        streams: dict[Any, Callable[[ServerStream], Awaitable[None]]] = {Tikv.BatchCommands: self._serve}
        self.serve(ADDRESS, {**unary, **(streams if with_batches else {})})

    async def _get(self, request: kvrpcpb.RawGetRequest) -> kvrpcpb.RawGetResponse:
        self.unary.append((request_metadata(), "RawGet"))
        await self._perhaps_hang()
        return kvrpcpb.RawGetResponse(value=request.key)

    async def _ttl(self, _request: Any) -> kvrpcpb.RawGetKeyTTLResponse:
        self.unary.append((request_metadata(), "RawGetKeyTTL"))
        await self._perhaps_hang()
        return kvrpcpb.RawGetKeyTTLResponse(ttl=5)

    async def _perhaps_hang(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self.hangs:
            await anyio.sleep_forever()

    async def _serve(self, stream: ServerStream) -> None:
        metadata = request_metadata()
        while True:
            message = await stream.receive()
            self.messages.append((metadata, [request.RawGet.key for request in message.requests]))
            if self.breaks == metadata.get("tikv-forwarded-host", ""):
                raise fail("UNAVAILABLE", "broken")
            await self._perhaps_hang()
            responses = [
                tikvpb.BatchCommandsResponse.Response(RawGet=kvrpcpb.RawGetResponse(value=request.RawGet.key))
                for request in message.requests
            ]
            await stream.send(
                tikvpb.BatchCommandsResponse(
                    request_ids=message.request_ids, responses=responses, health_feedback=self.feedback
                )
            )

    def lanes_of_messages(self) -> list[str]:
        return [metadata["tikv-batch-conn-index"] for metadata, _ in self.messages]


class Place:
    """A client on the network."""

    def __init__(self, network: Network, tasks: BackgroundTasks) -> None:
        self.network = network
        self.tasks = tasks
        self.heard: list[tuple[int, int, int]] = []

    def open(self, config: RpcConfig | None = None) -> StoreClient:
        def hear(*feedback: int) -> None:
            store_id, number, slow_score = feedback
            self.heard.append((store_id, number, slow_score))

        return StoreClient(self.network, ADDRESS, config or RpcConfig(), self.tasks, hear)

    async def get(self, client: StoreClient, key: bytes = b"k", timeout: float = 5, **how: Any) -> bytes:
        request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=key), Effect.READ)
        response = await client.call(request, b"", anyio.current_time() + timeout, timeout, **how)
        return bytes(response.value)

    async def ttl(self, client: StoreClient, timeout: float = 5, **how: Any) -> int:
        request = Request(Tikv.RawGetKeyTTL, kvrpcpb.RawGetKeyTTLRequest(key=b"k"), Effect.READ)
        return int((await client.call(request, b"", anyio.current_time() + timeout, timeout, **how)).ttl)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with Network() as network, BackgroundTasks() as tasks:
        yield Place(network, tasks)


class TestConnections:
    async def test_there_are_as_many_as_configured_each_with_a_number_of_its_own(self, place: Place) -> None:
        place.open(RpcConfig(connections=3))

        assert place.network.made == [0, 1, 2]

    async def test_one_after_another_takes_the_next_message(self, place: Place) -> None:
        client = place.open(RpcConfig(connections=3))

        for _ in range(4):
            await place.get(client)

        assert place.network.lanes_of_messages() == ["0", "1", "2", "0"]

    async def test_requests_of_one_tick_travel_together_all_the_same(self, place: Place) -> None:
        client = place.open(RpcConfig(connections=3))
        await settle()

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(place.get, client, b"%d" % number)

        assert [len(keys) for _, keys in place.network.messages] == [50]

    async def test_unary_calls_go_round_in_turn(self, place: Place) -> None:
        client = place.open(RpcConfig(connections=2))
        connections = [lane.connection for lane in client._lanes]

        for _ in range(5):
            await place.ttl(client)

        assert [connection.unary_calls for connection in connections] == [3, 2]

    async def test_one_that_is_down_is_passed_over(self, place: Place) -> None:
        client = place.open(RpcConfig(connections=2))
        client._lanes[1].batch._down_until = anyio.current_time() + 100

        for _ in range(3):
            await place.get(client)

        assert place.network.lanes_of_messages() == ["0", "0", "0"]

    async def test_when_all_are_down_the_next_one_is_tried(self, place: Place) -> None:
        client = place.open(RpcConfig(connections=2))
        for lane in client._lanes:
            lane.batch._down_until = anyio.current_time() + 100

        for _ in range(3):
            await place.get(client)

        assert place.network.lanes_of_messages() == ["0", "1", "0"]

    async def test_counters_are_those_of_all_connections(self, place: Place) -> None:
        client = place.open(RpcConfig(connections=2))

        for _ in range(3):
            await place.get(client)
        await place.ttl(client)

        stats = client.stats()
        assert (stats.messages, stats.requests, stats.unary, stats.streams) == (3, 3, 1, 2)
        assert (stats.in_flight, stats.queued, stats.late, stats.reconnects) == (0, 0, 0, 0)
        assert stats.bytes_sent > 3
        assert stats.average_batch == 1

    async def test_nothing_sent_makes_an_average_of_nothing(self, place: Place) -> None:
        assert place.open().stats().average_batch == 0

    async def test_closing_fails_what_is_under_way_on_any_of_them(self, place: Place) -> None:
        place.network.hangs = True
        client = place.open(RpcConfig(connections=3))
        codes: list[str] = []

        async def ask(call: Callable[..., Awaitable[object]], *how: Any) -> None:
            with pytest.raises(RpcError) as raised:
                await call(client, *how)
            codes.append(raised.value.code)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(ask, place.get)
                tasks.start_soon(ask, place.ttl)
                await settle()
            client.close()

        await settle()
        assert codes.count("CANCELLED") >= 4
        assert len(codes) == 8
        assert place.network.open_connections() == []

    async def test_a_call_on_a_closed_client_fails_at_once(self, place: Place) -> None:
        client = place.open()
        client.close()
        await settle()

        for call in (place.get, place.ttl):
            with pytest.raises(RpcError) as raised:
                await call(client)
            assert not raised.value.sent

    async def test_a_call_made_before_the_client_ran_and_closed_ends(self, place: Place) -> None:
        client = place.open()
        client.close()

        with pytest.raises(RpcError), anyio.fail_after(1):
            await place.get(client)


class TestFeedback:
    async def test_a_store_tells_of_its_health(self, place: Place) -> None:
        place.network.feedback = kvrpcpb.HealthFeedback(store_id=1, feedback_seq_no=2, slow_score=30)

        await place.get(place.open())

        assert place.heard == [(1, 2, 30)]


class TestForwarding:
    async def test_forwarded_requests_have_a_stream_of_their_own_on_the_same_connection(self, place: Place) -> None:
        client = place.open()

        direct = await place.get(client, b"a")
        forwarded = await place.get(client, b"b", forward=OTHER)

        assert (direct, forwarded) == (b"a", b"b")
        assert place.network.messages == [
            ({"tikv-batch-conn-index": "0"}, [b"a"]),
            ({"tikv-batch-conn-index": "0", "tikv-forwarded-host": OTHER}, [b"b"]),
        ]
        assert len(place.network.open_connections()) == 1

    async def test_unary_calls_are_forwarded_too(self, place: Place) -> None:
        await place.ttl(place.open(), forward=OTHER)

        assert place.network.unary == [({"tikv-forwarded-host": OTHER}, "RawGetKeyTTL")]

    async def test_a_forwarded_request_before_the_client_runs_is_served(self, place: Place) -> None:
        assert await place.get(place.open(), b"a", forward=OTHER) == b"a"

    @pytest.mark.parametrize("broken", ["", OTHER])
    async def test_the_failure_of_one_stream_is_not_that_of_another(self, place: Place, broken: str) -> None:
        client = place.open()
        ended: dict[str, object] = {}

        async def ask(forward: str) -> None:
            try:
                ended[forward] = await place.get(client, b"a", 0.2, forward=forward)
            except RpcError as error:
                ended[forward] = error.code

        place.network.hangs = True
        place.network.breaks = broken
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "")
            tasks.start_soon(ask, OTHER)
            await settle()

            broken_at_once = dict(ended)

        assert broken_at_once == {broken: "UNAVAILABLE"}
        assert ended == {broken: "UNAVAILABLE", ({"", OTHER} - {broken}).pop(): "DEADLINE_EXCEEDED"}


class TestTheEndOfIdleness:
    @pytest.mark.parametrize("name", ["get", "ttl"])
    async def test_a_call_at_any_moment_around_the_end_is_answered(self, place: Place, name: str) -> None:
        client = place.open(RpcConfig())
        for ticks in range(12):
            await place.get(client)
            lane = client._lanes[0]
            lane._idle_since -= 1000
            client._look_again()
            for _ in range(ticks):
                await anyio.lowlevel.checkpoint()

            with anyio.fail_after(2):
                assert await getattr(place, name)(client)


class TestIdleness:
    CONFIG = RpcConfig(idle_timeout=0.2)

    @pytest.fixture
    def anyio_backend(self) -> Any:
        return virtual_time()

    async def test_an_idle_connection_is_closed(self, place: Place) -> None:
        client = place.open(self.CONFIG)
        await place.get(client)
        before = len(place.network.open_connections())

        await anyio.sleep(0.4)

        assert (before, len(place.network.open_connections())) == (1, 0)
        assert client.stats().streams == 0
        assert not client.closed

    async def test_not_before_its_time(self, place: Place) -> None:
        client = place.open(self.CONFIG)
        await place.get(client)

        await anyio.sleep(0.14)

        assert len(place.network.open_connections()) == 1

    @pytest.mark.parametrize("forward", ["", OTHER])
    async def test_the_next_call_opens_another_unnoticed(self, place: Place, forward: str) -> None:
        client = place.open(self.CONFIG)
        await place.get(client, forward=forward)

        for _ in range(3):
            await anyio.sleep(0.4)
            assert await place.get(client, b"a", forward=forward) == b"a"
            await anyio.sleep(0.4)
            assert await place.ttl(client, forward=forward) == 5

        assert len(place.network.made) == 7
        assert client.stats().reconnects == 0

    async def test_a_connection_in_use_stays(self, place: Place) -> None:
        client = place.open(self.CONFIG)

        for _ in range(10):
            await place.get(client)
            await anyio.sleep(0.1)

        assert len(place.network.made) == 1

    @pytest.mark.parametrize("name", ["get", "ttl"])
    async def test_a_connection_on_which_a_call_waits_stays(self, place: Place, name: str) -> None:
        place.network.hangs = True
        client = place.open(self.CONFIG)

        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
            await getattr(place, name)(client, timeout=1)

        assert len(place.network.made) == 1

    async def test_each_connection_is_idle_for_itself(self, place: Place) -> None:
        client = place.open(RpcConfig(idle_timeout=0.2, connections=2))
        await place.get(client)
        await place.get(client)

        for _ in range(8):
            # Every second unary call takes the first connection, so only one of two is used.
            await place.ttl(client)
            client._unary_turn = 0
            await anyio.sleep(0.1)

        assert [lane.connection.is_made for lane in client._lanes] == [True, False]


class TestWithoutBatches:
    async def test_requests_travel_one_by_one(self, place: Place) -> None:
        place.network.start(with_batches=False)
        client = place.open()

        values = [await place.get(client, key) for key in (b"a", b"b")]

        assert values == [b"a", b"b"]
        assert [name for _, name in place.network.unary] == ["RawGet", "RawGet"]
        assert client.stats().unary == 2

    async def test_those_queued_when_it_shows_do_too(self, place: Place) -> None:
        place.network.start(with_batches=False)
        client = place.open(RpcConfig(max_batch_size=2))
        values: list[bytes] = []

        async def ask(key: bytes) -> None:
            values.append(await place.get(client, key))

        async with anyio.create_task_group() as tasks:
            for number in range(7):
                tasks.start_soon(ask, b"%d" % number)

        assert sorted(values) == [b"%d" % number for number in range(7)]

    async def test_the_stream_is_not_tried_again_for_each_request(self, place: Place) -> None:
        place.network.start(with_batches=False)
        client = place.open()

        for _ in range(5):
            await place.get(client)

        assert place.network.log.count((ADDRESS, "BatchCommands")) == 1

    async def test_after_a_lost_connection_it_is(self, place: Place) -> None:
        place.network.start(with_batches=False)
        client = place.open()
        await place.get(client)
        place.network.stop(ADDRESS)
        with pytest.raises(RpcError, match="UNAVAILABLE"):
            await place.get(client)
        place.network.start()

        await place.get(client, b"a")

        assert [keys for _, keys in place.network.messages] == [[b"a"]]

    async def test_and_after_idleness(self, place: Place) -> None:
        place.network.start(with_batches=False)
        client = place.open(RpcConfig(idle_timeout=0.2))
        await place.get(client)
        place.network.start()

        await anyio.sleep(0.4)
        await place.get(client, b"a")

        assert [keys for _, keys in place.network.messages] == [[b"a"]]

    async def test_a_deadline_holds(self, place: Place) -> None:
        place.network.start(with_batches=False)
        client = place.open()
        await place.get(client)
        place.network.hangs = True

        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
            await place.get(client, timeout=0.05)

        assert client.stats().in_flight == 0
