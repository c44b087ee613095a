"""The GC states of all keyspaces, kept among PD's own pairs under the keys and in the forms that PD uses.

Source: tikv/pd pkg/storage/endpoint/gc_states.go, pkg/utils/keypath/absolute_key_path.go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import attrs
from tikv_proto import keyspacepb

from tikv_embedded.pd import gc_states
from tikv_embedded.pd.gc_states import Barrier, GcRefusedError, GcState
from tikv_embedded.pd.keyspaces import Keyspaces
from tikv_embedded.pd.revisions import Change, RevisionedStore, Selection

NULL_KEYSPACE = 0xFFFFFFFF
"""The scope of every keyspace that has none of its own."""

_OWN_GC = ("gc_management_type", "keyspace_level")
"""The entry of a keyspace's config that gives it a scope of its own."""


@attrs.frozen
class _Paths:
    """Where one scope lies."""

    txn_safe_point: bytes
    gc_safe_point: bytes
    barriers: bytes
    """Prefix; the id of a barrier follows."""


class GcStates:
    """The GC states of one cluster; every change is durable when the method returns.

    Args:
        store: Where they lie.
        keyspaces: Which keyspaces there are, and which of them have a scope of their own.
        cluster_id: A part of most keys.
        clock: Unix seconds; barriers expire by it.
    """

    def __init__(
        self, store: RevisionedStore, keyspaces: Keyspaces, cluster_id: int, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._keyspaces = keyspaces
        self._root = f"/pd/{cluster_id}"
        self._global_barriers = f"{self._root}/gc/global_gc_barriers/".encode()
        self._clock = clock

    @property
    def now(self) -> float:
        """Unix seconds, as barriers see them."""
        return self._clock()

    def user_scope(self, keyspace_id: int) -> int:
        """Return the scope that a keyspace's users share: its own, or `NULL_KEYSPACE`.

        Raises:
            GcRefusedError: there is no such keyspace.
        """
        keyspace = self._keyspace(keyspace_id)
        return NULL_KEYSPACE if keyspace is None or not has_own_gc(keyspace) else keyspace_id

    def driver_scope(self, keyspace_id: int) -> int:
        """Return the scope whose safe points may be advanced under that id.

        Raises:
            GcRefusedError: there is no such keyspace, or it has no scope of its own.
        """
        keyspace = self._keyspace(keyspace_id)
        if keyspace is None:
            return NULL_KEYSPACE
        if not has_own_gc(keyspace):
            raise GcRefusedError(
                f"trying to manage GC in keyspace {keyspace.name} (id: {keyspace_id})"
                " where keyspace level GC is not enabled"
            )
        return keyspace_id

    def load(self, scope: int) -> GcState:
        """Return the state of one scope."""
        paths = self._paths(scope)
        gc_safe_point = self._store.get(paths.gc_safe_point)
        return GcState(
            txn_safe_point=int(self._store.get(paths.txn_safe_point) or b"0"),
            gc_safe_point=0 if gc_safe_point is None else _decode_gc_safe_point(scope, gc_safe_point),
            # PD may keep other services' safe points below the prefix; ours are all barriers.
            barriers=tuple(map(_barrier_from_json, self._values(paths.barriers))),
        )

    def load_all(self) -> list[tuple[int, bool, GcState]]:
        """Return (keyspace id, whether it has a scope of its own, state): first the shared scope, then by id.

        Of the keyspaces, those that are ENABLED; a state that is shared is shown with the shared scope alone.
        """
        states = [(NULL_KEYSPACE, False, self.load(NULL_KEYSPACE))]
        for keyspace in self._enabled():
            own = has_own_gc(keyspace)
            states.append((keyspace.id, own, self.load(keyspace.id) if own else GcState()))
        return states

    def global_barriers(self) -> tuple[Barrier, ...]:
        """Return the barriers that hold all scopes, by id."""
        return tuple(map(_global_barrier_from_json, self._values(self._global_barriers)))

    def advance_txn_safe_point(self, scope: int, target: int) -> tuple[GcState, GcState, str]:
        """Return the states before and after, and for people what held it back; see `gc_states`."""
        before, global_barriers, now = self.load(scope), self.global_barriers(), self.now
        after, blocker = gc_states.advance_txn_safe_point(before, target, global_barriers, now)
        over = set(global_barriers) - set(gc_states.alive(global_barriers, now))
        self._store.apply(
            [*self._changes(scope, before, after), *(Change(self._global_key(each.id), None) for each in over)]
        )
        return (
            before,
            after,
            "" if blocker is None else _describe(blocker, is_global=any(blocker is each for each in global_barriers)),
        )

    def advance_gc_safe_point(self, scope: int, target: int) -> tuple[GcState, GcState]:
        """Return the states before and after; see `gc_states`."""
        before = self.load(scope)
        after = gc_states.advance_gc_safe_point(before, target)
        self._store.apply(self._changes(scope, before, after))
        return before, after

    def set_barrier(self, scope: int, barrier_id: str, ts: int, ttl: int) -> Barrier:
        """Set a barrier that expires in `ttl` seconds, and return it; see `gc_states`."""
        barrier, before = gc_states.new_barrier(barrier_id, ts, ttl, self.now), self.load(scope)
        self._store.apply(self._changes(scope, before, gc_states.set_barrier(before, barrier)))
        return barrier

    def delete_barrier(self, scope: int, barrier_id: str) -> Barrier | None:
        """Delete a barrier and return what it was, None when there was none."""
        before = self.load(scope)
        self._store.apply(self._changes(scope, before, gc_states.delete_barrier(before, barrier_id)))
        return next((each for each in before.barriers if each.id == barrier_id), None)

    def set_global_barrier(self, barrier_id: str, ts: int, ttl: int) -> Barrier:
        """Set a barrier for all scopes, and return it.

        Raises:
            GcRefusedError: as for `set_barrier`, measured by the furthest scope.
        """
        barrier = gc_states.new_barrier(barrier_id, ts, ttl, self.now)
        scopes = {NULL_KEYSPACE: "<null_keyspace>"}
        scopes |= {each.id: f'{{ name: "{each.name}", id: {each.id} }}' for each in self._enabled()}
        points = {scope: self.load(scope).txn_safe_point for scope in scopes}
        furthest = max(points, key=lambda scope: points[scope])
        if ts < points[furthest]:
            raise GcRefusedError(
                f"trying to set a global GC barrier on ts {ts} which is already behind"
                f" the txn safe point {points[furthest]} of keyspace {scopes[furthest]}"
            )
        self._store.apply([Change(self._global_key(barrier_id), _global_barrier_to_json(barrier))])
        return barrier

    def delete_global_barrier(self, barrier_id: str) -> Barrier | None:
        """Delete a barrier of all scopes and return what it was, None when there was none."""
        gc_states.check_barrier_id(barrier_id)
        known = next((each for each in self.global_barriers() if each.id == barrier_id), None)
        self._store.apply([Change(self._global_key(barrier_id), None)])
        return known

    def _keyspace(self, keyspace_id: int) -> keyspacepb.KeyspaceMeta | None:
        """Return the keyspace; None for an id that none can have, which stands for the shared scope."""
        if keyspace_id >> 24:
            return None
        keyspace = self._keyspaces.by_id(keyspace_id)
        if keyspace is None:
            raise GcRefusedError("keyspace does not exist")
        return keyspace

    def _enabled(self) -> Iterable[keyspacepb.KeyspaceMeta]:
        return (each for each in self._keyspaces.since(0) if each.state == keyspacepb.KeyspaceState.ENABLED)

    def _values(self, prefix: bytes) -> list[bytes]:
        return [pair.value for pair in self._store.select(Selection.prefix(prefix))]

    def _changes(self, scope: int, before: GcState, after: GcState) -> list[Change]:
        """Return what turns the stored state `before` into `after`."""
        paths, changes = self._paths(scope), []
        if after.txn_safe_point != before.txn_safe_point:
            changes.append(Change(paths.txn_safe_point, str(after.txn_safe_point).encode()))
        if after.gc_safe_point != before.gc_safe_point:
            changes.append(Change(paths.gc_safe_point, _encode_gc_safe_point(scope, after.gc_safe_point)))
        put = set(after.barriers) - set(before.barriers)
        deleted = {each.id for each in before.barriers} - {each.id for each in after.barriers}
        changes += [Change(paths.barriers + each.id.encode(), _barrier_to_json(scope, each)) for each in put]
        changes += [Change(paths.barriers + barrier_id.encode(), None) for barrier_id in deleted]
        return changes

    def _paths(self, scope: int) -> _Paths:
        if scope == NULL_KEYSPACE:
            return _Paths(
                b"/tidb/store/gcworker/saved_safe_point",
                f"{self._root}/gc/safe_point".encode(),
                f"{self._root}/gc/safe_point/service/".encode(),
            )
        return _Paths(
            f"/keyspaces/tidb/{scope}/tidb/store/gcworker/saved_safe_point".encode(),
            f"{self._root}/keyspaces/gc_safe_point/{scope:08d}".encode(),
            f"{self._root}/keyspaces/service_safe_point/{scope:08d}/".encode(),
        )

    def _global_key(self, barrier_id: str) -> bytes:
        return self._global_barriers + barrier_id.encode()


def has_own_gc(keyspace: keyspacepb.KeyspaceMeta) -> bool:
    """Whether a keyspace has safe points and barriers of its own."""
    key, value = _OWN_GC
    return keyspace.config.get(key) == value


def _describe(barrier: Barrier, *, is_global: bool) -> str:
    kind = "GlobalGCBarrier" if is_global else "GCBarrier"
    expires_at = "<nil>" if barrier.expires_at is None else str(datetime.fromtimestamp(barrier.expires_at, UTC))
    return f'{kind} {{ BarrierID: "{barrier.id}", BarrierTS: {barrier.ts}, ExpirationTime: "{expires_at}" }}'


def _encode_gc_safe_point(scope: int, ts: int) -> bytes:
    if scope == NULL_KEYSPACE:
        return f"{ts:x}".encode()
    return json.dumps({"keyspace_id": scope, "safe_point": ts}).encode()


def _decode_gc_safe_point(scope: int, value: bytes) -> int:
    return int(value, 16) if scope == NULL_KEYSPACE else int(json.loads(value)["safe_point"])


def _barrier_to_json(scope: int, barrier: Barrier) -> bytes:
    expired_at = gc_states.NEVER if barrier.expires_at is None else barrier.expires_at
    fields: dict[str, Any] = {"service_id": barrier.id, "expired_at": expired_at, "safe_point": barrier.ts}
    if scope != NULL_KEYSPACE:
        fields["keyspace_id"] = scope
    return json.dumps(fields).encode()


def _barrier_from_json(value: bytes) -> Barrier:
    fields = json.loads(value)
    expired_at = fields["expired_at"]
    return Barrier(fields["service_id"], fields["safe_point"], None if expired_at == gc_states.NEVER else expired_at)


def _global_barrier_to_json(barrier: Barrier) -> bytes:
    expiration = None if barrier.expires_at is None else datetime.fromtimestamp(barrier.expires_at, UTC).isoformat()
    fields = {"barrier_id": barrier.id, "barrier_ts": barrier.ts, "expiration_time": expiration}
    return json.dumps(fields).encode()


def _global_barrier_from_json(value: bytes) -> Barrier:
    fields = json.loads(value)
    expiration = fields["expiration_time"]
    expires_at = None if expiration is None else int(datetime.fromisoformat(expiration).timestamp())
    return Barrier(fields["barrier_id"], fields["barrier_ts"], expires_at)
