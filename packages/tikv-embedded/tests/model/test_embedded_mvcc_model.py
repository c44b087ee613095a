"""Transactions in any interleaving, with late and repeated requests, against the history they amount to.

The history is what clients can know: when each transaction committed, and what it wrote. Reads must agree with it at
every timestamp, and nothing may commit at or before a read that did not see it, or over a newer write.
"""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tikv_embedded.mvcc.keys import MAX_TS
from tikv_embedded.testing import DirectStore
from tikv_proto import kvrpcpb
from tikv_proto.services import Rpc, Tikv

KEYS = (b"a", b"b", b"c")


PLANS = st.tuples(
    st.lists(st.sampled_from(KEYS), min_size=1, max_size=2, unique=True),
    st.booleans(),
    st.sampled_from(["two", "async", "one"]),
)
"""The keys of a transaction, whether it deletes them, and how it commits."""


@attrs.define(eq=False)
class Txn:
    """What the client of one transaction knows."""

    start_ts: int
    keys: tuple[bytes, ...]
    deletes: bool
    mode: str
    locked: dict[bytes, int] = attrs.field(factory=dict)
    """Keys prewritten → their `min_commit_ts`."""
    planned_ts: int = 0
    """The commit timestamp that the client has fetched."""
    commit_ts: int = 0
    is_rolled_back: bool = False

    @property
    def primary(self) -> bytes:
        return self.keys[0]

    @property
    def is_open(self) -> bool:
        return not self.commit_ts and not self.is_rolled_back

    def mutation(self, key: bytes) -> kvrpcpb.Mutation:
        if self.deletes:
            return kvrpcpb.Mutation(op=kvrpcpb.Op.Del, key=key)
        return kvrpcpb.Mutation(op=kvrpcpb.Op.Put, key=key, value=self.value)

    @property
    def value(self) -> bytes:
        return b"%d" % self.start_ts * (100 if self.start_ts % 2 else 1)


