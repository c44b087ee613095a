from __future__ import annotations

import random
from typing import Any

import anyio
import pytest
from tikv_pd import Backoffer, Deadline
from tikv_pd.testing import virtual_time
from tikv_region import RegionCache
from tikv_region.testing import MapSource, RegionMap


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


@pytest.fixture
async def backoffer() -> Backoffer:
    return Backoffer(Deadline("test", 60, anyio.current_time))


@pytest.fixture
def region_map() -> RegionMap:
    """[∅, g), [g, p), [p, ∞) on three stores, all led from store 1."""
    return RegionMap([b"g", b"p"])


@pytest.fixture
def pd(region_map: RegionMap) -> MapSource:
    return MapSource(region_map)


@pytest.fixture
def cache(pd: MapSource) -> RegionCache:
    return RegionCache(pd, pd.map.codec, now=anyio.current_time, rng=random.Random(1))
