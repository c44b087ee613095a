from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from google.protobuf.message import Message
from tikv_pd import Deadline, DeadlineExceeded, Peer, Region, RegionEpoch, ResourceGroup, TokenGrant
from tikv_pd.errors import RpcError, TikvError
from tikv_proto import coprocessor, errorpb, kvrpcpb
from tikv_proto.services import Rpc, Tikv
from tikv_region import RegionEntry, StoreEntry
from tikv_rpc import Attempt, Effect, Request, RequestOptions
from tikv_rpc._fakes.fake_tokens import FakeTokens
from tikv_rpc.resource_control import RuModel, RuV2Weights
from tikv_rpc.resource_control.details import RuDetails, collect_ru
from tikv_rpc.resource_control.interceptor import ResourceControl
from tikv_rpc.resource_control.settings import ResourceControlConfig
from tikv_rpc.resource_control.stats import GroupStats
from tikv_rpc.resource_errors import (
    ResourceGroupNotFound,
    ResourceGroupThrottled,
    ResourceGroupUnavailable,
)

MIB = 1 << 20


def near(value: float) -> Any:
    return pytest.approx(value)


def attempt_of(
    group: str = "g",
    source: str = "",
    timeout: float = 60.0,
    rpc: Rpc[Any, Any] = Tikv.RawGet,
    message: Message | None = None,
    zone: str = "",
) -> Attempt:
    """An attempt as the engine makes it, of a Region with three replicas."""
    store = StoreEntry(1)
    store.labels = (("zone", zone),)
    peers = tuple(Peer(number, number) for number in (1, 2, 3))
    region = Region(1, b"", b"", RegionEpoch(1, 1), peers, peers[0])
    entry = RegionEntry(region, (b"", b""), [(peers[0], store)], math.inf, anyio.current_time)
    request = Request(rpc, rpc.request() if message is None else message, Effect.READ)
    options = RequestOptions(resource_group=group, request_source=source)
    return Attempt("get", request, entry, store, options, Deadline("get", timeout, anyio.current_time))


def told(attempt: Attempt) -> kvrpcpb.ResourceControlContext:
    """What the store is told by the interceptor."""
    return kvrpcpb.Context.FromString(attempt.fields).resource_control_context


def answer(response: Any = None) -> Callable[[], Awaitable[Any]]:
    async def proceed() -> Any:
        await checkpoint()
        return kvrpcpb.RawGetResponse() if response is None else response

    return proceed


def put(size: int, zone: str = "") -> Attempt:
    message = kvrpcpb.RawPutRequest(key=b"k", value=b"v" * (size - 1))
    return attempt_of(rpc=Tikv.RawPut, message=message, zone=zone)


async def settle() -> None:
    """Let the tasks that can run do so, while no time passes."""
    for _ in range(50):
        await checkpoint()


async def get(control: ResourceControl, timeout: float = 60.0, group: str = "g") -> float:
    """Make one read of 0.475 RU and return how long it took."""
    began = anyio.current_time()
    await control(attempt_of(group, timeout=timeout), answer())
    return anyio.current_time() - began


async def burn(control: ResourceControl, ru: float, group: str = "g") -> None:
    """Read so much that the group has `ru` tokens less; what was read is a debt, so this never waits long."""
    response = kvrpcpb.RawGetResponse(value=b"v" * int(ru * 65536))
    await control(attempt_of(group), answer(response))


@pytest.fixture
def tokens() -> FakeTokens:
    """A group `g` of 10 RU a second, and an unlimited default group."""
    return FakeTokens(ResourceGroup("g", 10, priority=4), ResourceGroup("default", 1000, -1))


@pytest.fixture
async def control(tokens: FakeTokens) -> AsyncIterator[ResourceControl]:
    async with ResourceControl(tokens) as control:
        yield control


async def test_requests_without_a_group_are_left_alone(control: ResourceControl, tokens: FakeTokens) -> None:
    attempt = attempt_of(group="")

    await control(attempt, answer())

    assert attempt.fields == b""
    assert tokens.loads == []
    assert control.stats() == {}


