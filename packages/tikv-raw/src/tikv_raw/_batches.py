"""Batches of any length, worked off window by window, so that what is under way of them at a time is bounded.

A window is as much as keeps all requests of a batch busy for a while. While one is under way, the next is made and
begun, so that neither the client nor the stores wait for each other; unless a key is in both, as of two pairs with one
key the later one is stored later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from typing import Final, Generic, TypeAlias

import anyio
import attrs
from tikv_pd import TikvError, UndeterminedError
from tikv_pd.lowlevel import Resp
from tikv_proto import kvrpcpb
from tikv_rpc import Branches, Call, Collected, KeyWork, Plan
from tikv_rpc.frontend.callers import in_callers_thread, while_reading
from tikv_rpc.frontend.sizes import PairSizes
from tikv_rpc.frontend.turns import until_sent

from tikv_raw._callbacks import Progress
from tikv_raw._requests import refusal
from tikv_raw._windows import Window
from tikv_raw.errors import RawError

Outcome: TypeAlias = Collected[Sequence[int], Resp]
Take: TypeAlias = Callable[[Sequence[int], Resp], None]
"""Is given an answer, and the positions of the keys that it is about."""

_WINDOWS: Final = 2
"""Windows under way at a time."""


@attrs.frozen
class BatchOutcome:
    """What became of each key of a batch with `on_error="return"`."""

    values: dict[bytes, bytes]
    """key → value of the keys found by `batch_get`; empty for writes."""
    failures: dict[bytes, TikvError]
    """key → error of the keys that failed; for a write that may have happened it is an `UndeterminedError`.

    Of several pairs with one key it is about the last: an earlier one may have been stored.
    """


class Source:
    """Windows of what a caller passed, read in the caller's thread unless that makes no difference.

    Args:
        items: The keys or pairs as they were passed.
        windows: The same, window by window.
        total: How many there are, if that is known before.
    """

    def __init__(self, items: object, windows: Iterator[Window], total: int | None) -> None:
        self.total: Final = total
        """How many there are, if that is known before."""
        self._items = items
        self._windows = windows
        self._read = 0

    @property
    def is_read(self) -> bool:
        """Whether all windows were made, as far as can be told."""
        return self._read == self.total

    @classmethod
    async def of(cls, items: object, windows: Iterator[Window]) -> Source:
        """Make one; some collections have to be asked how many they hold."""
        return cls(
            items, windows, await while_reading(items, partial(len, items)) if isinstance(items, Sized) else None
        )

    async def next(self) -> Window | None:
        """Return the next window, None at the end."""
        window: Window | None = await while_reading(self._items, partial(next, self._windows, None))
        if window is not None:
            self._read += window.taken
        return window


class Batch(Generic[Resp]):
    """Work of any length over keys, and what became of it."""

    def __init__(
        self,
        operation: str,
        source: Source,
        lower: Callable[[Window], KeyWork[Resp]],
        *,
        is_kept: bool,
        progress: Progress | None,
    ) -> None:
        self.subject: tuple[None, int | None] = None, source.total
        """What observers hear it is about: how many keys there are, if that is known before."""
        self.found: dict[bytes, bytes] = {}
        """The pairs found; none for writes."""
        self.stopped: Exception | None = None
        """Why nothing more is to begin: what a store refused first, if that is to be raised, or what `progress` raised.
        """
        self._operation = operation
        self._source = source
        self._lower = lower
        self._is_kept = is_kept
        self._progress = progress
        self._failures: dict[bytes, TikvError] = {}
        self._under_way: dict[KeyWork[Resp], _UnderWay] = {}
        self._done = 0

    @property
    def is_read(self) -> bool:
        """Whether all windows were made, as far as can be told."""
        return self._source.is_read

    @property
    def outcome(self) -> BatchOutcome:
        """What became of it."""
        # Of a key that was read twice, once in vain, the value is known.
        return BatchOutcome(self.found, {key: error for key, error in self._failures.items() if key not in self.found})

    async def next(self) -> KeyWork[Resp] | None:
        """Return the requests of the next window, None at the end."""
        window = await self._source.next()
        if window is None:
            return None
        work = self._lower(window)
        self._under_way[work] = _UnderWay(window.taken)
        return work

    def take(self, window: KeyWork[Resp], part: Sequence[int], response: Resp) -> None:
        """Take the answer about the keys at some positions of a window."""
        raise NotImplementedError

    async def end(self, window: KeyWork[Resp], failures: Iterable[tuple[Sequence[int], TikvError]]) -> None:
        """Take what failed of a window that is done, at which positions."""
        done = self._under_way.pop(window)
        for part, error in failures:
            done.failures.update((window.keys[position], error) for position in part)
        if self._failures or done.failures:
            self._judge(window.keys, done.failures)
        self._done += done.taken
        if self._progress is not None and self.stopped is None:
            try:
                await in_callers_thread(partial(self._progress, self._done))
            except Exception as error:
                self._stop(error)

    def _judge(self, keys: Iterable[bytes], failures: Mapping[bytes, TikvError]) -> None:
        """Take what failed of some keys: it counts more than what became of them in windows before."""
        for key in keys:
            # What is not known to be stored may be stored later than anything else.
            if not isinstance(self._failures.get(key), UndeterminedError):
                self._failures.pop(key, None)
        for key, error in failures.items():
            self._failures.setdefault(key, error)

    def _refuse(self, window: KeyWork[Resp], keys: Iterable[bytes], message: str) -> None:
        """Take a store's refusal."""
        error = RawError(self._operation, message)
        if self._is_kept:
            self._under_way[window].failures.update(dict.fromkeys(keys, error))
        else:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        if self.stopped is None:
            self.stopped = error


