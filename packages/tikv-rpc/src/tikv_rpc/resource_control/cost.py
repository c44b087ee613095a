"""What requests cost in request units (RU): the model of PD's clients, as arithmetic on values.

A read costs a base before it is sent, and its bytes and CPU time once they are known. A write costs all of it before
it is sent, once for each replica. Source: tikv/pd client/resource_group/controller/model.go.
"""

from __future__ import annotations

import enum
from typing import Any, Final, Self

import attrs
from tikv_pd import ConfigError, Consumption
from tikv_pd.config import number

_BATCH_SHARE: Final = 0.7
"""Part of a request's cost per batch that a single request is charged. Source: defaultAvgBatchProportion."""


def not_negative(_instance: Any, attribute: attrs.Attribute[Any], value: float) -> None:
    """Validate that a number is 0 or above."""
    if not value >= 0:
        raise ConfigError(f"{attribute.name} must not be below 0, got {value!r}")


PRICE: Final = [number, not_negative]
"""What validates the cost of something."""


@attrs.define
class Usage:
    """What was used: request units, and what they are computed from, while it adds up."""

    read_ru: float = 0.0
    """Request units of reads."""
    write_ru: float = 0.0
    """Request units of writes."""
    read_bytes: float = 0.0
    """Bytes read."""
    write_bytes: float = 0.0
    """Bytes written, each counted once however many replicas there are."""
    cpu_ms: float = 0.0
    """Milliseconds of CPU time of reads."""
    read_rpcs: float = 0.0
    """Reads sent."""
    write_rpcs: float = 0.0
    """Writes sent."""
    read_cross_zone_bytes: int = 0
    """Bytes of reads that traveled between zones."""
    write_cross_zone_bytes: int = 0
    """Bytes of writes that traveled between zones, replication included."""
    ru_v2: float = 0.0
    """Request units of the second model, which is only observed."""

    @property
    def ru(self) -> float:
        """Request units in all: what is taken from the group's tokens."""
        return self.read_ru + self.write_ru

    def add(self, other: Usage) -> None:
        """Add `other` to this one."""
        self.read_ru += other.read_ru
        self.write_ru += other.write_ru
        self.read_bytes += other.read_bytes
        self.write_bytes += other.write_bytes
        self.cpu_ms += other.cpu_ms
        self.read_rpcs += other.read_rpcs
        self.write_rpcs += other.write_rpcs
        self.read_cross_zone_bytes += other.read_cross_zone_bytes
        self.write_cross_zone_bytes += other.write_cross_zone_bytes
        self.ru_v2 += other.ru_v2

    def subtract(self, other: Usage) -> None:
        """Take `other` away from this one."""
        self.read_ru -= other.read_ru
        self.write_ru -= other.write_ru
        self.read_bytes -= other.read_bytes
        self.write_bytes -= other.write_bytes
        self.cpu_ms -= other.cpu_ms
        self.read_rpcs -= other.read_rpcs
        self.write_rpcs -= other.write_rpcs
        self.read_cross_zone_bytes -= other.read_cross_zone_bytes
        self.write_cross_zone_bytes -= other.write_cross_zone_bytes
        self.ru_v2 -= other.ru_v2

    def copy(self) -> Usage:
        """Return an equal one that does not change with this one."""
        # Written out: attrs.evolve takes ten times as long, and each request makes copies.
        return Usage(
            self.read_ru,
            self.write_ru,
            self.read_bytes,
            self.write_bytes,
            self.cpu_ms,
            self.read_rpcs,
            self.write_rpcs,
            self.read_cross_zone_bytes,
            self.write_cross_zone_bytes,
            self.ru_v2,
        )

    def growth_since(self, last: Usage) -> Usage:
        """Return by how much each part grew; one that shrank counts as unchanged."""
        # Refunds may take a part below what was reported; PD's sums must not go back.
        return Usage(*(max(now - then, 0) for now, then in zip(attrs.astuple(self), attrs.astuple(last), strict=True)))

    @classmethod
    def highest(cls, left: Usage, right: Usage) -> Self:
        """Return the larger of the two in each part."""
        return cls(*map(max, attrs.astuple(left), attrs.astuple(right)))

    def to_consumption(self) -> Consumption:
        """Return it as PD and stores are told of it."""
        return Consumption(
            self.read_ru,
            self.write_ru,
            self.read_bytes,
            self.write_bytes,
            self.cpu_ms / 1000,
            0.0,
            self.read_rpcs,
            self.write_rpcs,
            # A store may have used less than the whole client since, by a refund: the wire has no negative counts.
            max(self.read_cross_zone_bytes, 0),
            max(self.write_cross_zone_bytes, 0),
            self.ru_v2,
        )


