"""What a client and its views share: how to open the connection to a cluster, and the plans while it is open."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, Final, TypeAlias

import attrs
from tikv_pd import ClosedError, ConfigError, PdClient, SecurityConfig
from tikv_pd.lowlevel import Resp, Transport, map_hosts
from tikv_proto import kvrpcpb
from tikv_region import KeyCodec, KeyRange, KeyspaceCodec, PlainCodec, RegionCache, RegionEntry
from tikv_rpc import (
    AtEdge,
    AtKey,
    Call,
    Collect,
    Collected,
    Edge,
    FanOut,
    Interceptor,
    KeyWork,
    Merge,
    ObservedRegionCache,
    Plan,
    RangeWork,
    RegionPlan,
    Request,
    RetryRegion,
    RpcClient,
    RpcConfig,
    RpcObserver,
    Settle,
    dispatch,
    operation,
)

from tikv_raw._arguments import Limits
from tikv_raw._batches import Batch, Outcome, Progress, Windowed
from tikv_raw._many_ranges import Pairs, RegionsWork, ScanOrder, ScanRanges
from tikv_raw._requests import Checksum, RawRequests, merge_checksums
from tikv_raw._sizes import PairSizes
from tikv_raw.config import RawConfig

_KeyPlan: TypeAlias = Plan[tuple[bytes, Request[Resp]], Resp]
_BatchPlan: TypeAlias = Plan[Batch[Resp], None]
_Answers: TypeAlias = list[tuple[Any, Resp]]


@attrs.frozen
class Endpoint:
    """Where the cluster is, and how to speak to it."""

    addresses: tuple[str, ...]
    """Of PD."""
    keyspace: str | None
    """Name of the keyspace; None for API V1 and V1TTL."""
    has_ttl: bool
    """Whether pairs may have a TTL."""
    security: SecurityConfig | None
    """TLS; None for plain text."""
    interceptors: tuple[Interceptor, ...]
    """What runs around every attempt."""
    observers: tuple[RpcObserver, ...]
    """Who hears of every call."""
    transport: Transport | None
    """How to reach servers; None for gRPC."""


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
    get: _KeyPlan[kvrpcpb.RawGetResponse]
    ttl: _KeyPlan[kvrpcpb.RawGetKeyTTLResponse]
    put: _KeyPlan[kvrpcpb.RawPutResponse]
    delete: _KeyPlan[kvrpcpb.RawDeleteResponse]
    compare_and_swap: _KeyPlan[kvrpcpb.RawCASResponse]
    page: Plan[Edge[kvrpcpb.RawScanResponse], tuple[KeyRange, kvrpcpb.RawScanResponse]]
    scan_ranges: Plan[ScanOrder, list[Pairs]]
    batch_get: _BatchPlan[kvrpcpb.RawBatchGetResponse]
    batch_get_each: _BatchPlan[kvrpcpb.RawBatchGetResponse]
    batch_put: _BatchPlan[kvrpcpb.RawBatchPutResponse]
    batch_put_each: _BatchPlan[kvrpcpb.RawBatchPutResponse]
    batch_delete: _BatchPlan[kvrpcpb.RawBatchDeleteResponse]
    batch_delete_each: _BatchPlan[kvrpcpb.RawBatchDeleteResponse]
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

        def all_or_error() -> Plan[KeyWork[Any], Outcome[Any]]:
            return Merge(Settle(FanOut(retry, cache, concurrency)), lambda answers: Collected(answers, []))

        def batches() -> _BatchPlan[Any]:
            return operation(rpc, Windowed(all_or_error()))

        def outcomes() -> _BatchPlan[Any]:
            return operation(rpc, Windowed(Collect(retry, cache, concurrency)))

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
            get=operation(rpc, AtKey(retry, cache)),
            ttl=operation(rpc, AtKey(retry, cache)),
            put=operation(rpc, Settle(AtKey(retry, cache))),
            delete=operation(rpc, Settle(AtKey(retry, cache))),
            compare_and_swap=operation(rpc, Settle(AtKey(retry, cache))),
            page=operation(rpc, AtEdge(retry, cache)),
            scan_ranges=operation(rpc, scan_ranges),
            batch_get=batches(),
            batch_get_each=outcomes(),
            batch_put=batches(),
            batch_put_each=outcomes(),
            batch_delete=batches(),
            batch_delete_each=outcomes(),
            checksum=operation(rpc, Merge(FanOut(retry, cache, concurrency), merge_checksums)),
            coprocessor=operation(rpc, Settle(FanOut(retry, cache, concurrency))),
        )

    def delete_range(
        self, progress: Progress | None
    ) -> Plan[RangeWork[kvrpcpb.RawDeleteRangeResponse], _Answers[kvrpcpb.RawDeleteRangeResponse]]:
        """Return the plan that removes a range, and tells of each Region that it is done with."""
        regions = self.regions if progress is None else Reported(self.regions, progress)
        return operation(self.rpc, Settle(FanOut(regions, self.rpc.cache, self.rpc.config.concurrency)))


class Reported:
    """Tells of each answer."""

    def __init__(self, inner: RegionPlan, progress: Progress) -> None:
        self._inner = inner
        self._progress = progress
        self._done = 0

    async def execute(self, entry: RegionEntry, request: Request[Resp], call: Call) -> Resp:
        """Send a request, and count its answer."""
        response = await self._inner.execute(entry, request, call)
        self._done += 1
        self._progress(self._done)
        return response


class Session:
    """A connection to a cluster that is open or not.

    Args:
        endpoint: Where to.
        config: Limits.
    """

    def __init__(self, endpoint: Endpoint, config: RawConfig) -> None:
        self.opened: Opened | None = None
        """What it works with while it is open."""
        self.endpoint: Final = endpoint
        self.config: Final = config
        self._is_taken = False
        self._stack: AsyncExitStack | None = None

    def not_open(self) -> Opened:
        """Raise ClosedError."""
        raise ClosedError("RawClient")

    async def open(self) -> None:
        """Connect."""
        if self._is_taken:
            raise ConfigError("this RawClient is open already; share it, or make another")
        self._is_taken = True
        try:
            async with AsyncExitStack() as stack:
                self.opened = await self._connect(stack)
                self._stack = stack.pop_all()
        except BaseException:
            self._is_taken = False
            raise

    async def aclose(self) -> None:
        """Disconnect."""
        self.opened = None
        stack, self._stack = self._stack, None
        if stack is not None:
            try:
                await stack.aclose()
            finally:
                self._is_taken = False

    async def _connect(self, stack: AsyncExitStack) -> Opened:
        endpoint, config = self.endpoint, self.config
        transport = endpoint.transport if endpoint.transport is not None else _grpc(endpoint.security, config.rpc)
        transport = map_hosts(transport, config.pd.host_mapping)
        pd = PdClient(
            endpoint.addresses,
            keyspace=endpoint.keyspace,
            config=config.pd,
            security=endpoint.security,
            transport=transport,
        )
        await stack.enter_async_context(pd)
        codec: KeyCodec = PlainCodec() if pd.keyspace is None else KeyspaceCodec(b"r", pd.keyspace.id, pd.keyspace.name)
        make_cache = ObservedRegionCache if endpoint.observers or config.rpc.is_observing else RegionCache
        cache = make_cache(pd, codec, config=config.region, now=transport.now)
        rpc = RpcClient(
            cache,
            codec,
            pd.cluster_id,
            transport,
            config.rpc,
            interceptors=endpoint.interceptors,
            observers=endpoint.observers,
        )
        await stack.enter_async_context(rpc)
        rpc.tasks.start_soon(cache.run)
        return Opened.over(rpc, codec, config, has_ttl=endpoint.has_ttl)


def _grpc(security: SecurityConfig | None, config: RpcConfig) -> Transport:
    # gRPC takes most of the time of an import; programs that never connect should not pay it.
    from tikv_pd.grpc_transport import GrpcTransport  # noqa: PLC0415

    return GrpcTransport(security, config.channel)
