"""A store that answers without doing anything, so that the client is the bottleneck; PD is tikv-embedded's.

Every RawGet is answered with the same value of 128 bytes and every RawPut with success, as unary calls and through
BatchCommands, where an answer is put together from bytes made beforehand. Calls from a get of `HOLD` on are left
unanswered until a get of `RELEASE`. Prints `ready URL` once it listens.
"""

from __future__ import annotations

import asyncio
import importlib.util
import signal
from collections.abc import AsyncIterator
from typing import Any

import anyio
import grpc.aio
from memory import HOLD, RELEASE
from threads import VALUE
from tikv_embedded import EmbeddedCluster
from tikv_proto import kvrpcpb, tikvpb
from tikv_proto.services import Rpc, Tikv

_GET, _PUT = kvrpcpb.RawGetResponse(value=VALUE), kvrpcpb.RawPutResponse()
_BATCHED = {
    "RawGet": tikvpb.BatchCommandsResponse.Response(RawGet=_GET),
    "RawPut": tikvpb.BatchCommandsResponse.Response(RawPut=_PUT),
}
_CANNED = {
    field: tikvpb.BatchCommandsResponse(responses=[response]).SerializeToString()
    for field, response in _BATCHED.items()
}


async def batch_commands(requests: AsyncIterator[tikvpb.BatchCommandsRequest], _context: Any) -> AsyncIterator[bytes]:
    """Answer each message with one message; serialized repeated fields may simply be strung together."""
    held: list[bytes] | None = None
    async for message in requests:
        ids = tikvpb.BatchCommandsResponse(request_ids=message.request_ids).SerializeToString()
        answer = ids + b"".join([_CANNED[request.WhichOneof("cmd") or ""] for request in message.requests])
        first = message.requests[0].RawGet.key
        if first == HOLD:
            held = []
        elif first == RELEASE and held is not None:
            answer, held = b"".join(held) + answer, None
        if held is None:
            yield answer
        else:
            held.append(answer)


def unary(rpc: Rpc[Any, Any], answer: bytes) -> grpc.RpcMethodHandler[Any, Any]:
    """Return the handler of an RPC that is always answered in the same way."""

    async def respond(_request: Any, _context: Any) -> bytes:
        return answer

    return grpc.unary_unary_rpc_method_handler(respond, request_deserializer=rpc.request.FromString)


async def serve() -> None:
    """Serve until SIGTERM, in the place of a store whose leader PD goes on to name."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with EmbeddedCluster(stores=1) as cluster:
        ((store_id, address),) = cluster.store_addresses.items()
        await cluster.stop_store(store_id, elect=False)
        server = grpc.aio.server()
        handlers = {
            "RawGet": unary(Tikv.RawGet, _GET.SerializeToString()),
            "RawPut": unary(Tikv.RawPut, _PUT.SerializeToString()),
            "BatchCommands": grpc.stream_stream_rpc_method_handler(
                batch_commands, request_deserializer=tikvpb.BatchCommandsRequest.FromString
            ),
        }
        service = Tikv.RawGet.path.split("/")[1]
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
        server.add_insecure_port(address)
        await server.start()
        print(f"ready {cluster.url}", flush=True)
        await stopped.wait()
        await server.stop(None)


if __name__ == "__main__":
    anyio.run(serve, backend_options={"use_uvloop": importlib.util.find_spec("uvloop") is not None})
