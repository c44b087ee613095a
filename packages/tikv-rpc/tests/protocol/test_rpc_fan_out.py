"""Work over many Regions, and at the edge of a range, while the Regions move."""

from __future__ import annotations

import gc
import random
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tikv_pd import DeadlineExceeded, UndeterminedError
from tikv_pd.errors import RpcError
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import EntryTooLarge, KeyRange
from tikv_rpc import Collect, Effect, FanOut, KeyWork, Merge, Request, RetryRegion, RpcConfig, Settle, dispatch
from tikv_rpc.testing import FakeCluster, Serve

if TYPE_CHECKING:
    from tests.conftest import AskedPd, Kv

ALPHABET = [bytes([letter]) for letter in b"abcdefghijklmnopqrstuvwxyz"]
PAIRS = {key: key * 2 for key in ALPHABET}


def acknowledged(cluster: FakeCluster, rpc: Any = Tikv.RawBatchPut) -> Counter[bytes]:
    """Count how often each key was in a request."""
    return Counter(pair.key for message in cluster.requests(rpc) for pair in message.pairs)


def _no_request(_part: Any) -> Request[Any]:
    raise AssertionError("nothing is asked for")


async def tell_pd_later(cluster: FakeCluster) -> None:
    await anyio.sleep(2)
    cluster.update_pd()


