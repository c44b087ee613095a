"""RegionCache against a scripted PD: what it says of peers and buckets."""

from __future__ import annotations

from typing import Any

import anyio
import attrs
import pytest
from tikv_pd import Backoffer, Buckets, Peer
from tikv_proto import errorpb
from tikv_region import (
    CacheAction,
    KeyCodec,
    KeyRange,
    KeyspaceCodec,
    Next,
    PlainCodec,
    RegionCache,
    RegionConfig,
    TxnV1Codec,
)
from tikv_region.testing import MapSource, RegionMap

codecs = pytest.mark.parametrize(
    "codec", [PlainCodec(), TxnV1Codec(), KeyspaceCodec(b"x", 5, "shop")], ids=["plain", "txn", "keyspace"]
)


def with_buckets(codec: KeyCodec) -> tuple[MapSource, RegionCache]:
    """Regions [∅, g), [g, p), [p, ∞), the second in buckets at k."""
    known = RegionMap([b"g", b"p"], codec=codec)
    known.set_buckets(b"g", [b"k"], 3)
    pd = MapSource(known)
    return pd, RegionCache(pd, codec, config=RegionConfig(need_buckets=True), now=anyio.current_time)


def change(pd: MapSource, **changes: Any) -> None:
    """Have PD say something else of the Region of b"h"."""
    pd.view = [attrs.evolve(region, **changes) if region.start_key == b"g" else region for region in pd.map.regions]


