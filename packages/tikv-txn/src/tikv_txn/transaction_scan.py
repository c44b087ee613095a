"""What `Transaction.scan` returns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import cached_property
from types import TracebackType
from typing import Self

import anyio
from tikv_region import KeyRange
from tikv_rpc.frontend.paging import PagedScan

from tikv_txn._buffer import Buffer, Merge

Open = Callable[[KeyRange, int | None], PagedScan]
"""Scans the snapshot: a range, so many pairs at most."""


class TransactionScan(AsyncIterator[tuple[bytes, bytes]]):
    """The (key, value) pairs of a range as a transaction sees them, fetched page by page as they are consumed.

    Those of its snapshot, with the transaction's own writes in their place. It may write while it scans: what it writes
    ahead of the pair returned last is seen, what it writes behind is not. Several tasks may iterate over one scan: each
    pair goes to one of them.

    Breaking out of the loop leaves nothing behind but at most one page that is fetched and dropped; `aclose`, or
    `async with`, ends that at once, too.

    Raises, while iterating:
        TransactionEnded: the transaction has ended meanwhile.
        DeadlineExceeded: a page did not come within the scan's `timeout`. Iterating on tries again from there.
        The other errors of `Snapshot.scan`.

    Cancellation: safe. Iterating on afterwards continues with the pair after the last one returned.
    """

    def __init__(
        self,
        buffer: Callable[[], Buffer],
        open_scan: Open,
        key_range: KeyRange,
        *,
        limit: int | None,
        reverse: bool,
        key_only: bool,
    ) -> None:
        self._buffer = buffer
        self._open = open_scan
        self._merge = Merge(buffer(), key_range, reverse=reverse)
        self._left = limit
        self._key_only = key_only
        self._scan: PagedScan | None = None
        self._asked: int | None = None
        self._page: list[tuple[bytes, bytes]] | None = None
        self._is_closed = key_range.is_empty

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[bytes, bytes]:
        while True:
            pair = self._take()
            if pair is not None:
                return pair
            if not self._needs_page:
                await self.aclose()
                raise StopAsyncIteration
            async with self._turning:
                if self._needs_page:  # No other task turned the page meanwhile.
                    await self._fetch_page(self._opened())
                    self._turn_page()

    async def aclose(self) -> None:
        """End the scan: nothing is fetched any more, iterating ends, also for a task that waits for a pair now."""
        scan = self._end()
        if scan is not None:
            await scan.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _end(self) -> PagedScan | None:
        """End it, and return what else has to be closed."""
        self._is_closed = True
        self._page = None
        scan, self._scan = self._scan, None
        return scan

    @cached_property
    def _turning(self) -> anyio.Lock:
        # Made where it is used, as that of a snapshot's scan.
        return anyio.Lock(fast_acquire=True)

    @property
    def _needs_page(self) -> bool:
        return not self._is_closed and self._left != 0 and self._merge.is_hungry

    def _take(self) -> tuple[bytes, bytes] | None:
        """Return the next pair if it is at hand."""
        if self._is_closed or self._left == 0:
            return None
        self._buffer()  # Raises when the transaction has ended.
        pair = self._merge.take()
        if pair is None:
            return None
        if self._left is not None:
            self._left -= 1
        return (pair[0], b"") if self._key_only else pair

    # A page is turned in three steps. The first and the last touch what the transaction writes, and belong to the
    # thread that does; the second waits, in the event loop's. What it fetched stays at hand if it is interrupted.

    def _opened(self) -> PagedScan:
        """Return the scan of the snapshot's rest."""
        scan = self._scan
        if scan is None:
            key_range = self._merge.rest
            assert key_range is not None
            if self._left is not None:
                # Each key that the transaction deleted may hide one of the snapshot's pairs.
                self._asked = self._left + self._buffer().deletions(key_range, self._left)
            scan = self._scan = self._open(key_range, self._asked)
        return scan

    async def _fetch_page(self, scan: PagedScan) -> None:
        """Have the snapshot's next page at hand, an empty one at the end."""
        if self._page is None:
            page = await scan._take_page()
            if self._scan is scan:  # Else it was closed meanwhile.
                self._page = page

    def _turn_page(self) -> None:
        """Feed the merge with the page at hand, if there is one."""
        page, self._page = self._page, None
        if page is None:
            return
        if page:
            if self._asked is not None:
                self._asked -= len(page)
            self._merge.feed(page, is_last=False)
            return
        self._scan = None  # It has ended.
        if self._asked != 0:
            self._merge.feed((), is_last=True)
        # Else more was deleted since: those asked for were not enough.
