"""The settings of a resource group, and what it consumed, as values."""

from __future__ import annotations

import attrs
from tikv_proto import resource_manager as rmpb

from tikv_pd._services.gc import NULL_KEYSPACE


@attrs.frozen
class Consumption:
    """What was used. Source: resource_manager.Consumption."""

    read_ru: float = 0.0
    """Request units of reads."""
    write_ru: float = 0.0
    """Request units of writes."""
    read_bytes: float = 0.0
    """Bytes read."""
    write_bytes: float = 0.0
    """Bytes written."""
    cpu_time: float = 0.0
    """Seconds of CPU, in TiKV and in the layer above."""
    sql_cpu_time: float = 0.0
    """Seconds of CPU in the layer above alone."""
    read_count: float = 0.0
    """RPCs to TiKV that read."""
    write_count: float = 0.0
    """RPCs to TiKV that wrote."""
    read_cross_zone_bytes: int = 0
    """Bytes that reads moved between zones."""
    write_cross_zone_bytes: int = 0
    """Bytes that writes moved between zones."""
    ru_v2: float = 0.0
    """Request units of TiKV in the second model, which PD adds up and limits nobody by."""

    @classmethod
    def from_pb(cls, consumption: rmpb.Consumption) -> Consumption:
        """Make the value from the message."""
        return cls(
            consumption.r_r_u,
            consumption.w_r_u,
            consumption.read_bytes,
            consumption.write_bytes,
            consumption.total_cpu_time_ms / 1000,
            consumption.sql_layer_cpu_time_ms / 1000,
            consumption.kv_read_rpc_count,
            consumption.kv_write_rpc_count,
            consumption.read_cross_az_traffic_bytes,
            consumption.write_cross_az_traffic_bytes,
            consumption.tikv_r_u_v2,
        )

    def to_pb(self) -> rmpb.Consumption:
        """Make the message from the value."""
        return rmpb.Consumption(
            r_r_u=self.read_ru,
            w_r_u=self.write_ru,
            read_bytes=self.read_bytes,
            write_bytes=self.write_bytes,
            total_cpu_time_ms=self.cpu_time * 1000,
            sql_layer_cpu_time_ms=self.sql_cpu_time * 1000,
            kv_read_rpc_count=self.read_count,
            kv_write_rpc_count=self.write_count,
            read_cross_az_traffic_bytes=self.read_cross_zone_bytes,
            write_cross_az_traffic_bytes=self.write_cross_zone_bytes,
            tikv_r_u_v2=self.ru_v2,
        )


@attrs.frozen
class Runaway:
    """What becomes of queries that use too much: settings for the layer above, which enforces them.

    Source: resource_manager.RunawaySettings.
    """

    action: str
    """resource_manager.RunawayAction by name, such as `Kill` or `CoolDown`."""
    max_elapsed: float = 0.0
    """Seconds a query may take; 0 for no limit."""
    max_processed_keys: int = 0
    """Keys it may process; 0 for no limit."""
    max_request_units: int = 0
    """Request units it may use; 0 for no limit."""
    switch_group: str = ""
    """The group it goes on in, where the action is `SwitchGroup`."""
    watch: str = "NoneWatch"
    """resource_manager.RunawayWatchType by name: which other queries are taken for the same one."""
    watch_duration: float = 0.0
    """Seconds that those are looked for; 0 for no end."""

    @classmethod
    def from_pb(cls, runaway: rmpb.RunawaySettings) -> Runaway:
        """Make the value from the message."""
        return cls(
            rmpb.RunawayAction.Name(runaway.action),
            runaway.rule.exec_elapsed_time_ms / 1000,
            runaway.rule.processed_keys,
            runaway.rule.request_unit,
            runaway.switch_group_name,
            rmpb.RunawayWatchType.Name(runaway.watch.type),
            runaway.watch.lasting_duration_ms / 1000,
        )

    def to_pb(self) -> rmpb.RunawaySettings:
        """Make the message from the value."""
        return rmpb.RunawaySettings(
            rule=rmpb.RunawayRule(
                exec_elapsed_time_ms=round(self.max_elapsed * 1000),
                processed_keys=self.max_processed_keys,
                request_unit=self.max_request_units,
            ),
            action=rmpb.RunawayAction.Value(self.action),
            watch=rmpb.RunawayWatch(
                type=rmpb.RunawayWatchType.Value(self.watch), lasting_duration_ms=round(self.watch_duration * 1000)
            ),
            switch_group_name=self.switch_group,
        )


@attrs.frozen
class ResourceGroup:
    """A group of users that share request units (RU). Source: resource_manager.ResourceGroup."""

    name: str
    """Unique name; `default` is there always."""
    fill_rate: int
    """Request units the group is given a second."""
    burst_limit: int = 0
    """Request units it may save up; 0 for as many as `fill_rate`, negative for whatever others leave."""
    priority: int = 8
    """Who comes first when units are short: 0 to 16, higher is sooner."""
    job_types: tuple[str, ...] = ()
    """Kinds of its jobs that run in the background."""
    utilization_limit: int = 0
    """Percent of a store's resources that those may use; 0 for no limit."""
    runaway: Runaway | None = None
    """What becomes of queries that use too much; None for nothing."""
    keyspace_id: int | None = None
    """The keyspace it is of; None for none, and in a group to be added for the one it is added to."""
    consumption: Consumption | None = attrs.field(default=None, eq=False)
    """What it consumed, if that was asked for; not part of the settings."""

    @classmethod
    def from_pb(cls, group: rmpb.ResourceGroup) -> ResourceGroup:
        """Make the value from the message."""
        settings = group.r_u_settings.r_u.settings
        keyspace_id = group.keyspace_id.value if group.HasField("keyspace_id") else NULL_KEYSPACE
        return cls(
            group.name,
            settings.fill_rate,
            settings.burst_limit,
            group.priority,
            tuple(group.background_settings.job_types),
            group.background_settings.utilization_limit,
            Runaway.from_pb(group.runaway_settings) if group.HasField("runaway_settings") else None,
            keyspace_id if keyspace_id != NULL_KEYSPACE else None,
            Consumption.from_pb(group.RUStats) if group.HasField("RUStats") else None,
        )

    def to_pb(self) -> rmpb.ResourceGroup:
        """Make the message from the value, less what is no setting."""
        settings = rmpb.TokenLimitSettings(fill_rate=self.fill_rate, burst_limit=self.burst_limit)
        has_background = self.job_types or self.utilization_limit
        return rmpb.ResourceGroup(
            name=self.name,
            mode=rmpb.GroupMode.RUMode,
            r_u_settings=rmpb.GroupRequestUnitSettings(r_u=rmpb.TokenBucket(settings=settings)),
            priority=self.priority,
            background_settings=rmpb.BackgroundSettings(
                job_types=self.job_types, utilization_limit=self.utilization_limit
            )
            if has_background
            else None,
            runaway_settings=self.runaway.to_pb() if self.runaway is not None else None,
            keyspace_id=keyspace_pb(self.keyspace_id),
        )


def keyspace_pb(keyspace_id: int | None) -> rmpb.KeyspaceIDValue | None:
    """Return a keyspace id as a message; none at all stands for no keyspace."""
    return rmpb.KeyspaceIDValue(value=keyspace_id) if keyspace_id is not None else None