class Transactions(RuleBasedStateMachine):
    """A few clients at one store."""

    @initialize(plans=st.lists(PLANS, min_size=3, max_size=5))
    def start(self, plans: list[tuple[list[bytes], bool, str]]) -> None:
        self.clock = 1
        self.store = DirectStore(next_ts=self.tick)
        self.txns: list[Txn] = []
        self.requests: list[tuple[Rpc[Any, Any], dict[str, Any]]] = []
        self.reads: list[tuple[int, bytes, bytes | None]] = []
        for keys, deletes, mode in plans:
            self.txns.append(Txn(self.tick(), tuple(keys), deletes, mode))

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def ask(self, rpc: Rpc[Any, Any], **fields: Any) -> Any:
        self.requests.append((rpc, fields))
        answer = self.store.ask(rpc, **fields)
        assert not answer.HasField("region_error"), answer.region_error
        return answer

    @rule(plan=PLANS, data=st.data())
    def begin(self, plan: tuple[list[bytes], bool, str], data: st.DataObject) -> None:
        keys, deletes, mode = plan
        self.txns.append(Txn(self.tick(), tuple(keys), deletes, mode))
        self.prewrite(data)

    @precondition(lambda self: any(txn.is_open for txn in self.txns))
    @rule(data=st.data())
    def prewrite(self, data: st.DataObject) -> None:
        txn = data.draw(st.sampled_from([txn for txn in self.txns if txn.is_open]))
        keys = txn.keys
        if txn.mode != "one" and not data.draw(st.booleans()):
            keys = (data.draw(st.sampled_from(txn.keys)),)
        fields: dict[str, Any] = {"min_commit_ts": txn.start_ts + 1}
        if txn.mode == "async":
            fields |= {"use_async_commit": True, "secondaries": txn.keys[1:] if txn.primary in keys else []}
        elif txn.mode == "one":
            fields |= {"try_one_pc": True}

        answer = self.ask(
            Tikv.KvPrewrite,
            mutations=[txn.mutation(key) for key in keys],
            primary_lock=txn.primary,
            start_version=txn.start_ts,
            lock_ttl=10,
            **fields,
        )

        if answer.errors:
            if any(error.HasField("conflict") for error in answer.errors):
                self.roll_back(txn)
            return
        if txn.mode == "one":
            if answer.one_pc_commit_ts:
                self.committed(txn, answer.one_pc_commit_ts)
                return
            txn.mode = "two"
        if txn.mode == "async" and not answer.min_commit_ts:
            txn.mode = "two"
        txn.locked.update(dict.fromkeys(keys, answer.min_commit_ts))
        if txn.mode == "async" and len(txn.locked) == len(txn.keys):
            self.committed(txn, max(txn.locked.values()))

    @precondition(lambda self: any(txn.is_open and len(txn.locked) == len(txn.keys) for txn in self.txns))
    @rule(data=st.data())
    def commit_primary(self, data: st.DataObject) -> None:
        ready = [txn for txn in self.txns if txn.is_open and len(txn.locked) == len(txn.keys)]
        txn = data.draw(st.sampled_from(ready))

        if not txn.planned_ts:
            txn.planned_ts = self.tick()
            return
        commit_ts, txn.planned_ts = txn.planned_ts, 0
        answer = self.ask(Tikv.KvCommit, start_version=txn.start_ts, commit_version=commit_ts, keys=[txn.primary])

        if answer.HasField("error"):
            assert answer.error.HasField("commit_ts_expired") or answer.error.HasField("txn_lock_not_found")
        else:
            self.committed(txn, commit_ts)

    @precondition(lambda self: any(txn.commit_ts for txn in self.txns))
    @rule(data=st.data())
    def commit_secondaries(self, data: st.DataObject) -> None:
        txn = data.draw(st.sampled_from([txn for txn in self.txns if txn.commit_ts]))

        answer = self.ask(Tikv.KvCommit, start_version=txn.start_ts, commit_version=txn.commit_ts, keys=txn.keys)

        assert answer.commit_version == txn.commit_ts

    @precondition(lambda self: any(txn.is_open for txn in self.txns))
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        self.roll_back(data.draw(st.sampled_from([txn for txn in self.txns if txn.is_open])))

    @rule(back=st.integers(0, 5), key=st.sampled_from(KEYS))
    def read(self, back: int, key: bytes) -> None:
        self.read_at(key, max(self.tick() - back, 1))

    def read_at(self, key: bytes, version: int) -> None:
        answer = self.ask(Tikv.KvGet, key=key, version=version)

        if answer.HasField("error"):
            self.check_lock(answer.error.locked, version)
            return
        value = None if answer.not_found else answer.value
        assert value == self.history(key, version)
        self.reads.append((version, key, value))

    @rule(reverse=st.booleans())
    def scan(self, reverse: bool) -> None:
        version = self.tick()

        pairs = self.ask(Tikv.KvScan, limit=9, version=version, reverse=reverse).pairs

        found = {pair.key: pair.value for pair in pairs if not pair.HasField("error")}
        locked = {pair.error.locked.key for pair in pairs if pair.HasField("error")}
        assert list(found) == sorted(found, reverse=reverse)
        for key in KEYS:
            if key not in locked:
                assert found.get(key) == self.history(key, version)
                self.reads.append((version, key, found.get(key)))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        """A request comes twice; what it is answered no client sees."""
        rpc, fields = data.draw(st.sampled_from(self.requests))
        answer = self.store.ask(rpc, **fields)
        if rpc is Tikv.KvPrewrite and not answer.errors:
            self.recognize(fields, answer)

    @rule(force=st.booleans(), key=st.sampled_from(KEYS))
    def resolve(self, force: bool, key: bytes) -> None:
        """Another client meets a lock, and does about it what the status of the transaction calls for."""
        locks = self.ask(Tikv.KvScanLock, max_version=self.tick(), start_key=key, limit=1).locks
        if not locks:
            return
        (lock,) = locks
        owner = self.owner(lock.lock_version)
        caller = self.tick()
        status = self.ask(
            Tikv.KvCheckTxnStatus,
            primary_key=lock.primary_lock,
            lock_ts=lock.lock_version,
            caller_start_ts=caller,
            current_ts=MAX_TS if force else 0,
            rollback_if_not_exist=force,
        )
        if status.HasField("error"):
            assert status.error.HasField("txn_not_found")
            return
        if not status.lock_ttl:
            self.settle(owner, status.commit_version)
        elif status.lock_info.use_async_commit and force:
            self.check_secondaries(owner, status.lock_info)
        else:
            self.read_at(lock.primary_lock, caller)

    def check_secondaries(self, owner: Txn, primary: kvrpcpb.LockInfo) -> None:
        answer = self.ask(Tikv.KvCheckSecondaryLocks, start_version=owner.start_ts, keys=primary.secondaries)
        if answer.commit_ts:
            self.settle(owner, answer.commit_ts)
        elif len(answer.locks) < len(primary.secondaries):
            self.settle(owner, 0)
        elif all(lock.use_async_commit for lock in answer.locks):
            self.settle(owner, max(lock.min_commit_ts for lock in (primary, *answer.locks)))

    def settle(self, owner: Txn, commit_ts: int) -> None:
        """A transaction turned out to be committed, or rolled back; its locks are removed."""
        if commit_ts:
            self.committed(owner, commit_ts)
        else:
            assert not owner.commit_ts
            owner.is_rolled_back = True
        answer = self.ask(Tikv.KvResolveLock, start_version=owner.start_ts, commit_version=commit_ts)
        assert not answer.HasField("error"), answer.error

    def roll_back(self, txn: Txn) -> None:
        answer = self.ask(Tikv.KvBatchRollback, start_version=txn.start_ts, keys=txn.keys)
        assert not answer.HasField("error"), answer.error
        txn.is_rolled_back = True

    def recognize(self, fields: dict[str, Any], answer: kvrpcpb.PrewriteResponse) -> None:
        """A late prewrite may succeed: as a part of a transaction that is still open, or that is committed."""
        txn = self.owner(fields["start_version"])
        assert not txn.is_rolled_back or not txn.commit_ts
        if answer.one_pc_commit_ts:
            self.committed(txn, answer.one_pc_commit_ts)
        elif txn.is_open and txn.mode != "one":
            txn.locked.update({mutation.key: answer.min_commit_ts for mutation in fields["mutations"]})
            if txn.mode == "async" and len(txn.locked) == len(txn.keys):
                self.committed(txn, max(txn.locked.values()))

    def committed(self, txn: Txn, commit_ts: int) -> None:
        if txn.commit_ts:
            assert txn.commit_ts == commit_ts
            return
        assert not txn.is_rolled_back
        assert commit_ts > txn.start_ts
        for other in self.txns:
            if other is not txn and other.commit_ts and set(other.keys) & set(txn.keys):
                overlap = other.start_ts < commit_ts and txn.start_ts < other.commit_ts
                assert not overlap, (txn, other)
        for version, key, _ in self.reads:
            assert key not in txn.keys or version < commit_ts, (version, key, txn)
        txn.commit_ts = commit_ts

    def check_lock(self, lock: kvrpcpb.LockInfo, version: int) -> None:
        """A lock in the way is that of a transaction that may have committed up to then."""
        owner = self.owner(lock.lock_version)
        assert lock.lock_version <= version
        assert lock.key in owner.keys
        assert lock.min_commit_ts <= version

    def history(self, key: bytes, version: int) -> bytes | None:
        writers = [txn for txn in self.txns if key in txn.keys and 0 < txn.commit_ts <= version]
        newest = max(writers, key=lambda txn: txn.commit_ts, default=None)
        return None if newest is None or newest.deletes else newest.value

    def owner(self, start_ts: int) -> Txn:
        return next(txn for txn in self.txns if txn.start_ts == start_ts)

    @invariant()
    def no_read_was_wrong(self) -> None:
        assert all(value == self.history(key, version) for version, key, value in getattr(self, "reads", []))


TestTransactions = Transactions.TestCase
TestTransactions.settings = settings(max_examples=250, stateful_step_count=60, deadline=None)
