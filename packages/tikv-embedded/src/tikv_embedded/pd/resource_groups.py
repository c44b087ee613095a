"""Resource groups: their settings, kept among PD's own pairs where watches see them, and their token buckets.

What the buckets hold and what was consumed is kept in memory: a restart fills the buckets again.
Source: tikv/pd pkg/mcs/resourcemanager/server (keyspace_manager.go, resource_group.go, config.go).
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import attrs
from tikv_proto import resource_manager as rm

from tikv_embedded.pd.gc_store import NULL_KEYSPACE
from tikv_embedded.pd.keyspaces import Keyspaces
from tikv_embedded.pd.revisions import Change, RevisionedStore, Selection
from tikv_embedded.pd.token_bucket import UNLIMITED, UNLIMITED_RATE, Grant, TokenBucket

DEFAULT_GROUP = "default"
"""The group that every keyspace has: unlimited, of middle priority, and not to be deleted."""
CONTROLLER_KEY = b"resource_group/controller"
"""Where clients find how requests are converted to request units."""

_MAX_NAME, _MAX_PRIORITY, _MIDDLE_PRIORITY = 32, 16, 8
_SETTINGS, _KEYSPACE_SETTINGS = "resource_group/settings/", "resource_group/keyspace/settings/"
_CONTROLLER = {
    "degraded-mode-wait-duration": "0s",
    "ltb-max-wait-duration": "30s",
    "ltb-token-rpc-max-delay": "1s",
    "request-unit": {
        "read-base-cost": 0.125,
        "read-per-batch-base-cost": 0.5,
        "read-cost-per-byte": 1 / (64 * 1024),
        "write-base-cost": 1,
        "write-per-batch-base-cost": 1,
        "write-cost-per-byte": 1 / 1024,
        "read-cpu-ms-cost": 1 / 3,
    },
    "enable-controller-trace-log": "false",
}


class GroupRefusedError(Exception):
    """The group is not there, or its settings make no sense; the text is what PD says."""


@attrs.define
class _Group:
    settings: rm.ResourceGroup
    """Without tokens and statistics."""
    bucket: TokenBucket
    consumption: rm.Consumption = attrs.field(factory=rm.Consumption)


class ResourceGroups:
    """The resource groups of one cluster, by keyspace; settings are durable when a method returns.

    Args:
        store: Where the settings lie.
        keyspaces: Which keyspaces may have groups.
    """

    def __init__(self, store: RevisionedStore, keyspaces: Keyspaces) -> None:
        self._store = store
        self._keyspaces = keyspaces
        self._groups: dict[int, dict[str, _Group]] = {}
        for prefix in (_SETTINGS, _KEYSPACE_SETTINGS):
            for pair in store.select(Selection.prefix(prefix.encode())):
                settings = rm.ResourceGroup.FromString(pair.value)
                self._groups.setdefault(keyspace_of(settings), {})[settings.name] = _new_group(settings)
        if store.get(CONTROLLER_KEY) is None:
            store.apply([Change(CONTROLLER_KEY, json.dumps(_CONTROLLER).encode())])
        if DEFAULT_GROUP not in self._groups.setdefault(NULL_KEYSPACE, {}):
            self.add(_default_group(NULL_KEYSPACE))
        for keyspace_id, groups in self._groups.items():
            groups.setdefault(DEFAULT_GROUP, _new_group(_default_group(keyspace_id)))

    def get(self, keyspace_id: int, name: str, *, with_stats: bool = False) -> rm.ResourceGroup:
        """Return a group with its tokens, and its consumption if asked for.

        Raises:
            GroupRefusedError: there is no such group or keyspace.
        """
        return _show(self._find(keyspace_id, name), with_stats=with_stats)

    def list(self, keyspace_id: int, *, with_stats: bool = False) -> Iterator[rm.ResourceGroup]:
        """Yield the groups of a keyspace as `get` does, by name.

        Raises:
            GroupRefusedError: there is no such keyspace.
        """
        groups = self._of(keyspace_id)
        return (_show(groups[name], with_stats=with_stats) for name in sorted(groups))

    def add(self, settings: rm.ResourceGroup) -> None:
        """Make a group, in place of one of the same name.

        Raises:
            GroupRefusedError: name, priority or mode are not allowed, or there is no such keyspace.
        """
        if not 0 < len(settings.name) <= _MAX_NAME:
            raise GroupRefusedError("invalid group settings, please check the group name")
        if settings.priority > _MAX_PRIORITY:
            raise GroupRefusedError("invalid group settings, please check the group priority")
        _check_mode(settings)
        groups = self._of(keyspace_of(settings))
        group = groups[settings.name] = _new_group(settings)
        self._save(group)

    def modify(self, settings: rm.ResourceGroup) -> None:
        """Change a group's settings; tokens among them are added to the bucket.

        Raises:
            GroupRefusedError: no such group, another mode, no settings for request units, or too high a priority.
        """
        if not settings.name:
            raise GroupRefusedError("invalid group settings, please check the group name")
        group = self._find(keyspace_of(settings), settings.name)
        if settings.mode != group.settings.mode:
            raise GroupRefusedError(
                "only support reconfigure in same mode, maybe you should delete and create a new one"
            )
        if settings.priority > _MAX_PRIORITY:
            raise GroupRefusedError("invalid resource group priority, the value should be in [0,16]")
        if not settings.HasField("r_u_settings"):
            raise GroupRefusedError("invalid resource group settings, RU mode should set RU settings")
        changed = _bare(settings)
        if not settings.r_u_settings.r_u.HasField("settings"):
            changed.r_u_settings.r_u.settings.CopyFrom(group.bucket.settings)
        group.settings = changed
        group.bucket.reconfigure(changed.r_u_settings.r_u.settings, settings.r_u_settings.r_u.tokens)
        self._save(group)

    def delete(self, keyspace_id: int, name: str) -> None:
        """Delete a group.

        Raises:
            GroupRefusedError: there is no such group, or it is the default one.
        """
        if name == DEFAULT_GROUP:
            raise GroupRefusedError("cannot delete reserved group")
        self._find(keyspace_id, name)
        del self._groups[keyspace_id][name]
        self._store.apply([Change(_key(keyspace_id, name), None)])

    def request(self, keyspace_id: int, name: str, client_id: int, wanted: float, period: float, now: float) -> Grant:
        """Return what a client gets; see `TokenBucket.request`.

        Raises:
            GroupRefusedError: there is no such group or keyspace.
        """
        return self._find(keyspace_id, name).bucket.request(client_id, wanted, period, now)

    def consume(self, keyspace_id: int, name: str, consumption: rm.Consumption) -> None:
        """Add to what the group consumed.

        Raises:
            GroupRefusedError: there is no such group or keyspace.
        """
        total = self._find(keyspace_id, name).consumption
        for field, value in consumption.ListFields():
            setattr(total, field.name, getattr(total, field.name) + value)

    def _of(self, keyspace_id: int) -> dict[str, _Group]:
        """Return the groups of a keyspace, which has its default group from the first look on."""
        if keyspace_id not in self._groups:
            if self._keyspaces.by_id(keyspace_id) is None:
                raise GroupRefusedError(f"the keyspace does not exist with id {keyspace_id}")
            self._groups[keyspace_id] = {DEFAULT_GROUP: _new_group(_default_group(keyspace_id))}
        return self._groups[keyspace_id]

    def _find(self, keyspace_id: int, name: str) -> _Group:
        group = self._of(keyspace_id).get(name)
        if group is None:
            raise GroupRefusedError(f"the {name} resource group does not exist")
        return group

    def _save(self, group: _Group) -> None:
        key = _key(keyspace_of(group.settings), group.settings.name)
        self._store.apply([Change(key, group.settings.SerializeToString())])


def keyspace_of(message: rm.ResourceGroup) -> int:
    """Return the keyspace that a group is in; none at all is the one that stands for no keyspace."""
    return message.keyspace_id.value if message.HasField("keyspace_id") else NULL_KEYSPACE


def _new_group(settings: rm.ResourceGroup) -> _Group:
    bucket = settings.r_u_settings.r_u
    return _Group(_bare(settings), TokenBucket(_copy(bucket.settings), bucket.tokens))


def _bare(settings: rm.ResourceGroup) -> rm.ResourceGroup:
    """Return a copy without what changes all the time."""
    bare = rm.ResourceGroup()
    bare.CopyFrom(settings)
    bare.r_u_settings.r_u.ClearField("tokens")
    bare.ClearField("RUStats")
    bare.keyspace_id.value = keyspace_of(settings)
    return bare


def _copy(settings: rm.TokenLimitSettings) -> rm.TokenLimitSettings:
    copy = rm.TokenLimitSettings()
    copy.CopyFrom(settings)
    return copy


def _show(group: _Group, *, with_stats: bool) -> rm.ResourceGroup:
    shown = rm.ResourceGroup()
    shown.CopyFrom(group.settings)
    shown.r_u_settings.r_u.tokens = group.bucket.tokens
    if with_stats:
        shown.RUStats.CopyFrom(group.consumption)
    return shown


def _default_group(keyspace_id: int) -> rm.ResourceGroup:
    limits = rm.TokenLimitSettings(fill_rate=UNLIMITED_RATE, burst_limit=UNLIMITED)
    return rm.ResourceGroup(
        name=DEFAULT_GROUP,
        mode=rm.GroupMode.RUMode,
        r_u_settings=rm.GroupRequestUnitSettings(r_u=rm.TokenBucket(settings=limits)),
        priority=_MIDDLE_PRIORITY,
        keyspace_id=rm.KeyspaceIDValue(value=keyspace_id),
    )


def _check_mode(settings: rm.ResourceGroup) -> None:
    """Only request units can be limited; a real PD crashes over raw resources."""
    if settings.mode != rm.GroupMode.RUMode:
        raise GroupRefusedError("invalid group settings, please check the group mode")


def _key(keyspace_id: int, name: str) -> bytes:
    prefix = _SETTINGS if keyspace_id == NULL_KEYSPACE else f"{_KEYSPACE_SETTINGS}{keyspace_id}/"
    return (prefix + name).encode()
