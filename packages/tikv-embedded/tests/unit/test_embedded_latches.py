"""Which requests of a message are carried out together."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import given, strategies as st
from tikv_embedded.store.latches import in_rounds


def rounds(*latches: Collection[bytes] | None) -> list[list[int]]:
    return list(in_rounds(range(len(latches)), latches.__getitem__))


def test_those_without_a_common_key_go_together() -> None:
    assert rounds([b"a"], [b"b", b"c"], [b"d"]) == [[0, 1, 2]]
    assert rounds([b"a"], [b"b", b"a"], [b"c"], [b"b"]) == [[0], [1, 2], [3]]


def test_one_that_concerns_everything_goes_alone() -> None:
    assert rounds([b"a"], None, [b"b"], None, None) == [[0], [1], [2], [3], [4]]
    assert rounds() == []


@given(st.lists(st.none() | st.sets(st.sampled_from([b"a", b"b", b"c", b"d"]))))
def test_everyone_comes_once_and_in_order(latches: list[set[bytes] | None]) -> None:
    found = rounds(*latches)

    assert [each for together in found for each in together] == list(range(len(latches)))
    for together in found:
        keys = [key for each in together for key in latches[each] or ()]
        assert len(keys) == len(set(keys))
        assert len(together) == 1 or all(latches[each] is not None for each in together)
