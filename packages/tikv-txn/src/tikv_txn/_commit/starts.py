"""Which start timestamps are taken: they are what stores know a transaction by."""

from __future__ import annotations

from typing import Final

from tikv_pd import ConfigError

_REMEMBERED: Final = 4096


class Starts:
    """The start timestamps with which transactions of one client have committed last, or tried to.

    Stores take two transactions with one start timestamp for one. They answer the second commit of a key as if the
    first one had been sent twice: with success, and without writing anything.
    """

    def __init__(self) -> None:
        self._taken: dict[int, None] = {}

    def take(self, start_ts: int) -> None:
        """Commit with a start timestamp.

        Raises:
            ConfigError: another transaction has.
        """
        if start_ts in self._taken:
            raise ConfigError(
                f"another transaction has committed with start_ts {start_ts}, or tried to; only reads can share one"
            )
        self._taken[start_ts] = None
        if len(self._taken) > _REMEMBERED:
            del self._taken[next(iter(self._taken))]
