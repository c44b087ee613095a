"""Buckets: pieces of Regions that stores would measure, here set by hand.

Source: metapb.Buckets; TiKV components/raftstore/src/store/worker/split_check.rs makes them of equal size.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from tikv_proto import metapb

from tikv_embedded.region import Region


@attrs.define
class Buckets:
    """Where buckets are cut, for the whole cluster; kept in memory, as stores would report them again."""

    version: int = 0
    """Grows with every change; 0 is no buckets at all."""
    cuts: tuple[bytes, ...] = ()

    def cut(self, keys: Iterable[bytes]) -> None:
        """Cut Regions into buckets at `keys` (encoded like the bounds), and nowhere else from now on."""
        self.cuts = tuple(sorted(set(keys)))
        self.version += 1

    def of(self, region: Region) -> metapb.Buckets | None:
        """Return the buckets of a Region, one at least; None when none were ever set."""
        if not self.version:
            return None
        inside = (key for key in self.cuts if key != region.start_key and region.contains(key))
        keys = [region.start_key, *inside, region.end_key]
        return metapb.Buckets(region_id=region.id, version=self.version, keys=keys)
