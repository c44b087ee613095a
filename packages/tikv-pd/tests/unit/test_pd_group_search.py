"""Which servers grant timestamps, from what PD and TSO servers tell."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st
from tikv_pd import PdError, RpcError
from tikv_pd._routing.tso_discovery import Group, GroupSearch, Provider
from tikv_proto import pdpb, tsopb

SERVERS = ("tso1:3379", "tso2:3379", "tso3:3379")
KNOWN = Group(0, "tso1:3379", SERVERS, 10)
API, ITSELF = pdpb.ServiceMode.API_SVC_MODE, pdpb.ServiceMode.PD_SVC_MODE


def info(mode: Any, *servers: str) -> pdpb.GetClusterInfoResponse:
    return pdpb.GetClusterInfoResponse(serviceModes=[mode], tso_urls=[f"http://{server}" for server in servers])


def answer(
    primary: str = "", *, group: int = 0, revision: int = 10, members: tuple[str, ...] = SERVERS
) -> tsopb.FindGroupByKeyspaceIDResponse:
    return tsopb.FindGroupByKeyspaceIDResponse(
        keyspace_group=tsopb.KeyspaceGroup(
            id=group,
            members=[
                tsopb.KeyspaceGroupMember(address=f"http://{member}", is_primary=member == primary)
                for member in members
            ],
        ),
        mod_revision=revision,
    )


def play(search: GroupSearch, answers: dict[str, tsopb.FindGroupByKeyspaceIDResponse]) -> GroupSearch:
    """Run a round against servers that answer, or else refuse."""
    while (address := search.next()) is not None:
        if address in answers:
            search = search.answered(address, answers[address])
        else:
            search = search.failed(address, RpcError(address, "FindGroupByKeyspaceID", "UNAVAILABLE", "refused"))
    return search


def test_servers_are_those_that_pd_lists() -> None:
    assert Provider().told(info(API, "tso2:3379", "tso1:3379")) == Provider(("tso1:3379", "tso2:3379"))


def test_in_pd_mode_everything_about_servers_is_forgotten() -> None:
    assert Provider(SERVERS, KNOWN).told(info(ITSELF, "tso1:3379")) == Provider()


@pytest.mark.parametrize(
    "told",
    [
        info(API),
        info(pdpb.ServiceMode.UNKNOWN_SVC_MODE),
        pdpb.GetClusterInfoResponse(),
        pdpb.GetClusterInfoResponse(
            header=pdpb.ResponseHeader(error=pdpb.Error(type=pdpb.ErrorType.UNKNOWN)), serviceModes=[ITSELF]
        ),
    ],
    ids=["no servers", "unknown mode", "no mode", "an error"],
)
def test_an_answer_that_says_nothing_changes_nothing(told: pdpb.GetClusterInfoResponse) -> None:
    assert Provider(SERVERS, KNOWN).told(told) == Provider(SERVERS, KNOWN)


def test_the_first_server_that_names_a_primary_ends_the_round() -> None:
    search = play(GroupSearch(Group(), SERVERS), {server: answer("tso3:3379") for server in SERVERS})

    assert search.asked == ("tso1:3379",)
    assert search.group == Group(0, "tso3:3379", SERVERS, 10)
    assert search.outcome() is None


def test_a_server_behind_changes_nothing() -> None:
    behind = answer("tso2:3379", group=4, revision=9, members=("tso2:3379",))

    search = GroupSearch(KNOWN, SERVERS).answered("tso2:3379", behind)

    assert search.group == KNOWN
    assert "9 < 10" in str(search.failure)


def test_a_newer_revision_replaces_everything() -> None:
    fresh = answer("tso9:3379", group=4, revision=11, members=("tso8:3379", "tso9:3379"))

    search = play(GroupSearch(KNOWN, SERVERS), {"tso1:3379": fresh})

    assert search.group == Group(4, "tso9:3379", ("tso8:3379", "tso9:3379"), 11)


def test_no_primary_does_not_replace_one_and_another_server_is_asked() -> None:
    search = GroupSearch(KNOWN, SERVERS).answered("tso1:3379", answer("", revision=11))

    assert search.group == Group(0, "tso1:3379", SERVERS, 11)
    assert search.next() == "tso2:3379"
    assert "no primary" in str(search.failure)


def test_members_of_the_group_that_pd_does_not_list_are_asked_too() -> None:
    search = play(GroupSearch(Group(), ("tso1:3379",)), {"tso1:3379": answer(""), "tso3:3379": answer("tso3:3379")})

    assert search.asked == ("tso1:3379", "tso2:3379", "tso3:3379")
    assert search.group.primary == "tso3:3379"


def test_a_server_that_names_another_one_than_the_suspect_is_believed() -> None:
    answers = {"tso2:3379": answer("tso1:3379"), "tso3:3379": answer("tso3:3379")}

    search = play(GroupSearch(KNOWN, SERVERS, suspect="tso1:3379"), answers)

    assert search.asked == ("tso2:3379", "tso3:3379")
    assert search.group.primary == "tso3:3379"


def test_a_suspect_that_everybody_names_is_the_primary() -> None:
    answers = {server: answer("tso1:3379") for server in SERVERS}

    search = play(GroupSearch(KNOWN, SERVERS, suspect="tso1:3379"), answers)

    assert search.asked == ("tso2:3379", "tso3:3379", "tso1:3379")
    assert (search.group.primary, search.outcome()) == ("tso1:3379", None)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (tsopb.FindGroupByKeyspaceIDResponse(mod_revision=12), "no group"),
        (
            tsopb.FindGroupByKeyspaceIDResponse(
                header=tsopb.ResponseHeader(error=tsopb.Error(type=tsopb.ErrorType.UNKNOWN, message="mismatch callee"))
            ),
            "mismatch callee",
        ),
    ],
)
def test_an_answer_without_a_group_is_a_failure(bad: tsopb.FindGroupByKeyspaceIDResponse, why: str) -> None:
    search = play(GroupSearch(KNOWN, ("tso1:3379",)), {"tso1:3379": bad})

    assert search.asked == ("tso1:3379", "tso2:3379", "tso3:3379")
    assert search.group == KNOWN
    assert isinstance(search.outcome(), RpcError)
    assert why in str(GroupSearch(KNOWN, SERVERS).answered("tso1:3379", bad).failure)


def test_a_round_without_servers_says_so() -> None:
    error = GroupSearch(Group(), ()).outcome()

    assert isinstance(error, PdError)
    assert "no TSO server" in str(error)


answers_of_servers = st.builds(
    answer,
    st.sampled_from(["", *SERVERS]),
    group=st.integers(0, 2),
    revision=st.integers(8, 12),
    members=st.sampled_from([SERVERS, SERVERS[:2]]),
)


@given(
    st.sampled_from(["", *SERVERS]),
    st.dictionaries(st.sampled_from(SERVERS), answers_of_servers),
)
def test_whatever_they_say_a_round_ends_and_never_goes_back(
    suspect: str, answers: dict[str, tsopb.FindGroupByKeyspaceIDResponse]
) -> None:
    search = play(GroupSearch(KNOWN, SERVERS, suspect), answers)

    assert len(set(search.asked)) == len(search.asked) <= len(SERVERS)
    assert search.group.revision >= KNOWN.revision
    assert search.group.primary
    assert (search.outcome() is None) == bool(search.named)
