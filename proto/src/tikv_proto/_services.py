"""RPCs as values, made from the service descriptors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from tikv_proto._pool import FILES, POOL, message_class

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


@dataclass(frozen=True, slots=True, eq=False)
class Rpc(Generic[Req, Resp]):
    """One RPC of the wire: what to call and what goes over it.

    There is exactly one `Rpc` object per method, also after copying and pickling, so identity is equality.
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

    def __reduce__(self) -> tuple[Callable[[str], Rpc[Message, Message]], tuple[str]]:
        return _by_path, (self.path,)


class Service:
    """The RPCs of one service as attributes, by method name; each is made when first asked for."""

    def __init__(self, descriptor: ServiceDescriptor) -> None:
        self._methods = descriptor.methods_by_name

    def __getattr__(self, name: str) -> Rpc[Message, Message]:
        # Only the first time: from then on it is found before this is called.
        if name not in self._methods:
            raise AttributeError(f"no RPC is called {name}", name=name, obj=self)
        # One object, also when two threads ask at once.
        return vars(self).setdefault(name, _rpc(self._methods[name]))  # type: ignore[no-any-return]

    def __dir__(self) -> list[str]:
        return list(self._methods)


def all_rpcs() -> Iterator[Rpc[Message, Message]]:
    """Yield every RPC of every service, in order of declaration."""
    for service in SERVICES.values():
        for method in vars(service)["_methods"]:
            yield getattr(service, method)


def _by_path(path: str) -> Rpc[Message, Message]:
    return next(rpc for rpc in all_rpcs() if rpc.path == path)


def _rpc(method: MethodDescriptor) -> Rpc[Message, Message]:
    in_store_service = method.containing_service.full_name == "tikvpb.Tikv"
    streaming = method.client_streaming or method.server_streaming
    return Rpc(
        path=f"/{method.containing_service.full_name}/{method.name}",
        request=message_class(method.input_type),
        response=message_class(method.output_type),
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
        batch_field=_BATCH_FIELDS.get(method.input_type.full_name) if in_store_service and not streaming else None,
    )


_BATCH_FIELDS: dict[str, str] = {
    field.message_type.full_name: field.name
    for field in POOL.FindMessageTypeByName("tikvpb.BatchCommandsRequest.Request").fields
    if field.message_type is not None
}
# Full name of a request message to the BatchCommands field that carries it.

SERVICES: dict[str, Service] = {
    name: Service(descriptor)
    for file_name in FILES
    for name, descriptor in POOL.FindFileByName(file_name).services_by_name.items()
}
"""Every service by its name without package; no two packages share one."""
