"""What an engine promises.

Engines are used from one thread, and none of their methods awaits: between two awaits of the server nothing else
writes, so one step of its loop is atomic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from tikv_embedded.engine.write_batch import WriteBatch


class Snapshot(Protocol):
    """All column families as they were at one moment; later writes are not seen.

    Taking one is O(1). It costs something only if a write happens while it is open, so close it: use it as a context
    manager. A closed snapshot, and a scan of one, raises `RuntimeError` when read. An unknown column family is a
    `KeyError`.
    """

    def get(self, cf: str, key: bytes) -> bytes | None:
        """Return the value of `key`, or None if it is not there; an empty value is `b""`."""
        ...

    def multi_get(self, cf: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return one value or None per key, in the order of `keys`, which may repeat."""
        ...

    def scan(self, cf: str, lower: bytes, upper: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs of `[lower, upper)` in key order, lazily.

        An empty `upper` is unbounded; with `reverse` the same pairs come in descending order. The engine may be
        written to, and other scans may run, between two steps.
        """
        ...

    def close(self) -> None:
        """Let go of the view; harmless when repeated."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Engine(Protocol):
    """The one store of bytes below every virtual TiKV store and PD."""

    def snapshot(self) -> Snapshot:
        """Return a view of this moment over all column families."""
        ...

    def get(self, cf: str, key: bytes) -> bytes | None:
        """Return the newest value of `key`, or None if it is not there."""
        ...

    def write(self, batch: WriteBatch) -> None:
        """Apply `batch` over all its column families at once; on a durable engine it survives a crash from then on."""
        ...

    def close(self) -> None:
        """Release everything, open snapshots included; harmless when repeated."""
        ...