async def test_peers_are_told_apart_by_what_pd_says_of_them(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    leader, follower, down = pd.map.region(b"h").peers
    learner, witness = Peer(900, 4, is_learner=True), Peer(901, 5, is_witness=True)
    change(
        pd,
        peers=(leader, follower, down, learner, witness),
        down_peers=(down.id,),
        pending_peers=(follower.id, down.id),
    )

    entry = await cache.locate(b"h", backoffer)

    assert entry.peers == (leader, follower, learner)
    assert entry.pending_peers == (follower,)
    assert entry.down_peers == (down,)
    assert entry.replica_count == 4
    assert not entry.is_renewable


async def test_a_replica_that_is_back_is_known_as_soon_as_pd_is_asked(
    cache: RegionCache, pd: MapSource, backoffer: Backoffer
) -> None:
    change(pd, down_peers=(pd.map.region(b"h").peers[2].id,))
    entry = await cache.locate(b"h", backoffer)
    entry.switch_leader(1)
    pd.view = None

    loaded = cache.insert(pd.map.region(b"h"))

    assert loaded is not entry
    assert loaded is not None
    assert len(loaded.peers) == 3
    assert loaded.leader == 1


@codecs
async def test_buckets_come_with_the_region_however_it_is_loaded(codec: KeyCodec, backoffer: Backoffer) -> None:
    for load in ("locate", "locate_end", "locate_range"):
        _pd, cache = with_buckets(codec)
        match load:
            case "locate":
                entry = await cache.locate(b"h", backoffer)
            case "locate_end":
                entry = await cache.locate_end(b"p", backoffer)
            case _:
                entry = (await cache.locate_range(KeyRange(), backoffer))[1]

        assert entry.bucket(b"h") == KeyRange(b"g", b"k")
        assert entry.bucket(b"k") == KeyRange(b"k", b"p")


async def test_buckets_are_not_asked_for_unless_wanted(backoffer: Backoffer) -> None:
    pd, _ = with_buckets(PlainCodec())
    cache = RegionCache(pd, PlainCodec(), now=anyio.current_time)

    assert (await cache.locate(b"h", backoffer)).buckets is None


@codecs
async def test_a_store_that_knows_newer_buckets_is_believed(codec: KeyCodec, backoffer: Backoffer) -> None:
    _pd, cache = with_buckets(codec)
    entry = await cache.locate(b"h", backoffer)
    bounds = [codec.encode_region_key(key) for key in (b"g", b"i", b"m", b"p")]
    error = errorpb.Error(bucket_version_not_match=errorpb.BucketVersionNotMatch(version=4, keys=bounds))

    decision = cache.on_region_error(entry, error)

    assert (decision.action, decision.next) == (CacheAction.REPLACE_BUCKETS, Next.RELOCATE)
    assert cache.find(b"h") is entry
    assert entry.bucket(b"i") == KeyRange(b"i", b"m")
    error.bucket_version_not_match.version = 2
    del error.bucket_version_not_match.keys[:]
    cache.on_region_error(entry, error)
    assert entry.buckets == Buckets(4, (b"g", b"i", b"m", b"p"))


async def test_the_pieces_of_a_region_inherit_its_buckets(backoffer: Backoffer) -> None:
    pd, cache = with_buckets(PlainCodec())
    entry = await cache.locate(b"h", backoffer)
    pd.map.split(b"i")

    cache.on_region_error(entry, pd.map.epoch_not_match(pd.map.region(b"i")))

    right = cache.find(b"j")
    assert right is not None
    assert right.range == KeyRange(b"i", b"p")
    assert right.bucket(b"j") == KeyRange(b"i", b"k")


async def test_newer_buckets_of_a_region_already_known_are_learned(backoffer: Backoffer) -> None:
    pd, cache = with_buckets(PlainCodec())
    entry = await cache.locate(b"h", backoffer)

    assert cache.insert(pd.map.set_buckets(b"h", [b"m"], 4)) is entry

    assert entry.bucket(b"h") == KeyRange(b"g", b"m")


@codecs
async def test_newer_buckets_are_asked_for_once_by_all_who_hear_of_them(codec: KeyCodec, backoffer: Backoffer) -> None:
    pd, cache = with_buckets(codec)
    entry = await cache.locate(b"h", backoffer)
    pd.map.set_buckets(b"g", [b"j", b"l"], 4)
    pd.calls.clear()

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(cache.update_buckets, entry, 4, backoffer)

    assert pd.calls == ["get_region_by_id"]
    assert cache.find(b"h") is entry
    assert entry.bucket(b"k") == KeyRange(b"j", b"l")


@codecs
async def test_buckets_that_are_as_new_are_not_asked_for(codec: KeyCodec, backoffer: Backoffer) -> None:
    pd, cache = with_buckets(codec)
    entry = await cache.locate(b"h", backoffer)
    pd.calls.clear()

    await cache.update_buckets(entry, 3, backoffer)
    await cache.update_buckets(entry, 2, backoffer)

    assert pd.calls == []


async def test_buckets_can_be_learned_of_one_region_alone(backoffer: Backoffer) -> None:
    pd, _ = with_buckets(PlainCodec())
    cache = RegionCache(pd, PlainCodec(), now=anyio.current_time)
    entry = await cache.locate(b"h", backoffer)

    await cache.update_buckets(entry, 1, backoffer)

    assert entry.bucket(b"h") == KeyRange(b"g", b"k")


@codecs
async def test_a_split_is_learned_with_the_buckets(codec: KeyCodec, backoffer: Backoffer) -> None:
    pd, cache = with_buckets(codec)
    entry = await cache.locate(b"h", backoffer)
    pd.map.split(b"m")
    pd.map.set_buckets(b"m", [b"n"], 5)

    await cache.update_buckets(entry, 5, backoffer)

    assert not entry.is_valid()
    right = cache.find(b"m")
    assert right is not None
    assert right.bucket(b"n") == KeyRange(b"n", b"p")


@codecs
async def test_buckets_of_a_region_that_is_gone_change_nothing(codec: KeyCodec, backoffer: Backoffer) -> None:
    pd, cache = with_buckets(codec)
    entry = await cache.locate(b"h", backoffer)
    pd.view = []

    await cache.update_buckets(entry, 4, backoffer)

    assert cache.find(b"h") is entry
    assert entry.bucket(b"h") == KeyRange(b"g", b"k")
