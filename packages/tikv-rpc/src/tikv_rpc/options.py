"""What a caller may ask of the stores for the requests of one operation: who answers, how soon, on whose account."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any, Final

import attrs
from attrs import validators
from tikv_pd import ConfigError
from tikv_pd.config import positive
from tikv_proto import kvrpcpb
from tikv_proto.services import Rpc

Tagger = Callable[["Rpc[Any, Any]"], bytes]
"""Returns the tag of a request by its RPC."""


class ReplicaRead(enum.Enum):
    """Which replica of a Region serves reads. Writes always go to the leader. Source: client-go kv.ReplicaReadType.

    Every replica but the leader first learns from it how far it has to have applied, so that the answer is the same.
    """

    LEADER = enum.auto()
    """The leader."""
    FOLLOWER = enum.auto()
    """A follower; the leader when there is none."""
    MIXED = enum.auto()
    """Any replica."""
    LEARNER = enum.auto()
    """A learner; others when there is none."""
    PREFER_LEADER = enum.auto()
    """The leader, unless its store is slow."""


class Priority(enum.Enum):
    """How a store orders requests. Source: kvrpcpb.CommandPri."""

    NORMAL = 0
    """As they come."""
    LOW = 1
    """After the others."""
    HIGH = 2
    """Before the others."""


class Isolation(enum.Enum):
    """What transactional reads see. Source: kvrpcpb.IsolationLevel."""

    SI = 0
    """A snapshot; locks of transactions that may commit below its timestamp are in the way."""
    RC = 1
    """The newest committed version; locks are ignored."""
    RC_CHECK_TS = 2
    """The newest committed version, and an error when that is above the read's timestamp."""


class DiskFull(enum.Enum):
    """Whether a write is allowed on a store whose disk fills up. Source: kvrpcpb.DiskFullOpt."""

    NOT_ALLOWED = 0
    """Never."""
    ALLOWED_ON_ALMOST_FULL = 1
    """Until nothing is left but a reserve; for work that frees space."""
    ALLOWED_ON_ALREADY_FULL = 2
    """Always."""


TRACED_REQUESTS: Final = 2
"""Stores trace requests as such, without details. Source: client-go trace.FlagTiKVCategoryRequest, its default."""


def milliseconds(seconds: float | None) -> int:
    """Return whole milliseconds, at least 1; 0, which the wire takes for none, for None."""
    return 0 if seconds is None else max(int(seconds * 1000), 1)


_seconds: Final = validators.optional([validators.instance_of((int, float)), positive])


def _unsigned(bits: int) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, int) or not 0 <= value < 1 << bits:
            raise ConfigError(f"{attribute.name} must be an int from 0 to 2**{bits} - 1, got {value!r}")

    return check


def _of(*kinds: type) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ConfigError(f"{attribute.name} must be {names}, got {value!r}")

    return check


def _labels(_instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    pairs = value if isinstance(value, tuple) else None
    if pairs is None or any(
        not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair))
        for pair in pairs
    ):
        raise ConfigError(f"{attribute.name} must be pairs of label and value such as (('zone', 'a'),), got {value!r}")


def _ids(stores: Iterable[int]) -> frozenset[int]:
    # A function, as mypy does not see which ids the class itself takes.
    return frozenset(stores)


