from __future__ import annotations

import math

import pytest
from tikv_pd import Consumption, ResourceGroup, TokenGrant, TokenRequest
from tikv_rpc.resource_control.cost import RequestInfo, ResponseInfo, RuModel, Usage
from tikv_rpc.resource_control.group import GroupState

MODEL = RuModel()
READ = RequestInfo(is_write=False, store_id=1)
MIB = 1 << 20


def new_group(fill_rate: int = 1000, burst_limit: int = 0) -> GroupState:
    return GroupState.new("g", ResourceGroup("g", fill_rate, burst_limit, priority=1), 0.0)


def grant(
    tokens: float = 0, trickle: float = 0, fill_rate: int = 0, burst_limit: int = 0, group: str = "g"
) -> TokenGrant:
    return TokenGrant(group, tokens, trickle, burst_limit, fill_rate)


def granted_group(now: float = 0.0) -> GroupState:
    """A group that asked and got an answer."""
    group = new_group()
    group.tick(now)
    assert group.ask(is_report=True) is not None
    group.apply(grant(), now)
    return group


def use(group: GroupState, ru: float) -> None:
    group.used.add(Usage(read_ru=ru))


def test_a_new_group_has_the_tokens_of_a_second_and_gets_no_more() -> None:
    group = new_group(fill_rate=1000)

    assert group.bucket.available(0) == group.bucket.available(100) == 1000
    assert not group.bucket.is_unlimited

    group.bucket.remove(0, 199)
    assert not group.bucket.is_low
    group.bucket.remove(0, 2)
    assert group.bucket.is_low


def test_a_burst_limit_counts_only_when_pd_grants_it_but_an_unlimited_group_is_so_at_once() -> None:
    assert new_group(burst_limit=5000).bucket.burst == 0
    assert new_group(burst_limit=-1).bucket.is_unlimited
    assert new_group(burst_limit=-2).bucket.is_unlimited


def test_a_group_of_no_rate_asks_below_one_token() -> None:
    assert new_group(fill_rate=0).bucket.threshold == 1


def test_the_average_follows_what_is_used() -> None:
    group = new_group()
    averages = []
    for second in range(1, 4):
        use(group, 100)
        group.tick(second)
        averages.append(group.average)

    assert averages == [50, 75, 87.5]


def test_two_ticks_at_the_same_moment_are_one() -> None:
    group = new_group()
    use(group, 100)

    group.tick(0)
    assert group.average == 0

    group.tick(1)
    assert group.average == 50


def test_the_first_request_is_always_due() -> None:
    group = new_group()
    use(group, 7)
    group.tick(1)

    asked = group.ask(is_report=True)

    assert asked == TokenRequest("g", 0.0, Consumption(read_ru=7))


def test_what_is_wanted_is_five_seconds_of_the_average_and_a_tenth_less_what_is_there() -> None:
    group = new_group(fill_rate=10)
    use(group, 200)
    group.tick(1)

    asked = group.ask(is_report=True)

    assert asked is not None
    assert asked.tokens == pytest.approx(100 * 5 * 1.1 - 10)


@pytest.mark.parametrize(
    ("seconds", "ru", "due"),
    [(4.4, 1000, False), (4.5, 99, False), (4.5, 100, True), (19.9, 1, False), (20, 0, True)],
)
def test_reports_are_due_by_what_was_used_and_how_long_ago(seconds: float, ru: float, due: bool) -> None:
    group = granted_group()
    use(group, ru)
    group.tick(seconds)

    assert (group.ask(is_report=True) is not None) == due


def test_a_group_that_is_low_asks_without_being_due() -> None:
    group = granted_group()
    assert group.ask(is_report=False) is None

    group.bucket.reserve(0, 5000, 30)

    assert group.ask(is_report=False) is not None


def test_what_was_asked_stays_due_until_it_is_answered_and_nothing_used_is_lost() -> None:
    group = new_group()
    use(group, 10)
    group.tick(1)
    group.ask(is_report=True)
    use(group, 5)
    group.tick(2)

    again = group.ask(is_report=True)
    assert again is not None
    assert again.consumption.read_ru == 15

    use(group, 2)
    group.apply(grant(), 2)
    assert group.ask(is_report=True) is None
    group.tick(30)
    last = group.ask(is_report=True)
    assert last is not None
    assert last.consumption.read_ru == 2


def test_a_group_unused_reports_nothing_but_that() -> None:
    group = granted_group()
    group.tick(20)

    asked = group.ask(is_report=True)

    assert asked == TokenRequest("g", 0.0, Consumption())


def test_a_grant_at_once_adds_its_tokens() -> None:
    group = new_group()
    use(group, 2000)
    group.tick(1)

    group.apply(grant(500, burst_limit=2000), 1)

    assert group.bucket.available(1) == group.bucket.available(2) == 1500
    assert (group.bucket.rate, group.bucket.burst) == (0, 2000)
    assert not group.is_throttled
    # A tenth of 1500 or of five seconds of 1000, whichever is less.
    assert group.bucket.threshold == 150


