"""How raw pairs lie in the engine, one class per storage mode, and the context a raw action works in.

| mode | key | value |
|---|---|---|
| V1 | the key | the value |
| V1TTL | the key | value, 8 bytes big-endian: Unix second of expiry, 0 = never |
| V2 | memcomparable key, 8 bytes descending timestamp | value, [8 bytes expiry,] flags: 1 has expiry, 2 deleted |

In V2 the newest version of a key comes first and is the only one a raw request can read. A write therefore drops the
versions it replaces in the same batch; what stays of a deleted key is its tombstone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeAlias

from tikv_embedded import memcomparable
from tikv_embedded.engine import Snapshot, WriteBatch
from tikv_embedded.store.api_mode import ApiMode

_MAX_U64 = (1 << 64) - 1
_EXPIRY_SIZE = 8
_TIMESTAMP_SIZE = 8
_HAS_EXPIRY = 1
_DELETED = 2
_TOMBSTONE = bytes((_DELETED,))


class RawContext(NamedTuple):
    """What a raw action may know besides its request."""

    snapshot: Snapshot
    """The data, as of now."""
    mode: ApiMode
    """How the cluster stores keys and values."""
    now: float
    """Unix time in seconds; TTLs count from here, in whole seconds."""
    region_id: int
    """The Region the request is for."""
    region_start: bytes
    """First storage-encoded key of the Region: plain in V1 and V1TTL, memcomparable in V2."""
    region_end: bytes
    """Storage-encoded key behind the Region, empty = unbounded."""
    next_ts: Callable[[], int]
    """Gives a timestamp greater than every one before; V2 orders its versions by it, V1 and V1TTL never call it."""


RawEntry: TypeAlias = tuple[bytes, bytes, int]
"""What a put asks for: user key, user value, TTL in seconds (0 = never expires)."""
RawValue: TypeAlias = tuple[bytes, int]
"""A live pair's user value and the Unix second it expires in (0 = never)."""


