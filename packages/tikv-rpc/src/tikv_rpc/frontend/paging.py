"""Scans as lazy iterators: one page at hand, the next one on its way.

A page is asked for before the one before it is read: whoever consumes pairs that are at hand lets no other task run.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cached_property
from types import TracebackType
from typing import Final, Self, TypeAlias

import anyio
import attrs
from tikv_pd import ClosedError, DeadlineExceeded, TikvError
from tikv_region import KeyRange

from tikv_rpc.client import RpcClient
from tikv_rpc.frontend.turns import until_sent

_FIRST: Final = 256
"""Pairs in the first page of a scan at most: they tell how large the others are, and may be much larger than those of
scans before. Client-go asks for as many unless it is told otherwise."""
_LESS: Final = 4
"""How many times less is asked for after a page that took too long."""


@attrs.frozen
class Page:
    """A stretch of a scan."""

    count: int
    """How many pairs it has."""
    rest: KeyRange | None
    """What remains of the range after it; None when nothing does."""
    pairs: Callable[[], list[tuple[bytes, bytes]]]
    """Returns its pairs, in the order of the scan; raises what the store refused in place of one."""

    @classmethod
    def of(cls, pairs: list[tuple[bytes, bytes]], rest: KeyRange | None) -> Self:
        """Return the page that has these pairs."""
        return cls(len(pairs), rest, lambda: pairs)


def scan_bounds(encoded: tuple[bytes, bytes], *, reverse: bool) -> tuple[bytes, bytes]:
    """Return where a scan of an encoded range starts and ends, as the wire has it.

    A reverse scan starts at the upper bound, which is exclusive there, too, and ends at the lower one.
    """
    lower, upper = encoded
    return (upper, lower) if reverse else encoded


def rest_of_scan(asked: KeyRange, covered: KeyRange, last: bytes | None, *, reverse: bool) -> KeyRange | None:
    """Return what of a range is still to be scanned, None when nothing is.

    Args:
        asked: What was to be scanned.
        covered: The part of it that one Region was asked for.
        last: The last key found when there may be more in that part; None when it is through.
        reverse: Whether the scan descends.
    """
    # Where the Region holds no more, go on at its far border, which is empty where the key space ends.
    border = covered.start if reverse else covered.end
    if last is not None:
        border = last if reverse else last + b"\0"
    if not border:
        return None
    rest = KeyRange(asked.start, border) if reverse else KeyRange(border, asked.end)
    return None if rest.is_empty else rest


Fetch: TypeAlias = Callable[[KeyRange, int], Awaitable[Page]]
"""Returns the first page of a range, of so many pairs at most."""


class _Ahead:
    """A page being fetched while the one before it is consumed."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.done = anyio.Event()
        self.page: Page | None = None
        self.error: Exception | None = None

    async def run(self, fetch: Callable[[], Awaitable[Page]]) -> None:
        with self.scope:
            try:
                self.page = await fetch()
            except Exception as error:
                # Whatever it is, it concerns whoever iterates, not the client whose task this is.
                self.error = error
            finally:
                self.done.set()


class PagedScan(AsyncIterator[tuple[bytes, bytes]]):
    """The (key, value) pairs of a range, fetched page by page as they are consumed; base of the scans of clients.

    Several tasks may iterate over one scan: each pair goes to one of them. Cancelled while iterating, it continues with
    the pair after the last one returned.

    Args:
        fetch: Returns a page.
        rpc: Whose tasks fetch ahead; iterating ends with ClosedError when it is closed.
        key_range: What to scan.
        limit: Pairs at most, None for all.
        page_pairs: Returns how many pairs to ask for next.
        client: Name of the client's class, for errors.
    """

    def __init__(
        self,
        fetch: Fetch,
        rpc: RpcClient,
        key_range: KeyRange,
        limit: int | None,
        page_pairs: Callable[[], int],
        client: str,
    ) -> None:
        self._fetch = fetch
        self._rpc = rpc
        self._client = client
        self._rest: KeyRange | None = None if key_range.is_empty else key_range
        self._left = limit
        self._page_pairs = page_pairs
        self._pairs: Iterator[tuple[bytes, bytes]] = iter(())
        # A page at hand, and what was to be scanned before it.
        self._unread: tuple[Page, KeyRange | None, int | None] | None = None
        self._ahead: _Ahead | None = None
        self._fetching: anyio.CancelScope | None = None
        self._most = _FIRST

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[bytes, bytes]:
        while True:
            pairs = self._pairs
            for pair in pairs:
                return pair
            async with self._turning:
                if self._pairs is pairs:  # No other task turned the page meanwhile.
                    await self._turn_page()

    async def _take_page(self) -> list[tuple[bytes, bytes]]:
        """Return all pairs at hand at once, those of the next page when there are none; nothing at the end."""
        async for pair in self:
            return [pair, *self._pairs]
        return []

    async def aclose(self) -> None:
        """End the scan: nothing is fetched any more, iterating ends, also for a task that waits for a pair now."""
        self._rest = None
        self._pairs = iter(())
        self._unread = None
        if self._fetching is not None:
            self._fetching.cancel()
        self._stop_ahead()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _turn_page(self) -> None:
        """Make the next page the one at hand, and have the one after it fetched."""
        if self._unread is None:
            await self._move_on()
        unread, self._unread = self._unread, None
        if unread is None:
            return  # It was closed meanwhile.
        page, rest, left = unread
        try:
            self._pairs = iter(page.pairs())
        except TikvError:
            self._rest, self._left = rest, left
            self._stop_ahead()
            raise

    async def _move_on(self) -> None:
        """Take the next page, to be read later, and have the one after it fetched."""
        page = await self._next_page()
        self._unread = page, self._rest, self._left
        self._rest = page.rest
        if self._left is not None:
            self._left -= page.count
        if self._rest is not None and self._left != 0:
            self._ahead = _Ahead()
            self._rpc.tasks.start_soon(self._ahead.run, self._fetcher(self._rest))
            await until_sent()

    @cached_property
    def _turning(self) -> anyio.Lock:
        # Made where it is used: it is made for the kind of event loop that runs, and where the scan is made, that of a
        # blocking client's caller may.
        return anyio.Lock(fast_acquire=True)

    def _stop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.scope.cancel()
            self._ahead = None

    async def _next_page(self) -> Page:
        """Return the page fetched ahead, or fetch it; one that failed is fetched again when asked for again."""
        page: Page | None = None
        ahead = self._ahead
        if ahead is not None:
            await ahead.done.wait()
            page, self._ahead = ahead.page, None
        if self._rest is None or self._left == 0:
            raise StopAsyncIteration
        if self._rpc.closed:
            raise ClosedError(self._client)
        if ahead is not None and ahead.error is not None:
            raise ahead.error
        if page is None:
            with anyio.CancelScope() as self._fetching:
                page = await self._fetcher(self._rest)()
            if page is None or self._rest is None:
                raise StopAsyncIteration  # It was closed meanwhile.
            if self._rpc.closed:
                raise ClosedError(self._client)
        return page

    def _fetcher(self, rest: KeyRange) -> Callable[[], Awaitable[Page]]:
        limit = min(self._page_pairs(), self._most)
        if self._left is not None:
            limit = min(limit, self._left)

        async def fetch() -> Page:
            try:
                page = await self._fetch(rest, limit)
            except DeadlineExceeded:
                self._most = max(limit // _LESS, 1)
                raise
            self._most = sys.maxsize
            return page

        return fetch
