"""Region errors by their names, as a store would fill them for a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tikv_proto import errorpb

from tikv_embedded.region import Peer, Region, peer_to_pb, region_to_pb
from tikv_embedded.store.calls import ReceivedCall

_BUSY = "scheduler is busy"
# errorpb has some of its fields in capitals.
_FIELDS = {
    "recovery_in_progress": "RecoveryInProgress",
    "flashback_in_progress": "FlashbackInProgress",
    "flashback_not_prepared": "FlashbackNotPrepared",
}


def _no_defaults(_call: ReceivedCall) -> Mapping[str, Any]:
    return {}


def _region_id(call: ReceivedCall) -> Mapping[str, Any]:
    return {"region_id": call.context.region_id}


_DEFAULTS: dict[str, Callable[[ReceivedCall], Mapping[str, Any]]] = {
    "not_leader": _region_id,
    "region_not_found": _region_id,
    "key_not_in_region": lambda call: {**_region_id(call), "key": getattr(call.request, "key", b"")},
    "epoch_not_match": _no_defaults,
    "server_is_busy": lambda _call: {"reason": _BUSY},
    "stale_command": _no_defaults,
    "store_not_match": lambda call: {
        "request_store_id": call.context.peer.store_id,
        "actual_store_id": call.store_id,
    },
    "raft_entry_too_large": lambda call: {**_region_id(call), "entry_size": call.request.ByteSize()},
    "max_timestamp_not_synced": _no_defaults,
    "read_index_not_ready": lambda call: {**_region_id(call), "reason": "can not read index due to split"},
    "proposal_in_merging_mode": _region_id,
    "data_is_not_ready": lambda call: {**_region_id(call), "peer_id": call.context.peer.id},
    "region_not_initialized": _region_id,
    "disk_full": lambda call: {"store_id": [call.store_id], "reason": "disk full"},
    "recovery_in_progress": _region_id,
    "flashback_in_progress": _region_id,
    "flashback_not_prepared": _region_id,
    "is_witness": _region_id,
    "mismatch_peer_id": lambda call: {"request_peer_id": call.context.peer.id},
    "bucket_version_not_match": _no_defaults,
    "undetermined_result": lambda _call: {"message": "raft result is unknown"},
    "message_only": _no_defaults,
}

REGION_ERRORS = frozenset(_DEFAULTS)
"""All names."""


def region_error(name: str, call: ReceivedCall, fields: Mapping[str, Any], message: str = "") -> errorpb.Error:
    """Return the Region error of that name.

    Args:
        name: One of `REGION_ERRORS`.
        call: What it answers: ids come from its Context.
        fields: Of the error, instead of those; a `Region` and a `Peer` become their wire form.
        message: For people; the name unless given.

    Raises:
        ValueError: the error has no such field.
    """
    field = _FIELDS.get(name, name)
    error = errorpb.Error(message=message or f"injected {name}")
    if name == "message_only" and not fields:
        return error
    if field not in errorpb.Error.DESCRIPTOR.fields_by_name:
        raise ValueError(f"{name} has no fields")
    chosen = {key: _to_wire(value) for key, value in {**_DEFAULTS[name](call), **fields}.items()}
    kind = type(getattr(error, field))
    getattr(error, field).CopyFrom(kind(**chosen))
    return error


def _to_wire(value: Any) -> Any:
    if isinstance(value, Region):
        return region_to_pb(value)
    if isinstance(value, Peer):
        return peer_to_pb(value)
    if isinstance(value, (list, tuple)):
        return [_to_wire(item) for item in value]
    return value
