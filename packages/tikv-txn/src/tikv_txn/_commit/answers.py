"""Requests of commits and what their answers mean, as plans and hooks around those of `tikv_rpc`.

Prewriting, Committing      note which requests nobody will hear of
PrewriteAnswers             locks in the way, conflicts, assertions, success
CommitAnswers               a timestamp that readers pushed away, a transaction that others ended, success
RollingBack                 whether a key could be rolled back
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import attrs
from tikv_pd import BackoffExceeded, DeadlineExceeded, TikvError, UndeterminedError
from tikv_pd.backoff import TXN_LOCK
from tikv_pd.lowlevel import Resp
from tikv_pd.timestamp import LOGICAL_BITS
from tikv_region import KeyCodec, RegionEntry
from tikv_rpc import Call, RegionPlan, Request
from tikv_rpc.errors import RelocateError

from tikv_txn._commit.requests import CommitRequests, PartRequest
from tikv_txn._commit.state import CommitState
from tikv_txn._locks.locks import Lock
from tikv_txn._locks.resolver import LockResolver
from tikv_txn.errors import (
    AlreadyExists,
    AssertionFailed,
    CommitTsExpired,
    CommitTsTooLarge,
    KeyLocked,
    WriteConflict,
    key_error,
)

_MAX_TS_JUMP: Final = 3_600_000 << LOGICAL_BITS
"""How far stores may push a commit timestamp: an hour. Source: client-go commit.go."""
_FINAL: Final = (WriteConflict, AlreadyExists)
"""Refusals of a prewrite that no later attempt can escape."""


def _is_doubtful(error: BaseException, call: Call) -> bool:
    """Tell whether a request that ended so may have been applied, or may be later."""
    if call.lost is not None or isinstance(error, UndeterminedError):
        return True
    # An interceptor's own; what it did before, nobody knows.
    return isinstance(error, Exception) and not isinstance(error, (TikvError, RelocateError))


@attrs.frozen
class Prewriting:
    """Notes which prewrites nobody will hear of."""

    inner: RegionPlan
    state: CommitState

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Send it."""
        assert isinstance(request, PartRequest)
        while True:
            # Losses are told of each part, and those of others are no concern of this one.
            call.lost = None
            try:
                return await self.inner.execute(entry, request, call)
            except BaseException as error:
                if _is_doubtful(error, call):
                    self.state.on_lost(request.part)
                if not isinstance(error, UndeterminedError) or self.state.one_pc or self.state.async_commit:
                    raise
                # In two phases a prewrite decides nothing, and may be sent as often as it takes.
                await call.pause(None, error)