@attrs.frozen(kw_only=True)
class RequestOptions:
    """Options of the requests of an operation. Durations in seconds.

    Immutable and compared by value; make one and use it for many operations, as its wire form is built once.
    """

    replica_read: ReplicaRead = attrs.field(default=ReplicaRead.LEADER, validator=_of(ReplicaRead))
    """Which replica serves reads."""
    stale_read: bool = attrs.field(default=False, validator=_of(bool))
    """Whether any replica may answer reads at a timestamp that lies in the past without asking the leader.

    Only for reads at a timestamp. A replica that is not that far says so, and the leader is asked.
    """
    match_labels: tuple[tuple[str, str], ...] = attrs.field(default=(), validator=_labels)
    """Labels, such as ("zone", "a"), of the stores whose replicas are preferred; all of them must match."""
    match_stores: frozenset[int] = attrs.field(default=frozenset(), converter=_ids)
    """Ids of the stores whose replicas are preferred; empty for any."""
    read_timeout: float | None = attrs.field(default=None, validator=_seconds)
    """Longest that one attempt of a read may take before another replica is asked; None for
    `RpcConfig.attempt_timeout`. The slow store is not taken for broken."""
    busy_threshold: float | None = attrs.field(default=None, validator=_seconds)
    """Longest estimated wait at a leader before an idle replica is asked instead; None to wait. Reads only.

    Source: kvrpcpb.Context.busy_threshold_ms.
    """
    priority: Priority = attrs.field(default=Priority.NORMAL, validator=_of(Priority))
    """How a store orders the requests."""
    request_source: str = attrs.field(default="", validator=_of(str))
    """Who asks, for the stores' statistics and limits. Source: kvrpcpb.Context.request_source."""
    resource_group: str = attrs.field(default="", validator=_of(str))
    """On whose account; see resource groups. Source: kvrpcpb.ResourceControlContext."""
    resource_group_tag: bytes | Tagger = attrs.field(default=b"", validator=_of(bytes, Callable))  # type: ignore[arg-type]
    """A tag for the stores' statistics of CPU time, or what makes one of a request's RPC."""
    task_id: int = attrs.field(default=0, validator=_unsigned(64))
    """What the requests of one large read have in common, so that stores can tell it from small ones."""
    isolation: Isolation = attrs.field(default=Isolation.SI, validator=_of(Isolation))
    """What transactional reads see."""
    not_fill_cache: bool = attrs.field(default=False, validator=_of(bool))
    """Whether a store should not keep what is read in its block cache; for large scans."""
    sync_log: bool = attrs.field(default=False, validator=_of(bool))
    """Whether a write is on disk when it is answered, whatever the store's settings."""
    disk_full: DiskFull = attrs.field(default=DiskFull.NOT_ALLOWED, validator=_of(DiskFull))
    """Whether writes are allowed on stores that are almost full."""
    max_execution_duration: float | None = attrs.field(default=None, validator=_seconds)
    """Time after which a store need not begin the work any more; None for two thirds of an attempt's time."""
    txn_source: int = attrs.field(default=0, validator=_unsigned(64))
    """Where a transaction comes from, for change data capture. Source: kvrpcpb.Context.txn_source."""
    trace_id: bytes = attrs.field(default=b"", validator=_of(bytes))
    """Identity of a trace that the stores' own logs and traces carry. Source: kvrpcpb.Context.trace_id."""
    trace_flags: int = attrs.field(default=0, validator=_unsigned(64))
    """What stores trace: bits of kvrpcpb.Context.trace_control_flags; 0 for `TRACED_REQUESTS` if there is a trace."""

    context: bytes = attrs.field(init=False, eq=False, repr=False)
    """The fields of kvrpcpb.Context that are the same for every attempt, serialized."""
    is_plain: bool = attrs.field(init=False, eq=False, repr=False)
    """Whether the first attempt simply goes to the leader, with the same fields as any other."""

    def __attrs_post_init__(self) -> None:
        tag = self.resource_group_tag
        fields = kvrpcpb.Context(
            priority=self.priority.value,  # type: ignore[arg-type]  # an int of the enum, as on the wire
            isolation_level=self.isolation.value,  # type: ignore[arg-type]
            not_fill_cache=self.not_fill_cache,
            sync_log=self.sync_log,
            task_id=self.task_id,
            resource_group_tag=tag if isinstance(tag, bytes) else b"",
            disk_full_opt=self.disk_full.value,  # type: ignore[arg-type]
            max_execution_duration_ms=milliseconds(self.max_execution_duration),
            txn_source=self.txn_source,
            busy_threshold_ms=0,
            trace_id=self.trace_id,
            trace_control_flags=self.trace_flags or (TRACED_REQUESTS if self.trace_id else 0),
        )
        if self.resource_group:
            fields.resource_control_context.resource_group_name = self.resource_group
        object.__setattr__(self, "context", fields.SerializeToString())
        varies = (
            self.stale_read,
            self.busy_threshold,
            self.request_source,
            self.match_labels,
            self.match_stores,
            self.read_timeout,
            callable(tag),
        )
        is_plain = self.replica_read is ReplicaRead.LEADER and not any(varies)
        object.__setattr__(self, "is_plain", is_plain)

    def tag(self, rpc: Rpc[Any, Any]) -> bytes:
        """Return the resource group tag that depends on the RPC; empty when it does not."""
        tagger = self.resource_group_tag
        return tagger(rpc) if callable(tagger) else b""


DEFAULT_OPTIONS: Final = RequestOptions()
"""The leader answers, in the order of arrival."""
