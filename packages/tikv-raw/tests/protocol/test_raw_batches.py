"""Batches: TTLs of their own, outcomes by key, any length in bounded memory, progress."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from tikv_pd import Keyspace
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import Tikv
from tikv_raw import (
    BatchOutcome,
    ClosedError,
    CodecError,
    ConfigError,
    DeadlineExceeded,
    EntryTooLarge,
    FlashbackInProgress,
    KeyTooLarge,
    RawClient,
    RawConfig,
    RawError,
    RpcConfig,
    UndeterminedError,
    ValueTooLarge,
)
from tikv_rpc.testing import FakeCluster


@pytest.fixture
async def small(cluster: FakeCluster) -> AsyncIterator[RawClient]:
    """Windows of four keys, two requests of two keys each, after a first one of two; two windows at a time."""
    config = RawConfig(batch_keys=2, rpc=RpcConfig(concurrency=2))
    async with RawClient(cluster.url, api_version="v1ttl", config=config, transport=cluster.transport) as opened:
        yield opened


def keys(number: int) -> list[bytes]:
    return [b"a%03d" % count for count in range(number)]


# --- TTLs -------------------------------------------------------------------------------------------------------------


async def test_each_pair_may_have_a_ttl_of_its_own(cluster: FakeCluster, client: RawClient) -> None:
    await client.batch_put([(b"a", b"1", 10), (b"b", b"2"), (b"c", b"3", None), (b"h", b"4", 30)], ttl=20)

    assert [await client.ttl(key) for key in (b"a", b"b", b"c", b"h")] == [10, 20, 0, 30]
    sent = sorted((list(request.ttls) for request in cluster.requests(Tikv.RawBatchPut)), key=len)
    assert sent == [[30], [10, 20, 0]]


async def test_one_ttl_for_all_travels_once(cluster: FakeCluster, client: RawClient) -> None:
    await client.batch_put({b"a": b"1", b"b": b"2"}, ttl=20)
    await client.batch_put([(b"a", b"1", 5), (b"b", b"2", 5)])
    await client.batch_put([(b"a", b"1", None), (b"b", b"2")])

    assert [list(request.ttls) for request in cluster.requests(Tikv.RawBatchPut)] == [[20], [5], []]


async def test_ttls_stay_with_their_pairs_when_a_region_splits(cluster: FakeCluster, client: RawClient) -> None:
    await client.get(b"a")
    cluster.store(1).before_next(Tikv.RawBatchPut, lambda: cluster.split(b"c"))

    await client.batch_put([(b"d", b"4", 40), (b"a", b"1", 10), (b"b", b"2", 20)])

    assert [await client.ttl(key) for key in (b"a", b"b", b"d")] == [10, 20, 40]


async def test_of_several_pairs_with_one_key_value_and_ttl_of_the_last_count(client: RawClient) -> None:
    await client.batch_put([(b"a", b"1", 10), (b"b", b"1"), (b"a", b"2"), (b"b", b"2", 30)], ttl=20)

    assert await client.batch_get([b"a", b"b"]) == {b"a": b"2", b"b": b"2"}
    assert [await client.ttl(b"a"), await client.ttl(b"b")] == [20, 30]


# --- outcomes by key --------------------------------------------------------------------------------------------------


async def test_a_batch_that_succeeds_has_no_failures(client: RawClient) -> None:
    pairs = {b"a": b"1", b"h": b"2", b"q": b"3"}

    assert await client.batch_put(pairs, on_error="return") == BatchOutcome({}, {})
    assert await client.batch_get([*pairs, b"z"], on_error="return") == BatchOutcome(pairs, {})
    assert await client.batch_delete(pairs, on_error="return") == BatchOutcome({}, {})
    assert await client.count() == 0


async def test_what_a_store_refuses_fails_by_key_and_the_rest_is_done(cluster: FakeCluster, client: RawClient) -> None:
    await client.batch_get([b"a", b"h"])
    cluster.move_leader(b"h", 2)
    await client.get(b"h")
    cluster.store(2).answer_next(Tikv.RawBatchPut, kvrpcpb.RawBatchPutResponse(error="not today"))

    outcome = await client.batch_put({b"a": b"1", b"h": b"2", b"i": b"3", b"q": b"4"}, on_error="return")

    assert set(outcome.failures) == {b"h", b"i"}
    assert all(isinstance(error, RawError) for error in outcome.failures.values())
    assert cluster.data == {b"a": b"1", b"q": b"4"}


async def test_a_write_that_may_have_happened_is_told_from_one_that_did_not(
    cluster: FakeCluster, client: RawClient
) -> None:
    await client.batch_get([b"a", b"h", b"q"])
    cluster.move_leader(b"h", 2)
    cluster.move_leader(b"q", 3)
    await client.batch_get([b"a", b"h", b"q"])
    cluster.store(2).script(Tikv.RawBatchPut, lose_answers_about_h, times=math.inf)
    cluster.store(3).stop()
    await wait_all_tasks_blocked()  # The client sees its connection break.

    outcome = await client.batch_put({b"a": b"1", b"h": b"2", b"q": b"3"}, on_error="return", timeout=5.0)

    assert set(outcome.failures) == {b"h", b"q"}
    assert isinstance(outcome.failures[b"h"], UndeterminedError)
    assert isinstance(outcome.failures[b"q"], DeadlineExceeded)
    assert cluster.data == {b"a": b"1", b"h": b"2"}


async def lose_answers_about_h(request: kvrpcpb.RawBatchPutRequest, serve: Callable[[], Any]) -> Any:
    answer = await serve()
    if request.pairs[0].key == b"h":
        await anyio.sleep_forever()
    return answer


async def test_a_read_that_fails_leaves_the_others(cluster: FakeCluster, client: RawClient) -> None:
    for key in (b"a", b"b", b"h"):
        cluster.raw.put(key, b"v")
    broken = kvrpcpb.RawBatchGetResponse(
        pairs=[
            kvrpcpb.KvPair(key=b"a", error=kvrpcpb.KeyError(abort="broken block")),
            kvrpcpb.KvPair(key=b"b", value=b"v"),
        ]
    )
    await client.batch_get([b"a", b"h"])
    cluster.move_leader(b"a", 2)
    await client.get(b"a")
    cluster.store(2).answer_next(Tikv.RawBatchGet, broken)

    outcome = await client.batch_get([b"a", b"b", b"h"], on_error="return")

    assert outcome.values == {b"b": b"v", b"h": b"v"}
    assert [(key, str(error)) for key, error in outcome.failures.items()] == [
        (b"a", "the store refused batch_get: broken block")
    ]


async def test_a_refused_read_without_a_key_fails_for_all_its_keys(cluster: FakeCluster, client: RawClient) -> None:
    refusal = kvrpcpb.RawBatchGetResponse(pairs=[kvrpcpb.KvPair(error=kvrpcpb.KeyError(abort="invalid cf"))])
    cluster.store(1).answer_next(Tikv.RawBatchGet, refusal)

    outcome = await client.batch_get([b"a", b"b"], on_error="return")

    assert set(outcome.failures) == {b"a", b"b"}
    assert outcome.values == {}


async def test_a_cluster_that_is_gone_fails_every_key(cluster: FakeCluster, client: RawClient) -> None:
    for store in cluster.stores.values():
        store.stop()

    outcome = await client.batch_put({b"a": b"1", b"q": b"2"}, on_error="return", timeout=3.0)

    assert {key: type(error) for key, error in outcome.failures.items()} == {
        b"a": DeadlineExceeded,
        b"q": DeadlineExceeded,
    }


async def test_what_is_too_large_for_a_store_fails_by_key(cluster: FakeCluster, client: RawClient) -> None:
    error = errorpb.Error(raft_entry_too_large=errorpb.RaftEntryTooLarge(entry_size=99))
    cluster.store(1).answer_next(Tikv.RawBatchPut, region_error=error)

    outcome = await client.batch_put({b"a": b"1"}, on_error="return")

    assert isinstance(outcome.failures[b"a"], EntryTooLarge)


async def test_failures_of_a_client_that_hides_keys_do_not_show_them(cluster: FakeCluster) -> None:
    config = RawConfig(rpc=RpcConfig(redact="on"))
    async with RawClient(cluster.url, config=config, transport=cluster.transport) as client:
        cluster.store(1).answer_next(Tikv.RawBatchPut, kvrpcpb.RawBatchPutResponse(error="bad key 6b6579"))

        outcome = await client.batch_put({b"a": b"1"}, on_error="return")

        assert str(outcome.failures[b"a"]) == "the store refused batch_put: ?"


@pytest.mark.parametrize("on_error", ["raise", "return"])
async def test_arguments_that_cannot_work_are_raised_before_anything_is_sent(
    cluster: FakeCluster, small: RawClient, on_error: Any
) -> None:
    wrong: list[Any] = [(b"z", "text")]
    many: Any = [(key, b"v") for key in keys(100)]

    with pytest.raises(TypeError, match="value must be bytes"):
        await small.batch_put([*many, *wrong], on_error=on_error)
    with pytest.raises(KeyTooLarge):
        await small.batch_put([*many, (bytes(8193), b"v")], on_error=on_error)
    with pytest.raises(ValueTooLarge):
        await small.batch_put(dict(many) | {b"z": bytes((7 << 20) + 1)}, on_error=on_error)
    with pytest.raises(KeyTooLarge):
        await small.batch_delete([*keys(100), bytes(8193)], on_error=on_error)
    with pytest.raises(TypeError, match="key must be bytes"):
        await small.batch_get([*keys(100), "text"], on_error=on_error)  # type: ignore[list-item]  # on purpose

    assert cluster.log == []


# --- any length -------------------------------------------------------------------------------------------------------


async def test_a_generator_is_read_no_further_than_a_window_beyond_those_under_way(
    cluster: FakeCluster, small: RawClient
) -> None:
    cluster.store(1).delay_next(Tikv.RawBatchPut, 1.0, times=math.inf)
    made, ahead = 0, []

    def make() -> Iterator[tuple[bytes, bytes]]:
        nonlocal made
        for key in keys(100):
            made += 1
            ahead.append(made - len(cluster.data))
            yield key, b"v"

    await small.batch_put(make())

    assert len(cluster.data) == 100
    assert max(ahead) == 10


async def test_a_window_is_bounded_by_bytes_too(cluster: FakeCluster) -> None:
    config = RawConfig(batch_bytes=1000, rpc=RpcConfig(concurrency=2))
    ahead = []

    def make() -> Iterator[tuple[bytes, bytes]]:
        for count, key in enumerate(keys(40)):
            ahead.append(count * 500 - sum(map(len, cluster.data.values())))
            yield key, bytes(500)

    async with RawClient(cluster.url, config=config, transport=cluster.transport) as client:
        await client.batch_put(make())

    # Two requests of a thousand bytes in a window, keys included: three or four values.
    assert 4000 <= max(ahead) <= 6000


async def test_progress_tells_what_is_done(cluster: FakeCluster, small: RawClient) -> None:
    told: dict[str, list[int]] = {"put": [], "get": [], "delete": []}

    await small.batch_put(((key, b"v") for key in [*keys(20), *keys(3)]), progress=told["put"].append)
    found = await small.batch_get(iter(keys(20)), progress=told["get"].append)
    await small.batch_delete(keys(20), progress=told["delete"].append)

    # Two windows may be through in any order.
    windows = {
        name: sorted(after - before for before, after in pairwise([0, *numbers])) for name, numbers in told.items()
    }
    assert windows == {"put": [1, 2, 4, 4, 4, 4, 4], "get": [2, 2, 4, 4, 4, 4], "delete": [2, 2, 4, 4, 4, 4]}
    assert len(found) == 20
    assert cluster.data == {}


async def test_an_error_of_progress_ends_the_batch(cluster: FakeCluster, small: RawClient) -> None:
    def stop(done: int) -> None:
        raise ZeroDivisionError(done)

    with pytest.raises(ZeroDivisionError, match="2"):
        await small.batch_put(((key, b"v") for key in keys(20)), progress=stop)

    # The first window, of two, and the one that was under way by then.
    assert len(cluster.data) == 6
    assert await small.get(b"a000") == b"v"


@pytest.mark.parametrize("on_error", ["raise", "return"])
@pytest.mark.parametrize("count", [2, 20])
async def test_an_error_of_progress_comes_out_as_it_is(
    cluster: FakeCluster, small: RawClient, on_error: Any, count: int
) -> None:
    cause = KeyError("why")
    errors = [ClosedError("something else"), ConfigError("anything")]

    def stop(_done: int) -> None:
        raise errors.pop(0) from cause

    pairs = dict.fromkeys(keys(count), b"v")
    first = errors[0]

    with pytest.raises(ClosedError) as caught:
        await small.batch_put(pairs, on_error=on_error, progress=stop)

    assert caught.value is first
    assert caught.value.__cause__ is cause
    assert len(errors) == 1
    assert len(cluster.data) == min(count, 6)


async def test_an_error_of_a_generator_ends_the_batch(cluster: FakeCluster, small: RawClient) -> None:
    def make() -> Iterator[tuple[bytes, bytes]]:
        yield from ((key, b"v") for key in keys(14))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await small.batch_put(make())

    # A window of two and three of four each; the last had a pair more when the generator failed, and never was one.
    assert len(cluster.data) == 14


async def test_the_next_window_is_under_way_before_the_last_is_through(cluster: FakeCluster, small: RawClient) -> None:
    cluster.store(1).delay_next(Tikv.RawBatchPut, 1.0, times=math.inf)
    began = anyio.current_time()

    await small.batch_put(dict.fromkeys(keys(16), b"v"))

    # Four windows, two at a time; each takes its two requests one after the other.
    assert anyio.current_time() - began == pytest.approx(4.0)


@pytest.mark.parametrize("operation", ["put", "get", "delete"])
@pytest.mark.parametrize("concurrency", [1, 2, 3])
async def test_as_many_requests_are_under_way_as_allowed(
    cluster: FakeCluster, operation: str, concurrency: int
) -> None:
    under_way = most = 0

    async def count(_request: Any, serve: Callable[[], Any]) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await anyio.sleep(0.1)
        under_way -= 1
        return await serve()

    cluster.store(1).script(None, count, times=math.inf)
    pairs = dict.fromkeys(keys(40), b"v")

    config = RawConfig(batch_keys=2, rpc=RpcConfig(concurrency=concurrency))
    async with RawClient(cluster.url, config=config, transport=cluster.transport) as client:
        batch: Any = {"put": client.batch_put, "get": client.batch_get, "delete": client.batch_delete}[operation]
        await batch(pairs)

    assert most == concurrency


async def test_a_pair_of_a_later_window_is_stored_later(cluster: FakeCluster, small: RawClient) -> None:
    cluster.store(1).delay_next(Tikv.RawBatchPut, 1.0, times=3)

    await small.batch_put([(b"a000", b"first"), *((key, b"v") for key in keys(30)[1:]), (b"a000", b"last")])

    assert cluster.data[b"a000"] == b"last"


async def test_a_batch_that_fails_after_its_first_window_may_have_been_applied(
    cluster: FakeCluster, small: RawClient
) -> None:
    def make() -> Iterator[tuple[bytes, bytes]]:
        yield from ((key, b"v") for key in keys(12))
        # The fourth window is made when the first one is through.
        for store in cluster.stores.values():
            store.stop()
        yield from ((key, b"v") for key in keys(20)[12:])

    with pytest.raises(UndeterminedError) as caught:
        await small.batch_put(make(), timeout=5.0)

    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    assert 4 <= len(cluster.data) <= 12


async def test_outcomes_of_all_windows_are_told(cluster: FakeCluster, small: RawClient) -> None:
    cluster.store(1).script(Tikv.RawBatchPut, refuse, times=2)

    outcome = await small.batch_put(((key, b"v") for key in keys(20)), on_error="return")

    assert len(outcome.failures) == 4
    assert len(cluster.data) == 16
    assert not set(outcome.failures) & set(cluster.data)


async def refuse(_request: Any, _serve: Callable[[], Any]) -> Any:
    return kvrpcpb.RawBatchPutResponse(error="not today")


async def test_a_batch_ends_when_the_client_is_closed(cluster: FakeCluster) -> None:
    config = RawConfig(batch_keys=2, rpc=RpcConfig(concurrency=2))
    cluster.store(1).delay_next(Tikv.RawBatchGet, 1.0, times=math.inf)

    outcomes: list[str] = []

    async def read(client: RawClient) -> None:
        try:
            await client.batch_get(iter(keys(1000)))
        except ClosedError as error:
            outcomes.append(str(error))

    async with (
        anyio.create_task_group() as tasks,
        RawClient(cluster.url, config=config, transport=cluster.transport) as client,
    ):
        tasks.start_soon(read, client)
        await anyio.sleep(2.5)

    assert len(outcomes) == 1


# --- sizes of answers -------------------------------------------------------------------------------------------------


async def test_fewer_keys_are_asked_for_at_once_where_values_are_large(cluster: FakeCluster) -> None:
    for key in keys(200):
        cluster.raw.put(key, bytes(10_000))
    config = RawConfig(batch_bytes=100_000)
    async with RawClient(cluster.url, config=config, transport=cluster.transport) as client:
        await client.batch_get(keys(200))
        await client.batch_get(keys(200))
        cluster.log.clear()

        found = await client.batch_get(keys(200))

    asked = [len(request.keys) for request in cluster.requests(Tikv.RawBatchGet)]
    assert len(found) == 200
    assert 7 <= max(asked) <= 10


async def test_many_keys_are_asked_for_at_once_where_values_are_small(cluster: FakeCluster) -> None:
    for key in keys(900):
        cluster.raw.put(key, b"small")
    async with RawClient(cluster.url, transport=cluster.transport) as client:
        for _ in range(3):
            cluster.log.clear()
            await client.batch_get(keys(900))

    assert [len(request.keys) for request in cluster.requests(Tikv.RawBatchGet)] == [900]


async def test_pages_of_a_scan_have_fewer_pairs_where_values_are_large(cluster: FakeCluster) -> None:
    for key in keys(200):
        cluster.raw.put(key, bytes(10_000))
    config = RawConfig(scan_bytes=100_000)
    async with RawClient(cluster.url, config=config, transport=cluster.transport) as client:
        found = [pair async for pair in client.scan()]

    asked = [request.limit for request in cluster.requests(Tikv.RawScan)]
    assert len(found) == 200
    assert asked[0] == 1  # Nothing is known of the pairs then.
    assert max(asked) <= 10


async def test_pages_of_keys_alone_are_bounded_by_their_number(cluster: FakeCluster) -> None:
    for key in keys(200):
        cluster.raw.put(key, bytes(10_000))
    async with RawClient(
        cluster.url, config=RawConfig(scan_bytes=1000, scan_page=150), transport=cluster.transport
    ) as client:
        found = [pair async for pair in client.scan(b"a", b"b", key_only=True)]

    assert found == [(key, b"") for key in keys(200)]
    assert [request.limit for request in cluster.requests(Tikv.RawScan)] == [150, 150]


async def test_a_failure_of_one_window_tells_that_others_may_have_written(cluster: FakeCluster) -> None:
    config = RawConfig(batch_keys=2, rpc=RpcConfig(concurrency=4))
    refusal = kvrpcpb.RawBatchPutResponse(
        region_error=errorpb.Error(FlashbackInProgress=errorpb.FlashbackInProgress(region_id=1))
    )

    async def refuse_the_first_window(request: kvrpcpb.RawBatchPutRequest, serve: Callable[[], Any]) -> Any:
        written = [pair.key for pair in request.pairs]
        if b"a000" in written:
            await anyio.sleep(1)
            return refusal
        answer = await serve()
        if b"a004" in written:
            await anyio.sleep_forever()
        return answer

    async with RawClient(cluster.url, config=config, transport=cluster.transport) as client:
        cluster.store(1).script(Tikv.RawBatchPut, refuse_the_first_window, times=math.inf)

        with pytest.raises(UndeterminedError) as caught:
            await client.batch_put(dict.fromkeys(keys(30), b"v"))

    assert isinstance(caught.value.__cause__, FlashbackInProgress)
    assert b"a000" not in cluster.data
    assert b"a004" in cluster.data


# --- one key in several windows, outcomes by key ----------------------------------------------------------------------


async def test_the_last_pair_of_a_key_decides_whether_it_failed(cluster: FakeCluster, small: RawClient) -> None:
    pairs = [(b"a000", b"first"), *((key, b"v") for key in keys(10)[1:]), (b"a000", b"last")]
    cluster.store(1).answer_next(Tikv.RawBatchPut, kvrpcpb.RawBatchPutResponse(error="not today"))

    outcome = await small.batch_put(pairs, on_error="return")

    assert set(outcome.failures) == {b"a001"}
    assert cluster.data[b"a000"] == b"last"


async def test_a_write_of_which_nothing_is_known_stays_so_whatever_becomes_of_later_ones(
    cluster: FakeCluster, small: RawClient
) -> None:
    unknown = errorpb.Error(undetermined_result=errorpb.UndeterminedResult(message="lost"))
    pairs = [(b"a000", b"first"), *((key, b"v") for key in keys(10)[1:]), (b"a000", b"last")]

    async def refuse(request: kvrpcpb.RawBatchPutRequest, serve: Callable[[], Any]) -> Any:
        written = {pair.key: pair.value for pair in request.pairs}
        if written.get(b"a000") == b"last":
            return kvrpcpb.RawBatchPutResponse(error="not today")
        answer = await serve()
        return kvrpcpb.RawBatchPutResponse(region_error=unknown) if b"a000" in written else answer

    cluster.store(1).script(Tikv.RawBatchPut, refuse, times=math.inf)

    outcome = await small.batch_put(pairs, on_error="return", timeout=3.0)

    assert {key: type(error) for key, error in outcome.failures.items()} == {
        b"a000": UndeterminedError,
        b"a001": UndeterminedError,
    }


async def test_a_key_that_was_read_once_has_its_value_whatever_becomes_of_another_read(
    cluster: FakeCluster, small: RawClient
) -> None:
    for key in keys(10):
        cluster.raw.put(key, b"v")
    reads = 0

    async def fail_later(request: kvrpcpb.RawBatchGetRequest, serve: Callable[[], Any]) -> Any:
        nonlocal reads
        reads += b"a000" in request.keys
        if reads == 2:
            return kvrpcpb.RawBatchGetResponse(pairs=[kvrpcpb.KvPair(error=kvrpcpb.KeyError(abort="broken block"))])
        return await serve()

    cluster.store(1).script(Tikv.RawBatchGet, fail_later, times=math.inf)

    outcome = await small.batch_get([*keys(10), b"a000"], on_error="return")

    assert reads == 2
    assert outcome == BatchOutcome(dict.fromkeys(keys(10), b"v"), {})


async def test_an_answer_with_a_foreign_key_fails_as_a_whole() -> None:
    async with FakeCluster() as cluster:
        cluster.pd.keyspaces["users"] = Keyspace(5, "users", "ENABLED")
        async with RawClient(f"{cluster.url}?keyspaceName=users", transport=cluster.transport) as client:
            await client.put(b"a", b"1")
            foreign = kvrpcpb.RawBatchGetResponse(
                pairs=[kvrpcpb.KvPair(key=b"r\x00\x00\x05a", value=b"1"), kvrpcpb.KvPair(key=b"b", value=b"2")]
            )
            cluster.store(1).answer_next(Tikv.RawBatchGet, foreign)

            outcome = await client.batch_get([b"a", b"b"], on_error="return")

    assert outcome.values == {}
    assert {key: type(error) for key, error in outcome.failures.items()} == {b"a": CodecError, b"b": CodecError}
