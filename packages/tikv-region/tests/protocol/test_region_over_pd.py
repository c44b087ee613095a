"""RegionCache on a PdClient that talks to a FakePd."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from tikv_pd import Backoffer, Deadline, DeadlineExceeded, PdClient
from tikv_pd.testing import FakePd, MemoryTransport
from tikv_proto.services import PD
from tikv_region import KeyRange, KeyspaceCodec, RegionCache, RegionConfig
from tikv_region.testing import RegionMap

CODEC = KeyspaceCodec(b"r", 5, "shop")


@pytest.fixture
async def fake() -> AsyncIterator[FakePd]:
    async with MemoryTransport() as network:
        fake = FakePd(network)
        known = RegionMap([b"%02d" % number for number in range(1, 50)], codec=CODEC)
        fake.regions, fake.stores = known.regions, known.stores
        yield fake


@pytest.fixture
async def client(fake: FakePd) -> AsyncIterator[PdClient]:
    async with PdClient("pd1:2379", transport=fake.transport) as client:
        yield client


@pytest.mark.parametrize("config", [RegionConfig(), RegionConfig(allow_follower=True), RegionConfig(need_buckets=True)])
async def test_the_cache_works_on_a_client_of_pd(client: PdClient, backoffer: Backoffer, config: RegionConfig) -> None:
    cache = RegionCache(client, CODEC, config=config, now=anyio.current_time)

    entry = await cache.locate(b"07x", backoffer)
    last = await cache.locate_end(b"", backoffer)
    below = await cache.locate_end(b"20", backoffer)
    entries = await cache.locate_range(KeyRange(), backoffer)
    groups = await cache.group_keys([b"%02d" % number for number in range(50)], backoffer)
    by_id = await cache.locate_id(entry.id, backoffer)
    await cache.update_buckets(entry, 1, backoffer)

    assert (entry.start, entry.end) == (b"07", b"08")
    assert by_id is entry
    assert (last.start, last.end) == (b"49", b"")
    assert (below.start, below.end) == (b"19", b"20")
    assert len(entries) == len(groups) == 50
    assert await cache.resolve(entry.leader_store, backoffer) == "tikv1:20160"


async def test_a_store_pd_never_knew_is_a_tombstone(client: PdClient, fake: FakePd, backoffer: Backoffer) -> None:
    cache = RegionCache(client, CODEC, now=anyio.current_time)
    entry = await cache.locate(b"07x", backoffer)
    del fake.stores[1]

    assert await cache.resolve(entry.leader_store, backoffer) == ""

    assert (await cache.locate(b"07x", backoffer)).leader_store.id == 2


async def test_a_pd_that_hangs_ends_with_the_callers_deadline(client: PdClient, fake: FakePd) -> None:
    cache = RegionCache(client, CODEC, now=anyio.current_time)
    fake.hang(PD.GetRegion)

    with pytest.raises(DeadlineExceeded, match=r"^test did not finish"):
        await cache.locate(b"07x", Backoffer(Deadline("test", 4.0, anyio.current_time)))

    assert anyio.current_time() == pytest.approx(4.0)
