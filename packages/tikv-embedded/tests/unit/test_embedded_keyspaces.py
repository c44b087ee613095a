"""Keyspaces: names, ids, states and bounds."""

from __future__ import annotations

import pytest
from tikv_embedded.engine import MemoryEngine
from tikv_embedded.errors import OptionError
from tikv_embedded.pd.keyspaces import DEFAULT_NAME, Keyspaces, StateChangeRefusedError, raw_key, txn_bounds
from tikv_proto import keyspacepb

ENABLED, DISABLED, ARCHIVED, TOMBSTONE = (
    keyspacepb.KeyspaceState.ENABLED,
    keyspacepb.KeyspaceState.DISABLED,
    keyspacepb.KeyspaceState.ARCHIVED,
    keyspacepb.KeyspaceState.TOMBSTONE,
)


@pytest.fixture
def keyspaces() -> Keyspaces:
    fresh = Keyspaces(MemoryEngine())
    fresh.ensure(DEFAULT_NAME)
    return fresh


def test_default_has_id_0_and_others_follow(keyspaces: Keyspaces) -> None:
    blue, red = keyspaces.ensure("blue"), keyspaces.ensure("red")

    assert [blue.id, red.id] == [1, 2]
    assert keyspaces.ensure("blue") == blue
    assert [keyspace.name for keyspace in keyspaces.since(1)] == ["blue", "red"]
    assert keyspaces.by_id(0) == keyspaces.by_name("DEFAULT")
    assert keyspaces.by_name("green") is None


@pytest.mark.parametrize("name", ["", "a b", "a" * 21, "naïve", "a/b"])
def test_a_name_is_up_to_20_letters_digits_and_dashes(keyspaces: Keyspaces, name: str) -> None:
    with pytest.raises(OptionError, match="not a keyspace name"):
        keyspaces.ensure(name)


def test_keyspaces_survive_a_restart() -> None:
    engine = MemoryEngine()
    first = Keyspaces(engine)
    first.ensure(DEFAULT_NAME)
    first.set_state(first.ensure("blue"), DISABLED)

    second = Keyspaces(engine)

    assert list(second.since(0)) == list(first.since(0))
    assert second.ensure("red").id == 2


@pytest.mark.parametrize(
    "path",
    [
        [DISABLED, ENABLED, DISABLED, ARCHIVED, TOMBSTONE],
        [ENABLED],
        [DISABLED, DISABLED],
        [DISABLED, ARCHIVED, ARCHIVED],
    ],
)
def test_a_keyspace_may_go_this_way(keyspaces: Keyspaces, path: list[keyspacepb.KeyspaceState.ValueType]) -> None:
    keyspace = keyspaces.ensure("blue")

    for state in path:
        keyspace = keyspaces.set_state(keyspace, state)

    assert keyspace.state == path[-1]
    assert keyspaces.by_name("blue") == keyspace


@pytest.mark.parametrize(
    ("path", "refused"), [([], ARCHIVED), ([], TOMBSTONE), ([DISABLED, ARCHIVED], ENABLED), ([DISABLED], TOMBSTONE)]
)
def test_a_keyspace_may_not_skip_a_state_or_come_back(
    keyspaces: Keyspaces,
    path: list[keyspacepb.KeyspaceState.ValueType],
    refused: keyspacepb.KeyspaceState.ValueType,
) -> None:
    keyspace = keyspaces.ensure("blue")
    for state in path:
        keyspace = keyspaces.set_state(keyspace, state)

    with pytest.raises(StateChangeRefusedError, match="cannot change"):
        keyspaces.set_state(keyspace, refused)

    assert keyspaces.by_name("blue") == keyspace


def test_default_stays_as_it_is(keyspaces: Keyspaces) -> None:
    default = keyspaces.ensure(DEFAULT_NAME)

    with pytest.raises(StateChangeRefusedError, match="default"):
        keyspaces.set_state(default, DISABLED)


def test_bounds_are_the_memcomparable_forms_of_mode_and_id() -> None:
    assert txn_bounds(0) == (b"x\x00\x00\x00\x00\x00\x00\x00\xfb", b"x\x00\x00\x01\x00\x00\x00\x00\xfb")
    assert txn_bounds(0xFFFFFF)[1] == b"y\x00\x00\x00\x00\x00\x00\x00\xfb"
    assert raw_key(1, b"key") == b"r\x00\x00\x01key\x00\xfe"
