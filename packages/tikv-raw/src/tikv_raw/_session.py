"""What a client and its views share: the connection to a cluster, and the plans while it is open."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, Final, TypeAlias

import attrs
from anyio import Semaphore
from tikv_pd.lowlevel import Resp
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import KeyCodec, KeyRange
from tikv_rpc import (
    AtEdge,
    AtKey,
    Collect,
    Collected,
    Edge,
    Effect,
    Express,
    FanOut,
    KeyWork,
    Merge,
    Plan,
    RangeWork,
    RegionPlan,
    Request,
    RetryRegion,
    RpcClient,
    Settle,
    dispatch,
    operation,
)
from tikv_rpc.frontend.session import Endpoint, Session, connect
from tikv_rpc.frontend.sizes import PairSizes

from tikv_raw._arguments import Limits
from tikv_raw._batches import Batch, Outcome, Take, Whole, Windowed
from tikv_raw._callbacks import Made, Progress, Reported, WithCallbacks
from tikv_raw._many_ranges import Pairs, RegionsWork, ScanOrder, ScanRanges
from tikv_raw._requests import Checksum, RawRequests, merge_checksums
from tikv_raw.config import RawConfig

_KeyPlan: TypeAlias = Plan[tuple[bytes, Request[Resp]], Resp]
_Answers: TypeAlias = list[tuple[Any, Resp]]


@attrs.frozen
class Opened:
    """What an open client works with: made once, shared by all calls."""

    rpc: RpcClient
    requests: RawRequests
    atomic_requests: RawRequests
    """Those whose writes are ordered with compare-and-swaps."""
    limits: Limits
    sizes: PairSizes
    regions: RegionPlan
    get: Express[kvrpcpb.RawGetResponse]
    ttl: Express[kvrpcpb.RawGetKeyTTLResponse]
    put: Express[kvrpcpb.RawPutResponse]
    delete: Express[kvrpcpb.RawDeleteResponse]
    compare_and_swap: _KeyPlan[kvrpcpb.RawCASResponse]
    page: Plan[Edge[kvrpcpb.RawScanResponse], tuple[KeyRange, kvrpcpb.RawScanResponse]]
    scan_ranges: Plan[ScanOrder, list[Pairs]]
    batch: Plan[Batch[Any], None]
    """Does a batch, or raises its first failure."""
    batch_each: Plan[Batch[Any], None]
    """Does a batch in which each key may fail by itself."""
    checksum: Plan[RangeWork[kvrpcpb.RawChecksumResponse], Checksum]
    coprocessor: Plan[RegionsWork[kvrpcpb.RawCoprocessorResponse], _Answers[kvrpcpb.RawCoprocessorResponse]]

    @classmethod
    def over(cls, rpc: RpcClient, codec: KeyCodec, config: RawConfig, *, has_ttl: bool) -> Opened:
        """Compose the plans."""
        retry = RetryRegion(dispatch(rpc), rpc)
        cache, concurrency = rpc.cache, rpc.config.concurrency
        sizes = PairSizes()
        requests, atomic_requests = (RawRequests.of(codec, config, atomic=atomic) for atomic in (False, True))
        prefix = len(codec.encode_key(b""))
        limits = Limits(config.max_key_bytes - prefix, prefix, config.max_value_bytes, has_ttl=has_ttl)

        def all_or_error(take: Take[Any], slots: Semaphore | None) -> Plan[KeyWork[Any], Outcome[Any]]:
            return Merge(FanOut(retry, cache, concurrency, take, slots), lambda answers: Collected(answers, []))

        def each(take: Take[Any], slots: Semaphore | None) -> Plan[KeyWork[Any], Outcome[Any]]:
            return Collect(retry, cache, concurrency, take, slots)

        scan_ranges = ScanRanges(
            FanOut(retry, cache, concurrency), requests, sizes, config.scan_page, config.scan_bytes
        )
        return cls(
            rpc,
            requests,
            atomic_requests,
            limits,
            sizes,
            retry,
            get=Express(rpc, Tikv.RawGet, Effect.READ, "get", operation(rpc, AtKey(retry, cache))),
            ttl=Express(rpc, Tikv.RawGetKeyTTL, Effect.READ, "ttl", operation(rpc, AtKey(retry, cache))),
            put=Express(rpc, Tikv.RawPut, Effect.WRITE, "put", operation(rpc, Settle(AtKey(retry, cache)))),
            delete=Express(rpc, Tikv.RawDelete, Effect.WRITE, "delete", operation(rpc, Settle(AtKey(retry, cache)))),
            compare_and_swap=operation(rpc, Settle(AtKey(retry, cache))),
            page=operation(rpc, AtEdge(retry, cache)),
            scan_ranges=operation(rpc, scan_ranges),
            batch=operation(rpc, Whole(Settle(Windowed(all_or_error, concurrency)))),
            batch_each=operation(rpc, Whole(Windowed(each, concurrency))),
            checksum=operation(rpc, Merge(FanOut(retry, cache, concurrency), merge_checksums)),
            coprocessor=operation(rpc, WithCallbacks(Settle(FanOut(Made(retry), cache, concurrency)))),
        )

    def delete_range(
        self, progress: Progress | None
    ) -> Plan[RangeWork[kvrpcpb.RawDeleteRangeResponse], _Answers[kvrpcpb.RawDeleteRangeResponse]]:
        """Return the plan that removes a range, and tells of each Region that it is done with."""
        cache, concurrency = self.rpc.cache, self.rpc.config.concurrency
        if progress is None:
            return operation(self.rpc, Settle(FanOut(self.regions, cache, concurrency)))
        told: FanOut[Any, kvrpcpb.RawDeleteRangeResponse] = FanOut(Reported(self.regions, progress), cache, concurrency)
        return operation(self.rpc, WithCallbacks(Settle(told)))


class RawSession(Session[Opened]):
    """A raw client's connection to a cluster.

    Args:
        endpoint: Where to.
        config: Limits.
        has_ttl: Whether pairs may have a TTL.
    """

    def __init__(self, endpoint: Endpoint, config: RawConfig, *, has_ttl: bool) -> None:
        super().__init__("RawClient", endpoint)
        self.config: Final = config
        self._has_ttl = has_ttl

    async def connect(self, stack: AsyncExitStack) -> Opened:
        """Connect; the stack disconnects."""
        config = self.config
        cluster = await connect(stack, self.endpoint, b"r", config.pd, config.region, config.rpc)
        return Opened.over(cluster.rpc, cluster.codec, config, has_ttl=self._has_ttl)
