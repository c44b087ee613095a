"""Which versions garbage collection removes."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from tikv_embedded.engine import CF_DEFAULT, CF_WRITE, MemoryEngine, WriteBatch
from tikv_embedded.mvcc.garbage import BATCH_SIZE, collect, outdated
from tikv_embedded.mvcc.keys import encode_key
from tikv_embedded.mvcc.modifications import Modifications
from tikv_embedded.mvcc.reader import MvccReader
from tikv_embedded.mvcc.write import Write, WriteType

P, D, L, R = WriteType.PUT, WriteType.DELETE, WriteType.LOCK, WriteType.ROLLBACK


@pytest.mark.parametrize(
    ("types", "kept"),
    [
        ([P], [1]),
        ([P, P], [2]),
        ([D, P], []),
        ([P, D, P], [3]),
        ([L, R, P, L, P], [3]),
        ([R, L], []),
        ([D, D], []),
    ],
)
def test_of_what_is_below_the_safe_point_the_newest_put_stays(types: list[WriteType], kept: list[int]) -> None:
    writes = [(ts, Write(kind, ts - 1)) for ts, kind in zip(range(len(types), 0, -1), types, strict=True)]

    garbage = {ts for ts, _ in outdated(writes, safe_point=9)}

    assert [ts for ts, _ in writes if ts not in garbage] == kept
    assert outdated(writes, safe_point=0) == []


def collected(engine: MemoryEngine, safe_point: int, lower: bytes = b"", upper: bytes = b"") -> int:
    batches = 0
    with engine.snapshot() as snapshot:
        for batch in collect(snapshot, lower, upper, safe_point):
            engine.write(batch)
            batches += 1
    return batches


def stored(engine: MemoryEngine, cf: str) -> int:
    with engine.snapshot() as snapshot:
        return sum(1 for _ in snapshot.scan(cf, b"", b""))


def test_long_values_go_with_their_records() -> None:
    engine, written = MemoryEngine(), Modifications()
    for start_ts in (1, 3, 5):
        written.put_value(b"k", start_ts, bytes(300))
        written.put_write(b"k", start_ts + 1, Write(P, start_ts))
    engine.write(written.batch)

    assert collected(engine, 4) == 1

    assert (stored(engine, CF_WRITE), stored(engine, CF_DEFAULT)) == (2, 2)
    assert collected(engine, 4) == 0


def test_much_garbage_goes_in_batches_of_whole_keys_of_the_range() -> None:
    engine, written = MemoryEngine(), Modifications()
    keys = [b"%05d" % n for n in range(BATCH_SIZE)]
    for key in keys:
        for ts in (1, 2, 3):
            written.put_write(key, ts, Write(P, ts, b""))
    engine.write(written.batch)

    assert collected(engine, 9, encode_key(keys[1]), encode_key(keys[-1])) == 2
    assert stored(engine, CF_WRITE) == BATCH_SIZE + 4


def test_what_is_no_record_is_left_alone() -> None:
    engine, batch = MemoryEngine(), WriteBatch()
    batch.put(CF_WRITE, b"raw", b"v")
    batch.put(CF_WRITE, encode_key(b"k") + bytes(8), b"v")
    engine.write(batch)

    assert collected(engine, 9) == 0


@given(
    st.lists(st.sampled_from([P, D, L, R]), max_size=8),
    st.integers(0, 9),
)
def test_reads_from_the_safe_point_on_see_the_same(types: list[WriteType], safe_point: int) -> None:
    engine, written = MemoryEngine(), Modifications()
    for ts, kind in enumerate(types, 1):
        written.put_write(b"k", ts, Write(kind, ts, b"%d" % ts if kind is P else None))
    engine.write(written.batch)

    def seen() -> list[tuple[int, Write] | None]:
        with engine.snapshot() as snapshot:
            return [MvccReader(snapshot).newest_put(b"k", ts, ts) for ts in range(safe_point, 12)]

    before = seen()
    collected(engine, safe_point)

    assert seen() == before
