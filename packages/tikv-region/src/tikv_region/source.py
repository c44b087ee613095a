"""What the cache asks of PD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tikv_pd import Region, Store


class RegionSource(Protocol):
    """Knows Regions and stores; a `tikv_pd.PdClient` does.

    Keys are encoded as PD has them, timeouts are seconds and may be infinite. Errors that another attempt may not meet
    are those with `retryable`. With `allow_follower` a follower of PD may answer, which may lag behind and knows no
    buckets.
    """

    async def get_region(
        self, key: bytes, *, need_buckets: bool, allow_follower: bool, timeout: float
    ) -> Region | None:
        """Return the Region that holds `key`, None if none is known."""
        ...

    async def get_prev_region(
        self, key: bytes, *, need_buckets: bool, allow_follower: bool, timeout: float
    ) -> Region | None:
        """Return the Region before the one that holds `key`, None if there is none."""
        ...

    async def get_region_by_id(self, region_id: int, *, need_buckets: bool, timeout: float) -> Region | None:
        """Return the Region of an id, None if there is none."""
        ...

    async def batch_scan_regions(
        self,
        ranges: Sequence[tuple[bytes, bytes]],
        *,
        limit: int,
        need_buckets: bool,
        allow_follower: bool,
        timeout: float,
    ) -> list[Region]:
        """Return the Regions that overlap any of the ranges, ascending, each once, at most `limit`; there may be gaps.

        The ranges ascend and do not overlap; an empty end is unbounded.
        """
        ...

    async def get_store(self, store_id: int, *, timeout: float) -> Store | None:
        """Return a store, None if it never existed."""
        ...

    async def get_stores(self, *, timeout: float) -> list[Store]:
        """Return all stores."""
        ...