async def test_the_store_is_told_group_and_priority(control: ResourceControl) -> None:
    attempt = attempt_of()

    await control(attempt, answer())

    assert (told(attempt).resource_group_name, told(attempt).override_priority) == ("g", 4)
    assert attempt.priority == 4


async def test_a_priority_that_is_set_already_stays(control: ResourceControl) -> None:
    attempt = attempt_of()
    attempt.priority = 11
    context = kvrpcpb.ResourceControlContext(override_priority=12)
    attempt.patch(kvrpcpb.Context(resource_control_context=context))

    await control(attempt, answer())

    assert (told(attempt).resource_group_name, told(attempt).override_priority) == ("g", 12)
    assert attempt.priority == 11


async def test_the_store_is_told_what_the_group_used_elsewhere(control: ResourceControl) -> None:
    penalties = []
    for store_id in (1, 2, 1):
        attempt = attempt_of()
        attempt.store.id = store_id
        await control(attempt, answer())
        penalties.append(told(attempt).penalty.r_r_u)

    assert penalties == [0, 0, pytest.approx(0.475)]


@pytest.mark.parametrize(
    ("source", "is_charged"),
    [
        ("", True),
        ("external_Select", True),
        ("lightning", True),
        ("internal_lightning", False),
        ("external_br_lightning", False),
        ("internal_others", False),
        ("leader_internal_others_x", False),
    ],
)
async def test_background_jobs_and_a_few_internal_requests_are_not_charged(source: str, is_charged: bool) -> None:
    tokens = FakeTokens(ResourceGroup("g", 10, job_types=("lightning",)))
    async with ResourceControl(tokens) as control:
        attempt = attempt_of(source=source)

        await control(attempt, answer())

        assert bool(control.stats()) == is_charged
        assert bool(attempt.fields) == is_charged


@pytest.mark.parametrize(
    ("job_types", "is_charged"), [((), False), (("br",), True)], ids=["by those of default", "by its own"]
)
async def test_a_group_without_background_jobs_goes_by_those_of_default(
    job_types: tuple[str, ...], is_charged: bool
) -> None:
    default = ResourceGroup("default", 10, -1, job_types=("ddl",))
    async with ResourceControl(FakeTokens(ResourceGroup("g", 10, job_types=job_types), default)) as control:
        await control(attempt_of(source="internal_ddl"), answer())

        assert bool(control.stats()) == is_charged


async def test_without_a_default_group_nothing_is_a_background_job() -> None:
    async with ResourceControl(FakeTokens(ResourceGroup("g", 10))) as control:
        await control(attempt_of(source="internal_ddl"), answer())

        assert "g" in control.stats()


async def test_a_group_that_does_not_exist_is_an_error_of_its_own(control: ResourceControl) -> None:
    with pytest.raises(ResourceGroupNotFound, match="no resource group 'other'"):
        await control(attempt_of("other"), answer())


async def test_a_group_is_loaded_once_for_all_that_wait_for_it(control: ResourceControl, tokens: FakeTokens) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(get, control)

    assert tokens.loads == ["g"]


async def test_a_failure_to_load_a_group_does_not_look_like_a_store_s(
    control: ResourceControl, tokens: FakeTokens
) -> None:
    tokens.failure = RpcError("pd", "GetResourceGroup", "UNAVAILABLE", "away")

    with pytest.raises(ResourceGroupUnavailable) as caught:
        await get(control)

    assert caught.value.retryable
    assert not isinstance(caught.value, RpcError)
    assert "away" in str(caught.value)

    tokens.failure = None
    assert await get(control) == 0


async def test_loading_a_group_takes_no_longer_than_the_deadline(control: ResourceControl, tokens: FakeTokens) -> None:
    tokens.is_silent = True
    began = anyio.current_time()

    with pytest.raises(DeadlineExceeded):
        await get(control, timeout=0.5)

    assert anyio.current_time() - began == pytest.approx(0.5)


async def test_requests_are_charged_before_and_after(control: ResourceControl) -> None:
    await control(put(1024), answer(kvrpcpb.RawPutResponse()))
    assert control.stats()["g"].details == RuDetails(0, near(2.7 * 3), 0)

    await burn(control, 1)
    assert control.stats()["g"].details.read_ru == pytest.approx(1.475, rel=1e-3)


