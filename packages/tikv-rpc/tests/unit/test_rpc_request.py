"""A request joined from bytes is the message protobuf would have made."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from tikv_proto import kvrpcpb, tikvpb
from tikv_proto.services import Rpc, Tikv, all_rpcs
from tikv_rpc import Effect, Request
from tikv_rpc.request import batch_head, varint

BATCHED = [rpc for rpc in all_rpcs() if rpc.batch_field is not None and rpc.name.startswith("Raw")]
# Around the borders at which a length takes one more byte.
SIZES = st.one_of(st.integers(0, 300), st.integers(16_200, 16_500), st.integers(2_097_100, 2_097_200))


def with_bytes(rpc: Rpc[Any, Any], data: bytes) -> Any:
    """Return a request of the RPC that carries `data` where it carries keys."""
    fields = rpc.request.DESCRIPTOR.fields_by_name
    if "key" in fields:
        return rpc.request(key=data)
    if "keys" in fields:
        return rpc.request(keys=[b"k", data])
    if "pairs" in fields:
        return rpc.request(pairs=[kvrpcpb.KvPair(key=b"k", value=data)])
    if "ranges" in fields:
        return rpc.request(ranges=[kvrpcpb.KeyRange(start_key=data)])
    return rpc.request(start_key=data)


def test_there_are_batched_raw_rpcs_to_try() -> None:
    assert {"RawGet", "RawPut", "RawDelete", "RawBatchGet", "RawBatchPut", "RawScan"} <= {rpc.name for rpc in BATCHED}


@pytest.mark.parametrize("rpc", BATCHED, ids=lambda rpc: rpc.name)
@given(size=SIZES, context_size=SIZES)
@settings(deadline=None)
def test_a_batched_request_is_what_protobuf_builds(rpc: Rpc[Any, Any], size: int, context_size: int) -> None:
    context = kvrpcpb.Context(region_id=7, resource_group_tag=bytes(context_size))
    field = b"\x0a" + varint(context.ByteSize()) + context.SerializeToString()
    request = Request(rpc, with_bytes(rpc, bytes(size)), Effect.READ)
    assert rpc.batch_field is not None

    head = batch_head(rpc.batch_field, len(field) + len(request.payload))
    message = tikvpb.BatchCommandsRequest.FromString(head + field + request.payload)

    whole = with_bytes(rpc, bytes(size))
    whole.context.CopyFrom(context)
    expected = tikvpb.BatchCommandsRequest.Request()
    getattr(expected, rpc.batch_field).CopyFrom(whole)
    assert message == tikvpb.BatchCommandsRequest(requests=[expected])


@given(number=st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_a_varint_is_what_protobuf_writes(number: int) -> None:
    assert tikvpb.BatchCommandsRequest.FromString(b"\x18" + varint(number)).client_send_time_ns == number


@pytest.mark.parametrize("border", [2**7, 2**14, 2**21, 2**28])
def test_a_varint_takes_one_byte_more_from_each_border_on(border: int) -> None:
    assert len(varint(border)) == len(varint(border - 1)) + 1


def test_a_request_serializes_its_message_once_and_for_all() -> None:
    message = kvrpcpb.RawGetRequest(key=b"k")

    request = Request(Tikv.RawGet, message, Effect.READ)
    message.key = b"changed"

    assert request.payload == kvrpcpb.RawGetRequest(key=b"k").SerializeToString()
