"""Work in pieces: an outcome for each, pieces that somebody made before, and answers that are not final yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from tikv_pd import DeadlineExceeded, IncompatibleVersion, TikvError, UndeterminedError
from tikv_pd.backoff import REGION_MISS
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import PD, Tikv
from tikv_region import EntryTooLarge, RegionEntry
from tikv_rpc import AtKey, Call, Collect, Collected, Effect, GroupedWork, KeyWork, Request, ResolveLocks
from tikv_rpc.testing import FakeCluster, Serve

if TYPE_CHECKING:
    from tests.conftest import Kv

KEYS = [b"a", b"h", b"q", b"b", b"a"]
TOO_LARGE = errorpb.Error(raft_entry_too_large=errorpb.RaftEntryTooLarge(entry_size=9))


def put(keys: Sequence[bytes] = KEYS) -> KeyWork[kvrpcpb.RawBatchPutResponse]:
    def build(part: Sequence[int]) -> Request[kvrpcpb.RawBatchPutResponse]:
        pairs = [kvrpcpb.KvPair(key=keys[position], value=b"%d" % position) for position in part]
        return Request(Tikv.RawBatchPut, kvrpcpb.RawBatchPutRequest(pairs=pairs), Effect.WRITE)

    return KeyWork(keys, build, 100, 1 << 20, [len(key) for key in keys])


@pytest.fixture
def collect(kv: Kv) -> Collect[Sequence[int], kvrpcpb.RawBatchPutResponse]:
    return Collect(kv.retry, kv.cache, 16)


def errors(collected: Collected[Sequence[int], Any]) -> dict[tuple[int, ...], type[TikvError]]:
    return {tuple(part): type(error) for part, error in collected.failures}


def answered(collected: Collected[Sequence[int], Any]) -> list[int]:
    return sorted(position for part, _ in collected.answers for position in part)


class TestCollect:
    async def test_what_succeeds_has_answers(self, kv: Kv, collect: Any, cluster: FakeCluster) -> None:
        collected = await collect.execute(put(), kv.rpc.call("put", 10))

        assert answered(collected) == [0, 1, 2, 3, 4]
        assert collected.failures == []
        assert cluster.data == {b"a": b"4", b"b": b"3", b"h": b"1", b"q": b"2"}

    async def test_one_that_fails_stops_no_other(self, kv: Kv, collect: Any, cluster: FakeCluster) -> None:
        async def refuse(message: Any, serve: Serve) -> Any:
            if message.pairs[0].key == b"h":
                return kvrpcpb.RawBatchPutResponse(region_error=TOO_LARGE)
            return await serve()

        cluster.store(1).script(Tikv.RawBatchPut, refuse, times=3)

        collected = await collect.execute(put(), kv.rpc.call("put", 10))

        assert answered(collected) == [0, 2, 3, 4]
        assert errors(collected) == {(1,): EntryTooLarge}

    async def test_waits_of_a_piece_that_moves_again_and_again_grow(
        self, kv: Kv, collect: Any, cluster: FakeCluster
    ) -> None:
        moved = kvrpcpb.RawBatchPutResponse(region_error=errorpb.Error(epoch_not_match=errorpb.EpochNotMatch()))
        cluster.store(1).answer_next(Tikv.RawBatchPut, moved, times=100_000)

        collected = await collect.execute(put([b"a", b"h"]), kv.rpc.call("put", 20))

        assert answered(collected) == []
        # Up to half a second between two of each piece, not two milliseconds.
        assert len(cluster.requests(Tikv.RawBatchPut)) < 200

    async def test_a_piece_whose_answer_is_lost_is_undetermined_and_no_other(
        self, kv: Kv, collect: Any, cluster: FakeCluster
    ) -> None:
        async def hang(message: Any, serve: Serve) -> Any:
            if message.pairs[0].key == b"h":
                await anyio.sleep_forever()
            return await serve()

        cluster.store(1).script(Tikv.RawBatchPut, hang, times=1000)

        collected = await collect.execute(put(), kv.rpc.call("put", 5))

        assert answered(collected) == [0, 2, 3, 4]
        assert errors(collected) == {(1,): UndeterminedError}
        assert isinstance(collected.failures[0][1].__cause__, DeadlineExceeded)

    async def test_a_piece_whose_answer_was_lost_stays_undetermined_when_it_is_split(
        self, kv: Kv, collect: Any, cluster: FakeCluster
    ) -> None:
        await collect.execute(put(), kv.rpc.call("put", 10))

        async def lose_and_split(_message: Any, serve: Serve) -> Any:
            await serve()
            cluster.split(b"b")
            for store in cluster.stores.values():
                store.stop()
            return await anyio.sleep_forever()

        cluster.store(1).script(Tikv.RawBatchPut, lose_and_split)

        collected = await collect.execute(put([b"a", b"b"]), kv.rpc.call("put", 25))

        assert sorted(position for part, _ in collected.failures for position in part) == [0, 1]
        assert {type(error) for _, error in collected.failures} == {UndeterminedError}

    async def test_a_piece_that_is_split_fails_in_part(self, kv: Kv, collect: Any, cluster: FakeCluster) -> None:
        await collect.execute(put(), kv.rpc.call("put", 10))
        cluster.split(b"b")

        async def refuse(message: Any, serve: Serve) -> Any:
            if [pair.key for pair in message.pairs] == [b"b"]:
                return kvrpcpb.RawBatchPutResponse(region_error=TOO_LARGE)
            return await serve()

        cluster.store(1).script(Tikv.RawBatchPut, refuse, times=1000)

        collected = await collect.execute(put(), kv.rpc.call("put", 10))

        assert answered(collected) == [0, 1, 2, 4]
        assert errors(collected) == {(3,): EntryTooLarge}

    async def test_what_cannot_be_split_fails_as_a_whole(self, kv: Kv, collect: Any, cluster: FakeCluster) -> None:
        cluster.pd.answer_error(PD.BatchScanRegions, "INCOMPATIBLE_VERSION")

        collected = await collect.execute(put(), kv.rpc.call("put", 10))

        assert collected.answers == []
        assert errors(collected) == {(0, 1, 2, 3, 4): IncompatibleVersion}


class TestGroupedWork:
    async def test_pieces_made_before_are_sent_as_they_are(self, kv: Kv) -> None:
        work = put()
        pieces = await work.split(work.whole, kv.cache, kv.rpc.call("group", 10))

        answers = await kv.fan_out.execute(GroupedWork(work, pieces), kv.rpc.call("put", 10))

        assert sorted(tuple(part) for part, _ in answers) == sorted(tuple(part) for _, part in pieces)

    async def test_pieces_that_moved_since_are_split_again(self, kv: Kv, cluster: FakeCluster) -> None:
        work = put()
        pieces = await work.split(work.whole, kv.cache, kv.rpc.call("group", 10))
        cluster.split(b"b")
        cluster.merge(b"h")

        answers = await kv.fan_out.execute(GroupedWork(work, pieces), kv.rpc.call("put", 10))

        assert sorted(tuple(part) for part, _ in answers) == [(0, 4), (1,), (2,), (3,)]
        assert cluster.data == {b"a": b"4", b"b": b"3", b"h": b"1", b"q": b"2"}


class Impatient:
    """Takes a value that says `locked` for a lock, and waits for it."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def resolve(
        self, entry: RegionEntry, request: Request[Any], response: Any, call: Call
    ) -> Request[Any] | None:
        assert entry.contains(b"a")
        self.seen.append(response.value)
        if response.value != b"locked":
            return None
        await call.backoffer.backoff(REGION_MISS, TimeoutError("locked"))
        return request


