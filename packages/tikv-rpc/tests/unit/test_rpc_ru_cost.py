from __future__ import annotations

from typing import Any

import attrs
import pytest
from tikv_pd import ConfigError, Consumption
from tikv_proto import kvrpcpb
from tikv_rpc.resource_control.cost import Access, RequestInfo, ResponseInfo, RuModel, Usage
from tikv_rpc.resource_control.ru_v2 import RuV2Weights

MODEL = RuModel()
READ = RequestInfo(is_write=False, store_id=1)
MIB = 1 << 20


def near(value: float) -> Any:
    return pytest.approx(value)


def everything(value: int) -> Usage:
    return Usage(*([value] * len(attrs.fields(Usage))))


def test_a_read_costs_its_base_before_and_its_bytes_and_cpu_afterwards() -> None:
    before = MODEL.before(READ)
    after = MODEL.after(READ, ResponseInfo(read_bytes=64 * 1024, cpu_ms=6.0))

    assert before == Usage(read_ru=near(0.475), read_rpcs=1)
    assert after == Usage(read_ru=near(1 + 2), read_bytes=64 * 1024, cpu_ms=6.0)


@pytest.mark.parametrize(("replicas", "times"), [(0, 1), (1, 1), (3, 3)])
def test_a_write_costs_everything_before_for_each_replica(replicas: int, times: int) -> None:
    write = RequestInfo(is_write=True, store_id=1, write_bytes=2048, replica_count=replicas)

    cost = MODEL.before(write)

    assert cost == Usage(write_ru=near((1.7 + 2) * times), write_bytes=2048, write_rpcs=1)


def test_cpu_of_a_write_is_free_and_bytes_it_reads_are_not() -> None:
    write = RequestInfo(is_write=True, store_id=1, write_bytes=10)

    cost = MODEL.after(write, ResponseInfo(read_bytes=64 * 1024, cpu_ms=100))

    assert cost == Usage(read_ru=near(1.0), read_bytes=64 * 1024)


def test_a_write_between_zones_counts_its_traffic_and_its_replication() -> None:
    traffic = {
        access: (
            MODEL.before(
                RequestInfo(is_write=True, store_id=1, write_bytes=100, replica_count=3, size=130, access=access)
            ).write_cross_zone_bytes,
            MODEL.after(
                RequestInfo(is_write=True, store_id=1, access=access), ResponseInfo(size=7)
            ).write_cross_zone_bytes,
        )
        for access in Access
    }

    assert traffic == {Access.UNKNOWN: (0, 0), Access.LOCAL_ZONE: (200, 0), Access.CROSS_ZONE: (330, 7)}


def test_a_read_counts_traffic_only_between_zones() -> None:
    traffic = {
        access: (
            MODEL.before(attrs.evolve(READ, size=30, access=access)).read_cross_zone_bytes,
            MODEL.after(attrs.evolve(READ, access=access), ResponseInfo(size=7)).read_cross_zone_bytes,
        )
        for access in Access
    }

    assert traffic == {Access.UNKNOWN: (0, 0), Access.LOCAL_ZONE: (0, 0), Access.CROSS_ZONE: (30, 7)}


@pytest.mark.parametrize("read_bytes", [0, 100 * 1024, 256 * 1024, 300 * 1024])
def test_what_was_charged_in_advance_is_settled_with_what_was_read(read_bytes: int) -> None:
    request = attrs.evolve(READ, predicted_read_bytes=256 * 1024)
    response = ResponseInfo(read_bytes=read_bytes, cpu_ms=10)

    ahead, settled = MODEL.before(request), MODEL.after(request, response)

    assert ahead.read_ru == near(0.475 + 4)
    assert ahead.read_ru + settled.read_ru == near(0.475 + read_bytes / 65536 + 10 / 3)


def test_a_write_is_never_charged_for_a_prediction() -> None:
    write = RequestInfo(is_write=True, store_id=1, predicted_read_bytes=4 * MIB)

    assert MODEL.precharge(write) == 0
    assert MODEL.before(write).read_ru == 0


