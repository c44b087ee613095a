"""What a transaction wrote, as a commit sends it: mutations, the primary key, sizes, lifetimes. Pure.

Source: client-go txnkv/transaction/2pc.go, initKeysAndMutations and txnLockTTL.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from functools import cached_property
from typing import Final, NamedTuple

from tikv_txn._buffer import Assertion, Entry
from tikv_txn.config import TxnConfig

_TTL_PER_ROOT_OF_MIB: Final = 6.0
"""Seconds that the locks of a transaction of 1 MiB last; of larger ones by the root of their size."""


class Op(enum.IntEnum):
    """What becomes of a key. Source: kvrpcpb.Op, those of optimistic transactions."""

    PUT = 0
    """It is written."""
    DELETE = 1
    """It is removed."""
    LOCK = 2
    """It stays as it is, and nobody may have written it meanwhile."""
    INSERT = 4
    """It is written, and must not exist."""
    CHECK_NOT_EXISTS = 6
    """It must not exist. It is checked while the others are locked, and not locked itself."""


class Mutation(NamedTuple):
    """What becomes of one key."""

    op: Op
    """What."""
    key: bytes
    """The key."""
    value: bytes
    """Its value, if it is written."""
    assertion: Assertion
    """What the store is to check of it."""


class Mutations:
    """All that a transaction does, in the order of keys. The others know a mutation by its position.

    Args:
        entries: What the transaction buffered, in the order of keys.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.all: list[Mutation] = [mutation for mutation in map(_mutation, entries) if mutation is not None]
        """The mutations; may be empty."""
        self.keys = [mutation.key for mutation in self.all]
        """Their keys."""
        self.locking = [
            position for position, mutation in enumerate(self.all) if mutation.op is not Op.CHECK_NOT_EXISTS
        ]
        """Positions of those that lock their key, and are committed."""

    def __len__(self) -> int:
        return len(self.all)

    @property
    def primary(self) -> int:
        """Position of the one whose lock decides: the first that locks its key, else the first of all."""
        return self.locking[0] if self.locking else 0

    @property
    def has_checks(self) -> bool:
        """Whether there are some that do not lock their key."""
        return len(self.locking) < len(self.all)

    @cached_property
    def size(self) -> int:
        """Bytes of all keys and values."""
        return sum(map(size_of, self.all))

    @property
    def may_commit_at_once(self) -> bool:
        """Whether one request may commit it.

        A key that is only checked keeps no trace of that. When it is written afterwards, and the request is sent again
        because its answer was lost, the store takes that for a conflict, and does not look whether the other keys are
        committed. client-go takes that chance.
        """
        return bool(self.locking) and not self.has_checks

    def may_commit_async(self, config: TxnConfig) -> bool:
        """Tell whether few and small enough keys are written that the primary lock can name them all.

        Keys that are only checked are named by no lock: while the check fails, others could find all locks in place
        and take the transaction for committed. client-go takes that chance.
        """
        if self.has_checks or len(self.all) > config.async_commit_keys:
            return False
        return sum(map(len, self.keys)) <= config.async_commit_key_bytes

    def lock_ttl(self, elapsed: float, config: TxnConfig) -> float:
        """Return the seconds after the transaction's start that its locks last, if it began `elapsed` seconds ago."""
        ttl = config.lock_ttl
        if self.size >= config.commit_batch_bytes:
            grown = _TTL_PER_ROOT_OF_MIB * math.sqrt(self.size / (1 << 20))
            ttl = max(min(grown, config.managed_lock_ttl), ttl)
        return ttl + elapsed


def size_of(mutation: Mutation) -> int:
    """Return what a mutation adds to the size of a transaction, in bytes."""
    return len(mutation.key) + len(mutation.value)


def _mutation(entry: Entry) -> Mutation | None:
    """Return what becomes of a key, None when nothing does."""
    if entry.is_deleted:
        op = Op.CHECK_NOT_EXISTS if entry.must_not_exist else Op.DELETE
    elif entry.value is not None:
        op = Op.INSERT if entry.must_not_exist else Op.PUT
    elif entry.is_locked:
        op = Op.LOCK
    else:
        return None
    return Mutation(op, entry.key, entry.value or b"", entry.assertion)
