from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from google.protobuf.message import Message
from tikv_pd import ConfigError
from tikv_proto import coprocessor, errorpb, kvrpcpb
from tikv_proto.services import Rpc, Tikv
from tikv_rpc.resource_control.charge import counters_of, response_info, written_bytes
from tikv_rpc.resource_control.cost import RuModel
from tikv_rpc.resource_control.settings import (
    ControllerSettings,
    ResourceControlConfig,
    parse_duration,
    parse_settings,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1m30s", 90), ("1.5h", 5400), ("50ms", 0.05), ("0s", 0), ("0", 0), ("7us", 7e-6)],
)
def test_durations_are_read_as_go_writes_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "1s x", "-1s", "1d"])
def test_no_other_duration_is_read(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        parse_duration(text)


def test_empty_settings_are_the_defaults() -> None:
    assert parse_settings(b"{}") == ControllerSettings()


def test_every_setting_of_pd_is_read() -> None:
    stored = {
        "ltb-max-wait-duration": "12s",
        "ltb-token-rpc-max-delay": "2s",
        "wait-retry-interval": "100ms",
        "degraded-mode-wait-duration": "3s",
        "request-unit": {field.name.replace("_", "-"): 10 + n for n, field in enumerate(attrs.fields(RuModel))},
        "ru-version-policy": {"default": 2, "overrides": {"7": 1}},
        "enable-controller-trace-log": "false",
    }

    settings = parse_settings(json.dumps(stored).encode())

    assert settings == ControllerSettings(
        model=RuModel(**{field.name: 10.0 + n for n, field in enumerate(attrs.fields(RuModel))}),
        max_wait=12,
        retry_interval=0.1,
        retry_times=20,
        degraded_wait=3,
        ru_versions=((7, 1),),
        ru_version=2,
    )
    assert (settings.version_of(7), settings.version_of(8)) == (1, 2)


def test_zero_stands_for_the_default_where_it_would_make_no_sense() -> None:
    stored = b'{"ltb-max-wait-duration": "0s", "wait-retry-interval": "0s", "ltb-token-rpc-max-delay": "0s"}'

    settings = parse_settings(stored)

    assert settings == ControllerSettings(retry_times=1)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b'{"ltb-max-wait-duration": 5}', b'{"request-unit": {"read-base-cost": "much"}}']
)
def test_settings_that_make_no_sense_are_refused(text: bytes) -> None:
    with pytest.raises(ConfigError, match="make no sense"):
        parse_settings(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", RuModel(read_base_cost=9)),
        ("max_wait", 1.0),
        ("retry_interval", 0.2),
        ("retry_times", 3),
        ("degraded_wait", 4.0),
    ],
)
def test_a_client_overrides_what_pd_tells_all(name: str, value: Any) -> None:
    settings = ControllerSettings(max_wait=12)

    assert settings.overridden(ResourceControlConfig()) == settings
    assert settings.overridden(ResourceControlConfig(**{name: value})) == attrs.evolve(settings, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_wait", 0),
        ("retry_interval", -1),
        ("retry_times", 0),
        ("degraded_wait", -1),
        ("degraded_fill_rate", 0),
        ("token_timeout", 0),
    ],
)
def test_a_value_that_can_never_work_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        ResourceControlConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rpc", "request_message", "size"),
    [
        (Tikv.RawGet, kvrpcpb.RawGetRequest(key=b"key"), None),
        (Tikv.RawPut, kvrpcpb.RawPutRequest(key=b"key", value=b"value"), 8),
        (
            Tikv.RawBatchPut,
            kvrpcpb.RawBatchPutRequest(pairs=[kvrpcpb.KvPair(key=b"a", value=b"bc"), kvrpcpb.KvPair(key=b"d")]),
            4,
        ),
        (Tikv.RawDelete, kvrpcpb.RawDeleteRequest(key=b"key"), 3),
        (Tikv.RawBatchDelete, kvrpcpb.RawBatchDeleteRequest(keys=[b"a", b"bc"]), 3),
        (Tikv.RawDeleteRange, kvrpcpb.RawDeleteRangeRequest(start_key=b"a", end_key=b"b"), 0),
        (Tikv.RawCompareAndSwap, kvrpcpb.RawCASRequest(key=b"k", value=b"new", previous_value=b"previous"), 4),
        (
            Tikv.KvPrewrite,
            kvrpcpb.PrewriteRequest(
                mutations=[kvrpcpb.Mutation(key=b"k", value=b"vv"), kvrpcpb.Mutation(key=b"kk")],
                primary_lock=b"ppp",
                secondaries=[b"k", b"kk"],
            ),
            11,
        ),
        (Tikv.KvCommit, kvrpcpb.CommitRequest(keys=[b"a", b"bb"]), 3),
        (Tikv.KvPessimisticLock, kvrpcpb.PessimisticLockRequest(primary_lock=b"p"), 0),
        (Tikv.KvFlush, kvrpcpb.FlushRequest(mutations=[kvrpcpb.Mutation(key=b"k", value=b"v")]), 0),
        (Tikv.KvScanLock, kvrpcpb.ScanLockRequest(limit=1), None),
    ],
    ids=lambda value: value.name if isinstance(value, Rpc) else "",
)
def test_a_write_is_charged_for_what_it_writes(rpc: Rpc[Any, Any], request_message: Message, size: int | None) -> None:
    assert written_bytes(rpc, request_message.SerializeToString()) == size


