"""What an action may know besides its request."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from tikv_embedded.engine import Snapshot
from tikv_embedded.mvcc.errors import MvccError, aborted
from tikv_embedded.mvcc.keys import encode_key
from tikv_embedded.mvcc.max_ts import MaxTs
from tikv_embedded.mvcc.reader import MvccReader
from tikv_embedded.region import Region


@attrs.frozen
class TxnContext:
    """The data, the Region and the store that a request is for."""

    snapshot: Snapshot
    """The data, as of now."""
    region: Region
    """Its bounds are encoded like keys."""
    max_ts: MaxTs
    """Of the store."""

    @property
    def reader(self) -> MvccReader:
        """Reads records of the snapshot."""
        return MvccReader(self.snapshot)

    def clamp(self, lower: bytes, upper: bytes) -> tuple[bytes, bytes]:
        """Return the part of an encoded range that lies in the Region; an empty `upper` is unbounded."""
        end = self.region.end_key
        return max(lower, self.region.start_key), min(upper, end) if upper and end else upper or end

    def check_keys(self, keys: Iterable[bytes]) -> None:
        """Refuse to read user keys that are not in the Region.

        Raises:
            MvccError: of the first of them.
        """
        for key in keys:
            if not self.region.contains(encode_key(key)):
                raise self._not_in_region(key)

    def _not_in_region(self, key: bytes) -> MvccError:
        return aborted(f"Other: key {key.hex().upper()} is not in region {self.region.id}")
