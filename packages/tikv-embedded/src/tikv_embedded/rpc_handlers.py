"""Handlers for RPCs of the table in `tikv_proto.services`; an RPC without one answers UNIMPLEMENTED."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from tikv_proto.services import Rpc

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)
# Quoted: only the stubs know these classes as generic.
ServicerContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "tuple[str, grpc.RpcMethodHandler[Any, Any]]"
"""An RPC's method path and what answers it."""


def unary(rpc: Rpc[Req, Resp], answer: Callable[[Req, ServicerContext], Awaitable[Resp]]) -> Handler:
    """Answer one request with one response."""
    method = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=rpc.request.FromString,
        response_serializer=rpc.response.SerializeToString,
    )
    return rpc.path, method


def stream(
    rpc: Rpc[Req, Resp],
    answer: Callable[[AsyncIterator[Req], ServicerContext], AsyncIterator[Resp] | Awaitable[None]],
) -> Handler:
    """Answer a stream of requests with a stream of responses, yielded or written to the context."""
    method = grpc.stream_stream_rpc_method_handler(
        answer,
        request_deserializer=rpc.request.FromString,
        response_serializer=rpc.response.SerializeToString,
    )
    return rpc.path, method


def server_stream(rpc: Rpc[Req, Resp], answer: Callable[[Req, ServicerContext], AsyncIterator[Resp]]) -> Handler:
    """Answer one request with a stream of responses."""
    method = grpc.unary_stream_rpc_method_handler(
        answer,
        request_deserializer=rpc.request.FromString,
        response_serializer=rpc.response.SerializeToString,
    )
    return rpc.path, method


def client_stream(
    rpc: Rpc[Req, Resp], answer: Callable[[AsyncIterator[Req], ServicerContext], Awaitable[Resp]]
) -> Handler:
    """Answer a stream of requests with one response."""
    method = grpc.stream_unary_rpc_method_handler(
        answer,
        request_deserializer=rpc.request.FromString,
        response_serializer=rpc.response.SerializeToString,
    )
    return rpc.path, method


def generic_handlers(handlers: list[Handler]) -> list[grpc.GenericRpcHandler]:
    """Group handlers by service, for `grpc.aio.Server.add_generic_rpc_handlers`."""
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for path, method in handlers:
        _, service, name = path.split("/")
        services.setdefault(service, {})[name] = method
    return [grpc.method_handlers_generic_handler(service, methods) for service, methods in services.items()]
