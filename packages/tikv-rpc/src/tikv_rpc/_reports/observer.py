"""What a client tells of its operations, attempts and waits to whoever wants to know, as values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol, Self

import attrs
from tikv_proto import kvrpcpb

OK: Final = "OK"
"""The outcome of what succeeded."""
CANCELLED: Final = "Cancelled"
"""The outcome of what was given up, by the caller or because another part of the same operation failed."""
PD: Final = "PD"
"""The kind of a wait for PD: for Regions and stores that are not known, without the backoff in it."""


@attrs.frozen
class Operation:
    """What a user called, when it begins."""

    name: str
    """Such as `batch_get`. A scan has one operation for each page."""
    key: bytes | None
    """Its key, the first of several, or the lower end of its range; as the caller knows it, without a prefix. None when
    its work has no `subject` to tell."""
    keys: int | None
    """How many keys it was given; None for one of a single key or of a range, or if that is not known."""
    started: float
    """When, on the client's clock."""


@attrs.frozen
class Execution:
    """What a store says that requests cost it, all zero where it says nothing. Source: kvrpcpb.ExecDetailsV2.

    Stores tell it of requests of transactions and of the coprocessor, not of raw ones.
    """

    total: float = 0.0
    """Seconds from a request's arrival to its answer."""
    process: float = 0.0
    """Seconds it was worked on."""
    suspend: float = 0.0
    """Seconds its work was set aside for others."""
    wait: float = 0.0
    """Seconds it waited before."""
    kv_read: float = 0.0
    """Seconds spent reading, part of `process`."""
    processed_versions: int = 0
    """Versions of keys that were returned or counted."""
    processed_bytes: int = 0
    """Their size."""
    total_versions: int = 0
    """Versions of keys that were seen."""
    skipped_deletes: int = 0
    """Deleted entries of RocksDB that were passed by."""
    skipped_keys: int = 0
    """Entries of RocksDB that were passed by."""
    cached_blocks: int = 0
    """Blocks found in the cache."""
    read_blocks: int = 0
    """Blocks read from disk."""
    read_block_bytes: int = 0
    """Their size."""

    @classmethod
    def from_pb(cls, details: kvrpcpb.ExecDetailsV2) -> Self:
        """Make it from the message."""
        scan = details.scan_detail_v2
        return cls(
            *_times(details),
            processed_versions=scan.processed_versions,
            processed_bytes=scan.processed_versions_size,
            total_versions=scan.total_versions,
            skipped_deletes=scan.rocksdb_delete_skipped_count,
            skipped_keys=scan.rocksdb_key_skipped_count,
            cached_blocks=scan.rocksdb_block_cache_hit_count,
            read_blocks=scan.rocksdb_block_read_count,
            read_block_bytes=scan.rocksdb_block_read_byte,
        )

    @classmethod
    def of(cls, response: Any) -> Self | None:
        """Return what a response says; None when it says nothing."""
        if "exec_details_v2" not in response.DESCRIPTOR.fields_by_name or not response.HasField("exec_details_v2"):
            return None
        return cls.from_pb(response.exec_details_v2)

    @classmethod
    def sum(cls, parts: Iterable[Self]) -> Self:
        """Return the sums."""
        values = list(parts)
        return cls(*(sum(getattr(part, name) for part in values) for name in attrs.fields_dict(cls)))


def _times(details: kvrpcpb.ExecDetailsV2) -> tuple[float, float, float, float, float]:
    """Return total, process, suspend, wait and kv_read in seconds."""
    if details.HasField("time_detail_v2"):
        new = details.time_detail_v2
        nanos = (
            new.total_rpc_wall_time_ns,
            new.process_wall_time_ns,
            new.process_suspend_wall_time_ns,
            new.wait_wall_time_ns,
            new.kv_read_wall_time_ns,
        )
        total, process, suspend, wait, kv_read = (each / 1e9 for each in nanos)
        return total, process, suspend, wait, kv_read
    old = details.time_detail
    process, wait, kv_read = old.process_wall_time_ms / 1e3, old.wait_wall_time_ms / 1e3, old.kv_read_wall_time_ms / 1e3
    return old.total_rpc_wall_time_ns / 1e9, process, 0.0, wait, kv_read