def test_a_trickle_is_a_rate_and_asks_again_before_it_ends() -> None:
    group = new_group()
    group.bucket.remove(0, 1000)

    group.apply(grant(500, trickle=5, fill_rate=10), 10)

    assert group.bucket.rate == 110
    assert group.bucket.available(11) == 110
    assert group.is_throttled
    assert group.alarm_at == 13.75

    group.ring(13.74)
    assert group.bucket.threshold == 0
    group.ring(13.75)
    assert (group.bucket.threshold, group.alarm_at) == (1, math.inf)


def test_a_short_trickle_asks_again_halfway_to_its_reserve() -> None:
    group = new_group()

    group.apply(grant(500, trickle=1), 10)

    assert group.alarm_at == 10 + (1 + 1.25) / 2


def test_what_a_trickle_did_not_deliver_comes_with_the_next_grant() -> None:
    group = new_group()
    group.bucket.remove(0, 1000)
    group.apply(grant(500, trickle=5), 0)

    group.apply(grant(100), 2)

    assert group.bucket.available(2) == pytest.approx(200 + 300 + 100)
    assert group.alarm_at == math.inf
    assert group.bucket.rate == 0


def test_nothing_of_a_trickle_is_left_when_it_ended() -> None:
    group = new_group()
    group.bucket.remove(0, 1000)
    group.apply(grant(500, trickle=5), 0)
    group.bucket.remove(5, 500)

    group.apply(grant(100, trickle=5), 6)

    assert group.bucket.rate == 20


def test_a_grant_without_limit_ends_all_counting() -> None:
    group = new_group(fill_rate=70)

    group.apply(grant(0, burst_limit=-1), 1)

    assert group.bucket.is_unlimited
    assert group.bucket.available(1) == 70
    group.bucket.remove(1, 1000)
    assert group.bucket.available(9) == 70


def test_a_group_in_need_fills_itself_while_pd_is_away() -> None:
    group = new_group(fill_rate=100)
    assert not group.degrade(1)

    group.bucket.remove(1, 150)
    assert group.degrade(1)
    assert not group.degrade(2)

    assert group.is_degraded
    assert [group.bucket.available(moment) for moment in (1, 2, 9)] == [-50, 50, 100]

    group.apply(grant(30), 9)
    assert group.bucket.available(10) == 130
    assert group.degrade(10) is False


def test_a_request_is_counted_before_and_after() -> None:
    group = new_group()

    before = group.before(MODEL, READ)
    after = group.settle(MODEL, READ, ResponseInfo(read_bytes=65536, cpu_ms=3))

    assert before.ru == pytest.approx(0.475)
    assert after.ru == pytest.approx(2)
    assert group.used.ru == pytest.approx(2.475)
    assert group.used.read_rpcs == 1


def test_a_request_that_was_not_sent_costs_nothing() -> None:
    group = new_group()
    for request in (READ, RequestInfo(is_write=False, store_id=1, predicted_read_bytes=MIB)):
        cost = group.before(MODEL, request)
        group.withdraw(MODEL, request, cost)

    assert group.used == Usage()


@pytest.mark.parametrize("read_bytes", [0, MIB // 2, 8 * MIB])
def test_reports_know_nothing_of_charges_in_advance(read_bytes: int) -> None:
    group = new_group()
    request = RequestInfo(is_write=False, store_id=1, predicted_read_bytes=4 * MIB)

    ahead = group.before(MODEL, request)
    assert ahead.ru == pytest.approx(0.475 + 64)
    assert group.used.ru == pytest.approx(0.475)

    settled = group.settle(MODEL, request, ResponseInfo(read_bytes=read_bytes))
    assert settled.ru == pytest.approx((read_bytes - 4 * MIB) / 65536)
    assert group.used.ru == pytest.approx(0.475 + read_bytes / 65536)


def test_a_store_learns_what_the_group_used_on_the_others_since_it_was_last_asked() -> None:
    group = new_group()

    def send(store_id: int) -> float:
        request = RequestInfo(is_write=False, store_id=store_id)
        group.before(MODEL, request)
        penalty = group.penalty(store_id)
        group.settle(MODEL, request, ResponseInfo(read_bytes=65536))
        return penalty.read_ru

    assert send(1) == 0
    assert send(1) == 0
    assert send(2) == 0
    assert send(2) == 0
    assert send(1) == pytest.approx(2 * 1.475)
    assert send(1) == 0
    assert send(2) == pytest.approx(2 * 1.475)


@pytest.mark.parametrize(
    ("request_info", "read_bytes", "throttled", "may_owe"),
    [
        (READ, 4 * MIB, True, False),
        (READ, 4 * MIB - 1, True, True),
        (READ, 4 * MIB, False, True),
        (RequestInfo(is_write=True, store_id=1), 4 * MIB, True, True),
        (RequestInfo(is_write=False, store_id=1, predicted_read_bytes=1), 4 * MIB, True, True),
    ],
)
def test_only_a_big_read_of_a_throttled_group_waits_after_it_was_answered(
    request_info: RequestInfo, read_bytes: int, throttled: bool, may_owe: bool
) -> None:
    group = new_group()
    group.is_throttled = throttled

    assert group.may_owe(request_info, Usage(read_bytes=read_bytes)) == may_owe


def test_a_group_is_idle_when_nothing_was_used_between_two_looks() -> None:
    group = granted_group()

    assert not group.is_idle()
    use(group, 1)
    assert not group.is_idle()
    assert group.is_idle()

    group.tick(30)
    group.ask(is_report=True)
    assert not group.is_idle()
