"""Keyspaces: which there are, and their states."""

from __future__ import annotations

from typing import Final

from tikv_proto import keyspacepb, services

from tikv_pd._routing.calls import Calls
from tikv_pd._streams.watch import Watch
from tikv_pd.errors import ConfigError, EntryNotFound, KeyspaceNotFound
from tikv_pd.topology import Keyspace

_IDS: Final = range(1 << 24)


class _Changes:
    """The feed of keyspaces. PD numbers no revisions of them: each stream begins with all there are."""

    rpc = services.Keyspace.WatchKeyspaces
    """WatchKeyspaces."""

    async def begin(self) -> None:
        """Return at once: PD tells everything from the beginning."""

    def request(self) -> keyspacepb.WatchKeyspacesRequest:
        """Return the request."""
        return keyspacepb.WatchKeyspacesRequest()

    def take(self, answer: keyspacepb.WatchKeyspacesResponse) -> list[Keyspace]:
        """Return the keyspaces."""
        return [Keyspace.from_pb(keyspace) for keyspace in answer.keyspaces]


class Keyspaces:
    """Keyspaces, as `PdClient.keyspaces`. Errors and cancellation as there."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def get(self, name: str, *, timeout: float | None = None) -> Keyspace:
        """Return the keyspace of this name, whatever its state.

        Raises:
            KeyspaceNotFound: there is none, or its Regions are not ready.

        Source: keyspacepb.Keyspace.LoadKeyspace.
        """
        request = keyspacepb.LoadKeyspaceRequest(name=name)
        try:
            answer = await self._calls.call("get", services.Keyspace.LoadKeyspace, request, timeout)
        except EntryNotFound as error:
            raise KeyspaceNotFound(name, error.message) from error
        return Keyspace.from_pb(answer.keyspace)

    async def get_by_id(self, keyspace_id: int, *, timeout: float | None = None) -> Keyspace:
        """Return the keyspace of this id, whatever its state.

        Raises:
            KeyspaceNotFound: there is none.

        Source: keyspacepb.Keyspace.LoadKeyspaceByID.
        """
        request = keyspacepb.LoadKeyspaceByIDRequest(id=_id(keyspace_id))
        try:
            answer = await self._calls.call("get_by_id", services.Keyspace.LoadKeyspaceByID, request, timeout)
        except EntryNotFound as error:
            raise KeyspaceNotFound(str(keyspace_id), error.message) from error
        return Keyspace.from_pb(answer.keyspace)

    async def get_all(self, start_id: int = 0, *, limit: int = 1000, timeout: float | None = None) -> list[Keyspace]:
        """Return the keyspaces in order of their ids, the first `limit` of them from `start_id` on.

        Source: keyspacepb.Keyspace.GetAllKeyspaces.
        """
        if not 0 < limit < 1 << 32:
            raise ConfigError(f"limit must be between 1 and 2**32 - 1, got {limit}")
        request = keyspacepb.GetAllKeyspacesRequest(start_id=_id(start_id), limit=limit)
        answer = await self._calls.call("get_all", services.Keyspace.GetAllKeyspaces, request, timeout)
        return [Keyspace.from_pb(keyspace) for keyspace in answer.keyspaces]

    async def update_state(self, keyspace_id: int, state: str, *, timeout: float | None = None) -> Keyspace:
        """Change the state of a keyspace and return it.

        Args:
            keyspace_id: Which keyspace; the default one cannot be changed.
            state: `ENABLED` and `DISABLED` follow each other; `DISABLED` is followed by `ARCHIVED`, that by
                `TOMBSTONE`, for good. The state it has already changes nothing.
            timeout: Seconds.

        Raises:
            PdError: it cannot go there from where it is.
            KeyspaceNotFound: there is none.

        Source: keyspacepb.Keyspace.UpdateKeyspaceState.
        """
        states = keyspacepb.KeyspaceState.keys()
        if state not in states:
            raise ConfigError(f"state must be one of {', '.join(states)}, got {state!r}")
        request = keyspacepb.UpdateKeyspaceStateRequest(
            id=_id(keyspace_id), state=keyspacepb.KeyspaceState.Value(state)
        )
        try:
            answer = await self._calls.call("update_state", services.Keyspace.UpdateKeyspaceState, request, timeout)
        except EntryNotFound as error:
            raise KeyspaceNotFound(str(keyspace_id), error.message) from error
        return Keyspace.from_pb(answer.keyspace)

    def watch(self) -> Watch[Keyspace]:
        """Return a watch of the keyspaces: all there are, then each one that is made or changed, as it is since.

        After the stream broke or the leader moved all of them are told again, since PD numbers no revisions of them:
        what matters is the state a keyspace is in, not how often that is told. PD itself notices that a watch ended
        when it has the next change to tell, so few long watches cost it less than many short ones.

        Source: keyspacepb.Keyspace.WatchKeyspaces, which PD serves though its Go client does not use it.
        """
        return Watch(self._calls, _Changes())


def enabled(keyspace: Keyspace) -> Keyspace:
    """Return the keyspace if it is enabled; raise KeyspaceNotFound otherwise."""
    if keyspace.state != "ENABLED":
        raise KeyspaceNotFound(keyspace.name, f"it is {keyspace.state}")
    return keyspace


def _id(keyspace_id: int) -> int:
    if keyspace_id not in _IDS:
        raise ConfigError(f"a keyspace id must be between 0 and 2**24 - 1, got {keyspace_id}")
    return keyspace_id
