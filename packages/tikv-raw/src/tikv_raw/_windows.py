"""Windows: keys and pairs of any number read bit by bit, each checked before anything of its window is sent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from typing import Any, Final

import attrs
from tikv_rpc.frontend.arguments import as_items, as_pair_items

from tikv_raw._arguments import Limits, as_pair

_SOONER: Final = 4
"""How much smaller the first of several windows is."""


@attrs.frozen
class Span:
    """How large requests and windows may be."""

    request_keys: int
    """Keys in one request."""
    request_bytes: int
    """Bytes of one request or its answer."""
    concurrency: int
    """Requests under way at a time."""

    def windows(self, items: object) -> Iterator[tuple[int, int]]:
        """Yield how many keys and bytes each of the windows of some items may have.

        The first of several is a small one: stores have something to do while the next is made.
        """
        if not isinstance(items, Sized) or len(items) > self.request_keys * self.concurrency:
            few = max(self.concurrency // _SOONER, 1)
            yield self.request_keys * few, self.request_bytes * few
        while True:
            yield self.request_keys * self.concurrency, self.request_bytes * self.concurrency


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
    for most, most_bytes in span.windows(keys):
        window: dict[bytes, None] = {}
        taken, left, each, is_more = 0, most_bytes, expected(), False
        for item in items:
            key = check(item)
            window[key] = None
            taken += 1
            left -= len(key) + each
            if left <= 0 or taken >= most:
                is_more = True
                break
        if is_more and not is_checked:
            is_checked = True
            for key in keys:
                check(key)
        if window:
            yield Window(list(window), [], 0, taken)
        if not is_more:
            return


def pair_windows(pairs: Any, ttl: int, span: Span, limits: Limits) -> Iterator[Window]:
    """Yield pairs that are to be written, window by window; of several with one key in a window the last counts.

    A collection is checked as a whole before its first window, an iterator as far as it was read.
    """
    items = iter(as_pair_items(pairs))
    max_key, max_value = limits.max_key, limits.max_value
    is_checked = not isinstance(pairs, Collection)
    for most, most_bytes in span.windows(pairs):
        values: dict[bytes, bytes] = {}
        ttls: dict[bytes, int] = {}
        taken, left, is_more = 0, most_bytes, False
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
            if left <= 0 or taken >= most:
                is_more = True
                break
        if is_more and not is_checked:
            is_checked = True
            _check(pairs, limits)
        if values:
            keys = list(values)
            yield Window(keys, list(values.values()), [ttls.get(key, ttl) for key in keys] if ttls else ttl, taken)
        if not is_more:
            return


def _check(pairs: Any, limits: Limits) -> None:
    """Raise what keeps any of some pairs from being stored."""
    max_key, max_value = limits.max_key, limits.max_value
    for item in as_pair_items(pairs):
        if type(item) is tuple and len(item) == 2:
            key, value = item
            if type(key) is bytes and type(value) is bytes and len(key) <= max_key and len(value) <= max_value:
                continue
        _checked(item, limits)


def _checked(pair: Any, limits: Limits) -> tuple[bytes, bytes, int | None]:
    """Return key, value, and the TTL as the wire has it if the pair has one of its own."""
    key, value, ttl = as_pair(pair, -1)
    key = limits.key(key)
    return key, limits.value(key, value), None if len(pair) == 2 else limits.ttl(ttl)
