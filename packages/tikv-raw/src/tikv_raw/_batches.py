"""Batches of any length, worked off window by window, so that what is under way of them at a time is bounded.

A window is as much as keeps all requests of a batch busy for a while. The next one is begun when it is through: of two
pairs with one key the later one is stored later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Sized
from typing import Any, Final, Generic, Protocol, TypeAlias

import attrs
from tikv_pd import TikvError
from tikv_pd.lowlevel import Resp
from tikv_proto import kvrpcpb
from tikv_rpc import Call, Collected, KeyWork, Plan
from tikv_rpc.frontend.arguments import as_items, as_pair_items
from tikv_rpc.frontend.sizes import PairSizes

from tikv_raw._arguments import Limits, as_pair
from tikv_raw._requests import RawRequests, refusal
from tikv_raw.errors import RawError

Outcome: TypeAlias = Collected[Sequence[int], Resp]
Progress: TypeAlias = Callable[[int], object]
"""Is told how much of a call is done by now."""

_ROUNDS: Final = 2
"""Requests of a window for each that may be under way at a time: few, as all wait for the last one of a window."""


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
        return self.request_keys * self.concurrency * _ROUNDS

    @property
    def bytes(self) -> int:
        """Bytes in a window."""
        return self.request_bytes * self.concurrency * _ROUNDS


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

    def windows(self) -> Iterator[KeyWork[Resp]]:
        """Yield it piece by piece, each when what the one before gave was taken."""
        ...

    def take(self, keys: Sequence[bytes], outcome: Outcome[Resp]) -> None:
        """Take what became of a window."""
        ...


@attrs.frozen
class Windowed(Generic[Resp]):
    """Work a batch off."""

    inner: Plan[KeyWork[Resp], Outcome[Resp]]

    async def execute(self, work: Batch[Resp], call: Call) -> None:
        """Do it; the outcome is in the batch."""
        for window in work.windows():
            work.take(window.keys, await self.inner.execute(window, call))


class _Failures:
    """What fails in a batch: raised, or kept by key."""

    def __init__(self, operation: str, *, is_kept: bool) -> None:
        self.by_key: dict[bytes, TikvError] = {}
        self._operation = operation
        self._is_kept = is_kept

    def take(self, keys: Sequence[bytes], failures: Iterable[tuple[Sequence[int], TikvError]]) -> None:
        for part, error in failures:
            self.by_key.update((keys[position], error) for position in part)

    def refuse(self, keys: Iterable[bytes], message: str) -> None:
        """Take a store's refusal."""
        error = RawError(self._operation, message)
        if not self._is_kept:
            raise error
        self.by_key.update(dict.fromkeys(keys, error))


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
        self._taken = 0

    @property
    def outcome(self) -> BatchOutcome:
        """What became of it."""
        return BatchOutcome({}, self._failures.by_key)

    def windows(self) -> Iterator[KeyWork[Resp]]:
        """Yield the requests of window after window."""
        for window in self._windows:
            self._taken += window.taken
            yield self._lower(window)

    def take(self, keys: Sequence[bytes], outcome: Outcome[Resp]) -> None:
        """Look for refusals."""
        self._failures.take(keys, outcome.failures)
        for part, response in outcome.answers:
            message = refusal(response)
            if message:
                self._failures.refuse((keys[position] for position in part), message)
        if self._progress is not None:
            self._progress(self._taken)


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
        self._taken = 0

    @property
    def outcome(self) -> BatchOutcome:
        """What became of it."""
        return BatchOutcome(self.found, self._failures.by_key)

    def windows(self) -> Iterator[KeyWork[kvrpcpb.RawBatchGetResponse]]:
        """Yield the requests of window after window."""
        for window in self._windows:
            self._taken += window.taken
            yield self._lower(window)

    def take(self, keys: Sequence[bytes], outcome: Outcome[kvrpcpb.RawBatchGetResponse]) -> None:
        """Keep the pairs found."""
        self._failures.take(keys, outcome.failures)
        answers = outcome.answers
        while answers:  # Each is dropped once its values are copied, so that they are never there twice.
            part, response = answers.pop()
            self._sizes.learn(len(response.pairs), response.ByteSize())
            self._keep(keys, part, response.pairs)
        if self._progress is not None:
            self._progress(self._taken)

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
