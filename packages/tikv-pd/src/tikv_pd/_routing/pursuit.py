"""Following the server in charge, PD's leader as a rule: what a failed attempt means for the next one."""

from __future__ import annotations

import copy
from typing import Final, Protocol

import anyio

from tikv_pd.backoff import PD_RPC, Backoffer, BackoffKind
from tikv_pd.errors import ClosedError, ClusterMismatch, PdError, RpcError, TikvError
from tikv_pd.lowlevel import Connection

_FINAL_CODES: Final = frozenset({"UNIMPLEMENTED", "INVALID_ARGUMENT", "PERMISSION_DENIED", "UNAUTHENTICATED"})
"""gRPC codes that say the request can never work."""
_FINAL_CODES_OF_METHOD: Final = {
    # PD's resource manager has no other way to refuse.
    method: frozenset({"UNKNOWN"})
    for method in (
        "AddResourceGroup",
        "ModifyResourceGroup",
        "DeleteResourceGroup",
        "GetResourceGroup",
        "ListResourceGroups",
    )
}
_PASSING_KINDS: Final = frozenset({"NOT_BOOTSTRAPPED"})
"""Header errors that pass by themselves: stores are about to join."""
_PASSING_KINDS_OF_METHOD: Final = {
    # A member that has not loaded the Regions yet says so; one that has, leaves the answer empty.
    method: frozenset({"REGION_NOT_FOUND"})
    for method in ("GetRegion", "GetPrevRegion", "GetRegionByID", "QueryRegion", "BatchScanRegions")
}


class Route(Protocol):
    """Who is in charge, as far as known, and how to learn anew."""

    @property
    def leader(self) -> str:
        """Address of who is in charge; raises ClosedError once the client is closed."""
        ...

    def connection(self, address: str) -> Connection:
        """Return the connection to an address."""
        ...

    def doubt(self, suspect: str) -> None:
        """Have it looked into soon, because `suspect`, who is in charge, failed; do not wait for it."""
        ...

    async def refresh(self, suspect: str) -> TikvError | None:
        """Wait until it was looked into, unless `suspect` is not in charge; return why that failed."""
        ...

    def verdict(self, address: str, error: TikvError, *, is_confirmed: bool) -> TikvError | None:
        """Return what to raise because of a failure at an address; None when another attempt may help.

        `is_confirmed` tells whether it is certain by now that who is there is in charge.
        """
        ...


def end_of_attempts(error: TikvError, *, is_confirmed: bool = False) -> TikvError | None:
    """Return what to raise because of `error` of a PD member; None when another attempt may help.

    Args:
        error: The failure.
        is_confirmed: Whether the member leads for certain.
    """
    if isinstance(error, RpcError):
        if is_confirmed and error.code == "FAILED_PRECONDITION":
            # The leader still is the leader and still refuses our cluster id.
            return PdError(error.method, error.code, error.details)
        if error.code not in _FINAL_CODES | _FINAL_CODES_OF_METHOD.get(error.method, frozenset()):
            return None
        return PdError(error.method, error.code, error.details)
    if isinstance(error, PdError):
        passing = _PASSING_KINDS | _PASSING_KINDS_OF_METHOD.get(error.method, frozenset())
        return None if error.kind in passing else error
    return error


class Pursuit:
    """The attempts of one operation at who is in charge, wherever that moves.

    Args:
        route: Who is in charge.
        backoffer: The waits; its deadline ends the operation.
        kind: How long to wait once everybody was tried.
    """

    __slots__ = ("_backoffer", "_kind", "_route", "_tried", "failure")

    def __init__(self, route: Route, backoffer: Backoffer, kind: BackoffKind = PD_RPC) -> None:
        self._route = route
        self._backoffer = backoffer
        self._kind = kind
        self._tried: set[str] = set()
        self.failure: TikvError | None = None
        """Why there is no success yet, in the words of whoever knows most."""

    async def recover(self, address: str, error: TikvError) -> None:
        """Return when another attempt makes sense, after the one at `address` ended in `error`.

        At once when a server not tried yet is in charge now, otherwise after a wait.

        Raises:
            PdError: another attempt cannot help.
            ClusterMismatch: PD has become another cluster.
            ClosedError: the client was closed meanwhile.
            DeadlineExceeded: no time is left.
        """
        self._judge(address, error, is_confirmed=False)
        self.failure = error
        self._tried.add(address)
        # Even when this caller has no time left to wait for the news, the next one profits.
        self._route.doubt(address)
        outcome: TikvError | None = error
        with anyio.move_on_after(self._backoffer.deadline.check(error)):
            outcome = await self._route.refresh(address)
        if isinstance(outcome, (ClusterMismatch, ClosedError)):
            raise copy.copy(outcome) from error
        if outcome is None and self._route.leader not in self._tried:
            return
        self._judge(address, error, is_confirmed=True)
        self._tried.clear()
        self.failure = outcome or error
        await self._backoffer.backoff(self._kind, self.failure)

    def _judge(self, address: str, error: TikvError, *, is_confirmed: bool) -> None:
        end = self._route.verdict(address, error, is_confirmed=is_confirmed)
        if end is error:
            raise error
        if end is not None:
            raise end from error
