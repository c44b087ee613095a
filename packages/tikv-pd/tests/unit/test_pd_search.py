from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from tikv_pd import ClusterMismatch, PdUnavailable, RpcError
from tikv_pd._routing.members import Membership, Search, client_address, header_error
from tikv_proto import pdpb

MEMBERS = ("pd1:2379", "pd2:2379", "pd3:2379")
KNOWN = Membership(("pd1:2379",), 7, MEMBERS, "pd1:2379")


def answer(leader: str = "", members: tuple[str, ...] = MEMBERS, cluster_id: int = 7) -> pdpb.GetMembersResponse:
    return pdpb.GetMembersResponse(
        header=pdpb.ResponseHeader(cluster_id=cluster_id),
        members=[pdpb.Member(client_urls=[f"http://{address}"]) for address in members],
        leader=pdpb.Member(client_urls=[f"http://{leader}"]) if leader else None,
    )


def refused(address: str) -> RpcError:
    return RpcError(address, "GetMembers", "UNAVAILABLE", "refused")


def play(search: Search, answers: dict[str, pdpb.GetMembersResponse]) -> Search:
    """Run a round against members that answer, or else refuse."""
    while (address := search.next()) is not None:
        if address in answers:
            search = search.answered(address, answers[address], tls=False)
        else:
            search = search.failed(address, refused(address))
    return search


def test_any_seed_leads_to_the_leader() -> None:
    search = play(Search(Membership(("dead:1", "pd3:2379"))), {"pd3:2379": answer("pd2:2379")})

    assert search.outcome() is None
    assert search.known == Membership(("dead:1", "pd3:2379"), 7, MEMBERS, "pd2:2379")


def test_without_doubts_the_leader_alone_is_asked() -> None:
    search = play(Search(KNOWN), {address: answer("pd1:2379") for address in MEMBERS})

    assert search.asked == ("pd1:2379",)


def test_a_suspect_is_asked_last() -> None:
    search = play(Search(KNOWN, suspect="pd1:2379"), {})

    assert search.asked == ("pd2:2379", "pd3:2379", "pd1:2379")


def test_a_member_that_still_names_the_suspect_does_not_end_the_round() -> None:
    answers = {"pd2:2379": answer("pd1:2379"), "pd3:2379": answer("pd3:2379")}

    search = play(Search(KNOWN, suspect="pd1:2379"), answers)

    assert search.known.leader == "pd3:2379"


def test_a_suspect_that_everybody_names_is_the_leader() -> None:
    search = play(Search(KNOWN, suspect="pd1:2379"), {address: answer("pd1:2379") for address in MEMBERS})

    assert search.outcome() is None
    assert search.known.leader == "pd1:2379"


def test_members_learned_on_the_way_are_asked_too() -> None:
    answers = {"pd1:2379": answer(""), "pd3:2379": answer("pd3:2379")}

    search = play(Search(Membership(("pd1:2379",))), answers)

    assert search.asked == ("pd1:2379", "pd2:2379", "pd3:2379")
    assert search.known.leader == "pd3:2379"


def test_a_seed_is_asked_when_no_member_answers() -> None:
    known = Membership(("seed:1",), 7, ("pd1:2379",), "pd1:2379")

    search = play(Search(known, suspect="pd1:2379"), {"seed:1": answer("new:1", ("new:1",))})

    assert search.known == Membership(("seed:1",), 7, ("new:1",), "new:1")


def test_what_was_known_stays_known_when_nobody_answers() -> None:
    search = play(Search(KNOWN, suspect="pd1:2379"), {})

    assert search.known == KNOWN
    error = search.outcome()
    assert isinstance(error, PdUnavailable)
    assert error.failures == tuple((each, "UNAVAILABLE (refused)") for each in ("pd2:2379", "pd3:2379", "pd1:2379"))


def test_those_not_asked_are_named_as_well() -> None:
    search = Search(Membership(("pd1:2379", "pd2:2379"))).failed("pd1:2379", refused("pd1:2379"))

    error = search.outcome()

    assert isinstance(error, PdUnavailable)
    assert error.failures[1] == ("pd2:2379", "not asked before the time ran out")


