"""Keyspaces: names, states, and the bounds of their Regions.

Source: tikv/pd pkg/keyspace (keyspace.go, util.go).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping

from tikv_proto import keyspacepb

from tikv_embedded import memcomparable, meta
from tikv_embedded.engine import Engine, WriteBatch
from tikv_embedded.errors import OptionError

DEFAULT_ID = 0
DEFAULT_NAME = "DEFAULT"
"""The keyspace every cluster has; its state cannot be changed."""

_NAME = re.compile(r"[-A-Za-z0-9_]{1,20}")
_TRANSITIONS: dict[keyspacepb.KeyspaceState.ValueType, set[keyspacepb.KeyspaceState.ValueType]] = {
    keyspacepb.KeyspaceState.ENABLED: {keyspacepb.KeyspaceState.DISABLED},
    keyspacepb.KeyspaceState.DISABLED: {keyspacepb.KeyspaceState.ENABLED, keyspacepb.KeyspaceState.ARCHIVED},
    keyspacepb.KeyspaceState.ARCHIVED: {keyspacepb.KeyspaceState.TOMBSTONE},
    keyspacepb.KeyspaceState.TOMBSTONE: set(),
}


class StateChangeRefusedError(Exception):
    """A keyspace may not go into that state; the text is what PD says."""


def raw_key(keyspace_id: int, key: bytes) -> bytes:
    """Return the memcomparable form of a raw user key of a keyspace, as the bounds of V2 Regions have it."""
    return memcomparable.encode(b"r" + keyspace_id.to_bytes(3, "big") + key)


def txn_bounds(keyspace_id: int) -> tuple[bytes, bytes]:
    """Return where the transactional keys of a keyspace begin and end; PD wants Regions to begin at both."""
    start = b"x" + keyspace_id.to_bytes(3, "big")
    # The id behind the last one is a new first byte.
    end = (int.from_bytes(start, "big") + 1).to_bytes(4, "big")
    return memcomparable.encode(start), memcomparable.encode(end)


class Keyspaces:
    """The keyspaces of one cluster, durable with every change."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._by_id = {keyspace.id: keyspace for keyspace in meta.load_keyspaces(engine)}
        self._changes = 0
        self._changed_at: dict[int, int] = {}
        self._changed = asyncio.Event()

    def ensure(self, name: str, config: Mapping[str, str] | None = None) -> keyspacepb.KeyspaceMeta:
        """Return the keyspace of that name, created ENABLED and with `config` if there is none.

        Raises:
            OptionError: not 1 to 20 letters, digits, `-` or `_`.
        """
        known = self.by_name(name)
        if known is not None:
            return known
        if not _NAME.fullmatch(name):
            raise OptionError(f"not a keyspace name: {name!r} (1 to 20 letters, digits, '-' or '_')")
        now = int(time.time())
        created = keyspacepb.KeyspaceMeta(
            id=DEFAULT_ID if name == DEFAULT_NAME else max(self._by_id, default=DEFAULT_ID) + 1,
            name=name,
            state=keyspacepb.KeyspaceState.ENABLED,
            created_at=now,
            state_changed_at=now,
            config=config,
        )
        self._put(created)
        return created

    def by_name(self, name: str) -> keyspacepb.KeyspaceMeta | None:
        """Return the keyspace of that name, None when there is none."""
        return next((keyspace for keyspace in self._by_id.values() if keyspace.name == name), None)

    def by_id(self, keyspace_id: int) -> keyspacepb.KeyspaceMeta | None:
        """Return the keyspace of that id, None when there is none."""
        return self._by_id.get(keyspace_id)

    def since(self, start_id: int) -> Iterator[keyspacepb.KeyspaceMeta]:
        """Yield the keyspaces with that id or a larger one, ascending."""
        for keyspace_id in sorted(self._by_id):
            if keyspace_id >= start_id:
                yield self._by_id[keyspace_id]

    async def watch(self) -> AsyncIterator[list[keyspacepb.KeyspaceMeta]]:
        """Yield all keyspaces, then for ever those that changed since, each time by id and as they are by then."""
        seen = -1
        while True:
            changed = self._changed
            news = [keyspace for keyspace in self.since(0) if self._changed_at.get(keyspace.id, 0) > seen]
            seen = self._changes
            if news:
                yield news
            if seen == self._changes:
                await changed.wait()

    def set_state(
        self, keyspace: keyspacepb.KeyspaceMeta, state: keyspacepb.KeyspaceState.ValueType
    ) -> keyspacepb.KeyspaceMeta:
        """Return the keyspace in its new state.

        ENABLED and DISABLED go both ways, then ARCHIVED and TOMBSTONE one way; staying is always allowed.

        Raises:
            StateChangeRefusedError: DEFAULT, or another way than these.
        """
        if keyspace.id == DEFAULT_ID:
            raise StateChangeRefusedError("cannot modify default keyspace's state")
        if state == keyspace.state:
            return keyspace
        if state not in _TRANSITIONS[keyspace.state]:
            names = keyspacepb.KeyspaceState
            raise StateChangeRefusedError(
                f"cannot change keyspace state from {names.Name(keyspace.state)} to {names.Name(state)}"
            )
        changed = keyspacepb.KeyspaceMeta()
        changed.CopyFrom(keyspace)
        changed.state = state
        changed.state_changed_at = int(time.time())
        self._put(changed)
        return changed

    def _put(self, keyspace: keyspacepb.KeyspaceMeta) -> None:
        batch = WriteBatch()
        meta.put_keyspace(batch, keyspace)
        self._engine.write(batch)
        self._by_id[keyspace.id] = keyspace
        self._changes += 1
        self._changed_at[keyspace.id] = self._changes
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
