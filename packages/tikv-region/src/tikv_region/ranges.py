"""Ranges of keys."""

from __future__ import annotations

from collections.abc import Iterable

import attrs


@attrs.frozen
class KeyRange:
    """The keys from `start`, inclusive, to `end`, exclusive. An empty `end` is unbounded.

    Every range of this SDK is meant this way.
    """

    start: bytes = b""
    """First key; empty for the first key of all."""
    end: bytes = b""
    """First key after the range; empty for no end."""

    @property
    def is_empty(self) -> bool:
        """Whether no key is in it."""
        return bool(self.end) and self.end <= self.start

    def contains(self, key: bytes) -> bool:
        """Tell whether `key` is in the range."""
        return self.start <= key and (not self.end or key < self.end)

    def overlaps(self, other: KeyRange) -> bool:
        """Tell whether some key is in both."""
        return not self.intersect(other).is_empty

    def intersect(self, other: KeyRange) -> KeyRange:
        """Return the keys in both; `is_empty` when there are none."""
        ends = [end for end in (self.end, other.end) if end]
        return KeyRange(max(self.start, other.start), min(ends, default=b""))

    def clip(self, within: KeyRange) -> KeyRange | None:
        """Return the part of this range that lies in `within`, None when nothing does."""
        part = self.intersect(within)
        return None if part.is_empty else part


def ranges_from(ranges: Iterable[KeyRange], start: bytes) -> list[KeyRange]:
    """Return what lies at or above `start` of some ranges."""
    beyond = KeyRange(start)
    return [part for part in (known.clip(beyond) for known in ranges) if part is not None]


def gaps(wanted: Iterable[KeyRange], held: Iterable[KeyRange]) -> list[KeyRange]:
    """Return the parts of `wanted` that lie in none of `held`; both ascend without overlaps, and so do the parts."""
    parts = []
    pieces = iter(held)
    piece = next(pieces, None)
    for key_range in wanted:
        at = key_range.start
        while piece is not None and (not key_range.end or piece.start < key_range.end):
            if at < piece.start:
                parts.append(KeyRange(at, piece.start))
            if not piece.end or (key_range.end and key_range.end <= piece.end):
                # It may hold the ranges that follow as well.
                break
            at = max(at, piece.end)
            piece = next(pieces, None)
        else:
            rest = KeyRange(at, key_range.end)
            if not rest.is_empty:
                parts.append(rest)
    return parts


def prefix_range(prefix: bytes) -> KeyRange:
    """Return the range of all keys that begin with `prefix`.

    It has no end when the prefix is empty or all 0xFF: then no key is above those that begin with it.
    """
    stem = prefix.rstrip(b"\xff")
    return KeyRange(prefix, stem[:-1] + bytes([stem[-1] + 1]) if stem else b"")
