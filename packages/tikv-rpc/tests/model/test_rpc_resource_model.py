"""A resource group under any order of requests, grants, lost answers and time."""

from __future__ import annotations

import attrs
from hypothesis import given, settings, strategies as st
from tikv_pd import ResourceGroup, TokenGrant, TokenRequest
from tikv_rpc.resource_control.cost import RequestInfo, ResponseInfo, RuModel
from tikv_rpc.resource_control.group import GroupState

FILL_RATE = 100
MODEL = RuModel()
READ = RequestInfo(is_write=False, store_id=1)
SLACK = 1e-6


@attrs.define
class World:
    """The group, and what is known of it from outside."""

    group: GroupState = attrs.Factory(lambda: GroupState.new("g", ResourceGroup("g", FILL_RATE), 0.0))
    now: float = 0.0
    granted: float = 0.0
    """Tokens PD granted, and those it did not but that flow on when it is late with the next grant."""
    used: float = 0.0
    """Tokens that requests took."""
    reported: float = 0.0
    """Request units PD heard of."""
    asked: TokenRequest | None = None
    used_when_asked: float = 0.0
    trickle_until: float = 0.0

    def pass_time(self, seconds: float) -> None:
        late = max(self.now + seconds - max(self.trickle_until, self.now), 0.0)
        self.granted += self.group.bucket.rate * late
        self.now += seconds
        self.group.ring(self.now)
        self.group.tick(self.now)

    def read(self, kib: float) -> None:
        cost = self.group.before(MODEL, READ)
        reservation = self.group.bucket.reserve(self.now, cost.ru, 3.0)
        if not reservation.granted:
            self.group.withdraw(MODEL, READ, cost)
            return
        # What it waits for flows in until then.
        assert self.used + cost.ru <= FILL_RATE + self.granted + self.group.bucket.rate * reservation.wait + SLACK
        self.used += cost.ru
        after = self.group.settle(MODEL, READ, ResponseInfo(read_bytes=int(kib * 1024)))
        self.group.bucket.remove(self.now, after.ru)
        self.used += after.ru

    def ask(self, is_report: bool) -> None:
        self.asked = self.group.ask(is_report=is_report)
        self.used_when_asked = self.group.used.ru
        if self.asked is not None:
            assert self.asked.tokens >= 0
            assert self.asked.consumption.read_ru >= 0

    def answer(self, tokens: float, trickle: float) -> None:
        if self.asked is None:
            return
        self.reported += self.asked.consumption.read_ru
        self.asked = None
        assert abs(self.reported - self.used_when_asked) < SLACK
        self.granted += tokens
        self.trickle_until = self.now + trickle if trickle else self.now
        self.group.apply(TokenGrant("g", tokens, trickle), self.now)
        assert not self.group.bucket.is_asking or self.group.bucket.threshold == 0


steps = st.lists(
    st.one_of(
        st.tuples(st.just("pass_time"), st.floats(0, 8)),
        st.tuples(st.just("read"), st.floats(0, 4000)),
        st.tuples(st.just("ask"), st.booleans()),
        st.tuples(st.just("answer"), st.floats(0, 500), st.one_of(st.just(0.0), st.floats(0.5, 10))),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(steps)
def test_a_group_uses_what_it_was_granted_and_pd_hears_of_everything_once(actions: list[tuple[str, float]]) -> None:
    world = World()
    for name, *values in actions:
        getattr(world, name)(*values)

    # An answer that was lost is made up for by the next one.
    world.pass_time(30)
    world.ask(True)
    assert world.asked is not None
    world.answer(0, 0)
    assert abs(world.reported - world.used) < SLACK
    # What is there is what came in and was not used.
    left = world.group.bucket.available(world.now)
    assert abs(left - (FILL_RATE + world.granted - world.used)) < 1e-3
