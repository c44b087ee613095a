"""Which PD member answers a call, and in which role."""

from __future__ import annotations

import grpc
import pytest
from tikv_embedded.pd.members import ALLOW_FOLLOWER, FORWARDED_HOST, PdMember, PdMembers, Refusal

ONE, TWO, THREE = (PdMember(number, f"pd-{number}", f"http://127.0.0.1:{number}") for number in (1, 2, 3))


@pytest.fixture
def members() -> PdMembers:
    return PdMembers((ONE, TWO, THREE), leader=ONE)


def admit(
    members: PdMembers,
    member: PdMember,
    metadata: dict[str, str | bytes] | None = None,
    *,
    cluster_id: int = 7,
    follower_may: bool = False,
) -> PdMember | Refusal:
    return members.admit(member, 7, cluster_id, metadata or {}, follower_may=follower_may)


def test_the_leader_answers(members: PdMembers) -> None:
    assert admit(members, ONE) == ONE


def test_a_follower_is_not_leader(members: PdMembers) -> None:
    assert admit(members, TWO) == Refusal(grpc.StatusCode.UNAVAILABLE, "not leader")


def test_a_follower_answers_region_queries_that_allow_it(members: PdMembers) -> None:
    refusal = admit(members, TWO, follower_may=True)

    assert isinstance(refusal, Refusal)
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert "not leader" in refusal.details
    assert admit(members, TWO, {ALLOW_FOLLOWER: ""}, follower_may=True) == TWO
    assert isinstance(admit(members, TWO, {ALLOW_FOLLOWER: ""}), Refusal)


def test_a_call_forwarded_to_the_leader_is_answered_as_by_the_leader(members: PdMembers) -> None:
    assert admit(members, TWO, {FORWARDED_HOST: ONE.url}) == ONE


def test_the_scheme_in_which_the_leader_is_named_does_not_matter(members: PdMembers) -> None:
    address = ONE.url.removeprefix("http://")

    assert admit(members, TWO, {FORWARDED_HOST: f"https://{address}"}) == ONE
    assert isinstance(admit(members, TWO, {FORWARDED_HOST: address}), Refusal)


def test_a_call_is_forwarded_to_nobody_but_the_leader(members: PdMembers) -> None:
    refusal = admit(members, TWO, {FORWARDED_HOST: THREE.url})

    assert isinstance(refusal, Refusal)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "is not leader" in refusal.details


@pytest.mark.parametrize("cluster_id", [0, 8])
def test_another_cluster_id_is_refused_by_the_leader(members: PdMembers, cluster_id: int) -> None:
    expected = Refusal(grpc.StatusCode.FAILED_PRECONDITION, f"mismatch cluster id, need 7 but got {cluster_id}")

    assert admit(members, ONE, cluster_id=cluster_id) == expected


def test_a_follower_says_that_it_is_none_before_it_looks_at_the_cluster_id(members: PdMembers) -> None:
    refusal = admit(members, TWO, cluster_id=8)

    assert isinstance(refusal, Refusal)
    assert refusal.details == "not leader"
