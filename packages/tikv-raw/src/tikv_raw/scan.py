"""Scans as lazy iterators: one page at hand, the next one on its way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Self

import anyio
from tikv_pd import TikvError
from tikv_pd.lowlevel import BackgroundTasks
from tikv_region import KeyRange

from tikv_raw._requests import Page

Fetch = Callable[[KeyRange, int], Awaitable[Page]]
"""Returns the first page of a range, of so many pairs at most."""


class _Ahead:
    """A page being fetched while the one before it is consumed."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.done = anyio.Event()
        self.page: Page | None = None
        self.error: TikvError | None = None

    async def run(self, fetch: Callable[[], Awaitable[Page]]) -> None:
        with self.scope:
            try:
                self.page = await fetch()
            except TikvError as error:
                self.error = error
            finally:
                self.done.set()


class Scan(AsyncIterator[tuple[bytes, bytes]]):
    """The (key, value) pairs of a range, fetched page by page as they are consumed.

    Not a snapshot: a pair written or removed while the scan runs may or may not appear. Pairs come in key order, each
    key at most once, also when Regions split, merge or move meanwhile. One task iterates at a time.

    Breaking out of the loop leaves nothing behind but at most one page that is fetched and dropped; `aclose`, or
    `async with`, ends that at once, too.

    Cancellation: safe. Iterating on afterwards continues with the pair after the last one returned.
    """

    def __init__(self, fetch: Fetch, tasks: BackgroundTasks, key_range: KeyRange, limit: int | None, page: int) -> None:
        self._fetch = fetch
        self._tasks = tasks
        self._rest: KeyRange | None = None if key_range.is_empty else key_range
        self._left = limit
        self._page_size = page
        self._pairs: Iterator[tuple[bytes, bytes]] = iter(())
        self._ahead: _Ahead | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[bytes, bytes]:
        while True:
            for pair in self._pairs:
                return pair
            await self._turn_page()

    async def aclose(self) -> None:
        """End the scan: nothing is fetched any more, iterating ends."""
        self._rest = None
        self._pairs = iter(())
        if self._ahead is not None:
            self._ahead.scope.cancel()
            self._ahead = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _turn_page(self) -> None:
        """Make the next page the one at hand, and have the one after it fetched."""
        if self._rest is None or self._left == 0:
            raise StopAsyncIteration
        page = await self._next_page()
        self._ahead = None
        self._rest = page.rest
        if self._left is not None:
            self._left -= len(page.pairs)
        self._pairs = iter(page.pairs)
        if self._rest is not None and self._left != 0:
            self._ahead = _Ahead()
            self._tasks.start_soon(self._ahead.run, self._fetcher(self._rest))

    async def _next_page(self) -> Page:
        """Return the page fetched ahead, or fetch it; a failed one is fetched again when asked for again."""
        ahead = self._ahead
        if ahead is not None:
            await ahead.done.wait()
            if ahead.page is not None:
                return ahead.page
            self._ahead = None
            if ahead.error is not None:
                raise ahead.error
        assert self._rest is not None
        return await self._fetcher(self._rest)()

    def _fetcher(self, rest: KeyRange) -> Callable[[], Awaitable[Page]]:
        limit = self._page_size if self._left is None else min(self._page_size, self._left)
        return lambda: self._fetch(rest, limit)
