"""RawClient: TiKV as a key-value store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeAlias

import attrs
from tikv_pd import Address, ClosedError, ConfigError, PdClient, SecurityConfig, parse_address
from tikv_pd.lowlevel import Resp, Transport, map_hosts
from tikv_proto import kvrpcpb
from tikv_region import KeyCodec, KeyRange, KeyspaceCodec, PlainCodec, RegionCache, prefix_range
from tikv_rpc import (
    AtEdge,
    AtKey,
    Edge,
    FanOut,
    Interceptor,
    KeyWork,
    Merge,
    ObservedRegionCache,
    Plan,
    RangeWork,
    Request,
    RetryRegion,
    RpcClient,
    RpcConfig,
    RpcObserver,
    RpcStats,
    Settle,
    dispatch,
    operation,
)

from tikv_raw._arguments import (
    BytesLike,
    as_bytes,
    as_keys,
    as_pairs,
    check_cf,
    check_has_ttl,
    check_limit,
    check_timeout,
    check_ttl,
)
from tikv_raw._requests import CasResult, Checksum, Page, RawRequests, accept, merge_checksums
from tikv_raw.config import ApiVersion, RawConfig
from tikv_raw.scan import Scan

_KeyPlan: TypeAlias = Plan[tuple[bytes, Request[Resp]], Resp]
_KeysAnswers: TypeAlias = list[tuple[Any, Resp]]


@attrs.frozen
class _Opened:
    """What an open client works with: made once, shared by all calls."""

    rpc: RpcClient
    requests: RawRequests
    get: _KeyPlan[kvrpcpb.RawGetResponse]
    ttl: _KeyPlan[kvrpcpb.RawGetKeyTTLResponse]
    put: _KeyPlan[kvrpcpb.RawPutResponse]
    delete: _KeyPlan[kvrpcpb.RawDeleteResponse]
    compare_and_swap: _KeyPlan[kvrpcpb.RawCASResponse]
    page: Plan[Edge[kvrpcpb.RawScanResponse], tuple[KeyRange, kvrpcpb.RawScanResponse]]
    batch_get: Plan[KeyWork[kvrpcpb.RawBatchGetResponse], _KeysAnswers[kvrpcpb.RawBatchGetResponse]]
    batch_put: Plan[KeyWork[kvrpcpb.RawBatchPutResponse], _KeysAnswers[kvrpcpb.RawBatchPutResponse]]
    batch_delete: Plan[KeyWork[kvrpcpb.RawBatchDeleteResponse], _KeysAnswers[kvrpcpb.RawBatchDeleteResponse]]
    delete_range: Plan[RangeWork[kvrpcpb.RawDeleteRangeResponse], _KeysAnswers[kvrpcpb.RawDeleteRangeResponse]]
    checksum: Plan[RangeWork[kvrpcpb.RawChecksumResponse], Checksum]

    @classmethod
    def over(cls, rpc: RpcClient, requests: RawRequests) -> _Opened:
        """Compose the plans."""
        retry = RetryRegion(dispatch(rpc), rpc)
        cache, concurrency = rpc.cache, rpc.config.concurrency
        return cls(
            rpc,
            requests,
            get=operation(rpc, AtKey(retry, cache)),
            ttl=operation(rpc, AtKey(retry, cache)),
            put=operation(rpc, Settle(AtKey(retry, cache))),
            delete=operation(rpc, Settle(AtKey(retry, cache))),
            compare_and_swap=operation(rpc, Settle(AtKey(retry, cache))),
            page=operation(rpc, AtEdge(retry, cache)),
            batch_get=operation(rpc, FanOut(retry, cache, concurrency)),
            batch_put=operation(rpc, Settle(FanOut(retry, cache, concurrency))),
            batch_delete=operation(rpc, Settle(FanOut(retry, cache, concurrency))),
            delete_range=operation(rpc, Settle(FanOut(retry, cache, concurrency))),
            checksum=operation(rpc, Merge(FanOut(retry, cache, concurrency), merge_checksums)),
        )


class RawClient:
    """A client of TiKV's raw key-value API. Use inside `async with`; any number of tasks may share it.

    Keys and values are bytes-like; ranges are half-open, an empty end is unbounded. Every call takes a `timeout` in
    seconds that covers all its retries. Regions that split, merge or move their leader are followed without the
    caller's notice. Stores do not order plain writes with `compare_and_swap`, nor the writes of one key by several
    tasks: see `RawConfig.atomic`.

    Args:
        address: PD: `tikv://pd1:2379,pd2:2379`, one `host:port`, or several. A URL may name a keyspace:
            `tikv://pd:2379?keyspaceName=users`.
        api_version: What the cluster's `storage.api-version` is; by default `v2` when a keyspace is named, else `v1`.
        keyspace: Name of the keyspace under API v2, `DEFAULT` when none is named.
        cf: Column family of calls that name none.
        config: Limits and defaults.
        security: TLS; None for plain text.
        interceptors: What runs around every attempt at a store, the first outermost; see `tikv_rpc.Interceptor`.
        observers: Who hears of every call, its attempts and its waits; see `tikv_rpc.RpcObserver`.
        transport: How to reach servers; gRPC by default.

    Raises:
        ConfigError: an argument can never work.
        TypeError: an argument is of the wrong type.

    Entering `async with` may raise:
        PdUnavailable: no PD answered within `config.pd.open_timeout`, or none of the addresses is a PD.
        ClusterMismatch: the addresses belong to different clusters.
        KeyspaceNotFound: there is no such enabled keyspace.
        ConfigError: the client is open already, or TLS material cannot be read.

    Every call may raise:
        TypeError: an argument is of the wrong type; a `str` must be encoded. Nothing was sent.
        ConfigError: an argument can never work. Nothing was sent.
        ClosedError: the client is not open, or was closed meanwhile.
        DeadlineExceeded: time ran out; a write had no effect.
        RawError: a store refused, for example because the client's API version is not the cluster's.
        CodecError: the cluster does not speak the client's API version.
        FlashbackInProgress: an administrator sets the data back to an earlier time.
        PdError, ClusterMismatch, RpcError: PD or a store refused for good.

    Every write may also raise:
        UndeterminedError: the write, or a part of it, may or may not have been applied.
        EntryTooLarge: it exceeds raft's entry limit, 8 MiB by default.

    Cancelling a read leaves nothing behind. A write that is cancelled may or may not take effect.

    Source: client-go rawkv.Client.
    """

    def __init__(
        self,
        address: Address,
        *,
        api_version: ApiVersion | None = None,
        keyspace: str | None = None,
        cf: str = "default",
        config: RawConfig | None = None,
        security: SecurityConfig | None = None,
        interceptors: Iterable[Interceptor] = (),
        observers: Iterable[RpcObserver] = (),
        transport: Transport | None = None,
    ) -> None:
        parsed = parse_address(address)
        if keyspace is not None and not isinstance(keyspace, str):
            raise TypeError(f"keyspace must be a str, not {type(keyspace).__name__}")
        if keyspace is not None and parsed.keyspace is not None and keyspace != parsed.keyspace:
            raise ConfigError(f"the address names keyspace {parsed.keyspace!r}, the argument {keyspace!r}")
        self._keyspace = keyspace if keyspace is not None else parsed.keyspace
        if api_version is None:
            api_version = "v1" if self._keyspace is None else "v2"
        if api_version not in {"v1", "v1ttl", "v2"}:
            raise ConfigError(f"unknown api_version {api_version!r}; known are 'v1', 'v1ttl' and 'v2'")
        if self._keyspace is not None and api_version != "v2":
            raise ConfigError(f"a keyspace needs api_version='v2', not {api_version!r}")
        self._is_v2 = api_version == "v2"
        self._has_ttl = api_version != "v1"
        self._cf = check_cf(cf, several=not self._is_v2)
        self._endpoints = parsed.endpoints
        self._config = config if config is not None else RawConfig()
        self._security = security
        self._interceptors = tuple(interceptors)
        self._observers = tuple(observers)
        self._transport = transport
        self._is_taken = False
        self._stack: AsyncExitStack | None = None
        self._opened: _Opened | None = None

    async def __aenter__(self) -> Self:
        if self._is_taken:
            raise ConfigError("this RawClient is open already; share it, or make another")
        self._is_taken = True
        try:
            async with AsyncExitStack() as stack:
                self._opened = await self._open(stack)
                self._stack = stack.pop_all()
        except BaseException:
            self._is_taken = False
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the client; calls under way fail with ClosedError, or UndeterminedError for a write that was sent.

        Closing twice is fine, and a closed client may be opened again. Must run in the task that opened the client, as
        the end of `async with` does.

        Cancellation: the client is closed all the same.
        """
        self._opened = None
        stack, self._stack = self._stack, None
        if stack is not None:
            try:
                await stack.aclose()
            finally:
                self._is_taken = False

    async def get(self, key: BytesLike, *, cf: str | None = None, timeout: float | None = None) -> bytes | None:
        """Return the value of `key`, or None when there is none. An empty value is a value.

        Args:
            key: Any bytes, also none.
            cf: Column family.
            timeout: Seconds.

        Source: kvrpcpb.RawGetRequest.
        """
        opened = self._opened or self._not_open()
        key = as_bytes(key, "key")
        call = opened.rpc.call("get", check_timeout(timeout, self._config.timeout))
        response = await opened.get.execute((key, opened.requests.get(key, self._cf_or(cf))), call)
        accept("get", response)
        return None if response.not_found else response.value

    async def batch_get(
        self, keys: Iterable[BytesLike], *, cf: str | None = None, timeout: float | None = None
    ) -> dict[bytes, bytes]:
        """Return the values of those `keys` that exist.

        One request per Region and `RawConfig.batch_keys` keys, `RpcConfig.concurrency` at a time.

        Args:
            keys: Any order, duplicates allowed, as many as fit in memory with their values; none asks nobody.
            cf: Column family.
            timeout: Seconds, for all of them together.

        Returns:
            key → value for the keys found, in no given order. Not a snapshot: two keys may be read at different times.

        Source: kvrpcpb.RawBatchGetRequest.
        """
        opened = self._opened or self._not_open()
        config = self._config
        work = opened.requests.batch_get(as_keys(keys), self._cf_or(cf), config.batch_keys, config.batch_bytes)
        call = opened.rpc.call("batch_get", check_timeout(timeout, config.timeout))
        answers = await opened.batch_get.execute(work, call)
        found: dict[bytes, bytes] = {}
        while answers:  # Each is dropped once its values are copied, so that they are never there twice.
            _, response = answers.pop()
            found.update(opened.requests.pairs("batch_get", response.pairs))
        return found

    async def put(
        self,
        key: BytesLike,
        value: BytesLike,
        *,
        ttl: int | None = None,
        cf: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Store `value` under `key`, in place of any value and TTL before.

        Args:
            key: At most 8 KiB by the server's default (`storage.max-key-size`).
            value: May be empty. Key and value together fit raft's entry limit, 8 MiB by default.
            ttl: Whole seconds after which the key vanishes, at least 1; None for never. Needs API v1ttl or v2.
            cf: Column family.
            timeout: Seconds.

        Raises:
            RawError: the key is too long, or the store has no TTL. Nothing was written.
            EntryTooLarge: the value is too large. Nothing was written.

        Source: kvrpcpb.RawPutRequest.
        """
        opened = self._opened or self._not_open()
        key = as_bytes(key, "key")
        request = opened.requests.put(key, as_bytes(value, "value"), self._ttl(ttl), self._cf_or(cf))
        call = opened.rpc.call("put", check_timeout(timeout, self._config.timeout))
        accept("put", await opened.put.execute((key, request), call))

    async def batch_put(
        self,
        pairs: Mapping[Any, Any] | Iterable[tuple[BytesLike, BytesLike]],
        *,
        ttl: int | None = None,
        cf: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Store many pairs, in place of any values and TTLs before.

        Not atomic: when it fails, or while it runs, some pairs may be stored and others not; storing them all again is
        safe. One request per Region and `RawConfig.batch_keys` or `batch_bytes`, `RpcConfig.concurrency` at a time.

        Args:
            pairs: A mapping, or (key, value) tuples in any order, of which the last for a key counts; none does
                nothing. Each pair fits raft's entry limit.
            ttl: Whole seconds after which the keys vanish, at least 1; None for never. Needs API v1ttl or v2.
            cf: Column family.
            timeout: Seconds, for all of them together.

        Raises:
            DeadlineExceeded: time ran out before anything was stored.
            UndeterminedError: some pairs may have been stored.
            RawError, EntryTooLarge: a pair was refused; others may have been stored.

        Source: kvrpcpb.RawBatchPutRequest.
        """
        opened = self._opened or self._not_open()
        config = self._config
        by_key = as_pairs(pairs)
        work = opened.requests.batch_put(
            list(by_key), list(by_key.values()), self._ttl(ttl), self._cf_or(cf), config.batch_keys, config.batch_bytes
        )
        call = opened.rpc.call("batch_put", check_timeout(timeout, config.timeout))
        for _, response in await opened.batch_put.execute(work, call):
            accept("batch_put", response)

    async def delete(self, key: BytesLike, *, cf: str | None = None, timeout: float | None = None) -> None:
        """Remove `key`; a missing one is fine.

        Args:
            key: At most 8 KiB by the server's default.
            cf: Column family.
            timeout: Seconds.

        Source: kvrpcpb.RawDeleteRequest.
        """
        opened = self._opened or self._not_open()
        key = as_bytes(key, "key")
        call = opened.rpc.call("delete", check_timeout(timeout, self._config.timeout))
        accept("delete", await opened.delete.execute((key, opened.requests.delete(key, self._cf_or(cf))), call))

    async def batch_delete(
        self, keys: Iterable[BytesLike], *, cf: str | None = None, timeout: float | None = None
    ) -> None:
        """Remove many keys; missing ones are fine.

        Not atomic: when it fails, or while it runs, some keys may be removed and others not; removing them all again is
        safe.

        Args:
            keys: Any order, duplicates allowed; none does nothing.
            cf: Column family.
            timeout: Seconds, for all of them together.

        Raises:
            DeadlineExceeded: time ran out before anything was removed.
            UndeterminedError: some keys may have been removed.
            RawError: a key was refused; others may have been removed.

        Source: kvrpcpb.RawBatchDeleteRequest.
        """
        opened = self._opened or self._not_open()
        config = self._config
        work = opened.requests.batch_delete(as_keys(keys), self._cf_or(cf), config.batch_keys, config.batch_bytes)
        call = opened.rpc.call("batch_delete", check_timeout(timeout, config.timeout))
        for _, response in await opened.batch_delete.execute(work, call):
            accept("batch_delete", response)

    async def delete_range(
        self,
        start: BytesLike,
        end: BytesLike = b"",
        *,
        everything: bool = False,
        cf: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Remove every key from `start` up to but excluding `end`.

        Not atomic: it goes Region by Region, and when it fails, or while it runs, some keys may be removed and others
        not. A range with `start` at or above `end` is empty, and nothing happens.

        Args:
            start: First key to remove.
            end: First key to keep. Empty means all that follow, which needs `everything=True`.
            everything: Says that an unbounded end is meant.
            cf: Column family.
            timeout: Seconds.

        Raises:
            ConfigError: `end` is empty and `everything` is not set.
            DeadlineExceeded: time ran out before anything was removed.
            UndeterminedError: some keys may have been removed.
            RawError: a bound is longer than a key may be; nothing was removed.

        Source: kvrpcpb.RawDeleteRangeRequest.
        """
        opened = self._opened or self._not_open()
        key_range = KeyRange(as_bytes(start, "start"), as_bytes(end, "end"))
        if not key_range.end and not everything:
            raise ConfigError("delete_range without an end removes every key from start on; pass everything=True")
        work = opened.requests.delete_range(key_range, self._cf_or(cf))
        call = opened.rpc.call("delete_range", check_timeout(timeout, self._config.timeout))
        for _, response in await opened.delete_range.execute(work, call):
            accept("delete_range", response)

    def scan(
        self,
        start: BytesLike = b"",
        end: BytesLike = b"",
        *,
        prefix: BytesLike | None = None,
        limit: int | None = None,
        reverse: bool = False,
        key_only: bool = False,
        cf: str | None = None,
        timeout: float | None = None,
    ) -> Scan:
        """Return the pairs of a range as a lazy iterator for `async for`.

        Nothing is sent before the first pair is asked for. A page holds `RawConfig.scan_page` pairs of one Region at
        most, whatever the size of their values; while one is consumed, the next one is on its way.

        Args:
            start: First key, inclusive, also when `reverse`.
            end: End of the range, exclusive, also when `reverse`; empty for unbounded.
            prefix: Instead of `start` and `end`: all keys that begin with it, all keys there are when it is empty.
            limit: Pairs at most, any number; None for all, 0 for none.
            reverse: Descending instead of ascending order of keys.
            key_only: Leave the values out; they come as b"".
            cf: Column family.
            timeout: Seconds that fetching one page may take.

        Raises:
            ConfigError: `prefix` together with `start` or `end`, or a negative limit.
            ClosedError: the client is not open. The errors of reading come while iterating; see `Scan`.

        Source: kvrpcpb.RawScanRequest.
        """
        opened = self._opened or self._not_open()
        start, end = as_bytes(start, "start"), as_bytes(end, "end")
        if prefix is None:
            key_range = KeyRange(start, end)
        elif start or end:
            raise ConfigError("scan takes either a prefix or start and end, not both")
        else:
            key_range = prefix_range(as_bytes(prefix, "prefix"))
        limit = check_limit(limit)
        cf_on_wire = self._cf_or(cf)
        page_timeout = check_timeout(timeout, self._config.timeout)

        async def fetch(rest: KeyRange, page_limit: int) -> Page:
            work = opened.requests.scan(rest, page_limit, reverse=reverse, key_only=key_only, cf=cf_on_wire)
            covered, response = await opened.page.execute(work, opened.rpc.call("scan", page_timeout))
            return opened.requests.page(covered, response, rest, page_limit, reverse=reverse)

        return Scan(fetch, opened.rpc, key_range, limit, self._config.scan_page)

    async def ttl(self, key: BytesLike, *, cf: str | None = None, timeout: float | None = None) -> int | None:
        """Return the seconds `key` has left.

        Args:
            key: Any bytes, also none.
            cf: Column family.
            timeout: Seconds.

        Returns:
            Whole seconds; 0 when it never expires, None when it is missing.

        Raises:
            ConfigError: the client speaks API v1, which has no TTL.

        Source: kvrpcpb.RawGetKeyTTLRequest.
        """
        opened = self._opened or self._not_open()
        check_has_ttl(enabled=self._has_ttl)
        key = as_bytes(key, "key")
        call = opened.rpc.call("ttl", check_timeout(timeout, self._config.timeout))
        response = await opened.ttl.execute((key, opened.requests.ttl(key, self._cf_or(cf))), call)
        accept("ttl", response)
        return None if response.not_found else response.ttl

    async def compare_and_swap(
        self,
        key: BytesLike,
        expected: BytesLike | None,
        value: BytesLike,
        *,
        ttl: int | None = None,
        cf: str | None = None,
        timeout: float | None = None,
    ) -> CasResult:
        """Store `value` under `key` if it holds `expected` now, atomically.

        Atomic among compare-and-swaps; with other writes to the same keys only if all clients that write them are
        opened with `RawConfig.atomic`.

        Args:
            key: At most 8 KiB by the server's default.
            expected: The value it must hold; None if it must be missing. An empty value is a value.
            value: What to store.
            ttl: Whole seconds after which the key vanishes, at least 1; None for never, also if it had a TTL before.
            cf: Column family.
            timeout: Seconds.

        Returns:
            Whether it was swapped, and the value found.

        Raises:
            UndeterminedError: an answer was lost; it is not tried again, since the first try may have succeeded.

        Source: kvrpcpb.RawCASRequest.
        """
        opened = self._opened or self._not_open()
        key = as_bytes(key, "key")
        request = opened.requests.compare_and_swap(
            key,
            None if expected is None else as_bytes(expected, "expected"),
            as_bytes(value, "value"),
            self._ttl(ttl),
            self._cf_or(cf),
        )
        call = opened.rpc.call("compare_and_swap", check_timeout(timeout, self._config.timeout))
        response = await opened.compare_and_swap.execute((key, request), call)
        accept("compare_and_swap", response)
        return CasResult(response.succeed, None if response.previous_not_exist else response.previous_value)

    async def checksum(self, start: BytesLike = b"", end: BytesLike = b"", *, timeout: float | None = None) -> Checksum:
        """Return a checksum over the pairs of a range in the default column family, in all Regions.

        Not a snapshot; equal data gives equal checksums however it is split into Regions.

        Args:
            start: First key.
            end: End of the range, exclusive; empty for unbounded.
            timeout: Seconds.

        Returns:
            The checksum; all zero for an empty range.

        Source: kvrpcpb.RawChecksumRequest.
        """
        opened = self._opened or self._not_open()
        key_range = KeyRange(as_bytes(start, "start"), as_bytes(end, "end"))
        call = opened.rpc.call("checksum", check_timeout(timeout, self._config.timeout))
        return await opened.checksum.execute(opened.requests.checksum(key_range), call)

    def stats(self) -> RpcStats:
        """Return how the client and its stores do: values, counted since the client was opened.

        Raises:
            ClosedError: the client is not open.
        """
        opened = self._opened or self._not_open()
        return opened.rpc.stats()

    async def _open(self, stack: AsyncExitStack) -> _Opened:
        transport = self._transport if self._transport is not None else _grpc(self._security, self._config.rpc)
        config = self._config
        transport = map_hosts(transport, config.pd.host_mapping)
        keyspace = (self._keyspace or "DEFAULT") if self._is_v2 else None
        pd = PdClient(
            self._endpoints, keyspace=keyspace, config=config.pd, security=self._security, transport=transport
        )
        await stack.enter_async_context(pd)
        codec: KeyCodec = PlainCodec() if pd.keyspace is None else KeyspaceCodec(b"r", pd.keyspace.id, pd.keyspace.name)
        make_cache = ObservedRegionCache if self._observers or config.rpc.is_observing else RegionCache
        cache = make_cache(pd, codec, config=config.region, now=transport.now)
        rpc = RpcClient(
            cache,
            codec,
            pd.cluster_id,
            transport,
            config.rpc,
            interceptors=self._interceptors,
            observers=self._observers,
        )
        await stack.enter_async_context(rpc)
        rpc.tasks.start_soon(cache.run)
        return _Opened.over(rpc, RawRequests.of(codec, config))

    def _ttl(self, ttl: int | None) -> int:
        return check_ttl(ttl, enabled=self._has_ttl)

    def _cf_or(self, cf: str | None) -> str:
        return self._cf if cf is None else check_cf(cf, several=not self._is_v2)

    def _not_open(self) -> _Opened:
        raise ClosedError("RawClient")


def _grpc(security: SecurityConfig | None, config: RpcConfig) -> Transport:
    # gRPC takes most of the time of an import; programs that never connect should not pay it.
    from tikv_pd.grpc_transport import GrpcTransport  # noqa: PLC0415

    return GrpcTransport(security, config.channel)
