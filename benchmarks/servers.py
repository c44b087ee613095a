"""The two servers, each a process of its own: `tikv-embedded`, and a responder that is faster than any client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tikv_pd import PdClient
from tikv_proto import kvrpcpb, metapb

HERE = Path(__file__).parent
EMBEDDED = ("-m", "tikv_embedded", "serve", "--stores", "1")
RESPONDER = (str(HERE / "responder.py"),)


@dataclass(frozen=True)
class Server:
    """A cluster of one store and one Region that runs in a process of its own."""

    url: str
    pid: int


@contextmanager
def running(command: Sequence[str]) -> Iterator[Server]:
    """Start a Python process that prints `ready URL`, and end it."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("ready ").strip()
            if not url:
                sys.exit(f"the server did not start: {' '.join(command)}")
            yield Server(url, process.pid)
        finally:
            process.terminate()


async def only_region(url: str) -> tuple[kvrpcpb.Context, str]:
    """Return the Context of requests to the leader of the only Region, and its store's address."""
    async with PdClient(url) as pd:
        region = await pd.get_region(b"")
        assert region is not None
        assert region.leader is not None
        store = await pd.get_store(region.leader.store_id)
        assert store is not None
        context = kvrpcpb.Context(
            region_id=region.id,
            region_epoch=metapb.RegionEpoch(conf_ver=region.epoch.conf_ver, version=region.epoch.version),
            peer=metapb.Peer(id=region.leader.id, store_id=region.leader.store_id),
            cluster_id=pd.cluster_id,
        )
        return context, store.address