async def test_what_requests_cost_is_collected_for_callers(control: ResourceControl) -> None:
    with collect_ru() as outer:
        await control(put(1024), answer(kvrpcpb.RawPutResponse()))
        with collect_ru() as inner:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(get, control)
    await get(control)

    assert inner.details == RuDetails(near(0.475), 0, 0)
    assert outer.details == RuDetails(near(0.475), near(8.1), 0)
    assert control.stats()["g"].details.read_ru == pytest.approx(2 * 0.475)


async def test_the_second_model_is_observed(control: ResourceControl, tokens: FakeTokens) -> None:
    counters = kvrpcpb.ExecDetailsV2(ru_v2=kvrpcpb.RUV2(storage_processed_keys_get=1))
    attempt = attempt_of(rpc=Tikv.KvGet)
    weight = 2.1 * 0.01416829

    for _ in range(2):
        await control(attempt, answer(kvrpcpb.GetResponse(exec_details_v2=counters)))
        tokens.change_settings(b'{"ru-version-policy": {"default": 2}}')
        await settle()

    assert control.stats()["g"].details.ru_v2 == pytest.approx(2 * weight)
    await anyio.sleep(1.5)
    # PD learns of what was observed since it wants to.
    assert tokens.log[0][1][0].consumption.ru_v2 == pytest.approx(weight)


async def test_zones_are_compared(tokens: FakeTokens) -> None:
    tokens.put(ResourceGroup("g", 1000))
    async with ResourceControl(tokens, ResourceControlConfig(zone="a")) as control:
        for zone in ("a", "b", ""):
            await control(put(100, zone=zone), answer(kvrpcpb.RawPutResponse()))
        await anyio.sleep(1.5)

    used = tokens.log[0][1][0].consumption
    # Replication for each that has a zone, and the request itself to the other one.
    assert used.write_cross_zone_bytes == 200 + 200 + len(put(100).request.payload)


async def test_a_burst_of_requests_within_the_tokens_does_not_wait(control: ResourceControl) -> None:
    assert [await get(control) for _ in range(10)] == [0.0] * 10


async def test_requests_wait_for_tokens_and_are_woken_by_a_grant(control: ResourceControl, tokens: FakeTokens) -> None:
    tokens.delay = 0.12
    tokens.grants["g"] = TokenGrant("g", 1000)
    await burn(control, 100)

    waited = await get(control)

    # The bucket was low as soon as it was used, and the answer took so long.
    assert waited == pytest.approx(0.12)
    assert control.stats()["g"].details.wait == pytest.approx(0.12)
    assert [requests[0].group for _, requests in tokens.log] == ["g"]


async def test_a_request_that_gets_no_tokens_is_throttled_after_twenty_tries(
    control: ResourceControl, tokens: FakeTokens
) -> None:
    tokens.delay = 30
    await burn(control, 100)
    began = anyio.current_time()
    used = control.stats()["g"].details

    with pytest.raises(ResourceGroupThrottled) as caught:
        await get(control)

    assert anyio.current_time() - began == pytest.approx(20 * 0.05)
    error = caught.value
    assert (error.group, error.wait, error.rate) == ("g", math.inf, 0)
    assert error.tokens == pytest.approx(10 - 100 - 2 * 0.475, abs=0.1)
    assert error.retryable
    assert not error.undetermined
    assert "throttled" in str(error)
    # It was not sent, so it cost nothing.
    assert control.stats()["g"].details == used


async def test_a_wait_longer_than_the_limit_is_not_begun(control: ResourceControl, tokens: FakeTokens) -> None:
    tokens.grants["g"] = TokenGrant("g", 50, trickle=50)
    await burn(control, 100)
    await settle()

    with pytest.raises(ResourceGroupThrottled) as caught:
        await get(control)

    # 90 RU at 1 a second, or a little less.
    assert 60 < caught.value.wait < 95
    assert caught.value.rate == 1


async def test_a_wait_within_the_limit_is_taken(control: ResourceControl, tokens: FakeTokens) -> None:
    tokens.grants["g"] = TokenGrant("g", 100, trickle=5)
    await burn(control, 100)
    await settle()

    # 20 RU a second for a debt of 90.
    assert await get(control) == pytest.approx(90 / 20, rel=0.05)


