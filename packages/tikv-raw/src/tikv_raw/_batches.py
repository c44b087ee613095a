"""Batches of any length, worked off window by window, so that what is under way of them at a time is bounded.

A window is as much as keeps all requests of a batch busy for a while. While one is under way, the next is made and
begun, so that neither the client nor the stores wait for each other; unless a key is in both, as of two pairs with one
key the later one is stored later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Sized
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeAlias

import anyio
import anyio.lowlevel
import attrs
from tikv_pd import TikvError
from tikv_pd.lowlevel import Resp
from tikv_proto import kvrpcpb
from tikv_rpc import Branches, Call, Collected, KeyWork, Plan
from tikv_rpc.frontend.arguments import as_items, as_pair_items
from tikv_rpc.frontend.sizes import PairSizes

from tikv_raw._arguments import Limits, as_pair
from tikv_raw._requests import RawRequests, refusal
from tikv_raw.errors import RawError

Outcome: TypeAlias = Collected[Sequence[int], Resp]
Progress: TypeAlias = Callable[[int], object]
"""Is told how much of a call is done by now."""

_TURNS_TO_SEND: Final = 3
"""Turns of the event loop until the first requests of a window are on their way."""


@attrs.frozen
class BatchOutcome:
    """What became of each key of a batch with `on_error="return"`."""

    values: dict[bytes, bytes]
    """key → value of the keys found by `batch_get`; empty for writes."""
    failures: dict[bytes, TikvError]
    """key → error of the keys that failed; for a write that may have happened it is an `UndeterminedError`."""


@attrs.frozen
class Span:
    """How large requests and windows may be."""

    request_keys: int
    """Keys in one request."""
    request_bytes: int
    """Bytes of one request or its answer."""
    concurrency: int
    """Requests under way at a time."""

    @property
    def keys(self) -> int:
        """Keys in a window."""
        return self.request_keys * self.concurrency

    @property
    def bytes(self) -> int:
        """Bytes in a window."""
        return self.request_bytes * self.concurrency


@attrs.frozen(eq=False)
class Window:
    """Some pairs, each key once."""

    keys: list[bytes]
    """Their keys."""
    values: list[bytes]
    """Their values."""
    ttls: list[int] | int
    """Their TTLs as the wire has them, or one for all."""
    taken: int
    """How many pairs they were when some had the same key."""


def key_windows(
    keys: Iterable[Any], span: Span, check: Callable[[Any], bytes], expected: Callable[[], int]
) -> Iterator[Window]:
    """Yield keys window by window, as `check` returns them; each is expected to have so many bytes in the answer.

    A collection is checked as a whole before its first window, an iterator as far as it was read.
    """
    items = iter(as_items(keys))
    is_checked = not isinstance(keys, Collection)
    is_more = True
    while is_more:
        window: dict[bytes, None] = {}
        taken, left, each, is_more = 0, span.bytes, expected(), False
        for item in items:
            key = check(item)
            window[key] = None
            taken += 1
            left -= len(key) + each
            if left <= 0 or len(window) >= span.keys:
                is_more = True
                break
        if is_more and not is_checked:
            is_checked = True
            for key in keys:
                check(key)
        if window:
            yield Window(list(window), [], 0, taken)


def pair_windows(pairs: Any, ttl: int, span: Span, limits: Limits) -> Iterator[Window]:
    """Yield pairs that are to be written, window by window; of several with one key in a window the last counts.

    A collection is checked as a whole before its first window, an iterator as far as it was read.
    """
    items = iter(as_pair_items(pairs))
    max_key, max_value = limits.max_key, limits.max_value
    is_checked = not isinstance(pairs, Collection)
    is_more = True
    while is_more:
        values: dict[bytes, bytes] = {}
        ttls: dict[bytes, int] = {}
        taken, left, is_more = 0, span.bytes, False
        for item in items:
            if type(item) is tuple and len(item) == 2:
                # The usual pair, checked here: a call for each would take twice the time.
                key, value = item
                if type(key) is not bytes or len(key) > max_key:
                    key = limits.key(key)
                if type(value) is not bytes or len(value) > max_value:
                    value = limits.value(key, value)
                own = None
            else:
                key, value, own = _checked(item, limits)
            values[key] = value
            if own is not None:
                ttls[key] = own
            elif ttls:
                ttls.pop(key, None)
            taken += 1
            left -= len(key) + len(value)
            if left <= 0 or len(values) >= span.keys:
                is_more = True
                break
        if is_more and not is_checked:
            is_checked = True
            for item in as_pair_items(pairs):
                if type(item) is tuple and len(item) == 2:
                    key, value = item
                    if type(key) is bytes and type(value) is bytes and len(key) <= max_key and len(value) <= max_value:
                        continue
                _checked(item, limits)
        if values:
            keys = list(values)
            yield Window(keys, list(values.values()), [ttls.get(key, ttl) for key in keys] if ttls else ttl, taken)


def _checked(pair: Any, limits: Limits) -> tuple[bytes, bytes, int | None]:
    """Return key, value, and the TTL as the wire has it if the pair has one of its own."""
    key, value, ttl = as_pair(pair, -1)
    key = limits.key(key)
    return key, limits.value(key, value), None if len(pair) == 2 else limits.ttl(ttl)


class Batch(Protocol[Resp]):
    """Work of any length."""

    @property
    def subject(self) -> tuple[None, int | None]:
        """What observers hear it is about: how many keys there are, if that is known before."""
        ...

    @property
    def is_read(self) -> bool:
        """Whether all windows were made, as far as can be told."""
        ...

    def windows(self) -> Iterator[KeyWork[Resp]]:
        """Yield it window by window."""
        ...

    def take(self, window: KeyWork[Resp], outcome: Outcome[Resp]) -> Exception | None:
        """Take what became of a window, and return what a store refused, if that is to be raised."""
        ...


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


@attrs.frozen
class Windowed(Generic[Resp]):
    """Work a batch off, window by window."""

    inner: Plan[KeyWork[Resp], Outcome[Resp]]
    """Does a window that is the only one."""
    shares: tuple[Plan[KeyWork[Resp], Outcome[Resp]], ...]
    """Do windows that are under way at the same time, one each; together they keep as many requests under way."""

    async def execute(self, work: Batch[Resp], call: Call) -> Exception | None:
        """Do it, and return what stopped it without a doubt about any request: what a store, or the batch, refused."""
        windows = work.windows()
        first = next(windows, None)
        if first is None:
            return None
        if work.is_read:
            return work.take(first, await self.inner.execute(first, call))
        under_way: list[_UnderWay] = []
        refused: list[Exception] = []
        idle = list(self.shares)

        async def do(
            plan: Plan[KeyWork[Resp], Outcome[Resp]], window: KeyWork[Resp], mark: _UnderWay, branch: Call
        ) -> None:
            try:
                refusal = work.take(window, await plan.execute(window, branch))
                if refusal is not None:
                    refused.append(refusal)
            finally:
                idle.append(plan)
                mark.done.set()

        async with Branches(call) as branches:
            window: KeyWork[Resp] | None = first
            while window is not None:
                while not idle or any(other.shares_keys(window.keys) for other in under_way):
                    await under_way.pop(0).done.wait()
                if branches.failures or refused:
                    break
                under_way.append(_UnderWay(window.keys))
                branches.start(partial(do, idle.pop(0), window, under_way[-1]))
                for _ in range(_TURNS_TO_SEND):
                    await anyio.lowlevel.checkpoint()
                try:
                    window = next(windows, None)
                except Exception as error:
                    refused.append(error)
                    break
        return refused[0] if refused else None


class _UnderWay:
    """A window under way."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.done = anyio.Event()
        self._keys = frozenset(keys)

    def shares_keys(self, keys: Sequence[bytes]) -> bool:
        return not self._keys.isdisjoint(keys)


