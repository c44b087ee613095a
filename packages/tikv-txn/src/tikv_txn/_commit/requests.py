"""Lowering of commits: mutations to requests, in pieces that lie in one Region each. No I/O but locating Regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
from google.protobuf.message import Message
from tikv_pd.lowlevel import Resp
from tikv_proto import kvrpcpb, services
from tikv_proto.services import Rpc
from tikv_region import KeyCodec, RegionCache, RegionEntry
from tikv_rpc import Call, Effect, KeyWork, Request, Splittable

from tikv_txn._commit.mutations import Mutations, size_of
from tikv_txn._commit.state import CommitState, Outcome
from tikv_txn.options import AssertionLevel, TransactionOptions

Part = Sequence[int]
"""Positions of a work that one request is about, ascending."""
Pieces = Sequence[tuple[RegionEntry, Part]]

_UNKNOWN_SIZE: Final = (1 << 64) - 1
"""As the number of keys in a Region: too many to resolve their locks one by one. Source: client-go, of retries."""
_NO_LIMIT: Final = 1 << 31
_RETRY: Final = kvrpcpb.Context(is_retry_request=True).SerializeToString()


class PartRequest(Request[Resp]):
    """A request that remembers what it is about."""

    __slots__ = ("part",)

    def __init__(self, rpc: Rpc[Any, Resp], message: Message, part: Part, context: bytes = b"") -> None:
        super().__init__(rpc, message, Effect.WRITE, context)
        self.part = part
        """Positions."""


@attrs.frozen(eq=False)
class CommitOrder:
    """What is to be committed, and how."""

    mutations: Mutations
    """What."""
    start_ts: int
    """When the transaction started."""
    elapsed: float
    """Seconds that it has been under way, by this client's clock."""
    options: TransactionOptions
    """How."""
    cancelled: Callable[[Outcome, int], None] | None = None
    """Hears of the outcome if it is cancelled."""

    @property
    def subject(self) -> tuple[bytes, int]:
        """What observers hear it is about: the primary key, and how many there are."""
        return self.mutations.keys[self.mutations.primary], len(self.mutations)


class CommitRequests:
    """Makes the requests of one commit.

    Args:
        order: What is committed.
        codec: Encodes keys.
        lock_ttl: Seconds after the start that locks last.
    """

    def __init__(self, order: CommitOrder, codec: KeyCodec, lock_ttl: float) -> None:
        self.order = order
        """What is committed."""
        self.max_commit_ts = 0
        """Stores fall back to two phases rather than commit later; 0 for no limit."""
        self.commit_ts = 0
        """Where keys are committed."""
        mutations = order.mutations
        self._keys = [codec.encode_key(key) for key in mutations.keys]
        self._primary = self._keys[mutations.primary]
        self._lock_ttl_ms = int(lock_ttl * 1000)

    def prewrite(self, part: Part, state: CommitState, txn_size: int | None) -> PartRequest[kvrpcpb.PrewriteResponse]:
        """Lock keys, or commit them at once.

        Args:
            part: Positions of mutations.
            state: Says in which mode.
            txn_size: How many keys there are in the Region; None when it has moved since they were counted.
        """
        order = self.order
        primary, everything = order.mutations.primary, order.mutations.all
        is_asserting = order.options.assertion_level is not AssertionLevel.OFF
        message = kvrpcpb.PrewriteRequest(
            mutations=[
                kvrpcpb.Mutation(
                    op=everything[position].op.value,  # type: ignore[arg-type]  # an int of the enum, as on the wire
                    key=self._keys[position],
                    value=everything[position].value,
                    assertion=everything[position].assertion.value if is_asserting else 0,  # type: ignore[arg-type]
                )
                for position in part
            ],
            primary_lock=self._primary,
            start_version=order.start_ts,
            lock_ttl=self._lock_ttl_ms,
            txn_size=_UNKNOWN_SIZE if txn_size is None else txn_size,
            min_commit_ts=state.min_commit_ts,
            max_commit_ts=self.max_commit_ts,
            use_async_commit=state.async_commit,
            try_one_pc=state.one_pc,
            assertion_level=order.options.assertion_level.value,  # type: ignore[arg-type]
        )
        if state.async_commit and primary in part:
            message.secondaries.extend(
                self._keys[position] for position in order.mutations.locking if position != primary
            )
        return PartRequest(services.Tikv.KvPrewrite, message, part, _RETRY if txn_size is None else b"")

    def commit(self, part: Part) -> PartRequest[kvrpcpb.CommitResponse]:
        """Commit locked keys at `commit_ts`; `part` says where in `Mutations.locking` they are."""
        positions = self.order.mutations.locking
        message = kvrpcpb.CommitRequest(
            start_version=self.order.start_ts,
            keys=[self._keys[positions[index]] for index in part],
            commit_version=self.commit_ts,
            commit_role=kvrpcpb.CommitRole.Secondary if part[0] else kvrpcpb.CommitRole.Primary,
            primary_key=self._primary,
        )
        return PartRequest(services.Tikv.KvCommit, message, part)

    def roll_back(self, positions: Part, part: Part) -> PartRequest[kvrpcpb.BatchRollbackResponse]:
        """Roll the keys at some positions back; `part` says where in `positions` they are."""
        message = kvrpcpb.BatchRollbackRequest(
            start_version=self.order.start_ts, keys=[self._keys[positions[index]] for index in part]
        )
        return PartRequest(services.Tikv.KvBatchRollback, message, part)

    def status(self) -> Request[kvrpcpb.CheckTxnStatusResponse]:
        """Ask the primary key what became of the transaction, and have it do nothing about it."""
        message = kvrpcpb.CheckTxnStatusRequest(
            primary_key=self._primary, lock_ts=self.order.start_ts, verify_is_primary=True
        )
        return Request(services.Tikv.KvCheckTxnStatus, message, Effect.WRITE)

    def heartbeat(self, ttl_ms: int) -> Request[kvrpcpb.TxnHeartBeatResponse]:
        """Have the primary lock last for so many milliseconds after the transaction's start."""
        message = kvrpcpb.TxnHeartBeatRequest(
            primary_lock=self._primary, start_version=self.order.start_ts, advise_lock_ttl=ttl_ms
        )
        return Request(services.Tikv.KvTxnHeartBeat, message, Effect.WRITE)