@pytest.mark.parametrize(
    "bad",
    [
        answer(""),
        pdpb.GetMembersResponse(header=pdpb.ResponseHeader(cluster_id=7), leader=pdpb.Member(name="pd1")),
        answer("pd1:2379", cluster_id=0),
        pdpb.GetMembersResponse(
            header=pdpb.ResponseHeader(cluster_id=7, error=pdpb.Error(type=pdpb.ErrorType.UNKNOWN, message="starting"))
        ),
    ],
    ids=["no leader", "leader without URL", "no cluster id", "header error"],
)
def test_an_answer_that_names_no_leader_is_a_failure(bad: pdpb.GetMembersResponse) -> None:
    search = play(Search(Membership(("pd1:2379",))), {"pd1:2379": bad})

    assert isinstance(search.outcome(), PdUnavailable)
    assert search.known.leader == ""


def test_a_thorough_round_asks_the_seeds_that_are_no_members() -> None:
    seeds = ("pd1:2379", "alias:1", "pd2:2379")

    search = play(Search(Membership(seeds), is_thorough=True), {"pd1:2379": answer("pd1:2379")})

    assert search.asked == ("pd1:2379", "alias:1")
    assert search.outcome() is None


def test_seeds_of_two_clusters_do_not_agree() -> None:
    answers = {"pd1:2379": answer("pd1:2379"), "other:1": answer("other:1", ("other:1",), 8)}

    search = play(Search(Membership(("pd1:2379", "other:1")), is_thorough=True), answers)

    error = search.outcome()
    assert isinstance(error, ClusterMismatch)
    assert (error.expected, error.found, error.address) == (7, 8, "other:1")


def test_a_stranger_on_the_address_of_a_dead_member_does_no_harm_while_others_answer() -> None:
    answers = {"pd1:2379": answer("x:1", ("x:1",), 8), "pd2:2379": answer("pd2:2379")}

    search = play(Search(KNOWN), answers)

    assert search.outcome() is None
    assert search.known.leader == "pd2:2379"


def test_a_pd_that_became_another_cluster_is_a_mismatch() -> None:
    search = play(Search(KNOWN), {address: answer(address, cluster_id=8) for address in MEMBERS})

    assert isinstance(search.outcome(), ClusterMismatch)


def test_servers_that_are_no_pd_make_the_round_hopeless() -> None:
    search = Search(Membership(("tikv1:20160",)))

    assert not search.is_hopeless()
    assert search.failed("tikv1:20160", RpcError("tikv1:20160", "GetMembers", "UNIMPLEMENTED", "")).is_hopeless()
    assert not search.failed("tikv1:20160", refused("tikv1:20160")).is_hopeless()


@pytest.mark.parametrize(
    ("urls", "tls", "address"),
    [
        ([], False, ""),
        (["http://a:1"], False, "a:1"),
        (["https://a:1", "http://b:1"], False, "b:1"),
        (["http://b:1", "https://a:1"], True, "a:1"),
        (["http://b:1"], True, "b:1"),
    ],
)
def test_a_member_is_reached_at_its_first_url_of_the_scheme_in_use(urls: list[str], tls: bool, address: str) -> None:
    assert client_address(pdpb.Member(client_urls=urls), tls=tls) == address


def test_a_kind_of_error_that_is_not_known_is_named_by_its_number() -> None:
    header = pdpb.ResponseHeader(error=pdpb.Error(type=99, message="from the future"))  # type: ignore[arg-type]  # an open enum

    assert str(header_error("GetStore", header)) == "PD refused GetStore: 99 (from the future)"


addresses = st.sampled_from([*MEMBERS, "seed:1", "new:1"])
answers = st.dictionaries(addresses, st.builds(answer, st.one_of(st.just(""), addresses)))


@given(st.builds(Membership, st.lists(addresses, min_size=1).map(tuple)), addresses, st.booleans(), answers)
def test_a_round_ends_and_asks_nobody_twice(
    known: Membership, suspect: str, is_thorough: bool, answers: dict[str, pdpb.GetMembersResponse]
) -> None:
    search = play(Search(known, suspect, is_thorough), answers)

    assert len(set(search.asked)) == len(search.asked)
    assert set(known.seeds) <= {*search.asked, search.named} or search.named not in {"", suspect}
    assert search.known.seeds == known.seeds


@given(addresses, answers)
def test_a_round_fails_only_when_nobody_asked_names_a_leader(
    suspect: str, answers: dict[str, pdpb.GetMembersResponse]
) -> None:
    search = play(Search(KNOWN, suspect), answers)

    named = {client_address(answers[each].leader, tls=False) for each in search.asked if each in answers} - {""}
    assert (search.outcome() is None) == bool(named)
    assert search.known.leader in (named - {suspect} or named or {KNOWN.leader})