class _Failures:
    """What fails in a batch: raised, or kept by key."""

    def __init__(self, operation: str, *, is_kept: bool) -> None:
        self.by_key: dict[bytes, TikvError] = {}
        self.to_raise: RawError | None = None
        """The first refusal, if failures are raised."""
        self._operation = operation
        self._is_kept = is_kept

    def take(self, keys: Sequence[bytes], failures: Iterable[tuple[Sequence[int], TikvError]]) -> None:
        for part, error in failures:
            self.by_key.update((keys[position], error) for position in part)

    def refuse(self, keys: Iterable[bytes], message: str) -> None:
        """Take a store's refusal."""
        error = RawError(self._operation, message)
        if self._is_kept:
            self.by_key.update(dict.fromkeys(keys, error))
        else:
            self.to_raise = self.to_raise or error


def _number(items: object) -> int | None:
    return len(items) if isinstance(items, Sized) else None


class WriteBatch(Generic[Resp]):
    """A batch of writes."""

    def __init__(
        self,
        operation: str,
        items: object,
        windows: Iterator[Window],
        lower: Callable[[Window], KeyWork[Resp]],
        *,
        is_kept: bool,
        progress: Progress | None,
    ) -> None:
        self.subject = None, _number(items)
        self._windows = windows
        self._lower = lower
        self._progress = progress
        self._failures = _Failures(operation, is_kept=is_kept)
        self._pairs_of: dict[KeyWork[Any], int] = {}
        self._read = self._done = 0

    @property
    def is_read(self) -> bool:
        """Whether all windows were made, as far as can be told."""
        return self._read == self.subject[1]

    @property
    def outcome(self) -> BatchOutcome:
        """What became of it."""
        return BatchOutcome({}, self._failures.by_key)

    def windows(self) -> Iterator[KeyWork[Resp]]:
        """Yield the requests of window after window."""
        for window in self._windows:
            self._read += window.taken
            work = self._lower(window)
            self._pairs_of[work] = window.taken
            yield work

    def take(self, window: KeyWork[Resp], outcome: Outcome[Resp]) -> Exception | None:
        """Look for refusals."""
        keys = window.keys
        self._failures.take(keys, outcome.failures)
        for part, response in outcome.answers:
            message = refusal(response)
            if message:
                self._failures.refuse((keys[position] for position in part), message)
        self._done += self._pairs_of.pop(window)
        if self._progress is not None and self._failures.to_raise is None:
            self._progress(self._done)
        return self._failures.to_raise


