"""The options of connections reach the wire."""

from __future__ import annotations

import asyncio
import struct

import anyio
import pytest
from tikv_pd import ChannelConfig, PdConfig, TikvError
from tikv_raw import RawClient, RawConfig
from tikv_rpc import RpcConfig

_INITIAL_WINDOW_SIZE = 4


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_connections_have_the_options_of_the_configuration() -> None:
    settings: dict[int, int] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # HTTP/2: a preface of 24 bytes, then a frame of settings behind a head of nine, which begins with the size.
        await reader.readexactly(24)
        head = await reader.readexactly(9)
        settings.update(struct.iter_unpack(">HI", await reader.readexactly(int.from_bytes(head[:3], "big"))))
        writer.close()

    config = RawConfig(rpc=RpcConfig(channel=ChannelConfig(window_bytes=1_234_567)), pd=PdConfig(open_timeout=0.2))
    server = await asyncio.start_server(serve, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]

    with pytest.raises(TikvError), anyio.fail_after(10):
        async with RawClient(f"127.0.0.1:{port}", config=config):
            pass
    server.close()
    await server.wait_closed()

    assert settings[_INITIAL_WINDOW_SIZE] == 1_234_567
