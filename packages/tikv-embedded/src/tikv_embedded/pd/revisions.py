"""PD's own key-value pairs, every change of which has a revision: what etcd is below a real PD.

The pairs, and the events of the last revisions, lie in CF_META. Pairs of an older revision are found by undoing the
events since; a revision whose events are gone is compacted.

kv/KEY           meta_storagepb.KeyValue
kv_event/REV     meta_storagepb.WatchResponse: the events of one revision, each with the pair before
kv_revision      8 bytes, big-endian: the last revision
kv_compacted     8 bytes, big-endian: the oldest revision that can be read or watched from

Source: etcd server/storage/mvcc (what a client sees of it).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import attrs
from tikv_proto import meta_storagepb

from tikv_embedded.engine import CF_META, Engine, WriteBatch

HISTORY = 10_000
"""Revisions whose events are kept; PD compacts after an hour instead."""

_PAIR, _EVENTS = b"kv/", b"kv_event/"
_REVISION, _COMPACTED = b"kv_revision", b"kv_compacted"

PUT, DELETE = meta_storagepb.Event.EventType.PUT, meta_storagepb.Event.EventType.DELETE
Event = meta_storagepb.Event
KeyValue = meta_storagepb.KeyValue


class CompactedError(Exception):
    """The events of that revision are gone; the message is etcd's.

    Attributes:
        compact_revision: The oldest revision that is left.
    """

    def __init__(self, compact_revision: int) -> None:
        super().__init__("etcdserver: mvcc: required revision has been compacted")
        self.compact_revision = compact_revision


class FutureRevisionError(Exception):
    """Nothing has that revision yet; the message is etcd's."""

    def __init__(self) -> None:
        super().__init__("etcdserver: mvcc: required revision is a future revision")


class DuplicateKeyError(Exception):
    """A set of changes names a key twice; the message is etcd's."""

    def __init__(self) -> None:
        super().__init__("etcdserver: duplicate key given in txn request")


@attrs.frozen
class Change:
    """One pair to write; `value` None deletes."""

    key: bytes
    value: bytes | None


@attrs.frozen
class Selection:
    """Which keys: one, or with a `range_end` those of `[key, range_end)`; a single zero byte is unbounded."""

    key: bytes
    range_end: bytes = b""

    @classmethod
    def prefix(cls, key: bytes) -> Selection:
        """Return the keys that start with `key`, whose last byte is below 0xFF."""
        return cls(key, key[:-1] + bytes([key[-1] + 1]))

    def contains(self, key: bytes) -> bool:
        """Whether `key` is one of them."""
        if not self.range_end:
            return key == self.key
        return self.key <= key and (self.range_end == b"\0" or key < self.range_end)


