"""What an error of a Region means: one row for each field of errorpb.Error, decided without I/O.

Source: client-go internal/locate/region_request.go, onRegionError.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Final, Protocol, TypeAlias

import attrs
from tikv_pd import BackoffKind, Peer, RegionEpoch, TikvError
from tikv_pd.backoff import (
    DISK_FULL,
    IS_WITNESS,
    MAX_TS_NOT_SYNCED,
    RECOVERY_IN_PROGRESS,
    REGION_MISS,
    REGION_NOT_INITIALIZED,
    REGION_SCHEDULING,
    SERVER_BUSY,
)
from tikv_proto import errorpb, metapb

from tikv_region.redaction import shorten


class CodecError(TikvError):
    """A key of PD or a store cannot be decoded: the cluster does not speak the API version the client was set to.

    Never retried.
    """


@attrs.define(eq=False)
class RegionUnavailable(TikvError):
    """PD names no Region that can be used for a key, or only an outdated one."""

    retryable: ClassVar[bool] = True

    key: bytes
    """The key looked for."""
    reason: str
    """What is missing."""

    def __str__(self) -> str:
        return f"no Region for key {shorten(self.key)}: {self.reason}"


@attrs.define(eq=False)
class StoreUnavailable(TikvError):
    """PD names no address of a store that has not left the cluster."""

    retryable: ClassVar[bool] = True

    store_id: int
    """The store."""
    reason: str
    """What is missing."""

    def __str__(self) -> str:
        return f"store {self.store_id} cannot be reached: {self.reason}"


@attrs.define(eq=False)
class RegionError(TikvError):
    """A store refused a request because of the Region it was sent to. Seen only as the cause of another error."""

    retryable: ClassVar[bool] = True

    kind: str
    """Field of errorpb.Error in snake case, such as `not_leader`; `unknown` when none known here is set."""
    message: str
    """The store's own words."""
    region_id: int
    """The Region asked."""
    store_id: int
    """The store that refused."""

    @classmethod
    def from_pb(cls, error: errorpb.Error, region_id: int, store_id: int) -> RegionError:
        """Make it from the message."""
        return cls(_snake(set_field(error)), error.message, region_id, store_id)

    def __str__(self) -> str:
        return f"Region {self.region_id} on store {self.store_id}: {self.kind} ({self.message})"


@attrs.define(eq=False)
class EntryTooLarge(TikvError):
    """A write does not fit one raft entry (`raftstore.raft-entry-max-size`, 8 MiB by default). Nothing was written."""

    region_id: int
    """The Region that refused it."""
    entry_size: int
    """Bytes of the entry."""

    def __str__(self) -> str:
        return (
            f"Region {self.region_id} refused an entry of {self.entry_size} bytes;"
            " write less at once or raise raftstore.raft-entry-max-size"
        )


@attrs.define(eq=False)
class FlashbackInProgress(TikvError):
    """The Region is being set back to an earlier version; reads and writes wait for its end. Nothing was written."""

    retryable: ClassVar[bool] = True

    region_id: int
    """The Region."""
    flashback_start_ts: int
    """Timestamp at which the flashback began."""

    def __str__(self) -> str:
        return f"Region {self.region_id} is in a flashback that began at {self.flashback_start_ts}"


@attrs.define(eq=False)
class FlashbackNotPrepared(TikvError):
    """A flashback was sent to a Region that was not prepared for it. Nothing was written."""

    region_id: int
    """The Region."""

    def __str__(self) -> str:
        return f"Region {self.region_id} is not prepared for a flashback"


@attrs.define(eq=False)
class InvalidTimestamp(TikvError):
    """A request carries a timestamp further ahead than stores believe any PD could have granted. Nothing was done."""

    region_id: int
    """The Region that refused it."""
    message: str
    """The store's own words."""

    def __str__(self) -> str:
        return f"Region {self.region_id} refused the timestamp of a request: {self.message}"


