"""Snapshots against the history they read: transactions of every kind in the way, Regions on the move, answers lost.

The history is drawn first: transactions with their keys, what they write, and how far each got before its client
vanished. What a snapshot must see follows from it alone. Then everything is read in every way, several times, from a
cluster that holds what the transactions left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import anyio
import attrs
from hypothesis import HealthCheck, given, settings, strategies as st
from tikv_pd import LATEST, Timestamp
from tikv_pd.testing import virtual_time
from tikv_proto.services import Tikv
from tikv_region import TxnV1Codec
from tikv_rpc import RequestOptions
from tikv_rpc.testing import FakeCluster
from tikv_txn._locks.resolver import LockResolver
from tikv_txn.config import TxnConfig
from tikv_txn.snapshot import Reads, Snapshot
from tikv_txn.testing import FakeMvcc

Move: TypeAlias = tuple[Any, ...]

NOW_MS: Final = 1_000_000
BEFORE: Final = 1000
"""When values were written that were there before the transactions."""
KEYS: Final = [b"", b"a", b"a\0", b"b", b"c", b"d", b"\xff"]

keys = st.sampled_from(KEYS)


@attrs.frozen
class Left:
    """A transaction, and what it left behind."""

    kind: str
    """"2pc", "async", or "fallen": an async commit some of whose keys are locked as by 2PC."""
    writes: dict[bytes, bytes | None]
    """What it writes. The first key is the primary one."""
    prewritten: frozenset[bytes]
    """Keys that it locked."""
    is_decided: bool
    """Whether it came to commit its primary key; only if all keys were locked."""
    finished: frozenset[bytes]
    """Of one that did, keys that it committed besides."""
    large: bool
    """Whether its locks tell of many keys."""


@st.composite
def transactions(draw: st.DrawFn) -> Left:
    """One transaction."""
    writes = draw(st.dictionaries(keys, st.none() | st.sampled_from([b"", b"1", b"2", b"3"]), min_size=1, max_size=4))
    whole = draw(st.sampled_from([True, True, False]))
    prewritten = frozenset(writes) if whole else draw(st.frozensets(st.sampled_from(list(writes))))
    return Left(
        draw(st.sampled_from(["2pc", "async", "fallen"])),
        writes,
        prewritten,
        whole and draw(st.booleans()),
        draw(st.frozensets(st.sampled_from(list(writes)))),
        draw(st.booleans()),
    )


moves = st.one_of(
    st.tuples(st.just("split"), st.sampled_from([b"a\0", b"b", b"bb", b"d", b"e"])),
    st.tuples(st.just("merge"), keys),
    st.tuples(st.just("move_leader"), keys, st.sampled_from([1, 2, 3])),
)
reads = st.one_of(
    st.tuples(st.just("get"), keys),
    st.tuples(st.just("batch_get"), st.lists(keys, max_size=6)),
    st.tuples(st.just("scan"), keys, keys | st.just(b""), st.none() | st.integers(0, 4), st.booleans()),
    st.tuples(st.just("get_versioned"), keys),
)
RPCS: Final = [Tikv.KvGet, Tikv.KvBatchGet, Tikv.KvScan, Tikv.KvCheckTxnStatus, Tikv.KvResolveLock]


def started(number: int) -> int:
    """Return when a transaction of the history started."""
    return Timestamp(NOW_MS - 100_000 + number * 1000, 0).ts


class History:
    """What the transactions amount to, and what they left behind in a cluster."""

    def __init__(self, present: set[bytes], left: list[Left]) -> None:
        self.versions: dict[bytes, dict[int, bytes | None]] = {key: {BEFORE: b"0"} for key in present}
        self._left = left

    def fill(self, mvcc: FakeMvcc) -> None:
        """Have a cluster hold everything; a key that is locked stays so: later transactions do not write it."""
        for key in self.versions:
            mvcc.write(key, b"0", BEFORE)
        for number, txn in enumerate(self._left):
            start_ts = started(number)
            free = {key for key in txn.writes if key not in mvcc.locks}
            if free == set(txn.writes):
                self._leave(mvcc, txn, start_ts)

    def _leave(self, mvcc: FakeMvcc, txn: Left, start_ts: int) -> None:
        primary, *secondaries = txn.writes
        is_whole = txn.prewritten == frozenset(txn.writes)
        for number, key in enumerate(txn.writes):
            if key not in txn.prewritten:
                continue
            is_async = txn.kind == "async" or (txn.kind == "fallen" and key == primary and len(txn.writes) > 1)
            mvcc.lock(
                key,
                start_ts,
                txn.writes[key],
                primary=primary,
                use_async_commit=is_async,
                min_commit_ts=start_ts + 1 + number if is_async else 0,
                secondaries=secondaries if is_async and key == primary else (),
                txn_size=1000 if txn.large else 1,
            )
        commit_ts = 0
        if txn.kind == "async" and is_whole:
            commit_ts = start_ts + len(txn.writes)
        if txn.is_decided and is_whole:
            commit_ts = commit_ts or start_ts + 50
            for key in (primary, *(txn.finished if txn.kind != "async" else txn.finished & {*secondaries})):
                mvcc.commit(key, start_ts, commit_ts)
        if commit_ts:
            for key, value in txn.writes.items():
                self.versions.setdefault(key, {})[commit_ts] = value

    def at(self, ts: int) -> dict[bytes, tuple[bytes, int]]:
        """Return value and commit timestamp of each key."""
        found = {}
        for key, versions in self.versions.items():
            seen = [commit_ts for commit_ts in versions if commit_ts <= ts]
            value = versions[max(seen)] if seen else None
            if value is not None:
                found[key] = value, max(seen)
        return found


async def read(snapshot: Snapshot, step: Move) -> Any:
    match step:
        case "get", key:
            return await snapshot.get(key)
        case "batch_get", several:
            return await snapshot.batch_get(several)
        case "get_versioned", key:
            found = await snapshot.get_versioned(key)
            return found and (found.value, found.commit_ts)
        case "scan", start, end, limit, reverse:
            return [pair async for pair in snapshot.scan(start, end, limit=limit, reverse=reverse)]
        case _:
            raise AssertionError(step)


def expected(seen: dict[bytes, tuple[bytes, int]], step: Move) -> Any:
    match step:
        case "get", key:
            return seen[key][0] if key in seen else None
        case "batch_get", several:
            return {key: seen[key][0] for key in several if key in seen}
        case "get_versioned", key:
            return seen.get(key)
        case "scan", start, end, limit, reverse:
            within = [key for key in seen if start <= key and (not end or key < end)]
            return [(key, seen[key][0]) for key in sorted(within, reverse=reverse)][:limit]
        case _:
            raise AssertionError(step)


@given(
    absent=st.sets(keys, max_size=3),
    left=st.lists(transactions(), min_size=1, max_size=6),
    read_at=st.lists(st.tuples(st.integers(0, 6), st.integers(-1, 8) | st.just(60)), min_size=1, max_size=3),
    steps=st.lists(reads, min_size=3, max_size=8),
    under_way=st.lists(st.tuples(st.sampled_from(RPCS), moves), max_size=6),
    lost=st.lists(st.sampled_from(RPCS), max_size=3),
    page=st.integers(1, 3),
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_snapshot_sees_the_history(
    open_cluster: Callable[..., Any],
    absent: set[bytes],
    left: list[Left],
    read_at: list[tuple[int, int]],
    steps: list[Move],
    under_way: list[tuple[Any, Move]],
    lost: list[Any],
    page: int,
) -> None:
    async def main() -> None:
        config = TxnConfig(scan_page=page, batch_get_keys=2)
        async with FakeCluster([b"b", b"c"], codec=TxnV1Codec()) as cluster, open_cluster(cluster, config) as store:
            history = History({*KEYS} - absent, left)
            history.fill(FakeMvcc(cluster))
            client = Reads(store, LockResolver(store))
            for rpc, move in under_way:
                cluster.store(1).before_next(rpc, lambda move=move: make(cluster, move))  # type: ignore[misc]
            for rpc in lost:
                cluster.store(1).drop_reply_next(rpc)
            for number, offset in read_at:
                ts = started(number) + offset
                snapshot = Snapshot(client, ts, RequestOptions(), 100.0)
                seen = history.at(ts)
                for step in steps:
                    assert await read(snapshot, step) == expected(seen, step)
            latest = Snapshot(client, LATEST, RequestOptions(), 100.0)
            assert await latest.batch_get(KEYS) == {key: value for key, (value, _) in history.at(LATEST).items()}

    backend, options = virtual_time()
    anyio.run(main, backend=backend, backend_options=options)


def make(cluster: FakeCluster, move: Move) -> None:
    """Move a Region, if it can be moved so."""
    name, *arguments = move
    regions = cluster.map.regions
    if name == "split" and any(
        region.start_key == cluster.map.codec.encode_region_key(arguments[0]) for region in regions
    ):
        return
    if name == "merge" and cluster.map.region(arguments[0]).end_key == b"":
        return
    getattr(cluster, name)(*arguments)
