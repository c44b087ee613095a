"""Write records: what became of a transaction on a key, in the column family `write`.

    type, varint start_ts, then where they have a value, in this order:
    "v" length (1 byte) short value | "R" overlapped rollback | "F" 8 bytes gc fence
    | "l" 8 bytes last change, varint versions up to it | "S" varint source of the transaction

A reader stops at the first byte it does not know. Source: TiKV components/txn_types/src/write.rs.
"""

from __future__ import annotations

import enum
from typing import NamedTuple, Self

import attrs

from tikv_embedded.mvcc.numbers import RecordReader, encode_u64, encode_var_u64

SHORT_VALUE_MAX_SIZE = 255
"""Longest value in bytes that lock and write records carry themselves; longer ones lie in `default`."""
PROTECTED = b"p"
"""The short value of a rollback that must not be collapsed."""

_SHORT_VALUE = ord("v")
_OVERLAPPED_ROLLBACK = ord("R")
_GC_FENCE = ord("F")
_LAST_CHANGE = ord("l")
_TXN_SOURCE = ord("S")


class WriteType(enum.Enum):
    """What a transaction did to a key; values are the first bytes of records."""

    PUT = ord("P")
    DELETE = ord("D")
    LOCK = ord("L")
    """The key was locked and not changed."""
    ROLLBACK = ord("R")

    @property
    def is_change(self) -> bool:
        """Whether readers stop here: a value was put or deleted."""
        return self is WriteType.PUT or self is WriteType.DELETE


class LastChange(NamedTuple):
    """Where the newest PUT or DELETE lies below a record that is neither."""

    ts: int = 0
    """Its commit timestamp."""
    versions: int = 0
    """About how many versions further down it is."""


UNKNOWN_CHANGE = LastChange()
"""It has to be looked for."""
NO_CHANGE = LastChange(0, 1)
"""There is none, or it is a DELETE."""


@attrs.frozen
class Write:
    """One write record."""

    type: WriteType
    start_ts: int
    short_value: bytes | None = None
    """The value if it is short; `PROTECTED` for a rollback that stays."""
    has_overlapped_rollback: bool = False
    """Whether a transaction that started at this record's commit timestamp was rolled back here."""
    gc_fence: int | None = None
    """Given with that flag: the commit timestamp of the next newer change, 0 when there was none.

    A replica may get the rewritten record after that newer one was removed as garbage; the fence tells that this one
    was outdated then.
    """
    last_change: LastChange = UNKNOWN_CHANGE
    txn_source: int = 0

    @classmethod
    def rollback(cls, start_ts: int, *, protected: bool) -> Self:
        """Return the record of a rollback."""
        return cls(WriteType.ROLLBACK, start_ts, PROTECTED if protected else None)

    @property
    def is_protected(self) -> bool:
        """Whether it is a rollback that must not be collapsed."""
        return self.type is WriteType.ROLLBACK and self.short_value == PROTECTED

    def is_outdated(self, read_ts: int) -> bool:
        """Whether it must not be seen at `read_ts` although it is the newest record up to then."""
        return self.gc_fence is not None and 0 < self.gc_fence <= read_ts

    def to_bytes(self) -> bytes:
        """Return the record as TiKV writes it."""
        parts = [bytes((self.type.value,)), encode_var_u64(self.start_ts)]
        if self.short_value is not None:
            parts.append(bytes((_SHORT_VALUE, len(self.short_value))) + self.short_value)
        if self.has_overlapped_rollback:
            parts.append(bytes((_OVERLAPPED_ROLLBACK,)))
        if self.gc_fence is not None:
            parts.append(bytes((_GC_FENCE,)) + encode_u64(self.gc_fence))
        if self.last_change != UNKNOWN_CHANGE:
            ts, versions = self.last_change
            parts.append(bytes((_LAST_CHANGE,)) + encode_u64(ts) + encode_var_u64(versions))
        if self.txn_source:
            parts.append(bytes((_TXN_SOURCE,)) + encode_var_u64(self.txn_source))
        return b"".join(parts)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return the record in `data`.

        Raises:
            ValueError: it is none.
        """
        record = RecordReader(data)
        write_type, start_ts = WriteType(record.byte()), record.var_u64()
        short_value: bytes | None = None
        has_overlapped_rollback = False
        gc_fence: int | None = None
        last_change, txn_source = UNKNOWN_CHANGE, 0
        while record:
            field = record.byte()
            if field == _SHORT_VALUE:
                short_value = record.take(record.byte())
            elif field == _OVERLAPPED_ROLLBACK:
                has_overlapped_rollback = True
            elif field == _GC_FENCE:
                gc_fence = record.u64()
            elif field == _LAST_CHANGE:
                last_change = LastChange(record.u64(), record.var_u64())
            elif field == _TXN_SOURCE:
                txn_source = record.var_u64()
            else:
                break
        return cls(write_type, start_ts, short_value, has_overlapped_rollback, gc_fence, last_change, txn_source)
