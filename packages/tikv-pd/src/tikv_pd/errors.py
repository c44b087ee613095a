"""Errors of every layer below a client's own.

Each class answers two questions: did it happen (`undetermined`), and may the call be made again (`retryable`)?
"""

from __future__ import annotations

from typing import ClassVar, Final

import attrs

_FINAL_CODES: Final = frozenset({"UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED", "FAILED_PRECONDITION"})
"""gRPC statuses that another attempt will meet as well."""


class TikvError(Exception):
    """Root of every error this SDK raises, apart from TypeError for arguments of the wrong type."""

    retryable: ClassVar[bool] = False
    """Whether the same call may succeed when made again, with nothing done twice."""
    undetermined: ClassVar[bool] = False
    """Whether a write may or may not have taken effect."""


class ConfigError(TikvError, ValueError):
    """An option or argument has a value that can never work; the message says which and what is allowed."""


@attrs.define(eq=False)
class ClosedError(TikvError):
    """The client was closed, or not opened yet: use it inside `async with`."""

    what: str
    """What was used, such as `RawClient`."""
    why: str = "is not open; use it inside `async with` (or `with` for the sync client)"
    """What is wrong with it."""
    may_have_written: bool = False
    """Whether it ended a call that had begun, and perhaps written."""

    @property
    def undetermined(self) -> bool:  # type: ignore[override]  # of other errors it is a matter of the class
        """Whether a write may or may not have taken effect."""
        return self.may_have_written

    def __str__(self) -> str:
        return f"{self.what} {self.why}"


@attrs.define(eq=False)
class DeadlineExceeded(TikvError, TimeoutError):
    """The call's time ran out before it succeeded. Nothing was written, or nothing was to be.

    A write whose outcome is unknown raises `UndeterminedError` instead. The last failure is the `__cause__`.
    """

    retryable: ClassVar[bool] = True

    operation: str
    """What ran out of time."""
    timeout: float
    """Seconds the call was given."""

    def __str__(self) -> str:
        return f"{self.operation} did not finish within {self.timeout:g} s" + _because(self.__cause__)


@attrs.define(eq=False)
class BackoffExceeded(TikvError):
    """Retrying did not help: the budget of waiting is used up. The last failure is the `__cause__`."""

    retryable: ClassVar[bool] = True

    operation: str
    """What was retried."""
    waited: float
    """Seconds spent waiting between attempts."""
    attempts: int
    """How often a wait was taken."""

    def __str__(self) -> str:
        return f"{self.operation} gave up after {self.attempts} waits of {self.waited:.3g} s in all" + _because(
            self.__cause__
        )


@attrs.define(eq=False)
class UndeterminedError(TikvError):
    """A write was sent and its outcome is unknown: read before deciding to write again.

    The failure that hid the outcome is the `__cause__`.
    """

    undetermined: ClassVar[bool] = True

    operation: str
    """The write, such as `put`."""

    def __str__(self) -> str:
        return f"the outcome of {self.operation} is unknown: it may or may not have been applied" + _because(
            self.__cause__
        )


@attrs.define(eq=False)
class RpcError(TikvError):
    """An RPC failed below the protocol: no connection, a broken stream, a status other than OK."""

    address: str
    """Whom it was sent to."""
    method: str
    """The RPC, such as `RawGet`."""
    code: str
    """gRPC status code by name, such as `UNAVAILABLE`."""
    details: str
    """What gRPC says of it."""
    sent: bool = True
    """Whether the request may have reached the server: false only when it certainly did not."""

    @property
    def retryable(self) -> bool:  # type: ignore[override]  # of other errors it is a matter of the class
        """Whether another attempt may do better: not if the server refuses or does not know the RPC."""
        return self.code not in _FINAL_CODES

    def __str__(self) -> str:
        return f"{self.method} to {self.address} failed: {self.code} ({self.details})"


@attrs.define(eq=False)
class PdError(TikvError):
    """PD refused a request for good. Source: pdpb.ResponseHeader.error, or a gRPC status that no retry cures."""

    method: str
    """The RPC, such as `GetStore`."""
    kind: str
    """pdpb.ErrorType by name, such as `REGION_NOT_FOUND`, or the gRPC status code by name."""
    message: str
    """PD's own words."""

    def __str__(self) -> str:
        return f"PD refused {self.method}: {self.kind} ({self.message})"


class NotBootstrapped(PdError):
    """The cluster has no store yet."""


class AlreadyBootstrapped(PdError):
    """The cluster has a store already."""


class IncompatibleVersion(PdError):
    """The cluster has versions that cannot do this together."""


