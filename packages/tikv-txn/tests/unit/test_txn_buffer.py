from collections.abc import Callable

import pytest
from tikv_region import KeyRange, KeyspaceCodec, PlainCodec
from tikv_txn._buffer import Assertion, Buffer, Entry, Limits, Merge
from tikv_txn.errors import AlreadyExists, KeyTooLarge, TransactionTooLarge, ValueTooLarge

ROOMY = Limits(key=1000, key_prefix=0, entry=1000, total=10_000)
ALL = KeyRange()


@pytest.fixture
def buffer() -> Buffer:
    return Buffer(ROOMY)


def merged(merge: Merge, *pages: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Everything, the snapshot answering page by page."""
    left, found = list(pages), []
    while True:
        if merge.is_hungry:
            page = left.pop(0) if left else []
            merge.feed(page, is_last=not left)
        pair = merge.take()
        if pair is not None:
            found.append(pair)
        elif not merge.is_hungry:
            return found


def test_entries_come_in_key_order_whatever_the_order_of_writes(buffer: Buffer) -> None:
    for key in [b"b", b"", b"c", b"a"]:
        buffer.put(key, key)

    assert [entry.key for entry in buffer.entries()] == [b"", b"a", b"b", b"c"]


def test_a_key_that_was_never_touched_is_unknown(buffer: Buffer) -> None:
    assert buffer.get(b"k") is None


def test_an_empty_value_is_a_value(buffer: Buffer) -> None:
    buffer.put(b"k", b"")

    assert buffer.get(b"k") == Entry(b"k", b"")


def test_the_last_write_counts(buffer: Buffer) -> None:
    buffer.put(b"k", b"1")
    buffer.delete(b"k")
    buffer.put(b"k", b"22")

    assert list(buffer.entries()) == [Entry(b"k", b"22")]
    assert buffer.size == 3


def test_a_deleted_key_is_written_and_has_no_value(buffer: Buffer) -> None:
    buffer.put(b"k", b"1")
    buffer.delete(b"k")

    entry = buffer.get(b"k")
    assert entry == Entry(b"k", is_deleted=True)
    assert entry.is_written
    assert buffer.size == 1


def test_an_insert_must_meet_no_key(buffer: Buffer) -> None:
    buffer.insert(b"k", b"1")

    assert buffer.get(b"k") == Entry(b"k", b"1", must_not_exist=True)


def test_an_inserted_key_must_not_exist_whatever_follows(buffer: Buffer) -> None:
    changes: list[Callable[[], None]] = [
        lambda: buffer.put(b"k", b"2"),
        lambda: buffer.delete(b"k"),
        lambda: buffer.put(b"k", b"3"),
        lambda: buffer.lock(b"k"),
        lambda: buffer.delete(b"k"),
        lambda: buffer.insert(b"k", b"4"),
    ]
    buffer.insert(b"k", b"1")

    for change in changes:
        change()
        entry = buffer.get(b"k")

        assert entry is not None
        assert entry.must_not_exist


def test_an_insert_of_a_key_that_was_stored_fails_at_once(buffer: Buffer) -> None:
    buffer.put(b"k", b"1")

    with pytest.raises(AlreadyExists) as caught:
        buffer.insert(b"k", b"2")

    assert caught.value.key == b"k"
    assert buffer.get(b"k") == Entry(b"k", b"1")


def test_an_insert_of_a_key_that_was_deleted_is_a_put(buffer: Buffer) -> None:
    buffer.delete(b"k")
    buffer.insert(b"k", b"1")

    assert buffer.get(b"k") == Entry(b"k", b"1")


def test_a_locked_key_is_not_written(buffer: Buffer) -> None:
    buffer.lock(b"k")

    entry = buffer.get(b"k")
    assert entry == Entry(b"k", is_locked=True)
    assert not entry.is_written
    assert buffer.size == 1


def test_what_is_asserted_of_a_key_stays_when_it_is_written(buffer: Buffer) -> None:
    buffer.assert_that(b"k", Assertion.EXIST)
    buffer.put(b"k", b"1")

    assert buffer.get(b"k") == Entry(b"k", b"1", is_locked=True, assertion=Assertion.EXIST)


def test_the_last_assertion_counts(buffer: Buffer) -> None:
    buffer.assert_that(b"k", Assertion.EXIST)
    buffer.assert_that(b"k", Assertion.NOT_EXIST)

    assert buffer.get(b"k") == Entry(b"k", is_locked=True, assertion=Assertion.NOT_EXIST)


def test_a_key_beyond_the_limit_changes_nothing() -> None:
    buffer = Buffer(Limits(key=5, key_prefix=2, entry=100, total=100))
    buffer.put(b"abc", b"")

    with pytest.raises(KeyTooLarge) as caught:
        buffer.lock(b"abcd")

    assert (caught.value.size, caught.value.limit) == (6, 5)
    assert (len(buffer), buffer.size) == (1, 3)


def test_an_entry_beyond_the_limit_changes_nothing() -> None:
    buffer = Buffer(Limits(key=100, key_prefix=0, entry=4, total=100))
    buffer.put(b"k", b"123")

    with pytest.raises(ValueTooLarge) as caught:
        buffer.put(b"k", b"1234")

    assert (caught.value.size, caught.value.limit) == (5, 4)
    assert buffer.get(b"k") == Entry(b"k", b"123")
    assert buffer.size == 4


def test_a_transaction_beyond_the_limit_does_not_take_the_write() -> None:
    buffer = Buffer(Limits(key=100, key_prefix=0, entry=100, total=6))
    buffer.put(b"a", b"12")
    buffer.put(b"b", b"12")

    with pytest.raises(TransactionTooLarge) as caught:
        buffer.delete(b"c")

    assert (caught.value.size, caught.value.limit) == (7, 6)
    assert (len(buffer), buffer.size) == (2, 6)


def test_the_keys_of_refused_writes_print_redacted_when_asked_for() -> None:
    buffer = Buffer(Limits(key=10, key_prefix=0, entry=20, total=100, redaction="on"))
    buffer.put(b"secret", b"1")

    for key, value in [(b"secret", b"2"), (b"secret" * 2, b""), (b"secret 2", bytes(20))]:
        with pytest.raises((AlreadyExists, KeyTooLarge, ValueTooLarge)) as caught:
            buffer.insert(key, value)

        assert "secret" not in f"{caught.value} {caught.value!r}"
        assert caught.value.args[0] == key


def test_a_smaller_value_makes_room_again() -> None:
    buffer = Buffer(Limits(key=100, key_prefix=0, entry=100, total=4))
    buffer.put(b"a", b"123")

    buffer.put(b"a", b"12")
    buffer.delete(b"b")

    assert buffer.size == 4


@pytest.mark.parametrize(("codec", "prefix"), [(PlainCodec(), 0), (KeyspaceCodec(b"x", 7, "ks"), 4)])
def test_the_longest_key_is_what_stores_can_keep(codec: PlainCodec | KeyspaceCodec, prefix: int) -> None:
    limits = Limits.of(codec, 8192, 10_000, 100_000, "off")

    assert limits.key == 7279
    assert limits.key_prefix == prefix


def test_rolling_back_to_a_savepoint_takes_back_all_that_was_done_since(buffer: Buffer) -> None:
    buffer.put(b"a", b"1")
    buffer.lock(b"b")
    before = list(buffer.entries())
    savepoint = buffer.mark()
    buffer.put(b"a", b"222")
    buffer.insert(b"b", b"2")
    buffer.delete(b"c")
    buffer.assert_that(b"d", Assertion.EXIST)

    buffer.roll_back(savepoint)

    assert list(buffer.entries()) == before
    assert buffer.size == 3
    assert not buffer.is_open(savepoint)


def test_a_released_savepoint_leaves_its_writes_to_the_one_around(buffer: Buffer) -> None:
    outer = buffer.mark()
    buffer.put(b"a", b"1")
    inner = buffer.mark()
    buffer.put(b"a", b"2")
    buffer.put(b"b", b"2")
    buffer.release(inner)
    assert buffer.get(b"a") == Entry(b"a", b"2")

    buffer.roll_back(outer)

    assert list(buffer.entries()) == []
    assert buffer.size == 0


def test_ending_a_savepoint_ends_those_within_it(buffer: Buffer) -> None:
    outer = buffer.mark()
    buffer.put(b"a", b"1")
    inner = buffer.mark()
    buffer.put(b"a", b"2")

    buffer.roll_back(outer)

    assert not buffer.is_open(inner)
    assert len(buffer) == 0


def test_own_writes_stand_in_place_of_the_snapshots(buffer: Buffer) -> None:
    buffer.put(b"b", b"own")
    buffer.delete(b"c")
    buffer.put(b"d", b"own")
    buffer.delete(b"x")
    buffer.lock(b"e")

    pairs = merged(Merge(buffer, ALL, reverse=False), [(b"a", b"1"), (b"b", b"1")], [(b"c", b"1"), (b"e", b"1")])

    assert pairs == [(b"a", b"1"), (b"b", b"own"), (b"d", b"own"), (b"e", b"1")]


def test_a_reverse_merge_ends_with_the_empty_key(buffer: Buffer) -> None:
    buffer.put(b"", b"own")
    buffer.put(b"z", b"own")

    pairs = merged(Merge(buffer, ALL, reverse=True), [(b"y", b"1"), (b"", b"1")])

    assert pairs == [(b"z", b"own"), (b"y", b"1"), (b"", b"own")]


def test_a_merge_keeps_to_its_range(buffer: Buffer) -> None:
    for key in [b"a", b"b", b"c", b"d"]:
        buffer.put(key, b"own")

    assert merged(Merge(buffer, KeyRange(b"b", b"d"), reverse=False), []) == [(b"b", b"own"), (b"c", b"own")]
    assert merged(Merge(buffer, KeyRange(b"b", b"d"), reverse=True), []) == [(b"c", b"own"), (b"b", b"own")]


def test_what_is_written_ahead_of_a_merge_is_seen_and_what_is_written_behind_is_not(buffer: Buffer) -> None:
    merge = Merge(buffer, ALL, reverse=False)
    merge.feed([(b"b", b"1"), (b"d", b"1"), (b"f", b"1")], is_last=True)
    assert merge.take() == (b"b", b"1")

    buffer.put(b"a", b"behind")
    buffer.put(b"b", b"behind")
    buffer.put(b"c", b"ahead")
    buffer.delete(b"d")

    assert [merge.take(), merge.take(), merge.take()] == [(b"c", b"ahead"), (b"f", b"1"), None]


def test_own_writes_wait_for_the_page_they_belong_to(buffer: Buffer) -> None:
    buffer.put(b"m", b"own")
    merge = Merge(buffer, ALL, reverse=False)

    assert merge.is_hungry
    merge.feed([(b"a", b"1")], is_last=False)

    assert merge.take() == (b"a", b"1")
    assert merge.is_hungry
    assert merge.take() is None
    assert merge.rest == KeyRange(b"a\0")


def test_deletions_of_a_range_are_counted_up_to_a_number(buffer: Buffer) -> None:
    for key in [b"a", b"b", b"c", b"d"]:
        buffer.delete(key)
    buffer.put(b"bb", b"1")

    assert buffer.deletions(KeyRange(b"b", b"d"), 10) == 2
    assert buffer.deletions(ALL, 3) == 3
    assert buffer.deletions(KeyRange(b"c"), 10) == 2