class RevisionedStore:
    """The pairs of one cluster; every change is durable when the method returns, and wakes the watchers.

    Attributes:
        revision: Of the last change; 1 when there was none.
        compact_revision: The oldest revision that can be read or watched from.
    """

    def __init__(self, engine: Engine, history: int = HISTORY) -> None:
        self._engine = engine
        self._history = history
        self._changed = asyncio.Event()
        self.revision = int.from_bytes(engine.get(CF_META, _REVISION) or b"\1", "big")
        self.compact_revision = int.from_bytes(engine.get(CF_META, _COMPACTED) or b"\0", "big")

    def get(self, key: bytes) -> bytes | None:
        """Return the value of one key, None when there is none."""
        stored = self._engine.get(CF_META, _PAIR + key)
        return None if stored is None else KeyValue.FromString(stored).value

    def select(self, selection: Selection, revision: int = 0) -> list[KeyValue]:
        """Return the pairs by key, as they are or as they were at `revision`.

        Raises:
            CompactedError: `revision` is older than `compact_revision`.
            FutureRevisionError: `revision` is still to come.
        """
        if revision > self.revision:
            raise FutureRevisionError
        if 0 < revision < self.compact_revision:
            raise CompactedError(self.compact_revision)
        pairs = {pair.key: pair for pair in self._present(selection)}
        if revision > 0:
            for _, events in reversed(self._events(revision + 1)):
                for event in filter(lambda event: selection.contains(event.kv.key), reversed(events)):
                    pairs.pop(event.kv.key, None)
                    if event.HasField("prev_kv"):
                        pairs[event.kv.key] = event.prev_kv
        return [pairs[key] for key in sorted(pairs)]

    def apply(self, changes: Iterable[Change]) -> list[Event]:
        """Write `changes` as one revision and return its events, each with the pair before.

        Deleting what is not there is no event, and no events are no revision.

        Raises:
            DuplicateKeyError: a key comes twice; nothing was written.
        """
        changes = list(changes)
        if len({change.key for change in changes}) < len(changes):
            raise DuplicateKeyError
        revision, batch = self.revision + 1, WriteBatch()
        events = [event for change in changes if (event := self._event(change, revision)) is not None]
        if not events:
            return []
        for event in events:
            if event.type == PUT:
                batch.put(CF_META, _PAIR + event.kv.key, event.kv.SerializeToString())
            else:
                batch.delete(CF_META, _PAIR + event.kv.key)
        batch.put(CF_META, _event_key(revision), meta_storagepb.WatchResponse(events=events).SerializeToString())
        batch.put(CF_META, _REVISION, revision.to_bytes(8, "big"))
        compact_revision = self._compact(batch, revision - self._history)
        self._engine.write(batch)
        self.revision, self.compact_revision = revision, compact_revision
        self._wake()
        return events

    def compact(self, revision: int) -> None:
        """Forget the events before `revision`: who watches from there or reads there is told so.

        Raises:
            CompactedError: they are forgotten already.
            FutureRevisionError: `revision` is still to come.
        """
        if revision > self.revision:
            raise FutureRevisionError
        if revision <= self.compact_revision:
            raise CompactedError(self.compact_revision)
        batch = WriteBatch()
        self.compact_revision = self._compact(batch, revision)
        self._engine.write(batch)
        self._wake()

    async def watch(self, selection: Selection, start_revision: int = 0) -> AsyncIterator[tuple[int, list[Event]]]:
        """Yield (revision, events) of each change of those keys from `start_revision` on (0: from now on), for ever.

        Raises:
            CompactedError: a revision that was not yielded yet is gone.
        """
        following = start_revision or self.revision + 1
        while True:
            changed = self._changed
            if following < self.compact_revision:
                raise CompactedError(self.compact_revision)
            for revision, events in self._events(following):
                following = revision + 1
                selected = [event for event in events if selection.contains(event.kv.key)]
                if selected:
                    yield revision, selected
            await changed.wait()

    def _present(self, selection: Selection) -> list[KeyValue]:
        lower = _PAIR + selection.key
        if not selection.range_end:
            upper = lower + b"\0"
        else:
            # The end of all pairs: "0" comes after "/".
            upper = b"kv0" if selection.range_end == b"\0" else _PAIR + selection.range_end
        with self._engine.snapshot() as snapshot:
            return [KeyValue.FromString(value) for _, value in snapshot.scan(CF_META, lower, upper)]

    def _events(self, first: int) -> list[tuple[int, list[Event]]]:
        """Return (revision, events) from `first` on."""
        if first > self.revision:
            return []
        with self._engine.snapshot() as snapshot:
            found = list(snapshot.scan(CF_META, _event_key(first), _event_key(self.revision + 1)))
        offset = len(_EVENTS)
        return [
            (int.from_bytes(key[offset:], "big"), list(meta_storagepb.WatchResponse.FromString(value).events))
            for key, value in found
        ]

    def _event(self, change: Change, revision: int) -> Event | None:
        """Return what `change` does at `revision`; None when it deletes what is not there."""
        stored = self._engine.get(CF_META, _PAIR + change.key)
        before = None if stored is None else KeyValue.FromString(stored)
        if change.value is None:
            if before is None:
                return None
            return Event(type=DELETE, kv=KeyValue(key=change.key, mod_revision=revision), prev_kv=before)
        after = KeyValue(
            key=change.key,
            value=change.value,
            create_revision=revision if before is None else before.create_revision,
            mod_revision=revision,
            version=1 if before is None else before.version + 1,
        )
        return Event(type=PUT, kv=after, prev_kv=before)

    def _compact(self, batch: WriteBatch, revision: int) -> int:
        """Put on `batch` what forgets the events before `revision`, and return the compact revision after it."""
        if revision <= self.compact_revision:
            return self.compact_revision
        batch.delete_range(CF_META, _EVENTS, _event_key(revision))
        batch.put(CF_META, _COMPACTED, revision.to_bytes(8, "big"))
        return revision

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _event_key(revision: int) -> bytes:
    return _EVENTS + revision.to_bytes(8, "big")