@pytest.mark.parametrize("limit", [0.3, 1.5])
async def test_a_deadline_ends_the_wait(control: ResourceControl, tokens: FakeTokens, limit: float) -> None:
    tokens.delay = 1000
    await burn(control, 100)
    began = anyio.current_time()

    with pytest.raises((DeadlineExceeded, ResourceGroupThrottled)) as caught:
        await get(control, timeout=limit)

    assert anyio.current_time() - began == pytest.approx(min(limit, 1.0))
    assert isinstance(caught.value, DeadlineExceeded) == (limit < 1)
    if limit < 1:
        assert isinstance(caught.value.__cause__, ResourceGroupThrottled)


@pytest.mark.parametrize(
    ("config", "waited"),
    [
        (ResourceControlConfig(retry_times=3), 0.15),
        (ResourceControlConfig(retry_interval=0.2), 4.0),
        (ResourceControlConfig(retry_times=2, retry_interval=1.0), 2.0),
    ],
)
async def test_how_long_to_look_for_tokens_can_be_set(
    tokens: FakeTokens, config: ResourceControlConfig, waited: float
) -> None:
    tokens.delay = 100
    async with ResourceControl(tokens, config) as control:
        await burn(control, 100)
        began = anyio.current_time()

        with pytest.raises(ResourceGroupThrottled):
            await get(control)

        assert anyio.current_time() - began == pytest.approx(waited)


async def test_the_longest_wait_can_be_set(tokens: FakeTokens) -> None:
    tokens.grants["g"] = TokenGrant("g", 50, trickle=5)
    async with ResourceControl(tokens, ResourceControlConfig(max_wait=5)) as control:
        await burn(control, 100)
        await settle()

        with pytest.raises(ResourceGroupThrottled) as caught:
            await get(control)

        assert caught.value.wait > 5


async def test_how_long_pd_may_take_can_be_set(tokens: FakeTokens) -> None:
    tokens.is_silent = True
    async with ResourceControl(tokens, ResourceControlConfig(token_timeout=1.5)) as control:
        began = anyio.current_time()

        with pytest.raises(ResourceGroupUnavailable):
            await get(control)

        assert anyio.current_time() - began == pytest.approx(1.5)


async def test_both_models_can_be_set(tokens: FakeTokens) -> None:
    config = ResourceControlConfig(
        model=RuModel(read_base_cost=1, read_per_batch_base_cost=0), ru_v2_weights=RuV2Weights(scale=1, get_keys=2)
    )
    tokens.settings = b'{"request-unit": {"read-base-cost": 50}}'
    counters = kvrpcpb.ExecDetailsV2(ru_v2=kvrpcpb.RUV2(storage_processed_keys_get=3))
    async with ResourceControl(tokens, config) as control:
        await settle()
        attempt = attempt_of(rpc=Tikv.KvGet)

        await control(attempt, answer(kvrpcpb.GetResponse(exec_details_v2=counters)))

        assert control.stats()["g"].details == RuDetails(read_ru=1, ru_v2=6)


async def test_settings_of_pd_hold_and_may_change(tokens: FakeTokens) -> None:
    tokens.settings = b'{"request-unit": {"read-base-cost": 2, "read-per-batch-base-cost": 0}}'
    async with ResourceControl(tokens) as control:
        await settle()
        await get(control)
        assert control.stats()["g"].details.read_ru == 2

        tokens.change_settings(b"nonsense")
        await settle()
        await get(control)
        assert control.stats()["g"].details.read_ru == 4

        tokens.change_settings(b'{"request-unit": {"read-base-cost": 3, "read-per-batch-base-cost": 0}}')
        await settle()
        await get(control)
        assert control.stats()["g"].details.read_ru == 7


async def test_a_group_without_limit_never_waits(control: ResourceControl, tokens: FakeTokens) -> None:
    await burn(control, 150, group="default")

    assert await get(control, group="default") == 0
    await anyio.sleep(1.5)
    assert tokens.log[0][1][0].consumption.read_ru > 150


