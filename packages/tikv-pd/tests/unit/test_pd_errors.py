from __future__ import annotations

import copy
import pickle

import pytest
from tikv_pd import (
    BackoffExceeded,
    ClosedError,
    ClusterMismatch,
    ConfigError,
    DeadlineExceeded,
    KeyspaceNotFound,
    PdError,
    PdUnavailable,
    RpcError,
    TikvError,
    TimestampFallback,
    UndeterminedError,
)
from tikv_pd._routing.members import header_error
from tikv_proto import pdpb

ERRORS = [
    (ConfigError("timeout must be above 0"), False, "timeout must be above 0"),
    (ClosedError("PdClient"), False, "PdClient is not open; use it inside `async with`"),
    (ClosedError("PdClient", "was cut off", may_have_written=True), False, "PdClient was cut off"),
    (ClosedError("PdClient", "was opened before"), False, "PdClient was opened before"),
    (DeadlineExceeded("get_ts", 1.5), True, "get_ts did not finish within 1.5 s"),
    (BackoffExceeded("get", 40.25, 12), True, "get gave up after 12 waits of 40.2 s in all"),
    (UndeterminedError("put"), False, "the outcome of put is unknown"),
    (RpcError("tikv1:20160", "RawGet", "UNAVAILABLE", "refused"), True, "RawGet to tikv1:20160 failed: UNAVAILABLE"),
    (RpcError("tikv1:20160", "RawGet", "PERMISSION_DENIED", "no"), False, "PERMISSION_DENIED (no)"),
    (PdError("GetStore", "UNKNOWN", "invalid store"), False, "PD refused GetStore: UNKNOWN (invalid store)"),
    (PdUnavailable((("pd1:2379", "refused"), ("pd2:2379", "late"))), True, "pd1:2379: refused; pd2:2379: late"),
    (ClusterMismatch(7, 8, "pd1:2379"), False, "pd1:2379 belongs to cluster 8, not 7"),
    (KeyspaceNotFound("orders", "it is DISABLED"), False, "keyspace 'orders' cannot be used: it is DISABLED"),
    (TimestampFallback(9, 8), False, "PD granted timestamp 8 after 9"),
]


@pytest.mark.parametrize(("error", "retryable", "words"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_says_what_happened_and_whether_to_try_again(error: TikvError, retryable: bool, words: str) -> None:
    assert words in str(error)
    assert error.retryable is retryable
    assert error.undetermined is (isinstance(error, UndeterminedError) or "cut off" in words)


@pytest.mark.parametrize("error", [error for error, _, _ in ERRORS], ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_and_copying(error: TikvError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)


@pytest.mark.parametrize("kind", sorted(set(pdpb.ErrorType.keys()) - {"OK", "UNKNOWN"}))
def test_each_kind_of_error_in_a_header_has_a_class_of_its_own(kind: str) -> None:
    header = pdpb.ResponseHeader(error=pdpb.Error(type=pdpb.ErrorType.Value(kind), message="words"))

    error = header_error("GetStore", header)

    assert type(error) is not PdError
    assert (error.kind, error.message) == (kind, "words")


def test_a_cause_is_part_of_the_message() -> None:
    error = UndeterminedError("put")
    error.__cause__ = RpcError("tikv1:20160", "RawPut", "UNAVAILABLE", "reset")

    assert str(error).endswith("applied: RawPut to tikv1:20160 failed: UNAVAILABLE (reset)")
