"""Both engines keep the same promises; the durable one also survives being killed."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from tikv_embedded.engine import (
    CF_DEFAULT,
    CF_LOCK,
    CF_META,
    CF_WRITE,
    COLUMN_FAMILIES,
    Engine,
    MemoryEngine,
    RocksEngine,
    Snapshot,
    WriteBatch,
)
from tikv_embedded.engine.data_directory import MARKER_NAME
from tikv_embedded.errors import DataDirectoryError


@pytest.fixture(params=["memory", "rocks"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    opened: Engine = MemoryEngine() if request.param == "memory" else RocksEngine(tmp_path / "data", sync=False)
    yield opened
    opened.close()


def put(engine: Engine, cf: str, **pairs: bytes) -> None:
    batch = WriteBatch()
    for key, value in pairs.items():
        batch.put(cf, key.encode(), value)
    engine.write(batch)


def scan(snapshot: Snapshot, lower: bytes = b"", upper: bytes = b"", *, reverse: bool = False) -> list[bytes]:
    return [key for key, _ in snapshot.scan(CF_DEFAULT, lower, upper, reverse=reverse)]


def contents(engine: Engine, cf: str = CF_DEFAULT) -> dict[bytes, bytes]:
    with engine.snapshot() as snapshot:
        return dict(snapshot.scan(cf, b"", b""))


# Reading and writing.


def test_a_new_engine_has_every_column_family_and_nothing_in_it(engine: Engine) -> None:
    assert [contents(engine, cf) for cf in COLUMN_FAMILIES] == [{}, {}, {}, {}]


def test_a_written_value_is_read_back_in_its_column_family_alone(engine: Engine) -> None:
    put(engine, CF_LOCK, k=b"v")

    assert engine.get(CF_LOCK, b"k") == b"v"
    assert engine.get(CF_DEFAULT, b"k") is None


def test_empty_keys_and_values_are_values_like_others(engine: Engine) -> None:
    batch = WriteBatch()
    batch.put(CF_DEFAULT, b"", b"")
    engine.write(batch)

    with engine.snapshot() as snapshot:
        assert snapshot.get(CF_DEFAULT, b"") == b""
        assert list(snapshot.scan(CF_DEFAULT, b"", b"")) == [(b"", b"")]
        assert list(snapshot.scan(CF_DEFAULT, b"", b"", reverse=True)) == [(b"", b"")]


def test_multi_get_answers_in_the_order_of_the_keys_with_repeats_and_gaps(engine: Engine) -> None:
    put(engine, CF_DEFAULT, a=b"1", b=b"2")

    with engine.snapshot() as snapshot:
        assert snapshot.multi_get(CF_DEFAULT, [b"b", b"x", b"a", b"b"]) == [b"2", None, b"1", b"2"]
        assert snapshot.multi_get(CF_DEFAULT, []) == []


def test_a_later_operation_of_a_batch_wins(engine: Engine) -> None:
    batch = WriteBatch()
    batch.put(CF_DEFAULT, b"deleted", b"1")
    batch.delete(CF_DEFAULT, b"deleted")
    batch.delete(CF_DEFAULT, b"kept")
    batch.put(CF_DEFAULT, b"kept", b"1")
    batch.put(CF_DEFAULT, b"kept", b"2")

    engine.write(batch)

    assert contents(engine) == {b"kept": b"2"}


def test_a_batch_may_be_written_twice(engine: Engine) -> None:
    batch = WriteBatch()
    batch.put(CF_DEFAULT, b"k", b"v")

    engine.write(batch)
    put(engine, CF_DEFAULT, k=b"other")
    engine.write(batch)

    assert engine.get(CF_DEFAULT, b"k") == b"v"


def test_a_batch_is_false_when_empty_and_lists_its_operations() -> None:
    batch = WriteBatch()
    assert not batch

    batch.put(CF_DEFAULT, b"a", b"1")
    more = WriteBatch()
    more.delete_range(CF_LOCK, b"a", b"b")
    batch.extend(more)

    assert batch
    assert len(batch) == 2
    assert [operation[1:] for operation in batch] == [(CF_DEFAULT, b"a", b"1"), (CF_LOCK, b"a", b"b")]


def test_a_batch_of_many_megabytes_is_written(engine: Engine) -> None:
    batch = WriteBatch()
    for i in range(32):
        batch.put(CF_DEFAULT, b"%02d" % i, bytes(1 << 20))

    engine.write(batch)

    assert sum(map(len, contents(engine).values())) == 32 << 20


def test_a_batch_that_names_an_unknown_column_family_changes_nothing(engine: Engine) -> None:
    batch = WriteBatch()
    batch.put(CF_DEFAULT, b"k", b"v")
    batch.put("raft", b"k", b"v")

    with pytest.raises(KeyError):
        engine.write(batch)

    assert contents(engine) == {}


# Ranges.


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        (b"", b"", [b"a", b"b", b"c"]),
        (b"b", b"", [b"b", b"c"]),
        (b"", b"b", [b"a"]),
        (b"a\0", b"c", [b"b"]),
        (b"b", b"b", []),
        (b"c", b"a", []),
        (b"x", b"", []),
        (b"", b"x", [b"a", b"b", b"c"]),
    ],
)
def test_a_scan_yields_the_half_open_range_in_both_directions(
    engine: Engine, lower: bytes, upper: bytes, expected: list[bytes]
) -> None:
    put(engine, CF_DEFAULT, a=b"1", b=b"2", c=b"3")

    with engine.snapshot() as snapshot:
        assert scan(snapshot, lower, upper) == expected
        assert scan(snapshot, lower, upper, reverse=True) == expected[::-1]


@pytest.mark.parametrize(
    ("lower", "upper", "left"),
    [
        (b"b", b"c", [b"a", b"c"]),
        (b"", b"", []),
        (b"b", b"", [b"a"]),
        (b"c", b"a", [b"a", b"b", b"c"]),
    ],
)
def test_a_range_deletion_removes_the_half_open_range(
    engine: Engine, lower: bytes, upper: bytes, left: list[bytes]
) -> None:
    put(engine, CF_DEFAULT, a=b"1", b=b"2", c=b"3")
    put(engine, CF_LOCK, b=b"elsewhere")
    batch = WriteBatch()
    batch.delete_range(CF_DEFAULT, lower, upper)

    engine.write(batch)

    assert list(contents(engine)) == left
    assert contents(engine, CF_LOCK) == {b"b": b"elsewhere"}


def test_an_unbounded_range_deletion_reaches_keys_of_its_own_batch_and_spares_later_ones(engine: Engine) -> None:
    put(engine, CF_DEFAULT, b=b"old")
    batch = WriteBatch()
    batch.put(CF_DEFAULT, b"\xff\xff\xff", b"before")
    batch.delete_range(CF_DEFAULT, b"", b"")
    batch.put(CF_DEFAULT, b"a", b"after")

    engine.write(batch)

    assert contents(engine) == {b"a": b"after"}


# Snapshots.


def test_a_snapshot_does_not_see_later_writes_in_gets_and_scans(engine: Engine) -> None:
    # The iterators of rocksdict's own Snapshot read live data; this is the test for it.
    put(engine, CF_DEFAULT, a=b"old", b=b"old")
    with engine.snapshot() as snapshot:
        put(engine, CF_DEFAULT, a=b"new", c=b"new")
        batch = WriteBatch()
        batch.delete(CF_DEFAULT, b"b")
        engine.write(batch)

        assert snapshot.get(CF_DEFAULT, b"a") == b"old"
        assert snapshot.multi_get(CF_DEFAULT, [b"b", b"c"]) == [b"old", None]
        assert dict(snapshot.scan(CF_DEFAULT, b"", b"")) == {b"a": b"old", b"b": b"old"}
        assert scan(snapshot, reverse=True) == [b"b", b"a"]

    assert contents(engine) == {b"a": b"new", b"c": b"new"}


def test_the_lower_bound_of_a_backward_scan_holds(engine: Engine) -> None:
    # rocksdict's set_iterate_lower_bound sets the upper bound; this is the test for it.
    put(engine, CF_DEFAULT, a=b"1", b=b"2", c=b"3")
    with engine.snapshot() as snapshot:
        put(engine, CF_DEFAULT, bb=b"later")

        assert scan(snapshot, b"b", b"", reverse=True) == [b"c", b"b"]
        assert scan(snapshot, b"b", b"") == [b"b", b"c"]


def test_a_snapshot_shows_one_moment_of_all_column_families(engine: Engine) -> None:
    put(engine, CF_DEFAULT, k=b"1")
    put(engine, CF_WRITE, k=b"1")
    with engine.snapshot() as snapshot:
        assert snapshot.get(CF_DEFAULT, b"k") == b"1"
        put(engine, CF_DEFAULT, k=b"2")
        put(engine, CF_WRITE, k=b"2")

        assert snapshot.get(CF_DEFAULT, b"k") == b"1"
        assert snapshot.get(CF_WRITE, b"k") == b"1"
        assert list(snapshot.scan(CF_WRITE, b"", b"")) == [(b"k", b"1")]


def test_a_scan_that_is_under_way_goes_on_over_writes(engine: Engine) -> None:
    put(engine, CF_DEFAULT, a=b"1", b=b"2", c=b"3", d=b"4")
    with engine.snapshot() as snapshot:
        forward = snapshot.scan(CF_DEFAULT, b"", b"")
        backward = snapshot.scan(CF_DEFAULT, b"", b"", reverse=True)
        seen = [next(forward), next(backward)]
        batch = WriteBatch()
        batch.delete_range(CF_DEFAULT, b"", b"")
        engine.write(batch)
        seen += [next(forward), next(backward)]
        put(engine, CF_DEFAULT, b=b"new", bb=b"new")
        seen += [next(forward), next(backward)]

        assert [key for key, _ in seen] == [b"a", b"d", b"b", b"c", b"c", b"b"]
        assert [key for key, _ in itertools.chain(forward, backward)] == [b"d", b"a"]


def test_a_scan_begun_before_a_write_but_first_read_after_it_shows_the_snapshot(engine: Engine) -> None:
    put(engine, CF_DEFAULT, a=b"1")
    with engine.snapshot() as snapshot:
        pairs = snapshot.scan(CF_DEFAULT, b"", b"")
        put(engine, CF_DEFAULT, a=b"2", b=b"2")

        assert list(pairs) == [(b"a", b"1")]


def test_gets_between_the_steps_of_a_scan_do_not_move_it(engine: Engine) -> None:
    put(engine, CF_DEFAULT, a=b"1", b=b"2", c=b"3")
    with engine.snapshot() as snapshot:
        put(engine, CF_DEFAULT, z=b"9")
        pairs = snapshot.scan(CF_DEFAULT, b"", b"")

        first = next(pairs)
        assert snapshot.get(CF_DEFAULT, b"c") == b"3"
        assert [first, *pairs] == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]


def test_a_closed_snapshot_refuses_to_be_read(engine: Engine) -> None:
    put(engine, CF_DEFAULT, a=b"1", b=b"2")
    snapshot = engine.snapshot()
    pairs = snapshot.scan(CF_DEFAULT, b"", b"")
    next(pairs)

    snapshot.close()
    snapshot.close()

    with pytest.raises(RuntimeError, match="closed"):
        snapshot.get(CF_DEFAULT, b"a")
    with pytest.raises(RuntimeError, match="closed"):
        snapshot.multi_get(CF_DEFAULT, [b"a"])
    with pytest.raises(RuntimeError, match="closed"):
        next(pairs)


def test_a_closed_engine_refuses_everything(engine: Engine) -> None:
    snapshot = engine.snapshot()

    engine.close()
    engine.close()

    uses: list[Callable[[], object]] = [
        lambda: engine.get(CF_DEFAULT, b"a"),
        lambda: put(engine, CF_DEFAULT, a=b"1"),
        lambda: snapshot.get(CF_DEFAULT, b"a"),
        lambda: engine.snapshot().get(CF_DEFAULT, b"a"),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match="closed"):
            use()


# Against a model.

KEYS = st.binary(max_size=3)
CFS = st.sampled_from(COLUMN_FAMILIES)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), CFS, KEYS, st.binary(max_size=3)),
        st.tuples(st.just("delete"), CFS, KEYS),
        st.tuples(st.just("delete_range"), CFS, KEYS, KEYS),
    ),
    max_size=6,
)
Model = dict[str, dict[bytes, bytes]]


def in_range(key: bytes, lower: bytes, upper: bytes) -> bool:
    return lower <= key and (not upper or key < upper)


class EngineAgainstDicts(RuleBasedStateMachine):
    """Every snapshot equals the copy of the dicts that was made with it, whatever is written afterwards."""

    snapshots: Bundle[tuple[Snapshot, Model]] = Bundle("snapshots")
    scans: Bundle[tuple[Iterator[tuple[bytes, bytes]], Iterator[tuple[bytes, bytes]]]] = Bundle("scans")

    def __init__(self) -> None:
        super().__init__()
        self.engine = self.make()
        self.model: Model = {cf: {} for cf in COLUMN_FAMILIES}

    def make(self) -> Engine:
        return MemoryEngine()

    @rule(operations=OPERATIONS)
    def write(self, operations: list[tuple[Any, ...]]) -> None:
        batch = WriteBatch()
        for name, cf, *arguments in operations:
            getattr(batch, name)(cf, *arguments)
            table = self.model[cf]
            if name == "put":
                table[arguments[0]] = arguments[1]
            elif name == "delete":
                table.pop(arguments[0], None)
            else:
                self.model[cf] = {k: v for k, v in table.items() if not in_range(k, arguments[0], arguments[1])}
        self.engine.write(batch)

    @rule(target=snapshots)
    def snapshot(self) -> tuple[Snapshot, Model]:
        return self.engine.snapshot(), {cf: dict(table) for cf, table in self.model.items()}

    @rule(pair=snapshots, cf=CFS, keys=st.lists(KEYS, max_size=4))
    def get(self, pair: tuple[Snapshot, Model], cf: str, keys: list[bytes]) -> None:
        snapshot, model = pair
        expected = [model[cf].get(key) for key in keys]
        assert [snapshot.get(cf, key) for key in keys] == expected
        assert snapshot.multi_get(cf, keys) == expected

    @rule(target=scans, pair=snapshots, cf=CFS, lower=KEYS, upper=KEYS, reverse=st.booleans())
    def scan(
        self, pair: tuple[Snapshot, Model], cf: str, lower: bytes, upper: bytes, reverse: bool
    ) -> tuple[Iterator[tuple[bytes, bytes]], Iterator[tuple[bytes, bytes]]]:
        snapshot, model = pair
        expected = sorted(((k, v) for k, v in model[cf].items() if in_range(k, lower, upper)), reverse=reverse)
        return snapshot.scan(cf, lower, upper, reverse=reverse), iter(expected)

    @rule(pair=scans, steps=st.integers(1, 3))
    def step(self, pair: tuple[Iterator[Any], Iterator[Any]], steps: int) -> None:
        actual, expected = pair
        for _ in range(steps):
            assert next(actual, None) == next(expected, None)

    @rule(pair=consumes(scans))
    def finish(self, pair: tuple[Iterator[Any], Iterator[Any]]) -> None:
        assert list(pair[0]) == list(pair[1])

    @invariant()
    def the_engine_equals_the_dicts(self) -> None:
        for cf in COLUMN_FAMILIES:
            assert contents(self.engine, cf) == self.model[cf]

    def teardown(self) -> None:
        self.engine.close()


class RocksAgainstDicts(EngineAgainstDicts):
    def make(self) -> Engine:
        self.directory = tempfile.TemporaryDirectory()
        return RocksEngine(Path(self.directory.name) / "data", sync=False)

    @rule()
    def get_newest_after_reopening(self) -> None:
        if self.engine._open:  # type: ignore[attr-defined]
            return
        self.engine.close()
        self.engine = RocksEngine(Path(self.directory.name) / "data", sync=False)

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()


TestMemoryEngineAgainstDicts = EngineAgainstDicts.TestCase
TestMemoryEngineAgainstDicts.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestRocksEngineAgainstDicts = RocksAgainstDicts.TestCase
TestRocksEngineAgainstDicts.settings = settings(
    max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# Durability.


def test_what_was_written_is_there_after_reopening(tmp_path: Path) -> None:
    first = RocksEngine(tmp_path)
    for cf in COLUMN_FAMILIES:
        put(first, cf, k=cf.encode())
    open_snapshot = first.snapshot()
    open_scan = open_snapshot.scan(CF_DEFAULT, b"", b"")
    next(open_scan)
    first.close()

    second = RocksEngine(tmp_path)

    assert [second.get(cf, b"k") for cf in COLUMN_FAMILIES] == [cf.encode() for cf in COLUMN_FAMILIES]
    second.close()


WRITER = """
import sys
from tikv_embedded.engine import COLUMN_FAMILIES, RocksEngine, WriteBatch