async def test_tokens_are_asked_for_one_request_at_a_time(tokens: FakeTokens) -> None:
    tokens.delay = 2.5
    for name in ("a", "b"):
        tokens.put(ResourceGroup(name, 10))
        tokens.grants[name] = TokenGrant(name, 1000)
    async with ResourceControl(tokens) as control, anyio.create_task_group() as tasks:
        for name in ("a", "b"):
            await burn(control, 50, name)
        for name in ("a", "b") * 3:
            tasks.start_soon(suppress_throttled, get, control, 60.0, name)
        await anyio.sleep(20)
        tasks.cancel_scope.cancel()

    assert tokens.most_under_way == 1
    assert {request.group for _, requests in tokens.log for request in requests} == {"a", "b"}


async def suppress_throttled(function: Callable[..., Awaitable[Any]], *args: Any) -> None:
    with suppress(ResourceGroupThrottled):
        await function(*args)


async def test_groups_that_report_travel_together(control: ResourceControl, tokens: FakeTokens) -> None:
    tokens.put(ResourceGroup("h", 10))
    await get(control)
    await get(control, group="h")

    await anyio.sleep(1.5)

    assert [[request.group for request in requests] for _, requests in tokens.log] == [["g", "h"]]


async def test_reports_come_when_much_was_used_or_after_twenty_seconds(
    control: ResourceControl, tokens: FakeTokens
) -> None:
    tokens.grants["default"] = TokenGrant("default", 0, burst_limit=-1)
    began = anyio.current_time()
    await get(control, group="default")
    await anyio.sleep(1.5)
    await burn(control, 99, "default")
    await anyio.sleep(8)
    await burn(control, 2, "default")

    await anyio.sleep(40)

    moments = [moment - began for moment, _ in tokens.log]
    assert moments == pytest.approx([1, 10, 30, 50][: len(moments)], abs=0.01)
    used = [requests[0].consumption.read_ru for _, requests in tokens.log]
    assert used == [pytest.approx(each, abs=0.6) for each in (0.475, 101.9, 0)]


async def test_a_trickle_is_renewed_before_it_ends(control: ResourceControl, tokens: FakeTokens) -> None:
    tokens.grants["g"] = TokenGrant("g", 50, trickle=5)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(hammer, control)
        await anyio.sleep(40)
        tasks.cancel_scope.cancel()

    gaps = [later[0] - sooner[0] for sooner, later in zip(tokens.log[1:], tokens.log[2:], strict=False)]
    assert gaps
    assert max(gaps) <= 5


async def hammer(control: ResourceControl) -> None:
    while True:
        await suppress_throttled(get, control)


async def test_no_more_is_used_than_is_granted(control: ResourceControl, tokens: FakeTokens) -> None:
    """Ten tasks read as fast as they may, for a minute, of 10 RU a second."""
    tokens.grants["g"] = TokenGrant("g", 50, trickle=5)
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(hammer, control)
        await anyio.sleep(60)
        tasks.cancel_scope.cancel()

    used = control.stats()["g"].details.read_ru
    granted = 10 + 50 * len(tokens.log)
    assert used <= granted
    assert used >= 0.7 * 10 * 60


async def test_a_big_read_of_a_throttled_group_waits_for_what_it_cost(
    control: ResourceControl, tokens: FakeTokens
) -> None:
    tokens.grants["g"] = TokenGrant("g", 100, trickle=5)
    await burn(control, 20)
    await settle()
    assert control.stats()["g"].is_throttled
    began = anyio.current_time()

    await burn(control, 80)

    assert anyio.current_time() - began > 3


async def test_a_big_read_that_cannot_be_paid_is_withheld(control: ResourceControl, tokens: FakeTokens) -> None:
    tokens.grants["g"] = TokenGrant("g", 5, trickle=5)
    await burn(control, 8)
    await settle()

    with pytest.raises(ResourceGroupThrottled):
        await burn(control, 100)


async def test_the_outcome_of_a_write_is_never_withheld(control: ResourceControl, tokens: FakeTokens) -> None:
    tokens.grants["g"] = TokenGrant("g", 5, trickle=5)
    await burn(control, 8)
    await settle()
    response = kvrpcpb.RawCASResponse(previous_value=b"v" * 8 * MIB)
    cas = attempt_of(rpc=Tikv.RawCompareAndSwap)
    cas.entry.replica_count = 1

    assert await control(cas, answer(response)) is response


