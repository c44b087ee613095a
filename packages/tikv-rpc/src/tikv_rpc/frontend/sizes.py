"""How many pairs to ask for so that an answer has about so many bytes: requests can only name a number of pairs."""

from __future__ import annotations

from typing import Final

_AT_FIRST: Final = 64.0 * 1024
"""Bytes a pair is taken for before any was seen. Of values of 7 MiB, the largest, it allows 64 in a page of 4 MiB."""
_ENOUGH: Final = 64
"""Pairs that say as much about the others as more of them would."""


class PairSizes:
    """A guess at the size of the next pairs, from those of answers. It rises at once and falls by half at most."""

    def __init__(self) -> None:
        self.guess = _AT_FIRST
        """Bytes of one pair."""

    def learn(self, pairs: int, size: int) -> None:
        """Take an answer into account: so many pairs in so many bytes."""
        if not pairs:
            return
        mean = size / pairs
        if mean < self.guess:
            mean = self.guess - (self.guess - mean) * min(pairs, _ENOUGH) / (2 * _ENOUGH)
        self.guess = mean

    def fit(self, max_pairs: int, max_bytes: int, *, key_only: bool = False) -> int:
        """Return how many pairs to ask for, at least one; keys without their values are taken for small."""
        return max_pairs if key_only else max(min(max_pairs, int(max_bytes / self.guess)), 1)