@attrs.define
class _UnderWay:
    """What is known of a window that is under way."""

    taken: int
    """Pairs that were read for it."""
    failures: dict[bytes, TikvError] = attrs.field(factory=dict)
    """key → what the store refused it for."""


class WriteBatch(Batch[Resp]):
    """A batch of writes."""

    def take(self, window: KeyWork[Resp], part: Sequence[int], response: Resp) -> None:
        """Look for a refusal."""
        message = refusal(response)
        if message:
            self._refuse(window, (window.keys[position] for position in part), message)


class GetBatch(Batch[kvrpcpb.RawBatchGetResponse]):
    """A batch of reads.

    Args:
        source: The keys.
        lower: Returns the requests of a window.
        decode: Turns the keys of answers into those that users know.
        sizes: Learns how large pairs are.
        is_kept: Whether failures are kept by key instead of raised.
        progress: Is told how many keys are done.
    """

    def __init__(
        self,
        source: Source,
        lower: Callable[[Window], KeyWork[kvrpcpb.RawBatchGetResponse]],
        decode: Callable[[bytes], bytes],
        sizes: PairSizes,
        *,
        is_kept: bool,
        progress: Progress | None,
    ) -> None:
        super().__init__("batch_get", source, lower, is_kept=is_kept, progress=progress)
        self._decode = decode
        self._sizes = sizes

    def take(
        self, window: KeyWork[kvrpcpb.RawBatchGetResponse], part: Sequence[int], response: kvrpcpb.RawBatchGetResponse
    ) -> None:
        """Keep the pairs found."""
        self._sizes.learn(len(response.pairs), response.ByteSize())
        # A key that cannot be decoded fails the answer as a whole.
        found: dict[bytes, bytes] = {}
        decode = self._decode
        for pair in response.pairs:
            value = pair.value
            # Only a pair without a value can be an error; asking each takes time.
            if not value and pair.HasField("error"):
                message = pair.error.abort or str(pair.error).strip()
                # Without a key it says that the request as a whole failed.
                refused = [decode(pair.key)] if pair.key else [window.keys[position] for position in part]
                self._refuse(window, refused, message)
            else:
                found[decode(pair.key)] = value
        self.found.update(found)


@attrs.frozen
class Windowed(Generic[Resp]):
    """Work a batch off, window by window; what becomes of it is in the batch.

    While the last requests of a window are under way, the first of the next one are, too.
    """

    plan_of: Callable[[Take[Resp], anyio.Semaphore | None], Plan[KeyWork[Resp], Outcome[Resp]]]
    """Returns the plan that does a window and hands over each answer as it comes, sharing slots with other windows."""
    concurrency: int
    """Requests under way at a time, of all windows."""

    async def execute(self, work: Batch[Resp], call: Call) -> Exception | None:
        """Do it, and return what stopped it without a doubt about any request: a store's refusal, or the caller."""
        first = await work.next()
        if first is None:
            return None
        if work.is_read:
            await self._do(work, first, None, call)
            return work.stopped
        under_way: list[_Mark] = []
        unreadable: Exception | None = None
        slots = anyio.Semaphore(self.concurrency, fast_acquire=True)

        async def do(window: KeyWork[Resp], mark: _Mark, branch: Call) -> None:
            try:
                await self._do(work, window, slots, branch)
            finally:
                mark.done.set()

        async with Branches(call) as branches:
            window: KeyWork[Resp] | None = first
            while window is not None:
                while len(under_way) == _WINDOWS or any(other.shares_keys(window.keys) for other in under_way):
                    await under_way.pop(0).done.wait()
                if branches.failures or work.stopped:
                    break
                under_way.append(_Mark(window.keys))
                branches.start(partial(do, window, under_way[-1]))
                await until_sent(self.concurrency)
                try:
                    window = await work.next()
                except Exception as error:
                    unreadable = error
                    break
        return work.stopped or unreadable

    async def _do(self, work: Batch[Resp], window: KeyWork[Resp], slots: anyio.Semaphore | None, call: Call) -> None:
        """Do one window."""
        outcome = await self.plan_of(partial(work.take, window), slots).execute(window, call)
        await work.end(window, outcome.failures)


class _Mark:
    """Tells when a window is done, and what it is about."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.done = anyio.Event()
        self._keys = frozenset(keys)

    def shares_keys(self, keys: Sequence[bytes]) -> bool:
        return not self._keys.isdisjoint(keys)


@attrs.frozen
class Whole(Generic[Resp]):
    """Do a batch, or raise what it could not be read for."""

    inner: Plan[Batch[Resp], Exception | None]
    """Does what could be read, and returns why it was not all."""

    async def execute(self, work: Batch[Resp], call: Call) -> None:
        """Do it; the outcome is in the batch."""
        refused = await self.inner.execute(work, call)
        if refused is not None:
            raise refused