class PrewriteAnswers:
    """Decides what the answer to a prewrite means; see `tikv_rpc.LockResolver`.

    Args:
        state: Hears of it.
        codec: Decodes keys.
        resolver: Puts locks out of the way.
        start_ts: When the transaction started.
        keep_alive: Called when a key was locked, and with True when a lock has to be waited for.
    """

    def __init__(
        self,
        state: CommitState,
        codec: KeyCodec,
        resolver: LockResolver,
        start_ts: int,
        keep_alive: Callable[[bool], None],
    ) -> None:
        self.assertion: AssertionFailed | None = None
        """What a store found of an assertion, to be told if nothing else is wrong."""
        self._state = state
        self._codec = codec
        self._resolver = resolver
        self._start_ts = start_ts
        self._keep_alive = keep_alive

    async def resolve(
        self, _entry: RegionEntry, request: Request[Resp], response: Any, call: Call
    ) -> Request[Resp] | None:
        """Return None when it succeeded, or the request again when locks were in its way."""
        assert isinstance(request, PartRequest)
        state, codec = self._state, self._codec
        locks: list[Lock] = []
        for error in response.errors:
            if error.HasField("locked"):
                locks += Lock.of(error.locked, codec)
                continue
            failure = key_error(error, codec, operation="prewrite")
            if isinstance(failure, AssertionFailed):
                call.lost = None
                state.on_refused(request.part)
                # The others go on: what is wrong with them says more.
                self.assertion = self.assertion or failure
                return None
            if isinstance(failure, _FINAL):
                call.lost = None
                state.on_refused(request.part)
            raise failure
        if locks:
            if call.lost is not None:
                state.on_lost(request.part)
            if not state.is_doubtful(request.part):
                self._check_later(locks)
            await self._wait(locks, call)
            return request
        call.lost = None
        state.on_prewritten(request.part, response.min_commit_ts, response.one_pc_commit_ts)
        self._keep_alive(False)
        return None

    def _check_later(self, locks: list[Lock]) -> None:
        """Take a lock of a transaction that started later for a conflict.

        If that one commits, this one is in conflict with it; it is rarely worth the wait to see. But when an answer was
        lost, only the store's own word shows that an earlier request will not be applied after all.
        """
        for lock in locks:
            if lock.start_ts > self._start_ts:
                raise WriteConflict(lock.key, lock.primary, self._start_ts, lock.start_ts, 0, "Optimistic")

    async def _wait(self, locks: list[Lock], call: Call) -> None:
        """Put locks away, or wait until that may be done."""
        first = locks[0]
        cause = KeyLocked(first.key, first.primary, first.start_ts, first.ttl_ms / 1000)
        self._keep_alive(True)
        try:
            wait = await self._resolver.resolve(locks, self._start_ts, call)
            if wait > 0:
                await call.backoffer.backoff(TXN_LOCK, cause, at_most=wait)
            else:
                await call.pause(None, cause)
        except (DeadlineExceeded, BackoffExceeded) as error:
            raise cause from error


@attrs.frozen
class Committing:
    """Notes that nobody will hear of a commit of the primary key."""

    inner: RegionPlan
    state: CommitState

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Send it."""
        call.lost = None
        try:
            return await self.inner.execute(entry, request, call)
        except BaseException as error:
            if _is_doubtful(error, call):
                self.state.on_commit_lost()
            raise


class CommitAnswers:
    """Decides what the answer to the commit of the primary key means; see `tikv_rpc.LockResolver`.

    Args:
        state: Hears of it.
        requests: Makes the requests.
        codec: Decodes keys.
        later_ts: Returns a timestamp that the state allows to commit at.
    """

    def __init__(
        self,
        state: CommitState,
        requests: CommitRequests,
        codec: KeyCodec,
        later_ts: Callable[[Call], Awaitable[int]],
    ) -> None:
        self._state = state
        self._requests = requests
        self._codec = codec
        self._later_ts = later_ts

    async def resolve(
        self, _entry: RegionEntry, request: Request[Resp], response: Any, call: Call
    ) -> Request[Resp] | None:
        """Return None when it succeeded, or a request with a later timestamp when this one was pushed away."""
        assert isinstance(request, PartRequest)
        state, requests = self._state, self._requests
        if not response.HasField("error"):
            call.lost = None
            state.on_committed(requests.commit_ts)
            return None
        failure = key_error(response.error, self._codec, operation=call.operation)
        if response.error.HasField("txn_lock_not_found") or isinstance(failure, CommitTsExpired):
            # Had another attempt been applied, this one would have succeeded. Of other errors that cannot be said.
            call.lost = None
            state.on_commit_refused()
        mutations = requests.order.mutations
        if not isinstance(failure, CommitTsExpired) or failure.key != mutations.keys[mutations.primary]:
            raise failure
        if failure.min_commit_ts - failure.attempted_commit_ts > _MAX_TS_JUMP:
            raise CommitTsTooLarge(failure.min_commit_ts) from failure
        # Readers of later timestamps came by and were told that they need not wait for this commit.
        state.commit_after(failure.min_commit_ts - 1)
        requests.commit_ts = await self._later_ts(call)
        return cast("Request[Resp]", requests.commit(request.part))


@attrs.frozen
class RollingBack:
    """Takes an error about a key for one."""

    inner: RegionPlan
    codec: KeyCodec

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Send it."""
        response: Any = await self.inner.execute(entry, request, call)
        if response.HasField("error"):
            raise key_error(response.error, self.codec, operation=call.operation)
        return response  # type: ignore[no-any-return]