engine = RocksEngine(sys.argv[1])
number = int(sys.argv[2])
while True:
    batch = WriteBatch()
    for cf in COLUMN_FAMILIES:
        for part in range(3):
            batch.put(cf, b"%08d/%d" % (number, part), bytes(200))
    engine.write(batch)
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
    number += 1
"""


def test_a_killed_process_loses_no_acknowledged_batch_and_leaves_none_half_done(tmp_path: Path) -> None:
    acknowledged = -1
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(acknowledged + 1)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for line in itertools.islice(writer.stdout, random.randint(1, 150)):
            acknowledged = int(line)
        writer.kill()
        rest = writer.stdout.read().split("\n")[:-1]
        writer.stdout.close()
        writer.wait()
        acknowledged = max([acknowledged, *map(int, rest)])

        engine = RocksEngine(tmp_path)
        tables = [set(contents(engine, cf)) for cf in COLUMN_FAMILIES]
        engine.close()

        assert all(table == tables[0] for table in tables)
        numbers = sorted({int(key.split(b"/")[0]) for key in tables[0]})
        assert len(tables[0]) == 3 * len(numbers)
        # At most one batch may be there whose acknowledgment did not get out.
        assert numbers in (list(range(acknowledged + 1)), list(range(acknowledged + 2)))
        acknowledged = numbers[-1]


# The data directory.


def test_a_directory_in_use_is_refused_in_the_same_process_and_free_again_after_closing(tmp_path: Path) -> None:
    holder = RocksEngine(tmp_path)

    with pytest.raises(DataDirectoryError, match="locked"):
        RocksEngine(tmp_path)

    holder.close()
    RocksEngine(tmp_path).close()


HOLDER = """
import sys
from tikv_embedded.engine import RocksEngine

