"""PD's own key-value storage, and the configuration of a cluster that is kept in it.

Source: meta_storagepb; pdpb StoreGlobalConfig, LoadGlobalConfig.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import attrs
from tikv_proto import meta_storagepb, pdpb, services

from tikv_pd._calls import Calls
from tikv_pd.errors import ConfigError
from tikv_pd.lowlevel import as_bytes

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


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of the range of all keys with a prefix; a zero byte stands for no end."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\x00"


def _key(key: bytes) -> bytes:
    key = as_bytes(key, "key")
    if not key:
        raise ConfigError("key must not be empty")
    return key