def test_the_model_of_a_cluster_replaces_each_cost() -> None:
    model = RuModel(
        read_base_cost=1,
        read_per_batch_base_cost=10,
        read_cost_per_byte=3,
        write_base_cost=2,
        write_per_batch_base_cost=20,
        write_cost_per_byte=5,
        read_cpu_ms_cost=7,
    )

    assert model.before(READ).read_ru == near(1 + 7)
    assert model.after(READ, ResponseInfo(read_bytes=2, cpu_ms=1)).read_ru == near(6 + 7)
    assert model.before(RequestInfo(is_write=True, store_id=1, write_bytes=3)).write_ru == near(2 + 14 + 15)


def test_consumption_adds_and_subtracts_each_part() -> None:
    used = everything(3)

    used.add(everything(4))
    assert used == everything(7)

    used.subtract(everything(2))
    assert used == everything(5)
    assert used.ru == 10


def test_a_copy_does_not_follow() -> None:
    used = everything(1)

    copy = used.copy()
    used.add(copy)

    assert copy == everything(1)


def test_growth_ignores_what_shrank() -> None:
    last = Usage(read_ru=10, write_ru=5, read_bytes=100)
    now = Usage(read_ru=8, write_ru=9, read_bytes=100, write_rpcs=1)

    assert now.growth_since(last) == Usage(write_ru=4, write_rpcs=1)
    assert Usage.highest(now, last) == Usage(read_ru=10, write_ru=9, read_bytes=100, write_rpcs=1)


def test_what_was_used_is_told_to_pd_part_by_part() -> None:
    told = Usage(1, 2, 3, 4, 5000, 6, 7, 8, 9, 10).to_consumption()

    assert told == Consumption(1, 2, 3, 4, 5, 0, 6, 7, 8, 9, 10)
    assert Usage(read_cross_zone_bytes=-1).to_consumption() == Consumption()


@pytest.mark.parametrize("option", [*attrs.fields(RuModel), *attrs.fields(RuV2Weights)], ids=lambda option: option.name)
def test_nothing_has_a_cost_below_zero(option: attrs.Attribute[float]) -> None:
    costs = RuModel if option in attrs.fields(RuModel) else RuV2Weights

    assert getattr(costs(**{option.name: 0}), option.name) == 0
    with pytest.raises(ConfigError, match=option.name):
        costs(**{option.name: -0.1})


@pytest.mark.parametrize("weight", [field.name for field in attrs.fields(RuV2Weights)])
def test_each_weight_counts(weight: str) -> None:
    counters = kvrpcpb.RUV2(
        kv_engine_cache_miss=1,
        executor_inputs=kvrpcpb.ExecutorInputs(tikv_coprocessor_executor_work_total_batch_index_scan=1),
        coprocessor_executor_iterations=1,
        coprocessor_response_bytes=1,
        raftstore_store_write_trigger_wb_bytes=1,
        storage_processed_keys_batch_get=1,
        storage_processed_keys_get=1,
    )
    ones = RuV2Weights(**dict.fromkeys(attrs.fields_dict(RuV2Weights), 1.0))

    heavier = attrs.evolve(ones, **{weight: 3.0})

    assert ones.cost(counters, is_write=True) == near(8)
    assert heavier.cost(counters, is_write=True) == near(24 if weight == "scale" else 10)


def test_the_second_model_weighs_each_counter() -> None:
    counters = kvrpcpb.RUV2(
        kv_engine_cache_miss=2,
        executor_inputs=kvrpcpb.ExecutorInputs(
            tikv_coprocessor_executor_work_total_batch_index_scan=1000,
            tikv_coprocessor_executor_work_total_batch_fast_hash_aggr=500,
        ),
        coprocessor_executor_iterations=3,
        coprocessor_response_bytes=10_000,
        raftstore_store_write_trigger_wb_bytes=4000,
        storage_processed_keys_batch_get=10,
        storage_processed_keys_get=1,
        read_rpc_count=5,
        write_rpc_count=1,
    )
    without_rpc = (
        0.45975389 * 2
        + 0.0000315 * 1500
        + 0.05775369 * 3
        + 0.00000087 * 10_000
        + 0.000061 * 4000
        + 0.00266791 * 10
        + 0.01416829
    )

    assert RuV2Weights().cost(counters, is_write=False) == near(2.1 * (without_rpc + 0.09642181))
    assert RuV2Weights().cost(counters, is_write=True) == near(2.1 * (without_rpc + 2 * 0.09642181))
    assert RuV2Weights(scale=0).cost(counters, is_write=True) == 0
