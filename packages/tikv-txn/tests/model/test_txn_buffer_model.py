"""A buffer against a plain dict, with copies of it for savepoints."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tikv_region import KeyRange
from tikv_txn._buffer import Assertion, Buffer, Entry, Limits, Mark, Merge
from tikv_txn.errors import AlreadyExists, KeyTooLarge, TransactionTooLarge, ValueTooLarge

LIMITS = Limits(key=4, key_prefix=1, entry=6, total=24)

keys = st.binary(max_size=4).map(lambda key: bytes(byte % 3 for byte in key))
values = st.binary(max_size=5)


@attrs.frozen
class Known:
    """What the model knows of a key."""

    value: bytes | None = None
    is_deleted: bool = False
    must_not_exist: bool = False
    is_locked: bool = False
    assertion: Assertion = Assertion.NONE


Model = dict[bytes, Known]


class BufferMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.buffer = Buffer(LIMITS)
        self.model: Model = {}
        self.copies: list[tuple[Mark, Model]] = []
        self.ended: list[Mark] = []

    def expected_error(self, key: bytes, known: Known) -> type[Exception] | None:
        def size(key: bytes, known: Known) -> int:
            return len(key) + len(known.value or b"")

        total = sum(size(*item) for item in {**self.model, key: known}.items())
        if key not in self.model and len(key) + LIMITS.key_prefix > LIMITS.key:
            return KeyTooLarge
        if size(key, known) > LIMITS.entry:
            return ValueTooLarge
        return TransactionTooLarge if total > LIMITS.total else None

    def change(self, name: str, key: bytes, known: Known, *arguments: object) -> None:
        error = self.expected_error(key, known)
        if name == "insert" and self.model.get(key, Known()).value is not None:
            error = AlreadyExists
        if error is None:
            getattr(self.buffer, name)(key, *arguments)
            self.model[key] = known
            return
        with pytest.raises(error):
            getattr(self.buffer, name)(key, *arguments)

    @rule(key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> None:
        known = attrs.evolve(self.model.get(key, Known()), value=value, is_deleted=False)
        self.change("put", key, known, value)

    @rule(key=keys, value=values)
    def insert(self, key: bytes, value: bytes) -> None:
        known = self.model.get(key, Known())
        must_not_exist = known.must_not_exist or not known.is_deleted
        changed = attrs.evolve(known, value=value, is_deleted=False, must_not_exist=must_not_exist)
        self.change("insert", key, changed, value)

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        self.change("delete", key, attrs.evolve(self.model.get(key, Known()), value=None, is_deleted=True))

    @rule(key=keys)
    def lock(self, key: bytes) -> None:
        self.change("lock", key, attrs.evolve(self.model.get(key, Known()), is_locked=True))

    @rule(key=keys, assertion=st.sampled_from(Assertion))
    def assert_that(self, key: bytes, assertion: Assertion) -> None:
        known = attrs.evolve(self.model.get(key, Known()), is_locked=True, assertion=assertion)
        self.change("assert_that", key, known, assertion)

    @precondition(lambda self: len(self.copies) < 5)
    @rule()
    def savepoint(self) -> None:
        self.copies.append((self.buffer.mark(), dict(self.model)))

    @precondition(lambda self: self.copies)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.buffer.release(self.end(data)[0])

    @precondition(lambda self: self.copies)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        savepoint, self.model = self.end(data)
        self.buffer.roll_back(savepoint)

    def end(self, data: st.DataObject) -> tuple[Mark, Model]:
        index = data.draw(st.integers(0, len(self.copies) - 1))
        ended = self.copies[index]
        self.ended += [savepoint for savepoint, _ in self.copies[index:]]
        del self.copies[index:]
        return ended

    @rule(
        snapshot=st.dictionaries(keys, values),
        start=keys,
        end=keys,
        reverse=st.booleans(),
        page=st.integers(1, 4),
        writes=st.lists(st.tuples(keys, st.none() | st.just(b"")), max_size=4),
    )
    def merge(
        self,
        snapshot: dict[bytes, bytes],
        start: bytes,
        end: bytes,
        reverse: bool,
        page: int,
        writes: list[tuple[bytes, bytes | None]],
    ) -> None:
        """Scan, writing after each pair one of `writes`, which the scan sees when it is ahead."""
        key_range = KeyRange(start, end)
        pairs = sorted((pair for pair in snapshot.items() if key_range.contains(pair[0])), reverse=reverse)
        merge = Merge(self.buffer, key_range, reverse=reverse)
        previous: bytes | None = None
        while True:
            found = merge.take()
            if found is None and merge.is_hungry:
                merge.feed(pairs[:page], is_last=len(pairs) <= page)
                pairs = pairs[page:]
                continue
            assert found == self.next_pair(snapshot, key_range, previous, reverse=reverse)
            if found is None:
                return
            previous = found[0]
            if writes:
                key, value = writes.pop()
                if value is None:
                    self.delete(key)
                else:
                    self.put(key, value)

    def next_pair(
        self, snapshot: dict[bytes, bytes], key_range: KeyRange, previous: bytes | None, *, reverse: bool
    ) -> tuple[bytes, bytes] | None:
        seen = dict(snapshot)
        for key, known in self.model.items():
            if known.is_deleted:
                seen.pop(key, None)
            elif known.value is not None:
                seen[key] = known.value
        ahead = [
            pair
            for pair in sorted(seen.items(), reverse=reverse)
            if key_range.contains(pair[0])
            and (previous is None or (pair[0] < previous if reverse else pair[0] > previous))
        ]
        return ahead[0] if ahead else None

    @invariant()
    def the_buffer_holds_what_the_model_holds(self) -> None:
        assert list(self.buffer.entries()) == [
            Entry(key, known.value, known.is_deleted, known.must_not_exist, known.is_locked, known.assertion)
            for key, known in sorted(self.model.items())
        ]
        assert self.buffer.size == sum(len(key) + len(known.value or b"") for key, known in self.model.items())

    @invariant()
    def those_savepoints_are_open_that_were_not_ended(self) -> None:
        assert all(self.buffer.is_open(savepoint) for savepoint, _ in self.copies)
        assert not any(self.buffer.is_open(savepoint) for savepoint in self.ended)


BufferMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
test_a_buffer_is_a_dict_with_savepoints = BufferMachine.TestCase
