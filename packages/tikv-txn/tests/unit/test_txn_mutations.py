from __future__ import annotations

import math

import pytest
from tikv_proto import kvrpcpb
from tikv_txn._buffer import Assertion, Entry
from tikv_txn._commit.mutations import Mutations, Op
from tikv_txn.config import TxnConfig

CONFIG = TxnConfig()


@pytest.mark.parametrize(
    ("entry", "op"),
    [
        (Entry(b"k"), None),
        (Entry(b"k", must_not_exist=True), None),
        (Entry(b"k", is_locked=True), Op.LOCK),
        (Entry(b"k", b"v"), Op.PUT),
        (Entry(b"k", b""), Op.PUT),
        (Entry(b"k", b"v", is_locked=True), Op.PUT),
        (Entry(b"k", b"v", must_not_exist=True), Op.INSERT),
        (Entry(b"k", is_deleted=True), Op.DELETE),
        (Entry(b"k", is_deleted=True, is_locked=True), Op.DELETE),
        (Entry(b"k", is_deleted=True, must_not_exist=True), Op.CHECK_NOT_EXISTS),
    ],
)
def test_what_was_buffered_becomes_one_mutation_or_none(entry: Entry, op: Op | None) -> None:
    mutations = Mutations([entry])

    assert [mutation.op for mutation in mutations.all] == ([] if op is None else [op])


@pytest.mark.parametrize("op", list(Op))
def test_ops_are_those_of_the_wire(op: Op) -> None:
    names = {"DELETE": "Del", "CHECK_NOT_EXISTS": "CheckNotExists"}

    assert kvrpcpb.Op.Name(op.value) == names.get(op.name, op.name.capitalize())  # type: ignore[arg-type]


@pytest.mark.parametrize("assertion", list(Assertion))
def test_assertions_are_those_of_the_wire(assertion: Assertion) -> None:
    names = {"NONE": "None", "EXIST": "Exist", "NOT_EXIST": "NotExist"}

    assert kvrpcpb.Assertion.Name(assertion.value) == names[assertion.name]  # type: ignore[arg-type]


def test_a_key_that_is_only_checked_is_never_the_primary_one() -> None:
    mutations = Mutations(
        [Entry(b"a", is_deleted=True, must_not_exist=True), Entry(b"b", b"v"), Entry(b"c", is_locked=True)]
    )

    assert mutations.primary == 1
    assert mutations.locking == [1, 2]
    assert mutations.has_checks


def test_of_nothing_but_checks_the_first_key_stands_for_the_primary_one() -> None:
    mutations = Mutations([Entry(b"a", is_deleted=True, must_not_exist=True)])

    assert mutations.primary == 0
    assert mutations.locking == []


@pytest.mark.parametrize(("keys", "is_allowed"), [(256, True), (257, False)])
def test_an_async_commit_has_so_many_keys_at_most(keys: int, is_allowed: bool) -> None:
    mutations = Mutations([Entry(b"%04d" % number, b"v") for number in range(keys)])

    assert mutations.may_commit_async(CONFIG) is is_allowed


@pytest.mark.parametrize(("size", "is_allowed"), [(4095, True), (4096, False)])
def test_the_keys_of_an_async_commit_have_so_many_bytes_at_most(size: int, is_allowed: bool) -> None:
    mutations = Mutations([Entry(b"a", b"v" * 10_000), Entry(b"b" * size, b"v")])

    assert mutations.may_commit_async(CONFIG) is is_allowed


def test_a_transaction_with_a_mere_check_does_not_commit_async() -> None:
    mutations = Mutations([Entry(b"a", b"v"), Entry(b"b", is_deleted=True, must_not_exist=True)])

    assert not mutations.may_commit_async(CONFIG)


@pytest.mark.parametrize(
    ("size", "ttl"),
    [
        (1, 3.0),
        ((16 << 10) - 1, 3.0),
        (16 << 10, 3.0),
        (1 << 20, 6.0),
        (4 << 20, 12.0),
        (12 << 20, 20.0),
    ],
)
def test_locks_of_larger_transactions_last_longer(size: int, ttl: float) -> None:
    mutations = Mutations([Entry(b"k", b"v" * (size - 1))])

    assert mutations.size == size
    assert math.isclose(mutations.lock_ttl(0.0, CONFIG), ttl)
    assert math.isclose(mutations.lock_ttl(1.5, CONFIG), ttl + 1.5)
