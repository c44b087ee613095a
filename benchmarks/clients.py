"""The blocking clients that are compared, each imported only when it is opened: no environment has them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

STUB, SDK, TIKV_PYTHON, TIKV_CLIENT = "blocking stub", "SDK", "tikv-python", "tikv-client"
PEERS = {TIKV_PYTHON: "tikv-python==0.1.1", TIKV_CLIENT: "tikv-client==0.0.4"}
"""Clients of others, and what to install."""
_PART = 10_240
"""Keys given to tikv-client at once: it scans no more, and fails on answers above 4 MiB, which it does not divide."""


@dataclass(frozen=True)
class Client:
    """What is measured of a client."""

    get: Callable[[bytes], object]
    batch_put: Callable[[dict[bytes, bytes]], object]
    batch_get: Callable[[list[bytes]], Any]
    """Returns something that has as many entries as values were found."""
    scan: Callable[[bytes, bytes], Iterable[object]]
    """Takes a start and an end."""


@contextmanager
def blocking_stub(url: str) -> Iterator[Client]:
    """Open a channel for unary gets; a stub has no batches."""
    import anyio  # noqa: PLC0415
    import grpc  # noqa: PLC0415
    from servers import only_region  # noqa: PLC0415
    from tikv_proto import kvrpcpb  # noqa: PLC0415
    from tikv_proto.services import Tikv  # noqa: PLC0415

    context, address = anyio.run(only_region, url)
    with grpc.insecure_channel(address) as channel:
        method = channel.unary_unary(
            Tikv.RawGet.path, kvrpcpb.RawGetRequest.SerializeToString, kvrpcpb.RawGetResponse.FromString
        )

        def get(key: bytes) -> object:
            return method(kvrpcpb.RawGetRequest(context=context, key=key)).value

        def without_batches(*_: object) -> Any:
            raise NotImplementedError

        yield Client(get, without_batches, without_batches, without_batches)


@contextmanager
def sdk(url: str) -> Iterator[Client]:
    """Open `tikv_raw.sync.RawClient`."""
    from tikv_raw.sync import RawClient  # noqa: PLC0415

    with RawClient(url) as client:
        yield Client(client.get, client.batch_put, client.batch_get, client.scan)


@contextmanager
def tikv_python(url: str) -> Iterator[Client]:
    """Open the client of tikv-python."""
    from tikv import RawClient  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

    with RawClient([url.removeprefix("tikv://")]) as client:
        yield Client(client.get, client.put_many, client.get_many, client.scan)


@contextmanager
def tikv_client(url: str) -> Iterator[Client]:
    """Open the client of tikv-client."""
    from tikv_client import RawClient  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

    client = RawClient.connect([url.removeprefix("tikv://")])

    def batch_put(pairs: dict[bytes, bytes]) -> None:
        rest = iter(pairs.items())
        while part := dict(islice(rest, _PART)):
            client.batch_put(part)

    def batch_get(keys: list[bytes]) -> list[object]:
        return [pair for first in range(0, len(keys), _PART) for pair in client.batch_get(keys[first : first + _PART])]

    def scan(start: bytes, end: bytes) -> Iterator[object]:
        while page := client.scan(start, end, _PART):
            yield from page
            start = page[-1][0] + b"\0"

    yield Client(client.get, batch_put, batch_get, scan)


OPEN = {STUB: blocking_stub, SDK: sdk, TIKV_PYTHON: tikv_python, TIKV_CLIENT: tikv_client}
