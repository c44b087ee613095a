"""The table of RPCs agrees with the descriptors, and with what BatchCommands can carry."""

from __future__ import annotations

import copy
import pickle

import pytest
from google.protobuf.message import Message
from tikv_proto import kvrpcpb, services, tikvpb
from tikv_proto._pool import FILES, POOL

UNARY_ONLY = (
    "RawGetKeyTTL",
    "RawCompareAndSwap",
    "RawChecksum",
    "UnsafeDestroyRange",
    "RegisterLockObserver",
    "CheckLockObserver",
    "RemoveLockObserver",
    "PhysicalScanLock",
    "SplitRegion",
    "ReadIndex",
    "MvccGetByKey",
    "MvccGetByStartTs",
    "GetStoreSafeTS",
    "GetLockWaitInfo",
    "GetLockWaitHistory",
    "Compact",
    "CheckLeader",
)
STREAMING = {
    # path: (client streams, server streams)
    "/pdpb.PD/Tso": (True, True),
    "/pdpb.PD/QueryRegion": (True, True),
    "/pdpb.PD/ReportBuckets": (True, False),
    "/pdpb.PD/WatchGlobalConfig": (False, True),
    "/tikvpb.Tikv/BatchCommands": (True, True),
    "/tikvpb.Tikv/CoprocessorStream": (False, True),
    "/tikvpb.Tikv/RawGet": (False, False),
    "/grpc.health.v1.Health/Check": (False, False),
    "/grpc.health.v1.Health/Watch": (False, True),
}
ALL = list(services.all_rpcs())
BATCHABLE = [rpc for rpc in ALL if rpc.batch_field is not None]


def commands(carrier: type[Message]) -> dict[str, tuple[int, object]]:
    """Return number and type of the fields of the oneof `cmd` by name."""
    return {field.name: (field.number, field.message_type) for field in carrier.DESCRIPTOR.oneofs_by_name["cmd"].fields}


def test_every_rpc_knows_its_path_and_the_classes_it_carries() -> None:
    paths = {
        f"/{service.full_name}/{method.name}": (method.input_type, method.output_type)
        for file in FILES
        for service in POOL.FindFileByName(file).services_by_name.values()
        for method in service.methods
    }

    assert {rpc.path: (rpc.request.DESCRIPTOR, rpc.response.DESCRIPTOR) for rpc in ALL} == paths
    assert all(isinstance(message(), Message) for rpc in ALL for message in (rpc.request, rpc.response))


@pytest.mark.parametrize("rpc", BATCHABLE, ids=str)
def test_a_batchable_rpc_has_one_field_number_for_its_request_and_its_response(
    rpc: services.Rpc[Message, Message],
) -> None:
    assert rpc.batch_field is not None

    request_number, request = commands(tikvpb.BatchCommandsRequest.Request)[rpc.batch_field]
    response_number, response = commands(tikvpb.BatchCommandsResponse.Response)[rpc.batch_field]

    assert (request, response) == (rpc.request.DESCRIPTOR, rpc.response.DESCRIPTOR)
    assert request_number == response_number


def test_every_command_of_the_batch_but_empty_belongs_to_exactly_one_rpc() -> None:
    carried = [rpc.batch_field for rpc in BATCHABLE]

    assert sorted([*carried, "Empty"], key=str) == sorted(commands(tikvpb.BatchCommandsRequest.Request))


@pytest.mark.parametrize("name", UNARY_ONLY)
def test_what_batch_commands_lacks_is_unary_only(name: str) -> None:
    rpc = getattr(services.Tikv, name)

    assert rpc.batch_field is None
    assert (rpc.client_streaming, rpc.server_streaming) == (False, False)


def test_only_the_unary_rpcs_of_a_store_are_batchable() -> None:
    # These share their request message with the batchable Tikv.Coprocessor.
    others = (services.Tikv.CoprocessorStream, services.VersionedKv.VersionedCoprocessor)

    assert services.Tikv.Coprocessor.batch_field == "Coprocessor"
    assert [rpc.batch_field for rpc in others] == [None, None]
    assert all(rpc.path.startswith("/tikvpb.Tikv/") for rpc in BATCHABLE)


@pytest.mark.parametrize("path", STREAMING)
def test_streaming_is_as_on_the_wire(path: str) -> None:
    rpc = next(rpc for rpc in ALL if rpc.path == path)

    assert (rpc.client_streaming, rpc.server_streaming) == STREAMING[path]


def test_an_rpc_is_one_object_also_after_copying_and_pickling() -> None:
    rpc = services.Tikv.RawGet

    assert services.Tikv.RawGet is rpc
    assert copy.copy(rpc) is rpc
    assert copy.deepcopy(rpc) is rpc
    assert pickle.loads(pickle.dumps(rpc)) is rpc
    assert repr(rpc) == "<Rpc /tikvpb.Tikv/RawGet>"


def test_services_are_attributes_and_no_two_share_a_name() -> None:
    names = [name for file in FILES for name in POOL.FindFileByName(file).services_by_name]

    assert len(names) == len(set(names))
    assert set(names) <= set(dir(services))
    assert services.Tikv.RawGet.request is kvrpcpb.RawGetRequest
    assert "RawGet" in dir(services.Tikv)


def test_an_unknown_service_or_rpc_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NoSuchService"):
        getattr(services, "NoSuchService")  # noqa: B009  # the stub knows that there is none
    with pytest.raises(AttributeError, match="NoSuchRpc"):
        getattr(services.Tikv, "NoSuchRpc")  # noqa: B009
