"""What tests need in place of a cluster: a network in memory, a scripted PD, a clock that jumps.

`MemoryTransport` stands for gRPC, `FakePd` for PD's members on it, `FakeTso` for TSO servers; `virtual_time` makes
waits take no time.
"""

from __future__ import annotations

from typing import Any

from tikv_pd._fakes.fake_gc import FakeGc as FakeGc
from tikv_pd._fakes.fake_http import FakeHttp as FakeHttp
from tikv_pd._fakes.fake_meta import FakeMeta as FakeMeta
from tikv_pd._fakes.fake_pd import FakePd as FakePd
from tikv_pd._fakes.fake_resources import FakeResources as FakeResources
from tikv_pd._fakes.fake_tso import FakeTso as FakeTso
from tikv_pd._fakes.memory_transport import (
    EventWaiter as EventWaiter,
    Handlers as Handlers,
    MemoryConnection as MemoryConnection,
    MemoryStream as MemoryStream,
    MemoryTransport as MemoryTransport,
    ServerStream as ServerStream,
    StreamHandler as StreamHandler,
    UnaryHandler as UnaryHandler,
    fail as fail,
    request_metadata as request_metadata,
)


def virtual_time() -> tuple[str, dict[str, Any]]:
    """Return an anyio backend and its options: trio, on a clock that jumps to the next timer when nothing runs.

    A pytest fixture named `anyio_backend` may return it as it is; `anyio.run(main, backend=name,
    backend_options=options)` takes the two parts. Needs trio installed. Make a new one for every run.
    """
    from trio.testing import MockClock  # noqa: PLC0415  # tests alone have trio

    return "trio", {"clock": MockClock(autojump_threshold=0)}
