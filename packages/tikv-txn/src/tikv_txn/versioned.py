"""A value together with when it was written."""

from __future__ import annotations

import attrs


@attrs.frozen
class Versioned:
    """A value, and when it was written."""

    value: bytes
    """The value."""
    commit_ts: int
    """Commit timestamp of the transaction that wrote it, composed."""
