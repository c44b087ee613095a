"""A transaction that reads and writes in any order, against a dict: what it sees is the snapshot with its own writes.

Scans have pages of two pairs, over three Regions, and write while they go on.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import anyio
from hypothesis import HealthCheck, given, settings, strategies as st
from tikv_pd.testing import virtual_time
from tikv_region import KeyRange, TxnV1Codec
from tikv_rpc.testing import FakeCluster
from tikv_txn import Savepoint, Transaction, TransactionClient, TxnConfig
from tikv_txn.testing import FakeMvcc

Step: TypeAlias = tuple[Any, ...]
Pairs: TypeAlias = dict[bytes, bytes]

KEYS: Final = [b"", b"a", b"a\0", b"b", b"g", b"ga", b"m", b"p", b"pp", b"\xff"]

keys = st.sampled_from(KEYS)
values = st.sampled_from([b"", b"1", b"22"])
writes = st.one_of(st.tuples(st.just("put"), keys, values), st.tuples(st.just("delete"), keys))
scans = st.tuples(
    st.just("scan"),
    keys,
    keys | st.just(b""),
    st.none() | st.integers(0, 5),
    st.booleans(),
    st.lists(writes, max_size=5),
)
steps = st.one_of(
    writes,
    st.tuples(st.just("get"), keys),
    st.tuples(st.just("batch_get"), st.lists(keys, max_size=6)),
    scans,
    st.sampled_from([("savepoint",), ("release",), ("rollback",)]),
)


class World:
    """A transaction, and what it must see."""

    def __init__(self, txn: Transaction, present: Pairs) -> None:
        self._txn = txn
        self.seen = dict(present)
        self._savepoints: list[tuple[Savepoint, Pairs]] = []

    async def take(self, step: Step) -> None:
        match step:
            case ("get", key):
                assert await self._txn.get(key) == self.seen.get(key)
                assert await self._txn.exists(key) == (key in self.seen)
            case ("batch_get", wanted):
                assert await self._txn.batch_get(wanted) == {key: self.seen[key] for key in wanted if key in self.seen}
            case ("scan", start, end, limit, reverse, meanwhile):
                await self.scan(KeyRange(start, end), limit, list(meanwhile), reverse=reverse)
            case ("savepoint",):
                self._savepoints.append((self._txn.savepoint(), dict(self.seen)))
            case ("release",) if self._savepoints:
                self._savepoints.pop()[0].release()
            case ("rollback",) if self._savepoints:
                savepoint, self.seen = self._savepoints.pop()
                savepoint.rollback()
            case _:
                self.write(step)

    def write(self, step: Step) -> None:
        match step:
            case ("put", key, value):
                self._txn.put(key, value)
                self.seen[key] = value
            case ("delete", key):
                self._txn.delete(key)
                self.seen.pop(key, None)

    async def scan(self, key_range: KeyRange, limit: int | None, meanwhile: list[Step], *, reverse: bool) -> None:
        """Scan, and write after each pair; what is ahead by then is to be seen."""
        count, last = 0, None
        scan = self._txn.scan(key_range.start, key_range.end, limit=limit, reverse=reverse)
        async for key, value in scan:
            assert (key, value) == self.ahead(key_range, last, reverse=reverse)
            count, last = count + 1, key
            if meanwhile:
                self.write(meanwhile.pop())
        if limit is None or count < limit:
            assert self.ahead(key_range, last, reverse=reverse) is None
        else:
            assert count == limit

    def ahead(self, key_range: KeyRange, last: bytes | None, *, reverse: bool) -> tuple[bytes, bytes] | None:
        left = [
            key
            for key in self.seen
            if key_range.contains(key) and (last is None or (key < last if reverse else key > last))
        ]
        if not left:
            return None
        first = max(left) if reverse else min(left)
        return first, self.seen[first]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(present=st.dictionaries(keys, values), taken=st.lists(steps, max_size=20))
def test_a_transaction_sees_the_snapshot_with_its_own_writes(present: Pairs, taken: list[Step]) -> None:
    async def check() -> None:
        async with FakeCluster([b"g", b"p"], codec=TxnV1Codec()) as cluster:
            mvcc = FakeMvcc(cluster)
            for key, value in present.items():
                mvcc.write(key, value, 1000)
            config = TxnConfig(scan_page=2, batch_get_keys=2)
            async with TransactionClient(cluster.url, config=config, transport=cluster.transport) as client:
                txn = await client.begin()
                world = World(txn, present)
                for step in taken:
                    await world.take(step)
                assert [pair async for pair in txn.scan()] == sorted(world.seen.items())
                await txn.rollback()

    backend, options = virtual_time()
    anyio.run(check, backend=backend, backend_options=options)
