"""BatchClient under any order of calls, answers, cancellations and breaks: every caller ends once, nothing is left."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import anyio
import anyio.abc
import attrs
from hypothesis import given, settings, strategies as st
from tikv_pd.errors import RpcError
from tikv_pd.testing import MemoryTransport, ServerStream, fail, virtual_time
from tikv_proto import kvrpcpb, tikvpb
from tikv_proto.services import Rpc, Tikv
from tikv_rpc import RpcConfig
from tikv_rpc._stores.batch import URGENT, BatchClient

ADDRESS = "tikv1:20160"


@attrs.define(eq=False)
class Caller:
    key: bytes
    priority: int
    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    ends: list[str] = attrs.field(factory=list)
    error: RpcError | None = None


class Model:
    """A client, its callers, and a store that does as it is told."""

    def __init__(self, network: MemoryTransport, tasks: anyio.abc.TaskGroup, config: RpcConfig) -> None:
        self.network = network
        self.tasks = tasks
        self.config = config
        self.callers: list[Caller] = []
        self.open: list[tuple[ServerStream, int, bytes]] = []
        self.written: Counter[bytes] = Counter()
        self.break_with: str | None = None
        self.start(with_batches=True)
        self.client = BatchClient(network, network.connect(ADDRESS), config, unary=self._unary)
        tasks.start_soon(self.client.run)

    def start(self, *, with_batches: bool) -> None:
        self.network.serve(ADDRESS, {Tikv.BatchCommands: self._serve} if with_batches else {})

    async def _serve(self, stream: ServerStream) -> None:
        try:
            while True:
                message = await stream.receive()
                assert 0 < len(message.requests) <= self.config.max_batch_size
                for number, request in zip(message.request_ids, message.requests, strict=True):
                    self.written[request.RawGet.key] += 1
                    self.open.append((stream, number, request.RawGet.key))
                self._check_limit(stream)
                if self.break_with is not None:
                    raise fail(self.break_with)
        finally:
            self.open = [asked for asked in self.open if asked[0] is not stream]

    def _check_limit(self, stream: ServerStream) -> None:
        urgent = {caller.key for caller in self.callers if caller.priority >= URGENT}
        waiting = [key for of, _, key in self.open if of is stream and key not in urgent]
        assert self.config.max_in_flight is None or len(waiting) <= self.config.max_in_flight

    async def _unary(self, rpc: Rpc[Any, Any], request: bytes, deadline: float) -> kvrpcpb.RawGetResponse:
        assert rpc is Tikv.RawGet
        assert deadline >= self.network.now()
        await anyio.sleep(0.01)
        return kvrpcpb.RawGetResponse(value=kvrpcpb.RawGetRequest.FromString(request).key)

    def ask(self, timeout: float, priority: int) -> None:
        caller = Caller(b"%d" % len(self.callers), priority)
        self.callers.append(caller)
        self.tasks.start_soon(self._call, caller, timeout)

    async def _call(self, caller: Caller, timeout: float) -> None:
        payload = kvrpcpb.RawGetRequest(key=caller.key).SerializeToString()
        deadline = anyio.current_time() + timeout
        with caller.scope:
            try:
                answer = await self.client.call("RawGet", b"", payload, deadline, timeout, caller.priority)
                assert answer.value == caller.key
                caller.ends.append("answered")
            except RpcError as error:
                caller.error = error
                caller.ends.append("failed")
        if caller.scope.cancelled_caught:
            caller.ends.append("cancelled")

    def cancel(self, index: int) -> None:
        if self.callers:
            self.callers[index % len(self.callers)].scope.cancel()

    async def answer(self, index: int, count: int) -> None:
        """Answer some of what waits, and something nobody asked for."""
        if not self.open:
            return
        stream = self.open[index % len(self.open)][0]
        mine = [asked for asked in self.open if asked[0] is stream][:count]
        self.open = [asked for asked in self.open if asked not in mine]
        responses = [
            tikvpb.BatchCommandsResponse.Response(RawGet=kvrpcpb.RawGetResponse(value=key))
            for key in [key for _, _, key in mine] + [b"?"]
        ]
        numbers = [number for _, number, _ in mine] + [10_000]
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            await stream.send(tikvpb.BatchCommandsResponse(request_ids=numbers, responses=responses))

    def check_end(self) -> None:
        for caller in self.callers:
            assert len(caller.ends) == 1, caller
            assert self.written[caller.key] <= 1
            # What was written may not have been read by then; what was read was written.
            assert caller.error is None or caller.error.sent or not self.written[caller.key]
        assert self.client.stats().in_flight == self.client.stats().queued == 0
        assert not self.client.is_busy


ACTIONS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from([0.05, 1, 50]), st.sampled_from([0, 0, 0, 5, 10, 16])),
    st.tuples(st.just("burst"), st.integers(2, 12), st.sampled_from([0, 5, 16])),
    st.tuples(st.just("cancel"), st.integers(0, 50)),
    st.tuples(st.just("answer"), st.integers(0, 50), st.integers(1, 9)),
    st.tuples(st.just("pause"), st.sampled_from([0.0, 0.01, 0.06, 1.5])),
    st.tuples(st.just("stop")),
    st.tuples(st.just("start"), st.booleans()),
    st.tuples(st.just("break"), st.sampled_from([None, "UNAVAILABLE", "INVALID_ARGUMENT"])),
    st.tuples(st.just("rest")),
)


async def act(model: Model, name: str, *how: Any) -> None:
    if name == "ask":
        model.ask(*how)
    elif name == "burst":
        for _ in range(how[0]):
            model.ask(1, how[1])
    elif name == "cancel":
        model.cancel(*how)
    elif name == "answer":
        await model.answer(*how)
    elif name == "pause":
        await anyio.sleep(how[0])
    elif name == "stop":
        model.network.stop(ADDRESS)
    elif name == "start":
        model.start(with_batches=how[0])
    elif name == "break":
        model.break_with = how[0]
    elif not model.client.is_busy:
        model.client.rest()


async def play(actions: list[tuple[Any, ...]], limit: int | None) -> None:
    config = RpcConfig(max_batch_size=4, max_in_flight=limit, connect_timeout=1)
    async with MemoryTransport() as network, anyio.create_task_group() as tasks:
        model = Model(network, tasks, config)
        for action in actions:
            await act(model, *action)
        # Whatever was done to them, their deadlines have passed by then.
        await anyio.sleep(60)
        model.check_end()
        model.break_with = None
        model.start(with_batches=True)
        await anyio.sleep(3)
        model.ask(1, 16)
        await anyio.sleep(0.1)
        await model.answer(len(model.open) - 1, 100)
        await anyio.sleep(2)
        assert model.callers[-1].ends == ["answered"]
        tasks.cancel_scope.cancel()


@settings(max_examples=300, deadline=None)
@given(st.lists(ACTIONS, max_size=40), st.sampled_from([None, 1, 3]))
def test_every_caller_ends_once_and_nothing_is_left(actions: list[tuple[Any, ...]], limit: int | None) -> None:
    backend, options = virtual_time()

    anyio.run(play, actions, limit, backend=backend, backend_options=options)
