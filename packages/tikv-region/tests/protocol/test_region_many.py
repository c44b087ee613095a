"""RegionCache against a scripted PD: many Regions at once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import anyio
import pytest
from tikv_pd import Backoffer, Deadline, DeadlineExceeded, PdError, Region, RpcError
from tikv_region import (
    InvalidReason,
    KeyCodec,
    KeyRange,
    KeyspaceCodec,
    PlainCodec,
    RegionCache,
    RegionConfig,
    RegionEntry,
    TxnV1Codec,
)
from tikv_region.testing import MapSource, RegionMap

SPLITS = [b"%04d" % number for number in range(1, 1000)]
codecs = pytest.mark.parametrize("codec", [PlainCodec(), TxnV1Codec(), KeyspaceCodec(b"r", 5, "shop")])


def make(codec: KeyCodec | None = None) -> tuple[MapSource, RegionCache]:
    """1,000 Regions, split at each number of four digits."""
    pd = MapSource(RegionMap(SPLITS, codec=codec))
    return pd, RegionCache(pd, pd.map.codec, now=anyio.current_time)


def assert_contiguous(entries: list[RegionEntry], key_range: KeyRange) -> None:
    assert entries[0].contains(key_range.start)
    for left, right in pairwise(entries):
        assert left.end == right.start
    last = entries[-1]
    assert (
        not last.end
        if not key_range.end
        else last.start < key_range.end and (not last.end or key_range.end <= last.end)
    )


@codecs
async def test_a_range_is_loaded_in_pages_and_comes_without_gaps(codec: KeyCodec, backoffer: Backoffer) -> None:
    pd, cache = make(codec)

    entries = await cache.locate_range(KeyRange(b"0100", b"0500"), backoffer)

    assert [entry.start for entry in entries] == [b"%04d" % number for number in range(100, 500)]
    assert pd.calls == ["batch_scan_regions"] * 4
    assert await cache.locate_range(KeyRange(b"0100", b"0500"), backoffer) == entries
    assert len(pd.calls) == 4


@codecs
async def test_the_whole_key_space_is_a_range(codec: KeyCodec, backoffer: Backoffer) -> None:
    _pd, cache = make(codec)

    entries = await cache.locate_range(KeyRange(), backoffer)

    assert len(entries) == 1000
    assert_contiguous(entries, KeyRange())


@pytest.mark.parametrize(
    ("start", "end", "starts"),
    [
        (b"0001", b"0002", [b"0001"]),
        (b"0001x", b"0001y", [b"0001"]),
        (b"0001x", b"0002\0", [b"0001", b"0002"]),
        (b"0998x", b"", [b"0998", b"0999"]),
        (b"5", b"6", [b"0999"]),
        (b"0002", b"0002", []),
        (b"0003", b"0002", []),
    ],
)
async def test_a_range_is_covered_by_just_the_regions_it_overlaps(
    start: bytes, end: bytes, starts: list[bytes], backoffer: Backoffer
) -> None:
    _pd, cache = make()

    entries = await cache.locate_range(KeyRange(start, end), backoffer)

    assert [entry.start for entry in entries] == starts


async def test_only_what_is_missing_of_a_range_is_loaded(backoffer: Backoffer) -> None:
    pd, cache = make()
    entries = await cache.locate_range(KeyRange(b"0001", b"0050"), backoffer)
    cache.invalidate(entries[20], InvalidReason.OTHER)
    pd.calls.clear()

    again = await cache.locate_range(KeyRange(b"0001", b"0050"), backoffer)

    assert pd.calls == ["batch_scan_regions"]
    assert [entry.start for entry in again] == [entry.start for entry in entries]
    assert [one is other for one, other in zip(entries, again, strict=True)].count(False) == 1


async def test_a_hole_in_a_page_is_waited_out(backoffer: Backoffer) -> None:
    pd, cache = make()
    pd.view = [region for region in pd.map.regions if region.start_key != b"0105"]

    async def fill() -> None:
        await anyio.sleep(1)
        pd.view = None

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fill)
        entries = await cache.locate_range(KeyRange(b"0100", b"0110"), backoffer)

    assert_contiguous(entries, KeyRange(b"0100", b"0110"))
    assert backoffer.attempts >= 1


async def test_a_failed_page_is_asked_for_again(backoffer: Backoffer) -> None:
    pd, cache = make()
    pd.failures.append(RpcError("pd1", "BatchScanRegions", "UNAVAILABLE", "gone"))

    entries = await cache.locate_range(KeyRange(b"0100", b"0110"), backoffer)

    assert len(entries) == 10
    assert backoffer.attempts == 1


async def test_a_page_that_pd_refuses_for_good_is_an_error_at_once(backoffer: Backoffer) -> None:
    pd, cache = make()
    pd.failures.append(PdError("BatchScanRegions", "UNKNOWN", "no"))

    with pytest.raises(PdError):
        await cache.locate_range(KeyRange(), backoffer)


async def test_a_page_that_takes_too_long_ends_with_the_deadline() -> None:
    pd, cache = make()
    pd.delay = 5.0

    with pytest.raises(DeadlineExceeded):
        await cache.locate_range(KeyRange(), Backoffer(Deadline("test", 1.0, anyio.current_time)))

    assert anyio.current_time() == 1.0


class MergingSource(MapSource):
    """Merges two Regions while the second page of a range is under way."""

    async def batch_scan_regions(
        self,
        ranges: Sequence[tuple[bytes, bytes]],
        *,
        limit: int,
        need_buckets: bool = False,
        allow_follower: bool = False,
        timeout: float,
    ) -> list[Region]:
        if self.calls:
            start = ranges[0][0]
            self.map.merge(start[:-1] + bytes([start[-1] - 1]))
        return await super().batch_scan_regions(
            ranges, limit=limit, need_buckets=need_buckets, allow_follower=allow_follower, timeout=timeout
        )


async def test_a_merge_across_the_border_of_two_pages_leaves_no_overlap(backoffer: Backoffer) -> None:
    pd = MergingSource(RegionMap([b"b", b"c", b"d", b"e"]))
    cache = RegionCache(pd, PlainCodec(), config=RegionConfig(scan_page=2), now=anyio.current_time)

    entries = await cache.locate_range(KeyRange(b"a", b"d"), backoffer)

    assert_contiguous(entries, KeyRange(b"a", b"d"))
    assert [entry.start for entry in entries] == [b"", b"b"]


@codecs
async def test_keys_are_grouped_by_region_in_their_order(codec: KeyCodec, backoffer: Backoffer) -> None:
    pd, cache = make(codec)
    rng = random.Random(3)
    keys = [b"%04d/%d" % (rng.randrange(1000), rng.randrange(5)) for _ in range(3000)]

    groups = await cache.group_keys(keys, backoffer)

    assert sorted(index for _, indices in groups for index in indices) == list(range(len(keys)))
    for entry, indices in groups:
        assert indices == sorted(indices)
        assert all(entry.contains(keys[index]) for index in indices)
    starts = [entry.start for entry, _ in groups]
    assert starts == sorted(set(starts))
    # 1,000 Regions in pages of 128.
    assert pd.calls == ["batch_scan_regions"] * 8


async def test_no_keys_make_no_groups_and_no_calls(backoffer: Backoffer) -> None:
    pd, cache = make()

    assert await cache.group_keys([], backoffer) == []
    assert pd.calls == []


async def test_duplicate_keys_stay_together(backoffer: Backoffer) -> None:
    _pd, cache = make()

    groups = await cache.group_keys([b"0005", b"0700", b"0005", b"0005x"], backoffer)

    assert [(entry.start, indices) for entry, indices in groups] == [(b"0005", [0, 2, 3]), (b"0700", [1])]


@codecs
async def test_keys_far_apart_load_their_own_regions_only(codec: KeyCodec, backoffer: Backoffer) -> None:
    pd, cache = make(codec)
    await cache.locate(b"0400", backoffer)
    pd.calls.clear()

    groups = await cache.group_keys([b"0700", b"0005", b"0400x", b"0005"], backoffer)

    assert [(entry.start, indices) for entry, indices in groups] == [(b"0005", [1, 3]), (b"0400", [2]), (b"0700", [0])]
    assert pd.calls == ["batch_scan_regions"]
    assert len(cache) == 3


async def test_keys_of_every_other_region_are_loaded_in_full_pages(backoffer: Backoffer) -> None:
    pd, cache = make()

    await cache.group_keys([b"%04d" % number for number in range(0, 1000, 2)], backoffer)

    assert pd.calls == ["batch_scan_regions"] * 4
    assert len(cache) == 500


async def test_a_single_key_that_is_missing_shares_the_answer_of_others(backoffer: Backoffer) -> None:
    pd, cache = make()

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(cache.group_keys, [b"0005", b"0005"], backoffer)

    assert pd.calls == ["get_region"]


async def test_keys_of_known_regions_are_grouped_without_pd(backoffer: Backoffer) -> None:
    pd, cache = make()
    await cache.locate_range(KeyRange(), backoffer)
    pd.calls.clear()

    groups = await cache.group_keys([b"%04d" % number for number in range(1000)], backoffer)

    assert len(groups) == 1000
    assert pd.calls == []
