"""RPCs as values, made from the service descriptors when first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from tikv_proto._pool import FILES, POOL, message_class

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


@dataclass(frozen=True, slots=True, eq=False)
class Rpc(Generic[Req, Resp]):
    """One RPC of the wire: what to call and what goes over it.

    There is exactly one `Rpc` object per method, so identity is equality.
    """

    path: str
    """gRPC method path, such as `/tikvpb.Tikv/RawGet`."""
    request: type[Req]
    """Class of the request message."""
    response: type[Resp]
    """Class of the response message."""
    client_streaming: bool
    """Whether the caller sends a stream of requests."""
    server_streaming: bool
    """Whether the server answers with a stream of responses."""
    batch_field: str | None
    """Field of BatchCommandsRequest.Request (and Response) that carries this RPC; None when it cannot be batched."""

    @property
    def name(self) -> str:
        """Method name without its service, such as `RawGet`."""
        return self.path.rpartition("/")[2]

    def __repr__(self) -> str:
        return f"<Rpc {self.path}>"


class Service:
    """The RPCs of one service as attributes, by method name."""

    def __init__(self, descriptor: ServiceDescriptor) -> None:
        self._descriptor = descriptor

    def __getattr__(self, name: str) -> Rpc[Message, Message]:
        method = self._descriptor.methods_by_name.get(name)
        if method is None:
            raise AttributeError(f"service {self._descriptor.full_name} has no RPC {name!r}")
        rpc = _rpc(method)
        setattr(self, name, rpc)
        return rpc

    def __dir__(self) -> list[str]:
        return sorted(self._descriptor.methods_by_name)


@cache
def _batch_fields() -> dict[str, str]:
    """Map the full name of a request message to the BatchCommands oneof field that carries it."""
    carrier = POOL.FindMessageTypeByName("tikvpb.BatchCommandsRequest.Request")
    return {field.message_type.full_name: field.name for field in carrier.oneofs_by_name["cmd"].fields}


def _rpc(method: MethodDescriptor) -> Rpc[Message, Message]:
    in_store_service = method.containing_service.full_name == "tikvpb.Tikv"
    streaming = method.client_streaming or method.server_streaming
    batchable = in_store_service and not streaming
    return Rpc(
        path=f"/{method.containing_service.full_name}/{method.name}",
        request=message_class(method.input_type),
        response=message_class(method.output_type),
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
        batch_field=_batch_fields().get(method.input_type.full_name) if batchable else None,
    )


@cache
def services() -> dict[str, Service]:
    """Return every service by its name without package."""
    found: dict[str, Service] = {}
    for file_name in FILES:
        for name, descriptor in POOL.FindFileByName(file_name).services_by_name.items():
            found[name] = Service(descriptor)
    return found


def all_rpcs() -> Iterator[Rpc[Message, Message]]:
    """Yield every RPC of every service, in order of declaration."""
    for service in services().values():
        for name in service._descriptor.methods_by_name:
            yield getattr(service, name)
