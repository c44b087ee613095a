"""The own storage of a `FakePd`, and the configuration in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import Message
from tikv_proto import meta_storagepb, pdpb
from tikv_proto.services import PD, MetaStorage, Rpc

CONFIG_ROOT = "/global/config"
"""Below this path configuration is kept."""


class FakeMeta:
    """What PD keeps for others, without history; to be changed at any time."""

    def __init__(self) -> None:
        self.revision = 1
        """How often the storage changed, and one."""
        self.entries: dict[bytes, bytes] = {}
        """The values by key."""

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
        self.revision += 1
        self.entries[key] = value

    def _get(self, request: meta_storagepb.GetRequest) -> meta_storagepb.GetResponse:
        end = request.range_end
        found = [
            meta_storagepb.KeyValue(key=key, value=value)
            for key, value in sorted(self.entries.items())
            if key == request.key or (end and request.key <= key and (end == b"\x00" or key < end))
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
        self.revision += 1
        deleted = self.entries.pop(request.key, None)
        return meta_storagepb.DeleteResponse(deleted=1 if deleted is not None else 0)

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
                self.entries.pop(key, None)
        return pdpb.StoreGlobalConfigResponse()