class PrewriteWork:
    """The prewrites of one commit. A part is positions of mutations.

    Args:
        requests: Makes the requests.
        state: Hears how many there are.
        max_bytes: Bytes of keys and values after which a request is closed.
    """

    def __init__(self, requests: CommitRequests, state: CommitState, max_bytes: int) -> None:
        mutations = requests.order.mutations
        self._requests = requests
        self._state = state
        sizes = [size_of(mutation) for mutation in mutations.all]
        self._keys = KeyWork(mutations.keys, self.request, _NO_LIMIT, max_bytes, sizes)
        # Keys of the transaction in the Region of each part, by the part's first position.
        self._region_keys: dict[int, int] = {}

    @property
    def whole(self) -> Part:
        """Every position."""
        return self._keys.whole

    async def begin(self, cache: RegionCache, call: Call) -> Pieces:
        """Group all mutations by Region."""
        pieces = await self._keys.begin(cache, call)
        counts: dict[int, int] = {}
        for entry, part in pieces:
            counts[id(entry)] = counts.get(id(entry), 0) + len(part)
        self._region_keys = {part[0]: counts[id(entry)] for entry, part in pieces}
        self._state.split_into(len(pieces))
        return pieces

    async def split(self, part: Part, cache: RegionCache, call: Call) -> Pieces:
        """Group mutations by Region that were to be in one."""
        pieces = await self._keys.split(part, cache, call)
        for _, piece in pieces:
            self._region_keys.pop(piece[0], None)
        self._state.split_into(len(pieces))
        return pieces

    def request(self, part: Part) -> Request[kvrpcpb.PrewriteResponse]:
        """Return the request for one piece, in the mode that is left by now."""
        return self._requests.prewrite(part, self._state, self._region_keys.get(part[0]))


class PrimaryFirst:
    """The piece of a work that holds the primary key, which has to be done before the others are begun.

    Args:
        work: All of it; its first position is the primary key.
        pieces: The pieces of it.
    """

    def __init__(self, work: Splittable[Part, Any], pieces: Pieces) -> None:
        self.rest: list[tuple[RegionEntry, Part]] = list(pieces[1:])
        """The other pieces: those there were, and those that became of the first one."""
        self._work = work
        self._first = pieces[0]

    @property
    def whole(self) -> Part:
        """The piece."""
        return self._first[1]

    async def begin(self, _cache: RegionCache, _call: Call) -> Pieces:
        """Return the piece."""
        return [self._first]

    async def split(self, part: Part, cache: RegionCache, call: Call) -> Pieces:
        """Return what holds the primary key of a piece that moved."""
        pieces = await self._work.split(part, cache, call)
        self.rest += pieces[1:]
        return pieces[:1]

    def request(self, part: Part) -> Request[Any]:
        """Return the request for one piece."""
        return self._work.request(part)


def commit_work(requests: CommitRequests, max_bytes: int) -> KeyWork[kvrpcpb.CommitResponse]:
    """Return the commits of all keys that are locked, the first of which is the primary one."""
    return _key_work(requests, requests.order.mutations.locking, requests.commit, max_bytes)


def rollback_work(requests: CommitRequests, positions: Part, max_bytes: int) -> KeyWork[kvrpcpb.BatchRollbackResponse]:
    """Return the rollbacks of the keys at some positions, the first of which is the primary one."""
    return _key_work(requests, positions, lambda part: requests.roll_back(positions, part), max_bytes)


def _key_work(
    requests: CommitRequests, positions: Part, build: Callable[[Part], Request[Resp]], max_bytes: int
) -> KeyWork[Resp]:
    everything = requests.order.mutations.keys
    keys = [everything[position] for position in positions]
    return KeyWork(keys, build, _NO_LIMIT, max_bytes, [len(key) for key in keys])
