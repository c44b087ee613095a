"""PD's own pairs: revisions, reading the past, watching, and compaction."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings, strategies as st
from tikv_embedded.engine import MemoryEngine
from tikv_embedded.pd.revisions import (
    DELETE,
    PUT,
    Change,
    CompactedError,
    DuplicateKeyError,
    Event,
    FutureRevisionError,
    RevisionedStore,
    Selection,
)

EVERYTHING = Selection(b"\0", b"\0")


def contents(store: RevisionedStore, revision: int = 0, selection: Selection = EVERYTHING) -> dict[bytes, bytes]:
    return {pair.key: pair.value for pair in store.select(selection, revision)}


def put(store: RevisionedStore, key: bytes, value: bytes) -> None:
    store.apply([Change(key, value)])


def test_a_pair_knows_when_it_was_made_and_changed() -> None:
    store = RevisionedStore(MemoryEngine())

    put(store, b"a", b"1")
    put(store, b"b", b"2")
    put(store, b"a", b"3")

    (pair,) = store.select(Selection(b"a"))
    assert (pair.value, pair.create_revision, pair.mod_revision, pair.version) == (b"3", 2, 4, 2)
    assert store.revision == 4
    assert store.get(b"a") == b"3"
    assert store.get(b"c") is None


def test_changes_together_are_one_revision_and_no_change_is_none() -> None:
    store = RevisionedStore(MemoryEngine())

    events = store.apply([Change(b"a", b"1"), Change(b"b", b"2"), Change(b"c", None)])
    nothing = store.apply([Change(b"c", None)])

    assert [(event.type, event.kv.key, event.kv.mod_revision) for event in events] == [(PUT, b"a", 2), (PUT, b"b", 2)]
    assert nothing == []
    assert store.revision == 2


def test_a_key_that_comes_twice_refuses_all() -> None:
    store = RevisionedStore(MemoryEngine())

    with pytest.raises(DuplicateKeyError):
        store.apply([Change(b"a", b"1"), Change(b"a", None)])

    assert contents(store) == {}


@pytest.mark.parametrize(
    ("selection", "keys"),
    [
        (Selection(b"b"), [b"b"]),
        (Selection(b"b", b"c"), [b"b", b"ba"]),
        (Selection(b"ba", b"\0"), [b"ba", b"c"]),
        (Selection.prefix(b"b"), [b"b", b"ba"]),
        (Selection(b"x"), []),
        (EVERYTHING, [b"a", b"b", b"ba", b"c"]),
    ],
)
def test_keys_are_selected_one_by_one_by_range_or_by_prefix(selection: Selection, keys: list[bytes]) -> None:
    store = RevisionedStore(MemoryEngine())
    for key in (b"c", b"ba", b"b", b"a"):
        put(store, key, b"")

    assert list(contents(store, selection=selection)) == keys
    assert [key for key in (b"a", b"b", b"ba", b"c") if selection.contains(key)] == keys


def test_everything_outlives_a_restart() -> None:
    engine = MemoryEngine()
    store = RevisionedStore(engine)
    for value in (b"1", b"2", b"3"):
        put(store, b"a", value)
    store.compact(3)

    again = RevisionedStore(engine)

    assert (again.revision, again.compact_revision) == (4, 3)
    assert contents(again, 3) == {b"a": b"2"}


def test_what_is_compacted_or_still_to_come_cannot_be_read() -> None:
    store = RevisionedStore(MemoryEngine())
    for value in (b"1", b"2", b"3"):
        put(store, b"a", value)
    store.compact(3)

    assert contents(store, 3) == {b"a": b"2"}
    with pytest.raises(CompactedError) as caught:
        store.select(EVERYTHING, 2)
    assert caught.value.compact_revision == 3
    with pytest.raises(CompactedError):
        store.compact(3)
    for revision in (5, 6):
        with pytest.raises(FutureRevisionError):
            store.select(EVERYTHING, revision)
        with pytest.raises(FutureRevisionError):
            store.compact(revision)


def test_old_events_are_forgotten_as_new_ones_come() -> None:
    store = RevisionedStore(MemoryEngine(), history=2)

    for value in (b"1", b"2", b"3", b"4"):
        put(store, b"a", value)

    assert store.compact_revision == 3
    assert contents(store, 3) == {b"a": b"2"}


async def next_of(watch: AsyncIterator[tuple[int, list[Event]]]) -> tuple[int, list[tuple[bytes, bytes, bytes]]]:
    revision, events = await anext(watch)
    return revision, [(event.kv.key, event.kv.value, event.prev_kv.value) for event in events]


async def test_a_watch_begins_in_the_past_and_goes_on() -> None:
    store = RevisionedStore(MemoryEngine())
    put(store, b"a", b"1")
    put(store, b"x", b"0")
    put(store, b"a", b"2")

    watch = store.watch(Selection.prefix(b"a"), 2)
    first, second = await next_of(watch), await next_of(watch)
    store.apply([Change(b"ab", b"3"), Change(b"x", b"1"), Change(b"a", None)])
    third = await next_of(watch)

    assert first == (2, [(b"a", b"1", b"")])
    assert second == (4, [(b"a", b"2", b"1")])
    assert third == (5, [(b"ab", b"3", b""), (b"a", b"", b"2")])


async def test_a_watch_of_what_is_compacted_says_so() -> None:
    store = RevisionedStore(MemoryEngine())
    for value in (b"1", b"2", b"3"):
        put(store, b"a", value)
    store.compact(3)

    with pytest.raises(CompactedError):
        await anext(store.watch(EVERYTHING, 2))

    assert (await next_of(store.watch(EVERYTHING, 3)))[0] == 3


async def test_a_watch_that_falls_behind_compaction_ends() -> None:
    store = RevisionedStore(MemoryEngine(), history=2)
    watch = store.watch(EVERYTHING, 1)
    put(store, b"a", b"0")
    await anext(watch)

    for value in (b"1", b"2", b"3", b"4"):
        put(store, b"a", value)

    with pytest.raises(CompactedError):
        await anext(watch)


KEYS = st.sampled_from([b"a", b"b", b"c"])


@settings(max_examples=60)
@given(st.lists(st.dictionaries(KEYS, st.none() | st.binary(max_size=2), max_size=3), max_size=15))
def test_every_revision_is_what_a_dictionary_was_then(steps: list[dict[bytes, bytes | None]]) -> None:
    store, model, past = RevisionedStore(MemoryEngine()), dict[bytes, bytes](), dict[int, dict[bytes, bytes]]()
    past[1] = {}

    for step in steps:
        for event in store.apply([Change(key, value) for key, value in step.items()]):
            if event.type == DELETE:
                del model[event.kv.key]
            else:
                model[event.kv.key] = event.kv.value
        past[store.revision] = dict(model)

    assert contents(store) == model
    for revision, then in past.items():
        assert contents(store, revision) == then
