"""Lowering of what is asked and done about locks: arguments to requests. No I/O, no retries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
from tikv_pd import LATEST
from tikv_proto import kvrpcpb, services
from tikv_region import KeyCodec
from tikv_rpc import Effect, KeyWork, Request

from tikv_txn._locks.locks import Lock

_KEYS: Final = 1024
"""Keys in one request about locks at most; client-go knows no limit."""
_BYTES: Final = 1 << 20
"""Bytes of keys after which such a request is closed."""
_KEY_OVERHEAD: Final = 4
"""Bytes a key adds to a request besides its own: a tag and its length."""


@attrs.frozen
class Question:
    """What is to be found out about a transaction; the same for all its locks but pessimistic ones, and forced ones."""

    primary: bytes
    """The key to ask."""
    start_ts: int
    """Which transaction."""
    is_pessimistic: bool
    """Whether it is asked because of a pessimistic lock."""
    is_forced: bool
    """Whether it is over whatever the time: how stores tell that a lock must go is that it has no time left."""

    @classmethod
    def about(cls, lock: Lock) -> Question:
        """Return what is to be found out about a lock's transaction."""
        return cls(lock.primary, lock.start_ts, lock.is_pessimistic, lock.ttl_ms == 0)


@attrs.frozen
class Inquiry:
    """A question as it is asked next."""

    question: Question
    """The question."""
    lock: Lock
    """A lock that it is asked about."""
    force_sync: bool = False
    """Whether the transaction is known to be no async commit although its primary lock looks so."""
    rolls_back: bool = False
    """Whether the transaction is to be rolled back where its primary key knows nothing of it."""


@attrs.frozen
class LockRequests:
    """Makes the requests of the lock resolver. All of them may be applied again and again, and need the leader."""

    codec: KeyCodec

    def check_status(
        self, inquiries: Sequence[Inquiry], caller_ts: int, now_ts: int
    ) -> KeyWork[kvrpcpb.CheckTxnStatusResponse]:
        """Ask the primary keys of transactions what became of them, one by one."""

        def build(part: Sequence[int]) -> Request[kvrpcpb.CheckTxnStatusResponse]:
            inquiry = inquiries[part[0]]
            question = inquiry.question
            message = kvrpcpb.CheckTxnStatusRequest(
                primary_key=self.codec.encode_key(question.primary),
                lock_ts=question.start_ts,
                caller_start_ts=caller_ts,
                current_ts=LATEST if question.is_forced else now_ts,
                rollback_if_not_exist=inquiry.rolls_back,
                force_sync_commit=inquiry.force_sync,
                resolving_pessimistic_lock=question.is_pessimistic,
                verify_is_primary=True,
            )
            return Request(services.Tikv.KvCheckTxnStatus, message, Effect.WRITE)

        primaries = [inquiry.question.primary for inquiry in inquiries]
        return KeyWork(primaries, build, 1, _BYTES, _sizes(primaries))

    def check_secondaries(self, primary: Lock) -> KeyWork[kvrpcpb.CheckSecondaryLocksResponse]:
        """Ask the other keys of an async commit what became of it."""
        keys = primary.secondaries

        def build(part: Sequence[int]) -> Request[kvrpcpb.CheckSecondaryLocksResponse]:
            message = kvrpcpb.CheckSecondaryLocksRequest(keys=self._encoded(keys, part), start_version=primary.start_ts)
            return Request(services.Tikv.KvCheckSecondaryLocks, message, Effect.WRITE)

        return KeyWork(keys, build, _KEYS, _BYTES, _sizes(keys))

    def resolve_keys(
        self, start_ts: int, commit_ts: int, keys: Sequence[bytes]
    ) -> KeyWork[kvrpcpb.ResolveLockResponse]:
        """Commit the locks that a transaction has on keys, or roll them back when there is no commit timestamp."""

        def build(part: Sequence[int]) -> Request[kvrpcpb.ResolveLockResponse]:
            message = kvrpcpb.ResolveLockRequest(
                start_version=start_ts, commit_version=commit_ts, keys=self._encoded(keys, part)
            )
            return Request(services.Tikv.KvResolveLock, message, Effect.WRITE)

        return KeyWork(keys, build, _KEYS, _BYTES, _sizes(keys))

    def resolve_regions(
        self, start_ts: int, commit_ts: int, keys: Sequence[bytes]
    ) -> KeyWork[kvrpcpb.ResolveLockResponse]:
        """Do the same with all locks that a transaction has in the Regions of some keys."""
        message = kvrpcpb.ResolveLockRequest(start_version=start_ts, commit_version=commit_ts)

        def build(_part: Sequence[int]) -> Request[kvrpcpb.ResolveLockResponse]:
            return Request(services.Tikv.KvResolveLock, message, Effect.WRITE)

        return KeyWork(keys, build, len(keys), _BYTES, [0] * len(keys))

    def roll_back_pessimistic(
        self, start_ts: int, for_update_ts: int, keys: Sequence[bytes]
    ) -> KeyWork[kvrpcpb.PessimisticRollbackResponse]:
        """Take away the pessimistic locks on keys that a transaction took by a timestamp; 0 for any."""

        def build(part: Sequence[int]) -> Request[kvrpcpb.PessimisticRollbackResponse]:
            message = kvrpcpb.PessimisticRollbackRequest(
                start_version=start_ts, for_update_ts=for_update_ts or LATEST, keys=self._encoded(keys, part)
            )
            return Request(services.Tikv.KVPessimisticRollback, message, Effect.WRITE)

        return KeyWork(keys, build, _KEYS, _BYTES, _sizes(keys))

    def _encoded(self, keys: Sequence[bytes], part: Sequence[int]) -> list[bytes]:
        return [self.codec.encode_key(keys[position]) for position in part]


def _sizes(keys: Sequence[bytes]) -> list[int]:
    """Return what each key adds to a request, in bytes."""
    return [len(key) + _KEY_OVERHEAD for key in keys]