engine = RocksEngine(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_a_directory_in_use_by_another_process_is_refused(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"

        with pytest.raises(DataDirectoryError, match="locked"):
            RocksEngine(tmp_path)

    RocksEngine(tmp_path).close()


def write_marker(path: Path, text: str) -> None:
    (path / MARKER_NAME).write_text(text)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda path: (path / "photo.jpg").write_bytes(b"x"), "foreign"),
        (lambda path: (path / "CURRENT").write_bytes(b"MANIFEST-000001"), "foreign"),
        (lambda path: write_marker(path, "not json"), "foreign"),
        (lambda path: write_marker(path, "[]"), "foreign"),
        (lambda path: write_marker(path, json.dumps({"format": "other", "version": 1})), "foreign"),
        (lambda path: write_marker(path, json.dumps({"format": "tikv-embedded", "version": "1"})), "foreign"),
        (lambda path: write_marker(path, json.dumps({"format": "tikv-embedded", "version": 99})), "format 99, newer"),
    ],
)
def test_a_foreign_or_newer_directory_is_refused_and_left_as_it_was(
    tmp_path: Path, prepare: Callable[[Path], object], reason: str
) -> None:
    prepare(tmp_path)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}

    with pytest.raises(DataDirectoryError, match=reason) as refused:
        RocksEngine(tmp_path)

    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(DataDirectoryError, match="cannot be used"):
        RocksEngine(tmp_path / "file")
    with pytest.raises(DataDirectoryError, match="cannot be used"):
        RocksEngine(tmp_path / "file" / "below")


def test_missing_parents_are_created_and_a_half_made_directory_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    path.mkdir(parents=True)
    (path / (MARKER_NAME + ".new")).write_text('{"form')

    RocksEngine(path).close()

    assert json.loads((path / MARKER_NAME).read_text()) == {"format": "tikv-embedded", "version": 1}


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    RocksEngine(tmp_path).close()
    (tmp_path / "rocksdb" / "CURRENT").write_text("nonsense")

    with pytest.raises(DataDirectoryError, match="cannot be opened") as refused:
        RocksEngine(tmp_path)

    assert "\n" not in str(refused.value)
    with pytest.raises(DataDirectoryError, match="cannot be opened"):
        RocksEngine(tmp_path)


def test_the_meta_column_family_is_like_the_others(engine: Engine) -> None:
    put(engine, CF_META, cluster_id=b"1")

    assert contents(engine, CF_META) == {b"cluster_id": b"1"}
