from __future__ import annotations

import grpc
import pytest
from tikv_pd.errors import RpcError
from tikv_proto.healthpb import HealthCheckResponse
from tikv_region.health import Liveness
from tikv_rpc._stores.liveness import decide

BY_STATUS = {
    HealthCheckResponse.SERVING: Liveness.REACHABLE,
    HealthCheckResponse.NOT_SERVING: Liveness.UNREACHABLE,
    HealthCheckResponse.SERVICE_UNKNOWN: Liveness.UNKNOWN,
    HealthCheckResponse.UNKNOWN: Liveness.UNKNOWN,
}
ANSWERED = {"UNIMPLEMENTED": Liveness.REACHABLE, "NOT_FOUND": Liveness.UNKNOWN}
CODES = [
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
]


@pytest.mark.parametrize("status", HealthCheckResponse.ServingStatus.values())
def test_what_a_store_says_of_itself_has_a_meaning(status: int) -> None:
    assert decide(status) is BY_STATUS[HealthCheckResponse.ServingStatus.ValueType(status)]


def test_a_status_of_a_later_version_is_not_taken_for_good() -> None:
    assert decide(99) is Liveness.UNREACHABLE


@pytest.mark.parametrize("code", CODES)
def test_only_a_server_that_knows_no_health_is_no_dead_one(code: str) -> None:
    error = RpcError("tikv1:20160", "Check", code, "")

    assert decide(error) is ANSWERED.get(code, Liveness.UNREACHABLE)


def test_every_code_of_grpc_is_in_the_test_above() -> None:
    assert {*CODES, "OK"} == {code.name for code in grpc.StatusCode}
