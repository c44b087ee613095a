"""What a transaction writes, kept in key order until it commits. Pure: nothing here waits or sends.

Every change of a key replaces its `Entry`. While marks are open, the entry that a key had before is kept by the
innermost of them, once: rolling back puts those entries back, releasing leaves them to the mark around.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import attrs
from sortedcontainers import SortedDict
from tikv_pd import TikvError
from tikv_region import KeyCodec, KeyRange, Redaction, redact

from tikv_txn.errors import AlreadyExists, KeyTooLarge, TransactionTooLarge, ValueTooLarge


class Assertion(enum.Enum):
    """What a transaction says about a key as it was before. Source: kvrpcpb.Assertion."""

    NONE = 0
    """Nothing."""
    EXIST = 1
    """It exists."""
    NOT_EXIST = 2
    """It does not."""


class Entry(NamedTuple):
    """What a transaction has to do with one key."""

    key: bytes
    """The key."""
    value: bytes | None = None
    """The value to store, also an empty one; None when there is none."""
    is_deleted: bool = False
    """Whether the key is to be removed."""
    must_not_exist: bool = False
    """Whether the commit fails when the key exists, because it was inserted; also when it was deleted afterwards."""
    is_locked: bool = False
    """Whether the commit fails when others write the key meanwhile, although nothing is stored."""
    assertion: Assertion = Assertion.NONE
    """What the store is to check of it."""

    @property
    def size(self) -> int:
        """Bytes of key and value."""
        return len(self.key) + (0 if self.value is None else len(self.value))

    @property
    def is_written(self) -> bool:
        """Whether what the transaction reads of the key is its own."""
        return self.is_deleted or self.value is not None


@attrs.frozen
class Limits:
    """How much a transaction may write, in bytes."""

    key: int
    """Of a key, with what the codec puts before it."""
    key_prefix: int
    """Of what the codec puts before each key."""
    entry: int
    """Of a key and its value."""
    total: int
    """Of all keys and values."""
    redaction: Redaction = "off"
    """How keys print in the errors of writes that are refused."""

    @classmethod
    def of(cls, codec: KeyCodec, stored_key: int, entry: int, total: int, redaction: Redaction) -> Limits:
        """Return limits where stores take keys of `stored_key` bytes in the form in which they keep them.

        That form has 9 bytes for each 8, the last of which are padded and never full.
        """
        return cls(stored_key // 9 * 8 - 1, len(codec.encode_key(b"")), entry, total, redaction)

    def refused(self, error: TikvError) -> TikvError:
        """Return the error of a write, to be raised."""
        redact(error, self.redaction)
        return error


class Mark:
    """The entries that changed since a moment, as they were then."""

    __slots__ = ("before",)

    def __init__(self) -> None:
        self.before: dict[bytes, Entry | None] = {}
        """None for a key of which there was nothing."""


class Buffer:
    """The writes of a transaction.

    Args:
        limits: Checked before each write: one that exceeds them leaves everything as it was.
    """

    def __init__(self, limits: Limits) -> None:
        self.size = 0
        """Bytes of all keys and values."""
        self._limits: Final = limits
        self._entries: SortedDict[bytes, Entry] = SortedDict()
        self._marks: list[Mark] = []

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Entry | None:
        """Return what there is of a key; see `Entry.is_written`."""
        return self._entries.get(key)

    def entries(self) -> Iterator[Entry]:
        """Return all entries in key order. The buffer must not change meanwhile."""
        return iter(self._entries.values())

    def put(self, key: bytes, value: bytes) -> None:
        """Store a value.

        Raises:
            KeyTooLarge, ValueTooLarge, TransactionTooLarge: nothing has changed.
        """
        self._replace(self._known(key)._replace(value=value, is_deleted=False))

    def insert(self, key: bytes, value: bytes) -> None:
        """Store a value under a key that must not exist.

        Raises:
            AlreadyExists: the transaction has stored a value itself.
            KeyTooLarge, ValueTooLarge, TransactionTooLarge: nothing has changed.
        """
        known = self._known(key)
        if known.value is not None:
            raise self._limits.refused(AlreadyExists(key))
        # A key that the transaction has deleted does not exist for it, whatever it was before.
        must_not_exist = known.must_not_exist or not known.is_deleted
        self._replace(known._replace(value=value, is_deleted=False, must_not_exist=must_not_exist))

    def delete(self, key: bytes) -> None:
        """Remove a key, whether or not it exists.

        Raises:
            KeyTooLarge, TransactionTooLarge: nothing has changed.
        """
        self._replace(self._known(key)._replace(value=None, is_deleted=True))

    def lock(self, key: bytes) -> None:
        """Have the commit fail when others write the key meanwhile.

        Raises:
            KeyTooLarge, TransactionTooLarge: nothing has changed.
        """
        self._replace(self._known(key)._replace(is_locked=True))

    def assert_that(self, key: bytes, assertion: Assertion) -> None:
        """Have the store check a key as it was before the transaction, in place of what it was to check so far.

        A key that is not written is locked, as stores check only what a commit touches.

        Raises:
            KeyTooLarge, TransactionTooLarge: nothing has changed.
        """
        self._replace(self._known(key)._replace(is_locked=True, assertion=assertion))

    def mark(self) -> Mark:
        """Return a mark of what is written now, within all that are open."""
        mark = Mark()
        self._marks.append(mark)
        return mark

    def is_open(self, mark: Mark) -> bool:
        """Tell whether a mark can still be released or rolled back to."""
        return any(one is mark for one in self._marks)

    def release(self, mark: Mark) -> None:
        """End an open mark and those within it; what was written since stays."""
        for inner in self._end(mark):
            if self._marks:
                around = self._marks[-1].before
                for key, entry in inner.before.items():
                    around.setdefault(key, entry)

    def roll_back(self, mark: Mark) -> None:
        """End an open mark and those within it; all is as it was when it was made."""
        for inner in reversed(self._end(mark)):
            for key, entry in inner.before.items():
                self._restore(key, entry)

    def written(self, start: bytes, end: bytes, *, reverse: bool) -> Entry | None:
        """Return the first entry of a range that is written; with `reverse` the last one."""
        entries = self._entries
        if not entries:
            return None
        first = entries.bisect_left(start)
        after = entries.bisect_left(end) if end else len(entries)
        values = entries.values()
        for index in range(after - 1, first - 1, -1) if reverse else range(first, after):
            if values[index].is_written:
                return values[index]
        return None

    def deletions(self, key_range: KeyRange, at_most: int) -> int:
        """Count the keys of a range that are deleted, up to a number."""
        found = 0
        for key in self._entries.irange(key_range.start, key_range.end or None, inclusive=(True, False)):
            if self._entries[key].is_deleted:
                found += 1
                if found == at_most:
                    break
        return found

    def _known(self, key: bytes) -> Entry:
        return self._entries.get(key) or Entry(key)

    def _replace(self, entry: Entry) -> None:
        limits, key = self._limits, entry.key
        old = self._entries.get(key)
        if old is None and len(key) + limits.key_prefix > limits.key:
            raise limits.refused(KeyTooLarge(key, len(key) + limits.key_prefix, limits.key))
        if entry.size > limits.entry:
            raise limits.refused(ValueTooLarge(key, entry.size, limits.entry))
        size = self.size + entry.size - (0 if old is None else old.size)
        if size > limits.total:
            raise TransactionTooLarge(size, limits.total)
        if self._marks:
            self._marks[-1].before.setdefault(key, old)
        self._entries[key] = entry
        self.size = size

    def _restore(self, key: bytes, entry: Entry | None) -> None:
        self.size -= self._entries.pop(key).size
        if entry is not None:
            self._entries[key] = entry
            self.size += entry.size

    def _end(self, mark: Mark) -> list[Mark]:
        """Take a mark and those within it away; return them, the outermost first."""
        index = next(index for index, one in enumerate(self._marks) if one is mark)
        ended, self._marks = self._marks[index:], self._marks[:index]
        return ended


class Merge:
    """The pairs of a range as a transaction reads them: those of its snapshot, with its own writes in their place.

    The snapshot's pairs are fed page by page, in the order of the scan. The buffer may change meanwhile: what is
    written ahead of the pair returned last is seen, what is written behind it is not.

    Args:
        buffer: The own writes.
        key_range: What is scanned.
        reverse: Whether it is scanned from its end.
    """

    def __init__(self, buffer: Buffer, key_range: KeyRange, *, reverse: bool) -> None:
        self._buffer = buffer
        self._reverse = reverse
        # What is ahead: taken apart, as it changes with each pair.
        self._start, self._end = key_range.start, key_range.end
        self._is_through = False
        self._pairs: Iterator[tuple[bytes, bytes]] = iter(())
        self._pair: tuple[bytes, bytes] | None = None
        self._is_last = False

    @property
    def is_hungry(self) -> bool:
        """Whether the next page of the snapshot is needed before `take` can tell what is next."""
        return self._pair is None and not self._is_last and not self._is_through

    @property
    def rest(self) -> KeyRange | None:
        """The keys that are still ahead; None when there can be none."""
        return None if self._is_through else KeyRange(self._start, self._end)

    def feed(self, pairs: Iterable[tuple[bytes, bytes]], *, is_last: bool) -> None:
        """Take the next page of the snapshot; to be called only when it is hungry."""
        self._pairs = iter(pairs)
        self._is_last = is_last
        self._pair = next(self._pairs, None)

    def take(self) -> tuple[bytes, bytes] | None:
        """Return the next pair; None when the range is through, or `is_hungry`."""
        while not self._is_through and (self._pair is not None or self._is_last):
            entry = self._buffer.written(self._start, self._end, reverse=self._reverse)
            pair = self._pair
            if entry is None and pair is None:
                return None
            if entry is None or (pair is not None and self._is_before(pair[0], entry.key)):
                assert pair is not None
                self._advance(pair[0])
                return pair
            self._advance(entry.key)
            if entry.value is not None:
                return entry.key, entry.value
        return None

    def _is_before(self, key: bytes, other: bytes) -> bool:
        return key > other if self._reverse else key < other

    def _advance(self, key: bytes) -> None:
        """Go past a key."""
        if self._reverse:
            self._end = key
            # As the end of a range, the empty key would stand for no end.
            self._is_through = not key
        else:
            self._start = key + b"\0"
        if self._pair is not None and not self._is_before(key, self._pair[0]):
            self._pair = next(self._pairs, None)
