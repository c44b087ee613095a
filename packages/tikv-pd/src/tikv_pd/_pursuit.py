"""Following PD's leader: what a failed attempt means for the next one."""

from __future__ import annotations

import copy
from typing import Final

import anyio

from tikv_pd._members import Members
from tikv_pd.backoff import PD_RPC, Backoffer, BackoffKind
from tikv_pd.errors import ClosedError, ClusterMismatch, PdError, RpcError, TikvError

_FINAL_CODES: Final = frozenset({"UNIMPLEMENTED", "INVALID_ARGUMENT", "PERMISSION_DENIED", "UNAUTHENTICATED"})
"""gRPC codes that say the request can never work."""
_FINAL_CODES_OF_METHOD: Final = {
    # PD's resource manager has no other way to refuse.
    method: frozenset({"UNKNOWN"})
    for method in ("AddResourceGroup", "ModifyResourceGroup", "DeleteResourceGroup", "ListResourceGroups")
}
_PASSING_KINDS: Final = frozenset({"NOT_BOOTSTRAPPED"})
"""Header errors that pass by themselves: stores are about to join."""
_PASSING_KINDS_OF_METHOD: Final = {
    # A member that has not loaded the Regions yet says so; one that has, leaves the answer empty.
    method: frozenset({"REGION_NOT_FOUND"})
    for method in ("GetRegion", "GetPrevRegion", "GetRegionByID", "QueryRegion", "BatchScanRegions")
}


def end_of_attempts(error: TikvError) -> TikvError | None:
    """Return what to raise because of `error`; None when another attempt may help."""
    if isinstance(error, RpcError):
        if error.code not in _FINAL_CODES | _FINAL_CODES_OF_METHOD.get(error.method, frozenset()):
            return None
        return PdError(error.method, error.code, error.details)
    if isinstance(error, PdError):
        passing = _PASSING_KINDS | _PASSING_KINDS_OF_METHOD.get(error.method, frozenset())
        return None if error.kind in passing else error
    return error


class Pursuit:
    """The attempts of one operation at PD's leader, wherever it moves.

    Args:
        members: Who leads.
        backoffer: The waits; its deadline ends the operation.
        kind: How long to wait once everybody was tried.
    """

    __slots__ = ("_backoffer", "_kind", "_members", "_tried", "failure")

    def __init__(self, members: Members, backoffer: Backoffer, kind: BackoffKind = PD_RPC) -> None:
        self._members = members
        self._backoffer = backoffer
        self._kind = kind
        self._tried: set[str] = set()
        self.failure: TikvError | None = None
        """Why there is no success yet, in the words of whoever knows most."""

    async def recover(self, address: str, error: TikvError) -> None:
        """Return when another attempt at the leader makes sense, after the one at `address` ended in `error`.

        At once when the leader moved to a member not tried yet, otherwise after a wait.

        Raises:
            PdError: another attempt cannot help.
            ClusterMismatch: PD has become another cluster.
            ClosedError: the client was closed meanwhile.
            DeadlineExceeded: no time is left.
        """
        end = end_of_attempts(error)
        if end is error:
            raise error
        if end is not None:
            raise end from error
        self.failure = error
        self._tried.add(address)
        # Even when this caller has no time left to wait for the news, the next one profits.
        self._members.doubt(address)
        outcome: TikvError | None = error
        with anyio.move_on_after(self._backoffer.deadline.check(error)):
            outcome = await self._members.refresh(address)
        if isinstance(outcome, (ClusterMismatch, ClosedError)):
            raise copy.copy(outcome) from error
        if outcome is None and self._members.leader not in self._tried:
            return
        if isinstance(error, RpcError) and error.code == "FAILED_PRECONDITION":
            # The leader still is the leader and still refuses our cluster id.
            raise PdError(error.method, error.code, error.details) from error
        self._tried.clear()
        self.failure = outcome or error
        await self._backoffer.backoff(self._kind, self.failure)
