"""Locks: what a transaction that has not ended holds on a key, in the column family `lock`.

    type, string primary, varint start_ts, varint ttl, then where they have a value, in this order:
    "v" length (1 byte) short value | "f" 8 bytes for_update_ts | "t" 8 bytes txn_size | "c" 8 bytes min_commit_ts
    | "a" varint count, strings secondaries | "r" varint count, 8 bytes each rollback_ts
    | "l" 8 bytes last change, varint versions | "s" varint source | "F" locked with conflict | "g" 8 bytes generation

Source: TiKV components/txn_types/src/lock.rs.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Self

import attrs
from tikv_proto import kvrpcpb

from tikv_embedded.mvcc.keys import physical_ms
from tikv_embedded.mvcc.numbers import RecordReader, encode_compact_bytes, encode_u64, encode_var_u64
from tikv_embedded.mvcc.write import UNKNOWN_CHANGE, LastChange, WriteType

_SHORT_VALUE = ord("v")
_FOR_UPDATE_TS = ord("f")
_TXN_SIZE = ord("t")
_MIN_COMMIT_TS = ord("c")
_ASYNC_COMMIT = ord("a")
_ROLLBACK_TS = ord("r")
_LAST_CHANGE = ord("l")
_TXN_SOURCE = ord("s")
_LOCKED_WITH_CONFLICT = ord("F")
_GENERATION = ord("g")


class LockType(enum.Enum):
    """What the transaction means to do; values are the first bytes of records."""

    PUT = ord("P")
    DELETE = ord("D")
    LOCK = ord("L")
    PESSIMISTIC = ord("S")
    """Nothing yet: the key was locked before the transaction was prewritten."""


_OPS = {
    LockType.PUT: kvrpcpb.Op.Put,
    LockType.DELETE: kvrpcpb.Op.Del,
    LockType.LOCK: kvrpcpb.Op.Lock,
    LockType.PESSIMISTIC: kvrpcpb.Op.PessimisticLock,
}
_WRITE_TYPES = {
    LockType.PUT: WriteType.PUT,
    LockType.DELETE: WriteType.DELETE,
    LockType.LOCK: WriteType.LOCK,
}


@attrs.frozen
class Lock:
    """One lock; `start_ts` says whose it is."""

    type: LockType
    primary: bytes
    """User key of the lock that decides over the transaction."""
    start_ts: int
    ttl: int
    """Milliseconds from the physical time of `start_ts`."""
    short_value: bytes | None = None
    for_update_ts: int = 0
    """Not 0 in pessimistic transactions."""
    txn_size: int = 0
    min_commit_ts: int = 0
    """The transaction cannot commit before; readers up to here may pass."""
    use_async_commit: bool = False
    secondaries: tuple[bytes, ...] = ()
    """In the primary lock of an async commit: all other keys."""
    rollback_ts: tuple[int, ...] = ()
    """Starts of other transactions that were rolled back here and might coincide with the commit of this one."""
    last_change: LastChange = UNKNOWN_CHANGE
    txn_source: int = 0
    is_locked_with_conflict: bool = False
    generation: int = 0
    """Not 0 in pipelined transactions."""

    @property
    def is_pessimistic(self) -> bool:
        """Whether it was not prewritten yet."""
        return self.type is LockType.PESSIMISTIC

    @property
    def op(self) -> kvrpcpb.Op.ValueType:
        """What kvrpcpb calls its type."""
        return _OPS[self.type]

    @property
    def write_type(self) -> WriteType:
        """What the record of its commit says; a pessimistic lock has none."""
        return _WRITE_TYPES[self.type]

    def is_expired(self, current_ts: int) -> bool:
        """Whether its time was over before `current_ts`."""
        return physical_ms(self.start_ts) + self.ttl < physical_ms(current_ts)

    def to_info(self, key: bytes) -> kvrpcpb.LockInfo:
        """Return what clients are told of the lock on the user key `key`."""
        return kvrpcpb.LockInfo(
            primary_lock=self.primary,
            lock_version=self.start_ts,
            key=key,
            lock_ttl=self.ttl,
            txn_size=self.txn_size,
            lock_type=self.op,
            lock_for_update_ts=self.for_update_ts,
            use_async_commit=self.use_async_commit,
            min_commit_ts=self.min_commit_ts,
            secondaries=self.secondaries,
        )

    def to_bytes(self) -> bytes:
        """Return the record as TiKV writes it."""
        parts = [
            bytes((self.type.value,)),
            encode_compact_bytes(self.primary),
            encode_var_u64(self.start_ts),
            encode_var_u64(self.ttl),
        ]
        if self.short_value is not None:
            parts.append(bytes((_SHORT_VALUE, len(self.short_value))) + self.short_value)
        for field, number in (
            (_FOR_UPDATE_TS, self.for_update_ts),
            (_TXN_SIZE, self.txn_size),
            (_MIN_COMMIT_TS, self.min_commit_ts),
        ):
            if number:
                parts.append(bytes((field,)) + encode_u64(number))
        if self.use_async_commit:
            parts.append(bytes((_ASYNC_COMMIT,)) + encode_var_u64(len(self.secondaries)))
            parts.extend(map(encode_compact_bytes, self.secondaries))
        if self.rollback_ts:
            parts.append(bytes((_ROLLBACK_TS,)) + encode_var_u64(len(self.rollback_ts)))
            parts.extend(map(encode_u64, self.rollback_ts))
        if self.last_change != UNKNOWN_CHANGE:
            ts, versions = self.last_change
            parts.append(bytes((_LAST_CHANGE,)) + encode_u64(ts) + encode_var_u64(versions))
        if self.txn_source:
            parts.append(bytes((_TXN_SOURCE,)) + encode_var_u64(self.txn_source))
        if self.is_locked_with_conflict:
            parts.append(bytes((_LOCKED_WITH_CONFLICT,)))
        if self.generation:
            parts.append(bytes((_GENERATION,)) + encode_u64(self.generation))
        return b"".join(parts)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return the lock in `data`.

        Raises:
            ValueError: it is none, or a set of shared locks.
        """
        record = RecordReader(data)
        lock_type, primary, start_ts = LockType(record.byte()), record.compact_bytes(), record.var_u64()
        ttl = record.var_u64() if record else 0
        fields: dict[str, Any] = {}
        while record and (read := _READERS.get(record.byte())):
            fields.update(read(record))
        return cls(lock_type, primary, start_ts, ttl, **fields)


def _read_async_commit(record: RecordReader) -> dict[str, Any]:
    return {
        "use_async_commit": True,
        "secondaries": tuple(record.compact_bytes() for _ in range(record.var_u64())),
    }


_READERS: dict[int, Callable[[RecordReader], dict[str, Any]]] = {
    _SHORT_VALUE: lambda record: {"short_value": record.take(record.byte())},
    _FOR_UPDATE_TS: lambda record: {"for_update_ts": record.u64()},
    _TXN_SIZE: lambda record: {"txn_size": record.u64()},
    _MIN_COMMIT_TS: lambda record: {"min_commit_ts": record.u64()},
    _ASYNC_COMMIT: _read_async_commit,
    _ROLLBACK_TS: lambda record: {"rollback_ts": tuple(record.u64() for _ in range(record.var_u64()))},
    _LAST_CHANGE: lambda record: {"last_change": LastChange(record.u64(), record.var_u64())},
    _TXN_SOURCE: lambda record: {"txn_source": record.var_u64()},
    _LOCKED_WITH_CONFLICT: lambda _record: {"is_locked_with_conflict": True},
    _GENERATION: lambda record: {"generation": record.u64()},
}