class TestKeys:
    async def test_every_key_is_asked_of_its_region_once(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.batch_put(PAIRS)

        assert cluster.data == PAIRS
        assert set(acknowledged(cluster).values()) == {1}
        assert len(cluster.requests(Tikv.RawBatchPut)) == 3

    async def test_duplicates_are_all_answered(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.batch_put(PAIRS)

        assert await kv.batch_get([b"z", b"a", b"z", b"?"]) == {b"a": b"aa", b"z": b"zz"}

        (asked,) = [list(m.keys) for m in cluster.requests(Tikv.RawBatchGet) if b"z" in m.keys]
        assert asked == [b"z", b"z"]

    async def test_nothing_to_do_sends_nothing(self, cluster: FakeCluster, kv: Kv) -> None:
        assert await kv.batch_get([]) == {}
        assert cluster.log == []

    async def test_a_large_group_is_cut(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.batch_put(PAIRS, max_keys=4)

        assert cluster.data == PAIRS
        assert max(len(message.pairs) for message in cluster.requests(Tikv.RawBatchPut)) == 4

    @pytest.mark.parametrize("pd_lags", [False, True])
    @pytest.mark.parametrize(
        "move",
        [
            lambda cluster: cluster.split(b"c", b"e"),
            lambda cluster: cluster.split(b"i", b"k", b"t"),
            lambda cluster: cluster.merge(b"a"),
            lambda cluster: [cluster.merge(b"a"), cluster.merge(b"a")],
            lambda cluster: [cluster.split(b"d"), cluster.merge(b"d")],
            lambda cluster: [cluster.move_leader(key, 2) for key in (b"a", b"h", b"q")],
            lambda cluster: [cluster.split(b"d"), cluster.move_leader(b"d", 3)],
        ],
        ids=["split", "splits", "merge", "merges", "split and merge", "leaders", "split and leader"],
    )
    async def test_regions_that_move_meanwhile_change_nothing(
        self, cluster: FakeCluster, kv: Kv, move: Callable[[FakeCluster], object], pd_lags: bool
    ) -> None:
        await kv.get(b"a")
        cluster.pd_lags = pd_lags
        cluster.store(1).before_next(Tikv.RawBatchPut, lambda: move(cluster))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tell_pd_later, cluster)
            await kv.batch_put(PAIRS, max_keys=3)
        found = await kv.batch_get(ALPHABET[::-1])

        assert cluster.data == PAIRS
        assert found == PAIRS

    async def test_no_piece_is_answered_twice(self, cluster: FakeCluster, kv: Kv) -> None:
        moves = [
            lambda: cluster.split(b"c"),
            lambda: cluster.merge(b"h"),
            lambda: cluster.split(b"k", b"s"),
            lambda: cluster.move_leader(b"a", 2),
            lambda: cluster.merge(b"a"),
        ]
        for move in moves:
            cluster.store(1).before_next(Tikv.RawBatchGet, move)
        cluster.raw.put(b"a", b"1")
        answered: Counter[int] = Counter()

        def build(part: Any) -> Request[Any]:
            message = kvrpcpb.RawBatchGetRequest(keys=[ALPHABET[position] for position in part])
            return Request(Tikv.RawBatchGet, message, Effect.READ)

        work = KeyWork(ALPHABET, build, 2, 1000, [1] * len(ALPHABET))
        for part, _ in await kv.fan_out.execute(work, kv.rpc.call("test", 30)):
            answered.update(part)

        assert answered == Counter(range(26))

    @pytest.mark.parametrize("plan", [FanOut, Collect])
    async def test_answers_are_handed_over_as_they_come_each_piece_once(
        self, cluster: FakeCluster, kv: Kv, plan: Any
    ) -> None:
        await kv.batch_put(PAIRS)
        cluster.split(b"t")
        cluster.store(1).delay_next(Tikv.RawBatchGet, 5)
        began = anyio.current_time()
        taken: list[tuple[float, Sequence[int]]] = []

        def build(part: Any) -> Request[Any]:
            message = kvrpcpb.RawBatchGetRequest(keys=[ALPHABET[position] for position in part])
            return Request(Tikv.RawBatchGet, message, Effect.READ)

        def take(part: Sequence[int], response: Any) -> None:
            assert [pair.key for pair in response.pairs] == [ALPHABET[position] for position in part]
            taken.append((anyio.current_time() - began, part))

        fan_out = plan(RetryRegion(dispatch(kv.rpc), kv.rpc), kv.rpc.cache, 16, take)
        work = KeyWork(ALPHABET, build, 5, 1000, [1] * len(ALPHABET))
        outcome = await fan_out.execute(work, kv.rpc.call("test", 30))

        assert Counter(position for _, part in taken for position in part) == Counter(range(26))
        assert min(when for when, _ in taken) < 1
        assert max(when for when, _ in taken) >= 5
        assert (outcome if plan is FanOut else outcome.answers) == []

    @pytest.mark.parametrize("plan", [FanOut, Collect])
    async def test_what_waits_for_a_slot_has_no_request_yet_and_learns_of_splits(
        self, cluster: FakeCluster, kv: Kv, plan: Any
    ) -> None:
        await kv.batch_put(PAIRS)
        made = answered = most = moved = 0

        def build(part: Any) -> Request[Any]:
            nonlocal made, most
            made += 1
            most = max(most, made - answered)
            message = kvrpcpb.RawBatchGetRequest(keys=[ALPHABET[position] for position in part])
            return Request(Tikv.RawBatchGet, message, Effect.READ)

        async def count(_message: Any, serve: Serve) -> Any:
            nonlocal answered, moved
            await anyio.sleep(1)
            answer = await serve()
            answered += 1
            moved += answer.HasField("region_error")
            return answer

        cluster.store(1).script(Tikv.RawBatchGet, count, times=1000)
        cluster.split(b"c", b"e")
        slots = anyio.Semaphore(2)
        fan_out = plan(kv.retry, kv.cache, 16, None, slots)
        work = KeyWork(ALPHABET, build, 2, 1000, [1] * len(ALPHABET))

        await fan_out.execute(work, kv.rpc.call("test", 60))

        assert most == 2
        assert slots.value == 2
        # Only what was under way when the split came out had asked the Region as it was before.
        assert 1 <= moved <= 2

    async def test_nothing_is_sent_once_time_is_up(self, kv: Kv) -> None:
        await kv.get(b"a")
        call = kv.rpc.call("test", 1)
        work = KeyWork([b"a"], _no_request, 5, 1000, [1])
        await anyio.sleep(2)

        with pytest.raises(DeadlineExceeded):
            await Settle(kv.fan_out).execute(work, call)

    async def test_work_is_freed_as_soon_as_it_is_done(self, kv: Kv) -> None:
        def build(part: Any) -> Request[Any]:
            message = kvrpcpb.RawBatchGetRequest(keys=[ALPHABET[position] for position in part])
            return Request(Tikv.RawBatchGet, message, Effect.READ)

        work = KeyWork(ALPHABET, build, 5, 1000, [1] * len(ALPHABET))
        kept = weakref.ref(work)
        gc.disable()
        try:
            await kv.fan_out.execute(work, kv.rpc.call("test", 30))
            del work

            # Else values of long batches would stay until the cyclic collector comes.
            assert kept() is None
        finally:
            gc.enable()

    async def test_an_aligned_list_stays_aligned(self, cluster: FakeCluster, kv: Kv) -> None:
        rng = random.Random(5)
        pairs = {bytes([rng.randrange(97, 123), rng.randrange(256)]): b"%d" % number for number in range(300)}
        for _ in range(3):
            cluster.store(1).before_next(Tikv.RawBatchPut, lambda: cluster.split(free_key(cluster, rng)))

        await kv.batch_put(pairs, max_keys=7)

        assert cluster.data == pairs

    async def test_what_is_relocated_keeps_its_concurrency(self, make_kv: type[Kv]) -> None:
        async with FakeCluster() as cluster, cluster.connect(RpcConfig(concurrency=8)) as rpc:
            kv = make_kv(rpc)
            await kv.get(b"a")
            cluster.split(*ALPHABET[1:])
            cluster.store(1).delay_next(Tikv.RawBatchPut, 1, times=1000)
            began = anyio.current_time()

            await kv.batch_put(PAIRS)

            # One attempt that finds the Region split, then 26 pieces, 8 at a time.
            assert anyio.current_time() - began == pytest.approx(1 + 4, abs=0.1)
            assert cluster.data == PAIRS


def free_key(cluster: FakeCluster, rng: random.Random) -> bytes:
    starts = {region.start_key for region in cluster.map.regions}
    return rng.choice([key for key in ALPHABET if key not in starts])


class TestConcurrency:
    @pytest.mark.parametrize("limit", [1, 3])
    async def test_so_many_requests_are_under_way_and_no_more(self, make_kv: type[Kv], limit: int) -> None:
        async with FakeCluster(ALPHABET[1:]) as cluster, cluster.connect(RpcConfig(concurrency=limit)) as rpc:
            now, most = 0, 0

            async def count(_request: Any, serve: Serve) -> Any:
                nonlocal now, most
                now += 1
                most = max(most, now)
                await anyio.sleep(1)
                now -= 1
                return await serve()

            cluster.store(1).script(Tikv.RawBatchPut, count, times=1000)

            await make_kv(rpc).batch_put(PAIRS)

            assert most == limit
            assert cluster.data == PAIRS

    async def test_one_piece_takes_no_task(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.batch_put({b"a": b"1", b"b": b"2"})

        assert len(cluster.requests(Tikv.RawBatchPut)) == 1

    async def test_a_slow_region_does_not_hold_up_the_others(self, cluster: FakeCluster, kv: Kv) -> None:
        cluster.store(1).delay_next(Tikv.RawBatchGet, 3)
        began = anyio.current_time()

        await kv.batch_get(ALPHABET, max_keys=2)

        assert anyio.current_time() - began == pytest.approx(3, abs=0.1)


class TestFailure:
    async def test_the_first_failure_cancels_the_rest_and_is_raised_bare(self, cluster: FakeCluster, kv: Kv) -> None:
        cluster.store(1).fail_next(Tikv.RawBatchGet, "PERMISSION_DENIED", "no")
        cluster.store(1).hang_next(Tikv.RawBatchGet, times=100)

        with pytest.raises(RpcError, match="no"):
            await kv.batch_get(ALPHABET)

        assert kv.rpc.stats().stores["tikv1:20160"].batch.in_flight == 0

    async def test_an_error_of_the_caller_is_raised_bare_too(self, kv: Kv) -> None:
        def build(_part: Any) -> Request[Any]:
            raise ValueError("too many bytes for one message")

        work: KeyWork[Any] = KeyWork(ALPHABET, build, 100, 1000, [1] * len(ALPHABET))

        with pytest.raises(ValueError, match="too many bytes"):
            await kv.fan_out.execute(work, kv.rpc.call("test", 30))

    async def test_a_write_cancelled_because_another_failed_is_undetermined(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.batch_get(ALPHABET)
        cluster.store(1).hang_next(Tikv.RawBatchPut, times=2)
        cluster.store(1).answer_next(
            Tikv.RawBatchPut, region_error=errorpb.Error(FlashbackNotPrepared=errorpb.FlashbackNotPrepared())
        )

        with pytest.raises(UndeterminedError):
            await kv.batch_put(PAIRS)

    async def test_what_is_too_large_is_named_whatever_became_of_the_rest(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.batch_get(ALPHABET)
        cluster.store(1).hang_next(Tikv.RawBatchPut, times=2)
        cluster.store(1).answer_next(
            Tikv.RawBatchPut, region_error=errorpb.Error(raft_entry_too_large=errorpb.RaftEntryTooLarge())
        )

        with pytest.raises(EntryTooLarge):
            await kv.batch_put(PAIRS)

    async def test_a_batch_written_in_part_is_undetermined(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.batch_get(ALPHABET)
        cluster.move_leader(b"q", 2)
        for store_id in (2, 3):
            cluster.store(store_id).stop()

        with pytest.raises(UndeterminedError) as raised:
            await kv.batch_put(PAIRS, timeout=3)

        assert isinstance(raised.value.__cause__, DeadlineExceeded)
        assert b"a" in cluster.data
        assert b"z" not in cluster.data

    async def test_a_batch_of_which_nothing_was_written_is_not(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.batch_get(ALPHABET)
        for store in cluster.stores.values():
            store.stop()
        # What is written before the client learns of it might have been sent.
        await anyio.wait_all_tasks_blocked()

        with pytest.raises(DeadlineExceeded):
            await kv.batch_put(PAIRS, timeout=3)

    async def test_waits_of_parallel_pieces_count_once(self, cluster: FakeCluster, kv: Kv) -> None:
        busy = errorpb.Error(disk_full=errorpb.DiskFull())
        cluster.store(1).answer_next(Tikv.RawBatchGet, region_error=busy, times=3)

        def build(part: Any) -> Request[Any]:
            message = kvrpcpb.RawBatchGetRequest(keys=[ALPHABET[position] for position in part])
            return Request(Tikv.RawBatchGet, message, Effect.READ)

        call = kv.rpc.call("test", 30)
        await kv.fan_out.execute(KeyWork(ALPHABET, build, 100, 1000, [1] * len(ALPHABET)), call)

        assert call.backoffer.waited == pytest.approx(0.5)


class TestRange:
    async def test_a_range_is_worked_off_region_by_region(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.batch_put(PAIRS)

        parts = await kv.delete_range(KeyRange(b"c", b"s"))

        assert parts == [KeyRange(b"c", b"g"), KeyRange(b"g", b"p"), KeyRange(b"p", b"s")]
        assert list(cluster.data) == [key for key in ALPHABET if not b"c" <= key < b"s"]

    async def test_a_range_over_everything_has_open_ends(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.batch_put(PAIRS)

        parts = await kv.delete_range(KeyRange())

        assert (parts[0].start, parts[-1].end) == (b"", b"")
        assert cluster.data == {}

    async def test_an_empty_range_sends_nothing(self, cluster: FakeCluster, kv: Kv) -> None:
        assert await kv.delete_range(KeyRange(b"c", b"c")) == []
        assert cluster.log == []

    async def test_parts_of_regions_that_moved_make_up_the_range_once(self, cluster: FakeCluster, kv: Kv) -> None:
        await kv.batch_put(PAIRS)
        cluster.store(1).before_next(Tikv.RawDeleteRange, lambda: cluster.split(b"d", b"j"))
        cluster.store(1).before_next(Tikv.RawDeleteRange, lambda: cluster.merge(b"j"))

        parts = await kv.delete_range(KeyRange(b"b", b"y"))

        assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
        assert (parts[0].start, parts[-1].end) == (b"b", b"y")
        assert list(cluster.data) == [b"a", b"y", b"z"]


class TestEdge:
    async def test_the_first_region_answers_for_its_part(self, kv: Kv) -> None:
        await kv.batch_put(PAIRS)

        part, keys = await kv.page(KeyRange(b"c", b"z"), at_end=False)

        assert part == KeyRange(b"c", b"g")
        assert keys == [b"c", b"d", b"e", b"f"]

    async def test_the_last_region_answers_for_its_part(self, kv: Kv) -> None:
        await kv.batch_put(PAIRS)

        part, keys = await kv.page(KeyRange(b"c", b"s"), at_end=True)

        assert part == KeyRange(b"p", b"s")
        assert keys == [b"r", b"q", b"p"]

    async def test_the_end_of_a_range_may_be_the_border_of_a_region(self, kv: Kv) -> None:
        await kv.batch_put(PAIRS)

        part, keys = await kv.page(KeyRange(b"c", b"p"), at_end=True)

        assert part == KeyRange(b"g", b"p")
        assert keys[0] == b"o"

    async def test_a_range_without_an_end_ends_in_the_last_region(self, kv: Kv) -> None:
        await kv.batch_put(PAIRS)

        part, keys = await kv.page(KeyRange(b"c"), at_end=True)

        assert part == KeyRange(b"p")
        assert (keys[0], keys[-1]) == (b"z", b"p")

    @pytest.mark.parametrize("at_end", [False, True])
    @pytest.mark.parametrize("pd_lags", [False, True])
    async def test_a_split_makes_the_part_smaller(
        self, cluster: FakeCluster, kv: Kv, at_end: bool, pd_lags: bool
    ) -> None:
        await kv.batch_put(PAIRS)
        cluster.pd_lags = pd_lags
        cluster.store(1).before_next(Tikv.RawScan, lambda: cluster.split(b"d", b"s"))

        part, keys = await kv.page(KeyRange(b"c", b"z"), at_end=at_end)

        assert part == (KeyRange(b"s", b"z") if at_end else KeyRange(b"c", b"d"))
        assert sorted(keys) == [key for key in ALPHABET if part.contains(key)]

    @pytest.mark.parametrize("at_end", [False, True])
    async def test_a_merge_makes_the_part_larger(self, cluster: FakeCluster, kv: Kv, at_end: bool) -> None:
        await kv.batch_put(PAIRS)
        cluster.store(1).before_next(Tikv.RawScan, lambda: cluster.merge(b"h" if at_end else b"a"))

        part, keys = await kv.page(KeyRange(b"c", b"z"), at_end=at_end)

        assert part == (KeyRange(b"g", b"z") if at_end else KeyRange(b"c", b"p"))
        assert sorted(keys) == [key for key in ALPHABET if part.contains(key)]

    @pytest.mark.parametrize("at_end", [False, True])
    async def test_a_whole_range_is_read_page_by_page_while_it_moves(
        self, cluster: FakeCluster, kv: Kv, at_end: bool
    ) -> None:
        await kv.batch_put(PAIRS)
        rng = random.Random(7)
        found: list[bytes] = []
        rest = KeyRange(b"b", b"z")
        for _ in range(4):
            cluster.store(1).before_next(Tikv.RawScan, lambda: cluster.split(free_key(cluster, rng)))
            cluster.store(1).before_next(Tikv.RawScan, lambda: cluster.merge(b""))

        while not rest.is_empty:
            part, keys = await kv.page(rest, at_end=at_end)
            found += keys
            rest = KeyRange(rest.start, part.start) if at_end else KeyRange(part.end, rest.end)

        assert found == (ALPHABET[24:0:-1] if at_end else ALPHABET[1:25])


async def test_merge_makes_one_result_of_many(kv: Kv) -> None:
    await kv.batch_put(PAIRS)

    def build(part: Any) -> Request[Any]:
        message = kvrpcpb.RawBatchGetRequest(keys=[ALPHABET[position] for position in part])
        return Request(Tikv.RawBatchGet, message, Effect.READ)

    count: Merge[Any, Any, int] = Merge(kv.fan_out, lambda answers: sum(len(response.pairs) for _, response in answers))

    total = await count.execute(KeyWork(ALPHABET, build, 5, 1000, [1] * len(ALPHABET)), kv.rpc.call("count", 5))

    assert total == 26


async def test_regions_are_loaded_in_pages_not_one_by_one(cluster: FakeCluster, pd: AskedPd, kv: Kv) -> None:
    cluster.split(*[key for key in ALPHABET if key not in {b"g", b"p"}])

    await kv.batch_put(PAIRS)

    assert pd.asked == ["Regions", "Stores"]
