"""What a test or an operator can do to PD beyond its RPCs: `EmbeddedCluster.pd`."""

from __future__ import annotations

from tikv_embedded.pd_state import PdState


class PdControls:
    """PD as the one who runs the cluster sees it. Changes show at once, on all members.

    Args:
        state: Of the running cluster.
    """

    def __init__(self, state: PdState) -> None:
        self._state = state

    @property
    def min_resolved_ts(self) -> int:
        """What the leading stores reported as resolved, the least of them; 0 until all of them did."""
        return self._state.marks.min_resolved

    def advance_clock(self, seconds: float) -> None:
        """Move PD's clock ahead for good: timestamps jump, GC barriers expire, token buckets fill.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"the clock does not go back: {seconds} s")
        self._state.clock.offset += seconds

    def compact(self) -> int:
        """Forget all past changes of meta storage and global config, and return the revision that is left.

        Watches from before it end with DATA_COMPACTED.
        """
        pairs = self._state.pairs
        if pairs.compact_revision < pairs.revision:
            pairs.compact(pairs.revision)
        return pairs.compact_revision
