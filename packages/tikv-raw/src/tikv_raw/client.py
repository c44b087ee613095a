"""RawClient: TiKV as a key-value store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeAlias

import attrs
from tikv_pd import Address, ClosedError, ConfigError, PdClient, SecurityConfig, parse_address
from tikv_pd.lowlevel import Resp, Transport
from tikv_proto import kvrpcpb
from tikv_region import KeyCodec, KeyRange, KeyspaceCodec, PlainCodec, RegionCache, prefix_range
from tikv_rpc import (
    AtEdge,
    AtKey,
    Dispatch,
    Edge,
    FanOut,
    KeyWork,
    Merge,
    Plan,
    RangeWork,
    Request,
    RetryRegion,
    RpcClient,
    Settle,
)

from tikv_raw._arguments import (
    BytesLike,
    as_bytes,
    as_keys,
    as_pairs,
    check_cf,
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
        retry = RetryRegion(Dispatch(rpc), rpc)
        cache, concurrency = rpc.cache, rpc.config.concurrency
        return cls(
            rpc,
            requests,
            get=AtKey(retry, cache),
            ttl=AtKey(retry, cache),
            put=Settle(AtKey(retry, cache)),
            delete=Settle(AtKey(retry, cache)),
            compare_and_swap=Settle(AtKey(retry, cache)),
            page=AtEdge(retry, cache),
            batch_get=FanOut(retry, cache, concurrency),
            batch_put=Settle(FanOut(retry, cache, concurrency)),
            batch_delete=Settle(FanOut(retry, cache, concurrency)),
            delete_range=Settle(FanOut(retry, cache, concurrency)),
            checksum=Merge(FanOut(retry, cache, concurrency), merge_checksums),
        )


class RawClient:
    """A client of TiKV's raw key-value API. Use inside `async with`; any number of tasks may share it.

    Keys and values are bytes-like; ranges are half-open, an empty end is unbounded. Every call takes a `timeout` in
    seconds that covers all its retries. Regions that split, merge or move their leader are followed without the
    caller's notice.

    Args:
        address: PD: `tikv://pd1:2379,pd2:2379`, one `host:port`, or several. A URL may name a keyspace:
            `tikv://pd:2379?keyspaceName=users`.
        api_version: What the cluster's `storage.api-version` is; by default `v2` when a keyspace is named, else `v1`.
        keyspace: Name of the keyspace under API v2, `DEFAULT` when none is named.
        cf: Column family of calls that name none.
        config: Limits and defaults.
        security: TLS; None for plain text.
        transport: How to reach servers; gRPC by default.

    Raises:
        ConfigError: an argument can never work.

    Entering `async with` raises PdUnavailable when no PD answers within `config.pd.open_timeout`, ClusterMismatch
    when the addresses belong to different clusters, KeyspaceNotFound when there is no such enabled keyspace.

    Calls raise TypeError or ConfigError for arguments of a wrong type or value, before anything is sent; ClosedError
    when the client is not open; DeadlineExceeded when time ran out; RawError when the store refuses; EntryTooLarge
    when a write exceeds raft's entry limit (8 MiB by default); UndeterminedError when a write may or may not have been
    applied. All are `TikvError`.

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
        transport: Transport | None = None,
    ) -> None:
        parsed = parse_address(address)
        if keyspace is not None and parsed.keyspace is not None and keyspace != parsed.keyspace:
            raise ConfigError(f"the address names keyspace {parsed.keyspace!r}, the argument {keyspace!r}")
        self._keyspace = keyspace if keyspace is not None else parsed.keyspace
        self._api_version: ApiVersion = api_version or ("v2" if self._keyspace is not None else "v1")
        if self._api_version not in {"v1", "v1ttl", "v2"}:
            raise ConfigError(f"unknown api_version {api_version!r}; known are 'v1', 'v1ttl' and 'v2'")
        if self._keyspace is not None and self._api_version != "v2":
            raise ConfigError(f"a keyspace needs api_version='v2', not {self._api_version!r}")
        self._cf = cf
        self._cf_on_wire = check_cf(cf, several=self._api_version != "v2")
        self._endpoints = parsed.endpoints
        self._config = config if config is not None else RawConfig()
        self._security = security
        self._transport = transport
        self._stack: AsyncExitStack | None = None
        self._opened: _Opened | None = None

    async def __aenter__(self) -> Self:
        if self._stack is not None:
            raise ConfigError("this RawClient is open already; share it, or make another")
        async with AsyncExitStack() as stack:
            transport = self._transport if self._transport is not None else _grpc(self._security)
            pd = await stack.enter_async_context(PdClient(self._endpoints, config=self._config.pd, transport=transport))
            codec = await self._codec(pd)
            cache = RegionCache(pd, codec, config=self._config.region, now=transport.now)
            rpc = await stack.enter_async_context(RpcClient(cache, codec, pd.cluster_id, transport, self._config.rpc))
            self._opened = _Opened.over(rpc, RawRequests(codec, self._config.atomic))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the client; calls under way fail with ClosedError, or UndeterminedError for a write that was sent.

        Closing twice is fine. Must run in the task that opened the client, as the end of `async with` does.
        """
        self._opened = None
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    async def get(self, key: BytesLike, *, cf: str | None = None, timeout: float | None = None) -> bytes | None:
        """Return the value of `key`, or None when there is none. An empty value is a value.

        Source: kvrpcpb.RawGetRequest.
        """
        opened = self._opened or self._not_open()
        key = as_bytes("key", key)
        call = opened.rpc.call("get", check_timeout(timeout, self._config.timeout))
        response = await opened.get.execute((key, opened.requests.get(key, self._cf_or(cf))), call)
        accept("get", response)
        return None if response.not_found else response.value

    async def batch_get(
        self, keys: Iterable[BytesLike], *, cf: str | None = None, timeout: float | None = None
    ) -> dict[bytes, bytes]:
        """Return the values of those `keys` that exist, in no given order.

        Any order and duplicates are fine. One request per Region and `RawConfig.batch_keys` keys, several at a time.
        Not a snapshot: two keys may be read at different times.

        Source: kvrpcpb.RawBatchGetRequest.
        """
        opened = self._opened or self._not_open()
        config = self._config
        work = opened.requests.batch_get(as_keys(keys), self._cf_or(cf), config.batch_keys, config.batch_bytes)
        call = opened.rpc.call("batch_get", check_timeout(timeout, config.timeout))
        found: dict[bytes, bytes] = {}
        for _, response in await opened.batch_get.execute(work, call):
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
            key: At most 8 KiB by the server's default.
            value: May be empty. Key and value together fit raft's entry limit, 8 MiB by default.
            ttl: Whole seconds after which the key vanishes; None for never. Needs API v1ttl or v2.
            cf: Column family.
            timeout: Seconds.

        Cancellation: the write may or may not take effect.
        Source: kvrpcpb.RawPutRequest.
        """
        opened = self._opened or self._not_open()
        key = as_bytes("key", key)
        request = opened.requests.put(key, as_bytes("value", value), self._ttl(ttl), self._cf_or(cf))
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
        """Store many pairs.

        Not atomic: when it fails, some pairs may have been stored; storing them all again is safe. Of several pairs
        with one key the last counts.

        Args:
            pairs: A mapping, or (key, value) tuples. Split by Region, `RawConfig.batch_keys` and `batch_bytes`.
            ttl: Whole seconds after which the keys vanish; None for never.
            cf: Column family.
            timeout: Seconds.

        Cancellation: any of the pairs may or may not be stored.
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

        Cancellation: the write may or may not take effect.
        Source: kvrpcpb.RawDeleteRequest.
        """
        opened = self._opened or self._not_open()
        key = as_bytes("key", key)
        call = opened.rpc.call("delete", check_timeout(timeout, self._config.timeout))
        accept("delete", await opened.delete.execute((key, opened.requests.delete(key, self._cf_or(cf))), call))

    async def batch_delete(
        self, keys: Iterable[BytesLike], *, cf: str | None = None, timeout: float | None = None
    ) -> None:
        """Remove many keys; missing ones are fine.

        Not atomic: when it fails, some keys may have been removed; removing them all again is safe.

        Cancellation: any of the keys may or may not be removed.
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

        Not atomic: it goes Region by Region, and when it fails, some keys may have been removed. A range with `start`
        at or above `end` is empty, and nothing happens.

        Args:
            start: First key to remove.
            end: First key to keep. Empty means all that follow, which needs `everything=True`.
            everything: Says that an unbounded end is meant.
            cf: Column family.
            timeout: Seconds.

        Raises:
            ConfigError: `end` is empty and `everything` is not set.

        Cancellation: any of the keys may or may not be removed.
        Source: kvrpcpb.RawDeleteRangeRequest.
        """
        opened = self._opened or self._not_open()
        key_range = KeyRange(as_bytes("start", start), as_bytes("end", end))
        if not key_range.end and not everything:
            raise ConfigError("delete_range without an end removes every key from start on; pass everything=True")
        call = opened.rpc.call("delete_range", check_timeout(timeout, self._config.timeout))
        if key_range.is_empty:
            return
        work = opened.requests.delete_range(key_range, self._cf_or(cf))
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

        Args:
            start: First key, also when `reverse`.
            end: End of the range, exclusive, also when `reverse`; empty for unbounded.
            prefix: Instead of `start` and `end`: all keys that begin with it.
            limit: Pairs at most; None for all, 0 for none.
            reverse: Descending instead of ascending order of keys.
            key_only: Leave the values out; they come as b"".
            cf: Column family.
            timeout: Seconds that fetching one page may take.

        Raises:
            ConfigError: `prefix` together with `start` or `end`, a negative limit.

        Source: kvrpcpb.RawScanRequest; bounds as in client-go Scan, in both directions the same.
        """
        opened = self._opened or self._not_open()
        start, end = as_bytes("start", start), as_bytes("end", end)
        if prefix is None:
            key_range = KeyRange(start, end)
        elif start or end:
            raise ConfigError("scan takes either a prefix or start and end, not both")
        else:
            key_range = prefix_range(as_bytes("prefix", prefix))
        limit = check_limit(limit)
        cf_on_wire = self._cf_or(cf)
        page_timeout = check_timeout(timeout, self._config.timeout)

        async def fetch(rest: KeyRange, page_limit: int) -> Page:
            work = opened.requests.scan(rest, page_limit, reverse=reverse, key_only=key_only, cf=cf_on_wire)
            covered, response = await opened.page.execute(work, opened.rpc.call("scan", page_timeout))
            return opened.requests.page(covered, response, rest, page_limit, reverse=reverse)

        return Scan(fetch, opened.rpc.tasks, key_range, limit, self._config.scan_page)

    async def ttl(self, key: BytesLike, *, cf: str | None = None, timeout: float | None = None) -> int | None:
        """Return the seconds `key` has left: None when it is missing, 0 when it never expires.

        Raises:
            ConfigError: the client speaks API v1, which has no TTL.

        Source: kvrpcpb.RawGetKeyTTLRequest.
        """
        opened = self._opened or self._not_open()
        self._ttl(1)
        key = as_bytes("key", key)
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
            key: The key.
            expected: The value it must hold; None if it must be missing. An empty value is a value.
            value: What to store.
            ttl: Whole seconds after which the key vanishes; None for never, also if it had a TTL before.
            cf: Column family.
            timeout: Seconds.

        Returns:
            Whether it was swapped, and the value found.

        Raises:
            UndeterminedError: an answer was lost; it is not tried again, since the first try may have succeeded.

        Cancellation: the swap may or may not take effect.
        Source: kvrpcpb.RawCASRequest.
        """
        opened = self._opened or self._not_open()
        key = as_bytes("key", key)
        request = opened.requests.compare_and_swap(
            key,
            None if expected is None else as_bytes("expected", expected),
            as_bytes("value", value),
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

        Source: kvrpcpb.RawChecksumRequest.
        """
        opened = self._opened or self._not_open()
        key_range = KeyRange(as_bytes("start", start), as_bytes("end", end))
        call = opened.rpc.call("checksum", check_timeout(timeout, self._config.timeout))
        if key_range.is_empty:
            return Checksum(0, 0, 0)
        return await opened.checksum.execute(opened.requests.checksum(key_range), call)

    async def _codec(self, pd: PdClient) -> KeyCodec:
        if self._api_version != "v2":
            return PlainCodec()
        keyspace = await pd.load_keyspace(self._keyspace or "DEFAULT")
        return KeyspaceCodec(b"r", keyspace.id, keyspace.name)

    def _ttl(self, ttl: int | None) -> int:
        return check_ttl(ttl, enabled=self._api_version != "v1")

    def _cf_or(self, cf: str | None) -> str:
        return self._cf_on_wire if cf is None else check_cf(cf, several=self._api_version != "v2")

    def _not_open(self) -> _Opened:
        raise ClosedError("RawClient")


def _grpc(security: SecurityConfig | None) -> Transport:
    # gRPC takes most of the time of an import; programs that never connect should not pay it.
    from tikv_pd.grpc_transport import GrpcTransport  # noqa: PLC0415

    return GrpcTransport(security)
