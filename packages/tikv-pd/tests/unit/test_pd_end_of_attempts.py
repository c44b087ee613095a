from __future__ import annotations

import pytest
from tikv_pd import PdError, RpcError, TimestampFallback
from tikv_pd._routing.pursuit import end_of_attempts


@pytest.mark.parametrize(
    "code",
    ["UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL", "RESOURCE_EXHAUSTED", "ABORTED"],
)
def test_a_failed_call_is_tried_again(code: str) -> None:
    assert end_of_attempts(RpcError("pd1:2379", "GetStore", code, "")) is None


@pytest.mark.parametrize("code", ["UNIMPLEMENTED", "INVALID_ARGUMENT", "PERMISSION_DENIED", "UNAUTHENTICATED"])
def test_a_call_that_can_never_work_is_refused(code: str) -> None:
    end = end_of_attempts(RpcError("pd1:2379", "GetStore", code, "why"))

    assert isinstance(end, PdError)
    assert (end.method, end.kind, end.message) == ("GetStore", code, "why")


@pytest.mark.parametrize(
    ("method", "kind", "is_tried_again"),
    [
        ("GetStore", "UNKNOWN", False),
        ("GetStore", "NOT_BOOTSTRAPPED", True),
        ("GetRegion", "REGION_NOT_FOUND", True),
        ("GetPrevRegion", "REGION_NOT_FOUND", True),
        ("GetRegionByID", "REGION_NOT_FOUND", True),
        ("BatchScanRegions", "REGION_NOT_FOUND", True),
        ("ScatterRegion", "REGION_NOT_FOUND", False),
        ("BatchScanRegions", "REGIONS_NOT_CONTAIN_ALL_KEY_RANGE", False),
        ("LoadKeyspace", "ENTRY_NOT_FOUND", False),
        ("GetRegion", "99", False),
    ],
)
def test_an_error_in_the_header_ends_the_attempts_unless_it_passes_by_itself(
    method: str, kind: str, is_tried_again: bool
) -> None:
    error = PdError(method, kind, "")

    assert end_of_attempts(error) is (None if is_tried_again else error)


def test_a_fallback_of_timestamps_is_final() -> None:
    error = TimestampFallback(9, 8)

    assert end_of_attempts(error) is error
