"""What one operation carries through its plans: its deadline, its waits, and a write that may have been applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import attrs
from tikv_pd import BackoffKind, Deadline, TikvError
from tikv_pd.backoff import REGION_SCHEDULING
from tikv_pd.errors import RpcError
from tikv_region import RegionEntry

from tikv_rpc.options import DEFAULT_OPTIONS, RequestOptions
from tikv_rpc.waits import CountedBackoffer, Waits

FREE_RETRIES: Final = 8
"""Retries an operation makes without any wait. Two stores that each name the other as leader would else spin."""


@attrs.frozen
class Tried:
    """An attempt that was made before the operation came to its plans; it failed."""

    entry: RegionEntry
    """The Region."""
    route: Any
    """A `route.Route`: the way."""
    outcome: Any
    """The RpcError, or the response with its region error."""
    deadline: float
    """When the operation must have ended, on the client's clock."""


class Call(Deadline):
    """One operation under way: its deadline, and what it goes through until then.

    A plain slotted class: one is made for each call, on the hot path, where a deadline of its own would cost too much.
    """

    __slots__ = ("_backoffer", "cause", "lost", "options", "tried", "unwaited", "waits", "wrote")

    def __init__(
        self,
        operation: str,
        timeout: float,
        now: Callable[[], float],
        waits: Waits,
        options: RequestOptions = DEFAULT_OPTIONS,
    ) -> None:
        # What `Deadline` does, in place: a call of its constructor takes as long as all of this.
        self.operation = operation
        self.timeout = timeout
        self.now = now
        self.at = now() + timeout
        self.options = options
        """What the caller wants of the stores."""
        self.cause: TikvError | None = None
        """The last failure of an attempt."""
        self.lost: RpcError | None = None
        """The failure that hid the outcome of a write attempt, if one did; kept when a later attempt is answered."""
        self.wrote = False
        """Whether a part of a write over many Regions was applied."""
        self.tried: Tried | None = None
        """The attempt to go on after; whoever does takes it."""
        self.unwaited = 0
        """Retries made without a wait."""
        self.waits = waits
        """Who hears of its waits, and how long they may be."""
        self._backoffer: CountedBackoffer | None = None

    @property
    def deadline(self) -> Deadline:
        """When it must have ended: the call itself."""
        return self

    @property
    def backoffer(self) -> CountedBackoffer:
        """Takes its waits. Made when first needed: most calls never wait."""
        if self._backoffer is None:
            self._backoffer = CountedBackoffer(self, self.waits)
        return self._backoffer

    def go_on(self, tried: Tried | None, lost: RpcError | None) -> None:
        """Go on after an attempt, whose failure may have hidden the outcome of a write."""
        self.tried, self.lost = tried, lost
        if tried is not None:
            self.at = tried.deadline

    def wait_by(self, waits: Waits) -> None:
        """Have others hear of its waits from now on."""
        self.waits = waits
        if self._backoffer is not None:
            self._backoffer.listener = waits

    async def pause(self, kind: BackoffKind | None, cause: BaseException) -> None:
        """Wait as `kind` says before the next attempt; with None not at all, unless that happened too often.

        Raises:
            DeadlineExceeded, BackoffExceeded: from `cause`; see `Backoffer.backoff`.
        """
        if kind is None:
            self.unwaited += 1
            if self.unwaited <= FREE_RETRIES:
                self.check(cause)
                return
        await self.backoffer.backoff(kind or REGION_SCHEDULING, cause)

    def fork(self) -> Call:
        """Return a call for a parallel branch of this one."""
        branch = Call.__new__(Call)
        branch.operation = self.operation
        branch.options = self.options
        branch.timeout = self.timeout
        branch.now = self.now
        branch.at = self.at
        branch.waits = self.waits.fork()
        branch._backoffer = self.backoffer.fork_into(branch.waits)
        branch.cause = self.cause
        branch.lost = None
        branch.wrote = False
        branch.tried = None
        branch.unwaited = self.unwaited
        return branch

    def join(self, branches: Iterable[Call]) -> None:
        """Take over what parallel branches went through."""
        ended = list(branches)
        self.backoffer.join([branch.backoffer for branch in ended])
        self.lost = next((branch.lost for branch in ended if branch.lost is not None), self.lost)
        self.wrote = self.wrote or any(branch.wrote for branch in ended)
