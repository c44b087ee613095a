"""Global config: settings of the whole cluster under /global/config, kept among PD's own pairs.

Requests have no header, so every member answers them.
Source: tikv/pd server/grpc_service.go StoreGlobalConfig, LoadGlobalConfig, WatchGlobalConfig.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
from tikv_proto import pdpb
from tikv_proto.services import PD

from tikv_embedded.pd.meta_storage_service import compaction_message
from tikv_embedded.pd.revisions import DELETE, Change, CompactedError, DuplicateKeyError, Event, Selection
from tikv_embedded.pd.state import PdState
from tikv_embedded.rpc_handlers import Handler, ServicerContext, server_stream, unary

ROOT = "/global/config/"
"""Where all of it lies."""
CONTROLLER = "resource_group/controller"
"""The one path outside that can be loaded, without names."""


class GlobalConfigService:
    """Handlers of any PD member; `state` is shared with the others."""

    def __init__(self, state: PdState) -> None:
        self._state = state
        self._pairs = state.pairs

    def handlers(self) -> list[Handler]:
        """Return what a member answers."""
        return [
            unary(PD.StoreGlobalConfig, self._store),
            unary(PD.LoadGlobalConfig, self._load),
            server_stream(PD.WatchGlobalConfig, self._watch),
        ]

    async def _store(
        self, request: pdpb.StoreGlobalConfigRequest, context: ServicerContext
    ) -> pdpb.StoreGlobalConfigResponse:
        """All changes are one revision."""
        path = await _checked(request.config_path, context)
        changes = [
            Change(_key(path, item.name), None if item.kind == pdpb.EventType.DELETE else _value(item))
            for item in request.changes
        ]
        try:
            self._pairs.apply(changes)
        except DuplicateKeyError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return pdpb.StoreGlobalConfigResponse()

    async def _load(
        self, request: pdpb.LoadGlobalConfigRequest, context: ServicerContext
    ) -> pdpb.LoadGlobalConfigResponse:
        if request.names:
            path = await _checked(request.config_path, context)
            return pdpb.LoadGlobalConfigResponse(items=[self._item(path, name) for name in request.names])
        is_controller = request.config_path == CONTROLLER
        path = CONTROLLER if is_controller else await _checked(request.config_path, context)
        pairs = self._pairs.select(Selection.prefix(path.encode()))
        items = [
            pdpb.GlobalConfigItem(name=pair.key.decode(errors="replace"), payload=pair.value, kind=pdpb.EventType.PUT)
            for pair in pairs
        ]
        return pdpb.LoadGlobalConfigResponse(items=items, revision=self._pairs.revision)

    async def _watch(
        self, request: pdpb.WatchGlobalConfigRequest, context: ServicerContext
    ) -> AsyncIterator[pdpb.WatchGlobalConfigResponse]:
        path = await _checked(request.config_path, context)
        try:
            async for revision, events in self._pairs.watch(Selection.prefix(path.encode()), request.revision):
                yield pdpb.WatchGlobalConfigResponse(changes=map(_change, events), revision=revision)
        except CompactedError as error:
            message = compaction_message(request.revision, error)
            yield pdpb.WatchGlobalConfigResponse(header=self._state.error(pdpb.ErrorType.DATA_COMPACTED, message))
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))

    def _item(self, path: str, name: str) -> pdpb.GlobalConfigItem:
        value = self._pairs.get(_key(path, name))
        if value is None:
            error = pdpb.Error(type=pdpb.ErrorType.GLOBAL_CONFIG_NOT_FOUND, message=f"key {name} not found")
            return pdpb.GlobalConfigItem(name=name, error=error)
        return pdpb.GlobalConfigItem(name=name, payload=value, kind=pdpb.EventType.PUT)


async def _checked(path: str, context: ServicerContext) -> str:
    """Return the path to look under; one outside the root ends the call."""
    if path in ("", ROOT.rstrip("/")):
        return ROOT
    if not path.startswith(ROOT):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f'global config path "{path}" is not allowed')
    return path


def _key(path: str, name: str) -> bytes:
    return (f"{path.rstrip('/')}/{name}" if name else path.rstrip("/")).encode()


def _value(item: pdpb.GlobalConfigItem) -> bytes:
    """Return what is to be stored: older callers fill the text alone."""
    return item.value.encode() or item.payload


def _change(event: Event) -> pdpb.GlobalConfigItem:
    """Return a change; one that deletes tells the value that is gone."""
    deletes = event.type == DELETE
    return pdpb.GlobalConfigItem(
        name=event.kv.key.decode(errors="replace"),
        payload=event.prev_kv.value if deletes else event.kv.value,
        kind=pdpb.EventType.DELETE if deletes else pdpb.EventType.PUT,
    )
