"""Which requests that arrived together may be carried out from one snapshot: those that have no key in common.

Source: TiKV storage/txn/latch.rs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def in_rounds(commands: Iterable[T], latches_of: Callable[[T], Collection[bytes] | None]) -> Iterator[list[T]]:
    """Yield `commands` in rounds: two of one round share no latch, and each comes after those it waits for.

    Args:
        commands: In the order of arrival.
        latches_of: The keys that a command changes or depends on; None is all of them.
    """
    current: list[T] = []
    held: set[bytes] = set()
    for command in commands:
        latches = latches_of(command)
        if current and (latches is None or not held.isdisjoint(latches)):
            yield current
            current, held = [], set()
        if latches is None:
            yield [command]
            continue
        current.append(command)
        held.update(latches)
    if current:
        yield current
