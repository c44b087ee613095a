"""RawClient against a dict, while Regions move and requests and answers get lost.

The model holds, for each key, what its value may be: one value after a write that succeeded or failed, two after one
whose outcome is unknown. Whatever is read must be among them, and then is the one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final, TypeAlias

import anyio
from hypothesis import HealthCheck, given, settings, strategies as st
from tikv_pd.testing import virtual_time
from tikv_proto import errorpb
from tikv_proto.services import all_rpcs
from tikv_raw import BatchOutcome, DeadlineExceeded, RawClient, RawConfig, RpcConfig, UndeterminedError
from tikv_rpc.testing import FakeCluster

Value: TypeAlias = bytes | None
Step: TypeAlias = tuple[Any, ...]

_RESPONSES: Final = {rpc.request: rpc.response for rpc in all_rpcs()}

ALL_KEYS: Final = [bytes(key) for key in (b"", b"\0", b"a", b"a\0", b"b", b"c", b"c\xff", b"d", b"\xff", b"\xff\xff")]
TIMEOUT: Final = 15.0

keys = st.sampled_from(ALL_KEYS)
values = st.sampled_from([b"", b"1", b"2", b"3"])
key_lists = st.lists(keys, max_size=6)
stores = st.sampled_from([1, 1, 1, 2, 3])  # The first one leads all Regions at first.

operations = st.one_of(
    st.tuples(st.just("put"), keys, values),
    st.tuples(st.just("batch_put"), st.lists(st.tuples(keys, values), max_size=6)),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("batch_delete"), key_lists),
    st.tuples(st.just("delete_range"), keys, keys),
    st.tuples(st.just("delete_prefix"), keys),
    st.tuples(st.just("batch_put_each"), st.lists(st.tuples(keys, values), max_size=6)),
    st.tuples(st.just("batch_delete_each"), key_lists),
    st.tuples(st.just("compare_and_swap"), keys, st.none() | values, st.none() | values, st.booleans()),
    st.tuples(st.just("put_if_absent"), keys, values),
    st.tuples(st.just("get"), keys),
    st.tuples(st.just("batch_get"), key_lists),
    st.tuples(st.just("batch_get_each"), key_lists),
    st.tuples(st.just("scan"), keys, keys, st.none() | st.integers(0, 4), st.booleans()),
    st.tuples(st.just("scan_both_ways"), keys, keys),
    st.tuples(
        st.just("batch_scan"), st.lists(st.tuples(keys, keys), max_size=4), st.none() | st.integers(0, 4), st.booleans()
    ),
    st.tuples(st.just("count"), keys, keys),
)
moves = st.one_of(
    st.tuples(st.just("split"), keys),
    st.tuples(st.just("merge"), keys),
    st.tuples(st.just("move_leader"), keys, stores),
    st.tuples(st.just("move_peer"), keys, stores, stores),
    st.tuples(st.just("pd_lags"), st.booleans()),
)
faults = st.tuples(
    st.sampled_from(["drop_reply", "drop_reply_and_hang", "fail", "hang", "delay", "busy", "unknown"]),
    stores,
    st.integers(1, 3),
)
moves_under_way = st.tuples(st.just("before_next"), stores, moves)
groups = st.one_of(
    operations.map(lambda step: [step]),
    moves.map(lambda step: [step]),
    st.tuples(st.one_of(faults, moves_under_way), operations).map(list),
)


@given(
    present=st.sets(keys),
    steps=st.lists(groups, min_size=3, max_size=20),
    page=st.integers(1, 3),
    batch=st.integers(1, 3),
)
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_read_finds_what_the_writes_before_it_left(
    present: set[bytes], steps: list[list[Step]], page: int, batch: int
) -> None:
    backend, options = virtual_time()
    # Windows of few keys, so that batches have several.
    config = RawConfig(scan_page=page, batch_keys=batch, rpc=RpcConfig(concurrency=batch))

    anyio.run(check, present, list(chain.from_iterable(steps)), config, backend=backend, backend_options=options)


async def check(present: set[bytes], steps: list[Step], config: RawConfig) -> None:
    async with (
        FakeCluster([b"b", b"c\xff"]) as cluster,
        RawClient(cluster.url, config=config, transport=cluster.transport) as client,
    ):
        run = Run(cluster, client)
        await run.batch_put([(key, b"0") for key in sorted(present)])
        for name, *arguments in steps:
            await getattr(run, name)(*arguments)
        run.matches(cluster.data.get)


class Run:
    """One cluster, one client, and the model."""

    def __init__(self, cluster: FakeCluster, client: RawClient) -> None:
        self.cluster = cluster
        self.client = client
        self.possible: dict[bytes, set[Value]] = {key: {None} for key in ALL_KEYS}

    def matches(self, find: Callable[[bytes], Value], among: Iterable[bytes] = ALL_KEYS) -> None:
        for key in among:
            assert find(key) in self.possible[key], key
            self.possible[key] = {find(key)}

    @contextmanager
    def writing(self, news: dict[bytes, Value]) -> Iterator[None]:
        try:
            yield
        except UndeterminedError:
            for key, value in news.items():
                self.possible[key].add(value)
        except DeadlineExceeded:
            pass  # It did nothing.
        else:
            self.possible.update({key: {value} for key, value in news.items()})

    @contextmanager
    def reading(self) -> Iterator[None]:
        try:
            yield
        except DeadlineExceeded:
            self.cluster.update_pd()

    async def put(self, key: bytes, value: bytes) -> None:
        with self.writing({key: value}):
            await self.client.put(key, value, timeout=TIMEOUT)

    async def batch_put(self, pairs: list[tuple[bytes, bytes]]) -> None:
        with self.writing(dict(pairs)):
            await self.client.batch_put(pairs, timeout=TIMEOUT)

    async def delete(self, key: bytes) -> None:
        with self.writing({key: None}):
            await self.client.delete(key, timeout=TIMEOUT)

    async def batch_delete(self, gone: list[bytes]) -> None:
        with self.writing(dict.fromkeys(gone)):
            await self.client.batch_delete(gone, timeout=TIMEOUT)

    async def delete_range(self, start: bytes, end: bytes) -> None:
        with self.writing({key: None for key in ALL_KEYS if start <= key and (not end or key < end)}):
            await self.client.delete_range(start, end, everything=True, timeout=TIMEOUT)

    async def delete_prefix(self, prefix: bytes) -> None:
        with self.writing({key: None for key in ALL_KEYS if key.startswith(prefix)}):
            await self.client.delete_prefix(prefix, everything=True, timeout=TIMEOUT)

    async def batch_put_each(self, pairs: list[tuple[bytes, bytes]]) -> None:
        outcome = await self.client.batch_put(iter(pairs), on_error="return", timeout=TIMEOUT)
        self.written(pairs, outcome)

    async def batch_delete_each(self, gone: list[bytes]) -> None:
        outcome = await self.client.batch_delete(iter(gone), on_error="return", timeout=TIMEOUT)
        self.written([(key, None) for key in gone], outcome)

    def written(self, pairs: Iterable[tuple[bytes, Value]], outcome: BatchOutcome) -> None:
        """Take what became of each key of a batch, some of which may have been written several times."""
        news: dict[bytes, list[Value]] = {}
        for key, value in pairs:
            news.setdefault(key, []).append(value)
        assert set(outcome.failures) <= set(news)
        for key, written in news.items():
            error = outcome.failures.get(key)
            if error is None:
                self.possible[key] = {written[-1]}
            elif error.undetermined or len(written) > 1:
                self.possible[key].update(written)
            else:
                assert isinstance(error, DeadlineExceeded)

    async def put_if_absent(self, key: bytes, value: bytes) -> None:
        before = self.possible[key]
        try:
            result = await self.client.put_if_absent(key, value, timeout=TIMEOUT)
        except UndeterminedError:
            if None in before:
                before.add(value)
        except DeadlineExceeded:
            pass
        else:
            assert result.previous in before
            assert result.swapped == (result.previous is None)
            self.possible[key] = {value if result.swapped else result.previous}

    async def compare_and_swap(self, key: bytes, expected: Value, value: Value, is_lucky: bool) -> None:
        before = self.possible[key]
        if is_lucky:
            expected = next(iter(before))
        try:
            result = await self.client.compare_and_swap(key, expected, value, timeout=TIMEOUT)
        except UndeterminedError:
            if expected in before:
                before.add(value)
        except DeadlineExceeded:
            pass
        else:
            assert result.previous in before
            assert result.swapped == (result.previous == expected)
            self.possible[key] = {value if result.swapped else result.previous}

    async def get(self, key: bytes) -> None:
        with self.reading():
            found = await self.client.get(key, timeout=TIMEOUT)
            self.matches(lambda _: found, [key])

    async def batch_get(self, wanted: list[bytes]) -> None:
        with self.reading():
            found = await self.client.batch_get(wanted, timeout=TIMEOUT)
            assert set(found) <= set(wanted)
            self.matches(found.get, set(wanted))

    async def scan(self, start: bytes, end: bytes, limit: int | None, reverse: bool) -> None:
        with self.reading():
            scan = self.client.scan(start, end, limit=limit, reverse=reverse, timeout=TIMEOUT)
            self.scanned(start, end, limit, reverse, [pair async for pair in scan])

    def scanned(
        self, start: bytes, end: bytes, limit: int | None, reverse: bool, found: list[tuple[bytes, bytes]]
    ) -> None:
        inside = [key for key in ALL_KEYS if start <= key and (not end or key < end)]
        if limit is not None and len(found) == limit:
            last = found[-1][0] if found else None
            inside = [key for key in inside if last is not None and (key >= last if reverse else key <= last)]
        assert [key for key, _ in found] == sorted(dict(found), reverse=reverse)
        assert set(dict(found)) <= set(inside)
        self.matches(dict(found).get, inside)

    async def batch_get_each(self, wanted: list[bytes]) -> None:
        outcome = await self.client.batch_get(iter(wanted), on_error="return", timeout=TIMEOUT)
        if outcome.failures:
            self.cluster.update_pd()
        assert all(isinstance(error, DeadlineExceeded) for error in outcome.failures.values())
        self.matches(outcome.values.get, set(wanted) - set(outcome.failures))

    async def scan_both_ways(self, start: bytes, end: bytes) -> None:
        """Nothing is written in between, but what was may still be on its way to a store."""
        with self.reading():
            up = [pair async for pair in self.client.scan(start, end, timeout=TIMEOUT)]
            down = [pair async for pair in self.client.scan(start, end, reverse=True, timeout=TIMEOUT)]
            assert up == down[::-1]

    async def batch_scan(self, ranges: list[tuple[bytes, bytes]], limit: int | None, reverse: bool) -> None:
        with self.reading():
            found = await self.client.batch_scan(ranges, each_limit=limit, reverse=reverse, timeout=TIMEOUT)
            assert len(found) == len(ranges)
            for (start, end), pairs in zip(ranges, found, strict=True):
                self.scanned(start, end, limit, reverse, pairs)

    async def count(self, start: bytes, end: bytes) -> None:
        with self.reading():
            number = await self.client.count(start, end, timeout=TIMEOUT)
            inside = [self.possible[key] for key in ALL_KEYS if start <= key and (not end or key < end)]
            assert sum(None not in values for values in inside) <= number
            assert number <= sum(values != {None} for values in inside)

    async def split(self, key: bytes) -> None:
        if all(region.start_key != key for region in self.cluster.map.regions):
            self.cluster.split(key)

    async def merge(self, key: bytes) -> None:
        region = self.cluster.map.region(key)
        if region.end_key:
            after = self.cluster.map.region(region.end_key)
            if {peer.store_id for peer in region.peers} == {peer.store_id for peer in after.peers}:
                self.cluster.merge(key)

    async def move_leader(self, key: bytes, store: int) -> None:
        if store in {peer.store_id for peer in self.cluster.map.region(key).peers}:
            self.cluster.move_leader(key, store)

    async def move_peer(self, key: bytes, source: int, target: int) -> None:
        on = {peer.store_id for peer in self.cluster.map.region(key).peers}
        if source in on and (target not in on or target == source):
            self.cluster.move_peer(key, source, target)

    async def pd_lags(self, lags: bool) -> None:
        self.cluster.pd_lags = lags
        self.cluster.update_pd()

    async def before_next(self, store: int, move: Step) -> None:
        name, *arguments = move

        async def act(_request: Any, serve: Callable[[], Any]) -> Any:
            await getattr(self, name)(*arguments)
            return await serve()

        self.cluster.store(store).script(None, act)

    async def drop_reply(self, store: int, times: int) -> None:
        self.cluster.store(store).drop_reply_next(None, times=times)

    async def drop_reply_and_hang(self, store: int, times: int) -> None:
        self.cluster.store(store).drop_reply_next(None, hang=True, times=times)

    async def fail(self, store: int, times: int) -> None:
        self.cluster.store(store).fail_next(None, "UNAVAILABLE", times=times)

    async def hang(self, store: int, times: int) -> None:
        self.cluster.store(store).hang_next(None, times=times)

    async def delay(self, store: int, times: int) -> None:
        self.cluster.store(store).delay_next(None, 1.5, times=times)

    async def busy(self, store: int, times: int) -> None:
        self._answer(store, times, errorpb.Error(server_is_busy=errorpb.ServerIsBusy()))

    async def unknown(self, store: int, times: int) -> None:
        self._answer(store, times, errorpb.Error(message="TiKV is Closing"))

    def _answer(self, store: int, times: int, error: errorpb.Error) -> None:
        async def act(request: Any, _serve: Callable[[], Any]) -> Any:
            return _RESPONSES[type(request)](region_error=error)

        self.cluster.store(store).script(None, act, times=times)