DETAILS = kvrpcpb.ExecDetailsV2(
    scan_detail_v2=kvrpcpb.ScanDetailV2(processed_versions_size=1000, total_versions_size=5000),
    time_detail=kvrpcpb.TimeDetail(process_wall_time_ms=9),
    time_detail_v2=kvrpcpb.TimeDetailV2(process_wall_time_ns=2_500_000),
)


@pytest.mark.parametrize(
    ("rpc", "response", "read_bytes", "cpu_ms"),
    [
        (Tikv.KvGet, kvrpcpb.GetResponse(value=b"v" * 10, exec_details_v2=DETAILS), 1000, 2.5),
        (Tikv.KvGet, kvrpcpb.GetResponse(value=b"v" * 10), 0, 0),
        (Tikv.KvBatchGet, kvrpcpb.BatchGetResponse(exec_details_v2=DETAILS), 1000, 2.5),
        (
            Tikv.KvGet,
            kvrpcpb.GetResponse(exec_details_v2=kvrpcpb.ExecDetailsV2(time_detail=DETAILS.time_detail)),
            0,
            9,
        ),
        (Tikv.KvScan, kvrpcpb.ScanResponse(pairs=[kvrpcpb.KvPair(key=b"abc")]), 7, 0),
        (Tikv.RawGet, kvrpcpb.RawGetResponse(value=b"abc"), 5, 0),
        (Tikv.RawGet, kvrpcpb.RawGetResponse(region_error=errorpb.Error(message="moved")), 0, 0),
        (Tikv.KvPrewrite, kvrpcpb.PrewriteResponse(exec_details_v2=DETAILS), 0, 0),
        (Tikv.Coprocessor, coprocessor.Response(data=b"d" * 7), 7, 0),
        (
            Tikv.Coprocessor,
            coprocessor.Response(
                data=b"d" * 7,
                exec_details=kvrpcpb.ExecDetails(time_detail=kvrpcpb.TimeDetail(process_wall_time_ms=4)),
                batch_responses=[
                    coprocessor.StoreBatchTaskResponse(data=b"d" * 5),
                    coprocessor.StoreBatchTaskResponse(exec_details_v2=DETAILS),
                ],
            ),
            7 + 5 + 1000,
            4 + 2.5,
        ),
    ],
)
def test_a_read_is_charged_for_what_its_response_tells(
    rpc: Rpc[Any, Any], response: Message, read_bytes: int, cpu_ms: float
) -> None:
    info = response_info(rpc, response)

    assert (info.read_bytes, info.cpu_ms, info.size) == (read_bytes, cpu_ms, response.ByteSize())


def test_counters_of_the_second_model_are_found_where_there_are_some() -> None:
    counters = kvrpcpb.RUV2(storage_processed_keys_get=3)

    assert counters_of(kvrpcpb.RawGetResponse()) is None
    assert counters_of(kvrpcpb.GetResponse(exec_details_v2=DETAILS)) is None
    assert counters_of(kvrpcpb.GetResponse(exec_details_v2=kvrpcpb.ExecDetailsV2(ru_v2=counters))) == counters


@pytest.mark.parametrize("option", attrs.fields(ResourceControlConfig), ids=lambda option: option.name)
def test_each_option_is_in_the_table_of_the_readme_with_its_default(option: attrs.Attribute[object]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    default = {"zone": '""', "ru_v2_weights": "RuV2Weights()"}.get(option.name, option.default)

    assert f"| `{option.name}` | {default} |" in readme