class GetBatch:
    """A batch of reads."""

    def __init__(
        self,
        items: object,
        windows: Iterator[Window],
        lower: Callable[[Window], KeyWork[kvrpcpb.RawBatchGetResponse]],
        requests: RawRequests,
        sizes: PairSizes,
        *,
        is_kept: bool,
        progress: Progress | None,
    ) -> None:
        self.found: dict[bytes, bytes] = {}
        """The pairs found."""
        self.subject = None, _number(items)
        self._windows = windows
        self._lower = lower
        self._decode = requests.codec.decode_key
        self._sizes = sizes
        self._progress = progress
        self._failures = _Failures("batch_get", is_kept=is_kept)
        self._pairs_of: dict[KeyWork[Any], int] = {}
        self._read = self._done = 0

    @property
    def is_read(self) -> bool:
        """Whether all windows were made, as far as can be told."""
        return self._read == self.subject[1]

    @property
    def outcome(self) -> BatchOutcome:
        """What became of it."""
        return BatchOutcome(self.found, self._failures.by_key)

    def windows(self) -> Iterator[KeyWork[kvrpcpb.RawBatchGetResponse]]:
        """Yield the requests of window after window."""
        for window in self._windows:
            self._read += window.taken
            work = self._lower(window)
            self._pairs_of[work] = window.taken
            yield work

    def take(
        self, window: KeyWork[kvrpcpb.RawBatchGetResponse], outcome: Outcome[kvrpcpb.RawBatchGetResponse]
    ) -> Exception | None:
        """Keep the pairs found."""
        keys = window.keys
        self._failures.take(keys, outcome.failures)
        answers = outcome.answers
        while answers:  # Each is dropped once its values are copied, so that they are never there twice.
            part, response = answers.pop()
            self._sizes.learn(len(response.pairs), response.ByteSize())
            self._keep(keys, part, response.pairs)
        self._done += self._pairs_of.pop(window)
        if self._progress is not None and self._failures.to_raise is None:
            self._progress(self._done)
        return self._failures.to_raise

    def _keep(self, keys: Sequence[bytes], part: Sequence[int], pairs: Iterable[kvrpcpb.KvPair]) -> None:
        found, decode = self.found, self._decode
        for pair in pairs:
            value = pair.value
            # Only a pair without a value can be an error; asking each takes time.
            if not value and pair.HasField("error"):
                message = pair.error.abort or str(pair.error).strip()
                # Without a key it says that the request as a whole failed.
                refused = [decode(pair.key)] if pair.key else [keys[position] for position in part]
                self._failures.refuse(refused, message)
            else:
                found[decode(pair.key)] = value