class Access(enum.Enum):
    """How far the store is."""

    UNKNOWN = enum.auto()
    """This client, or the store, has no zone."""
    LOCAL_ZONE = enum.auto()
    """In the client's zone."""
    CROSS_ZONE = enum.auto()
    """In another zone."""


@attrs.frozen
class RequestInfo:
    """What of a request decides its cost."""

    is_write: bool
    """Whether it is charged as a write."""
    store_id: int
    """The store it is sent to."""
    write_bytes: int = 0
    """Keys and values it writes, in bytes."""
    replica_count: int = 1
    """Replicas that will hold what is written; 0 counts as 1."""
    size: int = 0
    """Its bytes on the wire."""
    access: Access = Access.UNKNOWN
    """How far the store is."""
    predicted_read_bytes: int = 0
    """Bytes a coprocessor request is expected to read, charged before it is sent; 0 for every other request."""


@attrs.frozen
class ResponseInfo:
    """What of a response decides its cost."""

    read_bytes: int = 0
    """Bytes read for it."""
    cpu_ms: float = 0.0
    """Milliseconds the store worked on it."""
    size: int = 0
    """Its bytes on the wire."""


@attrs.frozen(kw_only=True)
class RuModel:
    """What things cost, in request units. PD keeps it for all clients of a cluster."""

    read_base_cost: float = attrs.field(default=1 / 8, validator=PRICE)
    """A read."""
    read_per_batch_base_cost: float = attrs.field(default=1 / 2, validator=PRICE)
    """A batch of reads, of which a single one is charged 0.7."""
    read_cost_per_byte: float = attrs.field(default=1 / (64 * 1024), validator=PRICE)
    """A byte read."""
    write_base_cost: float = attrs.field(default=1.0, validator=PRICE)
    """A write to one replica."""
    write_per_batch_base_cost: float = attrs.field(default=1.0, validator=PRICE)
    """A batch of writes to one replica, of which a single one is charged 0.7."""
    write_cost_per_byte: float = attrs.field(default=1 / 1024, validator=PRICE)
    """A byte written to one replica."""
    read_cpu_ms_cost: float = attrs.field(default=1 / 3, validator=PRICE)
    """A millisecond of CPU time of a read."""

    def before(self, request: RequestInfo) -> Usage:
        """Return what a request costs before it is sent."""
        cross = request.access is Access.CROSS_ZONE
        if not request.is_write:
            read_ru = self.read_base_cost + self.read_per_batch_base_cost * _BATCH_SHARE
            return Usage(
                read_ru=read_ru + self.precharge(request),
                read_rpcs=1.0,
                read_cross_zone_bytes=request.size if cross else 0,
            )
        replicas = request.replica_count or 1
        base = self.write_base_cost + self.write_per_batch_base_cost * _BATCH_SHARE
        traffic = request.size if cross else 0
        if request.access is not Access.UNKNOWN:
            # Not exact: it assumes that every other replica is in another zone, as PD's clients do.
            traffic += request.write_bytes * (replicas - 1)
        return Usage(
            write_ru=(base + self.write_cost_per_byte * request.write_bytes) * replicas,
            write_bytes=float(request.write_bytes),
            write_rpcs=1.0,
            write_cross_zone_bytes=traffic,
        )

    def after(self, request: RequestInfo, response: ResponseInfo) -> Usage:
        """Return what it costs on top of that once it is answered; negative where something is given back."""
        spent = Usage(
            # A write may read as well.
            read_ru=self.read_cost_per_byte * response.read_bytes,
            read_bytes=float(response.read_bytes),
        )
        traffic = response.size if request.access is Access.CROSS_ZONE else 0
        if request.is_write:
            spent.write_cross_zone_bytes = traffic
            return spent
        spent.read_cross_zone_bytes = traffic
        spent.cpu_ms = response.cpu_ms
        spent.read_ru += self.read_cpu_ms_cost * response.cpu_ms - self.precharge(request)
        return spent

    def precharge(self, request: RequestInfo) -> float:
        """Return the request units charged for bytes that a coprocessor request is expected to read.

        Tokens are taken for them in advance; what is reported to PD is only what was read.
        """
        return 0.0 if request.is_write else self.read_cost_per_byte * request.predicted_read_bytes