class RawFormat(Protocol):
    """Reads and writes the raw pairs of one storage mode; expired pairs and tombstones are not there."""

    has_ttl: bool
    """Whether pairs can expire."""

    def bound(self, key: bytes) -> bytes:
        """Return the storage form of `key` as a bound of a range or Region."""
        ...

    def find(self, ctx: RawContext, cf: str, key: bytes) -> RawValue | None:
        """Return what is stored under the user key `key`."""
        ...

    def scan(
        self, ctx: RawContext, cf: str, lower: bytes, upper: bytes, *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield user keys and values of the storage-encoded range `[lower, upper)`, descending with `reverse`."""
        ...

    def put(self, ctx: RawContext, cf: str, entries: Iterable[RawEntry]) -> WriteBatch:
        """Return the batch that stores `entries`, the last one of equal keys winning."""
        ...

    def delete(self, ctx: RawContext, cf: str, keys: Iterable[bytes]) -> WriteBatch:
        """Return the batch that removes `keys`, present or not."""
        ...


class PlainFormat:
    """V1: keys and values as they are."""

    has_ttl = False

    def bound(self, key: bytes) -> bytes:
        """Return `key`."""
        return key

    def find(self, ctx: RawContext, cf: str, key: bytes) -> RawValue | None:
        """Return the value of `key`, which never expires."""
        value = ctx.snapshot.get(cf, key)
        return None if value is None else (value, 0)

    def scan(
        self, ctx: RawContext, cf: str, lower: bytes, upper: bytes, *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs of `[lower, upper)`."""
        return ctx.snapshot.scan(cf, lower, upper, reverse=reverse)

    def put(self, ctx: RawContext, cf: str, entries: Iterable[RawEntry]) -> WriteBatch:  # noqa: ARG002
        """Return the puts of `entries`; their TTL must be 0."""
        batch = WriteBatch()
        for key, value, _ in entries:
            batch.put(cf, key, value)
        return batch

    def delete(self, ctx: RawContext, cf: str, keys: Iterable[bytes]) -> WriteBatch:  # noqa: ARG002
        """Return the deletions of `keys`."""
        batch = WriteBatch()
        for key in keys:
            batch.delete(cf, key)
        return batch


class TtlFormat(PlainFormat):
    """V1TTL: plain keys, and values that end with their expiry."""

    has_ttl = True

    def find(self, ctx: RawContext, cf: str, key: bytes) -> RawValue | None:
        """Return the value of `key` unless it expired."""
        stored = ctx.snapshot.get(cf, key)
        return None if stored is None else _split_expiry(stored, int(ctx.now))

    def scan(
        self, ctx: RawContext, cf: str, lower: bytes, upper: bytes, *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs of `[lower, upper)` that did not expire."""
        now = int(ctx.now)
        for key, stored in ctx.snapshot.scan(cf, lower, upper, reverse=reverse):
            live = _split_expiry(stored, now)
            if live is not None:
                yield key, live[0]

    def put(self, ctx: RawContext, cf: str, entries: Iterable[RawEntry]) -> WriteBatch:
        """Return the puts of `entries`, expiring their TTL after now."""
        now = int(ctx.now)
        batch = WriteBatch()
        for key, value, ttl in entries:
            batch.put(cf, key, value + _expiry(now, ttl))
        return batch


class VersionedFormat:
    """V2: memcomparable keys with a descending timestamp, values with flags."""

    has_ttl = True

    def bound(self, key: bytes) -> bytes:
        """Return the memcomparable form of `key`, which sorts before all its versions."""
        return memcomparable.encode(key)

    def find(self, ctx: RawContext, cf: str, key: bytes) -> RawValue | None:
        """Return the newest version of `key` unless it expired or is a tombstone."""
        for _, stored in _versions(ctx, cf, memcomparable.encode(key)):
            return _decode(stored, int(ctx.now))
        return None

    def scan(
        self, ctx: RawContext, cf: str, lower: bytes, upper: bytes, *, reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the newest version of each key of `[lower, upper)` that is live."""
        now = int(ctx.now)
        stored_pairs = ctx.snapshot.scan(cf, lower, upper, reverse=reverse)
        for encoded, versions in itertools.groupby(stored_pairs, key=_without_timestamp):
            _, newest = next(versions)
            if reverse:  # The newest version sorts first, so going backwards it comes last.
                for _, newest in versions:  # noqa: B007
                    pass
            live = _decode(newest, now)
            if live is not None:
                yield memcomparable.decode(encoded)[0], live[0]

    def put(self, ctx: RawContext, cf: str, entries: Iterable[RawEntry]) -> WriteBatch:
        """Return the batch that writes `entries` as versions of one new timestamp, in place of all older ones."""
        now = int(ctx.now)
        return _replace(ctx, cf, ((key, _encode(value, now, ttl)) for key, value, ttl in entries))

    def delete(self, ctx: RawContext, cf: str, keys: Iterable[bytes]) -> WriteBatch:
        """Return the batch that writes tombstones of one new timestamp for `keys`, in place of all older versions."""
        return _replace(ctx, cf, ((key, _TOMBSTONE) for key in keys))


RAW_FORMATS: dict[ApiMode, RawFormat] = {
    ApiMode.V1: PlainFormat(),
    ApiMode.V1TTL: TtlFormat(),
    ApiMode.V2: VersionedFormat(),
}
"""The format of each storage mode."""


def _expiry(now: int, ttl: int) -> bytes:
    """Encode when a pair written now expires."""
    return min(now + ttl, _MAX_U64).to_bytes(_EXPIRY_SIZE, "big") if ttl else bytes(_EXPIRY_SIZE)


def _split_expiry(stored: bytes, now: int) -> RawValue | None:
    """Split a value from the expiry that follows it; None if it expired."""
    expire_ts = int.from_bytes(stored[-_EXPIRY_SIZE:], "big")
    if expire_ts and expire_ts <= now:
        return None
    return stored[:-_EXPIRY_SIZE], expire_ts


def _encode(value: bytes, now: int, ttl: int) -> bytes:
    """Encode a live value of V2."""
    return value + _expiry(now, ttl) + bytes((_HAS_EXPIRY,)) if ttl else value + b"\0"


def _decode(stored: bytes, now: int) -> RawValue | None:
    """Decode a value of V2; None if it expired or is a tombstone."""
    flags = stored[-1]
    if flags & _DELETED:
        return None
    if flags & _HAS_EXPIRY:
        return _split_expiry(stored[:-1], now)
    return stored[:-1], 0


def _without_timestamp(stored_pair: tuple[bytes, bytes]) -> bytes:
    return stored_pair[0][:-_TIMESTAMP_SIZE]


def _versions(ctx: RawContext, cf: str, encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the stored versions of a memcomparable key, the newest first."""
    # The last marker byte is below 0xFF, and no other key's encoding begins with this one.
    return ctx.snapshot.scan(cf, encoded, encoded[:-1] + bytes((encoded[-1] + 1,)))


def _replace(ctx: RawContext, cf: str, versions: Iterable[tuple[bytes, bytes]]) -> WriteBatch:
    """Return the batch that leaves of each key the given version alone, under one new timestamp."""
    suffix = (_MAX_U64 - ctx.next_ts()).to_bytes(_TIMESTAMP_SIZE, "big")
    batch = WriteBatch()
    for key, stored in versions:
        encoded = memcomparable.encode(key)
        for old, _ in _versions(ctx, cf, encoded):
            batch.delete(cf, old)
        batch.put(cf, encoded + suffix, stored)
    return batch
