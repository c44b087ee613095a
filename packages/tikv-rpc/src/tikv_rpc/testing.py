"""What tests need in place of a cluster's stores: `FakeCluster`, in memory, also under trio's virtual clock.

Its Regions split, merge and move while requests travel, and each `FakeStore` misbehaves as scripted:

    async with FakeCluster([b"m"]) as cluster, RawClient(cluster.url, transport=cluster.transport) as client:
        cluster.store(1).drop_reply_next(Tikv.RawPut)
        cluster.store(1).before_next(Tikv.RawGet, lambda: cluster.move_leader(b"a", 2))
"""

from __future__ import annotations

from tikv_rpc._fakes.fake_raw import RawMap as RawMap, RawValue as RawValue, crc64 as crc64
from tikv_rpc._fakes.fake_store import (
    Act as Act,
    FakeCluster as FakeCluster,
    FakeStore as FakeStore,
    Handler as Handler,
    Received as Received,
    Serve as Serve,
)
from tikv_rpc._fakes.fake_tokens import FakeTokens as FakeTokens
