"""TSO timestamps: a physical part in milliseconds and a logical part of 18 bits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import attrs

from tikv_pd.errors import ConfigError

LOGICAL_BITS: Final = 18
"""Bits of the logical part. Source: client-go oracle.go."""
LATEST: Final = (1 << 64) - 1
"""As the timestamp of a read: whatever is the latest."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@attrs.frozen(order=True)
class Timestamp:
    """A point in the cluster's order of events, granted by PD. Ordered by physical, then logical."""

    physical: int
    """Milliseconds since 1970-01-01 UTC by PD's clock."""
    logical: int
    """Position among the timestamps of the same millisecond, below 2**18."""

    @property
    def ts(self) -> int:
        """The composed 64-bit value that requests carry."""
        return self.physical << LOGICAL_BITS | self.logical

    @classmethod
    def from_ts(cls, ts: int) -> Timestamp:
        """Split a composed value.

        Raises:
            ConfigError: it does not fit into 64 bits.
        """
        if not 0 <= ts <= LATEST:
            raise ConfigError(f"a timestamp is between 0 and 2**64 - 1, got {ts}")
        return cls(ts >> LOGICAL_BITS, ts & (1 << LOGICAL_BITS) - 1)

    @classmethod
    def from_datetime(cls, moment: datetime) -> Timestamp:
        """Return the first timestamp of the millisecond `moment` lies in.

        Raises:
            ConfigError: `moment` has no time zone, or lies before 1970.
        """
        if moment.tzinfo is None:
            raise ConfigError("a timestamp needs a datetime with a time zone; add tzinfo=datetime.UTC")
        if moment < _EPOCH:
            raise ConfigError(f"timestamps begin with 1970, got {moment}")
        return cls((moment - _EPOCH) // timedelta(milliseconds=1), 0)

    def to_datetime(self) -> datetime:
        """Return the physical part as a datetime in UTC."""
        return _EPOCH + timedelta(milliseconds=self.physical)

    def until_expired(self, began: Timestamp, ttl_ms: int) -> float:
        """Return the seconds left, now that it is this timestamp, of what began at another with so long to live.

        Zero or below when its time is over. Source: client-go oracle UntilExpired, IsExpired.
        """
        return (began.physical + ttl_ms - self.physical) / 1000