@attrs.frozen(kw_only=True)
class AttemptReport:
    """One request to one store, once it ended."""

    rpc: str
    """Its name, such as `RawGet`."""
    store_id: int
    """The store of the replica asked."""
    address: str
    """Where the connection leads: to that store, or to the one that passes the request on."""
    forwarded_to: str
    """Where that one passes it on to; empty when it serves it itself."""
    region_id: int
    """The Region."""
    access: str
    """How the replica was asked, `leader`, `follower`, `stale_leader` or `stale_follower`; see `route.manner`."""
    is_retry: bool
    """Whether the request was sent before."""
    branch: int
    """Which of the operation's parallel branches it was part of; 0 for the operation itself."""
    started: float
    """When, on the client's clock."""
    seconds: float
    """How long it took, waits of interceptors included."""
    outcome: str
    """`OK`, `Cancelled`, the kind of a region error such as `not_leader`, a gRPC status code such as `UNAVAILABLE`, or
    the class of what an interceptor raised."""
    request_bytes: int
    """Size of the request with its Context, before compression, without what interceptors patch."""
    response_bytes: int
    """Size of the response; 0 without one."""
    execution: Execution | None
    """What the store says that it cost, if it says so."""

    @property
    def is_region_error(self) -> bool:
        """Whether the store refused because of the Region."""
        return self.outcome.islower()

    @property
    def is_rpc_error(self) -> bool:
        """Whether there was no answer, and the attempt was not given up."""
        return self.outcome.isupper() and self.outcome != OK


@attrs.frozen
class WaitReport:
    """A wait between attempts, once it ended."""

    kind: str
    """Name of its `BackoffKind`, such as `regionMiss`; or `PD`."""
    branch: int
    """Which of the operation's parallel branches waited; 0 for the operation itself."""
    started: float
    """When, on the client's clock."""
    seconds: float
    """How long it was; shorter than meant when the operation was cancelled."""


@attrs.frozen
class OperationReport:
    """An operation, once it ended."""

    seconds: float
    """How long it took."""
    outcome: str
    """`OK`, `Cancelled`, or the class of the error, such as `DeadlineExceeded`. What a store refused in its answer,
    a `RawError`, counts as `OK`."""
    attempts: int
    """How many there were."""
    waits: int
    """How many there were, for PD too."""


class OperationObserver(Protocol):
    """Hears of one operation; called in the client's event loop, must be quick and must not raise."""

    def attempt(self, report: AttemptReport) -> None:
        """Take note of an attempt that ended."""
        ...

    def wait(self, report: WaitReport) -> None:
        """Take note of a wait that ended."""
        ...

    def end(self, report: OperationReport) -> None:
        """Take note of the end: the last call, in the task and the context of `RpcObserver.begin`."""
        ...


class RpcObserver(Protocol):
    """Hears of all operations. Without one, nothing is measured at all."""

    def begin(self, operation: Operation) -> OperationObserver | None:
        """Return who hears of an operation that begins now, which may be this object; None to leave it out.

        Called in the task that executes the operation; what it sets in contextvars is seen by attempts and
        interceptors.
        """
        ...


@attrs.frozen
class TokenWaitReport:
    """A request of a resource group that was after tokens, once it got them or gave up."""

    group: str
    """The group."""
    seconds: float
    """How long that took; 0 when they were there."""
    outcome: str
    """`OK`, `Cancelled`, or the class of the error, such as `ResourceGroupThrottled`."""


@attrs.frozen
class TokenRequestReport:
    """A request for tokens to PD, once it ended."""

    seconds: float
    """How long it took."""
    outcome: str
    """`OK`, `Cancelled`, or the class of the error."""
    groups: int
    """Resource groups it was for."""


class TokenObserver(Protocol):
    """Hears of what a `ResourceControl` does; called in the event loop, must be quick and must not raise."""

    def waited(self, report: TokenWaitReport) -> None:
        """Take note of a request that was after tokens; one of a group without a limit never is."""
        ...

    def asked(self, report: TokenRequestReport) -> None:
        """Take note of a request for tokens."""
        ...