class StoreTombstone(PdError):
    """The store left the cluster for good."""


class UnknownRegion(PdError):
    """PD knows no such Region, or the member asked has not loaded it yet."""


class EntryNotFound(PdError):
    """There is nothing of this name or id."""


class DuplicatedEntry(PdError):
    """There is something of this name or id already."""


class InvalidValue(PdError):
    """PD does not accept this value now."""


class DataCompacted(PdError):
    """The history asked for is gone; what is now can still be read."""


class MinResolvedTsDisabled(PdError):
    """PD is configured not to keep the least resolved timestamp."""


class RegionsIncomplete(PdError):
    """PD knows no Region of a part of the range."""


PD_ERRORS: Final[dict[str, type[PdError]]] = {
    "NOT_BOOTSTRAPPED": NotBootstrapped,
    "ALREADY_BOOTSTRAPPED": AlreadyBootstrapped,
    "INCOMPATIBLE_VERSION": IncompatibleVersion,
    "STORE_TOMBSTONE": StoreTombstone,
    "REGION_NOT_FOUND": UnknownRegion,
    "GLOBAL_CONFIG_NOT_FOUND": EntryNotFound,
    "DUPLICATED_ENTRY": DuplicatedEntry,
    "ENTRY_NOT_FOUND": EntryNotFound,
    "INVALID_VALUE": InvalidValue,
    "DATA_COMPACTED": DataCompacted,
    "REGIONS_NOT_CONTAIN_ALL_KEY_RANGE": RegionsIncomplete,
}
"""Class for each `PdError.kind` that is one of its own; the others are plain `PdError`. Source: pdpb.ErrorType."""


@attrs.define(eq=False)
class PdUnavailable(TikvError):
    """No PD member of the given addresses could be used; the message names each address and its failure."""

    retryable: ClassVar[bool] = True

    failures: tuple[tuple[str, str], ...]
    """(address, why) for each member tried."""
    hint: str = "Is the address a PD client URL and PD running?"
    """What to look at first."""

    def __str__(self) -> str:
        tried = "; ".join(f"{address}: {why}" for address, why in self.failures)
        return f"no PD member could be reached ({tried}). {self.hint}"


@attrs.define(eq=False)
class ClusterMismatch(TikvError):
    """Members disagree about the cluster id: the addresses belong to different clusters."""

    expected: int
    """The cluster id known so far."""
    found: int
    """The cluster id of the member that disagrees."""
    address: str
    """Address of that member."""

    def __str__(self) -> str:
        return f"{self.address} belongs to cluster {self.found}, not {self.expected}; check the PD addresses"


@attrs.define(eq=False)
class KeyspaceNotFound(TikvError):
    """PD knows no keyspace of this name, or it is not enabled."""

    name: str
    """The keyspace asked for."""
    reason: str
    """What PD says of it."""

    def __str__(self) -> str:
        return f"keyspace {self.name!r} cannot be used: {self.reason}"


@attrs.define(eq=False)
class TimestampFallback(TikvError):
    """PD granted a timestamp that is not above an earlier one. Nothing built on timestamps is safe any more."""

    previous: int
    """The largest timestamp granted before the request was sent."""
    granted: int
    """The first timestamp of the new grant."""

    def __str__(self) -> str:
        return f"PD granted timestamp {self.granted} after {self.previous}; timestamps must grow"


@attrs.define(eq=False)
class FutureTimestamp(TikvError):
    """A timestamp to read at lies in the future: reading there would not be repeatable. See `PdClient.wait_for`."""

    ts: int
    """The timestamp to read at."""
    current: int
    """One that PD granted afterwards."""

    def __str__(self) -> str:
        return f"timestamp {self.ts} is in the future: PD is at {self.current}"


@attrs.define(eq=False)
class GcBarrierTooOld(TikvError):
    """The txn safe point is beyond a barrier that was to hold it back: what it was to keep may be gone."""

    ts: int
    """Where the barrier was to be."""
    txn_safe_point: int
    """Where the txn safe point is."""

    def __str__(self) -> str:
        return f"a barrier at {self.ts} comes too late: the txn safe point is {self.txn_safe_point}"


@attrs.define(eq=False)
class CircuitOpen(TikvError):
    """Too many calls like this got no answer in time; for a while all fail at once. See `BreakerConfig`."""

    retryable: ClassVar[bool] = True

    operation: str
    """The call."""

    def __str__(self) -> str:
        return f"{self.operation} was not tried: too many calls before it got no answer in time"


def _because(cause: BaseException | None) -> str:
    return f": {cause}" if cause is not None else ""
