"""The raw client for programs that do not await: the same names, parameters and results, from any thread.

Written by `.ci/blocking.py` after the async client: change that one, and run the script.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from copy import copy
from types import TracebackType
from typing import Any, Literal, Self, overload

from tikv_pd import Address, SecurityConfig
from tikv_pd.lowlevel import Transport
from tikv_rpc import Interceptor, Priority, ReplicaRead, RequestOptions, RpcObserver, RpcStats
from tikv_rpc.frontend.arguments import BytesLike
from tikv_rpc.frontend.portal import Pages, Portal

import tikv_raw.client
import tikv_raw.scan
from tikv_raw._batches import BatchOutcome
from tikv_raw._many_ranges import CoprocessorAnswer
from tikv_raw._requests import CasResult, Checksum
from tikv_raw.batches import OnError, Pair
from tikv_raw.config import ApiVersion, RawConfig
from tikv_raw.ranges import CoprocessorData, Range


class Scan(Pages[tuple[bytes, bytes]]):
    """The (key, value) pairs of a range, fetched page by page as they are consumed.

    Not a snapshot: a pair written or removed while the scan runs may or may not appear. Pairs come in key order, each
    key at most once, also when Regions split, merge or move meanwhile. Several threads may iterate over one scan: each
    pair goes to one of them.

    Breaking out of the loop leaves nothing behind but at most one page that is fetched and dropped; `close`, or
    `with`, ends that at once, too.

    Raises, while iterating:
        DeadlineExceeded: a page did not come within the scan's `timeout`. Iterating on tries again from there.
        ClosedError: the client was closed. Pairs fetched before are still returned.
        RawError: the store refused.

    Interrupted: safe. Iterating on afterwards continues with the pair after the last one returned.
    Source: kvrpcpb.RawScanRequest.
    """

    def __init__(self, portal: Portal, scan: tikv_raw.scan.Scan) -> None:
        super().__init__(portal, scan._take_page, scan.aclose)


class RawClient:
    """A client of TiKV's raw key-value API. Use inside `with`; any number of threads may share it.

    Keys and values are bytes-like; ranges are half-open, an empty end is unbounded. Every call takes a `timeout` in
    seconds that covers all its retries. Regions that split, merge or move their leader are followed without the
    caller's notice. Stores do not order plain writes with `compare_and_swap`, nor the writes of one key by several
    threads: see `RawConfig.atomic`.

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

    Opening it may raise:
        PdUnavailable: no PD answered within `config.pd.open_timeout`, or none of the addresses is a PD.
        ClusterMismatch: the addresses belong to different clusters.
        KeyspaceNotFound: there is no such enabled keyspace.
        ConfigError: the client is open already, or TLS material cannot be read.
        ClosedError: another thread closed it meanwhile.

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

    Interrupting a read leaves nothing behind. A write that is interrupted may or may not take effect.

    An event loop runs in a thread of its own while the client is open, also beside a running one, as in a notebook.
    Ctrl-C interrupts a call and leaves the client usable. Iterables that are passed to a call, and its callbacks, run
    in the thread that makes the call: they may call the client, and hold up no other thread. Interceptors and observers
    run in the client's thread, where calling it raises ConfigError. Processes fork before they open their first client;
    in a later fork's child clients raise ClosedError. A program that exits closes what it forgot to close.

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
        self._client = tikv_raw.client.RawClient(
            address,
            api_version=api_version,
            keyspace=keyspace,
            cf=cf,
            config=config,
            security=security,
            interceptors=interceptors,
            observers=observers,
            transport=transport,
        )
        self._portal = Portal(self._client, "RawClient")

    def open(self) -> Self:
        """Open the client, as `with` does, and return it: for programs that close it elsewhere, by `close`.

        Interrupted: it is not open.
        """
        self._portal.open()
        return self

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._portal.close()

    def close(self) -> None:
        """Close the client; calls under way fail with ClosedError, or UndeterminedError for a write that was sent.

        Closing twice is fine, and a closed client may be opened again. Any thread may close it.

        Raises:
            ConfigError: it is called in the client's own thread, by an interceptor.
        """
        self._portal.close()

    def _view(self, client: tikv_raw.client.RawClient) -> Self:
        """Return a client for a view of the async one, on the same portal."""
        view = copy(self)
        view._client = client
        return view

    def with_options(
        self,
        *,
        timeout: float | None = None,
        cf: str | None = None,
        atomic: bool | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
        match_labels: Mapping[str, str] | None = None,
        request_source: str | None = None,
        resource_group: str | None = None,
        requests: RequestOptions | None = None,
    ) -> Self:
        """Return a view of this client whose calls use other options; this client is not changed.

        A view works on the connection of the client it is derived from, costs nothing to make, and may be derived
        again. Opening or closing any of them opens or closes all.

        Args:
            timeout: Seconds that a call may take that names none; of a scan, each page.
            cf: Column family of calls that name none.
            atomic: Whether writes are ordered with `compare_and_swap`; see `RawConfig.atomic`.
            priority: How stores order requests.
            replica_read: Which replica serves reads.
            match_labels: Labels of the stores, such as `{"zone": "a"}`, whose replicas are preferred.
            request_source: Who asks, for the stores' statistics and limits.
            resource_group: On whose account. Stores see it; an interceptor of `tikv_rpc.resource_control` limits it.
            requests: All that stores may be asked for, in place of what this client asks; the options above go on top.

        Returns:
            The view; what is None stays as it is.

        Raises:
            ConfigError, TypeError: an option has a value that can never work.
        """
        return self._view(
            self._client.with_options(
                timeout=timeout,
                cf=cf,
                atomic=atomic,
                priority=priority,
                replica_read=replica_read,
                match_labels=match_labels,
                request_source=request_source,
                resource_group=resource_group,
                requests=requests,
            )
        )

    def stats(self) -> RpcStats:
        """Return how the client and its stores do: values, counted since the client was opened.

        Raises:
            ClosedError: the client is not open.
        """
        return self._portal.run(self._client.stats)

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
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> Scan:
        """Return an iterator over the (key, value) pairs from `start` up to but excluding `end`.

        Lazy: pages of `RawConfig.scan_page` pairs or about `scan_bytes` are fetched as they are consumed, one ahead.

        Args:
            start: First key, inclusive, also when `reverse`.
            end: End of the range, exclusive, also when `reverse`; empty for unbounded.
            prefix: Instead of `start` and `end`: all keys that begin with it, all keys there are when it is empty.
            limit: Pairs at most, any number; None for all, 0 for none.
            reverse: Descending instead of ascending order of keys.
            key_only: Leave the values out; they come as b"".
            cf: Column family.
            timeout: Seconds that fetching one page may take.
            priority: How the stores order the requests.
            replica_read: Which replica serves them.

        Raises:
            ConfigError: `prefix` together with `start` or `end`, or a negative limit.
            ClosedError: the client is not open. The errors of reading come while iterating; see `Scan`.

        Source: kvrpcpb.RawScanRequest.
        """
        return Scan(
            self._portal,
            self._client.scan(
                start,
                end,
                prefix=prefix,
                limit=limit,
                reverse=reverse,
                key_only=key_only,
                cf=cf,
                timeout=timeout,
                priority=priority,
                replica_read=replica_read,
            ),
        )

    def batch_scan(
        self,
        ranges: Iterable[Range],
        *,
        each_limit: int | None = None,
        reverse: bool = False,
        key_only: bool = False,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> list[list[tuple[bytes, bytes]]]:
        """Return the pairs of many ranges.

        Ranges that lie in one Region share requests, `RpcConfig.concurrency` of which are under way at a time. The
        result is in memory as a whole; use `scan` for a range of unknown size.

        Args:
            ranges: (start, end) tuples or `KeyRange`s, in any order, also overlapping; `prefix_range` makes one.
            each_limit: Pairs of each range at most, exactly those a scan with this limit would give; None for all.
            reverse: Take each range from its end, in descending order of keys.
            key_only: Leave the values out; they come as b"".
            cf: Column family.
            timeout: Seconds, for all of them together.
            priority: How the stores order the requests.
            replica_read: Which replica serves them.

        Returns:
            A list of (key, value) pairs for each range, in the order of `ranges`. Not a snapshot.

        Source: kvrpcpb.RawBatchScanRequest.
        """
        return self._portal.call(
            self._client.batch_scan,
            ranges,
            each_limit=each_limit,
            reverse=reverse,
            key_only=key_only,
            cf=cf,
            timeout=timeout,
            priority=priority,
            replica_read=replica_read,
        )

    def delete_range(
        self,
        start: BytesLike,
        end: BytesLike = b"",
        *,
        everything: bool = False,
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> None:
        """Remove every key from `start` up to but excluding `end`.

        Not atomic: it goes Region by Region, and when it fails, or while it runs, some keys may be removed and others
        not. A range with `start` at or above `end` is empty, and nothing happens.

        Args:
            start: First key to remove.
            end: First key to keep. Empty means all that follow, which needs `everything=True`.
            everything: Says that an unbounded end is meant.
            progress: Called with the number of Regions done after each of them. What it raises
                ends the call, and is raised.
            cf: Column family.
            timeout: Seconds.
            priority: How the stores order the requests.

        Raises:
            ConfigError: `end` is empty and `everything` is not set.
            KeyTooLarge: a bound is longer than a key may be. Nothing was sent.
            DeadlineExceeded: time ran out before anything was removed.
            UndeterminedError: some keys may have been removed.
            RawError: a store refused; other keys may have been removed.

        Source: kvrpcpb.RawDeleteRangeRequest.
        """
        self._portal.call(
            self._client.delete_range,
            start,
            end,
            everything=everything,
            progress=progress,
            cf=cf,
            timeout=timeout,
            priority=priority,
        )

    def delete_prefix(
        self,
        prefix: BytesLike,
        *,
        everything: bool = False,
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> None:
        """Remove every key that begins with `prefix`.

        Not atomic, as `delete_range`.

        Args:
            prefix: Empty means all keys there are, which needs `everything=True`.
            everything: Says that an empty prefix is meant.
            progress: Called with the number of Regions done after each of them. What it raises
                ends the call, and is raised.
            cf: Column family.
            timeout: Seconds.
            priority: How the stores order the requests.

        Raises:
            ConfigError: `prefix` is empty and `everything` is not set.
            KeyTooLarge, DeadlineExceeded, UndeterminedError, RawError: as `delete_range`.

        Source: kvrpcpb.RawDeleteRangeRequest.
        """
        self._portal.call(
            self._client.delete_prefix,
            prefix,
            everything=everything,
            progress=progress,
            cf=cf,
            timeout=timeout,
            priority=priority,
        )

    def count(
        self,
        start: BytesLike = b"",
        end: BytesLike = b"",
        *,
        prefix: BytesLike | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> int:
        """Return the number of keys of a range.

        Stores count those of the default column family themselves, many Regions at a time; of another one all keys are
        fetched, page after page. Not a snapshot.

        Args:
            start: First key.
            end: End of the range, exclusive; empty for unbounded.
            prefix: Instead of `start` and `end`: all keys that begin with it.
            cf: Column family.
            timeout: Seconds.
            priority: How the stores order the requests.
            replica_read: Which replica serves them.

        Source: kvrpcpb.RawChecksumRequest; RawScanRequest with key_only.
        """
        return self._portal.call(
            self._client.count,
            start,
            end,
            prefix=prefix,
            cf=cf,
            timeout=timeout,
            priority=priority,
            replica_read=replica_read,
        )

    def checksum(
        self,
        start: BytesLike = b"",
        end: BytesLike = b"",
        *,
        prefix: BytesLike | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> Checksum:
        """Return a checksum over the pairs of a range in the default column family, in all Regions.

        Not a snapshot; equal data gives equal checksums however it is split into Regions.

        Args:
            start: First key.
            end: End of the range, exclusive; empty for unbounded.
            prefix: Instead of `start` and `end`: all keys that begin with it.
            timeout: Seconds.
            priority: How the stores order the requests.
            replica_read: Which replica serves them.

        Returns:
            The checksum; all zero for an empty range.

        Source: kvrpcpb.RawChecksumRequest.
        """
        return self._portal.call(
            self._client.checksum,
            start,
            end,
            prefix=prefix,
            timeout=timeout,
            priority=priority,
            replica_read=replica_read,
        )

    def coprocessor(
        self,
        name: str,
        version: str,
        ranges: Iterable[Range],
        data: CoprocessorData = b"",
        *,
        read_only: bool = False,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> list[CoprocessorAnswer]:
        """Have a coprocessor plugin of the stores work on ranges, one request for each Region.

        Args:
            name: Which plugin.
            version: Which versions of it, as a semantic version requirement such as `^1.0`.
            ranges: (start, end) tuples or `KeyRange`s; no Region is asked about parts that it does not hold.
            data: What the plugin is to work with, or a function that makes it of the ranges of each request.
            read_only: Whether the plugin changes nothing, so that a request whose answer was lost can be sent again.
            timeout: Seconds, for all requests together.
            priority: How the stores order the requests.

        Returns:
            An answer for each request, in ascending order of its first range.

        Raises:
            RawError: there is no such plugin, or it failed.
            UndeterminedError: without `read_only`, an answer was lost, or a part of the Regions failed.

        Source: client-rust RawClient::coprocessor; kvrpcpb.RawCoprocessorRequest.
        """
        return self._portal.call(
            self._client.coprocessor,
            name,
            version,
            ranges,
            data,
            read_only=read_only,
            timeout=timeout,
            priority=priority,
        )

    @overload
    def batch_get(
        self,
        keys: Iterable[BytesLike],
        *,
        on_error: Literal["raise"] = "raise",
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> dict[bytes, bytes]: ...

    @overload
    def batch_get(
        self,
        keys: Iterable[BytesLike],
        *,
        on_error: Literal["return"],
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> BatchOutcome: ...

    def batch_get(
        self,
        keys: Iterable[BytesLike],
        *,
        on_error: OnError = "raise",
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> dict[bytes, bytes] | BatchOutcome:
        """Return the values of those `keys` that exist.

        One request per Region and `RawConfig.batch_keys` or `batch_bytes`, `RpcConfig.concurrency` at a time. Of any
        number of keys, only some are under way at a time; beside the result itself, memory is bounded.

        Args:
            keys: Any order, duplicates allowed, also a generator; none asks nobody.
            on_error: "raise" the first failure, or "return" the failures by key beside the values.
            progress: Called again and again with the number of keys done. What it raises ends
                the batch, and is raised.
            cf: Column family.
            timeout: Seconds, for all of them together.
            priority: How the stores order the requests.
            replica_read: Which replica serves them.

        Returns:
            key → value for the keys found, in no given order. Not a snapshot: two keys may be read at different times.
            With `on_error="return"` a `BatchOutcome` that holds it.

        Source: kvrpcpb.RawBatchGetRequest.
        """
        function: Callable[..., Coroutine[Any, Any, dict[bytes, bytes] | BatchOutcome]] = self._client.batch_get
        return self._portal.call(
            function,
            keys,
            on_error=on_error,
            progress=progress,
            cf=cf,
            timeout=timeout,
            priority=priority,
            replica_read=replica_read,
        )

    @overload
    def batch_put(
        self,
        pairs: Mapping[Any, Any] | Iterable[Pair],
        *,
        ttl: int | None = None,
        on_error: Literal["raise"] = "raise",
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> None: ...

    @overload
    def batch_put(
        self,
        pairs: Mapping[Any, Any] | Iterable[Pair],
        *,
        ttl: int | None = None,
        on_error: Literal["return"],
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> BatchOutcome: ...

    def batch_put(
        self,
        pairs: Mapping[Any, Any] | Iterable[Pair],
        *,
        ttl: int | None = None,
        on_error: OnError = "raise",
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> BatchOutcome | None:
        """Store many pairs, in place of any values and TTLs before.

        Not atomic: when it fails, or while it runs, some pairs may be stored and others not; storing them all again is
        safe. One request per Region and `RawConfig.batch_keys` or `batch_bytes`, `RpcConfig.concurrency` at a time. Of
        any number of pairs, only some are under way at a time, so that a generator of millions takes bounded memory.

        Args:
            pairs: A mapping, or (key, value) or (key, value, ttl) tuples in any order, of which the last for a key
                counts, also from a generator; none does nothing. A TTL of None in a tuple stands for never.
            ttl: Whole seconds after which keys without a TTL of their own vanish, at least 1; None for never. Needs
                API v1ttl or v2.
            on_error: "raise" the first failure, or "return" the failures by key.
            progress: Called again and again with the number of pairs done. What it raises ends
                the batch, and is raised.
            cf: Column family.
            timeout: Seconds, for all of them together.
            priority: How the stores order the requests.

        Returns:
            Nothing; with `on_error="return"` a `BatchOutcome`, whose failures are empty when all pairs were stored.

        Raises:
            TypeError, KeyTooLarge, ValueTooLarge: a pair cannot be stored. Nothing was sent, unless `pairs` is an
                iterator: those before it may have been stored.
            DeadlineExceeded: time ran out before anything was stored.
            UndeterminedError: some pairs may have been stored.
            RawError, EntryTooLarge: a pair was refused; others may have been stored.

        Source: kvrpcpb.RawBatchPutRequest.
        """
        function: Callable[..., Coroutine[Any, Any, BatchOutcome | None]] = self._client.batch_put
        return self._portal.call(
            function, pairs, ttl=ttl, on_error=on_error, progress=progress, cf=cf, timeout=timeout, priority=priority
        )

    @overload
    def batch_delete(
        self,
        keys: Iterable[BytesLike],
        *,
        on_error: Literal["raise"] = "raise",
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> None: ...

    @overload
    def batch_delete(
        self,
        keys: Iterable[BytesLike],
        *,
        on_error: Literal["return"],
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> BatchOutcome: ...

    def batch_delete(
        self,
        keys: Iterable[BytesLike],
        *,
        on_error: OnError = "raise",
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> BatchOutcome | None:
        """Remove many keys; missing ones are fine.

        Not atomic: when it fails, or while it runs, some keys may be removed and others not; removing them all again is
        safe. Of any number of keys, only some are under way at a time.

        Args:
            keys: Any order, duplicates allowed, also a generator; none does nothing.
            on_error: "raise" the first failure, or "return" the failures by key.
            progress: Called again and again with the number of keys done. What it raises ends
                the batch, and is raised.
            cf: Column family.
            timeout: Seconds, for all of them together.
            priority: How the stores order the requests.

        Returns:
            Nothing; with `on_error="return"` a `BatchOutcome`, whose failures are empty when all keys were removed.

        Raises:
            TypeError, KeyTooLarge: a key cannot be removed. Nothing was sent, unless `keys` is an iterator: those
                before it may have been removed.
            DeadlineExceeded: time ran out before anything was removed.
            UndeterminedError: some keys may have been removed.
            RawError: a key was refused; others may have been removed.

        Source: kvrpcpb.RawBatchDeleteRequest.
        """
        function: Callable[..., Coroutine[Any, Any, BatchOutcome | None]] = self._client.batch_delete
        return self._portal.call(
            function, keys, on_error=on_error, progress=progress, cf=cf, timeout=timeout, priority=priority
        )

    def get(
        self,
        key: BytesLike,
        *,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> bytes | None:
        """Return the value of `key`, or None when there is none. An empty value is a value.

        Args:
            key: Any bytes, also none.
            cf: Column family.
            timeout: Seconds.
            priority: How the store orders the request.
            replica_read: Which replica serves it.

        Source: kvrpcpb.RawGetRequest.
        """
        return self._portal.call(
            self._client.get, key, cf=cf, timeout=timeout, priority=priority, replica_read=replica_read
        )

    def put(
        self,
        key: BytesLike,
        value: BytesLike,
        *,
        ttl: int | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> None:
        """Store `value` under `key`, in place of any value and TTL before.

        Args:
            key: At most `RawConfig.max_key_bytes`.
            value: From none to `RawConfig.max_value_bytes`.
            ttl: Whole seconds after which the key vanishes, at least 1; None for never. Needs API v1ttl or v2.
            cf: Column family.
            timeout: Seconds.
            priority: How the store orders the request.

        Raises:
            KeyTooLarge, ValueTooLarge: nothing was sent.
            RawError: the store refused, having no TTL or taking only shorter keys. Nothing was written.
            EntryTooLarge: the store takes only smaller values. Nothing was written.

        Source: kvrpcpb.RawPutRequest.
        """
        self._portal.call(self._client.put, key, value, ttl=ttl, cf=cf, timeout=timeout, priority=priority)

    def delete(
        self, key: BytesLike, *, cf: str | None = None, timeout: float | None = None, priority: Priority | None = None
    ) -> None:
        """Remove `key`; a missing one is fine.

        Args:
            key: At most `RawConfig.max_key_bytes`.
            cf: Column family.
            timeout: Seconds.
            priority: How the store orders the request.

        Source: kvrpcpb.RawDeleteRequest.
        """
        self._portal.call(self._client.delete, key, cf=cf, timeout=timeout, priority=priority)

    def ttl(
        self,
        key: BytesLike,
        *,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> int | None:
        """Return the seconds `key` has left.

        Args:
            key: Any bytes, also none.
            cf: Column family.
            timeout: Seconds.
            priority: How the store orders the request.
            replica_read: Which replica serves it.

        Returns:
            Whole seconds; 0 when it never expires, None when it is missing.

        Raises:
            ConfigError: the client speaks API v1, which has no TTL.

        Source: kvrpcpb.RawGetKeyTTLRequest.
        """
        return self._portal.call(
            self._client.ttl, key, cf=cf, timeout=timeout, priority=priority, replica_read=replica_read
        )

    def compare_and_swap(
        self,
        key: BytesLike,
        expected: BytesLike | None,
        value: BytesLike | None,
        *,
        ttl: int | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> CasResult:
        """Store `value` under `key`, or remove the key, if it holds `expected` now, atomically.

        Atomic among compare-and-swaps; with other writes to the same keys only if all clients that write them do so in
        atomic mode, see `RawConfig.atomic`.

        Args:
            key: At most `RawConfig.max_key_bytes`.
            expected: The value it must hold; None if it must be missing. An empty value is a value.
            value: What to store; None to remove the key.
            ttl: Whole seconds after which the key vanishes, at least 1; None for never, also if it had a TTL before.
            cf: Column family.
            timeout: Seconds.
            priority: How the store orders the request.

        Returns:
            Whether it was swapped, and the value found.

        Raises:
            KeyTooLarge, ValueTooLarge: nothing was sent.
            UndeterminedError: an answer was lost; it is not tried again, since the first try may have succeeded.

        Source: kvrpcpb.RawCASRequest.
        """
        return self._portal.call(
            self._client.compare_and_swap, key, expected, value, ttl=ttl, cf=cf, timeout=timeout, priority=priority
        )

    def put_if_absent(
        self,
        key: BytesLike,
        value: BytesLike,
        *,
        ttl: int | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> CasResult:
        """Store `value` under `key` if that is missing, atomically: `compare_and_swap` that expects no value.

        Args:
            key: At most `RawConfig.max_key_bytes`.
            value: From none to `RawConfig.max_value_bytes`.
            ttl: Whole seconds after which the key vanishes, at least 1; None for never.
            cf: Column family.
            timeout: Seconds.
            priority: How the store orders the request.

        Returns:
            Whether it was stored, and the value found when it was not.

        Raises:
            KeyTooLarge, ValueTooLarge: nothing was sent.
            UndeterminedError: an answer was lost; it is not tried again, since the first try may have succeeded.

        Source: kvrpcpb.RawCASRequest with previous_not_exist.
        """
        return self._portal.call(
            self._client.put_if_absent, key, value, ttl=ttl, cf=cf, timeout=timeout, priority=priority
        )