async def test_region_errors_are_charged_as_requests(control: ResourceControl) -> None:
    moved = kvrpcpb.RawGetResponse(region_error=errorpb.Error(message="moved"))

    assert await control(attempt_of(), answer(moved)) is moved

    assert control.stats()["g"].details.read_ru == pytest.approx(0.475)


@pytest.mark.parametrize("read", [0, MIB // 2, 2 * MIB])
async def test_predicted_bytes_are_charged_in_advance_and_settled(tokens: FakeTokens, read: int) -> None:
    tokens.put(ResourceGroup("g", 1000))
    seen: list[float] = []
    async with ResourceControl(tokens, predict_read_bytes=lambda _: MIB) as control:
        attempt = attempt_of(rpc=Tikv.Coprocessor)

        async def proceed() -> Any:
            seen.append(control.stats()["g"].tokens)
            return coprocessor.Response(data=b"d" * read)

        await control(attempt, proceed)

        assert seen == [pytest.approx(1000 - 0.475 - 16)]
        assert control.stats()["g"].tokens == pytest.approx(1000 - 0.475 - read / 65536)
        assert control.stats()["g"].details.read_ru == pytest.approx(0.475 + read / 65536)
        # Other requests are not asked about.
        await get(control)
        assert control.stats()["g"].tokens == pytest.approx(1000 - 2 * 0.475 - read / 65536)


async def test_predicted_bytes_come_back_when_there_was_no_answer(tokens: FakeTokens) -> None:
    tokens.put(ResourceGroup("g", 1000))
    async with ResourceControl(tokens, predict_read_bytes=lambda _: MIB) as control:
        attempt = attempt_of(rpc=Tikv.Coprocessor)

        async def fail() -> Any:
            raise RpcError("store", "Coprocessor", "UNAVAILABLE", "")

        with pytest.raises(RpcError):
            await control(attempt, fail)

        assert control.stats()["g"].tokens == pytest.approx(1000 - 0.475)
        assert control.stats()["g"].details.read_ru == pytest.approx(0.475)


async def test_changed_settings_of_a_group_hold_at_once(control: ResourceControl, tokens: FakeTokens) -> None:
    await get(control)

    tokens.put(ResourceGroup("g", 10, priority=16))
    await settle()
    attempt = attempt_of()
    await control(attempt, answer())

    assert told(attempt).override_priority == 16
    assert control.stats()["g"].tokens == pytest.approx(10 - 2 * 0.475)


@pytest.mark.parametrize("has_default", [False, True])
async def test_a_deleted_group_lives_on_as_default_and_may_come_back(
    control: ResourceControl, tokens: FakeTokens, has_default: bool
) -> None:
    await burn(control, 100)
    if has_default:
        await get(control, group="default")

    tokens.delete("g")
    await settle()

    assert await get(control) == 0
    assert control.stats()["g"].is_deleted
    assert control.stats()["g"].burst_limit == -1
    # What runs in the background is for groups that are there.
    await control(attempt_of(source="internal_ddl"), answer())

    tokens.put(ResourceGroup("g", 77))
    await settle()

    assert not control.stats()["g"].is_deleted
    assert control.stats()["g"].tokens == 77


@pytest.mark.parametrize("is_away", [False, True])
async def test_a_group_deleted_with_no_default_to_be_had_is_unknown(
    control: ResourceControl, tokens: FakeTokens, is_away: bool
) -> None:
    await get(control)
    del tokens.groups["default"]
    if is_away:
        tokens.failure = RpcError("pd", "GetResourceGroup", "UNAVAILABLE", "away")

    tokens.delete("g")
    await settle()
    tokens.failure = None

    with pytest.raises(ResourceGroupNotFound):
        await get(control)


async def test_a_request_is_answered_though_its_group_was_forgotten_meanwhile(
    control: ResourceControl, tokens: FakeTokens
) -> None:
    del tokens.groups["default"]
    response = kvrpcpb.RawGetResponse()

    async def proceed() -> Any:
        tokens.delete("g")
        tokens.put(ResourceGroup("another", 10))
        await settle()
        return response

    assert await control(attempt_of(), proceed) is response
    assert control.stats()["g"].tokens == 0


async def test_the_default_group_is_never_given_up(control: ResourceControl, tokens: FakeTokens) -> None:
    await get(control, group="default")

    tokens.delete("default")
    await settle()

    assert await get(control, group="default") == 0
    assert not control.stats()["default"].is_deleted


async def test_a_broken_watch_is_begun_again_and_misses_nothing(control: ResourceControl, tokens: FakeTokens) -> None:
    await get(control)
    tokens.break_watches()
    tokens.put(ResourceGroup("g", 10, priority=9))
    tokens.settings = b'{"ltb-max-wait-duration": "7s"}'

    await anyio.sleep(31)

    attempt = attempt_of()
    await control(attempt, answer())
    assert told(attempt).override_priority == 9
    assert control._controller.settings.max_wait == 7


async def test_a_group_that_was_idle_for_minutes_is_dropped(control: ResourceControl, tokens: FakeTokens) -> None:
    tokens.grants["g"] = TokenGrant("g", 10)
    await get(control)

    await anyio.sleep(301)
    assert "g" in control._controller.groups
    await anyio.sleep(300)
    assert "g" not in control._controller.groups

    assert control.stats()["g"] == GroupStats(RuDetails(near(0.475)))
    await get(control)
    assert tokens.loads == ["g", "g"]


async def test_a_failed_request_for_tokens_is_made_again_within_a_second(
    control: ResourceControl, tokens: FakeTokens
) -> None:
    tokens.grants["g"] = TokenGrant("g", 1000)
    await get(control)
    tokens.failure = RpcError("pd", "AcquireTokenBuckets", "UNAVAILABLE", "away")
    await burn(control, 100)
    with pytest.raises(ResourceGroupThrottled):
        await get(control)
    await anyio.sleep(0.5)

    tokens.failure = None

    assert await get(control) <= 1
    # Nothing used was lost, and nothing told twice.
    assert tokens.log[-1][1][0].consumption.read_ru == pytest.approx(100 + 2 * 0.475, rel=0.01)


async def test_groups_fill_themselves_while_pd_is_silent_and_stop_when_it_is_back(tokens: FakeTokens) -> None:
    tokens.grants["g"] = TokenGrant("g", 3)
    async with ResourceControl(tokens, ResourceControlConfig(degraded_wait=2.0)) as control:
        await get(control)
        tokens.is_silent = True
        await burn(control, 20)
        with pytest.raises(ResourceGroupThrottled):
            await get(control)
        await anyio.sleep(1.5)

        assert control.stats()["g"].is_degraded
        assert control.stats()["g"].rate == 10
        assert await get(control) < 2

        tokens.is_silent = False
        await anyio.sleep(8)
        assert not control.stats()["g"].is_degraded
        assert control.stats()["g"].rate == 0


@pytest.mark.parametrize("away", ["silent", "failing"])
async def test_a_group_that_cannot_be_loaded_may_go_by_a_rate_of_this_client(tokens: FakeTokens, away: str) -> None:
    async with ResourceControl(tokens, ResourceControlConfig(degraded_fill_rate=50)) as control:
        if away == "silent":
            tokens.is_silent = True
        else:
            tokens.failure = RpcError("pd", "GetResourceGroup", "UNAVAILABLE", "away")

        await get(control)
        assert control.stats()["g"].rate == 50
        assert control.stats()["g"].is_degraded

        tokens.is_silent, tokens.failure = False, None
        await anyio.sleep(12)
        await get(control)
        assert control.stats()["g"].rate == 0
        assert not control.stats()["g"].is_degraded


async def test_a_failure_for_good_is_not_stood_in_for(tokens: FakeTokens) -> None:
    async with ResourceControl(tokens, ResourceControlConfig(degraded_fill_rate=50)) as control:
        tokens.failure = TikvError("no")
        with pytest.raises(ResourceGroupUnavailable):
            await get(control)

        tokens.failure = None
        with pytest.raises(ResourceGroupNotFound):
            await get(control, group="other")
