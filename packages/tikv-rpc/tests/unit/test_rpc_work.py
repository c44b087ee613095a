"""Work is cut at Regions and limits: each position exactly once, in order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import anyio
from hypothesis import given, settings, strategies as st
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import KeyRange, RegionCache
from tikv_region.testing import MapSource, RegionMap
from tikv_rpc import Call, Effect, KeyWork, RangeWork, Request, Totals, Waits

KEYS = st.binary(max_size=4)


def cache_of(splits: Sequence[bytes]) -> RegionCache:
    source = MapSource(RegionMap(splits))
    return RegionCache(source, source.map.codec, now=anyio.current_time)


def key_work(
    keys: Sequence[bytes], max_keys: int = 1000, max_bytes: int = 1 << 20
) -> KeyWork[kvrpcpb.RawBatchGetResponse]:
    def build(part: Sequence[int]) -> Request[kvrpcpb.RawBatchGetResponse]:
        message = kvrpcpb.RawBatchGetRequest(keys=[keys[position] for position in part])
        return Request(Tikv.RawBatchGet, message, Effect.READ)

    return KeyWork(keys, build, max_keys, max_bytes, [len(key) for key in keys])


def range_work(key_range: KeyRange) -> RangeWork[kvrpcpb.RawDeleteRangeResponse]:
    def build(part: KeyRange) -> Request[kvrpcpb.RawDeleteRangeResponse]:
        message = kvrpcpb.RawDeleteRangeRequest(start_key=part.start, end_key=part.end)
        return Request(Tikv.RawDeleteRange, message, Effect.WRITE)

    return RangeWork(key_range, build)


def new_call() -> Call:
    return Call("test", 60, anyio.current_time, Waits(60, Totals()))


@given(
    keys=st.lists(KEYS, max_size=30),
    splits=st.lists(KEYS.filter(bool), max_size=4),
    max_keys=st.integers(1, 5),
    max_bytes=st.integers(1, 12),
)
@settings(deadline=None, max_examples=200)
def test_each_position_is_in_one_piece_of_its_region_within_the_limits(
    keys: list[bytes], splits: list[bytes], max_keys: int, max_bytes: int
) -> None:
    async def main() -> None:
        work = key_work(keys, max_keys, max_bytes)

        pieces = await work.split(work.whole, cache_of(splits), new_call())

        assert sorted(position for _, piece in pieces for position in piece) == list(range(len(keys)))
        for entry, piece in pieces:
            assert list(piece) == sorted(piece)
            assert all(entry.contains(keys[position]) for position in piece)
            assert 0 < len(piece) <= max_keys
            assert len(piece) == 1 or sum(len(keys[position]) for position in piece) <= max_bytes

    anyio.run(main)


@given(
    keys=st.lists(KEYS, min_size=1, max_size=20),
    splits=st.lists(KEYS.filter(bool), max_size=4),
    chosen=st.sets(st.integers(0, 19)),
)
@settings(deadline=None)
def test_a_piece_can_be_cut_again(keys: list[bytes], splits: list[bytes], chosen: set[int]) -> None:
    async def main() -> None:
        part = sorted(position for position in chosen if position < len(keys))

        pieces = await key_work(keys).split(part, cache_of(splits), new_call())

        assert sorted(position for _, piece in pieces for position in piece) == part

    anyio.run(main)


async def test_a_key_larger_than_the_limit_travels_alone() -> None:
    work = key_work([b"a", b"b" * 50, b"c", b"d"], max_bytes=10)

    pieces = await work.split(work.whole, cache_of([]), new_call())

    assert [list(piece) for _, piece in pieces] == [[0], [1], [2, 3]]


async def test_duplicates_stay_in_one_region_with_positions_of_their_own() -> None:
    work = key_work([b"x", b"a", b"x", b"a"])

    pieces = await work.split(work.whole, cache_of([b"m"]), new_call())

    assert [list(piece) for _, piece in pieces] == [[1, 3], [0, 2]]


async def test_no_keys_make_no_pieces() -> None:
    work = key_work([])

    assert await work.split(work.whole, cache_of([]), new_call()) == []


async def test_a_range_is_cut_at_the_borders_of_regions() -> None:
    work = range_work(KeyRange(b"b", b"x"))

    pieces = await work.split(work.whole, cache_of([b"g", b"p"]), new_call())

    assert [part for _, part in pieces] == [KeyRange(b"b", b"g"), KeyRange(b"g", b"p"), KeyRange(b"p", b"x")]


async def test_an_unbounded_range_is_cut_without_gaps() -> None:
    work = range_work(KeyRange())

    pieces = await work.split(work.whole, cache_of([b"g", b"p"]), new_call())

    parts = [part for _, part in pieces]
    assert parts[0].start == b""
    assert parts[-1].end == b""
    assert all(left.end == right.start for left, right in pairwise(parts))


async def test_an_empty_range_makes_no_pieces() -> None:
    work = range_work(KeyRange(b"x", b"b"))

    assert await work.split(work.whole, cache_of([b"g"]), new_call()) == []


def test_a_piece_becomes_the_request_for_its_keys() -> None:
    work = key_work([b"a", b"b", b"c"])

    request = work.request([0, 2])

    assert request.payload == kvrpcpb.RawBatchGetRequest(keys=[b"a", b"c"]).SerializeToString()


def test_a_part_of_a_range_becomes_the_request_for_it() -> None:
    request = range_work(KeyRange()).request(KeyRange(b"a", b"b"))

    assert request.payload == kvrpcpb.RawDeleteRangeRequest(start_key=b"a", end_key=b"b").SerializeToString()