class CacheAction(enum.Enum):
    """What an error teaches about the Region."""

    NONE = enum.auto()
    """Nothing."""
    SWITCH_LEADER = enum.auto()
    """The peer named in the error leads."""
    NEXT_PEER = enum.auto()
    """The peer asked does not serve, and does not say who does; whoever chooses replicas tries another."""
    INVALIDATE = enum.auto()
    """It must be loaded again."""
    REPLACE = enum.auto()
    """The error brings the Regions that are there now."""
    REPLACE_BUCKETS = enum.auto()
    """The error brings the Region's buckets as they are now."""
    CHECK_STORE = enum.auto()
    """The store's address leads elsewhere: ask PD for both the store and the Region again."""


class Next(enum.Enum):
    """What to do with the request."""

    RESEND = enum.auto()
    """Send it again for the same Region, whose leader may have changed; locate it if that became invalid."""
    RELOCATE = enum.auto()
    """Locate its keys again; they may lie in several Regions now."""
    FAIL = enum.auto()
    """Raise `Decision.error`."""


@attrs.frozen
class Decision:
    """What to do about an error of a Region."""

    action: CacheAction
    """What the cache learns; already applied when `RegionCache.on_region_error` returns."""
    backoff: BackoffKind | None
    """How to wait before going on; None to go on at once."""
    next: Next
    """How to go on."""
    error: TikvError | None = None
    """What to raise; set exactly when `next` is FAIL."""
    undetermined: bool = False
    """Whether a write may have been applied: then UndeterminedError is raised from `error`."""


class KnownRegion(Protocol):
    """What `decide` must know of the Region a request was sent to; a `RegionEntry` does."""

    @property
    def id(self) -> int:
        """Id of the Region."""
        ...

    @property
    def epoch(self) -> RegionEpoch:
        """Incarnation the request carried."""
        ...

    @property
    def peers(self) -> Sequence[Peer]:
        """Its usable replicas."""
        ...


def decide(error: errorpb.Error, region: KnownRegion, store_id: int = 0) -> Decision:
    """Decide what to do about the error that store `store_id` answered for `region`.

    Pure. An error with no known field set has a row too: that TiKV is closing, for instance, it says in words alone.
    """
    row = _ROWS[set_field(error)]
    return row if isinstance(row, Decision) else row(error, region, store_id)


def set_field(error: errorpb.Error) -> str:
    """Return the name of the field that says what happened, "" when it is none this client knows."""
    names = {descriptor.name for descriptor, _ in error.ListFields()}
    return next((field for field in _ROWS if field in names), "")


def leader_index(peers: Iterable[Peer], leader: metapb.Peer) -> int | None:
    """Return the position of the peer that a store named as leader, None when it is not among `peers`."""
    for index, peer in enumerate(peers):
        if peer.id == leader.id and peer.store_id == leader.store_id:
            return index
    return None


def _not_leader(error: errorpb.Error, region: KnownRegion, _store_id: int) -> Decision:
    if not error.not_leader.HasField("leader") or not error.not_leader.leader.id:
        return Decision(CacheAction.NEXT_PEER, REGION_SCHEDULING, Next.RESEND)
    if leader_index(region.peers, error.not_leader.leader) is None:
        return Decision(CacheAction.INVALIDATE, REGION_MISS, Next.RELOCATE)
    return Decision(CacheAction.SWITCH_LEADER, None, Next.RESEND)


def _epoch_not_match(error: errorpb.Error, region: KnownRegion, _store_id: int) -> Decision:
    current = error.epoch_not_match.current_regions
    if not current:
        return Decision(CacheAction.INVALIDATE, REGION_MISS, Next.RELOCATE)
    if any(theirs.id == region.id and _is_not_ahead(theirs.region_epoch, region.epoch) for theirs in current):
        # The store has yet to apply a change this client knows of already; another look at the cache changes nothing.
        return Decision(CacheAction.NONE, REGION_MISS, Next.RESEND)
    return Decision(CacheAction.REPLACE, None, Next.RELOCATE)


