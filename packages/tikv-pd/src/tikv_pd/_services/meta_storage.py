"""PD's own key-value storage, and the configuration of a cluster that is kept in it.

Source: meta_storagepb; pdpb StoreGlobalConfig, LoadGlobalConfig, WatchGlobalConfig.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Generic, TypeVar

import attrs
from tikv_proto import meta_storagepb, pdpb, services

from tikv_pd._routing.calls import Calls
from tikv_pd._streams.watch import Watch
from tikv_pd.errors import ConfigError
from tikv_pd.lowlevel import as_bytes

T = TypeVar("T")

_ROOT: Final = "/global/config"
"""Where configuration is kept. Source: PD server grpc_service.go, globalConfigPath."""


@attrs.frozen
class MetaEntries:
    """What a read found."""

    entries: tuple[tuple[bytes, bytes], ...]
    """(key, value) pairs in order of their keys; PD tells no more of them."""
    has_more: bool
    """Whether the limit cut them off."""
    revision: int
    """Revision of the storage when it was read."""


@attrs.frozen
class MetaEvent:
    """A change of one key."""

    key: bytes
    """The key."""
    value: bytes | None
    """Its value since; None when it was removed."""
    revision: int
    """Revision the change made. Those of one revision follow each other."""
    previous: bytes | None = None
    """Its value before, if that was asked for and there was one."""


class _Changes(Generic[T]):
    """The feed of the changes of some keys.

    Args:
        calls: Whom to ask.
        key: The key, or where a range of them begins.
        range_end: Where the range ends; empty for one key.
        revision: The first one to tell; 0 for the one after now.
        prev_kv: Whether values before are told.
        make: Makes what is told.
    """

    rpc = services.MetaStorage.Watch
    """Watch."""

    def __init__(
        self, calls: Calls, key: bytes, range_end: bytes, revision: int, prev_kv: bool, make: Callable[[MetaEvent], T]
    ) -> None:
        if not 0 <= revision < 1 << 63:
            raise ConfigError(f"revision must be between 0 and 2**63 - 1, got {revision}")
        self._calls = calls
        self._key = key
        self._range_end = range_end
        self._next = revision
        self._prev_kv = prev_kv
        self._make = make

    async def begin(self) -> None:
        """Learn which revision is the current one: without, what happens while a stream is replaced would be lost."""
        if self._next:
            return
        request = meta_storagepb.GetRequest(key=self._key, limit=1)
        answer = await self._calls.call("watch", services.MetaStorage.Get, request, None)
        self._next = answer.header.revision + 1

    def request(self) -> meta_storagepb.WatchRequest:
        """Return a request from the next revision on."""
        return meta_storagepb.WatchRequest(
            key=self._key, range_end=self._range_end, start_revision=self._next, prev_kv=self._prev_kv
        )

    def take(self, answer: meta_storagepb.WatchResponse) -> list[T]:
        """Return the changes. The header tells the revision of the whole storage, which may be far ahead of them."""
        events = [_event(event) for event in answer.events]
        if events:
            self._next = events[-1].revision + 1
        return [self._make(event) for event in events]


def watch_prefix(
    calls: Calls, prefix: bytes, revision: int, make: Callable[[MetaEvent], T], *, prev_kv: bool = False
) -> Watch[T]:
    """Return a watch of the keys that start with a prefix, which tells what is made of each change."""
    return Watch(calls, _Changes(calls, prefix or b"\x00", prefix_end(prefix), revision, prev_kv, make))


class MetaStorage:
    """PD's own key-value storage, as `PdClient.meta`. Errors and cancellation as there.

    Every change makes a new revision of the whole storage.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def get(self, key: bytes, *, revision: int = 0, timeout: float | None = None) -> bytes | None:
        """Return the value of a key, None when there is none; as of a revision if one is given.

        Raises:
            PdError: that revision is gone.

        Source: meta_storagepb.MetaStorage.Get.
        """
        request = meta_storagepb.GetRequest(key=_key(key), revision=revision)
        found = await self._get("get", request, timeout)
        return found.entries[0][1] if found.entries else None

    async def get_prefix(
        self, prefix: bytes, *, limit: int = 1000, revision: int = 0, timeout: float | None = None
    ) -> MetaEntries:
        """Return the entries whose keys start with `prefix`, the first `limit` of them; an empty one means all.

        Raises:
            PdError: that revision is gone.

        Source: meta_storagepb.MetaStorage.Get.
        """
        if not 0 < limit < 1 << 63:
            raise ConfigError(f"limit must be between 1 and 2**63 - 1, got {limit}")
        prefix = as_bytes(prefix, "prefix")
        request = meta_storagepb.GetRequest(
            key=prefix or b"\x00", range_end=prefix_end(prefix), limit=limit, revision=revision
        )
        return await self._get("get_prefix", request, timeout)

    async def put(self, key: bytes, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        """Store a value and return the revision that made; it ends with the lease, if one is given.

        An attempt that failed after PD took it is repeated, which makes a revision more.

        Source: meta_storagepb.MetaStorage.Put.
        """
        request = meta_storagepb.PutRequest(key=_key(key), value=as_bytes(value, "value"), lease=lease)
        answer = await self._calls.call("put", services.MetaStorage.Put, request, timeout)
        return answer.header.revision

    async def delete(self, key: bytes, *, timeout: float | None = None) -> None:
        """Remove a key, if it is there. Source: meta_storagepb.MetaStorage.Delete."""
        request = meta_storagepb.DeleteRequest(key=_key(key))
        await self._calls.call("delete", services.MetaStorage.Delete, request, timeout)

    def watch(self, key: bytes, *, revision: int = 0, prev_kv: bool = False) -> Watch[MetaEvent]:
        """Return a watch of one key.

        Args:
            key: The key.
            revision: The first revision whose change is told, also when it is over; 0 for those from now on.
            prev_kv: Whether each change comes with the value before.

        Source: meta_storagepb.MetaStorage.Watch.
        """
        return Watch(self._calls, _Changes(self._calls, _key(key), b"", revision, prev_kv, _as_it_is))

    def watch_prefix(self, prefix: bytes, *, revision: int = 0, prev_kv: bool = False) -> Watch[MetaEvent]:
        """Return a watch of all keys that start with `prefix`; an empty one means all. Otherwise as `watch`.

        To miss nothing of what `get_prefix` found, watch from one revision above its own.

        Source: meta_storagepb.MetaStorage.Watch.
        """
        return watch_prefix(self._calls, as_bytes(prefix, "prefix"), revision, _as_it_is, prev_kv=prev_kv)

    async def _get(self, operation: str, request: meta_storagepb.GetRequest, timeout: float | None) -> MetaEntries:
        answer = await self._calls.call(operation, services.MetaStorage.Get, request, timeout)
        entries = tuple((each.key, each.value) for each in answer.kvs)
        return MetaEntries(entries, answer.more, answer.header.revision)


@attrs.frozen
class GlobalConfig:
    """Configuration kept in PD."""

    items: tuple[tuple[str, bytes], ...]
    """(name, value) pairs; names that are not there are left out."""
    revision: int
    """Revision of PD's storage when it was read, if no names were given; otherwise 0."""


@attrs.frozen
class GlobalConfigChange:
    """A change of one item of configuration."""

    name: str
    """The item, below the path that is watched."""
    value: bytes | None
    """Its value since; None when it was removed."""
    revision: int
    """Revision of PD's storage the change made."""


class GlobalConfigs:
    """Configuration kept in PD, as `PdClient.global_config`. Errors and cancellation as there.

    PD allows paths below `/global/config` and a few others of its own; an empty path stands for that one.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def load(self, names: Iterable[str] = (), *, path: str = "", timeout: float | None = None) -> GlobalConfig:
        """Return the items of these names, or all below the path. Source: pdpb.PD.LoadGlobalConfig."""
        request = pdpb.LoadGlobalConfigRequest(names=names, config_path=path)
        answer = await self._calls.call("load", services.PD.LoadGlobalConfig, request, timeout)
        # Without names, PD tells the whole keys.
        root = f"{path or _ROOT}/"
        items = tuple(
            (item.name.removeprefix(root), item.payload or item.value.encode())
            for item in answer.items
            if not item.HasField("error")
        )
        return GlobalConfig(items, answer.revision)

    async def store(self, items: Mapping[str, bytes | None], *, path: str = "", timeout: float | None = None) -> None:
        """Set the items, all or none of them; None removes one. Source: pdpb.PD.StoreGlobalConfig."""
        changes = [
            pdpb.GlobalConfigItem(name=name, kind=pdpb.EventType.PUT, payload=as_bytes(value, "value"))
            if value is not None
            else pdpb.GlobalConfigItem(name=name, kind=pdpb.EventType.DELETE)
            for name, value in items.items()
        ]
        request = pdpb.StoreGlobalConfigRequest(changes=changes, config_path=path)
        await self._calls.call("store", services.PD.StoreGlobalConfig, request, timeout)

    def watch(self, *, path: str = "", revision: int = 0) -> Watch[GlobalConfigChange]:
        """Return a watch of all items below the path.

        To miss nothing of what `load` found, watch from one revision above its own.

        Args:
            path: `/global/config` or below; an empty one stands for that.
            revision: The first revision whose changes are told, also when it is over; 0 for those from now on.

        Source: meta_storagepb.MetaStorage.Watch of the storage all of it lies in. Answers of PD.WatchGlobalConfig do
        not tell which revision a change made, so that a watch of many could not go on where it was without a gap.
        """
        path = path.rstrip("/") or _ROOT
        if path != _ROOT and not path.startswith(f"{_ROOT}/"):
            raise ConfigError(f"path must be {_ROOT} or below, got {path!r}")
        root = f"{path}/"

        def change(event: MetaEvent) -> GlobalConfigChange:
            name = event.key.decode(errors="replace").removeprefix(root)
            return GlobalConfigChange(name, event.value, event.revision)

        return watch_prefix(self._calls, root.encode(), revision, change)


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of the range of all keys with a prefix; a zero byte stands for no end."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\x00"


def _event(event: meta_storagepb.Event) -> MetaEvent:
    is_removed = event.type == meta_storagepb.Event.EventType.DELETE
    return MetaEvent(
        event.kv.key,
        None if is_removed else event.kv.value,
        event.kv.mod_revision,
        event.prev_kv.value if event.HasField("prev_kv") else None,
    )


def _as_it_is(event: MetaEvent) -> MetaEvent:
    return event


def _key(key: bytes) -> bytes:
    key = as_bytes(key, "key")
    if not key:
        raise ConfigError("key must not be empty")
    return key