class TestResolveLocks:
    async def test_a_request_is_sent_again_until_nothing_is_in_the_way(self, kv: Kv, cluster: FakeCluster) -> None:
        cluster.store(1).answer_next(Tikv.RawGet, kvrpcpb.RawGetResponse(value=b"locked"), times=2)
        await kv.put(b"a", b"1")
        resolver = Impatient()
        request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=b"a"), Effect.READ)

        plan: AtKey[Any] = AtKey(ResolveLocks(kv.retry, resolver), kv.cache)
        response = await plan.execute((b"a", request), kv.rpc.call("get", 10))

        assert response.value == b"1"
        assert resolver.seen == [b"locked", b"locked", b"1"]

    async def test_a_lock_that_stays_ends_the_call_in_time(self, kv: Kv, cluster: FakeCluster) -> None:
        cluster.store(1).answer_next(Tikv.RawGet, kvrpcpb.RawGetResponse(value=b"locked"), times=10_000)
        request = Request(Tikv.RawGet, kvrpcpb.RawGetRequest(key=b"a"), Effect.READ)

        plan: AtKey[Any] = AtKey(ResolveLocks(kv.retry, Impatient()), kv.cache)
        with pytest.raises(DeadlineExceeded) as raised:
            await plan.execute((b"a", request), kv.rpc.call("get", 3))

        assert isinstance(raised.value.__cause__, TimeoutError)
