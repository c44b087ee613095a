"""Messages and enums behave like those of any protobuf package, although their pool is private."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import reduce
from importlib import import_module

import pytest
from google.protobuf.descriptor import Descriptor
from tikv_proto import errorpb, keyspacepb, kvrpcpb, metapb, pdpb, tikvpb
from tikv_proto._pool import FILES, POOL, message_class

REGION_ERROR = errorpb.Error(message="moved", not_leader=errorpb.NotLeader(region_id=7, leader=metapb.Peer(id=9)))
GET_RESPONSE = kvrpcpb.RawGetResponse(region_error=REGION_ERROR, value=b"\x00\xff")
BATCH = tikvpb.BatchCommandsResponse(
    request_ids=[3, 1],
    responses=[tikvpb.BatchCommandsResponse.Response(RawGet=GET_RESPONSE)],
)
EXAMPLES = {
    "top level": GET_RESPONSE,
    "nested": BATCH.responses[0],
    "with nested": BATCH,
    "reached through its parent": GET_RESPONSE.region_error.not_leader,
    "with a map": keyspacepb.KeyspaceMeta(id=0, name="DEFAULT", config={"gc_management_type": "unified"}),
    "empty": kvrpcpb.Context(),
}


def all_messages(descriptors: Iterable[Descriptor]) -> Iterator[Descriptor]:
    """Yield message descriptors and what is nested in them, map entries aside."""
    for descriptor in descriptors:
        if not descriptor.GetOptions().map_entry:
            yield descriptor
            yield from all_messages(descriptor.nested_types)


def test_every_message_class_is_found_under_its_module_and_name() -> None:
    declared = [POOL.FindFileByName(file).message_types_by_name.values() for file in FILES]
    classes = [message_class(descriptor) for descriptors in declared for descriptor in all_messages(descriptors)]

    found: list[object] = [
        reduce(getattr, cls.__qualname__.split("."), import_module(cls.__module__)) for cls in classes
    ]

    assert found == classes
    assert {cls.__module__ for cls in classes} <= {f"tikv_proto.{file.removesuffix('.proto')}" for file in FILES}


def test_a_class_reached_through_a_message_is_the_one_of_the_module() -> None:
    gc.collect()

    reached = type(kvrpcpb.GetRequest().context.region_epoch)

    assert reached is metapb.RegionEpoch
    assert (reached.__module__, reached.__qualname__) == ("tikv_proto.metapb", "RegionEpoch")


@pytest.mark.parametrize("name", EXAMPLES)
def test_messages_survive_copying_and_pickling(name: str) -> None:
    message = EXAMPLES[name]

    copies = [copy.copy(message), copy.deepcopy(message)]
    copies += [pickle.loads(pickle.dumps(message, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]

    assert all(made == message and type(made) is type(message) and made is not message for made in copies)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_pickled_message_opens_in_a_process_that_has_imported_nothing(name: str) -> None:
    message = EXAMPLES[name]
    program = "import pickle, sys; sys.stdout.buffer.write(pickle.load(sys.stdin.buffer).SerializeToString())"

    echoed = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], input=pickle.dumps(message), capture_output=True, check=True
    )

    assert type(message).FromString(echoed.stdout) == message


def test_a_field_that_was_left_out_survives_a_round_trip() -> None:
    change_type = b"\x10\x01"  # field 2, of raft's type

    parsed = pdpb.ChangePeer.FromString(change_type)

    assert parsed.SerializeToString() == change_type


def test_a_module_lists_its_messages_enums_and_values() -> None:
    names = dir(kvrpcpb)

    assert {"RawGetRequest", "Context", "Op", "PessimisticLock", "DESCRIPTOR"} <= set(names)
    assert kvrpcpb.DESCRIPTOR.package == "kvrpcpb"


def test_an_unknown_name_is_an_attribute_error_that_names_the_module() -> None:
    with pytest.raises(AttributeError, match=r"'tikv_proto\.kvrpcpb' has no attribute 'NoSuchMessage'"):
        getattr(kvrpcpb, "NoSuchMessage")  # noqa: B009  # the stub knows that there is none


def test_an_enum_maps_names_and_numbers_both_ways() -> None:
    assert (kvrpcpb.APIVersion.V2, kvrpcpb.V2, kvrpcpb.APIVersion.Value("V2")) == (2, 2, 2)
    assert kvrpcpb.APIVersion.Name(kvrpcpb.V2) == "V2"
    assert kvrpcpb.APIVersion.items() == [("V1", 0), ("V1TTL", 1), ("V2", 2), ("V3", 3)]
    assert kvrpcpb.APIVersion.keys() == ["V1", "V1TTL", "V2", "V3"]
    assert kvrpcpb.APIVersion.values() == [0, 1, 2, 3]
    assert {"V1", "V2", "Name"} <= set(dir(kvrpcpb.APIVersion))
    assert repr(kvrpcpb.APIVersion) == "<enum kvrpcpb.APIVersion>"


def test_an_enum_refuses_what_it_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"kvrpcpb\.APIVersion has no number 9"):
        kvrpcpb.APIVersion.Name(9)  # type: ignore[arg-type]  # not a number of the enum, that is the point
    with pytest.raises(ValueError, match=r"kvrpcpb\.APIVersion has no name 'V9'"):
        kvrpcpb.APIVersion.Value("V9")
    with pytest.raises(AttributeError, match=r"kvrpcpb\.APIVersion has no name 'V9'"):
        getattr(kvrpcpb.APIVersion, "V9")  # noqa: B009  # the stub knows that there is none


def test_an_enum_is_one_object_also_after_copying_and_pickling() -> None:
    enum = kvrpcpb.APIVersion

    assert copy.copy(enum) is enum
    assert copy.deepcopy(enum) is enum
    assert pickle.loads(pickle.dumps(enum)) is enum


def test_a_nested_enum_is_reached_through_its_message() -> None:
    reason = kvrpcpb.WriteConflict.Reason

    assert reason.Name(kvrpcpb.WriteConflict.PessimisticRetry) == "PessimisticRetry"
    assert reason.Value("SelfRolledBack") == 3


def test_an_enum_field_takes_and_gives_numbers() -> None:
    lock = kvrpcpb.LockInfo(lock_type=kvrpcpb.PessimisticLock)

    assert lock.lock_type == kvrpcpb.Op.PessimisticLock
    assert kvrpcpb.Op.Name(lock.lock_type) == "PessimisticLock"


def test_an_absent_message_differs_from_an_empty_one() -> None:
    absent, present = errorpb.Error(), errorpb.Error(not_leader=errorpb.NotLeader())

    assert (absent.HasField("not_leader"), present.HasField("not_leader")) == (False, True)
