"""The own storage of a `FakePd`, and the configuration in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio
from google.protobuf.message import Message
from tikv_proto import meta_storagepb, pdpb
from tikv_proto.services import PD, MetaStorage, Rpc

from tikv_pd._fakes.memory_transport import ServerStream, fail

CONFIG_ROOT = "/global/config"
"""Below this path configuration is kept."""


class FakeMeta:
    """What PD keeps for others, to be changed at any time.

    Reads know what is now alone, whatever revision they ask for. Watches know what `put` and `delete` did since
    `compact`.
    """

    def __init__(self) -> None:
        self.revision = 1
        """How often the storage changed, and one."""
        self.entries: dict[bytes, bytes] = {}
        """The values by key."""
        self.watches: list[meta_storagepb.WatchRequest] = []
        """The requests of the watches, ended ones too."""
        self._history: list[meta_storagepb.Event] = []
        self._compacted = 0
        self._changed = anyio.Event()

    def answers(self) -> Mapping[Rpc[Any, Any], Callable[[Any], Message]]:
        """Return what answers each RPC."""
        return {
            MetaStorage.Get: self._get,
            MetaStorage.Put: self._put,
            MetaStorage.Delete: self._delete,
            PD.LoadGlobalConfig: self._load,
            PD.StoreGlobalConfig: self._store,
        }

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value of a key."""
        before = self._pair(key)
        self.entries[key] = value
        kind = meta_storagepb.Event.EventType.PUT
        self._tell(kind, meta_storagepb.KeyValue(key=key, value=value), before)

    def delete(self, *keys: bytes) -> None:
        """Remove keys, all in one revision."""
        gone = {key: self._pair(key) for key in keys}
        for key, before in gone.items():
            self.entries.pop(key, None)
            pair = meta_storagepb.KeyValue(key=key)
            self._tell(meta_storagepb.Event.EventType.DELETE, pair, before, is_new=key == keys[0])

    def compact(self) -> None:
        """Forget the changes so far: watches from before now are told so."""
        self._history.clear()
        self._compacted = self.revision
        self._wake()

    async def watch(self, stream: ServerStream, request: meta_storagepb.WatchRequest) -> None:
        """Serve one watch until it is cancelled. Each message tells the revision of the whole storage, as PD's do."""
        self.watches.append(request)
        following = request.start_revision or self.revision + 1
        while True:
            changed = self._changed
            if following < self._compacted:
                kind = meta_storagepb.ErrorType.DATA_COMPACTED
                gone = meta_storagepb.Error(type=kind, message=f"revision {following} is gone")
                header = meta_storagepb.ResponseHeader(revision=self.revision, error=gone)
                await stream.send(meta_storagepb.WatchResponse(header=header, compact_revision=self._compacted))
                raise fail("UNKNOWN", "required revision has been compacted")
            for revision in range(following, self.revision + 1):
                following = revision + 1
                events = [
                    _told(each, with_previous=request.prev_kv)
                    for each in self._history
                    if each.kv.mod_revision == revision and _is_within(each.kv.key, request.key, request.range_end)
                ]
                if events:
                    header = meta_storagepb.ResponseHeader(revision=self.revision)
                    await stream.send(meta_storagepb.WatchResponse(header=header, events=events))
            await changed.wait()

    def _pair(self, key: bytes) -> meta_storagepb.KeyValue | None:
        value = self.entries.get(key)
        return meta_storagepb.KeyValue(key=key, value=value) if value is not None else None

    def _tell(
        self,
        kind: meta_storagepb.Event.EventType.ValueType,
        pair: meta_storagepb.KeyValue,
        before: meta_storagepb.KeyValue | None,
        *,
        is_new: bool = True,
    ) -> None:
        self.revision += is_new
        pair.mod_revision = self.revision
        self._history.append(meta_storagepb.Event(type=kind, kv=pair, prev_kv=before))
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _get(self, request: meta_storagepb.GetRequest) -> meta_storagepb.GetResponse:
        found = [
            meta_storagepb.KeyValue(key=key, value=value)
            for key, value in sorted(self.entries.items())
            if _is_within(key, request.key, request.range_end)
        ]
        limit = request.limit or len(found)
        return meta_storagepb.GetResponse(
            header=meta_storagepb.ResponseHeader(revision=self.revision),
            kvs=found[:limit],
            more=len(found) > limit,
            count=len(found),
        )

    def _put(self, request: meta_storagepb.PutRequest) -> meta_storagepb.PutResponse:
        self.put(request.key, request.value)
        return meta_storagepb.PutResponse(header=meta_storagepb.ResponseHeader(revision=self.revision))

    def _delete(self, request: meta_storagepb.DeleteRequest) -> meta_storagepb.DeleteResponse:
        deleted = request.key in self.entries
        self.delete(request.key)
        return meta_storagepb.DeleteResponse(deleted=int(deleted))

    def _load(self, request: pdpb.LoadGlobalConfigRequest) -> pdpb.LoadGlobalConfigResponse:
        root = f"{request.config_path or CONFIG_ROOT}/".encode()
        if not request.names:
            items = [
                pdpb.GlobalConfigItem(name=key.decode(), payload=value)
                for key, value in sorted(self.entries.items())
                if key.startswith(root)
            ]
            return pdpb.LoadGlobalConfigResponse(items=items, revision=self.revision)
        return pdpb.LoadGlobalConfigResponse(items=[self._item(root, name) for name in request.names])

    def _item(self, root: bytes, name: str) -> pdpb.GlobalConfigItem:
        value = self.entries.get(root + name.encode())
        if value is None:
            missing = pdpb.Error(type=pdpb.ErrorType.GLOBAL_CONFIG_NOT_FOUND, message="not found")
            return pdpb.GlobalConfigItem(name=name, error=missing)
        return pdpb.GlobalConfigItem(name=name, payload=value)

    def _store(self, request: pdpb.StoreGlobalConfigRequest) -> pdpb.StoreGlobalConfigResponse:
        for change in request.changes:
            key = f"{request.config_path or CONFIG_ROOT}/{change.name}".encode()
            if change.kind == pdpb.EventType.PUT:
                self.put(key, change.payload or change.value.encode())
            else:
                self.delete(key)
        return pdpb.StoreGlobalConfigResponse()


def _told(event: meta_storagepb.Event, *, with_previous: bool) -> meta_storagepb.Event:
    has_previous = with_previous and event.HasField("prev_kv")
    return meta_storagepb.Event(type=event.type, kv=event.kv, prev_kv=event.prev_kv if has_previous else None)


def _is_within(key: bytes, start: bytes, end: bytes) -> bool:
    """Tell whether a key is asked for: one, or those of `[start, end)`, which a zero byte leaves open."""
    return key == start if not end else start <= key and (end == b"\x00" or key < end)