def _is_not_ahead(theirs: metapb.RegionEpoch, ours: RegionEpoch) -> bool:
    behind = theirs.conf_ver < ours.conf_ver or theirs.version < ours.version
    return behind or (theirs.conf_ver == ours.conf_ver and theirs.version == ours.version)


def _entry_too_large(error: errorpb.Error, region: KnownRegion, _store_id: int) -> Decision:
    return _fail(EntryTooLarge(region.id, error.raft_entry_too_large.entry_size))


def _flashback_in_progress(error: errorpb.Error, region: KnownRegion, _store_id: int) -> Decision:
    return _fail(FlashbackInProgress(region.id, error.FlashbackInProgress.flashback_start_ts))


def _flashback_not_prepared(_error: errorpb.Error, region: KnownRegion, _store_id: int) -> Decision:
    return _fail(FlashbackNotPrepared(region.id))


def _undetermined(error: errorpb.Error, region: KnownRegion, store_id: int) -> Decision:
    return _fail(RegionError.from_pb(error, region.id, store_id), undetermined=True)


def _in_words(error: errorpb.Error, region: KnownRegion, _store_id: int) -> Decision:
    # TiKV has no field for this one; sent again, it would be refused until time runs out.
    if "invalid max_ts update" in error.message:
        return _fail(InvalidTimestamp(region.id, error.message))
    return Decision(CacheAction.NEXT_PEER, REGION_MISS, Next.RESEND)


def _fail(error: TikvError, *, undetermined: bool = False) -> Decision:
    return Decision(CacheAction.NONE, None, Next.FAIL, error, undetermined)


def _wait(kind: BackoffKind) -> Decision:
    return Decision(CacheAction.NONE, kind, Next.RESEND)


def _reload(kind: BackoffKind) -> Decision:
    return Decision(CacheAction.INVALIDATE, kind, Next.RELOCATE)


def _snake(field: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in field).lstrip("_") or "unknown"


_Row: TypeAlias = Decision | Callable[[errorpb.Error, KnownRegion, int], Decision]

# client-go sends again at once in some of the rows that wait here; a wait of 2 ms keeps them from ever spinning.
_ROWS: Final[Mapping[str, _Row]] = {
    "undetermined_result": _undetermined,
    "not_leader": _not_leader,
    "disk_full": _wait(DISK_FULL),
    "RecoveryInProgress": _reload(RECOVERY_IN_PROGRESS),
    "is_witness": _reload(IS_WITNESS),
    "FlashbackInProgress": _flashback_in_progress,
    "FlashbackNotPrepared": _flashback_not_prepared,
    "region_not_found": _reload(REGION_MISS),
    "key_not_in_region": _reload(REGION_MISS),
    "epoch_not_match": _epoch_not_match,
    "bucket_version_not_match": Decision(CacheAction.REPLACE_BUCKETS, REGION_MISS, Next.RELOCATE),
    "server_is_busy": _wait(SERVER_BUSY),
    "stale_command": _wait(REGION_MISS),
    "store_not_match": Decision(CacheAction.CHECK_STORE, REGION_MISS, Next.RELOCATE),
    "raft_entry_too_large": _entry_too_large,
    "max_timestamp_not_synced": _wait(MAX_TS_NOT_SYNCED),
    "region_not_initialized": _wait(REGION_NOT_INITIALIZED),
    "read_index_not_ready": _wait(REGION_SCHEDULING),
    "proposal_in_merging_mode": _wait(REGION_SCHEDULING),
    # Only stale reads meet it: whoever sends them must turn to another replica or to the leader.
    "data_is_not_ready": Decision(CacheAction.NONE, None, Next.RESEND),
    "mismatch_peer_id": _reload(REGION_MISS),
    "": _in_words,
}
